"""What a study cost, and how much pruning saved."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdsweep.analysis import statistics
from kdsweep.analysis.sorted_runs import Comparison, Spread, spread
from kdsweep.tracking.run_records import ARMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kdsweep.analysis.statistics import RankCorrelation

# Below this rank correlation, the score at the pruning epoch tells too little about the final one.
LOW_RANK = 0.7
FEWEST_FULL = 5  # with fewer full runs, a rank correlation says nothing


@dataclass(frozen=True)
class Savings:
    """What pruning saved.

    Attributes:
        pruned, full: The number of trials that were stopped, and of trials that went to their end.
        epochs_saved, epochs_all: Epochs that were not trained, and epochs that all these trials would have taken.
        seconds_saved: An estimate from the full runs' seconds per epoch; None if they logged none.
        ranks: Epoch at which trials were stopped -> Spearman's correlation of the score there with the final one, over
            the full runs that have both.
    """

    pruned: int
    full: int
    epochs_saved: int
    epochs_all: int
    seconds_saved: float | None
    ranks: dict[int, RankCorrelation]


@dataclass(frozen=True)
class Cost:
    """What a study cost.

    Attributes:
        seconds: Arm -> seconds of a run, without the teacher's passes.
        teacher_seconds: What all runs together spent on the teacher's passes.
        total_seconds: The sum over all runs that ended, whichever way, even if they ran at the same time.
        savings: What pruning saved; None if nothing was pruned.
    """

    seconds: dict[str, Spread] = field(default_factory=dict)
    teacher_seconds: float = 0.0
    total_seconds: float = 0.0
    savings: Savings | None = None


def account(found: Comparison) -> Cost:
    """Adds up what the runs of a study took."""
    seconds = {arm: spread(found.seconds(arm)) for arm in ARMS}
    children = found.study.children
    return Cost(
        {arm: cost for arm, cost in seconds.items() if cost is not None},
        math.fsum(run.metrics.get("teacher_seconds", 0) for run in children),
        math.fsum(run.duration_s or 0 for run in children),
        _savings(found) if found.pruned else None,
    )


def _savings(found: Comparison) -> Savings:
    metric = found.goals.objective.metric
    full = [run for trial in found.trials for run in trial.runs]
    histories = {run.id: dict(found.readings.history(metric, run)) for run in full}
    last = {id_: history[max(history)] for id_, history in histories.items() if history}
    ranks = {}
    for epoch in sorted({trial.epoch for trial in found.pruned}):
        both = [(histories[id_][epoch], final) for id_, final in last.items() if epoch in histories[id_]]
        if len(both) >= FEWEST_FULL:
            ranks[epoch] = statistics.rank_correlation([early for early, _ in both], [final for _, final in both])
    saved = sum(trial.epochs - trial.epoch for trial in found.pruned)
    epochs = sum(int(run.params.get("epochs", "0")) for run in full)
    trained = [(run.metrics["seconds"], int(run.params["epochs"])) for run in full if _timed(run.metrics, run.params)]
    per_epoch = math.fsum(s for s, _ in trained) / sum(e for _, e in trained) if trained else None
    return Savings(
        pruned=len(found.pruned),
        full=len(full),
        epochs_saved=saved,
        epochs_all=epochs + sum(trial.epochs for trial in found.pruned),
        seconds_saved=None if per_epoch is None else saved * per_epoch,
        ranks=ranks,
    )


def _timed(metrics: dict[str, float], params: dict[str, str]) -> bool:
    return "seconds" in metrics and int(params.get("epochs", "0")) > 0


def words(cost: Cost) -> Iterator[str]:
    """Yields the findings about cost, each of one or two sentences."""
    if cost.savings is not None:
        yield _savings_words(cost.savings)
        yield _rank_words(cost.savings)
    distill, scratch = cost.seconds.get("distill"), cost.seconds.get("scratch")
    if distill is not None and scratch is not None and scratch.mean > 0:
        yield (
            f"A distilled run takes {duration(distill.mean)}, {distill.mean / scratch.mean:.2f} times a scratch run "
            f"({duration(scratch.mean)}); the teacher's passes took {duration(cost.teacher_seconds)} once for all "
            f"runs, and all runs together {duration(cost.total_seconds)}."
        )


def _savings_words(savings: Savings) -> str:
    share = savings.epochs_saved / savings.epochs_all if savings.epochs_all else 0
    time = "" if savings.seconds_saved is None else f", about {duration(savings.seconds_saved)}"
    trials = savings.pruned + savings.full
    return (
        f"Pruning stopped {savings.pruned} of {trials} trials and saved {savings.epochs_saved:,} of "
        f"{savings.epochs_all:,} epochs ({share:.0%}{time})."
    )


def _rank_words(savings: Savings) -> str:
    known = {epoch: rank for epoch, rank in savings.ranks.items() if not math.isnan(rank.rho)}
    if not known:
        return (
            f"Whether the scores at which trials were stopped foretell the final ones is unknown: that takes at least "
            f"{FEWEST_FULL} full runs, and there are {savings.full}. Pruned settings may have been good ones."
        )
    epoch, worst = min(known.items(), key=lambda item: item[1].rho)
    told = (
        f"Over {worst.n} full runs the score after epoch {epoch} has a rank correlation of {worst.rho:.2f} "
        f"({worst.low:.2f} to {worst.high:.2f}) with the final one"
    )
    if worst.rho < LOW_RANK:
        return f"{told}: too low to stop trials there. Good settings may have been pruned; prune later or not at all."
    return f"{told}, the lowest of the epochs at which trials were stopped."


def duration(seconds: float) -> str:
    """Prints seconds as hours and minutes, as minutes and seconds, or as seconds."""
    if 0 < seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
