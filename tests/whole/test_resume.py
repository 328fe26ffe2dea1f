"""Claims about studies that are killed: real commands, real signals, real stores, and the same command again."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from commands import SHORT, Command, checkpoints, runs
from crashes import kill_at, wait_at
from in_process import kdsweep, run_here
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from safetensors.torch import save_file
from servers import PostgreSQL
from torchvision.models import shufflenet_v2_x0_5

from kdsweep.analysis.choice import Choice
from kdsweep.study import choosing
from kdsweep.study.stages import Stages
from kdsweep.system.processes import ProcessId, parse_process
from kdsweep.system.sqlite import sqlite_uri
from kdsweep.system.tensor_files import read_tensors

pytestmark = pytest.mark.slow

N_TRIALS = 3
# A run is one step. No trial is given up, however often its process is killed.
STUDY = (
    "sweep=alpha_tau",
    *SHORT,
    *("epochs=1", "batch_size=96", "sweep.baseline_seeds=1", "sweep.confirm_seeds=1", "sweep.max_restarts=50"),
    f"sweep.n_trials={N_TRIALS}",
)


def assert_whole(root: Path, storage: str, n_trials: int = N_TRIALS) -> None:
    """The study is as if nobody had disturbed it."""
    record = RDBStorage(storage)
    trials = optuna.load_study(study_name="alpha_tau", storage=record).trials
    record.remove_session()
    record.engine.dispose()
    assert [trial.number for trial in trials] == list(range(n_trials))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len({tuple(trial.params.values()) for trial in trials}) == n_trials
    found = runs(root)
    (parent,) = runs(root, "study")
    assert {run.info.status for run in found} <= {"FINISHED", "FAILED", "KILLED"}
    assert parent.info.status == "FINISHED"
    children = [run for run in found if run.info.run_id != parent.info.run_id]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    finished = [run.data.tags["kdsweep.job"] for run in children if run.info.status == "FINISHED"]
    chosen = f"confirm-trial-{int(parent.data.tags['kdsweep.chosen']):04d}-1000"
    baselines = ["teacher-0", "scratch-0", "label_smoothing-0"]
    confirmations = [chosen, "confirm-scratch-1000", "confirm-label_smoothing-1000"]
    numbered = [f"trial-{number:04d}" for number in range(n_trials)]
    assert sorted(finished) == sorted([*baselines, *confirmations, *numbered])


def interruptions(root: Path) -> int:
    """How often a run was cut short: for good, or until it went on from a checkpoint."""
    found = runs(root)
    resumed = [run.data.tags.get("kdsweep.resumed_after") for run in found]
    went_on = sum(len(epochs.split(", ")) for epochs in resumed if epochs is not None)
    return [run.info.status for run in found].count("KILLED") + went_on


def working(root: Path) -> list[ProcessId]:
    """The living processes in which runs, other than the study's own, are open; read past MLflow while it writes."""
    query = """
        SELECT process.value FROM runs
        JOIN tags AS process ON process.run_uuid = runs.run_uuid AND process.key = 'kdsweep.process'
        JOIN tags AS job ON job.run_uuid = runs.run_uuid AND job.key = 'kdsweep.job'
        WHERE runs.status = 'RUNNING'
    """
    try:
        with closing(sqlite3.connect(f"file:{root}/mlflow.db?mode=ro", uri=True)) as database:
            processes = [parse_process(text) for (text,) in database.execute(query)]
    except sqlite3.OperationalError:  # it isn't there, or its tables are being made
        return []
    # The run of a killed one stays open until somebody says how it ended.
    return [process for process in processes if process.lives()]


def two_at_work(command: Command, root: Path) -> list[ProcessId]:
    """The processes of two runs, as soon as two are open at once."""
    return command.wait_for(lambda: found if len(found := working(root)) == 2 else [])


def wait_for_end(processes: list[ProcessId]) -> None:
    """Waits until they are gone: a process lives for a while after SIGKILL, until its memory is given back."""
    end = time.monotonic() + 60
    while any(process.lives() for process in processes):
        assert time.monotonic() < end
        time.sleep(0.05)


# Where a study commits something: the function, and whether its process is killed before that function or after it.
IN_THE_SEARCH = [
    ("kdsweep.study.search:Search.next", "after"),  # Optuna has a trial that nobody has begun
    ("kdsweep.execution.trial_link:TrialLink.leave", "after"),  # its worker has left the values
    ("kdsweep.study.search:Search._tell", "before"),  # the run is FINISHED, the trial RUNNING
    ("kdsweep.study.search:Search._tell", "after"),
]
IN_A_STUDY = [
    ("kdsweep.study.controller:Study._tags", "before"),  # the study's MLflow run is open, and says nothing yet
    ("kdsweep.tracking.run_writer:Run._end", "before"),  # all of a run is logged but its status
    *IN_THE_SEARCH,
    ("kdsweep.study.stages:Stages.confirm", "after"),  # all is run, the study's tags don't say which was chosen
    ("kdsweep.study.search:Search.write_results", "before"),  # they do
    ("kdsweep.report.writing:write", "before"),  # the study's run is closed, its report isn't written
]
IN_A_RUN = [
    ("kdsweep.tables:write_tensors", "before"),  # a pass of the teacher is computed, and not on the disk
    ("kdsweep.tables:write_tensors", "after"),
    ("kdsweep.system.tensor_files:write_tensors", "before"),  # the teacher's head is trained, and not on the disk
    ("kdsweep.system.tensor_files:write_tensors", "after"),
    ("kdsweep.tracking.journal:Journal.keep", "after"),  # an artifact is in the journal, and not in MLflow
    ("kdsweep.tracking.run_writer:Run._end", "after"),  # a run is FINISHED in MLflow, and its command isn't told
]


def killed_at(words: tuple[str, ...], root: Path, places: list[tuple[str, Any]]) -> None:
    """A command that is killed at each of these places, and started again each time."""
    for place, when in places:
        done = Command(*words, root=root, prepare=partial(kill_at, place, when)).outcome()
        assert done.status == -signal.SIGKILL, (place, when, done)


def killed_at_random(words: tuple[str, ...], root: Path, dice: random.Random) -> None:
    """A study whose controller is killed some time after it has begun a run."""
    command = Command(*words, root=root)
    command.wait_for(lambda: working(root))
    time.sleep(dice.uniform(0, 0.3))
    command.kill()
    assert command.outcome().status == -signal.SIGKILL


def test_a_controller_killed_wherever_it_commits_something_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL once at each place, and once at a random moment, the same command each time."""
    killed_at_random(STUDY, tmp_path, random.Random(0))
    killed_at(STUDY, tmp_path, IN_A_STUDY)
    done = kdsweep(*STUDY, root=tmp_path)
    assert done.status == 0, done.err
    assert_whole(tmp_path, sqlite_uri(tmp_path / "studies" / "alpha_tau" / "optuna.db"))
    # Runs were cut short.
    assert interruptions(tmp_path) >= 2


def test_a_run_killed_wherever_its_teacher_commits_something_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL once at each place: the same command finishes, on the same teacher, and all files are whole."""
    words = (*SHORT, "epochs=1")
    killed_at(words, tmp_path, IN_A_RUN)
    done = kdsweep(*words, root=tmp_path)
    assert done.status == 0, done.err
    found = runs(tmp_path, "distill")
    assert found[-1].info.status == "FINISHED"
    assert len({run.data.tags["kdsweep.teacher"] for run in found}) == 1
    # The last kill came when a run had just ended: it says the same as the one after it.
    assert len({run.data.tags["kdsweep.weights"] for run in found if run.info.status == "FINISHED"}) == 1
    assert [path for path in (tmp_path / "cache").rglob(".*") if path.is_dir()] == []
    assert all(read_tensors(path) is not None for path in (tmp_path / "cache").rglob("*.safetensors"))


def test_killed_workers_cost_a_retry_each(tmp_path: Path) -> None:
    """Two workers are killed in the middle of a run, and at last the controller, which no worker outlives.

    All paths are relative, and Hydra takes each job to a folder of its own.
    """
    words = (*STUDY, "sweep.n_trials=4", "sweep.n_jobs=2", "epochs=12", "n_passes=1", "hydra.job.chdir=true")
    command = Command(*words, root=tmp_path, env={"KDSWEEP_HOME": "."})
    for _ in range(2):
        worker, _ = two_at_work(command, tmp_path)
        os.kill(worker.pid, signal.SIGKILL)
        wait_for_end([worker])
    workers = two_at_work(command, tmp_path)
    command.signal(signal.SIGKILL)
    command.outcome()
    wait_for_end(workers)
    done = kdsweep(*words, "sweep.n_jobs=1", root=tmp_path, env={"KDSWEEP_HOME": "."})
    assert done.status == 0, done.err
    assert_whole(tmp_path, sqlite_uri(tmp_path / "studies" / "alpha_tau" / "optuna.db"), n_trials=4)
    # A run that is killed when all of it is trained is finished, and not cut short: not all four of them are.
    assert interruptions(tmp_path) >= 1


def test_a_killed_trial_goes_on_where_it_was(tmp_path: Path) -> None:
    """It goes on from its checkpoint, in the same MLflow run: what it had trained is not trained again."""
    words = (*STUDY, "sweep.n_trials=2", "sweep.confirm_seeds=0", "sweep.baseline_seeds=0", "epochs=4", "n_passes=1")
    words = (*words, "checkpoint_share=1")
    second = partial(kill_at, "kdsweep.system.checkpoint:write_tensors", "after", call=2)
    assert Command(*words, root=tmp_path, prepare=second).outcome().status == -signal.SIGKILL
    assert checkpoints(tmp_path) != []
    done = kdsweep(*words, root=tmp_path)
    assert done.status == 0, done.err
    (trial,) = runs(tmp_path, job="trial-0000")
    assert trial.info.status == "FINISHED"
    assert int(trial.data.tags["kdsweep.resumed_after"]) == 2
    assert checkpoints(tmp_path) == []


@pytest.mark.all
def test_a_study_on_postgresql_survives_the_same(tmp_path: Path, postgresql: PostgreSQL) -> None:
    """Optuna's record lies on a server; the controller is killed wherever it writes there, and at a random moment."""
    words = (*STUDY, f"hydra.sweeper.storage={postgresql.uri}")
    killed_at(words, tmp_path, IN_THE_SEARCH)
    killed_at_random(words, tmp_path, random.Random(1))
    done = Command(*words, root=tmp_path).outcome()  # not here, where its connections would stay open
    assert done.status == 0, done.err
    assert_whole(tmp_path, postgresql.uri)


@pytest.mark.all
def test_a_study_on_ray_survives_a_killed_worker(tmp_path: Path) -> None:
    """Eight trials, two at a time; one of them costs a retry."""
    words = (*STUDY, "sweep.n_trials=8", "sweep.executor=ray", "sweep.n_jobs=2", "epochs=12", "n_passes=1")
    command = Command(*words, root=tmp_path)
    worker, _ = two_at_work(command, tmp_path)
    os.kill(worker.pid, signal.SIGKILL)
    done = command.outcome()
    assert done.status == 0, done.err
    assert "it is started again" in done.err
    assert_whole(tmp_path, sqlite_uri(tmp_path / "studies" / "alpha_tau" / "optuna.db"), n_trials=8)
    assert interruptions(tmp_path) == 1


def test_a_second_controller_is_told_who_works(tmp_path: Path) -> None:
    """On the same study at the same time: one line, exit status 2, and the first goes on undisturbed."""
    words = (*STUDY, "sweep.n_trials=2", "sweep.baseline_seeds=0", "sweep.confirm_seeds=0")
    go = tmp_path / "go"
    first = Command(*words, root=tmp_path, prepare=partial(wait_at, "kdsweep.study.search:Search.next", go))
    first.wait_for(go.with_suffix(".waiting").exists)
    second = kdsweep(*words, root=tmp_path)
    assert second.status == 2
    assert "is being run by process" in second.error
    go.touch()
    assert first.outcome().status == 0
    assert [run.data.tags["kdsweep.job"] for run in runs(tmp_path, "distill")] == ["trial-0000", "trial-0001"]


BETWEEN = {"loss.alpha": 0.25, "loss.tau": 3.0}


def choosing_between(place: str | None) -> None:
    """The model chooses a setting that no trial has; the process is killed after a function, if one is named."""
    choosing.choose = lambda *_, **__: Choice(None, BETWEEN, 0.9, 0.01, 0, 0, 0.9, 0.9)  # type: ignore[attr-defined]
    if place is not None:
        kill_at(place, "after")


def test_a_choice_between_the_trials_is_tried_once(tmp_path: Path) -> None:
    """The study is killed when the choice has been written down as a trial that nobody has begun, and goes on."""
    for place in ("kdsweep.study.search:Search.try_between", None):
        command = Command(*STUDY, root=tmp_path, prepare=partial(choosing_between, place))
        assert command.outcome().status == (0 if place is None else -signal.SIGKILL), place
    (study,) = runs(tmp_path, "study")
    assert study.data.tags["kdsweep.chosen"] == str(N_TRIALS)
    (tried,) = runs(tmp_path, job=f"trial-{N_TRIALS:04d}")
    (confirmed,) = runs(tmp_path, job=f"confirm-trial-{N_TRIALS:04d}-1000")
    for run in (tried, confirmed):
        assert run.info.status == "FINISHED"
        assert {key: float(run.data.params[key]) for key in BETWEEN} == BETWEEN
    assert len(runs(tmp_path, "distill", stage="search")) == N_TRIALS + 1


def killed_while_training(stage: str) -> None:
    """This process is killed when the first run that it trains in a stage has its checkpoint."""
    begun = getattr(Stages, stage)

    def dying(*arguments: Any) -> None:
        kill_at("kdsweep.system.checkpoint:write_tensors", "after")
        begun(*arguments)

    setattr(Stages, stage, dying)


@pytest.mark.all
@pytest.mark.timeout(1800)
def test_a_study_of_all_at_once_goes_on_and_each_run_is_reproduced(tmp_path: Path) -> None:
    """Pictures without labels, a teacher trained as a whole, and a sum with a searched weight: killed, and to the bit.

    SIGKILL in the middle of the teacher's training, then of a trial, then of a confirmation.
    """
    weights, root = tmp_path / "weights.safetensors", tmp_path / "home"
    torch.manual_seed(0)
    save_file(shufflenet_v2_x0_5(num_classes=10).state_dict(), weights)
    words = (
        *("sweep=alpha_tau", *SHORT, "checkpoint_share=1", "data.train_fraction=0.25", "data.unlabelled=rest"),
        *(
            "teacher=resnet50_finetuned",
            "teacher.network.name=shufflenet_v2_x0_5",
            f"teacher.network.weights={weights}",
        ),
        *("teacher.network.input_size=32", "teacher.training.epochs=2", "teacher.training.precision=fp32"),
        *("loss=sum_feature", "loss.terms.kd.weight=interval(0,2)", "sweep.max_restarts=50"),
        *("sweep.n_trials=2", "sweep.baseline_seeds=1", "sweep.confirm_seeds=1"),
    )
    for stage in ("run_baselines", "run_search", "confirm"):
        done = Command(*words, root=root, prepare=partial(killed_while_training, stage)).outcome()
        assert done.status == -signal.SIGKILL, (stage, done)
    done = kdsweep(*words, root=root)
    assert done.status == 0, done.err
    found = [run for run in runs(root) if "kdsweep.job" in run.data.tags]
    assert {run.info.status for run in found} == {"FINISHED"}
    assert len(found) == len({run.data.tags["kdsweep.job"] for run in found}) == 8
    resumed = {run.data.tags["kdsweep.stage"] for run in found if "kdsweep.resumed_after" in run.data.tags}
    assert resumed == {"baseline", "search", "confirmation"}
    for run in found:
        again = run_here([run.info.run_id], root, module="kdsweep.commands.reproduce", program="kdsweep-reproduce")
        assert (again.status, "Bit-for-bit the same: the weights, " in again.out) == (0, True), again
