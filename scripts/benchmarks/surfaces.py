"""Seven surfaces over two parameters, with three kinds of noise: what simulated searches search."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Surface = Callable[[Array], Array]

COLLAPSE = 1 / 20
SIDE = 41  # of the grid on which the optimum and regions are looked up


def grid() -> Array:
    """Returns an even grid over the unit square, (SIDE^2, 2)."""
    line = np.linspace(0, 1, SIDE)
    return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)


def _flat(_: Array) -> Surface:
    return lambda x: np.ones(len(x))


def _bump(centre: Array) -> Surface:
    return lambda x: np.exp(-((x - centre) ** 2).sum(axis=1) / (2 * 0.25**2))


def _corner(_: Array) -> Surface:
    return lambda x: 1 - ((1 - x) ** 2).sum(axis=1) / 2


def _cliff(centre: Array) -> Surface:
    edge = 0.4 + 0.4 * centre[0]  # beyond it training fails, and shortly before it is best
    return lambda x: np.where(x[:, 0] <= edge, 0.5 + 0.5 * x[:, 0] / edge - 0.2 * (x[:, 1] - centre[1]) ** 2, 0.0)


def _ridge(centre: Array) -> Surface:
    return lambda x: np.exp(-((x.sum(axis=1) - 0.6 - 0.8 * centre[0]) ** 2) / (2 * 0.2**2))


def _one_parameter(centre: Array) -> Surface:
    return lambda x: 1 - 2 * (x[:, 0] - centre[0]) ** 2


def _saturating(_: Array) -> Surface:
    return lambda x: 1 - np.exp(-x[:, 0] / 0.15)


# Name -> a surface whose values reach from about 0 to 1, for a centre (2,) in the unit square.
SURFACES: dict[str, Callable[[Array], Surface]] = {
    "flat": _flat,
    "bump": _bump,
    "corner": _corner,
    "cliff": _cliff,
    "ridge": _ridge,
    "one parameter": _one_parameter,
    "saturating": _saturating,
}


def _normal(rng: np.random.Generator, n: int) -> Array:
    return rng.standard_normal(n)


def _heavy(rng: np.random.Generator, n: int) -> Array:
    return np.asarray(rng.standard_t(3, n) / np.sqrt(3))


def _collapsing(rng: np.random.Generator, n: int) -> Array:
    return np.asarray(rng.standard_normal(n) - (rng.random(n) < COLLAPSE) * rng.uniform(10, 100, n))


# Name -> the noise of one run, in the standard deviations of one that doesn't collapse.
NOISES: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal": _normal,
    "t, 3 df": _heavy,
    "1 in 20 collapses": _collapsing,
}
