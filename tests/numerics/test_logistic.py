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


def least(features: Tensor, labels: Tensor, weight_decay: float, n_classes: int = 4) -> float:
    """The minimum that SciPy finds."""
    shape = n_classes, features.shape[1] + 1

    def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(flat).reshape(shape)
        value, gradient = objective(features, labels, point[:, :-1], point[:, -1], weight_decay)
        return value, gradient.flatten().numpy()

    options = {"maxiter": 3000, "ftol": 1e-14, "gtol": 1e-8}
    return float(minimize(function, np.zeros(math.prod(shape)), jac=True, method="L-BFGS-B", options=options).fun)


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


def test_the_metric_saves_most_of_the_work() -> None:
    """Badly conditioned features take a few evaluations for each decay, and not hundreds."""
    features, labels = problem(*PROBLEMS["ill-conditioned"])
    regression = LogisticRegression(features, labels, 4)
    for decay in DECAYS:
        regression.solve(decay, max_iterations=200)
    assert regression.n_evaluations < 20 * len(DECAYS)


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
