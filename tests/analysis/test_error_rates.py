"""Claims about how often the verdict errs, and how often it sees a difference: simulated studies of known truth."""

from __future__ import annotations

import math

import pytest
from benchmarks.verdicts import PAIRS, SCENARIOS, Setup, accuracies, false_rate, power, worst_false_rate

STUDIES = 300


def at_most(n_studies: int, rate: float = 0.05) -> float:
    """Three standard errors above a rate, for so many studies."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / n_studies)


@pytest.mark.parametrize(
    "setup",
    [
        Setup("normal", 3, 2000, 0.05),  # without the floors 7 %
        Setup("label smoothing a tenth as noisy", 10, 100, 0.5),  # without the floors 18 %
        Setup("controls a tenth as noisy", 3, 10_000, 0.5),  # pooled noise with all its degrees of freedom: 7 %
        Setup("one run in 20 collapses", 5, 500, 0.2),
    ],
    ids=str,
)
def test_equal_arms_are_rarely_told_apart(setup: Setup) -> None:
    """In at most 5 % of studies any of the three comparisons says "better" or "worse"."""
    assert false_rate(setup, STUDIES) <= at_most(STUDIES)


@pytest.mark.slow
def test_the_floors_cost_little_power() -> None:
    """Two standard deviations are seen in 43 % of studies of five seeds by the plain test, and in 93 % of ten."""
    assert power(Setup("normal", 5, 10_000, 0.5, gain=2), STUDIES) > 0.35
    assert power(Setup("normal", 10, 10_000, 0.5, gain=2), STUDIES) > 0.85
    assert power(Setup("pairs correlated by 0.8", 5, 10_000, 0.5, gain=2), STUDIES) > 0.95


def test_simulated_accuracies_are_counted() -> None:
    """They are multiples of one picture, and a run in twenty collapses where that is what is simulated."""
    values = accuracies(Setup("one run in 20 collapses", 10, 200, 0.2), STUDIES)
    assert values.shape == (STUDIES, 3, 10)
    assert abs(200 * values - (200 * values).round()).max() < 1e-9
    assert (values < 0.8).mean() == pytest.approx(0.05, abs=0.015)


@pytest.mark.all
@pytest.mark.parametrize("n_pairs", PAIRS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_equal_arms_are_rarely_told_apart_whatever_the_noise(scenario: str, n_pairs: int) -> None:
    """The worst of all sizes of the test split and of the noise: the table of docs/statistics.md."""
    rate, where = worst_false_rate(scenario, n_pairs, STUDIES)
    assert rate <= at_most(4 * STUDIES), where
