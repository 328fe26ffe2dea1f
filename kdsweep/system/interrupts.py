"""Ctrl-C, SIGTERM and SIGHUP: while a run is open, they end it at its next step, and not between any two instructions.

Python raises KeyboardInterrupt anywhere. Inside a database transaction that leaves the database locked, and the run
RUNNING; inside a destructor the exception is swallowed, and the command goes on. So work that must not be cut short is
`deferred`, and long work calls `check` at every step.

Ctrl-C pressed twice ends the process at once. SIGTERM and SIGHUP may come more than once without anybody's intention:
to the whole process group and again from the parent, or both when a session is closed. So their repetition is ignored,
and a run that is being closed (`closing`) is closed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

# A signal without an effect for so long is sent again, and then not deferred: a step may take hours, and an exception
# may have been swallowed.
PATIENCE_SECONDS = 5.0

# `wait` looks for signals at this interval.
WAIT_STEP_SECONDS = 0.02


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, which ends a run the way Ctrl-C does, so that its MLflow run is closed as killed."""


class HungUpError(TerminatedError):
    """SIGHUP, which comes when the terminal is closed, or the connection to it is lost."""


ENDS: dict[int, type[KeyboardInterrupt]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: TerminatedError,
    signal.SIGHUP: HungUpError,
}

_depth = 0
_closing = 0
_pending: type[KeyboardInterrupt] | None = None
_reminder: threading.Timer | None = None
# When SIGTERM or SIGHUP was last taken, by time.monotonic.
_taken = float("-inf")


def install() -> None:
    """Handles SIGINT, SIGTERM and SIGHUP from now on; a signal that is ignored (`nohup`) stays ignored."""
    global _taken
    _taken = float("-inf")
    for number in ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)


@contextmanager
def deferred() -> Iterator[None]:
    """Defers signals in this block: they raise where `check` is called, or after the block if it ends well."""
    global _depth
    check()
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
    check()


@contextmanager
def closing() -> Iterator[None]:
    """Lets only Ctrl-C pressed twice raise in this block, which closes what is open and must come to its end.

    Another signal raises after the block, if the block ends well.
    """
    global _closing
    forget()
    _closing += 1
    try:
        yield
    finally:
        _closing -= 1
    check()


def check() -> None:
    """Raises the exception of a signal that has come, except in a `closing` block."""
    global _pending
    if _pending is not None and not _closing:
        error, _pending = _pending, None
        forget()
        raise error


def wait(seconds: float) -> None:
    """Waits, and raises the exception of a signal that has come or comes meanwhile."""
    end = time.monotonic() + seconds
    check()
    while time.monotonic() < end:
        time.sleep(WAIT_STEP_SECONDS)
        check()


def forget() -> None:
    """Cancels the signal that was to be sent again."""
    if _reminder is not None:
        _reminder.cancel()


def _receive(number: int, frame: FrameType | None) -> None:
    global _pending, _taken
    if number != signal.SIGINT:
        # A repetition within `PATIENCE_SECONDS` is ignored; the reminder comes later, and counts.
        if time.monotonic() - _taken < PATIENCE_SECONDS:
            return
        _taken = time.monotonic()
    if _closing and not (number == signal.SIGINT and _pending is KeyboardInterrupt):
        _pending = ENDS[number]
        return
    _remind(number)
    if _depth > 0 and _pending is None:
        _pending = ENDS[number]
        return
    _pending = None
    raise ENDS[number]


def _remind(number: int) -> None:
    """Sends the signal to this process again after `PATIENCE_SECONDS`."""
    global _reminder
    forget()
    _reminder = threading.Timer(PATIENCE_SECONDS, os.kill, (os.getpid(), number))
    _reminder.daemon = True
    _reminder.start()
