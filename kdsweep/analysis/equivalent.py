"""How much of something one method needs for what another reaches: data or epochs that are saved, with an interval.

A learning curve (error against pictures, or against epochs) is nearly a power law (Hestness et al. 2017, arXiv
1712.00409), so between two measured points the logarithm of the error is taken for linear in the logarithm of the
amount. The interval inverts a paired t test: it holds each amount of the reference at which the difference of the two
methods, paired by seed, isn't significant (Fieller 1954, JRSS B 16, is the case of a straight line).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdsweep.analysis import statistics

Array = NDArray[np.float64]
# Amount -> seed -> accuracy, a fraction.
Curve = Mapping[float, Mapping[int, float]]

POINTS = 300  # the amounts at which the test is inverted, evenly spaced in their logarithm
LEAST_ERROR = 1e-4  # where a run makes no error at all, its logarithm still has to be a number


@dataclass(frozen=True)
class Equivalent:
    """What the reference needs for the accuracy that the other method reaches with `amount`.

    Attributes:
        amount: What the other method had: pictures, or epochs.
        equals: The amount at which the reference is as accurate on average; infinite if it is beyond what was measured,
            0 if it is below.
        low, high: The 95 % interval of `equals`; 0 and infinity where it reaches beyond what was measured. NaN below
            three pairs.
        pairs: The number of seeds that the runs share.
    """

    amount: float
    equals: float
    low: float
    high: float
    pairs: int

    @property
    def clear(self) -> bool:
        """Whether the reference needs more, or less, beyond noise."""
        return self.low > self.amount or self.high < self.amount


def equivalents(reference: Curve, other: Curve, resolution: float = 0.0) -> tuple[Equivalent, ...]:
    """Finds for each amount of `other` the amount of the reference that gives the same accuracy.

    Args:
        reference: The accuracies of the method that is to be as good.
        other: Those of the method that saves something.
        resolution: The step of the accuracies, 1 / pictures; half of it is the least error. 0 if it is unknown.
    """
    amounts = sorted(reference)
    found = []
    for amount in sorted(other):
        common = set(other[amount]).intersection(*(reference[a] for a in amounts)) if len(amounts) > 1 else set()
        if common:
            seeds = sorted(common)
            least = max(resolution / 2, LEAST_ERROR)
            curve = np.array([[_log_error(reference[a][s], least) for s in seeds] for a in amounts])  # (amounts, seeds)
            level = np.array([_log_error(other[amount][s], least) for s in seeds])  # (seeds,)
            found.append(_equivalent(amount, np.log(amounts), curve, level))
    return tuple(found)


def _log_error(accuracy: float, least: float) -> float:
    return math.log(max(1 - accuracy, least))


def _equivalent(amount: float, places: Array, curve: Array, level: Array) -> Equivalent:
    """Returns the equivalent of one amount; `places` are logarithms of amounts, `curve` and `level` of errors."""
    fine = np.linspace(places[0], places[-1], POINTS)
    mean = monotone(curve.mean(axis=1))
    equals = _crossing(places, mean, float(level.mean()))
    if len(level) < statistics.FEWEST_PAIRS:
        return Equivalent(amount, equals, math.nan, math.nan, len(level))
    # Noise is larger where data is scarce, so it is pooled over the three arms that meet here, and not over all.
    noise = [statistics.pair_noise(np.stack([*curve[right - 1 : right + 1], level])) for right in range(1, len(places))]
    kept = [i for i, place in enumerate(fine) if not _differs(float(place), places, curve, level, noise)]
    if kept:
        # The next point that differs is the limit, so that the steps make no interval narrower.
        low = 0.0 if kept[0] == 0 else math.exp(fine[kept[0] - 1])
        high = math.inf if kept[-1] == POINTS - 1 else math.exp(fine[kept[-1] + 1])
    else:  # beyond noise everywhere that was measured
        low, high = (math.exp(places[-1]), math.inf) if math.isinf(equals) else (0.0, math.exp(places[0]))
    return Equivalent(amount, equals, min(low, equals), max(high, equals), len(level))


def _differs(
    place: float, places: Array, curve: Array, level: Array, noise: Sequence[statistics.NoiseFloor | None]
) -> bool:
    """Returns whether the reference, at one place between the measured ones, differs from the level beyond noise."""
    right = int(np.clip(np.searchsorted(places, place), 1, len(places) - 1))
    share = (place - places[right - 1]) / (places[right] - places[right - 1])
    own = (1 - share) * curve[right - 1] + share * curve[right]  # (seeds,)
    difference = statistics.paired_difference(list(own), list(level), pooled=noise[right - 1])
    return difference.p < 0.05


def _crossing(places: Array, mean: Array, level: float) -> float:
    """Returns the amount at which a falling curve meets a level; 0 or infinity where that was not measured."""
    if level > mean[0]:
        return 0.0
    if level < mean[-1]:
        return math.inf
    return float(np.exp(np.interp(-level, -mean, places)))


def monotone(values: Sequence[float] | Array) -> Array:
    """Returns the falling sequence that is nearest by least squares (isotonic regression, pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in np.asarray(values, float):
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return np.repeat([value for value, _ in blocks], [n for _, n in blocks])
