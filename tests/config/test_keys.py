"""Claims about what each key of the configuration is for."""

from __future__ import annotations

from pathlib import Path

import pytest
from configurations import composed
from omegaconf import OmegaConf

from kdsweep.config import keys
from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.config.keys import flatten

pytestmark = pytest.mark.xdist_group("compositions")

OPTIONS = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(Path(CONFIG_FOLDER).glob("*/*.yaml"))
    if path.parent.name != "hydra"
]


@pytest.mark.parametrize("option", ["", *OPTIONS])
def test_every_key_is_classified(option: str) -> None:
    """A new key needs a row in config/keys.py, which says what it is for; no key has two."""
    names = list(flatten(OmegaConf.to_container(composed(*filter(None, [option])))))
    assert keys.unclassified(names) == []
    assert [name for name in names if sum(row.covers(name) for row in keys.KEYS) > 1] == []


@pytest.mark.parametrize("name", ["compiled", "precision", "optimizer.lr", "loss.alpha", "teacher.network.name"])
def test_runs_that_differ_in_their_training_or_teaching_are_no_repeats(name: str) -> None:
    """`compiled` changes the last bits, as the precision does: such runs are two settings."""
    assert keys.in_setting(name)
    assert not keys.may_differ_in_repeats(name)


@pytest.mark.parametrize("name", ["seed", "init_seed", "threads", "runtime.device", "paths.root", "tracking.trial"])
def test_seeds_hardware_and_places_make_no_setting(name: str) -> None:
    """Runs that differ in these alone measure the noise floor."""
    assert keys.may_differ_in_repeats(name)
    assert not keys.in_setting(name)


def test_bookkeeping_is_no_parameter() -> None:
    """MLflow has it as tags; what identifies a run and the user's own keys are parameters, and so is the device."""
    assert all(keys.is_parameter(name) for name in ("loss.alpha", "seed", "mine.depth", "runtime.device", "objective"))
    kept = ("tracking.job", "tracking.parent", "paths.root", "resume", "checkpoint_share", "sweep.n_jobs")
    assert not any(keys.is_parameter(name) for name in kept)


def test_a_users_own_key_makes_a_setting_of_its_own() -> None:
    """Nobody knows what it changes, so runs that differ in it aren't pooled as repeats."""
    assert keys.in_setting("mine.depth")
    assert not keys.may_differ_in_repeats("mine.depth")


def test_what_a_study_may_change_when_it_goes_on() -> None:
    """How much there is to be, how it is searched, and where it runs; not what runs compute."""
    free = (
        "sweep.n_trials",
        "sweep.seed",
        "sweep.executor",
        "paths.cache",
        "threads",
        "device",
        "resume",
        "tracking.offline",
        "tracking.models",
    )
    fixed = ("sweep.name", "epochs", "data.val_size", "tracking.experiment", "objective")
    assert all(keys.may_change_when_going_on(name) for name in free)
    assert not any(keys.may_change_when_going_on(name) for name in fixed)


def test_what_a_search_may_vary() -> None:
    """What runs compute, the user's own keys and seeds; not what is read off them, nor how they are carried out."""
    assert all(keys.may_be_searched(name) for name in ("loss.alpha", "optimizer.lr", "seed", "mine.depth", "loss"))
    assert not any(keys.may_be_searched(name) for name in ("arm", "objective", "resume", "sweep.n_jobs", "paths.root"))


def test_the_run_of_a_teacher_has_no_key_of_its_students() -> None:
    """Its identity depends on its network, its data and the training of its head."""
    assert {"model", "loss", "optimizer", "epochs", "batch_size", "compiled", "seed"} <= set(keys.STUDENT_KEYS)
    assert not {"data", "teacher", "view_seed", "device", "threads"} & set(keys.STUDENT_KEYS)


def test_flatten_joins_keys_with_dots() -> None:
    """Lists of values stay whole; items of lists of mappings are numbered; empty mappings and None are kept."""
    config = {"loss": {"alpha": 0.5, "deep": {"er": 1}}, "mean": [1, 2], "stages": [{"lr": 1}], "none": None, "e": {}}
    assert flatten(config) == {
        "loss.alpha": 0.5,
        "loss.deep.er": 1,
        "mean": [1, 2],
        "stages.0.lr": 1,
        "none": None,
        "e": {},
    }
