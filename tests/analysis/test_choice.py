"""Claims about analysis/choice.py: which setting of a search is probably the best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from kdsweep.analysis.choice import Axis, Choice, Scored, choose

ALPHA = Axis("loss.alpha", 0.0, 1.0)
TAU = Axis("loss.tau", 1.0, 20.0, log=True)
NOISE = 0.004


def bowl(alpha: float) -> float:
    return 0.9 - 0.1 * (alpha - 0.4) ** 2


def scored(n: int, score: Callable[[float], float] = bowl, seed: int = 0, noise: float = NOISE) -> list[Scored]:
    """Trials of alpha alone, evenly over [0, 1]."""
    rng = np.random.default_rng(seed)
    alphas = np.linspace(0, 1, n).tolist()
    return [Scored(k, {"loss.alpha": a}, score(a) + noise * float(rng.standard_normal())) for k, a in enumerate(alphas)]


def test_a_lucky_trial_is_not_the_choice() -> None:
    """A score far above its neighbours' is luck: the model expects less, and chooses where all are high."""
    trials = scored(16)
    trials[14] = replace(trials[14], value=0.912)
    found = choose([ALPHA], trials)
    assert (found.best, found.best_value, found.reason) == (14, 0.912, "")
    assert abs(float(str(found.params["loss.alpha"])) - 0.4) < 0.25
    assert found.best_expected < found.expected < 0.905


def test_the_choice_can_lie_between_the_trials() -> None:
    """Its numbers have three digits and lie inside the space; it is no trial yet."""
    trials = [t for t in scored(24, noise=0.0005) if not 0.2 < float(str(t.params["loss.alpha"])) < 0.6]
    found = choose([ALPHA], trials)
    assert found.number is None
    assert found.params["loss.alpha"] == pytest.approx(0.4, abs=0.08)
    assert len(str(found.params["loss.alpha"])) <= 5
    assert found.tried in {t.number for t in trials}
    assert found.expected == pytest.approx(0.9, abs=0.005)


def test_what_is_minimised_is_chosen_lowest() -> None:
    """Values are in the objective's own direction."""
    trials = [replace(trial, value=1 - trial.value) for trial in scored(16)]
    found, mirrored = choose([ALPHA], trials, maximise=False), choose([ALPHA], scored(16))
    assert found.params == mirrored.params
    assert found.expected == pytest.approx(1 - mirrored.expected)


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        (scored(4), "at least 5 trials, and there are 4"),
        (scored(12, lambda _: 0.9, noise=0), "same score"),
        (scored(12, lambda _: 0.9, seed=4), "doesn't predict left-out trials better"),
        ([*scored(8), Scored(8, {"loss.alpha": 0.5, "own": 1}, 0.9)], "function of your own"),
    ],
)
def test_without_a_model_the_best_trial_is_chosen(trials: list[Scored], reason: str) -> None:
    """The reason says why; nothing is promised."""
    found = choose([ALPHA], trials)
    assert reason in found.reason
    assert found.number == found.best == found.tried
    assert math.isnan(found.expected)


def test_words_are_part_of_the_model() -> None:
    """Only combinations that were tried are chosen, whole numbers stay whole, and steps are kept."""
    rng = np.random.default_rng(0)
    axes = [ALPHA, Axis("optimizer", words=("sgd", "adamw", "own")), Axis("batch_size", 16, 64, step=16, whole=True)]
    trials = []
    for number in range(30):
        alpha, word, size = float(rng.random()), ("sgd", "adamw")[number % 2], int(16 * rng.integers(1, 5))
        value = bowl(alpha) - 0.02 * (word == "sgd") + NOISE * float(rng.standard_normal())
        trials.append(Scored(number, {"loss.alpha": alpha, "optimizer": word, "batch_size": size}, value))
    found = choose(axes, trials)
    assert found.params["optimizer"] == "adamw"
    assert found.params["batch_size"] in (16, 32, 48, 64)
    assert type(found.params["batch_size"]) is int


def test_infinite_scores_and_single_values_are_left_out() -> None:
    """A diverged trial is no part of the model; a key with one value is none of its dimensions."""
    trials = [replace(t, params={**t.params, "loss.tau": 4.0}) for t in scored(16)]
    trials[3] = replace(trials[3], value=-math.inf)
    found = choose([ALPHA, replace(TAU, low=4.0, high=4.0)], trials)
    assert found.reason == ""
    assert found.params["loss.tau"] == 4.0


def test_the_same_trials_give_the_same_choice() -> None:
    """Nothing is drawn at random."""
    first: Choice = choose([ALPHA], scored(20))
    assert choose([ALPHA], scored(20)) == first


@pytest.mark.slow
def test_the_models_choice_is_better_than_the_best_trial() -> None:
    """On noisy bowls, four sds of the noise high, it loses less on average; at less than two sds it gains nothing."""
    model, best = [], []
    for seed in range(30):
        trials = scored(15, seed=seed, noise=0.009)
        found = choose([ALPHA], trials)
        model.append(0.9 - bowl(float(str(found.params["loss.alpha"]))))
        best.append(0.9 - bowl(float(str(trials[found.best].params["loss.alpha"]))))
    assert np.mean(model) < np.mean(best)


def test_repeated_runs_are_one_setting() -> None:
    """The best mean is the best setting, with or without a model, and its first trial stands for it."""
    axes = [Axis("loss", words=("ce", "kd", "dist"))]
    values = {"ce": [0.95, 0.70, 0.72], "kd": [0.88, 0.87, 0.89], "dist": [0.80, 0.81, 0.80]}
    trials = [
        Scored(3 * place + number, {"loss": loss}, scores[place], first=number)
        for place in range(3)
        for number, (loss, scores) in enumerate(values.items())
    ]
    found = choose(axes, trials)
    assert (found.number, found.best, found.tried) == (1, 1, 1)
    assert found.best_value == pytest.approx(0.88)
    few = choose(axes, trials[:4])
    assert "at least 5" in few.reason
    assert (few.number, few.best_value) == (1, 0.88)
