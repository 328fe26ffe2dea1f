"""Plain training loops that yield metrics: gradient descent for a network, L-BFGS for a head on frozen features."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdsweep.errors import RunError, UserError, require
from kdsweep.hardware import autocast
from kdsweep.models import Classifier
from kdsweep.progress import progress
from kdsweep.teachers import Teacher
from kdsweep.views import Views, batch_order, pass_of_epoch

# Share of the mean variance that is added to each feature's own before a head is trained on standardised features.
SCALING_FLOOR = 0.1

Metrics = dict[str, float]
Loss = Callable[[Tensor, Tensor | None, Tensor], Tensor]


class DivergedError(RunError):
    """A loss that is not a finite number."""


def fit(
    network: Classifier,
    views: Views,
    labels: Tensor,
    *,
    loss: Loss,
    teacher: Teacher | None,
    optimizer: Callable[[list[Tensor]], Optimizer],
    schedule: Callable[[Optimizer, int], LRScheduler],
    epochs: int,
    batch_size: int,
    n_passes: int,
    order_seed: int,
    precision: str,
) -> Iterator[Metrics]:
    """Trains `network` in place; yields the metrics of each epoch when it has ended.

    Every batch has the same size, so an epoch leaves out what doesn't fill the last one; the order changes from epoch
    to epoch, and a data set smaller than a batch is one batch.

    Args:
        network: Takes pictures (B, H, W, 3) uint8, gives logits (B, C).
        views: The training pictures.
        labels: (N,) int64, on the pictures' device.
        loss: Of (student logits, teacher logits or None, labels).
        teacher: Answers for the views of a pass, or None.
        optimizer: Of the list of trained parameters.
        schedule: Of (optimizer, total steps), stepped after every batch.
        n_passes: Epoch after epoch uses another pass, until all were used.
        order_seed: Decides the order of pictures and of passes.
        precision: bf16 or fp32.

    Raises:
        DivergedError: A loss was NaN or infinite; names epoch and step.
    """
    n, device = len(labels), labels.device
    batch_size = min(batch_size, n)
    steps = n // batch_size
    stepper = optimizer([parameter for parameter in network.parameters() if parameter.requires_grad])
    scheduler = schedule(stepper, epochs * steps)
    with progress(f"epoch 1/{epochs}", total=epochs * steps * batch_size) as advance:
        for epoch in range(epochs):
            start = time.perf_counter()
            pass_index = pass_of_epoch(order_seed, epoch, n_passes)
            answers = None if teacher is None else teacher.answers(pass_index)
            order = batch_order(order_seed, epoch, n).to(device)
            losses = torch.zeros(steps, device=device)
            correct = torch.zeros((), dtype=torch.int64, device=device)
            network.train()
            for step in range(steps):
                indices = order[step * batch_size : (step + 1) * batch_size]
                pictures = views.batch(indices, pass_index)  # (B, H, W, 3)
                with autocast(precision, device):
                    logits = network(pictures)  # (B, C)
                value = loss(logits, None if answers is None else answers(indices, pictures), labels[indices])
                stepper.zero_grad(set_to_none=True)
                value.backward()
                stepper.step()
                scheduler.step()
                losses[step] = value.detach()
                correct += (logits.detach().argmax(dim=1) == labels[indices]).sum()
                advance(batch_size)
            _refuse_non_finite(losses, epoch)
            seconds = time.perf_counter() - start
            metrics = {
                "train/loss": float(losses.mean()),
                "train/accuracy": float(correct) / (steps * batch_size),
                "lr": float(scheduler.get_last_lr()[0]),
                "images_per_second": steps * batch_size / seconds,
                "epoch_seconds": seconds,
            }
            next_epoch = min(epoch + 2, epochs)
            advance(0, f"epoch {next_epoch}/{epochs}, train accuracy {metrics['train/accuracy']:.1%}")
            yield metrics


def fit_head(
    network: Classifier,
    features: Tensor,
    labels: Tensor,
    validation_features: Tensor,
    validation_labels: Tensor,
    *,
    weight_decays: Sequence[float],
    max_iterations: int,
) -> Iterator[Metrics]:
    """Trains only the head of `network`, by L-BFGS on the features before it; yields once for each weight decay.

    Multinomial logistic regression on standardised features, mean cross-entropy + weight_decay / 2 * |weights|^2. The
    weight decays are tried from strong to weak, each from the solution before it, until the validation NLL has risen
    twice; then the head with the lowest is put back and yielded once more.

    Args:
        features, validation_features: (N, F) float32, inputs of the head.
        labels, validation_labels: (N,) int64.
        max_iterations: Of L-BFGS, for each weight decay.

    Raises:
        UserError: No weight decays are given, or the head has no bias.
        DivergedError: The head's answers were not finite.
    """
    require(len(weight_decays) > 0, "at least one weight decay", weight_decays, "weight_decays")
    if network.head.bias is None:
        raise UserError(
            "`the head has a bias` must hold where it is trained on its own, but this network's has none. "
            "Choose another teacher.network.name, or bring a trained head: teacher.network.head=keep teacher.head=null."
        )
    variance, mean = torch.var_mean(features, dim=0, correction=0)  # (F,)
    # A feature that hardly varies in a small training set may vary widely elsewhere: it must not be blown up.
    std = (variance + SCALING_FLOOR * variance.mean()).sqrt()
    scaled, validation_scaled = (features - mean) / std, (validation_features - mean) / std
    weight = torch.zeros(network.n_classes, features.shape[1], device=features.device, requires_grad=True)  # (C, F)
    bias = torch.zeros(network.n_classes, device=features.device, requires_grad=True)  # (C,)
    best: tuple[float, Metrics, Tensor, Tensor] | None = None
    risen = 0
    for weight_decay in sorted(weight_decays, reverse=True):
        _minimise(scaled, labels, weight, bias, weight_decay, max_iterations)
        with torch.no_grad():
            # The scaling goes into the head, which then takes the features as they are.
            network.head.weight.copy_(weight / std)
            network.head.bias.copy_(bias - (weight / std) @ mean)
            nll = float(F.cross_entropy(validation_scaled @ weight.T + bias, validation_labels))
            if not math.isfinite(nll):
                raise DivergedError(f"the head's validation NLL was {nll} with weight decay {weight_decay}.")
            metrics = {"train/loss": float(F.cross_entropy(scaled @ weight.T + bias, labels))}
            metrics["head/weight_decay"] = weight_decay
            if best is None or nll < best[0]:
                best = nll, metrics, network.head.weight.clone(), network.head.bias.clone()
        yield metrics
        risen = risen + 1 if nll > best[0] else 0
        if risen == 2:
            break
    if best is not None:
        with torch.no_grad():
            network.head.weight.copy_(best[2])
            network.head.bias.copy_(best[3])
        yield best[1]


def _minimise(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, weight_decay: float, max_iterations: int
) -> None:
    """Minimises the penalised cross-entropy over `weight` and `bias` in place."""
    solver = torch.optim.LBFGS([weight, bias], max_iter=max_iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(features @ weight.T + bias, labels) + weight_decay / 2 * weight.square().sum()
        value.backward()
        return value

    solver.step(closure)


def predict(network: Classifier, pictures: Tensor, batch_size: int, precision: str) -> Tensor:
    """Logits (N, C) float32 of pictures (N, H, W, 3) uint8 in evaluation mode, on the network's device."""
    network.eval()
    device = network.head.weight.device
    with torch.inference_mode(), autocast(precision, device):
        return torch.cat([network(batch.to(device)).float() for batch in pictures.split(batch_size)])


def _refuse_non_finite(losses: Tensor, epoch: int) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad) > 0:
        step = int(bad[0])
        raise DivergedError(
            f"the loss was {float(losses[step])} in epoch {epoch + 1}, step {step + 1}. "
            "Lower optimizer.lr, or lengthen schedule.warmup."
        )
