"""Which setting of a search is probably the best: the choice that knows that each trial's score is partly luck.

The trial with the best score is the one with the best luck among good ones. A model of all trials, which knows their
noise, expects less of it, and may expect more of another setting, or of one between them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kdsweep.analysis.gaussian_process import Space, fit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Array = NDArray[np.float64]

FEWEST = 5  # with fewer trials, a model would show nothing but its prior
# A setting between the trials costs a run of its own. It has to be better than the best trial by this share of the
# noise, or the model would ask for one to gain nothing.
WORTH_A_RUN = 0.1
GRID = {1: 129, 2: 33}  # points in each dimension; with three or more there are SOBOL_POINTS in all
SOBOL_POINTS = 1024
MOST_COMBINATIONS = 8  # of words, those with the best trials by the model, between whose trials it looks
DIGITS = 3  # of a number that the model proposes


@dataclass(frozen=True)
class Axis:
    """A searched key: a number from `low` to `high`, or one of `words`.

    Attributes:
        log: Whether the number is searched on a logarithmic scale.
        step: The distance of the numbers that may be proposed, from `low` on; None for all between.
        whole: Whether the number is an int.
        words: The choices. Any two of them are equally far apart, also if they are numbers.
    """

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    whole: bool = False
    words: tuple[object, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether there is more than one value."""
        return len(self.words) > 1 or self.low < self.high


@dataclass(frozen=True)
class Scored:
    """A trial that reached its value.

    Attributes:
        own: Whether it is a trial of this study. Another study's is evidence, and its setting would be tried anew.
        inside: Whether it lies in what is searched. What doesn't is evidence, and is never chosen.
        first: The first trial of the same setting, of which this is another run; None or its own number if it is none.
    """

    number: int
    params: Mapping[str, object]
    value: float
    own: bool = True
    inside: bool = True
    first: int | None = None

    @property
    def setting(self) -> int:
        """The trial that stands for the setting: the first one of it."""
        return self.number if self.first is None else self.first

    @property
    def may_be_chosen(self) -> bool:
        """Whether the trial itself can be the choice."""
        return self.own and self.inside


@dataclass(frozen=True)
class Choice:
    """The setting with the highest posterior mean; values are in the objective's own unit and direction.

    Attributes:
        number: The trial that is chosen; None for a setting between the trials.
        params: The setting between the trials; those of the trial if it is one.
        expected, sd: What the model promises of it, without a run's noise; NaN without a model.
        tried: The trial of which the model expects most; the best one without a model.
        best, best_value: The trial with the best score, and that score; the mean of a setting that was run repeatedly,
            for which its first trial stands.
        best_expected: What the model expects of it; NaN without a model.
        reason: Why the best trial is chosen and not the model's: a clause; empty if the model chose.
    """

    number: int | None
    params: Mapping[str, object]
    expected: float
    sd: float
    tried: int
    best: int
    best_value: float
    best_expected: float
    reason: str = ""


def choose(axes: Sequence[Axis], trials: Sequence[Scored], *, maximise: bool = True) -> Choice:
    """Chooses the setting with the highest posterior mean of a Gaussian process through all trials.

    Choices (`Axis.words`) are part of the model; only combinations of them that were tried are chosen. If the model
    doesn't predict left-out trials better than their median does, by the mean absolute error, the best trial is chosen.

    Args:
        axes: The searched keys.
        trials: At least one with a finite value that may be chosen.
        maximise: Whether more is better.
    """
    sign = 1 if maximise else -1
    known = [trial for trial in trials if math.isfinite(trial.value)]
    own = np.array([trial.may_be_chosen for trial in known])
    scores: dict[int, list[float]] = {}
    for trial in known:
        if trial.may_be_chosen:
            scores.setdefault(trial.setting, []).append(trial.value)
    means_of = {number: math.fsum(own) / len(own) for number, own in scores.items()}
    number = max(means_of, key=lambda setting: (sign * means_of[setting], -setting))
    best_value = means_of[number]
    best = next(trial for trial in known if trial.may_be_chosen and trial.setting == number)

    def fallen_back(reason: str) -> Choice:
        nan = math.nan
        return Choice(number, dict(best.params), nan, nan, number, number, best_value, nan, reason)

    moving = [axis for axis in axes if axis.varies]
    if any(trial.params.keys() != {axis.key for axis in axes} for trial in known):
        return fallen_back("some keys are suggested by a function of your own, which no model can follow")
    if len(known) < FEWEST:
        return fallen_back(f"a model takes at least {FEWEST} trials, and there are {len(known)}")
    values = np.array([sign * trial.value for trial in known])
    if not moving or np.ptp(values) == 0:
        return fallen_back("all trials have the same score" if moving else "only one setting can be tried")
    points = _points(moving, known)
    model = fit(points, values, words=[bool(axis.words) for axis in moving])
    if not _predicts(model.left_out, values):
        return fallen_back("the model doesn't predict left-out trials better than their median does")
    means = model.mean(points)
    tried = int(np.where(own, means, -math.inf).argmax())
    others = [trial.inside and not trial.own for trial in known]
    between = np.vstack([_between(moving, points, means), points[others]])
    expected = model.mean(between) if len(between) else np.array([-math.inf])
    new = expected.max() > means[tried] + WORTH_A_RUN * model.noise_sd
    point = between[expected.argmax()] if new else points[tried]
    return Choice(
        number=None if new else known[tried].setting,
        params={**known[tried].params, **_values(moving, point)} if new else dict(known[tried].params),
        expected=sign * float(model.mean(point[None])[0]),
        sd=float(model.sd(point[None])[0]),
        tried=known[tried].setting,
        best=number,
        best_value=best_value,
        best_expected=sign * float(means[known.index(best)]),
    )


def _predicts(left_out: Array, values: Array) -> bool:
    """Returns whether predictions of left-out values have a smaller mean absolute error than the others' median."""
    medians = np.array([np.median(np.delete(values, place)) for place in range(len(values))])
    return bool(np.abs(values - left_out).mean() < np.abs(values - medians).mean())


def _box(axis: Axis) -> Space:
    return Space((axis.key,), (axis.low,), (axis.high,), (axis.log,))


def _points(axes: Sequence[Axis], trials: Sequence[Scored]) -> Array:
    """Returns the trials' points (n, d): numbers in [0, 1], and the places of words."""
    columns = []
    for axis in axes:
        values = [trial.params[axis.key] for trial in trials]
        if axis.words:
            columns.append(np.array([axis.words.index(value) for value in values], dtype=float))
        else:
            columns.append(_box(axis).to_unit([[float(str(value))] for value in values])[:, 0])
    return np.stack(columns, axis=1)


def _between(axes: Sequence[Axis], points: Array, means: Array) -> Array:
    """Returns the points between the trials that may be proposed, (n, d), for the best combinations of words."""
    numbers = [place for place, axis in enumerate(axes) if not axis.words]
    if not numbers:
        return np.empty((0, len(axes)))
    cube = _cube(len(numbers))
    for column, place in enumerate(numbers):
        proposed = [[_proposed(axes[place], unit)] for unit in cube[:, column]]
        cube[:, column] = _box(axes[place]).to_unit(proposed)[:, 0]
    combinations: dict[bytes, Array] = {}
    for point in points[np.argsort(-means, kind="stable")]:
        own = point.copy()
        own[numbers] = 0
        combinations.setdefault(own.tobytes(), point)
    found = []
    for point in itertools.islice(combinations.values(), MOST_COMBINATIONS):
        own = np.tile(point, (len(cube), 1))
        own[:, numbers] = cube
        found.append(own)
    return np.vstack(found)


def _cube(dimensions: int) -> Array:
    if dimensions in GRID:
        line = np.linspace(0, 1, GRID[dimensions])
        return np.stack(np.meshgrid(*[line] * dimensions, indexing="ij"), axis=-1).reshape(-1, dimensions)
    return np.asarray(stats.qmc.Sobol(dimensions, rng=0).random(SOBOL_POINTS))


def _values(axes: Sequence[Axis], point: Array) -> dict[str, object]:
    """Returns the values that a point stands for."""
    return {
        axis.key: axis.words[int(place)] if axis.words else _proposed(axis, float(place))
        for axis, place in zip(axes, point, strict=True)
    }


def _proposed(axis: Axis, unit: float) -> float | int:
    """Returns the number nearest to a place in [0, 1] that may be proposed, with few digits."""
    value = float(_box(axis).from_unit([[unit]])[0, 0])
    if axis.step is not None:
        value = axis.low + axis.step * round((value - axis.low) / axis.step)
    else:
        value = float(f"{value:.{DIGITS}g}")
    value = min(max(value, axis.low), axis.high)
    return round(value) if axis.whole else value
