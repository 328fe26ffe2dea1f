"""Claims about the differences between two environments, and about paths that move with a configuration."""

from __future__ import annotations

from typing import Any

import pytest

from kdsweep.analysis.environment_diff import Change, compare
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
