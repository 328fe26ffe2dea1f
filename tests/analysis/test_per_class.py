"""Claims about classes: each arm's accuracy in them, and what distillation changed there beyond noise."""

from __future__ import annotations

import pytest
from records import fresh, record, summary

from kdsweep.analysis.findings import Report
from kdsweep.analysis.statistics import paired_difference


def study(cats: list[int], dogs: list[int], n: int = 3) -> Report:
    """Three arms' runs: of 100 cats, scratch gets 50 right and distill `cats`; of 200 dogs, 100 and `dogs`."""
    runs = [record("teacher"), *fresh("scratch", [0.9] * n), *fresh("distill", [0.9] * n)]
    counts = {0: {"cat": (100, 90), "dog": (200, 10), "yeti": (0, 0)}}
    counts |= {1 + k: {"cat": (100, 50 + k), "dog": (200, 100), "yeti": (0, 0)} for k in range(n)}
    counts |= {1 + n + k: {"cat": (100, cats[k]), "dog": (200, dogs[k]), "yeti": (0, 0)} for k in range(n)}
    return summary(*runs, classes=counts)


def said(report: Report) -> list[str]:
    return [finding for finding in report.findings if finding.startswith("By class")]


def test_each_class_has_its_accuracies_and_its_paired_difference() -> None:
    """Runs are paired by their seeds; a class without test pictures has no row."""
    cat, dog = study([70, 72, 71], [100, 102, 98]).classes
    assert (cat.name, cat.pictures, dog.pictures) == ("cat", 100, 200)
    assert cat.accuracies == pytest.approx({"teacher": 0.9, "scratch": 0.51, "distill": 0.71})
    assert cat.difference == paired_difference([0.7, 0.72, 0.71], [0.5, 0.51, 0.52], resolution=0.01)
    assert cat.pairs == pytest.approx((0.2, 0.21, 0.19))


def test_a_change_beyond_noise_is_named() -> None:
    """It counts after Holm's correction for all classes; the others aren't named."""
    report = study([70, 72, 71], [100, 102, 98])
    assert said(report) == [
        "By class, distill differs from scratch beyond noise in 1 of 2 (adjusted for all of them): +20.0 points for "
        "'cat'."
    ]


def test_without_a_clear_change_the_range_is_told() -> None:
    """Nobody reads a finding into it."""
    report = study([50, 60, 40], [101, 99, 103])
    assert said(report) == [
        "By class, distill - scratch is from -1.0 points for 'cat' to +0.5 points for 'dog', and no class differs "
        "beyond noise."
    ]
    assert "noise" not in said(study([50, 60], [101, 99], n=2))[0]


def test_runs_that_do_not_tell_their_classes_have_none() -> None:
    """Those of older versions."""
    report = summary(*fresh("scratch", [0.5] * 3), *fresh("distill", [0.6] * 3))
    assert (report.classes, said(report)) == ((), [])
