"""The inside of a worker process, which runs the jobs that its parent sends, and ends with its parent."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection, wait

from kdsweep.execution import prefetch
from kdsweep.execution.jobs import Job, Outcome, run_job
from kdsweep.execution.serialization import packed_outcome, received_task
from kdsweep.system import interrupts

# After the study's process has ended, a job has this long to close its MLflow run.
GRACE_SECONDS = 10.0


def serve(connection: Connection) -> None:
    """Runs jobs until the connection is closed, or SIGTERM or SIGHUP arrives and ends the job as it ends a single run.

    Args:
        connection: Receives the descriptors of stdout and stderr; then the packed task, the environment and the working
            directory; then jobs. Each job's outcome is sent back.
    """
    # Ctrl-C in the terminal reaches this process too. Its parent decides what it means, and sends SIGTERM to end it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.install()
        threading.Thread(target=_end_with_parent, daemon=True).start()
        _receive_terminal(connection)
        task, environment, folder = connection.recv()
        os.environ.clear()
        os.environ.update(environment)
        while True:
            while not connection.poll() and prefetch.compute_part(stop=connection.poll):
                pass
            connection.send_bytes(answered(task, connection.recv(), folder))
    except (KeyboardInterrupt, EOFError, OSError):
        # A signal asked this process to end, or the parent has closed the connection or is gone.
        return
    finally:
        interrupts.forget()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)


def answered(task: bytes, job: Job, folder: str) -> bytes:
    """Runs a job, and packs its outcome.

    Args:
        task: The message of `packed_task`. If it can't be read here, that is the job's error.
        job: The job.
        folder: The working directory.
    """
    try:
        os.chdir(folder)
        outcome = run_job(_received(task), job)
    except Exception as error:
        outcome = Outcome(error=error)
    return packed_outcome(outcome)


# A process serves one study at a time.
_received = functools.lru_cache(maxsize=1)(received_task)


def _receive_terminal(connection: Connection) -> None:
    with socket.socket(fileno=os.dup(connection.fileno())) as channel:
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 2)
    if not descriptors:
        raise EOFError("the parent is gone")
    sys.stdout.flush()
    sys.stderr.flush()
    for number, descriptor in zip((1, 2), descriptors, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)


def _end_with_parent() -> None:
    """Waits until the parent has ended, for whatever reason, and then ends this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
