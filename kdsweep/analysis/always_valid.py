"""Intervals and p values of paired differences that hold however often one looks, and whenever one stops.

The evidence against "no difference" after n pairs is the Bayes factor of the t test: the standardised difference is
normal with variance 1 / `PRECISION`, the noise has the prior 1 / sigma. Without a difference its expectation is one at
each n, whatever the noise, and the probability that it ever reaches 20 is at most 1 / 20 (Ville 1939; Lai 1976, Annals
of Statistics 4; Wang and Ramdas 2023, arXiv 2310.03722, "Anytime-valid t-tests and confidence sequences for Gaussian
means with unknown variance"). So its reciprocal is a p value at any time, and the differences that it doesn't exclude
are an interval at any time.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from kdsweep.analysis.statistics import t_quantile

if TYPE_CHECKING:
    from kdsweep.analysis.statistics import Difference

PRECISION = 0.25  # a difference of two standard deviations is likely: gains worth a confirmation are of that size
FEWEST_PAIRS = 4  # with fewer the interval may have no limits


def at_any_time(difference: Difference, confidence: float = 0.95) -> Difference:
    """Returns a difference with the interval and the p value that hold at any time; NaN below four pairs."""
    if difference.n < FEWEST_PAIRS or math.isnan(difference.p):
        return replace(difference, low=math.nan, high=math.nan, p=math.nan)
    p = min(1.0, math.exp(-evidence(difference.mean, difference.noise, difference.n, difference.degrees)))
    margin = _margin(difference, confidence)
    return replace(difference, low=difference.mean - margin, high=difference.mean + margin, p=p)


def evidence(mean: float, noise: float, n: int, degrees: float) -> float:
    """Returns the logarithm of the evidence against a mean of zero.

    Args:
        mean: The mean of the differences.
        noise: Their standard deviation.
        n: The number of pairs.
        degrees: The degrees of freedom of the noise: n - 1, or more if it is pooled with that of other arms.
    """
    share = PRECISION / (PRECISION + n)
    ratio = mean**2 * n / noise**2 / degrees
    return 0.5 * math.log(share) + (degrees + 1) / 2 * (math.log1p(ratio) - math.log1p(share * ratio))


def _margin(difference: Difference, confidence: float) -> float:
    """Returns the distance from the mean at which the evidence reaches 1 / (1 - confidence)."""
    share = PRECISION / (PRECISION + difference.n)
    reached = (1 / ((1 - confidence) * math.sqrt(share))) ** (2 / (difference.degrees + 1))
    if share * reached >= 1:
        return math.inf
    ratio = (reached - 1) / (1 - share * reached)
    return difference.noise * math.sqrt(difference.degrees * ratio / difference.n)


def out_of_reach(difference: Difference, most: int, significance: float = 0.05, confidence: float = 0.95) -> bool:
    """Returns whether even `most` pairs would hardly tell the arms apart.

    They wouldn't if the true difference were the largest that the pairs so far allow, by Student's t. To give up at any
    time makes no statement false; it costs a little power.

    Args:
        difference: The difference so far, as `statistics.paired_difference` returns it.
        most: The largest number of pairs that is affordable.
        significance: The significance level.
        confidence: The confidence with which the true difference is at most what is tried.
    """
    n = difference.n
    if n < FEWEST_PAIRS or math.isnan(difference.p) or most <= n:
        return False
    spread = difference.noise / math.sqrt(n)
    largest = abs(difference.mean) + t_quantile((1 - confidence) / 2, difference.degrees) * spread
    degrees = difference.degrees * (most - 1) / (n - 1)
    return evidence(largest, difference.noise, most, degrees) < -math.log(significance)
