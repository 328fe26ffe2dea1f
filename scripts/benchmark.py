"""Measures how fast kdsweep is on this machine: `.venv/bin/python scripts/benchmark.py SUBCOMMAND --help`.

Each subcommand is a module of `scripts/benchmarks/` with two functions. `add_arguments` adds its options to a parser,
and `measure` returns a `Finding`, which is printed and, with `--json`, written to a file. The subcommand `report` makes
tables of such files.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from kdsweep.system import exit_status

# Tests have scripts/ on their path. Run as a script, this file needs to add it itself.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmarks import measuring

# Each subcommand is a module of `scripts/benchmarks/`.
SUBCOMMANDS = (
    "limit",
    "distill",
    "online",
    "peers",
    "views",
    "losses",
    "evaluate",
    "study",
    "start",
    "trial",
    "workers",
    "decode",
    "scale",
    "probe",
    "teacher",
    "tables",
    "verdicts",
    "peeking",
    "regions",
    "search",
    "trainings",
    "report",
)


def parser() -> argparse.ArgumentParser:
    """Makes the parser, with the options of all subcommands."""
    made = argparse.ArgumentParser(prog="benchmark", description=(__doc__ or "").partition("\n")[0])
    commands = made.add_subparsers(dest="command", required=True)
    for name in SUBCOMMANDS:
        module = importlib.import_module(f"benchmarks.{name}")
        own = commands.add_parser(name, help=module.measure.__doc__, description=module.__doc__)
        own.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found there")
        module.add_arguments(own)
        own.set_defaults(measure=module.measure)
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command: measures, prints the figures, and writes them if asked to."""
    arguments = parser().parse_args(words)
    before = os.getloadavg()[0]
    finding = arguments.measure(arguments)
    machine, line = measuring.machine(measuring.Load(before, os.getloadavg()[0], os.cpu_count() or 1))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False)
    # Markdown goes to a file, and must not be wrapped.
    console.print(finding.renderable(), soft_wrap=isinstance(finding.shown, Text))
    if finding.figures:
        console.print(line, markup=False)
    if arguments.json is not None:
        figures = [figure.values() for figure in finding.figures]
        found = {"benchmark": arguments.command, "title": finding.title, "machine": machine, "load": machine["load"]}
        text = json.dumps({**found, "figures": figures, "notes": list(finding.notes), **finding.details}, indent=1)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    exit_status.command("benchmark", main)
