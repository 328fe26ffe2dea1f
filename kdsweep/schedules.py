"""Learning-rate schedules: functions of (optimizer, total steps) that return a torch scheduler, stepped once a batch.

The highest rate is the optimizer's own `lr`. `warmup` is a fraction of the total number of steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR

from kdsweep.system.errors import require, require_number

if TYPE_CHECKING:
    from torch.optim import Optimizer


def one_cycle(optimizer: Optimizer, total_steps: int, *, warmup: float) -> LRScheduler:
    """Raises the rate to `lr` along a cosine during the warm-up, then lowers it to nearly zero; momentum is constant.

    Smith and Topin 2017, arXiv 1708.07120.

    Args:
        optimizer: Its `lr` is the highest rate.
        total_steps: The number of batches in the whole training.
        warmup: The fraction of the steps during which the rate rises, in (0, 1); it rises for two steps at least.

    Raises:
        UserError: warmup is out of range.
    """
    require_number(warmup, "0 < warmup < 1", "warmup")
    require(0 < warmup < 1, "0 < warmup < 1", warmup, "warmup")
    # OneCycleLR divides by the number of steps of each phase, so neither phase may be empty.
    steps = max(total_steps, 3)
    rising = max(warmup, 2 / steps)
    return OneCycleLR(
        optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=steps, pct_start=rising, cycle_momentum=False
    )


def cosine(optimizer: Optimizer, total_steps: int, *, warmup: float) -> LRScheduler:
    """Raises the rate linearly to `lr` during the warm-up, then lowers it along half a cosine to zero.

    Loshchilov and Hutter 2016, arXiv 1608.03983, without restarts.

    Args:
        optimizer: Its `lr` is the highest rate.
        total_steps: The number of batches in the whole training.
        warmup: The fraction of the steps during which the rate rises, in [0, 1).

    Raises:
        UserError: warmup is out of range.
    """
    require_number(warmup, "0 <= warmup < 1", "warmup")
    require(0 <= warmup < 1, "0 <= warmup < 1", warmup, "warmup")
    rising = round(warmup * total_steps)
    falling = CosineAnnealingLR(optimizer, T_max=max(total_steps - rising, 1))
    if rising == 0:
        return falling
    rise = LinearLR(optimizer, start_factor=1 / (rising + 1), total_iters=rising)
    return SequentialLR(optimizer, [rise, falling], milestones=[rising])


def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """Keeps the optimizer's `lr` throughout."""
    return ConstantLR(optimizer, factor=1.0)
