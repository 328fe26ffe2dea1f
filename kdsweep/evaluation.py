"""How good logits are: accuracy, likelihood, calibration, and agreement with the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsweep.losses import kl_divergence

if TYPE_CHECKING:
    from collections.abc import Sequence

CALIBRATION_BINS = 15

# Top-5 accuracy says something only if there are more classes than this.
TOP = 5


def evaluate(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> dict[str, float]:
    """Compares logits with the labels, and with a teacher's logits if there are any.

    Args:
        logits: (N, classes), unnormalised.
        labels: (N,) int64.
        teacher_logits: (N, classes), unnormalised, or None.

    Returns:
        A value for each metric:

        - accuracy, and top5 if there are more than five classes: fractions.
        - nll: the mean negative log-likelihood of the label, in nats.
        - ece: the expected calibration error, a fraction.
        - agreement, with a teacher: the fraction of pictures for which both predict the same class ("fidelity").
        - teacher_kl, with a teacher: the mean KL(teacher || student) at temperature 1, in nats.
    """
    logits = logits.float()
    predicted = logits.argmax(dim=1)
    metrics = {
        "accuracy": _mean(predicted == labels),
        "nll": float(F.cross_entropy(logits, labels)),
        "ece": expected_calibration_error(logits.softmax(dim=1), labels),
    }
    if logits.shape[1] > TOP:
        metrics["top5"] = _mean((logits.topk(TOP, dim=1).indices == labels.unsqueeze(1)).any(dim=1))
    if teacher_logits is not None:
        metrics["agreement"] = _mean(predicted == teacher_logits.argmax(dim=1))
        metrics["teacher_kl"] = float(kl_divergence(logits, teacher_logits.float()).mean())
    return metrics


def expected_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Averages |confidence - accuracy| over bins of confidence, each weighted by its share of the pictures.

    Guo et al. 2017, arXiv 1706.04599, equation 3, with 15 bins of equal width.

    Args:
        probabilities: (N, classes), each row with the sum 1.
        labels: (N,) int64.
    """
    _, confidence, correct = _binned(probabilities, labels)
    return float((confidence - correct).abs().sum() / len(labels))


def reliability(logits: Tensor, labels: Tensor) -> list[dict[str, float | None]]:
    """Returns what a reliability diagram shows: the 15 bins of `expected_calibration_error`, lowest confidence first.

    Args:
        logits: (N, classes), unnormalised.
        labels: (N,) int64.

    Returns:
        For each bin its "count" of pictures, their mean "confidence" and their "accuracy" (fractions; None if the bin
        is empty). The sum of count / N * |confidence - accuracy| is the calibration error. Fit for JSON.
    """
    sums = _binned(logits.float().softmax(dim=1), labels).T.tolist()
    means = [(int(n), confidence / n, correct / n) if n else (0, None, None) for n, confidence, correct in sums]
    return [{"count": n, "confidence": confidence, "accuracy": accuracy} for n, confidence, accuracy in means]


def per_class(logits: Tensor, labels: Tensor, names: Sequence[str]) -> list[dict[str, str | int]]:
    """Counts, for each class, its "pictures" and how many of them are "right", under its "name". Fit for JSON.

    Args:
        logits: (N, classes), unnormalised.
        labels: (N,) int64.
        names: The names of the classes.
    """
    right = labels[logits.argmax(dim=1) == labels]
    counts = [torch.bincount(found, minlength=logits.shape[1]).tolist() for found in (labels, right)]
    rows = zip(names, *counts, strict=True)
    return [{"name": name, "pictures": pictures, "right": hits} for name, pictures, hits in rows]


def _binned(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Returns for each bin the number of pictures, the sum of their confidences, and how many are right.

    Returns:
        (3, 15) float64.
    """
    confidence, predicted = probabilities.max(dim=1)
    # The bins are (0, 1/15], (1/15, 2/15], ..., so the last one has the confidence 1.
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1  # (N,)
    rows = torch.stack([torch.ones_like(confidence), confidence, predicted == labels]).to(torch.float64)  # (3, N)
    sums = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64, device=labels.device)
    return sums.index_add_(1, bins, rows)


def _mean(hits: Tensor) -> float:
    return float(hits.to(torch.float64).mean())
