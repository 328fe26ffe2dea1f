"""Claims about the cost of a study: it is the sum over its runs, and doubts about pruning are reported."""

from __future__ import annotations

import pytest
from records import compared, fresh, pruned, record, trial

from kdsweep.analysis.cost import account, duration, words
from kdsweep.analysis.sorted_runs import Comparison

RISING = [[0.1 * (k + 1), 0.2 + 0.1 * k] for k in range(6)]  # scores after epochs 1 and 2


def search(curves: list[list[float]]) -> Comparison:
    """Full trials of two epochs with these curves, and one that was stopped after the first of ten epochs."""
    runs = [trial(k, 0.5, 4 + k, epochs=2) for k in range(len(curves))]
    return compared(*runs, pruned(9, epoch=1), curves=dict(enumerate(curves)))


def test_savings_are_counted_in_epochs() -> None:
    """Of 22 epochs in all, nine were not trained."""
    savings = account(search(RISING)).savings
    assert savings is not None
    assert (savings.pruned, savings.full, savings.epochs_saved, savings.epochs_all) == (1, 6, 9, 22)


def test_a_score_that_foretells_is_told_so() -> None:
    """The scores after epoch 1 rank the full runs as their final scores do."""
    cost = account(search(RISING))
    assert cost.savings is not None
    assert cost.savings.ranks[1].rho == pytest.approx(1)
    assert "has a rank correlation of 1.00" in " ".join(words(cost))


def test_a_score_that_misleads_is_warned_of() -> None:
    """If the order after the first epoch is reversed in the end, pruning there can't be trusted."""
    told = " ".join(words(account(search([[a, -b] for a, b in RISING]))))
    assert "rank correlation of -1.00" in told
    assert "too low to stop trials there" in told


def test_few_full_runs_tell_nothing_about_pruning() -> None:
    """With four full runs the correlation is unknown, and the reader is warned."""
    told = " ".join(words(account(search(RISING[:4]))))
    assert "is unknown: that takes at least 5 full runs, and there are 4" in told


def test_without_pruning_nothing_is_saved() -> None:
    """There is no sentence about it either."""
    cost = account(compared(trial(0, 0.5, 4)))
    assert cost.savings is None
    assert "Pruning" not in " ".join(words(cost))


def test_costs_stand_beside_each_other() -> None:
    """Confirmation runs count; the teacher's passes are summed over all runs, failed ones too."""
    runs = [
        record("scratch", metrics={"seconds": 10}),
        record("distill", metrics={"seconds": 12, "teacher_seconds": 30}, params={"loss.alpha": 1}),
        record("distill", status="FAILED", metrics={"teacher_seconds": 5}),
        *fresh("scratch", [0.9]),
    ]
    cost = account(compared(*runs))
    assert (cost.teacher_seconds, cost.total_seconds, cost.seconds["scratch"].n) == (35, 40, 2)
    (told,) = words(cost)
    assert "A distilled run takes 12 s, 1.20 times a scratch run (10 s)" in told


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (1.25, "1.2 s"), (59.6, "1 min 0 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    """Seconds are rounded first, so that no minute has 60 of them."""
    assert duration(seconds) == text
