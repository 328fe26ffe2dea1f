"""A report as the description that MLflow's UI shows of the study's run, in Markdown."""

from __future__ import annotations

from kdsweep import report_tables
from kdsweep.summary import Report

# By its last line a description is known to be ours; one that lacks it stays as its author wrote it.
SIGNATURE = "*By kdsweep-report; figures and tables: `report/report.html` among the artifacts.*"
# MLflow takes no longer tag.
MAX_CHARACTERS = 8000


def note(report: Report) -> str:
    """The verdict, the arms' table and the findings; of these as many as there is room for."""
    parts = [f"**{report.headline}**"]
    if report.arms:
        parts.append(_table(report_tables.arms(report)))
    room = MAX_CHARACTERS - len("\n\n".join([*parts, "", SIGNATURE]))
    lines = []
    for sentence in (*report.findings, *report.missing):
        room -= len(f"- {sentence}\n")
        if room < 0:
            break
        lines.append(f"- {sentence}")
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else []), SIGNATURE])


def _table(table: report_tables.Table) -> str:
    headings = (heading.replace("-\n", "").replace("\n", " ").strip() for heading in table.headings)
    alignment = ("---" if index == 0 and table.named else "---:" for index, _ in enumerate(table.headings))
    rows = [f"| {' | '.join(cells)} |" for cells in (headings, alignment, *table.rows)]
    return "\n".join([*rows, "", table.caption]).replace("*", r"\*")
