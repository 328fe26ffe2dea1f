"""Progress: bars on a terminal, lines in a file."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable

import pytest
from rich.console import Console

from kdsweep.system import progress as module
from kdsweep.system.progress import note, progress


def output(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> io.StringIO:
    """Sends the console's output to a buffer that is, or is not, a terminal."""
    buffer = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=buffer, force_terminal=terminal, width=100, highlight=False))
    return buffer


def test_a_short_job_prints_nothing_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log file is not filled with jobs that end at once."""
    buffer = output(monkeypatch, terminal=False)
    with progress("reading", 3, "pictures") as advance:
        advance(3)
    assert buffer.getvalue() == ""


def test_a_long_job_prints_plain_lines_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file gets a line now and then with what is left, and one at the end; no control characters."""
    buffer = output(monkeypatch, terminal=False)
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
    with progress("reading", 4, "pictures") as advance:
        advance(1)
        advance(1, "still reading")
        advance(2)
    lines = buffer.getvalue().splitlines()
    assert [line.split(", about")[0] for line in lines[:2]] == [
        "reading: 1 of 4 pictures",
        "still reading: 2 of 4 pictures",
    ]
    assert lines[2].startswith("still reading: 4 pictures in ")
    assert len(lines) == 3
    assert "\x1b" not in buffer.getvalue()


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a bar counts the units, under the latest description."""
    buffer = output(monkeypatch, terminal=True)
    with progress("reading", 4, "pictures") as advance:
        advance(3, "epoch [1/2]")
    assert "epoch [1/2]" in buffer.getvalue()
    assert "3 of 4 pictures" in buffer.getvalue()


def test_bars_may_be_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch's bar stays while the teacher's table, which it waits for, shows one of its own."""
    buffer = output(monkeypatch, terminal=True)
    with progress("outer job", 2, "pictures") as outer, progress("inner job", 5, "pictures") as inner:
        inner(5)
        outer(1)
    assert "outer job" in buffer.getvalue()
    assert "inner job" in buffer.getvalue()


def test_the_error_inside_a_job_gets_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that fails ends its bar and keeps its error."""
    for terminal in (True, False):
        output(monkeypatch, terminal)
        with pytest.raises(KeyError, match="lost"), progress("reading", 4, "pictures"):
            raise KeyError("lost")


def test_notes_are_printed_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets are no markup, and a long line is not broken: paths stay whole."""
    buffer = output(monkeypatch, terminal=False)
    text = "[bold]" + "/a/long/path" * 20
    note(text)
    assert buffer.getvalue() == text + "\n"


def _closed_terminal() -> int:
    """The descriptor of a terminal whose window was closed."""
    ours, theirs = os.openpty()
    os.close(ours)
    return theirs


def _pipe_to_nobody() -> int:
    """The descriptor of a pipe whose reader was killed."""
    theirs, ours = os.pipe()
    os.close(theirs)
    return ours


def _file_on_a_full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("opened", [_closed_terminal, _pipe_to_nobody, _file_on_a_full_disk])
def test_that_nobody_hears_a_run_does_not_end_it(
    opened: Callable[[], int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Writing to stderr raises; the run's log file has the lines."""
    with io.FileIO(opened(), "w") as raw:
        stream = io.TextIOWrapper(raw, write_through=True)  # type: ignore[type-var]  # as `python -u`: nothing is kept
        with pytest.raises(OSError, match=r"Input/output error|Broken pipe|No space left"):
            stream.write("a line")
        monkeypatch.setattr(sys, "stderr", stream)
        with caplog.at_level(logging.INFO):
            note("said to nobody")
            monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
            with progress("training", 1, "pictures") as advance:
                advance(1)
        monkeypatch.undo()
    assert "said to nobody" in caplog.text
