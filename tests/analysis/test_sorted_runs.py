"""Claims about how runs are sorted into arms and trials: which count, and which are shown."""

from __future__ import annotations

import json
import math

import pytest
from records import compared, fresh, pruned, record, study, trial

from kdsweep.analysis.sorted_runs import Spread, pareto, repetitions
from kdsweep.analysis.study_goals import Objective
from kdsweep.tracking.run_records import RunRecord

# Arms and their spread


def test_an_arm_is_mean_and_sample_deviation() -> None:
    """Two scratch runs at 90 and 92 %: mean 91, standard deviation sqrt(2) points; one run has none."""
    (scratch,) = compared(record("scratch", val=0.90), record("scratch", val=0.92)).arms
    assert scratch.metrics["val/accuracy"] == Spread(pytest.approx(0.91), pytest.approx(0.01 * math.sqrt(2)), 2)
    (one,) = compared(record("scratch")).arms
    assert math.isnan(one.metrics["val/accuracy"].sd)


def test_only_finished_runs_count() -> None:
    """Failed, killed and running runs are not in the table."""
    others = [record("scratch", val=0, status=status) for status in ("FAILED", "KILLED", "RUNNING")]
    found = compared(record("scratch"), *others)
    assert [(arm.name, len(arm.runs)) for arm in found.arms] == [("scratch", 1)]


def test_confirmation_is_shown_and_is_no_trial() -> None:
    """If there are fresh seeds, the row shows them, else the baselines. They are not among the trials."""
    found = compared(record("scratch", val=0.5), trial(0, 0.5, 4), *fresh("distill", [0.8, 0.9]))
    assert [(arm.name, arm.confirmed, len(arm.runs)) for arm in found.arms] == [
        ("scratch", False, 1),
        ("distill", True, 2),
    ]
    assert len(found.trials[0].runs) == 1


def test_a_job_that_was_done_again_counts_once() -> None:
    """Only the later one of two finished runs of one job counts."""
    runs = [record("scratch", val=val, tags={"kdsweep.job": "scratch-0"}) for val in (0.1, 0.9)]
    (scratch,) = compared(*runs).arms
    assert scratch.metrics["val/accuracy"] == Spread(0.9, pytest.approx(math.nan, nan_ok=True), 1)


def test_epochs_to_target_is_the_first_epoch_there() -> None:
    """The target is 95 % of scratch's final mean; the first epoch counts, whatever comes after it."""
    found = compared(record("scratch", val=0.8), trial(0, 0.5, 4), curves={0: [0.7, 0.75, 0.77, 0.8], 1: [0.77, 0.6]})
    assert found.target == pytest.approx(0.76)
    assert [arm.metrics["epochs_to_target"].mean for arm in found.arms] == [3, 1]


# Trials


def test_the_best_trial_is_the_best_on_validation() -> None:
    """A trial that is better on test alone is not chosen."""
    found = compared(trial(0, 0.1, 1, val=0.90, test=0.99), trial(1, 0.7, 4, val=0.95, test=0.90))
    assert [t.number for t in found.trials] == [1, 0]
    assert found.chosen is found.trials[0]


def test_trials_are_ranked_by_the_objective() -> None:
    """A study that minimises NLL ranks by it, and leaves out a trial whose NLL isn't finite."""
    runs = [
        record("distill", metrics={"val/nll": nll}, tags={"kdsweep.trial": str(n)}, params={"loss.alpha": n})
        for n, nll in enumerate((0.5, 0.3, math.nan))
    ]
    assert [t.number for t in compared(*runs, objectives=[["val/nll", "minimize"]]).trials] == [1, 0]


def test_the_study_says_which_trial_it_confirmed() -> None:
    """It is not the best trial, if the parent run names another."""
    found = compared(trial(0, 0.1, 1, val=0.9), trial(1, 0.7, 4, val=0.8), chosen=1)
    assert found.chosen is not None
    assert found.chosen.number == 1


def extended(second: int) -> list[RunRecord]:
    """A study that chose trial 0 and was then extended: trial 5 is better, and has its first `second` fresh seeds."""
    settings = {0: (0.1, 1), 5: (0.6, 4)}
    tried = [trial(number, *settings[number], val=0.9 + 0.01 * number) for number in settings]
    before = fresh("distill", [0.80, 0.81, 0.82], trial=0, **{"loss.alpha": 0.1, "loss.tau": 1})
    since = fresh("distill", [0.90, 0.91, 0.92][:second], trial=5, **{"loss.alpha": 0.6, "loss.tau": 4})
    return [*tried, *before, *fresh("scratch", [0.85, 0.86, 0.87]), *since]


@pytest.mark.parametrize("second", [0, 1, 3])
def test_the_row_of_distill_has_one_setting(second: int) -> None:
    """Fresh seeds of an earlier choice are in no row, also while the new choice has none yet, or not all."""
    found = compared(*extended(second), chosen=5)
    assert [run.tags["kdsweep.trial"] for run in found.confirmed("distill")] == ["5"] * second
    assert {run.tags["kdsweep.trial"] for arm in found.arms if arm.name == "distill" for run in arm.runs} == {"5"}
    (other,) = found.others
    assert (other.number, len(other.runs), other.params) == (0, 3, {"loss.alpha": "0.1", "loss.tau": "1"})
    assert other.accuracy == Spread(pytest.approx(0.81), pytest.approx(0.01), 3)


def test_a_record_that_still_names_the_former_choice_mixes_nothing() -> None:
    """The choice was once written down after its last fresh seed; killed in between, trial 0 was still the choice."""
    found = compared(*extended(2), chosen=0)
    assert {run.tags["kdsweep.trial"] for run in found.confirmed("distill")} == {"0"}
    assert [(other.number, len(other.runs)) for other in found.others] == [(5, 2)]


def test_ties_go_to_the_earlier_trial() -> None:
    """With few validation pictures several trials share the best accuracy."""
    runs = [trial(number, 0.1 * number, 2) for number in (5, 3, 4)]
    assert [t.number for t in compared(*runs).trials] == [3, 4, 5]


def test_seeds_of_one_setting_are_one_trial() -> None:
    """A plain multirun over seeds and alpha: settings are ranked by their mean over seeds."""
    runs = [record("distill", val=val, params={"loss.alpha": alpha, "seed": seed}) for alpha, seed, val in
            [(0.1, 0, 0.99), (0.1, 1, 0.81), (0.5, 0, 0.92), (0.5, 1, 0.94)]]  # fmt: skip
    found = compared(*runs)
    assert [(t.params["loss.alpha"], len(t.runs)) for t in found.trials] == [("0.5", 2), ("0.1", 2)]
    assert found.arms[0].metrics["val/accuracy"].mean == pytest.approx(0.93)


def test_numbered_trials_of_one_setting_stay_apart() -> None:
    """A search that tried one point twice has two trials."""
    assert len(compared(trial(0, 0.5, 4), trial(1, 0.5, 4)).trials) == 2


def test_the_space_says_what_was_searched() -> None:
    """If the study declares its space, other differences are no parameters of the trials."""
    found = compared(trial(0, 0.5, 4, threads=1), trial(1, 0.6, 4, threads=2), space={"loss.alpha": {"choices": [1]}})
    assert found.trials[0].params.keys() == {"loss.alpha"}


def test_pruned_trials_stand_apart() -> None:
    """A stopped trial has its epoch and its score there; a killed one without the tag was only interrupted."""
    killed = record("distill", status="KILLED", tags={"kdsweep.trial": "2"})
    found = compared(trial(0, 0.5, 4), pruned(1, epoch=2), killed)
    assert [(p.number, p.epoch, p.epochs, p.value) for p in found.pruned] == [(1, 2, 10, 0.3)]
    assert [t.number for t in found.trials] == [0]


def test_a_pruned_trial_that_was_finished_later_counts_as_finished() -> None:
    """A trial is never counted twice."""
    assert compared(pruned(0, epoch=2), trial(0, 0.5, 4)).pruned == ()


def test_the_pareto_set_is_what_no_other_beats() -> None:
    """The two objectives have opposite directions; equal trials don't beat each other."""
    points = [(0.9, 0.5), (0.8, 0.1), (0.8, 0.5), (0.9, 0.5)]  # accuracy up, NLL down
    runs = [
        record("distill", val=a, metrics={"val/nll": n}, params={"loss.alpha": i}, tags={"kdsweep.trial": str(i)})
        for i, (a, n) in enumerate(points)
    ]
    both = [["val/accuracy", "maximize"], ["val/nll", "minimize"]]
    front = pareto(compared(*runs, objectives=both).trials, [Objective("val/accuracy"), Objective("val/nll", False)])
    assert [t.number for t in front] == [0, 3, 1]


# Repeated seeds


def test_repetitions_share_a_setting_whatever_their_stage() -> None:
    """Baselines and confirmation of one arm are one group; another learning rate is another; one value is none."""
    baselines = [
        record("scratch", val=0.1, params={"seed": s, "optimizer.lr": 0.1, "evaluate_test": "False"}) for s in (0, 1)
    ]
    confirmed = fresh("scratch", [0.9], val=0.2, **{"optimizer.lr": 0.1})
    other = record("scratch", val=0.3, params={"optimizer.lr": 0.2})
    assert repetitions(study(*baselines, *confirmed, other), "val/accuracy") == [[0.1, 0.1, 0.2]]


@pytest.mark.parametrize("key", ["compiled", "precision", "loss.smoothing", "mine.depth"])
def test_runs_of_another_setting_are_no_repetitions(key: str) -> None:
    """Compiling changes the last bits, and a user's own key who knows what: neither belongs to the noise over seeds."""
    runs = [record("scratch", val=value, params={"seed": 0, key: value}) for value in (0.1, 0.2)]
    assert repetitions(study(*runs), "val/accuracy") == []


def test_a_trial_shows_the_option_of_a_searched_group() -> None:
    """The run's tag has its name; a run of an older version shows what the option builds, or the keys of a mapping."""
    options = json.dumps({"optimizer": "adamw", "teacher": "none"})
    params = {"teacher": None, "optimizer._target_": "torch.optim.AdamW", "extra.a": 1, "extra.b.c": 2, "lone": 3}
    new = record("distill", params=params, tags={"kdsweep.options": options})
    old = record("distill", params=params)
    keys = ("optimizer", "teacher", "extra", "lone", "nothing")
    assert [new.setting(key) for key in keys] == ["adamw", "none", "{a: 1, b.c: 2}", "3", "-"]
    assert [old.setting(key) for key in keys] == ["torch.optim.AdamW", "None", "{a: 1, b.c: 2}", "3", "-"]
    found = compared(new, space={"optimizer": {"choices": ["sgd", "adamw"]}, "+lone": {"choices": [3]}})
    assert found.trials[0].params == {"lone": "3", "optimizer": "adamw"}


def test_repeated_runs_of_a_setting_are_one_trial() -> None:
    """It has the number of its first run and the mean of all; without repeats each run is a trial of its own."""
    runs = [
        *(trial(0, 0.5, 4, val=0.9, seed=5), trial(1, 0.1, 4, val=0.7, seed=5)),
        *(trial(2, 0.5, 4, val=0.6, seed=2_000_001), trial(3, 0.1, 4, val=0.9, seed=2_000_001)),
    ]
    found = compared(*runs, planned={"n_trials": 4, "replicates": 2, "race": 0, "repeats": True})
    assert [(one.number, one.value, len(one.runs)) for one in found.trials] == [
        (1, pytest.approx(0.8), 2),
        (0, pytest.approx(0.75), 2),
    ]
    assert [one.number for one in compared(*runs, planned={"n_trials": 4}).trials] == [0, 3, 1, 2]
