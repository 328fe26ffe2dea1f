"""Claims about code of the user's own, run as its user would: the examples, its errors, and its source on record."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import SHORT, Outcome, artifacts, kdsweep, runs
from in_process import run_here

from kdsweep.config import build
from kdsweep.system import user_code

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_network"
TRUST = {"KDSWEEP_TRUST": "tinynets.*"}
# A run in a second, on the short run's pictures.
TINY = (
    *("data=synthetic", *(word for word in SHORT if word.startswith("data."))),
    *("epochs=1", "batch_size=16", "threads=1", "precision=fp32"),
)


def forget(package: str = "tinynets") -> None:
    """A command begins without anything of the package, as in a process of its own."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    build.architecture.cache_clear()
    build._rehearsed.clear()
    user_code._content.cache_clear()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the example, whose package Python finds."""
    folder = shutil.copytree(EXAMPLE, tmp_path / "own_network", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget()
    yield folder
    forget()


def run(*words: str, place: Path) -> Outcome:
    """The command `kdsweep` in the example's folder."""
    forget()
    return run_here(["--config-dir", "conf", *words], place, TRUST)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.slow
def test_the_example_is_trained_exported_taught_and_swept(place: Path) -> None:
    """The commands of its README, on fewer pictures: a trained network of one's own teaches another, in a grid."""
    done = run(*TINY, "experiment=scratch", "model=wide", place=place)
    assert done.status == 0, done.err
    (wide,) = runs(place)
    words = [wide.info.run_id, "--out", "wide", "--format", "none"]
    done = run_here(words, place, TRUST, "kdsweep-export", "kdsweep.commands.export")
    assert done.status == 0, done.err
    card = (place / "wide" / "README.md").read_text()
    assert "tinynets.wide_net(**config" in card
    weights = "teacher.network.weights=wide/model.safetensors"
    done = run(*TINY, "model=tiny", "teacher=wide", weights, "-m", "model.width=4,6", place=place)
    assert done.status == 0, done.err
    swept = runs(place, "distill")
    assert [run.data.params["model.width"] for run in swept] == ["4", "6"]
    assert sorted(path.name for path in (artifacts(swept[0]) / "source" / "tinynets").iterdir()) == [
        *("__init__.py", "blocks.py", "nets.py")
    ]
