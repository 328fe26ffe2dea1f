"""The names that `kdsweep` exports: there, documented, and imported only when they are asked for."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.util import find_spec

import pytest

import kdsweep

NAMES = sorted({*kdsweep.__all__} - {"__version__"})


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_there_and_explains_itself(name: str) -> None:
    """It comes from one of kdsweep's modules, and its docstring says more than its first line."""
    found = getattr(kdsweep, name)
    assert found.__module__.startswith("kdsweep.")
    assert found.__name__ == name
    assert len((inspect.getdoc(found) or "").splitlines()) > 2


@pytest.mark.parametrize("name", NAMES)
def test_no_public_name_hides_a_module(name: str) -> None:
    """`from kdsweep import data` is the module, whatever was imported before it."""
    assert find_spec(f"kdsweep.{name}") is None


def test_names_are_listed() -> None:
    """`dir` shows the public names before they are imported, and an unknown one is refused as usual."""
    assert {*kdsweep.__all__} <= {*dir(kdsweep)}
    with pytest.raises(AttributeError, match="module 'kdsweep' has no attribute 'distil'"):
        kdsweep.distil  # noqa: B018


def test_importing_kdsweep_imports_nothing_slow() -> None:
    """torch, Hydra and MLflow are imported with the first name that needs them."""
    code = "import sys, kdsweep; print(sorted({'torch', 'hydra', 'mlflow', 'numpy'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
