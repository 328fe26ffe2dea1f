"""Writes the report of a study to files: the page, the numbers and the figures. They are attached to its MLflow run."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdsweep.analysis.study_goals import Goals
from kdsweep.system.errors import RunError
from kdsweep.system.progress import note
from kdsweep.tracking.retry import is_forbidden
from kdsweep.tracking.run_records import STUDENTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kdsweep.analysis.contest_findings import Contest
    from kdsweep.analysis.findings import Report
    from kdsweep.analysis.sorted_runs import Readings
    from kdsweep.tracking.run_records import RunRecord, StudyRecord
    from kdsweep.tracking.store import Store

LONGEST_NAME = 200  # bytes of a folder's name


def write(store: Store, study_name: str | None, out: Path) -> Report:
    """Writes `report.html`, `report.json` and the figures of a study to the folder `out`, and attaches them to its run.

    The verdict becomes the run's description in MLflow, unless somebody else has written one, and its numbers become
    metrics of the run (`study_numbers`).

    Args:
        store: The MLflow store.
        study_name: The name or run id of the study; None for the latest.
        out: The folder.

    Raises:
        UserError: There is no such study.
    """
    # Imported here, because it takes seconds, and --help and a misspelt option don't need it.
    from kdsweep.analysis import study_numbers
    from kdsweep.analysis.findings import summarise
    from kdsweep.report import html, mlflow_note
    from kdsweep.report.figures import all_figures

    study = store.study(study_name)
    report = summarise(study, readings(store, study))
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in all_figures.draw(report):
        files.append(out / name)
        figure.savefig(files[-1])
    page = html.render(report, list(all_figures.charts(report)), lambda run: store.page_of(run.id))
    files += [out / "report.html", out / "report.json"]
    files[-2].write_text(page, encoding="utf-8")
    files[-1].write_text(json.dumps(_jsonable(report), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    attached = _attach(store, study.parent, files, mlflow_note.note(report), study_numbers.numbers(report))
    return dataclasses.replace(report, files=tuple(files), attached=attached)


def _attach(store: Store, parent: RunRecord, files: Sequence[Path], text: str, numbers: Mapping[str, float]) -> bool:
    """Attaches the report to the study's run, unless this user may only read there; returns whether it is attached."""
    try:
        for path in files:
            store.attach(parent.id, path, "report")
        store.measure(parent.id, {name: value for name, value in numbers.items() if parent.metrics.get(name) != value})
    except RunError as error:
        if not is_forbidden(error.__cause__):
            raise
        note(f"The report isn't attached to the study's run in MLflow: {error}")
        return False
    try:
        store.describe(parent.id, text)
    except RunError as error:  # the report is complete without a description
        note(f"The study's run in MLflow keeps the description that it had: {error}")
    return True


def default_folder(root: Path, study: StudyRecord) -> Path:
    """Returns <root>/reports/<study>; characters that a folder's name can't have are replaced."""
    names = (re.sub(r"[^\w.+=,-]+", "_", name).strip("._") for name in (study.parent.name, study.parent.id))
    return root / "reports" / next((name for name in names if 0 < len(name.encode()) <= LONGEST_NAME), "study")


def readings(store: Store, study: StudyRecord) -> Readings:
    """Reads the histories, the reliability diagrams and the classes of a study's finished runs."""
    from kdsweep.analysis import teacher_pull
    from kdsweep.analysis.sorted_runs import ClassCount, Readings

    metrics = (
        "val/accuracy",
        "epoch_seconds",
        teacher_pull.SHARE,
        teacher_pull.RATIO,
        Goals.read(study.parent.tags).objective.metric,
    )
    runs = [run for run in study.runs() if run.arm in STUDENTS]
    histories = {
        metric: {
            run.id: [(epoch, value) for epoch, value in store.history(run.id, metric) if epoch >= 1]
            for run in runs
            if metric in run.metrics
        }
        for metric in dict.fromkeys(metrics)
    }
    bins, classes = {}, {}
    for run in study.runs():
        if run.stage != "confirmation" and run.arm != "teacher":
            continue
        diagram = store.text(run.id, "reliability.json") if run.arm in STUDENTS else None
        if diagram is not None:
            bins[run.id] = json.loads(diagram)["bins"]
        counts = store.text(run.id, "per_class.json")
        if counts is not None:
            classes[run.id] = [ClassCount(**row) for row in json.loads(counts)["classes"]]
    surroundings = store.text(runs[-1].id, "environment.json") if runs else None
    return Readings(histories, bins, classes, {} if surroundings is None else json.loads(surroundings))


def _jsonable(report: Report) -> dict[str, object]:
    """Returns the report as plain values. Accuracies stay fractions; NaN and infinities become null."""
    from kdsweep.report.conditions import conditions

    study, found = report.study, report.comparison
    told: dict[str, object] = {
        "study": study.parent.name,
        "run_id": study.parent.id,
        "status": study.parent.status,
        "started": study.parent.start.isoformat(),
        "aims": found.goals,
        "conditions": {row[0]: row[1] for row in conditions(report).rows},
        "headline": report.headline,
        "verdict": report.verdict,
        "target_accuracy": report.target,
        "arms": [
            {
                "arm": arm.name,
                "confirmed": arm.confirmed,
                "runs": [run.id for run in arm.runs],
                "seeds": [run.seed for run in arm.runs],
                "metrics": arm.metrics,
            }
            for arm in report.arms
        ],
        "chosen": None if found.chosen is None else found.chosen.number,
        "other_choices": [
            {
                "number": other.number,
                "params": other.params,
                "runs": [run.id for run in other.runs],
                "earlier": other.earlier,
                "test_accuracy": other.accuracy,
            }
            for other in found.others
        ],
        "pareto": [trial.number for trial in report.front],
        "trials": [
            {
                "number": trial.number,
                "params": trial.params,
                "runs": [run.id for run in trial.runs],
                "values": dict(zip((o.metric for o in found.goals.objectives), trial.values, strict=True)),
            }
            for trial in report.trials
        ],
        "classes": report.classes,
        "contest": None if report.contest is None else _contest(report.contest),
        "pruned": found.pruned,
        # The surface is left out: it is a large grid, and the figure shows it.
        "landscape": dataclasses.replace(report.landscape, surface=None),
        "cost": report.cost,
        "findings": report.findings,
        "missing": report.missing,
    }
    return {name: _plain(value) for name, value in told.items()}


def _contest(held: Contest) -> dict[str, object]:
    """Returns what a contest found, with the ids of its runs instead of the runs."""
    cells = [
        {
            "contender": cell.contender,
            "condition": cell.condition.values,
            "amount": cell.amount,
            "test_accuracy": cell.by_seed,
            "runs": [run.id for run in cell.runs],
        }
        for cell in held.cells
    ]
    return {"plan": held.plan, "cells": cells, "saved": held.saved, "changes": held.changes, "speeds": held.speeds}


def _plain(value: object) -> object:
    """Converts data classes to mappings, tuples to lists, and numbers that JSON doesn't have to null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        # numpy's scalars are floats too, so they are converted.
        return float(value) if math.isfinite(value) else None
    return value
