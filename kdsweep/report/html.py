"""Renders a report as one HTML file, which contains its figures and needs neither network nor scripts."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

import kdsweep
from kdsweep.report import tables
from kdsweep.report.figures.all_figures import CAPTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kdsweep.analysis.findings import Report

TEMPLATE = "report.html.jinja"


def render(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Renders the page.

    Args:
        report: The report.
        pictures: File name, as in `kdsweep.report.figures.all_figures.CAPTIONS` -> the bytes of the PNG file.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

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
    figures = [
        {"title": CAPTIONS[name], "name": name, "data": base64.b64encode(data).decode("ascii")}
        for name, data in pictures.items()
    ]
    return environment.get_template(TEMPLATE).render(
        study=report.study.parent,
        heading=list(tables.heading(report.study)),
        headline=report.headline,
        outcome="unknown" if main is None else main.outcome.replace(" ", "-"),
        comparisons=tables.comparisons(report),
        arms=tables.arms(report),
        front=tables.trials(report, report.front),
        trials=tables.trials(report, report.trials),
        pruned=tables.pruned(report),
        findings=report.findings,
        missing=report.missing,
        figures=figures,
        version=kdsweep.__version__,
    )
