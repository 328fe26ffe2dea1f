"""Renders a report in Markdown, as the description of the study's run in MLflow's UI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsweep.report import tables

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kdsweep.analysis.findings import Report

WHOLE = "*By kdsweep-report; figures and tables: `report/report.html` among the artifacts.*"
# MLflow accepts no longer tag.
MAX_CHARACTERS = 8000


def note(report: Report) -> str:
    """Returns the verdict, the table of arms and the findings; its end says how many findings had no room."""
    parts = [f"**{report.headline}**"]
    if report.arms:
        parts.append(_table(tables.arms(report)))
    sentences = [f"- {sentence}" for sentence in (*report.findings, *report.missing)]
    return "\n\n".join(_fitting(parts, sentences))


def _fitting(parts: list[str], sentences: list[str]) -> Iterable[str]:
    """Yields the parts, then the sentences as one part; what would make the text too long is left out."""
    room = MAX_CHARACTERS - len(WHOLE) - 100
    for part in parts:
        if len(part) + 2 <= room:
            room -= len(part) + 2
            yield part
    shown = []
    for sentence in sentences:
        if len(sentence) + 1 <= room:
            room -= len(sentence) + 1
            shown.append(sentence)
    left_out = len(sentences) - len(shown)
    more = [f"- {left_out} more in the report"] if left_out else []
    if shown or more:
        yield "\n".join([*shown, *more])
    yield WHOLE


def _table(table: tables.Table) -> str:
    headings = [heading.replace("-\n", "").replace("\n", " ").strip() for heading in table.headings]
    alignment = ["---" if index == 0 and table.named else "---:" for index, _ in enumerate(headings)]
    rows = [headings, alignment, *([_escaped(cell) for cell in row] for row in table.rows)]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", _escaped(table.caption)])


def _escaped(text: str) -> str:
    """Escapes the characters that Markdown, or HTML in it, would take for markup."""
    for mark in "\\*_|<`":
        text = text.replace(mark, f"\\{mark}")
    return text
