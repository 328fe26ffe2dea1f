"""Renders a report as one HTML file: its tables, its interactive figures, and the library that draws them.

It loads nothing, so it works without a network. The library is plotly.js, whose licence stands in its first lines and
beside it in `assets/`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import kdsweep
from kdsweep.report import tables
from kdsweep.report.conditions import conditions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kdsweep.analysis.findings import Report
    from kdsweep.report.figures.all_figures import Shown

TEMPLATE = "report.html.jinja"
ASSETS = Path(__file__).with_name("assets")
LIBRARY = ASSETS / "plotly-cartesian.min.js"


def render(
    report: Report, figures: Sequence[Shown], links: tables.Links | None = None, reload_seconds: int | None = None
) -> str:
    """Renders the page.

    Args:
        report: The report.
        figures: The interactive figures, as `kdsweep.report.figures.all_figures.charts` yields them.
        links: Where the runs are shown; None if no server shows them.
        reload_seconds: How often an open page loads itself again, while its study runs; None for never.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).with_name("templates")
    # A study's name and parameters come from outside, so everything is escaped.
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    main = report.verdict.of("distill", "scratch")
    panels = {figure.name: [panel.jsonable() for panel in figure.panels] for figure in figures}
    # Without figures the library has nothing to do.
    library = LIBRARY.read_text(encoding="utf-8") if panels else ""
    return environment.get_template(TEMPLATE).render(
        study=report.study.parent,
        reload_seconds=reload_seconds,
        heading=list(tables.heading(report.study)),
        headline=report.headline,
        outcome="unknown" if main is None else main.outcome.replace(" ", "-"),
        conditions=conditions(report),
        comparisons=tables.comparisons(report),
        arms=tables.arms(report),
        classes=tables.classes(report),
        runs=tables.runs(report, links),
        front=tables.trials(report, report.front, links),
        trials=tables.trials(report, report.trials, links),
        pruned=tables.pruned(report),
        findings=report.findings,
        missing=report.missing,
        figures=figures,
        panels=Markup(embedded(panels)),
        library=Markup(library),
        script=Markup((ASSETS / "report.js").read_text(encoding="utf-8")),
        version=kdsweep.__version__,
    )


def embedded(value: object) -> str:
    """Returns a value as JSON that can't end the script element that holds it, whatever texts it has."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
