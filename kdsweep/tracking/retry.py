"""Tells the failures of a store that pass by themselves, and waits for them.

MLflow's own retries (seven, which take minutes without a word) are switched off, so nothing else retries.
"""

from __future__ import annotations

import errno
import re
import time
from typing import TYPE_CHECKING, TypeVar

from kdsweep.system import interrupts
from kdsweep.system.errors import RunError, UserError, one_line
from kdsweep.system.files import NOT_ALLOWED
from kdsweep.system.masking import masked_text
from kdsweep.system.progress import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

# Long enough for a server or its host to restart, and for another program to unlock an SQLite database.
PATIENCE_SECONDS = 240.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
POLL_SECONDS = 0.1

MAX_CHARACTERS = 500

# What MLflow says if a request got no answer, or one that asks to try again (408, 429, 5xx).
NO_ANSWER = ("failed with exception", "failed with timeout exception")
# HTTP statuses: request timeout, too early, too many requests.
COME_AGAIN = (408, 425, 429)
# The reason that urllib3 gives, in the middle of a long list of what it tried.
REASON = re.compile(
    r"failed with .*?(?:\[Errno -?\d+\] ([^\"')\]]+)|(Read timed out|connect timeout|too many \d+ error responses)"
    r"|(Connection reset|Connection aborted|Remote end closed connection))",
    re.DOTALL,
)
# What a database says, of which SQLAlchemy makes many lines.
OF_A_DATABASE = re.compile(r"\((?:sqlite3|psycopg\w*|pymysql)\.[\w.]+\) (.+)")
# What databases say to a user who may only read.
READ_ONLY = ("readonly database", "permission denied", "read-only transaction")
# HTTP statuses: not logged in, not allowed.
FORBIDDEN = (401, 403)
LOCKED = ("database is locked", "database table is locked", "database schema is locked")


class AwayError(UserError):
    """A store that doesn't answer as it is opened; its name may be right."""


class StoreAwayError(RunError):
    """A store that didn't answer, for as long as it was waited for."""


def is_transient(error: BaseException) -> bool:
    """Returns whether the same call may succeed later.

    It may if there was no answer, if the server is overloaded or restarting, or if the database is locked.
    """
    text = str(error)
    if "sqlite3." in text:
        return any(words in text for words in LOCKED)
    if hasattr(error, "error_code"):  # an error of MLflow's
        answered = hasattr(error, "json") or "failed with error code" in text
        status = error.get_http_status_code() if answered and hasattr(error, "get_http_status_code") else 0
        unavailable = error.error_code == "TEMPORARILY_UNAVAILABLE"
        return unavailable or status in COME_AGAIN or status >= 500 or any(words in text for words in NO_ANSWER)
    # Errors of requests: for a refused artifact there is a response with its status, for a lost connection there isn't.
    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code in COME_AGAIN or response.status_code >= 500
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return type(error).__module__.startswith(("requests.", "urllib3."))


def is_disk_full(error: BaseException) -> bool:
    """Returns whether the cause is a disk of this machine that has no room left (or none for this user)."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "sqlite3." in str(chain) and "disk is full" in str(chain):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def is_forbidden(error: BaseException | None) -> bool:
    """Returns whether the store, or the disk that it is on, doesn't let this user do what was asked."""
    if isinstance(error, OSError) and error.errno in NOT_ALLOWED:
        return True
    text = str(error)
    if "sqlite3." in text or "psycopg" in text:
        return any(words in text for words in READ_ONLY)
    status = getattr(getattr(error, "response", None), "status_code", None)
    status = getattr(error, "get_http_status_code", lambda: status)()  # of an error of MLflow's
    return status in FORBIDDEN


def reason(error: BaseException) -> str:
    """Returns why a call failed, in a few words of the error's and without credentials."""
    found = REASON.search(str(error)) or OF_A_DATABASE.search(str(error))
    if found is not None:
        return next(group for group in found.groups() if group).strip()
    return masked_text(one_line(error, whole=False))[:MAX_CHARACTERS]


def pauses() -> Iterator[float]:
    """Yields the seconds to wait between attempts: more and more, up to `LONGEST_PAUSE`."""
    pause = FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE)


def patiently(call: Callable[[], T], where: str, patience: float, *, quietly: bool = False) -> T:
    """Calls `call` until it succeeds, and returns its result; Ctrl-C and SIGTERM end the wait.

    Args:
        call: Asks the store.
        where: The store's name for messages ("http://127.0.0.1:5000").
        patience: Seconds for which failures that may pass are waited for.
        quietly: Whether to print nothing while waiting.

    Raises:
        StoreAwayError: A `RunError`: `call` kept failing, for `patience` seconds, in ways that might have passed.
        Exception: The error of `call`, at once, if waiting doesn't help.
    """
    end = time.monotonic() + patience
    said = quietly
    for pause in pauses():
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            if time.monotonic() + pause > end:
                silence = f"for {patience:.0f} s the MLflow store {where} didn't answer ({reason(error)})."
                raise StoreAwayError(f"{silence} Start it again; the same command goes on.") from error
        if not said:
            said = True
            note(f"The MLflow store {where} doesn't answer. Waiting for up to {patience / 60:.0f} minutes.")
        sleep(pause)
    raise AssertionError("the pauses never end")


def sleep(seconds: float) -> None:
    """Waits `seconds`; Ctrl-C and SIGTERM end the wait."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        interrupts.check()
        time.sleep(min(POLL_SECONDS, left))
