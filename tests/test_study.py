"""Claims about studies and multiruns: real ones on synthetic pictures, read back from MLflow."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import SHORT, Command, Outcome, artifacts, kdsweep, runs, statuses
from omegaconf import OmegaConf

if TYPE_CHECKING:
    from mlflow.entities import Run

pytestmark = pytest.mark.slow

# One step an epoch.
QUICK = (*SHORT, "epochs=1", "batch_size=64")
STUDY = ("sweep=alpha_tau", *QUICK, "sweep.n_trials=6", "sweep.baseline_seeds=2")
# What a user may add, and what a baseline must not take over.
OF_THE_USER = ("loss.alpha=interval(0,1)", "loss.tau=3", "optimizer.lr=0.03", "seed=5")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the studies are made: they share the store and the teacher."""
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="session")
def finished(place: Path) -> Outcome:
    """How the shared study ended; the search space's tau is fixed, and alpha written with whole bounds."""
    done = kdsweep(*STUDY, *OF_THE_USER, root=place)
    assert done.status == 0, done.err
    return done


@pytest.fixture(scope="session")
def parent(finished: Outcome, place: Path) -> Run:
    """The study's own run."""
    (found,) = runs(place, "study", study="alpha_tau")
    return found


@pytest.fixture(scope="session")
def children(parent: Run, place: Path) -> list[Run]:
    """The runs under it, in the order of their start."""
    return [run for run in runs(place) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


def tags(found: list[Run], name: str) -> list[str]:
    return [run.data.tags[f"kdsweep.{name}"] for run in found]


# A study


def test_a_study_is_one_run_with_all_others_below(parent: Run, children: list[Run]) -> None:
    """Baselines come first, then the search; all have finished, and nothing stands beside them."""
    assert parent.info.status == "FINISHED"
    assert {run.info.status for run in children} == {"FINISHED"}
    assert tags(children, "stage") == ["baseline"] * 5 + ["search"] * 6
    expected = ["teacher", "scratch", "scratch", "label_smoothing", "label_smoothing", *["distill"] * 6]
    assert tags(children, "role") == expected
    assert set(tags(children, "study")) == {"alpha_tau"}


def test_trials_are_numbered(children: list[Run]) -> None:
    """Each trial carries Optuna's number; a baseline has none."""
    numbers = [run.data.tags.get("kdsweep.trial") for run in children]
    assert numbers == [None] * 5 + [str(number) for number in range(6)]


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
    assert [run.data.params["seed"] for run in children[1:]] == ["0", "1", "0", "1", *["5"] * 6]


def test_what_the_user_sets_holds_for_all_runs(children: list[Run]) -> None:
    """Keys outside of the loss and the teacher reach the baselines too, so that arms differ in the arm alone."""
    assert {run.data.params["optimizer.lr"] for run in children[1:]} == {"0.03"}
    assert {run.data.params["data.n_train"] for run in children} == {"96"}
    students = [run.data.params for run in children[1:]]
    same = set.intersection(*(set(params.items()) for params in students))
    differing = {key for params in students for key in params if (key, params[key]) not in same}
    assert {key for key in differing if not key.startswith(("loss", "teacher", "tracking."))} <= {
        *("arm", "seed", "init_seed", "order_seed")
    }


def test_the_command_line_overrides_the_search_space(children: list[Run], parent: Run) -> None:
    """interval(0,1) stands for fractions, since alpha is one; a tau that is given is not searched."""
    alphas = [float(run.data.params["loss.alpha"]) for run in children[5:]]
    assert len({alpha for alpha in alphas if alpha not in (0, 1)}) >= 4
    assert {run.data.params["loss.tau"] for run in children[5:]} == {"3"}
    space = {key: value for key, value in parent.data.params.items() if key.startswith("space.")}
    assert space == {"space.loss.alpha": "loss.alpha=interval(0,1)"}


def test_a_study_shares_one_teacher(children: list[Run]) -> None:
    """The teacher's run is a baseline; every distilled run names it by its hash."""
    assert len(set(tags([children[0], *children[5:]], "teacher"))) == 1


def test_a_study_ends_with_its_report(finished: Outcome, parent: Run, place: Path) -> None:
    """The table is printed; table and figures lie in reports/, and in MLflow under the study's run."""
    assert "Study alpha_tau" in finished.out
    names = {"report.json", "alpha_tau_surface.png", "learning_curves.png"}
    for folder in (place / "reports" / "alpha_tau", artifacts(parent) / "report"):
        assert names - {path.name for path in folder.iterdir()} == set()
    report = json.loads((place / "reports" / "alpha_tau" / "report.json").read_text())
    assert [arm["arm"] for arm in report["arms"]] == ["teacher", "scratch", "label_smoothing", "distill"]
    assert len(report["trials"]) == 6


def test_a_study_says_what_it_does(finished: Outcome) -> None:
    """What is coming, each trial with its values, and how long it will take."""
    lines = finished.err.splitlines()
    assert lines[0] == "Study alpha_tau: 1 teacher, 2 scratch, 2 label_smoothing, then 6 trials."
    trials = [line for line in lines if line.startswith("Trial ")]
    assert len(trials) == 6
    assert "loss.alpha" in trials[0]
    assert "min left" in trials[-1]


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ("loss.tau=0", "loss.tau: `0 < tau < inf`"),
        ("sweep.n_trials=0", "sweep.n_trials: `n_trials >= 1`"),
        ("loss=ce", "loss.alpha: the search varies a key that isn't there"),
        ("loss.gamma=interval(0,1)", "loss.gamma: the search varies a key that isn't there"),
        ("objective=test/accuracy", "objective: "),
        ("data.val_size=96", "data.val_size: "),
        ("teacher.mode=fast", "teacher.mode: "),
        ("loss.tau=tag(log,interval(0,20))", "loss.tau: "),
        ("hydra/sweeper/sampler=grid", "loss.alpha: GridSampler only supports discrete"),
        ("hydra.sweeper.direction=sideways", "hydra.sweeper: `directions` must be"),
        ("hydra.sweeper.sampler._target_=optuna.samplers.Best", "Error locating target"),
        ("tracking.uri=nowhere", "tracking.uri: "),
    ],
)
def test_a_wrong_study_is_refused_before_any_run(words: str, start: str, tmp_path: Path) -> None:
    """One line, exit status 2, and not even the study's own run."""
    done = kdsweep(*STUDY, *words.split(), root=tmp_path)
    assert done.status == 2
    assert done.err == done.error + "\n"
    assert done.error.startswith(f"kdsweep: {start}")
    assert statuses(tmp_path) == []


def test_a_study_without_a_finished_trial_says_so(finished: Outcome, place: Path) -> None:
    """One line and exit status 1: each trial failed, and so has the study."""
    before = len(statuses(place))
    words = ("sweep.name=failing", "loss.alpha=interval(2.0,3.0)", "sweep.n_trials=2", "sweep.baseline_seeds=1")
    done = kdsweep(*STUDY, *words, root=place)
    assert done.status == 1
    assert done.error.startswith("kdsweep: none of the 2 trials could be finished")
    assert "Traceback" not in done.err
    assert statuses(place)[before:] == ["FAILED", "FINISHED", "FINISHED", "FINISHED"]


def test_a_trial_that_fails_costs_one_trial(finished: Outcome, place: Path) -> None:
    """The search goes on, and the study finishes with the others."""
    space = ("hydra/sweeper/sampler=grid", "loss.alpha=choice(0.5,2.0)", "loss.tau=4")
    done = kdsweep(*STUDY, "sweep.name=partly", "sweep.baseline_seeds=0", *space, root=place)
    assert done.status == 0, done.err
    assert "alpha=2" in done.err
    (study,) = runs(place, "study", study="partly")
    trials = runs(place, "distill", study="partly")
    assert study.info.status == "FINISHED"
    assert [run.data.params["loss.alpha"] for run in trials] == ["0.5"]


def test_sigterm_closes_a_study_and_its_run(finished: Outcome, place: Path) -> None:
    """In the middle of a trial: one line, 143, and both runs are killed."""
    before = len(statuses(place))
    words = ("sweep.name=stopped", "sweep.baseline_seeds=0", "epochs=100000", "n_passes=1")
    command = Command(*STUDY, *words, root=place)
    command.wait_for(lambda: statuses(place)[before:] == ["RUNNING", "FINISHED", "RUNNING"])
    command.signal(signal.SIGTERM)
    done = command.outcome()
    assert (done.status, done.error) == (143, "kdsweep: terminated")
    assert statuses(place)[before:] == ["KILLED", "FINISHED", "KILLED"]


# Hydra's own multiruns


def test_a_plain_grid_is_grouped(finished: Outcome, place: Path) -> None:
    """`kdsweep -m loss.alpha=.3,.6 loss.tau=2,4`: four runs under one finished parent."""
    done = kdsweep("-m", *QUICK, "loss.alpha=.3,.6", "loss.tau=2,4", root=place)
    assert done.status == 0, done.err
    group = runs(place, "group")[-1]
    found = [run for run in runs(place) if run.data.tags.get("mlflow.parentRunId") == group.info.run_id]
    settings = [(run.data.params["loss.alpha"], run.data.params["loss.tau"]) for run in found]
    assert settings == [("0.3", "2"), ("0.3", "4"), ("0.6", "2"), ("0.6", "4")]
    assert {run.info.status for run in [group, *found]} == {"FINISHED"}


def test_the_plug_in_works_by_itself(finished: Outcome, place: Path) -> None:
    """hydra-optuna-sweeper as its own users call it, with its own meaning of interval(0,1)."""
    space = ("loss.alpha=interval(0,1)", "loss.tau=tag(log,interval(1,20))")
    sweeper = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")
    done = kdsweep("-m", *QUICK, *sweeper, *space, "hydra.sweeper.direction=maximize", root=place)
    assert done.status == 0, done.err
    group = runs(place, "group")[-1]
    found = [run for run in runs(place) if run.data.tags.get("mlflow.parentRunId") == group.info.run_id]
    assert len(found) == 3
    best = OmegaConf.load(next(place.rglob("optimization_results.yaml")))
    assert best.best_value <= 1


def test_nothing_is_left_running(finished: Outcome, place: Path) -> None:
    """After studies that finished, failed and were stopped."""
    assert "RUNNING" not in statuses(place)
