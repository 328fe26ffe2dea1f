"""Claims about how long runs take at a given speed."""

from __future__ import annotations

import pytest
from speeds import PLANNED, speed, without_teacher

from kdsweep.study.forecast import RUN_SECONDS, estimate

# 10 epochs of 10 steps of 1 s.
RUN = 100 + RUN_SECONDS


def test_a_run_takes_its_steps_and_validations() -> None:
    """Each epoch has whole batches and all validation pictures, and each run takes some time besides."""
    ours = without_teacher(n_train=1099, evaluation_rate=50.0)
    assert estimate(ours, {"scratch": 1}, 1).seconds == pytest.approx(10 * (10 * 1.0 + 200 / 50) + RUN_SECONDS)


def test_a_whole_study_is_the_sum_of_its_runs() -> None:
    """It has 51 students, one after another, and a teacher whose head takes little time."""
    assert estimate(without_teacher(), PLANNED, 1).seconds == pytest.approx(51 * RUN + RUN_SECONDS, rel=1e-6)


def test_runs_that_are_done_cost_nothing() -> None:
    """Only what is left is counted."""
    left = dict.fromkeys(PLANNED, 0) | {"trials": 2}
    assert estimate(without_teacher(), left, 1).seconds == pytest.approx(2 * RUN, rel=1e-6)
    assert estimate(speed(), dict.fromkeys(PLANNED, 0), 1).seconds == 0


def test_confirmations_also_read_the_test_split() -> None:
    """At 3 pictures/s, 300 pictures take each of them 100 s more."""
    ours = without_teacher(evaluation_rate=3.0, n_validation=0)
    confirmation, trial = (estimate(ours, {part: 1}, 1).seconds for part in ("confirmation", "trials"))
    assert confirmation - trial == pytest.approx(100)


@pytest.mark.parametrize(("n_jobs", "rounds"), [(1, 5), (2, 3), (4, 2), (8, 1)])
def test_places_are_shared(n_jobs: int, rounds: int) -> None:
    """Five runs on two workers take three rounds; in the last one, a worker has nothing to do."""
    assert estimate(without_teacher(cores=8), {"trials": 5}, n_jobs).seconds == pytest.approx(rounds * RUN, rel=1e-6)


def test_stages_wait_for_each_other() -> None:
    """A search starts when the last baseline has ended."""
    runs = {"scratch": 1, "label_smoothing": 2, "trials": 3}
    assert estimate(without_teacher(cores=2), runs, 2).seconds == pytest.approx((2 + 2) * RUN, rel=1e-6)


@pytest.mark.parametrize(
    ("machine", "places"),
    [
        ({"cores": 4, "threads": 1}, 4),
        ({"cores": 4, "threads": 2}, 2),
        ({"cores": 4, "threads": 8}, 1),
        ({"cores": 16, "gpus": 1}, 1),
        ({"cores": 16, "gpus": 2}, 2),
    ],
)
def test_more_jobs_than_cores_or_gpus_gain_nothing(machine: dict[str, int], places: int) -> None:
    """Eight jobs at a time share this machine's places; on other machines each counts as having its own."""
    ours = without_teacher(**machine)
    assert estimate(ours, {"trials": 8}, 8).seconds == pytest.approx(8 / places * RUN, rel=1e-6)
    assert estimate(ours, {"trials": 8}, 8, elsewhere=True).seconds == pytest.approx(RUN, rel=1e-6)


def test_the_teacher_computes_what_is_missing_once() -> None:
    """It computes each missing pass over all training pictures, and the features, once for all runs."""
    found = estimate(speed(passes_missing=(3, 7), cores=4), PLANNED, 4)
    assert found.passes == 2
    assert found.teacher_seconds == pytest.approx((2 * 1000 + 1500) / 10)
    without = estimate(without_teacher(cores=4), PLANNED, 4)
    assert found.seconds - without.seconds == pytest.approx(found.teacher_seconds)


def test_controls_need_no_teacher() -> None:
    """If only scratch runs are left, its missing passes stay missing."""
    found = estimate(speed(), {"teacher": 0, "scratch": 2, "trials": 0, "confirmation": 0}, 1)
    assert (found.passes, found.teacher_seconds) == (0, 0)


@pytest.mark.parametrize(("seeds", "passes"), [(0, 10), (2, 30), (20, 100)])
def test_only_passes_that_epochs_use_are_computed(seeds: int, passes: int) -> None:
    """With 100 passes and 10 epochs, the trials, which share a seed, use ten; each fresh seed may use ten others."""
    ours = speed(n_passes=100, passes_missing=tuple(range(100)))
    runs = {"scratch": 0, "label_smoothing": 0, "trials": 5, "confirmation": 3 * seeds}
    assert estimate(ours, runs, 1).passes == passes


def test_a_teacher_online_answers_every_batch() -> None:
    """At 10 pictures/s, 100 pictures take ten seconds a step, for distilled students only."""
    ours = without_teacher(online=True)
    assert estimate(ours, {"scratch": 1, "trials": 0}, 1).seconds == pytest.approx(RUN, rel=1e-6)
    assert estimate(ours, {"scratch": 0, "trials": 1}, 1).seconds == pytest.approx(RUN + 100 * 10, rel=1e-6)
    runs = {"scratch": 0, "label_smoothing": 0, "confirmation": 3}
    assert estimate(ours, runs, 1).seconds == pytest.approx(3 * RUN + 1000, rel=1e-6)
