"""Shows progress: as a bar with the time left on a terminal, and as plain lines if the output goes to a file."""

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
    """The present sys.stderr, but without its errors: a closed terminal, a `tee` that was killed, a full disk.

    A run goes on though nobody sees what it prints. Its own log file has the lines.
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
        # While rich shows a bar, it replaces sys.stderr by a stream that leads back here.
        stream: TextIO = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        return stream


# Prints bars and lines; made when it is first used, since `kdsweep --help` prints neither.
console: Console


def __getattr__(name: str) -> object:
    if name != "console":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rich.console import Console

    return globals().setdefault(name, Console(file=cast("IO[str]", _Terminal()), highlight=False))


def _console() -> Console:
    # Within the module, the bare name wouldn't go through `__getattr__`.
    return cast("Console", sys.modules[__name__].console)


# In a log file: the time between two lines, and the longest job without any line.
LINE_SECONDS = 30.0
QUIET_SECONDS = 2.0


@contextmanager
def progress(description: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """Shows the progress of a job of `total` units ("pictures"); yields `advance(units, description=None)`.

    A terminal shows a bar with elapsed and remaining time, which is removed at the end. Other outputs get a line every
    `LINE_SECONDS`, and one at the end of a job that took more than `QUIET_SECONDS`. Ctrl-C and SIGTERM end the job in
    `advance`.
    """
    # Bars of several processes would overwrite one another, so workers set KDSWEEP_PLAIN.
    show = _bar if _console().is_terminal and "KDSWEEP_PLAIN" not in os.environ else _lines
    with show(description, total, unit) as advance:

        def step(units: int, description: str | None = None) -> None:
            advance(units, description)
            interrupts.check()

        yield step


def note(text: str) -> None:
    """Prints one line for the user, above a bar if one is shown, and puts it into the run's log file."""
    log.info(text)
    _console().print(text, markup=False, soft_wrap=True)


@contextmanager
def _bar(description: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    count = TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}} {unit}", markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), count)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=_console(), transient=True) as bar:
        task = bar.add_task(description, total=total)

        def advance(units: int, description: str | None = None) -> None:
            bar.update(task, advance=units, description=description)

        yield advance


@contextmanager
def _lines(description: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
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
            note(f"{text}: {done:,} of {total:,} {unit}, about {(now - start) * (total - done) / done:.0f} s left")

    yield advance
    seconds = time.perf_counter() - start
    if seconds > QUIET_SECONDS:
        note(f"{text}: {done:,} {unit} in {seconds:.1f} s")
