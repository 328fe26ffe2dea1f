"""What a contest set out to do: its contenders, its conditions, and the names of its jobs.

A contest is a study whose arms are contenders, such as losses, each under every condition, such as a share of the data.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdsweep.tracking.run_records import parameter_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# A contest's jobs: "kd--trial-0003", "confirm-kd--trial-0003-1000", "confirm-scratch--fixed--at-0.1-1000".
JOB = re.compile(
    r"(?P<fresh>confirm-)?(?P<contender>\w+)--(?:trial-(?P<trial>\d+)|fixed)"
    r"(?:--at-(?P<condition>[\w.+]+))?(?:-(?P<seed>\d+))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Condition:
    """One cell of the grid under which every contender is run: the keys and their values. Without a grid it is empty.

    Attributes:
        values: Key -> value as text, such as data.train_fraction -> "0.1".
    """

    values: Mapping[str, str]

    @property
    def label(self) -> str:
        """The condition as it is printed: "0.1", or "resnet18, 0.1"; empty without a grid."""
        return ", ".join(self.values.values())

    @property
    def slug(self) -> str:
        """The condition as a part of a job's name."""
        return re.sub(r"[^\w.+]+", "_", "_".join(self.values.values()), flags=re.ASCII)


@dataclass(frozen=True)
class Plan:
    """The contenders and conditions of a contest, as the tag kdsweep.contest has them.

    Attributes:
        contenders: Name -> its lines, as on the command line.
        against: The contenders with which each other one is compared.
        grid: Key -> the values that it takes.
        space: Contender -> the keys that its trials vary; those without a search are not in it.
        chosen: Contender -> the number of the trial that was chosen; those without a search are not in it.
        confirm_seeds: The number of fresh seeds of each contender under each condition.
    """

    contenders: Mapping[str, Sequence[str]]
    against: Sequence[str]
    grid: Mapping[str, Sequence[str]]
    space: Mapping[str, Sequence[str]]
    chosen: Mapping[str, int]
    confirm_seeds: int

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """All combinations of the grid's values, in its order."""
        combined = itertools.product(*self.grid.values())
        return tuple(Condition(dict(zip(self.grid, values, strict=True))) for values in combined)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The comparisons under each condition, first against second; no two contenders meet twice."""
        found: dict[frozenset[str], tuple[str, str]] = {}
        for second in self.against:
            for first in self.contenders:
                if first != second:
                    found.setdefault(frozenset((first, second)), (first, second))
        return tuple(found.values())

    def searched(self, contender: str) -> Sequence[str]:
        """Returns the keys that a contender's trials vary."""
        return self.space.get(contender, ())

    def cell(self, contender: str, condition: Condition) -> str:
        """Returns the name of a contender's arm under a condition: "kd", "distill at 0.1"."""
        return f"{contender} at {condition.label}" if condition.values else contender

    def text(self) -> str:
        """Returns the plan as the tag's text."""
        return json.dumps(vars(self))

    @classmethod
    def read(cls, tags: Mapping[str, str]) -> Plan | None:
        """Reads the tag kdsweep.contest of a study's own run; None if the study is no contest."""
        text = tags.get("kdsweep.contest")
        return None if text is None else cls(**json.loads(text))


def texts(grid: Mapping[str, Sequence[object]]) -> dict[str, list[str]]:
    """Returns a grid with its values as runs record them."""
    return {key: [parameter_text(value) for value in values] for key, values in grid.items()}


def trial_job(contender: str, number: int) -> str:
    """Returns the name of the job of a contender's trial."""
    return f"{contender}--trial-{number:04d}"


def fresh_job(contender: str, trial: int | None, condition: Condition, seed: int) -> str:
    """Returns the name of the job of a fresh seed; `trial` is the chosen one of a contender with a search."""
    setting = "fixed" if trial is None else f"trial-{trial:04d}"
    place = f"--at-{condition.slug}" if condition.values else ""
    return f"confirm-{contender}--{setting}{place}-{seed}"


def search_name(study: str, contender: str | None) -> str:
    """Returns the name of a contender's search in Optuna's storage; the study's own if there is no contender."""
    return study if contender is None else f"{study}/{contender}"


def tags_of(job: str | None) -> dict[str, str]:
    """Returns what the name of a contest's job says, for the tags of its run; empty for any other job."""
    found = JOB.fullmatch(job or "")
    return {} if found is None else {k: found[k] for k in ("contender", "condition") if found[k] is not None}


def in_words(job: str) -> str | None:
    """Returns what a contest's job does, as people read it: "confirmation of kd, trial 3, seed 1000"; else None."""
    found = JOB.fullmatch(job)
    if found is None:
        return None
    parts = [found["contender"].replace("_", " ")]
    parts += [f"trial {int(found['trial'])}"] if found["trial"] else []
    parts += [f"at {found['condition']}"] if found["condition"] else []
    parts += [f"seed {found['seed']}"] if found["seed"] else []
    return f"{'confirmation of ' if found['fresh'] else ''}{', '.join(parts)}"
