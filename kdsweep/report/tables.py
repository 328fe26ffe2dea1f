"""The tables of a report as texts, for the terminal and for the page alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from kdsweep.analysis import verdict
from kdsweep.analysis.cost import duration
from kdsweep.analysis.sorted_runs import EPOCHS_TO_TARGET, METRICS, TARGET_SHARE, Arm, Trial
from kdsweep.analysis.study_goals import short_key, short_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kdsweep.analysis.findings import Report
    from kdsweep.tracking.run_records import StudyRecord

# Heading (its lines keep the table narrow), factor, decimals.
COLUMNS = {
    "val/accuracy": ("\nvalidation\naccuracy %", 100, 2),
    "test/accuracy": ("\ntest\naccuracy %", 100, 2),
    "test/nll": ("\ntest\nNLL", 1, 3),
    "test/ece": ("\ntest\nECE %", 100, 1),
    "test/agreement": ("\nagree-\nment %", 100, 1),
    EPOCHS_TO_TARGET: ("epochs\nto\ntarget", 1, 1),
    "seconds": ("\nseconds\na run", 1, 1),
}


@dataclass(frozen=True)
class Table:
    """Texts in rows; the first column is aligned left where `named`, the others right.

    Attributes:
        marked: Positions of the rows that stand out.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    named: bool = False
    marked: tuple[int, ...] = ()


def heading(study: StudyRecord) -> Iterable[str]:
    """What was trained on what, how many runs there are, and when it began."""

    def values(key: str) -> str:
        # Jobs of a multirun may differ; what a job doesn't have is written as None.
        found = dict.fromkeys(run.params.get(key, "None").removeprefix("kdsweep.data.") for run in study.children)
        return ", ".join(value for value in found if value != "None") or "-"

    settings = {"data": "data._target_", "student": "model.name", "teacher": "teacher.network.name"}
    yield ", ".join(f"{name} {values(key)}" for name, key in settings.items())
    counts = Counter("pruned" if "kdsweep.pruned" in run.tags else run.status.lower() for run in study.children)
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items()) or "no runs"
    ends = [run.start + timedelta(seconds=run.duration_s or 0) for run in (study.parent, *study.children)]
    seconds = (max(ends) - study.parent.start).total_seconds()
    yield f"runs: {statuses}; started {study.parent.start:%Y-%m-%d %H:%M} UTC, {duration(seconds)}"


def arms(report: Report) -> Table:
    """The comparison: mean ± standard deviation of each arm's runs."""
    rows = []
    for arm in report.arms:
        cells = [_cell(arm, metric) for metric in METRICS]
        if report.target is not None and arm.role != "teacher" and EPOCHS_TO_TARGET not in arm.metrics:
            cells[METRICS.index(EPOCHS_TO_TARGET)] = "never"
        rows.append((arm.name, f"{len(arm.runs)}*" if arm.confirmed else str(len(arm.runs)), *cells))
    notes = []
    if any(arm.confirmed for arm in report.arms):
        notes.append("*: fresh seeds, which chose nothing")
    if report.target is not None:
        notes.append(f"target: {report.target:.1%} on validation, {TARGET_SHARE:.0%} of scratch's final mean")
    notes.append("agreement: with the teacher, on test")
    headings = ("\n\narm", "\n\nruns", *(COLUMNS[metric][0] for metric in METRICS))
    return Table(headings, tuple(rows), "; ".join(notes), named=True)


def _cell(arm: Arm, metric: str) -> str:
    """Mean ± standard deviation of a metric, and of how many runs, where only some have it."""
    spread = arm.metrics.get(metric)
    if spread is None:
        return "-"
    _, factor, decimals = COLUMNS[metric]
    mean, sd = factor * spread.mean, factor * spread.sd
    decimals = decimals if mean < 100 else 0
    text = f"{mean:.{decimals}f}" + (f" ±{sd:.{decimals}f}" if spread.n > 1 else "")
    # A mean over the runs that reached the target, when some didn't, would look like speed.
    return text if spread.n == len(arm.runs) else f"{text} ({spread.n} of {len(arm.runs)})"


def comparisons(report: Report) -> Table:
    """Every paired difference with all its numbers, in points."""
    rows = []
    for paired in report.verdict.comparisons:
        difference = paired.difference
        needed = "-" if paired.seeds_needed is None else f"{paired.seeds_needed:,}"
        rows.append(
            (
                f"{paired.first} - {paired.second}".replace("_", " "),
                f"{100 * difference.mean:+.2f}",
                _limits(difference.low, difference.high),
                _limits(difference.bootstrap_low, difference.bootstrap_high),
                str(difference.n),
                "-" if difference.n < 2 else verdict.shown_p(paired.adjusted_p),
                "-" if difference.n < 2 else f"{100 * paired.bound:.2f}",
                needed,
                paired.outcome,
            )
        )
    headings = (
        *("difference", "points", "95% (t)", "95% (bootstrap)", "pairs", "adjusted p", "at most apart"),
        *(f"seeds for {100 * verdict.WANTED:.1f} points", "verdict"),
    )
    caption = (
        "Test accuracy, paired by seed; p by the paired t test, adjusted for all comparisons (Holm); at most apart: "
        f"two one-sided tests at 5%; seeds: an arm, for a power of {verdict.POWER:.0%}."
    )
    return Table(headings, tuple(rows), caption, named=True)


def _limits(low: float, high: float) -> str:
    return "-" if low != low else f"{100 * low:+.2f} to {100 * high:+.2f}"


def trials(report: Report, shown: Sequence[Trial]) -> Table:
    """Settings with their objectives; the chosen one is marked."""
    objectives = report.comparison.aims.objectives
    rows = tuple(
        (
            str(trial.number),
            *(short_value(value) for value in trial.params.values()),
            *(o.shown(value) for o, value in zip(objectives, trial.values, strict=True)),
            str(len(trial.runs)),
        )
        for trial in shown
    )
    keys = map(short_key, shown[0].params) if shown else ()
    marked = tuple(index for index, trial in enumerate(shown) if trial is report.comparison.chosen)
    return Table(("trial", *keys, *(objective.name for objective in objectives), "runs"), rows, marked=marked)


def pruned(report: Report) -> Table:
    """The trials that were stopped."""
    objective = report.comparison.aims.objective
    found = report.comparison.pruned
    rows = tuple(
        (
            str(trial.number),
            *(short_value(value) for value in trial.params.values()),
            "-" if trial.value != trial.value else objective.shown(trial.value),
            f"{trial.epoch} of {trial.epochs}",
        )
        for trial in found
    )
    keys = map(short_key, found[0].params) if found else ()
    return Table(("trial", *keys, f"{objective.name} when stopped", "epochs"), rows)
