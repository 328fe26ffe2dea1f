"""Figures that compare the arms besides their learning curves: differences, speed, calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdsweep.report.figures.curves import BLACK, ORANGE, Array, Curve, arm_style, legend_below, panels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

LEVELS = 120  # accuracies at which the speed of arms is looked up
SHOWN = 0.4  # of the way to the highest accuracy: arms differ at its end, not in the first epochs


@dataclass(frozen=True)
class Interval:
    """A row of the figure of differences, in points: each pair's difference, their mean and its 95 % interval."""

    label: str
    pairs: Sequence[float]
    mean: float
    low: float
    high: float
    clear: bool  # whether zero is ruled out


def differences(rows: Sequence[Interval]) -> Figure:
    """Paired differences on test, each with its pairs and its interval, about a line at zero."""
    figure, (axis,) = panels(7.6, 1.2 + 0.75 * len(rows), 1)
    axis.axvline(0, color=BLACK, linewidth=1)
    for place, row in enumerate(reversed(rows)):
        colour = ORANGE if row.clear else "grey"
        axis.scatter(row.pairs, [place - 0.22] * len(row.pairs), 16, color=colour, alpha=0.6, linewidths=0)
        if not math.isnan(row.low):
            axis.plot([row.low, row.high], [place, place], color=colour, linewidth=3, solid_capstyle="butt")
        axis.scatter([row.mean], [place], 60, color=colour, edgecolors="white", zorder=3)
    axis.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
    axis.set_ylim(-0.6, len(rows) - 0.5)
    axis.set_xlabel("difference in test accuracy (points); small dots: pairs of runs with one seed")
    axis.grid(axis="x", alpha=0.25)
    axis.set_title("Mean difference with its 95% interval (grey: zero is not ruled out)", fontsize=10.5)
    return figure


def reach(arms: Mapping[str, Sequence[tuple[Curve, Curve]]]) -> Figure:
    """Epochs, and where they are known seconds, until an accuracy is reached: mean over an arm's runs, and their range.

    A line ends at the accuracy that the arm's weakest run reaches: beyond it a mean would be over the lucky runs.

    Args:
        arms: Arm to its runs, each (epoch, validation accuracy as a fraction) and (epoch, seconds of that epoch), the
            latter empty where nobody measured it.
    """
    timed = any(seconds for runs in arms.values() for _, seconds in runs)
    figure, axes = panels(10.5 if timed else 6.0, 4.2, 2 if timed else 1)
    for arm, runs in arms.items():
        colour, line = arm_style(arm)
        levels, epochs, seconds = _reached(runs)
        for axis, rows in zip(axes, (epochs, seconds), strict=False):
            if rows.size and not np.isnan(rows).all():
                axis.fill_between(levels, rows.min(0), rows.max(0), color=colour, alpha=0.18, linewidth=0, step="pre")
                axis.step(levels, rows.mean(0), line, where="pre", color=colour, label=arm)
    starts = [levels[-1] - SHOWN * (levels[-1] - levels[0]) for levels, *_ in map(_reached, arms.values())]
    for axis, label in zip(axes, ("epochs", "seconds of training"), strict=False):
        axis.set(xlabel="validation accuracy reached (%)", ylabel=label)
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=min(starts))
        axis.grid(alpha=0.25)
    legend_below(figure, axes[0])
    figure.suptitle("How long until an accuracy is reached (band: fastest to slowest run)", fontsize=11)
    return figure


def _reached(runs: Sequence[tuple[Curve, Curve]]) -> tuple[Array, Array, Array]:
    """Accuracies (%), and epochs and seconds (n runs, n accuracies) until they are reached; NaN without seconds."""
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
    """How often an arm is right against how sure it is, on test, over its runs together; below, how often that is.

    Args:
        arms: Arm to the diagrams of its runs: bins of "count", "confidence" and "accuracy" (None in an empty bin).
    """
    figure, (upper, lower) = panels(5.4, 6.4, 1, heights=(3, 1))
    upper.plot([0, 100], [0, 100], color="grey", linestyle=":", label="as sure as right")
    for arm, diagrams in arms.items():
        colour, line = arm_style(arm)
        count, confidence, accuracy = _pooled(diagrams)
        error = float((count * np.abs(accuracy - confidence)).sum() / count.sum())
        label = f"{arm} (calibration error {error:.1f}%)"
        # Bins with a handful of pictures are noise: the smaller the bin, the smaller its marker.
        upper.plot(confidence, accuracy, line, color=colour, label=label, linewidth=1.5)
        upper.scatter(confidence, accuracy, 8 + 60 * np.sqrt(count / count.max()), color=colour, zorder=3)
        lower.plot(confidence, 100 * count / count.sum(), line, color=colour, marker="o", markersize=3)
    upper.set(ylabel="right (%)", xlim=(0, 101), ylim=(0, 101))
    lower.set(xlabel="confidence (%)", ylabel="pictures (%)")
    for axis in (upper, lower):
        axis.grid(alpha=0.25)
    upper.legend(frameon=False, fontsize=9)
    upper.set_title("Reliability on test, confirmation runs", fontsize=11)
    return figure


def _pooled(diagrams: Sequence[Sequence[Mapping[str, float | None]]]) -> tuple[Array, Array, Array]:
    """Count, confidence (%) and accuracy (%) of the bins that hold pictures, over several diagrams of the same bins."""
    bins = []
    for same in zip(*diagrams, strict=True):
        full = [(b["count"] or 0, b["confidence"] or 0, b["accuracy"] or 0) for b in same if b["count"]]
        if full:
            count, confidence, accuracy = np.array(full, float).T
            total = count.sum()
            bins.append((total, 100 * (count @ confidence) / total, 100 * (count @ accuracy) / total))
    count, confidence, accuracy = np.array(bins, float).reshape(-1, 3).T
    return count, confidence, accuracy
