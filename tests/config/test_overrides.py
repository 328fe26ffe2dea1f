"""Claims about override lines as a study uses them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from kdsweep.config.overrides import (
    around,
    choices,
    in_whole_numbers,
    kept_beside,
    override_line,
    parsed,
    require_key,
    value_of,
    without_replaced_sweeps,
)
from kdsweep.study.search import space_of
from kdsweep.system.errors import UserError


def test_a_group_that_is_replaced_takes_its_keys_along() -> None:
    """Beside `loss=ce` no key of the old loss stands; what a run sets itself, and sweeps, go too."""
    lines = [
        "loss.alpha=0.3",
        "loss=kd",
        "seed=7",
        "optimizer.lr=0.1",
        "data=digits",
        "loss.tau=interval(1,20)",
        "+loss.x=1",
        "~loss.tau",
    ]
    own = ["loss=ce", "teacher=none", "seed=0"]
    assert kept_beside(own, parsed(lines), whole_groups=True) == ["optimizer.lr=0.1", "data=digits"]


def test_a_key_that_is_set_leaves_its_neighbours() -> None:
    """`arm=scratch` replaces arm alone."""
    lines = parsed(["arm=distill", "loss.alpha=0.3"])
    assert kept_beside(["arm=scratch"], lines, whole_groups=True) == ["loss.alpha=0.3"]


def test_what_is_fixed_beside_a_searched_group_holds_in_its_trials() -> None:
    """A trial's option of a group leaves what the user sets in that group; its own keys and sweeps go."""
    lines = parsed(
        ["optimizer.lr=0.03", "optimizer=sgd,adamw", "~optimizer.fused", "+model.x=1", "loss.tau=2", "seed=7"]
    )
    own = ["optimizer=adamw", "model=resnet50", "loss.tau=3", "+seed=1"]
    assert kept_beside(own, lines, whole_groups=False) == ["optimizer.lr=0.03", "~optimizer.fused", "+model.x=1"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("batch_size=interval(4,32)", IntDistribution(4, 32)),
        ("batch_size=tag(log,interval(4.0,32))", IntDistribution(4, 32, log=True)),
        ("batch_size=int(interval(4,32))", IntDistribution(4, 32)),
        ("++batch_size=interval(4,32)", IntDistribution(4, 32)),
        ("batch_size=range(4,32,4)", IntDistribution(4, 28, step=4)),
        ("batch_size=8,16", CategoricalDistribution([8, 16])),
    ],
)
def test_an_interval_of_whole_numbers_proposes_no_others(word: str, expected: BaseDistribution) -> None:
    """All other sweeps, and intervals that are written in whole numbers, stay as they are."""
    (line,) = parsed([in_whole_numbers(parsed([word])[0])])
    assert list(space_of([line]).values()) == [expected]


def test_an_interval_of_whole_numbers_has_whole_bounds() -> None:
    """`int()` would cut off what is behind the point without a word."""
    with pytest.raises(
        UserError, match=r"^batch_size: .*got batch_size='interval\(4\.5,32\)'.*int\(interval\(4,32\)\)"
    ):
        in_whole_numbers(parsed(["batch_size=interval(4.5,32)"])[0])


def test_the_plug_in_searches_intervals_in_fractions() -> None:
    """By itself, as docs/how-to/grid.md says, it takes whole bounds for fractions, and `int()` for whole numbers."""
    words = ["a=interval(0,1)", "b=int(interval(4,32))", "c=tag(log,int(interval(4,32)))"]
    found = [create_optuna_distribution_from_override(override) for override in parsed(words)]
    assert found == [FloatDistribution(0, 1), IntDistribution(4, 32), IntDistribution(4, 32, log=True)]
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "grid.md").read_text(encoding="utf-8")
    assert "`interval(0,1)` proposes fractions" in page
    assert "`int(interval(4,32))` whole numbers" in page


@pytest.mark.parametrize(
    ("value", "sweep"),
    [
        (0, "interval(0,1)"),
        (0.4, "interval(0.2,0.8)"),
        (0.9, "interval(0.45,1)"),
        (4.0, "interval(2,8)"),
        (4, "interval(2,8)"),
        (1, "interval(0,1)"),
        (-2.0, "interval(-4,-1)"),
    ],
)
def test_an_example_of_a_search_lies_about_the_value(value: float, sweep: str) -> None:
    """From half of it to its double; a share stays one, and whole bounds are whole."""
    assert around(value) == sweep


def test_a_search_needs_keys_that_exist() -> None:
    """Null is a value, a group is a key, and `+` adds one."""
    config = OmegaConf.create({"loss": {"alpha": 0.5}, "threads": None})
    for word in ("loss.alpha=1,2", "threads=1,2", "loss=kd,ce", "+new=1,2", "++new=1,2", "++loss.alpha=1,2"):
        require_key(parsed([word])[0], config)
    with pytest.raises(UserError, match=r"^loss\.beta: the search varies a key that isn't there"):
        require_key(parsed(["loss.beta=1,2"])[0], config)


def test_a_later_word_replaces_a_sweep() -> None:
    """What the command line says of a key stands instead of the preset's search over it; all else stays."""
    lines = ["loss.alpha=interval(0,1)", "loss.tau=1,2", "seed=1", "loss.tau=3", "loss.alpha=choice(0,1)", "seed=2"]
    kept = [override.input_line for override in without_replaced_sweeps(parsed(lines))]
    assert kept == ["seed=1", "loss.tau=3", "loss.alpha=choice(0,1)", "seed=2"]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("a=null,48", [None, 48]),
        ("a=[0.5,0.5],[0.4,null]", [[0.5, 0.5], [0.4, None]]),
        ("a={x:1,y:b c},{x:[true]}", [{"x": 1, "y": "b c"}, {"x": [True]}]),
        ("a='1','null','true','1e-3'", ["1", "null", "true", "1e-3"]),
        ("a=choice('runs/lr=0.1,[b]','it\\'s','{x')", ["runs/lr=0.1,[b]", "it's", "{x"]),
        ("a='Größe',''", ["Größe", ""]),
        ("a=choice(Zahl,'a\\\\','\"q\" ü')", ["Zahl", "a\\", '"q" ü']),
        ("a=a\\,b,pkg://m/x.pth", ["a,b", "pkg://m/x.pth"]),
        ("a=choice(true,false,0.25)", [True, False, 0.25]),
        ("a=choice(1,true,1.0)", [1, True, 1.0]),
        ("a=${b},two words", ["${b}", "two words"]),
        ("a=choice(str(1),int('2'))", ["1", 2]),
        ("a=shuffle(choice(c,b,a))", ["c", "b", "a"]),
        ("a=sort(shuffle(range(1,4)),reverse=true)", [3, 2, 1]),
    ],
)
def test_a_choice_is_a_value(word: str, values: list[object]) -> None:
    """Null, lists, mappings, text that looks like something else, paths and umlauts come back from their lines."""
    texts = choices(parsed([word])[0])
    assert [value_of(text) for text in texts] == values
    again = [parsed([override_line("a", text)])[0].value() for text in texts]
    assert (again, list(map(type, again))) == (values, list(map(type, values)))


def test_words_and_numbers_are_recorded_as_they_were_by_older_versions() -> None:
    """Optuna goes on with a study only if its choices are the same as before."""
    assert choices(parsed(["a=resnet18,pkg://m/x.pth,null,'a b',[0.5,1],3,true"])[0]) == [
        *("resnet18", "pkg://m/x.pth", "null", "'a b'", "[0.5,1]", 3, True)
    ]


def test_a_choice_of_choices_is_refused() -> None:
    """A plain grid ends in a stack trace there."""
    with pytest.raises(UserError, match=r"^a choice is one value, but here it is a choice again"):
        choices(parsed(["a=choice(1,2),3"])[0])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (1e-5, 1e-5),
        ("null", None),
        ("[0.9,0.99]", [0.9, 0.99]),
        ("runs/a=b,c", "runs/a=b,c"),
        (["x,y", "1"], ["x,y", "1"]),
        ({"a": {"b": None}}, {"a": {"b": None}}),
    ],
)
def test_a_value_of_a_users_own_function_becomes_a_line(value: object, expected: object) -> None:
    """`custom_search_space` and hydra.sweeper.params hold plain values; text that is an override's stays one."""
    assert parsed([override_line("+key", value)])[0].value() == expected
