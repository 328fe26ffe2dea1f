"""What all tests share: a quiet environment, and one debug run that several files read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fresh_stores
import pytest
import servers
from commands import SHORT, Outcome

# One thread is fastest for small tensors, and torch, which reads this when it is imported, isn't yet.
os.environ["OMP_NUM_THREADS"] = "1"
# Tests write to no store or folder that the environment names.
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "KDSWEEP_HOME", "KDSWEEP_TRACEBACK", "KDSWEEP_TRUST"):
    os.environ.pop(name, None)


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
    """A database server on loopback; scripts/test.sh installs it where it can."""
    if servers.programs() is None:
        pytest.skip("PostgreSQL isn't installed (Debian: apt-get install postgresql)")
    with servers.postgresql() as server:
        yield server


def console_script(*words: str, root: Path) -> Outcome:
    """The installed command, started as users start it: fifteen seconds of imports, so use it sparingly."""
    command = [str(Path(sys.executable).with_name("kdsweep")), *words]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "KDSWEEP_HOME": str(root)}, capture_output=True, text=True, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
