"""Claims about the interactive charts: they are JSON whatever the data, and show what the static figures show."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from kdsweep.analysis.plateau import Surface
from kdsweep.report.charts import arms, search
from kdsweep.report.charts.panels import Panel
from kdsweep.report.figures.arms import Interval
from kdsweep.report.figures.search import Course, Scale
from kdsweep.report.figures.surface import Axis, Points

NOTES = {number: f"trial {number}\n<b>" for number in range(10)}
AXES = (Axis("alpha"), Axis("tau", log=True))


def read(panels: list[Panel]) -> list[dict[str, Any]]:
    """The panels as the page's script reads them, and their titles; NaN and infinities would be an error."""
    return [json.loads(json.dumps(panel.jsonable(), allow_nan=False)) | {"title": panel.title} for panel in panels]


def surface(member: float = 0.5) -> Surface:
    """A surface that rises with x; what lies right of `member` isn't ruled out."""
    x, y = np.linspace(0, 1, 31), np.geomspace(1, 20, 31)
    grid = np.ones((31, 1))
    return Surface(("loss.alpha", "loss.tau"), x, y, grid * (90 + 5 * x), 0.2 * grid * (1 + x), (grid * x) > member)


def points(*values: float) -> Points:
    numbers = list(range(len(values)))
    return Points([0.1 + 0.2 * n for n in numbers], [2.0 + n for n in numbers], values, numbers, len(values) - 1)


def test_what_is_ruled_out_is_hatched_and_nothing_else() -> None:
    """The lines stay left of the outline; where nothing is ruled out there are neither lines nor words."""
    mean, doubt = read(search.search_surface(points(90, 95), AXES, "%", surface(), (92, 0.3), "", NOTES))
    assert "hatched: ruled out" in mean["title"]
    assert "outline of what is not ruled out" in doubt["title"]
    (lines,) = [trace for trace in mean["data"] if trace.get("mode") == "lines"]
    assert max(x for x in lines["x"] if x is not None) == pytest.approx(0.5, abs=0.02)
    assert len([x for x in lines["x"] if x is not None]) > 100
    mean, doubt = read(search.search_surface(points(90, 95), AXES, "%", surface(-1), None, "Why.", NOTES))
    assert "hatched" not in mean["title"] + doubt["title"]
    assert mean["title"].endswith("Why.")


@pytest.mark.parametrize("values", [(97,), (90, 90, 90), (90, 10, 91)])
def test_trials_without_a_surface_are_points(values: tuple[float, ...]) -> None:
    """One, equal ones, and one that failed; the better of two lies on top, and each has its note, escaped."""
    (panel,) = read(search.search_surface(points(*values), AXES, "%", None, None, "", NOTES))
    (trials,) = panel["data"]
    assert trials["marker"]["color"] == sorted(values)
    assert all(note.endswith("<br>&lt;b&gt;") for note in trials["customdata"])


def test_differences_have_pairs_and_intervals() -> None:
    """Those beyond noise have their own colour; one pair has no interval."""
    rows = [
        Interval("a - b", [1.0, 1.4], 1.2, 0.4, 2.0, True),
        Interval("c - b", [0.1], 0.1, math.nan, math.nan, False),
    ]
    (panel,) = read(arms.differences(rows, "points", "title"))
    pairs, clear, _, unclear = panel["data"]
    assert (pairs["x"], clear["error_x"]["array"], unclear["error_x"]["array"]) == ([1.0, 1.4], [0.8], [0])
    assert panel["layout"]["yaxis"]["ticktext"] == ["a - b", "c - b"]


def test_the_second_panel_of_the_curves_is_the_last_tenth() -> None:
    """It is scaled to the students there, whatever the teacher does; short runs have none."""
    rise = [(epoch, 0.9 - 0.8 * math.exp(-0.2 * epoch)) for epoch in range(1, 101)]
    whole, last = read(arms.arm_curves({"teacher": [[(1, 0.1)]], "scratch": [rise, rise]}, "accuracy", 0.8))
    assert last["layout"]["xaxis"]["range"] == [90, 100]
    low, high = last["layout"]["yaxis"]["range"]
    assert 89 < low < high < 91
    assert len(whole["data"]) == 5  # teacher, band of two, mean, threshold
    assert len(arms.arm_curves({"scratch": [rise[:5]]}, "accuracy")) == 1


def test_unknown_seconds_have_no_panel() -> None:
    """Epochs are always known."""
    curve = [(1, 0.2), (2, 0.6), (3, 0.8)]
    assert len(read(arms.reach({"scratch": [(curve, [])]}))) == 1
    epochs, seconds = read(arms.reach({"scratch": [(curve, [(e, 10.0) for e, _ in curve])] * 2}))
    assert seconds["data"][-1]["y"][-1] == pytest.approx(30)
    assert epochs["data"][-1]["y"][-1] == pytest.approx(3)


def test_reliability_tells_the_errors_of_the_static_figure() -> None:
    """Empty bins are left out."""
    bins = [{"count": 0, "confidence": None, "accuracy": None}, {"count": 10, "confidence": 0.9, "accuracy": 0.7}]
    right, sizes = read(arms.reliability({"scratch": [bins]}))
    assert "error 20.0%" in right["data"][1]["name"]
    assert sizes["data"][0]["y"] == [100]


def test_the_course_has_all_trials() -> None:
    """Pruned ones stand at its edge; a trial that diverged doesn't flatten the others."""
    course = Course([(0, 90.0), (1, 91.0), (2, 10.0), (4, 90.5)], [3], 1, True, 0.2, 90.8, 89.0)
    (panel,) = read(search.history(course, "accuracy %", NOTES))
    named = {trace.get("name"): trace for trace in panel["data"]}
    assert named["trial (ringed: the chosen one)"]["x"] == [0, 1, 2, 4]
    assert named["best so far"]["y"] == [90, 91, 91, 91]
    assert named["pruned"]["y"] == panel["layout"]["yaxis"]["range"][:1]
    assert panel["layout"]["yaxis"]["range"][0] > 80


def test_parallel_coordinates_and_the_front_have_a_note_for_each_trial() -> None:
    """The chosen trial is drawn last, so that it lies on top."""
    columns = [(Scale("alpha"), ["0.1", "0.9"]), (Scale("model", choices=("a", "b")), ["b", "a"])]
    (panel,) = read(search.parallel(columns, [90, 91], 0, "accuracy %", [4, 5], NOTES))
    assert [trace["text"][0] for trace in panel["data"]] == ["trial 5<br>&lt;b&gt;", "trial 4<br>&lt;b&gt;"]
    (front,) = read(search.pareto_front([(3, 1), (1, 3), (0, 0)], [7, 8, 9], [0, 1], 1, ("a", "b"), NOTES))
    assert [trace["x"] for trace in front["data"]] == [[0], [1, 3]]
