"""Claims about what a run records of its surroundings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from commands import artifacts, runs

import kdsweep
from kdsweep import environment


def test_the_surroundings_are_plain_values() -> None:
    """They go into environment.json and, in part, into tags: JSON gives back what it was given."""
    found = environment.describe()
    assert json.loads(json.dumps(found)) == found


def test_what_a_result_depends_on_is_there() -> None:
    """Versions, hardware, and the number of threads, on which the last bits depend."""
    found = environment.describe()
    assert found["kdsweep"] == kdsweep.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["cpu"]
    assert (found["gpu"] is None) == (not torch.cuda.is_available())


def test_versions_are_those_of_the_requirements() -> None:
    """Libraries that numbers depend on, with those of extras; neither kdsweep itself nor tools for working on it."""
    found = environment.versions()
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert {"torchvision", "hydra-core", "optuna", "mlflow", "numpy", "timm"} <= found.keys()
    assert not {"kdsweep", "ruff", "mypy", "pytest"} & found.keys()


def test_the_source_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process goes on with the code that it has loaded, whatever is committed while a study runs."""
    first = environment.describe()
    monkeypatch.setattr(environment, "source_state", lambda folder: pytest.fail("looked again"))
    assert environment.describe()["git_commit"] == first["git_commit"]


@pytest.mark.slow
def test_a_run_keeps_its_surroundings(home: Path) -> None:
    """environment.json of a real run describes the process that made it."""
    found = json.loads((artifacts(runs(home, "distill")[0]) / "environment.json").read_text())
    ours = environment.describe()
    assert {key: found[key] for key in ("python", "cpu", "packages")} == {
        key: ours[key] for key in ("python", "cpu", "packages")
    }
    assert found["threads"] == 1
