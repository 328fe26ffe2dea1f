"""One run, from built objects to a result: the path that teacher, scratch and distilled student all take."""

from __future__ import annotations

import functools
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdsweep.evaluation import evaluate, reliability
from kdsweep.training import DivergedError, Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from kdsweep.data import Dataset
    from kdsweep.teachers import Teacher

History = dict[str, list[tuple[int, float]]]


@dataclass
class Reached:
    """How far a run has come, besides its training.

    Attributes:
        history: (epoch from 1, value) of every per-epoch metric.
        seconds: Spent, without the teacher's passes.
        teacher_seconds: Spent on the teacher's passes.
    """

    history: History = field(default_factory=dict)
    seconds: float = 0.0
    teacher_seconds: float = 0.0

    @property
    def epochs(self) -> int:
        """How many epochs have been evaluated."""
        return len(self.history.get("val/accuracy", ()))


@dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
        metrics: The last value of every per-epoch metric, and the summary: best/..., test/..., seconds.
        history: (epoch from 1, value) of every per-epoch metric.
        reliability: Count, confidence and accuracy of each bin of confidence, on test; empty where test was not read.
    """

    metrics: Metrics
    history: History = field(repr=False)
    reliability: list[dict[str, float | None]] = field(repr=False, default_factory=list)


def run(
    training: Iterable[Metrics],
    predict: Callable[[str], Tensor],
    data: Dataset,
    teacher: Teacher | None,
    log: Callable[[Metrics, int], None],
    evaluate_test: bool,
    reached: Reached | None = None,
    keep: Callable[[Reached], None] = lambda reached: None,
) -> Result:
    """Trains epoch by epoch, evaluates each on validation, and at the end evaluates once on test if it may.

    Args:
        training: Trains as it is iterated over, one epoch an item; empty for a network that needs no training.
        predict: Logits (N, C) of the network being trained for "validation" or "test".
        data: The labels to compare with.
        teacher: The teacher to compare with, or None.
        log: Receives the metrics of an epoch and its number, from 1; what it raises ends the run.
        evaluate_test: Whether the test split is read at all.
        reached: How far an interrupted run had come, whose `training` goes on with the next epoch; filled as this goes
            on, whatever ends it.
        keep: Called after each epoch, before `log`: what is logged is never ahead of what is kept.

    Raises:
        DivergedError: The network's answers to the validation pictures are not finite.
    """
    reached = Reached() if reached is None else reached
    # Of a whole table each: read once, not after every epoch.
    answers = None if teacher is None else functools.cache(lambda split: teacher.logits(split).cpu())
    with _clock(reached, teacher) as tick:
        for epoch, trained in enumerate(training, start=reached.epochs + 1):
            metrics = {**trained, **_scores("val", "validation", predict("validation"), data, answers)}
            for name, value in metrics.items():
                reached.history.setdefault(name, []).append((epoch, value))
            # The loss is measured before each step: only this sees what the last one did.
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
        bins = []
        if evaluate_test:
            logits = predict("test")
            test, bins = _scores("test", "test", logits, data, answers), reliability(logits.cpu(), data.test.labels)
    seconds = {"seconds": reached.seconds}
    if teacher is not None:
        # What a table costs is paid once for a whole sweep, and says nothing about this run.
        seconds["teacher_seconds"] = reached.teacher_seconds
    return Result({**last, **_best(reached.history), **test, **seconds}, reached.history, bins)


def _best(history: History) -> Metrics:
    """The first of the epochs with the highest validation accuracy."""
    accuracies = history.get("val/accuracy", [])
    if not accuracies:
        return {}
    epoch, accuracy = max(accuracies, key=lambda point: (point[1], -point[0]))
    return {"best/val_accuracy": accuracy, "best/epoch": float(epoch)}


@contextmanager
def _clock(reached: Reached, teacher: Teacher | None) -> Iterator[Callable[[], None]]:
    """In this block, and whenever what it yields is called, the time spent is added to `reached`."""
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
    """The scores of a split, compared with a teacher's `answers` to it where there is one."""
    scores = evaluate(logits.cpu(), getattr(data, split).labels, None if answers is None else answers(split))
    return {f"{prefix}/{name}": value for name, value in scores.items()}
