"""Compares two runs of one configuration bit for bit: where they deviate, by how much, and whether noise explains it.

Pure functions: they take what two runs left, and return texts and rows. Metrics of the clock are not compared.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdsweep.analysis import metrics
from kdsweep.analysis.sorted_runs import repetitions
from kdsweep.analysis.statistics import noise_floor
from kdsweep.tracking.run_records import RunRecord, StudyRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True)
class Left:
    """What a run left behind.

    Attributes:
        weights: The hash of the trained weights; None if it is unknown.
        metrics: The last value of each metric; empty for a run that hasn't finished.
        history: Metric -> (epoch, value) of each epoch; epochs are counted from 1.
    """

    weights: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compare with."""
        return self.weights is None and not self.metrics and not self.history


@dataclass(frozen=True)
class Row:
    """A metric that deviates.

    Attributes:
        then, now: Its last values. If a run was cut short, the values of the last epoch that both runs have.
        noise: Its standard deviation over seeds; None if it is unknown.
        epoch: The first epoch in which it deviates; None if it deviates in no epoch, or isn't logged in epochs.
    """

    metric: str
    then: float
    now: float
    noise: float | None
    epoch: int | None

    @property
    def difference(self) -> float:
        """The value now minus the value then."""
        return self.now - self.then

    @property
    def in_noise(self) -> float | None:
        """The size of the difference as a multiple of the noise; None if the noise is unknown or zero."""
        return None if not self.noise else abs(self.difference) / self.noise


@dataclass(frozen=True)
class Deviation:
    """The comparison of two runs.

    Attributes:
        rows: The metrics that deviate.
        weights: Whether the weights are the same; None if one of the hashes is unknown.
        metrics, epochs: How many metrics were compared, and in how many epochs.
        only_then, only_now: Metrics that only one run has; they are not compared.
    """

    rows: tuple[Row, ...]
    weights: bool | None
    metrics: int
    epochs: int
    only_then: tuple[str, ...]
    only_now: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether everything that could be compared is the same."""
        return not self.rows and self.weights is not False

    @property
    def nothing(self) -> bool:
        """Whether nothing could be compared."""
        return self.metrics == 0 and self.weights is None


def compare(then: Left, now: Left, noise: Mapping[str, float]) -> Deviation:
    """Compares two runs.

    Args:
        then: What the earlier run left.
        now: What the later run left.
        noise: Metric -> standard deviation over seeds, for the metrics of which it is known.
    """
    before, after = _compared(then), _compared(now)
    common = sorted(before.keys() & after.keys())
    found = [_row(name, then, now, noise.get(name)) for name in common]
    epochs = [epoch for name in common for epoch, _ in _pairs(name, then, now)]
    return Deviation(
        rows=tuple(row for row in found if row is not None),
        weights=None if then.weights is None or now.weights is None else then.weights == now.weights,
        metrics=len(common),
        epochs=len(set(epochs)),
        only_then=tuple(sorted(before.keys() - after.keys())),
        # If the earlier run was cut short, it lacks everything that is logged at the end.
        only_now=tuple(sorted(after.keys() - before.keys())) if then.metrics else (),
    )


def seed_noise(study: StudyRecord, arm: str | None) -> dict[str, float]:
    """Returns metric -> standard deviation over the seeds of an arm's repeated runs.

    If no setting of this arm was repeated, the noise is that of all students.

    Args:
        study: The parent run and its children.
        arm: The arm of the run that is compared.
    """
    same = StudyRecord(study.parent, tuple(run for run in study.children if run.arm == arm))
    floors = {}
    for metric in sorted({metric for run in study.children for metric in run.metrics}):
        groups = repetitions(same, metric) or ([] if arm == "teacher" else repetitions(study, metric))
        floor = noise_floor(groups)
        if floor is not None and not metrics.is_of_the_clock(metric):
            floors[metric] = floor.sd
    return floors


def left_by(run: RunRecord, history: Mapping[str, Sequence[tuple[int, float]]]) -> Left:
    """Returns what a run left in MLflow; without its last values if it was stopped, since they are not final then."""
    ended = run.status == "FINISHED"
    return Left(run.tags.get("kdsweep.weights") if ended else None, dict(run.metrics) if ended else {}, history)


def _compared(run: Left) -> dict[str, None]:
    """Returns the names of a run's metrics without those of the clock; a mapping keeps their order."""
    return {name: None for name in (*run.history, *run.metrics) if not metrics.is_of_the_clock(name)}


def _pairs(name: str, then: Left, now: Left) -> list[tuple[int, tuple[float, float]]]:
    """Returns (epoch, (then, now)) for the epochs that both runs have."""
    before, after = dict(then.history.get(name, ())), dict(now.history.get(name, ()))
    return [(epoch, (before[epoch], after[epoch])) for epoch in sorted(before.keys() & after.keys())]


def _row(name: str, then: Left, now: Left, noise: float | None) -> Row | None:
    """Returns how a metric deviates; None if it doesn't."""
    pairs = _pairs(name, then, now)
    epoch = next((epoch for epoch, values in pairs if not _same(*values)), None)
    if name in then.metrics and name in now.metrics:
        last = then.metrics[name], now.metrics[name]
    elif pairs:
        last = pairs[-1][1]
    else:  # one of the runs ended before this metric was logged
        return None
    return None if epoch is None and _same(*last) else Row(name, *last, noise, epoch)


def _same(first: float, second: float) -> bool:
    if math.isnan(first) or math.isnan(second):
        return math.isnan(first) and math.isnan(second)
    # MLflow stores an infinity as the largest float.
    largest = sys.float_info.max
    return max(-largest, min(largest, first)) == max(-largest, min(largest, second))


# Words


def headline(found: Deviation) -> str:
    """Returns the answer in one line."""
    if found.nothing:
        return "There is nothing to compare with."
    compared = [f"{found.metrics} metrics"] if found.metrics else []
    compared += [f"each of {found.epochs} epochs" if found.epochs > 1 else "one epoch"] if found.epochs else []
    if found.exact:
        weights = ["the weights"] if found.weights else []
        unknown = "" if found.weights else " The weights of the earlier run are not known."
        return f"Bit-for-bit the same: {_listed([*weights, *compared])}.{unknown}"
    if not found.rows:
        return f"Deviates: the weights differ, though {_listed(compared) or 'nothing else is known'} do not."
    epochs = [row.epoch for row in found.rows if row.epoch is not None]
    since = f", from epoch {min(epochs)} on" if epochs else ""
    return f"Deviates: {_largest(found.rows)}{since}."


def table(found: Deviation) -> list[tuple[str, ...]]:
    """Returns a row per metric that deviates: metric, then, now, difference, multiple of the noise, first epoch."""
    rows: list[tuple[str, ...]] = []
    for row in found.rows:
        noise = "-" if row.in_noise is None else f"{row.in_noise:.2g}"
        values = _shown(row.metric, row.then), _shown(row.metric, row.now), _shown(row.metric, row.difference, "+")
        name = f"{row.metric} {metrics.row(row.metric).unit}".rstrip()
        rows.append((name, *values, noise, "-" if row.epoch is None else str(row.epoch)))
    return rows


def _largest(rows: Sequence[Row]) -> str:
    """Returns the deviation to name: the largest of an accuracy, else of another metric in per cent, else of any."""
    deviating = [row for row in rows if not _same(row.then, row.now)]
    if not deviating:
        return f"{', '.join(row.metric for row in rows)} in some epochs, though not in the last"
    accuracies = [row for row in deviating if row.metric.endswith("accuracy") and not row.metric.startswith("train/")]
    fractions = accuracies or [row for row in deviating if metrics.row(row.metric).unit == "%"]
    row = max(fractions or deviating, key=lambda row: abs(row.difference))
    unit = f" {metrics.row(row.metric).difference_unit}".rstrip()
    noise = "" if row.in_noise is None else f", {row.in_noise:.2g} times the noise over seeds"
    others = f" ({len(rows)} metrics deviate)" if len(rows) > 1 else ""
    return f"{row.metric} by {_shown(row.metric, row.difference, '+')}{unit}{noise}{others}"


def _shown(metric: str, value: float, sign: str = "") -> str:
    """Prints a value: fractions in per cent, and small differences with the digits that show them."""
    row = metrics.row(metric)
    scaled = row.scale * value
    plain = row.unit == "%" and (abs(scaled) >= 0.005 or scaled == 0)
    return f"{scaled:{sign}.2f}" if plain else f"{scaled:{sign}.6g}" if sign == "" else f"{scaled:+.3g}"


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts or [""]
    return f"{', '.join(first)} and {last}" if first else last
