"""One run, from built objects to a result. Teacher, scratch and distilled student all take this path."""

from __future__ import annotations

import functools
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdsweep.evaluation import evaluate, per_class, reliability
from kdsweep.training import DivergedError, Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from kdsweep.averaged_teachers import AveragedTeacher
    from kdsweep.data import Dataset
    from kdsweep.teachers import Teacher

History = dict[str, list[tuple[int, float]]]


@dataclass
class Reached:
    """How far a run has come, apart from the state of its training.

    Attributes:
        history: For each per-epoch metric its points (epoch, value); epochs count from 1.
        seconds: The time spent so far, without the teacher's passes.
        teacher_seconds: The time spent so far on the teacher's passes.
    """

    history: History = field(default_factory=dict)
    seconds: float = 0.0
    teacher_seconds: float = 0.0

    @property
    def epochs(self) -> int:
        """The number of epochs that have been evaluated."""
        return len(self.history.get("val/accuracy", ()))


@dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
        metrics: The last value of each per-epoch metric, and the summary: best/..., test/..., seconds.
        history: For each per-epoch metric its points (epoch, value); epochs count from 1.
        reliability: The bins of `evaluation.reliability` on the test split; empty if that wasn't read.
        classes: The counts of `evaluation.per_class` on the test split; empty if that wasn't read.
    """

    metrics: Metrics
    history: History = field(repr=False)
    reliability: list[dict[str, float | None]] = field(repr=False, default_factory=list)
    classes: list[dict[str, str | int]] = field(repr=False, default_factory=list)


def run(
    training: Iterable[Metrics],
    predict: Callable[[str], Tensor],
    data: Dataset,
    teacher: Teacher | AveragedTeacher | None,
    log: Callable[[Metrics, int], None],
    evaluate_test: bool,
    reached: Reached | None = None,
    keep: Callable[[Reached], None] = lambda reached: None,
) -> Result:
    """Trains epoch by epoch, evaluates each epoch on validation, and evaluates on test once, at the end, if it may.

    Args:
        training: An iterable, such as a `Fit`, that trains for an epoch and yields the epoch's metrics; empty for a
            network that needs no training.
        predict: Takes "validation" or "test", and returns the logits (N, C) of the network that is trained.
        data: The data set, whose labels the logits are compared with.
        teacher: The teacher whose logits they are compared with, or None.
        log: Takes the metrics of an epoch and its number, from 1. An exception that it raises ends the run.
        evaluate_test: Whether the test split is read at all.
        reached: How far an interrupted run had come, if this goes on with one; `training` then yields the epochs after
            these. It is updated all along, so that it holds what was reached whatever ends the run.
        keep: Called after each epoch, before `log`, so that nothing is logged that a checkpoint doesn't know.

    Returns:
        The metrics of the last epoch, of the best one and on the test split.

    Raises:
        DivergedError: The network's logits for the validation pictures are not finite.
    """
    reached = Reached() if reached is None else reached
    # Each answer is read from a whole table, so it is kept in memory from one epoch to the next.
    answers = None if teacher is None else functools.cache(lambda split: teacher.logits(split).cpu())
    with _clock(reached, teacher) as tick:
        for epoch, trained in enumerate(training, start=reached.epochs + 1):
            metrics = {**trained, **_scores("val", "validation", predict("validation"), data, answers)}
            for name, value in metrics.items():
                reached.history.setdefault(name, []).append((epoch, value))
            # The training loss is measured before each step, so only this shows what the last step did.
            if math.isfinite(metrics["val/nll"]):
                tick()
                keep(reached)
            log(metrics, epoch)
            if not math.isfinite(metrics["val/nll"]):
                raise DivergedError(
                    f"after epoch {epoch} the validation NLL is {metrics['val/nll']}. Lower optimizer.lr."
                )
        last = {name: values[-1][1] for name, values in reached.history.items()} or _scores(
            "val", "validation", predict("validation"), data, answers
        )
        test: Metrics = {}
        bins: list[dict[str, float | None]] = []
        classes: list[dict[str, str | int]] = []
        if evaluate_test:
            logits = predict("test").cpu()
            test = _scores("test", "test", logits, data, answers)
            bins = reliability(logits, data.test.labels)
            classes = per_class(logits, data.test.labels, data.classes)
    seconds = {"seconds": reached.seconds}
    if teacher is not None:
        # A whole sweep pays once for a table, so its cost says nothing about this run.
        seconds["teacher_seconds"] = reached.teacher_seconds
    return Result({**last, **_best(reached.history), **test, **seconds}, reached.history, bins, classes)


def _best(history: History) -> Metrics:
    """Returns the highest validation accuracy, and the first epoch that had it."""
    accuracies = history.get("val/accuracy", [])
    if not accuracies:
        return {}
    epoch, accuracy = max(accuracies, key=lambda point: (point[1], -point[0]))
    return {"best/val_accuracy": accuracy, "best/epoch": float(epoch)}


@contextmanager
def _clock(reached: Reached, teacher: Teacher | AveragedTeacher | None) -> Iterator[Callable[[], None]]:
    """Yields a function that adds the time spent since the block began to `reached`; the block's end calls it too."""
    earlier, earlier_teacher = reached.seconds, reached.teacher_seconds
    start, teacher_start = time.perf_counter(), 0.0 if teacher is None else teacher.seconds

    def tick() -> None:
        reached.teacher_seconds = earlier_teacher + (0.0 if teacher is None else teacher.seconds - teacher_start)
        reached.seconds = earlier + time.perf_counter() - start - (reached.teacher_seconds - earlier_teacher)

    try:
        yield tick
    finally:
        tick()


def _scores(prefix: str, split: str, logits: Tensor, data: Dataset, answers: Callable[[str], Tensor] | None) -> Metrics:
    """Returns `evaluate`'s metrics for a split, each named "<prefix>/<metric>"."""
    scores = evaluate(logits.cpu(), getattr(data, split).labels, None if answers is None else answers(split))
    return {f"{prefix}/{name}": value for name, value in scores.items()}
