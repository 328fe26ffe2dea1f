"""Claims about the findings on the search space: limits, parameters that are words, spread against noise, plateau."""

from __future__ import annotations

import json

import numpy as np
import pytest
from records import SPACE, compared, record, trial

from kdsweep.analysis.landscape import Landscape, axes, survey, words
from kdsweep.analysis.plateau import Importance, Plateau, Space
from kdsweep.analysis.sorted_runs import Comparison
from kdsweep.analysis.statistics import NoiseFloor
from kdsweep.analysis.study_goals import Objective

ACCURACY = Objective("val/accuracy")
AREA = Space(("loss.alpha", "loss.tau"), (0, 1), (1, 20), (False, True))


def hill(n: int, **tags: object) -> Comparison:
    """Trials on a hill with its top at alpha 0.6, tau 4, and with a noise of a tenth of a point."""
    random = np.random.default_rng(0)
    runs = []
    for number in range(n):
        alpha, log_tau = random.uniform(0, 1), random.uniform(0, 3)
        value = 0.95 - 0.2 * (alpha - 0.6) ** 2 - 0.01 * (log_tau - np.log(4)) ** 2 + random.normal(0, 0.001)
        runs.append(trial(number, alpha, float(np.exp(log_tau)), val=value))
    return compared(*runs, **tags)


def told(landscape: Landscape, noise: NoiseFloor | None = None) -> str:
    return " ".join(words(landscape, ACCURACY, noise))


def region(**changes: object) -> Landscape:
    """A landscape with this plateau."""
    given: dict[str, object] = {
        "best": (0.5, 4.0), "mean": 0.95, "sd": 0.001, "noise_sd": 0.002, "limits": ((0.2, 0.7), (3.0, 20.0)),
        "share": 0.41, "fill": 0.9, "n": 12, "trusted": True, "reason": "", **changes,
    }  # fmt: skip
    return Landscape(AREA, True, n=12, plateau=Plateau(**given))  # type: ignore[arg-type]


def test_no_trials_no_landscape() -> None:
    """Nothing is fitted, and nothing is reported."""
    assert survey(compared(record("scratch")), None) == Landscape()
    assert told(Landscape()) == ""


@pytest.mark.slow  # the first test to import scikit-learn
def test_the_plateau_holds_the_top_of_the_hill() -> None:
    """There are many trials with little noise, over the declared space."""
    found = survey(hill(30, space=SPACE), None)
    assert found.declared
    assert found.plateau is not None
    (alpha_low, alpha_high), (tau_low, tau_high) = found.plateau.limits
    assert alpha_low < 0.6 < alpha_high
    assert tau_low < 4 < tau_high
    assert found.surface is not None
    assert found.importances.keys() == {"loss.alpha", "loss.tau"}


def test_less_is_better_is_turned_round() -> None:
    """The fit maximises, so a metric that is to be minimised is negated."""
    runs = [trial(n, 0.1 * n, 2 + n, val=0.5 + 0.01 * n) for n in range(4)]
    found = survey(compared(*runs, objectives=[["val/accuracy", "minimize"]]), None)
    assert found.spread == survey(compared(*runs), None).spread
    assert found.plateau is None  # four trials
    assert "takes at least 5 trials; there are 4" in told(found)


def test_without_declared_limits_the_tried_range_counts() -> None:
    """Tau is seen logarithmically; a parameter that never changed is no dimension."""
    found = survey(compared(trial(0, 0.5, 2), trial(1, 0.5, 8, val=0.8)), None)
    assert found.space == Space(("loss.tau",), (2.0,), (8.0,), (True,))
    assert not found.declared


def test_words_are_held_fixed() -> None:
    """If the search varies the model as well, only trials of the chosen model are fitted, and the text says so."""
    space = {**SPACE, "model.name": {"choices": ["a", "b"]}}
    runs = [trial(n, 0.1 * n, 2 + n, val=0.8 + 0.01 * n, **{"model.name": "ab"[n % 2]}) for n in range(8)]
    found = survey(compared(*runs, space=space), None)
    assert (found.fixed, found.n) == ({"model.name": "b"}, 4)
    assert found.space is not None
    assert found.space.names == ("loss.alpha", "loss.tau")


def test_equal_trials_have_no_surface() -> None:
    """There is nothing to fit, and the reason is reported."""
    found = survey(compared(*(trial(n, 0.1 * n, 2 + n) for n in range(6))), None)
    assert found.plateau is None
    assert told(found) == "All 6 trials have the same validation accuracy: no setting stands out."


def test_figures_are_over_alpha_and_tau_where_both_are_searched() -> None:
    """Without them, the axes are the first two parameters."""
    more = Space(("a", "loss.alpha", "loss.tau"), (0, 0, 1), (1, 1, 2), (False, False, True))
    assert axes(more) == ("loss.alpha", "loss.tau")
    assert axes(Space(("a", "b"), (0, 0), (1, 1), (False, False))) == ("a", "b")


@pytest.mark.parametrize(
    ("spread", "words_of_it"),
    [(0.001, "no more than seeds do"), (0.0025, "may be luck"), (0.01, "the settings do matter")],
)
def test_the_spread_is_held_against_the_noise(spread: float, words_of_it: str) -> None:
    """The spread may lie below the noise, within its interval, or above it."""
    assert words_of_it in told(Landscape(n=8, spread=spread), NoiseFloor(0.002, 0.0015, 0.003, 9, 6))


def test_a_plateau_is_told_by_its_limits() -> None:
    """It names the box, its share of the space, and the number of trials; and it says so if the box isn't full."""
    assert told(region()) == (
        "Not ruled out: alpha 0.2 to 0.7 and tau 3 to 20, 41% of the space. 12 trials rule out the rest: it is worse "
        "than the best by more than a run's noise."
    )
    assert "(not all of it: 50% of that box)" in told(region(fill=0.5))


def test_a_plateau_that_is_everything_or_nothing_is_told_so() -> None:
    """One covers the whole space; the other isn't determined by the trials."""
    assert told(region(share=0.97)).startswith("No region stands out: 12 trials rule out next to nothing of the space")
    assert told(region(trusted=False, reason="noise")) == "Which settings are good can't be told: noise."


def test_importances_need_a_trusted_surface() -> None:
    """Without a trusted surface, its shares mean nothing."""
    from dataclasses import replace

    shares = {"loss.alpha": Importance(0.1, 0.2, 0.1, 0.3), "loss.tau": Importance(0.7, 0.8, 0.7, 0.9)}
    text = told(replace(region(), importances=shares))
    assert "when a tenth of the trials is left out): tau 80% (70% to 90%), alpha 20% (10% to 30%); alone: tau" in text
    assert "don't tell" not in text
    shares["loss.alpha"] = Importance(0.1, 0.2, 0.1, 0.75)
    text = told(replace(region(), n=6, importances=shares))
    assert "when one trial is left out)" in text
    assert "Which of them matters most 6 trials don't tell." in text
    assert "Sobol" not in told(replace(region(trusted=False, reason="noise"), importances=shares))


def test_options_of_a_group_are_compared_by_their_means() -> None:
    """The surface is that of the chosen option, and says so; the other options stand beside it with their means."""
    runs = []
    for number in range(12):
        option = ("sgd", "adamw", "adamw")[number % 3]
        value = 0.9 + 0.01 * (option == "adamw") + 0.001 * number
        tags = {"kdsweep.trial": str(number), "kdsweep.options": json.dumps({"optimizer": option})}
        params = {"loss.alpha": number / 12, "loss.tau": 4}
        runs.append(record("distill", val=value, params=params, tags=tags))
    space = {"optimizer": {"choices": ["sgd", "adamw"]}, "loss.alpha": SPACE["loss.alpha"]}
    found = survey(compared(*runs, space=space), None)
    assert (found.fixed, found.n) == ({"optimizer": "adamw"}, 8)
    assert list(found.by_word["optimizer"]) == ["adamw", "sgd"]
    assert told(found).endswith(
        "Mean validation accuracy % by optimizer: adamw 91.60 (8 trials), sgd 90.45 (4 trials)."
    )
