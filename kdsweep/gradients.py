"""What the teacher's part of a loss does to the gradient that trains the student."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdsweep.losses import kd, label_shares

if TYPE_CHECKING:
    from collections.abc import Callable

# The losses of the form `(1 - alpha) * CE + the teacher's part`.
SPLIT_BY_ALPHA: tuple[object, ...] = (kd, kd.__wrapped__)  # type: ignore[attr-defined]


def alpha_of(loss: Callable[..., Tensor]) -> float | None:
    """Returns alpha of a loss of the form `(1 - alpha) * CE + the teacher's part`; None for any other loss."""
    settings = getattr(loss, "keywords", {})
    return settings.get("alpha") if getattr(loss, "func", None) in SPLIT_BY_ALPHA else None


def of_the_teacher(
    loss: Callable[..., Tensor], student_logits: Tensor, teacher_logits: Tensor, labels: Tensor
) -> Tensor | None:
    """Compares the gradients on the student's logits that the two parts of a loss have, and the whole with CE's.

    With g_T the gradient of the teacher's part, g_L that of `(1 - alpha) * CE` and g_CE that of plain cross-entropy:

    - the teacher's share is |g_T| / (|g_T| + |g_L|): 0 for alpha = 0, and 1 for alpha = 1;
    - the ratio is |g_T + g_L| / |g_CE|: a setting with the ratio 3 steps as far as three times the learning rate does.

    Args:
        loss: (student logits, teacher logits, labels) -> scalar, with its settings.
        student_logits: (B, C), unnormalised; no gradient reaches the network behind them.
        teacher_logits: (B, C), unnormalised.
        labels: (B,) int64, or the shares of mixed pictures, as in `losses.cross_entropy`.

    Returns:
        The share and the ratio, (2,) float32, on the device of the logits; None unless `alpha_of` knows the loss.
    """
    alpha = alpha_of(loss)
    if alpha is None:
        return None
    with torch.enable_grad():
        logits = student_logits.detach().float().requires_grad_()
        (whole,) = torch.autograd.grad(loss(logits, teacher_logits, labels), logits)  # (B, C)
    target = label_shares(logits, labels)  # (B, C)
    labelled = target.sum(dim=1, keepdim=True) > 0
    plain = (logits.detach().softmax(dim=1) - target) * labelled / labelled.sum()  # (B, C)
    of_labels = (1 - alpha) * plain
    teachers, rest, both, ce = (g.norm() for g in (whole - of_labels, of_labels, whole, plain))
    tiny = torch.finfo(torch.float32).tiny  # 0 / 0 shall be 0
    return torch.stack([teachers / (teachers + rest).clamp_min(tiny), both / ce.clamp_min(tiny)])
