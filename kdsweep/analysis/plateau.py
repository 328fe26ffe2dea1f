"""The plateau: the region of the search space that the trials don't rule out.

A Gaussian process is fitted to all trials. Values are to be maximised; negate those that are to be minimised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from kdsweep.analysis.gaussian_process import Fit, Space, fit
from kdsweep.system.errors import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kdsweep.analysis.statistics import NoiseFloor

__all__ = ["FEWEST", "Importance", "Plateau", "Space", "Surface", "importances", "plateau", "surface"]

Array = NDArray[np.float64]

FEWEST = 5  # with fewer trials, a fit would show nothing but its prior
CONFIDENCE = 0.95  # the probability with which a setting is ruled out
# A region that covers a larger share of the space means nothing. On simulated flat surfaces, where it should cover all,
# one in ten regions was smaller than this with 12 trials, and one in thirty with 30.
TRUSTED_SHARE = 0.85
# A region is measured on a grid with this many points in each dimension; with three dimensions or more, on SOBOL_POINTS
# points of Sobol's sequence.
GRID = {1: 257, 2: 65}
SOBOL_POINTS = 4096
GROUPS = 10  # groups of trials, each of which is left out in turn


@dataclass(frozen=True)
class Plateau:
    """The region that the trials don't show to be worse than the best setting; `plateau` states the rule.

    Attributes:
        best: The setting with the highest posterior mean, in the parameters' own units.
        mean, sd: The posterior at `best` of the value without a run's noise.
        noise_sd: The fitted noise of one run.
        limits: The smallest box that holds the region: (low, high) of each parameter, in its own unit.
        share: The region's share of the space's volume, in [0, 1]; the volume is logarithmic where the search is.
        fill: The region's share of its box. Near 1, the box can be read as the region.
        n: The number of trials in the fit.
        trusted: Whether the trials rule out enough for the region to mean something.
        reason: A clause that says why it isn't trusted; empty if it is.
    """

    best: tuple[float, ...]
    mean: float
    sd: float
    noise_sd: float
    limits: tuple[tuple[float, float], ...]
    share: float
    fill: float
    n: int
    trusted: bool
    reason: str


@dataclass(frozen=True)
class Surface:
    """The fitted surface over two parameters, with the others at the best setting.

    Attributes:
        names: The names of the two parameters, x and y.
        x, y: The grid's coordinates, (size,), in the parameters' own units, on the scale of the search.
        mean, sd: The posterior without a run's noise, (size, size); rows are y and columns x, as in matplotlib.
        member: Whether each grid point belongs to the plateau, (size, size) of bool.
    """

    names: tuple[str, str]
    x: Array
    y: Array
    mean: Array
    sd: Array
    member: NDArray[np.bool_]


@dataclass(frozen=True)
class Importance:
    """Sobol indices of one parameter: shares of the fitted surface's variance over the space, in [0, 1].

    Attributes:
        first: The share that is due to this parameter alone.
        total: The share that includes its interactions with other parameters.
        low, high: The range of `total` when groups of trials are left out in turn, as `importances` does.
    """

    first: float
    total: float
    low: float
    high: float


def plateau(
    space: Space, points: ArrayLike, values: Sequence[float], seed: int = 0, noise: NoiseFloor | None = None
) -> Plateau | None:
    """Finds the settings that the trials don't show to be worse than the best by more than a run's noise.

    The rule: let f be the surface without noise, and `best` the setting with its highest posterior mean. A setting x is
    ruled out if the posterior probability of f(best) - f(x) > noise_sd is 95 % or more. The posterior is that of the
    difference, so an error that both share cancels. Every other setting belongs to the plateau, also in an area without
    trials, since nothing speaks against it. So the region holds the true optimum (for 97 % or more of the simulated
    surfaces with twelve trials) and everything as good, and it shrinks as trials rule settings out.

    Args:
        space: The space that was searched.
        points: The trials' settings, (n, d), in the parameters' own units, inside the space.
        values: The trials' values, (n,); trials whose value is not finite are left out.
        seed: The seed of the points on which a region in three dimensions or more is measured.
        noise: The noise of one run, if it was measured over repeated seeds. It steadies the fit.

    Returns:
        The plateau; None below five trials.
    """
    fitted = _fit(space, points, values, noise)
    if fitted is None:
        return None
    cube = _cube(len(space.names), seed)
    best = _best(fitted, cube)
    cube = np.vstack([cube, best])  # the region has at least this point
    member = _members(fitted, best, cube)
    low, high = cube[member].min(axis=0), cube[member].max(axis=0)
    boxed = np.all((low <= cube) & (cube <= high), axis=1)
    share, n = float(member.mean()), len(fitted.inputs)
    trusted = share <= TRUSTED_SHARE
    return Plateau(
        best=tuple(space.from_unit(best).tolist()),
        mean=float(fitted.mean(best[None])[0]),
        sd=float(fitted.sd(best[None])[0]),
        noise_sd=fitted.noise_sd,
        limits=tuple(zip(*space.from_unit([low, high]).tolist(), strict=True)),
        share=share,
        fill=float(member[boxed].mean()),
        n=n,
        trusted=trusted,
        reason="" if trusted else _reason(n, share),
    )


def surface(
    space: Space,
    points: ArrayLike,
    values: Sequence[float],
    x: str,
    y: str,
    size: int = 61,
    seed: int = 0,
    noise: NoiseFloor | None = None,
) -> Surface | None:
    """Evaluates the fit of `plateau` on a grid over the parameters `x` and `y`; None below five trials."""
    for name, axis in ((x, "x"), (y, "y")):
        require(name in space.names, f"{axis} one of {', '.join(space.names)}", name, axis)
    fitted = _fit(space, points, values, noise)
    if fitted is None:
        return None
    best = _best(fitted, _cube(len(space.names), seed))
    columns = [space.names.index(x), space.names.index(y)]
    line = np.linspace(0, 1, size)
    grid = np.tile(best, (size * size, 1))
    grid[:, columns] = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    across, up = space.from_unit(np.tile(line[:, None], len(space.names))).T[columns]
    shown = (size, size)
    return Surface(
        names=(x, y),
        x=across,
        y=up,
        mean=fitted.mean(grid).reshape(shown),
        sd=fitted.sd(grid).reshape(shown),
        member=_members(fitted, best, grid).reshape(shown),
    )


def importances(
    space: Space, points: ArrayLike, values: Sequence[float], seed: int = 0, noise: NoiseFloor | None = None
) -> dict[str, Importance]:
    """Measures how much each parameter moves the fitted surface: Sobol indices of its mean (Sobol 2001) over the space.

    How certain they are is measured as well: the surface is fitted again without each trial in turn, or, with more than
    ten trials, without each tenth of them. All indices of a flat surface are 0; below five trials there are none.
    """
    fitted = _fit(space, points, values, noise)
    if fitted is None:
        return {}
    n = len(fitted.inputs)
    finite = np.asarray(values, dtype=float)[np.isfinite(np.asarray(values, dtype=float))]
    groups = np.arange(n) % min(n, GROUPS)
    others = [fit(fitted.inputs[groups != left], finite[groups != left], noise) for left in range(groups.max() + 1)]
    first, total = _indices(fitted, seed)
    totals = np.array([total, *(_indices(other, seed)[1] for other in others)])
    shares = zip(first, total, totals.min(axis=0), totals.max(axis=0), strict=True)
    return {name: Importance(*map(float, share)) for name, share in zip(space.names, shares, strict=True)}


def _indices(model: Fit, seed: int) -> tuple[Array, Array]:
    """Returns the first-order and the total Sobol indices of a fit's mean, (d,) each."""
    dimensions = model.inputs.shape[1]
    if dimensions == 1:  # scipy 1.17 fails with one dimension
        all_or_nothing = np.array([float(np.ptp(model.mean(_cube(1, seed))) > 0)])
        return all_or_nothing, all_or_nothing
    indices = stats.sobol_indices(
        func=lambda cube: model.mean(cube.T)[None],  # scipy's points come as (d, n)
        n=1024,
        dists=[stats.uniform()] * dimensions,
        rng=np.random.default_rng(seed),
    )
    # Estimates from a sample can lie a little outside of [0, 1].
    return np.clip(indices.first_order, 0, 1), np.clip(indices.total_order, 0, 1)


def _reason(n: int, share: float) -> str:
    if share == 1:
        return f"{n} trials rule out no part of the space"
    return f"{n} trials rule out {max(1 - share, 0.01):.0%} of the space, which noise alone can do"


def _fit(space: Space, points: ArrayLike, values: Sequence[float], noise: NoiseFloor | None) -> Fit | None:
    """Fits the finite values; returns None if there are fewer than five."""
    targets = np.asarray(values, dtype=float)
    inputs = np.asarray(points, dtype=float).reshape(len(targets), len(space.names))
    finite = np.isfinite(targets)
    if finite.sum() < FEWEST:
        return None
    return fit(space.to_unit(inputs[finite]), targets[finite], noise)


def _cube(dimensions: int, seed: int) -> Array:
    """Returns points (n, dimensions) that fill the unit cube evenly and reach its edges."""
    if dimensions in GRID:
        line = np.linspace(0, 1, GRID[dimensions])
        return np.stack(np.meshgrid(*[line] * dimensions, indexing="ij"), axis=-1).reshape(-1, dimensions)
    cube = stats.qmc.Sobol(dimensions, rng=seed).random(SOBOL_POINTS)
    return np.asarray((cube - cube.min(axis=0)) / np.ptp(cube, axis=0))


def _best(fitted: Fit, cube: Array) -> Array:
    """Returns the point (d,), of the trials' and the cube's, at which the posterior mean is highest."""
    candidates = np.vstack([fitted.inputs, cube])
    return np.asarray(candidates[fitted.mean(candidates).argmax()])


def _members(fitted: Fit, best: Array, points: Array) -> NDArray[np.bool_]:
    """Returns which points (n, d) aren't ruled out, (n,); `plateau` states the rule."""
    return np.asarray(fitted.probably_worse(best, points) < CONFIDENCE)
