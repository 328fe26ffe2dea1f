"""Draws the figures of a report: chooses those for which there are data, and passes each its data."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from kdsweep.analysis import verdict
from kdsweep.analysis.landscape import axes
from kdsweep.analysis.metrics import row
from kdsweep.analysis.sorted_runs import Arm, arm_label
from kdsweep.analysis.study_goals import ALPHA, TAU, Dimension, axis_label, is_logarithmic, short_key
from kdsweep.report.figures import search
from kdsweep.report.figures.arms import Interval, differences, reach, reliability
from kdsweep.report.figures.curves import Curve, arm_curves
from kdsweep.report.figures.search import Course, Scale
from kdsweep.report.figures.surface import Axis, Points, search_surface
from kdsweep.tracking.run_records import STUDENTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

    from kdsweep.analysis.findings import Report

# File name of each figure -> its title, in the order in which they are shown.
CAPTIONS = {
    "differences.png": "Differences on test",
    "alpha_tau_surface.png": "Surface over the searched parameters",
    "learning_curves.png": "Learning curves",
    "reach.png": "Epochs and seconds to reach accuracies",
    "reliability.png": "Reliability on test",
    "history.png": "Course of the search",
    "parallel.png": "Trials across their parameters",
    "pareto.png": "Pareto set",
}


def draw(report: Report) -> Iterator[tuple[str, Figure]]:
    """Yields (file name, figure) for each figure that has data, in the order of `CAPTIONS`."""
    makers = (_differences, _surface, _learning, _reach, _reliability, _history, _parallel, _pareto)
    for name, make in zip(CAPTIONS, makers, strict=True):
        figure = make(report)
        if figure is not None:
            yield name, figure


def _differences(report: Report) -> Figure | None:
    rows = [
        Interval(
            f"{arm_label(paired.first)} - {arm_label(paired.second)}",
            [100 * difference for difference in verdict.pair_differences(paired)],
            100 * paired.difference.mean,
            100 * paired.difference.low,
            100 * paired.difference.high,
            clear=paired.outcome in ("better", "worse"),
        )
        for paired in report.verdict.comparisons
    ]
    return differences(rows) if rows else None


def _surface(report: Report) -> Figure | None:
    """Draws the surface over alpha and tau if both are searched, else over the first two numeric parameters."""
    land, chosen, objective = report.landscape, report.comparison.chosen, report.comparison.goals.objective
    keys = axes(land.space) if land.space is not None and len(land.space.names) > 1 else (ALPHA.key, TAU.key)
    trials = [t for t in report.trials if all(t.params.get(key) == value for key, value in land.fixed.items())]
    trials = [trial for trial in trials if all(_is_number(trial.params.get(key, "")) for key in keys)]
    if chosen not in trials:
        return None
    scale = objective.scale
    surface, trusted = land.surface, land.plateau is not None and land.plateau.trusted
    caption = "No outline: the plateau can't be told." if surface is not None and not trusted else ""
    if surface is not None:
        # An outline that isn't trusted would be believed all the same, so it isn't drawn.
        member = surface.member & trusted
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
    return search_surface(points, (x, y), objective.heading, surface, baseline, caption)


def _learning(report: Report) -> Figure | None:
    curves: dict[str, list[Curve]] = {}
    for arm in report.arms:
        histories = [report.comparison.readings.history("val/accuracy", run) for run in arm.runs]
        if arm.name == "teacher" and "val/accuracy" in arm.metrics:
            curves[arm.label] = [[(1, arm.metrics["val/accuracy"].mean)]]
        elif any(histories):
            curves[_label(report, arm)] = [curve for curve in histories if curve]
    students = curves.keys() - {"teacher"}
    return arm_curves(curves, row("val/accuracy").label, report.target) if students else None


def _label(report: Report, arm: Arm) -> str:
    """Returns the name of an arm in a legend; that of distill says which trial it is."""
    chosen = report.comparison.chosen
    if arm.name != "distill" or chosen is None or len(report.trials) < 2:
        return arm.label
    return f"distill, trial {chosen.number}" if arm.confirmed else f"distill, best of {len(report.trials)} trials"


def _reach(report: Report) -> Figure | None:
    readings = report.comparison.readings
    arms = {}
    for arm in report.arms:
        pairs = [(readings.history("val/accuracy", run), readings.history("epoch_seconds", run)) for run in arm.runs]
        told = [(curve, seconds) for curve, seconds in pairs if len(curve) > 1]
        if arm.name != "teacher" and told:
            arms[_label(report, arm)] = told
    return reach(arms) if arms else None


def _reliability(report: Report) -> Figure | None:
    bins = report.comparison.readings.bins
    arms = {}
    for arm in STUDENTS:
        told = [bins[run.id] for run in report.comparison.confirmed(arm) if bins.get(run.id)]
        if told:
            arms[arm_label(arm)] = told
    return reliability(arms) if arms else None


def _history(report: Report) -> Figure | None:
    found, objective = report.comparison, report.comparison.goals.objective
    if len(found.trials) < 2:
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
    return search.history(course, objective.heading)


def _parallel(report: Report) -> Figure | None:
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
    return search.parallel(columns, values, found.trials.index(found.chosen), objective.heading)


def _scale(key: str, texts: list[str], declared: Dimension | None) -> Scale:
    if not all(map(_is_number, texts)):
        return Scale(short_key(key), choices=tuple(sorted(set(texts))))
    positive = min(map(float, texts)) > 0
    return Scale(
        short_key(key), positive and (is_logarithmic(key) if declared is None or declared.choices else declared.log)
    )


def _pareto(report: Report) -> Figure | None:
    found, objectives = report.comparison, report.comparison.goals.objectives[:2]
    if not report.front:
        return None
    points = [(objectives[0].scale * trial.values[0], objectives[1].scale * trial.values[1]) for trial in found.trials]
    return search.pareto_front(
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
