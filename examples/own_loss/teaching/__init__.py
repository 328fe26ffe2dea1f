"""A loss, an optimizer and a schedule, as anybody writes them in PyTorch. They know nothing of kdsweep."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def logit_matching(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Returns cross-entropy plus `weight` times the mean squared difference of the logits (B, C)."""
    return F.cross_entropy(student_logits, labels) + weight * F.mse_loss(student_logits, teacher_logits)


def decayed_matrices(params: Iterable[Parameter], lr: float, weight_decay: float = 5e-4) -> Optimizer:
    """Returns SGD that decays weights, and neither biases nor the two numbers of a batch normalisation."""
    params = list(params)
    matrices = [p for p in params if p.ndim > 1]
    rest = [p for p in params if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)


def trapezoid(optimizer: Optimizer, total_steps: int, up: float = 0.1, down: float = 0.3) -> LRScheduler:
    """Returns a rate that rises over the share `up` of the steps, stays, and falls to 0 over the share `down`."""

    def factor(step: int) -> float:
        done = step / total_steps
        return min(1.0, (done + 1 / total_steps) / up, max(0.0, 1 - done) / down)

    return LambdaLR(optimizer, factor)
