"""Ctrl-C and SIGTERM: while a run is open, they end it at its next step and not just anywhere.

Python raises KeyboardInterrupt between any two instructions. Inside a database transaction that leaves the database
locked, and the run RUNNING; inside a destructor the exception is swallowed, and the command goes on. So what must not
be cut short is `deferred`, and long work calls `check` at its every step.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# A signal that has led to nothing for so long is sent again, and then not deferred: a step may take hours, and an
# exception may have been swallowed.
PATIENCE_SECONDS = 5.0


class TerminatedError(KeyboardInterrupt):
    """SIGTERM: ends a run the way Ctrl-C does, so that its MLflow run is closed as killed."""


ENDS: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: TerminatedError}

_depth = 0
_pending: type[KeyboardInterrupt] | None = None
_reminder: threading.Timer | None = None


def install() -> None:
    """Takes over SIGINT and SIGTERM; one that is ignored (`nohup`) stays ignored."""
    for number in ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)


@contextmanager
def deferred() -> Iterator[None]:
    """In this block a signal raises where `check` is called; at the latest, when the block has ended well."""
    global _depth
    check()
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
    check()


def check() -> None:
    """Raises KeyboardInterrupt or TerminatedError if such a signal has come."""
    global _pending
    if _pending is not None:
        error, _pending = _pending, None
        forget()
        raise error


def forget() -> None:
    """Sends no signal again."""
    if _reminder is not None:
        _reminder.cancel()


def _receive(number: int, frame: FrameType | None) -> None:
    global _pending, _reminder
    forget()
    _reminder = threading.Timer(PATIENCE_SECONDS, os.kill, (os.getpid(), number))
    _reminder.daemon = True
    _reminder.start()
    if _depth > 0 and _pending is None:
        _pending = ENDS[number]
        return
    _pending = None
    raise ENDS[number]
