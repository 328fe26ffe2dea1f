"""Figures of the search: its course, its trials across their parameters, the Pareto set. `surface` has the surface."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdsweep.report.figures.curves import BLACK, BLUE, COLOURS, GREEN, ORANGE, Array, legend_below, panels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Course:
    """The search, trial by trial; values are in the unit in which the objective is printed.

    Attributes:
        done: (number, value) of the trials that went to their end.
        pruned: The numbers of the trials that were stopped.
        chosen: The number of the chosen trial, or None.
        maximise: Whether a larger value is better.
        noise: The standard deviation over seeds; None if it is unknown.
        fresh: The mean of the chosen setting over fresh seeds; None without confirmation.
        baseline: The mean of scratch; None if scratch doesn't have the metric.
    """

    done: Sequence[tuple[int, float]]
    pruned: Sequence[int]
    chosen: int | None
    maximise: bool
    noise: float | None = None
    fresh: float | None = None
    baseline: float | None = None


def history(course: Course, value_label: str) -> Figure:
    """Draws the objective of each trial in their order, the best so far, and the band within the noise of the best."""
    from matplotlib.ticker import MaxNLocator

    figure, (axis,) = panels(8.2, 4.4, 1)
    numbers, values = np.array(sorted(course.done), float).reshape(-1, 2).T
    best = np.maximum.accumulate(values) if course.maximise else np.minimum.accumulate(values)
    if course.noise is not None:
        limits = best[-1] - course.noise, best[-1] + course.noise
        label = "one standard deviation of seeds about the best"
        axis.axhspan(*limits, color=ORANGE, alpha=0.13, linewidth=0, label=label)
    axis.step(numbers, best, where="post", color=ORANGE, label="best so far")
    axis.scatter(numbers, values, 30, color=BLUE, zorder=3, label="trial")
    if course.pruned:
        # The score at which a trial was stopped can't be compared with final scores, so only its number is shown.
        heights, edge = [0.03] * len(course.pruned), axis.get_xaxis_transform()
        axis.scatter(course.pruned, heights, 30, "grey", marker="x", label="pruned", transform=edge)
    for number, value in course.done:
        if number == course.chosen:
            axis.scatter(number, value, 130, facecolors="none", edgecolors=ORANGE, linewidths=2, label="chosen")
    if course.fresh is not None:
        axis.axhline(course.fresh, color=GREEN, linestyle="-.", label="chosen setting, mean of fresh seeds")
    if course.baseline is not None:
        axis.axhline(course.baseline, color=BLACK, linestyle="--", linewidth=1, label="scratch, mean")
    _keep_sight(axis, course, numbers, values)
    axis.set(xlabel="trial", ylabel=value_label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    legend_below(figure, axis)
    axis.set_title("Course of the search", fontsize=11)
    return figure


def sight(course: Course) -> tuple[float, float] | None:
    """Returns the limits of the y axis without the trials that diverged, which would flatten the rest; None if none."""
    sign = 1 if course.maximise else -1
    heights = sign * np.array([value for _, value in course.done])
    middle, best = float(np.median(heights)), float(heights.max())
    # A diverged trial is more than four times as far below the median as the best is above it.
    lines = [sign * level for level in (course.fresh, course.baseline) if level is not None]
    limit = min([middle - 4 * (best - middle), *lines])
    if best <= middle or not (heights < limit).any():
        return None
    margin = 0.06 * (best + (course.noise or 0) - limit)
    ends = sign * (limit - margin), sign * (best + (course.noise or 0) + margin)
    return min(ends), max(ends)


def _keep_sight(axis: Axes, course: Course, numbers: Array, values: Array) -> None:
    """Limits the y axis to `sight`; trials outside are marked at its edge."""
    limits = sight(course)
    if limits is None:
        return
    # Both limits are set, because the points outside have widened them.
    axis.set_ylim(*limits)
    outside = values < limits[0] if course.maximise else values > limits[1]
    axis.scatter(
        numbers[outside],
        [0.03 if course.maximise else 0.97] * int(outside.sum()),
        40,
        BLUE,
        marker="v" if course.maximise else "^",
        label="trial that is far worse",
        transform=axis.get_xaxis_transform(),
    )


def shade(height: float) -> str:
    """Returns the colour of a value in [0, 1], as "#rrggbb"."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps[COLOURS](height))


@dataclass(frozen=True)
class Scale:
    """One axis of the parallel coordinates.

    Attributes:
        label: Its label.
        log: Whether its scale is logarithmic.
        choices: The words on it; empty for an axis of numbers.
    """

    label: str
    log: bool = False
    choices: tuple[str, ...] = ()

    def place(self, texts: Sequence[str]) -> tuple[Array, list[tuple[float, str]]]:
        """Returns the texts' places in [0, 1], and the axis's ticks (place, text)."""
        if self.choices:
            step = 1 / max(len(self.choices) - 1, 1)
            ticks = [(index * step, choice) for index, choice in enumerate(self.choices)]
            return np.array([self.choices.index(text) * step for text in texts]), ticks
        values = np.array([float(text) for text in texts])
        low, high = float(values.min()), float(values.max())
        if high <= low:
            return np.full(len(values), 0.5), [(0.5, f"{low:.4g}")]
        from matplotlib.ticker import LogLocator, MaxNLocator

        # Over few decades, there are too few powers of ten.
        locator = LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)) if self.log else MaxNLocator(5)
        marks = np.array([mark for mark in locator.tick_values(low, high) if low <= mark <= high])
        places, heights = (
            (np.log(each / low) / math.log(high / low) if self.log else (each - low) / (high - low))
            for each in (values, marks)
        )
        return places, [(float(height), f"{mark:.4g}") for height, mark in zip(heights, marks, strict=True)]


def parallel(
    columns: Sequence[tuple[Scale, Sequence[str]]],
    values: Sequence[float],
    best: int,
    label: str,
    numbers: Sequence[int],
) -> Figure:
    """Draws each trial as a line across its parameters to its objective, coloured by the objective.

    Args:
        columns: For each parameter, its scale and the trials' values.
        values: The objective of each trial as it is printed; it is the last axis.
        best: The position of the trial that is drawn thick.
        label: The label of the objective.
        numbers: The trials' numbers; that of the best stands in the title.
    """
    from matplotlib.collections import LineCollection

    figure, (axis,) = panels(max(6.0, 2.2 * (len(columns) + 1)), 4.6, 1)
    every = [*columns, (Scale(label), [str(value) for value in values])]
    placed = [scale.place(texts) for scale, texts in every]
    rows = np.stack([places for places, _ in placed], axis=1)  # (trials, axes)
    lines = [np.stack([np.arange(len(every)), row], axis=1) for row in rows]
    shades = rows[:, -1]
    order = np.argsort(shades)
    axis.add_collection(LineCollection([lines[i] for i in order], array=shades[order], cmap=COLOURS, alpha=0.75))
    axis.plot(*lines[best].T, color=ORANGE, linewidth=3, zorder=3)
    for position, (_, ticks) in enumerate(placed):
        axis.axvline(position, color=BLACK, linewidth=1)
        for height, text in ticks:
            axis.annotate(
                text, (position, height), (4, 0), textcoords="offset points", fontsize=8, va="center", zorder=4,
                bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8}, parse_math=False,
            )  # fmt: skip
    axis.set_xticks(range(len(every)), [scale.label for scale, _ in every])
    axis.set(xlim=(-0.15, len(every) - 0.6), ylim=(-0.05, 1.05), yticks=[])
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.tick_params(length=0)
    axis.set_title(f"Trials across their parameters (orange: the chosen one, trial {numbers[best]})", fontsize=11)
    return figure


def pareto_front(
    points: Sequence[tuple[float, float]],
    numbers: Sequence[int],
    front: Sequence[int],
    chosen: int | None,
    labels: tuple[str, str],
) -> Figure:
    """Draws the trials by two objectives; a line joins those that no other trial beats in both.

    Args:
        points: Both objectives of each trial, as they are printed.
        numbers: The trials' numbers.
        front: The positions of the trials in the Pareto set.
        chosen: The position of the chosen trial, or None.
        labels: The labels of the two objectives.
    """
    figure, (axis,) = panels(6.6, 4.8, 1)
    x, y = np.array(points, float).T
    axis.scatter(x, y, 40, color="grey", alpha=0.7, label="trial", linewidths=0)
    on = sorted(front, key=lambda index: (x[index], y[index]))
    axis.plot(x[on], y[on], color=BLUE, linewidth=1, alpha=0.6)
    axis.scatter(x[on], y[on], 70, color=BLUE, zorder=3, label="beaten by no other in every objective")
    if chosen is not None:
        axis.scatter(x[chosen], y[chosen], 220, facecolors="none", edgecolors=ORANGE, linewidths=2.4, label="chosen")
    for index in on:
        axis.annotate(str(numbers[index]), (x[index], y[index]), (6, 6), textcoords="offset points", fontsize=9)
    axis.set(xlabel=labels[0], ylabel=labels[1])
    axis.grid(alpha=0.25)
    legend_below(figure, axis)
    axis.set_title("Pareto set of the search", fontsize=11)
    return figure
