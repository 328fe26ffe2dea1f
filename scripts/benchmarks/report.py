"""Makes Markdown tables for docs/performance.md from files that the other subcommands wrote with `--json`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from benchmarks.measuring import Finding, plain_number
from kdsweep.system.errors import UserError

HEADINGS = ("figure", "value", "least - most", "goal", "holds")
WORDS = {True: "yes", False: "**no**", None: ""}


def measure(arguments: argparse.Namespace) -> Finding:
    """Markdown tables of files that other subcommands wrote with --json"""
    sections = [section(read(path)) for path in arguments.files]
    return Finding("report", shown=Text("\n\n".join(sections)))


def read(path: Path) -> dict[str, Any]:
    """Reads what a subcommand has written.

    Raises:
        UserError: The file can't be read, or no subcommand has written it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        section(found)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"`a file written by --json` must hold, but got {path} ({error}).") from error
    return dict(found)


def section(found: Mapping[str, Any]) -> str:
    """Returns heading, table, notes and machine of one subcommand."""
    rows = [row(figure) for figure in found["figures"]]
    table = [HEADINGS, ("---", "---:", "---:", "---:", "---"), *rows]
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    return "\n".join([f"### {found['title']}", "", *lines, "", *found["notes"], "", found["machine"]["line"]])


def row(figure: Mapping[str, Any]) -> tuple[str, ...]:
    value = "-" if figure["value"] is None else f"{plain_number(figure['value'])} {figure['unit']}".strip()
    spread = "" if figure["spread"] is None else " - ".join(map(plain_number, figure["spread"]))
    name = f"{figure['name']} ({figure['note']})" if figure["note"] else figure["name"]
    return name.replace("|", "\\|"), value, spread, figure["goal"], WORDS[figure["holds"]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="in the order of the table")
