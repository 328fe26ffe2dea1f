"""The check of tables lets arithmetic's noise pass, of any size, and finds what is wrong."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from kdsweep.numerics.rounding_noise import UNIT_ROUNDOFF, rounding_noise
from kdsweep.table_check import CLEAR, MANY_ROWS, OUTPUTS, Asked, compare, control_rows

N = 300
NOISES = (1e-6, 1e-3, 1e-2, 5e-2)  # rounding noise, as a share of the spread over pictures


def outputs(seed: int, n_outputs: int = 10) -> Tensor:
    return torch.randn(N, n_outputs, generator=torch.Generator().manual_seed(seed))


def network(truth: Tensor, noise: float, seed: int = 0) -> Asked:
    """A network whose answers are the truth with rounding errors of its own; shaken, with others."""
    own, other = noise * outputs(1000 + seed, truth.shape[1]), noise * outputs(2000 + seed, truth.shape[1])
    return Asked(lambda rows: (truth + own)[rows], lambda rows: (truth + own + other)[rows])


@pytest.mark.parametrize("n_outputs", [2, 10, 1000])
@pytest.mark.parametrize("noise", NOISES)
def test_rounding_is_no_fault(noise: float, n_outputs: int) -> None:
    """A hundred right tables, with other rounding errors than the network's, are all believed."""
    for seed in range(100 if n_outputs < 1000 else 5):
        truth = outputs(seed, n_outputs)
        found = compare(truth + 0.8 * noise * outputs(3000 + seed, n_outputs), None, network(truth, 0.8 * noise, seed))
        assert found is not None
        assert found.agrees
        assert found.tells


@pytest.mark.parametrize("n_outputs", [2, 10, 1000])
@pytest.mark.parametrize("noise", NOISES)
def test_other_rows_are_a_fault(noise: float, n_outputs: int) -> None:
    """A hundred tables with the rows of other pictures are all refused."""
    for seed in range(100 if n_outputs < 1000 else 5):
        truth = outputs(seed, n_outputs)
        found = compare(truth.roll(1, 0), None, network(truth, noise, seed))
        assert found is not None
        assert not found.agrees


def test_the_same_bits_are_believed_whatever_the_noise() -> None:
    """The control rows decide, without a further question."""
    truth = outputs(0)
    asked = Asked(lambda rows: truth[rows], lambda rows: 1 / 0)  # type: ignore[arg-type, return-value]
    assert compare(truth + 5, truth[control_rows(N)], asked) is None


def test_noise_that_hides_rows_is_said() -> None:
    """Then agreement tells nothing."""
    truth = outputs(0)
    found = compare(truth.roll(1, 0), None, network(truth, 1.0))
    assert found is not None
    assert not found.tells


def test_what_is_not_finite_is_a_fault() -> None:
    """NaN and infinity agree with nothing, in the table or in the network."""
    truth = outputs(0)
    for value in (torch.nan, torch.inf):
        broken = truth.clone()
        broken[0] = value
        for table, asked in ((broken, network(truth, 1e-3)), (truth, network(broken, 1e-3))):
            found = compare(table, None, asked)
            assert found is not None
            assert not found.agrees


def test_more_rows_are_asked_for_where_noise_is_near() -> None:
    """A few rows are enough where noise is far below the spread."""
    for noise, expected in ((0.1 / CLEAR, math.ceil(OUTPUTS / 10)), (10 / CLEAR, MANY_ROWS)):
        truth, counted = outputs(0), []
        own = network(truth, noise)
        compare(truth, None, Asked(lambda rows: counted.append(len(rows)) or own.plain(rows), own.shaken))  # type: ignore[func-returns-value]  # noqa: B023
        assert max(counted) == expected


def test_a_table_may_have_one_row() -> None:
    """Then there is no spread, and it is compared all the same."""
    truth = outputs(0)[:1]
    assert compare(truth, None, Asked(lambda rows: truth[rows], lambda rows: truth[rows])) is None
    found = compare(truth + 1, None, Asked(lambda rows: truth[rows], lambda rows: truth[rows] + 1e-6))
    assert found is not None
    assert not found.agrees


@pytest.mark.parametrize("precision", UNIT_ROUNDOFF)
def test_shaking_is_of_the_size_of_rounding(precision: str) -> None:
    """A product's error is at most the unit roundoff; the network is afterwards as before."""
    layer, x = nn.Linear(50, 1000).requires_grad_(False), torch.randn(8, 50)
    expected = layer(x)
    with rounding_noise(nn.Sequential(layer), precision, seed=0):
        shaken = layer(x)
    error = ((shaken - expected) / expected).abs().max().item()
    assert 0.8 * UNIT_ROUNDOFF[precision] < error <= UNIT_ROUNDOFF[precision] + 2**-23
    assert torch.equal(layer(x), expected)


def test_a_module_can_be_left_alone() -> None:
    """The head computes in float32 whatever the precision, so it makes no errors of the backbone's size."""
    layer, x = nn.Linear(5, 5), torch.randn(8, 5)
    with rounding_noise(nn.Sequential(layer), "bf16", seed=0, but=layer):
        assert torch.equal(layer(x), layer(x))
