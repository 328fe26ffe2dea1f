"""Claims about analysis/plateau.py and its Gaussian process, against written-out formulas and simulated surfaces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm, qmc

from kdsweep.analysis.gaussian_process import fit
from kdsweep.analysis.plateau import Importance, Plateau, Space, importances, plateau, surface
from kdsweep.analysis.statistics import NoiseFloor
from kdsweep.system.errors import UserError

Array = NDArray[np.float64]

SPACE = Space(("loss.alpha", "loss.tau"), (0.0, 1.0), (1.0, 20.0), (False, True))
NOISE = 0.004


def trials(n: int, seed: int = 0) -> Array:
    """Settings (n, 2) that fill the unit square evenly, as the start of a search does."""
    return np.asarray(qmc.Halton(2, rng=seed).random(n))


def bowl(unit: Array, centre: tuple[float, float] = (0.4, 0.6)) -> Array:
    """Accuracy without noise (n,): 90 % at the centre, up to 6 points less at the corners."""
    return np.asarray(0.9 - 0.1 * (unit[:, 0] - centre[0]) ** 2 - 0.06 * (unit[:, 1] - centre[1]) ** 2)


def found(unit: Array, values: Array, noise: NoiseFloor | None = None) -> Plateau:
    """Returns the plateau of settings that are given in the unit square."""
    region = plateau(SPACE, SPACE.from_unit(unit), values.tolist(), noise=noise)
    assert region is not None
    return region


def simulated(n_studies: int, n: int, height: float) -> Iterator[tuple[Array, Array, Array]]:
    """Settings, noisy values and the true optimum (2,) of bowls of some height, their centres anywhere."""
    rng = np.random.default_rng(0)
    for study in range(n_studies):
        centre = rng.random(2)
        unit = trials(n, study)
        values = 0.9 + height * (bowl(unit, centre) - 0.9) + rng.normal(0, NOISE, n)
        yield unit, values, centre


def holds(region: Plateau, unit: Array) -> bool:
    """Whether the box of a region holds a point (2,)."""
    point = SPACE.from_unit(unit[None])[0]
    return all(low <= value <= high for value, (low, high) in zip(point, region.limits, strict=True))


def test_units_and_back() -> None:
    """The scale is logarithmic where that of the search is; the limits come back exactly."""
    unit = trials(16)
    assert SPACE.to_unit(SPACE.from_unit(unit)) == pytest.approx(unit)
    assert SPACE.from_unit([[0, 0], [1, 1]]).tolist() == [[0, 1], [1, 20]]
    assert SPACE.to_unit([[0.5, np.sqrt(20)]]) == pytest.approx(0.5)


@pytest.mark.parametrize(("low", "high", "rule"), [(2.0, 2.0, "low < high"), (0.0, 1.0, "low > 0 on a logarithmic")])
def test_impossible_spaces_are_refused(low: float, high: float, rule: str) -> None:
    """A box must have an extent, and a logarithmic scale can't begin at zero."""
    with pytest.raises(UserError, match=rule):
        Space(("loss.tau",), (low,), (high,), (True,))


def test_posterior_is_the_textbooks() -> None:
    """Each draw's mean and variance are those of Rasmussen and Williams (2006), eq. 2.25 and 2.26, by inversion."""
    unit, points = trials(12), trials(5, seed=1)
    values = 100 * bowl(unit)
    fitted = fit(unit, values)
    k = fitted.draws.covariance(points, points, fitted.words) + 1  # the level has the variance 1
    across = fitted.draws.covariance(points, unit, fitted.words) + 1
    mean = across @ fitted.inverses @ ((values - fitted.offset) / fitted.scale)
    covariance = k - across @ fitted.inverses @ across.transpose(0, 2, 1)
    mixed = fitted.shares @ mean
    assert fitted.mean(points) == pytest.approx(fitted.offset + fitted.scale * mixed)
    variance = fitted.shares @ (np.diagonal(covariance, axis1=1, axis2=2) + (mean - mixed) ** 2)
    assert fitted.sd(points) == pytest.approx(fitted.scale * np.sqrt(variance), rel=1e-3)
    gap = mean[:, :1] - mean
    spread = covariance[:, :1, 0] + np.diagonal(covariance, axis1=1, axis2=2) - 2 * covariance[:, 0]
    worse = norm.sf(np.sqrt(fitted.draws.noise)[:, None], gap[:, 1:], np.sqrt(spread[:, 1:]))
    assert fitted.probably_worse(points[0], points)[1:] == pytest.approx(fitted.shares @ worse, rel=1e-2, abs=1e-4)


def test_a_run_that_collapsed_moves_nothing() -> None:
    """It has next to no weight, and the region is nearly the one without it."""
    unit = trials(30)
    values = bowl(unit) + np.random.default_rng(0).normal(0, NOISE, 30)
    collapsed = values.copy()
    collapsed[3] = 0.1
    weights = fit(unit, collapsed).weights
    assert weights[3] < 0.01 < 0.5 < np.delete(weights, 3).min()
    region, plain = found(unit, collapsed), found(unit, values)
    assert region.noise_sd == pytest.approx(plain.noise_sd, rel=0.3)
    assert region.share == pytest.approx(plain.share, abs=0.15)


def test_left_out_trials_are_predicted_by_the_others() -> None:
    """On a clear surface, without the noise of their own."""
    unit = trials(30)
    noise = np.random.default_rng(0).normal(0, NOISE, 30)
    left_out = fit(unit, bowl(unit) + noise).left_out
    assert np.abs(left_out - bowl(unit)).mean() < NOISE
    assert abs(np.corrcoef(left_out - bowl(unit), noise)[0, 1]) < 0.5


def test_plateau_of_a_clear_surface() -> None:
    """Many trials of a bowl far above the noise: it holds the centre and no corner; its numbers fit."""
    unit = trials(64)
    region = found(unit, bowl(unit) + np.random.default_rng(0).normal(0, 0.002, 64))
    assert region.trusted
    assert SPACE.to_unit([region.best])[0] == pytest.approx((0.4, 0.6), abs=0.15)  # there, it is 0.001 at most below
    assert region.mean == pytest.approx(0.9, abs=0.002)
    assert region.sd < 0.002
    assert region.noise_sd == pytest.approx(0.002, rel=0.3)
    assert holds(region, np.array([0.4, 0.6]))
    assert not holds(region, np.array([1.0, 0.6]))
    # The settings that truly are within 0.002 of the best fill an ellipse, 8 % of the space.
    assert 0.08 < region.share < 0.3
    assert region.fill == pytest.approx(np.pi / 4, abs=0.1)


def test_too_few_trials_have_no_plateau() -> None:
    """Below five finite values nothing is fitted; a trial that failed is left out."""
    unit = trials(8)
    points, values = SPACE.from_unit(unit), bowl(unit)
    assert plateau(SPACE, points[:4], values[:4].tolist()) is None
    values[4:] = [np.nan, np.inf, 0.9, 0.9]
    region = plateau(SPACE, points, values.tolist())
    assert region is not None
    assert region.n == 6
    assert plateau(SPACE, points[:6], values[:6].tolist()) is None
    assert importances(SPACE, points[:4], values[:4].tolist()) == {}
    assert surface(SPACE, points[:4], values[:4].tolist(), *SPACE.names) is None


def test_equal_values_rule_out_nothing() -> None:
    """If values differ by rounding alone, every setting belongs, no parameter matters, and nothing is trusted."""
    unit = trials(12)
    region = found(unit, 0.9 + 1e-14 * unit[:, 0])
    assert (region.share, region.trusted, region.reason) == (1, False, "12 trials rule out no part of the space")
    assert region.mean == pytest.approx(0.9)
    assert region.limits == ((0, 1), (1, 20))
    assert importances(SPACE, SPACE.from_unit(unit), [0.9] * 12) == dict.fromkeys(SPACE.names, Importance(0, 0, 0, 0))


def test_unit_of_the_values_does_not_matter() -> None:
    """With points instead of fractions, the region is the same, and the noise a hundred times as large."""
    unit = trials(20)
    values = bowl(unit) + np.random.default_rng(0).normal(0, NOISE, 20)
    one, other = found(unit, values), found(unit, 100 * values)
    assert (other.limits, other.share, other.best) == (one.limits, one.share, one.best)
    assert other.noise_sd == pytest.approx(100 * one.noise_sd)


def test_known_noise_steadies_the_fit() -> None:
    """A noise floor from many seeds nearly determines the noise; one from few seeds leaves it to the trials."""
    unit = trials(12)
    values = bowl(unit) + np.random.default_rng(0).normal(0, NOISE, 12)
    firm, vague = (found(unit, values, NoiseFloor(0.03, 0.02, 0.04, n + 1, n)).noise_sd for n in (1000, 1))
    assert firm == pytest.approx(0.03, rel=0.05)
    assert vague < 0.02
    assert found(unit, values, NoiseFloor(0, 0, 0, 4, 3)) == found(unit, values)


def test_importances_follow_the_surface() -> None:
    """The surface depends on alpha alone; without interactions, first-order and total indices agree."""
    unit = trials(32)
    values = 0.9 - 0.1 * (unit[:, 0] - 0.4) ** 2 + np.random.default_rng(0).normal(0, 0.001, 32)
    shares = importances(SPACE, SPACE.from_unit(unit), values.tolist())
    alpha, tau = shares["loss.alpha"], shares["loss.tau"]
    assert alpha.first > 0.95 > 0.05 > tau.total
    assert alpha.total - alpha.first < 0.02
    assert 0.9 < alpha.low <= alpha.total <= alpha.high
    assert tau.low <= tau.total <= tau.high < 0.1


def test_few_trials_dont_tell_which_parameter_matters() -> None:
    """A trial that fails in a corner could be due to either parameter; leaving it out changes which one."""
    points = [(0.55, 8.5), (0.6, 5.1), (0.42, 6.9), (0.44, 14.5), (0.96, 3.2), (0.0, 1.0)]
    alpha, tau = importances(SPACE, points, [0.899, 0.838, 0.899, 0.889, 0.535, 0.865]).values()
    assert alpha.low < 0.3 < 0.7 < alpha.high
    assert tau.low < 0.3 < 0.7 < tau.high


def test_interaction_shows_in_the_total_alone() -> None:
    """A saddle, on which neither parameter does anything by itself."""
    unit = trials(32)
    values = 0.9 + 0.1 * (unit[:, 0] - 0.5) * (unit[:, 1] - 0.5)
    for share in importances(SPACE, SPACE.from_unit(unit), values.tolist()).values():
        assert share.first < 0.05
        assert share.total > 0.9


def test_surface_is_the_plateaus_fit_with_rows_for_y() -> None:
    """Columns are x and rows y, whichever parameter is which; the plateau's best is on its membership."""
    unit = trials(32)
    points, values = SPACE.from_unit(unit), bowl(unit, (0.2, 0.9)).tolist()
    drawn = surface(SPACE, points, values, "loss.tau", "loss.alpha", size=21)
    assert drawn is not None
    assert (drawn.x[[0, -1]].tolist(), drawn.y[[0, -1]].tolist()) == ([1, 20], [0, 1])
    row, column = np.unravel_index(drawn.mean.argmax(), (21, 21))
    assert (drawn.y[row], drawn.x[column]) == pytest.approx((0.2, 20**0.9), rel=0.1)
    assert drawn.member[row, column]
    assert not drawn.member[-1, 0]
    with pytest.raises(UserError, match=r"x one of loss\.alpha, loss\.tau"):
        surface(SPACE, points, values, "loss.gamma", "loss.tau")


def test_one_parameter_and_three() -> None:
    """With one parameter the region is an interval; with three the surface is drawn at the best value of the third."""
    unit = np.asarray(qmc.Halton(3, rng=0).random(32))
    values = (bowl(unit) - 0.05 * (unit[:, 2] - 0.9) ** 2).tolist()
    cube = Space(("a", "b", "c"), (0.0,) * 3, (1.0,) * 3, (False,) * 3)
    region, drawn = plateau(cube, unit, values), surface(cube, unit, values, "a", "b", size=11)
    assert region is not None
    assert drawn is not None
    assert region.best == pytest.approx((0.4, 0.6, 0.9), abs=0.12)
    assert drawn.mean.max() == pytest.approx(region.mean, abs=0.002)
    line = Space(("a",), (0.0,), (1.0,), (False,))
    assert importances(line, unit[:, :1], values) == {"a": Importance(1, 1, 1, 1)}
    assert importances(line, unit[:, :1], [0.9] * 32) == {"a": Importance(0, 0, 0, 0)}
    region = plateau(line, unit[:, :1], (0.9 - 0.3 * (unit[:, 0] - 0.4) ** 2).tolist())
    assert region is not None
    assert region.limits[0] == pytest.approx((0.4, 0.4), abs=0.2)
    assert region.fill == 1


def test_the_best_setting_belongs_to_a_small_region() -> None:
    """In four dimensions without noise, next to no point of the grid belongs; the best point always does."""
    unit = np.asarray(qmc.Halton(4, rng=0).random(40))
    unit[0] = 1
    region = plateau(Space(tuple("abcd"), (0.0,) * 4, (2.0,) * 4, (False,) * 4), 2 * unit, unit.sum(axis=1).tolist())
    assert region is not None
    assert region.best == (2, 2, 2, 2)
    assert all(high == 2 and low > 1 for low, high in region.limits)
    assert region.share < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "height"),
    [(12, 1.0), pytest.param(12, 0.3, marks=pytest.mark.all), pytest.param(30, 1.0, marks=pytest.mark.all)],
)
def test_plateau_holds_the_true_optimum(n: int, height: float) -> None:
    """On simulated noisy bowls, steep or nearly flat, this holds for at least 95 %."""
    held = [holds(found(unit, values), centre) for unit, values, centre in simulated(60, n, height)]
    assert np.mean(held) >= 0.95


@pytest.mark.all
@pytest.mark.slow
def test_true_plateau_is_held_and_the_rest_mostly_not() -> None:
    """Nine in ten settings truly within the noise of the best belong; after 30 trials, few of the others do."""
    recall, excess = [], []
    for unit, values, centre in simulated(40, 30, 1.0):
        drawn = surface(SPACE, SPACE.from_unit(unit), values.tolist(), *SPACE.names, size=31)
        assert drawn is not None
        line = np.linspace(0, 1, 31)
        truth = bowl(np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2), centre).reshape(31, 31) >= 0.9 - NOISE
        recall.append(drawn.member[truth].mean())
        excess.append(drawn.member[~truth].mean())
    assert np.mean(recall) > 0.9
    assert np.mean(excess) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "least"),
    [(6, 0.85), pytest.param(12, 0.85, marks=pytest.mark.all), pytest.param(30, 0.93, marks=pytest.mark.all)],
)
def test_flat_surfaces_rarely_get_a_trusted_plateau(n: int, least: float) -> None:
    """If no setting is better than others, the trials don't pretend to know a region."""
    regions = [found(unit, values) for unit, values, _ in simulated(60, n, 0.0)]
    assert np.mean([not region.trusted for region in regions]) >= least


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "studies", "error"), [(0.0, 15, 0.15), pytest.param(1.0, 40, 0.3, marks=pytest.mark.all)]
)
def test_noise_is_recovered(height: float, studies: int, error: float) -> None:
    """From 30 trials without repeated seeds, its median error is less than 15 % where the surface is flat.

    On a surface that is 250 times as high as the noise, the model takes a part of what it can't follow for noise.
    """
    noise = [found(unit, values).noise_sd for unit, values, _ in simulated(studies, 30, height)]
    assert np.median(noise) == pytest.approx(NOISE, rel=error)
