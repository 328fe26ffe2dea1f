"""Which signal ended a process: the process writes it down while it dies, and another reads it later.

A crash in native code (SIGSEGV, SIGABRT and others) runs no Python, but Python's faulthandler can still write a line to
a file that is open. SIGKILL leaves nothing.
"""

from __future__ import annotations

import faulthandler
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from kdsweep.system.processes import ProcessId, this_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# How faulthandler names the signals.
SIGNALS = {
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Floating-point exception": "SIGFPE",
    "Floating point exception": "SIGFPE",
    "Illegal instruction": "SIGILL",
}


@contextmanager
def written_down(folder: Path) -> Iterator[None]:
    """Lets this process write into `folder` which signal ended it, if one does before the block ends.

    If faulthandler is in use already (by a block around this one, PYTHONFAULTHANDLER or pytest), it is left as it is.
    """
    if faulthandler.is_enabled():
        yield
        return
    path = _path(folder, this_process())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError:  # a folder that can't be written, or that another process is removing
        yield
        return
    with file:
        faulthandler.enable(file, all_threads=False)
        try:
            yield
        finally:
            faulthandler.disable()
            _remove(path)


def ended_by(folder: Path, process: ProcessId) -> str | None:
    """Returns the signal that a process has written down in `folder` ("SIGSEGV"), or None; removes its file."""
    path = _path(folder, process)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    _remove(path)
    name = text.partition("\n")[0].removeprefix("Fatal Python error: ")
    return SIGNALS.get(name, name) or None


def _path(folder: Path, process: ProcessId) -> Path:
    return folder / f"{process.pid}-{process.birth}"


def _remove(path: Path) -> None:
    """Removes a file, and its folder if nothing else is in it."""
    with suppress(OSError):
        path.unlink()
        path.parent.rmdir()
