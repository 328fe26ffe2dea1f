"""Prints a report in the terminal: first the verdict, then the numbers that it rests on."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from kdsweep.report import tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import JustifyMethod

    from kdsweep.analysis.findings import Report
    from kdsweep.tracking.run_records import RunRecord

TRIALS_SHOWN = 10
WIDTH = 100  # characters per line, if the output is no terminal


def show(report: Report) -> None:
    """Prints a report to the standard output."""
    console = _console()
    study = report.study
    status = "" if study.parent.status == "FINISHED" else f" ({study.parent.status.lower()})"
    console.print(f"Study {study.parent.name}{status}", style="bold")
    for line in tables.heading(study):
        console.print(line)
    console.print(f"\n{report.headline}\n", style="bold")
    if report.arms:
        console.print(_arms(report, narrow=console.width < WIDTH))
        console.print()
    sentences = Table.grid(padding=(0, 1))
    for sentence in (*report.findings, *report.missing):
        sentences.add_row("-", sentence)
    console.print(sentences)
    _print_trials(console, report)
    if report.files:
        attached = ", and attached to the study's run in MLflow under report/" if report.attached else ""
        console.print(f"\nWritten{attached}:")
        for path in report.files:
            console.print(f"  {path}", soft_wrap=True)


def show_line(text: str) -> None:
    """Prints one line below a report, however long it is."""
    console = _console()
    console.print()
    console.print(text, soft_wrap=True)


def show_list(runs: Sequence[RunRecord]) -> None:
    """Prints what runs there are, in their order: studies and grids with the number of their runs, and single runs."""
    console = _console()
    texts = tables.listed(runs)
    if texts.rows:
        console.print(_table(texts, texts.caption, justify="left"))
    else:
        console.print("There are no runs yet. `kdsweep` makes one, and `kdsweep sweep=alpha_tau` a study.")


def _console() -> Console:
    """Returns a console on the standard output. Names are printed as they are, even if they look like markup."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the output's encoding lacks becomes a question mark: a study must not end in an exception.
        sys.stdout.reconfigure(errors="replace")
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    return console


def _arms(report: Report, narrow: bool) -> Table:
    texts = tables.arms(report)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, caption_justify="left")
    table.caption = texts.caption
    for index, heading in enumerate(texts.headings):
        # An arm's name may be broken into lines, a number may not.
        table.add_column(heading, justify="right" if index else "left", min_width=None if index else 9)
    for row in texts.rows:
        table.add_row(*row[:2], *(cell.replace(" ", "\n", 1) if narrow else cell for cell in row[2:]))
    return table


def _print_trials(console: Console, report: Report) -> None:
    if report.front:
        console.print()
        console.print(_table(tables.trials(report, report.front), "Pareto set: beaten by no other trial"))
    if not report.trials:
        return
    shown = report.trials[:TRIALS_SHOWN]
    title = "Trials, best first"
    if len(shown) < len(report.trials):
        title = f"Trials, the best {len(shown)} of {len(report.trials)}"
    console.print()
    console.print(_table(tables.trials(report, shown), title))


def _table(texts: tables.Table, title: str, justify: JustifyMethod = "right") -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, title=title, title_justify="left")
    table.title_style = "bold"
    for heading in texts.headings:
        table.add_column(heading, justify=justify)
    for index, row in enumerate(texts.rows):
        table.add_row(*row, style="bold" if index in texts.marked else None)
    return table
