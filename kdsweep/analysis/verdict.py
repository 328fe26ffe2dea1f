"""The verdict of the confirmation: paired differences of the arms on test.

Only confirmation runs are compared: their seeds chose nothing, and only there is test accuracy read for a decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from kdsweep.analysis import always_valid, chance, statistics
from kdsweep.analysis.sorted_runs import Comparison, finished, repetitions
from kdsweep.tracking.run_records import NOISY, STUDENTS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from kdsweep.analysis.chance import Chance
    from kdsweep.analysis.statistics import Difference, NoiseFloor, SeedsNeeded, WinnersCurse
    from kdsweep.tracking.run_records import RunRecord

METRIC = "test/accuracy"

# The comparisons, first against second, in the order in which they are reported.
PAIRS = (
    *(("distill", "scratch"), ("distill", "label_smoothing"), ("label_smoothing", "scratch")),
    ("distill", "shuffled"),
)

SIGNIFICANCE, CONFIDENCE, POWER = 0.05, 0.95, 0.8


@dataclass(frozen=True)
class Outlier:
    """A run that makes up nearly all of a comparison's noise, as one that collapsed.

    Attributes:
        accuracy: Its test accuracy, a fraction.
        others: The median of its arm's other confirmation runs.
    """

    arm: str
    seed: int
    accuracy: float
    others: float


@dataclass(frozen=True)
class Paired:
    """One arm against another, paired by seed; accuracies are fractions of the test split.

    Attributes:
        first, second: The names of the two arms.
        seeds: The seeds of the pairs.
        firsts, seconds: The accuracies of the two arms, in the order of the seeds.
        difference: The mean difference with its interval.
        adjusted_p: The p value after Holm's correction for all comparisons of the verdict; NaN without a verdict.
        outcome: The verdict.
        bound: The arms are not more than this apart (two one-sided tests, 95 %, or the interval that holds at any
            time); NaN without a verdict.
        pooled: The noise of paired differences over all arms; None if it is unknown.
        detectable: The smallest true difference that so many pairs see with the power `POWER`, from `pooled`; None if
            that or the outcome is unknown.
        seeds_needed: The seeds per arm that see, with this power, a true difference as large as the observed one; None
            if the arms are equal, or `detectable` is unknown.
        outliers: The runs that dominate the comparison.
        without: The same comparison without these runs; None if there are none, or no pairs are left.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    firsts: tuple[float, ...]
    seconds: tuple[float, ...]
    difference: Difference
    adjusted_p: float
    outcome: statistics.Verdict
    bound: float
    pooled: NoiseFloor | None = None
    detectable: float | None = None
    seeds_needed: SeedsNeeded | None = None
    outliers: tuple[Outlier, ...] = ()
    without: Paired | None = None


@dataclass(frozen=True)
class Verdict:
    """The numbers of the verdict.

    Attributes:
        comparisons: The comparisons that could be made; empty without confirmation.
        noise: The standard deviation of test accuracy over seeds; None if no setting was repeated.
        pair_noise: The standard deviation of the difference of two arms' runs with one seed, over all arms, on test;
            None if it is unknown.
        validation_noise: The noise of the search's objective over seeds; None if the search's runs are shorter.
        curse: By how much the search overstated the chosen setting, in the objective's unit; a positive number means
            that the search was too optimistic. None without confirmation.
        expected_curse: By how much the best of as many equal settings would be overstated, by the noise in which their
            trials differ; None if that is unknown, or if some were run more often than others.
        shared_seed: The seed that all trials have, if `expected_curse` leaves out what it does to all settings alike;
            the first of them where each setting has several runs.
        promised, confirmed: The chosen setting's objective in the search, or what the model expected of it where that
            chose; and its mean over fresh seeds.
        chance: The students against the most frequent class. If nothing was learned, no comparison has an outcome.
        at_any_time: Whether intervals and p values hold at any time (`always_valid`), as `sweep.confirm_until` asks.
    """

    comparisons: tuple[Paired, ...] = ()
    noise: NoiseFloor | None = None
    pair_noise: NoiseFloor | None = None
    validation_noise: NoiseFloor | None = None
    curse: WinnersCurse | None = None
    expected_curse: float | None = None
    shared_seed: int | None = None
    promised: float | None = None
    confirmed: float | None = None
    chance: Chance | None = None
    at_any_time: bool = False

    @property
    def nothing_learned(self) -> bool:
        """Whether no student is better than chance, so that there is nothing to compare."""
        return self.chance is not None and self.chance.nothing_learned

    def of(self, first: str, second: str) -> Paired | None:
        """Returns the comparison of these two arms; None if it wasn't made."""
        return next((c for c in self.comparisons if (c.first, c.second) == (first, second)), None)


def judge(found: Comparison) -> Verdict:
    """Computes the verdict's numbers from the sorted runs of a study."""
    objective = found.goals.objective
    noise, validation_noise = (
        statistics.noise_floor(repetitions(found.study, metric), resolution=found.resolution(metric))
        for metric in (METRIC, objective.metric)
    )
    # The noise of long runs isn't that of a search's short ones, and their scores aren't alike.
    if found.goals.short_search:
        validation_noise = None
    luck, shared = (None, None) if found.goals.short_search else _luck(found, validation_noise)
    expected = None
    promise = found.goals.promise
    by_model = promise is not None and promise.by_model
    # The expectation of the best of many; a model has taken the luck off already.
    if luck is not None and len(found.trials) > 1 and not by_model:
        expected = statistics.expected_winners_curse(luck, len(found.trials))
    values = [run.metrics[objective.metric] for run in found.confirmed("distill") if objective.metric in run.metrics]
    curse = promised = confirmed = None
    if values and found.chosen is not None and not found.goals.short_search:
        promised = promise.expected if promise is not None and promise.by_model else found.chosen.value
        confirmed = math.fsum(values) / len(values)
        curse = statistics.winners_curse(
            objective.sign * promised,
            [objective.sign * value for value in values],
            resolution=found.resolution(objective.metric),
        )
    arms = {arm: by_seed(found.confirmed(arm), METRIC) for arm in STUDENTS}
    resolution = found.resolution(METRIC)
    at_any_time = found.goals.confirm_until is not None
    compared = comparisons(arms, resolution, at_any_time=at_any_time)
    against_chance = chance.compare(found)
    if against_chance is not None and against_chance.nothing_learned:
        compared = tuple(replace(paired, outcome="unknown", outliers=(), without=None) for paired in compared)
    return Verdict(
        # What a power says of one look it doesn't say of many.
        comparisons=compared if at_any_time else tuple(planned(paired, len(compared)) for paired in compared),
        noise=noise,
        pair_noise=_pooled(arms, resolution),
        validation_noise=validation_noise,
        curse=curse,
        expected_curse=expected,
        shared_seed=shared,
        promised=promised,
        confirmed=confirmed,
        chance=against_chance,
        at_any_time=at_any_time,
    )


def _luck(found: Comparison, noise: NoiseFloor | None) -> tuple[float | None, int | None]:
    """Returns the standard deviation of the noise by which scores of equal settings differ, and the seed they share.

    What a seed does to all settings alike moves no trial before another, if all trials have it. The rest is measured
    where arms have the same seeds; without such arms it is unknown.

    Args:
        found: The sorted runs.
        noise: The noise of one run's objective over seeds.
    """
    counts = {len(trial.runs) for trial in found.trials}
    if len(counts) > 1:  # nobody knows which of them luck would have lifted
        return None, None
    seeds = {frozenset(run.seed for run in trial.runs if run.seed is not None) for trial in found.trials}
    own = next(iter(seeds)) if len(seeds) == 1 else frozenset()
    shared = min(own, default=None)
    of_a_mean = math.sqrt(max(counts, default=1))
    if shared is None:
        return None if noise is None else noise.sd / of_a_mean, None
    metric = found.goals.objective.metric
    blocks = []
    for stage in ("baseline", "confirmation"):
        arms = [by_seed(_of_stage(found, arm, stage), metric) for arm in STUDENTS if arm != NOISY]
        blocks.append(_block([arm for arm in arms if arm]))
    pairs = statistics.pair_noise(*blocks, resolution=found.resolution(metric))
    return (None if pairs is None else pairs.sd / math.sqrt(2) / of_a_mean), shared


def _of_stage(found: Comparison, arm: str, stage: str) -> Sequence[RunRecord]:
    if stage == "confirmation":
        return found.confirmed(arm)
    return [run for run in finished(found.study, arm) if run.stage == stage]


def _block(arms: Sequence[Mapping[int, float]]) -> list[list[float]]:
    """Returns the values of the seeds that all arms have, (arms, seeds); the arms are seed -> value."""
    common = sorted(set(arms[0]).intersection(*arms[1:])) if arms else []
    return [[arm[seed] for seed in common] for arm in arms]


def comparisons(
    arms: Mapping[str, Mapping[int, float]],
    resolution: float = 0.0,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    *,
    at_any_time: bool = False,
    noisy: Collection[str] = (NOISY,),
) -> tuple[Paired, ...]:
    """Compares the students' arms pair by pair, without `detectable` and `seeds_needed`.

    Args:
        arms: Arm -> seed -> test accuracy.
        resolution: The step of the accuracies, 1 / pictures; 0 if it is unknown.
        pairs: The comparisons, first against second.
        at_any_time: Whether intervals and p values are to hold however often one looks.
        noisy: The arms whose noise is their own, and no part of the others'.
    """
    outliers = _outliers(arms, resolution, pairs)
    clean = {
        arm: {seed: value for seed, value in values.items() if (arm, seed) not in outliers}
        for arm, values in arms.items()
    }
    everything, pooled = (_pooled(kept, resolution, noisy) for kept in (arms, clean))
    compared = _compared(arms, everything, pooled, resolution, outliers, pairs, at_any_time, noisy)
    if not outliers:
        return compared
    again = _compared(clean, pooled, pooled, resolution, {}, pairs, at_any_time, noisy)
    without = {(c.first, c.second): c for c in again}
    return tuple(replace(c, without=without.get((c.first, c.second))) if c.outliers else c for c in compared)


def _pooled(
    arms: Mapping[str, Mapping[int, float]], resolution: float, noisy: Collection[str] = (NOISY,)
) -> NoiseFloor | None:
    # Arms that are the same runs, such as distill with alpha = 0 and scratch, are one arm.
    different = {tuple(sorted(values.items())): values for arm, values in arms.items() if values and arm not in noisy}
    return statistics.pair_noise(_block([*different.values()]), resolution=resolution)


def _compared(
    arms: Mapping[str, Mapping[int, float]],
    everything: NoiseFloor | None,
    pooled: NoiseFloor | None,
    resolution: float,
    outliers: Mapping[tuple[str, int], Outlier],
    pairs: Sequence[tuple[str, str]],
    at_any_time: bool,
    noisy: Collection[str],
) -> tuple[Paired, ...]:
    """Compares the arms pair by pair.

    Args:
        arms: Arm -> seed -> test accuracy.
        everything: The noise of paired differences over all arms and seeds.
        pooled: The same without outliers: a run that collapsed says nothing about the noise of other arms.
        resolution: The step of the accuracies.
        outliers: (arm, seed) -> the runs that dominate a comparison.
        pairs: The comparisons, first against second.
        at_any_time: Whether intervals and p values are to hold however often one looks.
        noisy: The arms whose noise is their own.
    """
    rows = []
    for first, second in pairs:
        if seeds := sorted(arms.get(first, {}).keys() & arms.get(second, {}).keys()):
            rows.append((first, second, seeds, [arms[first][s] for s in seeds], [arms[second][s] for s in seeds]))
    own = [tuple(o for o in outliers.values() if o.arm in row[:2] and o.seed in row[2]) for row in rows]
    shared = [None if {first, second} & {*noisy} else pooled for first, second, *_ in rows]
    differences = [
        statistics.paired_difference(x, y, CONFIDENCE, pooled=None if alone else noise, resolution=resolution)
        for (*_, x, y), alone, noise in zip(rows, own, shared, strict=True)
    ]
    if at_any_time:
        differences = [always_valid.at_any_time(difference, CONFIDENCE) for difference in differences]
    adjusted = statistics.holm([difference.p for difference in differences])
    return tuple(
        Paired(
            first,
            second,
            tuple(seeds),
            tuple(firsts),
            tuple(seconds),
            difference,
            p,
            statistics.verdict(difference, p, SIGNIFICANCE),
            max(abs(difference.low), abs(difference.high))
            if at_any_time
            else statistics.equivalence_bound(difference, CONFIDENCE),
            everything if alone else noise,
            outliers=alone,
        )
        for (first, second, seeds, firsts, seconds), difference, p, alone, noise in zip(
            rows, differences, adjusted, own, shared, strict=True
        )
    )


def planned(paired: Paired, n_comparisons: int) -> Paired:
    """Adds what these pairs can see, and the seeds that it takes to see the observed difference."""
    if paired.outcome == "unknown" or paired.pooled is None:
        return paired
    # A plan has to count on Holm's first step, which is Bonferroni's.
    significance, difference = SIGNIFICANCE / n_comparisons, paired.difference
    detectable = statistics.detectable_difference(difference.n, paired.pooled.sd, POWER, significance)
    if abs(difference.mean) <= statistics.ROUNDING:
        return replace(paired, detectable=detectable)
    needed = statistics.seeds_range(difference.mean, paired.pooled, POWER, significance)
    return replace(paired, detectable=detectable, seeds_needed=needed)


def _outliers(
    arms: Mapping[str, Mapping[int, float]], resolution: float, pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, int], Outlier]:
    """Returns the runs that dominate a comparison: of such a pair, the run that is farther from its arm's others."""
    found = {}
    for first, second in pairs:
        seeds = sorted(arms.get(first, {}).keys() & arms.get(second, {}).keys())
        for place in statistics.dominating([arms[first][s] - arms[second][s] for s in seeds], resolution):
            seed = seeds[place]
            runs = [Outlier(arm, seed, arms[arm][seed], _others(arms[arm], seed)) for arm in (first, second)]
            run = max(runs, key=lambda run: abs(run.accuracy - run.others))
            found[run.arm, seed] = run
    return found


def _others(values: Mapping[int, float], seed: int) -> float:
    return median(value for other, value in values.items() if other != seed)


def by_seed(runs: Iterable[RunRecord], metric: str) -> dict[int, float]:
    """Returns seed -> value of the runs that have a metric."""
    return {
        run.seed: run.metrics[metric]
        for run in runs
        if run.seed is not None and math.isfinite(run.metrics.get(metric, math.nan))
    }


def pair_differences(paired: Paired) -> Sequence[float]:
    """Returns first - second for each pair."""
    return [a - b for a, b in zip(paired.firsts, paired.seconds, strict=True)]
