"""The verdict of the confirmation: paired differences of the arms on test, and the words that their numbers allow.

Only confirmation runs are compared: their seeds chose nothing, and only there is test accuracy read for a decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdsweep.analysis import statistics
from kdsweep.analysis.sorted_runs import Comparison, arm_label, repetitions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kdsweep.analysis.statistics import Difference, NoiseFloor, WinnersCurse

METRIC = "test/accuracy"

# The comparisons, first against second, in the order in which they are reported.
PAIRS = (("distill", "scratch"), ("distill", "label_smoothing"), ("label_smoothing", "scratch"))

SIGNIFICANCE, CONFIDENCE, POWER = 0.05, 0.95, 0.8
# A tenth of a point: the report says how many seeds it would take to see such a difference.
WANTED = 0.001


@dataclass(frozen=True)
class Paired:
    """One arm against another, paired by seed; accuracies are fractions of the test split.

    Attributes:
        first, second: The names of the two arms.
        seeds: The seeds of the pairs.
        firsts, seconds: The accuracies of the two arms, in the order of the seeds.
        difference: The mean difference with its intervals.
        adjusted_p: The p value after Holm's correction for all comparisons of the verdict; NaN for one pair.
        outcome: The verdict.
        bound: The arms are not more than this apart (two one-sided tests, 95 %); NaN for one pair.
        seeds_needed: The seeds per arm that show a difference of `WANTED` with the power `POWER`; None for one pair.
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
    seeds_needed: int | None


@dataclass(frozen=True)
class Verdict:
    """The numbers of the verdict.

    Attributes:
        comparisons: The comparisons that could be made; empty without confirmation.
        noise: The standard deviation of test accuracy over seeds; None if no setting was repeated.
        validation_noise: The same for the search's objective.
        curse: By how much the search overstated the chosen setting, in the objective's unit; a positive number means
            that the search was too optimistic. None without confirmation.
        expected_curse: By how much the best of as many equal settings would be overstated, from `validation_noise`;
            None without that noise.
        promised, confirmed: The chosen setting's objective in the search, and its mean over fresh seeds.
    """

    comparisons: tuple[Paired, ...] = ()
    noise: NoiseFloor | None = None
    validation_noise: NoiseFloor | None = None
    curse: WinnersCurse | None = None
    expected_curse: float | None = None
    promised: float | None = None
    confirmed: float | None = None

    def of(self, first: str, second: str) -> Paired | None:
        """Returns the comparison of these two arms; None if it wasn't made."""
        return next((c for c in self.comparisons if (c.first, c.second) == (first, second)), None)


def judge(found: Comparison) -> Verdict:
    """Computes the verdict's numbers from the sorted runs of a study."""
    objective = found.goals.objective
    noise = statistics.noise_floor(repetitions(found.study, METRIC))
    validation_noise = statistics.noise_floor(repetitions(found.study, objective.metric))
    expected = None
    if validation_noise is not None and len(found.trials) > 1:
        expected = statistics.expected_winners_curse(validation_noise.sd, len(found.trials))
    values = [run.metrics[objective.metric] for run in found.confirmed("distill") if objective.metric in run.metrics]
    curse = promised = confirmed = None
    if values and found.chosen is not None:
        promised, confirmed = found.chosen.value, math.fsum(values) / len(values)
        curse = statistics.winners_curse(objective.sign * promised, [objective.sign * value for value in values])
    return Verdict(_comparisons(found), noise, validation_noise, curse, expected, promised, confirmed)


def _comparisons(found: Comparison) -> tuple[Paired, ...]:
    paired = []
    for first, second in PAIRS:
        firsts, seconds = _by_seed(found, first), _by_seed(found, second)
        if seeds := sorted(firsts.keys() & seconds.keys()):
            paired.append((first, second, seeds, [firsts[seed] for seed in seeds], [seconds[seed] for seed in seeds]))
    differences = [statistics.paired_difference(ours, theirs, CONFIDENCE) for *_, ours, theirs in paired]
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
            statistics.equivalence_bound(difference, CONFIDENCE),
            _seeds_needed(difference, len(paired)),
        )
        for (first, second, seeds, firsts, seconds), difference, p in zip(paired, differences, adjusted, strict=True)
    )


def _by_seed(found: Comparison, arm: str) -> dict[int, float]:
    """Returns seed -> test accuracy of an arm's confirmation runs."""
    return {
        run.seed: run.metrics[METRIC]
        for run in found.confirmed(arm)
        if run.seed is not None and math.isfinite(run.metrics.get(METRIC, math.nan))
    }


def _seeds_needed(difference: Difference, comparisons: int) -> int | None:
    if difference.n < 2:
        return None
    # A plan has to count on Holm's first step, which is Bonferroni's.
    return statistics.seeds_needed(WANTED, difference.sd, POWER, SIGNIFICANCE / comparisons)


def headline(verdict: Verdict) -> str:
    """States the verdict in one or two sentences: distillation against scratch, and against label smoothing."""
    scratch, smoothing = verdict.of("distill", "scratch"), verdict.of("distill", "label_smoothing")
    if scratch is None:
        return "No verdict: that takes fresh seeds of the chosen setting and of scratch, and there are none."
    if scratch.outcome == "unknown":
        return "No verdict: one pair of runs says nothing about the noise over seeds."
    interval = f"({_interval(scratch.difference, _sign(scratch))})"
    if scratch.outcome == "not distinguishable":
        return (
            f"Distillation is not distinguishable from scratch: {_signed(scratch.difference.mean)} points on test "
            f"{interval}, and not more than {_points(scratch.bound)} points apart.{_aside(smoothing)}"
        )
    size = _points(abs(scratch.difference.mean))
    if scratch.outcome == "worse":
        return f"Distillation is worse than scratch, by {size} points on test {interval}.{_aside(smoothing)}"
    return f"Distillation is better than scratch, by {size} points on test {interval}{_control(smoothing)}"


def _control(smoothing: Paired | None) -> str:
    """Ends the sentence that distillation beats scratch: the control that needs no teacher may do so as well."""
    if smoothing is None or smoothing.outcome == "unknown":
        return "; against label smoothing, which needs no teacher, nothing is known."
    size = _points(abs(smoothing.difference.mean))
    if smoothing.outcome == "better":
        return f", and better than label smoothing, which needs no teacher, by {size}."
    if smoothing.outcome == "worse":
        return f", but label smoothing, which needs no teacher, is better still, by {size}."
    return ", but not distinguishable from label smoothing, which needs no teacher."


def _aside(smoothing: Paired | None) -> str:
    """Returns a further sentence for the case that distillation doesn't beat scratch; it may be empty."""
    if smoothing is None or smoothing.outcome not in ("better", "worse"):
        return ""
    return f" It is {smoothing.outcome} than label smoothing, by {_points(abs(smoothing.difference.mean))} points."


def words(verdict: Verdict) -> Iterator[str]:
    """Yields the verdict's findings, each of one or two sentences: every comparison, then the noise."""
    for comparison in verdict.comparisons:
        yield sentence(comparison, len(verdict.comparisons))
    if verdict.noise is not None:
        noise = verdict.noise
        yield (
            f"Noise over seeds, on test: {_points(noise.sd)} points standard deviation (95% interval "
            f"{_points(noise.low)} to {_points(noise.high)}, from {noise.n} repeated runs)."
        )


def sentence(paired: Paired, comparisons: int) -> str:
    """Says what may be said about one comparison.

    Args:
        paired: The comparison.
        comparisons: How many comparisons were made in all; Holm's correction counts them.
    """
    first, second = arm_label(paired.first), arm_label(paired.second)
    difference = paired.difference
    if paired.outcome == "unknown":
        return (
            f"{first} - {second}: {_signed(difference.mean)} points on test in one pair of runs, which says nothing "
            "about the noise over seeds."
        )
    interval = _interval(difference, _sign(paired))
    details = f"({interval}, {difference.n} pairs, adjusted p {shown_p(paired.adjusted_p)})"
    if paired.outcome != "not distinguishable":
        size = _points(abs(difference.mean))
        low, high = difference.bootstrap_low, difference.bootstrap_high
        doubt = f" The bootstrap's interval, {_signed(low)} to {_signed(high)}, holds 0." if low < 0 < high else ""
        return f"{first} is {paired.outcome} than {second} by {size} points on test {details}.{doubt}"
    text = (
        f"{first} and {second} are not distinguishable on test: {_signed(difference.mean)} points {details}, and not "
        f"more than {_points(paired.bound)} points apart."
    )
    if difference.p <= SIGNIFICANCE:
        text += f" Alone it would pass (p {shown_p(difference.p)}), but not as one of {comparisons} comparisons."
    if paired.seeds_needed is not None and paired.seeds_needed > difference.n:
        text += (
            f" To see a difference of {100 * WANTED:.1f} points would take {paired.seeds_needed:,} seeds an arm "
            f"(now {difference.n})."
        )
    return text


def _sign(paired: Paired) -> int:
    """Returns -1 if the difference is stated as a size ("worse by"), which turns its interval round; else 1."""
    return -1 if paired.outcome == "worse" else 1


def _interval(difference: Difference, sign: int = 1) -> str:
    low, high = sorted((sign * difference.low, sign * difference.high))
    # Signs are printed if the interval reaches below zero.
    shown = _signed if low < 0 else _points
    return f"95% interval {shown(low)} to {shown(high)}"


def shown_p(p: float) -> str:
    """Prints a p value: "<.001", ".003", ".21"."""
    if p < 0.001:
        return "<.001"
    return f"{p:.3f}".lstrip("0") if p < 0.1 else f"{p:.2f}".lstrip("0") if p < 1 else "1"


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _signed(fraction: float) -> str:
    # A tiny difference must not be printed as "-0.00".
    return f"{100 * fraction:+.2f}" if abs(fraction) >= 0.00005 else "0.00"


def curse_words(verdict: Verdict, found: Comparison) -> Iterator[str]:
    """Yields what the search promised about its choice, and what fresh seeds gave."""
    objective = found.goals.objective
    unit = objective.row.difference_unit

    def size(value: float) -> str:
        return " ".join((objective.shown(value), unit)).strip()

    expected = ""
    if verdict.expected_curse is not None:
        expected = (
            f" By seed noise alone the best of {len(found.trials)} equal settings overstates by "
            f"{size(verdict.expected_curse)}."
        )
    if verdict.curse is not None and verdict.promised is not None and verdict.confirmed is not None:
        curse = verdict.curse
        way = "overstated" if curse.mean >= 0 else "understated"
        limits = sorted((curse.low, curse.high) if curse.mean >= 0 else (-curse.low, -curse.high))
        interval = "" if curse.n < 2 else f", 95% interval {' to '.join(map(objective.shown, limits))}"
        yield (
            f"The search {way} its choice by {size(abs(curse.mean))} ({objective.heading}: "
            f"{objective.shown(verdict.promised)} in the search, {objective.shown(verdict.confirmed)} over "
            f"{curse.n} fresh {'seed' if curse.n == 1 else 'seeds'}{interval}).{expected}"
        )
    elif expected:
        yield expected.strip()


def pair_differences(paired: Paired) -> Sequence[float]:
    """Returns first - second for each pair."""
    return [a - b for a, b in zip(paired.firsts, paired.seconds, strict=True)]
