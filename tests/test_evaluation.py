"""Evaluation: metrics compared with slow transcriptions of their formulas."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from kdsweep.evaluation import evaluate, expected_calibration_error, per_class, reliability


def answers(n: int = 500, classes: int = 7, scale: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (n, classes), most of which are right, and labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = scale * torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), labels] += scale * torch.rand(n, generator=generator)
    return logits, labels


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(value) for value in logits]
    return [power / sum(powers) for power in powers]


def slow_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Guo et al. 2017, arXiv 1706.04599, equation 3: sum over bins of |B|/n * |acc(B) - conf(B)|; 15 bins (a, b]."""
    pairs = zip(probabilities.tolist(), labels.tolist(), strict=True)
    rows = [(max(row), row.index(max(row)) == label) for row, label in pairs]
    error = 0.0
    for m in range(15):
        inside = [(confidence, right) for confidence, right in rows if m / 15 < confidence <= (m + 1) / 15]
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            confidence = sum(confidence for confidence, _ in inside) / len(inside)
            error += len(inside) / len(rows) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize("classes", [2, 7, 100])
@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0, 10.0])
def test_calibration_error_is_the_papers(classes: int, scale: float) -> None:
    """The vectorised error equals the sum over bins written out."""
    logits, labels = answers(classes=classes, scale=scale)
    probabilities = logits.softmax(dim=1)
    expected = slow_calibration_error(probabilities, labels)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-6)


def test_calibration_error_at_its_limits() -> None:
    """The error is 0 for sure and right, 1 for sure and wrong, and 0 for a coin that is right half the time."""
    sure, coin = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    assert expected_calibration_error(sure, torch.tensor([0, 0])) == 0
    assert expected_calibration_error(sure, torch.tensor([1, 1])) == 1
    assert expected_calibration_error(coin, torch.tensor([0, 1])) == 0


def test_over_and_underconfidence_do_not_cancel_between_bins() -> None:
    """The gaps add up: here half is 90 % sure and always wrong, and half is 60 % sure and always right."""
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    assert expected_calibration_error(probabilities, torch.tensor([1, 0])) == pytest.approx((0.9 + 0.4) / 2)


def test_the_lowest_bins_are_not_merged() -> None:
    """With twenty classes a confidence of 6 % and one of 12 % lie in the first bin and the second."""
    rest = torch.ones(2, 19) * torch.tensor([[0.94], [0.88]]) / 19
    probabilities = torch.cat([torch.tensor([[0.06], [0.12]]), rest], dim=1)
    assert expected_calibration_error(probabilities, torch.tensor([1, 0])) == pytest.approx((0.06 + 0.88) / 2)


@pytest.mark.parametrize("scale", [0.1, 2.0, 10.0])
def test_the_calibration_error_follows_from_the_reliability_bins(scale: float) -> None:
    """The error is the sum over the diagram's bins of count times gap, divided by the number of pictures."""
    logits, labels = answers(scale=scale)
    bins = reliability(logits, labels)
    rows = [(bin["count"] or 0, bin["confidence"] or 0, bin["accuracy"] or 0) for bin in bins]
    error = sum(count * abs(confidence - accuracy) for count, confidence, accuracy in rows) / len(labels)
    assert error == pytest.approx(evaluate(logits, labels)["ece"], abs=1e-12)
    assert sum(count for count, _, _ in rows) == len(labels)


def test_reliability_bins_are_the_means_of_their_pictures() -> None:
    """Confidences of 0.5, 0.95 and 1, the last one wrong, are in two of fifteen bins; the others are empty."""
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(19)], [-200.0, 0.0]])
    bins = reliability(logits, torch.tensor([0, 1, 0]))
    assert bins[7] == pytest.approx({"count": 1, "confidence": 0.5, "accuracy": 1.0})
    assert bins[14] == pytest.approx({"count": 2, "confidence": 0.975, "accuracy": 0.5})
    empty = {"count": 0, "confidence": None, "accuracy": None}
    assert [bin for i, bin in enumerate(bins) if i not in (7, 14)] == [empty] * 13


def test_reliability_is_json() -> None:
    """A run keeps it as JSON, and reads back what was written."""
    bins = reliability(*answers())
    assert json.loads(json.dumps(bins)) == bins


def test_hits_are_counted_class_by_class() -> None:
    """A class without pictures has none right either."""
    logits = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert per_class(logits, torch.tensor([1, 0, 0]), ["cat", "dog", "fish"]) == [
        {"name": "cat", "pictures": 2, "right": 1},
        {"name": "dog", "pictures": 1, "right": 1},
        {"name": "fish", "pictures": 0, "right": 0},
    ]


def test_accuracy_likelihood_and_top5() -> None:
    """Each metric equals its definition, counted in Python."""
    logits, labels = answers()
    rows = list(zip(logits.tolist(), labels.tolist(), strict=True))
    ranks = [sum(value > row[label] for value in row) for row, label in rows]
    metrics = evaluate(logits, labels)
    assert metrics.keys() == {"accuracy", "nll", "ece", "top5"}
    assert metrics["accuracy"] == pytest.approx(sum(rank < 1 for rank in ranks) / len(rows))
    assert metrics["top5"] == pytest.approx(sum(rank < 5 for rank in ranks) / len(rows))
    nll = -sum(math.log(softmax(row)[label]) for row, label in rows) / len(rows)
    assert metrics["nll"] == pytest.approx(nll, rel=1e-5)
    assert metrics["ece"] == pytest.approx(slow_calibration_error(logits.softmax(1), labels), abs=1e-6)


@pytest.mark.parametrize(("classes", "reported"), [(2, False), (5, False), (6, True)])
def test_top5_needs_more_than_five_classes(classes: int, reported: bool) -> None:
    """Top-5 accuracy is left out for five classes or fewer, where it would be 1 by definition."""
    assert ("top5" in evaluate(*answers(classes=classes))) == reported


def test_agreement_and_divergence_from_the_teacher() -> None:
    """Agreement counts equal predictions; the divergence is KL(teacher || student) in nats, temperature 1."""
    (logits, labels), (teacher, _) = answers(seed=1), answers(seed=2)
    metrics = evaluate(logits, labels, teacher)
    pairs = [(softmax(t), softmax(s)) for t, s in zip(teacher.tolist(), logits.tolist(), strict=True)]
    divergence = sum(p * math.log(p / q) for t, s in pairs for p, q in zip(t, s, strict=True)) / len(pairs)
    assert metrics["teacher_kl"] == pytest.approx(divergence, rel=1e-5)
    assert metrics["agreement"] == sum(t.index(max(t)) == s.index(max(s)) for t, s in pairs) / len(pairs)


def test_a_student_that_is_its_teacher() -> None:
    """A teacher with the same logits agrees everywhere, and diverges nowhere."""
    logits, labels = answers()
    metrics = evaluate(logits, labels, logits.clone())
    assert (metrics["agreement"], metrics["teacher_kl"]) == (1, 0)


def test_metrics_ignore_a_constant_added_to_a_pictures_logits() -> None:
    """A constant added to a picture's logits changes no metric."""
    (logits, labels), (teacher, _) = answers(seed=1), answers(seed=2)
    shift = torch.linspace(-5, 5, len(labels))[:, None]
    before, after = evaluate(logits, labels, teacher), evaluate(logits + shift, labels, teacher - shift)
    assert after == pytest.approx(before, abs=1e-5)
