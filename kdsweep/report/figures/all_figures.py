"""The figures of a report, static and interactive: chooses those that have data, and passes each its data."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdsweep.analysis import verdict
from kdsweep.analysis.landscape import axes
from kdsweep.analysis.metrics import row
from kdsweep.analysis.sorted_runs import Arm, arm_label, pair_label
from kdsweep.analysis.study_goals import ALPHA, TAU, Dimension, axis_label, is_logarithmic, short_key, short_value
from kdsweep.report.charts import across as across_charts
from kdsweep.report.charts import arms as arm_charts
from kdsweep.report.charts import search as search_charts
from kdsweep.report.figures import across, arms, search
from kdsweep.report.figures.across import Place, Saving
from kdsweep.report.figures.arms import Interval
from kdsweep.report.figures.curves import Curve, arm_curves
from kdsweep.report.figures.search import Course, Scale
from kdsweep.report.figures.surface import Axis, Points, search_surface
from kdsweep.tracking.run_records import STUDENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from matplotlib.figure import Figure

    from kdsweep.analysis.findings import Report
    from kdsweep.report.charts.panels import Panel

Arguments = tuple[Any, ...]
MOST_CLASSES = 30  # in the figure; the table has all


@dataclass(frozen=True)
class Drawing:
    """One figure of the report, in two forms that are made of the same numbers.

    Attributes:
        name: The file name of the static figure, for papers.
        title: Its title on the page.
        prepare: Takes the report, and returns the arguments of the next two; None if the report has no such data.
        draw: Makes the static figure.
        chart: Makes the panels of the interactive one; where a point is a trial, it takes the trials' notes too.
        noted: Whether it does.
    """

    name: str
    title: str
    prepare: Callable[[Report], Arguments | None]
    draw: Callable[..., Figure]
    chart: Callable[..., list[Panel]]
    noted: bool = False


@dataclass(frozen=True)
class Shown:
    """An interactive figure: its file name as a static one, its title, and its panels."""

    name: str
    title: str
    panels: list[Panel]


def draw(report: Report) -> Iterator[tuple[str, Figure]]:
    """Yields (file name, static figure) for each figure that has data, in the order of `DRAWINGS`."""
    for drawing in DRAWINGS:
        arguments = drawing.prepare(report)
        if arguments is not None:
            yield drawing.name, drawing.draw(*arguments)


def charts(report: Report) -> Iterator[Shown]:
    """Yields the interactive form of each figure that has data, in the same order."""
    notes = _notes(report)
    for drawing in DRAWINGS:
        arguments = drawing.prepare(report)
        if arguments is not None:
            shown = drawing.chart(*arguments, *([notes] if drawing.noted else []))
            yield Shown(drawing.name, drawing.title, shown)


def _notes(report: Report) -> dict[int, str]:
    """Returns what the tooltip of each trial says: its setting, its objectives, its seeds and its runs."""
    found = report.comparison
    notes = {trial.number: f"trial {trial.number}, pruned\n{_lines(trial.params)}" for trial in found.pruned}
    for trial in found.trials:
        values = [
            f"{objective.label} {objective.shown(value)}{objective.row.unit}"
            for objective, value in zip(found.goals.objectives, trial.values, strict=True)
        ]
        seeds = ", ".join(dict.fromkeys(str(run.seed) for run in trial.runs if run.seed is not None))
        runs = ", ".join(run.short_id for run in trial.runs)
        told = [f"trial {trial.number}", _lines(trial.params), *values, f"seed {seeds}" if seeds else "", f"run {runs}"]
        notes[trial.number] = "\n".join(filter(None, told))
    return notes


def _lines(params: Mapping[str, str]) -> str:
    return "\n".join(f"{short_key(key)} {short_value(value)}" for key, value in params.items())


def _differences(report: Report) -> Arguments | None:
    rows = [
        Interval(
            pair_label(paired.first, paired.second),
            [100 * difference for difference in verdict.pair_differences(paired)],
            100 * paired.difference.mean,
            100 * paired.difference.low,
            100 * paired.difference.high,
            clear=paired.outcome in ("better", "worse"),
        )
        for paired in report.verdict.comparisons
        if not report.verdict.nothing_learned
    ]
    return (rows, "difference in test accuracy (points)", "p adjusted for all comparisons") if rows else None


def _across(report: Report) -> Arguments | None:
    """Shows a contest under its conditions, of which there must be two at least."""
    held = report.contest
    if held is None or len(held.plan.conditions) < 2:
        return None
    unit, conditions = held.unit, held.plan.conditions
    arms: dict[str, list[Place]] = {}
    for name in held.plan.contenders:
        for index, condition in enumerate(conditions):
            cell = held.cell(name, condition)
            values = [] if cell is None else [100 * value for value in cell.by_seed.values()]
            if cell is not None and values:
                x = float(index) if unit is None else cell.amount
                label = condition.label if unit != "pictures" else f"{cell.amount:,.0f}"
                mean = math.fsum(values) / len(values)
                place = Place(x, label, min(values), mean, max(values), len(values))
                arms.setdefault(arm_label(name), []).append(place)
    savings = {
        arm_label(saved.contender): [Saving(p.amount, p.equals, p.low, p.high) for p in saved.points]
        for saved in held.saved
    }
    words = {"pictures": "training pictures", "epochs": "epochs of training"}
    keys = ("student" if key == "model.name" else key for key in held.plan.grid)
    label = ", ".join(keys) if unit is None else words[unit]
    reference = arm_label(held.plan.against[0])
    return (arms, label, unit is not None, savings, reference) if arms else None


def _classes(report: Report) -> Arguments | None:
    """Shows distill - scratch in each class, the largest first; of many classes, those with the largest differences."""
    classes = () if report.verdict.nothing_learned else report.classes
    known = [(row, row.difference) for row in classes if row.difference is not None]
    known.sort(key=lambda pair: -abs(pair[1].mean))
    left_out = len(known) - MOST_CLASSES
    known = sorted(known[:MOST_CLASSES], key=lambda pair: -pair[1].mean)
    rows = [
        Interval(
            row.name, [100 * pair for pair in row.pairs], 100 * own.mean, 100 * own.low, 100 * own.high, clear=row.clear
        )
        for row, own in known
    ]
    some = f", the {MOST_CLASSES} largest differences" if left_out > 0 else ""
    label, title = "distill - scratch, accuracy in a class (points)", f"p adjusted for all classes{some}"
    return (rows, label, title) if len(rows) > 1 else None


def _surface(report: Report) -> Arguments | None:
    """Draws the surface over alpha and tau if both are searched, else over the first two numeric parameters."""
    land, chosen, objective = report.landscape, report.comparison.chosen, report.comparison.goals.objective
    keys = axes(land.space) if land.space is not None and len(land.space.names) > 1 else (ALPHA.key, TAU.key)
    trials = [t for t in report.trials if all(t.params.get(key) == value for key, value in land.fixed.items())]
    trials = [trial for trial in trials if all(_is_number(trial.params.get(key, "")) for key in keys)]
    # A grid over other parameters has all its trials at one point.
    if chosen not in trials or (len(trials) > 1 and all(len({t.params[key] for t in trials}) == 1 for key in keys)):
        return None
    scale = objective.scale
    surface, trusted = land.surface, land.plateau is not None and land.plateau.trusted
    caption = "Nothing is hatched: these trials rule out no region." if surface is not None and not trusted else ""
    if surface is not None:
        # What isn't trusted would be believed all the same, so it isn't drawn.
        member = surface.member | (not trusted)
        mean = objective.sign * scale * surface.mean
        surface = dataclasses.replace(surface, mean=mean, sd=scale * surface.sd, member=member)
    points = Points(
        [float(trial.params[keys[0]]) for trial in trials],
        [float(trial.params[keys[1]]) for trial in trials],
        [scale * trial.value for trial in trials],
        [trial.number for trial in trials],
        trials.index(chosen),
    )
    logs = dict(zip(land.space.names, land.space.log, strict=True)) if land.space is not None else {}
    x, y = (Axis(axis_label(key), logs.get(key, is_logarithmic(key))) for key in keys)
    scratch = report.comparison.arm("scratch")
    level = None if scratch is None else scratch.metrics.get(objective.metric)
    baseline = None if level is None else (scale * level.mean, scale * level.sd)
    return points, (x, y), objective.heading, surface, baseline, caption


def _learning(report: Report) -> Arguments | None:
    curves: dict[str, list[Curve]] = {}
    if _has_conditions(report):
        return None
    for arm in report.arms:
        histories = [report.comparison.readings.history("val/accuracy", run) for run in arm.runs]
        if arm.name == "teacher" and "val/accuracy" in arm.metrics:
            curves[arm.label] = [[(1, arm.metrics["val/accuracy"].mean)]]
        elif any(histories):
            curves[_label(report, arm)] = [curve for curve in histories if curve]
    students = curves.keys() - {"teacher"}
    return (curves, row("val/accuracy").label, report.target) if students else None


def _has_conditions(report: Report) -> bool:
    """Returns whether arms are repeated under several conditions, which would be too many curves for one figure."""
    return report.contest is not None and len(report.contest.plan.conditions) > 1


def _label(report: Report, arm: Arm) -> str:
    """Returns the name of an arm in a legend; that of distill says which trial it is."""
    chosen = report.comparison.chosen
    if arm.name != "distill" or chosen is None or len(report.trials) < 2:
        return arm.label
    return f"distill, trial {chosen.number}" if arm.confirmed else f"distill, best of {len(report.trials)} trials"


def _reach(report: Report) -> Arguments | None:
    readings = report.comparison.readings
    told_by = {}
    if _has_conditions(report):
        return None
    for arm in report.arms:
        pairs = [(readings.history("val/accuracy", run), readings.history("epoch_seconds", run)) for run in arm.runs]
        told = [(curve, seconds) for curve, seconds in pairs if len(curve) > 1]
        if arm.name != "teacher" and told:
            told_by[_label(report, arm)] = told
    # Where no run gets better after its first epoch, there is nothing to reach.
    rises = any(levels[-1] > levels[0] for levels, *_ in map(arms.reached, told_by.values()))
    return (told_by,) if rises else None


def _reliability(report: Report) -> Arguments | None:
    bins = report.comparison.readings.bins
    told_by = {}
    for arm in STUDENTS:
        told = [bins[run.id] for run in report.comparison.confirmed(arm) if bins.get(run.id)]
        if told:
            told_by[arm_label(arm)] = told
    return (told_by,) if told_by else None


def _history(report: Report) -> Arguments | None:
    found, objective = report.comparison, report.comparison.goals.objective
    if len(found.trials) < 2 or report.contest is not None:
        return None
    scale, noise = objective.scale, report.verdict.validation_noise
    scratch = found.arm("scratch")
    level = None if scratch is None else scratch.metrics.get(objective.metric)
    course = Course(
        [(trial.number, scale * trial.value) for trial in found.trials],
        [trial.number for trial in found.pruned],
        None if found.chosen is None else found.chosen.number,
        objective.maximise,
        None if noise is None else scale * noise.sd,
        None if report.verdict.confirmed is None else scale * report.verdict.confirmed,
        None if level is None else scale * level.mean,
    )
    return course, objective.heading


def _parallel(report: Report) -> Arguments | None:
    found, objective = report.comparison, report.comparison.goals.objective
    declared = {dimension.key: dimension for dimension in found.goals.space}
    columns = []
    for key in found.trials[0].params if found.trials else ():
        texts = [trial.params[key] for trial in found.trials]
        if len(set(texts)) > 1:
            columns.append((_scale(key, texts, declared.get(key)), texts))
    if len(found.trials) < 2 or not columns or found.chosen is None:
        return None
    values = [objective.scale * trial.value for trial in found.trials]
    numbers = [trial.number for trial in found.trials]
    return columns, values, found.trials.index(found.chosen), objective.heading, numbers


def _scale(key: str, texts: list[str], declared: Dimension | None) -> Scale:
    if not all(map(_is_number, texts)):
        return Scale(short_key(key), choices=tuple(sorted(set(texts))))
    positive = min(map(float, texts)) > 0
    return Scale(
        short_key(key), positive and (is_logarithmic(key) if declared is None or declared.choices else declared.log)
    )


def _pareto(report: Report) -> Arguments | None:
    found, objectives = report.comparison, report.comparison.goals.objectives[:2]
    if not report.front:
        return None
    points = [(objectives[0].scale * trial.values[0], objectives[1].scale * trial.values[1]) for trial in found.trials]
    return (
        points,
        [trial.number for trial in found.trials],
        [found.trials.index(trial) for trial in report.front],
        None if found.chosen is None else found.trials.index(found.chosen),
        (objectives[0].heading, objectives[1].heading),
    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


DRAWINGS = (
    Drawing("across.png", "Accuracy under each condition", _across, across.across, across_charts.across),
    Drawing("differences.png", "Differences on test", _differences, arms.differences, arm_charts.differences),
    Drawing(
        *("alpha_tau_surface.png", "Surface over the searched parameters", _surface),
        *(search_surface, search_charts.search_surface),
        noted=True,
    ),
    Drawing("learning_curves.png", "Learning curves", _learning, arm_curves, arm_charts.arm_curves),
    Drawing("per_class.png", "Accuracy by class", _classes, arms.differences, arm_charts.differences),
    Drawing("reach.png", "Epochs and seconds to reach accuracies", _reach, arms.reach, arm_charts.reach),
    Drawing("reliability.png", "Reliability on test", _reliability, arms.reliability, arm_charts.reliability),
    Drawing("history.png", "Course of the search", _history, search.history, search_charts.history, noted=True),
    Drawing(
        *("parallel.png", "Trials across their parameters", _parallel),
        *(search.parallel, search_charts.parallel),
        noted=True,
    ),
    Drawing("pareto.png", "Pareto set", _pareto, search.pareto_front, search_charts.pareto_front, noted=True),
)
