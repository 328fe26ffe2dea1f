"""Whether ranks transfer from short runs to long ones, as a pilot shows it, and what a search of short runs saved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdsweep.analysis.cost import LOW_RANK, duration
from kdsweep.analysis.sorted_runs import finished, is_short_pilot
from kdsweep.analysis.statistics import RankCorrelation, rank_correlation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kdsweep.analysis.sorted_runs import Comparison
    from kdsweep.analysis.study_goals import Fidelity
    from kdsweep.tracking.run_records import RunRecord

FEWEST = 6  # with fewer settings, the interval of a perfect rank correlation reaches below 0


@dataclass(frozen=True)
class Transfer:
    """What a pilot showed.

    Attributes:
        objective: The place of the objective whose ranks transfer least.
        ranks: Its rank correlation; its values are NaN if it is unknown.
    """

    objective: int
    ranks: RankCorrelation

    @property
    def shown(self) -> bool:
        """Whether ranks transfer: the correlation is high, and its interval lies above 0."""
        return self.ranks.n >= FEWEST and self.ranks.rho >= LOW_RANK and self.ranks.low > 0


def transfer(pilot: Sequence[tuple[int, Sequence[float] | None, Sequence[float] | None]]) -> Transfer:
    """Judges a pilot's objectives, short and long; settings with a failed or diverged run don't count."""
    pairs = [
        (short, full)
        for _, short, full in pilot
        if short is not None and full is not None and all(map(math.isfinite, (*short, *full)))
    ]
    if not pairs:
        return Transfer(0, RankCorrelation(math.nan, math.nan, math.nan, 0))
    found = [
        Transfer(place, rank_correlation([short[place] for short, _ in pairs], [full[place] for _, full in pairs]))
        for place in range(len(pairs[0][0]))
    ]
    return min(found, key=lambda known: -math.inf if math.isnan(known.ranks.rho) else known.ranks.rho)


def decision(fidelity: Fidelity, objectives: Sequence[str]) -> str:
    """Returns in words what the pilot showed, and how long the search's trials are therefore."""
    found = transfer(fidelity.pilot)
    ranks, metric = found.ranks, objectives[found.objective]
    lengths = f"{fidelity.key}={fidelity.short:g}", f"{fidelity.key}={fidelity.full:g}"
    trials = f"the search's trials have {fidelity.searched}."
    settings = f"{ranks.n} {'setting' if ranks.n == 1 else 'settings'}"
    if ranks.n < FEWEST:
        return (
            f"Pilot: only {settings} ran to the end at both lengths, and a rank correlation takes at least "
            f"{FEWEST}: {trials}"
        )
    if math.isnan(ranks.rho):
        return f"Pilot: all {settings} have the same {metric} at one of the lengths, so there are no ranks: {trials}"
    told = (
        f"Pilot: over {settings}, {metric} with {lengths[0]} has a rank correlation of {ranks.rho:.2f} "
        f"({ranks.low:.2f} to {ranks.high:.2f}) with that at {lengths[1]}."
    )
    if fidelity.cheap:
        return f"{told} {trials[:1].upper()}{trials[1:]}"
    return f"{told} That doesn't show that ranks transfer: {trials}"


def words(found: Comparison) -> Iterator[str]:
    """Yields the findings about the length of the search's runs."""
    fidelity = found.goals.fidelity
    if fidelity is None:
        return
    yield decision(fidelity, [objective.label for objective in found.goals.objectives])
    if fidelity.cheap:
        yield (
            f"Scores of the search are those of runs with {fidelity.searched}, and fresh seeds have "
            f"{fidelity.key}={fidelity.full:g}: they aren't compared, so nothing is said of a winner's curse."
        )
    saved = _saved(found, fidelity)
    if saved is None:
        return
    done, instead = saved
    yield (
        f"Search and pilot took {duration(done)} of training; a search with {fidelity.key}={fidelity.full:g} would "
        f"have taken {duration(instead)}: {duration(abs(instead - done))} {'saved' if instead >= done else 'more'}."
    )


def _saved(found: Comparison, fidelity: Fidelity) -> tuple[float, float] | None:
    """Returns the seconds that search and pilot took, and those of as many long runs; None if no run tells its time."""
    pilot = [run for run in finished(found.study, "distill") if run.stage == "pilot"]
    trials = [run for trial in found.trials for run in trial.runs]
    long = [run for run in pilot if not is_short_pilot(run)]
    every = {run.id: run for run in (*pilot, *trials)}.values()
    if not long or not trials or any("seconds" not in run.metrics for run in every):
        return None
    # Shares of the pictures have teachers of their own. All other passes are computed for the confirmation anyway.
    own_teacher = fidelity.key == "data.train_fraction"

    def seconds(run: RunRecord) -> float:
        short = is_short_pilot(run) or (run.stage == "search" and fidelity.cheap)
        return run.metrics["seconds"] + (run.metrics.get("teacher_seconds", 0.0) if own_teacher and short else 0.0)

    each = math.fsum(map(seconds, long)) / len(long)
    return math.fsum(map(seconds, every)), each * len(trials)
