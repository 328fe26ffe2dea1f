"""The stages of a study as they are carried out: baselines, search, confirmation, each run once whatever happens."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, Trial, TrialState

from kdsweep.config.overrides import kept_beside
from kdsweep.execution.jobs import Job, Outcome
from kdsweep.study.search import FINISHED, Search
from kdsweep.system import interrupts
from kdsweep.system.errors import PrunedError, RunError
from kdsweep.system.processes import ProcessId, parse_process, this_process
from kdsweep.system.progress import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from hydra.core.override_parser.types import Override

    from kdsweep.execution.executors import Executor
    from kdsweep.tracking.run_records import RunRecord
    from kdsweep.tracking.store import Store

# The seeds of confirmations start here, where those of baselines and trials don't come.
FIRST_FRESH_SEED = 1000


@dataclass(frozen=True)
class Baseline:
    """Runs without a search.

    Args:
        overrides: What makes the arm.
        seeds: How many runs, with the seeds 0, 1, ...
        control: Whether the arm is run again beside the chosen setting, with fresh seeds.
    """

    overrides: tuple[str, ...]
    seeds: int
    control: bool


class Stages:
    """One controller's work on a study.

    Args:
        store: Where the runs are recorded.
        parent_id: The study's own run.
        search: The study in Optuna.
        overrides: The command line's.
        shared: Override lines that all jobs get.
        objectives: The metrics that the search optimises.
        baselines: Arm -> its runs.
        confirm_seeds: How many fresh seeds the chosen setting and the controls get.
        max_restarts: How often a run whose process died is started again.
        max_failure_rate: The share of trials that may fail.
    """

    def __init__(
        self,
        store: Store,
        parent_id: str,
        search: Search,
        overrides: Sequence[Override],
        shared: Sequence[str],
        objectives: Sequence[str],
        baselines: Mapping[str, Baseline],
        confirm_seeds: int,
        max_restarts: int,
        max_failure_rate: float,
    ) -> None:
        self._store, self._parent_id, self._search = store, parent_id, search
        self._overrides, self._objectives, self._baselines = overrides, objectives, baselines
        self._confirm_seeds, self._max_restarts = confirm_seeds, max_restarts
        self._max_failure_rate = max_failure_rate
        self._shared = (*shared, f"tracking.parent={parent_id}", f"tracking.study={search.name}")
        self._trials: dict[str, Trial] = {}  # of the jobs that run
        self._lost: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._finished = self._recover()
        self._start, self._ended = time.perf_counter(), 0

    @contextmanager
    def carried_out_by(self, executor: Executor) -> Iterator[None]:
        """In this block `executor` runs the jobs; it is closed with the block, and what didn't end is given back."""
        self._executor = executor
        self._start = time.perf_counter()
        try:
            yield
        finally:
            executor.close()
            with interrupts.closing():
                self._give_back()

    # What is to be done

    def planned(self) -> dict[str, int]:
        """How many runs the study has: one entry for each baseline, "trials", and "confirmation"."""
        baselines = {name: baseline.seeds for name, baseline in self._baselines.items()}
        arms = 1 + sum(baseline.control for baseline in self._baselines.values())
        return {**baselines, "trials": self._search.n_trials, "confirmation": arms * self._confirm_seeds}

    def left(self) -> dict[str, int]:
        """How many of the planned runs are still to be made."""
        left = {name: len(self._seeds_left(name)) for name in self._baselines}
        planned = self.planned()
        left["trials"] = max(planned["trials"] - self._search.count(*FINISHED), 0)
        # While there are trials left, what is going to be chosen isn't known.
        best = None if left["trials"] else self._search.best()
        left["confirmation"] = planned["confirmation"] if best is None else len(self._confirmations(best))
        return left

    def run_baselines(self) -> None:
        """Makes the runs without a search that aren't there yet.

        Raises:
            Exception: What a run raised: without a baseline there is nothing to compare with.
        """

        def ended(job: Job, outcome: Outcome) -> None:
            if outcome.error is not None:
                raise outcome.error

        self._run_all(
            [
                # The test split is for confirmations; an arm that is never confirmed is read once, here.
                self._job(f"{name}-{seed}", "baseline", [*baseline.overrides, f"seed={seed}"], not baseline.control)
                for name, baseline in self._baselines.items()
                for seed in self._seeds_left(name)
            ],
            ended,
        )

    def run_search(self) -> None:
        """Makes the trials that aren't there yet.

        Raises:
            RunError: More of them failed than may.
        """
        self._work(self._next_trial, self._tell)

    def confirm(self) -> int:
        """Runs the best setting and the controls with fresh seeds, and returns the number of its trial.

        A run that fails is a pair less, which the report says.

        Raises:
            RunError: No trial has a result.
        """
        best = self._search.best()
        if best is None:
            message = f"none of the {self._search.n_trials} trials could be finished: the lines above say why."
            raise RunError(message)

        def ended(job: Job, outcome: Outcome) -> None:
            if outcome.error is not None:
                note(f"{job.name} failed: {_line(outcome.error)}")

        self._run_all([self._job(*confirmation) for confirmation in self._confirmations(best)], ended)
        return int(best.number)

    def _confirmations(self, best: FrozenTrial) -> list[tuple[str, str, list[str], bool, int | None]]:
        """The confirmations of a trial, and of the controls, that aren't there yet: what `_job` takes."""
        chosen = f"trial-{best.number:04d}"
        arms = {chosen: settings(best.params)}
        arms |= {name: list(baseline.overrides) for name, baseline in self._baselines.items() if baseline.control}
        # Seed by seed: what is there after an interruption are whole pairs.
        seeds = range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + self._confirm_seeds)
        wanted = [
            (
                f"confirm-{arm}-{seed}",
                "confirmation",
                [*own, f"seed={seed}"],
                True,
                best.number if arm == chosen else None,
            )
            for seed in seeds
            for arm, own in arms.items()
        ]
        return [confirmation for confirmation in wanted if confirmation[0] not in self._finished]

    def _seeds_left(self, name: str) -> list[int]:
        return [seed for seed in range(self._baselines[name].seeds) if f"{name}-{seed}" not in self._finished]

    def _job(self, name: str, stage: str, own: Sequence[str], evaluate_test: bool, trial: int | None = None) -> Job:
        lines = [*kept_beside(own, self._overrides), *own, *self._shared]
        marks = [f"tracking.stage={stage}", f"tracking.job={name}", f"evaluate_test={evaluate_test}"]
        if trial is not None:
            marks.append(f"tracking.trial={trial}")
        return Job(name, (*lines, *marks), next(self._numbers))

    # How it is done

    def _work(self, next_job: Callable[[], Job | None], ended: Callable[[Job, Outcome], None]) -> None:
        """Keeps all slots busy until there is no next job; `ended` hears what came of each."""
        running = 0
        while True:
            while running < self._executor.slots and (job := next_job()) is not None:
                self._executor.submit(job)
                running += 1
            if running == 0:
                return
            for job, outcome in self._executor.wait():
                running -= 1
                self._ended += not outcome.lost
                if outcome.lost:
                    self._close_lost(job.name)
                ended(job, outcome)

    def _run_all(self, jobs: Iterable[Job], ended: Callable[[Job, Outcome], None]) -> None:
        """Runs each job; one whose process died again, as often as it may."""
        waiting = iter(jobs)
        again: list[Job] = []

        def next_job() -> Job | None:
            job = again.pop() if again else next(waiting, None)
            if job is not None:
                note(f"{job.name}{self._eta()}")
            return job

        def decide(job: Job, outcome: Outcome) -> None:
            self._lost[job.name] += outcome.lost
            if outcome.lost and self._lost[job.name] <= self._max_restarts:
                note(f"{job.name}: {_line(outcome.error)}; it is started again.")
                again.append(job)
                return
            if outcome.error is None:
                self._finished.add(job.name)
            ended(job, outcome)

        self._work(next_job, decide)

    def _next_trial(self) -> Job | None:
        trial = self._search.next()
        if trial is None:
            return None
        setting = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in trial.params.items()
        )
        note(f"Trial {trial.number} ({trial.number + 1} of {self._search.n_trials}){self._eta()}: {setting}")
        name = f"trial-{trial.number:04d}"
        self._trials[name] = trial
        return self._job(name, "search", settings(trial.params), False, trial.number)

    def _tell(self, job: Job, outcome: Outcome) -> None:
        """What Optuna hears of a trial."""
        number = self._trials.pop(job.name).number
        if outcome.lost:
            note(f"Trial {number}: {_line(outcome.error)}; {self._search.recover(number)}.")
        elif isinstance(outcome.error, PrunedError):
            note(f"Trial {number} {outcome.error}.")
            self._search.prune(number, outcome.error.epoch)
        elif outcome.error is not None:
            note(f"Trial {number} failed: {_line(outcome.error)}")
            self._search.fail(number, _line(outcome.error))
        else:
            values = outcome.value if isinstance(outcome.value, tuple) else (outcome.value,)
            if all(isinstance(value, float) and not math.isnan(value) for value in values):
                self._search.complete(number, values)
            else:
                self._search.fail(number, f"its objective is {outcome.value}")
        self._require_health()

    def _require_health(self) -> None:
        failed, total = self._search.count(TrialState.FAIL), self._search.n_trials
        if failed > self._max_failure_rate * total:
            rule = f"max_failure_rate is {self._max_failure_rate:g}"
            raise RunError(f"{failed} of {total} trials have failed, and {rule}: the lines above say why.")

    def _eta(self) -> str:
        """How long all that is left will take, once a run shows it."""
        if self._ended == 0:
            return ""
        left = sum(self.left().values())
        minutes = (time.perf_counter() - self._start) / self._ended * left / 60
        return f", about {minutes:.1f} min left"

    # What an interruption leaves

    def _give_back(self) -> None:
        for trial in self._trials.values():
            self._search.give_back(trial.number)
        self._trials.clear()
        for run in self._store.children(self._parent_id):
            if run.status == "RUNNING" and _living_process(run) is None:
                self._store.close_lost(run.id, "its process was ended with the study's")

    def _recover(self) -> set[str]:
        """Settles what earlier controllers left; returns the names of the jobs that are done."""
        runs = self._store.children(self._parent_id)
        said = False
        while living := {*self._search.orphans()[1], *filter(None, map(_living_process, runs))}:
            if not said:
                pids = ", ".join(str(process.pid) for process in living)
                note(f"Waiting for runs that an interrupted controller has left (processes {pids}).")
                said = True
            interrupts.check()
            time.sleep(1)
            runs = self._store.children(self._parent_id)
        for run in runs:
            if run.status == "RUNNING":
                self._store.close_lost(run.id, "its process was killed")
        done = {run.tags["kdsweep.job"]: run for run in runs if run.status == "FINISHED" and "kdsweep.job" in run.tags}
        for number in self._search.orphans()[0]:
            job = done.get(f"trial-{number:04d}")
            values = None if job is None else [job.metrics[name] for name in self._objectives]
            note(f"Trial {number} was interrupted: {self._search.recover(number, values)}.")
        return set(done)

    def _close_lost(self, name: str) -> None:
        for run in self._store.children(self._parent_id):
            if run.status == "RUNNING" and run.tags.get("kdsweep.job") == name:
                self._store.close_lost(run.id, "its process was killed")


def settings(params: Mapping[str, object]) -> list[str]:
    """A trial's parameters as override lines."""
    return [f"{key}={value}" for key, value in params.items()]


def _living_process(run: RunRecord) -> ProcessId | None:
    """The process in which a run is going on, where that is another one of this machine, and still there."""
    if run.status != "RUNNING" or "kdsweep.process" not in run.tags:
        return None
    process = parse_process(run.tags["kdsweep.process"])
    return process if process.is_here and process != this_process() and process.lives() else None


def _line(error: BaseException | None) -> str:
    return " ".join(str(error).split()) or type(error).__name__
