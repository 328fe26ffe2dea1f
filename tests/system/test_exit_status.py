"""Claims about how commands end: the line, the exit status, and the trace that is only shown when it is asked for.

What is refused, and with which line, is the table of `test_bad_input.py`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import SHORT, kdsweep
from conftest import console_script

from kdsweep.system import exit_status
from kdsweep.system.errors import RunError, UserError
from kdsweep.system.interrupts import ENDS, HungUpError, TerminatedError

pytestmark = pytest.mark.slow


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts the signal handlers of the test process back."""
    before = {number: signal.getsignal(number) for number in ENDS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_trace_can_be_asked_for(tmp_path: Path) -> None:
    """KDSWEEP_TRACEBACK=1 shows it before the line, and the exit status stays."""
    done = kdsweep(*SHORT, "loss.alpha=2", root=tmp_path, env={"KDSWEEP_TRACEBACK": "1"})
    assert done.status == 2
    assert "Traceback (most recent call last)" in done.err
    assert "loss_rules.py" in done.err
    assert done.error == "kdsweep: loss.alpha: `0 <= alpha <= 1` must hold, but got alpha=2."


def test_a_job_of_a_grid_is_named_with_its_error(tmp_path: Path) -> None:
    """In a plain multirun the line of the error stands below the overrides of the job."""
    done = kdsweep("-m", *SHORT, "loss.alpha=2,3", root=tmp_path)
    assert done.status == 2
    assert "alpha=2" in done.error
    assert "Traceback" not in done.err


def test_the_reader_may_leave_early(tmp_path: Path) -> None:
    """`kdsweep --help | head -1` prints its line and no complaint."""
    line = f"{sys.executable} -m kdsweep.train --help | head -1"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("kdsweep: ")
    assert done.stderr == ""


@pytest.mark.all
def test_the_installed_command_refuses_in_one_line(tmp_path: Path) -> None:
    """The process has imported nothing before, as when a user types the command."""
    done = console_script("loss.alpha=[", root=tmp_path)
    assert done.status == 2
    assert done.err == done.error + "\n"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("too much", "loss.alpha"), 2, "loss.alpha: too much"),
        (UserError("first\n  second"), 2, "first second"),
        (RunError("the loss was nan"), 1, "the loss was nan"),
        (OSError(28, "No space left on device", "/full/file"), 1, "No space left on device: /full/file. Free some"),
        (OSError(28, "No space left on device"), 1, "No space left on device. Free some space, and give the same"),
        (OSError(122, "Disk quota exceeded", "/full/file"), 1, "Disk quota exceeded: /full/file. Free some"),
        (OSError(5, "Input/output error", "/bad/disk"), 1, "Input/output error: /bad/disk. The disk"),
        (OSError(24, "Too many open files", "/a"), 1, "Too many open files: /a. Too many files are open: raise"),
        (OSError(13, "Permission denied", "/root/x"), 2, "Permission denied: /root/x. Set its permissions"),
        (OSError(30, "Read-only file system", "/x"), 2, "Read-only file system: /x. This disk can't be written"),
        (OSError(36, "File name too long", "/long"), 2, "File name too long: /long. Choose a shorter name."),
        (OSError(21, "Is a directory", "/x"), 2, "Is a directory: /x. A folder stands where a file belongs"),
        (
            OSError(2, "No such file or directory", "two\nlines"),
            2,
            r"No such file or directory: 'two\nlines'. Is it in",
        ),
        (UserError("http://me:geheim@host is away"), 2, "http://me:***@host is away"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (TerminatedError(), 143, "terminated"),
    ],
)
def test_each_end_has_its_exit_status(
    error: BaseException, status: int, line: str, handlers: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is 2 for what the user can mend, 1 for a run that failed, 128 + n for signals, with one line each."""
    with pytest.raises(SystemExit) as left:
        exit_status.command("command", lambda: _raise(error))
    assert left.value.code == status
    printed = capfd.readouterr().err
    assert printed.startswith(f"command: {line}")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, TerminatedError, HungUpError])
@pytest.mark.parametrize("told", [(), ("All is done but this.",)])
def test_a_signal_says_how_to_go_on(
    kind: type[BaseException], told: tuple[str, ...], handlers: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where a command can: in the same line; what was interrupted may know better than the command."""
    with pytest.raises(SystemExit):
        exit_status.command("command", lambda: _raise(kind(*told)), after_a_signal="Give it again.")
    printed = capfd.readouterr().err
    assert printed.endswith(f". {(told or ('Give it again.',))[0]}\n")
    assert printed.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_trace(handlers: None) -> None:
    """An exception that no user can mend shows its stack trace."""
    with pytest.raises(ZeroDivisionError):
        exit_status.command("command", lambda: _raise(ZeroDivisionError()))
    assert exit_status.explained(ValueError("from our own code")) is None
    assert exit_status.explained(OSError("no file's")) is None


def test_argparse_refuses_in_one_line(handlers: None, capfd: pytest.CaptureFixture[str]) -> None:
    """That holds inside a command for any parser; outside, argparse prints the usage as always."""
    parser = argparse.ArgumentParser("tool")
    with pytest.raises(SystemExit):
        exit_status.command("tool", lambda: parser.parse_args(["--nothing"]))
    assert capfd.readouterr().err == "tool: unrecognized arguments: --nothing. `tool --help` says what can be given.\n"
    with pytest.raises(SystemExit):
        parser.parse_args(["--nothing"])
    assert capfd.readouterr().err.startswith("usage: tool")


def test_sigterm_ends_a_command_like_ctrl_c(handlers: None) -> None:
    """It arrives as a KeyboardInterrupt, so that every run on the way is closed."""
    with pytest.raises(SystemExit) as left:
        exit_status.command("command", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert left.value.code == 143
    assert issubclass(TerminatedError, KeyboardInterrupt)


def _raise(error: BaseException) -> None:
    raise error
