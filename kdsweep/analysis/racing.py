"""Which setting of a search is to be run again: of those that could still be the best, one with the fewest runs.

A race of many settings that are each run several times: those that are clearly worse drop out, and what is left goes to
the others (Hoeffding races: Maron and Moore 1994, Advances in Neural Information Processing Systems 6). The bounds here
are Student's, with the noise of all repeated settings together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# A setting drops out if the best one is ahead of it by more than noise explains at this one-sided error.
ERROR = 0.2


def contenders(values: Mapping[int, Sequence[float]], *, maximise: bool = True, error: float = ERROR) -> list[int]:
    """Returns the settings that could still be the best, the best mean first.

    As long as no setting has been run twice, nothing is known of the noise, and each could be.

    Args:
        values: Setting -> the scores of its runs, of which there is at least one.
        maximise: Whether more is better.
        error: The probability with which a setting drops out that is as good as the best, for each look at one.
    """
    sign = 1 if maximise else -1
    means = {setting: sign * math.fsum(scores) / len(scores) for setting, scores in values.items()}
    ranked = sorted(means, key=lambda setting: (-means[setting], setting))
    freedom = sum(len(scores) - 1 for scores in values.values())
    if freedom == 0:
        return ranked
    squares = math.fsum((sign * score - means[own]) ** 2 for own, scores in values.items() for score in scores)
    reach = float(stats.t.ppf(1 - error, freedom)) * math.sqrt(squares / freedom)
    first = ranked[0]

    def within(setting: int) -> bool:
        share = 1 / len(values[setting]) + 1 / len(values[first])
        return means[first] - means[setting] <= reach * math.sqrt(share)

    return [setting for setting in ranked if setting == first or within(setting)]


def next_of(ranked: Sequence[int], runs: Mapping[int, int]) -> int | None:
    """Returns that of the settings which is run next: one with the fewest runs; of these the first. None for none.

    Args:
        ranked: The settings, the most promising first.
        runs: Setting -> the number of its runs, also those that go on or failed.
    """
    return min(ranked, key=lambda setting: runs[setting], default=None)
