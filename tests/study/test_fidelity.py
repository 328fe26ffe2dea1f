"""Claims about a search of shorter runs: made-up runs on a real MLflow store and a real Optuna storage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from test_stages import LOST, AtOnce, Place, no_signal_comes, store, words

from kdsweep.execution.jobs import Job, in_words
from kdsweep.study import fidelity, two_records
from kdsweep.study.fidelity import Lengths
from kdsweep.study.stages import Stages
from kdsweep.system.errors import UserError
from kdsweep.tracking.store import Store

__all__ = ["no_signal_comes", "store"]  # fixtures

LENGTHS = Lengths("epochs", 8, 30, 6)
PILOT = [f"pilot-{number:04d}-{length}" for number in range(6) for length in ("short", "full")]


@pytest.fixture
def place(store: Store, tmp_path: Path) -> Place:
    return Place(store, tmp_path)


class Turned(AtOnce):
    """Runs in which a short training turns the ranks around."""

    def alpha(self, job: Job) -> float:
        found = super().alpha(job)
        return -found if words(job).get("epochs") == "8" else found


def stages(place: Place, n_trials: int = 8) -> Stages:
    return place.stages(n_trials, lengths=LENGTHS)


def pilot_and_search(stages: Stages, executor: AtOnce) -> None:
    with stages.carried_out_by(executor):
        stages.run_pilot()
        stages.run_search()


def test_where_ranks_transfer_trials_are_short_and_confirmations_long(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pilot's short runs are the first trials; confirmations and controls have the full length."""
    executor = AtOnce(place)
    begun = stages(place)
    assert begun.planned() == {
        **{"teacher": 1, "scratch": 2, "smoothing": 1},
        **{"pilot": 12, "trials": 2, "confirmation": 6},
    }
    with begun.carried_out_by(executor):
        begun.run_baselines()
        begun.run_pilot()
        left = begun.left()
        assert (left["scratch"], left["pilot"], left["trials"]) == (0, 0, 2)
        begun.run_search()
        begun.confirm(begun.choose())
    assert executor.names[4:18] == [*PILOT, "trial-0006", "trial-0007"]
    short = {job.name for job in executor.jobs if words(job).get("epochs") == "8"}
    assert short == {name for name in executor.names if name.startswith("trial") or name.endswith("short")}
    assert {words(job)["tracking.stage"] for job in executor.jobs[4:16]} == {"pilot"}
    trials = place.search(8).trials()
    assert [trial.value for trial in trials] == [trial.params["loss.alpha"] for trial in trials]
    told = capsys.readouterr().err
    assert "Pilot: over 6 settings, val/accuracy with epochs=8 has a rank correlation of 1.00 (0.38 to 1.00)" in told
    assert "The search's trials have epochs=8." in told
    assert "Pilot of trial 3, full length" in told


def test_where_ranks_dont_transfer_the_search_is_at_full_length(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pilot's long runs are the first trials."""
    executor = Turned(place)
    pilot_and_search(stages(place), executor)
    assert [words(job).get("epochs") for job in executor.jobs[-2:]] == [None, None]
    trials = place.search(8).trials()
    assert [trial.value for trial in trials] == [trial.params["loss.alpha"] for trial in trials]
    assert "That doesn't show that ranks transfer: the search's trials have epochs=30." in capsys.readouterr().err


def test_a_pilot_of_too_few_runs_shows_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that fails takes its pair away; its trial fails only if it is of the search's length."""
    executor = AtOnce(place, pilot_0002_short=[ValueError("no")])
    pilot_and_search(stages(place), executor)
    assert "only 5 settings ran to the end at both lengths" in capsys.readouterr().err
    assert all(trial.value is not None for trial in place.search(8).trials())


def test_a_trial_fails_whose_run_of_the_pilot_failed(place: Place) -> None:
    """The search goes on without its value."""
    begun = place.stages(9, lengths=replace(LENGTHS, n=7))
    pilot_and_search(begun, AtOnce(place, pilot_0002_short=[ValueError("no")]))
    trials = place.search(9).trials()
    assert fidelity.known(place.search(9)) is not None
    assert [trial.number for trial in trials if trial.value is None] == [2]
    assert trials[2].user_attrs["kdsweep.cause"] == "its short run of the pilot failed"


@pytest.mark.parametrize("at", ["pilot-0003-short", "pilot-0004-full"])
def test_a_killed_pilot_goes_on_with_the_same_settings(at: str, place: Place) -> None:
    """Each run is made once, however often the controller dies."""
    first = AtOnce(place, **{at.replace("-", "_"): [KeyboardInterrupt()]})
    with pytest.raises(KeyboardInterrupt):
        pilot_and_search(stages(place), first)
    before = [trial.params for trial in place.search(8).trials()]
    second = AtOnce(place)
    pilot_and_search(stages(place), second)
    assert [*first.names[: first.names.index(at)], *second.names] == [*PILOT, "trial-0006", "trial-0007"]
    assert [trial.params for trial in place.search(8).trials()][:6] == before
    assert stages(place).left()["trials"] == 0


def test_a_study_killed_between_decision_and_result_tells_the_rest(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the pilot measured is kept with the decision."""
    begun = stages(place)
    with monkeypatch.context() as patch:
        patch.setattr(fidelity, "tell", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pilot_and_search(begun, AtOnce(place))
    executor = AtOnce(place)
    pilot_and_search(stages(place), executor)
    assert executor.names == ["trial-0006", "trial-0007"]
    assert all(trial.value == trial.params["loss.alpha"] for trial in place.search(8).trials())


def test_a_run_of_the_pilot_whose_process_died_is_started_again(place: Place) -> None:
    """As that of a baseline is."""
    executor = AtOnce(place, pilot_0001_full=[LOST])
    pilot_and_search(stages(place), executor)
    assert executor.names.count("pilot-0001-full") == 2


def test_both_records_agree_about_the_pilots_trials(place: Place) -> None:
    """Optuna's first trials have the pilot's runs in MLflow, those of the search's length."""
    pilot_and_search(stages(place), AtOnce(place))
    runs = place.store.children(place.parent_id)
    assert two_records.without_run(place.search(8), runs) == []
    long = [run for run in runs if run.tags["kdsweep.job"] != "pilot-0001-short"]
    assert [trial.number for trial in two_records.without_run(place.search(8), long)] == [1]


def test_all_objectives_have_to_transfer(place: Place) -> None:
    """The second one decides if its ranks do not."""
    pilot = [
        (number, (number, value), (number, 2 * number)) for number, value in enumerate((3.0, 1.0, 4.0, 0.0, 2.0, 5.0))
    ]
    assert fidelity.transfer([(number, (number,), (2 * number,)) for number in range(6)]).shown
    found = fidelity.transfer(pilot)
    assert (found.objective, found.shown) == (1, False)


def test_the_length_is_decided_once(place: Place) -> None:
    """A study that has begun refuses another one, also one that had a single length."""
    search = place.search(8)
    fidelity.require_same(search, LENGTHS)
    search.first(2)
    fidelity.require_same(search, LENGTHS)
    with pytest.raises(UserError, match=r"begun with epochs=8 of 30 and a pilot of 6, not with runs of one length"):
        fidelity.require_same(search, None)
    with pytest.raises(UserError, match="pilot < n_trials = 6"):
        fidelity.require_same(place.search(6), LENGTHS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 1.5}, "0 < fidelity < 1"),
        ({"key": "batch_size"}, "fidelity_of in"),
        ({"key": "n_passes", "full": None}, "the configuration has no n_passes"),
        ({"n": 5}, "6 <= pilot < n_trials = 30"),
        ({"n": 30}, "6 <= pilot < n_trials = 30"),
        ({"full": 1}, "a short run has less than epochs=1"),
        ({"searched": ["epochs"]}, "what is searched isn't cut down too"),
    ],
)
def test_a_wrong_length_is_refused(arguments: dict[str, object], message: str) -> None:
    """The message names the rule, the value and the key."""
    usual = {"share": 0.25, "key": "epochs", "n": 8, "full": 30, "n_trials": 30, "searched": ["loss.alpha"]}
    with pytest.raises(UserError, match=message):
        fidelity.plan(**{**usual, **arguments})  # type: ignore[arg-type]


def test_a_share_of_whole_numbers_is_whole() -> None:
    """Epochs and passes are rounded, a share of the pictures is not."""
    assert fidelity.plan(0.25, "epochs", 8, 30, 30, []) == Lengths("epochs", 8, 30, 8)
    assert fidelity.plan(0.3, "data.train_fraction", 8, 0.03, 30, []) == Lengths("data.train_fraction", 0.009, 0.03, 8)
    assert fidelity.plan(None, "epochs", 8, 30, 30, []) is None
    assert Lengths("epochs", 8, 30, 8).line(short=True) == ["epochs=8"]


def test_jobs_of_the_pilot_are_said_in_words() -> None:
    """Each line of the study names the length."""
    assert in_words("pilot-0003-short") == "pilot of trial 3, short"
