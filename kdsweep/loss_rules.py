"""Rules for the settings of the losses. They need no torch, so a wrong alpha is refused before torch is imported.

A rule has the name of its loss in `losses.py`, and takes the loss's settings. A loss needs none: its settings are then
tried by calling it once before a run starts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsweep.system.errors import require, require_number

if TYPE_CHECKING:
    from collections.abc import Callable


def kd(*, alpha: float, tau: float) -> None:
    """Refuses alpha outside of [0, 1], and tau unless it is finite and > 0."""
    require_number(alpha, "0 <= alpha <= 1", "alpha")
    require_number(tau, "0 < tau < inf", "tau")
    require(0 <= alpha <= 1, "0 <= alpha <= 1", alpha, "alpha")
    require(0 < tau < math.inf, "0 < tau < inf", tau, "tau")


def label_smoothing(*, smoothing: float) -> None:
    """Refuses smoothing outside of [0, 1]."""
    require_number(smoothing, "0 <= smoothing <= 1", "smoothing")
    require(0 <= smoothing <= 1, "0 <= smoothing <= 1", smoothing, "smoothing")


RULES: dict[str, Callable[..., None]] = {rule.__name__: rule for rule in (kd, label_smoothing)}


def rule_of(target: str) -> Callable[..., None] | None:
    """Returns the rule for the loss with this full name ("kdsweep.losses.kd"); None if it has none."""
    module, _, name = target.rpartition(".")
    return RULES.get(name) if module == "kdsweep.losses" else None
