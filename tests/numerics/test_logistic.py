"""Claims about logistic regression: from any start it finds the minima that float64 arithmetic finds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from kdsweep.numerics import logistic
from kdsweep.numerics.logistic import TOLERANCE, TOLERANCE_PER_PICTURE, LogisticRegression

DECAYS = (1.0, 0.1, 0.01, 0.003, 0.001)


def problem(n: int, n_features: int, decay: float = 0.5, n_classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Centred features of mean variance 1 whose k-th direction has a variance of about 1 / k^(2 * decay); labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % n_classes
    centres = 0.7 * torch.randn(n_classes, n_features, generator=generator)
    latent = torch.randn(n, n_features, generator=generator) + centres[labels]
    latent = latent * torch.arange(1, n_features + 1).float() ** -decay
    rotation = torch.linalg.qr(torch.randn(n_features, n_features, generator=generator)).Q
    features = latent @ rotation
    features = features - features.mean(dim=0)
    return features / features.square().mean().sqrt(), labels


PROBLEMS = {
    "many pictures": (600, 40, 0.5),
    "blocks of pictures and some more": (2000, 20, 0.5),
    "more features than pictures": (60, 150, 0.5),
    "ill-conditioned": (400, 40, 2.0),
}


def objective(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, weight_decay: float
) -> tuple[float, Tensor]:
    """The formula, transcribed in float64, and its gradient (C, F + 1) by autograd."""
    point = torch.cat([weight, bias[:, None]], dim=1).double().requires_grad_()
    logits = features.double() @ point[:, :-1].T + point[:, -1]
    right = logits[torch.arange(len(labels)), labels]
    value = (logits.logsumexp(dim=1) - right).mean() + weight_decay / 2 * (point[:, :-1] ** 2).sum()
    (gradient,) = torch.autograd.grad(value, point)
    return value.item(), gradient


def least(
    features: Tensor, labels: Tensor, weight_decay: float, n_classes: int = 4, start: Tensor | None = None
) -> float:
    """The minimum that SciPy finds, from zeros or from `start` (C, F + 1).

    Its bias is in units of 1 / sqrt(share), in which rare classes are as curved as others.
    """
    shape = n_classes, features.shape[1] + 1
    units = torch.ones(shape, dtype=torch.float64)
    units[:, -1] = (torch.bincount(labels, minlength=n_classes) / len(labels)) ** -0.5

    def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(flat).reshape(shape) * units
        value, gradient = objective(features, labels, point[:, :-1], point[:, -1], weight_decay)
        return value, (gradient * units).flatten().numpy()

    first = np.zeros(math.prod(shape)) if start is None else (start.double() / units).flatten().numpy()
    options = {"maxiter": 3000, "maxfun": 30000, "ftol": 1e-14, "gtol": 1e-8}
    return float(minimize(function, first, jac=True, method="L-BFGS-B", options=options).fun)


def path(features: Tensor, labels: Tensor, decays: Sequence[float], n_classes: int = 4) -> list[tuple[Tensor, Tensor]]:
    """The solutions of one regression for one decay after the other."""
    regression = LogisticRegression(features, labels, n_classes)
    found = []
    for decay in decays:
        regression.solve(decay, max_iterations=200)
        found.append((regression.weight.clone(), regression.bias.clone()))
    return found


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_solution_is_the_minimum(name: str) -> None:
    """Along a path of decays the gradient vanishes, and no solution is further above SciPy's minimum than allowed."""
    features, labels = problem(*PROBLEMS[name])
    for decay, (weight, bias) in zip(DECAYS, path(features, labels, DECAYS), strict=True):
        value, gradient = objective(features, labels, weight, bias, decay)
        allowed = 2 * min(TOLERANCE, TOLERANCE_PER_PICTURE * len(labels))  # twice: float32 rounds the gradient
        assert gradient.square().sum() <= 2 * decay * allowed
        assert value - least(features, labels, decay) <= allowed


def rare(shares: Tensor, n: int, n_features: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Centred features of variance 1; labels with these shares, at least one of each; class centres `spread` apart."""
    generator = torch.Generator().manual_seed(seed)
    counts = (shares / shares.sum() * n).round().long().clamp(min=1)
    labels = torch.arange(len(shares)).repeat_interleave(counts)
    centres = spread * torch.randn(len(shares), n_features, generator=generator)
    features = torch.randn(len(labels), n_features, generator=generator) + centres[labels]
    features = features - features.mean(dim=0)
    return features / features.square().mean().sqrt(), labels


RARE = {
    "shares of 1 / k^2": rare(torch.arange(1, 101) ** -2.0, 3000, 6, 0.3),
    "shares of 1 / k^2, apart": rare(torch.arange(1, 101) ** -2.0, 3000, 6, 2.0),
    "one picture of a class": rare(torch.tensor([1000.0, 1000.0, 1000.0, 1.0]), 3001, 10, 0.5),
    "1 : 10,000": rare(torch.tensor([10_000.0, 1.0]), 10_001, 10, 1.0),
    "1,000 classes": rare(1 / torch.arange(1, 1001), 1500, 6, 1.0),
}


@pytest.mark.parametrize("name", RARE)
def test_rare_classes_are_as_near_to_the_minimum(name: str) -> None:
    """The bias of a rare class is nearly flat and has no penalty; still no solution is further from SciPy's minimum."""
    features, labels = RARE[name]
    n_classes = int(labels.max()) + 1
    allowed = min(TOLERANCE, TOLERANCE_PER_PICTURE * len(labels))
    decays = (1.0,) if n_classes == 1000 else (1.0, 0.1)
    for decay, (weight, bias) in zip(decays, path(features, labels, decays, n_classes), strict=True):
        start = torch.cat([weight, bias[:, None]], dim=1)
        value, _ = objective(features, labels, weight, bias, decay)
        assert value - least(features, labels, decay, n_classes, start) <= allowed


@pytest.mark.parametrize("tolerance", [0.3, 1e-3, 1e-6])
def test_any_tolerance_is_kept(tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """However early it stops, from strong to weak decays and back, it is no further from the minimum than it may be."""
    monkeypatch.setattr(logistic, "TOLERANCE", tolerance)
    monkeypatch.setattr(logistic, "TOLERANCE_PER_PICTURE", 1.0)
    features, labels = rare(torch.tensor([300.0, 100.0, 10.0, 1.0]), 411, 6, 2.0)
    decays = (1.0, 0.03, 0.001, 1.0)
    for decay, (weight, bias) in zip(decays, path(features, labels, decays), strict=True):
        value, _ = objective(features, labels, weight, bias, decay)
        assert value - least(features, labels, decay) <= tolerance


def test_a_class_without_pictures_gets_next_to_no_probability() -> None:
    """The others are solved as if it weren't there; its logits are finite and cost less than the tolerance."""
    features, labels = problem(*PROBLEMS["many pictures"])
    spread_labels = torch.tensor([1, 3, 4, 6])[labels]  # 0, 2 and 5 have no pictures
    ((weight, bias),) = path(features, spread_labels, [0.1], n_classes=7)
    ((seen_weight, seen_bias),) = path(features, labels, [0.1])
    assert torch.equal(weight[[1, 3, 4, 6]], seen_weight)
    assert torch.equal(bias[[1, 3, 4, 6]], seen_bias)
    assert weight[[0, 2, 5]].count_nonzero() == 0
    value, _ = objective(features, spread_labels, weight, bias, 0.1)
    allowed = TOLERANCE_PER_PICTURE * len(labels)
    assert value - least(features, labels, 0.1) <= allowed
    probabilities = (features @ weight.T + bias).softmax(dim=1)
    assert 0 < probabilities[:, [0, 2, 5]].sum(dim=1).mean() < 0.02 * allowed


@pytest.mark.parametrize("n_classes", [1, 3])
def test_a_single_class_is_learned_at_once(n_classes: int) -> None:
    """With pictures of one class alone there is nothing to find, and nothing is divided by zero."""
    features, _ = problem(50, 5)
    regression = LogisticRegression(features, torch.zeros(50, dtype=torch.int64), n_classes)
    regression.solve(0.1, max_iterations=10)
    assert regression.cross_entropy == 0.0
    assert regression.n_evaluations == 1
    assert regression.bias.isfinite().all()


def test_rare_classes_take_few_evaluations() -> None:
    """The bias of each class is scaled by its own curvature: with one for all it takes 71 evaluations."""
    features, labels = RARE["shares of 1 / k^2"]
    regression = LogisticRegression(features, labels, 100)
    for decay in (1.0, 0.1, 0.01):
        regression.solve(decay, max_iterations=500)
    assert regression.n_evaluations < 45


def test_the_path_does_not_matter() -> None:
    """A decay has one minimum, whether it is reached from stronger ones, from a weaker one, or from nothing."""
    features, labels = problem(*PROBLEMS["many pictures"])
    values = [
        objective(features, labels, *path(features, labels, decays)[-1], 0.01)[0]
        for decays in ([0.01], [1.0, 0.1, 0.01], [0.001, 0.01], [0.01, 0.01], [1.0, 0.3, 0.01])
    ]
    assert max(values) - min(values) <= TOLERANCE


def test_a_sample_for_the_curvature_changes_the_way_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tenth of the pictures in the metric the minima are the same."""
    features, labels = problem(*PROBLEMS["many pictures"])
    monkeypatch.setattr(logistic, "CURVATURE_SAMPLE", 60)
    for decay, (weight, bias) in zip(DECAYS, path(features, labels, DECAYS), strict=True):
        assert objective(features, labels, weight, bias, decay)[0] - least(features, labels, decay) <= 1.01 * TOLERANCE


@pytest.mark.parametrize("seed", [0, 5, 6, 8])
def test_the_metric_saves_most_of_the_work(seed: int) -> None:
    """Badly conditioned features take a few evaluations for each decay, and not hundreds.

    Rounding doesn't hinder it: judged by values alone, steps near the minimum were refused, and it took 100 for seed 5.
    """
    features, labels = problem(*PROBLEMS["ill-conditioned"], seed=seed)
    regression = LogisticRegression(features, labels, 4)
    for decay in DECAYS:
        regression.solve(decay, max_iterations=200)
    assert regression.n_evaluations < 13 * len(DECAYS)


def test_iterations_are_limited() -> None:
    """One iteration ends further from the minimum than many, and nearer than none."""
    features, labels = problem(*PROBLEMS["many pictures"])
    values = []
    for n in (1, 2, 100):
        regression = LogisticRegression(features, labels, 4)
        regression.solve(0.001, max_iterations=n)
        values.append(objective(features, labels, regression.weight, regression.bias, 0.001)[0])
    assert math.log(4) > values[0] > values[1] > values[2]


def test_no_decay_ends() -> None:
    """Without a penalty, separable classes have no minimum, and it stops at a low, finite loss."""
    features, labels = problem(*PROBLEMS["more features than pictures"])
    regression = LogisticRegression(features, labels, 4)
    for decay in (0.1, 0.0):
        regression.solve(decay, max_iterations=100)
    assert regression.cross_entropy < 0.01
    assert regression.weight.isfinite().all()


@pytest.mark.parametrize("kind", ["constant", "all zero", "twice the same"])
def test_features_that_say_nothing_do_no_harm(kind: str) -> None:
    """The metric can be inverted even if the features' second moments can't."""
    features, labels = problem(200, 10)
    features[:, 3] = {"constant": torch.zeros(200), "all zero": torch.zeros(200), "twice the same": features[:, 4]}[
        kind
    ]
    if kind == "all zero":
        features.zero_()
    (weight, bias) = path(features, labels, [0.1, 1e-6])[-1]
    value, _ = objective(features, labels, weight, bias, 1e-6)
    assert value - least(features, labels, 1e-6) <= 1e-4


def test_cross_entropy_is_that_of_the_solution() -> None:
    """`cross_entropy` is the loss at the solution, without the penalty."""
    features, labels = problem(*PROBLEMS["many pictures"])
    regression = LogisticRegression(features, labels, 4)
    for decay in DECAYS:
        regression.solve(decay, max_iterations=3)
        value, _ = objective(features, labels, regression.weight, regression.bias, 0.0)
        assert regression.cross_entropy == pytest.approx(value, abs=1e-6)


def test_the_same_features_give_the_same_bits() -> None:
    """Two paths are equal bit for bit."""
    features, labels = problem(*PROBLEMS["many pictures"])
    for one, other in zip(path(features, labels, DECAYS), path(features, labels, DECAYS), strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_finds_the_same_minima() -> None:
    """The same code on CUDA, under deterministic algorithms."""
    features, labels = problem(*PROBLEMS["many pictures"])
    torch.use_deterministic_algorithms(True)
    try:
        found = path(features.cuda(), labels.cuda(), DECAYS)
    finally:
        torch.use_deterministic_algorithms(False)
    for decay, (weight, bias) in zip(DECAYS, found, strict=True):
        value, _ = objective(features, labels, weight.cpu(), bias.cpu(), decay)
        assert value - least(features, labels, decay) <= 1.01 * TOLERANCE
