"""Claims about the figure of the surface: it has points with numbers, the mean, the plateau's outline, the doubt."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from kdsweep.analysis.plateau import Surface
from kdsweep.report.figures.surface import Axis, Points, colour_range, search_surface

AXES = (Axis("alpha (weight)"), Axis("tau (temperature)", log=True))


def points(x: list[float], y: list[float], values: list[float], best: int = 0) -> Points:
    return Points(x, y, values, [7 + index for index in range(len(x))], best)


def surface(member: float = 0.5) -> Surface:
    """A slope from 90 to 95 along alpha; the plateau is where alpha is above `member`."""
    x, y = np.linspace(0, 1, 11), np.geomspace(1, 20, 11)
    mean = np.tile(90 + 5 * x, (11, 1))
    inside = np.tile(x > member, (11, 1))
    return Surface(("loss.alpha", "loss.tau"), x, y, mean, np.full((11, 11), 0.2) + mean / 1000, inside)


def texts(figure: Figure) -> list[str]:
    """The texts inside the first panel, other than those at its axes."""
    return [text.get_text() for text in figure.axes[0].texts]


def saved(figure: Figure, folder: Path) -> None:
    figure.savefig(folder / "figure.png")
    assert (folder / "figure.png").stat().st_size > 0


def test_without_a_surface_there_are_points_alone() -> None:
    """There are one panel and its colour bar; every trial that stands alone has its number."""
    figure = search_surface(points([0.1, 0.9], [1, 9], [90, 91], best=1), AXES, "accuracy %")
    assert len(figure.axes) == 2
    assert texts(figure) == ["8", "7"]


def test_of_covered_trials_the_better_is_numbered() -> None:
    """If two trials are at one place, the number of the better one is legible."""
    figure = search_surface(points([0.5, 0.5, 0.9], [2, 2, 9], [60, 70, 10], best=1), AXES, "accuracy %")
    assert texts(figure) == ["8", "9"]


def test_the_outline_runs_where_membership_changes() -> None:
    """It is in the panels of the mean and of the doubt, halfway between the grid's points."""
    figure = search_surface(points([0.1, 0.9], [2, 5], [90, 95]), AXES, "accuracy %", surface())
    for panel in figure.axes[:2]:
        (outline, *_) = [c for c in panel.collections if len(c.get_paths()) == 1 and c.get_zorder() == 2]
        assert outline.get_paths()[0].vertices[:, 0] == pytest.approx(0.55)
    assert "outline of what is not ruled out" in figure.axes[1].get_title()
    assert "hatched: ruled out" in figure.axes[0].get_title()
    (hatched,) = [c for c in figure.axes[0].collections if getattr(c, "hatches", None) == ["//"]]
    assert hatched.get_paths()[0].vertices[:, 0].max() == pytest.approx(0.55)


def test_nothing_is_promised_where_nothing_is_ruled_out() -> None:
    """There is neither hatching nor outline, and no title speaks of them."""
    figure = search_surface(points([0.1, 0.9], [2, 5], [90, 95]), AXES, "accuracy %", surface(-1.0))
    assert "hatched" not in figure.axes[0].get_title()
    assert "outline" not in figure.axes[1].get_title()
    assert not [c for c in figure.axes[0].collections if getattr(c, "hatches", [None]) == ["//"]]


def test_the_title_names_best_and_scratch() -> None:
    """It has the chosen trial, and the accuracy of scratch; with one seed there is no deviation."""
    given = points([0.25], [4], [96.12])
    title = search_surface(given, AXES, "accuracy %", None, (95, 0.2), "$odd_{").axes[0].get_title()
    assert title == "Ringed: trial 7, alpha 0.25, tau 4: 96.12\nscratch: 95.00 ±0.20 over seeds\n$odd_{"
    assert search_surface(given, AXES, "%", None, (95, math.nan)).axes[0].get_title().endswith("scratch: 95.00")


def test_an_outlier_does_not_take_the_colours() -> None:
    """A trial that failed at 10 % is below the colour bar, so that 95 % and 96 % still differ in colour."""
    low, high = colour_range(np.array([97, 10, 96, 95.0]))
    assert 90 < low < high == 97
    assert colour_range(np.array([5.0, 5.0])) == (4.5, 5.5)


@pytest.mark.parametrize(
    ("x", "y", "values"),
    [
        ([0.5] * 3, [1, 2, 3], [90, 80, 70]),  # tau alone was searched
        ([0.1, 0.2, 0.3], [4] * 3, [90, 80, 70]),  # alpha alone
        ([0.1, 0.2, 0.3], [1, 2, 3], [90] * 3),  # all the same
        ([0.0], [1], [97]),  # one trial
    ],
)
def test_awkward_trials_are_drawn(x: list[float], y: list[float], values: list[float], tmp_path: Path) -> None:
    """Degenerate searches give a figure, not an error or a warning."""
    saved(search_surface(points(x, y, values), AXES, "%", None, (90, 1)), tmp_path)


def test_any_two_parameters_can_be_drawn(tmp_path: Path) -> None:
    """The ticks of a learning rate stay readable over five decades."""
    axes = (Axis("optimizer.lr", log=True), Axis("loss.alpha"))
    figure = search_surface(points([1e-5, 1.0], [0, 1], [1.5, 2.5]), axes, "NLL")
    saved(figure, tmp_path)
    assert figure.axes[0].get_xscale() == "log"
    assert len(figure.axes[0].get_xticks()) < 12
