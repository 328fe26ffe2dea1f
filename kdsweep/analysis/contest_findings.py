"""What a contest found: contenders against each other under each condition, and what one saves against another."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdsweep.analysis import always_valid, chance, statistics, verdict
from kdsweep.analysis.equivalent import Equivalent, equivalents
from kdsweep.analysis.sorted_runs import (
    TARGET_SHARE,
    Comparison,
    Readings,
    Trial,
    arm_label,
    arm_of,
    spread,
)
from kdsweep.analysis.study_goals import Goals, setting
from kdsweep.analysis.verdict import METRIC, SIGNIFICANCE, Paired, Verdict
from kdsweep.tracking.run_records import NOISY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kdsweep.analysis.contest_plan import Condition, Plan
    from kdsweep.analysis.statistics import Difference
    from kdsweep.tracking.run_records import RunRecord, StudyRecord

# The keys of a grid whose values are amounts of something that may be saved, and what that is called.
PICTURES, EPOCHS = "data.train_fraction", "epochs"
AMOUNTS = {PICTURES: "pictures", EPOCHS: "epochs"}


@dataclass(frozen=True)
class Cell:
    """The fresh seeds of a contender under one condition.

    Attributes:
        amount: The number of training pictures or epochs, if the grid is about one of them; NaN if not.
    """

    contender: str
    condition: Condition
    runs: tuple[RunRecord, ...]
    amount: float

    @property
    def is_noisy(self) -> bool:
        """Whether its noise is its own: its student learns from wrong answers."""
        return any(run.arm == NOISY for run in self.runs)

    @property
    def by_seed(self) -> dict[int, float]:
        """Seed -> test accuracy."""
        return verdict.by_seed(self.runs, METRIC)


@dataclass(frozen=True)
class Saved:
    """What a contender saves against the first of those that all are compared with.

    Attributes:
        contender, reference: Their names.
        unit: What is saved: "pictures" or "epochs".
        points: The equivalent of each amount.
    """

    contender: str
    reference: str
    unit: str
    points: tuple[Equivalent, ...]


@dataclass(frozen=True)
class Change:
    """How the difference of two contenders changes from the first condition to the last, paired by seed."""

    first: str
    second: str
    at: tuple[str, str]
    gains: tuple[float, float]
    change: Difference


@dataclass(frozen=True)
class Speed:
    """Epochs and seconds until a validation accuracy is reached for the first time, first - second, paired by seed.

    Attributes:
        place: The condition, in words; empty without a grid.
        level: The accuracy, a fraction.
        reached: How many runs of each of the two reached it, and how many there are.
        epochs, seconds: The differences, over the seeds of which both runs reached it; None if there are none.
        means: The mean epochs of the two.
    """

    first: str
    second: str
    place: str
    level: float
    reached: tuple[int, int, int]
    epochs: Difference | None
    seconds: Difference | None
    means: tuple[float, float]


@dataclass(frozen=True)
class Contest:
    """What was found.

    Attributes:
        plan: What the contest set out to do.
        cells: The contenders under each condition that have fresh seeds.
        saved: What each contender saves, where the grid is about pictures or epochs.
        changes: How differences change along the grid.
        speeds: How fast the contenders learn.
    """

    plan: Plan
    cells: tuple[Cell, ...]
    saved: tuple[Saved, ...] = ()
    changes: tuple[Change, ...] = ()
    speeds: tuple[Speed, ...] = ()

    @property
    def unit(self) -> str | None:
        """What the grid's only key is an amount of: "pictures", "epochs"; None for any other grid, or without one."""
        return AMOUNTS.get(next(iter(self.plan.grid))) if len(self.plan.grid) == 1 else None

    def cell(self, contender: str, condition: Condition) -> Cell | None:
        """Returns a cell; None if it has no runs."""
        return next((c for c in self.cells if (c.contender, c.condition) == (contender, condition)), None)


# ------------------------------------------------------------------------------------------------------ sorting


def compare(study: StudyRecord, readings: Readings, plan: Plan) -> tuple[Comparison, Contest]:
    """Sorts the runs of a contest. Only finished runs count, and of two runs of one job the later one."""
    goals = Goals.read(study.parent.tags)
    runs = list({run.tags.get("kdsweep.job", run.id): run for run in study.runs()}.values())
    beyond = tuple(run for run in runs if run.stage == "confirmation" and _is_beyond(run, goals))
    cells = cells_of([run for run in runs if run not in beyond], plan)
    teacher = [run for run in runs if run.arm == "teacher"]
    reference = spread(
        run.metrics.get("val/accuracy") for cell in cells if cell.contender == plan.against[0] for run in cell.runs
    )
    # Under different conditions, one accuracy is no target for all.
    target = None if reference is None or plan.grid else TARGET_SHARE * reference.mean
    arms = [arm_of("teacher", teacher, False, readings, None)] if teacher else []
    arms += [arm_of(plan.cell(c.contender, c.condition), c.runs, True, readings, target) for c in cells]
    searched = [run for run in runs if run.stage == "search"]
    trials = _trials(searched, goals, plan)
    found = Comparison(study, goals, tuple(arms), trials, None, (), (), target, readings, beyond)
    contest = Contest(plan, tuple(cells))
    return found, replace(
        contest,
        saved=tuple(_saved(contest, found)),
        changes=tuple(_changes(contest, found.resolution(METRIC))),
        # How long it takes with less data is another question.
        speeds=()
        if contest.unit == "pictures"
        else tuple(_speeds(contest, readings, at_any_time=goals.confirm_until is not None)),
    )


def cells_of(runs: Sequence[RunRecord], plan: Plan) -> list[Cell]:
    """Returns the contenders under each condition that have fresh seeds among these runs."""
    cells = []
    for condition in plan.conditions:
        for name in plan.contenders:
            own = tuple(run for run in runs if _belongs(run, name, condition, plan))
            if own:
                cells.append(Cell(name, condition, own, _amount(own, condition)))
    return cells


def _is_beyond(run: RunRecord, goals: Goals) -> bool:
    return goals.stop is not None and run.seed is not None and run.seed > goals.stop.last_seed


def _belongs(run: RunRecord, name: str, condition: Condition, plan: Plan) -> bool:
    tags = run.tags
    place = condition.slug if condition.values else ""
    ours = (tags.get("kdsweep.contender"), tags.get("kdsweep.condition", "")) == (name, place)
    trial = None if name not in plan.chosen else str(plan.chosen[name])
    return ours and run.stage == "confirmation" and tags.get("kdsweep.trial") == trial


def _amount(runs: Sequence[RunRecord], condition: Condition) -> float:
    (key,) = condition.values if len(condition.values) == 1 else ("",)
    if key == EPOCHS:
        return float(condition.values[key])
    counts = {run.splits["training"] for run in runs if "training" in run.splits}
    return float(max(counts)) if key == PICTURES and counts else math.nan


def _trials(runs: Sequence[RunRecord], goals: Goals, plan: Plan) -> tuple[Trial, ...]:
    """Returns the trials of all searches, the best first; their parameters are in one column, since each has others."""
    metrics = [objective.metric for objective in goals.objectives]
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for run in runs:
        name, number = run.tags.get("kdsweep.contender", ""), run.tags.get("kdsweep.trial", "")
        known = not any(math.isnan(run.metrics.get(metric, math.nan)) for metric in metrics)
        if number.isdecimal() and name in plan.contenders and known:
            values = [run.setting(key) for key in plan.searched(name)]
            groups.setdefault((name, "" if goals.repeats else number, *values), []).append(run)
    trials = [
        Trial(
            min(int(run.tags["kdsweep.trial"]) for run in members),
            {
                "contender": arm_label(name),
                "setting": setting(dict(zip(plan.searched(name), values, strict=True))),
            },
            tuple(members),
            tuple(math.fsum(run.metrics[metric] for run in members) / len(members) for metric in metrics),
        )
        for (name, _, *values), members in groups.items()
    ]
    sign = goals.objective.sign
    return tuple(sorted(trials, key=lambda trial: (-sign * trial.value, trial.params["contender"], trial.number)))


# ------------------------------------------------------------------------------------------------------ numbers


def judge(found: Comparison, contest: Contest) -> Verdict:
    """Compares the contenders under each condition, and corrects for all comparisons together."""
    at_any_time = found.goals.confirm_until is not None
    pairs = compared(contest.cells, contest.plan, found.resolution(METRIC), at_any_time=at_any_time)
    metric = found.goals.objective.metric
    noise, validation = (
        statistics.noise_floor(
            [[r.metrics[name] for r in cell.runs if name in r.metrics] for cell in contest.cells if not cell.is_noisy],
            resolution=found.resolution(name),
        )
        for name in (METRIC, metric)
    )
    against_chance = chance.compare(found)
    if against_chance is not None and against_chance.nothing_learned:
        pairs = [replace(paired, outcome="unknown", outliers=(), without=None) for paired in pairs]
    return Verdict(
        # What a power says of one look it doesn't say of many.
        comparisons=tuple(pairs if at_any_time else (verdict.planned(paired, len(pairs)) for paired in pairs)),
        noise=noise,
        validation_noise=validation,
        chance=against_chance,
        at_any_time=at_any_time,
    )


def compared(cells: Sequence[Cell], plan: Plan, resolution: float, *, at_any_time: bool = False) -> list[Paired]:
    """Compares the contenders under each condition, with one correction for all, and without what a plan adds.

    Args:
        cells: Their fresh seeds.
        plan: The contest's.
        resolution: The step of the accuracies, 1 / pictures; 0 if it is unknown.
        at_any_time: Whether intervals and p values are to hold however often one looks.
    """
    noisy = {plan.cell(cell.contender, cell.condition) for cell in cells if cell.is_noisy}
    found: list[Paired] = []
    for condition in plan.conditions:
        arms = {plan.cell(cell.contender, condition): cell.by_seed for cell in cells if cell.condition == condition}
        names = [(plan.cell(a, condition), plan.cell(b, condition)) for a, b in plan.pairs]
        pairs = [pair for pair in names if set(pair) <= arms.keys()]
        # Noise is pooled under one condition alone: little data is noisier than much.
        if pairs:
            found += verdict.comparisons(arms, resolution, pairs, at_any_time=at_any_time, noisy=noisy)
    adjusted = statistics.holm([paired.difference.p for paired in found])
    return [
        replace(paired, adjusted_p=p, outcome=statistics.verdict(paired.difference, p, SIGNIFICANCE))
        for paired, p in zip(found, adjusted, strict=True)
    ]


def _saved(contest: Contest, found: Comparison) -> Iterator[Saved]:
    if contest.unit is None:
        return
    curves = {
        name: {cell.amount: cell.by_seed for cell in contest.cells if cell.contender == name and cell.amount > 0}
        for name in contest.plan.contenders
    }
    reference = contest.plan.against[0]
    for name, curve in curves.items():
        if name != reference:
            points = equivalents(curves[reference], curve, found.resolution(METRIC))
            if points:
                yield Saved(name, reference, contest.unit, points)


def _changes(contest: Contest, resolution: float) -> Iterator[Change]:
    conditions = contest.plan.conditions
    if len(conditions) < 2 or contest.unit is None:
        return
    for first, second in contest.plan.pairs:
        ends = [[contest.cell(name, place) for name in (first, second)] for place in (conditions[0], conditions[-1])]
        if any(cell is None for pair in ends for cell in pair):
            continue
        known = [[cell.by_seed for cell in pair if cell is not None] for pair in ends]
        seeds = sorted(set.intersection(*(set(own) for pair in known for own in pair)))
        if not seeds:
            continue
        early, late = ([pair[0][seed] - pair[1][seed] for seed in seeds] for pair in known)
        gains = math.fsum(early) / len(seeds), math.fsum(late) / len(seeds)
        change = statistics.paired_difference(late, early, resolution=resolution)
        yield Change(first, second, (conditions[0].label, conditions[-1].label), gains, change)


def _speeds(contest: Contest, readings: Readings, *, at_any_time: bool) -> Iterator[Speed]:
    """Compares how long it takes to reach 95 % of what the reference reaches in the end, under each condition."""
    for condition in contest.plan.conditions:
        base = contest.cell(contest.plan.against[0], condition)
        final = None if base is None else spread(run.metrics.get("val/accuracy") for run in base.runs)
        if final is None:
            continue
        level = TARGET_SHARE * final.mean
        for first, second in contest.plan.pairs:
            cells = [contest.cell(name, condition) for name in (first, second)]
            if all(cells) and second == contest.plan.against[0]:
                took = [_reached(cell.runs, level, readings) for cell in cells if cell is not None]
                known = [run.seed for cell in cells if cell is not None for run in cell.runs]
                speed = _speed(first, second, condition.label, level, took, len({*known}))
                yield _at_any_time(speed) if at_any_time else speed


def _at_any_time(speed: Speed) -> Speed:
    own = [None if d is None else always_valid.at_any_time(d) for d in (speed.epochs, speed.seconds)]
    return replace(speed, epochs=own[0], seconds=own[1])


def _reached(runs: Sequence[RunRecord], level: float, readings: Readings) -> dict[int, tuple[float, float]]:
    """Returns seed -> epochs and seconds (NaN if unknown) of the runs that reach a level."""
    found = {}
    for run in runs:
        epochs = [epoch for epoch, accuracy in readings.history("val/accuracy", run) if accuracy >= level]
        if epochs and run.seed is not None:
            took = [second for epoch, second in readings.history("epoch_seconds", run) if epoch <= epochs[0]]
            found[run.seed] = float(epochs[0]), math.fsum(took) if len(took) == epochs[0] else math.nan
    return found


def _speed(
    first: str, second: str, place: str, level: float, took: Sequence[Mapping[int, tuple[float, float]]], n: int
) -> Speed:
    seeds = sorted(took[0].keys() & took[1].keys())
    epochs = seconds = None
    if seeds:
        (x, y), (s, t) = ([[own[seed][index] for seed in seeds] for own in took] for index in (0, 1))
        epochs = statistics.paired_difference(x, y, resolution=1.0)
        if not any(map(math.isnan, (*s, *t))):
            seconds = statistics.paired_difference(s, t)
    means = [math.fsum(own[seed][0] for seed in seeds) / len(seeds) if seeds else math.nan for own in took]
    return Speed(first, second, place, level, (len(took[0]), len(took[1]), n), epochs, seconds, (means[0], means[1]))
