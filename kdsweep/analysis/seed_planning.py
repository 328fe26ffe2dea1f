"""What a wanted difference takes: how many seeds an arm, how many runs, about how long. Before any run is made.

Accuracies come in as fractions and are printed in points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdsweep.system.errors import require

if TYPE_CHECKING:
    from collections.abc import Iterator

DIFFERENCES = (0.001, 0.002, 0.003, 0.005, 0.01)  # of the table, beside the wanted one
ARMS = 3  # that are confirmed: the chosen setting, scratch and label smoothing
CONTROLS = 2
ALPHA = 0.05


@dataclass(frozen=True)
class Need:
    """What it takes to see one difference.

    Attributes:
        difference: Of two arms' mean accuracies, a fraction.
        seeds: Confirmation seeds an arm.
        runs: Of the whole study.
        seconds: None where the time of a run isn't known.
        wanted: Whether it is the difference that was asked for.
    """

    difference: float
    seeds: int
    runs: int
    seconds: float | None
    wanted: bool


@dataclass(frozen=True)
class Plan:
    """What `plan` was asked, and what follows.

    Attributes:
        paired_sd: Standard deviation of the difference of two arms' runs with one seed.
        alpha: The probability of any false verdict that is allowed, over all comparisons.
        needs: By difference, the smallest first.
        detectable: The smallest difference that `confirm_seeds` see with this power.
        curse: What the best of `n_trials` equally good settings overstates.
    """

    noise_sd: float
    paired_sd: float
    power: float
    alpha: float
    comparisons: int
    n_trials: int
    baseline_seeds: int
    confirm_seeds: int
    n_jobs: int
    needs: tuple[Need, ...]
    detectable: float
    curse: float

    @property
    def wanted(self) -> Need:
        """What the difference that was asked for takes."""
        return next(need for need in self.needs if need.wanted)


def plan(
    noise_sd: float,
    difference: float,
    n_trials: int,
    *,
    paired_sd: float | None = None,
    seconds_per_run: float | None = None,
    n_jobs: int = 1,
    power: float = 0.8,
    comparisons: int = 3,
    baseline_seeds: int = 3,
    confirm_seeds: int = 5,
) -> Plan:
    """What it takes to see `difference` between two arms.

    Args:
        noise_sd: Standard deviation of one run's accuracy over seeds, a fraction.
        difference: To be seen, a fraction.
        paired_sd: Of paired differences, where a study's own pairs tell it; None for sqrt(2) * noise_sd, which holds
            where a seed that two arms share does nothing for both.
        seconds_per_run: None where unknown.
        n_jobs: Runs at a time.
        power: The probability of seeing it.
        comparisons: That the verdict makes (distill, scratch and label smoothing, each two). Holm's first step divides
            alpha by them.
        confirm_seeds: What the study is set to, for `Plan.detectable`.

    Raises:
        UserError: A number that can't be.
    """
    require(0 < noise_sd < math.inf, "noise_sd > 0", noise_sd, "noise_sd", "It is a run's standard deviation.")
    require(0 < difference < math.inf, "difference > 0", difference, "difference")
    for name, count in (("n_trials", n_trials), ("n_jobs", n_jobs), ("comparisons", comparisons)):
        require(count >= 1, f"{name} >= 1", count, name)
    from kdsweep.analysis.statistics import detectable_difference, expected_winners_curse, seeds_needed

    paired_sd = math.sqrt(2) * noise_sd if paired_sd is None else paired_sd
    each = ALPHA / comparisons
    needs = []
    others = [other for other in DIFFERENCES if not math.isclose(other, difference)]
    for candidate in sorted([*others, difference]):
        seeds = seeds_needed(candidate, paired_sd, power, each)
        # The stages wait for each other; a teacher counts as a run, though its time is its own.
        stages = (1, CONTROLS * baseline_seeds, n_trials, ARMS * seeds)
        rounds = sum(math.ceil(runs / n_jobs) for runs in stages)
        seconds = None if seconds_per_run is None else rounds * seconds_per_run
        needs.append(Need(candidate, seeds, sum(stages), seconds, candidate == difference))
    return Plan(
        noise_sd=noise_sd,
        paired_sd=paired_sd,
        power=power,
        alpha=ALPHA,
        comparisons=comparisons,
        n_trials=n_trials,
        baseline_seeds=baseline_seeds,
        confirm_seeds=confirm_seeds,
        n_jobs=n_jobs,
        needs=tuple(needs),
        detectable=detectable_difference(confirm_seeds, paired_sd, power, each),
        curse=expected_winners_curse(noise_sd, n_trials),
    )


def render(planned: Plan) -> RenderableType:
    """The plan for the terminal: its answer, a table of differences, and what else is to be known."""
    points = Table.grid(padding=(0, 1))
    for sentence in _remarks(planned):
        points.add_row("-", Text(sentence))
    return Group(Text(_answer(planned), style="bold"), "", _table(planned), "", points)


def _answer(planned: Plan) -> str:
    need = planned.wanted
    time = "" if need.seconds is None else f", about {_about(need.seconds)}{_at_a_time(planned)}"
    return (
        f"To see a difference of {_points(need.difference)} points with a probability of {planned.power:.0%} takes "
        f"{_count(need.seeds)} seeds an arm: {need.runs:,} runs{time}."
    )


def _table(planned: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    timed = planned.wanted.seconds is not None
    for heading in ("difference, points", "seeds an arm", "runs", *["about"] * timed):
        table.add_column(heading, justify="right")
    table.add_column("")
    for need in planned.needs:
        time = [] if need.seconds is None else [_about(need.seconds)]
        cells = [_points(need.difference), _count(need.seeds), f"{need.runs:,}", *time]
        table.add_row(*cells, "wanted" if need.wanted else "", style="bold" if need.wanted else "")
    return table


def _remarks(planned: Plan) -> Iterator[str]:
    trials = f"{planned.n_trials} trial{'s' * (planned.n_trials > 1)}"
    yield (
        f"Noise: one run's accuracy has a standard deviation of {_points(planned.noise_sd)} points over seeds, the "
        f"difference of two runs with one seed {_points(planned.paired_sd)}."
    )
    yield (
        f"Runs: 1 teacher, {planned.baseline_seeds} each of scratch and label smoothing, {trials}, then fresh seeds of "
        "the chosen setting, scratch and label smoothing."
    )
    if planned.confirm_seeds > 1:
        seen = _points(planned.detectable)
        yield f"The {planned.confirm_seeds} seeds an arm that are set now see {seen} points or more."
    if planned.comparisons > 1:
        yield (
            f"The verdict makes {planned.comparisons} comparisons: to keep all of them right with "
            f"{1 - planned.alpha:.0%}, each is planned for p <= {planned.alpha / planned.comparisons:.4f} (Holm)."
        )
    share = planned.n_trials / planned.wanted.runs
    yield f"The search is {share:.0%} of the runs. More trials find better settings; the verdict is no surer for them."
    if planned.n_trials > 1:
        yield (
            f"Winner's curse: the best of {planned.n_trials} equally good settings looks {_points(planned.curse)} "
            "points better than it is. So the search's best score is no result; the fresh seeds give it."
        )
    if planned.wanted.seconds is None:
        yield "How long it takes can be said where a run's seconds are given (--seconds), or a study that has runs."


def _points(fraction: float) -> str:
    """Two decimals, more where they would hide the number: 0.30, 0.05, 0.001."""
    points = 100 * fraction
    return f"{points:.2f}" if points >= 0.095 or round(points, 2) == round(points, 6) else f"{points:.2g}"


def _count(seeds: int) -> str:
    from kdsweep.analysis.statistics import MOST_SEEDS

    return f"{seeds:,}" if seeds < MOST_SEEDS else f"{MOST_SEEDS:,} or more"


def _at_a_time(planned: Plan) -> str:
    return f", {planned.n_jobs} at a time" if planned.n_jobs > 1 else ""


def _about(seconds: float) -> str:
    from kdsweep.analysis.cost import duration

    return duration(seconds if seconds < 120 else 60 * round(seconds / 60)).removesuffix(" 0 s")
