"""A saved configuration moves with its folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdsweep.config.saved_config import moved


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Returns an old and a new folder, each with data."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        (folder / "data" / "both").mkdir(parents=True)
    (old / "data" / "only_old").mkdir()
    return old, new


def in_new(value: Any, old: Path | str, new: Path) -> Any:
    return moved({"root": value}, [(f"{old}/data", new / "data"), (str(old), new)])["root"]


def test_a_path_below_the_old_folder_moves(places: tuple[Path, Path]) -> None:
    """This holds whether the data are there or will be downloaded."""
    old, new = places
    assert in_new(f"{old}/data/both", old, new) == f"{new}/data/both"
    assert in_new(f"{old}/data/neither", old, new) == f"{new}/data/neither"
    assert in_new(f"{old}/weights.pth", old, new) == f"{new}/weights.pth"


def test_a_path_that_exists_at_the_old_place_alone_stays(places: tuple[Path, Path]) -> None:
    """The new run reads what the old one read."""
    old, new = places
    assert in_new(f"{old}/data/only_old", old, new) == f"{old}/data/only_old"


def test_a_network_in_a_file_moves_with_the_file(places: tuple[Path, Path]) -> None:
    """What stands behind the colon of weights is no part of the path."""
    old, new = places
    (old / "net.pth").touch()
    assert in_new(f"{old}/net.pth:model_ema", old, new) == f"{old}/net.pth:model_ema"
    (new / "net.pth").touch()
    assert in_new(f"{old}/net.pth:model_ema", old, new) == f"{new}/net.pth:model_ema"


@pytest.mark.parametrize("value", ["resnet18", "kdsweep.data.digits", "pkg://package/models/a.pth", 3, None, "/else/x"])
def test_what_is_no_path_below_the_old_folder_stays(value: object, places: tuple[Path, Path]) -> None:
    """Names, numbers, URIs and other paths stay, even if the old folder was the working directory."""
    old, new = places
    (new / "resnet18").touch()
    assert in_new(value, old, new) == value
    assert in_new(value, ".", new) == value


def test_paths_relative_to_the_old_working_directory_move(places: tuple[Path, Path]) -> None:
    """Paths of data always move; other texts with a slash move only if the new folder has such a file."""
    _, new = places
    assert in_new("./data/both", ".", new) == f"{new}/data/both"
    assert in_new("nets/a.pth", ".", new) == "nets/a.pth"
    (new / "nets").mkdir()
    (new / "nets" / "a.pth").touch()
    assert in_new("nets/a.pth", ".", new) == f"{new}/nets/a.pth"


def test_lists_and_groups_within_groups_are_followed(places: tuple[Path, Path]) -> None:
    """A path may be anywhere in the configuration; the configuration that was passed in isn't changed."""
    old, new = places
    config = {"a": {"b": [f"{old}/data/both", 1]}}
    assert moved(config, [(str(old), new)]) == {"a": {"b": [f"{new}/data/both", 1]}}
    assert config == {"a": {"b": [f"{old}/data/both", 1]}}
