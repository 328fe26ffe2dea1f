"""Learning-rate schedules: functions of (optimizer, total steps) that return a torch scheduler stepped once a batch.

The peak rate is the optimizer's own `lr`. Fractions are of the total number of steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR

from kdsweep.system.errors import require, require_number

if TYPE_CHECKING:
    from torch.optim import Optimizer


def one_cycle(optimizer: Optimizer, total_steps: int, *, warmup: float) -> LRScheduler:
    """Up to `lr` along a cosine during the first `warmup` of the steps, then down to nearly zero; momentum constant.

    Smith and Topin 2017, arXiv 1708.07120. warmup is in (0, 1); `lr` is reached at the second step at the earliest.
    """
    require_number(warmup, "0 < warmup < 1", "warmup")
    require(0 < warmup < 1, "0 < warmup < 1", warmup, "warmup")
    # OneCycleLR divides by the number of steps in each phase: neither may be empty.
    steps = max(total_steps, 3)
    rising = max(warmup, 2 / steps)
    return OneCycleLR(
        optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=steps, pct_start=rising, cycle_momentum=False
    )


def cosine(optimizer: Optimizer, total_steps: int, *, warmup: float) -> LRScheduler:
    """Linearly up to `lr` during the first `warmup` of the steps, then a half cosine to zero.

    Loshchilov and Hutter 2016, arXiv 1608.03983, without restarts. warmup is in [0, 1).
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
    """The optimizer's `lr` throughout."""
    return ConstantLR(optimizer, factor=1.0)
