"""How long a study's runs take at a given speed: arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kdsweep.study.measure_speed import Speed

# The parts of a study that are no control.
TEACHER, TRIALS, CONFIRMATION = "teacher", "trials", "confirmation"

# What a run takes besides training and evaluation: building a network, opening and closing its record.
RUN_SECONDS = 2.0


@dataclass(frozen=True)
class Estimate:
    """What runs take.

    Attributes:
        seconds: From the first to the end of the last, `teacher_seconds` included.
        teacher_seconds: For the teacher's features and passes.
        passes: How many passes that is.
    """

    seconds: float
    teacher_seconds: float
    passes: int


def estimate(speed: Speed, runs: Mapping[str, int], n_jobs: int, elsewhere: bool = False) -> Estimate:
    """What `runs` take.

    Stages follow each other, and in each the runs share n_jobs places, of which no more count than there are cores or
    GPUs for. The teacher's passes are computed one after another: whoever needs one that is in the making waits.

    Args:
        runs: Of each part of a study: "teacher", "trials", "confirmation", and controls by their names.
        n_jobs: Runs at a time.
        elsewhere: They may be made on other machines, whose cores and GPUs aren't known.
    """
    jobs = n_jobs if elsewhere else min(n_jobs, max(1, speed.gpus or speed.cores // speed.threads))
    names = controls(runs)
    arms = 1 + len(names)
    seeds = bool(runs.get(TRIALS)) + math.ceil(runs.get(CONFIRMATION, 0) / arms)
    # Each seed has passes of its own in each epoch, until all are there.
    passes = min(len(speed.passes_missing), seeds * speed.epochs)
    teacher_seconds = 0.0
    if speed.teacher_rate is not None and asks_teacher(runs):
        teacher_seconds = (passes * speed.n_train + speed.features_missing) / speed.teacher_rate
    distilled, plain = _run_seconds(speed, distilled=True), _run_seconds(speed, distilled=False)
    confirmed = (distilled + len(names) * plain) / arms + speed.n_test / speed.evaluation_rate
    stages = (
        (sum(runs[name] for name in names), plain),
        (runs.get(TRIALS, 0), distilled),
        (runs.get(CONFIRMATION, 0), confirmed),
    )
    seconds = sum(math.ceil(count / jobs) * each for count, each in stages)
    return Estimate(seconds + teacher_seconds + runs.get(TEACHER, 0) * RUN_SECONDS, teacher_seconds, passes)


def controls(runs: Mapping[str, int]) -> list[str]:
    """The parts of a study that are controls: baselines other than the teacher."""
    return [name for name in runs if name not in (TEACHER, TRIALS, CONFIRMATION)]


def asks_teacher(runs: Mapping[str, int]) -> bool:
    """Whether any of the runs needs the teacher."""
    return any(runs.get(part) for part in (TEACHER, TRIALS, CONFIRMATION))


def _run_seconds(speed: Speed, distilled: bool) -> float:
    """One student: training, and validation after each epoch."""
    step = speed.step_seconds
    if distilled and speed.online and speed.teacher_rate is not None:
        step += speed.batch_size / speed.teacher_rate
    steps = speed.n_train // speed.batch_size
    return speed.epochs * (steps * step + speed.n_validation / speed.evaluation_rate) + RUN_SECONDS
