"""Averages of teachers: the two formulas, in float64, and what they promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdsweep.averaged_teachers import AVERAGES, averaged

GENERATOR = torch.Generator().manual_seed(0)
ANSWERS = [3 * torch.randn(7, 5, generator=GENERATOR, dtype=torch.float64) for _ in range(3)]


def softmax(logits: Tensor, tau: float = 1.0) -> Tensor:
    powers = (logits / tau).exp()
    return powers / powers.sum(1, keepdim=True)


def test_averaged_probabilities_are_the_mean_at_temperature_one() -> None:
    """softmax(z) = 1/M sum softmax(z_m); at another temperature it is this mean, tempered as a whole."""
    mean = torch.stack([softmax(logits) for logits in ANSWERS]).mean(0)
    found = averaged(ANSWERS, "probabilities")
    torch.testing.assert_close(softmax(found), mean)
    tempered = mean ** (1 / 4)
    torch.testing.assert_close(softmax(found, 4), tempered / tempered.sum(1, keepdim=True))


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_averaged_logits_are_the_geometric_mean_at_every_temperature(tau: float) -> None:
    """softmax(z / tau) ~ prod softmax(z_m / tau)^(1/M)."""
    product = torch.stack([softmax(logits, tau) for logits in ANSWERS]).prod(0) ** (1 / 3)
    torch.testing.assert_close(softmax(averaged(ANSWERS, "logits"), tau), product / product.sum(1, keepdim=True))


@pytest.mark.parametrize("average", AVERAGES)
def test_the_average_of_equal_teachers_says_what_each_says(average: str) -> None:
    """At any temperature; and logits so large that their probabilities underflow stay finite."""
    same = averaged([ANSWERS[0]] * 3, average)
    torch.testing.assert_close(softmax(same, 4), softmax(ANSWERS[0], 4))
    large = averaged([torch.tensor([[0.0, 2000.0]]), torch.tensor([[0.0, 1000.0]])], average)
    assert large.isfinite().all()
    assert large.dtype == torch.float32
