"""Claims about chance: a study in which nothing was learned says so, first, and nothing about seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from records import fresh, summary, trial

from kdsweep.analysis.chance import is_at_chance
from kdsweep.analysis.findings import Report
from kdsweep.report.mlflow_note import note
from kdsweep.report.tables import comparisons

# 100 test pictures, of which 40 are cats.
CLASSES = {0: {"cat": (40, 40), "dog": (30, 0), "fish": (30, 0)}}


def study(scratch: list[float], smoothing: list[float], distill: list[float], **named: Any) -> Report:
    """A study with these test accuracies."""
    arms = (fresh("scratch", scratch), fresh("label_smoothing", smoothing), fresh("distill", distill))
    trials = [trial(k, 0.1 * k, 4, val=0.4 + 0.01 * k) for k in range(5)]
    return summary(*(run for arm in arms for run in arm), *trials, **{"classes": CLASSES, **named})


@pytest.mark.slow
def test_a_study_at_chance_says_so_first() -> None:
    """Always naming the cat gives 40 %: so the arms' differences mean nothing, and no number of seeds helps."""
    report = study([0.4, 0.41, 0.38], [0.4, 0.4, 0.4], [0.3, 0.42, 0.39])
    assert report.headline == (
        "Nothing was learned: on test no student is better than always naming the most frequent class (40.0%): scratch "
        "39.7%, label smoothing 40.0%, distill 37.0%. So there is no verdict on distillation."
    )
    assert report.findings[0].startswith("A training that learns comes first")
    told = " ".join(report.findings)
    assert not [word for word in ("seeds an arm", "pairs see", "overstated", "ruled out") if word in told]
    assert {paired.outcome for paired in report.verdict.comparisons} == {"unknown"}
    assert not comparisons(report).rows
    assert note(report).startswith("**Nothing was learned")


@pytest.mark.slow
def test_one_arm_at_chance_is_named() -> None:
    """The others have learned, so there is a verdict."""
    report = study([0.8, 0.81, 0.8], [0.8, 0.82, 0.8], [0.4, 0.39, 0.41])
    assert report.headline.startswith("Distillation is worse than scratch")
    assert report.findings[0] == (
        "On test distill (40.0%) is not better than always naming the most frequent class (40.0%): nothing was learned "
        "there."
    )


@pytest.mark.slow
def test_arms_that_learned_are_compared() -> None:
    """Nothing is said about chance; nor where older runs don't tell their classes."""
    learned = study([0.8, 0.81, 0.8], [0.8, 0.82, 0.8], [0.8, 0.79, 0.81])
    unknown = study([0.4, 0.41, 0.38], [0.4, 0.4, 0.4], [0.3, 0.42, 0.39], classes={})
    for report in (learned, unknown):
        assert "learned" not in " ".join((report.headline, *report.findings))


@pytest.mark.parametrize(
    ("accuracies", "at_chance"),
    [
        ([0.1, 0.1, 0.1], True),  # one class for all
        ([0.107, 0.106, 0.107], False),  # 10,000 pictures see 0.6 points
        ([0.104, 0.105, 0.104], True),
        ([0.1, 0.3, 0.1], False),  # one seed of three has learned something
        ([0.1, 0.14, 0.1], True),
        ([0.25], False),
    ],
)
def test_the_rule(accuracies: list[float], at_chance: bool) -> None:
    """The 95 % interval of the mean reaches down to the level; it is at least that of counting the pictures."""
    assert is_at_chance(accuracies, 0.1, 10_000) is at_chance


def test_guessing_is_told_from_learning() -> None:
    """Of 400 arms that guess, all are found; of 400 that are right 3 points more often, none."""
    rng = np.random.default_rng(0)
    for share, least, most in ((0.1, 0.99, 1.0), (0.13, 0.0, 0.01)):
        arms = rng.binomial(2000, share, (400, 5)) / 2000
        found = np.mean([is_at_chance(arm.tolist(), 0.1, 2000) for arm in arms])
        assert least <= found <= most
