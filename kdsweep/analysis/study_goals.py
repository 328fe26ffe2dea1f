"""What a study set out to do, read from the tags of its parent run: what it searches, for which objective, how long."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_OBJECTIVE = "val/accuracy"

# Fractions, which are shown as per cent and whose differences are points. Other metrics are shown as they are.
FRACTIONS = ("accuracy", "agreement", "ece", "top5")


@dataclass(frozen=True)
class Objective:
    """A metric that the search optimises, and which way."""

    metric: str
    maximise: bool = True

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is: values times the sign are to be maximised."""
        return 1 if self.maximise else -1

    @property
    def scale(self) -> int:
        """What values are multiplied by to be shown: 100 for fractions."""
        return 100 if self.metric.endswith(FRACTIONS) else 1

    @property
    def name(self) -> str:
        """The metric in words, with its unit: "validation accuracy %"."""
        split, _, metric = self.metric.rpartition("/")
        words = {"accuracy": "accuracy", "val_accuracy": "validation accuracy", "nll": "NLL", "ece": "ECE"}
        where = {"val": "validation ", "best": "best ", "": ""}.get(split, f"{split} ")
        return where + words.get(metric, metric.replace("_", " ")) + (" %" if self.scale == 100 else "")

    def shown(self, value: float) -> str:
        """A value as it is printed, without its unit."""
        return f"{self.scale * value:.2f}" if self.scale == 100 else f"{value:.4g}"


@dataclass(frozen=True)
class Dimension:
    """A key that the search varies: from `low` to `high`, or one of `choices`."""

    key: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Aims:
    """What a study set out to do.

    Attributes:
        space: What is searched; empty where the parent run doesn't say (a plain grid, a study of an older version).
        objectives: One, or several for a multi-objective study.
        chosen: Number of the trial that was confirmed, or None.
        n_trials, baseline_seeds, confirm_seeds: The budget; None where the parent run doesn't say.
    """

    space: tuple[Dimension, ...] = ()
    objectives: tuple[Objective, ...] = (Objective(DEFAULT_OBJECTIVE),)
    chosen: int | None = None
    n_trials: int | None = None
    baseline_seeds: int | None = None
    confirm_seeds: int | None = None

    @classmethod
    def read(cls, tags: Mapping[str, str]) -> Aims:
        """From the tags kdsweep.space, .objectives, .chosen and .planned; what isn't there keeps its default."""
        space = json.loads(tags.get("kdsweep.space", "{}"))
        objectives = json.loads(tags.get("kdsweep.objectives", "[]"))
        chosen = tags.get("kdsweep.chosen", "")
        planned = json.loads(tags.get("kdsweep.planned", "{}"))
        return cls(
            space=tuple(_dimension(key, limits) for key, limits in space.items()),
            objectives=tuple(Objective(metric, way == "maximize") for metric, way in objectives) or cls.objectives,
            chosen=int(chosen) if chosen.isdecimal() else None,
            **{name: planned.get(name) for name in ("n_trials", "baseline_seeds", "confirm_seeds")},
        )

    @property
    def objective(self) -> Objective:
        """The first objective, by which trials are ranked."""
        return self.objectives[0]


def short_key(key: str) -> str:
    """A searched key as it is printed: alpha for loss.alpha, any other in full."""
    return key.removeprefix("loss.") if key in ("loss.alpha", "loss.tau") else key


def short_value(value: str) -> str:
    """A searched value as it is printed: a number with three significant digits, anything else as it is."""
    try:
        return f"{float(value):.3g}"
    except ValueError:
        return value


def setting(params: Mapping[str, str]) -> str:
    """Searched parameters as they are printed: "alpha 0.625, tau 4"."""
    return ", ".join(f"{short_key(key)} {short_value(value)}" for key, value in params.items())


def _dimension(key: str, limits: Mapping[str, object]) -> Dimension:
    if "choices" in limits:
        choices = limits["choices"]
        assert isinstance(choices, list)
        return Dimension(key, choices=tuple(map(str, choices)))
    low, high = float(str(limits["low"])), float(str(limits["high"]))
    return Dimension(key, low, high, bool(limits["log"]))
