"""Progress on the terminal: a bar with the time left; plain lines where the output goes to a file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kdsweep import interrupts

log = logging.getLogger(__name__)

console = Console(stderr=True, highlight=False)

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
    show = _bar if console.is_terminal and "KDSWEEP_PLAIN" not in os.environ else _lines
    with show(description, total) as advance:

        def step(units: int, description: str | None = None) -> None:
            advance(units, description)
            interrupts.check()

        yield step


def note(text: str) -> None:
    """Prints one line for the user, above a bar if one is shown, and puts it into the run's log file."""
    log.info(text)
    console.print(text, markup=False, soft_wrap=True)


@contextmanager
def _bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
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
