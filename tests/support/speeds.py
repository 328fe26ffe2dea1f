"""A made-up machine and a made-up study, for the tests of forecasts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kdsweep.study.measure_speed import Speed

# A study as it is planned by default.
PLANNED = {"teacher": 1, "scratch": 3, "label_smoothing": 3, "trials": 30, "confirmation": 15}


def speed(**changes: Any) -> Speed:
    """One core; 10 epochs of 1,000 pictures in 10 steps of 1 s; quick validation; nothing of the teacher's done."""
    plain = Speed(
        step_seconds=1.0,
        evaluation_rate=1e9,
        teacher_rate=10.0,
        batch_size=100,
        epochs=10,
        n_passes=10,
        train_fraction=1.0,
        n_train=1000,
        n_validation=200,
        n_test=300,
        online=False,
        passes_missing=tuple(range(10)),
        features_missing=1500,
        threads=1,
        cores=1,
        gpus=0,
    )
    return replace(plain, **changes)


def without_teacher(**changes: Any) -> Speed:
    """The same speed with nothing left for the teacher to do."""
    return speed(passes_missing=(), features_missing=0, **changes)
