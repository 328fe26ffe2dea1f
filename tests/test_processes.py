"""Claims about the identity of processes."""

from __future__ import annotations

import dataclasses
import os
import subprocess

import psutil

from kdsweep.processes import ProcessId, parse_process, this_process


def test_a_process_is_found_again_by_its_text() -> None:
    """Host names may hold colons."""
    for process in (this_process(), ProcessId("fe80::1", 12, 3.25)):
        again = parse_process(str(process))
        assert (again.host, again.pid) == (process.host, process.pid)
        assert abs(again.started - process.started) < 0.01


def test_this_process_lives() -> None:
    """It is here, and has our number."""
    assert this_process().is_here
    assert this_process().lives()
    assert this_process().pid == os.getpid()


def test_a_number_that_was_given_away_again_is_another_process() -> None:
    """Process numbers are reused; the time of the start tells them apart."""
    assert not dataclasses.replace(this_process(), started=this_process().started - 100).lives()


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
