"""Runs trials one by one without a study, for benchmarks: kdsweep's own jobs with its own configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode

from kdsweep import train
from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.execution.jobs import Job, Task, run_job
from kdsweep.system.errors import RunError
from kdsweep.system.sqlite import sqlite_uri
from kdsweep.tracking.run_records import ARM_TAG
from kdsweep.tracking.store import Store


@contextmanager
def task(lines: Sequence[str], folder: Path) -> Iterator[Task]:
    """Makes what all trials share, composed from overrides as a study does; restores the terminal's logging.

    Args:
        lines: Hydra's overrides.
        folder: The folder for everything that the trials write.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with hydra.initialize_config_dir(str(CONFIG_FOLDER)):
            own = GlobalHydra.instance().hydra
            assert own is not None
            overrides = [*lines, f"paths.root={folder}", f"hydra.sweep.dir={folder}/sweep"]
            config = own.compose_config("config", overrides, RunMode.MULTIRUN, with_log_configuration=True)
            context = HydraContext(own.config_loader, Callbacks())
            yield Task(context, config, train.hydra_main)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def parent_run(folder: Path) -> str:
    """Makes the MLflow store and the run of a study, and returns the run's id as the parent of trials."""
    with Store(sqlite_uri(folder / "mlflow.db")).run("benchmark", tags={ARM_TAG: "study"}, params={}) as run:
        return run.id


def trial(number: int, parent: str, lines: Sequence[str]) -> Job:
    """Makes the job of a trial, without Optuna's part, which the subcommand `study` measures."""
    own = (
        *("evaluate_test=false", f"tracking.parent={parent}", "tracking.study=benchmark", "tracking.stage=search"),
        *(f"tracking.job=trial-{number:04d}", f"loss.alpha={0.1 + 0.8 * (number % 97) / 97:.4f}"),
    )
    return Job(f"trial-{number:04d}", (*lines, *own), number)


def run(shared: Task, job: Job) -> object:
    """Runs a trial in this process and returns its objective.

    Raises:
        RunError: The trial failed.
    """
    outcome = run_job(shared, job)
    if outcome.error is not None:
        raise RunError(f"{job.name} failed: {outcome.error}") from outcome.error
    return outcome.value
