"""`kdsweep-report`: what a study found, as a table, a few sentences and figures."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from kdsweep import cli, figures
from kdsweep.comparison import (
    EPOCHS_TO_TARGET,
    METRICS,
    ROLES,
    TARGET_SHARE,
    Arm,
    Histories,
    Report,
    Trial,
    short_key,
    short_value,
    summarise,
)
from kdsweep.records import StudyRecord
from kdsweep.stores import require_store, store_uri
from kdsweep.tracking import Store

# Heading (its lines keep the table narrow), factor, decimals.
COLUMNS = {
    "val/accuracy": ("\nvalidation\naccuracy %", 100, 2),
    "test/accuracy": ("\ntest\naccuracy %", 100, 2),
    "test/nll": ("\ntest\nNLL", 1, 3),
    "test/ece": ("\ntest\nECE %", 100, 1),
    "test/agreement": ("\nagree-\nment %", 100, 1),
    EPOCHS_TO_TARGET: ("epochs\nto\ntarget", 1, 1),
    "seconds": ("\nseconds\na run", 1, 1),
}

TRIALS_SHOWN = 10
WIDTH = 100  # characters a line, where the output is no terminal


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `kdsweep-report`."""
    cli.command("kdsweep-report", lambda: _main(arguments))


def write(store: Store, study_name: str | None, out: Path) -> Report:
    """Writes the figures and `report.json` of a study to the folder `out`, and attaches them to its parent run.

    Args:
        study_name: Name or run id of the study; None for the latest.

    Raises:
        UserError: There is no such study.
    """
    study = store.study(study_name)
    histories = {
        run.id: [(epoch, value) for epoch, value in store.history(run.id, "val/accuracy") if epoch >= 1]
        for run in study.runs()
        if run.role in ROLES[1:]
    }
    report = summarise(study, histories)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in _figures(report, histories).items():
        files.append(out / name)
        figure.savefig(files[-1])
    files.append(out / "report.json")
    files[-1].write_text(json.dumps(_jsonable(report), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    for path in files:
        store.attach(study.parent.id, path, "report")
    return dataclasses.replace(report, files=tuple(files))


def show(report: Report) -> None:
    """Prints a report to the standard output; names are printed as they are, whatever markup they resemble."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Where the output's encoding lacks a character, it gets a question mark: a study must not end in an exception.
        sys.stdout.reconfigure(errors="replace")
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    study = report.study
    status = "" if study.parent.status == "FINISHED" else f" ({study.parent.status.lower()})"
    console.print(f"Study {study.parent.name}{status}", style="bold")
    for line in _heading(study):
        console.print(line)
    console.print()
    if report.arms:
        console.print(_comparison(report, narrow=console.width < WIDTH))
        console.print()
    sentences = Table.grid(padding=(0, 1))
    for sentence in (*report.findings, *report.missing):
        sentences.add_row("-", sentence)
    console.print(sentences)
    if report.trials:
        console.print()
        console.print(_trial_table(report.trials))
    if report.files:
        console.print("\nWritten, and attached to the study's run in MLflow under report/:")
        for path in report.files:
            console.print(f"  {path}", soft_wrap=True)


def default_folder(root: Path, study: StudyRecord) -> Path:
    """Where the report of a study goes: <root>/reports/<study>, with what a folder's name can't hold replaced."""
    return root / "reports" / (re.sub(r"[^\w.+=,-]+", "_", study.parent.name).strip("._") or study.parent.id)


def _main(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="kdsweep-report",
        description="Prints what a study found: teacher, scratch and distilled compared, the trials, and where the "
        "figures are. Reads the MLflow store, trains nothing, and can be called while the study runs.",
    )
    root = Path(os.environ.get("KDSWEEP_HOME", "."))
    option = parser.add_argument
    option("study", nargs="?", metavar="STUDY", help="name or MLflow run id (default: the latest)")
    option("--uri", metavar="URI", help="MLflow store (default: $MLFLOW_TRACKING_URI, else <root>/mlflow.db)")
    option("--experiment", metavar="NAME", default="kdsweep", help="MLflow experiment (default: %(default)s)")
    option("--root", metavar="DIR", type=Path, default=root, help="project folder (default: $KDSWEEP_HOME, else .)")
    option("--out", metavar="DIR", type=Path, help="folder for the figures (default: <root>/reports/<study>)")
    options = parser.parse_args(arguments)
    uri = store_uri(options.uri, options.root)
    require_store(uri)
    store = Store(uri, options.experiment)
    study = store.study(options.study)
    show(write(store, study.parent.id, options.out or default_folder(options.root, study)))


def _figures(report: Report, histories: Histories) -> dict[str, figures.Figure]:
    """The figures that there is something to draw for, by file name."""
    drawn = {}
    scratch = next((arm.metrics.get("val/accuracy") for arm in report.arms if arm.role == "scratch"), None)
    placed = [(trial, _alpha_tau(trial)) for trial in report.trials]
    points = [(trial, *place) for trial, place in placed if place is not None]
    if points:
        trials, alphas, taus = zip(*points, strict=True)
        drawn["alpha_tau_surface.png"] = figures.alpha_tau_surface(
            alphas,
            taus,
            [trial.accuracy for trial in trials],
            best=0,  # trials come best first
            baseline=None if scratch is None else (scratch.mean, scratch.sd),
            numbers=[trial.number for trial in trials],
        )
    curves: dict[str, list[figures.Curve]] = {}
    for arm in report.arms:
        chosen = arm.role == "distill" and len(report.trials) > 1
        label = f"distill, best of {len(report.trials)} trials" if chosen else arm.name
        if arm.role == "teacher" and "val/accuracy" in arm.metrics:
            curves[label] = [[(1, arm.metrics["val/accuracy"].mean)]]
        elif any(histories.get(run.id) for run in arm.runs):
            curves[label] = [histories[run.id] for run in arm.runs if histories.get(run.id)]
    if curves.keys() - {"teacher"}:
        drawn["learning_curves.png"] = figures.arm_curves(curves, "validation accuracy", report.target)
    return drawn


def _alpha_tau(trial: Trial) -> tuple[float, float] | None:
    try:
        return float(trial.params["loss.alpha"]), float(trial.params["loss.tau"])
    except ValueError:  # a loss without one of them
        return None


def _heading(study: StudyRecord) -> Iterable[str]:
    def values(key: str) -> str:
        # Jobs of a multirun may differ; what a job doesn't have is written as None.
        found = dict.fromkeys(run.params.get(key, "None").removeprefix("kdsweep.data.") for run in study.children)
        return ", ".join(value for value in found if value != "None") or "-"

    settings = {"data": "data._target_", "student": "model.name", "teacher": "teacher.network.name"}
    yield ", ".join(f"{name} {values(key)}" for name, key in settings.items())
    counts = Counter(run.status.lower() for run in study.children)
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items()) or "no runs"
    ends = [run.start + timedelta(seconds=run.duration_s or 0) for run in (study.parent, *study.children)]
    seconds = (max(ends) - study.parent.start).total_seconds()
    yield f"runs: {statuses}; started {study.parent.start:%Y-%m-%d %H:%M} UTC, {_duration(seconds)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _comparison(report: Report, narrow: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, caption_justify="left")
    table.caption = "agreement: with the teacher, on test"
    if report.target is not None:
        goal = f"target: {report.target:.1%} on validation, {TARGET_SHARE:.0%} of scratch's final mean; "
        table.caption = goal + table.caption
    table.add_column("\n\narm", min_width=9)
    table.add_column("\n\nruns", justify="right")
    for metric in METRICS:
        table.add_column(COLUMNS[metric][0], justify="right")
    for arm in report.arms:
        cells = [_cell(arm, metric) for metric in METRICS]
        if narrow:
            cells = [cell.replace(" ", "\n", 1) for cell in cells]
        if report.target is not None and arm.role != "teacher" and EPOCHS_TO_TARGET not in arm.metrics:
            cells[METRICS.index(EPOCHS_TO_TARGET)] = "never"
        table.add_row(arm.name, str(len(arm.runs)), *cells)
    return table


def _cell(arm: Arm, metric: str) -> str:
    """Mean ± standard deviation of a metric, and of how many runs, where only some have it."""
    spread = arm.metrics.get(metric)
    if spread is None:
        return "-"
    _, factor, decimals = COLUMNS[metric]
    mean, sd = factor * spread.mean, factor * spread.sd
    decimals = decimals if mean < 1000 else 0
    text = f"{mean:.{decimals}f}" + (f" ±{sd:.{decimals}f}" if spread.n > 1 else "")
    # A mean over the runs that reached the target, when some didn't, would look like speed.
    return text if spread.n == len(arm.runs) else f"{text} ({spread.n} of {len(arm.runs)})"


def _trial_table(trials: Sequence[Trial]) -> Table:
    shown = trials[:TRIALS_SHOWN]
    title = f"Trials, the best {len(shown)} of {len(trials)}" if len(shown) < len(trials) else "Trials, best first"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, title=title, title_justify="left")
    table.title_style = "bold"
    for heading in ("trial", *(short_key(key) for key in shown[0].params), "validation accuracy %", "runs"):
        table.add_column(heading, justify="right")
    for trial in shown:
        params = [short_value(key, value) for key, value in trial.params.items()]
        table.add_row(str(trial.number), *params, f"{100 * trial.accuracy:.2f}", str(len(trial.runs)))
    return table


def _jsonable(report: Report) -> dict[str, object]:
    """The report as plain values; numbers as they are (fractions, seconds), NaN as null."""
    study = report.study
    return {
        "study": study.parent.name,
        "run_id": study.parent.id,
        "started": study.parent.start.isoformat(),
        "target_accuracy": report.target,
        "arms": [
            {
                "arm": arm.role,
                "runs": [run.id for run in arm.runs],
                "metrics": {name: _plain(dataclasses.asdict(spread)) for name, spread in arm.metrics.items()},
            }
            for arm in report.arms
        ],
        "trials": [
            {
                "number": trial.number,
                "params": trial.params,
                "runs": [run.id for run in trial.runs],
                "val/accuracy": trial.accuracy,
            }
            for trial in report.trials
        ],
        "findings": list(report.findings),
        "missing": list(report.missing),
    }


def _plain(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
