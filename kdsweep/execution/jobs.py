"""A job of a study: what is to be run, one Hydra run of it in this process, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.core.utils import run_job as run_hydra_job
from omegaconf import DictConfig, open_dict

from kdsweep.system.errors import RunError

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Args:
        name: Unique in its study; the folder of its log file below the sweep's.
        overrides: Hydra overrides, complete: a job takes over nothing of the command line but its `hydra.` keys.
        number: Hydra's `hydra.job.num` (launchers count for themselves).
    """

    name: str
    overrides: tuple[str, ...]
    number: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a job: what its task function returned, or why it did not.

    Args:
        value: What the task function returned.
        error: What it raised; None if it returned.
        lost: Its process ended without an answer (killed, out of memory), and `error` says how: the job may be tried
            again. Otherwise an error is the job's own.
    """

    value: object = None
    error: BaseException | None = None
    lost: bool = False


@dataclass(frozen=True)
class Task:
    """What all jobs of a study share: what Hydra hands to `Sweeper.setup`."""

    hydra_context: HydraContext
    config: DictConfig
    task_function: TaskFunction


def all_overrides(job: Job) -> list[str]:
    """The job's overrides with that of its own folder, which must not hang on how often a study was resumed."""
    return [*job.overrides, f"hydra.sweep.subdir={job.name}"]


def run_job(task: Task, job: Job) -> Outcome:
    """Runs a job in this process.

    Returns:
        Its value, or the exception that the job, or the composing of its configuration, raised; `sys.exit` in it is a
        `RunError`. KeyboardInterrupt passes through.
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
            # Closes the job's log file.
            whitelist = task.hydra_context.execution_whitelist
            configure_log(shared.hydra_logging, shared.verbose, execution_whitelist=whitelist)
    except SystemExit as error:
        return Outcome(error=RunError(f"the job ended by sys.exit({error.code!r})"))
    except Exception as error:
        return Outcome(error=error)
    return outcome(done)


def outcome(done: JobReturn) -> Outcome:
    """Hydra's answer as an outcome.

    Read past `return_value`, which writes lines of its own to stderr and raises.
    """
    value = done._return_value
    if done.status is JobStatus.COMPLETED:
        return Outcome(value)
    if done.status is JobStatus.FAILED and isinstance(value, BaseException):
        return Outcome(error=value)
    return Outcome(error=RunError("its launcher gave no answer"), lost=True)
