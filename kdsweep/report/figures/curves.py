"""Learning curves of a run and of arms, and the style that all figures share.

Accuracies are passed in as fractions, and drawn as per cent. The other figures are in `arms`, `search` and `surface`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from kdsweep.analysis.metrics import row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]
Array = NDArray[np.float64]

COLOURS = "viridis"
# Okabe and Ito's palette, which colour-blind readers can tell apart: https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#222222"
# How the name of an arm starts -> its colour and line style. Line styles tell arms apart that lie on each other.
ARM_STYLES = {
    **{"teacher": (BLACK, "--"), "scratch": (BLUE, "-"), "label": (GREEN, "-.")},
    **{"shuffled": (PURPLE, ":"), "distill": (ORANGE, "-")},
}

# The panels of a run's learning curve: label of the axis -> the metrics that are drawn in it.
PANELS = {
    "loss": ("train/loss", "val/nll"),
    "accuracy (%)": ("train/accuracy", "val/accuracy"),
    "learning rate": ("lr",),
}


def learning_curve(history: Mapping[str, Curve], title: str) -> Figure:
    """Draws loss, accuracy and learning rate of one run in a panel each, as far as `history` has them.

    Args:
        history: Metric -> (epoch, value) of each epoch. Metrics that are not in `PANELS` are not drawn.
        title: The title, which is printed as it is, whatever characters it holds.
    """
    drawn = {ylabel: names for ylabel, names in PANELS.items() if any(history.get(name) for name in names)}
    columns = max(len(drawn), 1)
    width, height = 4.2 * columns, 3.6
    figure, axes = panels(width, height, columns, layout=None)
    # Every run draws this figure, and a layout that measures all texts would take a third of its time.
    figure.subplots_adjust(0.7 / width, 0.55 / height, 1 - 0.15 / width, 1 - 0.5 / height, wspace=0.3)
    figure.suptitle(title, fontsize=11, parse_math=False)
    for axis, (ylabel, names) in zip(axes, drawn.items(), strict=False):
        for name, colour in zip(names, (BLUE, ORANGE), strict=False):
            epochs, values = _columns(history.get(name, []))
            metric, marker = row(name), _marker(epochs)
            axis.plot(epochs, metric.scale * values, color=colour, label=metric.label, marker=marker, markersize=3.5)
        epoch_axis(axis, ylabel, max(epoch for name in names for epoch, _ in history.get(name, [])))
        if len(names) > 1:
            axis.legend(frameon=False, fontsize=9)
    return figure


def arm_curves(curves: Mapping[str, Sequence[Curve]], ylabel: str, target: float | None = None) -> Figure:
    """Draws accuracy against the epoch: each arm's mean over its runs, and a band from the lowest to the highest run.

    An arm whose name starts with "teacher" is a horizontal line. With six epochs or more, a second panel enlarges the
    last tenth of them (`last_part`), where the arms differ by less than accuracy rises before.

    Args:
        curves: Arm ("scratch", "distill, best of 12 trials") -> for each run, (epoch, accuracy as a fraction).
        ylabel: The label of the y axis, without its unit: "validation accuracy".
        target: An accuracy that is drawn as a dotted line, or None.
    """
    last = max((epoch for runs in curves.values() for curve in runs for epoch, _ in curve), default=1)
    start = last_part(last)
    figure, axes = panels(6.5 if start is None else 10.5, 4.4, 1 if start is None else 2)
    late: list[float] = []
    styles = arm_styles(curves)
    for arm, runs in curves.items():
        epochs, low, mean, high = over_runs(runs)
        label = arm if len(runs) == 1 else f"{arm}, mean of {len(runs)} runs"
        colour, line = styles[arm]
        for axis in axes:
            if arm.startswith("teacher"):
                axis.axhline(mean[-1], color=colour, linestyle=line, label=label)
            else:
                axis.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
                axis.plot(epochs, mean, line, color=colour, label=label, marker=_marker(epochs), markersize=3.5)
        if not arm.startswith("teacher") and start is not None:
            late += [*low[epochs >= start], *high[epochs >= start]]
    for axis in axes:
        if target is not None:
            axis.axhline(100 * target, color="grey", linestyle=":", linewidth=1, label=f"threshold {target:.1%}")
        epoch_axis(axis, f"{ylabel} (%)", last)
    if start is not None:
        margin = max(0.08 * (max(late) - min(late)), 0.1)
        axes[0].set_title("all epochs", fontsize=10)
        axes[1].set(
            xlim=(start, last + 0.05 * (last - start)), ylim=(min(late) - margin, max(late) + margin), ylabel=""
        )
        axes[1].set_title(f"epochs {math.ceil(start)} to {last}, enlarged", fontsize=10)
    legend_below(figure, axes[0])
    bands = any(len(runs) > 1 for runs in curves.values())
    figure.suptitle("Learning curves" + (" (band: lowest to highest run)" if bands else ""), fontsize=11)
    return figure


def last_part(last: int) -> float | None:
    """Returns the epoch at which the last tenth of the epochs begins, or the last three; None below six epochs."""
    return None if last < 6 else last - max(last / 10, 2)


def arm_style(arm: str) -> tuple[str, str]:
    """Returns the colour and the line style of an arm, chosen by how its name begins."""
    return next((style for name, style in ARM_STYLES.items() if arm.startswith(name)), (PURPLE, "-"))


def arm_styles(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns the style of each arm of a figure; contenders of a contest, which have none, get one by their place."""
    others = itertools.product(("-", "--", ":"), (PURPLE, "#56B4E9", "#E69F00", "#8C564B", "#7F7F7F"))
    found = {}
    for arm in arms:
        known = any(arm.startswith(name) for name in ARM_STYLES)
        line, colour = ("", "") if known else next(others, ("-", PURPLE))
        found[arm] = arm_style(arm) if known else (colour, line)
    return found


def panels(
    width: float,
    height: float,
    columns: int,
    heights: Sequence[float] = (1,),
    layout: Literal["constrained"] | None = "constrained",
) -> tuple[Figure, list[Axes]]:
    """Returns a figure and its panels. The figure doesn't belong to pyplot, so that it needs no closing.

    Args:
        width: The figure's width in inches.
        height: The figure's height in inches.
        columns: The number of panels beside each other.
        heights: The relative height of each row of panels; several rows share their x axis.
        layout: What places the panels; None leaves it to `subplots_adjust`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout=layout)
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(heights), columns, squeeze=False, sharex=len(heights) > 1, gridspec_kw={"height_ratios": list(heights)}
    )
    axes = list(grid.ravel())
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend_below(figure: Figure, axis: Axes) -> None:
    """Puts the legend of one panel below the whole figure, where it covers nothing."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def _columns(curve: Curve) -> tuple[Array, Array]:
    pairs = np.array(curve, float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def over_runs(runs: Sequence[Curve]) -> tuple[Array, Array, Array, Array]:
    """Returns the epochs, and the lowest, mean and highest accuracy (%) over the runs that have each epoch."""
    values: dict[int, list[float]] = {}
    for curve in runs:
        for epoch, value in curve:
            values.setdefault(epoch, []).append(100 * value)
    epochs = sorted(values)
    rows = [(min(values[epoch]), float(np.mean(values[epoch])), max(values[epoch])) for epoch in epochs]
    low, mean, high = np.array(rows, float).reshape(-1, 3).T
    return np.array(epochs, float), low, mean, high


def _marker(epochs: Array) -> str:
    # Without markers, a run of one epoch would be invisible; with them, a run of 100 epochs would be a thick band.
    return "o" if len(epochs) <= 15 else ""


def epoch_axis(axis: Axes, ylabel: str, last: float) -> None:
    """Labels the axes of a panel whose x axis counts epochs up to `last`."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("epoch")
    axis.set_ylabel(ylabel)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if last <= 1:
        axis.set(xlim=(0.5, 1.5), xticks=[1])
    axis.grid(alpha=0.25)
