"""Claims about the identity of processes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import psutil
import pytest

from kdsweep.system import processes
from kdsweep.system.processes import ProcessId, parse_process, this_process


def test_a_process_is_found_again_by_its_text() -> None:
    """Host names may hold colons."""
    for process in (
        this_process(),
        ProcessId("fe80::1", 12, 3.25),
        ProcessId("fe80::1", 12, 3.25, "0123abcd-77"),
        ProcessId("fe80::1", 12, 3.25, "t3"),
    ):
        again = parse_process(str(process))
        assert again == process
        assert abs(again.started - process.started) < 0.01


def test_this_process_lives() -> None:
    """It runs on this machine, and has the number of the test process."""
    assert this_process().is_here
    assert this_process().lives()
    assert this_process().pid == os.getpid()


def test_a_number_that_was_given_away_again_is_another_process() -> None:
    """Process numbers are reused; the time of the start and the machine's boot distinguish the processes."""
    boot, _, ticks = this_process().birth.partition("-")
    for birth in (f"{boot}-{int(ticks) - 1}", f"{boot[::-1]}-{ticks}"):
        other = dataclasses.replace(this_process(), birth=birth)
        assert not other.lives()
        assert other != this_process()


@pytest.mark.parametrize("hours", [-1, 1])
def test_setting_the_clock_makes_nobody_another(hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Psutil computes the start from the machine's clock, so its answer changes when the clock is set."""
    before = this_process()
    start = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: start(process) + hours * 3600)
    assert this_process().started != before.started
    assert this_process() == before == parse_process(str(before))
    assert before.lives()


def test_a_text_of_an_earlier_version_is_understood() -> None:
    """Studies that were begun with it have only the time of the start."""
    started = psutil.Process().create_time()
    known = f"{this_process().host}:{os.getpid()}"
    assert parse_process(f"{known}:{started:.2f}").lives()
    assert not parse_process(f"{known}:{started - 100:.2f}").lives()


def test_without_proc_the_systems_time_of_the_start_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """MacOS keeps it with the process."""
    monkeypatch.setattr(processes, "Path", lambda _: Path("/nowhere"))
    assert this_process().birth == f"t{psutil.Process().create_time():.0f}"
    assert parse_process(str(this_process())).lives()


def test_a_process_that_was_killed_is_dead_before_it_is_asked_for() -> None:
    """Its parent hasn't waited for it yet: a zombie doesn't count as living."""
    process = subprocess.Popen(["sleep", "60"])
    identity = ProcessId(this_process().host, process.pid, psutil.Process(process.pid).create_time())
    assert identity.lives()
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert not identity.lives()
    process.wait()
    assert not identity.lives()
