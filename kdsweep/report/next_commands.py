"""What is printed at the end of a run, a grid and a study: what they found, and the commands that come next."""

from __future__ import annotations

import math
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from kdsweep.system.masking import masked_text
from kdsweep.tracking.location import store_uri
from kdsweep.tracking.run_records import SHORT_ID, STUDENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kdsweep.analysis.findings import Report
    from kdsweep.analysis.study_goals import Objective
    from kdsweep.tracking.run_records import RunRecord


def after_run(uri: str, root: Path, run_id: str, arm: str) -> str:
    """Returns the line after a single run.

    Args:
        uri: The MLflow store.
        root: The project folder.
        run_id: The run's.
        arm: Its arm; only a student can be exported.
    """
    return _next(uri, root, _of_run(run_id, arm))


def after_grid(uri: str, root: Path, group_id: str, runs: Sequence[RunRecord], objective: Objective) -> list[str]:
    """Returns the lines after a plain multirun: its best run, and the commands for it.

    Args:
        uri: The MLflow store.
        root: The project folder.
        group_id: The id of the run above its runs.
        runs: Its runs.
        objective: The metric by which runs are better.
    """
    ended = [run for run in runs if run.status == "FINISHED"]
    known = [run for run in ended if not math.isnan(run.metrics.get(objective.metric, math.nan))]
    counts = f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}"
    if len(ended) < len(runs):
        counts = f"{len(ended)} of {counts} finished"
    report = f"kdsweep-report {group_id[:SHORT_ID]}"
    if not known:
        return [f"Grid: {counts}.", _next(uri, root, [report])]
    best = max(known, key=lambda run: objective.sign * run.metrics[objective.metric])
    value = f"{objective.shown(best.metrics[objective.metric])}{objective.row.unit}"
    found = f"Grid: {counts}; the best {objective.label} is {value}, run {best.short_id} ({best.name})."
    return [found, _next(uri, root, [report, *_of_run(best.id, str(best.arm))])]


def after_study(uri: str, root: Path, report: Report) -> str:
    """Returns the line after a study, with a run of the chosen setting: the first of its fresh seeds, if it has any."""
    chosen = report.comparison.chosen
    arms = [arm for arm in report.arms if arm.name == "distill" and arm.confirmed]
    runs = arms[0].runs if arms else () if chosen is None else chosen.runs
    commands = [command for run in runs[:1] for command in _of_run(run.id, str(run.arm))]
    return _next(uri, root, [f"kdsweep-report {report.study.parent.id[:SHORT_ID]}", *commands])


def note(uri: str, run_id: str, arm: str) -> str:
    """Returns the description of a run in MLflow: the commands for it, whole, for whoever reads it there.

    Args:
        uri: The MLflow store. Only a server's address is part of the commands, since a store in a file may be moved.
        run_id: The run's.
        arm: Its arm.
    """
    where = f" --uri {masked_text(uri)}" if uri.startswith(("http:", "https:")) else ""
    lines = [f"Made again and compared by `kdsweep-reproduce {run_id}{where}`"]
    if arm in STUDENTS:
        lines.append(f"Its network as files, or to be served: `kdsweep-export {run_id}{where}`")
    return "  \n".join(lines)


def _of_run(run_id: str, arm: str) -> list[str]:
    short = run_id[:SHORT_ID]
    return [*([f"kdsweep-export {short}"] if arm in STUDENTS else []), f"kdsweep-reproduce {short}"]


def _next(uri: str, root: Path, commands: Sequence[str]) -> str:
    is_server = uri.startswith(("http:", "https:"))
    # The commands find what stands in the environment by themselves.
    options = []
    if root.absolute() != Path(os.environ.get("KDSWEEP_HOME", ".")).absolute():
        options += ["--root", str(root)]
    if uri != store_uri(None, root.absolute()):
        options += ["--uri", masked_text(uri)]
    each = f", each with {shlex.join(options)}" if options else ""
    looked_at = masked_text(uri) if is_server else "kdsweep-ui"
    return f"Next{each}: {', '.join([*commands, looked_at])}"
