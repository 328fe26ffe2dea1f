"""Claims about the metrics of a study's own run: they are the verdict's numbers, and say nothing that isn't known."""

from __future__ import annotations

import pytest
from records import SPACE, fresh, record, summary, trial

from kdsweep.analysis.study_numbers import numbers


def test_they_are_the_numbers_of_the_verdict() -> None:
    """Difference, interval, adjusted p, pairs, the means of the arms, and the chosen setting, which trial 1 has."""
    runs = [trial(0, 0.5, 4, val=0.9), trial(1, 0.25, 8, val=0.8)]
    runs += fresh("scratch", [0.90, 0.91, 0.92, 0.90]) + fresh("label_smoothing", [0.90, 0.92, 0.92, 0.91])
    runs += fresh("distill", [0.93, 0.945, 0.95, 0.93], trial=1, **{"loss.alpha": 0.25, "loss.tau": 8})
    report = summary(*runs, chosen=1, space=SPACE)
    found = numbers(report)
    paired = report.verdict.of("distill", "scratch")
    assert paired is not None
    assert found["study/distill-scratch/difference"] == pytest.approx(0.03125)
    assert (found["study/distill-scratch/low"], found["study/distill-scratch/high"]) == (
        paired.difference.low,
        paired.difference.high,
    )
    assert found["study/distill-scratch/adjusted_p"] == paired.adjusted_p < 0.05
    assert {found[f"study/{pair}/seeds"] for pair in ("distill-scratch", "distill-label_smoothing")} == {4}
    assert found["study/scratch/test_accuracy"] == pytest.approx(0.9075)
    assert found["study/distill/val_accuracy"] == pytest.approx(0.9)
    assert (found["study/alpha"], found["study/tau"], found["study/trials"]) == (0.25, 8, 2)


def test_what_isnt_known_isnt_there() -> None:
    """One pair has no interval and no p value; a word is no number; without runs nothing but their number is left."""
    one = numbers(summary(*fresh("scratch", [0.9]), *fresh("distill", [0.8], trial=0), trial(0, 0.5, 4), chosen=0))
    assert one["study/distill-scratch/difference"] == pytest.approx(-0.1)
    assert not {"study/distill-scratch/low", "study/distill-scratch/adjusted_p"} & one.keys()
    space = {"optimizer": {"choices": ["sgd", "adamw"]}}
    word = record("distill", params={"optimizer": "sgd"}, tags={"kdsweep.trial": "0"})
    assert "study/optimizer" not in numbers(summary(word, space=space))
    assert numbers(summary()) == {"study/trials": 0}
