"""Claims about the sentences of a report: the choice of a trial, first differences, the teacher, what is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from records import fresh, readings, record, study, summary, trial

from kdsweep.analysis.findings import summarise
from kdsweep.tracking.run_records import RESTORED, RunRecord


def about(text: str, *runs: RunRecord, **tags: object) -> str:
    """The one finding that contains `text`."""
    (found,) = [sentence for sentence in summary(*runs, **tags).findings if text in sentence]
    return found


def missing(*runs: RunRecord, **tags: object) -> str:
    return " ".join(summary(*runs, **tags).missing)


# The choice


def test_the_choice_is_named_with_its_luck() -> None:
    """The sentence has number, alpha, tau, the number of trials, and what that does to the result."""
    assert about("distill is trial", trial(0, 0.1, 1), trial(7, 0.625, 4, val=0.95)) == (
        "distill is trial 7 (alpha 0.625, tau 4), best of 2 trials by validation accuracy; one run: includes the luck "
        "of the search."
    )


def test_fresh_seeds_have_no_luck() -> None:
    """A confirmed trial's row holds runs that chose nothing."""
    chosen = about("distill is trial", trial(0, 0.1, 1), trial(7, 0.625, 4, val=0.95), *fresh("distill", [0.9, 0.9]))
    assert chosen.endswith("its row shows 2 fresh seeds, which chose nothing.")


@pytest.mark.parametrize(("seeds", "row"), [(0, "one run: includes the luck"), (2, "its row shows 2 fresh seeds")])
def test_an_earlier_choice_is_shown_as_what_it_is(seeds: int, row: str) -> None:
    """Each number of distill is the chosen setting's: row, pairs and winner's curse; the other choice is named."""
    before = fresh("distill", [0.5, 0.6, 0.7], val=0.5, trial=0, **{"loss.alpha": 0.1, "loss.tau": 1})
    runs = [trial(0, 0.1, 1), trial(5, 0.625, 4, val=0.95), *before]
    runs += [*fresh("scratch", [0.9, 0.91, 0.92]), *fresh("distill", [0.93, 0.94][:seeds], val=0.92, trial=5)]
    found = summary(*runs, chosen=5, planned={"n_trials": 2, "confirm_seeds": 3})
    assert row in about("distill is trial 5", *runs, chosen=5)
    assert "Trial 0 (alpha 0.1, tau 1) has 3 fresh seeds too, 60.00% on test: it is an earlier choice" in about(
        "Trial 0", *runs, chosen=5
    )
    assert [paired.firsts for paired in found.verdict.comparisons] == ([(0.93, 0.94)] if seeds else [])
    assert found.verdict.confirmed == (pytest.approx(0.92) if seeds else None)
    assert f"label smoothing 0, distill {seeds}" in " ".join(found.missing)


def test_ties_are_told() -> None:
    """With few validation pictures several trials share the best accuracy."""
    runs = [trial(number, 0.1 * number, 2) for number in (5, 3, 4)]
    assert "3 trials share this validation accuracy" in about("distill is trial", *runs)


def test_one_setting_was_not_chosen() -> None:
    """Without a choice, there was no luck."""
    assert "the only setting tried" in about("distill is trial", trial(0, 0.5, 4))


def test_another_searched_key_is_shown() -> None:
    """If the search varies the learning rate as well, the trials name it."""
    runs = (trial(0, 0.5, 4, **{"optimizer.lr": 0.1}), trial(1, 0.5, 4, **{"optimizer.lr": 0.2}))
    assert "optimizer.lr 0.1" in about("distill is trial", *runs)


def test_of_several_objectives_the_front_is_told() -> None:
    """The chosen trial is one that no other beats in both."""
    runs = [
        record("distill", val=a, metrics={"val/nll": n}, params={"loss.alpha": i}, tags={"kdsweep.trial": str(i)})
        for i, (a, n) in enumerate([(0.9, 0.5), (0.8, 0.1), (0.7, 0.6)])
    ]
    both = [["val/accuracy", "maximize"], ["val/nll", "minimize"]]
    assert [t.number for t in summary(*runs, objectives=both).front] == [0, 1]
    assert "one of the 2 of 3 trials that no other beats" in about("distill is trial", *runs, objectives=both)
    assert summary(*runs).front == ()


# Without confirmation


@pytest.mark.parametrize(
    ("distilled", "words"),
    [
        (0.93, "is 2.00 points more accurate than scratch (91.00%, mean of 2 runs): no significance is claimed"),
        (0.90, "is 1.00 points less accurate than scratch (91.00%, mean of 2 runs)"),
        (0.91, "is as accurate as scratch (91.00%, mean of 2 runs)"),
        (0.91004, "is as accurate as scratch"),  # 0.004 points print as 0.00
    ],
)
def test_the_first_difference_has_its_sign(distilled: float, words: str) -> None:
    """Better, worse and equal are told apart, and nothing is claimed."""
    scratch = record("scratch", test=0.90), record("scratch", test=0.92)
    assert words in about("On test", *scratch, trial(0, 0.5, 4, test=distilled))


def test_without_test_accuracies_validation_is_compared() -> None:
    """The baselines and trials of a study don't read the test split."""
    runs = record("scratch", val=0.8, test=None), record("label_smoothing", val=0.812, test=None)
    assert "1.20 points more accurate than scratch on validation (one run)" in about("Label smoothing", *runs)


def test_a_verdict_replaces_the_first_difference() -> None:
    """With a confirmation, nothing is concluded from other runs."""
    runs = [trial(0, 0.5, 4), *fresh("scratch", [0.9, 0.91, 0.9]), *fresh("distill", [0.92, 0.925, 0.9])]
    assert not any("no significance" in finding for finding in summary(*runs).findings)
    assert summary(*runs).findings[0].startswith("distill - scratch: 3 pairs, adjusted p")


def test_nothing_is_said_twice() -> None:
    """What the headline says, no finding repeats; without a verdict its reason is given once."""
    clear = [*fresh("scratch", [0.9, 0.91, 0.9]), *fresh("distill", [0.92, 0.93, 0.92])]
    few = [*fresh("scratch", [0.9]), *fresh("distill", [0.92]), *fresh("label_smoothing", [0.91])]
    for runs in (clear, few):
        report = summary(*runs)
        told = " ".join((report.headline, *report.findings))
        for words in ("better than scratch", "points on test (", "says nothing about the noise", "+2.00"):
            assert told.count(words) <= 1


# Looking again


def confirmed_with(n: int, **tags: object) -> str:
    """The findings about a study whose trial 0 has `n` fresh seeds."""
    scratch, distill = ([0.9, 0.905, 0.9, 0.91, 0.9][:n], [0.91, 0.9, 0.9, 0.9, 0.91][:n])
    runs = [trial(0, 0.5, 4), *fresh("scratch", scratch), *fresh("distill", distill, trial=0)]
    return " ".join(summary(*runs, chosen=0, **tags).findings)


def test_looking_again_is_told() -> None:
    """A study that ended with a verdict, was extended and ends with another says that nothing corrects for it."""
    told = confirmed_with(5, looks=[[0, 3], [0, 5]])
    assert "looked at 2 times: with fresh seeds 3 of trial 0, then 5 of trial 0. P values" in told
    assert "don't correct for looking again" in told


def test_looking_while_a_study_is_extended_is_looking() -> None:
    """The seeds that are there so far are another look; so is another choice."""
    assert "3 of trial 0, then 4 of trial 0" in confirmed_with(4, looks=[[0, 3]])
    assert "5 of trial 2, then 5 of trial 0" in confirmed_with(5, looks=[[2, 5]])


def test_an_earlier_choice_was_a_look() -> None:
    """A study that an older version extended has no record of its looks, but the runs of both choices."""
    runs = [trial(0, 0.5, 4), trial(1, 0.6, 4, val=0.95), *fresh("scratch", [0.9, 0.905, 0.91])]
    runs += [*fresh("distill", [0.9, 0.91, 0.9], trial=0), *fresh("distill", [0.9, 0.91, 0.93], trial=1)]
    assert "3 of trial 0, then 3 of trial 1" in about("looked at", *runs, chosen=1)


@pytest.mark.parametrize(("n", "looks"), [(5, [[0, 5]]), (4, [[0, 5]]), (5, []), (2, [[0, 1]]), (5, [[0, 2]])])
def test_one_look_is_no_repetition(n: int, looks: list[list[int]]) -> None:
    """Neither is a report of the same seeds, with a pair that failed, nor a number of pairs that has no verdict."""
    assert "looked at" not in confirmed_with(n, looks=looks)


# Teacher and fairness


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
    """A teacher that is weaker than scratch is called so, and only then is the reader reminded of the control."""
    runs = (record("teacher", test=teacher), record("scratch", test=0.9), trial(0, 0.5, 4, test=0.95))
    sentence = about("The teacher's test", *runs)
    assert words in sentence
    assert ("From a weaker teacher" in sentence) == (teacher == 0.80)


def test_a_mean_over_different_settings_is_told() -> None:
    """Scratch runs that differ in more than their seeds are no repetitions; a difference in the seed is fine."""
    fractions = [record("scratch", params={"data.train_fraction": f, "seed": i}) for i, f in enumerate((0.1, 1.0))]
    assert "The scratch runs differ in data.train_fraction" in about("mixes", *fractions)
    seeds = record("scratch", params={"seed": 0}), record("scratch", params={"seed": 1})
    assert not any("mixes" in finding for finding in summary(*seeds).findings)


def test_an_unfair_comparison_is_told() -> None:
    """Different numbers of epochs are named, and so is a learning rate that only the search could choose."""
    runs = (record("scratch", params={"epochs": 10}), trial(0, 0.5, 4, epochs=30))
    assert "distill and scratch differ in epochs too, which may" in about("distill and scratch differ", *runs)
    rates = [trial(n, 0.5, 4, **{"optimizer.lr": lr}) for n, lr in enumerate((0.1, 0.2))]
    told = about("distill and scratch differ", record("scratch", params={"optimizer.lr": 0.3}), *rates)
    assert "of which the search chose the distilled one's" in told


# What is missing


def test_baselines_without_trials() -> None:
    """The baselines are shown while the search has not begun."""
    found = summary(record("teacher"), record("scratch"))
    assert [arm.name for arm in found.arms] == ["teacher", "scratch"]
    assert "no finished distilled run" in found.missing[0]
    assert found.headline.startswith("No verdict")


def test_a_study_of_an_older_version_is_told_how_to_get_a_verdict() -> None:
    """Without a plan and a confirmation, the command that makes one is named."""
    assert "so there is no verdict: `kdsweep sweep=alpha_tau`" in missing(trial(0, 0.5, 4))


def test_a_confirmation_that_was_switched_off_is_told() -> None:
    """sweep.confirm_seeds=0 is a choice, and its price is named."""
    assert "sweep.confirm_seeds=0" in missing(trial(0, 0.5, 4), planned={"n_trials": 1, "confirm_seeds": 0})


def test_an_incomplete_confirmation_is_counted() -> None:
    """It says how many seeds each arm has, and how many it should have."""
    runs = [trial(0, 0.5, 4), *fresh("scratch", [0.9, 0.91])]
    told = missing(*runs, planned={"n_trials": 1, "confirm_seeds": 5})
    assert "of 5 fresh seeds an arm there are scratch 2, label smoothing 0, distill 0" in told


def test_trials_that_are_not_there_are_counted() -> None:
    """A trial that a finished study lacks has failed, if there is a failed run of it; else it isn't said to have."""
    lost = [record("distill", status="FAILED", stage="search", tags={"kdsweep.trial": str(n)}) for n in (0, 1, 1, 2)]
    planned = {"n_trials": 3}
    assert "1 of 3 trials have ended well; the others failed." in missing(trial(0, 0.5, 4), *lost, planned=planned)
    told = missing(trial(0, 0.5, 4), *lost[:3], planned=planned)
    assert "1 of 3 trials have ended well; 1 failed, and 1 left no finished run here." in told
    assert "1 of 3 trials have ended well; 2 left no finished run here." in missing(trial(0, 0.5, 4), planned=planned)


def test_a_study_goes_on_only_where_trials_are_left() -> None:
    """Failed ones count as done: of a study that failed because all did, the same command has nothing left to try."""
    lost = [record("distill", status="FAILED", stage="search", tags={"kdsweep.trial": str(n)}) for n in range(3)]
    for runs, rest in ((lost, "the others failed"), (lost[:2], "the same command goes on with the study")):
        made = study(*runs, planned={"n_trials": 3})
        ended = replace(made, parent=replace(made.parent, status="FAILED"))
        told = " ".join(summarise(ended, readings(runs, None)).missing)
        assert f"0 of 3 trials have ended well; {rest}." in told


def test_trials_that_were_recorded_again_are_counted() -> None:
    """The report says that they are known by Optuna's values alone."""
    again = trial(0, 0.5, 4)
    again = replace(again, tags={**again.tags, RESTORED: "true"})
    assert "1 of the trials are known by Optuna's values alone" in missing(again, trial(1, 0.6, 3))
    assert "Optuna's values" not in missing(trial(1, 0.6, 3))


def promised(**values: object) -> dict[str, object]:
    """What a study notes of its choice, trial 0, when trial 1 had the best score."""
    return {"expected": 0.93, "sd": 0.01, "best": 1, "best_expected": 0.92, "reason": "", **values}


def test_what_the_model_expected_is_told_of_both() -> None:
    """Of its choice and of the trial with the best score."""
    runs = trial(0, 0.5, 4, val=0.935), trial(1, 0.9, 2, val=0.95)
    told = about("posterior mean", *runs, chosen=0, choice=promised())
    assert "validation accuracy 93.00 (sd 1.00) is expected of it, and its trial scored 93.50." in told
    assert "The best score is 95.00, of trial 1 (alpha 0.9, tau 2), of which the model expects 92.00." in told
    same = about("posterior mean", *runs, chosen=1, choice=promised())
    assert "It has the best score too." in same


def test_a_model_that_was_not_asked_says_why() -> None:
    """The best trial is the choice then."""
    runs = trial(0, 0.5, 4, val=0.935), trial(1, 0.9, 2, val=0.95)
    told = about("The best trial is the choice", *runs, chosen=1, choice=promised(reason="there are 2 trials"))
    assert told == "The best trial is the choice, because there are 2 trials."


SPACE = {"loss.alpha": {"low": 0, "high": 1, "log": False}, "loss.tau": {"low": 1, "high": 16, "log": True}}


def test_a_choice_at_the_border_is_told() -> None:
    """With the override that searches beyond it, on the scale that is searched."""
    told = about("border", trial(0, 0.5, 16), chosen=0, space=SPACE)
    assert told == (
        "The choice lies at the border of what was searched: tau 16 of 1 to 16. Better settings may lie beyond it. "
        "The same command with more trials (sweep.n_trials) and 'loss.tau=tag(log,interval(1,64))' searches there too."
    )
    rates = {"optimizer.lr": {"low": 0.1, "high": 0.3, "log": False}}
    at_rates = trial(0, 0.5, 4, **{"optimizer.lr": 0.1})
    assert "'optimizer.lr=interval(0.05,0.3)'" in about("border", at_rates, chosen=0, space=rates)


@pytest.mark.parametrize("alpha", [0, 1])
def test_nothing_lies_beyond_the_limits_of_alpha(alpha: float) -> None:
    """Neither there nor inside the space is there a border to speak of."""
    found = summary(trial(0, alpha, 4), chosen=0, space=SPACE).findings
    assert [sentence for sentence in found if "border" in sentence] == []


def test_a_race_is_told() -> None:
    """The sentence has the runs and the settings; runs count for what is missing, and failed ones are none."""
    runs = [trial(0, 0.5, 4, val=0.9), trial(1, 0.1, 4, val=0.7), trial(2, 0.5, 4, val=0.8)]
    lost = record("distill", status="FAILED", stage="search", params={"loss.alpha": 0.5}, tags={"kdsweep.trial": "3"})
    planned = {"n_trials": 4, "replicates": 1, "race": 2, "repeats": True}
    assert about("The search made", *runs, planned=planned) == (
        "The search made 3 runs of 2 settings, each with another seed: 1 to 2 of each. Further runs went to settings "
        "that could still be the best (sweep.race). A setting's mean is what counts."
    )
    assert "3 of 4 runs of the search have ended well; the others failed." in missing(*runs, lost, planned=planned)
    assert not [sentence for sentence in summary(*runs).findings if "The search made" in sentence]
