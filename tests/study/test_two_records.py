"""Claims about a study whose records in Optuna and in MLflow disagree: real stores of both, and made-up runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from optuna.distributions import FloatDistribution

from kdsweep.study import two_records
from kdsweep.study.search import EndedTrial, Search
from kdsweep.system.errors import PrunedError, UserError
from kdsweep.system.sqlite import sqlite_uri
from kdsweep.tracking.location import store_uri
from kdsweep.tracking.run_records import ARM_TAG, RunRecord
from kdsweep.tracking.store import Store


@pytest.fixture
def search(tmp_path: Path) -> Search:
    """A new study of up to nine trials."""
    sampler = OmegaConf.create({"_target_": "optuna.samplers.RandomSampler", "seed": 0})
    space = {"loss.alpha": FloatDistribution(0, 1)}
    return Search(sqlite_uri(tmp_path / "optuna.db"), "pets", ["maximize"], space, sampler, None, 9, 2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(store_uri(None, tmp_path_factory.mktemp("runs")))


def begun(search: Search, store: Store) -> str:
    """Records the study's own run, as its controller does, and returns its id."""
    tags = {ARM_TAG: "study", "kdsweep.study": search.name, "kdsweep.study_key": search.key}
    with store.run(search.name, tags=tags, params={}) as run:
        search.record_in(store.uri)
        return run.id


def tried(search: Search, *values: float | None) -> None:
    """Ends a trial with each value; None fails one."""
    for value in values:
        setting = search.next()
        assert setting is not None
        if value is None:
            search.fail(setting.number, "diverged")
        else:
            search.complete(setting.number, [value])


def recorded(store: Store, parent: str, *numbers: int, error: BaseException | None = None) -> list[RunRecord]:
    """Records runs of these trials, and returns all runs of the study."""
    for number in numbers:
        tags = {ARM_TAG: "distill", "kdsweep.job": f"trial-{number:04d}", "kdsweep.trial": str(number)}
        expected = [] if error is None else [type(error)]
        with suppress(*expected), store.run("trial", tags=tags, params={}, parent=parent):
            if error is not None:
                raise error
    return store.children(parent)


def compare(search: Search, store: Store) -> list[EndedTrial]:
    """Compares the records as a controller does that goes on, and returns the trials without a run."""
    two_records.require_store(search, store.uri)
    known = two_records.study_run(search, store)
    runs = [] if known is None else store.children(known.id)
    two_records.require_known(search, runs)
    missing = two_records.without_run(search, runs)
    two_records.require_same(search, store, known, missing)
    return missing


def test_records_that_agree_are_no_obstacle(search: Search, store: Store) -> None:
    """A study that has just begun, one with trials that failed or were pruned, and one in a moved store go on."""
    assert compare(search, store) == []
    parent = begun(search, store)
    assert compare(search, store) == []
    tried(search, 0.5, None)
    assert search.next() is not None
    search.prune(2, epoch=3)
    recorded(store, parent, 0)
    recorded(store, parent, 1, error=ValueError("diverged"))
    recorded(store, parent, 2, error=PrunedError(3))
    search.record_in("http://where.it.was")
    assert compare(search, store) == []


def refused(search: Search, store: Store) -> str:
    with pytest.raises(UserError) as error:
        compare(search, store)
    line = str(error.value)
    assert line.startswith("sweep.name: ")
    assert "sweep.restart=fresh" in line
    return line


def test_another_store_is_refused_with_the_one_that_has_the_runs(search: Search, store: Store, tmp_path: Path) -> None:
    """Though it may hold other studies; and one that isn't there isn't made."""
    begun(search, store)
    tried(search, 0.5, 0.6)
    other = Store(sqlite_uri(tmp_path / "other.db"))
    line = refused(search, other)
    assert "Optuna's record of the study 'pets' has 2 results, but its run isn't in the MLflow store sqlite:" in line
    assert f"It was recorded in {store.uri}: name that (tracking.uri, MLFLOW_TRACKING_URI, paths.root);" in line
    assert "sweep.restart=restore" in line
    gone = sqlite_uri(tmp_path / "gone.db")
    with pytest.raises(UserError, match=r"there is no MLflow store at .*gone\.db\. It was recorded in sqlite:.*runs"):
        two_records.require_store(search, gone)
    assert not (tmp_path / "gone.db").exists()


def test_baselines_without_a_trial_count_too(search: Search, store: Store, tmp_path: Path) -> None:
    """A study that was interrupted before its first trial has runs as well."""
    begun(search, store)
    assert "has 0 results, but its run isn't in" in refused(search, Store(sqlite_uri(tmp_path / "other.db")))


def test_a_study_that_was_deleted_is_said_to_be(search: Search, store: Store) -> None:
    """Its own run, in MLflow's UI; Optuna's record of an older version doesn't say where it was."""
    parent = begun(search, store)
    tried(search, 0.5)
    store.ask("delete_run", parent)
    assert "It was recorded there: restore what was deleted" in refused(search, store)
    store.ask("restore_run", parent)
    assert compare_without_trial(search, store) == [0]


def compare_without_trial(search: Search, store: Store) -> list[int]:
    known = two_records.study_run(search, store)
    assert known is not None
    return [trial.number for trial in two_records.without_run(search, store.children(known.id))]


def test_a_study_of_an_older_version_asks_for_its_store(search: Search, store: Store) -> None:
    """Its record in Optuna doesn't say where its runs are."""
    tried(search, 0.5)
    assert "Name the store that has it (tracking.uri" in refused(search, store)


@pytest.mark.parametrize(("kept", "named"), [([1], "the trials 0, 2"), ([0, 1], "trial 2"), ([], "the trials 0, 1, 2")])
def test_trials_that_were_deleted_are_named(kept: Sequence[int], named: str, search: Search, store: Store) -> None:
    """The others have their runs; so has one that failed, or none."""
    parent = begun(search, store)
    tried(search, 0.5, 0.6, 0.7, None)
    recorded(store, parent, *kept)
    line = refused(search, store)
    assert f"has results of {named} without a whole run in the MLflow store" in line
    assert "`kdsweep-sync`" in line


def test_a_run_that_was_not_finished_is_no_result(search: Search, store: Store) -> None:
    """Optuna has the value, and the store didn't take the run's end."""
    parent = begun(search, store)
    tried(search, 0.5)
    recorded(store, parent, 0, error=KeyboardInterrupt())
    assert "results of trial 0 without a whole run" in refused(search, store)


def test_an_older_copy_of_optunas_record_is_noticed(search: Search, store: Store) -> None:
    """It would give the numbers of trials that MLflow has to other settings."""
    parent = begun(search, store)
    tried(search, 0.5)
    recorded(store, parent, 0, 1, 2)
    assert "MLflow has runs of the trials 1, 2 of the study 'pets', which Optuna's record lacks" in refused(
        search, store
    )


def test_a_study_without_its_record_in_optuna_is_said_to_begin_anew(
    search: Search, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder was removed, perhaps on purpose: this is a note, and no refusal."""
    other = Store(sqlite_uri(tmp_path / "mlflow.db"))
    assert compare(search, other) == []
    assert capsys.readouterr().err == ""
    with other.run(
        "pets", tags={ARM_TAG: "study", "kdsweep.study": "pets", "kdsweep.study_key": "1"}, params={}
    ) as run:
        known = run.id
    assert compare(search, other) == []
    assert f"a study 'pets' already (run {known}), which Optuna's record doesn't know" in capsys.readouterr().err
