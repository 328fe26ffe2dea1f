"""Runs and studies as they are read back from MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

# The tag that says which arm a run belongs to; its name is older than that word. Runs above others, which belong to no
# arm, have "study" or "group" there.
ARM_TAG = "kdsweep.role"

# The arms in the order of the tables. The students are trained in a study, and confirmed with fresh seeds.
ARMS = ("teacher", "scratch", "label_smoothing", "distill")
STUDENTS = ARMS[1:]


@dataclass(frozen=True)
class RunRecord:
    """One run, read back."""

    id: str
    name: str
    status: str  # RUNNING, FINISHED, FAILED, KILLED
    start: datetime  # UTC
    duration_s: float | None  # None while the run goes on
    params: dict[str, str]
    metrics: dict[str, float]  # the last value of each
    tags: dict[str, str]  # without MLflow's own
    parent: str | None = None  # id of the run above it

    @property
    def arm(self) -> str | None:
        """One of `ARMS`, or "study" or "group" for a run above others; None for a run that kdsweep did not make."""
        return self.tags.get(ARM_TAG)

    @property
    def stage(self) -> str | None:
        """single, baseline, search or confirmation."""
        return self.tags.get("kdsweep.stage")

    @property
    def seed(self) -> int | None:
        """The run's seed; None for runs without one (a study)."""
        seed = self.params.get("seed", "None")
        return None if seed == "None" else int(seed)


@dataclass(frozen=True)
class StudyRecord:
    """A parent run and its children, in the order of their start."""

    parent: RunRecord
    children: tuple[RunRecord, ...]

    def runs(
        self, arm: str | None = None, stage: str | None = None, status: str | None = "FINISHED"
    ) -> list[RunRecord]:
        """The children of this arm, stage and status; None takes all of them."""
        return [
            child
            for child in self.children
            if (arm is None or child.arm == arm)
            and (stage is None or child.stage == stage)
            and (status is None or child.status == status)
        ]
