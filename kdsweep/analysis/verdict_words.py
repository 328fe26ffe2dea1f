"""The verdict in words: the sentences that its numbers allow, and no others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsweep.analysis import statistics
from kdsweep.analysis.sorted_runs import Comparison, arm_label, pair_label
from kdsweep.analysis.verdict import POWER, SIGNIFICANCE, Paired, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kdsweep.analysis.chance import Chance
    from kdsweep.analysis.statistics import Difference


def headline(verdict: Verdict) -> str:
    """States the verdict in one or two sentences: distillation against scratch, and against label smoothing."""
    scratch, smoothing = verdict.of("distill", "scratch"), verdict.of("distill", "label_smoothing")
    if verdict.chance is not None and verdict.chance.nothing_learned:
        return _nothing_learned(verdict.chance)
    if scratch is None:
        return "No verdict: that takes fresh seeds of the chosen setting and of scratch, and there are none."
    if scratch.outcome == "unknown":
        return f"No verdict: {_unknown(scratch)}."
    interval = f"({_interval(scratch.difference, _sign(scratch))})"
    dominated = f" {_dominated(scratch)}" if scratch.outliers else ""
    if scratch.outcome == "not distinguishable":
        return (
            f"Distillation is not distinguishable from scratch: {_signed(scratch.difference.mean)} points on test "
            f"{interval}, and not more than {_points(scratch.bound)} points apart.{dominated}{_aside(smoothing)}"
        )
    size = _points(abs(scratch.difference.mean))
    if scratch.outcome == "worse":
        return f"Distillation is worse than scratch, by {size} points on test {interval}.{dominated}{_aside(smoothing)}"
    return f"Distillation is better than scratch, by {size} points on test {interval}{_control(smoothing)}{dominated}"


def _nothing_learned(chance: Chance) -> str:
    means = ", ".join(f"{arm_label(arm)} {mean:.1%}" for arm, mean in chance.means.items())
    return (
        f"Nothing was learned: on test no student is better than always naming the most frequent class "
        f"({chance.level:.1%}): {means}. So there is no verdict on distillation."
    )


def _unknown(paired: Paired) -> str:
    """Says why there is no verdict."""
    n = paired.difference.n
    if n >= statistics.FEWEST_PAIRS and not math.isnan(paired.difference.noise):
        return "three pairs of runs say too little for a verdict that holds at any time; it takes four"
    if n >= statistics.FEWEST_PAIRS:
        return "all pairs differ by the same, and how many test pictures that took is not recorded"
    few = "one pair of runs says nothing" if n == 1 else "two pairs of runs say too little"
    return f"{few} about the noise over seeds; three are the least (sweep.confirm_seeds=3)"


def _dominated(paired: Paired) -> str:
    """Names the runs that dominate a comparison."""
    runs = " and ".join(f"{arm_label(run.arm)} with seed {run.seed}" for run in paired.outliers)
    return f"{'One run dominates' if len(paired.outliers) == 1 else 'A few runs dominate'} that: {runs}."


def _without(paired: Paired) -> str:
    """Says what a comparison is without the runs that dominate it."""
    what = ", ".join(
        f"{arm_label(run.arm)} with seed {run.seed} ({run.accuracy:.2%} on test, its arm's other seeds "
        f"{run.others:.2%} in the middle)"
        for run in paired.outliers
    )
    one = len(paired.outliers) == 1
    told = f" {'One run dominates' if one else 'A few runs dominate'} this: {what}."
    rest = paired.without
    if rest is None:
        return told
    them, counted = ("it", "it is counted") if one else ("them", "they are counted")
    pairs = f"{rest.difference.n} {'pair' if rest.difference.n == 1 else 'pairs'}"
    if rest.outcome == "unknown":
        return f"{told} Without {them}: {_signed(rest.difference.mean)} points in {pairs}, too few for a verdict."
    return (
        f"{told} Without {them} the verdict would be: {rest.outcome}, {_signed(rest.difference.mean)} points "
        f"({_interval(rest.difference)}, {pairs}, adjusted p {shown_p(rest.adjusted_p)}). Above {counted}, since a "
        "collapse may belong to the arm."
    )


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
    """Yields the verdict's findings, each of one or two sentences: every comparison, then the noise.

    They don't repeat what the headline says.
    """
    if verdict.nothing_learned:
        yield "A training that learns comes first: look at the learning curves, and try another optimizer.lr or epochs."
        return
    if verdict.chance is not None and verdict.chance.arms:
        stuck = " and ".join(f"{arm_label(arm)} ({verdict.chance.means[arm]:.1%})" for arm in verdict.chance.arms)
        verb = "is" if len(verdict.chance.arms) == 1 else "are"
        yield (
            f"On test {stuck} {verb} not better than always naming the most frequent class "
            f"({verdict.chance.level:.1%}): nothing was learned there."
        )
    main = verdict.of("distill", "scratch")
    reason_said = main is not None and main.outcome == "unknown"
    for comparison in verdict.comparisons:
        if comparison is main:
            yield _beside_headline(comparison, len(verdict.comparisons))
        elif reason_said and comparison.outcome == "unknown":
            yield f"{_named(comparison)}: {_signed(comparison.difference.mean)} points on test, without a verdict."
        else:
            yield sentence(comparison, len(verdict.comparisons))
    yield from _seen(verdict)
    if any(run.accuracy < run.others for comparison in verdict.comparisons for run in comparison.outliers):
        yield (
            "Runs that collapse cost power: where one in twenty does, ten pairs see a gain of two standard deviations "
            "in 36% of studies and not in 94%. A steadier training helps more than further seeds."
        )
    if verdict.noise is not None:
        noise = verdict.noise
        yield (
            f"Noise over seeds, on test: {_points(noise.sd)} points standard deviation (95% interval "
            f"{_points(noise.low)} to {_points(noise.high)}, from {noise.n} repeated runs)"
            f"{', the least that can be told by counting so few pictures: the runs differ by less' * noise.counted}."
        )


def _seen(verdict: Verdict) -> Iterator[str]:
    """Says which difference so many pairs can see, where some arms are not distinguishable."""
    seen: dict[tuple[int, str], list[str]] = {}
    for paired in verdict.comparisons:
        if paired.outcome == "not distinguishable" and paired.detectable is not None:
            seen.setdefault((paired.difference.n, _points(paired.detectable)), []).append(_named(paired))
    if seen:
        told = []
        for (n, points), names in seen.items():
            which = f" ({', '.join(names)})" if len(seen) > 1 else ""
            told.append(f"{n} pairs see a difference from {points} points up{which}")
        yield f"With a probability of {POWER:.0%}, {', '.join(told)}."


def _named(paired: Paired) -> str:
    return pair_label(paired.first, paired.second)


def _beside_headline(paired: Paired, comparisons: int) -> str:
    """Says what the headline leaves out about its comparison."""
    difference = paired.difference
    pairs = "one pair" if difference.n == 1 else f"{difference.n} pairs"
    if paired.outcome == "unknown":
        return f"{_named(paired)}: {_signed(difference.mean)} points on test, {pairs}."
    text = f"{_named(paired)}: {pairs}, adjusted p {shown_p(paired.adjusted_p)}."
    return text + _remarks(paired, comparisons)


def sentence(paired: Paired, comparisons: int) -> str:
    """Says what may be said about one comparison.

    Args:
        paired: The comparison.
        comparisons: How many comparisons were made in all; Holm's correction counts them.
    """
    first, second = arm_label(paired.first), arm_label(paired.second)
    difference = paired.difference
    if paired.outcome == "unknown":
        return f"{_named(paired)}: {_signed(difference.mean)} points on test, without a verdict: {_unknown(paired)}."
    interval = _interval(difference, _sign(paired))
    details = f"({interval}, {difference.n} pairs, adjusted p {shown_p(paired.adjusted_p)})"
    if paired.outcome != "not distinguishable":
        size = _points(abs(difference.mean))
        text = f"{first} is {paired.outcome} than {second} by {size} points on test {details}."
    else:
        text = (
            f"{first} and {second} are not distinguishable on test: {_signed(difference.mean)} points {details}, and "
            f"not more than {_points(paired.bound)} points apart."
        )
    return text + _remarks(paired, comparisons)


def _remarks(paired: Paired, comparisons: int) -> str:
    """Returns what follows a comparison's numbers: what more seeds would see, and what it is without outliers."""
    without = _without(paired) if paired.outliers else ""
    if paired.outcome != "not distinguishable":
        return without
    difference, text = paired.difference, ""
    if difference.p <= SIGNIFICANCE:
        text += f" Alone it would pass (p {shown_p(difference.p)}), but not as one of {comparisons} comparisons."
    needed = paired.seeds_needed
    if needed is not None and paired.detectable is not None and abs(difference.mean) < paired.detectable:
        text += f" To see one as small as this takes {needed} seeds an arm (the noise's 95% interval)."
    return text + without


def _sign(paired: Paired) -> int:
    """Returns -1 if the difference is stated as a size ("worse by"), which turns its interval round; else 1."""
    return -1 if paired.outcome == "worse" else 1


def _interval(difference: Difference, sign: int = 1) -> str:
    low, high = sorted((sign * difference.low, sign * difference.high))
    # Signs are printed if the interval reaches below zero.
    shown = _signed if low < 0 else _points
    return f"95% interval {shown(low)} to {shown(high)}"


def shown_p(p: float) -> str:
    """Prints a p value: "<0.001", "0.003", "0.21"."""
    if p < 0.001:
        return "<0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}" if p < 1 else "1"


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _signed(fraction: float) -> str:
    # A tiny difference must not be printed as "-0.00".
    return f"{100 * fraction:+.2f}" if abs(fraction) >= 0.00005 else "0.00"


def _seeds(found: Comparison, first: int) -> str:
    if all(len(trial.runs) == 1 for trial in found.trials):
        return f"all trials have seed {first}, so what that seed does"
    return "all settings were run with the same seeds, so what these do"


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
            f"{size(verdict.expected_curse)}"
        )
        if verdict.shared_seed is None:
            expected += "."
        else:
            expected += f": {_seeds(found, verdict.shared_seed)} to all settings alike, up or down, is left out."
    if verdict.curse is not None and verdict.promised is not None and verdict.confirmed is not None:
        curse = verdict.curse
        way = "overstated" if curse.mean >= 0 else "understated"
        limits = sorted((curse.low, curse.high) if curse.mean >= 0 else (-curse.low, -curse.high))
        interval = "" if math.isnan(curse.low) else f", 95% interval {' to '.join(map(objective.shown, limits))}"
        promise = found.goals.promise
        by_model = promise is not None and promise.by_model
        who, where = ("model", "expected") if by_model else ("search", "in the search")
        yield (
            f"The {who} {way} its choice by {size(abs(curse.mean))} ({objective.heading}: "
            f"{objective.shown(verdict.promised)} {where}, {objective.shown(verdict.confirmed)} over "
            f"{curse.n} fresh {'seed' if curse.n == 1 else 'seeds'}{interval}).{expected}"
        )
    elif expected:
        yield expected.strip()
