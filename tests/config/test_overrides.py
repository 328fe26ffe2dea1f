"""Claims about override lines as a study uses them."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from kdsweep.config.overrides import kept_beside, parsed, require_key, with_float_bounds, without_replaced_sweeps
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
    assert kept_beside(["loss=ce", "teacher=none", "seed=0"], parsed(lines)) == ["optimizer.lr=0.1", "data=digits"]


def test_a_key_that_is_set_leaves_its_neighbours() -> None:
    """`arm=scratch` replaces arm alone."""
    assert kept_beside(["arm=scratch"], parsed(["arm=distill", "loss.alpha=0.3"])) == ["loss.alpha=0.3"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("loss.alpha=interval(0,1)", "loss.alpha=interval(0.0,1.0)"),
        ("loss.tau=tag(log,interval(1,20))", "loss.tau=tag(log,interval(1.0,20.0))"),
        ("loss.alpha=interval(0.2,0.7)", "loss.alpha=interval(0.2,0.7)"),
        ("epochs=interval(5,9)", "epochs=interval(5,9)"),
        ("loss.alpha=choice(0,1)", "loss.alpha=choice(0,1)"),
        ("loss.alpha=0", "loss.alpha=0"),
        ("model=resnet18", "model=resnet18"),
    ],
)
def test_whole_bounds_of_a_float_are_floats(line: str, expected: str) -> None:
    """An interval takes the kind of the key's default; all else stays as it is."""
    config = OmegaConf.create({"loss": {"alpha": 0.5, "tau": 4.0}, "epochs": 5, "model": {}})
    assert with_float_bounds(parsed([line])[0], config) == expected


def test_a_search_needs_keys_that_exist() -> None:
    """Null is a value, a group is a key, and `+` adds one."""
    config = OmegaConf.create({"loss": {"alpha": 0.5}, "threads": None})
    for line in ("loss.alpha=1,2", "threads=1,2", "loss=kd,ce", "+new=1,2"):
        require_key(parsed([line])[0], config)
    with pytest.raises(UserError, match=r"^loss\.beta: the search varies a key that isn't there"):
        require_key(parsed(["loss.beta=1,2"])[0], config)


def test_a_later_word_replaces_a_sweep() -> None:
    """What the command line says of a key stands instead of the preset's search over it; all else stays."""
    lines = ["loss.alpha=interval(0,1)", "loss.tau=1,2", "seed=1", "loss.tau=3", "loss.alpha=choice(0,1)", "seed=2"]
    kept = [override.input_line for override in without_replaced_sweeps(parsed(lines))]
    assert kept == ["seed=1", "loss.tau=3", "loss.alpha=choice(0,1)", "seed=2"]
