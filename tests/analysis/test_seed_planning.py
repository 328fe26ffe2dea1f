"""Claims about the plan of a study: seeds, runs, time, and the words that report them."""

from __future__ import annotations

import math
import re

import pytest
from rich.console import Console

from kdsweep.analysis.seed_planning import Plan, plan, render
from kdsweep.analysis.statistics import expected_winners_curse, power
from kdsweep.system.errors import UserError


def told(planned: Plan, width: int = 100) -> str:
    """The plan as it is printed, lines joined."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(render(planned))
    return re.sub(r"\s+", " ", capture.get())


def test_planned_seeds_reach_the_power_after_holm() -> None:
    """One seed fewer would not, with sqrt(2) of a run's noise and the significance level divided by the comparisons."""
    planned = plan(0.002, 0.003, 30, power=0.9, comparisons=3)
    seeds = planned.wanted.seeds
    reached = [power(n, 0.003, math.sqrt(2) * 0.002, 0.05 / 3) for n in (seeds - 1, seeds)]
    assert reached[0] < 0.9 <= reached[1]


def test_smaller_differences_take_more_seeds_and_runs() -> None:
    """The table's differences and the wanted one, once each, in order."""
    needs = plan(0.002, 0.004, 30).needs
    assert [need.difference for need in needs] == [0.001, 0.002, 0.003, 0.004, 0.005, 0.01]
    assert [need.seeds for need in needs] == sorted((need.seeds for need in needs), reverse=True)
    assert [need.wanted for need in needs] == [False, False, False, True, False, False]


def test_a_wanted_difference_of_the_table_stands_there_once() -> None:
    """This holds also after its points were divided by a hundred."""
    needs = plan(0.002, 0.7 / 100 - 0.4 / 100, 30).needs
    assert [need.wanted for need in needs] == [False, False, True, False, False]


def test_runs_are_counted_through_all_stages() -> None:
    """They are a teacher, the baselines of two controls, the trials, and the seeds of three arms."""
    planned = plan(0.002, 0.003, 30, baseline_seeds=4)
    assert planned.wanted.runs == 1 + 2 * 4 + 30 + 3 * planned.wanted.seeds


def test_time_goes_stage_by_stage() -> None:
    """With more workers than runs in it, a stage still takes one run's time."""
    alone, many = (plan(0.002, 0.003, 30, seconds_per_run=60, n_jobs=jobs).wanted for jobs in (1, 1000))
    assert alone.seconds == 60 * alone.runs
    assert many.seconds == 60 * 4
    assert plan(0.002, 0.003, 30).wanted.seconds is None


def test_pairs_of_a_study_replace_the_assumed_noise() -> None:
    """If a seed moves both arms alike, differences are less noisy, and fewer seeds suffice."""
    assumed, measured = plan(0.002, 0.003, 30), plan(0.002, 0.003, 30, paired_sd=0.001)
    assert assumed.paired_sd == pytest.approx(0.002 * math.sqrt(2))
    assert measured.wanted.seeds < assumed.wanted.seeds


def test_what_the_set_seeds_see() -> None:
    """The smallest difference for which they are enough."""
    planned = plan(0.002, 0.003, 30, confirm_seeds=7)
    assert plan(0.002, 1.0001 * planned.detectable, 30).wanted.seeds == 7
    assert plan(0.002, 0.9999 * planned.detectable, 30).wanted.seeds == 8


def test_the_winners_curse_grows_with_trials_alone() -> None:
    """It is a run's noise, but for what a seed does to all settings, times the expected largest of so many."""
    assert plan(0.002, 0.003, 30).curse == pytest.approx(expected_winners_curse(0.002, 30))
    shared = plan(0.002, 0.003, 30, paired_sd=0.001).curse
    assert shared == pytest.approx(expected_winners_curse(0.001 / math.sqrt(2), 30))
    assert plan(0.002, 0.003, 1).curse == pytest.approx(0)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"noise_sd": 0.0}, "`noise_sd > 0` must hold"),
        ({"noise_sd": math.nan}, "`noise_sd > 0` must hold"),
        ({"difference": -0.1}, "`difference > 0` must hold"),
        ({"n_trials": 0}, "`n_trials >= 1` must hold"),
        ({"n_jobs": 0}, "`n_jobs >= 1` must hold"),
        ({"power": 1.0}, "`0 < power < 1` must hold"),
    ],
)
def test_what_cannot_be_planned_is_refused(change: dict[str, float], rule: str) -> None:
    """Each impossible number is refused with its rule."""
    numbers = {"noise_sd": 0.002, "difference": 0.003, "n_trials": 30, **change}
    with pytest.raises(UserError, match=rule):
        plan(**numbers)  # type: ignore[arg-type]


def test_the_answer_comes_first_and_in_points() -> None:
    """It gives seeds, runs and time for the wanted difference, then the table, the cost of trials and the curse."""
    planned = plan(0.0021, 0.003, 30, seconds_per_run=240, n_jobs=2)
    text = told(planned)
    assert text.startswith(
        "To see a difference of 0.30 points with a probability of 80% takes 14 seeds an arm: 79 runs, about 2 h "
        "40 min, 2 at a time."
    )
    assert "0.30 14 79 2 h 40 min wanted" in text
    assert "standard deviation of 0.21 points over seeds, the difference of two runs with one seed 0.30" in text
    assert "best of 30 equally good settings looks 0.43 points better" in text
    assert "The search is 38% of the runs" in text
    assert "each is planned for p <= 0.0167" in text


def test_without_seconds_the_plan_says_how_to_get_them() -> None:
    """There is no column of times, and no winner's curse with a single trial."""
    text = told(plan(0.0021, 0.00001, 1))
    assert "about" not in text
    assert "(--seconds)" in text
    assert "1 trial, then" in text
    assert "Winner's curse" not in text
    assert "0.001 more than 1,000 - wanted" in text


def test_what_nobody_trains_is_no_number() -> None:
    """More than a thousand seeds are called so, without runs and hours."""
    text = told(plan(0.01, 1e-7, 30, seconds_per_run=60))
    assert text.startswith(
        "To see a difference of 1e-05 points with a probability of 80% takes more than 1,000 seeds an"
    )
    assert "1e-05 more than 1,000 - - wanted" in text
    assert "of the runs" not in text


def test_measured_noise_gives_a_range() -> None:
    """A plan from a study says what it takes over the interval of the study's noise."""
    planned = plan(0.002, 0.003, 30, paired_sd=0.003, paired_interval=(0.002, 0.006))
    ends = [plan(0.002, 0.003, 30, paired_sd=sd).wanted.seeds for sd in (0.002, 0.006)]
    assert planned.seeds is not None
    assert [planned.seeds.low, planned.seeds.high] == ends
    assert f"over its 95% interval it takes {ends[0]} to {ends[1]} seeds an arm" in told(planned)
    assert "interval" not in told(plan(0.002, 0.003, 30))


def test_a_narrow_terminal_shows_it_too() -> None:
    """Sixty columns hold the table."""
    assert "0.30 14 79" in told(plan(0.0021, 0.003, 30), width=60)
