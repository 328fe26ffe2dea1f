"""Sends a run's entries to its MLflow store, in order, from a thread, so that an outage doesn't stop the training.

From the first failure on, unsent entries are also kept in a journal on the disk, until all have been sent.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdsweep.system import interrupts
from kdsweep.system.progress import note
from kdsweep.tracking.retry import is_transient, pauses, reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdsweep.tracking.journal import Entry, Journal

# If sending an entry takes longer, the journal is begun: a process that is killed should lose nothing.
SLOW_SECONDS = 3.0
POLL_SECONDS = 0.1
HURRIED_SECONDS = 1.0  # the longest pause between attempts at the end of a run, for which somebody waits


@dataclass(frozen=True)
class Waiting:
    """Seconds for which a run waits for its store.

    Attributes:
        call_s: In each call that writes, while there is no outage. So an error is raised by the call that causes it;
            one of an artifact by a later call.
        end_s: At the end of a run.
        killed_s: At the end of a run that a signal ends.
    """

    call_s: float
    end_s: float
    killed_s: float


# A database of this machine answers in milliseconds, and a writer that locks it comes to an end.
LOCAL = Waiting(call_s=1.0, end_s=120.0, killed_s=6.0)
# A worker that was told to end has ten seconds for it (workers.GRACE_SECONDS).
REMOTE = Waiting(call_s=0.0, end_s=60.0, killed_s=6.0)


class Outbox:
    """The queue of one run's entries, and the thread that sends them.

    Args:
        send: Writes one entry to the store; the thread calls it, and may call it again for the same entry.
        journal: Keeps what can't be sent. The entries that it holds already are sent first, except for the status with
            which the run ended then.
        where: The store's name, for messages.
        waiting: Seconds for which calls wait.
    """

    def __init__(self, send: Callable[[Entry], None], journal: Journal, where: str, waiting: Waiting) -> None:
        self._send, self._journal, self._where, self.waiting = send, journal, where, waiting
        self._queue: deque[Entry] = deque(entry for entry in journal.resume() if entry["kind"] != "status")
        self._journaling = bool(self._queue)
        self._outage = False
        self._unwritten: OSError | None = None
        self._failure: Exception | None = None
        self._since: float | None = None  # when the sending of the first entry began
        self._closed = self._hurried = False
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="kdsweep-outbox", daemon=True).start()

    def put(self, entry: Entry) -> None:
        """Adds an entry to the queue. While there is no outage it waits until it is written, at most `waiting.call_s`.

        It doesn't wait for an artifact, which is in a file already and takes longer to write.

        Raises:
            Exception: An earlier entry, or this one, was refused for good.
        """
        with self._changed:
            self._queue.append(entry)
            if self._journaling:
                self._keep([entry])
            elif self._since is not None and time.monotonic() - self._since > SLOW_SECONDS:
                self._start_journal()
            self._changed.notify_all()
            if self.waiting.call_s > 0 and not self._journaling and entry["kind"] != "artifact":
                self._changed.wait_for(lambda: not self._queue or self._journaling, self.waiting.call_s)
        self.check()

    def check(self) -> None:
        """Raises, once, the failure of an entry that was refused for good."""
        with self._changed:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def drain(self, patience: float) -> bool:
        """Waits until all has been sent, at most `patience` seconds; returns whether all was. Signals end the wait."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
        end = time.monotonic() + patience
        journal_at = time.monotonic() + min(SLOW_SECONDS, patience)
        said = False
        while True:
            interrupts.check()
            with self._changed:
                if self._changed.wait_for(lambda: not self._queue, POLL_SECONDS):
                    return True
                now = time.monotonic()
                if not self._journaling and now >= journal_at:
                    self._start_journal()
            if now >= end:
                return False
            if not said and now >= journal_at:
                said = True
                note(f"Waiting for the MLflow store {self._where}, for up to {end - now:.0f} s.")

    def close(self) -> None:
        """Ends the thread. What hasn't been sent stays in the journal; a line for the user says where that is."""
        with self._changed:
            left = bool(self._queue)
            if left and not self._journaling:
                self._start_journal()
            self._closed = True
            self._changed.notify_all()
            if not left:
                self._journal.clear()
            self._journal.release()
        if not left:
            return
        missing = f"The MLflow store {self._where} didn't take all of this run"
        if self._unwritten is None:
            note(f"{missing}. The rest is in {self._journal.folder}: send it with `kdsweep-sync`.")
        else:
            note(f"{missing}, and the rest is lost: {self._unwritten}")

    def _start_journal(self) -> None:
        self._journaling = True
        self._keep(list(self._queue))

    def _keep(self, entries: list[Entry]) -> None:
        try:
            self._journal.write(entries)
        except OSError as error:  # entries are still in memory, and the store may come back
            if self._unwritten is None:
                note(f"What the MLflow store {self._where} hasn't taken yet can't be kept on disk: {error}")
            self._unwritten = error

    # The methods below run in the thread

    def _work(self) -> None:
        waits = pauses()
        while (entry := self._next()) is not None:
            try:
                self._send(entry)
            except Exception as error:
                if is_transient(error):
                    self._begin_outage(error)
                    self._pause(next(waits))
                    continue
                with self._changed:
                    self._failure = self._failure or error
            waits = pauses()
            self._sent(entry)

    def _next(self) -> Entry | None:
        """Waits for an entry to send, and returns it; None if there won't be any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._closed:
                return None
            if self._since is None:
                self._since = time.monotonic()
            return self._queue[0]

    def _begin_outage(self, error: Exception) -> None:
        with self._changed:
            if self._closed or self._outage:
                return
            self._outage = True
            if not self._journaling:
                self._start_journal()
            self._changed.notify_all()
        note(
            f"The MLflow store {self._where} doesn't answer ({reason(error)}). The run goes on; its results are "
            f"kept in {self._journal.folder} until they can be sent."
        )

    def _pause(self, seconds: float) -> None:
        with self._changed:
            # The end of a run makes the pause shorter.
            if not self._changed.wait_for(lambda: self._closed or self._hurried, seconds):
                return
            self._changed.wait_for(lambda: self._closed, min(seconds, HURRIED_SECONDS))

    def _sent(self, entry: Entry) -> None:
        with self._changed:
            if self._closed:  # the journal was released
                return
            self._queue.popleft()
            self._since = None
            back = False
            if not self._queue and self._journaling:
                self._journal.clear()
                self._journaling, self._unwritten = False, None
                back, self._outage = self._outage, False
            elif not self._journaling and "file" in entry:
                self._journal.forget(entry["file"])
            self._changed.notify_all()
        if back:
            note(f"The MLflow store {self._where} is back, and has all of this run.")
