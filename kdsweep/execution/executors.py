"""Executors run the jobs of a study: in this process, in worker processes, on Ray, or by any Hydra launcher."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Protocol

from hydra.errors import HydraException

from kdsweep.execution.jobs import Job, Outcome, Task, all_overrides, outcome, run_job
from kdsweep.system.errors import RunError, UserError, one_line, require

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher

EXECUTORS = ("in_process", "workers", "ray", "launcher")

RAY_SETTINGS = {
    # Ray sends no usage statistics to its makers.
    "RAY_USAGE_STATS_ENABLED": "0",
    # A task that reserves no GPU can still see the machine's GPUs. Ray warns unless this is set, since it will be the
    # default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # The study reports lost jobs itself.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",
}


class Executor(Protocol):
    """Runs jobs, at most `slots` at a time."""

    slots: int

    def submit(self, job: Job) -> None:
        """Takes a job; at most `slots` jobs may be outstanding."""

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Blocks until at least one outstanding job has ended, and returns all that have.

        Ctrl-C and SIGTERM raise here even if they are deferred. The jobs then go on until `close`.
        """

    def close(self) -> None:
        """Ends jobs that still run, as SIGTERM would, and kills those that haven't ended ten seconds later."""


def open_executor(
    name: str,
    task: Task,
    launcher: Launcher,
    n_jobs: int,
    *,
    threads: int = 1,
    device: str = "auto",
    ray_address: str | None = None,
) -> Executor:
    """Opens the executor called `name`.

    Args:
        name: One of `EXECUTORS`.
        task: What all jobs share.
        launcher: Hydra's launcher after its `setup`; only the executor "launcher" uses it.
        n_jobs: The number of jobs that run at the same time.
        threads: CPU threads that workers and Ray reserve for each job; the job's overrides set them for torch.
        device: The configuration's device. Jobs are spread over several GPUs if it doesn't name one of them.
        ray_address: The address of a Ray cluster, as in `ray_cluster`. A Ray of this machine ends with the executor.

    Raises:
        UserError: There is no such executor, or it can't run `n_jobs` jobs, or Ray is not installed.
    """
    require_executor(name, n_jobs)
    if name == "in_process":
        return InProcess(task)
    if name == "launcher":
        return Launched(launcher, n_jobs)
    if name == "workers":
        from kdsweep.execution.workers import Workers, gpus

        return Workers(task, n_jobs, threads, gpus(device))
    # Ray reads these variables when it is imported. What the user has set stays.
    for variable, value in RAY_SETTINGS.items():
        os.environ.setdefault(variable, value)
    from kdsweep.execution.ray import RayExecutor

    return RayExecutor(task, n_jobs, threads, device, ray_cluster(ray_address))


def ray_cluster(address: str | None) -> str | None:
    """Returns the address of the Ray cluster to connect to; None if Ray is to be started on this machine.

    Args:
        address: "local", the address of a cluster, or None: then the environment's RAY_ADDRESS holds, as everywhere in
            Ray, and Ray is started on this machine if that isn't set.
    """
    found = address or os.environ.get("RAY_ADDRESS") or "local"
    return None if found == "local" else found


def require_executor(name: str, n_jobs: int) -> None:
    """Refuses arguments with which `open_executor` would fail, without opening anything.

    Raises:
        UserError: There is no such executor, or it can't run `n_jobs` jobs, or Ray is not installed.
    """
    require(name in EXECUTORS, f"executor in {EXECUTORS}", name, "sweep.executor")
    require(type(n_jobs) is int and n_jobs >= 1, "n_jobs >= 1", n_jobs, "sweep.n_jobs", "It is a whole number.")
    if name == "in_process":
        remedy = "One process runs one job at a time: set sweep.executor=workers."
        require(n_jobs == 1, "n_jobs == 1 in process", n_jobs, "sweep.n_jobs", remedy)
    if name == "ray" and importlib.util.find_spec("ray") is None:
        remedy = "Install it (pip install 'kdsweep[ray]'), or set sweep.executor=workers."
        raise UserError(f"Ray isn't installed. {remedy}", "sweep.executor")


class InProcess:
    """An `Executor` that runs each job in this process, when `wait` is called."""

    slots = 1

    def __init__(self, task: Task) -> None:
        self._task = task
        self._jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        """Takes a job."""
        assert not self._jobs, "one job at a time"
        self._jobs.append(job)

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Runs the job."""
        job = self._jobs.pop()
        return [(job, run_job(self._task, job))]

    def close(self) -> None:
        """Forgets a job that wasn't run."""
        self._jobs.clear()


class Launched:
    """An `Executor` that hands jobs in batches to a Hydra launcher, which returns when the whole batch has ended.

    An exception of `launch` doesn't say which job raised it. If it is Hydra's, a configuration couldn't be composed,
    and the exception counts as the error of each job. Otherwise the batch is lost: joblib's worker was killed, Slurm
    gave up, or the launcher can't start anything.
    """

    def __init__(self, launcher: Launcher, slots: int) -> None:
        self.slots = slots
        self._launcher = launcher
        self._jobs: list[Job] = []
        self._launched = 0

    def submit(self, job: Job) -> None:
        """Adds a job to the next batch."""
        assert len(self._jobs) < self.slots, "a slot must be free"
        self._jobs.append(job)

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Runs the batch, and returns all its jobs."""
        batch, self._jobs = self._jobs, []
        try:
            done = self._launcher.launch([all_overrides(job) for job in batch], initial_job_idx=self._launched)
            ends = [outcome(answer) for answer in done]
        except HydraException as error:
            ends = [Outcome(error=error)] * len(batch)
        except Exception as error:
            what = f"{type(self._launcher).__name__} failed ({type(error).__name__}: {one_line(error)[:300]})"
            ends = [Outcome(error=RunError(what), lost=True)] * len(batch)
        self._launched += len(batch)
        return list(zip(batch, ends, strict=True))

    def close(self) -> None:
        """Forgets jobs that weren't run."""
        self._jobs.clear()
