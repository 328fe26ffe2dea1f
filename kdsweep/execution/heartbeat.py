"""Heartbeats, by which a process on another machine is known to live: a time that it writes again and again."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kdsweep.system.progress import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

BEAT_SECONDS = 20.0
# A process on another machine that hasn't written a heartbeat for so long counts as dead.
STALE_SECONDS = 120.0


@contextmanager
def beating(beat: Callable[[], None]) -> Iterator[None]:
    """Calls `beat` at once, where it may raise, and then every `BEAT_SECONDS` in a thread until the block ends."""
    ended = threading.Event()

    def keep_beating() -> None:
        while not ended.wait(BEAT_SECONDS):
            try:
                beat()
            except Exception as error:  # the database may be away for a moment; the run itself doesn't need it now
                log.warning("the heartbeat could not be written: %s", error)

    beat()
    thread = threading.Thread(target=keep_beating, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Pulse:
    """Detects live processes on other machines by their heartbeats, for somebody who looks again and again.

    Clocks differ between machines, and may be set. So only the first look compares a heartbeat with this machine's
    clock, and a heartbeat from the future counts as new. After that, a process lives as long as its heartbeat changes,
    by a clock that nobody sets.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}  # name -> heartbeat, and our monotonic time when it was written

    def lives(self, name: str, beat: float) -> bool:
        """Returns whether the process wrote a heartbeat in the last `STALE_SECONDS`.

        Args:
            name: What the process is called here.
            beat: Its last heartbeat, in seconds since the epoch by its own clock.
        """
        now = time.monotonic()
        last = self._last.get(name)
        if last is None:
            last = (beat, now - max(0.0, time.time() - beat))
        elif last[0] != beat:
            last = (beat, now)
        self._last[name] = last
        return now - last[1] < STALE_SECONDS


def lives_at_once(beat: float, read_again: Callable[[], float | None]) -> bool:
    """Returns whether a controller on another machine lives, for somebody who looks once.

    If its heartbeat lies in the future, one of the clocks is wrong: then only another heartbeat shows that it lives,
    and this waits for one.

    Args:
        beat: The controller's last heartbeat, in seconds since the epoch by its own clock.
        read_again: Returns the heartbeat that is there now, or None.
    """
    now = time.time()
    if beat <= now + BEAT_SECONDS:
        return now - beat < STALE_SECONDS
    note(f"The clocks of two machines differ by {beat - now:.0f} s: waiting for a sign of life from the controller.")
    time.sleep(2 * BEAT_SECONDS)
    again = read_again()
    return again is not None and again != beat
