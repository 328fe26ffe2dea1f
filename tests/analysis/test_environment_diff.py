"""Claims about the differences between two environments, and about paths that move with a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdsweep.analysis.environment_diff import Change, compare, moved
from kdsweep.system import environment

THEN: dict[str, Any] = {
    **{"python": "3.11.7", "cpu": "A", "cpu_features": ["AVX2", "avx2", "fma"], "gpu": None, "threads": 1},
    **{"git_commit": "a" * 40, "git_diff": None, "packages": {"torch": "2.15.0"}, "data": "d" * 64, "teacher": None},
}


def changes(**now: object) -> list[Change]:
    """The changes, if the present environment has these values."""
    return list(compare(THEN, {**THEN, **now}).found)


def test_nothing_differs_from_itself() -> None:
    """This holds for a made-up environment and for this one."""
    here = environment.describe()
    assert compare(here, here) == compare(THEN, THEN)
    assert compare(here, here).found == ()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("python", "3.12.1", Change("Python", "3.11.7", "3.12.1")),
        ("threads", 2, Change("threads", "1", "2")),
        ("gpu", "H200", Change("GPU", "none", "H200")),
        ("git_commit", "b" * 40, Change("git commit", "a" * 12, "b" * 12)),
        ("git_commit", None, Change("git commit", "a" * 12, "-")),
        ("git_diff", "c" * 64, Change("uncommitted changes", "none", "c" * 12)),
        ("data", "e" * 64, Change("data", "d" * 12, "e" * 12)),
        ("teacher", "f" * 16, Change("teacher", "none", "f" * 12)),
        ("packages", {"torch": "2.16.0"}, Change("package torch", "2.15.0", "2.16.0")),
        ("packages", {}, Change("package torch", "2.15.0", "-")),
        ("packages", {"torch": "2.15.0", "timm": "1"}, Change("package timm", "-", "1")),
        ("cpu_features", ["AVX512", "avx2", "fma"], Change("CPU features", "AVX2", "AVX512")),
        ("cpu_features", ["AVX2", "avx2"], Change("CPU features", "fma", "-")),
    ],
)
def test_each_difference_is_one_row(key: str, value: object, expected: Change) -> None:
    """Both sides are shown; long hashes are cut, and only the CPU features that differ are listed."""
    assert changes(**{key: value}) == [expected]


def test_what_was_not_recorded_then_is_no_difference() -> None:
    """A run of an older version recorded less; what is missing is named, so that nobody takes it for equal."""
    found = compare({"python": "3.11.7"}, THEN)
    assert found.found == ()
    assert {"CPU", "CPU features", "git commit", "threads", "data"} <= set(found.unknown)


# Folders


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
