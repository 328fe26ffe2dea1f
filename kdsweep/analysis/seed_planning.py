"""Plans a study before any run is made: how many seeds, runs and hours it takes to see a difference between two arms.

Accuracies are passed in as fractions, and printed in points.
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

    from kdsweep.analysis.statistics import SeedsNeeded

DIFFERENCES = (0.001, 0.002, 0.003, 0.005, 0.01)  # rows of the table, beside the wanted difference
CONFIRMED = 3  # arms that are confirmed: the chosen setting, scratch and label smoothing
CONTROLS = 2  # arms whose baselines have several seeds: scratch and label smoothing
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Need:
    """What it takes to see one difference.

    Attributes:
        difference: The difference of two arms' mean accuracies, a fraction.
        seeds: The number of confirmation seeds per arm; None stands for more than anybody trains.
        runs: The number of runs in the whole study; None with `seeds`.
        seconds: How long the study takes; None with `seeds`, and if the time of a run is unknown.
        wanted: Whether this is the difference that was asked for.
    """

    difference: float
    seeds: int | None
    runs: int | None
    seconds: float | None
    wanted: bool


@dataclass(frozen=True)
class Plan:
    """The question that `plan` was asked, and its answer.

    Attributes:
        noise_sd: The standard deviation of one run's accuracy over seeds.
        paired_sd: The standard deviation of the difference of two arms' runs with the same seed.
        power: The probability of seeing a difference.
        significance: The allowed probability of any false verdict, over all comparisons.
        comparisons: How many comparisons the verdict makes.
        n_trials, baseline_seeds, confirm_seeds, n_jobs: How the study is set up.
        needs: What each difference takes, the smallest first.
        seeds: The seeds that the wanted difference takes over the interval of `paired_sd`; None if that has none.
        timed: Whether the time of a run is known.
        detectable: The smallest difference that `confirm_seeds` can show with this power.
        curse: By how much the best of `n_trials` equally good settings looks better than it is, if their trials share a
            seed: by the noise that `paired_sd` is made of.
    """

    noise_sd: float
    paired_sd: float
    power: float
    significance: float
    comparisons: int
    n_trials: int
    baseline_seeds: int
    confirm_seeds: int
    n_jobs: int
    needs: tuple[Need, ...]
    seeds: SeedsNeeded | None
    timed: bool
    detectable: float
    curse: float

    @property
    def wanted(self) -> Need:
        """What it takes to see the difference that was asked for."""
        return next(need for need in self.needs if need.wanted)


def plan(
    noise_sd: float,
    difference: float,
    n_trials: int,
    *,
    paired_sd: float | None = None,
    paired_interval: tuple[float, float] | None = None,
    seconds_per_run: float | None = None,
    n_jobs: int = 1,
    power: float = 0.8,
    comparisons: int = 3,
    baseline_seeds: int = 3,
    confirm_seeds: int = 5,
) -> Plan:
    """Computes what it takes to see `difference` between two arms.

    Args:
        noise_sd: The standard deviation of one run's accuracy over seeds, a fraction.
        difference: The difference to be seen, a fraction.
        n_trials: The number of trials in the search.
        paired_sd: The standard deviation of paired differences, if it was measured. None stands for
            sqrt(2) * noise_sd, which holds if sharing a seed doesn't make two arms' runs more alike.
        paired_interval: The limits of the confidence interval of `paired_sd`, if it was measured.
        seconds_per_run: The time of one run; None if it is unknown.
        n_jobs: How many runs go on at a time.
        power: The probability of seeing the difference.
        comparisons: How many comparisons the verdict makes (each two of distill, scratch and label smoothing). Holm's
            first step divides the significance level by this number.
        baseline_seeds: The number of seeds of each control's baseline.
        confirm_seeds: The number of confirmation seeds that is set now, for `Plan.detectable`.

    Raises:
        UserError: A number is out of range.
    """
    require(0 < noise_sd < math.inf, "noise_sd > 0", noise_sd, "noise_sd", "It is a run's standard deviation.")
    require(0 < difference < math.inf, "difference > 0", difference, "difference")
    for name, count in (("n_trials", n_trials), ("n_jobs", n_jobs), ("comparisons", comparisons)):
        require(count >= 1, f"{name} >= 1", count, name)
    from kdsweep.analysis.statistics import SeedsNeeded, detectable_difference, expected_winners_curse, seeds_needed

    paired_sd = math.sqrt(2) * noise_sd if paired_sd is None else paired_sd
    each = SIGNIFICANCE / comparisons
    needs = []
    others = [other for other in DIFFERENCES if not math.isclose(other, difference)]
    for candidate in sorted([*others, difference]):
        seeds = seeds_needed(candidate, paired_sd, power, each)
        if seeds is None:
            needs.append(Need(candidate, None, None, None, candidate == difference))
            continue
        # The stages wait for each other. The teacher counts as one run, though it takes another time than a student.
        stages = (1, CONTROLS * baseline_seeds, n_trials, CONFIRMED * seeds)
        rounds = sum(math.ceil(runs / n_jobs) for runs in stages)
        seconds = None if seconds_per_run is None else rounds * seconds_per_run
        needs.append(Need(candidate, seeds, sum(stages), seconds, candidate == difference))
    limits = None if paired_interval is None else [seeds_needed(difference, sd, power, each) for sd in paired_interval]
    return Plan(
        noise_sd=noise_sd,
        paired_sd=paired_sd,
        power=power,
        significance=SIGNIFICANCE,
        comparisons=comparisons,
        n_trials=n_trials,
        baseline_seeds=baseline_seeds,
        confirm_seeds=confirm_seeds,
        n_jobs=n_jobs,
        needs=tuple(needs),
        seeds=None if limits is None else SeedsNeeded(seeds_needed(difference, paired_sd, power, each), *limits),
        timed=seconds_per_run is not None,
        detectable=detectable_difference(confirm_seeds, paired_sd, power, each),
        curse=expected_winners_curse(paired_sd / math.sqrt(2), n_trials),
    )


def render(planned: Plan) -> RenderableType:
    """Renders the plan for the terminal: its answer, a table of differences, and remarks."""
    points = Table.grid(padding=(0, 1))
    for sentence in _remarks(planned):
        points.add_row("-", Text(sentence))
    return Group(Text(_answer(planned), style="bold"), "", _table(planned), "", points)


def _answer(planned: Plan) -> str:
    need = planned.wanted
    time = "" if need.seconds is None else f", about {_about(need.seconds)}{_at_a_time(planned)}"
    runs = "" if need.runs is None else f": {need.runs:,} runs{time}"
    return (
        f"To see a difference of {_points(need.difference)} points with a probability of {planned.power:.0%} takes "
        f"{_count(need.seeds)} seeds an arm{runs}."
    )


def _table(planned: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("difference, points", "seeds an arm", "runs", *["about"] * planned.timed):
        table.add_column(heading, justify="right")
    table.add_column("")
    for need in planned.needs:
        time = ["-" if need.seconds is None else _about(need.seconds)] if planned.timed else []
        runs = "-" if need.runs is None else f"{need.runs:,}"
        cells = [_points(need.difference), _count(need.seeds), runs, *time]
        table.add_row(*cells, "wanted" if need.wanted else "", style="bold" if need.wanted else "")
    return table


def _remarks(planned: Plan) -> Iterator[str]:
    trials = f"{planned.n_trials} trial{'s' * (planned.n_trials > 1)}"
    yield (
        f"Noise: one run's accuracy has a standard deviation of {_points(planned.noise_sd)} points over seeds, the "
        f"difference of two runs with one seed {_points(planned.paired_sd)}."
    )
    if planned.seeds is not None:
        yield f"The noise is known from few runs: over its 95% interval it takes {planned.seeds} seeds an arm."
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
            f"{1 - planned.significance:.0%}, each is planned for p <= "
            f"{planned.significance / planned.comparisons:.4f} (Holm)."
        )
    if planned.wanted.runs is not None:
        share = planned.n_trials / planned.wanted.runs
        surer = "More trials find better settings; the verdict is no surer for them."
        yield f"The search is {share:.0%} of the runs. {surer}"
    if planned.n_trials > 1:
        yield (
            f"Winner's curse: the best of {planned.n_trials} equally good settings looks {_points(planned.curse)} "
            "points better than it is. So the search's best score is no result; the fresh seeds give it."
        )
    if not planned.timed:
        yield "How long it takes can be said where a run's seconds are given (--seconds), or a study that has runs."


def _points(fraction: float) -> str:
    """Prints points with two decimals, or more if two would hide the number: 0.30, 0.05, 0.001."""
    points = 100 * fraction
    return f"{points:.2f}" if points >= 0.095 or round(points, 2) == round(points, 6) else f"{points:.2g}"


def _count(seeds: int | None) -> str:
    from kdsweep.analysis.statistics import seed_count

    return seed_count(seeds)


def _at_a_time(planned: Plan) -> str:
    return f", {planned.n_jobs} at a time" if planned.n_jobs > 1 else ""


def _about(seconds: float) -> str:
    from kdsweep.analysis.cost import duration

    return duration(seconds if seconds < 120 else 60 * round(seconds / 60)).removesuffix(" 0 s")
