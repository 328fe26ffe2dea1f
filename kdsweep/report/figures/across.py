"""Figures of a contest under several conditions: accuracy against data or epochs, and what is saved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdsweep.report.figures.curves import BLACK, BLUE, GREEN, ORANGE, PURPLE, legend_below, panels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = ((BLUE, "-"), (GREEN, "-."), (ORANGE, "-"), (PURPLE, "--"), (BLACK, ":"), ("#56B4E9", "-"), ("#E69F00", "--"))


@dataclass(frozen=True)
class Place:
    """A contender's accuracies under one condition, in per cent: lowest, mean and highest run."""

    x: float
    label: str
    low: float
    mean: float
    high: float
    n: int


@dataclass(frozen=True)
class Saving:
    """With `amount` one method is as good as the other with `equals`; infinite or 0 where it wasn't measured."""

    amount: float
    equals: float
    low: float
    high: float


def across(
    arms: Mapping[str, Sequence[Place]],
    label: str,
    numeric: bool,
    savings: Mapping[str, Sequence[Saving]],
    reference: str,
) -> Figure:
    """Draws accuracy under each condition, and beside it what the reference needs for the same accuracy.

    Args:
        arms: Contender -> its accuracies, in the order of the conditions.
        label: What the conditions are: "training pictures".
        numeric: Whether `x` is an amount, which is drawn on a logarithmic scale.
        savings: Contender -> what it saves; may be empty.
        reference: The contender against which something is saved.
    """
    shown = {name: points for name, points in savings.items() if any(map(is_shown, points))}
    figure, axes = panels(10.5 if shown else 6.5, 4.4, 2 if shown else 1)
    first = axes[0]
    for index, (name, places) in enumerate(arms.items()):
        colour, line = STYLES[index % len(STYLES)]
        x = [place.x for place in places]
        label_ = f"{name}, mean of {places[0].n} runs" if places[0].n > 1 else name
        means = [place.mean for place in places]
        if numeric:
            lows, highs = [p.low for p in places], [p.high for p in places]
            first.fill_between(x, lows, highs, color=colour, alpha=0.18, linewidth=0)
            first.plot(x, means, line, color=colour, label=label_, marker="o", markersize=4)
        else:
            shift = 0.12 * (index - (len(arms) - 1) / 2)
            errors = [[p.mean - p.low for p in places], [p.high - p.mean for p in places]]
            first.errorbar([v + shift for v in x], means, errors, fmt="o", color=colour, label=label_, capsize=3)
    first.set(xlabel=label, ylabel="test accuracy (%)")
    first.grid(alpha=0.25)
    first.set_title("band: lowest to highest run" if numeric else "bars: lowest to highest run", fontsize=10)
    ticks = {place.x: place.label for places in arms.values() for place in places}
    if numeric:
        _logarithmic(first, ticks, "x")
    else:
        first.set_xticks(list(ticks), list(ticks.values()), parse_math=False)
    if shown:
        _draw_savings(axes[1], shown, list(arms), label, reference, ticks)
    legend_below(figure, first)
    return figure


def is_shown(saving: Saving) -> bool:
    """Returns whether the amount that equals lies where it was measured."""
    return 0 < saving.equals < math.inf


def _draw_savings(
    axis: Axes,
    savings: Mapping[str, Sequence[Saving]],
    names: Sequence[str],
    label: str,
    reference: str,
    ticks: Mapping[float, str],
) -> None:
    bottom, top = min(ticks), max(ticks)
    axis.plot([bottom, top], [bottom, top], color="grey", linestyle=":", label="nothing saved")
    for name, points in savings.items():
        colour, _ = STYLES[names.index(name) % len(STYLES)]
        own = [point for point in points if is_shown(point)]
        lows = [max(0.0, point.equals - max(point.low, bottom)) for point in own]
        highs = [max(0.0, min(point.high, top) - point.equals) for point in own]
        known = [not math.isnan(point.low) for point in own]
        errors = [[low if k else 0 for low, k in zip(side, known, strict=True)] for side in (lows, highs)]
        # A little beside each other, so that intervals of several contenders don't hide each other.
        aside = 1.02 ** (names.index(name) - len(names) / 2)
        amounts = [point.amount * aside for point in own]
        axis.errorbar(amounts, [p.equals for p in own], errors, fmt="o", color=colour, label=name, capsize=3)
    axis.set(xlabel=f"{label} of the other", ylabel=f"{label} that {reference} needs")
    axis.set_title("for the same accuracy (95% interval, as far as it was measured)", fontsize=10)
    for way in ("x", "y"):
        _logarithmic(axis, ticks, way)
    axis.grid(alpha=0.25)


def _logarithmic(axis: Axes, ticks: Mapping[float, str], way: str) -> None:
    from matplotlib.ticker import NullLocator

    own = axis.xaxis if way == "x" else axis.yaxis
    (axis.set_xscale if way == "x" else axis.set_yscale)("log")
    own.set_minor_locator(NullLocator())
    (axis.set_xticks if way == "x" else axis.set_yticks)(list(ticks), list(ticks.values()))
