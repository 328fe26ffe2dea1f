"""How hard the teacher pulls: its share of the gradient, and whether a setting works as another learning rate would.

`kdsweep.gradients` has the formulas of the two metrics that the runs log.
"""

from __future__ import annotations

import statistics as plain
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdsweep.analysis.study_goals import setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kdsweep.analysis.sorted_runs import Comparison, Trial
    from kdsweep.tracking.run_records import RunRecord

SHARE, RATIO = "train/teacher_share", "train/gradient_ratio"

# A gradient that is this many times as large or as small as cross-entropy's makes a setting another learning rate too.
LIKE_A_RATE = 2.0
# With one that is this many times as large or as small, next to nothing else is left of a setting.
EXTREME = 20.0
MOST_NAMED = 3  # trials in a sentence


@dataclass(frozen=True)
class Pull:
    """What the teacher's part of the loss did to the gradient on the logits, as a mean over the runs of one setting.

    Attributes:
        first_share, last_share: The teacher's share of it in the first and in the last epoch, in [0, 1].
        first_ratio, last_ratio: Its size against that of cross-entropy's gradient, in these epochs.
    """

    first_share: float
    last_share: float
    first_ratio: float
    last_ratio: float


def of_runs(found: Comparison, runs: Sequence[RunRecord]) -> Pull | None:
    """Returns the pull in these runs; None if none of them has logged it."""
    ends = []
    for metric in (SHARE, RATIO):
        curves = [curve for run in runs if (curve := found.readings.history(metric, run))]
        if not curves:
            return None
        ends.append([plain.fmean(curve[place][1] for curve in curves) for place in (0, -1)])
    return Pull(*ends[0], *ends[1])


def words(found: Comparison) -> Iterator[str]:
    """Yields what the chosen setting did to the gradient, and which trials did something extreme to it."""
    arm = found.arm("distill")
    pull = None if arm is None else of_runs(found, arm.runs)
    if pull is not None and pull.first_share == pull.last_share == 0:
        yield (
            "In distill the teacher's part has nothing of the gradient: the chosen setting is cross-entropy alone, "
            "which is what scratch is trained with. No difference from scratch is due to the teacher."
        )
    elif pull is not None:
        yield (
            f"In distill the teacher's part has {pull.first_share:.0%} of the gradient on the logits at the end of the "
            f"first epoch and {pull.last_share:.0%} at the end of the last. The whole is {_times(pull.first_ratio)} "
            f"as large as cross-entropy's in the first epoch and {_times(pull.last_ratio)} in the last: "
            f"{_reading(pull.first_ratio)}."
        )
    extreme = [(trial, own.first_ratio) for trial in found.trials if (own := of_runs(found, trial.runs)) is not None]
    extreme = [(trial, ratio) for trial, ratio in extreme if not 1 / EXTREME <= ratio <= EXTREME]
    if extreme:
        named = ", ".join(_told(*one) for one in extreme[:MOST_NAMED])
        more = f" and {len(extreme) - MOST_NAMED} more" if len(extreme) > MOST_NAMED else ""
        yield (
            "The gradient's size alone can make a setting learn badly, where it is far from cross-entropy's: "
            f"{named}{more}."
        )


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times" if 0.1 <= ratio < 10 else f"{ratio:.2g} times"


def _reading(ratio: float) -> str:
    if ratio > LIKE_A_RATE:
        return "more teacher, and more learning rate too; scratch with a higher optimizer.lr tells them apart"
    if ratio < 1 / LIKE_A_RATE:
        return "more teacher, and less learning rate too; scratch with a lower optimizer.lr tells them apart"
    return "more teacher, and hardly another learning rate"


def _told(trial: Trial, ratio: float) -> str:
    return f"trial {trial.number} ({setting(trial.params)}; {ratio:.2g} times)"
