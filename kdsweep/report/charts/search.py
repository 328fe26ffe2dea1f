"""Interactive charts of the search; each takes what the static figure takes, and a note for each trial's tooltip."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kdsweep.report.charts.panels import (
    BLUE,
    COLOURS,
    GREEN,
    INK,
    ORANGE,
    PAGE,
    SOFT,
    Panel,
    Trace,
    axis,
    band_colour,
    escaped,
    numbers,
    panel,
)
from kdsweep.report.figures.search import sight
from kdsweep.report.figures.surface import DOUBT, HATCHED, colour_range, hatch_is_white, padded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kdsweep.analysis.plateau import Surface
    from kdsweep.report.figures.search import Course, Scale
    from kdsweep.report.figures.surface import Axis, Points

HATCH_STEP = 3  # grid points between two lines of the hatching


def history(course: Course, value_label: str, notes: Mapping[int, str]) -> list[Panel]:
    """Shows the objective of each trial in their order, the best so far, and the band within the noise of the best."""
    pairs = np.array(sorted(course.done), float).reshape(-1, 2)
    x, values = pairs.T
    best = np.maximum.accumulate(values) if course.maximise else np.minimum.accumulate(values)
    ends = [float(x[0]), float(max([x[-1], *course.pruned]))]
    traces: list[Trace] = []
    if course.noise is not None:
        low, high = best[-1] - course.noise, best[-1] + course.noise
        shared = {
            "x": ends,
            "mode": "lines",
            "line": {"width": 0, "color": ORANGE},
            "hoverinfo": "skip",
        }
        name = "one standard deviation of seeds about the best"
        traces.append({**shared, "y": numbers([low, low]), "showlegend": False})
        filled = {"fill": "tonexty", "fillcolor": band_colour(ORANGE), "name": name}
        traces.append({**shared, "y": numbers([high, high]), **filled})
    for level, colour, dash, name in (
        (course.fresh, GREEN, "dashdot", "chosen setting, mean of fresh seeds"),
        (course.baseline, INK, "dash", "scratch, mean"),
    ):
        if level is not None:
            line = {"color": colour, "dash": dash, "width": 1.5}
            traces.append(
                {
                    "x": ends,
                    "y": numbers([level, level]),
                    "mode": "lines",
                    "line": line,
                    "name": name,
                    "hoverinfo": "name+y",
                }
            )
    steps = {"color": ORANGE, "shape": "hv"}
    traces.append(
        {
            "x": numbers(x),
            "y": numbers(best),
            "mode": "lines",
            "line": steps,
            "name": "best so far",
            "hoverinfo": "skip",
        }
    )
    chosen = [int(number) == course.chosen for number in x]
    traces.append(
        {
            "x": numbers(x),
            "y": numbers(values),
            "mode": "markers",
            "name": "trial (ringed: the chosen one)",
            "marker": {
                "size": [13 if own else 9 for own in chosen],
                "color": BLUE,
                "line": {"width": [3 if own else 0 for own in chosen], "color": ORANGE},
            },
            **_noted([int(number) for number in x], notes),
        }
    )
    # Beside few trials plotly.js would put ticks between two whole numbers.
    dense = {"dtick": 1} if len(x) < 10 else {}
    down: dict[str, Any] = {}
    limits = sight(course)
    if limits is not None:
        down["range"] = numbers(limits)
    if course.pruned:
        floor = limits[0] if limits is not None else float(values.min())
        traces.append(
            {
                "x": list(course.pruned),
                "y": numbers([floor] * len(course.pruned)),
                "mode": "markers",
                "name": "pruned",
                "marker": {"symbol": "x", "color": SOFT, "size": 8},
                **_noted(course.pruned, notes),
            }
        )
    numbered = axis("trial", tickformat="d", **dense)
    return [panel(traces, numbered, axis(value_label, **down), hovermode="closest", height=430)]


def search_surface(
    points: Points,
    axes: tuple[Axis, Axis],
    value_label: str,
    surface: Surface | None,
    baseline: tuple[float, float] | None,
    caption: str,
    notes: Mapping[int, str],
) -> list[Panel]:
    """Shows the trials over two parameters; with a surface also its mean, what is ruled out, and its uncertainty."""
    values = np.array(points.values, float)
    low, high = colour_range(values)
    if surface is not None:
        low, high = min(low, max(float(surface.mean.min()), low)), max(high, float(surface.mean.max()))
    colours = {"colorscale": COLOURS, "cmin": low, "cmax": high}
    up = np.argsort(values, kind="stable")
    middle = (low + high) / 2
    trials = {
        "x": numbers(np.array(points.x, float)[up]),
        "y": numbers(np.array(points.y, float)[up]),
        "mode": "markers+text",
        "showlegend": False,
        "text": [str(points.numbers[i]) for i in up],
        "textfont": {"size": 10, "color": ["#000" if values[i] > middle else "#fff" for i in up]},
        "marker": {
            **colours,
            "size": 20,
            "color": numbers(values[up]),
            "showscale": surface is None,
            "colorbar": {"title": {"text": escaped(value_label), "side": "right"}},
            "line": {
                "color": [ORANGE if i == points.best else "#fff" for i in up],
                "width": [4 if i == points.best else 1 for i in up],
            },
        },
        **_noted([points.numbers[i] for i in up], notes, text=False),
    }
    across, along = (
        axis(spec.label, type="log" if spec.log else "linear", range=_range(spec, own, grid), **_ticks(spec))
        for spec, own, grid in (
            (axes[0], points.x, None if surface is None else surface.x),
            (axes[1], points.y, None if surface is None else surface.y),
        )
    )
    title = f"Ringed: trial {points.numbers[points.best]}, {values[points.best]:.2f}"
    if baseline is not None:
        title += f"; scratch {baseline[0]:.2f}"
    if caption:
        title += f"\n{caption}"
    look: dict[str, Any] = {"hovermode": "closest", "height": 470}
    if surface is None:
        return [panel([trials], across, along, title, **look)]
    grid = {"x": numbers(surface.x), "y": numbers(surface.y), "type": "contour"}
    bar = {"title": {"text": escaped(value_label), "side": "right"}, "thickness": 12}
    mean = {
        **grid,
        "z": [numbers(row, 4) for row in surface.mean],
        "zmin": low,
        "zmax": high,
        "zauto": False,
        "colorscale": COLOURS,
        "contours": {"coloring": "heatmap"},
        "line": {"width": 0},
        "colorbar": bar,
        "hovertemplate": "%{x:.3g}, %{y:.3g}: %{z:.2f}<extra>surface</extra>",
    }
    drawn = [mean]
    if baseline is not None and surface.mean.min() < baseline[0] < surface.mean.max():
        drawn.append(_contour(surface, surface.mean, baseline[0], "#fff", "scratch", 2, "dash"))
    ruled = not surface.member.all()
    if ruled:
        hatch = "rgba(255,255,255,.75)" if hatch_is_white(surface, (low, high)) else "rgba(0,0,0,.6)"
        drawn.append(_hatching(surface, hatch))
        drawn.append(_contour(surface, surface.member.astype(float), 0.5, ORANGE, "outline", 3))
        title += f"\n{HATCHED}"
    unit = "points" if value_label.endswith("%") else "the same unit"
    doubt = {
        **grid,
        "z": [numbers(row, 3) for row in surface.sd],
        "colorscale": "Greys",
        "contours": {"coloring": "heatmap"},
        "line": {"width": 0},
        "colorbar": {"title": {"text": f"standard deviation ({unit})", "side": "right"}, "thickness": 12},
        "hovertemplate": "%{x:.3g}, %{y:.3g}: sd %{z:.2g}<extra></extra>",
    }
    sure = [doubt]
    if ruled:
        sure.append(_contour(surface, surface.member.astype(float), 0.5, ORANGE, "outline", 3))
    head = f"How sure the surface is\n{DOUBT}" if ruled else "How sure the surface is"
    return [panel([*drawn, trials], across, along, title, **look), panel(sure, across, along, head, **look)]


def _contour(
    surface: Surface, heights: Any, level: float, colour: str, name: str, width: float, dash: str = "solid"
) -> Trace:
    return {
        "x": numbers(surface.x),
        "y": numbers(surface.y),
        "z": [numbers(row, 4) for row in heights],
        "type": "contour",
        "contours": {"coloring": "none", "start": level, "end": level, "size": 1},
        "line": {"color": colour, "width": width, "dash": dash},
        "showscale": False,
        "showlegend": False,
        "hoverinfo": "skip",
        "name": name,
    }


def _hatching(surface: Surface, colour: str) -> Trace:
    """Returns diagonal lines over the grid points that are ruled out."""
    x: list[float | None] = []
    y: list[float | None] = []
    out = ~surface.member  # (y, x)
    size = len(surface.x)
    for diagonal in range(0, 2 * size - 1, HATCH_STEP):
        drawing = False
        for column in range(max(0, diagonal - size + 1), min(diagonal, size - 1) + 1):
            row = diagonal - column
            if out[row, column]:
                x.append(float(surface.x[column]))
                y.append(float(surface.y[row]))
                drawing = True
            elif drawing:
                x.append(None)
                y.append(None)
                drawing = False
        x.append(None)
        y.append(None)
    line = {"color": colour, "width": 1}
    rounded = [[None if v is None else float(f"{v:.4g}") for v in column] for column in (x, y)]
    return {"x": rounded[0], "y": rounded[1], "mode": "lines", "line": line, "hoverinfo": "skip", "showlegend": False}


def _range(spec: Axis, values: Sequence[float], grid: Any) -> list[float | None]:
    low, high = padded(spec, values, grid)
    return numbers([math.log10(low), math.log10(high)] if spec.log else [low, high])


def _ticks(spec: Axis) -> dict[str, Any]:
    # plotly.js would write 10.0000, and powers of ten alone over two decades.
    marks = [digit * 10.0**power for power in range(-6, 5) for digit in (1, 2, 3, 5, 7)]
    return {"tickvals": marks, "ticktext": [f"{mark:g}" for mark in marks]} if spec.log else {}


def parallel(
    columns: Sequence[tuple[Scale, Sequence[str]]],
    values: Sequence[float],
    best: int,
    label: str,
    trials: Sequence[int],
    notes: Mapping[int, str],
) -> list[Panel]:
    """Shows each trial as a line across its parameters to its objective; its tooltip is at every axis."""
    from kdsweep.report.figures.search import Scale, shade

    every = [*columns, (Scale(label), [str(value) for value in values])]
    placed = [scale.place(texts) for scale, texts in every]
    rows = np.stack([places for places, _ in placed], axis=1)  # (trials, axes)
    at = list(range(len(every)))
    traces: list[Trace] = []
    for index in sorted(range(len(rows)), key=lambda i: (i == best, rows[i, -1])):
        colour = ORANGE if index == best else shade(float(rows[index, -1]))
        traces.append(
            {
                "x": at,
                "y": numbers(rows[index]),
                "mode": "lines+markers",
                "line": {"color": colour, "width": 4 if index == best else 1.5},
                "marker": {"size": 5},
                "opacity": 1 if index == best else 0.8,
                "showlegend": False,
                **_noted([trials[index]] * len(at), notes),
            }
        )
    ticks = [
        {"x": place, "y": height, "text": escaped(text), "showarrow": False, "xanchor": "left", "xshift": 4}
        | {"font": {"size": 11}, "bgcolor": PAGE, "opacity": 0.85}
        for place, (_, marks) in enumerate(placed)
        for height, text in marks
    ]
    names = [_broken(scale.label) for scale, _ in every]
    across = {"tickvals": at, "ticktext": names, "range": [-0.2, len(at) - 0.5], "zeroline": False}
    bare = {"visible": False, "range": [-0.05, 1.05]}
    return [panel(traces, across, bare, "orange: the chosen trial", 430, annotations=ticks, hovermode="closest")]


def _broken(label: str) -> str:
    """Breaks a label of several words into two lines, for an axis that has little room."""
    words = label.split()
    half = (len(words) + 1) // 2
    return "<br>".join(escaped(" ".join(part)) for part in (words[:half], words[half:]) if part)


def pareto_front(
    points: Sequence[tuple[float, float]],
    numbers_: Sequence[int],
    front: Sequence[int],
    chosen: int | None,
    labels: tuple[str, str],
    notes: Mapping[int, str],
) -> list[Panel]:
    """Shows the trials by two objectives; a line joins those that no other trial beats in both."""
    x, y = np.array(points, float).T
    on = sorted(front, key=lambda index: (x[index], y[index]))
    off = [index for index in range(len(points)) if index not in on]
    ring = [index == chosen for index in on]
    traces = [
        {
            "x": numbers(x[off]),
            "y": numbers(y[off]),
            "mode": "markers",
            "name": "trial",
            "marker": {"color": SOFT, "size": 8},
            **_noted([numbers_[i] for i in off], notes),
        },
        {
            "x": numbers(x[on]),
            "y": numbers(y[on]),
            "mode": "lines+markers",
            "name": "beaten by no other in every objective (ringed: chosen)",
            "line": {"color": BLUE, "width": 1},
            "marker": {
                "color": BLUE,
                "size": 11,
                "line": {"color": ORANGE, "width": [3 if own else 0 for own in ring]},
            },
            **_noted([numbers_[i] for i in on], notes),
        },
    ]
    return [panel(traces, labels[0], labels[1], hovermode="closest", height=430)]


def _noted(trials: Sequence[int], notes: Mapping[int, str], text: bool = True) -> dict[str, Any]:
    """Returns the part of a trace that gives each point the note of its trial as its tooltip."""
    own = [escaped(notes[number]) for number in trials]
    return {
        "text" if text else "customdata": own,
        "hovertemplate": f"%{{{'text' if text else 'customdata'}}}<extra></extra>",
    }
