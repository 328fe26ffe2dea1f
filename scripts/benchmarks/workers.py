"""Compares worker processes of one thread each with one process of as many threads; results must be the same.

With `--device cuda` it compares one process with two, three and four on the same GPU.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import DictConfig

from benchmarks import parts, running
from benchmarks.measuring import Figure, Finding, take_turns
from kdsweep.execution.jobs import Job, Outcome, Task
from kdsweep.execution.workers import Workers
from kdsweep.numerics.hardware import resolve_device
from kdsweep.system.environment import cores
from kdsweep.system.errors import RunError

# How long a job waits until all jobs are ready, and how often it looks.
READY_SECONDS, POLL_SECONDS = 300.0, 0.01
SAMPLE_SECONDS = 0.05

# The most processes on a GPU, unless --workers says another number, and the steps of an epoch there.
MOST_ON_A_GPU, GPU_STEPS = 4, 200
BATCH = 128


def train_together(cfg: DictConfig, folder: str, others: int, epochs: int) -> dict[str, Any]:
    """A job: trains as kdsweep does. The first epoch is warm-up; the others begin when all jobs are ready.

    Args:
        cfg: The configuration.
        folder: The folder in which each job creates a file when it is ready.
        others: The number of jobs.
        epochs: The number of measured epochs.
    """
    import torch
    from threadpoolctl import threadpool_info

    from kdsweep.numerics import hardware
    from kdsweep.system.tensor_files import hash_tensors

    hardware.set_threads(cfg.threads)
    training = parts.Training(cfg)
    fit = iter(training.fit(epochs=epochs + 1))
    next(fit)
    Path(folder, f"{cfg.seed}-{os.getpid()}").touch()
    limit = time.monotonic() + READY_SECONDS
    while len(list(Path(folder).iterdir())) < others and time.monotonic() < limit:
        time.sleep(POLL_SECONDS)
    began, processor = time.perf_counter(), time.process_time()
    for _ in range(epochs):
        next(fit)
    ended = time.perf_counter()
    return {
        "began": began,
        "ended": ended,
        "processor": time.process_time() - processor,
        "pictures": epochs * training.pictures,
        "memory": torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else 0,
        "threads": max(torch.get_num_threads(), *(int(pool["num_threads"]) for pool in threadpool_info())),
        "weights": hash_tensors(training.network.net.state_dict()),
    }


class Side:
    """A side: runs each job in its own worker process; returns the seconds from the first start to the last end.

    Args:
        shared: What the jobs share.
        lines: The jobs' overrides.
        folder: The folder for the files by which jobs say that they are ready.
        jobs: The number of jobs, and of processes.
        threads: The number of threads of each process.
        epochs: The number of epochs of each job.
    """

    def __init__(self, shared: Task, lines: Sequence[str], folder: Path, jobs: int, threads: int, epochs: int) -> None:
        self._shared, self._lines, self._folder = shared, lines, folder
        self._jobs, self._threads, self._epochs = jobs, threads, epochs
        self.found: list[list[dict[str, Any]]] = []
        self.running: list[int] = []  # for each round, the threads that ran or waited for a core

    def __call__(self) -> float:
        place = self._folder / f"{self._jobs}-{self._threads}-{len(self.found)}"
        place.mkdir(parents=True)
        work = functools.partial(train_together, folder=str(place), others=self._jobs, epochs=self._epochs)
        task = Task(self._shared.hydra_context, self._shared.config, work)
        with closing(Workers(task, self._jobs, self._threads, ())) as executor, ThreadPoolExecutor(1) as pool:
            for seed in range(self._jobs):
                own = (*self._lines, f"seed={seed}", f"threads={self._threads}")
                executor.submit(Job(f"job-{seed}", own, seed))
            sampling = Sampling(place, self._jobs)
            samples = pool.submit(sampling.run)
            try:
                ends: dict[int, Outcome] = {}
                while len(ends) < self._jobs:
                    ends |= {job.number: outcome for job, outcome in executor.wait()}
            finally:
                sampling.over = True
        for outcome in ends.values():
            if outcome.error is not None:
                raise RunError(f"a worker's job failed: {outcome.error}") from outcome.error
        found = [ends[seed].value for seed in range(self._jobs)]
        self.found.append(found)
        self.running.append(samples.result())
        return max(one["ended"] for one in found) - min(one["began"] for one in found)


class Sampling:
    """Counts the threads of the jobs that run or wait for a core while all jobs train."""

    def __init__(self, place: Path, jobs: int) -> None:
        self._place, self._jobs = place, jobs
        self.over = False

    def run(self) -> int:
        """Returns the median count, because single samples also catch threads that are about to sleep."""
        counts = []
        while not self.over:
            time.sleep(SAMPLE_SECONDS)
            if len(list(self._place.iterdir())) >= self._jobs:
                pids = {int(path.name.rpartition("-")[2]) for path in self._place.iterdir()}
                counts.append(sum(map(running_threads, pids)))
        return round(median(counts)) if counts else 0


def running_threads(pid: int) -> int:
    """Returns the number of a process's threads in the kernel's state R; 0 if the process is gone."""
    count = 0
    for status in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            count += status.read_text().rpartition(")")[2].split()[0] == "R"
        except OSError:  # the thread has ended meanwhile
            continue
    return count


def measure(arguments: argparse.Namespace) -> Finding:
    """N workers of one thread against a process of n threads, or processes on one GPU; whether results are the same"""
    if resolve_device(arguments.device).type == "cuda":
        return on_one_device(arguments)
    n = arguments.workers or cores()
    with parts.workplace(arguments) as folder:
        lines = training_lines(arguments)
        with running.task(lines, folder) as shared:
            many = Side(shared, lines, folder / "signs", n, 1, arguments.epochs)
            # Its one job makes the epochs of all jobs, so it sees as many pictures.
            one = Side(shared, lines, folder / "signs-of-one", 1, n, n * arguments.epochs)
            alone = Side(shared, lines, folder / "signs-alone", 1, 1, arguments.epochs)
            alone()
            turns = take_turns("workers", {"one process": one, "workers": many}, rounds=arguments.rounds, threads=n)
    per_round = [sum(job["processor"] for job in found) for found in many.found]
    busy = [used / span(found) / n for used, found in zip(per_round, many.found, strict=True)]
    threads = max(sum(job["threads"] for job in found) for found in many.found)
    reference = alone.found[0][0]["weights"]
    same = [found[0]["weights"] for found in many.found if found[0]["weights"] != reference]
    figures = [
        turns.ratio(
            f"{n} workers of 1 thread against 1 process of {n} threads, pictures/s",
            "one process",
            "workers",
            goal=1.0,
            at_most=False,
        ),
        Figure("threads that all workers may compute with, per core", threads / n, 1.0, note=f"{threads} on {n}"),
        Figure("threads that run at a time, per core", max(many.running) / n, 1.0, note="as the kernel counts them"),
        Figure("processor time that the workers get, per core", median(busy), spread=(min(busy), max(busy))),
        Figure(f"runs that differ between 1 worker and {n}", len(same), 0.0, note="hashes of the trained weights"),
        Figure(f"{n} workers", rate(many, n), unit="pictures/s"),
        Figure(f"1 process of {n} threads", rate(one, 1), unit="pictures/s"),
    ]
    notes = [
        f"{arguments.pictures} pictures an epoch, {arguments.epochs} epochs a worker; student {arguments.student}."
    ]
    if n < 2:
        notes.append("One core: both sides are the same here.")
    return Finding("workers: processes or threads", figures, {"workers": n, **turns.values()}, notes=notes)


def on_one_device(arguments: argparse.Namespace) -> Finding:
    """Compares one process on a device with more of them, which train side by side."""
    device = resolve_device(arguments.device)
    if device.type == "cuda":
        arguments.pictures = max(arguments.pictures, BATCH * GPU_STEPS)
    counts = range(1, (arguments.workers or MOST_ON_A_GPU) + 1)
    with parts.workplace(arguments) as folder:
        lines = training_lines(arguments, str(device))
        with running.task(lines, folder) as shared:
            sides = {n: Side(shared, lines, folder / "signs", n, 1, arguments.epochs) for n in counts}
            named = {f"{n} at a time": side for n, side in sides.items()}
            turns = take_turns("workers", named, rounds=arguments.rounds, threads=1)
    rates = {n: rate(side, n) for n, side in sides.items()}
    reference = sides[1].found[0][0]["weights"]
    differing = sum(found[0]["weights"] != reference for side in sides.values() for found in side.found)
    most = max(job["memory"] for side in sides.values() for found in side.found for job in found)
    figures = [
        *(Figure(f"{n} processes against one, pictures/s", rates[n] / rates[1]) for n in counts if n > 1),
        Figure("runs that differ", differing, 0.0, note="hashes of the trained weights of the first job"),
        *(Figure(f"processes: {n}", rates[n], unit="pictures/s") for n in counts),
        Figure("memory that a process takes for its tensors", most / 2**30, unit="GiB"),
    ]
    best = max(rates, key=rates.__getitem__)
    notes = [
        f"Most pictures per second with sweep.n_jobs={best}.",
        f"{arguments.pictures} pictures an epoch, {arguments.epochs} epochs a process; student {arguments.student}.",
    ]
    return Finding(f"workers: processes on one device ({device})", figures, turns.values(), notes=notes)


def span(found: Sequence[Mapping[str, Any]]) -> float:
    """Returns the seconds from the first job's start to the last job's end."""
    return float(max(job["ended"] for job in found) - min(job["began"] for job in found))


def rate(side: Side, jobs: int) -> float:
    """Returns the pictures per second of all jobs together, as the median over all rounds but the first."""
    rates = [sum(job["pictures"] for job in found) / span(found) for found in side.found[1:] or side.found]
    assert all(len(found) == jobs for found in side.found)
    return median(rates)


def training_lines(arguments: argparse.Namespace, device: str = "cpu") -> list[str]:
    """Returns the overrides of a scratch run."""
    n_validation = max(parts.CLASSES, arguments.pictures // 9)
    return [
        *("experiment=scratch", "data=synthetic", f"data.n_train={arguments.pictures + n_validation}"),
        *(f"data.val_size={n_validation}", "data.n_test=10", f"data.n_classes={parts.CLASSES}"),
        *(f"data.image_size={parts.SIDE}", "data.padding=4", f"model.name={arguments.student}", "model.stem=imagenet"),
        *(f"batch_size={min(BATCH, arguments.pictures)}", f"precision={arguments.precision}", f"device={device}"),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts.add_arguments(parser)
    parser.add_argument(
        "--workers", type=parts.positive, metavar="N", help="default: as many as cores; on a GPU up to 4"
    )
    parser.add_argument("--epochs", type=parts.positive, default=2, help="of each worker in a round; default: 2")
