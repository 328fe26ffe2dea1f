"""Runs as the store gives them back, made up for the tests of the comparison and of the report."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from kdsweep.comparison import Report, summarise
from kdsweep.records import RunRecord, StudyRecord

ids = itertools.count()


def record(
    role: str,
    *,
    val: float = 0.9,
    test: float | None = 0.9,
    status: str = "FINISHED",
    stage: str = "single",
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
) -> RunRecord:
    """A run as the store would give it back."""
    number = next(ids)
    return RunRecord(
        id=f"id{number}",
        name=role,
        status=status,
        start=datetime(2026, 1, 1, tzinfo=UTC),
        duration_s=10.0,
        params={key: str(value) for key, value in (params or {}).items()},
        metrics={"val/accuracy": val} | ({} if test is None else {"test/accuracy": test}),
        tags={"kdsweep.role": role, "kdsweep.stage": stage, **(tags or {})},
    )


def trial(number: int, alpha: float, tau: float, *, val: float = 0.9, test: float = 0.9, **params: object) -> RunRecord:
    """A finished run of the search."""
    searched = {"loss.alpha": alpha, "loss.tau": tau, **params}
    return record("distill", val=val, test=test, params=searched, tags={"kdsweep.trial": str(number)})


def summary(*runs: RunRecord, curves: Mapping[int, Sequence[float]] | None = None) -> Report:
    """The report of a study of these runs; `curves` are accuracies by epoch of the runs at these positions."""
    histories = {runs[i].id: list(enumerate(curve, start=1)) for i, curve in (curves or {}).items()}
    return summarise(StudyRecord(record("study"), runs), histories)
