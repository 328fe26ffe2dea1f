"""Claims about Ctrl-C, SIGTERM and SIGHUP: where they end the work, and that none is lost."""

# ruff: noqa: PT012 (these blocks need several statements: the claims are about where in them a signal raises)

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from kdsweep.system import interrupts
from kdsweep.system.interrupts import TerminatedError, check, closing, deferred
from kdsweep.system.progress import progress


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kdsweep's handlers, for one test; a signal is sent again after half a second."""
    monkeypatch.setattr(interrupts, "PATIENCE_SECONDS", 0.5)
    before = {number: signal.getsignal(number) for number in interrupts.ENDS}
    # Where the tests run in the background or under nohup, these are ignored from the start, and would stay so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupts.install()
    yield
    interrupts.forget()
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "error"), list(interrupts.ENDS.items()))
def test_a_signal_raises_at_once_where_nothing_is_open(number: int, error: type[KeyboardInterrupt]) -> None:
    """Ctrl-C raises KeyboardInterrupt as always, SIGTERM and SIGHUP raise subclasses of it."""
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
    with pytest.raises(KeyboardInterrupt), deferred():
        with pytest.raises(TerminatedError), deferred():
            send()
            done.append("inner")
        send(signal.SIGINT)
        done.append("outer")
    assert done == ["inner", "outer"]


def test_no_block_begins_after_a_signal() -> None:
    """A signal between two runs opens no further one."""
    with pytest.raises(TerminatedError), deferred():
        send()
        with deferred():
            pytest.fail("the inner block began")


def test_the_second_signal_does_not_wait() -> None:
    """A user who presses Ctrl-C twice wants the process to end at once."""
    with pytest.raises(KeyboardInterrupt), deferred():
        send(signal.SIGINT)
        send(signal.SIGINT)
        pytest.fail("the second signal was deferred")


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_a_repetition_of_sigterm_says_nothing_new(first: int, second: int) -> None:
    """It comes from the process group and from the parent, or with SIGHUP: the closing of a run isn't cut short."""
    done = []
    with pytest.raises(interrupts.ENDS[first]) as raised, deferred():
        send(first)
        send(second)
        try:
            check()
        finally:
            send(second)
            done.append("closed")
    assert raised.type is interrupts.ENDS[first]
    assert done == ["closed"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_nothing_cuts_a_closing_short(number: int) -> None:
    """However long it takes and however late the signal comes, the signal raises afterwards."""
    done = []
    with pytest.raises(interrupts.ENDS[number]), deferred():
        with closing():
            send(number)
            time.sleep(0.7)
            check()
            done.append("closed")
        pytest.fail("the signal was forgotten")
    assert done == ["closed"]


def test_a_step_that_did_not_end_does_not_end_its_closing() -> None:
    """What was to be sent again is not sent while the run is closed."""
    done = []
    with pytest.raises(TerminatedError) as raised:
        try:
            send()
        finally:
            with closing():
                time.sleep(0.7)
                done.append("closed")
    assert done == ["closed"]
    assert raised.value.__context__ is None


def test_the_error_of_a_closing_is_not_hidden_by_a_signal() -> None:
    """The signal is obeyed by what comes next."""
    with pytest.raises(ValueError, match="anything"), closing():
        send()
        raise ValueError("anything")
    with pytest.raises(TerminatedError):
        check()


def test_ctrl_c_twice_cuts_a_closing_short() -> None:
    """A server that doesn't answer can make closing long; Ctrl-C pressed once doesn't cut it short."""
    done = []
    with pytest.raises(KeyboardInterrupt), closing():
        send(signal.SIGTERM)
        send(signal.SIGINT)
        done.append("once")
        send(signal.SIGINT)
        pytest.fail("the second Ctrl-C was deferred")
    assert done == ["once"]


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
    with pytest.raises(TerminatedError), deferred(), progress("working", 2, "pictures") as advance:
        send()
        advance(1)
        pytest.fail("the second step was made")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored(number: int) -> None:
    """A shell's background jobs and `nohup` ignore signals on purpose."""
    signal.signal(number, signal.SIG_IGN)
    interrupts.install()
    assert signal.getsignal(number) is signal.SIG_IGN
    send(number)
