"""Claims about what one method needs for what another reaches."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from kdsweep.analysis.equivalent import Curve, equivalents, monotone

AMOUNTS = (500.0, 1000.0, 2000.0, 5000.0, 10000.0)


def accuracy(amount: float) -> float:
    return 1 - 3 * amount**-0.4


def curve(*amounts: float, gain: float = 1.0, seeds: int = 3, sd: float = 0.0, seed: int = 0) -> Curve:
    """A learner to which each amount is worth `gain` times as much, with noise over seeds."""
    noise = np.random.default_rng(seed).normal(0, sd, (len(amounts), seeds)) if sd else np.zeros((len(amounts), seeds))
    return {
        amount: {s: accuracy(gain * amount) + float(noise[i, s]) for s in range(seeds)}
        for i, amount in enumerate(amounts)
    }


def test_a_power_law_is_found_exactly() -> None:
    """Between the measured points too, because the logarithm of the error is interpolated."""
    (found,) = equivalents(curve(*AMOUNTS), curve(1500.0, gain=1.8))
    assert found.equals == pytest.approx(2700, rel=1e-6)


def test_a_method_is_worth_itself() -> None:
    """Nothing is saved against an equal one, and that isn't called clear."""
    for found in equivalents(curve(*AMOUNTS, sd=0.01), curve(*AMOUNTS[1:-1], sd=0.01, seed=1)):
        assert found.low <= found.amount <= found.high
        assert not found.clear


def test_beyond_what_was_measured_there_is_no_number() -> None:
    """The reference needs more than it had, or less: infinity and 0, not an extrapolation."""
    above, below = equivalents(curve(*AMOUNTS[2:]), curve(600.0, 9000.0, gain=1.8))[::-1]
    assert (above.equals, above.high) == (math.inf, math.inf)
    assert (below.equals, below.low) == (0, 0)


def test_two_seeds_give_no_interval() -> None:
    """Two pairs say too little about the noise, as in the verdict."""
    (found,) = equivalents(curve(*AMOUNTS, seeds=2, sd=0.01), curve(2000.0, gain=1.5, seeds=2, sd=0.01, seed=1))
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not found.clear


def test_seeds_that_are_missing_somewhere_are_left_out() -> None:
    """Pairs need all amounts; without any such seed nothing is said."""
    whole = curve(*AMOUNTS, seeds=4)
    holes = {amount: {s: v for s, v in own.items() if (amount, s) != (500.0, 3)} for amount, own in whole.items()}
    assert equivalents(holes, curve(1500.0, seeds=4))[0].pairs == 3
    assert equivalents({500.0: {0: 0.5}, 1000.0: {1: 0.6}}, {500.0: {0: 0.5}}) == ()


def test_monotone_is_the_nearest_falling_sequence() -> None:
    """A falling sequence stays as it is; a rise is replaced by its mean."""
    assert monotone([3, 2, 1]).tolist() == [3, 2, 1]
    assert monotone([3, 1, 2, 0]).tolist() == [3, 1.5, 1.5, 0]
    assert monotone([1, 2, 3]).tolist() == [2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "sd"), [(3, 0.004), (5, 0.012)])
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds: int, sd: float) -> None:
    """Little data is noisier; the truth bends away from the power law, so that interpolation isn't exact either."""
    rng = np.random.default_rng(0)

    def noisy(amount: float, gain: float = 1.0) -> dict[int, float]:
        error = 0.1 + 20 * (gain * amount) ** -0.55
        return dict(enumerate(1 - error + rng.normal(0, sd * (500 / amount) ** 0.3, seeds)))

    reference, n = partial(noisy, gain=1.0), 100
    found = [equivalents({a: reference(a) for a in AMOUNTS}, {2500.0: noisy(2500.0, 1.8)})[0] for _ in range(n)]
    assert sum(one.low <= 4500 <= one.high for one in found) >= 0.91 * n
