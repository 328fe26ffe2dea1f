"""`kdsweep-report`: what a study found, in the terminal, as a page, as numbers and as figures."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdsweep import cli
from kdsweep.aims import Aims
from kdsweep.errors import RunError, UserError, require
from kdsweep.progress import note
from kdsweep.records import StudyRecord
from kdsweep.stores import require_store, store_uri
from kdsweep.tracking import Store

if TYPE_CHECKING:
    from kdsweep.comparison import Readings
    from kdsweep.summary import Report

# Of a plan: the difference and the search that it is made for, where neither the user nor a study says.
DIFFERENCE_POINTS, N_TRIALS = 0.3, 30
# Fewer pairs tell less about the noise of a difference than the noise of single runs does.
FEWEST_PAIRS = 4
# Bytes of a folder's name.
LONGEST_NAME = 200


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `kdsweep-report`."""
    cli.command("kdsweep-report", lambda: _main(arguments))


def write(store: Store, study_name: str | None, out: Path) -> Report:
    """Writes `report.html`, `report.json` and the figures of a study to the folder `out`, and attaches them to its run.

    The verdict becomes the description of the run, unless it has one that somebody else wrote.

    Args:
        study_name: Name or run id of the study; None for the latest.

    Raises:
        UserError: There is no such study.
    """
    # What draws and fits takes seconds to import; --help and a misspelt option need none of it.
    from kdsweep import drawings, html_report, report_note
    from kdsweep.summary import summarise

    study = store.study(study_name)
    report = summarise(study, _readings(store, study))
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in drawings.draw(report):
        files.append(out / name)
        figure.savefig(files[-1])
    page = html_report.render(report, {path.name: path.read_bytes() for path in files})
    files += [out / "report.html", out / "report.json"]
    files[-2].write_text(page, encoding="utf-8")
    files[-1].write_text(json.dumps(_jsonable(report), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    for path in files:
        store.attach(study.parent.id, path, "report")
    try:
        store.describe(study.parent.id, report_note.note(report))
    except RunError as error:  # it is an ornament, and the report is whole without it
        note(f"The study's run in MLflow keeps the description that it had: {error}")
    return dataclasses.replace(report, files=tuple(files))


def show(report: Report) -> None:
    """Prints a report to the standard output."""
    from kdsweep import report_console

    report_console.show(report)


def default_folder(root: Path, study: StudyRecord) -> Path:
    """Where the report of a study goes: <root>/reports/<study>, with what a folder's name can't hold replaced."""
    names = (re.sub(r"[^\w.+=,-]+", "_", name).strip("._") for name in (study.parent.name, study.parent.id))
    return root / "reports" / next((name for name in names if 0 < len(name.encode()) <= LONGEST_NAME), "study")


def _main(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    if options.plan:
        _show_plan(options)
        return
    store = _open(options)
    study = store.study(options.study)
    show(write(store, study.parent.id, options.out or default_folder(options.root, study)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdsweep-report",
        description="Says what a study found: the verdict, teacher, scratch and distilled compared, the trials, and "
        "where the page and the figures are. Reads the MLflow store, trains nothing, and can be called while the "
        "study runs. With --plan: what a difference takes that one wants to see.",
    )
    root = Path(os.environ.get("KDSWEEP_HOME", "."))
    option = parser.add_argument
    option("study", nargs="?", metavar="STUDY", help="name or MLflow run id (default: the latest)")
    option("--uri", metavar="URI", help="MLflow store (default: $MLFLOW_TRACKING_URI, else <root>/mlflow.db)")
    option("--experiment", metavar="NAME", default="kdsweep", help="MLflow experiment (default: %(default)s)")
    option("--root", metavar="DIR", type=Path, default=root, help="project folder (default: $KDSWEEP_HOME, else .)")
    option("--out", metavar="DIR", type=Path, help="folder for what is written (default: <root>/reports/<study>)")
    option = parser.add_argument_group("planning").add_argument
    option("--plan", action="store_true", help="say how many seeds, runs and hours a difference takes, and end")
    option("--noise", metavar="POINTS", type=float, help="sd of one setting over seeds (default: that of STUDY)")
    wanted = "test accuracy to be told apart (default: %(default)s)"
    option("--difference", metavar="POINTS", type=float, default=DIFFERENCE_POINTS, help=wanted)
    option("--trials", metavar="N", type=int, help=f"trials of the search (default: those of STUDY, else {N_TRIALS})")
    option("--seconds", metavar="S", type=float, help="seconds a run (default: those of STUDY)")
    option("--jobs", metavar="N", type=int, default=1, help="runs at a time (default: %(default)s)")
    return parser


def _open(options: argparse.Namespace) -> Store:
    uri = store_uri(options.uri, options.root)
    require_store(uri)
    return Store(uri, options.experiment)


def _show_plan(options: argparse.Namespace) -> None:
    """Prints what the wanted difference takes, from the noise and the time that were given or that a study had."""
    for name, value in (("difference", options.difference), ("noise", options.noise), ("seconds", options.seconds)):
        require(value is None or 0 < value < math.inf, f"{name} > 0", value, f"--{name}")
    for name, value in (("trials", options.trials), ("jobs", options.jobs)):
        require(value is None or value >= 1, f"{name} >= 1", value, f"--{name}")
    from rich.console import Console

    from kdsweep import planner

    known = {} if options.noise is not None and options.study is None else _of_study(options)
    if options.noise is not None:
        known = {**known, "noise_sd": options.noise / 100, "paired_sd": None}
    if options.seconds is not None:
        known["seconds_per_run"] = options.seconds
    if options.trials is not None:
        known["n_trials"] = options.trials
    plan = planner.plan(
        difference=options.difference / 100,
        n_jobs=options.jobs,
        **{"n_trials": N_TRIALS, **known},  # type: ignore[arg-type]
    )
    Console(markup=False, emoji=False, highlight=False).print(planner.render(plan))


def _of_study(options: argparse.Namespace) -> dict[str, object]:
    """What a finished study knows for the plan of the next: arguments of `planner.plan`."""
    from kdsweep.summary import summarise

    try:
        store = _open(options)
        study = store.study(options.study)
    except UserError as error:
        raise UserError(f"{error.message} Or give the noise in points: --noise 0.2.", error.key) from error
    report = summarise(study, _readings(store, study))
    noise = report.verdict.noise
    if noise is None and options.noise is None:
        raise UserError(
            f"a plan needs the noise over seeds, and the study {study.parent.name!r} has no repeated runs with a test "
            "accuracy. Give it in points: --noise 0.2.",
            "--noise",
        )
    pairs = report.verdict.of("distill", "scratch")
    aims = report.comparison.aims
    told: dict[str, object] = {
        "noise_sd": None if noise is None else noise.sd,
        "paired_sd": pairs.difference.sd if pairs is not None and pairs.difference.n >= FEWEST_PAIRS else None,
        "seconds_per_run": report.economy.seconds["scratch"].mean if "scratch" in report.economy.seconds else None,
        "n_trials": aims.n_trials,
        "baseline_seeds": aims.baseline_seeds,
        # A study without confirmation is no model for one with a verdict.
        "confirm_seeds": aims.confirm_seeds or None,
    }
    return {name: value for name, value in told.items() if value is not None}


def _readings(store: Store, study: StudyRecord) -> Readings:
    """The histories and the reliability diagrams of a study's finished runs."""
    from kdsweep.comparison import STUDENTS, Readings

    metrics = ("val/accuracy", "epoch_seconds", Aims.read(study.parent.tags).objective.metric)
    runs = [run for run in study.runs() if run.role in STUDENTS]
    histories = {
        metric: {
            run.id: [(epoch, value) for epoch, value in store.history(run.id, metric) if epoch >= 1]
            for run in runs
            if metric in run.metrics
        }
        for metric in dict.fromkeys(metrics)
    }
    bins = {}
    for run in runs:
        text = store.text(run.id, "reliability.json") if run.stage == "confirmation" else None
        if text is not None:
            bins[run.id] = json.loads(text)["bins"]
    return Readings(histories, bins)


def _jsonable(report: Report) -> dict[str, object]:
    """The report as plain values; numbers as they are (fractions, seconds), NaN and infinities as null."""
    study, found = report.study, report.comparison
    told: dict[str, object] = {
        "study": study.parent.name,
        "run_id": study.parent.id,
        "status": study.parent.status,
        "started": study.parent.start.isoformat(),
        "aims": found.aims,
        "headline": report.headline,
        "verdict": report.verdict,
        "target_accuracy": report.target,
        "arms": [
            {
                "arm": arm.role,
                "confirmed": arm.confirmed,
                "runs": [run.id for run in arm.runs],
                "metrics": arm.metrics,
            }
            for arm in report.arms
        ],
        "chosen": None if found.chosen is None else found.chosen.number,
        "pareto": [trial.number for trial in report.front],
        "trials": [
            {
                "number": trial.number,
                "params": trial.params,
                "runs": [run.id for run in trial.runs],
                "values": dict(zip((o.metric for o in found.aims.objectives), trial.values, strict=True)),
            }
            for trial in report.trials
        ],
        "pruned": found.pruned,
        # The grid of the figure is in the figure.
        "landscape": dataclasses.replace(report.landscape, surface=None),
        "economy": report.economy,
        "findings": report.findings,
        "missing": report.missing,
    }
    return {name: _plain(value) for name, value in told.items()}


def _plain(value: object) -> object:
    """Data classes as mappings, tuples as lists, and null for numbers that JSON doesn't have."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        # float(): numpy's scalars are floats too.
        return float(value) if math.isfinite(value) else None
    return value
