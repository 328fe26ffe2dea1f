"""The tables of a report as texts, for the terminal and for the HTML page alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from kdsweep.analysis import verdict, verdict_words
from kdsweep.analysis.cost import duration
from kdsweep.analysis.metrics import COLUMNS, EPOCHS_TO_TARGET, row
from kdsweep.analysis.sorted_runs import TARGET_SHARE, Arm, Trial, arm_label, pair_label
from kdsweep.analysis.study_goals import short_key, short_value
from kdsweep.config.keys import network_name, teacher_name
from kdsweep.tracking.run_records import PROCESS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kdsweep.analysis.findings import Report
    from kdsweep.tracking.run_records import RunRecord, StudyRecord


# Takes a run, and returns the address of its page on a server; None if no server shows it.
Links = Callable[["RunRecord"], str | None]

# What runs above others are.
ABOVE = {"study": "study", "group": "grid"}


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        headings: One for each column.
        rows: The cells of each row.
        caption: A line below the table.
        named: Whether the first column holds names, which are aligned left. All other columns are aligned right.
        marked: The positions of rows that are emphasised.
        links: The addresses behind texts: run ids, alone in their cells or in a list.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    named: bool = False
    marked: tuple[int, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)


def heading(study: StudyRecord) -> Iterable[str]:
    """Yields two lines: what was trained on which data; how many runs there are, and when the study began."""

    def shown(values: Iterable[str]) -> str:
        # The jobs of a multirun may differ. A key that a job doesn't have is recorded as None.
        return ", ".join(value for value in dict.fromkeys(values) if value != "None") or "-"

    params = [run.params for run in study.children]
    data = shown(own.get("data._target_", "None").removeprefix("kdsweep.data.") for own in params)
    student = shown(network_name(own, "model") for own in params)
    teacher = shown(teacher_name(own) for own in params)
    yield f"data {data}, student {student}, teacher {teacher}"
    counts = Counter("pruned" if "kdsweep.pruned" in run.tags else run.status.lower() for run in study.children)
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items()) or "no runs"
    ends = [run.start + timedelta(seconds=run.duration_s or 0) for run in (study.parent, *study.children)]
    seconds = (max(ends) - study.parent.start).total_seconds()
    yield f"runs: {statuses}; started {study.parent.start:%Y-%m-%d %H:%M} UTC, {duration(seconds)} from first to last"


def listed(runs: Sequence[RunRecord]) -> Table:
    """Makes the table of what there is: studies, grids and single runs, in their order."""
    children = Counter(run.parent for run in runs)
    rows = []
    for run in runs:
        if run.arm is None or run.parent is not None:
            continue
        above = ABOVE.get(run.arm)
        accuracy = run.metrics.get("val/accuracy")
        rows.append(
            (
                above or "run",
                run.short_id,
                run.name,
                f"{run.start:%Y-%m-%d %H:%M}",
                str(children[run.id]) if above else "",
                # The run above another sweeper's jobs is finished from the start; a grid's names the grid's process.
                "" if run.arm == "group" and PROCESS not in run.tags else run.status.lower(),
                "" if accuracy is None else f"{100 * accuracy:.2f}",
            )
        )
    headings = ("what", "id", "name", "started (UTC)", "runs", "status", "val. accuracy %")
    return Table(headings, tuple(rows), "Studies, grids and runs")


def arms(report: Report) -> Table:
    """Makes the table of arms: mean ± standard deviation over each arm's runs."""
    rows = []
    contest = report.contest
    # A contest under several conditions has no target that all could reach.
    columns = [name for name in COLUMNS if name != EPOCHS_TO_TARGET or contest is None or report.target is not None]
    for arm in report.arms:
        cells = [_cell(arm, metric) for metric in columns]
        if report.target is not None and arm.name != "teacher" and EPOCHS_TO_TARGET not in arm.metrics:
            cells[columns.index(EPOCHS_TO_TARGET)] = "never"
        rows.append((arm.label, f"{len(arm.runs)}*" if arm.confirmed else str(len(arm.runs)), *cells))
    notes = []
    if any(arm.confirmed for arm in report.arms):
        notes.append("*: fresh seeds, which chose nothing")
    if report.target is not None:
        reference = "scratch" if contest is None else arm_label(contest.plan.against[0])
        notes.append(f"target: {report.target:.1%} on validation, {TARGET_SHARE:.0%} of {reference}'s final mean")
    notes.append("agreement: with the teacher, on test")
    headings = ("\n\narm", "\n\nruns", *(COLUMNS[name].heading for name in columns))
    return Table(headings, tuple(rows), "; ".join(notes), named=True)


def _cell(arm: Arm, metric: str) -> str:
    """Prints mean ± standard deviation of a metric, and the number of runs that have it, if not all do."""
    spread = arm.metrics.get(metric)
    if spread is None:
        return "-"
    scale = row(metric).scale
    mean, sd = scale * spread.mean, scale * spread.sd
    decimals = COLUMNS[metric].decimals if mean < 100 else 0
    text = f"{mean:.{decimals}f}" + (f" ±{sd:.{decimals}f}" if spread.n > 1 else "")
    # If some runs didn't reach the target, the mean over the others would look like speed.
    return text if spread.n == len(arm.runs) else f"{text} ({spread.n} of {len(arm.runs)})"


def comparisons(report: Report) -> Table:
    """Makes the table of paired differences with all their numbers, in points."""
    rows = []
    # Differences of students that have learned nothing mean nothing.
    for paired in () if report.verdict.nothing_learned else report.verdict.comparisons:
        difference = paired.difference
        unknown = paired.outcome == "unknown"
        rows.append(
            (
                pair_label(paired.first, paired.second),
                f"{100 * difference.mean:+.2f}",
                _limits(difference.low, difference.high),
                str(difference.n),
                "-" if unknown else verdict_words.shown_p(paired.adjusted_p),
                "-" if unknown else f"{100 * paired.bound:.2f}",
                "-" if paired.detectable is None else f"{100 * paired.detectable:.2f}",
                "-" if paired.seeds_needed is None else str(paired.seeds_needed).replace("more than ", ">"),
                paired.outcome,
            )
        )
    headings = (
        *("difference", "points", "95% interval", "pairs", "adjusted p", "at most apart"),
        *("seen from", "seeds to see it", "verdict"),
    )
    caption = (
        "Test accuracy, paired by seed; p by the paired t test, adjusted for all comparisons (Holm); at most apart: "
        "two one-sided tests at 5%; seen from: the least true difference that these pairs see with a power of "
        f"{verdict.POWER:.0%}; seeds to see it: an arm, for a true difference as large as the one observed, over the "
        "noise's 95% interval."
    )
    if report.verdict.at_any_time:
        caption = (
            "Test accuracy, paired by seed; intervals and p hold at any look (sweep.confirm_until), p adjusted for all "
            "comparisons (Holm); at most apart: the farther limit of the interval."
        )
    return Table(headings, tuple(rows), caption, named=True)


def _limits(low: float, high: float) -> str:
    return "-" if low != low else f"{100 * low:+.2f} to {100 * high:+.2f}"


def classes(report: Report) -> Table:
    """Makes the table of the arms' accuracies class by class, on test, and of what distillation changed."""
    arms = dict.fromkeys(name for row in report.classes for name in row.accuracies)
    rows = tuple(
        (
            row.name,
            f"{row.pictures:,}",
            *(f"{100 * row.accuracies[arm]:.1f}" if arm in row.accuracies else "-" for arm in arms),
            "-" if row.difference is None else f"{100 * row.difference.mean:+.1f}",
            "-" if row.difference is None else _limits(row.difference.low, row.difference.high),
            "-" if math.isnan(row.adjusted_p) else verdict_words.shown_p(row.adjusted_p),
        )
        for row in report.classes
    )
    headings = ("class", "pictures", *map(arm_label, arms), "distill - scratch", "95% interval", "adjusted p")
    marked = tuple(index for index, row in enumerate(report.classes) if row.clear)
    caption = (
        "Mean accuracy in % over the runs of each arm; differences in points, paired by seed; p adjusted for all "
        "classes (Holm); bold: beyond noise."
    )
    return Table(headings, rows, caption, named=True, marked=marked)


def runs(report: Report, links: Links | None) -> Table:
    """Makes the table of a study's finished runs by arm and stage: their seeds, and their ids in the order of these."""
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for run in report.study.runs():
        if run.arm is not None and run.stage != "search":
            groups.setdefault((run.arm, run.stage or "-"), []).append(run)
    rows = tuple(
        (
            arm_label(arm),
            stage,
            ", ".join("-" if run.seed is None else str(run.seed) for run in own),
            ", ".join(run.short_id for run in own),
        )
        for (arm, stage), own in groups.items()
    )
    every = [run for own in groups.values() for run in own]
    caption = "The table of trials has those of the search. Commands take these first letters of an id."
    return Table(("arm", "stage", "seeds", "runs"), rows, caption, named=True, links=_linked(every, links))


def _linked(runs: Iterable[RunRecord], links: Links | None) -> dict[str, str]:
    pages = {run.short_id: links(run) for run in runs} if links is not None else {}
    return {text: page for text, page in pages.items() if page is not None}


def trials(report: Report, shown: Sequence[Trial], links: Links | None = None) -> Table:
    """Makes the table of settings with their objectives, seeds and runs; the chosen setting is marked."""
    objectives = report.comparison.goals.objectives
    rows = tuple(
        (
            str(trial.number),
            *(short_value(value) for value in trial.params.values()),
            *(o.shown(value) for o, value in zip(objectives, trial.values, strict=True)),
            ", ".join(dict.fromkeys("-" if run.seed is None else str(run.seed) for run in trial.runs)),
            ", ".join(run.short_id for run in trial.runs),
        )
        for trial in shown
    )
    keys = map(short_key, shown[0].params) if shown else ()
    marked = tuple(index for index, trial in enumerate(shown) if trial is report.comparison.chosen)
    headings = ("trial", *keys, *(objective.heading for objective in objectives), "seed", "run")
    every = [run for trial in shown for run in trial.runs]
    return Table(headings, rows, marked=marked, links=_linked(every, links))


def pruned(report: Report) -> Table:
    """Makes the table of the trials that were stopped."""
    objective = report.comparison.goals.objective
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
    return Table(("trial", *keys, f"{objective.heading} when stopped", "epochs"), rows)
