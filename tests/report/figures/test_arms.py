"""Claims about the figures that compare arms: differences, the time to an accuracy, reliability."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from kdsweep.analysis.statistics import perfect_calibration_error
from kdsweep.report.figures.arms import Interval, differences, reach, reliability

EMPTY = {"count": 0, "confidence": None, "accuracy": None}


def curve(*accuracies: float) -> list[tuple[int, float]]:
    return list(enumerate(accuracies, start=1))


def test_differences_have_a_row_each(tmp_path: Path) -> None:
    """The first comparison is on top; one pair has a point and no interval."""
    rows = [
        Interval("a - b", [1.0, 1.4], 1.2, 0.4, 2.0, True),
        Interval("c - b", [0.1], 0.1, math.nan, math.nan, False),
    ]
    figure = differences(rows, "points", "p adjusted")
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["c - b", "a - b"]
    (interval,) = axis.lines[1:]
    assert list(interval.get_xdata()) == [0.4, 2.0]
    figure.savefig(tmp_path / "figure.png")


def test_an_accuracy_is_reached_when_it_was_first_exceeded() -> None:
    """A later dip changes nothing; seconds are the sum over the epochs until then."""
    seconds = [(1, 10.0), (2, 20.0), (3, 30.0), (4, 40.0)]
    figure = reach({"scratch": [(curve(0.2, 0.6, 0.5, 0.8), seconds)]})
    (epochs,), (took,) = (axis.lines for axis in figure.axes)
    x, y = epochs.get_xdata(), epochs.get_ydata()
    assert (y[0], max(y[x <= 60]), min(y[x > 60]), y[-1]) == (1, 2, 4, 4)
    assert (took.get_ydata()[0], took.get_ydata()[-1]) == (10, 100)


def test_a_line_ends_where_the_weakest_run_does() -> None:
    """Beyond that accuracy, the mean would be that of the lucky runs."""
    figure = reach({"scratch": [(curve(0.1, 0.9), []), (curve(0.1, 0.5), [])]})
    (line,) = figure.axes[0].lines
    assert max(line.get_xdata()) == pytest.approx(50)


def test_without_seconds_there_is_one_panel(tmp_path: Path) -> None:
    """Runs of an older version logged no seconds."""
    figure = reach({"scratch": [(curve(0.1, 0.9), [])], "distill": [(curve(0.3, 0.2), [])]})
    figure.savefig(tmp_path / "figure.png")
    assert len(figure.axes) == 1


def test_reliability_pools_runs_by_their_counts() -> None:
    """One picture at 50 % and three at 100 % are 87.5 % together; the error is that of single runs, as in the table."""
    first = [EMPTY, {"count": 1, "confidence": 0.9, "accuracy": 0.5}]
    second = [EMPTY, {"count": 3, "confidence": 0.9, "accuracy": 1.0}]
    figure = reliability({"distill": [first, second]})
    line = figure.axes[0].lines[1]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([pytest.approx(90)], [pytest.approx(87.5)])
    assert line.get_label() == "distill (error 25.0%, if perfect 16.3%)"
    assert "(1 pictures)" in figure.axes[0].get_title()


def test_a_perfect_model_has_a_calibration_error_too() -> None:
    """It is what chance gives: a model that is right as often as it is sure, simulated on 500 pictures."""
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.1, 1, 500)
    bins = np.ceil(15 * sure).astype(int) - 1
    filled = sorted(set(bins))
    counts = [int((bins == b).sum()) for b in filled]
    confidences = [float(sure[bins == b].mean()) for b in filled]
    right = rng.random((400, 500)) < sure
    errors = [sum(abs((one - sure)[bins == b].sum()) for b in filled) / 500 for one in right]
    expected = perfect_calibration_error(counts, confidences)
    assert expected == pytest.approx(np.mean(errors), rel=0.03)
    assert 0.05 < expected < 0.065  # 5 to 6 points, which isn't the model's fault
    assert perfect_calibration_error([10, 5], [1.0, 1.0]) == 0


def test_the_share_of_pictures_is_below(tmp_path: Path) -> None:
    """The bins hold a quarter and three quarters of the pictures."""
    bins = [{"count": n, "confidence": c, "accuracy": c} for n, c in ((1, 0.5), (3, 0.9))]
    figure = reliability({"scratch": [bins], "distill": [bins]})
    figure.savefig(tmp_path / "figure.png")
    assert list(figure.axes[1].lines[0].get_ydata()) == [25, 75]
