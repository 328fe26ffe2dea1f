"""Claims about the comparison of two runs: what counts as the same, and what is said of the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from kdsweep.analysis import deviation
from kdsweep.analysis.deviation import Deviation, Left, compare
from kdsweep.tracking.run_records import ARM_TAG, RunRecord, StudyRecord

HISTORY = {"val/accuracy": [(1, 0.5), (2, 0.75)], "train/loss": [(1, 2.0), (2, 1.0)], "epoch_seconds": [(1, 3.0)]}
METRICS = {"val/accuracy": 0.75, "train/loss": 1.0, "test/accuracy": 0.7, "seconds": 5.0}


def left(weights: str | None = "w", **metrics: float) -> Left:
    """A run of two epochs with the last metrics above, except for those that are given ("val_accuracy")."""
    changed = {name.replace("_", "/", 1): value for name, value in metrics.items()}
    history = {
        name: [*points[:-1], (points[-1][0], changed.get(name, points[-1][1]))] for name, points in HISTORY.items()
    }
    return Left(weights, {**METRICS, **changed}, history)


def compared(now: Left, noise: Mapping[str, float] | None = None) -> Deviation:
    return compare(left(), now, noise or {})


def record(run_id: str, arm: str, seed: int, accuracy: float, **params: str) -> RunRecord:
    tags = {ARM_TAG: arm, "kdsweep.job": run_id}
    known = {"seed": str(seed), "loss.alpha": "0.5", **{key.replace("_", "."): value for key, value in params.items()}}
    metrics = {"val/accuracy": accuracy, "seconds": accuracy}
    return RunRecord(run_id, run_id, "FINISHED", datetime.now(UTC), 1.0, known, metrics, tags)


# What is the same


def test_equal_runs_are_bit_for_bit_the_same() -> None:
    """Weights, metrics and epochs are counted; those of the clock are not."""
    found = compared(left())
    assert (found.exact, found.rows, found.weights, found.metrics, found.epochs) == (True, (), True, 3, 2)
    assert deviation.headline(found) == "Bit-for-bit the same: the weights, 3 metrics and each of 2 epochs."


@pytest.mark.parametrize("name", ["seconds", "teacher_seconds", "epoch_seconds", "images_per_second", "system/cpu"])
def test_the_clock_is_not_compared(name: str) -> None:
    """No two runs take the same time."""
    found = compare(Left("w", {name: 1.0}, {name: [(1, 1.0)]}), Left("w", {name: 2.0}, {name: [(1, 2.0)]}), {})
    assert (found.exact, found.metrics) == (True, 0)


def test_one_bit_is_a_deviation() -> None:
    """The smallest step of a float is found, and printed with the digits that show it."""
    found = compared(left(val_accuracy=math.nextafter(0.75, 1)))
    assert not found.exact
    assert deviation.table(found) == [("val/accuracy %", "75.00", "75.00", "+1.11e-14", "-", "2")]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_are_equal_to_themselves(value: float) -> None:
    """In floating point NaN isn't equal to itself, and MLflow returns the largest float for an infinity."""
    stored = value if math.isnan(value) else math.copysign(1.7976931348623157e308, value)
    assert compare(Left(None, {"val/nll": value}), Left(None, {"val/nll": stored}), {}).exact
    assert not compare(Left(None, {"val/nll": value}), Left(None, {"val/nll": 1.0}), {}).exact


def test_other_weights_are_a_deviation_whatever_the_metrics_say() -> None:
    """A last step that changes no answer changes the network."""
    found = compared(left("v"))
    assert not found.exact
    expected = "Deviates: the weights differ, though 3 metrics and each of 2 epochs do not."
    assert deviation.headline(found) == expected


# What there is to compare


def test_without_numbers_there_is_nothing_to_compare_with() -> None:
    """A bare configuration deviates from nothing."""
    found = compare(Left(), left(), {})
    assert found.exact
    assert deviation.headline(found) == "There is nothing to compare with."
    assert Left().empty
    assert not left().empty


def test_a_run_that_was_cut_short_is_compared_in_its_epochs() -> None:
    """Its last metrics are those of its last epoch and its weights are unknown; neither counts as a deviation."""
    stopped = Left(None, {}, {"val/accuracy": [(1, 0.5)], "train/loss": [(1, 2.0)]})
    found = compare(stopped, left(), {})
    assert (found.exact, found.metrics, found.epochs, found.only_now) == (True, 2, 1, ())
    expected = "Bit-for-bit the same: 2 metrics and one epoch. The weights of the earlier run are not known."
    assert deviation.headline(found) == expected


def test_a_deviating_epoch_of_a_run_that_was_cut_short_shows() -> None:
    """The values are those of the last epoch that both runs have."""
    stopped = Left(None, {}, {"val/accuracy": [(1, 0.25)]})
    assert deviation.table(compare(stopped, left(), {})) == [("val/accuracy %", "25.00", "50.00", "+25.00", "-", "1")]


def test_metrics_that_one_run_lacks_are_named() -> None:
    """They count neither as equal nor as different."""
    found = compare(Left("w", {"a": 1.0, "b": 1.0}), Left("w", {"a": 1.0, "c": 1.0}), {})
    assert (found.exact, found.only_then, found.only_now) == (True, ("b",), ("c",))


# What is said


def test_differences_are_in_points_and_in_units_of_the_noise() -> None:
    """The accuracy was two points higher, while seeds differ by four."""
    found = compared(left(test_accuracy=0.68), {"test/accuracy": 0.04})
    assert deviation.table(found) == [("test/accuracy %", "70.00", "68.00", "-2.00", "0.5", "-")]
    expected = "Deviates: test/accuracy by -2.00 points, 0.5 times the noise over seeds."
    assert deviation.headline(found) == expected


def test_the_first_epoch_that_differs_is_named() -> None:
    """This holds for runs with the same end as well."""
    history = {"val/accuracy": [(1, 0.5), (2, 0.6), (3, 0.8)]}
    other = {"val/accuracy": [(1, 0.5), (2, 0.7), (3, 0.8)]}
    found = compare(Left("w", {}, history), Left("w", {}, other), {})
    assert found.rows[0].epoch == 2
    expected = "Deviates: val/accuracy in some epochs, though not in the last, from epoch 2 on."
    assert deviation.headline(found) == expected


def test_the_headline_is_the_largest_accuracy() -> None:
    """It is preferred to a loss, whose numbers may be larger, and to an accuracy on training pictures."""
    found = compared(left(train_loss=9.0, train_accuracy=0.9, val_accuracy=0.7, test_accuracy=0.69))
    assert deviation.headline(found).startswith("Deviates: val/accuracy by -5.00 points (3 metrics deviate)")
    losses = compared(left(train_loss=9.0))
    assert deviation.headline(losses) == "Deviates: train/loss by +8, from epoch 2 on."


@pytest.mark.parametrize("noise", [{}, {"test/accuracy": 0.0}])
def test_without_noise_there_are_no_units(noise: dict[str, float]) -> None:
    """If the noise is unknown or zero, there is a dash."""
    assert deviation.table(compared(left(test_accuracy=0.6), noise))[0][4] == "-"


# The noise


def study(*children: RunRecord) -> StudyRecord:
    return StudyRecord(record("parent", "study", 0, 0.0), children)


def test_the_noise_is_that_of_the_role() -> None:
    """It is the sample standard deviation over its seeds, for every metric but those of the clock."""
    scratch = [record(f"s{seed}", "scratch", seed, accuracy) for seed, accuracy in enumerate((0.5, 0.7))]
    distill = [record(f"d{seed}", "distill", seed, accuracy) for seed, accuracy in enumerate((0.1, 0.9))]
    assert deviation.seed_noise(study(*scratch, *distill), "scratch") == {"val/accuracy": pytest.approx(0.1 * 2**0.5)}


def test_a_role_without_repeated_runs_takes_the_noise_of_all() -> None:
    """The spread of trials is not noise, because their settings differ. A teacher doesn't get a student's noise."""
    scratch = [record(f"s{seed}", "scratch", seed, accuracy) for seed, accuracy in enumerate((0.5, 0.7))]
    trials = [record(f"t{n}", "distill", 0, 0.1 * n, loss_alpha=f"0.{n}") for n in range(3)]
    assert deviation.seed_noise(study(*scratch, *trials), "distill")["val/accuracy"] == pytest.approx(0.1 * 2**0.5)
    assert deviation.seed_noise(study(*scratch, *trials), "teacher") == {}


def test_mlflows_metrics_of_a_stopped_run_are_not_its_last() -> None:
    """They belong to the epoch at which it was stopped."""
    stopped = record("r", "distill", 0, 0.5)
    stopped = RunRecord(**{**vars(stopped), "status": "KILLED", "tags": {"kdsweep.weights": "w"}})
    assert deviation.left_by(stopped, HISTORY) == Left(None, {}, HISTORY)
    whole = RunRecord(**{**vars(stopped), "status": "FINISHED"})
    assert deviation.left_by(whole, HISTORY) == Left("w", whole.metrics, HISTORY)
