"""The documentation's table of networks is what its script finds, and has all classifiers of torchvision."""

from __future__ import annotations

import pytest
from networks_table import PAGE, SECOND, torchvisions, tried

TEXT = PAGE.read_text(encoding="utf-8")


def test_every_family_of_torchvision_is_in_the_table() -> None:
    """After a new version of torchvision: python scripts/networks_table.py --write."""
    assert [group.tried for group in torchvisions() if f"`{group.tried}`" not in TEXT] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "name", "student", "teacher"),
    [
        ("torchvision", "alexnet", "yes", "yes"),
        ("torchvision", "squeezenet1_0", "no", "no"),
        ("timm", "volo_d1_224", "yes", "no"),
    ],
)
def test_the_table_says_what_the_script_finds(library: str, name: str, student: str, teacher: str) -> None:
    """A network with one head, one with a convolution in its place, and one with two."""
    found = tried(library, name, 224)
    assert (found.student == "", found.teacher == "") == (student == "yes", teacher == "yes")
    (line,) = [line for line in TEXT.splitlines() if f"`{name}`" in line]
    assert line.split(" | ")[3:5] == [student, teacher]
    assert SECOND in line or teacher == "yes" or student == "no"
