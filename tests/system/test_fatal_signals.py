"""Which signal ended a process is written down while it dies, and read by another."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdsweep.system.fatal_signals import ended_by, written_down
from kdsweep.system.processes import ProcessId, parse_process


@pytest.fixture
def unused() -> Iterator[None]:
    """Faulthandler as it is in a command: pytest uses it."""
    faulthandler.disable()
    yield
    faulthandler.enable()


CHILD = """
import os, sys
from pathlib import Path
from kdsweep.system.fatal_signals import written_down
from kdsweep.system.processes import this_process
with written_down(Path(sys.argv[1])), written_down(Path(sys.argv[1])):
    print(this_process(), flush=True)
    os.kill(os.getpid(), int(sys.argv[2]))
"""


def dead(folder: Path, number: int) -> ProcessId:
    """A process that was ended by a signal inside a block in a block."""
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", CHILD, str(folder), str(int(number))]
    done = subprocess.run(words, env=there, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -number
    return parse_process(done.stdout.strip())


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"])
def test_a_crash_is_written_down(name: str, tmp_path: Path) -> None:
    """The signal is read once, and nothing is left of the file and its folder."""
    process = dead(tmp_path / "crashes", signal.Signals[name])
    assert ended_by(tmp_path / "crashes", process) == name
    assert ended_by(tmp_path / "crashes", process) is None
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_nothing_to_read(tmp_path: Path) -> None:
    """SIGKILL can't be written down; its empty file is removed."""
    assert ended_by(tmp_path / "crashes", dead(tmp_path / "crashes", signal.SIGKILL)) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unused")
def test_a_block_that_ends_leaves_nothing(tmp_path: Path) -> None:
    """The file is there as long as the outer block, and a folder that can't be made is done without."""
    with written_down(tmp_path / "crashes"):
        with written_down(tmp_path / "crashes"):
            pass
        assert len(list((tmp_path / "crashes").iterdir())) == 1
        assert faulthandler.is_enabled()
    assert list(tmp_path.iterdir()) == []
    assert not faulthandler.is_enabled()
    (tmp_path / "file").touch()
    with written_down(tmp_path / "file"):
        assert not faulthandler.is_enabled()


def test_another_use_is_left_alone(tmp_path: Path) -> None:
    """Pytest has switched faulthandler on, and finds it so."""
    with written_down(tmp_path / "crashes"):
        assert list(tmp_path.iterdir()) == []
    assert faulthandler.is_enabled()
