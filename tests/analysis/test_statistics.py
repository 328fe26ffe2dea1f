"""Claims about analysis/statistics.py, against scipy, against formulas written out, and against simulated studies."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from kdsweep.analysis import statistics
from kdsweep.analysis.statistics import (
    Difference,
    bootstrap_interval,
    detectable_difference,
    equivalence,
    equivalence_bound,
    expected_winners_curse,
    holm,
    noise_floor,
    paired_difference,
    power,
    rank_correlation,
    seeds_needed,
    verdict,
    winners_curse,
)
from kdsweep.system.errors import UserError

FIRST = [0.912, 0.917, 0.908, 0.921, 0.915]
SECOND = [0.909, 0.911, 0.910, 0.913, 0.911]
N_STUDIES = 2000
# Three standard errors above 5 %, for so many studies: an exact test stays below, a test of 7 % doesn't.
FIVE_PERCENT = 0.05 + 3 * math.sqrt(0.05 * 0.95 / N_STUDIES)


@pytest.fixture
def no_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the bootstrap's interval: for claims about thousands of studies that don't look at it."""
    monkeypatch.setattr(statistics, "bootstrap_interval", lambda *_: (math.nan, math.nan))


def differences(n: int, mean: float = 0.0, n_studies: int = N_STUDIES, seed: int = 0) -> list[Difference]:
    """Simulated studies of `n` pairs whose difference is normal with `mean` and a standard deviation of 1."""
    values = np.random.default_rng(seed).normal(mean, 1, (n_studies, n))
    return [paired_difference(row, np.zeros(n)) for row in values]


def studies(n: int, *, gain: float = 0.0, seed: int = 0) -> NDArray[np.float64]:
    """Simulated scratch, label smoothing and distill, (studies, 3, n): seeds move all arms; only distill gains."""
    rng = np.random.default_rng(seed)
    arms = rng.normal(0.9, 0.002, (N_STUDIES, 3, n)) + rng.normal(0, 0.002, (N_STUDIES, 1, n))
    arms[:, 2] += gain
    return arms


def verdicts(arms: NDArray[np.float64]) -> list[str]:
    """Verdicts of one study: distill against both controls, and one control against the other, after Holm."""
    found = [paired_difference(arms[a], arms[b]) for a, b in ((2, 0), (2, 1), (1, 0))]
    return [verdict(d, p) for d, p in zip(found, holm([d.p for d in found]), strict=True)]


def test_paired_difference_is_scipys_paired_t_test() -> None:
    """Mean, p and interval are those of scipy.stats.ttest_rel."""
    ours, theirs = paired_difference(FIRST, SECOND, confidence=0.9), stats.ttest_rel(FIRST, SECOND)
    interval = theirs.confidence_interval(0.9)
    assert ours.mean == pytest.approx(np.mean(FIRST) - np.mean(SECOND))
    assert (ours.low, ours.high, ours.p) == pytest.approx((interval.low, interval.high, theirs.pvalue))
    assert ours.n == 5


def test_swapping_the_arms_turns_the_difference_round() -> None:
    """Second - first is first - second with the sign changed, p unchanged."""
    one, other = paired_difference(FIRST, SECOND), paired_difference(SECOND, FIRST)
    assert (other.mean, other.low, other.high) == pytest.approx((-one.mean, -one.high, -one.low))
    assert (other.bootstrap_low, other.p) == pytest.approx((-one.bootstrap_high, one.p), rel=1e-3)


def test_one_pair_has_a_mean_and_nothing_else() -> None:
    """One pair has no spread, so there is no interval and no p, and the verdict says so."""
    lone = paired_difference([0.92], [0.91])
    assert lone.mean == pytest.approx(0.01)
    assert np.isnan([lone.sd, lone.low, lone.high, lone.bootstrap_low, lone.bootstrap_high, lone.p]).all()
    assert verdict(lone, lone.p) == "unknown"
    assert math.isnan(equivalence(lone, 1))
    assert math.isnan(equivalence_bound(lone))


def test_differences_that_are_equal_but_for_rounding_have_no_spread() -> None:
    """0.92 - 0.91 isn't 0.93 - 0.92 in floating point, but that must not give a standard deviation."""
    same = paired_difference([0.92, 0.93, 0.94, 0.95], [0.91, 0.92, 0.93, 0.94])
    assert (same.sd, same.p) == (0, 0)
    assert same.low == same.high == same.bootstrap_low == pytest.approx(0.01)
    assert paired_difference(FIRST, FIRST).p == 1
    assert equivalence(same, 0.02) == 0
    assert equivalence(same, 0.005) == 1


@pytest.mark.parametrize(("first", "second"), [([1.0, 2.0], [1.0]), ([], [])])
def test_unpaired_values_are_refused(first: list[float], second: list[float]) -> None:
    """Every value needs a partner."""
    with pytest.raises(UserError, match="as many values as partners"):
        paired_difference(first, second)


def test_bootstrap_is_the_studentised_one_over_all_resamples() -> None:
    """The slow transcription of Efron and Tibshirani's formula, over all 3,125 resamples of five values."""
    values = np.subtract(FIRST, SECOND)
    mean, error = values.mean(), values.std(ddof=1) / math.sqrt(5)
    distances = []
    for drawn in itertools.product(values, repeat=5):
        spread = np.std(drawn, ddof=1) if len(set(drawn)) > 1 else 0
        shift = np.mean(drawn) - mean
        distances.append(shift / (spread / math.sqrt(5)) if spread else math.copysign(math.inf, shift))
    distances.sort()
    low, high = distances[math.ceil(0.025 * 3125) - 1], distances[math.ceil(0.975 * 3125) - 1]
    assert bootstrap_interval(values) == pytest.approx((mean - high * error, mean - low * error))


def test_bootstrap_follows_scale_and_shift() -> None:
    """Points instead of fractions give 100 times the interval; random resamples depend on the seed alone."""
    values = np.random.default_rng(0).normal(size=8)
    low, high = bootstrap_interval(values, seed=3)
    assert bootstrap_interval(100 * values + 7, seed=3) == pytest.approx((100 * low + 7, 100 * high + 7))
    assert bootstrap_interval(values, seed=4) != (low, high)


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.3], [0.1, 0.1, 0.1, 0.3, 0.1]])
def test_bootstrap_has_no_limits_for_few_or_tied_values(values: list[float]) -> None:
    """If many resamples have no spread, a limit would be infinite, so none is given."""
    assert np.isnan(bootstrap_interval(values)).all()


def test_noise_floor_pools_variances_and_skips_lone_values() -> None:
    """Groups are pooled by degrees of freedom, each about its own mean."""
    floor = noise_floor([[1.0, 3.0], [11.0, 12.0, 16.0], [99.0]])
    assert floor is not None
    assert floor.sd == pytest.approx(math.sqrt((2 + 14) / 3))
    assert (floor.n, floor.degrees) == (5, 3)
    assert floor.low < floor.sd < floor.high


def test_noise_floor_of_no_repetition_is_unknown() -> None:
    """A single value per arm says nothing about noise."""
    assert noise_floor([[1.0], [2.0], []]) is None


def test_holm_steps_down_and_leaves_unknown_ones_out() -> None:
    """Each p is multiplied by the number of p values not smaller, in increasing order, up to 1; NaN isn't counted."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.6, math.nan, 0.02]) == pytest.approx((0.6, math.nan, 0.04), nan_ok=True)
    assert holm([0.8, 0.9]) == (1, 1)
    assert holm([]) == ()


@pytest.mark.parametrize(
    ("p", "first", "word"),
    [(0.05, FIRST, "better"), (0.05, SECOND, "worse"), (0.051, FIRST, "not distinguishable")],
)
def test_verdict_takes_its_side_from_the_mean(p: float, first: list[float], word: str) -> None:
    """The p value decides whether there is a difference, the sign of the mean decides which way."""
    second = SECOND if first is FIRST else FIRST
    assert verdict(paired_difference(first, second), p) == word


def test_equivalence_is_the_larger_of_scipys_one_sided_tests() -> None:
    """TOST: both "at least margin above" and "at least margin below" have to be rejected."""
    values, margin = np.subtract(FIRST, SECOND), 0.007
    above = stats.ttest_1samp(values, margin, alternative="less").pvalue
    below = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    assert equivalence(paired_difference(FIRST, SECOND), margin) == pytest.approx(max(above, below))
    assert equivalence(paired_difference(SECOND, FIRST), margin) == pytest.approx(max(above, below))
    with pytest.raises(UserError, match="`margin > 0` must hold"):
        equivalence(paired_difference(FIRST, SECOND), 0)


def test_the_bound_is_the_margin_at_which_equivalence_is_just_shown() -> None:
    """At the bound, p is 1 minus the confidence."""
    difference = paired_difference(FIRST, SECOND)
    assert equivalence(difference, equivalence_bound(difference, 0.9)) == pytest.approx(0.1)


def test_power_at_no_difference_is_alpha_and_grows_with_pairs() -> None:
    """This holds even where scipy's distribution function is NaN; one pair detects nothing."""
    assert power(5, 0, 1) == pytest.approx(0.05)
    assert power(1, 100, 1) == 0
    assert (power(3, 0.1, 0), power(3, 0, 0)) == (1, 0.05)
    for shift in np.geomspace(0.01, 1e5, 30):
        powers = [power(n, shift, 1) for n in (2, 3, 5, 10, 1000)]
        assert powers == pytest.approx(sorted(powers), abs=1e-9)


def test_power_of_two_pairs_is_the_integral_over_their_spread() -> None:
    """At a difference of 9.25 sd half of scipy's sum is NaN; the reference integrates over the sample's sd."""
    sd = stats.chi.ppf((np.arange(200_000) + 0.5) / 200_000, 1)
    limit, shift = stats.t.isf(0.025, 1), 9.25 * math.sqrt(2)
    by_hand = np.mean(stats.norm.cdf(shift - limit * sd) + stats.norm.cdf(-shift - limit * sd))
    assert power(2, 9.25, 1) == pytest.approx(by_hand, abs=1e-5)


def test_seeds_needed_is_the_fewest() -> None:
    """Half a standard deviation takes 34 pairs (as in G*Power); one pair fewer doesn't reach the power."""
    assert seeds_needed(0.5, 1) == 34
    assert power(33, 0.5, 1) < 0.8 <= power(34, 0.5, 1)
    assert seeds_needed(-0.5, 1) == 34
    assert [seeds_needed(0.5, 0), seeds_needed(50, 1), seeds_needed(1e-9, 1)] == [2, 2, 1_000_000]
    with pytest.raises(UserError, match="`difference != 0` must hold"):
        seeds_needed(0, 1)


def test_detectable_difference_undoes_power() -> None:
    """A difference that n pairs just detect takes n pairs."""
    seen = detectable_difference(7, 0.003, 0.9, 0.01)
    assert power(7, seen, 0.003, 0.01) == pytest.approx(0.9)
    assert (detectable_difference(1, 0.003), detectable_difference(2, 0)) == (math.inf, 0)


def test_expected_winners_curse_has_its_closed_forms() -> None:
    """The largest of 1, 2 and 3 normal values is 0, 1 / sqrt(pi), 3 / (2 sqrt(pi)); it grows with the noise."""
    expected = [expected_winners_curse(2, n) / 2 for n in (1, 2, 3)]
    assert expected == pytest.approx([0, 1 / math.sqrt(math.pi), 1.5 / math.sqrt(math.pi)], abs=1e-9)


def test_winners_curse_has_the_interval_of_the_confirmed_mean() -> None:
    """The search's own score is judged, so its noise doesn't widen the interval. One fresh seed has no interval."""
    curse, mean = winners_curse(0.93, FIRST), stats.ttest_1samp(FIRST, 0).confidence_interval()
    assert (curse.low, curse.high) == pytest.approx((0.93 - mean.high, 0.93 - mean.low))
    assert curse.mean == pytest.approx(0.93 - np.mean(FIRST))
    assert math.isnan(winners_curse(0.93, [0.92]).low)


def test_rank_correlation_is_scipys_with_limits_that_hold_it() -> None:
    """Ties and order are Spearman's; the limits are Fisher's with Bonett and Wright's standard error."""
    early, final = [1.0, 2.0, 2.0, 4.0, 5.0, 6.0], [2.0, 1.0, 3.0, 4.0, 6.0, 5.0]
    found = rank_correlation(early, final)
    assert found.rho == pytest.approx(stats.spearmanr(early, final).statistic)
    margin = 1.959964 * math.sqrt((1 + found.rho**2 / 2) / 3)
    limits = np.tanh([math.atanh(found.rho) - margin, math.atanh(found.rho) + margin])
    assert (found.low, found.high) == pytest.approx(tuple(limits), rel=1e-5)


def test_perfect_rank_correlation_of_five_is_not_certainty() -> None:
    """Five pairs in the same order may be luck; thirty are not."""
    five, thirty = rank_correlation(range(5), range(5)), rank_correlation(range(30), range(30))
    assert (five.rho, five.high) == pytest.approx((1, 1))
    assert five.low < 0.3
    assert thirty.low > 0.99
    reverse = rank_correlation(range(5), range(5, 0, -1))
    assert (reverse.low, reverse.high) == pytest.approx((-1, -five.low))


def test_rank_correlation_is_unknown_without_order() -> None:
    """Neither equal scores nor one pair have an order; three pairs have one, but no limits."""
    assert math.isnan(rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]).rho)
    assert math.isnan(rank_correlation([1], [1]).rho)
    assert math.isnan(rank_correlation([1, 2, 3], [1, 2, 3]).low)


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 5, pytest.param(10, marks=pytest.mark.all)])
def test_intervals_of_the_difference_cover_the_truth(n: int) -> None:
    """Both 95 % intervals hold the true difference in 93 to 97 % of simulated studies."""
    found = differences(n, mean=0.5, seed=n)
    student = np.mean([d.low <= 0.5 <= d.high for d in found])
    bootstrap = np.mean([d.bootstrap_low <= 0.5 <= d.bootstrap_high for d in found])
    assert 0.93 <= student <= 0.97
    assert 0.93 <= bootstrap <= 0.97


@pytest.mark.slow
def test_bootstrap_covers_better_where_noise_is_skewed() -> None:
    """For five exponential values, Student's interval holds the mean in less than 91 %, the bootstrap's in more."""
    values = np.random.default_rng(0).exponential(size=(N_STUDIES, 5))
    found = [paired_difference(row, np.ones(5)) for row in values]
    assert np.mean([d.low <= 0 <= d.high for d in found]) < 0.91
    assert 0.92 <= np.mean([d.bootstrap_low <= 0 <= d.bootstrap_high for d in found]) <= 0.97


@pytest.mark.slow
def test_interval_of_the_noise_floor_covers_the_truth() -> None:
    """For arms of different means and sizes it does in 93 to 97 % of simulated studies; the variance has no bias."""
    values = np.random.default_rng(0).normal(0, 0.003, (N_STUDIES, 12)) + 0.9
    floors = [noise_floor([row[:3], row[3:6] - 0.1, row[6:11], row[11:]]) for row in values]
    known = [floor for floor in floors if floor is not None]
    assert len(known) == N_STUDIES
    assert 0.93 <= np.mean([floor.low <= 0.003 <= floor.high for floor in known]) <= 0.97
    assert np.mean([floor.sd**2 for floor in known]) == pytest.approx(0.003**2, rel=0.04)


@pytest.mark.slow
@pytest.mark.usefixtures("no_bootstrap")
def test_without_a_difference_a_verdict_is_rare() -> None:
    """In at most 5 % of studies any of three comparisons of equal arms says "better"; the same goes for "worse"."""
    told = [set(verdicts(arms)) for arms in studies(5)]
    assert np.mean(["better" in words for words in told]) <= 0.05
    assert np.mean([words != {"not distinguishable"} for words in told]) <= FIVE_PERCENT


@pytest.mark.slow
@pytest.mark.usefixtures("no_bootstrap")
def test_a_true_gain_does_not_loosen_the_other_comparison() -> None:
    """Only distill gains; label smoothing is told apart from scratch in at most 5 % of studies."""
    told = [verdicts(arms) for arms in studies(5, gain=0.02)]
    assert np.mean([words[2] != "not distinguishable" for words in told]) <= FIVE_PERCENT
    assert np.mean([words[:2] == ["better", "better"] for words in told]) > 0.99


@pytest.mark.slow
@pytest.mark.usefixtures("no_bootstrap")
@pytest.mark.parametrize("difference", [0.8, 1.5])
def test_planned_power_is_had(difference: float) -> None:
    """With the planned seeds a true difference is seen as often as planned, within 3 points."""
    n = seeds_needed(difference, 1, power=0.8)
    seen = np.mean([verdict(d, d.p) == "better" for d in differences(n, mean=difference, seed=n)])
    assert seen == pytest.approx(power(n, difference, 1), abs=0.03)
    assert seen > 0.77


@pytest.mark.slow
@pytest.mark.usefixtures("no_bootstrap")
def test_equivalence_is_rarely_claimed_wrongly() -> None:
    """Arms that are exactly the margin apart are called equivalent in 5 % of studies, and pass the bound as often."""
    found = differences(5, mean=2.0)
    assert np.mean([equivalence(d, 2.0) <= 0.05 for d in found]) == pytest.approx(0.05, abs=0.015)
    assert np.mean([equivalence_bound(d) < 2.0 for d in found]) == pytest.approx(0.05, abs=0.015)


@pytest.mark.slow
def test_winners_curse_is_what_was_expected_and_covered() -> None:
    """The best of 30 equal settings overstates by the expected amount; its interval holds what it truly overstates."""
    rng = np.random.default_rng(0)
    promised = rng.normal(0, 1, (N_STUDIES, 30)).max(axis=1)
    curses = [winners_curse(best, rng.normal(0, 1, 5)) for best in promised]
    assert np.mean([curse.mean for curse in curses]) == pytest.approx(expected_winners_curse(1, 30), abs=0.05)
    covered = [curse.low <= best <= curse.high for curse, best in zip(curses, promised, strict=True)]
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("r", [0.0, 0.8])
def test_interval_of_the_rank_correlation_covers_the_truth(r: float) -> None:
    """For twelve normal pairs, whose true value is 6 / pi asin(r / 2), it does in 93 to 97 % of samples."""
    pairs = np.random.default_rng(0).multivariate_normal([0, 0], [[1, r], [r, 1]], (N_STUDIES, 12))
    truth = 6 / math.pi * math.asin(r / 2)
    found = [rank_correlation(sample[:, 0], sample[:, 1]) for sample in pairs]
    assert 0.93 <= np.mean([c.low <= truth <= c.high for c in found]) <= 0.97
