"""`kdsweep-report`: reports what a study found, in the terminal, as an HTML page, as numbers and as figures."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kdsweep.report.writing import default_folder, readings, write
from kdsweep.system import exit_status
from kdsweep.system.errors import UserError, require
from kdsweep.tracking.location import EXPERIMENT, default_experiment, require_store, store_uri
from kdsweep.tracking.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

# A plan is made for this difference and this search, if neither the user nor a study says otherwise.
DIFFERENCE_POINTS, N_TRIALS = 0.3, 30


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `kdsweep-report`."""
    exit_status.command("kdsweep-report", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    if options.plan:
        _show_plan(options)
        return
    store = _open(options)
    from kdsweep.report import console

    if options.list:
        console.show_list(store.runs())
        return
    study = store.study(options.study)
    folder = options.out or default_folder(options.root, study)
    if options.watch:
        from kdsweep.report import watching

        watching.watch(store, study.parent.id, folder)
        study = store.study(study.parent.id)
        if watching.goes_on(study):
            return
    console.show(write(store, study.parent.id, folder))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdsweep-report",
        description="Says what a study found: the verdict, teacher, scratch and distilled compared, the trials, and "
        "where the page and the figures are. Reads the MLflow store, trains nothing, and can be called while the "
        "study runs. With --list it names the studies, grids and runs that there are; with --watch it shows a "
        "study until that has ended; with --plan it says how many "
        "seeds, runs and hours it takes to see a difference.",
    )
    root = Path(os.environ.get("KDSWEEP_HOME", "."))
    option = parser.add_argument
    option("study", nargs="?", metavar="STUDY", help="name, MLflow id, or first letters of it (default: the latest)")
    option("--uri", metavar="URI", help="MLflow store (default: $MLFLOW_TRACKING_URI, else <root>/mlflow.db)")
    option("--experiment", metavar="NAME", default=default_experiment(), help=EXPERIMENT)
    option("--root", metavar="DIR", type=Path, default=root, help="project folder (default: $KDSWEEP_HOME, else .)")
    option("--out", metavar="DIR", type=Path, help="folder for what is written (default: <root>/reports/<study>)")
    option("--watch", action="store_true", help="show the study while it runs, and keep its page up to date")
    option("--list", action="store_true", help="name studies, grids and runs, the latest last, and end")
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
    """Prints the plan for a difference, from the noise and the time that were given or that a study had."""
    for name, value in (("difference", options.difference), ("noise", options.noise), ("seconds", options.seconds)):
        require(value is None or 0 < value < math.inf, f"{name} > 0", value, f"--{name}")
    for name, value in (("trials", options.trials), ("jobs", options.jobs)):
        require(value is None or value >= 1, f"{name} >= 1", value, f"--{name}")
    from rich.console import Console

    from kdsweep.analysis import seed_planning

    known = {} if options.noise is not None and options.study is None else _of_study(options)
    if options.noise is not None:
        known = {**known, "noise_sd": options.noise / 100, "paired_sd": None, "paired_interval": None}
    if options.seconds is not None:
        known["seconds_per_run"] = options.seconds
    if options.trials is not None:
        known["n_trials"] = options.trials
    plan = seed_planning.plan(
        difference=options.difference / 100,
        n_jobs=options.jobs,
        **{"n_trials": N_TRIALS, **known},  # type: ignore[arg-type]
    )
    Console(markup=False, emoji=False, highlight=False).print(seed_planning.render(plan))


def _of_study(options: argparse.Namespace) -> dict[str, object]:
    """Returns what a study knows for the plan of the next one: arguments of `seed_planning.plan`."""
    from kdsweep.analysis.findings import summarise

    try:
        store = _open(options)
        study = store.study(options.study)
    except UserError as error:
        raise UserError(f"{error.message} Or give the noise in points: --noise 0.2.", error.key) from error
    report = summarise(study, readings(store, study))
    noise = report.verdict.noise
    if noise is None and options.noise is None:
        raise UserError(
            f"a plan needs the noise over seeds, and the study {study.parent.name!r} has no repeated runs with a test "
            "accuracy. Give it in points: --noise 0.2.",
            "--noise",
        )
    pairs = report.verdict.pair_noise
    goals = report.comparison.goals
    told: dict[str, object] = {
        "noise_sd": None if noise is None else noise.sd,
        "paired_sd": None if pairs is None else pairs.sd,
        "paired_interval": None if pairs is None else (pairs.low, pairs.high),
        "seconds_per_run": report.cost.seconds["scratch"].mean if "scratch" in report.cost.seconds else None,
        "n_trials": goals.n_trials,
        "baseline_seeds": goals.baseline_seeds,
        # A study without confirmation doesn't say how many seeds one with a verdict has.
        "confirm_seeds": goals.confirm_seeds or None,
    }
    return {name: value for name, value in told.items() if value is not None}
