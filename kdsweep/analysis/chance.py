"""Whether anything was learned: the students' accuracy against that of always naming the most frequent class."""

from __future__ import annotations

import math
import statistics as plain
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy import special

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kdsweep.analysis.sorted_runs import Comparison

METRIC = "test/accuracy"
CONFIDENCE = 0.95
# A run that has come this far from chance to perfect has learned something, whatever other seeds did.
LEARNED = 0.1


@dataclass(frozen=True)
class Chance:
    """The students against the most frequent class, on test.

    Attributes:
        level: The share of the most frequent class: what is reached by always naming it.
        means: Arm -> its mean accuracy.
        arms: The arms that are at this level.
    """

    level: float
    means: dict[str, float]
    arms: tuple[str, ...]

    @property
    def nothing_learned(self) -> bool:
        """Whether every arm is at the level of chance."""
        return len(self.arms) == len(self.means)


def compare(found: Comparison) -> Chance | None:
    """Compares each student's arm with chance; None if no run tells its classes, or no student was tested."""
    counts = next((rows for rows in found.readings.classes.values() if rows), None)
    values = {
        arm.name: [run.metrics[METRIC] for run in arm.runs if math.isfinite(run.metrics.get(METRIC, math.nan))]
        for arm in found.arms
        if arm.name != "teacher"
    }
    values = {arm: own for arm, own in values.items() if own}
    if counts is None or not values:
        return None
    pictures = [row.pictures for row in counts]
    level = max(pictures) / sum(pictures)
    at_chance = tuple(arm for arm, own in values.items() if is_at_chance(own, level, sum(pictures)))
    return Chance(level, {arm: plain.fmean(own) for arm, own in values.items()}, at_chance)


def is_at_chance(accuracies: Sequence[float], level: float, pictures: int) -> bool:
    """Returns whether the 95 % interval of an arm's mean accuracy reaches down to the level of chance.

    If a run has come a tenth of the way from there to perfect, the arm isn't at that level, however unequal its seeds.
    The interval is Student's over the seeds, and at least that of counting `pictures` pictures at that level: seeds
    that all name one class agree, and the test split is the same for all of them.
    """
    if max(accuracies) >= level + LEARNED * (1 - level):
        return False
    tail = (1 - CONFIDENCE) / 2
    margin = -float(special.ndtri(tail)) * math.sqrt(level * (1 - level) / pictures)
    n = len(accuracies)
    if n > 1:
        margin = max(margin, -float(special.stdtrit(n - 1, tail)) * plain.stdev(accuracies) / math.sqrt(n))
    return plain.fmean(accuracies) - margin <= level
