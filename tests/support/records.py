"""Made-up runs, as the store returns them, for the tests of analysis and report."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from kdsweep.analysis.findings import Report, summarise
from kdsweep.analysis.sorted_runs import ClassCount, Comparison, Readings, compare
from kdsweep.tracking.run_records import ARM_TAG, RunRecord, StudyRecord

ids = itertools.count()

SPACE = {"loss.alpha": {"low": 0, "high": 1, "log": False}, "loss.tau": {"low": 1, "high": 20, "log": True}}


def record(
    arm: str,
    *,
    val: float = 0.9,
    test: float | None = 0.9,
    status: str = "FINISHED",
    stage: str = "single",
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> RunRecord:
    """Returns a run as the store would."""
    number = next(ids)
    return RunRecord(
        id=f"id{number}",
        name=arm,
        status=status,
        start=datetime(2026, 1, 1, tzinfo=UTC),
        duration_s=10.0,
        params={key: str(value) for key, value in (params or {}).items()},
        metrics={"val/accuracy": val} | ({} if test is None else {"test/accuracy": test}) | dict(metrics or {}),
        tags={ARM_TAG: arm, "kdsweep.stage": stage, **(tags or {})},
    )


def trial(number: int, alpha: float, tau: float, *, val: float = 0.9, test: float = 0.9, **params: object) -> RunRecord:
    """Returns a finished run of the search."""
    searched = {"loss.alpha": alpha, "loss.tau": tau, **params}
    return record("distill", val=val, test=test, params=searched, tags={"kdsweep.trial": str(number)})


def pruned(number: int, epoch: int, epochs: int = 10) -> RunRecord:
    """Returns a run of the search that was pruned."""
    tags = {"kdsweep.trial": str(number), "kdsweep.pruned": str(epoch)}
    params = {"loss.alpha": 0.5, "loss.tau": 4, "epochs": epochs}
    return record("distill", val=0.3, test=None, status="KILLED", params=params, tags=tags)


def fresh(
    arm: str,
    tests: Sequence[float],
    *,
    val: float = 0.9,
    start: int = 1000,
    trial: int | None = None,
    **params: object,
) -> list[RunRecord]:
    """Returns confirmation runs with these test accuracies, one for each seed; `trial` is the number of their trial."""
    tags = {} if trial is None else {"kdsweep.trial": str(trial)}
    return [
        record(arm, val=val, test=test, stage="confirmation", params={"seed": seed, **params}, tags=tags)
        for seed, test in enumerate(tests, start)
    ]


def study(*runs: RunRecord, **tags: object) -> StudyRecord:
    """Returns a study of these runs; `tags` (planned=..., chosen=...) are those of its parent run, written as JSON."""
    parent = record("study", tags={f"kdsweep.{key}": json.dumps(value) for key, value in tags.items()})
    return StudyRecord(replace(parent, metrics={}), runs)


def readings(
    runs: Sequence[RunRecord],
    curves: Mapping[int, Sequence[float]] | None,
    classes: Mapping[int, Mapping[str, tuple[int, int]]] | None = None,
) -> Readings:
    """Returns the validation accuracies by epoch, and the classes, for the runs at their positions."""
    curve = {runs[i].id: list(enumerate(values, start=1)) for i, values in (curves or {}).items()}
    counts = {
        runs[i].id: [ClassCount(name, *pair) for name, pair in counted.items()]
        for i, counted in (classes or {}).items()
    }
    return Readings({"val/accuracy": curve}, classes=counts)


def compared(*runs: RunRecord, curves: Mapping[int, Sequence[float]] | None = None, **tags: object) -> Comparison:
    """Returns these runs, sorted."""
    return compare(study(*runs, **tags), readings(runs, curves))


def summary(
    *runs: RunRecord,
    curves: Mapping[int, Sequence[float]] | None = None,
    classes: Mapping[int, Mapping[str, tuple[int, int]]] | None = None,
    **tags: object,
) -> Report:
    """Returns the report of a study of these runs.

    Args:
        runs: The runs.
        curves: Position of a run -> its accuracies by epoch.
        classes: Position of a run -> class -> its test pictures, and how many of them the run got right.
        tags: Those of the study's own run.
    """
    return summarise(study(*runs, **tags), readings(runs, curves, classes))
