"""How often the verdict says something false, and how often it sees a true difference, in simulated studies.

A study has three arms with the same seeds: scratch, label smoothing and distill. Accuracies are counted on a test
split, so they have steps. Where no arm gains, each "better" and each "worse" is false; a study with any of them counts
once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import Figure, Finding, positive
from kdsweep.analysis.verdict import SIGNIFICANCE, Paired, comparisons

Array = NDArray[np.float64]
Noise = Callable[[np.random.Generator, tuple[int, int, int]], Array]

ARMS = ("scratch", "label_smoothing", "distill")
PAIRS = (3, 4, 5, 10)
PICTURES = (100, 500, 2000, 10_000)
# The noise of one run, in points. 0.05 is less than a step of all splits but the largest.
NOISES = (0.05, 0.2, 0.5)
GAIN = 2.0  # of distill, in standard deviations of one run: the power is that of seeing it against scratch
COLLAPSE = 1 / 20
LOOKS = {"5, 10, 15 and 20 seeds": (5, 10, 15, 20), "each number of seeds from 3 to 10": tuple(range(3, 11))}


def _normal(*scales: float, shared: float = 0.0) -> Noise:
    """Returns normal noise whose standard deviations have these ratios; `shared` is the correlation within a pair."""

    def draw(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
        own, common = rng.standard_normal(shape), rng.standard_normal((shape[0], 1, shape[2]))
        scale = np.array(scales or (1, 1, 1), float)[:, None]
        return np.asarray(scale * (np.sqrt(1 - shared) * own + np.sqrt(shared) * common))

    return draw


def _heavy(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    return rng.standard_t(3, shape) / np.sqrt(3)


# Name -> the noise of one run, in its standard deviations.
SCENARIOS: dict[str, Noise] = {
    "normal": _normal(),
    "distill three times as noisy": _normal(1, 1, 3),
    "controls a tenth as noisy": _normal(0.1, 0.1, 1),
    "label smoothing a tenth as noisy": _normal(1, 0.1, 1),
    "pairs correlated by 0.8": _normal(shared=0.8),
    "t with 3 degrees of freedom": _heavy,
    "one run in 20 collapses": _normal(),
}


@dataclass(frozen=True)
class Setup:
    """A kind of studies.

    Attributes:
        scenario: One of `SCENARIOS`.
        n_pairs: The number of seeds of each arm.
        pictures: The size of the test split.
        noise: The standard deviation of one run, in points.
        gain: What distill gains, in standard deviations.
    """

    scenario: str
    n_pairs: int
    pictures: int
    noise: float
    gain: float = 0.0


def accuracies(setup: Setup, n_studies: int, seed: int = 0) -> Array:
    """Returns the test accuracies of simulated studies, (studies, arms, seeds), in the order of `ARMS`."""
    rng = np.random.default_rng((seed, setup.n_pairs, setup.pictures, round(1000 * setup.noise)))
    shape = n_studies, len(ARMS), setup.n_pairs
    values = SCENARIOS[setup.scenario](rng, shape)
    values[:, -1] += setup.gain
    values = setup.noise / 100 * values + rng.uniform(0.85, 0.95, (n_studies, 1, 1))
    if "collapses" in setup.scenario:
        values -= (rng.random(shape) < COLLAPSE) * rng.uniform(0.05, 0.8, shape)
    return np.asarray(np.rint(values.clip(0, 1) * setup.pictures) / setup.pictures)


def verdicts(setup: Setup, n_studies: int, seed: int = 0) -> Iterator[tuple[Paired, ...]]:
    """Yields the comparisons of each simulated study."""
    for study in accuracies(setup, n_studies, seed).tolist():
        arms = {arm: dict(enumerate(values)) for arm, values in zip(ARMS, study, strict=True)}
        yield comparisons(arms, 1 / setup.pictures)


def _told(arms: Mapping[str, Mapping[int, float]], setup: Setup) -> bool:
    return any(c.outcome in ("better", "worse") for c in comparisons(arms, 1 / setup.pictures))


def false_rate(setup: Setup, n_studies: int, seed: int = 0) -> float:
    """Returns the share of studies, in which no arm gains, where any comparison says "better" or "worse"."""
    told = [any(c.outcome in ("better", "worse") for c in study) for study in verdicts(setup, n_studies, seed)]
    return float(np.mean(told))


def power(setup: Setup, n_studies: int, seed: int = 0) -> float:
    """Returns the share of studies where distill is called better than scratch."""
    return float(np.mean([study[0].outcome == "better" for study in verdicts(setup, n_studies, seed)]))


def worst_false_rate(scenario: str, n_pairs: int, n_studies: int) -> tuple[float, Setup]:
    """Returns the highest false rate over the sizes of the test split and of the noise, and where that is.

    The highest of several simulated rates is one by luck too, so it is simulated again with other numbers.
    """
    setups = [Setup(scenario, n_pairs, pictures, noise) for pictures in PICTURES for noise in NOISES]
    worst = max(setups, key=lambda setup: false_rate(setup, n_studies))
    return false_rate(worst, 4 * n_studies, seed=1), worst


def peeking_rate(looks: Sequence[int], n_studies: int, seed: int = 0) -> float:
    """Returns the share of studies without a gain that get a false verdict at any look: after so many seeds each."""
    setup = Setup("normal", max(looks), 10_000, 0.5)
    told = []
    for study in accuracies(setup, n_studies, seed).tolist():
        seen = ([dict(enumerate(values[:n])) for values in study] for n in looks)
        told.append(any(_told(dict(zip(ARMS, arms, strict=True)), setup) for arms in seen))
    return float(np.mean(told))


def measure(arguments: argparse.Namespace) -> Finding:
    """How often the verdict is false, and how often it sees a true difference, in simulated studies"""
    figures, rows = [], []
    for scenario in SCENARIOS:
        for n_pairs in PAIRS:
            rate, where = worst_false_rate(scenario, n_pairs, arguments.studies)
            seen = power(Setup(scenario, n_pairs, 10_000, 0.5, GAIN), arguments.studies)
            rows.append({"scenario": scenario, "pairs": n_pairs, "false": rate, "power": seen, "at": vars(where)})
            figures.append(
                Figure(
                    f"false verdicts, {scenario}, {n_pairs} pairs",
                    100 * rate,
                    100 * SIGNIFICANCE,
                    unit="%",
                    note=f"power {seen:.2f}; worst at {where.pictures:,} pictures, noise {where.noise:g} points",
                )
            )
    for name, looks in LOOKS.items():
        rate = peeking_rate(looks, arguments.studies)
        rows.append({"looks": looks, "false": rate})
        figures.append(Figure(f"false verdicts, looking at {name}", 100 * rate, unit="%", note="not corrected"))
    rest: dict[str, Any] = {"studies": arguments.studies, "rows": rows}
    return Finding("Verdicts of simulated studies", figures, rest)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this subcommand."""
    parser.add_argument("--studies", type=positive, metavar="N", default=300, help="simulated studies (%(default)s)")
