"""Claims about what a contest set out to do, and the names of its jobs."""

from __future__ import annotations

import pytest

from kdsweep.analysis.contest_plan import Condition, Plan, fresh_job, in_words, tags_of, texts, trial_job
from kdsweep.execution import jobs

NOWHERE, TENTH = Condition({}), Condition({"data.train_fraction": "0.1"})


def plan(**grid: list[object]) -> Plan:
    contenders: dict[str, list[str]] = {"ce": ["loss=ce"], "kd": ["loss=kd"], "dkd": ["loss=dkd"]}
    return Plan(contenders, ["kd", "ce"], texts(grid), {"kd": ["loss.alpha"]}, {"kd": 3}, 5)


@pytest.mark.parametrize(
    ("job", "tags", "words"),
    [
        (trial_job("kd", 3), {"contender": "kd"}, "kd, trial 3"),
        (fresh_job("kd", 3, NOWHERE, 1000), {"contender": "kd"}, "confirmation of kd, trial 3, seed 1000"),
        (
            fresh_job("label_smoothing", None, TENTH, 1001),
            {"contender": "label_smoothing", "condition": "0.1"},
            "confirmation of label smoothing, at 0.1, seed 1001",
        ),
        ("confirm-trial-0003-1000", {}, None),
        ("label_smoothing-0", {}, None),
        (None, {}, None),
    ],
)
def test_the_name_of_a_job_says_who_competes_where(job: str | None, tags: dict[str, str], words: str | None) -> None:
    """The tags of a run, and the words of a progress line, come from the name of its job; other jobs have none."""
    assert tags_of(job) == tags
    assert in_words(str(job)) == words
    assert words is None or jobs.in_words(str(job)) == words


def test_no_two_contenders_meet_twice() -> None:
    """Each is compared with each of those that all are compared with, and those two once."""
    assert plan().pairs == (("ce", "kd"), ("dkd", "kd"), ("dkd", "ce"))


def test_a_grid_is_all_combinations_in_its_order() -> None:
    """Values are written as runs record them, and a job's name has no letters that a folder can't have."""
    found = plan(**{"model.name": ["a", "b/c"], "epochs": [5, 10.0]}).conditions
    assert [condition.label for condition in found] == ["a, 5", "a, 10", "b/c, 5", "b/c, 10"]
    assert found[2].slug == "b_c_5"
    assert plan().conditions == (Condition({}),)


def test_a_plan_is_read_back_from_its_tag() -> None:
    """A study without the tag is no contest."""
    assert Plan.read({"kdsweep.contest": plan(epochs=[5]).text()}) == plan(epochs=[5])
    assert Plan.read({}) is None
