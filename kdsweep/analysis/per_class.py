"""What distillation changed class by class, on test: the arms' accuracies, and the paired difference, in each class."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdsweep.analysis import always_valid, statistics
from kdsweep.analysis.verdict import SIGNIFICANCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kdsweep.analysis.sorted_runs import ClassCount, Comparison
    from kdsweep.analysis.statistics import Difference
    from kdsweep.tracking.run_records import RunRecord

MOST_NAMED = 5  # classes in a sentence


@dataclass(frozen=True)
class ClassChange:
    """One class.

    Attributes:
        name: Its name.
        pictures: Its number of test pictures.
        accuracies: Arm -> its mean accuracy in the class, a fraction.
        difference: distill - scratch, paired by seed; None without pairs.
        pairs: The difference of each pair.
        adjusted_p: The p value of the difference after Holm's correction for all classes; NaN below three pairs.
    """

    name: str
    pictures: int
    accuracies: dict[str, float]
    difference: Difference | None
    pairs: tuple[float, ...] = ()
    adjusted_p: float = math.nan

    @property
    def clear(self) -> bool:
        """Whether distillation changed the class beyond noise."""
        return self.adjusted_p <= SIGNIFICANCE


def changes(found: Comparison) -> tuple[ClassChange, ...]:
    """Compares the arms in each class that has test pictures; empty if the runs don't tell their classes."""
    counts = _counts(found)
    if not counts.keys() - {"teacher"}:
        return ()
    first = next(rows for runs in counts.values() for _, rows in runs)
    scratch, distilled = (dict(_by_seed(counts.get(arm, ()))) for arm in ("scratch", "distill"))
    seeds = sorted(scratch.keys() & distilled.keys())
    rows = []
    for place, counted in enumerate(first):
        if counted.pictures == 0:
            continue
        accuracies = {arm: math.fsum(_share(own, place) for _, own in runs) / len(runs) for arm, runs in counts.items()}
        difference = None
        pairs: tuple[float, ...] = ()
        if seeds:
            firsts, seconds = ([_share(arm[seed], place) for seed in seeds] for arm in (distilled, scratch))
            difference = statistics.paired_difference(firsts, seconds, resolution=1 / counted.pictures)
            if found.goals.confirm_until is not None:
                difference = always_valid.at_any_time(difference)
            pairs = tuple(a - b for a, b in zip(firsts, seconds, strict=True))
        rows.append(ClassChange(counted.name, counted.pictures, accuracies, difference, pairs))
    adjusted = statistics.holm([math.nan if row.difference is None else row.difference.p for row in rows])
    return tuple(replace(row, adjusted_p=p) for row, p in zip(rows, adjusted, strict=True))


def words(classes: Sequence[ClassChange]) -> Iterator[str]:
    """Yields a sentence about where distillation changed something; nothing without pairs."""
    known = [(row.difference.mean, row) for row in classes if row.difference is not None]
    if len(known) < 2:
        return
    clear = sorted((pair for pair in known if pair[1].clear), key=lambda pair: -abs(pair[0]))
    if clear:
        named = ", ".join(_told(*pair) for pair in clear[:MOST_NAMED])
        more = f" and {len(clear) - MOST_NAMED} more" if len(clear) > MOST_NAMED else ""
        yield (
            f"By class, distill differs from scratch beyond noise in {len(clear)} of {len(known)} (adjusted for all "
            f"of them): {named}{more}."
        )
        return
    (low, least), (high, most) = (choose(known, key=lambda pair: pair[0]) for choose in (min, max))
    if low == high:
        return
    doubt = "" if any(math.isnan(row.adjusted_p) for _, row in known) else ", and no class differs beyond noise"
    yield f"By class, distill - scratch is from {_told(low, least)} to {_told(high, most)}{doubt}."


def _told(difference: float, row: ClassChange) -> str:
    return f"{100 * difference:+.1f} points for {row.name!r}"


def _counts(found: Comparison) -> Mapping[str, Sequence[tuple[RunRecord, Sequence[ClassCount]]]]:
    """Returns arm -> its runs that tell their classes, with these."""
    told = {arm.name: [(run, found.readings.classes.get(run.id, ())) for run in arm.runs] for arm in found.arms}
    told = {arm: [(run, rows) for run, rows in runs if rows] for arm, runs in told.items()}
    return {arm: runs for arm, runs in told.items() if runs}


def _by_seed(
    runs: Sequence[tuple[RunRecord, Sequence[ClassCount]]],
) -> Iterator[tuple[int, Sequence[ClassCount]]]:
    for run, rows in runs:
        if run.seed is not None:
            yield run.seed, rows


def _share(rows: Sequence[ClassCount], place: int) -> float:
    return rows[place].right / rows[place].pictures
