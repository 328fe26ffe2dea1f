"""The numbers of a study that its own MLflow run has as metrics, so that studies can be sorted and compared there."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from kdsweep.analysis.study_goals import short_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kdsweep.analysis.findings import Report

# The names of these metrics start with this.
STUDY = "study/"


def numbers(report: Report) -> dict[str, float]:
    """Returns what is known of these; accuracies and their differences are fractions.

    - study/<arm>/test_accuracy and val_accuracy: the mean over the arm's runs.
    - study/<arm>-<arm>/difference, low, high, adjusted_p and seeds: the verdict on the test split, with the limits of
      the 95 % interval and the number of pairs.
    - study/alpha, study/tau and any other searched number: the chosen setting.
    - study/trials: the number of settings that were tried to their end.
    """
    # MLflow's names of metrics have no commas, which the conditions of a contest may have.
    named = ((re.sub(r"[^\w./ -]+", "_", name), value) for name, value in _named(report))
    return {f"{STUDY}{name}": value for name, value in named if math.isfinite(value)}


def _named(report: Report) -> Iterator[tuple[str, float]]:
    for arm in report.arms:
        for split in ("val", "test"):
            if found := arm.metrics.get(f"{split}/accuracy"):
                yield f"{arm.name}/{split}_accuracy", found.mean
    for paired in report.verdict.comparisons:
        name, difference = f"{paired.first}-{paired.second}", paired.difference
        yield f"{name}/difference", difference.mean
        yield f"{name}/low", difference.low
        yield f"{name}/high", difference.high
        yield f"{name}/adjusted_p", paired.adjusted_p
        yield f"{name}/seeds", difference.n
    chosen = report.comparison.chosen
    for key, value in ({} if chosen is None else chosen.params).items():
        try:
            yield short_key(key), float(value)
        except ValueError:  # a word, such as the name of an optimizer
            continue
    yield "trials", len(report.trials)
