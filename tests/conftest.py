"""What all tests share: a quiet environment, and one debug run that several files read."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fresh_stores
import pytest
import servers
from commands import SHORT, Outcome
from needs import lacking

# One thread is fastest for small tensors, and torch, which reads this when it is imported, isn't yet.
os.environ["OMP_NUM_THREADS"] = "1"
# Tests write to no store or folder that the environment names.
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "KDSWEEP_HOME", "KDSWEEP_TRACEBACK", "KDSWEEP_TRUST"):
    os.environ.pop(name, None)

# The files whose tests run in one process, the longest first.
LONGEST = ["test_reproduce", "test_controller", "test_train", "test_bad_input", "test_checkpoint", "test_store"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets one process run the tests that share what takes seconds to make, and begins with them and with slow ones.

    With `--dist loadgroup`, all other tests run wherever there is room, so that no core idles at the end.
    """
    for item in items:
        group = None if item.get_closest_marker("xdist_group") else shared_by(item)
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=turn)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Python's garbage collector no longer walks through what was imported: a twentieth of the tests' time."""
    gc.collect()
    gc.freeze()


def shared_by(item: pytest.Item) -> str | None:
    """The name of the group in which a test runs: of its file, or of a fixture of several files; None for no group."""
    if not isinstance(item, pytest.Function):
        return None
    definitions = item._fixtureinfo.name2fixturedefs
    for name in ("home", "postgresql"):
        if name in definitions:
            return name
    scopes = [found[-1].scope for found in definitions.values() if found[-1].baseid.endswith(".py")]
    return item.nodeid.partition("::")[0] if {"module", "session"} & set(scopes) else None


def turn(item: pytest.Item) -> tuple[int, int, str]:
    """Sorts tests: those with a group, file by file in the order of LONGEST; then slow ones; then quick ones."""
    file, group = item.path.stem, item.get_closest_marker("xdist_group")
    if group is not None:
        return 0, LONGEST.index(file) if file in LONGEST else len(LONGEST), group.args[0]
    return (1, 0, "") if item.get_closest_marker("slow") or item.get_closest_marker("all") else (2, 0, "")


@pytest.fixture(scope="session", autouse=True)
def stores_are_copied(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All processes of a session share one empty MLflow store, of which fresh ones are copies."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ[fresh_stores.KEY] = str(shared / "empty-store.db")
    fresh_stores.copy_stores()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the real command, in a process of its own, has made one short distilled run."""
    root = tmp_path_factory.mktemp("home")
    done = console_script(*SHORT, root=root)
    assert done.status == 0, done.err
    return root


@pytest.fixture(scope="session")
def postgresql() -> Iterator[servers.PostgreSQL]:
    """A database server on loopback; scripts/test.sh --all installs it where it can."""
    if servers.programs() is None:
        lacking("PostgreSQL isn't installed (Debian: apt-get install postgresql)")
    with servers.postgresql() as server:
        yield server


def console_script(*words: str, root: Path) -> Outcome:
    """The installed command, started as users start it: fifteen seconds of imports, so use it sparingly."""
    command = [str(Path(sys.executable).with_name("kdsweep")), *words]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "KDSWEEP_HOME": str(root)}, capture_output=True, text=True, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
