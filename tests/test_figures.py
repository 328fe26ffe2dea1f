"""Figures show what they were given, whatever its size, and leave no state behind."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from kdsweep.figures import alpha_tau_surface, arm_curves, learning_curve

RISE = [(epoch, 0.9 - 0.8 * math.exp(-epoch)) for epoch in range(1, 9)]


def trials(n: int, noise: float = 0.001) -> tuple[list[float], list[float], list[float]]:
    """alpha, tau, accuracy of n trials on a hill whose top is at alpha 0.6, tau 4."""
    random = np.random.default_rng(0)
    alpha, tau = random.uniform(0, 1, n), np.exp(random.uniform(0, 3, n))
    value = 0.95 - 0.05 * (alpha - 0.6) ** 2 - 0.01 * (np.log(tau) - math.log(4)) ** 2 + random.normal(0, noise, n)
    return list(alpha), list(tau), list(value)


def n_surfaces(figure: Figure) -> int:
    """How many filled contour plots a figure has."""
    return sum(type(collection).__name__ == "QuadContourSet" for collection in figure.axes[0].collections)


def texts(figure: Figure) -> list[str]:
    """What is written inside the first panel, other than at its axes."""
    return [text.get_text() for text in figure.axes[0].texts]


def test_learning_curve_draws_accuracies_as_per_cent() -> None:
    """Fractions come in, per cent are drawn; losses and rates are drawn as they are."""
    figure = learning_curve({"val/accuracy": RISE, "train/loss": [(1, 2.5), (2, 1.5)], "lr": [(1, 0.1)]}, "run")
    loss, accuracy, rate = figure.axes
    assert list(loss.lines[0].get_ydata()) == [2.5, 1.5]
    assert accuracy.lines[-1].get_ydata() == pytest.approx([100 * value for _, value in RISE])
    assert list(rate.lines[0].get_ydata()) == [0.1]


@pytest.mark.parametrize("history", [{}, {"val/accuracy": [(1, 0.5)]}, {"other": RISE}, {"lr": [(1, math.nan)]}])
def test_learning_curve_of_a_short_history(history: dict[str, list[tuple[int, float]]], tmp_path: Path) -> None:
    """Nothing, one epoch, or not a number: still a figure."""
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
    """From no epochs to many, with and without a target."""
    curves = {"scratch": [RISE[:n_epochs]] * 2} if n_epochs else {}
    arm_curves(curves, "accuracy", target=0.8 if n_epochs else None).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


@pytest.mark.slow  # the first to import scikit-learn
def test_the_surface_waits_for_five_trials() -> None:
    """Points from one trial on; a surface only from five."""
    assert [n_surfaces(alpha_tau_surface(*trials(n), best=0, baseline=None)) for n in (1, 4, 5, 40)] == [0, 0, 1, 1]


def test_every_lonely_trial_is_numbered() -> None:
    """The number stands on the point, and it is the trial's, not its position."""
    assert texts(alpha_tau_surface([0.1, 0.9], [1, 9], [0.5, 0.6], 1, None, numbers=[7, 3])) == ["3", "7"]


def test_of_covered_trials_the_better_is_numbered() -> None:
    """Two trials at one place: the number of the better one is legible."""
    assert texts(alpha_tau_surface([0.5, 0.5, 0.9], [2, 2, 9], [0.6, 0.7, 0.1], 1, None)) == ["1", "2"]


def test_a_surface_finds_the_hill() -> None:
    """The smooth surface is highest near the top that the trials' accuracies were drawn from."""
    contours = alpha_tau_surface(*trials(40), best=0, baseline=None).axes[0].collections[0]
    top = [path for path in contours.get_paths() if len(path.vertices) > 0][-1]  # from low to high
    alpha, tau = top.vertices.mean(axis=0)
    assert alpha == pytest.approx(0.6, abs=0.15)
    assert tau == pytest.approx(4, rel=0.4)


def test_the_title_names_best_and_scratch() -> None:
    """The title says where the best is, and what scratch reaches; without a deviation if there is one seed."""
    title = alpha_tau_surface([0.25], [4], [0.9612], 0, (0.95, 0.002)).axes[0].get_title()
    assert title == "Best: trial 0, alpha 0.25, tau 4.00: 96.12%\nscratch: 95.00% ±0.20 over seeds"
    assert alpha_tau_surface([0.25], [4], [0.9612], 0, (0.95, math.nan)).axes[0].get_title().endswith("scratch: 95.00%")


@pytest.mark.parametrize(
    ("alpha", "tau", "value"),
    [
        ([0.5] * 6, [1, 2, 3, 4, 5, 6], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]),  # tau alone was searched
        ([0.1, 0.2, 0.3, 0.4, 0.5], [4] * 5, [0.9, 0.8, 0.7, 0.6, 0.5]),  # alpha alone
        ([0.1, 0.2, 0.3, 0.4, 0.5], [1, 2, 3, 4, 5], [0.9] * 5),  # all the same
        ([0.0, 1.0, 0.3, 0.4, 0.5], [1, 20, 3, 4, 5], [0.97, 0.1, 0.96, 0.95, 0.96]),  # one diverged
        ([0.5] * 5 + [0.6], [2] * 5 + [3], [0.9, 0.91, 0.9, 0.91, 0.9, 0.92]),  # repetitions
    ],
)
def test_a_surface_of_awkward_trials(alpha: list[float], tau: list[float], value: list[float], tmp_path: Path) -> None:
    """Degenerate searches give a figure, not an error or a warning."""
    alpha_tau_surface(alpha, tau, value, 0, (0.9, 0.01)).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_an_outlier_does_not_take_the_colours() -> None:
    """A trial that failed at 10 % is off the colour bar's scale, which still tells 95 % from 96 %."""
    figure = alpha_tau_surface([0, 1, 0.3, 0.4], [1, 20, 3, 4], [0.97, 0.1, 0.96, 0.95], 0, None)
    low, high = figure.axes[1].get_ylim()
    assert 90 < low < high < 98


def test_figures_leave_no_pyplot_state() -> None:
    """A sweep draws thousands of figures in one process: none stays in pyplot's list."""
    from matplotlib import pyplot

    learning_curve({"val/accuracy": RISE}, "run")
    assert pyplot.get_fignums() == []
