"""Figures that compare the arms: paired differences, speed, calibration. Their learning curves are in `curves`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdsweep.analysis.statistics import perfect_calibration_error
from kdsweep.report.figures.curves import BLACK, ORANGE, Array, Curve, arm_style, arm_styles, legend_below, panels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

LEVELS = 120  # the number of accuracies at which the arms' speeds are compared
SHOWN = 0.4  # the last part of the way to the highest accuracy is shown: arms don't differ in the first epochs


@dataclass(frozen=True)
class Interval:
    """A row of the figure of differences, in points.

    Attributes:
        label: The names of the two arms.
        pairs: The difference of each pair.
        mean: The mean of the differences.
        low, high: The 95 % interval of the mean; NaN for one pair.
        clear: Whether they differ beyond noise, adjusted for all rows.
    """

    label: str
    pairs: Sequence[float]
    mean: float
    low: float
    high: float
    clear: bool


def differences(rows: Sequence[Interval], label: str, title: str) -> Figure:
    """Draws paired differences with their pairs and intervals, about a line at zero.

    Args:
        rows: From top to bottom.
        label: The label of the x axis.
        title: What the colours say besides, for the title.
    """
    longest = max(len(row.label) for row in rows)
    figure, (axis,) = panels(7.6 + 0.06 * max(longest - 25, 0), 1.2 + (0.75 if len(rows) < 5 else 0.4) * len(rows), 1)
    axis.axvline(0, color=BLACK, linewidth=1)
    for place, row in enumerate(reversed(rows)):
        colour = ORANGE if row.clear else "grey"
        axis.scatter(row.pairs, [place - 0.22] * len(row.pairs), 16, color=colour, alpha=0.6, linewidths=0)
        if not math.isnan(row.low):
            axis.plot([row.low, row.high], [place, place], color=colour, linewidth=3, solid_capstyle="butt")
        axis.scatter([row.mean], [place], 60, color=colour, edgecolors="white", zorder=3)
    axis.set_yticks(range(len(rows)), [row.label for row in reversed(rows)], parse_math=False)
    axis.set_ylim(-0.6, len(rows) - 0.5)
    axis.set_xlabel(f"{label}\nsmall dots: pairs of runs with one seed")
    axis.grid(axis="x", alpha=0.25)
    # In one line it would be longer than the axes are beside long names.
    axis.set_title(f"Mean with its 95% interval\n(grey: not distinguishable, {title})", fontsize=10.5)
    return figure


def reach(arms: Mapping[str, Sequence[tuple[Curve, Curve]]]) -> Figure:
    """Draws the epochs, and the seconds if they are known, until an arm's runs reach an accuracy: their mean and range.

    A line ends at the accuracy that the arm's weakest run reaches: beyond it, the mean would be that of the lucky runs.

    Args:
        arms: Arm -> its runs. Each has the points (epoch, validation accuracy as a fraction), and the points (epoch,
            seconds of that epoch), which may be empty.
    """
    timed = any(seconds for runs in arms.values() for _, seconds in runs)
    figure, axes = panels(10.5 if timed else 6.0, 4.2, 2 if timed else 1)
    styles = arm_styles(arms)
    for arm, runs in arms.items():
        colour, line = styles[arm]
        levels, epochs, seconds = reached(runs)
        for axis, rows in zip(axes, (epochs, seconds), strict=False):
            if rows.size and not np.isnan(rows).all():
                axis.fill_between(levels, rows.min(0), rows.max(0), color=colour, alpha=0.18, linewidth=0, step="pre")
                axis.step(levels, rows.mean(0), line, where="pre", color=colour, label=arm)
    start = reach_start([levels for levels, *_ in map(reached, arms.values())])
    for axis, label in zip(axes, ("epochs", "seconds of training"), strict=False):
        axis.set(xlabel="validation accuracy reached (%)", ylabel=label)
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=start)
        axis.grid(alpha=0.25)
    legend_below(figure, axes[0])
    figure.suptitle("How long until an accuracy is reached (band: fastest to slowest run)", fontsize=11)
    return figure


def reach_start(levels: Sequence[Array]) -> float:
    """Returns the accuracy from which on the arms are compared; `levels` has those that each arm reaches."""
    return min(float(own[-1] - SHOWN * (own[-1] - own[0])) for own in levels)


def reached(runs: Sequence[tuple[Curve, Curve]]) -> tuple[Array, Array, Array]:
    """Returns accuracies (%), and epochs and seconds until each run reaches them (runs, accuracies); NaN is unknown."""
    bests = [np.maximum.accumulate([100 * accuracy for _, accuracy in curve]) for curve, _ in runs]  # (epochs,) each
    top, bottom = min(best[-1] for best in bests), max(best[0] for best in bests)
    levels = np.linspace(min(bottom, top), top, LEVELS)
    first = [np.searchsorted(best, levels - 1e-9) for best in bests]
    epochs = [np.array([e for e, _ in curve], float)[at] for (curve, _), at in zip(runs, first, strict=True)]
    seconds = [
        np.cumsum([s for _, s in took])[at] if len(took) == len(curve) else np.full(LEVELS, math.nan)
        for (curve, took), at in zip(runs, first, strict=True)
    ]
    return levels, np.array(epochs), np.array(seconds)


def reliability(arms: Mapping[str, Sequence[Sequence[Mapping[str, float | None]]]]) -> Figure:
    """Draws how often an arm is right against how sure it is, on test, over all its runs; below, how many pictures.

    The calibration errors are those of single runs, on average, as in the table of arms. Beside each stands the error
    that a perfect model would have with as many pictures as sure.

    Args:
        arms: Arm -> the diagrams of its runs: bins with "count", "confidence" and "accuracy" (None in an empty bin).
    """
    figure, (upper, lower) = panels(5.4, 6.4, 1, heights=(3, 1))
    pictures = min(int(_counted(diagram)[0].sum()) for diagrams in arms.values() for diagram in diagrams)
    upper.plot([0, 100], [0, 100], color="grey", linestyle=":", label="as sure as right")
    for arm, diagrams in arms.items():
        colour, line = arm_style(arm)
        count, confidence, accuracy = pooled(diagrams)
        error, perfect = (float(np.mean(each)) for each in zip(*map(errors, diagrams), strict=True))
        label = f"{arm} (error {error:.1f}%, if perfect {perfect:.1f}%)"
        # Bins with a handful of pictures are noisy, so a smaller bin gets a smaller marker.
        upper.plot(confidence, accuracy, line, color=colour, label=label, linewidth=1.5)
        upper.scatter(confidence, accuracy, 8 + 60 * np.sqrt(count / count.max()), color=colour, zorder=3)
        lower.plot(confidence, 100 * count / count.sum(), line, color=colour, marker="o", markersize=3)
    upper.set(ylabel="right (%)", xlim=(0, 101), ylim=(0, 101))
    lower.set(xlabel="confidence (%)", ylabel="pictures (%)")
    for axis in (upper, lower):
        axis.grid(alpha=0.25)
    upper.legend(frameon=False, fontsize=9, title="calibration error of", title_fontsize=9)
    upper.set_title(f"Reliability on test ({pictures:,} pictures), confirmation runs", fontsize=11)
    return figure


def _counted(diagram: Sequence[Mapping[str, float | None]]) -> tuple[Array, Array, Array]:
    """Returns count, confidence and accuracy (fractions) of each bin of a diagram that isn't empty."""
    full = [(b["count"] or 0, b["confidence"] or 0, b["accuracy"] or 0) for b in diagram if b["count"]]
    count, confidence, accuracy = np.array(full, float).reshape(-1, 3).T
    return count, confidence, accuracy


def errors(diagram: Sequence[Mapping[str, float | None]]) -> tuple[float, float]:
    """Returns the calibration error of a diagram, and that of a perfect model with its confidences, in per cent."""
    count, confidence, accuracy = _counted(diagram)
    error = float((count * np.abs(accuracy - confidence)).sum() / count.sum())
    return 100 * error, 100 * perfect_calibration_error(count, confidence)


def pooled(diagrams: Sequence[Sequence[Mapping[str, float | None]]]) -> tuple[Array, Array, Array]:
    """Pools diagrams of the same bins; returns count, confidence (%) and accuracy (%) of each bin that isn't empty."""
    bins = []
    for same in zip(*diagrams, strict=True):
        count, confidence, accuracy = _counted(same)
        if total := count.sum():
            bins.append((total, 100 * (count @ confidence) / total, 100 * (count @ accuracy) / total))
    count, confidence, accuracy = np.array(bins, float).reshape(-1, 3).T
    return count, confidence, accuracy
