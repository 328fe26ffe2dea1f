"""A confirmation that stops when its answer is clear: looks after each seed, in the order of the seeds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kdsweep.analysis.study_goals import Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kdsweep.analysis.study_goals import Why
    from kdsweep.tracking.run_records import RunRecord
    from kdsweep.tracking.store import Store


class Looks:
    """The looks of one confirmation at its own runs.

    Args:
        store: Where they are recorded.
        parent_id: The id of the study's own run.
        trial: The number of the confirmed trial; None in a contest.
        first: The number of seeds after which it looks for the first time.
        decision: Returns why the confirmation stops after some seeds, or None if it goes on. It gets the study's runs,
            the seeds, and the step of test accuracies.
    """

    def __init__(
        self,
        store: Store,
        parent_id: str,
        trial: int | None,
        first: int,
        decision: Callable[[Sequence[RunRecord], Sequence[int], float], Why | None],
    ) -> None:
        self._store, self._parent_id, self.trial = store, parent_id, trial
        self._first, self._decision = first, decision
        self._looked = 0
        self._resolution: float | None = None
        self.stop: Stop | None = None

    def look(self, seeds: Sequence[int]) -> Stop | None:
        """Decides after each of these seeds that hasn't been looked at, until it stops.

        Args:
            seeds: The seeds whose runs have all ended, without a gap from the first on.
        """
        if self.stop is not None or len(seeds) < self._first or len(seeds) <= self._looked:
            return self.stop
        runs = self._store.children(self._parent_id)
        resolution = self._step([run.id for run in runs if run.stage == "confirmation" and run.status == "FINISHED"])
        for n in range(max(self._first, self._looked + 1), len(seeds) + 1):
            why = self._decision(runs, seeds[:n], resolution)
            self._looked = n
            if why is not None:
                self.stop = Stop(self.trial, n, seeds[n - 1], why)
                break
        return self.stop

    def _step(self, run_ids: Sequence[str]) -> float:
        """Returns the step of test accuracies, 1 / pictures; 0 if no run tells it."""
        if self._resolution is None:
            found = (self._store.text(run_id, "reliability.json") for run_id in run_ids)
            diagram = next((text for text in found if text is not None), None)
            counts = [] if diagram is None else [int(row["count"] or 0) for row in json.loads(diagram)["bins"]]
            self._resolution = 1 / sum(counts) if sum(counts) else 0.0
        return self._resolution
