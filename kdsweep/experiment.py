"""One run, from built objects to a result: the path that teacher, scratch and distilled student all take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from kdsweep.data import Dataset
from kdsweep.evaluation import evaluate
from kdsweep.teachers import Teacher
from kdsweep.training import DivergedError, Metrics

History = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
        metrics: The last value of every per-epoch metric, and the summary: best/..., test/..., seconds.
        history: (epoch from 1, value) of every per-epoch metric.
    """

    metrics: Metrics
    history: History = field(repr=False)


def run(
    training: Iterable[Metrics],
    predict: Callable[[str], Tensor],
    data: Dataset,
    teacher: Teacher | None,
    log: Callable[[Metrics, int], None],
) -> Result:
    """Trains epoch by epoch, evaluates each on validation, and at the end evaluates once on test.

    Args:
        training: Trains as it is iterated over, one epoch an item; empty for a network that needs no training.
        predict: Logits (N, C) of the network being trained for "validation" or "test".
        data: The labels to compare with.
        teacher: The teacher to compare with, or None.
        log: Receives the metrics of an epoch and its number, from 1.

    Raises:
        DivergedError: The network's answers to the validation pictures are not finite.
    """
    start = time.perf_counter()
    teacher_before = 0.0 if teacher is None else teacher.seconds
    history: History = {}
    best: Metrics = {}
    for epoch, trained in enumerate(training, start=1):
        metrics = {**trained, **_scores("val", "validation", predict, data, teacher)}
        log(metrics, epoch)
        # The loss is measured before each step: only this sees what the last one did.
        if not math.isfinite(metrics["val/nll"]):
            raise DivergedError(f"after epoch {epoch} the validation NLL is {metrics['val/nll']}. Lower optimizer.lr.")
        for name, value in metrics.items():
            history.setdefault(name, []).append((epoch, value))
        if not best or metrics["val/accuracy"] > best["best/val_accuracy"]:
            best = {"best/val_accuracy": metrics["val/accuracy"], "best/epoch": float(epoch)}
    last = {name: values[-1][1] for name, values in history.items()} or _scores(
        "val", "validation", predict, data, teacher
    )
    test = _scores("test", "test", predict, data, teacher)
    seconds = {"seconds": time.perf_counter() - start}
    if teacher is not None:
        # What a table costs is paid once for a whole sweep, and says nothing about this run.
        seconds["teacher_seconds"] = teacher.seconds - teacher_before
        seconds["seconds"] -= seconds["teacher_seconds"]
    return Result({**last, **best, **test, **seconds}, history)


def _scores(
    prefix: str, split: str, predict: Callable[[str], Tensor], data: Dataset, teacher: Teacher | None
) -> Metrics:
    logits = predict(split).cpu()
    teacher_logits = None if teacher is None else teacher.logits(split).cpu()
    scores = evaluate(logits, getattr(data, split).labels, teacher_logits)
    return {f"{prefix}/{name}": value for name, value in scores.items()}
