"""Claims about how a contest is carried out: made-up runs on a real MLflow store and real Optuna storages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState
from test_stages import AtOnce, Place, words

from kdsweep.analysis.contest_plan import Plan
from kdsweep.analysis.study_goals import Stop
from kdsweep.config.overrides import parsed
from kdsweep.execution.jobs import Job
from kdsweep.study import contest, two_records
from kdsweep.study.contest import Contender, Contest
from kdsweep.study.search import Search
from kdsweep.study.stages import Baseline, Stages
from kdsweep.system.errors import RunError, UserError
from kdsweep.system.sqlite import sqlite_uri
from kdsweep.tracking.location import store_uri
from kdsweep.tracking.store import Store

DEFINED = {
    "ce": ["arm=scratch", "loss=ce", "teacher=none"],
    "kd": ["loss=kd", "loss.alpha=interval(0,1)", "loss.tau=2"],
    "dkd": ["loss=dkd", "optimizer.lr=0.05"],
}
FOR_ALL = ["optimizer.lr=interval(0.01,0.1)", "epochs=3"]
COMMAND = ["loss.alpha=0.7", "model.stem=imagenet", "teacher.mode=online"]


def entered(*names: str, command: list[str] = COMMAND, for_all: list[str] = FOR_ALL) -> dict[str, Contender]:
    found = contest.contenders(names or [*DEFINED], DEFINED, for_all, parsed(command), None)  # type: ignore[arg-type]
    return {one.name: one for one in found}


def searched(one: Contender) -> list[str]:
    return [override.key_or_group for override in one.searched]


def test_a_contenders_own_lines_win() -> None:
    """Lines with a sweep are searched; what holds for all holds unless the contender says otherwise."""
    found = entered()
    assert {name: searched(one) for name, one in found.items()} == {
        "ce": ["optimizer.lr"],
        "kd": ["optimizer.lr", "loss.alpha"],
        "dkd": [],
    }
    assert found["dkd"].fixed == ("epochs=3", "loss=dkd", "optimizer.lr=0.05")


def test_the_command_line_holds_for_each_contender_that_has_the_key() -> None:
    """A contender that chooses another loss, or no teacher, leaves out what was set in it."""
    found = entered()
    assert found["ce"].beside == ("model.stem=imagenet",)
    assert found["kd"].beside == found["dkd"].beside == ("model.stem=imagenet", "teacher.mode=online")


def test_a_sweep_on_the_command_line_is_searched_by_all() -> None:
    """Instead of the value that would hold for all of them, but not instead of a contender's own."""
    found = entered(command=["epochs=choice(3,5)", "optimizer.lr=interval(0.2,0.3)"])
    assert searched(found["ce"]) == ["epochs", "optimizer.lr"]
    assert str(found["ce"].searched[1].input_line) == "optimizer.lr=interval(0.2,0.3)"
    assert found["ce"].fixed == ("arm=scratch", "loss=ce", "teacher=none")
    assert searched(found["dkd"]) == ["epochs"]


@pytest.mark.parametrize(
    ("name", "match"),
    [("nobody", "contender in .*but got contenders='nobody'.*sweep.define.nobody"), ("a-b", "letters, digits")],
)
def test_a_contender_has_a_definition_and_a_plain_name(name: str, match: str) -> None:
    """The message says how to define one."""
    with pytest.raises(UserError, match=match):
        entered(name)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(store_uri(None, tmp_path_factory.mktemp("contest")))


class Held:
    """A contest of a contender that is searched and one that isn't, under two conditions."""

    def __init__(self, store: Store, folder: Path, seeds: int = 2, until: int | None = None) -> None:
        self.place, self._folder, self._seeds, self._until = Place(store, folder), folder, seeds, until

    def search(self, name: str, n_trials: int) -> Search:
        space: dict[str, BaseDistribution] = {"loss.alpha": FloatDistribution(0, 1)} if n_trials else {}
        sampler = OmegaConf.create({"_target_": "optuna.samplers.RandomSampler", "seed": 0})
        url = sqlite_uri(self._folder / "optuna.db")
        return Search(url, name, ["maximize"], space, sampler, None, n_trials, 2)

    def open(self) -> Contest:
        """Makes a controller that starts the contest, or goes on with it."""
        competing = entered("ce", "kd", command=["seed=5"], for_all=[])
        grid = {"data.train_fraction": ["0.1", "1"]}
        lines = {name: one.lines for name, one in competing.items()}
        plan = Plan(lines, ["ce"], grid, {"kd": ["loss.alpha"]}, {}, self._seeds)

        def stages(name: str, n_trials: int, lines: list[str], baselines: Mapping[str, Baseline], owner: str) -> Stages:
            own = self.place.store, self.place.parent_id, self.search(name, n_trials), parsed(lines), ["threads=1"]
            return Stages(*own, ["val/accuracy"], baselines, 0, 2, 1.0, "best", "fixed", owner=owner)

        teacher = {"teacher": Baseline(("arm=teacher",), 1, control=False)}
        shared = stages("study", 0, ["seed=5"], teacher, "")
        searches = {"kd": stages("study/kd", 3, competing["kd"].common, {}, "kd")}
        return Contest(plan, [*competing.values()], shared, searches, self._until)

    def run(self, executor: AtOnce) -> Contest:
        held = self.open()
        for _ in held.run(executor):
            pass
        return held


@pytest.fixture
def held(store: Store, tmp_path: Path) -> Held:
    return Held(store, tmp_path)


def job_of(executor: AtOnce, name: str) -> Job:
    return next(job for job in executor.jobs if job.name == name)


def test_searches_come_first_and_then_fresh_seeds_of_all_seed_by_seed(held: Held) -> None:
    """Whole pairs are left by an interruption; every contender runs under every condition."""
    executor = AtOnce(held.place)
    found = held.run(executor)
    number = found.plan.chosen["kd"]
    fresh = [
        f"confirm-{name}--at-{place}-{seed}"
        for seed in (1000, 1001)
        for name in ("ce--fixed", f"kd--trial-{number:04d}")
        for place in ("0.1", "1")
    ]
    assert executor.names == ["teacher-0", *(f"kd--trial-{n:04d}" for n in range(3)), *fresh]
    own = words(job_of(executor, fresh[2]))
    trial = words(job_of(executor, f"kd--trial-{number:04d}"))
    assert (own["loss"], own["loss.tau"], own["data.train_fraction"], own["seed"]) == ("kd", "2", "0.1", "1000")
    assert own["loss.alpha"] == trial["loss.alpha"]
    assert (own["evaluate_test"], trial["evaluate_test"]) == ("True", "False")
    assert words(job_of(executor, fresh[0]))["teacher"] == "none"
    assert found.planned() == {"teacher": 1, "trials": 3, "confirmation": 8}
    assert sum(found.left().values()) == 0


@pytest.mark.parametrize("at", ["kd--trial-0001", "confirm-ce--fixed--at-1-1000"])
def test_an_interrupted_contest_goes_on_where_it_was(held: Held, at: str) -> None:
    """Nothing is done twice and nothing is left out; the trial keeps its number and its parameters."""
    first = AtOnce(held.place, **{at.replace("-", "_"): []})
    first._ends[at] = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        held.run(first)
    left = held.open().left()
    assert 0 < sum(left.values()) < 12
    second = AtOnce(held.place)
    held.run(second)
    done = [*first.names[:-1], *second.names]
    assert len(done) == len(set(done)) == 12
    trials = held.search("study/kd", 3).trials()
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len(trials) == 3
    third = AtOnce(held.place)
    held.run(third)
    assert third.names == []


@pytest.mark.slow
def test_a_contest_stops_when_its_answers_are_clear(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at whole seeds of all contenders, a failed run counts as ended, and a repetition finds it done."""
    looks: list[tuple[list[int], int]] = []

    def clear_after_three(plan: Plan, runs: object, seeds: Sequence[int], most: int, step: float) -> str | None:
        assert "kd" in plan.chosen
        looks.append(([*seeds], most))
        return "clear" if len(seeds) == 3 else None

    monkeypatch.setattr("kdsweep.analysis.contest_stopping.decision", clear_after_three)
    held = Held(store, tmp_path, seeds=2, until=9)
    before = held.open()
    before.look()
    assert (before.stop, before.planned()["confirmation"]) == (None, 36)
    executor = AtOnce(held.place, 3, **{"confirm_ce__fixed__at_1_1001": [RunError("no")]})
    found = held.run(executor)
    assert found.stop == Stop(None, 3, 1002, "clear")
    assert looks == [([1000, 1001], 9), ([1000, 1001, 1002], 9)]
    seeds = [int(name[-4:]) for name in executor.names if name.startswith("confirm")]
    assert max(seeds) <= 1003
    assert seeds.count(1002) == 4
    again = held.open()
    again.look()
    assert again.stop is None  # the failed run is made again first
    held.run(executor)
    assert executor.names[-1] == "confirm-ce--fixed--at-1-1001"
    done = held.open()
    done.look()
    assert (done.stop, sum(done.left().values())) == (found.stop, 0)


def test_a_contender_without_a_result_takes_no_further_part(held: Held) -> None:
    """The others go on: one loss that can't be trained says nothing about theirs."""
    errors = {f"kd__trial_000{n}": [RunError("it diverged")] for n in range(3)}
    executor = AtOnce(held.place, **errors)
    found = held.run(executor)
    assert found.plan.chosen == {}
    assert {name for name in executor.names if name.startswith("confirm")} == {
        f"confirm-ce--fixed--at-{place}-{seed}" for place in ("0.1", "1") for seed in (1000, 1001)
    }


def test_the_two_records_of_each_search_are_compared(held: Held) -> None:
    """The numbers of trials begin anew with each contender, so its own runs are looked at alone."""
    held.run(AtOnce(held.place))
    runs = held.place.store.children(held.place.parent_id)
    assert two_records.without_run(held.search("study/kd", 3), runs, "kd") == []
    assert len(two_records.without_run(held.search("study/kd", 3), [], "kd")) == 3
