"""What the search found out about its space: the spread against the noise, the plateau, which parameters matter."""

from __future__ import annotations

import math
import statistics as plain
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdsweep.analysis import plateau as fitted
from kdsweep.analysis.plateau import Importance, Plateau, Space, Surface
from kdsweep.analysis.study_goals import ALPHA, TAU, Dimension, Objective, is_logarithmic, setting, short_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kdsweep.analysis.sorted_runs import Comparison, Trial
    from kdsweep.analysis.statistics import NoiseFloor

# A key without a declared scale gets a logarithmic one if its largest value is this many times its smallest.
LOG_RATIO = 10
# From this share on, the plateau is reported as the whole space.
WHOLE = 0.95
# If the plateau fills less than this share of its box, naming the box alone would mislead.
FILLED = 0.7


@dataclass(frozen=True)
class Landscape:
    """The search space as the trials show it, for the first objective.

    Attributes:
        space: The numeric parameters that were varied; None if there are none, or no trials.
        declared: Whether the limits are those that the study declared, rather than the range that was tried.
        fixed: Parameters whose values are words -> their value in the chosen trial. Trials with other values are left
            out of the fit.
        by_word: Each of these parameters that was varied -> its words -> the objective's values of the trials.
        n: The number of trials in the fit.
        spread: The standard deviation of these trials' objective; NaN with fewer than two trials.
        plateau: The plateau, in the objective's unit times its sign (to be maximised); None below five trials.
        importances: Parameter -> its importance.
        surface: The surface over alpha and tau, or else over the first two parameters; None if there is only one.
    """

    space: Space | None = None
    declared: bool = False
    fixed: dict[str, str] = field(default_factory=dict)
    by_word: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    n: int = 0
    spread: float = math.nan
    plateau: Plateau | None = None
    importances: dict[str, Importance] = field(default_factory=dict)
    surface: Surface | None = None


def survey(found: Comparison, noise: NoiseFloor | None) -> Landscape:
    """Fits the surface to the finished trials.

    Args:
        found: The sorted runs.
        noise: The noise of one run's objective over seeds; None if it is unknown.
    """
    if not found.trials or found.chosen is None:
        return Landscape()
    dimensions = found.goals.space or tuple(Dimension(key) for key in found.trials[0].params)
    words = {d.key for d in dimensions if not all(map(_is_number, _tried(d, found)))}
    fixed = {key: found.chosen.params[key] for key in words}
    by_word = {key: _by_word(key, found) for key in sorted(words)}
    by_word = {key: values for key, values in by_word.items() if len(values) > 1}
    trials = [trial for trial in found.trials if all(trial.params[key] == value for key, value in fixed.items())]
    trials = [trial for trial in trials if found.searched(trial)]
    limits = {d.key: _limits(d, trials) for d in dimensions if d.key not in words}
    limits = {key: limit for key, limit in limits.items() if limit[0] < limit[1]}
    values = [found.goals.objective.sign * trial.value for trial in trials]
    spread = plain.stdev(values) if len(values) > 1 else math.nan
    if not limits:
        return Landscape(fixed=fixed, by_word=by_word, n=len(trials), spread=spread)
    low, high, log = zip(*limits.values(), strict=True)
    space = Space(tuple(limits), low, high, log)
    points = [[float(trial.params[key]) for key in limits] for trial in trials]
    region = surface = None
    importances: dict[str, Importance] = {}
    # There is nothing to fit to equal values.
    if spread > 0:
        region = fitted.plateau(space, points, values, noise=noise)
        importances = fitted.importances(space, points, values, noise=noise)
        if len(limits) > 1:
            surface = fitted.surface(space, points, values, *axes(space), noise=noise)
    declared = bool(found.goals.space)
    return Landscape(space, declared, fixed, by_word, len(trials), spread, region, importances, surface)


def axes(space: Space) -> tuple[str, str]:
    """Returns the two parameters of the figure: alpha and tau if both are searched, else the first two."""
    both = (ALPHA.key, TAU.key)
    return both if set(both) <= set(space.names) else (space.names[0], space.names[1])


def words(landscape: Landscape, objective: Objective, noise: NoiseFloor | None) -> Iterator[str]:
    """Yields the findings about the space, each of one or two sentences."""
    unit = f" {objective.row.difference_unit}".rstrip()
    if noise is not None and not math.isnan(landscape.spread):
        yield _against_noise(landscape, objective, noise, unit)
    if landscape.plateau is not None:
        yield _plateau_words(landscape, landscape.plateau)
    elif 0 < landscape.n < fitted.FEWEST and landscape.space is not None:
        there = f"there {'is' if landscape.n == 1 else 'are'} {landscape.n}"
        yield f"A region of good settings takes at least {fitted.FEWEST} trials; {there}."
    elif landscape.spread == 0:
        yield f"All {landscape.n} trials have the same {objective.label}: no setting stands out."
    if landscape.importances and landscape.plateau is not None and landscape.plateau.trusted:
        yield _importance_words(landscape)
    for key, values in landscape.by_word.items():
        means = [
            f"{word} {objective.shown(plain.fmean(found))} ({len(found)} trial{'s' * (len(found) > 1)})"
            for word, found in values.items()
        ]
        yield f"Mean {objective.heading} by {short_key(key)}: {', '.join(means)}."


def _importance_words(landscape: Landscape) -> str:
    ranked = sorted(landscape.importances.items(), key=lambda item: -item[1].total)
    shares = ", ".join(
        f"{short_key(key)} {share.total:.0%} ({share.low:.0%} to {share.high:.0%})" for key, share in ranked
    )
    alone = ", ".join(f"{short_key(key)} {share.first:.0%}" for key, share in ranked)
    left_out = "one trial" if landscape.n <= fitted.GROUPS else "a tenth of the trials"
    within = f" with {setting(landscape.fixed)}" if landscape.fixed else ""
    how = f"Sobol, total; in brackets the range when {left_out} is left out"
    text = f"Share in the fitted surface's variance{within} ({how}): "
    (_, most), *others = ranked
    doubt = (
        f" Which of them matters most {landscape.n} trials don't tell."
        if any(o.high > most.low for _, o in others)
        else ""
    )
    return f"{text}{shares}; alone: {alone}.{doubt}"


def _against_noise(landscape: Landscape, objective: Objective, noise: NoiseFloor, unit: str) -> str:
    both = (
        f"The standard deviation of the {landscape.n} trials' {objective.label} is "
        f"{objective.shown(landscape.spread)}{unit}, that of repeated seeds {objective.shown(noise.sd)} "
        f"({objective.shown(noise.low)} to {objective.shown(noise.high)})"
    )
    if landscape.spread <= noise.sd:
        return f"{both}: the settings differ by no more than seeds do, so their order is mostly luck."
    if landscape.spread <= noise.high:
        return f"{both}: the order of the trials may be luck."
    return f"{both}: the settings do matter, the order of neighbours need not."


def _plateau_words(landscape: Landscape, region: Plateau) -> str:
    assert landscape.space is not None
    whole = "the space" if landscape.declared else "the range that was tried"
    within = f" (with {setting(landscape.fixed)})" if landscape.fixed else ""
    if not region.trusted:
        return f"Which settings are good{within} can't be told: {region.reason}."
    if region.share >= WHOLE:
        return f"No region stands out{within}: {region.n} trials rule out next to nothing of {whole}."
    space = landscape.space
    ends = zip(space.low, space.high, strict=True)
    if all(math.isclose(a, b) for pair in zip(region.limits, ends, strict=True) for a, b in zip(*pair, strict=True)):
        keys = " and ".join(map(short_key, space.names))
        return (
            f"Not ruled out{within}: {region.share:.0%} of {whole}, from end to end of {keys}. {region.n} trials rule "
            "out the rest: it is worse than the best by more than a run's noise."
        )
    limits = zip(landscape.space.names, region.limits, strict=True)
    box = " and ".join(f"{short_key(key)} {low:.2g} to {high:.3g}" for key, (low, high) in limits)
    shape = "" if region.fill >= FILLED else f" (not all of it: {region.fill:.0%} of that box)"
    return (
        f"Not ruled out{within}: {box}{shape}, {region.share:.0%} of {whole}. {region.n} trials rule out the rest: "
        "it is worse than the best by more than a run's noise."
    )


def _by_word(key: str, found: Comparison) -> dict[str, list[float]]:
    """Returns the objective's values of the trials with each word, that with the best trial first."""
    values: dict[str, list[float]] = {}
    for trial in found.trials:
        values.setdefault(trial.params[key], []).append(trial.value)
    return values


def _tried(dimension: Dimension, found: Comparison) -> list[str]:
    return [*dimension.choices, *(trial.params[dimension.key] for trial in found.trials)]


def _limits(dimension: Dimension, trials: list[Trial]) -> tuple[float, float, bool]:
    """Returns (low, high, log) of a parameter: as declared, else the range that was tried."""
    if dimension.low is not None and dimension.high is not None:
        return dimension.low, dimension.high, dimension.log
    values = [float(trial.params[dimension.key]) for trial in trials] + [float(choice) for choice in dimension.choices]
    low, high = min(values), max(values)
    return low, high, low > 0 and (is_logarithmic(dimension.key) or high / low >= LOG_RATIO)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
