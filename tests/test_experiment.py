"""Experiments: validation selects, test is read once, and the teacher's time is counted apart."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import build
from torch import Tensor

from kdsweep import data as datasets
from kdsweep.evaluation import evaluate, reliability
from kdsweep.experiment import run
from kdsweep.losses import kd
from kdsweep.schedules import one_cycle
from kdsweep.teachers import Teacher
from kdsweep.training import DivergedError, Fit, Metrics, predict
from kdsweep.views import Views

OPTIONS: Any = {"val_size": 20, "train_fraction": 1.0, "split_seed": 0, "padding": 4, "flip": True}
DATA = datasets.synthetic(n_train=52, n_test=10, n_classes=6, image_size=32, seed=0, **OPTIONS)


def answers(split: str, n_right: int) -> Tensor:
    """Logits that are right for the first `n_right` pictures of a split."""
    labels = getattr(DATA, split).labels
    right = torch.arange(len(labels)) < n_right
    return 3.0 * torch.nn.functional.one_hot(torch.where(right, labels, (labels + 1) % 6), 6)


class Course:
    """A training with a known outcome: the numbers of right validation and test pictures after each epoch."""

    def __init__(self, validation: list[int], test: list[int]) -> None:
        self.right = {"validation": validation, "test": test}
        self.epoch = 0
        self.asked: list[tuple[str, int]] = []

    def __iter__(self) -> Iterator[Metrics]:
        for epoch in range(1, len(self.right["validation"]) + 1):
            self.epoch = epoch
            yield {"train/loss": 1 / epoch}

    def predict(self, split: str) -> Tensor:
        self.asked.append((split, self.epoch))
        return answers(split, self.right[split][self.epoch - 1])


def no_log(metrics: Metrics, epoch: int) -> None:
    """For runs whose log is not looked at."""


def test_every_epoch_is_validated_and_test_is_read_once() -> None:
    """Test pictures are looked at once, when all training is over."""
    course = Course([5, 10, 15], [1, 2, 3])
    run(course, course.predict, DATA, None, no_log, evaluate_test=True)
    assert course.asked == [("validation", 1), ("validation", 2), ("validation", 3), ("test", 3)]


def test_a_run_that_may_not_read_test_reads_it_never() -> None:
    """There are no test metrics and no bins, the test pictures aren't looked at, and all else is the same."""
    course = Course([5, 10, 15], [1, 2, 3])
    result = run(course, course.predict, DATA, None, no_log, evaluate_test=False)
    assert {split for split, _ in course.asked} == {"validation"}
    assert not any(name.startswith("test/") for name in result.metrics)
    assert result.reliability == []
    assert result.metrics["val/accuracy"] == pytest.approx(0.75)


def test_confidence_is_told_bin_by_bin_on_test() -> None:
    """The bins are those of the last epoch's answers to the test pictures."""
    course = Course([5, 10], [1, 4])
    bins = run(course, course.predict, DATA, None, no_log, evaluate_test=True).reliability
    assert bins == reliability(answers("test", 4), DATA.test.labels)
    assert sum(found["count"] or 0 for found in bins) == 10


def test_the_best_epoch_is_validations() -> None:
    """best/... names the first epoch with the highest validation accuracy, though test was better in others."""
    course = Course([5, 16, 16, 12], [10, 1, 9, 4])
    metrics = run(course, course.predict, DATA, None, no_log, evaluate_test=True).metrics
    assert (metrics["best/epoch"], metrics["best/val_accuracy"]) == (2, 0.8)
    assert metrics["val/accuracy"] == pytest.approx(0.6)
    assert metrics["test/accuracy"] == pytest.approx(0.4)


def test_a_best_accuracy_of_zero_is_a_best() -> None:
    """An accuracy of zero is a value: the first epoch is the best if no epoch gets anything right."""
    course = Course([0, 0], [0, 0])
    metrics = run(course, course.predict, DATA, None, no_log, evaluate_test=True).metrics
    assert (metrics["best/epoch"], metrics["best/val_accuracy"]) == (1, 0)


def test_log_and_history_have_every_epoch() -> None:
    """Log and history get the metrics of training and of validation, for each epoch from 1."""
    course = Course([5, 10], [1, 2])
    logged: list[tuple[int, Metrics]] = []
    result = run(
        course, course.predict, DATA, None, lambda metrics, epoch: logged.append((epoch, metrics)), evaluate_test=True
    )
    assert [(epoch, metrics["train/loss"], metrics["val/accuracy"]) for epoch, metrics in logged] == [
        (1, 1.0, 0.25),
        (2, 0.5, 0.5),
    ]
    assert result.history == {name: [(epoch, metrics[name]) for epoch, metrics in logged] for name in logged[0][1]}
    assert result.metrics.items() >= logged[-1][1].items()


def test_a_network_that_needs_no_training_is_evaluated() -> None:
    """A teacher with a trained head has scores, and no history and no best epoch."""
    result = run((), lambda split: answers(split, 7), DATA, None, no_log, evaluate_test=True)
    assert result.history == {}
    assert result.metrics["val/accuracy"] == pytest.approx(7 / 20)
    assert result.metrics["test/accuracy"] == pytest.approx(7 / 10)
    assert not any(name.startswith("best/") for name in result.metrics)


def test_an_error_in_training_gets_out() -> None:
    """A run that dies has logged what it finished, and read no test picture."""

    def training() -> Iterator[Metrics]:
        yield from course
        raise RuntimeError("diverged")

    course = Course([5, 10], [1, 2])
    epochs: list[int] = []
    with pytest.raises(RuntimeError, match="diverged"):
        run(training(), course.predict, DATA, None, lambda _, epoch: epochs.append(epoch), evaluate_test=True)
    assert epochs == [1, 2]
    assert ("test", 2) not in course.asked


# ---------------------------------------------------------------------------------------------- with a teacher


VIEWS = Views(DATA.train.images, DATA.padding, DATA.flip, seed=0)


def teacher(root: Path) -> Teacher:
    return Teacher(build(6, seed=9), DATA, VIEWS, root, "table", 16, "fp32")


def test_a_student_is_compared_with_its_teacher(tmp_path: Path) -> None:
    """Agreement and divergence are those of the two networks' logits, on validation and on test."""
    ours, course = teacher(tmp_path), Course([5, 10], [1, 2])
    metrics = run(course, course.predict, DATA, ours, no_log, evaluate_test=True).metrics
    for prefix, split, right in (("val", "validation", 10), ("test", "test", 2)):
        expected = evaluate(answers(split, right), getattr(DATA, split).labels, ours.logits(split))
        assert {f"{prefix}/{name}": value for name, value in expected.items()}.items() <= metrics.items()
        assert {f"{prefix}/agreement", f"{prefix}/teacher_kl"} <= metrics.keys()


def test_the_time_of_the_tables_is_told_apart(tmp_path: Path) -> None:
    """`seconds` is the run's own time. The time for tables is counted apart, without what was spent before the run."""

    def slow() -> Iterator[Metrics]:
        yield {}
        time.sleep(0.05)
        ours.seconds += 1000

    ours = teacher(tmp_path)
    ours.seconds = 500.0
    metrics = run(slow(), lambda split: answers(split, 3), DATA, ours, no_log, evaluate_test=True).metrics
    assert 1000 <= metrics["teacher_seconds"] < 1100
    assert metrics["seconds"] == pytest.approx(0.05 - 1000, abs=5)


@pytest.mark.slow
def test_a_distilled_run_has_all_its_metrics(tmp_path: Path) -> None:
    """From networks and pictures to a result: the names that reports and searches read are there, and finite."""
    student, guide = build(6, seed=1), teacher(tmp_path)
    fitting = Fit(
        student,
        VIEWS,
        DATA.train.labels,
        loss=functools.partial(kd, alpha=0.5, tau=4.0),
        teacher=guide,
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-3),
        schedule=functools.partial(one_cycle, warmup=0.25),
        epochs=2,
        batch_size=16,
        n_passes=2,
        order_seed=0,
        precision="fp32",
    )
    result = run(
        fitting,
        lambda split: predict(student, getattr(DATA, split).images, 16, "fp32"),
        DATA,
        guide,
        no_log,
        evaluate_test=True,
    )
    scores = {"accuracy", "nll", "ece", "top5", "agreement", "teacher_kl"}
    per_epoch = {"train/loss", "train/accuracy", "lr", "images_per_second", "epoch_seconds"}
    per_epoch |= {"train/teacher_share", "train/gradient_ratio", *(f"val/{name}" for name in scores)}
    summary = {"best/val_accuracy", "best/epoch", "seconds", "teacher_seconds"} | {f"test/{name}" for name in scores}
    assert result.history.keys() == per_epoch
    assert result.metrics.keys() == per_epoch | summary
    assert all(torch.tensor(value).isfinite() for value in result.metrics.values())


def test_a_network_that_diverged_in_its_last_step_is_told() -> None:
    """A step's loss is computed before the step, so only validation shows what the last step broke."""

    def broken(split: str) -> Tensor:
        return torch.full((len(getattr(DATA, split)), 6), torch.nan)

    with pytest.raises(DivergedError, match="after epoch 1 the validation NLL is nan"):
        run(Course([5], [1]), broken, DATA, None, no_log, evaluate_test=True)
