"""Claims about passes that are computed while a worker has nothing else to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_teachers import teacher

from kdsweep.execution import prefetch
from kdsweep.teachers import Teacher


@pytest.fixture(autouse=True)
def _nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_heard", None)
    # Three batches of 12 pictures are three parts.
    monkeypatch.setattr("kdsweep.tables.PART_BATCHES", 1)


def computed(made: Teacher, passes: int = 4) -> list[int]:
    return [index for index in range(passes) if index not in made.missing_passes(passes)]


def test_nothing_to_do_is_nothing_done() -> None:
    """Before the first student there is no teacher to ask."""
    assert not prefetch.compute_part(stop=lambda: False)


def test_the_next_passes_come_first(tmp_path: Path) -> None:
    """They are computed in the order of the epochs, part by part, until none is missing; the student reads them."""
    ours = teacher(tmp_path)
    prefetch.remember(ours, [3, 1])
    pictures = torch.zeros(0)
    for parts in range(1, 7):
        assert prefetch.compute_part(stop=lambda: False)
        found = sorted({path.parent.name for path in tmp_path.glob("*/*.parts/*.safetensors")})
        assert found == ["pass-0001.parts", "pass-0003.parts"][0 if parts > 3 else 1 :]
    assert not prefetch.compute_part(stop=lambda: False)
    rows = torch.arange(32)
    plain = teacher(tmp_path / "plain")
    assert torch.equal(ours.answers(3)(rows, pictures), plain.answers(3)(rows, pictures))
    assert computed(ours) == [3]


def test_a_job_stops_it(tmp_path: Path) -> None:
    """It is asked for after each batch, and the part is left undone."""
    ours = teacher(tmp_path)
    prefetch.remember(ours, [0])
    assert not prefetch.compute_part(stop=lambda: True)
    assert not list(tmp_path.glob("*/*.parts/*.safetensors"))


def test_online_teachers_keep_no_passes(tmp_path: Path) -> None:
    """So there is nothing to compute ahead."""
    prefetch.remember(teacher(tmp_path, mode="online"), [0])
    assert not prefetch.compute_part(stop=lambda: False)


def test_what_goes_wrong_is_left_to_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder that can't be written ends the computing ahead but not the worker, and the log says so."""
    (tmp_path / "tables").touch()
    prefetch.remember(teacher(tmp_path / "tables"), [0])
    assert not prefetch.compute_part(stop=lambda: False)
    assert "no passes are computed ahead any more" in caplog.text
    assert prefetch._heard is None
