"""Progress on the terminal: a bar with the time left; plain lines where the output goes to a file."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, TextIO, cast

from kdsweep.system import interrupts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

log = logging.getLogger(__name__)


class _Terminal(io.TextIOBase):
    """Whatever sys.stderr is now, without its errors: a terminal that was closed, a `tee` that was killed, a full disk.

    That nobody hears a run is no reason for it to end. Its own log file has what it says.
    """

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream().flush()

    def isatty(self) -> bool:
        return self._stream().isatty()

    def fileno(self) -> int:
        return self._stream().fileno()

    @staticmethod
    def _stream() -> TextIO:
        # While it shows a bar, rich puts a stream that leads back here in the place of sys.stderr.
        stream: TextIO = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        return stream


# Where bars and lines go; made when it is first asked for, since `kdsweep --help` shows neither.
console: Console


def __getattr__(name: str) -> object:
    if name != "console":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rich.console import Console

    return globals().setdefault(name, Console(file=cast("IO[str]", _Terminal()), highlight=False))


def _console() -> Console:
    # A name of the module itself isn't looked up by its `__getattr__`.
    return sys.modules[__name__].console


# In a log file: a line this often, and none for a job that ends sooner than QUIET_SECONDS.
LINE_SECONDS = 30.0
QUIET_SECONDS = 2.0


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[..., None]]:
    """Shows how far a job of `total` units is; yields `advance(units, description=None)`.

    On a terminal: a bar with elapsed and remaining time, removed at the end. Elsewhere: a line every `LINE_SECONDS`,
    and one at the end of a job that took more than `QUIET_SECONDS`. Ctrl-C and SIGTERM end the job in `advance`.
    """
    # Bars of several processes would overwrite one another: workers set KDSWEEP_PLAIN.
    show = _bar if _console().is_terminal and "KDSWEEP_PLAIN" not in os.environ else _lines
    with show(description, total) as advance:

        def step(units: int, description: str | None = None) -> None:
            advance(units, description)
            interrupts.check()

        yield step


def note(text: str) -> None:
    """Prints one line for the user, above a bar if one is shown, and puts it into the run's log file."""
    log.info(text)
    _console().print(text, markup=False, soft_wrap=True)


@contextmanager
def _bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=_console(), transient=True) as bar:
        task = bar.add_task(description, total=total)

        def advance(units: int, description: str | None = None) -> None:
            bar.update(task, advance=units, description=description)

        yield advance


@contextmanager
def _lines(description: str, total: int) -> Iterator[Callable[..., None]]:
    start = last_line = time.perf_counter()
    done = 0
    text = description

    def advance(units: int, description: str | None = None) -> None:
        nonlocal done, text, last_line
        done += units
        text = text if description is None else description
        now = time.perf_counter()
        if now - last_line > LINE_SECONDS and 0 < done < total:
            last_line = now
            note(f"{text}: {done} of {total}, about {(now - start) * (total - done) / done:.0f} s left")

    yield advance
    seconds = time.perf_counter() - start
    if seconds > QUIET_SECONDS:
        note(f"{text}: {done} in {seconds:.1f} s")
