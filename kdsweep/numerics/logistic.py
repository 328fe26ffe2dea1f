"""Multinomial logistic regression on many pictures: exact minima for a falling sequence of weight decays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

# The objective may end this far above its minimum, in nats: validation NLLs of neighbouring weight decays are a hundred
# times as far apart. On few pictures, where iterations cost nothing, the weights are exact too.
TOLERANCE = 1e-5
TOLERANCE_PER_PICTURE = 2.5e-10
# Weaker decays are solved as if for this one: gradients in float32 can't show what lies beyond.
WEAKEST_DECAY = 1e-5

# Pairs of steps and changes of the gradient that L-BFGS remembers.
MEMORY = 20
# Pictures on which the curvature is estimated. It decides how fast the minimum is found, not where it is.
CURVATURE_SAMPLE = 4096
# The estimate is renewed when the mean curvature has fallen to this share: pictures that are told apart have none.
RENEWED_BELOW = 0.4
SMALLEST_STEP = 1e-4
# Pictures in one product of those that the cores share: BLAS computes one so slender on a single core, however long.
BLOCK = 900


class LogisticRegression:
    """Minimises mean cross-entropy + weight_decay / 2 * |weights|^2 for one weight decay after the other.

    L-BFGS in the metric of an estimated Hessian: the features' second moments, each picture weighted by its softmax's
    mean curvature, (1 - sum of p^2) / (C - 1), plus the weight decay (a sharper relative of Boehning's bound, 1992,
    doi 10.1007/BF00048682). A sequence from strong to weak is fast: each minimum starts where the two before it point
    to, and inherits what L-BFGS has learnt: a new decay changes gradients by a multiple of the weights.

    Args:
        features: (N, F) floating point, centred and of comparable scales.
        labels: (N,) int64, below `n_classes`.

    Attributes:
        weight: (C, F), of the minimum found last; at first zeros.
        bias: (C,), not penalised.
        cross_entropy: The mean over the pictures there, without the penalty.
        n_evaluations: How often all features were gone through, forwards and back.
    """

    def __init__(self, features: Tensor, labels: Tensor, n_classes: int) -> None:
        self._features, self._n_classes = features, n_classes
        self._tolerance = min(TOLERANCE, TOLERANCE_PER_PICTURE * len(features))
        self._targets = F.one_hot(labels, n_classes).to(features.dtype)  # (N, C)
        self._point = features.new_zeros(n_classes, features.shape[1] + 1)  # weights and, last, the bias
        self._earlier: tuple[float, Tensor] | None = None
        self._decay = math.nan
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._curvature = math.inf
        self._moments = features.new_zeros(0, 0)
        self._probabilities = torch.full_like(self._targets, 1 / n_classes)
        self.cross_entropy, self.n_evaluations = math.log(n_classes), 0

    @property
    def weight(self) -> Tensor:
        return self._point[:, :-1]

    @property
    def bias(self) -> Tensor:
        return self._point[:, -1]

    def solve(self, weight_decay: float, max_iterations: int) -> None:
        """Moves to the minimum, to within `TOLERANCE` of the objective, or as far as `max_iterations` of L-BFGS lead.

        Where features or weights are not finite it returns at once, and `cross_entropy` is not finite either.
        """
        point = self._start(weight_decay)
        value, gradient = self._evaluate(point, weight_decay)
        if math.isfinite(value):
            metric = self._metric(weight_decay)
            for _ in range(max_iterations):
                # |gradient|^2 / (2 * weight_decay) bounds the distance to the minimum of a function so convex.
                if float(gradient.square().sum()) <= 2 * max(weight_decay, WEAKEST_DECAY) * self._tolerance:
                    break
                direction = self._direction(gradient, metric)
                slope, step = _dot(gradient, direction), 1.0
                while True:
                    new_point = point + step * direction
                    new_value, new_gradient = self._evaluate(new_point, weight_decay)
                    if new_value <= value + 1e-4 * step * slope or step < SMALLEST_STEP:
                        break
                    parabola = -slope * step / (2 * (new_value - value - slope * step))
                    step *= min(max(parabola, 0.1), 0.5) if math.isfinite(parabola) else 0.1
                if not new_value < value:
                    # No longer distinguishable from rounding.
                    value, gradient = self._evaluate(point, weight_decay)
                    break
                self._remember(new_point - point, new_gradient - gradient)
                point, value, gradient = new_point, new_value, new_gradient
        self._point = point

    def _start(self, weight_decay: float) -> Tensor:
        """Where to begin: the minimum before, moved on as the one before it has moved, per factor of the decay."""
        start = self._point
        if math.isfinite(self._decay):
            # The remembered changes of the gradient become those of the new objective.
            change = weight_decay - self._decay
            self._pairs = [(step, _plus_decay(changed, step, change)) for step, changed in self._pairs]
        if self._earlier is not None and weight_decay > 0:
            earlier_decay, earlier = self._earlier
            factors = math.log(self._decay / weight_decay), math.log(earlier_decay / self._decay)
            if min(factors) > 0:
                start = start + min(factors[0] / factors[1], 1.0) * (start - earlier)
        self._earlier = None if math.isnan(self._decay) else (self._decay, self._point)
        self._decay = weight_decay
        return start

    def _evaluate(self, point: Tensor, weight_decay: float) -> tuple[float, Tensor]:
        """The objective and its gradient (C, F + 1)."""
        self.n_evaluations += 1
        weight = point[:, :-1]
        logs = torch.addmm(point[:, -1], self._features, weight.T).log_softmax(dim=1)  # (N, C)
        # Summed in float64: near the minimum the line search compares numbers that hardly differ.
        self.cross_entropy = -float((logs * self._targets).sum(dim=1).double().mean())
        self._probabilities = logs.exp_()
        errors = (self._probabilities - self._targets) / len(logs)
        gradient = torch.empty_like(point)
        n_blocks = len(errors) // BLOCK
        rest = n_blocks * BLOCK
        torch.addmm(weight, errors[rest:].T, self._features[rest:], beta=weight_decay, out=gradient[:, :-1])
        if n_blocks > 0:
            blocks = [tensor[:rest].view(n_blocks, BLOCK, -1) for tensor in (errors, self._features)]
            gradient[:, :-1] += torch.bmm(blocks[0].transpose(1, 2), blocks[1]).sum(dim=0)
        torch.sum(errors, dim=0, out=gradient[:, -1])
        return self.cross_entropy + weight_decay / 2 * float(weight.double().square().sum()), gradient

    def _metric(self, weight_decay: float) -> Callable[[Tensor], Tensor]:
        """Divides a gradient (C, F + 1) by the estimated curvature."""
        spread = 1 - self._probabilities.double().square().sum(dim=1).cpu()
        curvature = (spread / (self._n_classes - 1)).clamp(min=1e-6)  # (N,)
        mean = float(curvature.mean())
        if mean < RENEWED_BELOW * self._curvature:
            self._curvature = mean
            self._moments = mean * _second_moments(self._features[_proportional(curvature).to(self._features.device)])
        diagonal = self._moments.diagonal()
        damping = max(weight_decay, 1e-4 * float(diagonal.mean()))
        while True:
            damped = self._moments.clone()
            damped.diagonal().add_(damping)
            factor, failed = torch.linalg.cholesky_ex(damped)
            if not failed:
                break
            damping *= 10

        def divide(gradient: Tensor) -> Tensor:
            divided = torch.empty_like(gradient)
            divided[:, :-1] = torch.cholesky_solve(gradient[:, :-1].T, factor).T
            divided[:, -1] = gradient[:, -1] / self._curvature
            return divided

        return divide

    def _direction(self, gradient: Tensor, metric: Callable[[Tensor], Tensor]) -> Tensor:
        """L-BFGS's two loops (Nocedal and Wright, Numerical Optimization, algorithm 7.4) around the metric."""
        rest, shares = gradient, []
        for step, changed in reversed(self._pairs):
            shares.append(_dot(step, rest) / _dot(step, changed))
            rest = rest - shares[-1] * changed
        direction = metric(rest)
        if self._pairs:
            step, changed = self._pairs[-1]
            direction *= _dot(step, changed) / _dot(changed, metric(changed))
        for (step, changed), share in zip(self._pairs, reversed(shares), strict=True):
            direction += (share - _dot(changed, direction) / _dot(step, changed)) * step
        return -direction

    def _remember(self, step: Tensor, changed: Tensor) -> None:
        # Rounding can hide that the objective is convex.
        if _dot(step, changed) > 0:
            self._pairs = [*self._pairs, (step, changed)][-MEMORY:]


def _dot(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum())


def _plus_decay(changed: Tensor, step: Tensor, change: float) -> Tensor:
    """A change of the gradient (C, F + 1) along `step`, with a weight decay that is larger by `change`."""
    moved = changed.clone()
    moved[:, :-1] += change * step[:, :-1]
    return moved


def _proportional(curvature: Tensor) -> Tensor:
    """Indices of `CURVATURE_SAMPLE` pictures, spread evenly in proportion to their curvature."""
    sums = curvature.cumsum(dim=0)  # on the CPU: elsewhere its order of summation isn't fixed
    n = min(CURVATURE_SAMPLE, len(sums))
    marks = (torch.arange(n, dtype=sums.dtype) + 0.5) / n * sums[-1]
    return torch.searchsorted(sums, marks).clamp(max=len(sums) - 1)


def _second_moments(features: Tensor, n_blocks: int = 8) -> Tensor:
    """The lower triangle of features' * features / N; above it there may be anything finite."""
    moments = features.new_zeros(features.shape[1], features.shape[1])
    for columns in torch.arange(features.shape[1]).chunk(n_blocks):
        first, end = int(columns[0]), int(columns[-1]) + 1
        moments[first:, first:end] = features[:, first:].T @ features[:, first:end]
    return moments / len(features)
