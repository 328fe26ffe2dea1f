"""Runs jobs on Ray, on this machine or on a cluster whose machines have kdsweep and share the study's folder."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray._private import ray_constants
from ray.exceptions import RayError, RayTaskError

from kdsweep.execution.jobs import Job, Outcome, Task
from kdsweep.execution.serialization import packed_task, received_outcome, worker_environment
from kdsweep.execution.worker import answered
from kdsweep.system import interrupts
from kdsweep.system.errors import RunError, UserError, one_line
from kdsweep.system.files import SHORT_FOLDERS, short_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

# A cancelled job has this long to close its MLflow run.
GRACE_SECONDS = 10.0

# While it waits, the study looks for deferred signals at this interval.
POLL_SECONDS = 0.1

# The longest name of the folder in which Ray makes its own, whose sockets' names then have at most 103 bytes.
SOCKET_FOLDER_BYTES = 103 - 68

# A cluster has this long to answer.
CONNECT_SECONDS = 5.0

# Environment variables with these prefixes are sent to the machines of a cluster.
SENT = ("KDSWEEP_", "MLFLOW_", "OMP_", "MKL_", "OPENBLAS_")


class RayExecutor:
    """An `Executor` that makes each job a Ray task, which reserves its CPU threads and its share of a GPU.

    The output of jobs goes to Ray's own log files.

    Args:
        task: What all jobs share.
        slots: The number of jobs that run at the same time.
        threads: CPU threads of each job.
        device: The configuration's device. GPUs are reserved unless it is the CPU.
        address: The cluster's address, as `executors.ray_cluster` returns it; None starts Ray on this machine, on the
            loopback, until `close`.
    """

    def __init__(self, task: Task, slots: int, threads: int, device: str, address: str | None) -> None:
        self.slots = slots
        self._ours = not ray.is_initialized()
        if self._ours:
            _start(address, slots * threads)
        found = 0 if device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        self._environment = {
            name: value for name, value in worker_environment(threads).items() if name.startswith(SENT)
        }
        self._task = ray.put(packed_task(task))
        # A user's own package may be importable only with this process's path.
        self._path = tuple(sys.path)
        share = 1 / math.ceil(slots / found) if found else 0
        # Ray doesn't retry anything, because the study counts the restarts.
        self._run = ray.remote(max_retries=0, num_cpus=threads, num_gpus=share)(_run)
        self._jobs: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        """Starts a job as a Ray task."""
        assert len(self._jobs) < self.slots, "a slot must be free"
        here = (self._environment, self._path, str(Path.cwd()))
        reference = self._run.options(name=job.name).remote(self._task, job, *here)
        self._jobs[reference] = job

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Waits until a task has ended."""
        assert self._jobs, "a job must be outstanding"
        while not (ready := ray.wait(list(self._jobs), num_returns=1, timeout=POLL_SECONDS)[0]):
            interrupts.check()
        return [(self._jobs.pop(reference), _outcome(reference)) for reference in ready]

    def close(self) -> None:
        """Cancels all tasks, kills those that haven't ended `GRACE_SECONDS` later, and ends a Ray that was started."""
        left = list(self._jobs)
        try:
            for reference in left:
                ray.cancel(reference, force=False)
            if left:
                left = ray.wait(left, num_returns=len(left), timeout=GRACE_SECONDS)[1]
        finally:
            # Not those that have ended: Ray aborts this process if it is still taking note of that.
            for reference in left:
                with suppress(RayError):
                    ray.cancel(reference, force=True)
            self._jobs.clear()
            if self._ours:
                ray.shutdown()


def _start(address: str | None, threads: int) -> None:
    """Starts Ray on this machine with room for this many threads, or connects to a cluster, without output."""
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    with _own_signals():
        if address is None:
            cores = max(len(os.sched_getaffinity(0)), threads)
            usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or SHORT_FOLDERS[0]
            folder = short_folder(Path(usual), SOCKET_FOLDER_BYTES) / "ray"
            own = {"_node_ip_address": "127.0.0.1", "include_dashboard": False, "_temp_dir": str(folder)}
            try:
                with _on_loopback():
                    # Without the word "local", Ray would connect to a cluster that RAY_ADDRESS names.
                    ray.init(address="local", num_cpus=cores, **own, **quiet)
            except Exception as error:  # Ray raises errors of the system, of its own, and plain ones
                ray.shutdown()
                remedy = "Worker processes do without it: sweep.executor=workers."
                raise RunError(f"Ray can't be started on this machine ({_reason(error)}). {remedy}") from error
            return
        try:
            _knock(address)
            ray.init(address=address, **quiet)
        except Exception as error:
            remedy = "Give the address that `ray start --head` printed, or `local` to start Ray on this machine."
            named = f"sweep.ray_address{'' if address != os.environ.get('RAY_ADDRESS') else ', RAY_ADDRESS'}"
            raise UserError(f"no Ray answers at {address!r} ({_reason(error)}). {remedy}", named) from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Makes a Ray that starts in this block listen on the loopback only.

    On Linux, Ray 2.60 takes 127.0.0.1 for the address that others see, listens on all addresses, and runs the code of
    anyone who connects. This switch keeps Ray on the loopback on other systems, and works here too; Ray's processes
    read it when they start.
    """
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    outside = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[name]
        if outside is not None:
            os.environ[name] = outside


def _reason(error: Exception) -> str:
    return one_line(error)[:300].rstrip(".")


def _knock(address: str) -> None:
    """Raises OSError if nobody listens at the address. Ray itself would try for two minutes, with output."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def _outcome(reference: Any) -> Outcome:
    try:
        return received_outcome(ray.get(reference))
    except RayTaskError as error:
        # Jobs return their errors, so this one was raised outside the job: the task couldn't be read there.
        return Outcome(error=RunError(f"Ray could not run the job: {error.cause}"))
    except RayError as error:
        what = one_line(f"{type(error).__name__}: {error}", whole=False)
        return Outcome(error=RunError(f"Ray lost the job ({what})"), lost=True)


def _run(task: bytes, job: Job, environment: dict[str, str], path: tuple[str, ...], folder: str) -> bytes:
    """Runs a job in one of Ray's processes, which stays and keeps data and teacher in memory."""
    os.environ.update(environment)
    sys.path += [place for place in path if place not in sys.path]
    with _own_signals():
        # `ray.cancel` sends SIGINT to this process.
        interrupts.install()
        try:
            return answered(task, job, folder)
        finally:
            interrupts.forget()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restores signal handlers after the block: Ray sets its own, and must not find ours in its processes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
