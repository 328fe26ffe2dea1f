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
# So many iterations in a row may find nothing lower. Then what could still be gained is no more than rounding.
MOST_STALLED = 10
# The best bias of a class without pictures is minus infinity. It gets a finite one, which costs this share of the
# tolerance.
UNSEEN_SHARE = 0.01
# The number of pictures in each of the matrix products that run in parallel. BLAS would compute a single product so
# long and narrow on one core.
BLOCK = 900


class LogisticRegression:
    """Minimises mean cross-entropy + weight_decay / 2 * |weights|^2 for one weight decay after the other.

    The method is L-BFGS in the metric of an estimated Hessian: the second moments of the features, with each picture
    weighted by the mean curvature of its softmax, (1 - sum of p^2) / (C - 1), plus the weight decay. This is a tighter
    relative of Boehning's bound (1992, doi 10.1007/BF00048682). For the bias, which has no penalty and is nearly flat
    where a class is rare, it is the Hessian itself. `_bound` proves how far the minimum can be.

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
        counts = torch.bincount(labels, minlength=n_classes).double()
        self._seen = counts.nonzero()[:, 0]  # (K,), the classes that have pictures
        self._shares = counts[self._seen] / len(labels)
        self._features, self._n_classes = features, n_classes
        self._tolerance = min(TOLERANCE, TOLERANCE_PER_PICTURE * len(features))
        targets = F.one_hot(torch.searchsorted(self._seen, labels), len(self._seen))
        self._targets = targets.to(features.dtype)  # (N, K)
        self._point = features.new_zeros(len(self._seen), features.shape[1] + 1)  # weights, then the bias
        # Without weights this bias is the best, and the Hessian in it is diag(shares) - shares shares^T.
        self._point[:, -1] = (self._shares / self._shares.max()).log()
        self._bias_factor = self._shares.sqrt().diag()
        self._earlier: tuple[float, Tensor] | None = None
        self._decay = math.nan
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._curvature = math.inf
        self._moments = features.new_zeros(0, 0)
        self._probabilities = features.new_zeros(0, len(self._seen))
        self.cross_entropy, self.n_evaluations = float(torch.special.entr(self._shares).sum()), 0

    @property
    def weight(self) -> Tensor:
        """The weights (C, F) of the minimum found last; zeros at first, and for classes without pictures."""
        weight = self._point.new_zeros(self._n_classes, self._features.shape[1])
        weight[self._seen] = self._point[:, :-1]
        return weight

    @property
    def bias(self) -> Tensor:
        """The bias (C,) of the minimum found last, which isn't penalised; the classes' logarithmic shares at first."""
        n_unseen = self._n_classes - len(self._seen)
        bias = self._point.new_zeros(self._n_classes)
        if n_unseen > 0:
            logits = torch.addmm(self._point[:, -1], self._features, self._point[:, :-1].T)  # (N, K)
            # The objective rises by at most n_unseen * exp(bias) * mean(1 / sum exp(logits)).
            mean_inverse = (-logits.double().logsumexp(dim=1)).logsumexp(dim=0) - math.log(len(logits))
            bias += math.log(UNSEEN_SHARE * self._tolerance / n_unseen) - float(mean_inverse)
        bias[self._seen] = self._point[:, -1]
        return bias

    def solve(self, weight_decay: float, max_iterations: int) -> None:
        """Moves to the minimum, until the objective is within the tolerance, or for `max_iterations` of L-BFGS.

        With a decay below `WEAKEST_DECAY` it ends where the objective would be within the tolerance with that one.
        If features or weights are not finite, it returns at once, and `cross_entropy` is not finite.
        """
        point = self._start(weight_decay)
        value, gradient = self._evaluate(point, weight_decay)
        if math.isfinite(value):
            metric = self._metric(weight_decay)
            rounding = torch.finfo(point.dtype).eps
            lowest, n_stalled = value, 0
            for _ in range(max_iterations):
                if self._is_minimal(gradient, max(weight_decay, WEAKEST_DECAY)):
                    break
                direction = self._direction(gradient, metric)
                slope, step = _dot(gradient, direction), 1.0
                while True:
                    new_point = point + step * direction
                    new_value, new_gradient = self._evaluate(new_point, weight_decay)
                    if new_value <= value + 1e-4 * step * slope or step < SMALLEST_STEP:
                        break
                    # Where values differ by no more than rounding, the slope at the new point tells whether the step is
                    # good (Hager and Zhang 2005, doi 10.1137/030601880).
                    if new_value <= value + rounding and _dot(new_gradient, direction) <= -0.9998 * slope:
                        break
                    parabola = -slope * step / (2 * (new_value - value - slope * step))
                    step *= min(max(parabola, 0.1), 0.5) if math.isfinite(parabola) else 0.1
                if not new_value <= value + rounding:
                    value, gradient = self._evaluate(point, weight_decay)
                    break
                self._remember(new_point - point, new_gradient - gradient)
                point, value, gradient = new_point, new_value, new_gradient
                lowest, n_stalled = (value, 0) if value < lowest else (lowest, n_stalled + 1)
                if n_stalled == MOST_STALLED:
                    break
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
        """Computes the objective and its gradient (K, F + 1)."""
        self.n_evaluations += 1
        weight = point[:, :-1]
        logs = torch.addmm(point[:, -1], self._features, weight.T).log_softmax(dim=1)  # (N, K)
        # The sum is in float64, because near the minimum the line search compares numbers that hardly differ.
        self.cross_entropy = -float((logs * self._targets).sum(dim=1).double().mean())
        self._probabilities = logs.exp_()
        errors = (self._probabilities - self._targets) / len(logs)
        gradient = torch.empty_like(point)
        torch.add(_transposed_product(errors, self._features), weight, alpha=weight_decay, out=gradient[:, :-1])
        torch.sum(errors, dim=0, out=gradient[:, -1])
        return self.cross_entropy + weight_decay / 2 * _squares(weight), gradient

    def _is_minimal(self, gradient: Tensor, weight_decay: float) -> bool:
        """Tells whether the point evaluated last is within the tolerance."""
        allowed = (1 - UNSEEN_SHARE) * self._tolerance
        bias_gradient = gradient[:, -1:].double()
        # `_bound` costs about as much as half an evaluation. This estimate, with the bias's Hessian as it was when
        # `_bound` was asked last, spares most of the calls.
        of_bias = float((bias_gradient * torch.cholesky_solve(bias_gradient, self._bias_factor)).sum()) / 2
        estimate = of_bias + _squares(gradient[:, :-1]) / (2 * weight_decay)
        return estimate <= allowed and self._bound(gradient, weight_decay) <= allowed

    def _bound(self, gradient: Tensor, weight_decay: float) -> float:
        """Bounds how far the objective is above its minimum at the point evaluated last, with this gradient (K, F + 1).

        Let p be the probabilities there, y the targets, and q any probabilities (N, K) whose mean is the mean of y.
        Since log sum exp(z) >= q z + entropy(q) for all logits z, and what is missing at the point is KL(q | p), the
        objective is nowhere less than mean entropy(q) - |mean (q - y) x^T|^2 / (2 weight_decay), and here it is at most
        mean KL(q | p) + |mean (q - y) x^T + weight_decay weights|^2 / (2 weight_decay) more than that.
        If v is Newton's step for the bias (Hessian v = -gradient) and span = max v - min v <= 1, then
        q = p + p (v - p v) is such a choice: its mean is that of p plus Hessian v, and its mean KL(q | p) is at most
        (1 + span) / 2 * v^T Hessian v, because (1 + w) log(1 + w) - w <= (1 + span) w^2 / 2 where |w| <= span.

        Returns:
            The bound in nats; infinite if the bias is too far from its best for such a q.
        """
        probabilities = self._probabilities
        # The rows of the Hessian sum to 0. Computed so, a small diagonal isn't the difference of large numbers.
        hessian = -_transposed_product(probabilities, probabilities).double() / len(probabilities)
        hessian.fill_diagonal_(0.0)
        hessian.diagonal().sub_(hessian.sum(dim=1))
        # It is singular, because a constant may be added to the bias; the step is the one with mean 0 over the targets.
        factor, failed = torch.linalg.cholesky_ex(hessian + torch.outer(self._shares, self._shares))
        if failed:
            return math.inf
        bias_gradient = gradient[:, -1:].double()
        step = -torch.cholesky_solve(bias_gradient, factor)  # (K, 1)
        span = float(step.max() - step.min())
        if not span <= 1:
            return math.inf
        self._bias_factor = factor
        column = step.to(probabilities.dtype)
        change = probabilities * (column.T - probabilities @ column)  # (N, K), q - p
        moved = gradient[:, :-1] + _transposed_product(change, self._features) / len(change)
        return -(1 + span) / 2 * _dot(bias_gradient, step) + _squares(moved) / (2 * weight_decay)

    def _metric(self, weight_decay: float) -> Callable[[Tensor], Tensor]:
        """Returns a function that divides a gradient (K, F + 1) by the estimated Hessian."""
        spread = 1 - self._probabilities.double().square().sum(dim=1).cpu()
        curvature = (spread / max(len(self._seen) - 1, 1)).clamp(min=1e-6)  # (N,)
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
            divided[:, -1:] = torch.cholesky_solve(gradient[:, -1:].double(), self._bias_factor)
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


def _squares(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def _transposed_product(one: Tensor, other: Tensor) -> Tensor:
    """Computes one^T other for two matrices of many rows."""
    n_blocks = len(one) // BLOCK
    rest = n_blocks * BLOCK
    product = one[rest:].T @ other[rest:]
    if n_blocks > 0:
        blocks = [tensor[:rest].view(n_blocks, BLOCK, -1) for tensor in (one, other)]
        product += torch.bmm(blocks[0].transpose(1, 2), blocks[1]).sum(dim=0)
    return product


def _plus_decay(changed: Tensor, step: Tensor, change: float) -> Tensor:
    """Returns the change of the gradient (K, F + 1) along `step` under a weight decay that is larger by `change`."""
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
