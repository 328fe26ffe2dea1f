"""Claims about what a search starts from: settings that are asked for, and another study's trials in a real store."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution
from records import record

from kdsweep.study import asking, starting
from kdsweep.study.search import Search
from kdsweep.system.errors import UserError
from kdsweep.system.sqlite import sqlite_uri
from kdsweep.tracking.location import store_uri
from kdsweep.tracking.run_records import ARM_TAG
from kdsweep.tracking.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

PARAMS = {"data.name": "pets", "epochs": 3, "loss.tau": 4, "seed": 0, "sweep.n_trials": 9}


@pytest.fixture
def search(tmp_path: Path) -> Search:
    """A new study of up to three trials over alpha and the optimizer."""
    sampler = OmegaConf.create({"_target_": "optuna.samplers.RandomSampler", "seed": 0})
    space = {"loss.alpha": FloatDistribution(0, 1), "optimizer": CategoricalDistribution(("sgd", "adamw"))}
    made = Search(sqlite_uri(tmp_path / "optuna.db"), "pets", ["maximize"], space, sampler, None, 3, 2)
    made.name_objectives(["val/accuracy"])
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one study of three trials, of which one has failed."""
    made = Store(store_uri(None, tmp_path_factory.mktemp("runs")))
    tags = {ARM_TAG: "study", "kdsweep.study_key": "k"}
    space = {"space.loss.alpha": "loss.alpha=interval(0,1)"}
    with made.run("before", tags=tags, params={**PARAMS, **space, "optimizer": "sgd"}) as parent:
        for number, alpha in enumerate((0.2, 0.6, 1.5)):
            own = {ARM_TAG: "distill", "kdsweep.stage": "search", "kdsweep.trial": str(number)}
            params = {**PARAMS, "loss.alpha": alpha, "optimizer": "sgd"}
            with made.run("trial", tags=own, params=params, parent=parent.id) as run:
                run.summary({"val/accuracy": alpha / 2})
    return made


def test_settings_are_those_of_the_search(search: Search) -> None:
    """Keys with dots or nested, words and whole numbers: each becomes what Optuna has for it."""
    wanted = [{"loss.alpha": 1, "optimizer": "adamw"}, {"loss": {"alpha": 0.5}, "optimizer": "sgd"}]
    found = starting.settings(wanted, search)
    assert found == [{"loss.alpha": 1.0, "optimizer": "adamw"}, {"loss.alpha": 0.5, "optimizer": "sgd"}]
    assert starting.settings(None, search) == []


@pytest.mark.parametrize(
    ("start", "rule"),
    [
        (4, "start is null, or a list of settings"),
        ([4], "start is null, or a list of settings"),
        ([{"loss.alpha": 0.5}], r"each setting has the searched keys \(loss.alpha, optimizer\)"),
        ([{"loss.alpha": 1.5, "optimizer": "sgd"}], "each setting lies in the space"),
        ([{"loss.alpha": 0.5, "optimizer": "lion"}], "each setting lies in the space"),
        ([{"loss.alpha": 0.5, "optimizer": "sgd"}] * 4, "at most sweep.n_trials settings"),
    ],
)
def test_a_setting_that_isnt_searched_is_refused(search: Search, start: object, rule: str) -> None:
    """Before any run, with the rule that it breaks."""
    with pytest.raises(UserError, match=rule):
        starting.settings(start, search)


def test_a_start_is_begun_once(search: Search, store: Store) -> None:
    """Settings and an earlier study are added once, however often the command is repeated."""
    start = starting.settings([{"loss.alpha": 0.9, "optimizer": "adamw"}], search)
    params = {**PARAMS, "space.loss.alpha": "loss.alpha=interval(0,0.9)", "space.optimizer": "optimizer=sgd,adamw"}
    for _ in range(2):
        starting.begin(search, start, "before", store, params)
    assert len(search.trials()) == 1
    assert search.earlier_name() == "before"
    setting = search.next()
    assert setting is not None
    search.complete(setting.number, [0.5])
    others = [trial for trial in search.scored() if not trial.own]
    assert [(one.params, one.value, one.inside) for one in others] == [
        ({"loss.alpha": 0.2, "optimizer": "sgd"}, 0.1, True),
        ({"loss.alpha": 0.6, "optimizer": "sgd"}, 0.3, True),
        ({"loss.alpha": 1.5, "optimizer": "sgd"}, 0.75, False),
    ]
    full = [{"loss.alpha": alpha, "optimizer": "sgd"} for alpha in (0.1, 0.2, 0.3)]
    with pytest.raises(UserError, match=r"sweep\.n_trials has room for 3 more settings"):
        starting.begin(search, full, None, store, params)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"data.name": "digits"}, "data.name was pets and is digits"),
        ({"epochs": 4}, "epochs was 3 and is 4"),
        ({"loss.tau": 2}, "loss.tau was 4 and is 2"),
    ],
)
def test_another_kind_of_study_is_refused(search: Search, store: Store, changed: dict[str, object], told: str) -> None:
    """It names what differs; seeds and budgets may differ."""
    with pytest.raises(UserError, match=told):
        starting.begin(search, [], "before", store, {**PARAMS, **changed})
    starting.begin(search, [], "before", store, {**PARAMS, "seed": 7, "sweep.n_trials": 3})
    with pytest.raises(UserError, match="There is no study"):
        starting.begin(search, [], "nowhere", store, PARAMS)


def test_requests_are_kept_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    """The first has all that was asked; a later one what it changed; the same again adds nothing."""
    first = asking.tag(None, {"trials": "8", "sampler": "GPSampler"})
    again = asking.tag(record("study", tags=first), {"trials": "8", "sampler": "GPSampler"})
    assert again == first
    (told,) = asking.tag(record("study", tags=first), {"trials": "12", "sampler": "GPSampler"}).values()
    assert capsys.readouterr().err == "Asked for anew: trials 12.\n"
    assert '"asked": {"trials": "12"}' in told
    assert '"asked": {"trials": "8", "sampler": "GPSampler"}' in told
