"""Claims about the link between a job and its trial, on a real Optuna storage."""

from __future__ import annotations

import time
from pathlib import Path

import optuna
import pytest
import torch

from kdsweep.execution import heartbeat
from kdsweep.execution.trial_link import BEAT, PROCESS, VALUES, TrialLink, open_storage, storage_url
from kdsweep.system.errors import PrunedError
from kdsweep.system.processes import this_process
from kdsweep.system.sqlite import sqlite_uri


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """A study with one running trial, as a controller has it."""
    made = optuna.create_study(storage=open_storage(sqlite_uri(tmp_path / "optuna.db")), study_name="study")
    made.ask()
    return made


def link(folder: Path, pruner: optuna.pruners.BasePruner | None = None) -> TrialLink:
    return TrialLink(sqlite_uri(folder / "optuna.db"), "study", 0, pruner)


def test_a_job_shows_that_it_lives(study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial names its process, and the heartbeat changes until the job has ended."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    with link(tmp_path).alive():
        first = study.trials[0].user_attrs
        assert first[PROCESS] == str(this_process())
        end = time.monotonic() + 30
        while study.trials[0].user_attrs[BEAT] == first[BEAT]:
            assert time.monotonic() < end
    last = study.trials[0].user_attrs[BEAT]
    time.sleep(0.1)
    assert study.trials[0].user_attrs[BEAT] == last


def test_a_job_is_told_to_stop(study: optuna.Study, tmp_path: Path) -> None:
    """The pruner stops it by an exception with the epoch; the trial stays running, since only the sweeper tells."""
    strict = link(tmp_path, optuna.pruners.ThresholdPruner(lower=0.5))
    strict.report(0.6, 1)
    with pytest.raises(PrunedError, match="pruned after epoch 2") as caught:
        strict.report(0.4, 2)
    assert caught.value.epoch == 2
    assert study.trials[0].state == optuna.trial.TrialState.RUNNING
    assert study.trials[0].intermediate_values == {1: 0.6, 2: 0.4}


def test_a_run_that_has_ended_is_not_stopped(study: optuna.Study, tmp_path: Path) -> None:
    """Its last epoch has been paid for: its result counts, however it compares."""
    pruner = optuna.pruners.ThresholdPruner(lower=0.5)
    TrialLink(sqlite_uri(tmp_path / "optuna.db"), "study", 0, pruner, epochs=2).report(0.4, 2)
    assert study.trials[0].intermediate_values == {2: 0.4}


def test_without_a_pruner_each_epoch_is_reported(study: optuna.Study, tmp_path: Path) -> None:
    """Optuna's dashboard shows the trial's curve, and nothing stops the trial."""
    for epoch, value in enumerate((0.1, 0.3, 0.2), start=1):
        link(tmp_path).report(value, epoch)
    assert study.trials[0].intermediate_values == {1: 0.1, 2: 0.3, 3: 0.2}


def test_an_epoch_is_reported_once(study: optuna.Study, tmp_path: Path) -> None:
    """A trial whose process died begins anew, and comes to the same epochs without a warning."""
    link(tmp_path).report(0.1, 1)
    link(tmp_path).report(0.4, 1)
    assert study.trials[0].intermediate_values == {1: 0.1}


def test_with_several_objectives_nothing_is_reported(tmp_path: Path) -> None:
    """Optuna takes no reports there."""
    storage = open_storage(sqlite_uri(tmp_path / "optuna.db"))
    study = optuna.create_study(storage=storage, study_name="study", directions=["maximize", "minimize"])
    study.ask()
    link(tmp_path).report(0.1, 1)
    assert study.trials[0].intermediate_values == {}


def test_a_trial_leads_to_its_run(study: optuna.Study, tmp_path: Path) -> None:
    """Optuna's dashboard shows the MLflow run's id and the address of its page."""
    link(tmp_path).recorded("abc", "http://host/#/runs/abc")
    assert study.trials[0].user_attrs == {"mlflow.run": "abc", "mlflow.page": "http://host/#/runs/abc"}


def test_a_run_that_diverges_is_not_pruned(study: optuna.Study, tmp_path: Path) -> None:
    """Pruners would take NaN for a bad value, while the run itself reports that it failed."""
    link(tmp_path, optuna.pruners.ThresholdPruner(lower=0.5)).report(float("nan"), 1)
    assert study.trials[0].intermediate_values == {}


def test_a_result_is_left_in_the_trial(study: optuna.Study, tmp_path: Path) -> None:
    """A later controller finds it there."""
    link(tmp_path).leave((0.5, torch.tensor(0.25)))
    assert study.trials[0].user_attrs[VALUES] == [0.5, 0.25]


def test_the_default_storage_lies_in_the_studys_folder(tmp_path: Path) -> None:
    """It is an SQLite file, named by its full path; another storage is taken as it is written."""
    assert storage_url(None, str(tmp_path)) == f"sqlite:///{tmp_path}/optuna.db"
    assert storage_url("postgresql://host/name", str(tmp_path)) == "postgresql://host/name"
