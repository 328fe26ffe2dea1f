"""Claims about the verdict: its numbers are those of the confirmation, and its words are what they allow."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from records import compared, fresh, record, study, trial
from scipy import stats

from kdsweep.analysis import verdict, verdict_words
from kdsweep.analysis.sorted_runs import Readings, compare
from kdsweep.analysis.statistics import SeedsNeeded, detectable_difference, expected_winners_curse
from kdsweep.analysis.verdict import Verdict, judge
from kdsweep.analysis.verdict_words import headline, sentence
from kdsweep.tracking.run_records import STUDENTS, RunRecord

BASE = (0.900, 0.903, 0.899, 0.902, 0.901)
NOISE = (0.0002, -0.0003, 0.0001, 0.0004, -0.0001)


def shifted(by: float, noise: float = 1.0) -> list[float]:
    """Accuracies that are higher than `BASE` by about so much."""
    return [base + by + noise * extra for base, extra in zip(BASE, NOISE, strict=True)]


def counted(pictures: int, *runs: RunRecord) -> Verdict:
    """The verdict on these runs, whose confirmation was counted on so many test pictures."""
    bins = [{"count": pictures, "confidence": 0.9, "accuracy": 0.9}]
    told = Readings(bins={run.id: bins for run in runs if run.stage == "confirmation"})
    return judge(compare(study(trial(0, 0.5, 4), *runs), told))


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
    assert found.difference.p == pytest.approx(stats.ttest_rel(shifted(0.01)[:4], BASE[1:]).pvalue, rel=1e-3)
    assert found.firsts == tuple(shifted(0.01)[:4])


def test_baselines_and_trials_are_never_compared() -> None:
    """Test accuracies of runs that chose something give no verdict, however many there are."""
    runs = [record("scratch", params={"seed": s}) for s in range(5)] + [trial(s, 0.5, 4, seed=s) for s in range(5)]
    assert judge(compared(*runs)).comparisons == ()


def test_the_control_with_the_setting_of_another_choice_is_not_compared() -> None:
    """A study that went on to another choice has runs of both."""
    runs = [trial(0, 0.5, 4, val=0.8), trial(1, 0.6, 5), *fresh("distill", BASE, trial=1)]
    runs += [*fresh("shuffled", shifted(-0.2), trial=1), *fresh("shuffled", shifted(-0.1), trial=0)]
    (found,) = judge(compared(*runs, chosen=1)).comparisons
    assert found.seconds == tuple(shifted(-0.2))


def test_the_same_runs_under_two_names_are_one_arm() -> None:
    """With alpha = 0, distill is scratch: it says nothing more about the noise."""
    runs = [trial(0, 0, 4), *fresh("scratch", BASE), *fresh("label_smoothing", shifted(0.01, 3.0))]
    assert judge(compared(*runs, *fresh("distill", BASE))).pair_noise == judge(compared(*runs)).pair_noise


def test_a_noisy_shuffled_control_leaves_the_other_comparisons_alone() -> None:
    """It is one comparison more for Holm's correction; its noise, ten times the others', is its own."""
    runs = [trial(0, 0.5, 4), *fresh("scratch", BASE), *fresh("distill", shifted(0.01))]
    without = judge(compared(*runs))
    with_it = judge(compared(*runs, *fresh("shuffled", shifted(-0.1, 30.0))))
    assert [(c.first, c.second) for c in with_it.comparisons] == [("distill", "scratch"), ("distill", "shuffled")]
    assert with_it.comparisons[0].difference == without.comparisons[0].difference
    assert with_it.pair_noise == without.pair_noise
    assert with_it.comparisons[1].pooled is None


def test_p_values_are_adjusted_for_the_comparisons_made() -> None:
    """Two comparisons aren't corrected for a third; with all three, the smallest p is tripled."""
    (one,) = judged(0.001).comparisons
    assert one.adjusted_p == one.difference.p
    three = judged(0.001, 0.0).comparisons
    assert [(c.first, c.second) for c in three] == list(verdict.PAIRS[:3])
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
    assert headline(one).startswith("No verdict: one pair of runs says nothing about the noise over seeds; three are")
    assert sentence(one.comparisons[0], 1).startswith("distill - scratch: +9.00 points on test, without a verdict: one")


def test_no_verdict_from_two_pairs() -> None:
    """However large and alike the two differences are: with a small test split that is luck in one of ten studies."""
    found = counted(200, *fresh("scratch", [0.9, 0.905]), *fresh("distill", [0.95, 0.955]))
    assert headline(found).startswith("No verdict: two pairs of runs say too little")
    assert "sweep.confirm_seeds=3" in headline(found)
    assert found.comparisons[0].outcome == "unknown"
    assert found.comparisons[0].seeds_needed is None


# Counted accuracies


@pytest.mark.parametrize("gain", [0, 0.005])
def test_equal_pairs_are_no_certainty(gain: float) -> None:
    """Five pairs that differ by the same are one picture of 200 apart from others; p isn't 0, nor the bound."""
    found = counted(200, *fresh("scratch", [0.9] * 5), *fresh("distill", [0.9 + gain] * 5))
    (same,) = found.comparisons
    assert same.outcome == "not distinguishable"
    assert same.difference.low < gain < same.difference.high
    assert same.bound > gain + 0.001
    assert "not more than 0.00 points apart" not in headline(found)
    assert found.noise is not None
    assert 0 < found.noise.low < found.noise.high


def test_the_steps_of_validation_count_too() -> None:
    """The winner's curse of equal fresh scores has an interval, if the size of the validation split is known."""
    runs = [trial(0, 0.5, 4, val=0.95), *fresh("scratch", [0.9] * 3), *fresh("distill", [0.9] * 3)]
    sized = record("teacher", params={"data.val_size": 500})
    unknown, known = (judge(compared(*runs, *more)).curse for more in ([], [sized]))
    assert unknown is not None
    assert known is not None
    assert math.isnan(unknown.low)
    assert known.low < 0.05 < known.high


def test_pairs_that_are_equal_on_an_unknown_split_say_nothing() -> None:
    """A record without reliability diagrams doesn't tell the number of test pictures."""
    found = judge(compared(trial(0, 0.5, 4), *fresh("scratch", [0.9] * 5), *fresh("distill", [0.91] * 5)))
    assert "No verdict: all pairs differ by the same" in headline(found)
    assert found.noise is None


# Runs that dominate


def test_a_collapsed_seed_is_named_and_kept() -> None:
    """Its run is named in each comparison that it is in, with what that would be without it; the verdict keeps it."""
    scratch = [0.900, 0.903, 0.100, 0.902, 0.901]
    runs = [*fresh("scratch", scratch), *fresh("distill", shifted(0.01)), *fresh("label_smoothing", shifted(0, -1))]
    found = counted(1000, *runs)
    first, second, third = found.comparisons
    assert first.difference.mean == pytest.approx(0.1699, abs=0.001)
    assert first.outcome == "not distinguishable"
    assert (
        [(run.arm, run.seed) for run in first.outliers]
        == [("scratch", 1002)]
        == [(run.arm, run.seed) for run in third.outliers]
    )
    assert first.without is not None
    assert (first.without.outcome, first.without.difference.n) == ("better", 4)
    assert (second.outliers, second.outcome) == ((), "better")
    assert "One run dominates that: scratch with seed 1002." in headline(found)
    told = sentence(first, 3)
    assert "scratch with seed 1002 (10.00% on test, its arm's other seeds 90.15% in the middle)" in told
    assert "Without it the verdict would be: better, +1.0" in told
    assert "it is counted" in told
    assert sum("Runs that collapse cost power" in words for words in verdict_words.words(found)) == 1
    assert not any("collapse" in words for words in verdict_words.words(judged(0.01, 0.0)))


def test_a_collapsed_seed_doesnt_blur_the_other_arms() -> None:
    """The comparison that it isn't in has the noise of its own pairs and of the other seeds."""
    runs = [*fresh("distill", shifted(0.01)), *fresh("label_smoothing", shifted(0, -1))]
    clear, blurred = (
        counted(1000, *runs, *fresh("scratch", [*BASE[:4], last])).of("distill", "label_smoothing")
        for last in (BASE[4], 0.1)
    )
    assert clear is not None
    assert blurred is not None
    assert blurred.difference.noise < 2 * clear.difference.noise


def test_a_collapsed_seed_of_three_leaves_too_few() -> None:
    """It is named, and without it there would be no verdict."""
    found = counted(1000, *fresh("scratch", [0.9, 0.903, 0.1]), *fresh("distill", [0.91, 0.914, 0.909]))
    assert "Without it: +1.05 points in 2 pairs, too few for a verdict." in sentence(found.comparisons[0], 1)


def test_a_seed_that_collapses_in_both_arms_dominates_nothing() -> None:
    """The difference of the pair is like the others."""
    scratch, distill = [*BASE[:4], 0.1], [*shifted(0.01)[:4], 0.11]
    assert counted(1000, *fresh("scratch", scratch), *fresh("distill", distill)).comparisons[0].outliers == ()


def test_a_clear_difference_is_told_with_its_evidence() -> None:
    """It has size, interval, number of pairs and p; the interval of "worse by" is turned round."""
    (better,) = judged(0.01).comparisons
    assert sentence(better, 1) == (
        "distill is better than scratch by 1.01 points on test (95% interval 0.97 to 1.04, 5 pairs, adjusted p <0.001)."
    )
    (worse,) = judged(-0.01).comparisons
    assert sentence(worse, 1).startswith(
        "distill is worse than scratch by 0.99 points on test (95% interval 0.96 to 1.03"
    )


def test_no_difference_is_told_with_what_it_would_take() -> None:
    """It has an interval with signs, the bound, what these seeds can see, and the seeds for such a difference."""
    (same,) = judged(0.0, noise=5).comparisons
    told = sentence(same, 1)
    assert "distill and scratch are not distinguishable on test: +0.03 points (95% interval -0.14 to +0.20" in told
    assert f"not more than {100 * same.bound:.2f} points apart" in told
    assert f"To see one as small as this takes {same.seeds_needed} seeds an arm (the noise's 95% interval)." in told


def test_what_the_seeds_can_see_is_told_once() -> None:
    """All comparisons share the noise, so the difference that it lets these pairs see is one."""
    found = judged(0.0, 0.0, noise=5)
    same = found.comparisons[0]
    assert same.pooled is not None
    assert same.detectable == detectable_difference(5, same.pooled.sd, 0.8, 0.05 / 3)
    told = f"With a probability of 80%, 5 pairs see a difference from {100 * same.detectable:.2f} points up."
    assert list(verdict_words.words(found)).count(told) == 1


def test_what_the_correction_took_is_told() -> None:
    """Its p is below 0.05 alone, but not as one of three."""
    (found,) = judged(0.0).comparisons
    close = dataclasses.replace(found, difference=dataclasses.replace(found.difference, p=0.03), adjusted_p=0.09)
    assert "Alone it would pass (p 0.030), but not as one of 3 comparisons." in sentence(close, 3)


def test_nobody_is_told_a_number_of_seeds_that_nobody_trains() -> None:
    """Beyond a thousand it says "more than 1,000"."""
    assert str(SeedsNeeded(87, 41, 290)) == "41 to 290"
    assert str(SeedsNeeded(900, 400, None)) == "400 to more than 1,000"
    assert str(SeedsNeeded(None, None, None)) == "more than 1,000"


def test_seeds_are_planned_from_the_noise_of_all_arms() -> None:
    """Two pairs of arms that happen to be alike don't promise a verdict with a few seeds."""
    alike, noisy = shifted(0), [0.897, 0.905, 0.901, 0.899, 0.905]
    runs = [*fresh("scratch", BASE), *fresh("distill", alike), *fresh("label_smoothing", noisy)]
    found = counted(10_000, *runs).comparisons
    assert len({paired.detectable for paired in found}) == 1
    assert (found[0].detectable or 0) > 0.001


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "<0.001"), (0.003, "0.003"), (0.041, "0.041"), (0.21, "0.21"), (1.0, "1")]
)
def test_p_is_printed_with_its_zero(p: float, text: str) -> None:
    """A small p has three digits, a larger one has two."""
    assert verdict_words.shown_p(p) == text


def test_the_curse_is_told_beside_what_noise_alone_does() -> None:
    """The sentence has the promise, the fresh mean, and the expectation for so many equal trials."""
    found = compared(trial(0, 0.1, 1), trial(1, 0.5, 4, val=0.95), *fresh("distill", [0.5, 0.6], val=0.9))
    told = dataclasses.replace(judge(found), expected_curse=0.004)
    (words,) = verdict_words.curse_words(told, found)
    assert words.startswith(
        "The search overstated its choice by 5.00 points (validation accuracy %: 95.00 in the search"
    )
    assert words.endswith("By seed noise alone the best of 2 equal settings overstates by 0.40 points.")


def searched(seeds: list[int], rng: np.random.Generator) -> Verdict:
    """A study of equal settings whose runs have a noise of 1 point, of which their seed makes 0.8 of the variance."""
    common = {seed: rng.normal(0, math.sqrt(0.8)) for seed in {*range(3), *seeds, *range(1000, 1010)}}

    def score(seed: int) -> float:
        return float(0.9 + 0.01 * (common[seed] + rng.normal(0, math.sqrt(0.2))))

    runs = [trial(k, 0.01 * k, 4, val=score(seed), seed=seed) for k, seed in enumerate(seeds)]
    for arm in ("scratch", "label_smoothing"):
        runs += [record(arm, val=score(s), test=None, stage="baseline", params={"seed": s}) for s in range(3)]
    for arm in STUDENTS:
        for seed in range(1000, 1010):
            runs += fresh(arm, [0.9], val=score(seed), start=seed)
    return judge(compared(*runs))


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "noise"), [([0] * 12, math.sqrt(0.2)), (list(range(12)), 1.0)])
def test_what_is_expected_of_luck_is_what_luck_gives(seeds: list[int], noise: float) -> None:
    """If all trials share a seed, only the noise that it doesn't give to all alike lifts the best above the others."""
    rng = np.random.default_rng(0)
    found = [searched(seeds, rng) for _ in range(16)]
    expected = np.mean([verdict.expected_curse or 0 for verdict in found])
    assert expected == pytest.approx(0.01 * expected_winners_curse(noise, 12), rel=0.1)
    overstated = [verdict.curse.mean for verdict in found if verdict.curse is not None]
    assert np.mean(overstated) == pytest.approx(expected, abs=3 * float(np.std(overstated)) / 4)
    assert {verdict.shared_seed for verdict in found} == {0 if len(set(seeds)) == 1 else None}


def test_luck_that_cannot_be_measured_is_not_told() -> None:
    """If all trials have one seed and a single arm was repeated, nobody knows what that seed does to all alike."""
    scratch = [record("scratch", val=0.9 + 0.01 * s, stage="baseline", params={"seed": s}) for s in range(3)]
    shared, fresh_seeds = (
        judge(compared(trial(0, 0.1, 1, seed=0), trial(1, 0.5, 4, seed=seed), *scratch)).expected_curse
        for seed in (0, 1)
    )
    assert shared is None
    assert fresh_seeds == pytest.approx(expected_winners_curse(0.01, 2))


def test_a_shared_seed_is_told_beside_the_expectation() -> None:
    """The sentence says what is left out, and for seeds of their own it says nothing."""
    runs = [trial(0, 0.1, 1, seed=0), trial(1, 0.5, 4, val=0.95, seed=0), *fresh("distill", [0.5, 0.6], val=0.9)]
    found = compared(*runs)
    told = dataclasses.replace(judge(found), expected_curse=0.004, shared_seed=0)
    (words,) = verdict_words.curse_words(told, found)
    assert words.endswith(
        "overstates by 0.40 points: all trials have seed 0, so what that seed does to all settings alike, up or down, "
        "is left out."
    )


def test_the_luck_of_a_mean_is_smaller() -> None:
    """Of four runs it is half as large; where some settings have more runs than others, it isn't told."""
    scratch = [record("scratch", val=0.9 + 0.01 * s, stage="baseline", params={"seed": s}) for s in range(3)]
    planned = {"n_trials": 8, "replicates": 4, "race": 0, "repeats": True}
    # Runs of each setting that vary as those of scratch do.
    offsets = [0.0, 0.01 * math.sqrt(1.5), 0.0, 0.01 * math.sqrt(1.5)]
    runs = [trial(k, 0.1 * (k % 2), 4, val=0.9 + offsets[k // 2], seed=10 + k) for k in range(8)]
    found = judge(compared(*scratch, *runs, planned=planned))
    assert found.validation_noise is not None
    assert found.expected_curse == pytest.approx(expected_winners_curse(found.validation_noise.sd / 2, 2))
    assert judge(compared(*scratch, *runs[:7], planned=planned)).expected_curse is None
