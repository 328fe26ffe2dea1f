"""Claims about the teacher's pull: its share of the gradient, and how far a setting is another learning rate."""

from __future__ import annotations

from dataclasses import replace

import pytest
from records import compared, fresh, trial

from kdsweep.analysis import teacher_pull
from kdsweep.analysis.sorted_runs import Comparison
from kdsweep.tracking.run_records import RunRecord

Course = tuple[tuple[float, ...], tuple[float, ...]]


def study(*logged: tuple[RunRecord, Course]) -> Comparison:
    """These runs with the shares and ratios that they logged by epoch."""
    found = compared(*(run for run, _ in logged))
    histories = {
        metric: {run.id: list(enumerate(course[place], start=1)) for run, course in logged}
        for place, metric in enumerate((teacher_pull.SHARE, teacher_pull.RATIO))
    }
    return replace(found, readings=replace(found.readings, histories=histories))


@pytest.mark.parametrize(
    ("ratio", "reading"),
    [
        (1.2, "more teacher, and hardly another learning rate."),
        (5.0, "more teacher, and more learning rate too; scratch with a higher optimizer.lr tells them apart."),
        (0.1, "more teacher, and less learning rate too; scratch with a lower optimizer.lr tells them apart."),
    ],
)
def test_more_teacher_is_told_from_more_learning_rate(ratio: float, reading: str) -> None:
    """The first and last epoch are told, as means over the fresh seeds."""
    runs = fresh("distill", [0.9, 0.9])
    found = study(*((run, ((0.6, 0.7, 0.8), (ratio, ratio, 3.0))) for run in runs))
    (words,) = teacher_pull.words(found)
    assert words.startswith(
        "In distill the teacher's part has 60% of the gradient on the logits at the end of the first epoch and 80% at"
    )
    assert f"is {ratio:.2f} times as large as cross-entropy's in the first epoch and 3.00 times in the last" in words
    assert words.endswith(reading)


def test_a_choice_without_a_teacher_is_called_scratch() -> None:
    """A difference of 0 between equal runs is no news, and nothing is more teacher there."""
    found = study(*((run, ((0.0, 0.0), (1.0, 1.0))) for run in fresh("distill", [0.9, 0.9])))
    (words,) = teacher_pull.words(found)
    assert "the chosen setting is cross-entropy alone, which is what scratch is trained with" in words
    assert "more teacher" not in words


def test_settings_out_of_proportion_are_named() -> None:
    """Alpha = 1 with tau = 0.01 takes hardly a step."""
    normal, stuck = trial(0, 0.5, 4, val=0.95), trial(1, 1, 0.01, val=0.1)
    found = study((normal, ((0.5,), (1.0,))), (stuck, ((1.0,), (0.012,))))
    *_, words = teacher_pull.words(found)
    assert words.endswith("far from cross-entropy's: trial 1 (alpha 1, tau 0.01; 0.012 times).")


def test_nothing_is_told_of_runs_that_did_not_log_it() -> None:
    """Those of older versions, and losses that can't be taken apart."""
    assert list(teacher_pull.words(compared(trial(0, 0.5, 4), *fresh("distill", [0.9])))) == []
