"""Claims about Ctrl-C and SIGTERM: where they end the work, and that none is lost."""

# ruff: noqa: PT012 (these blocks need several statements: the claims are about where in them a signal raises)

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from kdsweep import interrupts
from kdsweep.interrupts import TerminatedError, check, deferred
from kdsweep.progress import progress


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """kdsweep's handlers, for one test; a signal is sent again after half a second."""
    monkeypatch.setattr(interrupts, "PATIENCE_SECONDS", 0.5)
    before = {number: signal.getsignal(number) for number in interrupts.ENDS}
    # Where the tests run in the background, SIGINT is ignored from the start, and would stay so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.install()
    yield
    interrupts.forget()
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "error"), list(interrupts.ENDS.items()))
def test_a_signal_raises_at_once_where_nothing_is_open(number: int, error: type[KeyboardInterrupt]) -> None:
    """Ctrl-C as ever, SIGTERM as its subclass."""
    with pytest.raises(KeyboardInterrupt) as raised:
        send(number)
    assert raised.type is error


def test_a_deferred_signal_raises_at_the_next_step() -> None:
    """What stands between two steps is done as a whole."""
    done = []
    with pytest.raises(TerminatedError), deferred():
        send()
        done.append("the rest of the step")
        check()
        done.append("another step")
    assert done == ["the rest of the step"]


def test_a_deferred_signal_raises_at_the_end_of_the_block() -> None:
    """A block without steps ends well, and the signal is not forgotten."""
    done = []
    with pytest.raises(TerminatedError), deferred():
        with pytest.raises(TerminatedError), deferred():
            send()
            done.append("inner")
        send()
        done.append("outer")
    assert done == ["inner", "outer"]


def test_no_block_begins_after_a_signal() -> None:
    """A signal between two runs opens no further one."""
    with pytest.raises(TerminatedError), deferred():
        send()
        with deferred():
            pytest.fail("the inner block began")


def test_the_second_signal_does_not_wait() -> None:
    """Who presses Ctrl-C twice means now."""
    with pytest.raises(KeyboardInterrupt), deferred():
        send(signal.SIGINT)
        send(signal.SIGINT)
        pytest.fail("the second signal was deferred")


def test_the_end_of_a_block_may_take_its_time() -> None:
    """After the exception was raised nothing is sent again while runs are closed."""
    with pytest.raises(TerminatedError), deferred():
        send()
        try:
            check()
        finally:
            time.sleep(0.7)


def test_a_signal_that_was_lost_comes_again() -> None:
    """An exception in a destructor is swallowed; half a second later there is another."""
    with pytest.raises(TerminatedError):
        send()
    with pytest.raises(TerminatedError):
        time.sleep(5)


def test_a_step_that_does_not_end_is_interrupted() -> None:
    """Patience is limited: a download has no steps."""
    with pytest.raises(TerminatedError), deferred():
        send()
        time.sleep(5)


def test_every_step_with_a_bar_is_such_a_step() -> None:
    """Training, tables and decoding advance a bar, and end there."""
    with pytest.raises(TerminatedError), deferred(), progress("working", total=2) as advance:
        send()
        advance(1)
        pytest.fail("the second step was made")


def test_an_ignored_signal_stays_ignored() -> None:
    """`nohup` and a shell's background jobs mean it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.install()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    send(signal.SIGINT)
