"""When a confirmation by `sweep.confirm_until` stops, and the sentences about that.

The seeds count in their order, whatever ended first. So the same runs stop at the same seed with any number of workers,
and after any interruption.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsweep.analysis import always_valid
from kdsweep.analysis.verdict import METRIC, SIGNIFICANCE, comparisons
from kdsweep.tracking.run_records import STUDENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from kdsweep.analysis.sorted_runs import Comparison
    from kdsweep.analysis.study_goals import Stop, Why
    from kdsweep.tracking.run_records import RunRecord

VALID = (
    "Its intervals and p values are always valid: they hold however often one looks, and whatever limit "
    "sweep.confirm_until is set to later."
)
REASONS: dict[Why, str] = {
    "clear": "because distill is told apart from each control",
    "out of reach": "because {most} seeds would hardly tell distill from each control",
    "spent": "because no more were asked for",
}


def accuracies(runs: Iterable[RunRecord], trial: int) -> dict[str, dict[int, float]]:
    """Returns arm -> seed -> test accuracy of the finished confirmation runs of a trial and of the controls."""
    found: dict[str, dict[int, float]] = {arm: {} for arm in STUDENTS}
    for run in runs:
        # Controls belong to no trial, but for those that have the chosen setting (not in studies of before).
        own = run.tags.get("kdsweep.trial", str(trial) if run.arm != "distill" else "") == str(trial)
        confirms = run.stage == "confirmation" and run.status == "FINISHED" and run.arm in found and own
        value = run.metrics.get(METRIC, math.nan)
        if confirms and run.seed is not None and math.isfinite(value):
            found[str(run.arm)][run.seed] = value
    return found


def decision(arms: Mapping[str, Mapping[int, float]], seeds: Sequence[int], most: int, resolution: float) -> Why | None:
    """Returns why a confirmation stops after these seeds; None if it goes on.

    It stops if each comparison of distill has an answer, or none within the seeds that are affordable.

    Args:
        arms: Arm -> seed -> test accuracy.
        seeds: The seeds that count, all of which have ended.
        most: The number of seeds that are affordable.
        resolution: The step of the accuracies; 0 if it is unknown.
    """
    counted = {arm: {seed: values[seed] for seed in seeds if seed in values} for arm, values in arms.items()}
    fixed = comparisons(counted, resolution)
    at_any_time = comparisons(counted, resolution, at_any_time=True)
    open_ = [
        always_valid.out_of_reach(one.difference, most, SIGNIFICANCE)
        for one, now in zip(fixed, at_any_time, strict=True)
        if one.first == "distill" and now.outcome not in ("better", "worse")
    ]
    return outcome(any(one.first == "distill" for one in fixed), open_, len(seeds), most)


def outcome(anything: bool, open_: Sequence[bool], n: int, most: int) -> Why | None:
    """Returns why a confirmation stops after `n` of at most `most` seeds; None if it goes on.

    Args:
        anything: Whether there is a comparison at all.
        open_: For each comparison without an answer, whether it is out of reach.
        n: The number of seeds.
        most: The number of seeds that are affordable.
    """
    if anything and all(open_):
        return "out of reach" if open_ else "clear"
    return "spent" if n >= most else None


def words(found: Comparison) -> Iterator[str]:
    """Yields when and why the confirmation stopped, how many seeds that saved, and what its numbers are worth."""
    most, stop = found.goals.confirm_until, found.goals.stop
    if most is None:
        return
    if stop is None or found.chosen is None or stop.trial != found.chosen.number:
        if found.confirmed("distill"):
            yield f"The confirmation goes on until the answer is clear, with at most {most} seeds an arm. {VALID}"
        return
    arms = sum(bool(found.confirmed(arm)) for arm in STUDENTS)
    yield from stop_words(found, stop, most, arms, REASONS)


def stop_words(found: Comparison, stop: Stop, most: int, arms: int, reasons: Mapping[Why, str]) -> Iterator[str]:
    """Yields the same of a confirmation that has stopped, of so many arms and for one of these reasons."""
    saved = most - stop.seeds
    told = f"; {saved} {'seed' if saved == 1 else 'seeds'} an arm ({saved * arms} runs) were saved" if saved else ""
    yield (
        f"The confirmation stopped after {stop.seeds} of at most {most} seeds an arm, "
        f"{reasons[stop.why].format(most=most)}{told}. {VALID}"
    )
    if found.beyond:
        n = len(found.beyond)
        yield (
            f"{n} {'run' if n == 1 else 'runs'} of later seeds had begun beside the last that counts. No number counts "
            f"{'it' if n == 1 else 'them'}."
        )
