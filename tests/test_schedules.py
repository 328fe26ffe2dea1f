"""Schedules: compared with closed forms, also for the shortest runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdsweep.schedules import constant, cosine, one_cycle
from kdsweep.system.errors import UserError

PEAK = 0.2


def sgd() -> Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK, momentum=0.9)


def rates(schedule: Callable[[Optimizer, int], LRScheduler], total_steps: int) -> list[float]:
    """Returns the rate of each step, and the rate after the last."""
    optimizer = sgd()
    scheduler = schedule(optimizer, total_steps)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(total_steps):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    assert optimizer.param_groups[0]["momentum"] == 0.9
    return found


def test_one_cycle_is_two_half_cosines() -> None:
    """The rate goes from lr/25 to lr at the end of the warm-up, and to lr/25/10^4 at the last step."""
    found = rates(partial(one_cycle, warmup=0.25), 100)
    low, end, top = PEAK / 25, PEAK / 25 / 1e4, 24
    for step in range(100):
        if step <= top:
            expected = PEAK + (low - PEAK) * (1 + math.cos(math.pi * step / top)) / 2
        else:
            expected = end + (PEAK - end) * (1 + math.cos(math.pi * (step - top) / (99 - top))) / 2
        assert found[step] == pytest.approx(expected, rel=1e-6)
    assert found[0] == pytest.approx(low)
    assert max(found) == pytest.approx(found[top]) == pytest.approx(PEAK)
    assert found[99] == pytest.approx(end)


def test_cosine_rises_in_a_line_and_falls_to_zero() -> None:
    """The rate is 1/11, 2/11, ... of lr, then lr at the end of the warm-up, then half a cosine that ends at zero."""
    found = rates(partial(cosine, warmup=0.1), 100)
    rise = [PEAK * (step + 1) / 11 for step in range(10)]
    fall = [PEAK * (1 + math.cos(math.pi * step / 90)) / 2 for step in range(91)]
    assert found == pytest.approx(rise + fall, abs=1e-9)


def test_cosine_without_warmup_starts_at_its_peak() -> None:
    """warmup=0 is the half cosine alone."""
    found = rates(partial(cosine, warmup=0), 10)
    assert found == pytest.approx([PEAK * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(11)], abs=1e-9)


def test_constant_is_constant() -> None:
    """Every step has the optimizer's own rate."""
    assert rates(constant, 20) == [PEAK] * 21


@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 10, 20])
@pytest.mark.parametrize("warmup", [0.05, 0.1, 0.25, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("schedule", [one_cycle, cosine])
def test_short_runs_have_rates_too(schedule: Callable[..., LRScheduler], warmup: float, total_steps: int) -> None:
    """Each step has a rate in (0, lr], however few there are, and also if warm-up times steps is exactly one."""
    found = rates(partial(schedule, warmup=warmup), total_steps)[:total_steps]
    assert len(found) == total_steps
    assert all(0 < rate <= PEAK * (1 + 1e-9) for rate in found)


def test_short_one_cycles_start_low_and_reach_the_peak() -> None:
    """A single step is the first of the rise, and the second of two steps is the peak."""
    assert rates(partial(one_cycle, warmup=0.3), 1)[:1] == pytest.approx([PEAK / 25])
    assert rates(partial(one_cycle, warmup=0.3), 2)[:2] == pytest.approx([PEAK / 25, PEAK])


@pytest.mark.parametrize("warmup", [-0.1, 1, 1.0, math.nan, math.inf, "long", None, True])
@pytest.mark.parametrize("schedule", [one_cycle, cosine])
def test_wrong_warmups_are_refused(schedule: Callable[..., LRScheduler], warmup: object) -> None:
    """The rule and the value are named, for words and NaN too."""
    with pytest.raises(UserError, match=r"warmup: `0 <=? warmup < 1` must hold, but got warmup="):
        schedule(sgd(), 10, warmup=warmup)


def test_one_cycle_needs_a_warmup() -> None:
    """warmup=0 is for the other schedules."""
    with pytest.raises(UserError, match=r"`0 < warmup < 1` must hold, but got warmup=0"):
        one_cycle(sgd(), 10, warmup=0)
