"""A Gaussian process over a box of parameters, for few trials with noise of any kind.

A single best fit is too sure of itself with a dozen trials: it explains noise as signal, or signal as noise. So the
posterior is averaged over the kernel's parameters, which have log-normal priors. A run that collapsed or diverged would
bend a surface with normal noise. So the noise is Student's t, whose degrees of freedom are averaged over as well.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from kdsweep.analysis.statistics import ROUNDING, NoiseFloor
from kdsweep.system.errors import require

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = NDArray[np.float64]

# For each prior, its median and the standard deviation of its logarithm. Variances are relative to that of the trials,
# lengths to the side of the unit cube. The values were tried on simulated surfaces with 12 and 30 trials: with less
# prior noise, a third of the flat surfaces got a plateau; with more, slopes of twice the noise were missed.
SIGNAL, LENGTH, NOISE = (0.5, 1.2), (0.35, 0.7), (0.4, 1.2)
# What is unknown of the mean level, as a variance in the same unit.
LEVEL = 1.0
# The degrees of freedom of the noise, each as probable: heavy-tailed, nearly normal, normal.
DEGREES = (3.0, 10.0, 1000.0)
DRAWS = 64  # of the kernel's parameters, in each of two rounds
ROUNDS = 5  # of variational inference on the weights of the trials
KEPT = 24  # the most probable draws, which predict
# The most numbers in an array of covariances; with many trials there are fewer draws.
MOST_CELLS = 3_000_000
STEADY = 1e-8  # is added to the diagonal of covariances


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
class Draws:
    """Draws of the kernel's parameters: variances in units of `Fit.scale` squared, lengths in sides of the unit cube.

    Attributes:
        signal, noise: The variances of the surface and of the noise, (draws,).
        length: Of each dimension, (draws, d).
        degrees: The degrees of freedom of the noise, (draws,).
    """

    signal: Array
    length: Array
    noise: Array
    degrees: Array

    def covariance(self, one: Array, other: Array, words: NDArray[np.bool_]) -> Array:
        """Returns Matern 5/2 covariances (draws, n, m) of points (n, d) and (m, d)."""
        gap = one[:, None] - other[None]  # (n, m, d)
        gap = np.where(words, gap != 0, gap)  # any two words are equally far apart
        squares = np.tensordot(1 / self.length**2, gap**2, axes=(1, 2))  # (draws, n, m)
        distance = np.sqrt(5 * squares)
        return np.asarray(self.signal[:, None, None] * (1 + distance + distance**2 / 3) * np.exp(-distance))


@dataclass(frozen=True)
class Fit:
    """The posterior of a surface f over the unit cube; points are (n, d) in [0, 1], values in the trials' unit.

    It is a mixture of Gaussian processes, one for each draw of the kernel's parameters.

    Attributes:
        inputs: The trials' points, (trials, d).
        noise_sd: The standard deviation of one ordinary trial's value about f.
        weights: How much each trial counts: near 1, or near 0 for one that collapsed, (trials,).
        left_out: What the other trials predict for each trial, (trials,).
        draws: The draws of the kernel's parameters.
        shares: The probability of each draw, (draws,).
        inverses: The inverse of the trials' covariance, with level and noise, for each draw, (draws, trials, trials).
        products: These inverses times the standardised values, (draws, trials).
        words: Whether a dimension holds the numbers of words, (d,).
        offset, scale: The median and the robust standard deviation by which the trials' values were standardised.
    """

    inputs: Array
    noise_sd: float
    weights: Array
    left_out: Array
    draws: Draws
    shares: Array
    inverses: Array
    products: Array
    words: NDArray[np.bool_]
    offset: float
    scale: float

    def mean(self, points: Array) -> Array:
        """Returns the posterior mean of f, (n,)."""
        return self.offset + self.scale * np.asarray(self.shares @ self._means(points))

    def sd(self, points: Array) -> Array:
        """Returns the posterior standard deviation of f, (n,)."""
        known = self._known(points)
        means = np.einsum("knt,kt->kn", known, self.products)
        prior = self.draws.signal[:, None] + LEVEL
        own = np.maximum(prior - np.einsum("knt,kts,kns->kn", known, self.inverses, known, optimize=True), 0)
        mean = self.shares @ means
        return np.asarray(self.scale * np.sqrt(self.shares @ (own + (means - mean) ** 2)))

    def probably_worse(self, point: Array, points: Array) -> Array:
        """Returns the probability (n,) that f(point) - f(points) is more than the noise of one ordinary trial.

        The error that neighbours share cancels.
        """
        one, many = self._known(point[None]), self._known(points)
        known = one - many  # (draws, n, trials)
        mean = np.einsum("knt,kt->kn", known, self.products)
        prior = 2 * (self.draws.signal[:, None] - self.draws.covariance(point[None], points, self.words)[:, 0])
        variance = prior - np.einsum("knt,kts,kns->kn", known, self.inverses, known, optimize=True)
        sd = np.sqrt(np.maximum(variance, STEADY))
        return np.asarray(self.shares @ special.ndtr((mean - np.sqrt(self.draws.noise)[:, None]) / sd))

    def _means(self, points: Array) -> Array:
        return np.asarray(np.einsum("knt,kt->kn", self._known(points), self.products))

    def _known(self, points: Array) -> Array:
        return self.draws.covariance(points, self.inputs, self.words) + LEVEL


def fit(
    inputs: Array,
    values: Sequence[float] | Array,
    noise: NoiseFloor | None = None,
    words: Sequence[bool] | NDArray[np.bool_] | None = None,
) -> Fit:
    """Fits a Gaussian process with a Matern 5/2 kernel, one length for each dimension, and Student-t noise.

    The posterior of the values and of the trials' weights is variational (Tipping and Lawrence 2005, Neurocomputing
    69). That of the kernel's parameters is a weighted sample: half of it are draws of the prior, the other half draws
    about the best of these. All draws are the same in each call, so the same trials have the same fit.

    Args:
        inputs: The trials' points, (trials, d), in [0, 1]; a dimension of words holds their numbers.
        values: The trials' values, (trials,), finite.
        noise: The noise of one trial, measured over repeated seeds; it replaces the prior of the noise.
        words: Whether a dimension holds the numbers of words, any two of which are equally far apart; None: no one.
    """
    targets = np.asarray(values, dtype=float)
    offset, scale = float(np.median(targets)), _scale(targets)
    standard = (targets - offset) / (scale or 1.0)
    kinds = np.zeros(inputs.shape[1], dtype=bool) if words is None else np.asarray(words, dtype=bool)
    priors = np.array([SIGNAL, *[LENGTH] * inputs.shape[1], NOISE])  # (d + 2, 2)
    centres, widths = np.log(priors[:, 0]), priors[:, 1]
    if noise is not None and noise.sd > 0 and scale > 0:
        # The logarithm of a sample variance has a standard deviation of about sqrt(2 / degrees).
        centres[-1], widths[-1] = 2 * math.log(noise.sd / scale), math.sqrt(2 / noise.degrees)
    uniform = _uniform(len(centres) + 1, int(min(DRAWS, max(16, MOST_CELLS // len(targets) ** 2))))
    first = centres + widths * special.ndtri(uniform[:, :-1])
    degrees = np.array(DEGREES)[(uniform[:, -1] * len(DEGREES)).astype(int)]
    evidence = _infer(inputs, standard, _draws(first, degrees), kinds)[0]
    near, spread = _about(first, _shares(evidence), widths)
    second = near + special.ndtri(uniform[::-1, :-1]) @ spread.T
    both = np.vstack([first, second])
    draws = _draws(both, np.concatenate([degrees, degrees]))
    evidence, weights, inverses, products = _infer(inputs, standard, draws, kinds)
    prior = _log_normal(both, centres, np.diag(widths))
    proposed = np.logaddexp(prior, _log_normal(both, near, spread)) - math.log(2)
    shares = _shares(evidence + prior - proposed)
    kept = np.argsort(-shares, kind="stable")[:KEPT]
    shares = shares[kept] / shares[kept].sum()
    draws = Draws(draws.signal[kept], draws.length[kept], draws.noise[kept], draws.degrees[kept])
    inverses, products, weights = inverses[kept], products[kept], weights[kept]
    alone = products / np.einsum("ktt->kt", inverses)  # what is left of each value once the others have predicted it
    return Fit(
        inputs=inputs,
        noise_sd=scale * math.sqrt(math.exp(float(shares @ np.log(draws.noise)))),
        weights=shares @ weights,
        left_out=offset + scale * (standard - shares @ alone),
        draws=draws,
        shares=shares,
        inverses=inverses,
        products=products,
        words=kinds,
        offset=offset,
        scale=scale,
    )


def _scale(values: Array) -> float:
    """Returns a standard deviation of values that one in five outliers don't move; 0 if all are equal."""
    if np.ptp(values) <= ROUNDING:
        return 0.0
    low, high = np.quantile(values, [0.2, 0.8])
    middle = (high - low) / (2 * stats.norm.ppf(0.8))
    return float(middle) if middle > ROUNDING else float(values.std())


@functools.cache
def _uniform(dimensions: int, n: int) -> Array:
    return np.asarray(stats.qmc.Halton(dimensions, rng=0).random(n).clip(1e-6, 1 - 1e-6))


def _draws(logs: Array, degrees: Array) -> Draws:
    values = np.exp(logs)
    return Draws(values[:, 0], values[:, 1:-1], values[:, -1], degrees)


def _shares(evidence: Array) -> Array:
    shares = np.exp(evidence - evidence.max())
    return np.asarray(shares / shares.sum())


def _about(logs: Array, shares: Array, widths: Array) -> tuple[Array, Array]:
    """Returns mean and Cholesky factor of a normal distribution about the best draws, not narrower than a third."""
    near = shares @ logs
    gap = logs - near
    return near, np.asarray(
        np.linalg.cholesky((shares[:, None] * gap).T @ gap + np.diag((widths / 3) ** 2)), dtype=float
    )


def _log_normal(points: Array, centre: Array, factor: Array) -> Array:
    gap = np.linalg.solve(factor, (points - centre).T)
    return np.asarray(-0.5 * np.sum(gap**2, axis=0) - np.log(np.diag(factor)).sum())


def _infer(inputs: Array, values: Array, draws: Draws, words: NDArray[np.bool_]) -> tuple[Array, Array, Array, Array]:
    """Returns for each draw: a bound of the evidence, the trials' weights, the inverse covariance, its product."""
    half = draws.degrees[:, None] / 2
    surface = draws.covariance(inputs, inputs, words) + LEVEL  # (draws, n, n)
    weights = np.ones((len(half), len(values)))
    n = np.arange(len(values))
    for round_ in range(ROUNDS + 1):
        total = surface.copy()
        noise = draws.noise[:, None] / weights
        total[:, n, n] += noise + STEADY
        inverses = np.asarray(np.linalg.inv(total), dtype=float)
        products = inverses @ values
        # Of each value, the expected square of its distance from the surface.
        squares = (noise * products) ** 2 + noise - noise**2 * inverses[:, n, n]
        shape, rate = half + 0.5, half + squares / (2 * draws.noise[:, None])
        if round_ < ROUNDS:
            weights = shape / rate
    bound = -0.5 * (products @ values + np.linalg.slogdet(total)[1])
    log_weight = special.digamma(shape) - np.log(rate)
    prior = half * np.log(half) - special.gammaln(half)
    posterior = shape * np.log(rate) - special.gammaln(shape)
    divergence = posterior - prior + (shape - half) * log_weight - shape + half * shape / rate
    bound = bound + np.sum(0.5 * (log_weight - np.log(shape / rate)) - divergence, axis=1)
    return bound, weights, inverses, products
