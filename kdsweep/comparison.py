"""What a study found: arms, trials, and sentences about their difference, computed from the runs alone."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdsweep.records import RunRecord, StudyRecord

# Arms in the table's order, as they are tagged.
ROLES = ("teacher", "scratch", "label_smoothing", "distill")

# An epoch counts as fast when it comes this close to what scratch reaches in the end.
TARGET_SHARE = 0.95
EPOCHS_TO_TARGET = "epochs_to_target"

# The metrics of an arm, in the table's order.
METRICS = ("val/accuracy", "test/accuracy", "test/nll", "test/ece", "test/agreement", EPOCHS_TO_TARGET, "seconds")

# Two runs that differ in these alone are repetitions of one setting.
REPETITION = re.compile(r"(\w+_)?seed$|tracking\.|paths\.")
# A comparison is fair where these agree.
TRAINING = re.compile(r"(data|model|optimizer|schedule)\.|(epochs|batch_size|n_passes|precision)$")

SAME = 0.005  # points; less is not visible in the table

# Run id -> (epoch from 1, validation accuracy) of each epoch.
Histories = Mapping[str, Sequence[tuple[int, float]]]


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
        files: What `kdsweep.report.write` wrote.
    """

    study: StudyRecord
    arms: tuple[Arm, ...]
    trials: tuple[Trial, ...]
    target: float | None
    findings: tuple[str, ...]
    missing: tuple[str, ...]
    files: tuple[Path, ...] = field(default=())


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


def short_key(key: str) -> str:
    """A searched key as it is printed: alpha for loss.alpha, any other in full."""
    return key.removeprefix("loss.") if key in ("loss.alpha", "loss.tau") else key


def short_value(key: str, value: str) -> str:
    """A searched value as it is printed: a number with three significant digits, anything else as it is."""
    try:
        return f"{float(value):.3g}"
    except ValueError:
        return value


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
    spreads = {metric: _spread(metrics.get(metric) for metrics in values) for metric in METRICS}
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
    return ", ".join(f"{short_key(key)} {short_value(key, value)}" for key, value in params.items())


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
