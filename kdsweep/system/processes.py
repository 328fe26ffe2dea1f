"""Identifies processes, and tells whether they still live."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass(frozen=True)
class ProcessId:
    """A process, distinguished from others that had or will have its number.

    Attributes:
        host: Name of its machine.
        pid: Its number there.
        started: The time of its start in seconds since 1970, by the clock as it then was. It is for people to read, and
            isn't compared.
        birth: The time of its start as the machine's boot and the ticks since then, which don't change when the clock
            is set. Empty if only `started` is known.
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
        """Whether it runs or ran on this machine."""
        return self.host == socket.gethostname()

    @property
    def same_boot(self) -> bool:
        """Whether it ran on this machine after its last start; a machine of the same name may be another one."""
        boot = self.birth.partition("-")[0]
        return self.is_here and boot != "" and boot == this_process().birth.partition("-")[0]

    def lives(self) -> bool:
        """Returns whether it still runs; ask only about processes of this machine."""
        try:
            process = psutil.Process(self.pid)
            # A zombie has ended, and waits for its parent to ask how.
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return _birth(process) == self.birth if self.birth else abs(process.create_time() - self.started) < 1
        except psutil.NoSuchProcess:
            return False


def this_process() -> ProcessId:
    """Returns the process that asks."""
    process = psutil.Process()
    return ProcessId(socket.gethostname(), os.getpid(), process.create_time(), _birth(process))


def parse_process(text: str) -> ProcessId:
    """Returns the process whose `str` is `text`."""
    front, _, birth = text.rpartition(":")
    if not re.fullmatch(r"[0-9a-f]{8}-\d+|t\d+", birth):
        front, birth = text, ""
    host, pid, started = front.rsplit(":", 2)
    return ProcessId(host, int(pid), float(started), birth)


def _birth(process: psutil.Process) -> str:
    """Returns when a process started: "<8 digits of the boot's id>-<ticks since the boot>".

    psutil computes the time of the start from the clock, so it changes when the clock is set. Without /proc (macOS) the
    system itself keeps the time at which a process started; the result is then "t<seconds>".

    Raises:
        psutil.NoSuchProcess: The process is gone.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        # The command's name, in brackets before the other fields, may hold anything.
        fields = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()
        return f"{boot[:8]}-{int(fields[19])}"  # field 22 of proc_pid_stat(5)
    except OSError:
        return f"t{process.create_time():.0f}"
