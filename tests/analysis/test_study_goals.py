"""Claims about what is read from a parent run's tags, and what holds if a tag is missing."""

from __future__ import annotations

import json

from kdsweep.analysis.study_goals import Dimension, Goals, Objective, setting


def test_a_study_without_tags_maximises_validation_accuracy() -> None:
    """A plain grid, or a study of an older version, has no space, no plan, and the default objective."""
    assert Goals.read({}) == Goals((), (Objective("val/accuracy", True),), None, None, None, None)


def test_tags_are_read() -> None:
    """They hold the space with limits or choices, the objectives with directions, the choice, the plan, the looks."""
    space = {"loss.tau": {"low": 1, "high": 20, "log": True}, "model.name": {"choices": ["a", 2]}}
    tags = {
        "kdsweep.space": json.dumps(space),
        "kdsweep.objectives": json.dumps([["val/nll", "minimize"], ["val/accuracy", "maximize"]]),
        "kdsweep.chosen": "0",
        "kdsweep.planned": json.dumps({"n_trials": 30, "confirm_seeds": 0}),
        "kdsweep.looks": json.dumps([[0, 5], [3, 5]]),
    }
    goals = Goals.read(tags)
    assert goals.space == (Dimension("loss.tau", 1.0, 20.0, True), Dimension("model.name", choices=("a", "2")))
    assert goals.objectives == (Objective("val/nll", False), Objective("val/accuracy", True))
    assert (goals.chosen, goals.n_trials, goals.baseline_seeds, goals.confirm_seeds) == (0, 30, None, 0)
    assert goals.looks == ((0, 5), (3, 5))


def test_objectives_have_names_and_units() -> None:
    """Fractions are printed as per cent, other numbers as they are. If less is better, the sign is -1."""
    accuracy, nll = Objective("val/accuracy"), Objective("val/nll", maximise=False)
    assert (accuracy.heading, accuracy.shown(0.91234), accuracy.sign) == ("validation accuracy %", "91.23", 1)
    assert (nll.heading, nll.shown(0.91234), nll.sign) == ("validation NLL", "0.9123", -1)
    assert Objective("best/val_accuracy").heading == "best validation accuracy %"


def test_settings_are_short() -> None:
    """Alpha and tau lose their group, numbers keep three digits, words stay."""
    params = {"loss.alpha": "0.62512", "optimizer.lr": "0.1", "model.name": "resnet18"}
    assert setting(params) == "alpha 0.625, optimizer.lr 0.1, model.name resnet18"
