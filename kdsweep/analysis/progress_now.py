"""Where a study is at this moment: what is done of each stage, what runs, and how long the rest will take."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean
from typing import TYPE_CHECKING

from kdsweep.analysis.contest_plan import Plan
from kdsweep.analysis.sorted_runs import finished
from kdsweep.tracking.run_records import ARMS, STUDENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kdsweep.analysis.study_goals import Goals
    from kdsweep.tracking.run_records import RunRecord, StudyRecord


@dataclass(frozen=True)
class Stage:
    """A stage of a study: `planned` is None if the study doesn't say."""

    name: str
    done: int
    planned: int | None
    at_most: bool = False

    @property
    def left(self) -> int:
        """The number of runs that are still to be made."""
        return max((self.planned or 0) - self.done, 0)


@dataclass(frozen=True)
class Progress:
    """Where a study is.

    Attributes:
        stages: Baselines, the pilot if there is one, trials and confirmations, in this order.
        running: The runs of the moment.
        seconds_left: How long the rest will take at the present pace; None before the first run has ended.
        failed: The number of trials that failed.
    """

    stages: tuple[Stage, ...]
    running: tuple[RunRecord, ...]
    seconds_left: float | None
    failed: int

    @property
    def at_most(self) -> bool:
        """Whether the study may need fewer runs than planned."""
        return any(stage.at_most and stage.left for stage in self.stages)


def progress(study: StudyRecord, goals: Goals, now: datetime | None = None) -> Progress:
    """Returns where a study is, from its runs alone.

    Args:
        study: Its runs.
        goals: What it set out to do.
        now: The time; None for the clock's.
    """
    now = datetime.now(UTC) if now is None else now
    ended = [run for arm in ARMS for run in finished(study, arm)]
    trials = {run.tags.get("kdsweep.trial") for run in study.runs("distill", "search", None) if run.status != "RUNNING"}
    if goals.fidelity is not None:  # the pilot's settings are trials once it has decided
        trials |= {str(number) for number, *_ in goals.fidelity.pilot}
    failed = {run.tags.get("kdsweep.trial") for run in study.runs("distill", "search", "FAILED")}
    failed -= {run.tags.get("kdsweep.trial") for run in study.runs("distill", "search")}
    # The fresh seeds of an earlier choice are no part of this confirmation.
    fresh = [
        run
        for run in ended
        if run.stage == "confirmation" and (run.arm != "distill" or run.tags.get("kdsweep.trial") == str(goals.chosen))
    ]
    in_pilot = sum(run.stage == "pilot" for run in ended)
    baselines = goals.baselines
    controls = [name for name in baselines if name in STUDENTS] or STUDENTS[:2]
    seeds = goals.confirm_until if goals.confirm_until is not None else goals.confirm_seeds
    if goals.stop is not None and goals.stop.trial == goals.chosen:
        seeds = goals.stop.seeds
        fresh = [run for run in fresh if run.seed is not None and run.seed <= goals.stop.last_seed]
    stages = (
        Stage("baselines", sum(run.stage == "baseline" for run in ended), sum(baselines.values()) or None),
        *([Stage("pilot", in_pilot, None)] if in_pilot else []),
        Stage("trials", len(trials), goals.n_trials),
        Stage(
            "fresh seeds",
            len(fresh),
            None if seeds is None else seeds * (1 + len(controls)),
            at_most=goals.confirm_until is not None and goals.stop is None,
        ),
    )
    plan = Plan.read(study.parent.tags)
    if plan is not None:
        stages = _of_contest(stages[0], plan, goals, study, ended)
    running = tuple(run for run in study.children if run.status == "RUNNING" and run.arm in ARMS)
    times = [run.duration_s for run in ended if run.duration_s is not None and run.arm != "teacher"]
    left = None
    if times:
        each, slots = fmean(times), max(len(running), 1)
        spent = sum(min((now - run.start).total_seconds(), each) for run in running)
        left = max(each * sum(stage.left for stage in stages) - spent, 0.0) / slots
    return Progress(stages, running, left, len(failed))


def _of_contest(
    baselines: Stage, plan: Plan, goals: Goals, study: StudyRecord, ended: Sequence[RunRecord]
) -> tuple[Stage, Stage, Stage]:
    """Returns the stages of a contest, whose contenders number their trials each for itself."""
    searched = [run for run in study.runs(stage="search", status=None) if run.status != "RUNNING"]
    trials = {run.tags.get("kdsweep.job") for run in searched}
    # The fresh seeds of an earlier choice are no part of this contest.
    chosen = {name: str(number) for name, number in plan.chosen.items()}
    fresh = [
        run
        for run in ended
        if run.stage == "confirmation"
        and run.tags.get("kdsweep.trial") == chosen.get(run.tags.get("kdsweep.contender", ""))
        and (goals.stop is None or run.seed is None or run.seed <= goals.stop.last_seed)
    ]
    cells = len(plan.contenders) * len(plan.conditions)
    most = plan.confirm_seeds if goals.confirm_until is None else goals.confirm_until
    seeds = most if goals.stop is None else goals.stop.seeds
    at_most = goals.confirm_until is not None and goals.stop is None
    return (
        baselines,
        Stage("trials", len(trials), goals.n_trials),
        Stage("fresh seeds", len(fresh), cells * seeds, at_most=at_most),
    )
