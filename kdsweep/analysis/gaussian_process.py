"""A Gaussian process over a box of parameters, for few and noisy trials: priors keep it from seeing patterns in noise.

Maximum likelihood alone explains twelve noisy trials of a flat surface as signal more often than as noise. So the
kernel's parameters have log-normal priors, and the fit is the mode of their posterior.
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

# For each prior, its median and the standard deviation of its logarithm. Variances are relative to that of the trials,
# lengths to the side of the unit cube. The values were tried on simulated surfaces with 12 and 30 trials: with less
# prior noise, a third of the flat surfaces got a plateau; with more, slopes of twice the noise were missed.
SIGNAL, LENGTH, NOISE = (0.5, 1.2), (0.6, 0.7), (0.4, 1.2)
# The search for the mode starts at the priors' medians, at a rugged surface, and at a smooth one with much noise.
STARTS = ((0.5, 0.6, 0.4), (1.0, 0.3, 0.01), (0.3, 2.0, 1.0))
BOUNDS = (1e-4, 1e2), (0.03, 30.0), (1e-5, 1e2)


@dataclass(frozen=True)
class Space:
    """A box of numeric parameters.

    Attributes:
        names: The parameters' keys in the configuration, such as "loss.alpha".
        low, high: Their limits, each in the parameter's own unit.
        log: Whether a parameter is searched on a logarithmic scale; it is then fitted on that scale as well.

    Raises:
        UserError: low >= high, or a logarithmic scale begins at zero or below.
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
        """Converts points (n, d) from their own units to [0, 1]."""
        low, high = self._scaled([self.low, self.high])
        return np.asarray((self._scaled(points) - low) / (high - low))

    def from_unit(self, points: ArrayLike) -> Array:
        """Converts points (n, d) from [0, 1] to their own units."""
        unit = np.asarray(points, dtype=float)
        low, high = self._scaled([self.low, self.high])
        scaled = low + unit * (high - low)
        inside = np.where(self.log, np.exp(np.where(self.log, scaled, 0)), scaled)
        # In floating point, exp(log(20)) isn't 20.
        return np.where(unit == 0, self.low, np.where(unit == 1, self.high, inside))

    def _scaled(self, points: ArrayLike) -> Array:
        values = np.asarray(points, dtype=float)
        return np.where(self.log, np.log(np.where(self.log, values, 1)), values)


@dataclass(frozen=True)
class Fit:
    """The posterior of a surface f over the unit cube; points are (n, d) in [0, 1], values in the trials' unit.

    Attributes:
        noise_sd: The standard deviation of one trial's value about f.
        kernel: The fitted covariance of f, without the noise.
        inputs: The trials' points, (trials, d).
        factor: The lower Cholesky factor of the trials' covariance, (trials, trials).
        weights: The trials' weights in the posterior mean, (trials,).
        offset, scale: The mean and the standard deviation by which the trials' values were standardised.
    """

    noise_sd: float
    kernel: Any
    inputs: Array
    factor: Array
    weights: Array
    offset: float
    scale: float

    def mean(self, points: Array) -> Array:
        """Returns the posterior mean of f, (n,)."""
        return self.offset + self.scale * np.asarray(self.kernel(points, self.inputs) @ self.weights)

    def sd(self, points: Array) -> Array:
        """Returns the posterior standard deviation of f, (n,)."""
        return self.scale * np.sqrt(self._variance(points, self._explained(points)))

    def behind(self, point: Array, points: Array) -> tuple[Array, Array]:
        """Returns mean and standard deviation (n,) of f(point) - f(points); the error that neighbours share cancels."""
        one, many = self._explained(point[None]), self._explained(points)
        covariance = self.kernel(point[None], points)[0] - one[:, 0] @ many
        variance = self._variance(point[None], one) + self._variance(points, many) - 2 * covariance
        return self.mean(point[None]) - self.mean(points), self.scale * np.sqrt(np.maximum(variance, 0))

    def _explained(self, points: Array) -> Array:
        return np.asarray(solve_triangular(self.factor, self.kernel(self.inputs, points), lower=True))

    def _variance(self, points: Array, explained: Array) -> Array:
        return np.asarray(np.maximum(self.kernel.diag(points) - np.sum(explained**2, axis=0), 0))


def fit(inputs: Array, values: Sequence[float] | Array, noise: NoiseFloor | None = None) -> Fit:
    """Fits a Gaussian process with a Matern 5/2 kernel, one length for each dimension, and noise.

    Args:
        inputs: The trials' points, (trials, d), in [0, 1].
        values: The trials' values, (trials,), finite.
        noise: The noise of one trial, measured over repeated seeds; it replaces the prior of the noise.
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
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # a length at its bound means that the parameter doesn't matter
        process.fit(inputs, (targets - targets.mean()) / (scale or 1.0))
    fitted = process.kernel_
    noise_sd = scale * math.sqrt(fitted.k2.noise_level)
    return Fit(noise_sd, fitted.k1, inputs, process.L_, process.alpha_, float(targets.mean()), scale)


def _mode(centres: Array, widths: Array) -> Callable[..., tuple[Array, float]]:
    """Returns an optimizer for scikit-learn that adds normal priors on the logarithms that it optimises."""

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
        return np.asarray(best.x), float(best.fun)

    return optimizer
