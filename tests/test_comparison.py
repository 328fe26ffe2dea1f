"""What is concluded from runs: arms and their spread, the choice of a trial, and sentences with the right sign."""

from __future__ import annotations

import math

import pytest
from records import record, summary, trial

from kdsweep.comparison import Spread
from kdsweep.records import RunRecord


def about(text: str, *runs: RunRecord) -> str:
    """The one finding in which `text` stands."""
    (found,) = [sentence for sentence in summary(*runs).findings if text in sentence]
    return found


# Arms and their spread


def test_an_arm_is_mean_and_sample_deviation() -> None:
    """Two scratch runs at 90 and 92 %: mean 91, standard deviation sqrt(2) points; one run has none."""
    (scratch,) = summary(record("scratch", val=0.90), record("scratch", val=0.92)).arms
    assert scratch.metrics["val/accuracy"] == Spread(pytest.approx(0.91), pytest.approx(0.01 * math.sqrt(2)), 2)
    (one,) = summary(record("scratch")).arms
    assert math.isnan(one.metrics["val/accuracy"].sd)


def test_only_finished_runs_count() -> None:
    """Failed, killed and running runs are not in the table, and neither are confirmations among the trials."""
    others = [record("scratch", val=0, status=status) for status in ("FAILED", "KILLED", "RUNNING")]
    confirmation = record("distill", val=1, stage="confirmation")
    found = summary(record("scratch"), *others, confirmation)
    assert [(arm.role, len(arm.runs)) for arm in found.arms] == [("scratch", 1)]
    assert found.trials == ()


def test_epochs_to_target_is_the_first_epoch_there() -> None:
    """The target is 95 % of scratch's final mean; the first epoch counts, whatever comes after it."""
    found = summary(record("scratch", val=0.8), trial(0, 0.5, 4), curves={0: [0.7, 0.75, 0.77, 0.8], 1: [0.77, 0.6]})
    assert found.target == pytest.approx(0.76)
    assert [arm.metrics["epochs_to_target"].mean for arm in found.arms] == [3, 1]


# Trials


def test_the_best_trial_is_the_best_on_validation() -> None:
    """A trial that is better on test alone is not chosen."""
    found = summary(trial(0, 0.1, 1, val=0.90, test=0.99), trial(1, 0.7, 4, val=0.95, test=0.90))
    assert [t.number for t in found.trials] == [1, 0]
    assert found.arms[0].metrics["test/accuracy"].mean == 0.90


def test_the_choice_is_named_with_its_luck() -> None:
    """The sentence has number, alpha, tau, the number of trials, and what that does to the result."""
    chosen = about("distill is", trial(0, 0.1, 1), trial(7, 0.625, 4, val=0.95))
    assert chosen == (
        "distill is trial 7 (alpha 0.625, tau 4), best of 2 trials on validation, one run: includes the luck of the "
        "search."
    )


def test_ties_go_to_the_earlier_trial_and_are_told() -> None:
    """With few validation pictures several trials share the best accuracy."""
    runs = [trial(number, 0.1 * number, 2) for number in (5, 3, 4)]
    assert [t.number for t in summary(*runs).trials] == [3, 4, 5]
    assert "3 trials share this validation accuracy" in about("distill is", *runs)


def test_one_setting_was_not_chosen() -> None:
    """Where there was no choice there was no luck."""
    assert "the only setting tried" in about("distill is", trial(0, 0.5, 4))


def test_seeds_of_one_setting_are_one_trial() -> None:
    """A plain multirun over seeds and alpha: settings are ranked by their mean over seeds."""
    runs = [trial(0, alpha, 4, val=val, seed=seed) for alpha, seed, val in
            [(0.1, 0, 0.99), (0.1, 1, 0.81), (0.5, 0, 0.92), (0.5, 1, 0.94)]]  # fmt: skip
    found = summary(*runs)
    assert [(t.params["loss.alpha"], len(t.runs)) for t in found.trials] == [("0.5", 2), ("0.1", 2)]
    assert found.arms[0].metrics["val/accuracy"].mean == pytest.approx(0.93)


def test_another_searched_key_is_shown() -> None:
    """A search over the learning rate, too, names it in the trials."""
    runs = (trial(0, 0.5, 4, **{"optimizer.lr": 0.1}), trial(1, 0.5, 4, **{"optimizer.lr": 0.2}))
    assert "optimizer.lr 0.1" in about("distill is", *runs)


# The sentence about the difference


@pytest.mark.parametrize(
    ("distilled", "words"),
    [
        (0.93, "is 2.00 points more accurate than scratch (91.00%, mean of 2 runs)"),
        (0.90, "is 1.00 points less accurate than scratch (91.00%, mean of 2 runs)"),
        (0.91, "is as accurate as scratch (91.00%, mean of 2 runs)"),
        (0.91004, "is as accurate as scratch"),  # 0.004 points print as 0.00
    ],
)
def test_the_difference_has_its_sign(distilled: float, words: str) -> None:
    """Better, worse and equal are told apart, on test."""
    scratch = record("scratch", test=0.90), record("scratch", test=0.92)
    assert words in about("On test", *scratch, trial(0, 0.5, 4, test=distilled))


def test_the_difference_stands_beside_the_noise() -> None:
    """The deviation over scratch's seeds, the difference in units of it, and no claim."""
    scratch = record("scratch", test=0.90), record("scratch", test=0.92)
    sentence = about("On test", *scratch, trial(0, 0.5, 4, test=0.93))
    assert "is 1.41 points, the difference 1.4 times that; no significance is claimed" in sentence


def test_equal_seeds_divide_by_nothing() -> None:
    """Scratch runs that agree to the last digit: a deviation of 0.00 points, and no ratio to it."""
    sentence = about("On test", record("scratch"), record("scratch"), trial(0, 0.5, 4, test=0.95))
    assert "over its seeds is 0.00 points; no significance" in sentence


def test_one_scratch_run_has_unknown_noise() -> None:
    """The difference to a single run is printed, and said to say nothing yet."""
    sentence = about("On test", record("scratch", test=0.9), trial(0, 0.5, 4, test=0.95))
    assert "5.00 points more accurate than scratch (90.00%, one run)" in sentence
    assert "noise over seeds is unknown" in sentence


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (0.99, "99.00%, above scratch and above distill."),
        (0.94, "94.00%, above scratch and below distill."),
        (0.95, "95.00%, above scratch and equal to distill."),
        (0.80, "80.00%, below scratch and below distill. From a weaker teacher"),
    ],
)
def test_the_teacher_is_placed_among_its_students(teacher: float, words: str) -> None:
    """A teacher that is weaker than scratch is said to be, and only then the control is recalled."""
    runs = (record("teacher", test=teacher), record("scratch", test=0.9), trial(0, 0.5, 4, test=0.95))
    sentence = about("The teacher's", *runs)
    assert words in sentence
    assert ("From a weaker teacher" in sentence) == (teacher == 0.80)


def test_label_smoothing_is_compared_with_scratch() -> None:
    """The control that needs no teacher has its own difference."""
    sentence = about("Label smoothing", record("scratch", test=0.9), record("label_smoothing", test=0.912))
    assert "is 1.20 points more accurate than scratch" in sentence


def test_a_mean_over_different_settings_is_told() -> None:
    """Scratch runs that differ in more than their seeds are no repetitions; the seed alone is fine."""
    fractions = [record("scratch", params={"data.train_fraction": f, "seed": i}) for i, f in enumerate((0.1, 1.0))]
    assert "The scratch runs differ in data.train_fraction" in about("mixes", *fractions)
    assert summary(record("scratch", params={"seed": 0}), record("scratch", params={"seed": 1})).findings == ()


def test_an_unfair_comparison_is_told() -> None:
    """Arms that were trained for different times are compared, and the reader is told."""
    runs = (record("scratch", params={"epochs": 10}), trial(0, 0.5, 4, epochs=30))
    assert about("distill and scratch differ in epochs", *runs)


# What is missing


def test_baselines_without_trials() -> None:
    """The baselines are shown while the search has not begun."""
    found = summary(record("teacher"), record("scratch"))
    assert [arm.role for arm in found.arms] == ["teacher", "scratch"]
    assert "no finished distilled run" in found.missing[0]
