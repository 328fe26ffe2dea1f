"""Which process something belongs to, and whether it still lives."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass(frozen=True)
class ProcessId:
    """A process, told from every other one that had or will have its number.

    Attributes:
        host: Name of its machine.
        pid: Its number there.
        started: When it started, in seconds since 1970, by the clock as it then was; for people, and so no part of
            what makes two equal.
        birth: When it started, by what no setting of the clock moves: the machine's boot and the ticks since then.
            Empty for one of which only `started` is known.
    """

    host: str
    pid: int
    started: float = field(compare=False)
    birth: str = ""

    def __str__(self) -> str:
        known = (self.host, self.pid, f"{self.started:.2f}", self.birth)
        return ":".join(map(str, known if self.birth else known[:3]))

    @property
    def is_here(self) -> bool:
        """Whether it ran, or runs, on this machine."""
        return self.host == socket.gethostname()

    def lives(self) -> bool:
        """Whether it still runs; only for processes of this machine."""
        try:
            process = psutil.Process(self.pid)
            # A zombie has ended; only its parent hasn't asked yet.
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return _birth(process) == self.birth if self.birth else abs(process.create_time() - self.started) < 1
        except psutil.NoSuchProcess:
            return False


def this_process() -> ProcessId:
    """The process that asks."""
    process = psutil.Process()
    return ProcessId(socket.gethostname(), os.getpid(), process.create_time(), _birth(process))


def parse_process(text: str) -> ProcessId:
    """The process that `str` made `text` of."""
    front, _, birth = text.rpartition(":")
    if not re.fullmatch(r"[0-9a-f]{8}-\d+|t\d+", birth):
        front, birth = text, ""
    host, pid, started = front.rsplit(":", 2)
    return ProcessId(host, int(pid), float(started), birth)


def _birth(process: psutil.Process) -> str:
    """When a process started: "<8 digits of the boot's id>-<ticks since it>".

    psutil's time of the start is the machine's clock less the time since then: it moves when the clock is set. Where
    there is no /proc (macOS), the system keeps the time at which a process started, and that is "t<seconds>".

    Raises:
        psutil.NoSuchProcess: It is gone.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        # The command's name, in brackets, may hold anything.
        fields = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()
        return f"{boot[:8]}-{int(fields[19])}"  # field 22 of proc_pid_stat(5)
    except OSError:
        return f"t{process.create_time():.0f}"
