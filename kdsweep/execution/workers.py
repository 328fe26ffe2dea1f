"""Worker processes: each runs one job after the other, and keeps data and teacher in memory between them.

A server process imports once what every job needs, and workers are forked from it in milliseconds, before anything
touches a GPU. What a worker shall not inherit from that server, its parent sends: environment, folder and terminal.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from kdsweep.execution.jobs import Job, Outcome, Task
from kdsweep.execution.serialization import packed_task, received_outcome, worker_environment
from kdsweep.execution.worker import serve
from kdsweep.system import interrupts
from kdsweep.system.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.context import ForkServerProcess

# What takes seconds to import, and what a job imports of kdsweep.
PRELOADED = [
    *("torch", "torch._dynamo", "torchvision", "sklearn.datasets", "matplotlib.backends.backend_agg"),
    *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "optuna"),
    *("kdsweep.train", "kdsweep.training", "kdsweep.recording", "kdsweep.study.plugin", "kdsweep.execution.worker"),
]

# How long a worker that was asked to end may take: it closes its MLflow run.
GRACE_SECONDS = 10.0

# How often a deferred signal is looked for.
POLL_SECONDS = 0.1


class Workers:
    """An `Executor`: a job goes to whichever process is free, and a process that dies is replaced.

    Args:
        task: What all jobs share.
        slots: Processes.
        threads: CPU threads that each may use.
        gpus: Names for CUDA_VISIBLE_DEVICES, which the slots take in turns; none: all see what this process sees.
    """

    def __init__(self, task: Task, slots: int, threads: int, gpus: Sequence[str]) -> None:
        self.slots = slots
        self._task = packed_task(task)
        self._threads = threads
        self._gpus = gpus
        self._workers: list[Worker | None] = [None] * slots

    def submit(self, job: Job) -> None:
        free = [slot for slot, worker in enumerate(self._workers) if worker is None or worker.job is None]
        assert free, "a slot must be free"
        slot = free[0]
        worker = self._workers[slot]
        if worker is None or not worker.process.is_alive():
            worker = self._workers[slot] = self._started(slot)
        worker.start(job)

    def wait(self) -> list[tuple[Job, Outcome]]:
        busy = [worker for worker in self._workers if worker is not None and worker.job is not None]
        assert busy, "a job must be outstanding"
        sources = [source for worker in busy for source in (worker.connection, worker.process.sentinel)]
        while not (ready := wait(sources, POLL_SECONDS)):
            interrupts.check()
        ended = [worker for worker in busy if {worker.connection, worker.process.sentinel} & set(ready)]
        return [worker.end() for worker in ended]

    def close(self) -> None:
        workers = [worker for worker in self._workers if worker is not None]
        self._workers = [None] * self.slots
        try:
            for worker in workers:
                worker.process.terminate()
            limit = time.monotonic() + GRACE_SECONDS
            for worker in workers:
                worker.process.join(max(0.0, limit - time.monotonic()))
        finally:
            # Also when Ctrl-C is pressed once more.
            for worker in workers:
                worker.kill()

    def _started(self, slot: int) -> Worker:
        environment = worker_environment(self._threads)
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        return Worker(self._task, environment)


class Worker:
    """One process, as its parent sees it."""

    def __init__(self, task: bytes, environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        with _without_interrupts(), _environment(environment):
            forkserver.ensure_running()
        self.job: Job | None = None
        self.connection, theirs = context.Pipe()
        # A daemon: should the parent end without `close`, it doesn't wait for jobs. And with no more arguments than a
        # pipe takes at once: cut short by Ctrl-C while the server still imports, they would cost a stack trace.
        self.process: ForkServerProcess = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        with suppress(OSError):
            _send_terminal(self.connection)
            self.connection.send((task, environment, str(Path.cwd())))

    def start(self, job: Job) -> None:
        """Sends a job; one that the process did not live to take shows as lost."""
        self.job = job
        with suppress(OSError):
            self.connection.send(job)

    def end(self) -> tuple[Job, Outcome]:
        """The job and its outcome, once it has answered or died."""
        assert self.job is not None
        job, self.job = self.job, None
        # A process that has just died may have answered before.
        with suppress(EOFError, OSError):
            if self.connection.poll():
                return job, received_outcome(self.connection.recv_bytes())
        self.process.join(GRACE_SECONDS)
        how = _ending(self.process.exitcode)
        self.kill()
        return job, Outcome(error=RunError(f"the worker process of {job.name} {how}"), lost=True)

    def kill(self) -> None:
        """Ends the process for certain, and forgets it."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def gpus(device: str) -> tuple[str, ...]:
    """Names for CUDA_VISIBLE_DEVICES, one for each GPU to bind a worker to; none where there is no choice.

    Args:
        device: The configuration's: one that names a GPU, or the CPU, leaves no choice.
    """
    if device not in ("auto", "cuda"):
        return ()
    import torch

    # Asks the driver, and leaves CUDA uninitialised.
    count = torch.cuda.device_count()
    if count < 2:
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(str(index) for index in range(count)) if visible is None else tuple(visible.split(",")[:count])


def _ending(status: int | None) -> str:
    if status is None:
        return "closed its connection"
    if status >= 0:
        return f"ended with status {status} and without an answer"
    killed = signal.Signals(-status)
    return f"was ended by {killed.name}" + (" (out of memory?)" if killed is signal.SIGKILL else "")


def _send_terminal(connection: Connection) -> None:
    """Sends where stdout and stderr go: the server may have been started with others."""
    with socket.socket(fileno=os.dup(connection.fileno())) as channel:
        socket.send_fds(channel, [b"\0"], [1, 2])


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """What is started in this block never gets SIGINT: a worker is ended by its parent, which may ignore Ctrl-C.

    And the server, which does not know about it, would print a stack trace.
    """
    # It would let the signal through again if it were started in the block.
    resource_tracker.ensure_running()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextmanager
def _environment(environment: dict[str, str]) -> Iterator[None]:
    """What is started in this block gets this environment: libraries read the number of threads when they load."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
