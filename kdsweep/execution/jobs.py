"""The job of a study: what it runs, how Hydra runs it in this process, and its outcome."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.core.utils import run_job as run_hydra_job
from omegaconf import DictConfig, open_dict

from kdsweep.analysis import contest_plan
from kdsweep.system.errors import RunError

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Args:
        name: A name that is unique in the study. The job's log file lies in a folder of this name below the sweep's.
        overrides: All Hydra overrides of the job. From the command line it inherits the `hydra.` keys only.
        number: The value of `hydra.job.num`, unless a Hydra launcher runs the job; launchers count for themselves.
    """

    name: str
    overrides: tuple[str, ...]
    number: int = 0


def in_words(job: str) -> str:
    """Returns what a job of this name does, as people read it.

    "trial-0003" is "trial 3", "label_smoothing-0" is "label smoothing, seed 0", and "confirm-trial-0003-1000" is
    "confirmation of trial 3, seed 1000". "confirm-shuffled-trial-0003-1000", a control with that trial's setting, is
    "confirmation of shuffled (trial 3), seed 1000". "pilot-0003-short" is "pilot of trial 3, short". Another name stays
    as it is.
    """
    pilot = re.fullmatch(r"pilot-(\d+)-(short|full)", job)
    if pilot is not None:
        return f"pilot of trial {int(pilot[1])}, {'short' if pilot[2] == 'short' else 'full length'}"
    if (contests := contest_plan.in_words(job)) is not None:
        return contests
    found = re.fullmatch(
        r"(confirm-)?(?:trial-(?P<trial>\d+)|(?P<arm>\w+?)(?:-trial-(?P<as>\d+))?)(?:-(?P<seed>\d+))?", job
    )
    if found is None:
        return job
    what = found["arm"].replace("_", " ") if found["trial"] is None else f"trial {int(found['trial'])}"
    what += "" if found["as"] is None else f" (trial {int(found['as'])})"
    seed = "" if found["seed"] is None else f", seed {found['seed']}"
    return f"{'confirmation of ' if found[1] else ''}{what}{seed}"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job: what its task function returned or raised, or how its process ended.

    Args:
        value: What the task function returned.
        error: What the task function raised; None if it returned.
        lost: True if the job's process ended without an answer, for instance because it was killed. `error` then says
            how it ended, and the job may be tried again. If False, an error is the job's own.
    """

    value: object = None
    error: BaseException | None = None
    lost: bool = False


@dataclass(frozen=True)
class Task:
    """What all jobs of a study share: the arguments of Hydra's `Sweeper.setup`."""

    hydra_context: HydraContext
    config: DictConfig
    task_function: TaskFunction


def all_overrides(job: Job) -> list[str]:
    """Returns the job's overrides and its folder, which must stay the same however often the study is resumed."""
    return [*job.overrides, f"hydra.sweep.subdir={job.name}"]


def run_job(task: Task, job: Job) -> Outcome:
    """Runs a job in this process.

    Returns:
        The job's value, or the exception that the job or Hydra's composition of its configuration raised. If the job
        calls `sys.exit`, the error is a `RunError`. KeyboardInterrupt is not caught.
    """
    shared = task.config.hydra
    try:
        config = task.hydra_context.config_loader.load_sweep_config(task.config, all_overrides(job))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = job.name, job.number
        try:
            done = run_hydra_job(
                task_function=task.task_function,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
                hydra_context=task.hydra_context,
            )
        finally:
            # This closes the job's log file.
            whitelist = task.hydra_context.execution_whitelist
            configure_log(shared.hydra_logging, shared.verbose, execution_whitelist=whitelist)
    except SystemExit as error:
        return Outcome(error=RunError(f"the job ended by sys.exit({error.code!r})"))
    except Exception as error:
        return Outcome(error=error)
    return outcome(done)


def outcome(done: JobReturn) -> Outcome:
    """Converts Hydra's answer to an outcome.

    It reads the private attribute, because the property `return_value` raises, and writes to stderr before it does.
    """
    value = done._return_value
    if done.status is JobStatus.COMPLETED:
        return Outcome(value)
    if done.status is JobStatus.FAILED and isinstance(value, BaseException):
        return Outcome(error=value)
    return Outcome(error=RunError("its launcher returned no answer"), lost=True)
