"""Claims about studies that are killed: real commands, real signals, real stores, and the same command again."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from commands import SHORT, Command, Outcome, checkpoints, kdsweep, runs
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from servers import PostgreSQL

from kdsweep.system.processes import ProcessId, parse_process
from kdsweep.system.sqlite import sqlite_uri

pytestmark = pytest.mark.slow

N_TRIALS = 6
# A run is one step. No trial is given up, however often the dice hit it.
STUDY = (
    "sweep=alpha_tau",
    *SHORT,
    *("epochs=1", "batch_size=96", "sweep.baseline_seeds=1", "sweep.confirm_seeds=1", "sweep.max_restarts=50"),
    f"sweep.n_trials={N_TRIALS}",
)
KILLS = 10


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


def killed_and_repeated(words: tuple[str, ...], root: Path, kills: int, dice: random.Random) -> Outcome:
    """A study whose controller is killed at random moments, and started again each time; how the last one ended."""
    for number in range(kills):
        command = Command(*words, root=root)
        # From before its first line of work to some runs later; every other time in a run, however fast the machine is.
        if number % 2 == 1:
            command.wait_for(lambda: working(root))
        time.sleep(dice.uniform(0, 0.3) if number % 2 == 1 else dice.uniform(0.5, 3))
        command.kill()
        done = command.outcome()
        assert done.status in (-signal.SIGKILL, 0), done.err
    return kdsweep(*words, root=root)


def test_a_controller_killed_ten_times_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL at ten random moments, the same command each time."""
    # Longer runs than elsewhere: the dice shall hit them.
    done = killed_and_repeated((*STUDY, "epochs=25", "n_passes=1"), tmp_path, KILLS, random.Random(0))
    assert done.status == 0, done.err
    assert_whole(tmp_path, sqlite_uri(tmp_path / "studies" / "alpha_tau" / "optuna.db"))
    # They did: runs were cut short.
    assert interruptions(tmp_path) >= 3


def test_killed_workers_cost_a_retry_each(tmp_path: Path) -> None:
    """Of two workers four are killed in the middle of a run, and at last the controller, which none outlives."""
    words = (*STUDY, "sweep.n_jobs=2", "epochs=12", "n_passes=1")
    command = Command(*words, root=tmp_path)
    for _ in range(4):
        worker, _ = two_at_work(command, tmp_path)
        os.kill(worker.pid, signal.SIGKILL)
        wait_for_end([worker])
    workers = two_at_work(command, tmp_path)
    command.signal(signal.SIGKILL)
    command.outcome()
    wait_for_end(workers)
    done = kdsweep(*words, root=tmp_path)
    assert done.status == 0, done.err
    assert_whole(tmp_path, sqlite_uri(tmp_path / "studies" / "alpha_tau" / "optuna.db"))
    assert interruptions(tmp_path) >= 5


def test_a_killed_trial_goes_on_where_it_was(tmp_path: Path) -> None:
    """From its checkpoint, in the same MLflow run: what it had trained is not trained again."""
    words = (*STUDY, "sweep.n_trials=2", "sweep.confirm_seeds=0", "epochs=40", "n_passes=1", "checkpoint_share=1")
    command = Command(*words, root=tmp_path)
    log = tmp_path / "studies" / "alpha_tau" / "trial-0000"
    command.wait_for(lambda: log.exists() and checkpoints(tmp_path) != [])
    command.kill()
    command.outcome()
    done = kdsweep(*words, root=tmp_path)
    assert done.status == 0, done.err
    (trial,) = runs(tmp_path, job="trial-0000")
    assert trial.info.status == "FINISHED"
    assert int(trial.data.tags["kdsweep.resumed_after"]) >= 1
    assert checkpoints(tmp_path) == []


def test_a_study_on_postgresql_survives_the_same(tmp_path: Path, postgresql: PostgreSQL) -> None:
    """Optuna's record on a server, the controller killed four times."""
    words = (*STUDY, f"hydra.sweeper.storage={postgresql.uri}")
    done = killed_and_repeated(words, tmp_path, 4, random.Random(1))
    assert done.status == 0, done.err
    assert_whole(tmp_path, postgresql.uri)


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
    first = Command(*STUDY, root=tmp_path)
    first.wait_for(lambda: working(tmp_path))
    second = kdsweep(*STUDY, root=tmp_path)
    assert second.status == 2
    assert "is being run by process" in second.error
    assert first.outcome().status == 0
    assert_whole(tmp_path, sqlite_uri(tmp_path / "studies" / "alpha_tau" / "optuna.db"))
