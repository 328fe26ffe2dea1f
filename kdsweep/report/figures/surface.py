"""Figure of the fitted surface over two searched parameters: its mean, the plateau's outline, and its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdsweep.report.figures.curves import BLACK, COLOURS, ORANGE, Array, panels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

    from kdsweep.analysis.plateau import Surface


# What the hatching, and the line in the panel of the uncertainty, stand for.
HATCHED = "hatched: ruled out (worse than the best by more than noise)"
DOUBT = "orange: outline of what is not ruled out"

# The margin beyond the space, as a share of the axis, so that a point on the border doesn't cover the axis.
EDGE = 0.04


@dataclass(frozen=True)
class Axis:
    """One searched parameter in a figure: its label, and whether it is shown on a logarithmic scale."""

    label: str
    log: bool = False


@dataclass(frozen=True)
class Points:
    """The trials in a figure.

    Attributes:
        x, y: Their coordinates.
        values: Their objective as it is printed (per cent).
        numbers: Their numbers.
        best: The position of the chosen trial.
    """

    x: Sequence[float]
    y: Sequence[float]
    values: Sequence[float]
    numbers: Sequence[int]
    best: int


def search_surface(
    points: Points,
    axes: tuple[Axis, Axis],
    value_label: str,
    surface: Surface | None = None,
    baseline: tuple[float, float] | None = None,
    caption: str = "",
) -> Figure:
    """Draws the trials as numbered points; with a surface also its mean, the plateau's outline, and its uncertainty.

    Args:
        points: The trials.
        axes: The two parameters.
        value_label: The label of the objective, with its unit.
        surface: The surface that was fitted to the trials, in the unit of their values; None draws the points alone.
        baseline: Mean and standard deviation of scratch over seeds, in the same unit; the latter is NaN for one seed.
        caption: A line below the title, for instance why the plateau isn't trusted.
    """
    x, y, values = (np.array(column, float) for column in (points.x, points.y, points.values))
    figure, drawn = panels(7.6 if surface is None else 11.5, 5.2, 1 if surface is None else 2)
    low, high = colour_range(values)
    if surface is not None:
        low, high = min(low, max(float(surface.mean.min()), low)), max(high, float(surface.mean.max()))
        _draw_mean(drawn[0], surface, (low, high), baseline)
        _hatch(drawn[0], surface, (low, high))
        _draw_doubt(figure, drawn[1], surface, value_label)
    for axis in drawn:
        _prepare(axis, axes, x, y, surface)
    up = np.argsort(values, kind="stable")  # if points overlap, the better one lies on top
    size = 190 if len(values) <= 20 else 140
    scatter = drawn[0].scatter(
        x[up], y[up], size, values[up], cmap=COLOURS, vmin=low, vmax=high, edgecolors="white", zorder=3, clip_on=False
    )
    best = points.best
    drawn[0].scatter(x[best], y[best], 1.7 * size, facecolors="none", edgecolors=ORANGE, linewidths=2.6, zorder=5)
    _number_points(drawn[0], points, axes, (low + high) / 2)
    bar = figure.colorbar(scatter, ax=drawn[0], extend="min" if values.min() < low else "neither")
    bar.set_label(value_label)
    where = ", ".join(
        f"{a.label.partition(' (')[0]} {place:.3g}" for a, place in zip(axes, (x[best], y[best]), strict=True)
    )
    lines = [f"Ringed: trial {points.numbers[best]}, {where}: {values[best]:.2f}"]
    if baseline is not None:
        lines.append(_mark_baseline(bar, *baseline, low, high))
    if surface is not None and not surface.member.all():
        lines.append(HATCHED)
    if caption:
        lines.append(caption)
    drawn[0].set_title("\n".join(lines), fontsize=10, parse_math=False)
    return figure


def _draw_mean(axis: Axes, surface: Surface, limits: tuple[float, float], baseline: tuple[float, float] | None) -> None:
    low, high = limits
    from matplotlib.patheffects import AbstractPathEffect, withStroke

    axis.contourf(
        surface.x, surface.y, surface.mean, np.linspace(low, high, 15), vmin=low, vmax=high, cmap=COLOURS, extend="both"
    )
    if baseline is not None and surface.mean.min() < baseline[0] < surface.mean.max():
        line = axis.contour(surface.x, surface.y, surface.mean, [baseline[0]], colors=BLACK, linestyles="--")
        # The halo keeps black visible on the darkest colour of the surface.
        halo: list[AbstractPathEffect] = [withStroke(linewidth=3, foreground="white")]
        line.set_path_effects(halo)
        for label in axis.clabel(line, fmt="scratch", fontsize=9):
            label.set_path_effects(halo)
    _outline(axis, surface, "white", 4.0)
    _outline(axis, surface, ORANGE, 2.2)


def _draw_doubt(figure: Figure, axis: Axes, surface: Surface, value_label: str) -> None:
    # A lighter shade means more doubt, so that the well-known parts stand out.
    shades = axis.contourf(surface.x, surface.y, surface.sd, 10, cmap="Greys_r")
    _outline(axis, surface, ORANGE, 2.2)
    unit = "points" if value_label.endswith("%") else "the same unit"
    figure.colorbar(shades, ax=axis).set_label(f"standard deviation of the surface ({unit})")
    outlined = f"\n{DOUBT}" if 0 < surface.member.mean() < 1 else ""
    axis.set_title(f"How sure the surface is{outlined}", fontsize=10)


def _hatch(axis: Axes, surface: Surface, limits: tuple[float, float]) -> None:
    """Hatches what is ruled out."""
    if surface.member.all():
        return
    out = axis.contourf(
        surface.x, surface.y, (~surface.member).astype(float), [0.5, 1.5], colors="none", hatches=["//"]
    )
    out.set_edgecolor("white" if hatch_is_white(surface, limits) else BLACK)
    out.set_linewidth(0)


def hatch_is_white(surface: Surface, limits: tuple[float, float]) -> bool:
    """Returns whether what is ruled out is dark: it is, unless a low value is a good one."""
    return bool(surface.mean[~surface.member].mean() < sum(limits) / 2)


def _outline(axis: Axes, surface: Surface, colour: str, width: float) -> None:
    member = surface.member.astype(float)
    if 0 < member.mean() < 1:
        axis.contour(surface.x, surface.y, member, [0.5], colors=colour, linewidths=width, zorder=2)


def _prepare(axis: Axes, axes: tuple[Axis, Axis], x: Array, y: Array, surface: Surface | None) -> None:
    """Sets scales, limits and labels."""
    for name, spec, values, grid in (
        ("x", axes[0], x, None if surface is None else surface.x),
        ("y", axes[1], y, None if surface is None else surface.y),
    ):
        limits = padded(spec, values, grid)
        axis.set(**{f"{name}scale": "log" if spec.log else "linear", f"{name}lim": limits, f"{name}label": spec.label})
        if spec.log:
            plain_log_ticks(axis, name)


def padded(spec: Axis, values: Sequence[float] | Array, grid: Array | None) -> tuple[float, float]:
    """Returns the limits of an axis: those of the trials and of the grid, with a margin."""
    everything = np.asarray(values, float) if grid is None else np.concatenate([np.asarray(values, float), grid])
    low, high = float(everything.min()), float(everything.max())
    if spec.log:
        margin = (high / low) ** EDGE if grid is not None else max(1.2, math.sqrt(2 * low / high))
        return low / margin, high * margin
    margin = EDGE * (high - low) or 0.05
    return low - margin, high + margin


def colour_range(values: Array) -> tuple[float, float]:
    """Returns the range of the values, cut so that one that is far below leaves colours to the rest."""
    high, median = float(values.max()), float(np.median(values))
    low = max(float(values.min()), high - 4 * (high - median)) if high > median else float(values.min())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _number_points(axis: Axes, points: Points, axes: tuple[Axis, Axis], middle: float) -> None:
    """Writes each trial's number on its point, from the best down, unless it would cover another number."""
    values = np.array(points.values, float)
    order = [points.best, *(index for index in np.argsort(-values) if index != points.best)]
    columns = []
    for spec, coordinates in zip(axes, (points.x, points.y), strict=True):
        column = np.log(coordinates) if spec.log else np.array(coordinates, float)
        columns.append(column / max(np.ptp(column), 1e-9))
    places = np.stack(columns, axis=1)
    written: list[int] = []
    for index in order:
        if all(math.dist(places[index], places[other]) > 0.03 for other in written):
            axis.annotate(
                str(points.numbers[index]),
                (points.x[index], points.y[index]),
                ha="center",
                va="center",
                fontsize=7.5,
                color="black" if values[index] > middle else "white",
                zorder=6,
            )
            written.append(int(index))


def plain_log_ticks(axis: Axes, name: str) -> None:
    """Puts plain numbers (1, 2, 5, 10, 20) instead of powers of ten on the logarithmic "x" or "y" axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_xlim() if name == "x" else axis.get_ylim()
    scale = axis.xaxis if name == "x" else axis.yaxis
    scale.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7) if high / low < 200 else (1,)))
    scale.set_minor_locator(NullLocator())
    scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _mark_baseline(bar: Colorbar, mean: float, sd: float, low: float, high: float) -> str:
    """Marks scratch on the colour bar, if it lies inside; returns the title's line about it."""
    if low <= mean <= high:
        bar.ax.axhline(mean, color=BLACK, linestyle="--", linewidth=1.6)
    return f"scratch: {mean:.2f}" if math.isnan(sd) else f"scratch: {mean:.2f} ±{sd:.2f} over seeds"
