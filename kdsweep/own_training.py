"""Losses, optimizers and schedules of the user's own: what they are given, and what they have to return."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from kdsweep import losses
from kdsweep.losses import GIVEN, LABEL, NO_LABEL, given_arguments, needs_of
from kdsweep.own_arguments import name_of, parameters, require_arguments
from kdsweep.system.errors import UserError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.optim import Optimizer

# The number of examples on which a loss is tried.
TRIED = 2

# The names by which a schedule may ask for the number of steps in the whole training.
STEPS = ("total_steps", "num_training_steps", "T_max", "total_iters")

# How many arguments a function of each group is given before its settings.
N_GIVEN = {"loss": 3, "optimizer": 1, "schedule": 1}


class LossFunction(Protocol):
    """What `loss._target_` names: a function of the logits and the labels of a batch, or a class with `__call__`.

    A class is made once with the settings, and then called without them. It is called at every step.
    """

    def __call__(
        self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, **settings: Any
    ) -> Tensor:
        """Computes the loss of a batch.

        Args:
            student_logits: (B, C) float32, unnormalised.
            teacher_logits: (B, C) float32 for the same views, without gradient; None without a teacher.
            labels: (B,) int64, -1 for a picture without a label (`data.unlabelled`); or (B, C) float32, the share of
                each class, where pictures are mixed (`augment=mixup`).
            **settings: From the configuration.

        Returns:
            The mean over the batch, a scalar that has a gradient with respect to `student_logits`.
        """


class OptimizerFunction(Protocol):
    """What `optimizer._target_` names: a class of `torch.optim`, or a function that returns such an optimizer.

    It is called once, when a training begins.
    """

    def __call__(self, params: list[Tensor], **settings: Any) -> Optimizer:
        """Makes the optimizer.

        Args:
            params: The parameters that are trained, of any shape.
            **settings: From the configuration.

        Returns:
            An optimizer whose `step()` needs no closure.
        """


class ScheduleFunction(Protocol):
    """What `schedule._target_` names: a class of `torch.optim.lr_scheduler`, or a function that returns one.

    It is called once, when a training begins.
    """

    def __call__(self, optimizer: Optimizer, total_steps: int, **settings: Any) -> LRScheduler:
        """Makes the learning rate's schedule.

        Args:
            optimizer: Its `lr` is the highest rate.
            total_steps: The number of batches in the whole training. It is given under any name of `STEPS`.
            **settings: From the configuration.

        Returns:
            A scheduler, which is stepped once a batch, and not once an epoch.
        """


def scheduled(
    function: Callable[..., LRScheduler], settings: Mapping[str, Any], optimizer: Optimizer, total_steps: int
) -> LRScheduler:
    """Calls a schedule's function, with the number of steps where it asks for it.

    It asks by a name of `STEPS` that isn't configured, or by a second argument that has neither a default nor a
    configured value. Torch's own classes ask by name alone: the second argument of `ExponentialLR` is its gamma.
    """
    name = next((name for name in parameters(function) or () if name in STEPS), None)
    if name is not None:
        given = {} if name in settings else {name: total_steps}
        return function(optimizer, **given, **settings)
    second = _asks_second(function)
    if second is not None and second not in settings:
        return function(optimizer, total_steps, **settings)
    return function(optimizer, **settings)


def _asks_second(function: Callable[..., object]) -> str | None:
    """Returns the name of a schedule's second argument if it may be the number of steps, apart from torch's own."""
    known = list((parameters(function) or {}).values())
    if len(known) < 2 or str(function.__module__).startswith("torch."):
        return None
    positional = known[1].kind in (known[1].POSITIONAL_ONLY, known[1].POSITIONAL_OR_KEYWORD)
    return known[1].name if positional and known[1].default is known[1].empty else None


def require_settings(group: str, function: Callable[..., object], settings: Mapping[str, Any]) -> None:
    """Refuses settings that a loss, an optimizer or a schedule doesn't have, and the absence of those that it needs.

    Args:
        group: "loss", "optimizer" or "schedule".
        function: The function or class.
        settings: The configured settings.

    Raises:
        UserError: Its key is the setting.
    """
    given: set[str] = set()
    if group == "loss":
        given |= given_arguments(function)
        # A sum of ours has arguments for what its terms may need.
        ours = GIVEN if function.__module__ == losses.__name__ else set()
        for name in sorted((given | ours) & settings.keys()):
            rule = f"nobody but the training gives {name_of(function)} this argument"
            raise UserError(f"`{rule}` must hold, but got {name}={settings[name]!r}. Leave it out.", name)
    elif group == "schedule":
        given |= {*STEPS, _asks_second(function) or ""}
    n_given = 0 if group == "loss" and isinstance(function, type) else N_GIVEN[group]
    require_arguments(function, settings, (), given, n_given=n_given)


def require_settings_of_parts(loss: Callable[..., Tensor]) -> None:
    """Refuses the same as `require_settings` in the losses that a sum or a schedule is made of.

    Args:
        loss: The loss with its settings, which `loss_rules` has let pass.

    Raises:
        UserError: Its key is the setting.
    """
    for key, part in losses.parts_by_key(loss).items():
        if not isinstance(part, partial):
            continue
        try:
            require_settings("loss", part.func, part.keywords)
            require_settings_of_parts(part)
        except UserError as error:
            raise error.within(key) from error


def try_loss(loss: Callable[..., object], *, with_teacher: bool) -> None:
    """Calls a loss once, on the smallest input.

    Raises:
        UserError: It needs a teacher and has none, or returns something else than the mean of the batch.
    """
    answers, labels = torch.zeros(TRIED, 3), torch.arange(TRIED)

    def value(teacher: Tensor | None) -> object:
        return loss(torch.zeros(TRIED, 3, requires_grad=True), teacher, labels)

    try:
        found = value(answers if with_teacher else None)
    except UserError:
        raise
    except Exception as error:
        if with_teacher or not _works(lambda: value(answers)):
            raise
        message = "the loss needs a teacher, but teacher is null. Choose one (teacher=...) or train with loss=ce."
        raise UserError(message) from error
    if not isinstance(found, Tensor) or found.shape != () or not found.requires_grad:
        shown = f"a {type(found).__name__}"
        if isinstance(found, Tensor):
            shown = f"a tensor {tuple(found.shape)}" + ("" if found.requires_grad else " without a gradient")
        rule = "the loss is one number with a gradient, the mean over the batch"
        raise UserError(f"`{rule}` must hold, but it returned {shown}.")


def try_without_label(loss: Callable[..., Tensor], key: str, *, with_teacher: bool) -> None:
    """Calls a loss with a picture that has no label.

    Args:
        loss: The loss with its settings.
        key: What brings such pictures.
        with_teacher: Whether it gets a teacher's logits.

    Raises:
        UserError: It needs a label for each picture, or takes -1 for the last class.
    """
    rule = "the loss leaves a picture with the label -1 out of the labels' part"
    found = _with_labels(loss, torch.tensor([0, NO_LABEL]), rule, key, with_teacher)
    last = _with_labels(loss, torch.tensor([0, 2]), rule, key, with_teacher)
    if bool(found == last) and bool(found != _with_labels(loss, torch.tensor([0, 1]), rule, key, with_teacher)):
        raise UserError(f"`{rule}` must hold for {key}, but for this one -1 is the last class. Write it for both.")


def try_mixed_labels(loss: Callable[..., Tensor], key: str, *, with_teacher: bool) -> None:
    """Calls a loss with pictures that are mixed; raises what `try_without_label` does."""
    rule = "the loss takes labels (B, C), the share of each class in a mixed picture"
    _with_labels(loss, torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.0, 0.75]]), rule, key, with_teacher)


def _with_labels(loss: Callable[..., Tensor], labels: Tensor, rule: str, key: str, with_teacher: bool) -> Tensor:
    student = torch.tensor([[1.0, -2.0, 3.0], [0.0, 2.0, 5.0]], requires_grad=True)
    teacher = torch.tensor([[2.0, 0.0, -1.0], [1.0, 1.0, 4.0]]) if with_teacher else None
    name = name_of(getattr(loss.func, "func", loss.func)) if isinstance(loss, partial) else name_of(loss)
    remedy = "Choose another loss (kd, kd_variants, mse, dist, wttm, pseudo_labels), or leave that key alone."
    if LABEL in needs_of(loss):
        raise UserError(f"`{rule}` must hold for {key}, but {name} needs one label for each picture. {remedy}")
    try:
        return loss(student, teacher, labels).detach()
    except Exception as error:
        fault = one_line(f"{type(error).__name__}: {error}", whole=False)
        raise UserError(f"`{rule}` must hold for {key}, but {name} ended in {fault}. {remedy}") from error


def try_optimizer(optimizer: Callable[..., object]) -> Optimizer:
    """Makes an optimizer of a few small parameters.

    Raises:
        UserError: It is no optimizer of torch's.
    """
    made = optimizer([torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3, 1, 1), (2, 2), (2,))])
    if not isinstance(made, torch.optim.Optimizer):
        rule = "the optimizer is a torch.optim.Optimizer"
        raise UserError(f"`{rule}` must hold, but it is a {type(made).__name__}.")
    return made


def try_schedule(schedule: Callable[..., object], optimizer: Optimizer) -> None:
    """Makes a schedule of ten steps.

    Raises:
        UserError: It is no scheduler of torch's, or one that waits for a metric.
    """
    made = schedule(optimizer, 10)
    if not isinstance(made, LRScheduler) or isinstance(made, ReduceLROnPlateau):
        rule = "the schedule is a torch LRScheduler that is stepped once a batch, without a metric"
        raise UserError(f"`{rule}` must hold, but it is a {name_of(type(made))}.")


def _works(action: Callable[[], object]) -> bool:
    try:
        action()
    except Exception:
        return False
    return True
