"""Claims about a job's line to its trial, on a real Optuna storage."""

from __future__ import annotations

import time
from pathlib import Path

import optuna
import pytest

from kdsweep.execution import trial_link
from kdsweep.execution.trial_link import (
    BEAT,
    PROCESS,
    STALE_SECONDS,
    VALUES,
    Pulse,
    TrialLink,
    open_storage,
    storage_url,
)
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
    """Who it is, and again and again that it is still there."""
    monkeypatch.setattr(trial_link, "BEAT_SECONDS", 0.01)
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
    """By the pruner, as an exception with the epoch; the trial itself stays running, since only the sweeper tells."""
    strict = link(tmp_path, optuna.pruners.ThresholdPruner(lower=0.5))
    strict.report(0.6, 1)
    with pytest.raises(PrunedError, match="pruned after epoch 2") as caught:
        strict.report(0.4, 2)
    assert caught.value.epoch == 2
    assert study.trials[0].state == optuna.trial.TrialState.RUNNING
    assert study.trials[0].intermediate_values == {1: 0.6, 2: 0.4}


def test_without_a_pruner_nothing_is_reported(study: optuna.Study, tmp_path: Path) -> None:
    """MLflow has the epochs; a second database needn't."""
    link(tmp_path).report(0.1, 1)
    assert study.trials[0].intermediate_values == {}


def test_a_run_that_diverges_is_not_pruned(study: optuna.Study, tmp_path: Path) -> None:
    """Pruners take NaN for a bad value; the run says by itself that it failed."""
    link(tmp_path, optuna.pruners.ThresholdPruner(lower=0.5)).report(float("nan"), 1)
    assert study.trials[0].intermediate_values == {}


def test_a_result_is_left_in_the_trial(study: optuna.Study, tmp_path: Path) -> None:
    """For a controller that comes after the one that asked."""
    link(tmp_path).leave((0.5, 0.1))
    assert study.trials[0].user_attrs[VALUES] == [0.5, 0.1]


class Clocks:
    """The machine's clock and the one that nobody sets, as the tests say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.monotonic_now = 1e9, 50.0
        monkeypatch.setattr(trial_link, "time", self)

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.monotonic_now

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic_now += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def test_what_has_written_nothing_for_two_minutes_is_dead(clocks: Clocks) -> None:
    """At the first look its beat says how long; what goes on beating lives."""
    pulse = Pulse()
    assert not pulse.lives("long dead", clocks.wall - STALE_SECONDS)
    assert pulse.lives("dying", clocks.wall - STALE_SECONDS + 30)
    living = clocks.wall
    assert pulse.lives("living", living)
    clocks.wait(30)
    assert not pulse.lives("dying", living - STALE_SECONDS + 30)
    assert pulse.lives("living", living)


@pytest.mark.parametrize("hours", [-1, 1])
def test_setting_the_clock_revives_and_kills_nobody(clocks: Clocks, hours: int) -> None:
    """Of the one who looks: it has seen when the beat changed, and knows how long ago that is."""
    pulse, beat = Pulse(), clocks.wall
    assert pulse.lives("job", beat)
    clocks.wall += hours * 3600
    clocks.wait(STALE_SECONDS - 1)
    assert pulse.lives("job", beat)
    clocks.wait(1)
    assert not pulse.lives("job", beat)
    assert pulse.lives("job", beat + 20)


def test_a_beat_from_the_future_is_new(clocks: Clocks) -> None:
    """The clock there is ahead of ours: two minutes without another beat, and it is dead."""
    pulse, beat = Pulse(), clocks.wall + 3600
    assert pulse.lives("job", beat)
    clocks.wait(STALE_SECONDS)
    assert not pulse.lives("job", beat)


def test_the_default_storage_lies_in_the_studys_folder(tmp_path: Path) -> None:
    """As an SQLite file by its full path; another storage is taken as it is written."""
    assert storage_url(None, str(tmp_path)) == f"sqlite:///{tmp_path}/optuna.db"
    assert storage_url("postgresql://host/name", str(tmp_path)) == "postgresql://host/name"
