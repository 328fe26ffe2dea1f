"""`kdsweep-report`: what a study found, as a table, a few sentences and figures."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import os
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from kdsweep import cli, figures
from kdsweep.tracking import RunRecord, Store, StudyRecord, require_store, store_uri

# Arms in the table's order, as they are tagged.
ROLES = ("teacher", "scratch", "label_smoothing", "distill")

# An epoch counts as fast when it comes this close to what scratch reaches in the end.
TARGET_SHARE = 0.95
EPOCHS_TO_TARGET = "epochs_to_target"

# Heading (its lines keep the table narrow), metric, factor, decimals.
COLUMNS = (
    ("\nvalidation\naccuracy %", "val/accuracy", 100, 2),
    ("\ntest\naccuracy %", "test/accuracy", 100, 2),
    ("\ntest\nNLL", "test/nll", 1, 3),
    ("\ntest\nECE %", "test/ece", 100, 1),
    ("\nagree-\nment %", "test/agreement", 100, 1),
    ("epochs\nto\ntarget", EPOCHS_TO_TARGET, 1, 1),
    ("\nseconds\na run", "seconds", 1, 1),
)

# Two runs that differ in these alone are repetitions of one setting.
REPETITION = re.compile(r"(\w+_)?seed$|tracking\.|paths\.")
# A comparison is fair where these agree.
TRAINING = re.compile(r"(data|model|optimizer|schedule)\.|(epochs|batch_size|n_passes|precision)$")

TRIALS_SHOWN = 10
WIDTH = 100  # characters a line, where the output is no terminal
SAME = 0.005  # points; less is not visible in the table

Histories = Mapping[str, figures.Curve]


@dataclass(frozen=True)
class Spread:
    """A metric over the runs of an arm; `sd` is the sample standard deviation, NaN for one run."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Arm:
    """A row of the comparison: runs of one role that repeat one setting, and the spread of each metric they have."""

    role: str
    runs: tuple[RunRecord, ...]
    metrics: dict[str, Spread]

    @property
    def name(self) -> str:
        """The role as it is printed."""
        return self.role.replace("_", " ")


@dataclass(frozen=True)
class Trial:
    """One setting of the search: its number, the parameters that the search varied, and its runs (mostly one)."""

    number: int
    params: dict[str, str]
    runs: tuple[RunRecord, ...]
    accuracy: float  # on validation, mean over the runs


@dataclass(frozen=True)
class Report:
    """What is printed about a study.

    Attributes:
        arms: One for each role that has finished runs; the distilled one is the best trial by validation accuracy.
        trials: All settings of distilled runs, the best first, at equal accuracy the earlier one.
        target: The validation accuracy (a fraction) of the column "epochs to target"; None without scratch runs.
        findings: Sentences about the numbers.
        missing: Sentences about what is not there yet.
        files: What `write` wrote.
    """

    study: StudyRecord
    arms: tuple[Arm, ...]
    trials: tuple[Trial, ...]
    target: float | None
    findings: tuple[str, ...]
    missing: tuple[str, ...]
    files: tuple[Path, ...] = field(default=())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `kdsweep-report`."""
    cli.command("kdsweep-report", lambda: _main(arguments))


def summarise(study: StudyRecord, histories: Histories) -> Report:
    """The report of a study from its runs.

    Args:
        study: The parent run and its children; only finished children count.
        histories: Run id to (epoch from 1, validation accuracy); runs without epochs may be left out.
    """
    runs = {role: [run for run in study.runs(role) if run.stage != "confirmation"] for role in ROLES}
    trials = _trials(runs["distill"])
    scratch = _spread(run.metrics.get("val/accuracy") for run in runs["scratch"])
    target = None if scratch is None else TARGET_SHARE * scratch.mean
    if trials:
        runs["distill"] = list(trials[0].runs)
    arms = tuple(_arm(role, runs[role], histories, target) for role in ROLES if runs[role])
    findings = (*_chosen(trials), *_differences(arms), *_unfair(arms))
    return Report(study, arms, trials, target, tuple(findings), tuple(_missing(arms)))


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


def _trials(runs: Sequence[RunRecord]) -> tuple[Trial, ...]:
    """Distilled runs by setting, the best first."""
    keys = sorted({"loss.alpha", "loss.tau"} | _differing(runs), key=lambda key: (not key.startswith("loss."), key))
    settings: dict[tuple[str, ...], list[tuple[int, RunRecord]]] = {}
    for index, run in enumerate(runs):
        if "val/accuracy" in run.metrics:
            number = run.tags.get("kdsweep.trial", "")
            setting = tuple(run.params.get(key, "-") for key in keys)
            settings.setdefault(setting, []).append((int(number) if number.isdecimal() else index, run))
    trials = [
        Trial(
            number=min(number for number, _ in members),
            params=dict(zip(keys, setting, strict=True)),
            runs=tuple(run for _, run in members),
            accuracy=statistics.fmean(run.metrics["val/accuracy"] for _, run in members),
        )
        for setting, members in settings.items()
    ]
    return tuple(sorted(trials, key=lambda trial: (-trial.accuracy, trial.number)))


def _differing(runs: Sequence[RunRecord]) -> set[str]:
    """Parameters that are not the same in all runs, repetitions apart."""
    keys = {key for run in runs for key in run.params if not REPETITION.match(key)}
    return {key for key in keys if len({run.params.get(key) for run in runs}) > 1}


def _arm(role: str, runs: Sequence[RunRecord], histories: Histories, target: float | None) -> Arm:
    values = [dict(run.metrics) for run in runs]
    for run, metrics in zip(runs, values, strict=True):
        if run.duration_s is not None:
            metrics.setdefault("seconds", run.duration_s)
        reached = [epoch for epoch, accuracy in histories.get(run.id, []) if target is not None and accuracy >= target]
        if reached:
            metrics[EPOCHS_TO_TARGET] = min(reached)
    spreads = {metric: _spread(metrics.get(metric) for metrics in values) for _, metric, _, _ in COLUMNS}
    return Arm(role, tuple(runs), {metric: spread for metric, spread in spreads.items() if spread is not None})


def _spread(values: Iterable[float | None]) -> Spread | None:
    present = [value for value in values if value is not None]
    if not present:
        return None
    sd = statistics.stdev(present) if len(present) > 1 else math.nan
    return Spread(statistics.fmean(present), sd, len(present))


def _chosen(trials: Sequence[Trial]) -> Iterable[str]:
    """Which trial the distilled row is, and how it was chosen."""
    if not trials:
        return
    best = trials[0]
    ties = sum(trial.accuracy == best.accuracy for trial in trials)
    repeated = "one run" if len(best.runs) == 1 else f"{len(best.runs)} runs"
    what = f"distill is trial {best.number} ({_setting(best.params)})"
    if len(trials) == 1:
        yield f"{what}, the only setting tried, {repeated}."
        return
    shared = f" {ties} trials share this validation accuracy; the first of them is taken." if ties > 1 else ""
    yield f"{what}, best of {len(trials)} trials on validation, {repeated}: includes the luck of the search.{shared}"


def _setting(params: Mapping[str, str]) -> str:
    return ", ".join(f"{_short(key)} {_number(key, value)}" for key, value in params.items())


def _differences(arms: Sequence[Arm]) -> Iterable[str]:
    """Distilled against scratch on test, beside scratch's noise; then label smoothing, and the teacher."""
    tested = {arm.role: arm.metrics["test/accuracy"] for arm in arms if "test/accuracy" in arm.metrics}
    teacher, scratch, smoothed, distilled = (tested.get(role) for role in ROLES)
    if scratch is not None and distilled is not None:
        yield (
            f"On test, distill ({distilled.mean:.2%}, {_runs(distilled)}) is {_compare(distilled, scratch)} scratch "
            f"({scratch.mean:.2%}, {_runs(scratch)}). {_against_noise(distilled, scratch)}"
        )
    if scratch is not None and smoothed is not None:
        yield f"Label smoothing, which needs no teacher, is {_compare(smoothed, scratch)} scratch on test."
    students = {"scratch": scratch, "distill": distilled}
    relations = [f"{_relation(teacher, s)} {name}" for name, s in students.items() if teacher and s]
    if teacher is not None and relations:
        weak = scratch is not None and _points(teacher, scratch) <= -SAME
        remark = " From a weaker teacher a student may gain only what label smoothing gives: that arm is the control."
        yield f"The teacher's test accuracy is {teacher.mean:.2%}, {' and '.join(relations)}.{remark if weak else ''}"


def _points(first: Spread, second: Spread) -> float:
    return 100 * (first.mean - second.mean)


def _compare(first: Spread, second: Spread) -> str:
    points = _points(first, second)
    if abs(points) < SAME:
        return "as accurate as"
    return f"{abs(points):.2f} points {'more' if points > 0 else 'less'} accurate than"


def _relation(first: Spread, second: Spread) -> str:
    points = _points(first, second)
    return "equal to" if abs(points) < SAME else "above" if points > 0 else "below"


def _runs(spread: Spread) -> str:
    return "one run" if spread.n == 1 else f"mean of {spread.n} runs"


def _against_noise(distilled: Spread, scratch: Spread) -> str:
    if scratch.n == 1:
        return "With one scratch run the noise over seeds is unknown, so this difference says nothing yet."
    sd = 100 * scratch.sd
    noise = f"The standard deviation of scratch over its seeds is {sd:.2f} points"
    difference = abs(_points(distilled, scratch))
    if difference >= SAME and sd >= SAME:
        noise += f", the difference {difference / sd:.1f} times that"
    return f"{noise}; no significance is claimed: that takes fresh seeds of both arms."


def _unfair(arms: Sequence[Arm]) -> Iterable[str]:
    """What differs besides the arm, and so could explain a difference."""
    for arm in arms:
        differing = _differing(arm.runs)
        if differing:
            yield f"The {arm.name} runs differ in {_listed(differing)} too: their mean mixes settings."
    by_role = {arm.role: arm.runs for arm in arms}
    if "scratch" in by_role and "distill" in by_role:
        scratch, distilled = by_role["scratch"], by_role["distill"]
        both = {key for key in _differing([*scratch, *distilled]) if TRAINING.match(key)}
        differing = both - _differing(scratch) - _differing(distilled)
        if differing:
            yield f"distill and scratch differ in {_listed(differing)} too, which may explain a difference."


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(sorted(keys))


def _missing(arms: Sequence[Arm]) -> Iterable[str]:
    roles = {arm.role for arm in arms}
    if "distill" not in roles:
        yield "There is no finished distilled run yet, so there is nothing to compare with scratch."
    if "scratch" not in roles:
        yield "There is no finished scratch run here, so there is no difference and no target accuracy."
    if "teacher" not in roles:
        yield "There is no teacher run here: a teacher that was trained before, or by a student, has a run of its own."


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
    for heading, *_ in COLUMNS:
        table.add_column(heading, justify="right")
    for arm in report.arms:
        cells = [_cell(arm, metric, factor, decimals) for _, metric, factor, decimals in COLUMNS]
        if narrow:
            cells = [cell.replace(" ", "\n", 1) for cell in cells]
        if report.target is not None and arm.role != "teacher" and EPOCHS_TO_TARGET not in arm.metrics:
            cells[[metric for _, metric, *_ in COLUMNS].index(EPOCHS_TO_TARGET)] = "never"
        table.add_row(arm.name, str(len(arm.runs)), *cells)
    return table


def _cell(arm: Arm, metric: str, factor: float, decimals: int) -> str:
    """Mean ± standard deviation of a metric, and of how many runs, where only some have it."""
    spread = arm.metrics.get(metric)
    if spread is None:
        return "-"
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
    for heading in ("trial", *(_short(key) for key in shown[0].params), "validation accuracy %", "runs"):
        table.add_column(heading, justify="right")
    for trial in shown:
        params = [_number(key, value) for key, value in trial.params.items()]
        table.add_row(str(trial.number), *params, f"{100 * trial.accuracy:.2f}", str(len(trial.runs)))
    return table


def _short(key: str) -> str:
    return key.removeprefix("loss.") if key in ("loss.alpha", "loss.tau") else key


def _number(key: str, value: str) -> str:
    """A searched value as it is printed: a number with three significant digits, anything else as it is."""
    try:
        return f"{float(value):.3g}"
    except ValueError:
        return value


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
