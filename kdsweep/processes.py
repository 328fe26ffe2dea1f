"""Which process something belongs to, and whether it still lives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class ProcessId:
    """A process, told from every other one that had or will have its number.

    Attributes:
        host: Name of its machine.
        pid: Its number there.
        started: When it started, in seconds since 1970.
    """

    host: str
    pid: int
    started: float

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.started:.2f}"

    @property
    def is_here(self) -> bool:
        """Whether it ran, or runs, on this machine."""
        return self.host == socket.gethostname()

    def lives(self) -> bool:
        """Whether it still runs; only for processes of this machine."""
        try:
            process = psutil.Process(self.pid)
            # A zombie has ended; only its parent hasn't asked yet.
            return abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def this_process() -> ProcessId:
    """The process that asks."""
    return ProcessId(socket.gethostname(), os.getpid(), psutil.Process().create_time())


def parse_process(text: str) -> ProcessId:
    """The process that `str` made `text` of."""
    host, pid, started = text.rsplit(":", 2)
    return ProcessId(host, int(pid), float(started))
