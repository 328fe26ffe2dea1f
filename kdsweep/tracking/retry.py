"""Which failures of a store pass by themselves, and waiting for them.

MLflow's own patience (seven retries, minutes, without a word) is switched off, so that this is all there is.
"""

from __future__ import annotations

import errno
import re
import time
from typing import TYPE_CHECKING, TypeVar

from kdsweep.system import interrupts
from kdsweep.system.errors import RunError, UserError
from kdsweep.system.masking import masked_text
from kdsweep.system.progress import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

# A server's restart, or its host's; an SQLite database that another program keeps locked.
PATIENCE_SECONDS = 240.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
POLL_SECONDS = 0.1

MAX_CHARACTERS = 500

# What MLflow says where a request got no answer, or one that asks to come again (408, 429, 5xx).
NO_ANSWER = ("failed with exception", "failed with timeout exception")
# HTTP: request timeout, too early, too many requests.
COME_AGAIN = (408, 425, 429)
# What urllib3 says in the middle of a long chain of what was tried.
REASON = re.compile(
    r"failed with .*?(?:\[Errno -?\d+\] ([^\"')\]]+)|(Read timed out|connect timeout|too many \d+ error responses)"
    r"|(Connection reset|Connection aborted|Remote end closed connection))",
    re.DOTALL,
)
LOCKED = ("database is locked", "database table is locked", "database schema is locked")


class AwayError(UserError):
    """A store that doesn't answer, though nothing says that its name is wrong."""


class StoreAwayError(RunError):
    """A store that hasn't answered for as long as it was waited for."""


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: no answer, an overloaded or restarting server, a locked database."""
    text = str(error)
    if "sqlite3." in text:
        return any(words in text for words in LOCKED)
    if hasattr(error, "error_code"):  # MLflow's
        answered = hasattr(error, "json") or "failed with error code" in text
        status = error.get_http_status_code() if answered and hasattr(error, "get_http_status_code") else 0
        unavailable = error.error_code == "TEMPORARILY_UNAVAILABLE"
        return unavailable or status in COME_AGAIN or status >= 500 or any(words in text for words in NO_ANSWER)
    # requests': a refused artifact has a response with its status, a lost connection has none.
    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code in COME_AGAIN or response.status_code >= 500
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return type(error).__module__.startswith(("requests.", "urllib3."))


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk of this machine had no room left (or no room for this user)."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "sqlite3." in str(chain) and "disk is full" in str(chain):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def first_line(error: BaseException) -> str:
    """What an error says, in one line and without credentials."""
    found = REASON.search(str(error))
    if found is not None:
        return next(filter(None, found.groups())).strip()
    lines = [line.strip() for line in str(error).strip().splitlines()]
    return masked_text(lines[0] if lines else type(error).__name__)[:MAX_CHARACTERS]


def pauses() -> Iterator[float]:
    """Seconds to wait between attempts: longer and longer, up to `LONGEST_PAUSE`."""
    pause = FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE)


def patiently(call: Callable[[], T], where: str, patience: float, *, quietly: bool = False) -> T:
    """What `call` returns, as soon as it succeeds; `where` names the store ("http://127.0.0.1:5000").

    Ctrl-C and SIGTERM end the wait.

    Args:
        quietly: Says nothing while it waits.

    Raises:
        StoreAwayError (a RunError): It kept failing for `patience` seconds in ways that might have passed.
        Exception: What `call` raised, at once, where waiting wouldn't help.
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
                reason = f"for {patience:.0f} s the MLflow store {where} didn't answer ({first_line(error)})."
                raise StoreAwayError(f"{reason} Start it again; the same command goes on.") from error
        if not said:
            said = True
            note(f"The MLflow store {where} doesn't answer. Waiting for up to {patience / 60:.0f} minutes.")
        sleep(pause)
    raise AssertionError("the pauses never end")


def sleep(seconds: float) -> None:
    """Waits; Ctrl-C and SIGTERM end the wait."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        interrupts.check()
        time.sleep(min(POLL_SECONDS, left))
