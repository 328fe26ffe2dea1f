"""How often the region of good settings holds the true optimum, on seven surfaces with three kinds of noise.

A surface reaches over four standard deviations of the noise. Of several optima, one is drawn at random.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from benchmarks.measuring import Figure, Finding, positive
from benchmarks.surfaces import NOISES, SURFACES, grid
from kdsweep.analysis.gaussian_process import fit
from kdsweep.analysis.plateau import CONFIDENCE

HEIGHT = 4.0  # of a surface, in standard deviations of the noise
TRIALS = (12, 30)
LEAST = 0.93


@dataclass(frozen=True)
class Regions:
    """The share of regions that hold the optimum, and the mean share of the space that they take."""

    held: float
    share: float


def regions(surface: str, noise: str, n_trials: int, n_studies: int) -> Regions:
    """Simulates studies whose trials are spread evenly over the space."""
    points, held, shares = grid(), [], []
    for study in range(n_studies):
        rng = np.random.default_rng((study, n_trials))
        true = SURFACES[surface](rng.random(2))
        tried = qmc.Halton(2, rng=study).random(n_trials)
        values = true(points)
        optimum = rng.choice(np.flatnonzero(values >= values.max() - 1e-12))
        fitted = fit(tried, HEIGHT * true(tried) + NOISES[noise](rng, n_trials))
        candidates = np.vstack([tried, points])
        best = candidates[fitted.mean(candidates).argmax()]
        member = fitted.probably_worse(best, points) < CONFIDENCE
        held.append(member[optimum])
        shares.append(member.mean())
    return Regions(float(np.mean(held)), float(np.mean(shares)))


def measure(arguments: argparse.Namespace) -> Finding:
    """How often the region of good settings holds the true optimum, in simulated studies"""
    figures, rows = [], []
    for noise in arguments.noise:
        for surface in SURFACES:
            for n_trials in TRIALS:
                found = regions(surface, noise, n_trials, arguments.studies)
                rows.append({"noise": noise, "surface": surface, "trials": n_trials, **vars(found)})
                figures.append(
                    Figure(
                        f"{noise}, {surface}, {n_trials} trials",
                        100 * found.held,
                        100 * LEAST,
                        unit="%",
                        at_most=False,
                        note=f"{found.share:.0%} of the space",
                    )
                )
    return Finding("Regions that hold the optimum", figures, {"studies": arguments.studies, "rows": rows})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this subcommand."""
    parser.add_argument("--studies", type=positive, metavar="N", default=100, help="of each kind (%(default)s)")
    kinds = list(NOISES)
    parser.add_argument("--noise", nargs="+", choices=kinds, default=kinds, metavar="NOISE", help="; ".join(kinds))
