"""What all interactive charts share: a panel is a description for plotly.js, and colours follow the page's theme.

A colour is written as the name of a CSS variable, `var(--blue)`; the page's script puts the variable's value there, and
again when the reader's system changes between light and dark.
"""

from __future__ import annotations

import html
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

INK, SOFT, LINE, PAGE = "var(--ink)", "var(--soft)", "var(--line)", "var(--page)"
BLUE, ORANGE, GREEN, PURPLE = "var(--blue)", "var(--orange)", "var(--green)", "var(--purple)"
COLOURS = "Viridis"

# How the name of an arm starts -> its colour and line style, as in the static figures.
ARM_STYLES = {"teacher": (INK, "dash"), "scratch": (BLUE, "solid"), "label": (GREEN, "dashdot")}

Trace = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One panel of a figure; panels stand beside each other where there is room.

    Attributes:
        title: Lines above it, as they are.
        traces, layout: What plotly.js draws, JSON-able. The page's script adds fonts, colours and margins.
        height: The height in pixels; the width is the page's.
    """

    title: str
    traces: Sequence[Trace]
    layout: Mapping[str, Any]
    height: int = 380

    def jsonable(self) -> dict[str, Any]:
        """Returns the panel as the page's script takes it."""
        return {"data": list(self.traces), "layout": dict(self.layout), "height": self.height}


def panel(
    traces: Iterable[Trace],
    x: str | Mapping[str, Any],
    y: str | Mapping[str, Any],
    title: str = "",
    height: int = 380,
    **layout: Any,
) -> Panel:
    """Makes a panel; `x` and `y` are the axes' labels, or their descriptions for plotly.js."""
    axes = {name: axis(spec) if isinstance(spec, str) else dict(spec) for name, spec in (("xaxis", x), ("yaxis", y))}
    return Panel(title, list(traces), {**axes, **layout}, height)


def axis(label: str, **more: Any) -> dict[str, Any]:
    """Returns the description of an axis with a label."""
    return {"title": {"text": escaped(label)}, **more}


def escaped(text: str) -> str:
    """Returns a text that comes from outside, such that plotly.js shows it and doesn't read markup in it."""
    return html.escape(text, quote=False).replace("\n", "<br>")


def arm_style(arm: str) -> tuple[str, str]:
    """Returns the colour and the line style of an arm, chosen by how its name begins."""
    if arm.startswith("distill"):
        return ORANGE, "solid"
    return next((style for name, style in ARM_STYLES.items() if arm.startswith(name)), (PURPLE, "solid"))


def arm_styles(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns the style of each arm of a figure; contenders of a contest, which have none, get one by their place."""
    others = itertools.product(("solid", "dash", "dot"), (PURPLE, BLUE, ORANGE, GREEN, SOFT))
    found = {}
    for arm in arms:
        known = arm.startswith(("distill", *ARM_STYLES))
        dash, colour = ("", "") if known else next(others, ("solid", PURPLE))
        found[arm] = arm_style(arm) if known else (colour, dash)
    return found


def numbers(values: Iterable[float], digits: int = 5) -> list[float | None]:
    """Returns values rounded to significant digits, which keeps the page small; None stands for NaN."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in np.asarray(list(values), float)]


def band(
    x: Sequence[float | None], low: Iterable[float], high: Iterable[float], colour: str, group: str
) -> list[Trace]:
    """Returns the two traces of a band between two lines; it is switched on and off with the group's line."""
    shared = {"x": x, "mode": "lines", "line": {"width": 0, "color": colour}, "hoverinfo": "skip", "showlegend": False}
    shared["legendgroup"] = group
    return [
        {**shared, "y": numbers(low)},
        {**shared, "y": numbers(high), "fill": "tonexty", "fillcolor": band_colour(colour)},
    ]


def band_colour(colour: str) -> str:
    """Returns the transparent form of a colour of the page: var(--blue-band) of var(--blue)."""
    return colour.replace(")", "-band)")
