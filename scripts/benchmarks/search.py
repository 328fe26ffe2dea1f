"""What a search loses: the true value of the best setting less that of the chosen one, in simulated studies.

Each study is one of seven surfaces, as high as one, two or four hundredths, with noise of a hundredth. Its trials are
Optuna's. After 10, 20 and 30 of them a setting is chosen by each rule. Regret is given in standard deviations of the
noise. With --racing, thirty runs are spent in other ways: on fifteen settings twice, or the last ten on the settings
that could still be best. With --words, a setting is one of 8 or 20 words, whose values are normal with half, one or two
standard deviations of the noise; further runs are spent as replicates or as a race. With --trainings, each trial is a
real training of a grid of alpha and tau, with the trial's own seed or one for all.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray

from benchmarks.measuring import Figure, Finding, positive
from benchmarks.surfaces import NOISES, SURFACES, grid
from kdsweep.analysis.choice import Axis, Choice, Scored, choose
from kdsweep.analysis.gaussian_process import fit
from kdsweep.analysis.racing import contenders, next_of

Array = NDArray[np.float64]
LEVELS = (1.0, 2.0, 4.0)  # the height of a surface, in standard deviations of the noise
BUDGETS = (10, 20, 30)
SAMPLERS = ("random", "tpe", "gp")
AXES = [Axis("x", 0.0, 1.0), Axis("y", 0.0, 1.0)]
WORDS = ((8, 8), (8, 16), (20, 20))  # settings, and further runs
SPREADS = (0.5, 1.0, 2.0)  # of the words' values, in standard deviations of the noise
TRAININGS = Path(__file__).parent / "alpha_tau_digits.csv"


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    if name == "random":
        return optuna.samplers.RandomSampler(seed)
    return optuna.samplers.TPESampler(seed=seed) if name == "tpe" else optuna.samplers.GPSampler(seed=seed)


def regrets(sampler: str, level: float, surface: str, noise: str, seed: int) -> Iterator[tuple[int, str, float]]:
    """Yields (trials, rule, regret in standard deviations of the noise) of one simulated study."""
    rng = np.random.default_rng(seed)
    true = SURFACES[surface](rng.random(2))
    study = optuna.create_study(direction="maximize", sampler=_sampler(sampler, seed))
    trials: list[Scored] = []
    for number in range(max(BUDGETS)):
        trial = study.ask()
        params = {axis.key: trial.suggest_float(axis.key, axis.low, axis.high) for axis in AXES}
        value = float(level * true(np.array([[params["x"], params["y"]]]))[0] + NOISES[noise](rng, 1)[0])
        study.tell(trial, value)
        trials.append(Scored(number, params, value))
        if number + 1 in BUDGETS:
            found = choose(AXES, trials)
            best = trials[found.best].params
            for rule, chosen in (("posterior", found.params), ("best", best)):
                at = float(true(np.array([[chosen["x"], chosen["y"]]]))[0])
                yield number + 1, rule, level * max(0.0, float(true(grid()).max()) - at)


def racing(level: float, surface: str, noise: str, seed: int) -> Iterator[tuple[str, float]]:
    """Yields (way, regret in standard deviations of the noise): thirty runs of one study, spent in three ways.

    Settings are drawn at random, and the likely best is chosen. "settings" has thirty of them. "replicates" has
    fifteen, twice each. "race" has twenty; its last ten runs go, five at a time, to those settings whose upper
    confidence bounds are highest.
    """
    rng = np.random.default_rng([seed, int(level), list(SURFACES).index(surface)])
    true = SURFACES[surface](rng.random(2))
    points, top = rng.random((max(BUDGETS), 2)), float(true(grid()).max())

    def scored(chosen: Array, numbers: Sequence[int]) -> list[Scored]:
        values = level * true(chosen) + NOISES[noise](rng, len(chosen))
        return [
            Scored(number, {"x": float(x), "y": float(y)}, float(value))
            for number, (x, y), value in zip(numbers, chosen, values, strict=True)
        ]

    def regret(trials: Sequence[Scored]) -> float:
        found = choose(AXES, trials).params
        return level * max(0.0, top - float(true(np.array([[found["x"], found["y"]]]))[0]))

    yield "settings", regret(scored(points, range(30)))
    yield "replicates", regret(scored(np.repeat(points[:15], 2, axis=0), range(30)))
    trials = scored(points[:20], range(20))
    while len(trials) < max(BUDGETS):
        model = fit(np.array([[t.params["x"], t.params["y"]] for t in trials], dtype=float), [t.value for t in trials])
        bound = model.mean(points[:20]) + model.sd(points[:20])
        trials += scored(points[np.argsort(-bound)[:5]], range(len(trials), len(trials) + 5))
    yield "race", regret(trials)


def of_words(spread: float, n_words: int, further: int, noise: str, seed: int) -> Iterator[tuple[str, str, float]]:
    """Yields (way, rule, regret in standard deviations of the noise): words, and further runs spent in two ways."""
    axis = Axis("word", words=tuple(range(n_words)))
    for way in ("once", "replicates", "race"):
        rng = np.random.default_rng([seed, n_words, further, int(10 * spread)])
        true = spread * rng.standard_normal(n_words)
        scores = {word: [float(true[word] + NOISES[noise](rng, 1)[0])] for word in range(n_words)}
        for _ in range(0 if way == "once" else further):
            runs = {word: len(own) for word, own in scores.items()}
            word = next_of(contenders(scores) if way == "race" else list(scores), runs)
            assert word is not None
            scores[word].append(float(true[word] + NOISES[noise](rng, 1)[0]))
        trials = [Scored(word, {"word": word}, value, first=word) for word, own in scores.items() for value in own]
        found = choose([axis], trials)
        for rule, chosen in (("posterior", found.tried), ("best", found.best)):
            yield way, rule, float(true.max() - true[chosen])


def _read(path: Path) -> tuple[list[tuple[float, float]], Array]:
    """Returns the settings and their validation accuracies, (settings, seeds)."""
    found: dict[tuple[float, float], dict[int, float]] = defaultdict(dict)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[float(row["alpha"]), float(row["tau"])][int(row["seed"])] = float(row["val_accuracy"])
    seeds = set.intersection(*(set(values) for values in found.values()))
    return list(found), np.array([[values[seed] for seed in sorted(seeds)] for values in found.values()])


def of_trainings(path: Path, n_trials: int, n_studies: int) -> dict[str, list[float]]:
    """Returns the regret in points of each kind of seeds and rule: studies of real trainings.

    A study tries settings of the grid at random. The truth is the mean over the seeds that the study hasn't seen.
    """
    settings, values = _read(path)
    axes = [Axis("x", 0.0, 1.0), Axis("y", 1.0, 12.0, log=True)]
    n_seeds = values.shape[1]
    lost: dict[str, list[float]] = defaultdict(list)
    for study in range(n_studies):
        rng = np.random.default_rng(study)
        tried = rng.permutation(len(settings))[:n_trials]
        one = int(rng.integers(n_seeds))
        own = rng.integers(n_seeds, size=n_trials)
        for kind, seeds in (("fixed", np.full(n_trials, one)), ("fresh", own)):
            scored = [
                Scored(k, {"x": settings[place][0], "y": settings[place][1]}, float(values[place, seed]))
                for k, (place, seed) in enumerate(zip(tried, seeds, strict=True))
            ]
            found: Choice = choose(axes, scored)
            for rule, k in (("posterior", found.tried), ("best", found.best)):
                place, seed = tried[k], seeds[k]
                unseen = np.delete(np.arange(n_seeds), seed)
                lost[f"{kind} seeds, {rule}"].append(
                    100 * float(values[:, unseen].mean(axis=1).max() - values[place, unseen].mean())
                )
    return lost


def noise_of_trainings(path: Path) -> tuple[float, float, float]:
    """Returns in points: the noise over seeds, what of it differs between settings, and the spread of the settings."""
    _, values = _read(path)
    settings, seeds = values.shape
    total = np.sqrt(values.var(axis=1, ddof=1).mean())
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    own = np.sqrt((rest**2).sum() / ((settings - 1) * (seeds - 1)))
    spread = np.sqrt(max(0.0, values.mean(axis=1).var(ddof=1) - own**2 / seeds))
    return 100 * float(total), 100 * float(own), 100 * float(spread)


def _figure(name: str, values: list[float], unit: str) -> Figure:
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return Figure(name, mean, unit=unit, spread=(mean - 1.96 * error, mean + 1.96 * error))


def measure(arguments: argparse.Namespace) -> Finding:
    """What a search loses by each rule of choice, in simulated studies or over real trainings"""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if arguments.trainings is not None:
        total, own, spread = noise_of_trainings(arguments.trainings)
        lost = of_trainings(arguments.trainings, arguments.trials, arguments.studies)
        figures = [
            Figure("noise over seeds", total, unit="points"),
            Figure("what of it differs between settings", own, unit="points"),
            Figure("spread of the settings", spread, unit="points"),
            *(_figure(f"regret, {name}", values, "points") for name, values in lost.items()),
        ]
        return Finding("Choices over real trainings", figures, dict(lost))
    found: dict[str, list[float]] = defaultdict(list)
    if arguments.racing:
        for seed, level, surface in itertools.product(range(arguments.studies), LEVELS, SURFACES):
            lost = dict(racing(level, surface, arguments.noise, seed))
            for way, regret in lost.items():
                found[f"height {level:g}, {way}"].append(regret)
                if way != "settings":
                    found[f"{way} less settings"].append(regret - lost["settings"])
        figures = [_figure(name, values, "sd") for name, values in found.items()]
        return Finding("Regret of thirty runs, mean with 95 % interval", figures, dict(found))
    if arguments.words:
        for (n_words, further), spread in itertools.product(WORDS, SPREADS):
            for seed in range(arguments.studies):
                lost = {(w, rule): r for w, rule, r in of_words(spread, n_words, further, arguments.noise, seed)}
                for (way, rule), regret in lost.items():
                    found[f"{n_words} + {further} runs, spread {spread:g}, {way}, {rule}"].append(regret)
                    if way == "race":
                        found[f"race less replicates, {rule}"].append(regret - lost["replicates", rule])
        figures = [_figure(name, values, "sd") for name, values in found.items()]
        return Finding("Regret of further runs, mean with 95 % interval", figures, dict(found))
    for sampler, level, surface in itertools.product(arguments.samplers, LEVELS, SURFACES):
        for seed in range(arguments.studies):
            for n_trials, rule, regret in regrets(sampler, level, surface, arguments.noise, seed):
                found[f"{sampler}, height {level:g}, {n_trials} trials, {rule}"].append(regret)
    figures = [_figure(name, values, "sd") for name, values in found.items()]
    return Finding("Regret of simulated searches, mean with 95 % interval", figures, dict(found))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this subcommand."""
    parser.add_argument("--studies", type=positive, metavar="N", default=20, help="for each surface (%(default)s)")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), help="those to be tried")
    parser.add_argument("--noise", choices=list(NOISES), default="normal", help="of a trial (%(default)s)")
    parser.add_argument("--racing", action="store_true", help="thirty runs, spent in three ways")
    parser.add_argument("--words", action="store_true", help="words, and further runs spent in two ways")
    parser.add_argument("--trainings", type=Path, metavar="FILE", nargs="?", const=TRAININGS, help="real runs instead")
    parser.add_argument("--trials", type=positive, metavar="N", default=12, help="of real runs (%(default)s)")
