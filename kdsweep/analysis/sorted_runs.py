"""The runs of a study, sorted: arms with their spread, the trials of the search, and which runs can be paired."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdsweep.analysis.study_goals import Aims, Objective

if TYPE_CHECKING:
    from kdsweep.tracking.run_records import RunRecord, StudyRecord

# Arms in the table's order, as they are tagged. Those of STUDENTS are confirmed with fresh seeds.
ROLES = ("teacher", "scratch", "label_smoothing", "distill")
STUDENTS = ROLES[1:]

# An epoch counts as fast when it comes this close to what scratch reaches in the end.
TARGET_SHARE = 0.95
EPOCHS_TO_TARGET = "epochs_to_target"

# The metrics of an arm, in the table's order.
METRICS = ("val/accuracy", "test/accuracy", "test/nll", "test/ece", "test/agreement", EPOCHS_TO_TARGET, "seconds")

# Two distilled runs that differ in these alone are repetitions of one setting.
REPETITION = re.compile(r"(\w+_)?seed$|(tracking|paths|sweep|runtime)\.|(threads|device)$")
# A comparison is fair where these agree.
TRAINING = re.compile(r"(data|model|optimizer|schedule)\.|(epochs|batch_size|n_passes|precision|memory_format)$")
# Two runs that agree in these, too, repeat each other.
SETTING = re.compile(rf"{TRAINING.pattern}|(loss|teacher)\.")

# Run id -> (epoch from 1, value) of each epoch.
Histories = Mapping[str, Sequence[tuple[int, float]]]
# A reliability diagram: {"count", "confidence", "accuracy"} of each bin; the last two are None in an empty one.
Bins = Sequence[Mapping[str, float | None]]


@dataclass(frozen=True)
class Readings:
    """What was read of the runs besides their last metrics.

    Attributes:
        histories: Metric name to the histories of the runs that have it.
        bins: Run id to the reliability diagram on the test split, of confirmation runs.
    """

    histories: Mapping[str, Histories] = field(default_factory=dict)
    bins: Mapping[str, Bins] = field(default_factory=dict)

    def history(self, metric: str, run: RunRecord) -> Sequence[tuple[int, float]]:
        """(epoch, value) of a run's metric, NaN left out; empty where it has none."""
        return [(e, value) for e, value in self.histories.get(metric, {}).get(run.id, ()) if math.isfinite(value)]


@dataclass(frozen=True)
class Spread:
    """A metric over the runs of an arm; `sd` is the sample standard deviation, NaN for one run."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Arm:
    """A row of the comparison: runs of one role that repeat one setting, and the spread of each metric they have.

    Attributes:
        confirmed: Whether the runs are those of the confirmation, with seeds that decided nothing before.
    """

    role: str
    runs: tuple[RunRecord, ...]
    metrics: dict[str, Spread]
    confirmed: bool

    @property
    def name(self) -> str:
        """The role as it is printed."""
        return self.role.replace("_", " ")


@dataclass(frozen=True)
class Trial:
    """One setting of the search: its number, the parameters that the search varied, and its runs (mostly one).

    Attributes:
        values: One for each objective, each the mean over the runs; `value` is the first.
    """

    number: int
    params: dict[str, str]
    runs: tuple[RunRecord, ...]
    values: tuple[float, ...]

    @property
    def value(self) -> float:
        """By which trials are ranked."""
        return self.values[0]


@dataclass(frozen=True)
class Pruned:
    """A trial that was stopped after `epoch` of `epochs`, when its objective was `value` (NaN if unknown)."""

    number: int
    params: dict[str, str]
    epoch: int
    epochs: int
    value: float


@dataclass(frozen=True)
class Comparison:
    """The sorted runs of a study.

    Attributes:
        arms: One for each role that has finished runs: those of the confirmation where there are any, else the
            baselines, and the chosen trial's.
        trials: All settings of distilled runs, the best first, at equal values the earlier one.
        chosen: The trial that the distilled arm is; None without trials.
        pruned: The trials that were stopped, by number.
        target: The validation accuracy (a fraction) of the column "epochs to target"; None without scratch runs.
    """

    study: StudyRecord
    aims: Aims
    arms: tuple[Arm, ...]
    trials: tuple[Trial, ...]
    chosen: Trial | None
    pruned: tuple[Pruned, ...]
    target: float | None
    readings: Readings

    def arm(self, role: str) -> Arm | None:
        """The arm of this role, if it has runs."""
        return next((arm for arm in self.arms if arm.role == role), None)

    def confirmed(self, role: str) -> tuple[RunRecord, ...]:
        """The confirmation runs of a role; empty where there are none."""
        arm = self.arm(role)
        return arm.runs if arm is not None and arm.confirmed else ()

    def seconds(self, role: str) -> list[float]:
        """Seconds of every finished run of a role, without the teacher's passes where the run told them apart."""
        runs = finished(self.study, role)
        seconds = [run.metrics.get("seconds", run.duration_s) for run in runs]
        return [value for value in seconds if value is not None]


def compare(study: StudyRecord, readings: Readings) -> Comparison:
    """Sorts the runs of a study; only finished children count, and of two runs of one job the later one."""
    aims = Aims.read(study.parent.tags)
    fresh = {role: _stage(study, role, "confirmation") for role in STUDENTS}
    runs = {role: [run for run in finished(study, role) if run.stage != "confirmation"] for role in ROLES}
    trials = _trials(runs["distill"], aims)
    chosen = next((trial for trial in trials if trial.number == aims.chosen), trials[0] if trials else None)
    runs["distill"] = [] if chosen is None else list(chosen.runs)
    shown = {role: fresh.get(role) or runs[role] for role in ROLES}
    scratch = spread(run.metrics.get("val/accuracy") for run in shown["scratch"])
    target = None if scratch is None else TARGET_SHARE * scratch.mean
    arms = (_arm(role, members, bool(fresh.get(role)), readings, target) for role, members in shown.items() if members)
    return Comparison(study, aims, tuple(arms), trials, chosen, _pruned(study, aims, trials), target, readings)


def finished(study: StudyRecord, role: str) -> list[RunRecord]:
    """The finished runs of a role, each job once: a job that was done again counts as it was done last."""
    return list({run.tags.get("kdsweep.job", run.id): run for run in study.runs(role)}.values())


def differing(runs: Sequence[RunRecord], keys: re.Pattern[str]) -> set[str]:
    """The parameters, of those that `keys` matches, that are not the same in all runs."""
    known = {key for run in runs for key in run.params if keys.match(key)}
    return {key for key in known if len({run.params.get(key) for run in runs}) > 1}


def repetitions(study: StudyRecord, metric: str) -> list[list[float]]:
    """The values of a metric over the runs of each setting that was run more than once, whatever arm it belongs to."""
    groups: dict[tuple[object, ...], list[float]] = {}
    for role in STUDENTS:
        for run in finished(study, role):
            if math.isfinite(run.metrics.get(metric, math.nan)):
                key = role, *sorted((key, value) for key, value in run.params.items() if SETTING.match(key))
                groups.setdefault(key, []).append(run.metrics[metric])
    return [values for values in groups.values() if len(values) > 1]


def pareto(trials: Sequence[Trial], objectives: Sequence[Objective]) -> tuple[Trial, ...]:
    """The trials that no other trial beats in one objective without losing in another, in the given order."""
    points = [[o.sign * value for o, value in zip(objectives, trial.values, strict=True)] for trial in trials]

    def beaten(point: Sequence[float]) -> bool:
        return any(other != point and all(a >= b for a, b in zip(other, point, strict=True)) for other in points)

    return tuple(trial for trial, point in zip(trials, points, strict=True) if not beaten(point))


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and sample standard deviation of the values that are there."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    sd = statistics.stdev(present) if len(present) > 1 else math.nan
    return Spread(statistics.fmean(present), sd, len(present))


def _stage(study: StudyRecord, role: str, stage: str) -> list[RunRecord]:
    return [run for run in finished(study, role) if run.stage == stage]


def _trials(runs: Sequence[RunRecord], aims: Aims) -> tuple[Trial, ...]:
    """Distilled runs by setting (and by number, where a search gave them one), the best first."""
    metrics = [objective.metric for objective in aims.objectives]
    keys = _searched(runs, aims)
    settings: dict[tuple[str, ...], list[tuple[int, RunRecord]]] = {}
    for index, run in enumerate(runs):
        if all(math.isfinite(run.metrics.get(metric, math.nan)) for metric in metrics):
            number = run.tags.get("kdsweep.trial", "")
            setting = tuple(run.params.get(key, "-") for key in keys)
            settings.setdefault((number, *setting), []).append((int(number) if number.isdecimal() else index, run))
    trials = [
        Trial(
            number=min(number for number, _ in members),
            params=dict(zip(keys, setting, strict=True)),
            runs=tuple(run for _, run in members),
            values=tuple(statistics.fmean(run.metrics[metric] for _, run in members) for metric in metrics),
        )
        for (_, *setting), members in settings.items()
    ]
    return tuple(sorted(trials, key=lambda trial: (-aims.objective.sign * trial.value, trial.number)))


def _searched(runs: Sequence[RunRecord], aims: Aims) -> list[str]:
    """The keys that the search varies; where the study doesn't say, alpha, tau and what differs between the runs."""
    keys = {dimension.key for dimension in aims.space}
    if not keys:
        every = {key for run in runs for key in run.params if not REPETITION.match(key)}
        keys = {"loss.alpha", "loss.tau"} | {key for key in every if len({run.params.get(key) for run in runs}) > 1}
    return sorted(keys, key=lambda key: (not key.startswith("loss."), key))


def _pruned(study: StudyRecord, aims: Aims, trials: Sequence[Trial]) -> tuple[Pruned, ...]:
    done = {trial.number for trial in trials}
    keys = _searched(study.runs("distill"), aims)
    found = {}
    for run in study.runs("distill", status="KILLED"):
        epoch, number = run.tags.get("kdsweep.pruned", ""), run.tags.get("kdsweep.trial", "")
        if epoch.isdecimal() and number.isdecimal() and int(number) not in done:
            # A stopped run's last value is that of the epoch at which it was stopped.
            value = run.metrics.get(aims.objective.metric, math.nan)
            params = {key: run.params.get(key, "-") for key in keys}
            epochs = int(run.params.get("epochs", epoch))
            found[int(number)] = Pruned(int(number), params, int(epoch), epochs, value)
    return tuple(found[number] for number in sorted(found))


def _arm(role: str, runs: Sequence[RunRecord], confirmed: bool, readings: Readings, target: float | None) -> Arm:
    values = [dict(run.metrics) for run in runs]
    for run, metrics in zip(runs, values, strict=True):
        if run.duration_s is not None:
            metrics.setdefault("seconds", run.duration_s)
        history = readings.history("val/accuracy", run) if role != "teacher" else []
        reached = [epoch for epoch, accuracy in history if target is not None and accuracy >= target]
        if reached:
            metrics[EPOCHS_TO_TARGET] = min(reached)
    spreads = {metric: spread(metrics.get(metric) for metrics in values) for metric in METRICS}
    return Arm(role, tuple(runs), {name: found for name, found in spreads.items() if found is not None}, confirmed)
