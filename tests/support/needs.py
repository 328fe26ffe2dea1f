"""What some tests need of a machine, and what becomes of them where it isn't there."""

from __future__ import annotations

import importlib
import os
from typing import Any, NoReturn

import pytest


def lacking(what: str) -> NoReturn:
    """Skips a test on somebody's machine; fails it in CI and in scripts/test.sh --all, which have what tests need."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(what)
    pytest.skip(what)


def package(name: str) -> Any:
    """A package that comes with an extra, which the extra `dev` holds."""
    try:
        return importlib.import_module(name)
    except ImportError:
        lacking(f"{name} isn't installed (scripts/setup.sh dev)")
