"""Multinomial logistic regression on many pictures: exact minima for a decreasing sequence of weight decays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

# The objective may end this far above its minimum, in nats. The validation NLLs of neighbouring weight decays differ by
# a hundred times as much. With few pictures iterations cost nothing, so there the tolerance is smaller.
TOLERANCE = 1e-5
TOLERANCE_PER_PICTURE = 2.5e-10
# The stopping rule takes weaker decays for this one, because float32 gradients can't resolve a smaller distance.
WEAKEST_DECAY = 1e-5

# The number of (step, change of the gradient) pairs that L-BFGS remembers.
MEMORY = 20
# The number of pictures on which the curvature is estimated. It decides how fast the minimum is found, not where it is.
CURVATURE_SAMPLE = 4096
# The estimate is renewed when the mean curvature has fallen to this share. Pictures that are classified with certainty
# have no curvature.
RENEWED_BELOW = 0.4
SMALLEST_STEP = 1e-4
# The number of pictures in each of the matrix products that run in parallel. BLAS would compute a single product so
# long and narrow on one core.
BLOCK = 900


class LogisticRegression:
    """Minimises mean cross-entropy + weight_decay / 2 * |weights|^2 for one weight decay after the other.

    The method is L-BFGS in the metric of an estimated Hessian: the second moments of the features, with each picture
    weighted by the mean curvature of its softmax, (1 - sum of p^2) / (C - 1), plus the weight decay. This is a tighter
    relative of Boehning's bound (1992, doi 10.1007/BF00048682).

    A sequence from strong to weak decays is fast. The search for each minimum starts at the point that the two minima
    before it extrapolate to, and it keeps L-BFGS's memory, since a new decay changes gradients only by a multiple of
    the weights.

    Args:
        features: (N, F) floating point, centred and of comparable scales.
        labels: (N,) int64, below `n_classes`.
        n_classes: The number of classes, C.

    Attributes:
        cross_entropy: The mean over the pictures at the minimum found last, without the penalty, in nats.
        n_evaluations: The number of times that the objective and its gradient were computed on all features.
    """

    def __init__(self, features: Tensor, labels: Tensor, n_classes: int) -> None:
        self._features, self._n_classes = features, n_classes
        self._tolerance = min(TOLERANCE, TOLERANCE_PER_PICTURE * len(features))
        self._targets = F.one_hot(labels, n_classes).to(features.dtype)  # (N, C)
        self._point = features.new_zeros(n_classes, features.shape[1] + 1)  # weights, then the bias
        self._earlier: tuple[float, Tensor] | None = None
        self._decay = math.nan
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._curvature = math.inf
        self._moments = features.new_zeros(0, 0)
        self._probabilities = torch.full_like(self._targets, 1 / n_classes)
        self.cross_entropy, self.n_evaluations = math.log(n_classes), 0

    @property
    def weight(self) -> Tensor:
        """The weights (C, F) of the minimum found last; zeros at first."""
        return self._point[:, :-1]

    @property
    def bias(self) -> Tensor:
        """The bias (C,) of the minimum found last, which isn't penalised; zeros at first."""
        return self._point[:, -1]

    def solve(self, weight_decay: float, max_iterations: int) -> None:
        """Moves to the minimum, until the objective is within the tolerance, or for `max_iterations` of L-BFGS.

        If features or weights are not finite, it returns at once, and `cross_entropy` is not finite.
        """
        point = self._start(weight_decay)
        value, gradient = self._evaluate(point, weight_decay)
        if math.isfinite(value):
            metric = self._metric(weight_decay)
            for _ in range(max_iterations):
                # The penalty makes the objective strongly convex: |gradient|^2 / (2 * weight_decay) bounds its
                # distance to the minimum.
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
                    # What could still be gained is no more than rounding.
                    value, gradient = self._evaluate(point, weight_decay)
                    break
                self._remember(new_point - point, new_gradient - gradient)
                point, value, gradient = new_point, new_value, new_gradient
        self._point = point

    def _start(self, weight_decay: float) -> Tensor:
        """Returns the point to start from: the last two minima, extrapolated in the logarithm of the decay."""
        start = self._point
        if math.isfinite(self._decay):
            # Turn the remembered changes of the gradient into those of the new objective.
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
        """Computes the objective and its gradient (C, F + 1)."""
        self.n_evaluations += 1
        weight = point[:, :-1]
        logs = torch.addmm(point[:, -1], self._features, weight.T).log_softmax(dim=1)  # (N, C)
        # The sum is in float64, because near the minimum the line search compares numbers that hardly differ.
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
        """Returns a function that divides a gradient (C, F + 1) by the estimated Hessian."""
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
        """Returns L-BFGS's direction: the two loops of Nocedal and Wright, Numerical Optimization, algorithm 7.4."""
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
        # By rounding, a pair can contradict the convexity of the objective; it is dropped.
        if _dot(step, changed) > 0:
            self._pairs = [*self._pairs, (step, changed)][-MEMORY:]


def _dot(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum())


def _plus_decay(changed: Tensor, step: Tensor, change: float) -> Tensor:
    """Returns the change of the gradient (C, F + 1) along `step` under a weight decay that is larger by `change`."""
    moved = changed.clone()
    moved[:, :-1] += change * step[:, :-1]
    return moved


def _proportional(curvature: Tensor) -> Tensor:
    """Returns the indices of `CURVATURE_SAMPLE` pictures, spread evenly in proportion to their curvature."""
    sums = curvature.cumsum(dim=0)  # on the CPU, since a GPU has no fixed order of summation
    n = min(CURVATURE_SAMPLE, len(sums))
    marks = (torch.arange(n, dtype=sums.dtype) + 0.5) / n * sums[-1]
    return torch.searchsorted(sums, marks).clamp(max=len(sums) - 1)


def _second_moments(features: Tensor, n_blocks: int = 8) -> Tensor:
    """Computes the lower triangle of features^T features / N; above it there may be anything finite."""
    moments = features.new_zeros(features.shape[1], features.shape[1])
    for columns in torch.arange(features.shape[1]).chunk(n_blocks):
        first, end = int(columns[0]), int(columns[-1]) + 1
        moments[first:, first:end] = features[:, first:].T @ features[:, first:end]
    return moments / len(features)
