"""How often a confirmation by `sweep.confirm_until` is wrong at any of its looks, when it stops, and what it sees.

The studies are those of `verdicts`: three arms with the same seeds and accuracies that are counted. Where no arm gains,
a study counts as false if any of the three comparisons says "better" or "worse" after any number of seeds, also after
those at which the confirmation would have stopped.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, replace

from benchmarks.measuring import Figure, Finding, positive
from benchmarks.verdicts import ARMS, GAIN, NOISES, PICTURES, SCENARIOS, Setup, accuracies
from kdsweep.analysis.always_valid import FEWEST_PAIRS
from kdsweep.analysis.stopping import decision
from kdsweep.analysis.verdict import SIGNIFICANCE, comparisons

MOST, FIRST = 20, 5  # sweep.confirm_until, and sweep.confirm_seeds
GAINS = (0.0, 1.0, 2.0, 3.0, 5.0)  # of distill, in standard deviations of one run


@dataclass(frozen=True)
class Course:
    """How the confirmations of simulated studies went.

    Attributes:
        better: The share in which distill is better than scratch when it stops.
        fixed: The share in which the fixed number `MOST` of seeds says so.
        seeds: The mean number of seeds.
        reasons: Why they stopped, as shares.
    """

    better: float
    fixed: float
    seeds: float
    reasons: dict[str, float]


def arms_of(values: list[list[float]], n: int) -> dict[str, dict[int, float]]:
    """Returns arm -> seed -> accuracy of the first n seeds."""
    return {arm: dict(enumerate(own[:n])) for arm, own in zip(ARMS, values, strict=True)}


def false_rate(setup: Setup, n_studies: int, seed: int = 0) -> float:
    """Returns the share of studies that tell any two arms apart at any look, from four pairs on."""
    told = 0
    for values in accuracies(setup, n_studies, seed).tolist():
        told += any(
            one.outcome in ("better", "worse")
            for n in range(FEWEST_PAIRS, setup.n_pairs + 1)
            for one in comparisons(arms_of(values, n), 1 / setup.pictures, at_any_time=True)
        )
    return told / n_studies


def worst_false_rate(scenario: str, n_studies: int, most: int = MOST) -> tuple[float, Setup]:
    """Returns the highest false rate over the sizes of the test split and of the noise, simulated anew, and where."""
    setups = [Setup(scenario, most, pictures, noise) for pictures in PICTURES for noise in NOISES]
    worst = max(setups, key=lambda setup: false_rate(setup, n_studies))
    return false_rate(worst, 4 * n_studies, seed=1), worst


def course(setup: Setup, n_studies: int, seed: int = 0, first: int = FIRST) -> Course:
    """Lets simulated confirmations run until they stop; `setup.n_pairs` are the most."""
    reasons: Counter[str] = Counter()
    better = fixed = seeds = 0
    for values in accuracies(setup, n_studies, seed).tolist():
        whole = arms_of(values, setup.n_pairs)
        for n in range(first, setup.n_pairs + 1):
            why = decision(whole, range(n), setup.n_pairs, 1 / setup.pictures)
            if why is not None:
                break
        assert why is not None
        reasons[why] += 1
        seeds += n
        better += comparisons(arms_of(values, n), 1 / setup.pictures, at_any_time=True)[0].outcome == "better"
        fixed += comparisons(whole, 1 / setup.pictures)[0].outcome == "better"
    shares = {why: count / n_studies for why, count in reasons.items()}
    return Course(better / n_studies, fixed / n_studies, seeds / n_studies, shares)


def measure(arguments: argparse.Namespace) -> Finding:
    """How often a confirmation that stops by itself is wrong, when it stops, and what it sees"""
    figures, rows = [], []
    for scenario in SCENARIOS:
        rate, where = worst_false_rate(scenario, arguments.studies)
        rows.append({"scenario": scenario, "false": rate, "at": vars(where)})
        place = f"worst at {where.pictures:,} pictures, noise {where.noise:g} points"
        name = f"false at any look up to {MOST} seeds, {scenario}"
        figures.append(Figure(name, 100 * rate, 100 * SIGNIFICANCE, unit="%", note=place))
    plain = Setup("normal", MOST, 10_000, 0.5)
    setups = [(f"gain of {gain:g} sd", replace(plain, gain=gain)) for gain in GAINS]
    setups += [(f"gain of {GAIN:g} sd, {name}", replace(plain, scenario=name, gain=GAIN)) for name in SCENARIOS][1:]
    for name, setup in setups:
        went = course(setup, arguments.studies)
        rows.append({"setup": vars(setup), **vars(went)})
        why = ", ".join(f"{reason} {share:.0%}" for reason, share in sorted(went.reasons.items()))
        note = f"better {went.better:.2f}, with {MOST} seeds at once {went.fixed:.2f}; {why}"
        figures.append(Figure(f"seeds until it stops, {name}", went.seeds, note=note))
    return Finding("Confirmations that stop by themselves", figures, {"studies": arguments.studies, "rows": rows})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this subcommand."""
    parser.add_argument("--studies", type=positive, metavar="N", default=300, help="simulated studies (%(default)s)")
