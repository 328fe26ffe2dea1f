"""Losses: functions of (student logits, teacher logits, labels) that return the mean loss of the batch.

alpha is the distillation share, in [0, 1]. tau is the softmax temperature, > 0. Both mean this everywhere in kdsweep.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec

import torch.nn.functional as F
from torch import Tensor

from kdsweep import loss_rules
from kdsweep.system.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

Arguments = ParamSpec("Arguments")


def checked(loss: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """Makes a loss check its settings at each call, by the rule of the same name in `loss_rules`.

    `loss.__wrapped__` is the function without the check. A run trains with that one, and checks once, before it starts.
    """
    rule = loss_rules.RULES[loss.__name__]

    @functools.wraps(loss)
    def checking(*args: Arguments.args, **settings: Arguments.kwargs) -> Tensor:
        rule(**settings)
        return loss(*args, **settings)

    return checking


@checked
def kd(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, *, alpha: float, tau: float) -> Tensor:
    """Knowledge distillation: `(1 - alpha) * CE + alpha * tau^2 * KL(teacher_tau || student_tau)`.

    CE is the cross-entropy with the labels; KL compares the two softmaxes at temperature tau, is summed over the
    classes, and averaged over the batch. Both are in nats. The factor tau^2 keeps the size of the gradient independent
    of tau. Hinton, Vinyals and Dean 2015, arXiv 1503.02531.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: (batch, classes), unnormalised; no gradient reaches them.
        labels: (batch,) int64.
        alpha: The weight of the distillation term, in [0, 1]; 0 is exactly cross-entropy.
        tau: The temperature of both softmaxes, > 0.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        UserError: alpha or tau is out of range, there is no teacher, or the teacher has other classes.
    """
    if teacher_logits is None:
        raise UserError("kd needs a teacher, but teacher is null. Choose one (teacher=...) or train with loss=ce.")
    if teacher_logits.shape != student_logits.shape:
        raise UserError(
            f"the student has {student_logits.shape[1]} classes and the teacher {teacher_logits.shape[1]}. "
            "Both need the data set's number of classes: check teacher.network.head and model.head."
        )
    hard = F.cross_entropy(student_logits, labels)
    soft = kl_divergence(student_logits, teacher_logits.detach(), tau).mean()
    return (1 - alpha) * hard + alpha * tau**2 * soft


def ce(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
    """Cross-entropy: the mean negative log-probability of the label, in nats.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: Ignored.
        labels: (batch,) int64.

    Returns:
        The mean over the batch, a scalar.
    """
    return F.cross_entropy(student_logits, labels)


@checked
def label_smoothing(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, *, smoothing: float
) -> Tensor:
    """Cross-entropy with the target `(1 - smoothing) * onehot + smoothing / classes`: a control without a teacher.

    Szegedy et al. 2016, arXiv 1512.00567, section 7.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: Ignored.
        labels: (batch,) int64.
        smoothing: The share of the target that is spread evenly over the classes, in [0, 1]; 0 is cross-entropy.

    Returns:
        The mean over the batch in nats, a scalar.

    Raises:
        UserError: smoothing is out of range.
    """
    return F.cross_entropy(student_logits, labels, label_smoothing=smoothing)


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, tau: float = 1.0) -> Tensor:
    """KL(teacher_tau || student_tau) of each example: sum of p * log(p / q) over the classes, in nats.

    Args:
        student_logits: (batch, classes), unnormalised; q is their softmax at temperature tau.
        teacher_logits: (batch, classes), unnormalised; p is their softmax at temperature tau.
        tau: The temperature, > 0.

    Returns:
        One value for each example, (batch,).
    """
    student = F.log_softmax(student_logits / tau, dim=1)  # (B, C)
    teacher = F.log_softmax(teacher_logits / tau, dim=1)  # (B, C)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)  # (B,)
