"""Learning curves of a run and of arms, and what all figures share: accuracies come in as fractions, drawn as per cent.

The other figures of a study are in `arm_figures`, `search_figures` and `surface_figure`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]
Array = NDArray[np.float64]

# Okabe and Ito's palette, which colour-blind readers can tell apart: https://jfly.uni-koeln.de/color/
COLOURS = "viridis"
BLUE, ORANGE, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#222222"
# An arm's name starts with one of these. The line styles keep two arms apart that lie on each other.
ARM_STYLES = {"teacher": (BLACK, "--"), "scratch": (BLUE, "-"), "label": (GREEN, "-."), "distill": (ORANGE, "-")}


def learning_curve(history: Mapping[str, Curve], title: str) -> Figure:
    """Loss, accuracy and learning rate of one run, a panel each, as far as `history` has them.

    Args:
        history: (epoch, value) by metric: train/loss, val/nll, train/accuracy, val/accuracy, lr; others are not drawn.
        title: Printed as it is, whatever characters it holds.
    """
    wanted = {
        # A distilled run's objective is another quantity than NLL, so the two lines are named for what they are.
        "loss": {"train/loss": "training objective", "val/nll": "validation NLL"},
        "accuracy (%)": {"train/accuracy": "training (augmented)", "val/accuracy": "validation"},
        "learning rate": {"lr": ""},
    }
    drawn = {ylabel: names for ylabel, names in wanted.items() if any(history.get(name) for name in names)}
    figure, axes = panels(4.2 * max(len(drawn), 1), 3.6, max(len(drawn), 1))
    figure.suptitle(title, fontsize=11, parse_math=False)
    for axis, (ylabel, names) in zip(axes, drawn.items(), strict=False):
        for (name, label), colour in zip(names.items(), (BLUE, ORANGE), strict=False):
            epochs, values = _columns(history.get(name, []))
            scale = 100 if ylabel.startswith("accuracy") else 1
            axis.plot(epochs, scale * values, color=colour, label=label, marker=_marker(epochs), markersize=3.5)
        epoch_axis(axis, ylabel, max(epoch for name in names for epoch, _ in history.get(name, [])))
        if len(names) > 1:
            axis.legend(frameon=False, fontsize=9)
    return figure


def arm_curves(curves: Mapping[str, Sequence[Curve]], ylabel: str, target: float | None = None) -> Figure:
    """Accuracy against the epoch: per arm the mean over its runs, and a band from the lowest to the highest run.

    An arm whose name starts with "teacher" is a horizontal line. From four epochs on a second panel enlarges the last
    half, where the arms differ by less than the first epochs' rise.

    Args:
        curves: Arm ("scratch", "distill, best of 12 trials") to its runs' (epoch, accuracy as a fraction).
        ylabel: What the accuracy is of: "validation accuracy"; " (%)" is added.
        target: An accuracy drawn as a dotted line, or None.
    """
    last = max((epoch for runs in curves.values() for curve in runs for epoch, _ in curve), default=1)
    figure, axes = panels(10.5 if last >= 4 else 6.5, 4.4, 2 if last >= 4 else 1)
    late: list[float] = []
    for arm, runs in curves.items():
        epochs, low, mean, high = _over_runs(runs)
        label = arm if len(runs) == 1 else f"{arm}, mean of {len(runs)} runs"
        colour, line = arm_style(arm)
        for axis in axes:
            if arm.startswith("teacher"):
                axis.axhline(mean[-1], color=colour, linestyle=line, label=label)
            else:
                axis.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
                axis.plot(epochs, mean, line, color=colour, label=label, marker=_marker(epochs), markersize=3.5)
        if not arm.startswith("teacher"):
            late += [*low[epochs >= last / 2], *high[epochs >= last / 2]]
    for axis in axes:
        if target is not None:
            axis.axhline(100 * target, color="grey", linestyle=":", linewidth=1, label=f"threshold {target:.1%}")
        epoch_axis(axis, f"{ylabel} (%)", last)
    if len(axes) == 2:
        margin = max(0.08 * (max(late) - min(late)), 0.1)
        axes[0].set_title("all epochs", fontsize=10)
        axes[1].set(xlim=(last / 2, 1.02 * last), ylim=(min(late) - margin, max(late) + margin), ylabel="")
        axes[1].set_title("last half, enlarged", fontsize=10)
    legend_below(figure, axes[0])
    bands = any(len(runs) > 1 for runs in curves.values())
    figure.suptitle("Learning curves" + (" (band: lowest to highest run)" if bands else ""), fontsize=11)
    return figure


def arm_style(arm: str) -> tuple[str, str]:
    """Colour and line style of an arm, by how its name begins."""
    return next((style for name, style in ARM_STYLES.items() if arm.startswith(name)), (PURPLE, "-"))


def panels(width: float, height: float, columns: int, heights: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    """A figure of panels, sizes in inches; it belongs to no pyplot state, so it needs no closing.

    Args:
        columns: Panels beside each other.
        heights: Relative height of each row of panels; rows share their x axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(heights), columns, squeeze=False, sharex=len(heights) > 1, gridspec_kw={"height_ratios": list(heights)}
    )
    axes = list(grid.ravel())
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend_below(figure: Figure, axis: Axes) -> None:
    """The legend of one panel under the whole figure, where it covers nothing."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def _columns(curve: Curve) -> tuple[Array, Array]:
    pairs = np.array(curve, float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _over_runs(runs: Sequence[Curve]) -> tuple[Array, Array, Array, Array]:
    """Epochs, and lowest, mean and highest accuracy (%) over the runs that have the epoch."""
    values: dict[int, list[float]] = {}
    for curve in runs:
        for epoch, value in curve:
            values.setdefault(epoch, []).append(100 * value)
    epochs = sorted(values)
    rows = [(min(values[epoch]), float(np.mean(values[epoch])), max(values[epoch])) for epoch in epochs]
    low, mean, high = np.array(rows, float).reshape(-1, 3).T
    return np.array(epochs, float), low, mean, high


def _marker(epochs: Array) -> str:
    # Without markers a run of one epoch would be invisible; with them one of 100 epochs would be a thick band.
    return "o" if len(epochs) <= 15 else ""


def epoch_axis(axis: Axes, ylabel: str, last: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("epoch")
    axis.set_ylabel(ylabel)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if last <= 1:
        axis.set(xlim=(0.5, 1.5), xticks=[1])
    axis.grid(alpha=0.25)
