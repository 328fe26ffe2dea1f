"""Worker processes: each runs one job after another, and keeps data and teacher in memory between jobs.

A server process imports once what every job needs. Workers are forked from it in milliseconds, before anything touches
a GPU. Environment, working directory and terminal don't come from that server: the parent sends its own to the worker.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from kdsweep.execution.jobs import Job, Outcome, Task, in_words
from kdsweep.execution.serialization import packed_task, received_outcome, worker_environment
from kdsweep.execution.worker import serve
from kdsweep.system import interrupts
from kdsweep.system.errors import RunError, one_line
from kdsweep.system.files import short_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.context import ForkServerProcess

# Modules that take seconds to import, and the modules of kdsweep that a job imports.
PRELOADED = [
    *("torch", "torch._dynamo", "torchvision", "sklearn.datasets", "matplotlib.backends.backend_agg"),
    *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "optuna"),
    *("kdsweep.train", "kdsweep.training", "kdsweep.recording", "kdsweep.study.plugin", "kdsweep.execution.worker"),
]

# A worker that is asked to end has this long to close its MLflow run.
GRACE_SECONDS = 10.0

# The longest name of the folder of a server's socket, whose own name and folder take 32 of the 103 bytes that every
# system allows.
SOCKET_FOLDER_BYTES = 103 - 32

# While it waits, the parent looks for deferred signals at this interval.
POLL_SECONDS = 0.1


class Workers:
    """An `Executor` that gives a job to any free process, and replaces a process that died.

    Args:
        task: What all jobs share.
        slots: The number of processes.
        threads: CPU threads that each process may use.
        gpus: Names for CUDA_VISIBLE_DEVICES, which the slots take in turns. If empty, workers see the GPUs that this
            process sees.
    """

    def __init__(self, task: Task, slots: int, threads: int, gpus: Sequence[str]) -> None:
        self.slots = slots
        self._task = packed_task(task)
        self._threads = threads
        self._gpus = gpus
        self._workers: list[Worker | None] = [None] * slots

    def submit(self, job: Job) -> None:
        """Sends a job to a free process; starts the process if there is none."""
        free = [slot for slot, worker in enumerate(self._workers) if worker is None or worker.job is None]
        assert free, "a slot must be free"
        slot = free[0]
        worker = self._workers[slot]
        if worker is None or not worker.process.is_alive():
            worker = self._workers[slot] = self._started(slot)
        worker.start(job)

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Waits until a process has answered or died."""
        busy = [worker for worker in self._workers if worker is not None and worker.job is not None]
        assert busy, "a job must be outstanding"
        sources = [source for worker in busy for source in (worker.connection, worker.process.sentinel)]
        while not (ready := wait(sources, POLL_SECONDS)):
            interrupts.check()
        ended = [worker for worker in busy if {worker.connection, worker.process.sentinel} & set(ready)]
        return [worker.end() for worker in ended]

    def close(self) -> None:
        """Ends all processes by SIGTERM, and kills those that haven't ended `GRACE_SECONDS` later."""
        workers = [worker for worker in self._workers if worker is not None]
        self._workers = [None] * self.slots
        try:
            for worker in workers:
                worker.process.terminate()
            limit = time.monotonic() + GRACE_SECONDS
            for worker in workers:
                worker.process.join(max(0.0, limit - time.monotonic()))
        finally:
            # Ctrl-C may have been pressed once more meanwhile.
            for worker in workers:
                worker.kill()

    def _started(self, slot: int) -> Worker:
        environment = worker_environment(self._threads)
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        return Worker(self._task, environment)


class Worker:
    """One worker process, seen from its parent."""

    def __init__(self, task: bytes, environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        with _server_starts(), _without_interrupts(), _environment(environment), _short_sockets(), _own_output():
            forkserver.ensure_running()
        self.job: Job | None = None
        self.connection, theirs = context.Pipe()
        # A daemon, so that a parent that ends without `close` doesn't wait for its jobs. The arguments are few enough
        # for a pipe to take them at once: if Ctrl-C cut them short while the server still imports, the server would
        # print a stack trace.
        self.process: ForkServerProcess = context.Process(target=serve, args=(theirs,), daemon=True)
        with _server_starts():
            self.process.start()
        theirs.close()
        with suppress(OSError):
            _send_terminal(self.connection)
            self.connection.send((task, environment, str(Path.cwd())))

    def start(self, job: Job) -> None:
        """Sends a job. If the process dies before it takes the job, `end` returns the job as lost."""
        self.job = job
        with suppress(OSError):
            self.connection.send(job)

    def end(self) -> tuple[Job, Outcome]:
        """Returns the job and its outcome, after the process has answered or died."""
        assert self.job is not None
        job, self.job = self.job, None
        # A process that has just died may have answered first.
        with suppress(EOFError, OSError):
            if self.connection.poll():
                return job, received_outcome(self.connection.recv_bytes())
        self.process.join(GRACE_SECONDS)
        how = _ending(self.process.exitcode)
        self.kill()
        return job, Outcome(error=RunError(f"the worker process of {in_words(job.name)} {how}"), lost=True)

    def kill(self) -> None:
        """Ends the process by SIGKILL, and closes the connection to it."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def gpus(device: str) -> tuple[str, ...]:
    """Returns names for CUDA_VISIBLE_DEVICES, one for each GPU; none if workers have no choice of GPUs.

    Args:
        device: The configuration's device. If it is the CPU or names a GPU, there is no choice.
    """
    if device not in ("auto", "cuda"):
        return ()
    import torch

    # This asks the driver, and doesn't initialise CUDA.
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
    """Sends this process's stdout and stderr, because the server may have been started with other ones."""
    with socket.socket(fileno=os.dup(connection.fileno())) as channel:
        socket.send_fds(channel, [b"\0"], [1, 2])


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Blocks SIGINT for processes that are started in this block.

    Only its parent, which may ignore Ctrl-C, ends a worker. The server doesn't handle the signal, and would print a
    stack trace.
    """
    # The resource tracker unblocks the signal if it starts inside the block.
    resource_tracker.ensure_running()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextmanager
def _server_starts() -> Iterator[None]:
    """Turns what goes wrong while a process is started into a `RunError`, with the last line of the server's output."""
    try:
        yield
    except (OSError, EOFError) as error:
        # The server is gone if it doesn't answer; its last line says why, if it said anything.
        said = one_line(error)
        if _server_output is not None:
            text = os.pread(_server_output, MOST_BYTES, 0).decode(errors="replace")
            said = "; ".join([said, *[line.strip() for line in text.splitlines() if line.strip()][-1:]])
        remedy = "Free memory and processes (`ulimit -u`, `ulimit -n`), lower sweep.n_jobs, or set sweep.n_jobs=1."
        raise RunError(f"a worker process could not be started ({said}). {remedy}") from error


@contextmanager
def _short_sockets() -> Iterator[None]:
    """Lets sockets that are made in this block lie in a folder whose name is short enough for them."""
    before = tempfile.tempdir
    tempfile.tempdir = str(short_folder(Path(tempfile.gettempdir()), SOCKET_FOLDER_BYTES))
    try:
        yield
    finally:
        tempfile.tempdir = before


# The descriptor of the file into which the server prints, and the most that is read of it.
_server_output: int | None = None
MOST_BYTES = 100_000


@contextmanager
def _own_output() -> Iterator[None]:
    """Gives a server that is started in this block a file for its stderr.

    Workers get the terminal from their parent. The server has nothing to say that a user needs: as it ends, after the
    command, libraries that it has loaded may complain about what is still there ("nanobind: leaked 514 functions!").
    """
    global _server_output
    if _server_output is None:
        _server_output, path = tempfile.mkstemp()
        Path(path).unlink()
    sys.stderr.flush()
    terminal = os.dup(2)
    os.dup2(_server_output, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


@contextmanager
def _environment(environment: dict[str, str]) -> Iterator[None]:
    """Gives processes that are started in this block this environment; libraries read their threads when they load."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
