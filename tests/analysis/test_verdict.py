"""Claims about the verdict: its numbers are those of the confirmation, and its words are what they allow."""

from __future__ import annotations

import dataclasses
import math

import pytest
from records import compared, fresh, record, trial
from scipy import stats

from kdsweep.analysis import verdict
from kdsweep.analysis.verdict import Verdict, headline, judge, sentence

BASE = (0.900, 0.903, 0.899, 0.902, 0.901)
NOISE = (0.0002, -0.0003, 0.0001, 0.0004, -0.0001)


def shifted(by: float, noise: float = 1.0) -> list[float]:
    """Accuracies that are higher than `BASE` by about so much."""
    return [base + by + noise * extra for base, extra in zip(BASE, NOISE, strict=True)]


def judged(distill: float, smoothing: float | None = None, noise: float = 1.0) -> Verdict:
    """A study with five fresh seeds per arm, in which distilled and smoothed runs differ from scratch by so much."""
    runs = [trial(0, 0.5, 4), *fresh("scratch", BASE), *fresh("distill", shifted(distill, noise))]
    if smoothing is not None:
        runs += fresh("label_smoothing", shifted(smoothing, -noise))
    return judge(compared(*runs))


# Numbers


def test_runs_are_paired_by_seed() -> None:
    """Seeds that only one arm has, and runs in another order, don't disturb the pairs; against scipy's paired test."""
    scratch, distill = fresh("scratch", BASE), fresh("distill", shifted(0.01), start=1001)
    (found,) = judge(compared(trial(0, 0.5, 4), *scratch, *reversed(distill))).comparisons
    assert found.seeds == (1001, 1002, 1003, 1004)
    assert found.difference.p == pytest.approx(stats.ttest_rel(shifted(0.01)[:4], BASE[1:]).pvalue)
    assert found.firsts == tuple(shifted(0.01)[:4])


def test_baselines_and_trials_are_never_compared() -> None:
    """Test accuracies of runs that chose something give no verdict, however many there are."""
    runs = [record("scratch", params={"seed": s}) for s in range(5)] + [trial(s, 0.5, 4, seed=s) for s in range(5)]
    assert judge(compared(*runs)).comparisons == ()


def test_p_values_are_adjusted_for_the_comparisons_made() -> None:
    """Two comparisons aren't corrected for a third; with all three, the smallest p is tripled."""
    (one,) = judged(0.001).comparisons
    assert one.adjusted_p == one.difference.p
    three = judged(0.001, 0.0).comparisons
    assert [(c.first, c.second) for c in three] == list(verdict.PAIRS)
    smallest = min(three, key=lambda c: c.difference.p)
    assert smallest.adjusted_p == pytest.approx(3 * smallest.difference.p)


def test_noise_is_pooled_over_arms() -> None:
    """It pools the baselines and fresh seeds of each arm about the arm's mean; test and validation are separate."""
    runs = [record("scratch", val=val, test=None, params={"seed": s}) for s, val in enumerate((0.5, 0.7))]
    found = judge(compared(*runs, *fresh("scratch", [0.1, 0.3]), *fresh("distill", [0.6, 0.8])))
    assert found.noise is not None
    assert (found.noise.sd, found.noise.degrees) == (pytest.approx(math.sqrt(0.02)), 2)
    assert found.validation_noise is not None
    assert found.validation_noise.degrees == 4  # scratch: four values, distill: two


def test_the_curse_is_search_less_fresh() -> None:
    """The chosen trial promised 95 %, its fresh seeds average 90 % on validation: 5 points too much."""
    found = judge(compared(trial(0, 0.1, 1), trial(1, 0.5, 4, val=0.95), *fresh("distill", [0.5, 0.6], val=0.9)))
    assert found.curse is not None
    assert (found.promised, found.confirmed) == (0.95, pytest.approx(0.9))
    assert found.curse.mean == pytest.approx(0.05)


def test_the_curse_of_a_minimum_is_positive_too() -> None:
    """A search that minimises NLL overstates by promising too little of it."""
    nll = {"val/nll": 0.2}
    chosen = record("distill", metrics=nll, tags={"kdsweep.trial": "0"}, params={"loss.alpha": 1})
    again = record("distill", metrics={"val/nll": 0.5}, stage="confirmation", params={"seed": 1000})
    found = judge(compared(chosen, again, objectives=[["val/nll", "minimize"]]))
    assert found.curse is not None
    assert found.curse.mean == pytest.approx(0.3)


# Words


@pytest.mark.parametrize(
    ("distill", "smoothing", "noise", "words"),
    [
        (
            0.01,
            0.0,
            1,
            ["Distillation is better than scratch, by 1.01 points", "better than label smoothing", "by 1.01"],
        ),
        (0.01, 0.01, 1, ["better than scratch", "but not distinguishable from label smoothing"]),
        (0.01, 0.02, 1, ["better than scratch", "label smoothing, which needs no teacher, is better still, by 0.99"]),
        (0.01, None, 1, ["better than scratch", "against label smoothing, which needs no teacher, nothing is known"]),
        (-0.01, None, 1, ["Distillation is worse than scratch, by 0.99 points", "(95% interval 0.96 to 1.03)"]),
        (-0.01, -0.02, 1, ["worse than scratch", "It is better than label smoothing, by 1.01"]),
        (0.0, None, 5, ["not distinguishable from scratch: +0.03 points", "interval -0.14 to +0.20", "not more than"]),
        (0.0, 0.02, 1, ["not distinguishable from scratch", "It is worse than label smoothing, by 1.99"]),
    ],
)
def test_the_headline_says_what_was_found(
    distill: float, smoothing: float | None, noise: float, words: list[str]
) -> None:
    """It may be better, worse or not distinguishable; each is qualified by label smoothing."""
    told = headline(judged(distill, smoothing, noise))
    assert [word for word in words if word not in told] == []


def test_no_verdict_without_confirmation() -> None:
    """Without pairs, or with one pair, nothing is claimed."""
    assert headline(Verdict()).startswith("No verdict: that takes fresh seeds")
    one = judge(compared(trial(0, 0.5, 4), *fresh("scratch", [0.9]), *fresh("distill", [0.99])))
    assert headline(one) == "No verdict: one pair of runs says nothing about the noise over seeds."
    assert sentence(one.comparisons[0], 1).startswith("distill - scratch: +9.00 points on test in one pair")


def test_a_clear_difference_is_told_with_its_evidence() -> None:
    """It has size, interval, number of pairs and p; the interval of "worse by" is turned round."""
    (better,) = judged(0.01).comparisons
    assert sentence(better, 1) == (
        "distill is better than scratch by 1.01 points on test (95% interval 0.97 to 1.04, 5 pairs, adjusted p <.001)."
    )
    (worse,) = judged(-0.01).comparisons
    assert sentence(worse, 1).startswith(
        "distill is worse than scratch by 0.99 points on test (95% interval 0.96 to 1.03"
    )


def test_no_difference_is_told_with_what_it_would_take() -> None:
    """It has an interval with signs, the bound, and the seeds needed for a tenth of a point."""
    (same,) = judged(0.0, noise=5).comparisons
    told = sentence(same, 1)
    assert "distill and scratch are not distinguishable on test: +0.03 points (95% interval -0.14 to +0.20" in told
    assert f"not more than {100 * same.bound:.2f} points apart" in told
    assert f"would take {same.seeds_needed} seeds an arm (now 5)" in told


def test_what_the_correction_took_is_told() -> None:
    """Its p is below 0.05 alone, but not as one of three."""
    (found,) = judged(0.0).comparisons
    close = dataclasses.replace(found, difference=dataclasses.replace(found.difference, p=0.03), adjusted_p=0.09)
    assert "Alone it would pass (p .030), but not as one of 3 comparisons." in sentence(close, 3)


def test_the_bootstrap_may_disagree_aloud() -> None:
    """If its interval holds 0, the report says so."""
    (found,) = judged(0.01).comparisons
    wide = dataclasses.replace(found.difference, bootstrap_low=-0.001, bootstrap_high=0.02)
    assert "bootstrap's interval, -0.10 to +2.00, holds 0" in sentence(dataclasses.replace(found, difference=wide), 1)
    assert "bootstrap" not in sentence(found, 1)


@pytest.mark.parametrize(("p", "text"), [(0.0, "<.001"), (0.003, ".003"), (0.041, ".041"), (0.21, ".21"), (1.0, "1")])
def test_p_is_printed_as_in_papers(p: float, text: str) -> None:
    """A small p has three digits; there is no zero in front."""
    assert verdict.shown_p(p) == text


def test_the_curse_is_told_beside_what_noise_alone_does() -> None:
    """The sentence has the promise, the fresh mean, and the expectation for so many equal trials."""
    found = compared(trial(0, 0.1, 1), trial(1, 0.5, 4, val=0.95), *fresh("distill", [0.5, 0.6], val=0.9))
    told = dataclasses.replace(judge(found), expected_curse=0.004)
    (words,) = verdict.curse_words(told, found)
    assert words.startswith(
        "The search overstated its choice by 5.00 points (validation accuracy %: 95.00 in the search"
    )
    assert words.endswith("By seed noise alone the best of 2 equal settings overstates by 0.40 points.")
