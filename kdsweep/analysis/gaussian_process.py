"""A Gaussian process over a box of parameters, for few and noisy trials: priors keep it from seeing patterns in noise.

By maximum likelihood alone, twelve noisy trials of a flat surface are explained as signal more often than as noise. So
the parameters of the kernel have log-normal priors, and what is fitted is the posterior's mode.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_triangular
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from kdsweep.analysis.statistics import ROUNDING, NoiseFloor
from kdsweep.system.errors import require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Array = NDArray[np.float64]

# Medians of the priors and standard deviations of their logarithms. Variances are shares of the trials' variance,
# lengths of the unit cube's side. Tried on simulated surfaces with 12 and 30 trials: with less prior noise, a third of
# the flat surfaces got a plateau; with more, slopes of twice the noise were missed.
SIGNAL, LENGTH, NOISE = (0.5, 1.2), (0.6, 0.7), (0.4, 1.2)
# Where the search for the mode begins: the priors' medians, a rugged surface, a smooth one in much noise.
STARTS = ((0.5, 0.6, 0.4), (1.0, 0.3, 0.01), (0.3, 2.0, 1.0))
BOUNDS = (1e-4, 1e2), (0.03, 30.0), (1e-5, 1e2)


@dataclass(frozen=True)
class Space:
    """A box of numeric parameters.

    Attributes:
        names: As in the configuration: "loss.alpha".
        low, high: Limits, in the parameter's own unit.
        log: Whether the parameter is searched, and seen here, on a logarithmic scale.

    Raises:
        UserError: low >= high, or a logarithmic scale from zero or below.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    log: tuple[bool, ...]

    def __post_init__(self) -> None:
        for name, low, high, log in zip(self.names, self.low, self.high, self.log, strict=True):
            require(low < high, "low < high", (low, high), name)
            require(low > 0 or not log, "low > 0 on a logarithmic scale", low, name)

    def to_unit(self, points: ArrayLike) -> Array:
        """Points (n, d) in their own units to [0, 1]."""
        low, high = self._scaled([self.low, self.high])
        return np.asarray((self._scaled(points) - low) / (high - low))

    def from_unit(self, points: ArrayLike) -> Array:
        """Points (n, d) in [0, 1] to their own units."""
        unit = np.asarray(points, dtype=float)
        low, high = self._scaled([self.low, self.high])
        scaled = low + unit * (high - low)
        inside = np.where(self.log, np.exp(np.where(self.log, scaled, 0)), scaled)
        # exp(log(20)) isn't 20.
        return np.where(unit == 0, self.low, np.where(unit == 1, self.high, inside))

    def _scaled(self, points: ArrayLike) -> Array:
        values = np.asarray(points, dtype=float)
        return np.where(self.log, np.log(np.where(self.log, values, 1)), values)


@dataclass(frozen=True)
class Fit:
    """The posterior of a surface f over the unit cube; points are (n, d) in [0, 1], values in the trials' unit.

    Attributes:
        noise_sd: Of one trial about f.
    """

    noise_sd: float
    kernel: Any  # of f, without the noise
    inputs: Array  # (trials, d)
    factor: Array  # lower Cholesky factor of the trials' covariance, (trials, trials)
    weights: Array  # (trials,)
    offset: float
    scale: float

    def mean(self, points: Array) -> Array:
        """The posterior mean of f, (n,)."""
        return self.offset + self.scale * np.asarray(self.kernel(points, self.inputs) @ self.weights)

    def sd(self, points: Array) -> Array:
        """The posterior standard deviation of f, (n,)."""
        return self.scale * np.sqrt(self._variance(points, self._explained(points)))

    def behind(self, point: Array, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation (n,) of f(point) - f(points): neighbours share their error, so it cancels."""
        one, many = self._explained(point[None]), self._explained(points)
        covariance = self.kernel(point[None], points)[0] - one[:, 0] @ many
        variance = self._variance(point[None], one) + self._variance(points, many) - 2 * covariance
        return self.mean(point[None]) - self.mean(points), self.scale * np.sqrt(np.maximum(variance, 0))

    def _explained(self, points: Array) -> Array:
        return np.asarray(solve_triangular(self.factor, self.kernel(self.inputs, points), lower=True))

    def _variance(self, points: Array, explained: Array) -> Array:
        return np.maximum(self.kernel.diag(points) - np.sum(explained**2, axis=0), 0)


def fit(inputs: Array, values: Sequence[float] | Array, noise: NoiseFloor | None = None) -> Fit:
    """Fits a Gaussian process with a Matern 5/2 kernel, a length for each dimension, and noise.

    Args:
        inputs: (trials, d), in [0, 1].
        values: (trials,), finite.
        noise: Of one trial, as repeated seeds tell it; it then takes the place of the noise's prior.
    """
    targets = np.asarray(values, dtype=float)
    scale = float(targets.std()) if np.ptp(targets) > ROUNDING else 0.0
    dimensions = inputs.shape[1]
    priors = np.array([SIGNAL, *[LENGTH] * dimensions, NOISE])  # (d + 2, 2)
    centres, widths = np.log(priors[:, 0]), priors[:, 1]
    if noise is not None and noise.sd > 0 and scale > 0:
        # The logarithm of a sample variance has a standard deviation of about sqrt(2 / degrees).
        centres[-1], widths[-1] = 2 * math.log(noise.sd / scale), math.sqrt(2 / noise.degrees)
    signal = ConstantKernel(SIGNAL[0], BOUNDS[0]) * Matern([LENGTH[0]] * dimensions, BOUNDS[1], nu=2.5)
    process = GaussianProcessRegressor(
        signal + WhiteKernel(NOISE[0], BOUNDS[2]), alpha=1e-8, optimizer=_mode(centres, widths)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: that parameter doesn't matter
        process.fit(inputs, (targets - targets.mean()) / (scale or 1.0))
    fitted = process.kernel_
    noise_sd = scale * math.sqrt(fitted.k2.noise_level)
    return Fit(noise_sd, fitted.k1, inputs, process.L_, process.alpha_, float(targets.mean()), scale)


def _mode(centres: Array, widths: Array) -> Callable[..., tuple[Array, float]]:
    """An optimizer for scikit-learn that adds normal priors on the logarithms, which are what it optimises."""

    def optimizer(loss: Callable[[Array], tuple[float, Array]], _: Array, bounds: Array) -> tuple[Array, float]:
        def penalised(theta: Array) -> tuple[float, Array]:
            value, gradient = loss(theta)
            distance = (theta - centres) / widths
            return value + 0.5 * float(distance @ distance), gradient + distance / widths

        found = []
        for signal, length, noise in STARTS:
            start = np.log([signal, *[length] * (len(centres) - 2), noise])
            found.append(minimize(penalised, np.clip(start, *bounds.T), jac=True, bounds=bounds, method="L-BFGS-B"))
        best = min(found, key=lambda result: float(result.fun))
        return best.x, float(best.fun)

    return optimizer
