"""When the confirmation of a contest by `sweep.confirm_until` stops, and the sentences about that.

All comparisons are looked at together, with one correction, after each seed of all contenders. A p value that holds at
any time is one at the time of the stop as well, and Holm's correction takes whatever p values depend on each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsweep.analysis import always_valid
from kdsweep.analysis.contest_findings import cells_of, compared
from kdsweep.analysis.stopping import REASONS, VALID, outcome, stop_words
from kdsweep.analysis.verdict import SIGNIFICANCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kdsweep.analysis.contest_findings import Contest
    from kdsweep.analysis.contest_plan import Plan
    from kdsweep.analysis.sorted_runs import Comparison
    from kdsweep.analysis.study_goals import Why
    from kdsweep.tracking.run_records import RunRecord

OF_CONTESTS: dict[Why, str] = {
    "clear": "because each comparison has an answer",
    "out of reach": "because {most} seeds would hardly answer what is open",
    "spent": REASONS["spent"],
}


def decision(plan: Plan, runs: Sequence[RunRecord], seeds: Sequence[int], most: int, resolution: float) -> Why | None:
    """Returns why the confirmation of a contest stops after these seeds; None if it goes on.

    Args:
        plan: The contest's, with the choices made.
        runs: The study's.
        seeds: The seeds that count, all of which have ended.
        most: The number of seeds that are affordable.
        resolution: The step of the accuracies; 0 if it is unknown.
    """
    cells = cells_of([run for run in runs if run.status == "FINISHED" and run.seed in seeds], plan)
    fixed = compared(cells, plan, resolution)
    at_any_time = compared(cells, plan, resolution, at_any_time=True)
    open_ = [
        always_valid.out_of_reach(one.difference, most, SIGNIFICANCE)
        for one, now in zip(fixed, at_any_time, strict=True)
        if now.outcome not in ("better", "worse")
    ]
    return outcome(bool(fixed), open_, len(seeds), most)


def words(found: Comparison, contest: Contest) -> Iterator[str]:
    """Yields when and why the confirmation stopped, how many seeds that saved, and what its numbers are worth."""
    most, stop = found.goals.confirm_until, found.goals.stop
    if most is None or not contest.cells:
        return
    if stop is None:
        yield f"The confirmation goes on until each comparison has an answer, with at most {most} seeds an arm. {VALID}"
    else:
        yield from stop_words(found, stop, most, len(contest.cells), OF_CONTESTS)
