"""Losses, optimizers and schedules of the user's own: what they get, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from kdsweep.config import build
from kdsweep.losses import ce, kd
from kdsweep.own_training import scheduled, try_loss, try_optimizer, try_schedule
from kdsweep.system.errors import UserError


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)


def schedule(name: str, **settings: Any) -> Any:
    """One of torch's, as the configuration describes it without `_partial_`."""
    described = {"_target_": f"torch.optim.lr_scheduler.{name}", **settings}
    return build.component(OmegaConf.create({"schedule": described}), "schedule")(sgd(), 100)


def test_torchs_schedules_get_the_steps_where_they_ask_for_them() -> None:
    """By name alone: as the second argument they would become ExponentialLR's gamma, or OneCycleLR's highest rate."""
    assert schedule("CosineAnnealingLR").T_max == 100
    assert schedule("CosineAnnealingLR", T_max=7).T_max == 7
    assert schedule("OneCycleLR", max_lr=0.5).total_steps == 100
    assert schedule("ExponentialLR", gamma=0.9).gamma == 0.9
    assert schedule("StepLR", step_size=30).step_size == 30


def test_a_function_gets_the_steps_by_name_or_second() -> None:
    """Unless its second argument is a setting with a default."""
    got: list[Any] = []
    functions: list[Callable[..., Any]] = [
        lambda optimizer, n: got.append(n),
        lambda optimizer, warmup=5, *, total_steps: got.append((warmup, total_steps)),
        lambda optimizer, warmup=5: got.append(warmup),
    ]
    for function in functions:
        scheduled(function, {}, sgd(), 100)
    assert got == [100, (5, 100), 5]


def needs_teacher(student_logits: Tensor, teacher_logits: Any, labels: Tensor) -> Tensor:
    return (student_logits - teacher_logits.detach()).square().mean()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (needs_teacher, "the loss needs a teacher, but teacher is null. Choose one"),
        (lambda s, t, y: nn.functional.cross_entropy(s, y, reduction="none"), r"it returned a tensor \(2,\)"),
        (lambda s, t, y: ce(s, t, y).item(), "it returned a float"),
        (lambda s, t, y: ce(s.detach(), t, y), r"it returned a tensor \(\) without a gradient"),
    ],
)
def test_a_loss_returns_the_mean_and_says_if_it_needs_a_teacher(loss: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        try_loss(loss, with_teacher=False)


def test_losses_that_keep_the_rules_are_taken() -> None:
    """With a teacher the one that needs it; ours; and the error of one that fails in either case is its own."""
    try_loss(needs_teacher, with_teacher=True)
    try_loss(ce, with_teacher=False)
    try_loss(lambda s, t, y: kd(s, t, y, alpha=0.5, tau=4.0), with_teacher=True)
    with pytest.raises(KeyError):
        try_loss(lambda s, t, y: {}["loss"], with_teacher=False)


def test_what_is_no_optimizer_or_schedule_of_torchs_is_refused() -> None:
    """A schedule that waits for a metric, too."""
    assert isinstance(try_optimizer(torch.optim.RMSprop), torch.optim.RMSprop)
    with pytest.raises(UserError, match=r"the optimizer is a torch.optim.Optimizer.* it is a list"):
        try_optimizer(lambda params: params)
    try_schedule(lambda optimizer, n: LambdaLR(optimizer, lambda step: 1 - step / n), sgd())
    with pytest.raises(UserError, match="it is a ReduceLROnPlateau"):
        try_schedule(lambda optimizer, n: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer), sgd())
    with pytest.raises(UserError, match="it is a NoneType"):
        try_schedule(lambda optimizer, n: None, sgd())
