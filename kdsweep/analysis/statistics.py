"""Statistics of repeated seeds: noise, paired differences, their verdict, and how many seeds a difference takes.

Results have the unit of the values that are passed in; in this project, accuracies are fractions, not points. Nothing
here knows about studies, runs or arms: see `verdict.py` for those, and `plateau.py` for the surface over alpha and tau.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, optimize, special, stats

from kdsweep.system.errors import require

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = NDArray[np.float64]
Verdict = Literal["better", "worse", "not distinguishable", "unknown"]

ROUNDING = 1e-12  # values that differ by less are equal: 0.91 - 0.90 and 0.93 - 0.92 differ in floating point
FEWEST_PAIRS = 3  # two pairs that happen to be equal would pass for certainty
MOST_SEEDS = 1000  # the largest answer of `seeds_needed`: nobody trains more
DOMINATES = 3  # values dominate others if without them the standard deviation is less than a third


@dataclass(frozen=True)
class NoiseFloor:
    """A standard deviation over seeds, pooled over settings.

    Attributes:
        low, high: The chi-square confidence interval of `sd`.
        n: The number of values that were used; settings with a single value don't count.
        degrees: The degrees of freedom; for `noise_floor`, `n` less one for each setting.
        counted: Whether the values differ by less than `sd`, which is the least that their step lets one know.
    """

    sd: float
    low: float
    high: float
    n: int
    degrees: float
    counted: bool = False


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, first - second, over `n` pairs.

    Attributes:
        sd: The sample standard deviation of the differences; NaN for one pair.
        noise: The standard deviation that the interval and p rest on: `sd`, or one of its floors if that is higher.
        degrees: The degrees of freedom of `noise`.
        low, high: Student's t confidence interval of the mean.
        p: The two-sided p value of the paired t test against a difference of zero.

    All but `mean`, `sd` and `n` are NaN below `FEWEST_PAIRS`, and if `noise` is zero: nothing is known then.
    """

    mean: float
    sd: float
    n: int
    noise: float
    degrees: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class SeedsNeeded:
    """How many seeds an arm show a difference; None stands for more than `MOST_SEEDS`.

    Attributes:
        likely: The number for the noise as it was measured.
        low, high: The numbers for the limits of the noise's confidence interval.
    """

    likely: int | None
    low: int | None
    high: int | None

    def __str__(self) -> str:
        """The range that the noise leaves: "41 to 290", "400 to more than 1,000"."""
        low, high = seed_count(self.low), seed_count(self.high)
        return low if low == high else f"{low} to {high}"


def seed_count(n: int | None) -> str:
    """Prints a number of seeds; None stands for more than anybody trains."""
    return f"more than {MOST_SEEDS:,}" if n is None else f"{n:,}"


@dataclass(frozen=True)
class WinnersCurse:
    """By how much the best score of a search overstated its setting; `winners_curse` explains `low` and `high`."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho of `n` pairs with its confidence interval; all are NaN if one side is constant."""

    rho: float
    low: float
    high: float
    n: int


def noise_floor(
    groups: Sequence[Sequence[float]], confidence: float = 0.95, *, resolution: float = 0.0
) -> NoiseFloor | None:
    """Computes the standard deviation over seeds, pooled over settings that are assumed to be equally noisy.

    Args:
        groups: The values of each setting, one for each seed. Groups with a single value add nothing.
        confidence: The confidence of the interval.
        resolution: The step of values that are counted, such as 1 / pictures for an accuracy. The standard deviation is
            at least resolution / sqrt(2), that of a difference of two runs at least one step.

    Returns:
        The noise floor; None if it is unknown: no group has two values, or all are equal and no step is given.
    """
    repeated = [np.asarray(group, dtype=float) for group in groups if len(group) > 1]
    if not repeated:
        return None
    degrees = sum(len(group) - 1 for group in repeated)
    squares = sum(float(np.sum((group - group.mean()) ** 2)) for group in repeated)
    measured, least = math.sqrt(squares / degrees), resolution / math.sqrt(2)
    sd = max(measured, least)
    if sd <= ROUNDING:
        return None
    return replace(_with_interval(sd, sum(map(len, repeated)), degrees, confidence), counted=measured < least)


def pair_noise(
    *blocks: Sequence[Sequence[float]] | Array, confidence: float = 0.95, resolution: float = 0.0
) -> NoiseFloor | None:
    """Computes the standard deviation of the difference of two arms' runs with one seed, pooled over all arms.

    Arms and seeds are a randomised block design: a difference has twice the variance of the residuals that are left
    once each arm's mean and each seed's mean are taken away. The arms may be unequally noisy; then the residuals have
    fewer degrees of freedom than (arms - 1) * (seeds - 1), by the factor epsilon of Greenhouse and Geisser (1959,
    Psychometrika 24).

    Args:
        blocks: Tables of (arms, seeds), each seed in the same place of all arms. Those with fewer than two arms or
            seeds add nothing.
        confidence: The confidence of the interval.
        resolution: The step of values that are counted; the standard deviation is at least one step.

    Returns:
        The noise; None if it is unknown: no block adds anything, or nothing differs and no step is given.
    """
    squares = cells = degrees = 0.0
    n = 0
    for block in blocks:
        values = np.asarray(block, dtype=float)
        if values.ndim < 2 or min(values.shape) < 2:
            continue
        residuals = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
        residuals[np.abs(residuals) <= ROUNDING] = 0
        products = residuals @ residuals.T  # (arms, arms)
        rows, columns = values.shape[0] - 1, values.shape[1] - 1
        own, spread = float(np.trace(products)), float(np.sum(products**2))
        epsilon = min(1.0, own**2 / (rows * spread)) if spread > 0 else 1.0
        squares, cells, n = squares + own, cells + rows * columns, n + values.size
        degrees += epsilon * rows * columns
    if not cells or (squares == 0 and resolution == 0):
        return None
    return _with_interval(max(math.sqrt(2 * squares / cells), resolution), n, degrees, confidence)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    confidence: float = 0.95,
    *,
    pooled: NoiseFloor | None = None,
    resolution: float = 0.0,
) -> Difference:
    """Computes the mean difference first - second over pairs that share a seed, with its interval and p value.

    The differences' standard deviation has two floors, because a few differences may be alike by luck, and those of
    counted values exactly alike: the pooled noise, and one step. `docs/statistics.md` has the error rates.

    Args:
        first: The values of one arm.
        second: The values of the other arm, in the same order of seeds.
        confidence: The confidence of the interval.
        pooled: The noise of such differences over more arms than these two, as `pair_noise` returns it. It is a floor,
            and its degrees of freedom count.
        resolution: The step of values that are counted: 1 / pictures.

    Raises:
        UserError: The two differ in length, or are empty.
    """
    require(len(first) == len(second) > 0, "as many values as partners", (len(first), len(second)), "pairs")
    values = np.subtract(first, second, dtype=float)  # (n,)
    n, mean = len(values), float(values.mean())
    sd = _sd(values) if n > 1 else math.nan
    noise, degrees = max(sd, resolution), float(n - 1)
    if pooled is not None:
        noise, degrees = max(noise, pooled.sd), max(degrees, pooled.degrees)
    if n < FEWEST_PAIRS or noise == 0:
        return Difference(mean, sd, n, *[math.nan] * 5)
    error = noise / math.sqrt(n)
    margin = t_quantile((1 - confidence) / 2, degrees) * error
    p = 2 * _t_tail(abs(mean) / error, degrees)
    return Difference(mean, sd, n, noise, degrees, mean - margin, mean + margin, p)


def dominating(values: Sequence[float] | Array, resolution: float = 0.0, significance: float = 0.05) -> tuple[int, ...]:
    """Finds the values, at most a quarter of all but at least one, that make up nearly all of the spread.

    They are outliers by the generalised extreme Studentized deviate test (Rosner 1983, Technometrics 25), and without
    them the standard deviation is less than a third of what it is with them.

    Args:
        values: At least three values; fewer have no outliers.
        resolution: The step of values that are counted: the standard deviation of the others is at least that.
        significance: The significance level of the test.

    Returns:
        Their positions, in increasing order.
    """
    data = np.asarray(values, dtype=float)
    left, taken, found = list(range(len(data))), [], 0
    for _ in range(max(1, (len(data) - 1) // 4)):
        sd = _sd(data[left]) if len(left) > 2 else 0.0
        if sd == 0:
            break
        distances = np.abs(data[left] - data[left].mean())
        farthest, others = int(distances.argmax()), len(left) - 1
        t = t_quantile(significance / (2 * (others + 1)), others - 1)
        critical = t * others / math.sqrt((others - 1 + t**2) * (others + 1))
        outlying = distances[farthest] / sd > critical
        taken.append(left.pop(farthest))
        if outlying and DOMINATES * max(_sd(data[left]), resolution) < _sd(data):
            found = len(taken)
    return tuple(sorted(taken[:found]))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Computes Holm's adjusted p values (1979, Scandinavian Journal of Statistics 6), in the given order.

    If every comparison whose adjusted p is at most the significance level is rejected, the probability of any false
    rejection is at most that level. NaN stands for a comparison that could not be made; it stays NaN and isn't counted.
    """
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def verdict(difference: Difference, adjusted_p: float, significance: float = 0.05) -> Verdict:
    """Returns what may be said about first against second; "unknown" if there is no p value, as with two pairs."""
    if math.isnan(adjusted_p):
        return "unknown"
    if adjusted_p > significance or difference.mean == 0:
        return "not distinguishable"
    return "better" if difference.mean > 0 else "worse"


def equivalence(difference: Difference, margin: float) -> float:
    """Tests "the two are at least `margin` apart" with two one-sided t tests (Schuirmann 1987); returns the larger p.

    A small p shows that they are less than `margin` apart; a large p shows nothing. It is NaN if the noise is unknown.
    """
    require(margin > 0, "margin > 0", margin, "margin")
    distance = margin - abs(difference.mean)
    return _t_tail(distance / difference.noise * math.sqrt(difference.n), difference.degrees)


def equivalence_bound(difference: Difference, confidence: float = 0.95) -> float:
    """Returns the smallest margin that `equivalence` accepts at p = 1 - confidence: "not more than this apart"."""
    quantile = t_quantile(1 - confidence, difference.degrees)
    return abs(difference.mean) + quantile * difference.noise / math.sqrt(difference.n)


def power(n: int, difference: float, sd: float, significance: float = 0.05) -> float:
    """Computes the probability that the two-sided paired t test of `n` pairs detects a true `difference`.

    It is that of the test without the floors of `paired_difference`, from which it differs by a few points at three and
    four pairs (`docs/statistics.md`).

    Args:
        n: The number of pairs; fewer than three detect nothing, because there is no verdict from them.
        difference: The true difference, in either direction.
        sd: The standard deviation of the paired differences. If the noise of the two arms is independent and equal, it
            is sqrt(2) times the noise of one run.
        significance: The significance level of the test.
    """
    return _power(n, difference, sd, significance)


def seeds_needed(difference: float, sd: float, power: float = 0.8, significance: float = 0.05) -> int | None:
    """Computes the fewest pairs, at least three, with which the paired t test has this `power` for a true `difference`.

    The other arguments are those of `kdsweep.analysis.statistics.power`. None stands for more than `MOST_SEEDS`.
    """
    require(difference != 0, "difference != 0", difference, "difference")
    require(0 < power < 1, "0 < power < 1", power, "power")
    if _power(MOST_SEEDS, difference, sd, significance) < power:
        return None
    # Power grows with n.
    few, enough = FEWEST_PAIRS - 1, MOST_SEEDS
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if _power(middle, difference, sd, significance) >= power else (middle, enough)
    return enough


def seeds_range(difference: float, noise: NoiseFloor, power: float = 0.8, significance: float = 0.05) -> SeedsNeeded:
    """Computes `seeds_needed` for a measured noise of paired differences, and for the limits of its interval.

    A plan that takes the measured noise for the truth is wrong in either direction: the number of seeds goes with the
    square of the noise (Browne 1995, Statistics in Medicine 14).
    """
    return SeedsNeeded(*(seeds_needed(difference, sd, power, significance) for sd in (noise.sd, noise.low, noise.high)))


def detectable_difference(n: int, sd: float, power: float = 0.8, significance: float = 0.05) -> float:
    """Computes the smallest true difference that `n` pairs detect with this `power`; infinite below three pairs."""
    if n < FEWEST_PAIRS or sd == 0:
        return math.inf if n < FEWEST_PAIRS else 0.0
    farthest = 1.0
    while _power(n, farthest, 1, significance) < power:
        farthest *= 2
    return sd * float(optimize.brentq(lambda shift: _power(n, shift, 1, significance) - power, 0, farthest))


def winners_curse(
    search_best: float, confirmed: Sequence[float], confidence: float = 0.95, *, resolution: float = 0.0
) -> WinnersCurse:
    """Computes the best score of a search minus the mean of the same setting's fresh seeds.

    The interval is that of search_best minus the setting's true mean. It covers only the uncertainty of the confirmed
    mean: the noise in `search_best` is no error of this estimate, but the very thing that it measures.

    Args:
        search_best: The best score.
        confirmed: The scores of fresh seeds. With a single one, or if they are equal, the limits are NaN.
        confidence: The confidence of the interval.
        resolution: The step of values that are counted. If it is known, their standard deviation is taken for at least
            that of `noise_floor`, and equal ones have limits.
    """
    require(len(confirmed) > 0, "at least one confirmed value", len(confirmed), "confirmed")
    values = np.asarray(confirmed, dtype=float)
    mean = search_best - float(values.mean())
    n, sd = len(values), max(_sd(values), resolution / math.sqrt(2))
    margin = t_quantile((1 - confidence) / 2, n - 1) * sd / math.sqrt(n) if n > 1 and sd > 0 else math.nan
    return WinnersCurse(mean, mean - margin, mean + margin, n)


def expected_winners_curse(sd: float, n_trials: int) -> float:
    """Computes what the best of `n_trials` equal settings overstates: sd * E[largest of n standard normal values]."""
    require(n_trials >= 1, "n_trials >= 1", n_trials, "n_trials")

    def weighted(z: float) -> float:
        return float(z * n_trials * stats.norm.pdf(z) * stats.norm.cdf(z) ** (n_trials - 1))

    return sd * float(integrate.quad(weighted, -9, 9)[0])


def perfect_calibration_error(counts: Sequence[float] | Array, confidences: Sequence[float] | Array) -> float:
    """Computes the calibration error that a perfectly calibrated model has on average, because pictures are few.

    In a bin of n pictures that are right with the probability p, the number of right ones is binomial. Its mean
    absolute deviation is 2 v (1 - p) P(v) with v = floor(n p) + 1 (De Moivre 1730; Diaconis and Zabell 1991,
    Statistical Science 6). Each bin counts by its share of the pictures, as in the calibration error.

    Args:
        counts: The number of pictures in each bin, at least one.
        confidences: Their mean confidence, in [0, 1]. Within a bin the confidences differ so little that one will do.

    Returns:
        A fraction.
    """
    n, p = np.asarray(counts, dtype=float), np.asarray(confidences, dtype=float).clip(0, 1)
    first_above = np.floor(n * p) + 1
    deviation = 2 * first_above * (1 - p) * stats.binom.pmf(first_above, n, p)  # (bins,), in pictures
    return float(deviation.sum() / n.sum())


def rank_correlation(early: Sequence[float], final: Sequence[float], confidence: float = 0.95) -> RankCorrelation:
    """Computes Spearman's rank correlation, for instance that of the scores at a pruning epoch with the final ones.

    The interval is Fisher's, with the standard error of Bonett and Wright (2000, Psychometrika 65). At rho = 1 (or -1)
    it would have no width; its inner limit is then that of the next value that `n` pairs can have. Below four pairs,
    the limits are NaN.
    """
    require(len(early) == len(final), "as many early as final scores", (len(early), len(final)), "pairs")
    n = len(early)
    if n < 2 or np.ptp(early) == 0 or np.ptp(final) == 0:
        return RankCorrelation(math.nan, math.nan, math.nan, n)
    rho = float(stats.spearmanr(early, final).statistic)
    if n < 4:
        return RankCorrelation(rho, math.nan, math.nan, n)
    step = 12 / (n * (n * n - 1))  # the smallest step of rho: two neighbours change places
    bounded = max(-1 + step, min(1 - step, rho))
    margin = float(stats.norm.isf((1 - confidence) / 2)) * math.sqrt((1 + bounded**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(bounded) + side * margin) for side in (-1, 1))
    return RankCorrelation(rho, -1.0 if rho < bounded else low, 1.0 if rho > bounded else high, n)


def _sd(values: Array) -> float:
    """Returns the sample standard deviation; it is exactly 0 for equal values."""
    return 0.0 if np.ptp(values) <= ROUNDING else float(values.std(ddof=1))


# The distributions of scipy.stats check their arguments for 100 us a call; a simulation makes a million calls.
def t_quantile(tail: float, degrees: float) -> float:
    """Returns the value that Student's t exceeds with the probability `tail`."""
    return -float(special.stdtrit(degrees, tail))


def _t_tail(t: float, degrees: float) -> float:
    """Returns the probability that Student's t exceeds `t`."""
    return float(special.stdtr(degrees, -t))


def _with_interval(sd: float, n: int, degrees: float, confidence: float) -> NoiseFloor:
    """Returns a pooled standard deviation with its chi-square interval."""
    # squares / variance is chi-square distributed: its upper quantile gives the lower limit.
    upper, lower = (float(special.chdtri(degrees, tail)) for tail in ((1 - confidence) / 2, (1 + confidence) / 2))
    return NoiseFloor(sd, sd * math.sqrt(degrees / upper), sd * math.sqrt(degrees / lower), n, degrees)


def _power(n: int, difference: float, sd: float, significance: float) -> float:
    require(sd >= 0, "sd >= 0", sd, "sd")
    if n < FEWEST_PAIRS:
        return 0.0
    if sd == 0:
        return 1.0 if difference else significance
    limit = t_quantile(significance / 2, n - 1)
    shift = abs(difference) / sd * math.sqrt(n)
    seen, opposite = stats.nct.sf(limit, n - 1, shift), stats.nct.cdf(-limit, n - 1, shift)
    # The far tail, where a true gain looks like a loss, is NaN in scipy 1.17 if it is nearly zero.
    return min(1.0, float(seen) + float(np.nan_to_num(opposite)))
