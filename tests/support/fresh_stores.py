"""Makes MLflow's SQLite stores in milliseconds: MLflow builds one for the whole session, and each test gets a copy.

MLflow builds a fresh database by its fifty migrations, which takes six seconds. Most tests need a fresh store and make
no claim about how it came to be. The tests that do (several processes that start at once, the command in a process of
its own) leave the product as it is, with `built_by_mlflow`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from kdsweep.system.files import atomic_path
from kdsweep.system.sqlite import write_ahead
from kdsweep.tracking import store as product
from kdsweep.tracking.opening import make_store

# Names the file that is copied, for the processes of tests and for the commands that they start.
KEY = "KDSWEEP_TESTS_EMPTY_STORE"


def copy_stores() -> None:
    """From now on this process makes fresh stores by copying the session's, if the session has one."""
    product.make_store = _copy


def passed_on() -> dict[str, str]:
    """What a process that was forked earlier needs in its environment to find the session's store, or to find none."""
    return {KEY: os.environ.get(KEY, "")}


def empty_store() -> Path:
    """The session's empty store, which the first that asks for it lets MLflow build."""
    path = Path(os.environ[KEY])
    with FileLock(f"{path}.lock"):
        if not path.exists():
            import mlflow

            make_store(mlflow, path)
    return path


@contextmanager
def built_by_mlflow() -> Iterator[None]:
    """In this block, and in the commands that it starts, MLflow builds fresh stores itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product, "make_store", make_store)
        patch.delenv(KEY)
        yield


def _copy(mlflow: Any, path: Path) -> None:
    if not os.environ.get(KEY):
        make_store(mlflow, path)
        return
    with atomic_path(path) as temporary:
        shutil.copyfile(empty_store(), temporary)
    write_ahead(path)
