"""The runs of a study, sorted: arms with their spread, the trials of the search, and which runs can be paired."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdsweep.analysis.metrics import COLUMNS, EPOCHS_TO_TARGET, row
from kdsweep.analysis.study_goals import PARAMETERS, Goals, Objective
from kdsweep.config.keys import in_setting, may_differ_in_repeats
from kdsweep.tracking.run_records import ARMS, NOISY, STUDENTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdsweep.tracking.run_records import RunRecord, StudyRecord

# The target accuracy, as a share of what scratch reaches in the end.
TARGET_SHARE = 0.95

# Run id -> (epoch, value) of each epoch; epochs are counted from 1.
Histories = Mapping[str, Sequence[tuple[int, float]]]
# A reliability diagram: {"count", "confidence", "accuracy"} of each bin; the last two are None in an empty one.
Bins = Sequence[Mapping[str, float | None]]


@dataclass(frozen=True)
class ClassCount:
    """How many test pictures a class has, and how many of them a run got right."""

    name: str
    pictures: int
    right: int


@dataclass(frozen=True)
class Readings:
    """What was read from the runs besides the last values of their metrics.

    Attributes:
        histories: Metric -> the histories of the runs that have it.
        bins: Run id -> the reliability diagram on the test split, for confirmation runs.
        classes: Run id -> the counts of each class on the test split, for confirmation runs and the teacher.
        environment: What one of the runs ran on, as `kdsweep.system.environment.describe` says it; empty if unknown.
    """

    histories: Mapping[str, Histories] = field(default_factory=dict)
    bins: Mapping[str, Bins] = field(default_factory=dict)
    classes: Mapping[str, Sequence[ClassCount]] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    def history(self, metric: str, run: RunRecord) -> Sequence[tuple[int, float]]:
        """Returns (epoch, value) of a run's metric without NaN; empty if the run doesn't have the metric."""
        return [(e, value) for e, value in self.histories.get(metric, {}).get(run.id, ()) if math.isfinite(value)]


@dataclass(frozen=True)
class Spread:
    """A metric over the runs of an arm; `sd` is the sample standard deviation, NaN for one run."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Arm:
    """A row of the comparison: the runs of one arm, which repeat one setting, and the spread of each of their metrics.

    Attributes:
        name: The arm, one of `kdsweep.tracking.run_records.ARMS`.
        confirmed: Whether the runs are those of the confirmation, whose seeds decided nothing before.
    """

    name: str
    runs: tuple[RunRecord, ...]
    metrics: dict[str, Spread]
    confirmed: bool

    @property
    def label(self) -> str:
        """The arm as it is printed."""
        return arm_label(self.name)


@dataclass(frozen=True)
class Trial:
    """One setting of the search: its number, the parameters that the search varied, and its runs (mostly one).

    Attributes:
        number: That of the first of its runs.
        values: The mean over the runs of each objective; `value` is the first of them.
    """

    number: int
    params: dict[str, str]
    runs: tuple[RunRecord, ...]
    values: tuple[float, ...]

    @property
    def value(self) -> float:
        """The value of the first objective, by which trials are ranked."""
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
class OtherChoice:
    """A trial with fresh seeds that isn't the chosen one: the study chose it before it was extended.

    Attributes:
        earlier: Whether its fresh seeds began before those of the chosen setting.
        accuracy: Their test accuracy; None if no run has one.
    """

    number: int
    params: dict[str, str]
    runs: tuple[RunRecord, ...]
    earlier: bool
    accuracy: Spread | None


@dataclass(frozen=True)
class Comparison:
    """The sorted runs of a study.

    Attributes:
        arms: One for each arm that has finished runs. It holds the runs of the confirmation, if there are any; else the
            baselines, or for distill the runs of the chosen trial.
        trials: All settings of distilled runs, the best first; of equal ones the earlier first.
        chosen: The trial whose setting the distilled arm has; None without trials.
        beyond: Confirmation runs with seeds later than the last that counts (`Stop`); no arm has them.
        others: The trials with fresh seeds that are not the chosen one; no arm has their runs.
        pruned: The trials that were stopped, in the order of their numbers.
        target: The validation accuracy (a fraction) that the column "epochs to target" is about; None without scratch
            runs.
    """

    study: StudyRecord
    goals: Goals
    arms: tuple[Arm, ...]
    trials: tuple[Trial, ...]
    chosen: Trial | None
    others: tuple[OtherChoice, ...]
    pruned: tuple[Pruned, ...]
    target: float | None
    readings: Readings
    beyond: tuple[RunRecord, ...] = ()

    def arm(self, name: str) -> Arm | None:
        """Returns the arm of this name; None if it has no runs."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def confirmed(self, name: str) -> tuple[RunRecord, ...]:
        """Returns the confirmation runs of an arm; empty if there are none."""
        arm = self.arm(name)
        return arm.runs if arm is not None and arm.confirmed else ()

    def searched(self, trial: Trial) -> bool:
        """Returns whether a trial lies in what is searched now; it doesn't if the space was another one then."""
        return all(own.holds(trial.params[own.key]) for own in self.goals.space if own.key in trial.params)

    @property
    def test_pictures(self) -> int | None:
        """The number of pictures in the test split, from the reliability diagrams; None without any."""
        totals = [sum(int(bar["count"] or 0) for bar in diagram) for diagram in self.readings.bins.values()]
        return min((total for total in totals if total), default=None)

    def resolution(self, metric: str) -> float:
        """Returns the step of a metric that is counted on a split, 1 / pictures; 0 if there is none, or none known."""
        if not row(metric).counted:
            return 0.0
        if metric.startswith("test/"):
            return 0.0 if self.test_pictures is None else 1 / self.test_pictures
        sizes = {run.params.get("data.val_size", "") for run in self.study.children}
        counts = [int(size) for size in sizes if size.isdecimal() and int(size) > 0]
        return 1 / min(counts) if counts else 0.0

    def seconds(self, arm: str) -> list[float]:
        """Returns the seconds of each finished run of an arm, without the teacher's passes if the run logged those.

        Runs that are shorter than those of the confirmation don't count.
        """
        short = {run.id for trial in self.trials for run in trial.runs} if self.goals.short_search else set()
        runs = [run for run in finished(self.study, arm) if run.id not in short and not is_short_pilot(run)]
        seconds = [run.metrics.get("seconds", run.duration_s) for run in runs]
        return [value for value in seconds if value is not None]


def arm_label(name: str) -> str:
    """Returns the name of an arm as it is printed: "label smoothing"."""
    # A contest's arm under a condition is "kd at 0.1", and the condition stays as it is.
    arm, at, place = name.partition(" at ")
    return f"{arm.replace('_', ' ')}{at}{place}"


def pair_label(first: str, second: str) -> str:
    """Returns the names of two arms as their difference is printed: "kd - ce", "distill - scratch at 0.1"."""
    (one, _, place), (other, _, its) = (arm_label(name).partition(" at ") for name in (first, second))
    return f"{one} - {other} at {place}" if place and place == its else f"{arm_label(first)} - {arm_label(second)}"


def compare(study: StudyRecord, readings: Readings) -> Comparison:
    """Sorts the runs of a study. Only finished runs count, and of two runs of one job the later one."""
    goals = Goals.read(study.parent.tags)
    fresh = {arm: [run for run in finished(study, arm) if run.stage == "confirmation"] for arm in STUDENTS}
    runs = {arm: [run for run in finished(study, arm) if run.stage != "confirmation"] for arm in ARMS}
    runs["distill"] = [run for run in runs["distill"] if _of_search(run, goals)]
    trials = _trials(runs["distill"], goals)
    chosen = next((trial for trial in trials if trial.number == goals.chosen), trials[0] if trials else None)
    runs["distill"] = [] if chosen is None else list(chosen.runs)
    number = goals.chosen if chosen is None else chosen.number
    others = _others(fresh["distill"], number, _searched(study.runs("distill"), goals))
    elsewhere = {run.id for other in others for run in other.runs}
    fresh["distill"] = [run for run in fresh["distill"] if run.id not in elsewhere]
    fresh[NOISY] = _as_chosen(fresh[NOISY], number)
    beyond = [run for own in fresh.values() for run in own if _beyond(run, goals, number)]
    fresh = {arm: [run for run in own if run not in beyond] for arm, own in fresh.items()}
    shown = {arm: fresh.get(arm) or runs[arm] for arm in ARMS}
    scratch = spread(run.metrics.get("val/accuracy") for run in shown["scratch"])
    target = None if scratch is None else TARGET_SHARE * scratch.mean
    arms = (arm_of(arm, members, bool(fresh.get(arm)), readings, target) for arm, members in shown.items() if members)
    pruned = _pruned(study, goals, trials)
    return Comparison(study, goals, tuple(arms), trials, chosen, others, pruned, target, readings, tuple(beyond))


def _as_chosen(fresh: Sequence[RunRecord], chosen: int | None) -> list[RunRecord]:
    """Returns the runs of a control that have the chosen setting; in studies of before they don't say which one."""
    own = [run for run in fresh if run.tags.get("kdsweep.trial") == str(chosen)]
    return own or [run for run in fresh if "kdsweep.trial" not in run.tags]


def _beyond(run: RunRecord, goals: Goals, chosen: int | None) -> bool:
    """Returns whether a confirmation run comes after the last seed that counts for the chosen trial."""
    stop = goals.stop
    return stop is not None and stop.trial == chosen and run.seed is not None and run.seed > stop.last_seed


def is_short_pilot(run: RunRecord) -> bool:
    """Returns whether a run is one of the pilot's short ones."""
    return run.stage == "pilot" and run.tags.get("kdsweep.job", "").endswith("-short")


def _of_search(run: RunRecord, goals: Goals) -> bool:
    """Returns whether a run counts as a trial's: of the pilot's runs, those of the length that the search has."""
    number = run.tags.get("kdsweep.trial", "")
    if run.stage != "pilot" or goals.fidelity is None:
        return run.stage != "pilot"
    return number.isdecimal() and run.tags.get("kdsweep.job") == goals.fidelity.job(int(number))


def finished(study: StudyRecord, arm: str) -> list[RunRecord]:
    """Returns the finished runs of an arm; of a job that was done more than once, the last run."""
    return list({run.tags.get("kdsweep.job", run.id): run for run in study.runs(arm)}.values())


def differing(runs: Sequence[RunRecord], of_interest: Callable[[str], bool]) -> set[str]:
    """Returns the parameters of interest that are not the same in all runs."""
    known = {key for run in runs for key in run.params if of_interest(key)}
    return {key for key in known if len({run.params.get(key) for run in runs}) > 1}


def repetitions(study: StudyRecord, metric: str) -> list[list[float]]:
    """Returns the values of a metric for each setting that was run more than once, of all students but `NOISY`."""
    groups: dict[tuple[object, ...], list[float]] = {}
    for arm in (arm for arm in STUDENTS if arm != NOISY):
        for run in finished(study, arm):
            if math.isfinite(run.metrics.get(metric, math.nan)):
                key = arm, *sorted((key, value) for key, value in run.params.items() if in_setting(key))
                groups.setdefault(key, []).append(run.metrics[metric])
    return [values for values in groups.values() if len(values) > 1]


def pareto(trials: Sequence[Trial], objectives: Sequence[Objective]) -> tuple[Trial, ...]:
    """Returns, in their order, the trials that no other beats in one objective without losing in another."""
    points = [[o.sign * value for o, value in zip(objectives, trial.values, strict=True)] for trial in trials]

    def beaten(point: Sequence[float]) -> bool:
        return any(other != point and all(a >= b for a, b in zip(other, point, strict=True)) for other in points)

    return tuple(trial for trial, point in zip(trials, points, strict=True) if not beaten(point))


def spread(values: Iterable[float | None]) -> Spread | None:
    """Returns mean and sample standard deviation of the values that aren't None; None if there are none."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    sd = statistics.stdev(present) if len(present) > 1 else math.nan
    return Spread(statistics.fmean(present), sd, len(present))


def _trials(runs: Sequence[RunRecord], goals: Goals) -> tuple[Trial, ...]:
    """Groups distilled runs by setting, and by trial number where the search gave one; the best trial comes first."""
    metrics = [objective.metric for objective in goals.objectives]
    keys = _searched(runs, goals)
    settings: dict[tuple[str, ...], list[tuple[int, RunRecord]]] = {}
    for index, run in enumerate(runs):
        if all(math.isfinite(run.metrics.get(metric, math.nan)) for metric in metrics):
            number = run.tags.get("kdsweep.trial", "")
            setting = tuple(run.setting(key) for key in keys)
            own = "" if goals.repeats else number
            settings.setdefault((own, *setting), []).append((int(number) if number.isdecimal() else index, run))
    trials = [
        Trial(
            number=min(number for number, _ in members),
            params=dict(zip(keys, setting, strict=True)),
            runs=tuple(run for _, run in members),
            values=tuple(statistics.fmean(run.metrics[metric] for _, run in members) for metric in metrics),
        )
        for (_, *setting), members in settings.items()
    ]
    return tuple(sorted(trials, key=lambda trial: (-goals.objective.sign * trial.value, trial.number)))


def _others(fresh: Sequence[RunRecord], chosen: int | None, keys: Sequence[str]) -> tuple[OtherChoice, ...]:
    """Returns the trials, by number, whose fresh seeds are not those of the trial with the number `chosen`.

    Args:
        fresh: The distilled runs of confirmations, in the order of their start.
        chosen: The number of the chosen trial; None if there is none.
        keys: The searched keys.
    """
    groups: dict[int, list[RunRecord]] = {}
    for run in fresh:
        number = run.tags.get("kdsweep.trial", "")
        if number.isdecimal() and int(number) != chosen:
            groups.setdefault(int(number), []).append(run)
    elsewhere = {run.id for runs in groups.values() for run in runs}
    began = next((place for place, run in enumerate(fresh) if run.id not in elsewhere), len(fresh))
    return tuple(
        OtherChoice(
            number,
            {key: runs[0].params.get(key, "-") for key in keys},
            tuple(runs),
            fresh.index(runs[0]) < began,
            spread(run.metrics.get("test/accuracy") for run in runs),
        )
        for number, runs in sorted(groups.items())
    )


def _searched(runs: Sequence[RunRecord], goals: Goals) -> list[str]:
    """Returns the keys that the search varies; if the study doesn't say, alpha, tau and all that differ in the runs."""
    keys = {dimension.key for dimension in goals.space}
    if not keys:
        every = {key for run in runs for key in run.params if not may_differ_in_repeats(key)}
        keys = {*PARAMETERS, *(key for key in every if len({run.params.get(key) for run in runs}) > 1)}
    return sorted(keys, key=lambda key: (not key.startswith("loss."), key))


def _pruned(study: StudyRecord, goals: Goals, trials: Sequence[Trial]) -> tuple[Pruned, ...]:
    done = {trial.number for trial in trials}
    keys = _searched(study.runs("distill"), goals)
    found = {}
    for run in study.runs("distill", status="KILLED"):
        epoch, number = run.tags.get("kdsweep.pruned", ""), run.tags.get("kdsweep.trial", "")
        if epoch.isdecimal() and number.isdecimal() and int(number) not in done:
            # A stopped run's last value is that of the epoch at which it was stopped.
            value = run.metrics.get(goals.objective.metric, math.nan)
            params = {key: run.setting(key) for key in keys}
            epochs = int(run.params.get("epochs", epoch))
            found[int(number)] = Pruned(int(number), params, int(epoch), epochs, value)
    return tuple(found[number] for number in sorted(found))


def arm_of(arm: str, runs: Sequence[RunRecord], confirmed: bool, readings: Readings, target: float | None) -> Arm:
    """Returns the row of an arm's runs, with the metrics that the report's table shows."""
    values = [dict(run.metrics) for run in runs]
    for run, metrics in zip(runs, values, strict=True):
        if run.duration_s is not None:
            metrics.setdefault("seconds", run.duration_s)
        history = readings.history("val/accuracy", run) if arm != "teacher" else []
        reached = [epoch for epoch, accuracy in history if target is not None and accuracy >= target]
        if reached:
            metrics[EPOCHS_TO_TARGET] = min(reached)
    spreads = {metric: spread(metrics.get(metric) for metrics in values) for metric in COLUMNS}
    return Arm(arm, tuple(runs), {name: found for name, found in spreads.items() if found is not None}, confirmed)
