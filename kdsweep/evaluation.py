"""What logits are worth: accuracy, likelihood, calibration, and agreement with the teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsweep.losses import kl_divergence

CALIBRATION_BINS = 15


def evaluate(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> dict[str, float]:
    """Metrics of logits (N, C) against labels (N,) and, where given, a teacher's logits (N, C).

    Returns:
        accuracy and top5 (where there are more than five classes) as fractions, nll in nats, ece (expected calibration
        error) as a fraction; with a teacher also agreement (the share of equal predictions, "fidelity") and teacher_kl
        (mean KL(teacher || student) at temperature 1, in nats).
    """
    logits = logits.float()
    predicted = logits.argmax(dim=1)
    metrics = {
        "accuracy": _mean(predicted == labels),
        "nll": float(F.cross_entropy(logits, labels)),
        "ece": expected_calibration_error(logits.softmax(dim=1), labels),
    }
    if logits.shape[1] > 5:
        metrics["top5"] = _mean((logits.topk(5, dim=1).indices == labels.unsqueeze(1)).any(dim=1))
    if teacher_logits is not None:
        metrics["agreement"] = _mean(predicted == teacher_logits.argmax(dim=1))
        metrics["teacher_kl"] = float(kl_divergence(logits, teacher_logits.float()).mean())
    return metrics


def expected_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Mean |confidence - accuracy| over equal-width bins of confidence, weighted by their share of the pictures.

    Guo et al. 2017, arXiv 1706.04599, equation 3, with 15 bins. probabilities: (N, C), labels: (N,).
    """
    _, confidence, correct = _binned(probabilities, labels)
    return float((confidence - correct).abs().sum() / len(labels))


def reliability(logits: Tensor, labels: Tensor) -> list[dict[str, float | None]]:
    """What a reliability diagram shows: the 15 bins of `expected_calibration_error`, lowest confidence first.

    Args:
        logits: (N, C).
        labels: (N,) int64.

    Returns:
        Of each bin "count" (of pictures, an int), their mean "confidence" and their "accuracy" (fractions; None where
        the bin is empty). JSON-able. The sum of count / N * |confidence - accuracy| is the calibration error.
    """
    sums = _binned(logits.float().softmax(dim=1), labels).T.tolist()
    means = [(int(n), confidence / n, correct / n) if n else (0, None, None) for n, confidence, correct in sums]
    return [{"count": n, "confidence": confidence, "accuracy": accuracy} for n, confidence, accuracy in means]


def _binned(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Per bin the pictures, the sum of their confidences, and how many are right: (3, 15) float64."""
    confidence, predicted = probabilities.max(dim=1)
    # Bins (0, 1/15], (1/15, 2/15], ...: a confidence of exactly 1 is in the last one.
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1  # (N,)
    rows = torch.stack([torch.ones_like(confidence), confidence, predicted == labels]).to(torch.float64)  # (3, N)
    sums = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64, device=labels.device)
    return sums.index_add_(1, bins, rows)


def _mean(hits: Tensor) -> float:
    return float(hits.to(torch.float64).mean())
