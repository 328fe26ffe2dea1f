"""A study of contenders: each may have a search of its own, and each is confirmed under every condition of a grid.

The stages are those of any other study (`stages.Stages`): one for what all share, and one for each contender's search.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdsweep.analysis import contest_stopping
from kdsweep.analysis.contest_plan import Plan, fresh_job, in_words
from kdsweep.analysis.sorted_runs import arm_label
from kdsweep.config.overrides import kept_beside, override_line, parsed, without_replaced_sweeps
from kdsweep.study.forecast import TRIALS, estimate, roughly
from kdsweep.study.stages import FIRST_FRESH_SEED
from kdsweep.system.errors import RunError, one_line, require
from kdsweep.system.progress import note

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override

    from kdsweep.analysis.study_goals import Stop
    from kdsweep.execution.executors import Executor
    from kdsweep.execution.jobs import Job, Outcome
    from kdsweep.study.confirming import Looks
    from kdsweep.study.measure_speed import Speed
    from kdsweep.study.search import Setting
    from kdsweep.study.stages import Stages

NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


@dataclass(frozen=True)
class Contender:
    """One of those that compete.

    Attributes:
        name: Its name.
        lines: Its lines, as on the command line.
        fixed: Those of the lines that set one value.
        searched: What its trials vary: its own sweeps, and those of the command line.
        beside: What its runs take from the command line besides.
    """

    name: str
    lines: tuple[str, ...]
    fixed: tuple[str, ...]
    searched: tuple[Override, ...]
    beside: tuple[str, ...]

    @property
    def common(self) -> list[str]:
        """What all of its runs set, searched or not."""
        return [*self.beside, *self.fixed]

    @property
    def has_teacher(self) -> bool:
        """Whether its runs ask a teacher."""
        return "teacher=none" not in self.fixed


def contenders(
    chosen: Sequence[str],
    defined: Mapping[str, Sequence[str]],
    for_all: Sequence[str],
    overrides: Sequence[Override],
    loader: ConfigLoader,
) -> list[Contender]:
    """Reads the contenders.

    Args:
        chosen: The names of those that compete.
        defined: Name -> lines as on the command line; those with a sweep, such as interval(0,1), are searched.
        for_all: Lines that hold for each of them, unless its own or the command line's say otherwise.
        overrides: The command line; its sweeps are searched for each contender.
        loader: Hydra's.

    Raises:
        UserError: A name has no definition, or is no plain name.
    """
    found = []
    known = ", ".join(defined)
    for name in dict.fromkeys(chosen):
        require(NAME.fullmatch(name) is not None, "a contender's name has letters, digits and _", name, "sweep.define")
        remedy = f"Define it: '+sweep.define.{name}=[loss=kd,loss.tau=2]'."
        require(name in defined, f"contender in ({known})", name, "sweep.contenders", remedy)
        own = parsed(list(defined[name]), loader)
        names = {override.key_or_group for override in own}
        told = {*names, *(override.key_or_group for override in overrides)}
        shared = [line for line in parsed(list(for_all), loader) if line.key_or_group not in told]
        command = [override for override in overrides if override.key_or_group not in names]
        searched = [o for o in without_replaced_sweeps([*shared, *command, *own]) if o.is_sweep_override()]
        lines = [str(o.input_line) for o in (*shared, *own) if not o.is_sweep_override()]
        varied = {o.key_or_group for o in searched}
        fixed = tuple(line for line in lines if line.partition("=")[0].lstrip("+") not in varied)
        beside = tuple(kept_beside(fixed, overrides, whole_groups=True))
        found.append(Contender(name, tuple(defined[name]), fixed, tuple(searched), beside))
    return found


class Contest:
    """The work on a contest: the shared stages make the teacher's run and the fresh seeds, the others the searches.

    Args:
        plan: What the contest is about; `chosen` is filled in when the choices are made.
        entered: The contenders.
        shared: The stages of the whole study, whose search is empty.
        searches: Contender -> the stages of its search, for those that have one.
        confirm_until: The most fresh seeds of a confirmation that stops when its answer is clear; None for exactly the
            plan's.
    """

    def __init__(
        self,
        plan: Plan,
        entered: Sequence[Contender],
        shared: Stages,
        searches: Mapping[str, Stages],
        confirm_until: int | None = None,
    ) -> None:
        self.plan, self._entered, self._shared, self._searches = plan, entered, shared, searches
        self._confirm_until = confirm_until
        self._looks: Looks | None = None
        self._failed: set[str] = set()  # fresh seeds
        self._whole = 0  # seeds all of whose runs have ended, without a gap from the first on
        for stages in (shared, *searches.values()):
            stages.count_left_by(lambda: sum(self.left().values()))

    # What is to be done

    def planned(self) -> dict[str, int]:
        """Returns the number of planned runs of each part."""
        baselines = {k: n for k, n in self._shared.planned().items() if n and k not in (TRIALS, "confirmation")}
        trials = sum(stages.planned()[TRIALS] for stages in self._searches.values())
        return {**baselines, TRIALS: trials, "confirmation": len(self._entered) * self._cells}

    def left(self) -> dict[str, int]:
        """Returns how many of them are still to be made."""
        left = {k: n for k, n in self._shared.left().items() if k not in (TRIALS, "confirmation")}
        left[TRIALS] = sum(stages.left()[TRIALS] for stages in self._searches.values())
        left["confirmation"] = sum(len(self._missing(entrant)) for entrant in self._entered)
        return left

    @property
    def _cells(self) -> int:
        return len(self.plan.conditions) * len(self._seeds)

    @property
    def _seeds(self) -> range:
        most = self.plan.confirm_seeds if self._confirm_until is None else self._confirm_until
        return range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + (most if self.stop is None else self.stop.seeds))

    @property
    def stop(self) -> Stop | None:
        """Where the confirmation stopped by itself; None before that, and where the number of seeds is fixed."""
        return None if self._looks is None else self._looks.stop

    def look(self) -> None:
        """Looks whether the confirmation has stopped already, if all searches are done."""
        chosen = {name: stages.known_choice() for name, stages in self._searches.items() if not stages.left()[TRIALS]}
        if {*chosen} == {*self._searches} and None not in chosen.values():
            self._look({entrant.name: chosen.get(entrant.name) for entrant in self._entered})

    def _look(self, taking_part: Mapping[str, Setting | None]) -> Stop | None:
        """Looks whether the confirmation of these contenders' settings stops; None if it goes on."""
        most = self._confirm_until
        if most is None:
            return None
        if self._looks is None:
            own = {name: setting.number for name, setting in taking_part.items() if setting is not None}
            plan = replace(self.plan, chosen=own)
            self._looks = self._shared.looks(
                plan.confirm_seeds, lambda runs, seeds, step: contest_stopping.decision(plan, runs, seeds, most, step)
            )
        open_ = [
            seed
            for entrant in self._entered
            if entrant.name in taking_part
            for seed, job in self._fresh(entrant, taking_part[entrant.name])
            if job.name not in self._failed
        ]
        self._whole = min(open_, default=self._seeds.stop) - FIRST_FRESH_SEED
        return self._looks.look(self._seeds[: self._whole])

    def _missing(self, entrant: Contender) -> list[tuple[int, Job]]:
        """Returns (seed, job) of the fresh seeds that a contender still needs; all while its choice is open."""
        stages = self._searches.get(entrant.name)
        if stages is None:
            return self._fresh(entrant, None)
        known = None if stages.left()[TRIALS] else stages.known_choice()
        if known is None:
            return self._fresh(entrant, None, finished=False)
        return self._fresh(entrant, known)

    def _fresh(self, entrant: Contender, chosen: Setting | None, *, finished: bool = True) -> list[tuple[int, Job]]:
        own = [*entrant.common, *([] if chosen is None else chosen.overrides)]
        number = None if chosen is None else chosen.number
        jobs = []
        for seed in self._seeds:
            for condition in self.plan.conditions:
                place = [override_line(key, value) for key, value in condition.values.items()]
                name = fresh_job(entrant.name, number, condition, seed)
                if not finished or not self._shared.has_finished(name):
                    lines = [*kept_beside(place, parsed(own), whole_groups=False), *place, f"seed={seed}"]
                    jobs.append((seed, self._shared.fresh_job(name, lines, number)))
        return jobs

    def run(self, executor: Executor) -> Iterator[Mapping[str, int]]:
        """Makes the missing runs; yields contender -> trial once the choices are made, before the fresh seeds."""
        with self._shared.carried_out_by(executor):
            self._shared.run_baselines()
            chosen = {}
            for name, stages in self._searches.items():
                with stages.lent(executor):
                    stages.run_search()
                    try:
                        chosen[name] = stages.choose()
                    except RunError as error:
                        note(f"{arm_label(name)} takes no further part: {one_line(error)}")
            self.plan = replace(self.plan, chosen={name: setting.number for name, setting in chosen.items()})
            yield self.plan.chosen
            taking_part = {
                e.name: chosen.get(e.name) for e in self._entered if e.name in chosen or e.name not in self._searches
            }
            self._shared.run_all(self._fresh_jobs(taking_part, executor.slots), self._ended)
            self._look(taking_part)

    def _fresh_jobs(self, taking_part: Mapping[str, Setting | None], slots: int) -> Iterator[Job | None]:
        """Yields the missing fresh seeds; None as long as the next has to wait for a look at those before it."""
        entered = [entrant for entrant in self._entered if entrant.name in taking_part]
        jobs = [pair for entrant in entered for pair in self._fresh(entrant, taking_part[entrant.name])]
        ahead = 1 + math.ceil((slots - 1) / (max(len(entered), 1) * len(self.plan.conditions)))
        # Seed by seed, so that an interruption leaves whole pairs.
        for seed, job in sorted(jobs, key=lambda pair: pair[0]):
            while self._confirm_until is not None:
                stop = self._look(taking_part)
                if stop is not None and seed > stop.last_seed:
                    return
                if seed - FIRST_FRESH_SEED < max(self.plan.confirm_seeds, self._whole + ahead):
                    break
                yield None
            yield job

    def _ended(self, job: Job, outcome: Outcome) -> None:
        # A run that fails costs a pair of runs, and the report says so.
        if outcome.error is not None:
            note(f"The {in_words(job.name)} failed: {one_line(outcome.error)}")
            self._failed.add(job.name)

    def announce(self, name: str, speed: Speed, n_jobs: int, elsewhere: bool) -> None:
        """Prints what the contest is going to do, and about how long that takes."""
        planned, left = self.planned(), self.left()
        total, rest = sum(planned.values()), sum(left.values())
        if not rest:
            note(f"Study {name}: all {total} runs are done.")
            return
        places = len(self.plan.conditions)
        under = f" under each of {places} conditions ({', '.join(self.plan.grid)})" if places > 1 else ""
        searching = f"{planned[TRIALS]} trials of {len(self._searches)} of them, then " if planned[TRIALS] else ""
        n, first = len(self._seeds), self.plan.confirm_seeds
        seeds = f"{n} fresh seed{'s' * (n != 1)}"
        if self._confirm_until is not None and self.stop is None:
            seeds = f"{first} to {n} fresh seeds"
        done = f" {total - rest} of them are done." if rest < total else ""
        most = " at most" if self._confirm_until is not None and self.stop is None else ""
        note(
            f"Study {name}: {len(self._entered)} contenders ({', '.join(arm_label(e.name) for e in self._entered)}); "
            f"{searching}{seeds} of each{under}: {total} runs{most}.{done}"
        )
        seconds = self._seconds(speed, n_jobs, elsewhere)
        where = f"on {n_jobs} workers" if n_jobs > 1 else "one run at a time"
        step = f"one step of {speed.batch_size} pictures takes {1000 * speed.step_seconds:.0f} ms; measured now"
        note(f"About {roughly(seconds)}, {where} ({step}).")

    def _seconds(self, speed: Speed, n_jobs: int, elsewhere: bool) -> float:
        """Returns about how long the runs that are left take; other students than the configured one aren't."""
        plain = TRIALS + " without a teacher"
        counts = {TRIALS: 0, plain: 0}
        for entrant in self._entered:
            stages = self._searches.get(entrant.name)
            counts[TRIALS if entrant.has_teacher else plain] += 0 if stages is None else stages.left()[TRIALS]
        seconds = estimate(speed, counts, n_jobs, elsewhere).seconds
        share = {e.name: len(self._missing(e)) / max(self._cells, 1) for e in self._entered}
        for condition in self.plan.conditions:
            values, own = condition.values, speed
            if "epochs" in values:
                own = replace(own, epochs=int(values["epochs"]))
            if "data.train_fraction" in values:
                whole = own.n_train / (own.train_fraction or 1.0)
                own = replace(own, n_train=max(1, round(whole * float(values["data.train_fraction"]))))
            counts = {TRIALS: 0, plain: 0}
            for entrant in self._entered:
                part = TRIALS if entrant.has_teacher else plain
                counts[part] += round(share[entrant.name] * len(self._seeds))
            seconds += estimate(own, counts, n_jobs, elsewhere).seconds
            seconds += sum(counts.values()) * speed.n_test / speed.evaluation_rate
        return seconds
