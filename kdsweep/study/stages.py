"""Carries out the stages of a study: baselines, search, confirmation. Each run is made once, whatever happens."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdsweep.analysis.contest_plan import trial_job
from kdsweep.analysis.sorted_runs import arm_label
from kdsweep.analysis.stopping import accuracies, decision
from kdsweep.analysis.study_goals import pilot_job
from kdsweep.analysis.transfer import decision as transfer_decision
from kdsweep.config.overrides import kept_beside
from kdsweep.execution.jobs import Job, Outcome, in_words
from kdsweep.study import fidelity
from kdsweep.study.choosing import known_choice, make_choice
from kdsweep.study.confirming import Looks
from kdsweep.study.search import Setting, numbers
from kdsweep.system import interrupts
from kdsweep.system.errors import PrunedError, RunError, one_line
from kdsweep.system.processes import ProcessId, parse_process, this_process
from kdsweep.system.progress import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from hydra.core.override_parser.types import Override

    from kdsweep.analysis.choice import Choice
    from kdsweep.analysis.study_goals import Fidelity, Stop, Why
    from kdsweep.execution.executors import Executor
    from kdsweep.study.fidelity import Lengths
    from kdsweep.study.search import Search
    from kdsweep.tracking.run_records import RunRecord
    from kdsweep.tracking.store import Store

# The seeds of confirmations start here, above those of baselines and trials.
FIRST_FRESH_SEED = 1000
# Those of trials with seeds of their own start here, far above all others.
FIRST_SEARCH_SEED = 1_000_000
# The k-th run of a setting after its first has this seed and k more, so that runs of several settings share seeds.
FIRST_SEED_AGAIN = 2_000_000

# A signal that has ended the process of a job reaches this one so much later at most, if it was meant for both.
OWN_SIGNAL_SECONDS = 0.5


@dataclass(frozen=True)
class Baseline:
    """The runs of an arm without a search.

    Args:
        overrides: The overrides that make the arm.
        seeds: The number of runs; their seeds are 0, 1, ...
        control: Whether the arm runs again beside the chosen setting, with fresh seeds.
        as_chosen: Whether it then has the chosen setting too, such as its alpha and tau.
    """

    overrides: tuple[str, ...]
    seeds: int
    control: bool
    as_chosen: bool = False


class Stages:
    """One controller's work on a study.

    Args:
        store: Where the runs are recorded.
        parent_id: The id of the study's own run.
        search: The study in Optuna.
        overrides: The overrides of the command line.
        shared: Override lines that all jobs get.
        objectives: The metrics that the search optimises.
        baselines: The runs without a search, by arm.
        confirm_seeds: The number of fresh seeds for the chosen setting and for each control.
        max_restarts: How often a run whose process died is started again.
        max_failure_rate: The share of trials that may fail.
        choose: The rule of the choice, "posterior" or "best".
        search_seeds: "fresh" gives each trial its own seed, "fixed" the configured one to all.
        confirm_until: The most fresh seeds of a confirmation that stops when its answer is clear, which it looks for
            from `confirm_seeds` on; None for exactly `confirm_seeds`.
        owner: The contender of a contest whose search this is; empty for a study with one search.
        lengths: The lengths of the search's runs, between which a pilot decides; None if there is one.
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
        choose: str,
        search_seeds: str,
        confirm_until: int | None = None,
        owner: str = "",
        lengths: Lengths | None = None,
    ) -> None:
        self._store, self._parent_id, self._search = store, parent_id, search
        self._overrides, self._objectives, self._baselines = overrides, objectives, baselines
        self._confirm_seeds, self._max_restarts = confirm_seeds, max_restarts
        self._max_failure_rate, self._choose = max_failure_rate, choose
        self._search_seeds, self._owner, self._lengths = search_seeds, owner, lengths
        self._confirm_until = confirm_until
        self._looks: Looks | None = None
        self._whole = 0  # fresh seeds all of whose runs have ended, without a gap from the first on
        self._shared = (*shared, f"tracking.parent={parent_id}", f"tracking.study={search.name}")
        self._trials: dict[str, int] = {}  # the names of running jobs, and the numbers of their trials
        self._lost: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._finished = self._recover()
        self._failed: set[str] = set()  # confirmations
        self._start, self._ended = time.perf_counter(), 0
        self._count_left: Callable[[], int] | None = None

    def count_left_by(self, count: Callable[[], int]) -> None:
        """Lets the time that is left be told from this number of runs, of which these stages make a part."""
        self._count_left = count

    @contextmanager
    def carried_out_by(self, executor: Executor) -> Iterator[None]:
        """Lets `executor` run the jobs of this block; then closes it, and gives back the trials that haven't ended."""
        self._executor = executor
        self._start = time.perf_counter()
        try:
            yield
        finally:
            executor.close()
            with interrupts.closing():
                self._give_back()

    @contextmanager
    def lent(self, executor: Executor) -> Iterator[None]:
        """Lets an executor that other stages close run the jobs of this block; gives back trials that haven't ended."""
        self._executor = executor
        self._start, self._ended = time.perf_counter(), 0
        try:
            yield
        finally:
            with interrupts.closing():
                self._give_back()

    # What is to be done

    def planned(self) -> dict[str, int]:
        """Returns the number of planned runs for each baseline, "pilot" if there is one, "trials", and "confirmation".

        Half of the pilot's runs are trials.
        """
        in_pilot = 0 if self._lengths is None else self._lengths.n
        pilot = {"pilot": 2 * in_pilot} if in_pilot else {}
        baselines = {name: baseline.seeds for name, baseline in self._baselines.items()}
        arms = 1 + sum(baseline.control for baseline in self._baselines.values())
        trials = self._search.n_trials - in_pilot
        seeds = self._most_seeds if self.stop is None else self.stop.seeds
        return {**baselines, **pilot, "trials": trials, "confirmation": arms * seeds}

    def left(self) -> dict[str, int]:
        """Returns how many of the planned runs are still to be made."""
        left = {name: len(self._seeds_left(name)) for name in self._baselines}
        planned = self.planned()
        if self._lengths is not None:
            left["pilot"] = len(self._pilot_left(range(self._lengths.n)))
        counted = max(self._search.count_finished(), self._search.n_trials - planned["trials"])
        left["trials"] = max(self._search.n_trials - counted, 0)
        # While trials are left, nobody knows which setting will be chosen.
        best = None if left["trials"] else self.known_choice()
        if best is not None:
            self._look(best)
        left["confirmation"] = planned["confirmation"] if best is None else len(list(self._confirmations(best)))
        return left

    def run_baselines(self) -> None:
        """Makes the missing runs of the baselines.

        Raises:
            Exception: The error of a run. Without a baseline there is nothing to compare with.
        """

        def ended(job: Job, outcome: Outcome) -> None:
            if outcome.error is not None:
                raise outcome.error

        self.run_all(
            [
                # Only confirmations read the test split. An arm that is never confirmed reads it here, once.
                self._job(f"{name}-{seed}", "baseline", [*baseline.overrides, f"seed={seed}"], not baseline.control)
                for name, baseline in self._baselines.items()
                for seed in self._seeds_left(name)
            ],
            ended,
        )

    def run_pilot(self) -> None:
        """Runs the first trials at both lengths, unless that is done, and decides which length the search has."""
        if self._lengths is None:
            return
        if fidelity.known(self._search) is None:
            values: dict[str, Sequence[float]] = {}

            def ended(job: Job, outcome: Outcome) -> None:
                if outcome.error is not None:
                    note(f"The {in_words(job.name)} failed: {one_line(outcome.error)}")
                else:
                    values[job.name] = numbers(outcome.value)

            settings = self._search.first(self._lengths.n)
            missing = self._pilot_left([setting.number for setting in settings])
            self.run_all(
                [
                    self._job(name, "pilot", self._own(settings[number], short=short), False, number, True)
                    for name, number, short in missing
                ],
                ended,
            )
            for run in self._store.children(self._parent_id):
                name = run.tags.get("kdsweep.job", "")
                if run.stage == "pilot" and run.status == "FINISHED" and name not in values:
                    values[name] = [run.metrics[metric] for metric in self._objectives]
            note(transfer_decision(fidelity.decide(self._search, self._lengths, values), self._objectives))
        fidelity.tell(self._search, self._fidelity)
        self._require_health()

    @property
    def share(self) -> float:
        """How long a trial's run is, as a share of the others'; before the pilot, as it is if ranks transfer."""
        decided = fidelity.known(self._search)
        if self._lengths is None or (decided is not None and not decided.cheap):
            return 1.0
        return self._lengths.short / self._lengths.full

    @property
    def _fidelity(self) -> Fidelity:
        """What the pilot has decided."""
        decided = fidelity.known(self._search)
        assert decided is not None
        return decided

    def _pilot_left(self, numbers: Iterable[int]) -> list[tuple[str, int, bool]]:
        """Returns the pilot's missing runs: the name, the trial's number, and whether it is the short one."""
        if fidelity.known(self._search) is not None:
            return []
        jobs = [(pilot_job(number, short=short), number, short) for number in numbers for short in (True, False)]
        return [job for job in jobs if job[0] not in self._finished]

    def run_search(self) -> None:
        """Makes the missing trials.

        Raises:
            RunError: More trials failed than `max_failure_rate` allows.
        """
        self._work(self._next_trial, self._tell)

    def choose(self) -> Setting:
        """Returns the setting that is to be confirmed; one between the trials is tried first, as one more trial.

        Raises:
            RunError: No trial has a result.
        """
        best = self._search.best()
        if best is None:
            message = (
                f"none of the {self._search.n_trials} trials could be finished: the lines above, and kdsweep.error of "
                "their MLflow runs, say why. A larger sweep.n_trials tries more; sweep.restart=fresh begins anew."
            )
            raise RunError(message)
        if self._choose == "best" or not self._search.scored():
            return best
        choice = make_choice(self._search)
        if choice.number is None and self._search.between() is None:
            self._search.try_between(choice.params)
            self._work(self._next_trial, self._tell)
        return self._chosen(choice)

    @property
    def choice(self) -> Choice | None:
        """The model's choice; None before it is made, and where the best trial is chosen anyway."""
        return None if self._choose == "best" else known_choice(self._search)

    def known_choice(self) -> Setting | None:
        """Returns the setting that is to be confirmed, if that is known without another run."""
        if self._choose == "best":
            return self._search.best()
        choice = known_choice(self._search)
        open_ = choice is not None and choice.number is None and self._search.between() is None
        return None if choice is None or open_ else self._chosen(choice)

    def _chosen(self, choice: Choice) -> Setting:
        """Returns the trial of a choice; if that of a setting between the trials failed, the likely best other one."""
        between = self._search.between() if choice.number is None else None
        if between is not None and between.values and between.pruned_at is None:
            return Setting(between.number, between.params)
        number = choice.tried if choice.number is None else choice.number
        return Setting(number, self._search.trials()[number].params)

    def confirm(self, best: Setting) -> None:
        """Runs the chosen setting and the controls with fresh seeds.

        A run that fails costs a pair of runs, and the report says so.
        """

        def ended(job: Job, outcome: Outcome) -> None:
            if outcome.error is not None:
                note(f"The {in_words(job.name)} failed: {one_line(outcome.error)}")
                self._failed.add(job.name)

        self.run_all(self._confirmation_jobs(best), ended)
        self._look(best)

    @property
    def stop(self) -> Stop | None:
        """Where the confirmation stopped by itself; None before that, and where the number of seeds is fixed."""
        return None if self._looks is None else self._looks.stop

    @property
    def _most_seeds(self) -> int:
        return self._confirm_seeds if self._confirm_until is None else self._confirm_until

    def _look(self, best: Setting) -> Stop | None:
        """Looks whether the confirmation of a trial stops; None if it goes on, or if its seeds are fixed."""
        if self._confirm_until is None:
            return None
        if self._looks is None or self._looks.trial != best.number:
            number, most = best.number, self._confirm_until
            self._looks = Looks(
                self._store,
                self._parent_id,
                number,
                self._confirm_seeds,
                lambda runs, seeds, step: decision(accuracies(runs, number), seeds, most, step),
            )
        done = self._finished | self._failed
        ended = itertools.takewhile(lambda seed: {job[0] for job in self._of_seed(best, seed)} <= done, self._fresh())
        whole = list(ended)
        self._whole = len(whole)
        return self._looks.look(whole)

    def _fresh(self) -> range:
        return range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + self._most_seeds)

    def _confirmation_jobs(self, best: Setting) -> Iterator[Job | None]:
        """Yields the jobs of `_confirmations`; None as long as the next seed has to wait for a look at those before it.

        A slow run would otherwise let the others go on to the last seed, although the answer may be clear.
        """
        arms = 1 + sum(baseline.control for baseline in self._baselines.values())
        ahead = 1 + math.ceil((self._executor.slots - 1) / arms)
        for confirmation, seed in self._confirmations(best):
            while self._confirm_until is not None:
                stop = self._look(best)
                if stop is not None and seed > stop.last_seed:
                    return
                if seed - FIRST_FRESH_SEED < max(self._confirm_seeds, self._whole + ahead):
                    break
                yield None
            yield self._job(*confirmation)

    def _confirmations(self, best: Setting) -> Iterator[tuple[tuple[str, str, list[str], bool, int | None, bool], int]]:
        """Yields the missing confirmations of a trial and of the controls, as arguments of `_job`, with their seeds.

        Seed by seed, so that an interruption leaves whole pairs, and until the confirmation stops.
        """
        for seed in self._fresh():
            stop = self._look(best)
            if stop is not None and seed > stop.last_seed:
                return
            yield from ((job, seed) for job in self._of_seed(best, seed) if job[0] not in self._finished)

    def _of_seed(self, best: Setting, seed: int) -> list[tuple[str, str, list[str], bool, int | None, bool]]:
        """Returns the confirmations with one seed, as arguments of `_job`.

        A control with the chosen setting has its trial in its name: another choice takes other runs of it.
        """
        chosen = best.name
        arms = {chosen: best.overrides}
        arms |= {
            name: [*(best.overrides if baseline.as_chosen else ()), *baseline.overrides]
            for name, baseline in self._baselines.items()
            if baseline.control
        }
        as_chosen = {chosen, *(name for name, baseline in self._baselines.items() if baseline.as_chosen)}
        return [
            (
                f"confirm-{arm}-{seed}" if arm == chosen or arm not in as_chosen else f"confirm-{arm}-{chosen}-{seed}",
                "confirmation",
                [*own, f"seed={seed}"],
                True,
                best.number if arm in as_chosen else None,
                arm in as_chosen,
            )
            for arm, own in arms.items()
        ]

    def _seeds_left(self, name: str) -> list[int]:
        return [seed for seed in range(self._baselines[name].seeds) if f"{name}-{seed}" not in self._finished]

    def looks(self, first: int, decision: Callable[[Sequence[RunRecord], Sequence[int], float], Why | None]) -> Looks:
        """Returns the looks of a contest at its confirmation, as `Looks` takes them."""
        return Looks(self._store, self._parent_id, None, first, decision)

    def has_finished(self, name: str) -> bool:
        """Returns whether the job of this name is done."""
        return name in self._finished

    def fresh_job(self, name: str, own: Sequence[str], trial: int | None) -> Job:
        """Returns a job of the confirmation from all of its own lines; `trial` is the number of its setting's trial."""
        marks = ["tracking.stage=confirmation", f"tracking.job={name}", "evaluate_test=True"]
        marks += [] if trial is None else [f"tracking.trial={trial}"]
        return Job(name, (*own, *self._shared, *marks), next(self._numbers))

    def _job(
        self,
        name: str,
        stage: str,
        own: Sequence[str],
        evaluate_test: bool,
        trial: int | None = None,
        of_search: bool = False,
    ) -> Job:
        lines = [*kept_beside(own, self._overrides, whole_groups=not of_search), *own, *self._shared]
        marks = [f"tracking.stage={stage}", f"tracking.job={name}", f"evaluate_test={evaluate_test}"]
        if trial is not None:
            marks.append(f"tracking.trial={trial}")
        return Job(name, (*lines, *marks), next(self._numbers))

    # How it is done

    def _work(self, next_job: Callable[[], Job | None], ended: Callable[[Job, Outcome], None]) -> None:
        """Keeps all slots busy until there is no next job; calls `ended` with each job and its outcome."""
        running = 0
        while True:
            while running < self._executor.slots and (job := next_job()) is not None:
                self._executor.submit(job)
                running += 1
            if running == 0:
                return
            done = self._executor.wait()
            if any(outcome.lost for _, outcome in done):
                # A scheduler's time limit or the end of a session ends all processes, and jobs may hear it first.
                interrupts.wait(OWN_SIGNAL_SECONDS)
            for job, outcome in done:
                running -= 1
                self._ended += not outcome.lost
                if outcome.lost:
                    self._close_lost(job.name, one_line(outcome.error))
                ended(job, outcome)

    def run_all(self, jobs: Iterable[Job | None], ended: Callable[[Job, Outcome], None]) -> None:
        """Runs each job; if its process dies, runs it again, at most `max_restarts` times.

        For None it waits until another job has ended, of which there must be one.
        """
        waiting = iter(jobs)
        again: list[Job] = []

        def next_job() -> Job | None:
            job = again.pop() if again else next(waiting, None)
            if job is not None:
                note(f"{_sentence(job.name)}{self._eta()}")
            return job

        def decide(job: Job, outcome: Outcome) -> None:
            self._lost[job.name] += outcome.lost
            if outcome.lost and self._lost[job.name] <= self._max_restarts:
                note(f"{_sentence(job.name)}: {one_line(outcome.error)}; it is started again.")
                again.append(job)
                return
            if outcome.error is None:
                self._finished.add(job.name)
            ended(job, outcome)

        self._work(next_job, decide)

    def _next_trial(self) -> Job | None:
        setting = self._search.next()
        if setting is None:
            return None
        number = setting.number
        shown = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in setting.params.items()
        )
        between = self._search.between()
        if between is not None and between.number == number:
            place = "the choice, between the others"
        else:
            before = self._search.runs_before(setting)
            again = f", run {before + 1} of its setting" if before else ""
            place = f"{number + 1} of {self._search.n_trials}{again}"
        note(f"{self._said(number)} ({place}){self._eta()}: {shown}")
        self._trials[self._job_name(number)] = number
        return self.trial_job(setting)

    def trial_job(self, setting: Setting) -> Job:
        """Returns the job of a trial."""
        short = self._lengths is not None and self._fidelity.cheap
        own = self._own(setting, short=short)
        return self._job(self._job_name(setting.number), "search", own, False, setting.number, True)

    def _own(self, setting: Setting, *, short: bool) -> list[str]:
        """Returns what a trial's run sets: its parameters, its seed where each has its own, and its length."""
        own = setting.overrides
        if self._search_seeds == "fresh" and "seed" not in setting.params:
            own = [*own, f"seed={FIRST_SEARCH_SEED + setting.number}"]
        elif before := self._search.runs_before(setting):
            own = [*own, f"seed={FIRST_SEED_AGAIN + before}"]
        return own if self._lengths is None else [*own, *self._lengths.line(short=short)]

    def _job_name(self, number: int) -> str:
        return trial_job(self._owner, number) if self._owner else f"trial-{number:04d}"

    def _said(self, number: int) -> str:
        return f"{arm_label(self._owner)}, trial {number}" if self._owner else f"Trial {number}"

    def _tell(self, job: Job, outcome: Outcome) -> None:
        """Tells Optuna how a trial ended."""
        number = self._trials.pop(job.name)
        if outcome.lost:
            note(f"{self._said(number)}: {one_line(outcome.error)}; {self._search.recover(number)}.")
        elif isinstance(outcome.error, PrunedError):
            note(f"{self._said(number)} {outcome.error}.")
            self._search.prune(number, outcome.error.epoch)
        elif outcome.error is not None:
            note(f"{self._said(number)} failed: {one_line(outcome.error)}")
            self._search.fail(number, one_line(outcome.error))
        else:
            cause = self._search.complete(number, outcome.value)
            if cause is not None:
                note(f"{self._said(number)} failed: {cause}.")
        self._require_health()

    def _require_health(self) -> None:
        failed, total = self._search.count_failed(), self._search.n_trials
        if failed > self._max_failure_rate * total:
            rule = f"max_failure_rate is {self._max_failure_rate:g}"
            raise RunError(f"{failed} of {total} trials have failed, and {rule}: the lines above say why.")

    def _eta(self) -> str:
        """Returns in words how long the remaining runs will take, once a run has ended."""
        if self._ended == 0:
            return ""
        left = sum(self.left().values()) if self._count_left is None else self._count_left()
        minutes = (time.perf_counter() - self._start) / self._ended * left / 60
        return f", about {minutes:.1f} min left"

    # What an interruption leaves

    def _give_back(self) -> None:
        for number in self._trials.values():
            self._search.give_back(number)
        self._trials.clear()
        for run in self._store.children(self._parent_id):
            if run.status == "RUNNING" and _living_process(run) is None:
                self._store.close_lost(run.id, "its process was ended with the study's")

    def _recover(self) -> set[str]:
        """Settles the runs and trials that earlier controllers left; returns the names of the jobs that are done."""
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
                self._store.close_dead(run)
        done = {run.tags["kdsweep.job"]: run for run in runs if run.status == "FINISHED" and "kdsweep.job" in run.tags}
        for number in self._search.orphans()[0]:
            job = done.get(self._job_name(number))
            values = None if job is None else [job.metrics[name] for name in self._objectives]
            note(f"{self._said(number)} was interrupted: {self._search.recover(number, values)}.")
        return set(done)

    def _close_lost(self, name: str, cause: str) -> None:
        for run in self._store.children(self._parent_id):
            if run.status == "RUNNING" and run.tags.get("kdsweep.job") == name:
                self._store.close_dead(run, cause)


def _sentence(job: str) -> str:
    """Returns what a job does, as the beginning of a sentence."""
    words = in_words(job)
    return words[:1].upper() + words[1:]


def _living_process(run: RunRecord) -> ProcessId | None:
    """Returns the process in which a run goes on, if it is another process of this machine that lives; else None."""
    if run.status != "RUNNING" or "kdsweep.process" not in run.tags:
        return None
    process = parse_process(run.tags["kdsweep.process"])
    return process if process.is_here and process != this_process() and process.lives() else None
