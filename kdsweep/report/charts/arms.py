"""Interactive charts that compare the arms. Each takes what the static figure of the same name takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kdsweep.report.charts.panels import (
    INK,
    ORANGE,
    SOFT,
    Panel,
    Trace,
    arm_style,
    arm_styles,
    axis,
    band,
    escaped,
    numbers,
    panel,
)
from kdsweep.report.figures.arms import errors, pooled, reach_start, reached
from kdsweep.report.figures.curves import last_part, over_runs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kdsweep.report.figures.arms import Interval
    from kdsweep.report.figures.curves import Curve

LABEL = 18  # letters in a line of an axis's label; a phone has no room for more


def differences(rows: Sequence[Interval], label: str, title: str) -> list[Panel]:
    """Shows paired differences with their pairs and intervals, about a line at zero."""
    places = list(range(len(rows)))[::-1]
    traces: list[Trace] = []
    for clear, words in ((True, "differs beyond noise"), (False, "not distinguishable")):
        own = [(place, row) for place, row in zip(places, rows, strict=True) if row.clear is clear]
        if not own:
            continue
        colour = ORANGE if clear else SOFT
        pairs = [(value, place - 0.25, row.label) for place, row in own for value in row.pairs]
        traces.append(
            {
                "x": numbers(value for value, _, _ in pairs),
                "y": [place for _, place, _ in pairs],
                "text": [escaped(name) for _, _, name in pairs],
                "hovertemplate": "%{text}<br>one pair: %{x:+.2f} points<extra></extra>",
                "mode": "markers",
                "marker": {"color": colour, "size": 5, "opacity": 0.7},
                "showlegend": False,
            }
        )
        margins = [0 if math.isnan(row.high) else row.high - row.mean for _, row in own]
        limits = ["" if math.isnan(r.low) else f"<br>95% interval {r.low:+.2f} to {r.high:+.2f}" for _, r in own]
        traces.append(
            {
                "x": numbers(row.mean for _, row in own),
                "y": [place for place, _ in own],
                "text": [
                    f"{escaped(row.label)}: {row.mean:+.2f} points{limit}"
                    for (_, row), limit in zip(own, limits, strict=True)
                ],
                "hovertemplate": "%{text}<extra></extra>",
                "error_x": {"type": "data", "array": numbers(margins), "color": colour, "thickness": 3, "width": 0},
                "mode": "markers",
                "marker": {"color": colour, "size": 11},
                "name": words,
            }
        )
    ticks = {"tickvals": places, "ticktext": [_lines(row.label) for row in rows], "zeroline": False}
    across = axis(label, zeroline=True, zerolinecolor=INK, zerolinewidth=1)
    head = f"{title}; small dots: pairs of runs with one seed"
    return [panel(traces, across, ticks, head, 150 + 46 * len(rows), hovermode="closest")]


def _lines(label: str) -> str:
    """Breaks a label before its last words, if it is long."""
    if len(label) <= LABEL or " - " not in label:
        return escaped(label)
    first, _, second = label.partition(" - ")
    return f"{escaped(first)} -<br>{escaped(second)}"


def arm_curves(curves: Mapping[str, Sequence[Curve]], ylabel: str, target: float | None = None) -> list[Panel]:
    """Shows accuracy against the epoch; a second panel enlarges the last tenth of the epochs, where arms differ."""
    last = max((epoch for runs in curves.values() for curve in runs for epoch, _ in curve), default=1)
    traces: list[Trace] = []
    late: list[float] = []
    start, styles = last_part(last), arm_styles(curves)
    for arm, runs in curves.items():
        epochs, low, mean, high = over_runs(runs)
        colour, dash = styles[arm]
        line = {"color": colour, "dash": dash, "width": 2}
        name = arm if len(runs) == 1 else f"{arm}, mean of {len(runs)} runs"
        if arm.startswith("teacher"):
            traces.append(_level(100 * runs[-1][-1][1], last, name, line))
            continue
        x = numbers(epochs)
        if len(runs) > 1:
            traces += band(x, low, high, colour, arm)
        traces.append(
            {
                "x": x,
                "y": numbers(mean),
                "mode": "lines+markers" if len(x) <= 15 else "lines",
                "name": escaped(name),
                "legendgroup": arm,
                "line": line,
                "text": [f"{a:.2f} to {b:.2f}" for a, b in zip(low, high, strict=True)],
                "hovertemplate": "%{y:.2f}%"
                + (" (%{text})" if len(runs) > 1 else "")
                + f"<extra>{escaped(arm)}</extra>",
            }
        )
        if start is not None:
            late += [*low[epochs >= start], *high[epochs >= start]]
    if target is not None:
        traces.append(_level(100 * target, last, f"threshold {target:.1%}", {"color": SOFT, "dash": "dot", "width": 1}))
    label = f"{ylabel} (%)"
    shown: dict[str, Any] = {"hovermode": "x unified"}
    if start is None:
        return [panel(traces, axis("epoch", dtick=1), label, **shown)]
    margin = max(0.08 * (max(late) - min(late)), 0.1)
    end = axis("epoch", range=[start, last], dtick=max(1, round((last - start) / 6)))
    near = axis(label, range=[min(late) - margin, max(late) + margin])
    return [
        panel(traces, "epoch", label, "all epochs", **shown),
        panel(traces, end, near, f"epochs {math.ceil(start)} to {last}", **shown),
    ]


def _level(value: float, last: float, name: str, line: Mapping[str, Any]) -> Trace:
    return {
        "x": [1, last] if last > 1 else [0.5, 1.5],
        "y": numbers([value, value]),
        "mode": "lines",
        "name": escaped(name),
        "line": dict(line),
        "hovertemplate": "%{y:.2f}%" + f"<extra>{escaped(name)}</extra>",
    }


def reach(arms: Mapping[str, Sequence[tuple[Curve, Curve]]]) -> list[Panel]:
    """Shows the epochs, and the seconds if they are known, until an arm's runs reach an accuracy."""
    found = {arm: reached(runs) for arm, runs in arms.items()}
    start = reach_start([levels for levels, *_ in found.values()])
    shown, styles = [], arm_styles(found)
    for place, label in ((1, "epochs"), (2, "seconds of training")):
        traces: list[Trace] = []
        for arm, each in found.items():
            levels, rows = each[0], each[place]
            if not rows.size or np.isnan(rows).any():
                continue
            colour, dash = styles[arm]
            x = numbers(levels)
            if len(rows) > 1:
                traces += band(x, rows.min(0), rows.max(0), colour, arm)
            traces.append(
                {
                    "x": x,
                    "y": numbers(rows.mean(0)),
                    "mode": "lines",
                    "line": {"color": colour, "dash": dash, "width": 2},
                    "name": escaped(arm),
                    "legendgroup": arm,
                    "hovertemplate": "%{x:.1f}% after %{y:.1f} " + label.split()[0] + f"<extra>{escaped(arm)}</extra>",
                }
            )
        if traces:
            top = max(float(levels[-1]) for levels, *_ in found.values())
            across = axis("validation accuracy reached (%)", range=[start, top])
            shown.append(panel(traces, across, axis(label, rangemode="tozero"), hovermode="closest"))
    return shown


def reliability(arms: Mapping[str, Sequence[Sequence[Mapping[str, float | None]]]]) -> list[Panel]:
    """Shows how often an arm is right against how sure it is, on test; beside it, how many pictures are so sure."""
    diagonal = {
        "x": [0, 100],
        "y": [0, 100],
        "mode": "lines",
        "line": {"color": SOFT, "dash": "dot"},
        "name": "as sure as right",
        "hoverinfo": "skip",
    }
    right, sizes = [diagonal], []
    for arm, diagrams in arms.items():
        colour, dash = arm_style(arm)
        count, confidence, accuracy = pooled(diagrams)
        error, perfect = (float(np.mean(each)) for each in zip(*map(errors, diagrams), strict=True))
        line = {"color": colour, "dash": dash}
        shared = {"x": numbers(confidence), "mode": "lines+markers", "line": line, "legendgroup": arm}
        right.append(
            {
                **shared,
                "y": numbers(accuracy),
                "marker": {"size": numbers(5 + 12 * np.sqrt(count / count.max())), "color": colour},
                "text": [f"{int(n):,}" for n in count],
                "name": f"{escaped(arm)} (error {error:.1f}%, if perfect {perfect:.1f}%)",
                "hovertemplate": "sure %{x:.1f}%, right %{y:.1f}%, %{text} pictures" + f"<extra>{escaped(arm)}</extra>",
            }
        )
        sizes.append(
            {
                **shared,
                "y": numbers(100 * count / count.sum()),
                "name": escaped(arm),
                "hovertemplate": "sure %{x:.1f}%: %{y:.1f}% of the pictures" + f"<extra>{escaped(arm)}</extra>",
            }
        )
    return [
        panel(right, "confidence (%)", "accuracy (%)", hovermode="closest"),
        panel(sizes, "confidence (%)", "share of the test pictures (%)", hovermode="closest"),
    ]
