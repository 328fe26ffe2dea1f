"""Claims about the figures of the search: its course, trials across their parameters, the Pareto set."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from kdsweep.report.figures.search import Course, Scale, history, parallel, pareto_front


def labels(figure: Figure) -> list[str]:
    """The texts of the legend."""
    return figure.axes[0].get_legend_handles_labels()[1]


@pytest.mark.parametrize(("maximise", "best"), [(True, [3, 5, 5]), (False, [3, 3, 2])])
def test_the_best_so_far_follows_the_direction(maximise: bool, best: list[float]) -> None:
    """Trials are taken in the order of their numbers, whatever the order of the list."""
    figure = history(Course([(2, 2.0), (0, 3.0), (1, 5.0)], [], 1, maximise), "value")
    (line,) = figure.axes[0].lines
    assert list(line.get_ydata()) == best


def test_the_course_marks_what_it_knows(tmp_path: Path) -> None:
    """The legend has noise, fresh seeds, scratch, pruned and chosen trials, if they are known."""
    every = Course([(0, 90.0), (1, 91.0)], [2, 3], 1, True, noise=0.3, fresh=90.5, baseline=89.0)
    figure = history(every, "accuracy %")
    figure.savefig(tmp_path / "figure.png")
    assert labels(figure) == [
        "one standard deviation of seeds about the best", "best so far", "trial", "pruned", "chosen",
        "chosen setting, mean of fresh seeds", "scratch, mean",
    ]  # fmt: skip
    assert labels(history(Course([(0, 90.0), (1, 91.0)], [], None, True), "%")) == ["best so far", "trial"]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_diverged_trial_is_at_the_edge(sign: int) -> None:
    """A diverged trial doesn't flatten the others, and is named in the legend; the best is never hidden."""
    values = [90, 90.2, 90.4, 90.1, 10]
    figure = history(Course([(n, sign * v) for n, v in enumerate(values)], [], 2, sign > 0), "value")
    low, high = sorted(abs(limit) for limit in figure.axes[0].get_ylim())
    assert 88 < low < high < 91
    assert "trial that is far worse" in labels(figure)


def test_a_best_that_is_far_ahead_is_shown() -> None:
    """An outlier upwards is what the search is for."""
    figure = history(Course([(0, 10.0), (1, 10.1), (2, 10.2), (3, 90.0)], [], 3, True), "value")
    assert figure.axes[0].get_ylim()[1] > 90
    assert "trial that is far worse" not in labels(figure)


def test_scales_place_numbers_logarithms_and_words() -> None:
    """Every place is in [0, 1]; a constant is in the middle."""
    assert list(Scale("a").place(["1", "3", "2"])[0]) == [0, 1, 0.5]
    assert Scale("a", log=True).place(["1", "100", "10"])[0] == pytest.approx([0, 1, 0.5])
    places, ticks = Scale("a", choices=("x", "y")).place(["y", "x"])
    assert (list(places), ticks) == ([1, 0], [(0, "x"), (1, "y")])
    assert list(Scale("a").place(["2", "2"])[0]) == [0.5, 0.5]


def test_ticks_lie_on_their_axis() -> None:
    """The ticks are round numbers inside the range, at their places."""
    ticks = Scale("tau", log=True).place(["1.5", "18"])[1]
    assert [text for _, text in ticks] == ["2", "5", "10"]
    assert all(0 <= place <= 1 for place, _ in ticks)


def test_parallel_coordinates_draw_every_trial(tmp_path: Path) -> None:
    """Each trial is a line across all axes; the chosen one is drawn again on top."""
    columns = [(Scale("alpha"), ["0.1", "0.9", "0.5"]), (Scale("model", choices=("$a_{", "b")), ["b", "$a_{", "b"])]
    figure = parallel(columns, [90, 91, 92], 2, "accuracy %", [4, 5, 6])
    figure.savefig(tmp_path / "figure.png")
    axis = figure.axes[0]
    assert len(axis.collections[0].get_paths()) == 3
    assert list(axis.lines[0].get_ydata()) == [0.5, 1, 1]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["alpha", "model", "accuracy %"]


def test_the_front_is_joined_in_order(tmp_path: Path) -> None:
    """The line goes from left to right; its points have the trials' numbers."""
    figure = pareto_front([(3, 1), (1, 3), (0, 0), (2, 2)], [10, 11, 12, 13], [0, 1, 3], 3, ("a", "b"))
    figure.savefig(tmp_path / "figure.png")
    axis = figure.axes[0]
    assert list(axis.lines[0].get_xdata()) == [1, 2, 3]
    assert sorted(text.get_text() for text in axis.texts) == ["10", "11", "13"]
    assert "chosen" in labels(figure)
