"""Runs and studies as they are read back from MLflow."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kdsweep.system.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The tag that holds the id of the run above a run.
PARENT = "mlflow.parentRunId"

# The tag that says which arm a run belongs to; its name is older than that word. Runs above others, which belong to no
# arm, have "study" or "group" there.
ARM_TAG = "kdsweep.role"

# The tag that says which process a run goes on in.
PROCESS = "kdsweep.process"

# As many letters of an id are shown.
SHORT_ID = 8

# The tag of a run that was recorded again by what Optuna knows of its trial, because the first one was gone.
RESTORED = "kdsweep.restored"

# The arms in the order of the tables. A study trains the students, and confirms them with fresh seeds.
ARMS = ("teacher", "scratch", "label_smoothing", "shuffled", "distill")
STUDENTS = ARMS[1:]
# An arm whose noise is its own: a student that learns against wrong answers differs far more from seed to seed.
NOISY = "shuffled"


@dataclass(frozen=True)
class RunRecord:
    """One run, read back."""

    id: str
    name: str
    status: str  # RUNNING, FINISHED, FAILED, KILLED
    start: datetime  # UTC
    duration_s: float | None  # None while the run goes on
    params: dict[str, str]  # numbers as `parameter_text` writes them
    metrics: dict[str, float]  # name -> its last value
    tags: dict[str, str]  # without MLflow's own
    parent: str | None = None  # id of the run above it
    splits: Mapping[str, int] = field(default_factory=dict)  # "training", "validation", "test" -> pictures

    @property
    def short_id(self) -> str:
        """The first letters of the id, by which commands take a run."""
        return self.id[:SHORT_ID]

    @property
    def end(self) -> int | None:
        """When the run ended, in ms since 1970; None while it goes on."""
        seconds = self.start.timestamp() + (self.duration_s or 0)
        return None if self.duration_s is None else round(1000 * seconds)

    @property
    def arm(self) -> str | None:
        """One of `ARMS`, or "study" or "group" for a run above others; None if kdsweep didn't make the run."""
        return self.tags.get(ARM_TAG)

    @property
    def stage(self) -> str | None:
        """The stage of the study: baseline, search or confirmation; or single, for a run without a study."""
        return self.tags.get("kdsweep.stage")

    def setting(self, key: str) -> str:
        """Returns the value of a searched key as text: the option of a group, or what the run's parameters hold.

        A mapping is put together from the parameters below its key; "-" stands for a key that the run doesn't have.
        """
        option = json.loads(self.tags.get("kdsweep.options", "{}")).get(key)
        if option is not None:
            return str(option)
        inner = f"{key}."
        below = {name.removeprefix(inner): held for name, held in self.params.items() if name.startswith(inner)}
        # Runs of older versions don't say which option was chosen, but what it builds.
        whole = "{" + ", ".join(f"{name}: {held}" for name, held in sorted(below.items())) + "}" if below else "-"
        return self.params.get(key, below.get("_target_", whole))

    @property
    def seed(self) -> int | None:
        """The run's seed; None for a run without one (a study)."""
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
        """Returns the children of this arm, stage and status; None stands for any."""
        return [
            child
            for child in self.children
            if (arm is None or child.arm == arm)
            and (stage is None or child.stage == stage)
            and (status is None or child.status == status)
        ]


def parameter_text(value: object) -> str:
    """Returns a parameter's value as it is written: a whole number without a decimal point, in a list too.

    4.0 and 4 are one value, and would otherwise be two in MLflow, because `loss.tau=4` is a whole number for Hydra and
    the default isn't. Of a text it makes the same, so runs that were recorded before this rule are read by it as well.
    """
    text = str(value)
    return re.sub(r"(?<![\w.+-])(-?\d+)\.0(?=[,\]]|$)", r"\1", text) if re.match(r"[-\d\[]", text) else text


def require_one(letters: str, runs: Sequence[RunRecord]) -> None:
    """Raises `UserError` if the ids of several runs begin with these letters; the message names them."""
    if len(runs) > 1:
        named = ", ".join(f"{run.short_id} ({run.name})" for run in runs)
        raise UserError(f"`one id begins with {letters}` must hold, but several do: {named}. Give more letters.")


def read_back(run: Any) -> RunRecord:
    """Returns the record of a run of MLflow's."""
    info, data = run.info, run.data
    return RunRecord(
        id=info.run_id,
        name=info.run_name,
        status=info.status,
        start=datetime.fromtimestamp(info.start_time / 1000, UTC),
        duration_s=None if info.end_time is None else (info.end_time - info.start_time) / 1000,
        params={key: parameter_text(value) for key, value in data.params.items()},
        metrics=dict(data.metrics),
        tags={key: value for key, value in data.tags.items() if not key.startswith("mlflow.")},
        parent=data.tags.get(PARENT),
        splits=_splits(run),
    )


def _splits(run: Any) -> dict[str, int]:
    """Returns the number of pictures in each split that a run read, from the data sets that are its inputs."""
    found = {}
    for read in run.inputs.dataset_inputs if run.inputs else ():
        context = next((tag.value for tag in read.tags if tag.key == "mlflow.data.context"), None)
        pictures = json.loads(read.dataset.profile or "{}").get("pictures")
        if context is not None and isinstance(pictures, int):
            found[context] = pictures
    return found
