"""A plain Hydra grid (`-m` without `sweep=`): checked whole before its first job, and recorded below one MLflow run.

The same grid repeated after an interruption goes on below the run that it has, with the jobs that aren't finished.
"""

from __future__ import annotations

import itertools
import json
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from kdsweep import recording
from kdsweep.analysis.study_goals import Objective
from kdsweep.config import build, checks, keys, recorded_teachers, rules, trained_teachers
from kdsweep.config.keys import flatten
from kdsweep.config.unread import require_read
from kdsweep.report import next_commands
from kdsweep.system.errors import RunError
from kdsweep.system.exit_status import explained, fail, show_traceback
from kdsweep.system.files import hash_identity
from kdsweep.system.processes import parse_process, this_process
from kdsweep.system.progress import note
from kdsweep.tracking.run_records import ARM_TAG, PROCESS, RunRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hydra.plugins.launcher import Launcher
    from hydra.types import HydraContext

    from kdsweep.tracking.run_writer import Run
    from kdsweep.tracking.store import Store

# Launchers whose jobs run on this machine, so that what they need can be tried here.
HERE = ("hydra._internal.", "hydra_plugins.hydra_joblib_launcher.")


def run_grid(
    context: HydraContext,
    config: DictConfig,
    launcher: Launcher,
    jobs: Sequence[Sequence[str]],
    batch_size: int | None,
) -> list[Any]:
    """Runs the jobs of a grid that aren't finished, and returns what the launcher returned for each.

    Args:
        context: Hydra's, which composes the configurations.
        config: The configuration without the jobs' overrides.
        launcher: Runs the jobs.
        jobs: Each job's overrides.
        batch_size: The largest number of jobs that are launched together; None for no limit.

    Raises:
        UserError: A job can't be run as it is configured.
        SystemExit: A job has failed, and has said why.
    """
    configs = list(_checked(context, config, jobs))
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")
    store = recording.open_store(configs[0])
    names = [f"grid-{number:04d}" for number in range(len(jobs))]
    returns: list[Any] = []
    try:
        with _parent(store, _key(configs), folder, goes_on=config.resume is not False) as (parent, finished):
            if finished:
                note(f"{len(finished)} of {len(jobs)} runs of this grid are finished: it goes on with the others.")
            left = [number for number, name in enumerate(names) if name not in finished]
            for batch in _batches(left, batch_size):
                lines = [[*jobs[n], f"tracking.parent={parent.id}", f"tracking.job={names[n]}"] for n in batch]
                done = launcher.launch(lines, initial_job_idx=batch[0])
                for job in done:
                    _ = job.return_value  # raises the job's error
                returns += done
        _say_what_was_found(configs[0], store, parent.id)
    except _JobFailedError as error:
        raise error.end from None
    return returns


def _say_what_was_found(cfg: DictConfig, store: Store, group_id: str) -> None:
    """Prints the best run of the grid, and the next commands."""
    with suppress(RunError):  # the runs have ended well, though the store doesn't answer now
        runs, objective = store.children(group_id), Objective.of(rules.objectives(cfg)[0])
        for line in next_commands.after_grid(recording.uri_of(cfg), Path(cfg.paths.root), group_id, runs, objective):
            note(line)


class _JobFailedError(RunError):
    """A job has ended the command. Its parent has then failed; MLflow would otherwise say that it was killed."""

    def __init__(self, end: SystemExit) -> None:
        super().__init__("a job failed")
        self.end = end


def _checked(context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]]) -> Iterator[DictConfig]:
    """Yields each job's configuration, after it was checked as the job will check it."""
    here = str(config.hydra.launcher._target_).startswith(HERE)
    rehearsed: set[str] = set()
    before = HydraConfig.instance().cfg
    try:
        for number, words in enumerate(jobs):
            composed = context.config_loader.load_sweep_config(config, list(words))
            with open_dict(composed):
                composed.hydra.job.id, composed.hydra.job.num = f"job_id_for_{number}", number
            HydraConfig.instance().set_config(composed)
            names = [name for name in composed if isinstance(name, str) and name != "hydra"]
            cfg = OmegaConf.masked_copy(composed, names)
            try:
                require_read(cfg, composed.hydra)
                cfg = rules.settled(cfg)
                rules.check_values(cfg)
                if here:
                    _rehearse(recorded_teachers.filled(cfg), rehearsed)
            except Exception as error:
                _refuse(error, f"job {number}: {composed.hydra.job.override_dirname}")
            yield cfg
    finally:
        HydraConfig.instance().cfg = before


def _rehearse(cfg: DictConfig, rehearsed: set[str]) -> None:
    """Checks a job's components, and builds what it needs unless an earlier job of the grid needs the same."""
    checks.check_components(cfg)
    rules.require_places(cfg)
    names = ("data", "model", "teacher", "precision", "memory_format", "device", "compiled", "batch_size", "arm")
    targets = [cfg[name]._target_ for name in ("loss", "optimizer", "schedule")]
    key = json.dumps([{name: build.container(cfg)[name] for name in names}, targets], default=str)
    if key not in rehearsed and cfg.arm != "teacher":
        build.rehearse(cfg)
        trained_teachers.rehearse(cfg)
    rehearsed.add(key)


def _refuse(error: Exception, where: str) -> NoReturn:
    """Ends the command with the line of an error that is the user's; raises any other."""
    known = explained(error)
    if known is None or show_traceback():
        raise error
    fail("kdsweep", known, where)


def _key(configs: Sequence[DictConfig]) -> str:
    """Returns a hash of what identifies a grid: the configurations of its jobs, without places and the like."""

    def identity(cfg: DictConfig) -> dict[str, object]:
        # As it is in force: grids from before `auto` had false there.
        flat = {**flatten(build.container(cfg)), "compiled": build.compiled(cfg)}
        return {name: value for name, value in flat.items() if not keys.may_change_when_going_on(name)}

    return hash_identity({"jobs": [identity(cfg) for cfg in configs]})


@contextmanager
def _parent(store: Store, key: str, folder: Path, *, goes_on: bool) -> Iterator[tuple[Run, set[str]]]:
    """Opens the run above the jobs, a new one or that of the same grid if it was interrupted; ends it with the block.

    Yields:
        The run, and the names of the jobs that are finished.
    """
    known = [run for run in store.tagged(arm="group", group=key) if goes_on and _interrupted(run)]
    if known:
        done = {run.tags.get("kdsweep.job", "") for run in store.children(known[-1].id) if run.status == "FINISHED"}
        opened = store.reopened(known[-1].id)
    else:
        tags = {ARM_TAG: "group", "kdsweep.group": key}
        done, opened = set(), store.run(f"multirun {folder.parent.name} {folder.name}", tags=tags, params={})
    with opened as run:
        run.tag({PROCESS: str(this_process())})
        try:
            yield run, done
        except SystemExit as end:
            raise _JobFailedError(end) from end


def _interrupted(run: RunRecord) -> bool:
    """Returns whether a grid's run was ended before its last job, and is no other process's."""
    if run.status != "RUNNING":
        return run.status != "FINISHED"
    process = run.tags.get(PROCESS)
    return process is not None and parse_process(process).is_here and not parse_process(process).lives()


def _batches(numbers: Sequence[int], size: int | None) -> Iterator[list[int]]:
    """Yields the numbers in runs without gaps, of at most `size`: a launcher counts on from a batch's first number."""
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        step = size or len(run)
        yield from (run[start : start + step] for start in range(0, len(run), step))
