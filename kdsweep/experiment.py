"""One run, from built objects to a result: the path that teacher, scratch and distilled student all take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from kdsweep.data import Dataset
from kdsweep.evaluation import evaluate, reliability
from kdsweep.teachers import Teacher
from kdsweep.training import DivergedError, Metrics

History = dict[str, list[tuple[int, float]]]


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
) -> Result:
    """Trains epoch by epoch, evaluates each on validation, and at the end evaluates once on test if it may.

    Args:
        training: Trains as it is iterated over, one epoch an item; empty for a network that needs no training.
        predict: Logits (N, C) of the network being trained for "validation" or "test".
        data: The labels to compare with.
        teacher: The teacher to compare with, or None.
        log: Receives the metrics of an epoch and its number, from 1; what it raises ends the run.
        evaluate_test: Whether the test split is read at all.

    Raises:
        DivergedError: The network's answers to the validation pictures are not finite.
    """
    start = time.perf_counter()
    teacher_before = 0.0 if teacher is None else teacher.seconds
    history: History = {}
    best: Metrics = {}
    for epoch, trained in enumerate(training, start=1):
        metrics = {**trained, **_scores("val", "validation", predict("validation"), data, teacher)}
        log(metrics, epoch)
        # The loss is measured before each step: only this sees what the last one did.
        if not math.isfinite(metrics["val/nll"]):
            raise DivergedError(f"after epoch {epoch} the validation NLL is {metrics['val/nll']}. Lower optimizer.lr.")
        for name, value in metrics.items():
            history.setdefault(name, []).append((epoch, value))
        if not best or metrics["val/accuracy"] > best["best/val_accuracy"]:
            best = {"best/val_accuracy": metrics["val/accuracy"], "best/epoch": float(epoch)}
    last = {name: values[-1][1] for name, values in history.items()} or _scores(
        "val", "validation", predict("validation"), data, teacher
    )
    test: Metrics = {}
    bins = []
    if evaluate_test:
        logits = predict("test")
        test, bins = _scores("test", "test", logits, data, teacher), reliability(logits.cpu(), data.test.labels)
    seconds = {"seconds": time.perf_counter() - start}
    if teacher is not None:
        # What a table costs is paid once for a whole sweep, and says nothing about this run.
        seconds["teacher_seconds"] = teacher.seconds - teacher_before
        seconds["seconds"] -= seconds["teacher_seconds"]
    return Result({**last, **best, **test, **seconds}, history, bins)


def _scores(prefix: str, split: str, logits: Tensor, data: Dataset, teacher: Teacher | None) -> Metrics:
    teacher_logits = None if teacher is None else teacher.logits(split).cpu()
    scores = evaluate(logits.cpu(), getattr(data, split).labels, teacher_logits)
    return {f"{prefix}/{name}": value for name, value in scores.items()}
