"""Claims about learning curves: they show what they were given, whatever its size, and leave no state behind."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from kdsweep.report.figures.curves import arm_curves, learning_curve

RISE = [(epoch, 0.9 - 0.8 * math.exp(-epoch)) for epoch in range(1, 9)]


def test_learning_curve_draws_accuracies_as_per_cent() -> None:
    """Fractions are drawn as per cent; losses and learning rates are drawn as they are."""
    figure = learning_curve({"val/accuracy": RISE, "train/loss": [(1, 2.5), (2, 1.5)], "lr": [(1, 0.1)]}, "run")
    loss, accuracy, rate = figure.axes
    assert list(loss.lines[0].get_ydata()) == [2.5, 1.5]
    assert accuracy.lines[-1].get_ydata() == pytest.approx([100 * value for _, value in RISE])
    assert list(rate.lines[0].get_ydata()) == [0.1]


@pytest.mark.parametrize("history", [{}, {"val/accuracy": [(1, 0.5)]}, {"other": RISE}, {"lr": [(1, math.nan)]}])
def test_learning_curve_of_a_short_history(history: dict[str, list[tuple[int, float]]], tmp_path: Path) -> None:
    """Nothing, one epoch, or NaN still gives a figure."""
    learning_curve(history, "run").savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_a_title_is_printed_as_it_is(tmp_path: Path) -> None:
    """A name that looks like TeX is neither an error nor a formula."""
    figure = learning_curve({"val/accuracy": RISE}, "$alpha_{ [bold]")
    figure.savefig(tmp_path / "figure.png")
    assert figure.get_suptitle() == "$alpha_{ [bold]"


def test_arm_curves_show_mean_and_range() -> None:
    """The line is the mean over the runs that have an epoch, the band reaches from the lowest to the highest."""
    axis = arm_curves({"scratch": [[(1, 0.2), (2, 0.6)], [(1, 0.4)]]}, "accuracy").axes[0]
    assert list(axis.lines[0].get_ydata()) == pytest.approx([30, 60])
    band = axis.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((20, 60))


def test_arm_curves_draw_the_teacher_as_a_level() -> None:
    """The teacher has no epochs: its accuracy is a horizontal line across the panel."""
    axis = arm_curves({"teacher": [[(1, 0.7)]], "scratch": [RISE]}, "accuracy").axes[0]
    assert list(axis.lines[0].get_ydata()) == pytest.approx([70, 70])


def test_a_weak_teacher_does_not_flatten_the_enlarged_half() -> None:
    """The second panel is scaled to the students, however far off the teacher is."""
    low, high = arm_curves({"teacher": [[(1, 0.1)]], "scratch": [RISE]}, "accuracy").axes[1].get_ylim()
    assert 85 < low < high < 91


@pytest.mark.parametrize("n_epochs", [0, 1, 3, 8])
def test_arm_curves_of_any_length(n_epochs: int, tmp_path: Path) -> None:
    """There is a figure for any number of epochs, with and without a target."""
    curves = {"scratch": [RISE[:n_epochs]] * 2} if n_epochs else {}
    arm_curves(curves, "accuracy", target=0.8 if n_epochs else None).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_figures_leave_no_pyplot_state() -> None:
    """A sweep draws thousands of figures in one process: none stays in pyplot's list."""
    from matplotlib import pyplot

    learning_curve({"val/accuracy": RISE}, "run")
    assert pyplot.get_fignums() == []
