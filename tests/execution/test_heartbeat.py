"""Claims about heartbeats: who counts as alive, by clocks that the tests set."""

from __future__ import annotations

import pytest

from kdsweep.execution import heartbeat
from kdsweep.execution.heartbeat import BEAT_SECONDS, STALE_SECONDS, Pulse, lives_at_once


class Clocks:
    """Stands in for the module `time`: the tests set the machine's clock and the monotonic one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.monotonic_now = 1e9, 50.0
        monkeypatch.setattr(heartbeat, "time", self)

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.monotonic_now

    def sleep(self, seconds: float) -> None:
        self.wait(seconds)

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic_now += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def test_what_has_written_nothing_for_two_minutes_is_dead(clocks: Clocks) -> None:
    """At the first look its heartbeat tells its age; later, what goes on beating lives."""
    pulse = Pulse()
    assert not pulse.lives("long dead", clocks.wall - STALE_SECONDS)
    assert pulse.lives("dying", clocks.wall - STALE_SECONDS + 30)
    living = clocks.wall
    assert pulse.lives("living", living)
    clocks.wait(30)
    assert not pulse.lives("dying", living - STALE_SECONDS + 30)
    assert pulse.lives("living", living)


@pytest.mark.parametrize("hours", [-1, 1])
def test_setting_the_clock_revives_and_kills_nobody(clocks: Clocks, hours: int) -> None:
    """Pulse has seen when the heartbeat changed, and measures from then by the monotonic clock."""
    pulse, beat = Pulse(), clocks.wall
    assert pulse.lives("job", beat)
    clocks.wall += hours * 3600
    clocks.wait(STALE_SECONDS - 1)
    assert pulse.lives("job", beat)
    clocks.wait(1)
    assert not pulse.lives("job", beat)
    assert pulse.lives("job", beat + 20)


def test_a_beat_from_the_future_is_new(clocks: Clocks) -> None:
    """The other clock is ahead of ours; two minutes without another heartbeat, and the process is dead."""
    pulse, beat = Pulse(), clocks.wall + 3600
    assert pulse.lives("job", beat)
    clocks.wait(STALE_SECONDS)
    assert not pulse.lives("job", beat)


def test_one_look_believes_a_heartbeat_that_is_not_from_the_future(clocks: Clocks) -> None:
    """It lives until its heartbeat is two minutes old; nothing is read again."""

    def never() -> float:
        raise AssertionError

    assert lives_at_once(clocks.wall + BEAT_SECONDS, never)
    assert lives_at_once(clocks.wall - STALE_SECONDS + 1, never)
    assert not lives_at_once(clocks.wall - STALE_SECONDS, never)


@pytest.mark.parametrize(("again", "lives"), [(20.0, True), (0.0, False), (None, False)])
def test_one_look_waits_for_another_heartbeat_where_clocks_differ(
    clocks: Clocks, again: float | None, lives: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A heartbeat from the future says nothing by itself; a changed one does. The message names the difference."""
    future = clocks.wall + 3600
    assert lives_at_once(future, lambda: None if again is None else future + again) == lives
    assert clocks.monotonic_now == 50.0 + 2 * BEAT_SECONDS
    assert "clocks of two machines differ by 3600 s" in " ".join(capsys.readouterr().err.split())
