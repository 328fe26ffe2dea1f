"""Interactive charts of a contest under several conditions. They take what the static figure takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsweep.report.charts.panels import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SOFT,
    Panel,
    Trace,
    axis,
    band,
    escaped,
    numbers,
    panel,
)
from kdsweep.report.figures.across import is_shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kdsweep.report.figures.across import Place, Saving

STYLES = (
    *((BLUE, "solid"), (GREEN, "dashdot"), (ORANGE, "solid"), (PURPLE, "dash"), (INK, "dot")),
    *((BLUE, "dash"), (ORANGE, "dash")),
)


def across(
    arms: Mapping[str, Sequence[Place]],
    label: str,
    numeric: bool,
    savings: Mapping[str, Sequence[Saving]],
    reference: str,
) -> list[Panel]:
    """Shows accuracy under each condition, and beside it what the reference needs for the same accuracy."""
    traces: list[Trace] = []
    for index, (name, places) in enumerate(arms.items()):
        colour, dash = STYLES[index % len(STYLES)]
        x = numbers(place.x for place in places)
        if numeric and places[0].n > 1:
            traces += band(x, (p.low for p in places), (p.high for p in places), colour, name)
        traces.append(
            {
                "x": x,
                "y": numbers(place.mean for place in places),
                "mode": "lines+markers" if numeric else "markers",
                "name": escaped(name),
                "legendgroup": name,
                "line": {"color": colour, "dash": dash, "width": 2},
                "marker": {"color": colour, "size": 7},
                "text": [
                    f"{escaped(place.label)}: {place.mean:.2f}% ({place.low:.2f} to {place.high:.2f}, {place.n} runs)"
                    for place in places
                ],
                "hovertemplate": "%{text}" + f"<extra>{escaped(name)}</extra>",
            }
        )
    ticks = {place.x: escaped(place.label) for places in arms.values() for place in places}
    scale = {"tickvals": list(ticks), "ticktext": list(ticks.values()), **({"type": "log"} if numeric else {})}
    title = "band: lowest to highest run" if numeric else ""
    shown = [panel(traces, axis(label, **scale), "test accuracy (%)", title, hovermode="closest")]
    known = {name: [point for point in points if is_shown(point)] for name, points in savings.items()}
    if any(known.values()):
        shown.append(_savings(known, list(arms), label, reference, scale, (min(ticks), max(ticks))))
    return shown


def _savings(
    savings: Mapping[str, Sequence[Saving]],
    names: Sequence[str],
    label: str,
    reference: str,
    scale: Mapping[str, object],
    ends: tuple[float, float],
) -> Panel:
    diagonal: Trace = {
        "x": list(ends),
        "y": list(ends),
        "mode": "lines",
        "line": {"color": SOFT, "dash": "dot"},
        "name": "nothing saved",
        "hoverinfo": "skip",
    }
    traces = [diagonal]
    for name, points in savings.items():
        if not points:
            continue
        colour, _ = STYLES[names.index(name) % len(STYLES)]
        lows = [0 if math.isnan(p.low) else p.equals - max(p.low, ends[0]) for p in points]
        highs = [0 if math.isnan(p.high) else min(p.high, ends[1]) - p.equals for p in points]
        traces.append(
            {
                "x": numbers(p.amount for p in points),
                "y": numbers(p.equals for p in points),
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": numbers(max(high, 0) for high in highs),
                    "arrayminus": numbers(max(low, 0) for low in lows),
                    "color": colour,
                },
                "mode": "markers",
                "marker": {"color": colour, "size": 8},
                "name": escaped(name),
                "hovertemplate": f"{escaped(name)} with %{{x:,.4g}} equals %{{y:,.4g}}<extra></extra>",
            }
        )
    across_, up = axis(f"{label} of the other", **scale), axis(f"{label} that {reference} needs", **scale)
    return panel(traces, across_, up, "for the same accuracy (95% interval)", hovermode="closest")
