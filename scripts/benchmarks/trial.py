"""What a trial takes besides its training, part by part: Hydra's composition, MLflow, data, student, tables.

Trials run in this process. How soon a worker process begins with a job is measured separately.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import cloudpickle
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from benchmarks import parts, running
from benchmarks.measuring import Clock, Figure, Finding, Seconds, in_milliseconds, take_turns
from kdsweep import experiment, recording, train
from kdsweep.config import build, checks, identities, rules
from kdsweep.execution.jobs import Job, Task
from kdsweep.execution.workers import Workers
from kdsweep.numerics import hardware
from kdsweep.system import environment, masking
from kdsweep.system.errors import RunError
from kdsweep.system.sqlite import sqlite_uri
from kdsweep.teachers import Teacher
from kdsweep.tracking.run_records import ARM_TAG
from kdsweep.tracking.run_writer import Run
from kdsweep.tracking.sender import Outbox
from kdsweep.tracking.store import Store

TRIAL_GOAL, START_GOAL, TRACKING_GOAL = 0.5, 0.1, 0.005

TRAINING, REST = "training and evaluation", "Hydra's run, and everything else"
COMPOSITION = "composition"
# The number of epochs whose tracking is timed together.
EPOCHS = 20
EPOCH_METRICS = (
    *("train/loss", "train/accuracy", "lr", "images_per_second", "epoch_seconds"),
    *("val/accuracy", "val/nll", "val/ece", "val/top5", "val/agreement", "val/teacher_kl"),
)


def timed_parts() -> dict[str, list[tuple[Any, str]]]:
    """Returns for each part the functions of kdsweep and Hydra, by owner and name, whose time is the part's."""
    return {
        COMPOSITION: [(ConfigLoaderImpl, "load_sweep_config")],
        "values checked": [(rules, "settled"), (rules, "check_values"), (checks, "check_components")],
        "data found": [(build, "inputs")],
        "student built": [(build, "student")],
        "teacher found": [(train, "trained_teacher")],
        "table lookup": [(Teacher, "answers")],
        "teacher's logits": [(Teacher, "logits")],
        "run identified": [(identities, "run_key")],
        "environment": [(environment, "describe"), (environment, "uncommitted_changes")],
        "MLflow": [(recording, "open_store"), (Store, "create"), (Outbox, "put"), (Outbox, "drain"), (Run, "flush")],
        "config.yaml": [(recording.Recording, "save_config")],
        "weights written": [(recording, "save_tensors")],
        "components built": [(build, "component"), (checks, "component")],
        "secrets looked for": [(masking, "mask_files"), (masking, "mask_logs")],
        # This includes checkpoints, which may take no more than a share of the training's time.
        TRAINING: [(experiment, "run")],
    }


@contextmanager
def charged(clock: Clock) -> Iterator[None]:
    """Charges the functions of `timed_parts` to their parts until the block ends."""
    before = []
    try:
        for part, places in timed_parts().items():
            for owner, name in places:
                own = getattr(owner, name)
                before.append((owner, name, own))
                setattr(owner, name, _charging(clock, part, own))
        yield
    finally:
        for owner, name, own in reversed(before):
            setattr(owner, name, own)


def _charging(clock: Clock, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inside(*arguments: Any, **named: Any) -> Any:
        with clock.part(part):
            return function(*arguments, **named)

    return inside


def trial_lines(arguments: argparse.Namespace) -> list[str]:
    """Returns the overrides of a distilled trial of one epoch."""
    n_validation = max(parts.CLASSES, arguments.pictures // 9)
    return [
        *("experiment=debug", f"data.n_train={arguments.pictures + n_validation}", f"data.val_size={n_validation}"),
        *("data.n_test=10", f"data.n_classes={parts.CLASSES}", f"model.name={arguments.student}"),
        *("epochs=1", f"batch_size={min(128, arguments.pictures)}", f"threads={arguments.threads}"),
        *(f"precision={arguments.precision}", f"device={arguments.device}"),
        *(f"teacher.network.name={arguments.teacher}", "teacher.network.weights=null"),
    ]


class Laps:
    """A side: runs the next trial in this process, and returns the seconds that it took outside its training."""

    def __init__(self, shared: Task, lines: Sequence[str], folder: Path, clock: Clock) -> None:
        self.laps: list[dict[str, Seconds]] = []
        self._shared, self._lines, self._clock = shared, lines, clock
        self._parent = running.parent_run(folder)
        self._numbers = itertools.count()

    def __call__(self) -> float:
        self._clock.lap()
        running.run(self._shared, running.trial(next(self._numbers), self._parent, self._lines))
        self.laps.append(self._clock.lap())
        return outside(self.laps[-1])


def outside(lap: Mapping[str, Seconds]) -> float:
    """Returns the seconds of a trial outside its training."""
    return sum(wall for part, (wall, _) in lap.items() if part != TRAINING)


class Composed:
    """A stand-in for Hydra's loader that copies a finished configuration, to measure a worker without composition."""

    def load_sweep_config(self, config: DictConfig, overrides: Sequence[str]) -> DictConfig:
        copied: DictConfig = config.copy()
        OmegaConf.set_readonly(copied.hydra, False)
        return copied


def clocked(cfg: DictConfig) -> float:
    """A job that returns when it began, by the clock that all processes of this machine share."""
    return time.perf_counter()


def fresh_start(shared: Task, threads: int) -> Callable[[], float]:
    """A side: `start` in a worker process that is made for it.

    The first call also starts the server from which workers are forked, with its imports.
    """

    def run() -> float:
        with closing(Workers(shared, 1, threads, ())) as executor:
            return start(executor)

    return run


def start(executor: Workers) -> float:
    """Returns the seconds from the submission of a job to its first instruction."""
    began = time.perf_counter()
    return answer(executor) - began


@contextmanager
def as_the_product() -> Iterator[None]:
    """Keeps workers of this block from importing the benchmark.

    A worker would otherwise import its parent's script, and this module for the job's function.
    """
    own, script = sys.modules[__name__], sys.modules["__main__"]
    cloudpickle.register_pickle_by_value(own)
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        cloudpickle.unregister_pickle_by_value(own)


def answer(executor: Workers) -> float:
    executor.submit(Job("start", ()))
    ((_, outcome),) = executor.wait()
    if outcome.error is not None:
        raise RunError(f"the worker failed: {outcome.error}") from outcome.error
    assert isinstance(outcome.value, float)
    return outcome.value


def tracking(folder: Path) -> Callable[[], float]:
    """A side: logs `EPOCHS` epochs as a run does, and writes each before the next, as with epochs of some seconds."""
    store = Store(sqlite_uri(folder / "mlflow.db"))

    def epochs() -> float:
        with store.run("epochs", tags={ARM_TAG: "benchmark"}, params={}) as run:
            began = time.perf_counter()
            for epoch in range(1, EPOCHS + 1):
                run.log(dict.fromkeys(EPOCH_METRICS, 0.5), epoch)
                run.flush()
            return time.perf_counter() - began

    return epochs


def measure(arguments: argparse.Namespace) -> Finding:
    """What a trial takes outside its training, part by part; the start of a worker's job; tracking"""
    clock = Clock(REST)
    with parts.workplace(arguments) as folder:
        lines = trial_lines(arguments)
        with running.task(lines, folder) as shared:
            laps = Laps(shared, lines, folder, clock)
            with charged(clock):
                own = take_turns("trials", {"trial": laps}, rounds=arguments.rounds, threads=arguments.threads)
            context = HydraContext(Composed(), shared.hydra_context.callbacks)  # type: ignore[arg-type]
            bare = replace(shared, hydra_context=context, task_function=clocked)
            composed = replace(shared, task_function=clocked)
            with (
                as_the_product(),
                closing(Workers(bare, 1, arguments.threads, ())) as waiting,
                closing(Workers(composed, 1, arguments.threads, ())) as composing,
            ):
                starts = {
                    "new": fresh_start(bare, arguments.threads),
                    "waiting": lambda: start(waiting),
                    "new, composed": fresh_start(composed, arguments.threads),
                    "waiting, composed": lambda: start(composing),
                }
                started = take_turns("workers", starts, rounds=arguments.rounds, threads=arguments.threads)
        hardware.set_threads(arguments.threads)
        training = parts.Training(parts.configuration(arguments, folder, "scratch"))
        sides = {"tracking": tracking(folder), "epoch": parts.epochs(training.fit())}
        turns = take_turns("tracking", sides, rounds=arguments.rounds, threads=arguments.threads)
    scale = training.pictures / parts.CIFAR_TRAIN / EPOCHS
    rate = training.pictures / turns.median("epoch")
    note = f"of {parts.CIFAR_TRAIN:,} pictures at the {rate:,.0f} pictures/s measured"
    first, later = laps.laps[0], laps.laps[1:]
    table = {part: median(lap.get(part, (0.0, 0.0))[0] for lap in later) for part in [*timed_parts(), REST]}
    figures = [
        absolute("a trial in process, outside its training", own.seconds["trial"], TRIAL_GOAL),
        absolute("the start of a worker's job", started.seconds["new"], START_GOAL, "in a new process"),
        absolute("the same in a worker that waits", started.seconds["waiting"], START_GOAL),
        absolute("the start in a new process, with Hydra's composition", started.seconds["new, composed"]),
        absolute("the start in a worker that waits, with Hydra's composition", started.seconds["waiting, composed"]),
        turns.ratio("tracking, of an epoch", "tracking", "epoch", goal=TRACKING_GOAL, scale=scale, note=note),
        Figure("the first trial, outside its training", outside(first), unit="s"),
        *(Figure(f"  {part}", 1000 * seconds, unit="ms") for part, seconds in table.items() if part != TRAINING),
    ]
    notes = [
        f"The first trial: {', '.join(f'{part} {in_milliseconds(wall)} ms' for part, (wall, _) in first.items())}.",
        f"One epoch of {arguments.pictures} pictures; teacher {arguments.teacher}. "
        f"{parts.conditions(training, arguments)}",
    ]
    details = {"trials": [{part: wall for part, (wall, _) in lap.items()} for lap in laps.laps]}
    return Finding(
        "trial: what it takes besides its training",
        figures,
        {**details, "starts": started.values(), "tracking": turns.values()},
        notes=notes,
    )


def absolute(name: str, seconds: Sequence[float], goal: float | None = None, note: str = "") -> Figure:
    """Makes a figure of seconds: their median and range."""
    return Figure(name, median(seconds), goal, unit="s", spread=(min(seconds), max(seconds)), note=note)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts.add_arguments(parser)
