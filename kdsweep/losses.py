"""Distillation losses: functions of (student logits, teacher logits, labels) that return the batch's mean loss.

alpha: the distillation share, in [0, 1]. tau: the softmax temperature, > 0. Both mean this everywhere in kdsweep.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdsweep import loss_rules
from kdsweep.system.errors import UserError


def kd(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, *, alpha: float, tau: float) -> Tensor:
    """Knowledge distillation: `(1 - alpha) * CE + alpha * tau^2 * KL(teacher_tau || student_tau)`.

    Hinton, Vinyals and Dean 2015, arXiv 1503.02531; tau^2 keeps the size of the gradient independent of tau.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: (batch, classes), unnormalised; no gradient reaches them.
        labels: (batch,), int64.
        alpha: Weight of the distillation term, in [0, 1]; 0 is cross-entropy.
        tau: Temperature of both softmaxes, > 0.
    """
    loss_rules.kd(alpha=alpha, tau=tau)
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
    """Cross-entropy with the labels; the teacher is not consulted."""
    return F.cross_entropy(student_logits, labels)


def label_smoothing(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, *, smoothing: float
) -> Tensor:
    """Cross-entropy with `(1 - smoothing) * onehot + smoothing / classes`: the control that knows no teacher.

    Szegedy et al. 2016, arXiv 1512.00567, section 7; smoothing is in [0, 1].
    """
    loss_rules.label_smoothing(smoothing=smoothing)
    return F.cross_entropy(student_logits, labels, label_smoothing=smoothing)


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, tau: float = 1.0) -> Tensor:
    """KL(teacher_tau || student_tau) of each example in nats, summed over classes: (batch,)."""
    student = F.log_softmax(student_logits / tau, dim=1)  # (B, C)
    teacher = F.log_softmax(teacher_logits / tau, dim=1)  # (B, C)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)  # (B,)
