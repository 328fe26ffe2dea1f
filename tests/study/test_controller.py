"""Claims about studies and multiruns: real ones on synthetic pictures, read back from MLflow."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import MagicMock, call

import optuna
import pytest
import torch
from commands import SHORT, Command, Outcome, artifacts, runs, statuses
from in_process import kdsweep, run_here
from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState
from records import record
from torchvision.models import shufflenet_v2_x0_5

from kdsweep.config.overrides import parsed
from kdsweep.study import controller
from kdsweep.study.controller import Study, _looks, only_controller
from kdsweep.study.search import Setting
from kdsweep.system.errors import UserError
from kdsweep.system.sqlite import sqlite_uri
from kdsweep.train import GOES_ON

if TYPE_CHECKING:
    from mlflow.entities import Run

pytestmark = pytest.mark.slow

# One step an epoch.
QUICK = (*SHORT, "epochs=1", "batch_size=64")
STUDY = ("sweep=alpha_tau", *QUICK, "sweep.n_trials=6", "sweep.baseline_seeds=2", "sweep.confirm_seeds=2")
# Two settings, one of which diverges, and no controls.
SMALL = (
    *("sweep=alpha_tau", *QUICK, "sweep.baseline_seeds=0", "sweep.confirm_seeds=0"),
    *("hydra/sweeper/sampler=grid", "optimizer.lr=choice(0.01,1e30)", "loss.alpha=0.5", "loss.tau=4"),
)
# Overrides that a user may add, some of which a baseline must not take over.
OF_THE_USER = ("loss.alpha=interval(0,1)", "loss.tau=3", "optimizer.lr=0.03", "seed=5")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all studies, which share the store and the teacher."""
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="session")
def finished(place: Path) -> Outcome:
    """The outcome of the shared study, in which tau is fixed and alpha is written with whole bounds."""
    done = kdsweep(*STUDY, *OF_THE_USER, root=place)
    assert done.status == 0, done.err
    return done


def test_a_study_ends_with_the_next_commands(finished: Outcome, parent: Run, place: Path) -> None:
    """They name the study, and a run of the chosen setting that has read the test split."""
    run_id = runs(place, "distill", stage="confirmation", study="alpha_tau")[0].info.run_id[:8]
    commands = (f"kdsweep-report {parent.info.run_id[:8]}", f"kdsweep-export {run_id}", f"kdsweep-reproduce {run_id}")
    assert finished.out.splitlines()[-1] == f"Next: {', '.join(commands)}, kdsweep-ui"


@pytest.fixture(scope="session")
def parent(finished: Outcome, place: Path) -> Run:
    """The study's own run."""
    (found,) = runs(place, "study", study="alpha_tau")
    return found


@pytest.fixture(scope="session")
def children(parent: Run, place: Path) -> list[Run]:
    """The runs under it, in the order of their start."""
    return [run for run in runs(place) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


@pytest.fixture(scope="session")
def partly(finished: Outcome, place: Path) -> Outcome:
    """The outcome of a study in which one of two trials must fail, and whose jobs Hydra takes to their own folders."""
    done = kdsweep(*SMALL, "sweep.name=partly", "hydra.job.chdir=true", root=place, env={"KDSWEEP_HOME": "."})
    assert done.status == 0, done.err
    return done


def reproduced(run: Run, place: Path) -> Outcome:
    """Makes a run again with `kdsweep-reproduce`."""
    return run_here((run.info.run_id,), place, program="kdsweep-reproduce", module="kdsweep.commands.reproduce")


def tags(found: list[Run], name: str) -> list[str]:
    return [run.data.tags[f"kdsweep.{name}"] for run in found]


def trials(place: Path, name: str) -> list[optuna.trial.FrozenTrial]:
    """The trials of a study as Optuna has them."""
    return optuna.load_study(study_name=name, storage=sqlite_uri(place / "studies" / name / "optuna.db")).trials


# A study


def test_a_study_is_one_run_with_all_others_below(parent: Run, children: list[Run]) -> None:
    """Baselines come first, then search and confirmation; all have finished, and nothing stands beside them."""
    assert parent.info.status == "FINISHED"
    assert {run.info.status for run in children} == {"FINISHED"}
    assert tags(children, "stage") == ["baseline"] * 5 + ["search"] * 6 + ["confirmation"] * 6
    expected = ["teacher", "scratch", "scratch", "label_smoothing", "label_smoothing", *["distill"] * 6]
    assert tags(children, "role") == [*expected, *["distill", "scratch", "label_smoothing"] * 2]
    assert set(tags(children, "study")) == {"alpha_tau"}


def test_trials_are_numbered(children: list[Run], parent: Run) -> None:
    """Each trial carries Optuna's number, and so do the confirmations of the chosen one; others have none."""
    numbers = [run.data.tags.get("kdsweep.trial") for run in children]
    pair = [parent.data.tags["kdsweep.chosen"], None, None]
    assert numbers == [None] * 5 + [str(number) for number in range(6)] + pair * 2


def test_each_job_has_a_name_of_its_own(children: list[Run], parent: Run) -> None:
    """By these names, a repeated command knows which jobs are done."""
    chosen = f"trial-{int(parent.data.tags['kdsweep.chosen']):04d}"
    baselines = ["teacher-0", "scratch-0", "scratch-1", "label_smoothing-0", "label_smoothing-1"]
    fresh = [f"confirm-{arm}-{seed}" for seed in (1000, 1001) for arm in (chosen, "scratch", "label_smoothing")]
    assert tags(children, "job") == [*baselines, *(f"trial-{number:04d}" for number in range(6)), *fresh]


def test_only_the_teacher_and_confirmations_read_test(children: list[Run]) -> None:
    """Only they have test metrics and reliability diagrams, so nothing is chosen by the test split."""
    for run in children:
        reads = run.data.tags["kdsweep.job"].startswith(("teacher", "confirm"))
        assert ("test/accuracy" in run.data.metrics) == reads
        assert (run.data.tags.get("kdsweep.test_read") == "true") == reads
        assert (artifacts(run) / "reliability.json").exists() == reads


def test_the_chosen_setting_is_the_searchs_best(children: list[Run], parent: Run) -> None:
    """It has the best validation accuracy; its confirmations have its alpha, and the fresh seeds of the controls."""
    best = max(children[5:11], key=lambda run: run.data.metrics["val/accuracy"])
    assert best.data.tags["kdsweep.trial"] == parent.data.tags["kdsweep.chosen"]
    confirmed = [run.data.params for run in children[11:]]
    assert {confirmed[0]["loss.alpha"], confirmed[3]["loss.alpha"]} == {best.data.params["loss.alpha"]}
    assert [params["seed"] for params in confirmed] == ["1000"] * 3 + ["1001"] * 3


def test_the_study_says_what_it_searched(parent: Run) -> None:
    """Space, objectives and plan are tags of its own run, for the report."""
    found = {name: json.loads(parent.data.tags[f"kdsweep.{name}"]) for name in ("space", "objectives", "planned")}
    assert found["space"] == {"loss.alpha": {"low": 0.0, "high": 1.0, "log": False}}
    assert found["objectives"] == [["val/accuracy", "maximize"]]
    arms = {"teacher": 1, "scratch": 2, "label_smoothing": 2}
    seeds = {"baseline_seeds": 2, "confirm_seeds": 2, "confirm_until": None}
    assert found["planned"] == {"n_trials": 6, "baselines": arms, **seeds}


def test_baselines_know_no_teacher(children: list[Run]) -> None:
    """Whatever the user sets in the loss, scratch trains with cross-entropy and label smoothing with its own loss."""
    for role, loss in (("scratch", "ce"), ("label_smoothing", "label_smoothing")):
        for run in [run for run in children if run.data.tags["kdsweep.role"] == role]:
            params = run.data.params
            assert params["loss._target_"] == f"kdsweep.losses.{loss}"
            assert params["teacher"] == "None"
            assert not {"loss.alpha", "loss.tau", "teacher.mode"} & params.keys()
            assert "test/agreement" not in run.data.metrics


def test_seeds_of_baselines_count_from_zero(children: list[Run]) -> None:
    """Each baseline has the seeds 0, 1, ...; the trials have the one that the user set."""
    assert [run.data.params["seed"] for run in children[1:11]] == ["0", "1", "0", "1", *["5"] * 6]


def test_what_the_user_sets_holds_for_all_runs(children: list[Run]) -> None:
    """Keys outside of the loss and the teacher reach the baselines too, so that arms differ in the arm alone."""
    assert {run.data.params["optimizer.lr"] for run in children[1:]} == {"0.03"}
    assert {run.data.params["data.n_train"] for run in children} == {"96"}
    students = [run.data.params for run in children[1:]]
    same = set.intersection(*(set(params.items()) for params in students))
    differing = {key for params in students for key in params if (key, params[key]) not in same}
    assert {key for key in differing if not key.startswith(("loss", "teacher"))} <= {
        *("arm", "seed", "init_seed", "order_seed", "evaluate_test")
    }


def test_the_command_line_overrides_the_search_space(children: list[Run], parent: Run) -> None:
    """interval(0,1) stands for fractions, since alpha is one; a tau that is given is not searched."""
    alphas = [float(run.data.params["loss.alpha"]) for run in children[5:11]]
    assert len({alpha for alpha in alphas if alpha not in (0, 1)}) >= 4
    assert {run.data.params["loss.tau"] for run in children[5:11]} == {"3"}
    assert "loss.alpha" not in parent.data.params
    assert parent.data.params["loss.tau"] == "3"
    space = {key: value for key, value in parent.data.params.items() if key.startswith("space.")}
    assert space == {"space.loss.alpha": "loss.alpha=interval(0,1)"}


def test_a_study_shares_one_teacher(children: list[Run]) -> None:
    """The teacher's run is a baseline; every distilled run names it by its hash."""
    assert len(set(tags([children[0], *children[5:12], children[14]], "teacher"))) == 1


def test_a_study_ends_with_its_report(finished: Outcome, parent: Run, place: Path) -> None:
    """The table is printed; table and figures lie in reports/, and in MLflow under the study's run."""
    assert "Study alpha_tau" in finished.out
    names = {"report.json", "report.html", "learning_curves.png"}
    for folder in (place / "reports" / "alpha_tau", artifacts(parent) / "report"):
        assert names - {path.name for path in folder.iterdir()} == set()
    report = json.loads((place / "reports" / "alpha_tau" / "report.json").read_text())
    assert [arm["arm"] for arm in report["arms"]] == ["teacher", "scratch", "label_smoothing", "distill"]
    assert len(report["trials"]) == 6


def test_a_study_says_what_it_does(finished: Outcome) -> None:
    """It prints its plan and how long that will take, and then each trial with its values."""
    lines = finished.err.splitlines()
    assert lines[0] == (
        "Study alpha_tau: 1 teacher, 2 scratch, 2 label smoothing; 6 trials; "
        "then 2 fresh seeds of the best setting and of both controls: 17 runs."
    )
    assert lines[1].startswith("Teacher: 1 of 1 passes")
    assert "one run at a time" in lines[2]
    proposed = [line for line in lines if line.startswith("Trial ")]
    assert len(proposed) == 6
    assert "loss.alpha" in proposed[0]
    assert "min left" in proposed[-1]


def test_a_studys_files_lie_in_its_folder(finished: Outcome, place: Path) -> None:
    """Optuna's record, the plug-in's results and a log for each job."""
    folder = place / "studies" / "alpha_tau"
    best = OmegaConf.load(folder / "optimization_results.yaml")
    assert best.best_value == max(trial.value or 0 for trial in trials(place, "alpha_tau"))
    assert {"teacher-0", "trial-0000", "confirm-scratch-1000"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "controller").exists()


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ("loss.tau=0", "loss.tau: `0 < tau < inf`"),
        ("sweep.n_trials=0", "sweep.n_trials: `n_trials >= 1`"),
        (
            "loss=ce",
            "loss: a study searches something, but loss=ce has no loss.alpha and loss.tau. Choose another loss",
        ),
        (
            "schedule=own schedule._target_=torch.optim.lr_scheduler.StepLR +schedule.step_size=range(20,40,10)",
            "schedule.step_size: with the baseline scratch, `StepLR gets all that it needs` must hold, but this",
        ),
        ("loss.gamma=interval(0,1)", "loss.gamma: the search varies a key that isn't there"),
        ("objective=test/accuracy", "objective: "),
        ("data.val_size=96", "data.val_size: "),
        ("teacher.mode=fast", "teacher.mode: "),
        ("loss.tau=tag(log,interval(0,20))", "loss.tau: "),
        ("hydra/sweeper/sampler=grid", "loss.alpha: GridSampler only supports discrete"),
        ("hydra.sweeper.direction=sideways", "hydra.sweeper.direction: `direction in ('maximize', 'minimize')`"),
        ("hydra.sweeper.direction=[maximize,minimize]", "hydra.sweeper.direction: `one direction for each objective`"),
        ("objective=[val/accuracy,test/accuracy]", "objective: "),
        ("objective=[val/nll,val/ece] hydra/sweeper/pruner=median", "hydra.sweeper.pruner: `one objective"),
        ("hydra/sweeper/pruner=median hydra.sweeper.pruner.n_startup_trials=-1", "hydra.sweeper.pruner: "),
        ("sweep.confirm_until=2.5", "sweep.confirm_until: this value doesn't fit: Value '2.5' of type"),
        ("sweep.confirm_until=1", "sweep.confirm_until: `confirm_until is null, or a whole number >= confirm_seeds"),
        ("sweep.confirm_seeds=-1", "sweep.confirm_seeds: `confirm_seeds >= 0`"),
        ("sweep.replicates=0", "sweep.replicates: `replicates >= 1`"),
        ("sweep.race=-1", "sweep.race: `race >= 0`"),
        ("sweep.race=2 seed=1,2", "sweep.race: `race=0 where the seed is searched`"),
        ("sweep.max_restarts=-1", "sweep.max_restarts: `max_restarts >= 0`"),
        ("sweep.n_jobs=0", "sweep.n_jobs: `n_jobs >= 1`"),
        ("sweep.executor=gpu", "sweep.executor: `executor in ('in_process', 'workers', 'ray', 'launcher')`"),
        ("sweep.executor=in_process sweep.n_jobs=2", "sweep.n_jobs: `n_jobs == 1 in process`"),
        ("sweep.restart=new", "sweep.restart: "),
        ("sweep.name=../elsewhere", "sweep.name: `a plain name` must hold, but got name='../elsewhere'"),
        ("sweep.name='a,b'", "sweep.name: `a plain name`"),
        ("sweep.name=null", "sweep.name: `a plain name`"),
        ("sweep.name=a,b", "sweep.name: `one value for all runs` must hold, but got name='a,b'"),
        ("model.input_size=null,4.5", "model.input_size: `input_size is null or a whole number > 0`"),
        ("optimizer=adamw optimizer.betas=[0.9,0.99],[0.9]", "optimizer.betas: `betas is 2 finite numbers`"),
        ("model.weights='a=b,[c].pth',null", "model.weights: `weights is a file` must hold, but got weights='a=b,[c]"),
        ("loss.alpha=choice(choice(0.1,0.2),0.3)", "loss.alpha: a choice is one value"),
        ("optimizer=glob(no*)", "optimizer: The `choices` must contain one or more elements"),
        ("++evaluate_test=true,false", "evaluate_test: `one value for all runs`"),
        ("objective=[val/nll,val/agreement] teacher=none", "objective: `objective is a metric of the run` must hold"),
        ("objective=val/top5 data.n_classes=5", "objective: `objective is a metric of the run` must hold"),
        ("batch_size=interval(4.5,32)", "batch_size: `an interval of whole numbers` must hold, but got"),
        ("batch_size=tag(log,interval(0,32))", "batch_size: "),
        ("model.input_size=interval(-1,40)", "model.input_size: `input_size is null or a whole number > 0`"),
        (
            "optimizer=adamw,sgd optimizer.momentum=0.8",
            "optimizer.momentum: with optimizer=adamw, there is no such key",
        ),
        ("optimizer=sgd,adamw optimizer.momentum=0.8,0.9", "optimizer.momentum: with optimizer=adamw, there is no su"),
        ("loss=kd,ce", "loss.alpha: with loss=ce, there is no such key"),
        ("teacher=random,none", "loss: with teacher=none, kd needs a teacher"),
        ("model=resnet18,resnet81", "model: with model=resnet81, there is no option 'resnet81'"),
        (
            "hydra.sweeper.sampler._target_=optuna.samplers.Best",
            "hydra.sweeper.sampler: Error loading 'optuna.samplers.Best'",
        ),
        (
            "hydra.sweeper.sampler._target_=optuna.samplers.BruteForceSampler",
            "hydra.sweeper.sampler: BruteForceSampler",
        ),
        ("hydra/sweeper/sampler=motpe", "hydra.sweeper.sampler: The 'motpe' sampler was removed"),
        ("hydra.sweeper.sampler.seed=-1", "hydra.sweeper.sampler.seed: `seed is null or a whole number >= 0`"),
        ("tracking.uri=nowhere", "tracking.uri: "),
    ],
)
def test_a_wrong_study_is_refused_before_any_run(words: str, start: str, tmp_path: Path) -> None:
    """There is one line and exit status 2, and not even the study's own run."""
    done = run_here((*STUDY, *words.split()), tmp_path)
    assert done.status == 2
    assert done.err == done.error + "\n"
    assert done.error.startswith(f"kdsweep: {start}")
    assert statuses(tmp_path) == []


def test_a_search_without_anything_to_search_names_a_command_that_has(tmp_path: Path) -> None:
    """The words are those of the user and a sweep for each setting of the loss; with them the study runs."""
    small = ("sweep=alpha_tau", *QUICK, "sweep.n_trials=1", "sweep.baseline_seeds=0", "sweep.confirm_seeds=0")
    words = (*small, "sweep.name=others", "loss=label_smoothing")
    refused = run_here(words, tmp_path)
    assert refused.status == 2
    offered = shlex.split(refused.error.partition("such as: ")[2])
    assert offered == ["kdsweep", *words, "loss.smoothing=interval(0.05,0.2)"]
    done = run_here(offered[1:], tmp_path)
    assert done.status == 0, done.err
    assert "Study others: loss.alpha and loss.tau are not searched, for loss=label_smoothing has none." in done.err


def suggest(config: DictConfig, trial: optuna.Trial) -> None:
    """A user's own search space: momentum where the option has it, and a learning rate."""
    if trial.params["optimizer"] == "sgd":
        trial.suggest_float("optimizer.momentum", 0.5, 0.9)
    trial.suggest_float("optimizer.lr", 0.01, 0.1)


def test_what_a_users_own_space_suggests_isnt_fixed_too(tmp_path: Path) -> None:
    """The plug-in refuses it at its first trial; here no run is made."""
    own = f"hydra.sweeper.custom_search_space={__name__}.suggest"
    done = run_here((*STUDY, "optimizer=sgd,adamw", own, "optimizer.lr=0.03"), tmp_path)
    rule = "`a key is fixed or searched` must hold, but got custom_search_space='optimizer.lr'"
    assert done.error.startswith(f"kdsweep: hydra.sweeper.custom_search_space: {rule}")
    done = run_here((*STUDY, "optimizer=sgd,adamw", own, "sweep.replicates=2"), tmp_path)
    rule = "`replicates=1 where hydra.sweeper.custom_search_space suggests keys`"
    assert done.error.startswith(f"kdsweep: sweep.replicates: {rule}")
    assert statuses(tmp_path) == []


def test_a_study_without_a_finished_trial_says_so(finished: Outcome, place: Path) -> None:
    """There is one line and exit status 1: each trial failed, and so has the study."""
    before = len(statuses(place))
    words = ("sweep.name=failing", "optimizer.lr=interval(1e29,1e30)", "sweep.n_trials=2", "sweep.baseline_seeds=1")
    done = kdsweep(*STUDY, *words, root=place)
    assert done.status == 1
    assert done.error.startswith("kdsweep: none of the 2 trials could be finished")
    assert "Traceback" not in done.err
    assert statuses(place)[before:] == ["FAILED", *3 * ["FINISHED"], *2 * ["FAILED"]]


def test_a_trial_that_fails_costs_one_trial(partly: Outcome, place: Path) -> None:
    """The search goes on, and the study finishes with the others."""
    assert "Lower optimizer.lr" in " ".join(partly.err.split())
    (study,) = runs(place, "study", study="partly")
    found = runs(place, "distill", study="partly", stage="search")
    assert study.info.status == "FINISHED"
    assert {run.data.params["optimizer.lr"]: run.info.status for run in found} == {
        "0.01": "FINISHED",
        "1e+30": "FAILED",
    }
    assert sorted(trial.state for trial in trials(place, "partly")) == [TrialState.COMPLETE, TrialState.FAIL]


def test_a_study_needs_its_own_configuration_to_go_on(partly: Outcome, place: Path) -> None:
    """A changed key is named with both values, and nothing is run or changed; where runs are made may change."""
    before = statuses(place)
    done = kdsweep(*SMALL, "sweep.name=partly", "epochs=2", root=place)
    assert done.status == 2
    assert "begun with another configuration (epochs was 1 and is 2" in done.error
    assert "sweep.restart=fresh" in done.error
    done = kdsweep(*SMALL, "sweep.name=partly", "hydra.sweeper.direction=minimize", root=place)
    assert "(directions was ['maximize'] and is ['minimize'])" in done.error
    assert kdsweep(*SMALL, "sweep.name=partly", "sweep.max_restarts=0", root=place).status == 0
    assert statuses(place) == before


def test_the_same_command_goes_on_with_what_is_missing(partly: Outcome, place: Path) -> None:
    """Under the same MLflow run, what is done is not repeated, and what more is asked for is made."""
    before = len(statuses(place))
    ended = [study.info.end_time for study in runs(place, "study", study="partly")]
    assert kdsweep(*SMALL, "sweep.name=partly", root=place).err == "Study partly: all 3 runs are done.\n"
    assert [study.info.end_time for study in runs(place, "study", study="partly")] == ended  # nothing was added
    done = kdsweep(*SMALL, "sweep.name=partly", "sweep.confirm_seeds=1", root=place)
    assert done.status == 0, done.err
    asked, plan = done.err.splitlines()[:2]
    assert asked == "Asked for anew: fresh seeds 1."
    assert plan.endswith(": 6 runs. 3 of them are done.")
    (study,) = runs(place, "study", study="partly")
    made = runs(place)[before:]
    assert {run.data.tags["mlflow.parentRunId"] for run in made} == {study.info.run_id}
    chosen = f"confirm-trial-{int(study.data.tags['kdsweep.chosen']):04d}-1000"
    assert tags(made, "job") == [chosen, "confirm-scratch-1000", "confirm-label_smoothing-1000"]
    assert json.loads(study.data.tags["kdsweep.looks"]) == [[int(study.data.tags["kdsweep.chosen"]), 1]]


def test_a_choice_is_written_down_before_its_first_fresh_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a new confirmation is interrupted, the study names the new choice and not the one of before."""
    study, store, stages = MagicMock(), MagicMock(), MagicMock()
    store.tagged.return_value, store.uri = [], ""
    stages.choose.return_value, stages.choice, stages.stop = Setting(5, {}), None, None
    monkeypatch.setattr(controller, "starting", MagicMock())
    monkeypatch.setattr(controller.asking, "tag", lambda *_: {})
    stages.confirm.side_effect = KeyboardInterrupt
    monkeypatch.setattr(controller.recording, "open_store", lambda _: store)
    monkeypatch.setattr(controller.recording, "unsent_folder", lambda _: None)
    monkeypatch.setattr(controller.sending, "send_unsent", lambda *_: None)
    monkeypatch.setattr(controller, "Stages", lambda *_, **__: stages)
    with pytest.raises(KeyboardInterrupt):
        controller.Study._run(study, MagicMock(), [], [], None)
    parent = study._parent.return_value.__enter__.return_value
    assert parent.tag.call_args_list[-1] == call({"kdsweep.chosen": "5", "kdsweep.choice": "{}"})


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["/venv/bin/kdsweep", "sweep=demo", "loss.tau=choice(1, 2)"], "kdsweep sweep=demo 'loss.tau=choice(1, 2)'"),
        (["/kdsweep/train.py", "-m", "data=digits", "hydra.mode=MULTIRUN"], "kdsweep -m data=digits"),
        (["my_app.py", "tracking.uri=http://me:secret@host"], "my_app.py tracking.uri=http://me:***@host"),
    ],
)
def test_a_study_records_its_command(words: list[str], line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report repeats it, so it has no folder of this machine and no secret."""
    monkeypatch.setattr(sys, "argv", words)
    assert controller._command() == line


def test_a_study_knows_how_often_it_ended_with_a_verdict() -> None:
    """One that an older version finished ended once, at its plan; one that was interrupted did not."""
    planned = {"kdsweep.chosen": "3", "kdsweep.planned": json.dumps({"confirm_seeds": 5})}
    assert _looks(None) == []
    assert _looks(record("study", tags=planned)) == [(3, 5)]
    assert _looks(record("study", tags=planned, status="KILLED")) == []
    assert _looks(record("study", tags={**planned, "kdsweep.looks": "[[0, 3], [3, 4]]"})) == [(0, 3), (3, 4)]
    assert _looks(record("study", tags={"kdsweep.chosen": "3"})) == []


ELSEWHERE = (*SMALL, "sweep.name=partly", "tracking.uri=sqlite:///elsewhere/mlflow.db")


def test_a_study_whose_runs_are_elsewhere_is_refused(partly: Outcome, place: Path) -> None:
    """It names the store that has them, and leaves no store where it looked; nothing is run."""
    done = run_here(ELSEWHERE, place)
    assert done.status == 2
    assert done.err == done.error + "\n"
    assert f"there is no MLflow store at {place}/elsewhere/mlflow.db. It was recorded in sqlite:///{place}/" in done.err
    assert not (place / "elsewhere").exists()


def test_trials_are_recorded_again_by_optunas_values(partly: Outcome, place: Path) -> None:
    """In another store: with the parameters that the lost run had, its value, and a word about it in the report."""
    done = kdsweep(*ELSEWHERE, "sweep.restart=restore", root=place)
    assert done.status == 0, done.err
    assert "is recorded again by Optuna's values" in done.err
    report = json.loads((place / "reports" / "partly" / "report.json").read_text())
    assert "1 of the trials are known by Optuna's values alone: their MLflow runs were gone." in report["missing"]
    assert "1 of 2 trials have ended well; 1 left no finished run here." in report["missing"]
    (again,) = runs(place / "elsewhere", "distill")
    (before,) = runs(place, "distill", study="partly", stage="search", trial=again.data.tags["kdsweep.trial"])
    assert again.info.status == before.info.status == "FINISHED"
    assert again.data.metrics["val/accuracy"] == before.data.metrics["val/accuracy"]
    differing = {name for name, _ in before.data.params.items() ^ again.data.params.items()}
    assert {name for name in differing if not name.startswith("runtime.")} == set()
    # It goes on there, and where it was.
    assert kdsweep(*ELSEWHERE, root=place).err == "Study partly: all 3 runs are done.\n"
    asked, done_already = run_here((*SMALL, "sweep.name=partly"), place).err.splitlines()
    assert (asked, done_already) == ("Asked for anew: fresh seeds 0.", "Study partly: all 3 runs are done.")


def test_a_fresh_start_forgets_what_was_done(partly: Outcome, place: Path) -> None:
    """There is another MLflow run with all jobs below it; the old one stays as it was, and conditions may differ."""
    done = kdsweep(*SMALL, "sweep.name=partly", "sweep.restart=fresh", "loss.alpha=0.4", root=place)
    assert done.status == 0, done.err
    old, new = runs(place, "study", study="partly")
    made = [run for run in runs(place) if run.data.tags.get("mlflow.parentRunId") == new.info.run_id]
    assert {old.info.status, new.info.status} == {"FINISHED"}
    finished_jobs = {run.data.tags["kdsweep.job"] for run in made if run.info.status == "FINISHED"}
    assert finished_jobs == {"teacher-0", f"trial-{int(new.data.tags['kdsweep.chosen']):04d}"}


def test_a_study_can_have_several_objectives(finished: Outcome, place: Path) -> None:
    """One is maximised and one minimised, and the baselines lack one; the Pareto set is written down."""
    objectives = "objective=[val/agreement,val/ece]"
    words = ("sweep.name=several", objectives, "optimizer.lr=choice(0.01,0.02)", "sweep.baseline_seeds=1")
    done = kdsweep(*SMALL, *words, root=place)
    assert done.status == 0, done.err
    (study,) = runs(place, "study", study="several")
    assert json.loads(study.data.tags["kdsweep.objectives"]) == [["val/agreement", "maximize"], ["val/ece", "minimize"]]
    found = runs(place, "distill", study="several")
    values = [[run.data.metrics["val/agreement"], run.data.metrics["val/ece"]] for run in found]
    assert [trial.values for trial in trials(place, "several")] == values
    solutions = OmegaConf.load(place / "studies" / "several" / "optimization_results.yaml").solutions
    assert 1 <= len(solutions) <= 2
    report = json.loads((place / "reports" / "several" / "report.json").read_text())
    assert [arm["arm"] for arm in report["arms"]] == ["teacher", "scratch", "label_smoothing", "distill"]


def test_options_and_values_of_any_kind_can_be_searched(finished: Outcome, place: Path) -> None:
    """What is fixed holds in all runs; MLflow, a repeated command, the report and reproduce find values, not texts."""
    weights = place / "grid" / "a=b, [c]" / "Größe.pth"
    weights.parent.mkdir(parents=True)
    torch.save(shufflenet_v2_x0_5(num_classes=10).state_dict(), weights)
    space = (f"model.weights='{weights}',null", "optimizer=sgd,adamw", "optimizer.lr=0.03", "model.mean=[0.5,0.4,0.3]")
    # Three of the four points of the grid have all values.
    counts = ("sweep.n_trials=3", "sweep.baseline_seeds=1", "hydra.sweeper.baselines.label_smoothing.seeds=0")
    words = (*SMALL[:-3], "loss.alpha=0.5", "loss.tau=4", *space, "sweep.name=kinds", *counts)
    assert kdsweep(*words, root=place).status == 0
    found = runs(place, "distill", study="kinds")
    names = {"torch.optim.SGD": "sgd", "torch.optim.AdamW": "adamw"}
    settings = [(run.data.params["model.weights"], names[run.data.params["optimizer._target_"]]) for run in found]
    assert [{*values} for values in zip(*settings, strict=True)] == [{str(weights), "None"}, {"sgd", "adamw"}]
    arms = [*found, *runs(place, "scratch", study="kinds")]
    fixed = {(run.data.params["optimizer.lr"], run.data.params["model.mean"]) for run in arms}
    assert (len(arms), fixed) == (4, {("0.03", "[0.5, 0.4, 0.3]")})
    assert kdsweep(*words, root=place).err.startswith("Study kinds: all ")
    report = json.loads((place / "reports" / "kinds" / "report.json").read_text())
    shown = {(trial["params"]["model.weights"], trial["params"]["optimizer"]) for trial in report["trials"]}
    assert shown == {*settings}
    original = next(run for run in found if run.data.params["model.weights"] == str(weights))
    again = reproduced(original, place)
    assert again.status == 0, again.out


def test_a_pruner_stops_trials_that_fall_behind(finished: Outcome, place: Path) -> None:
    """The first setting learns and two others can't; these are pruned after their first epoch, and killed in MLflow."""
    pruner = [f"hydra.sweeper.pruner.{key}=1" for key in ("n_startup_trials", "n_warmup_steps", "n_min_trials")]
    # The grid's seed takes the last one first.
    space = ("loss.alpha=0.5", "optimizer.lr=choice(1e-9,1e-8,0.003)")
    # ResNet18 learns something in an epoch.
    slow = ("sweep.name=pruned", "model.name=resnet18", "epochs=2", "batch_size=8", "schedule=constant")
    done = kdsweep(*SMALL, *slow, *space, "hydra/sweeper/pruner=median", *pruner, root=place)
    assert done.status == 0, done.err
    (study,) = runs(place, "study", study="pruned")
    found = runs(place, "distill", study="pruned")
    assert study.info.status == "FINISHED"
    assert study.data.tags["kdsweep.chosen"] == "0"
    assert [(run.info.status, run.data.tags.get("kdsweep.pruned")) for run in found] == [
        *[("FINISHED", None), ("KILLED", "1"), ("KILLED", "1")]
    ]
    states = [trial.state for trial in trials(place, "pruned")]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED]
    assert done.err.count(" pruned after epoch 1.") == 2
    assert "kdsweep.error" not in found[1].data.tags
    # A run that was stopped is compared in its epochs; the new run is a whole one, since no study stops it.
    again = reproduced(found[1], place)
    compared = "one epoch. The weights of the earlier run are not known."
    assert (again.status, compared in again.out) == (0, True), again
    assert runs(place, stage="reproduction")[-1].info.status == "FINISHED"


def test_the_sweep_files_values_stay_what_they_are() -> None:
    """hydra.sweeper.params holds sweeps as text, and fixed values of any kind; null doesn't become a word."""
    study = Study.__new__(Study)
    params = {"a": "interval(0,1)", "b": None, "c": [0.5, "x y"], "d": {"e": True}, "f": 1e-5}
    study.params = OmegaConf.create(params)
    lines = parsed(study._parse_sweeper_params_config())
    assert lines[0].is_interval_sweep()
    assert [line.value() for line in lines[1:]] == [*params.values()][1:]


def test_one_controller_at_a_time_works_on_a_study(tmp_path: Path) -> None:
    """The second is refused with the first one's process; after the first has ended, the folder is free."""
    refused = pytest.raises(UserError, match=rf"^sweep\.name: the study 's' is being run by process {os.getpid()} ")
    with only_controller(tmp_path, "s"), refused, only_controller(tmp_path, "s"):
        pass
    with only_controller(tmp_path, "s"):
        assert (tmp_path / "controller").exists()
    assert not (tmp_path / "controller").exists()


@pytest.mark.parametrize(
    ("tracking", "logged"),
    [
        ({"models": True, "offline": False}, True),
        ({"models": False, "offline": False}, False),
        ({"models": True, "offline": True}, False),
    ],
)
def test_a_study_logs_the_networks_of_its_runs_after_its_answer(
    tracking: dict[str, bool], logged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the report and before the next commands; tests/commands/test_export.py says which runs these are."""
    done = MagicMock()
    for name in ("writing", "console", "next_commands", "student_models"):
        monkeypatch.setattr(controller, name, getattr(done, name))
    study = Study.__new__(Study)
    study.config = OmegaConf.create({"paths": {"root": "."}, "tracking": tracking})
    study._report(done.store, "parent")
    last = [name for name, *_ in done.mock_calls if name.startswith(("console", "student_models"))]
    assert last == ["console.show", *(["student_models.log_of_study"] if logged else []), "console.show_line"]


def test_sigterm_closes_a_study_and_its_run(finished: Outcome, place: Path) -> None:
    """In the middle of a trial, it prints one line, exits with 143, and both runs are killed."""
    before = len(statuses(place))
    words = ("sweep.name=stopped", "sweep.baseline_seeds=0", "epochs=100000", "n_passes=1")
    command = Command(*STUDY, *words, root=place)
    command.wait_for(lambda: statuses(place)[before:] == ["RUNNING", "FINISHED", "RUNNING"])
    command.signal(signal.SIGTERM)
    done = command.outcome()
    assert (done.status, done.error) == (143, f"kdsweep: terminated. {GOES_ON}")
    assert statuses(place)[before:] == ["KILLED", "FINISHED", "KILLED"]


# Hydra's own multiruns


def test_a_plain_grid_is_grouped(finished: Outcome, place: Path) -> None:
    """`kdsweep -m loss.alpha=0.3,0.6 loss.tau=2,4` makes four runs under one finished parent."""
    done = kdsweep("-m", *QUICK, "loss.alpha=0.3,0.6", "loss.tau=2,4", root=place)
    assert done.status == 0, done.err
    group = runs(place, "group")[-1]
    found = [run for run in runs(place) if run.data.tags.get("mlflow.parentRunId") == group.info.run_id]
    settings = [(run.data.params["loss.alpha"], run.data.params["loss.tau"]) for run in found]
    assert settings == [("0.3", "2"), ("0.3", "4"), ("0.6", "2"), ("0.6", "4")]
    assert {run.info.status for run in [group, *found]} == {"FINISHED"}
    best = max(run.data.metrics["val/accuracy"] for run in found)
    grid, line = done.err.splitlines()[-2:]
    assert grid.startswith(f"Grid: 4 runs; the best validation accuracy is {best:.2%}, run ")
    (best_run,) = re.findall(r", run (\w+)", grid)
    assert line.startswith(f"Next: kdsweep-report {group.info.run_id[:8]}, kdsweep-export {best_run}, ")


def test_the_plug_in_works_by_itself(finished: Outcome, place: Path) -> None:
    """hydra-optuna-sweeper works as its own users call it, with its own meaning of interval(0,1)."""
    space = ("loss.alpha=interval(0,1)", "loss.tau=tag(log,interval(1,20))")
    sweeper = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")
    done = kdsweep("-m", *QUICK, *sweeper, *space, "hydra.sweeper.direction=maximize", root=place)
    assert done.status == 0, done.err
    group = runs(place, "group")[-1]
    found = [run for run in runs(place) if run.data.tags.get("mlflow.parentRunId") == group.info.run_id]
    assert len(found) == 3
    best = OmegaConf.load(next((place / "multirun").rglob("optimization_results.yaml")))
    assert best.best_value <= 1
    assert f"Grid: 3 runs; the best validation accuracy is {best.best_value:.2%}, run " in done.err


def test_nothing_is_left_running(finished: Outcome, place: Path) -> None:
    """No run is left open by studies that finished, failed or were stopped."""
    assert "RUNNING" not in statuses(place)
