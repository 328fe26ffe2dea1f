"""Which arguments the losses take; a loss without a rule here is asked by itself, which takes torch's import.

A rule has the name of its function in `losses.py` and the function's own arguments.
"""

from __future__ import annotations

import math

from kdsweep.system.errors import require, require_number


def kd(*, alpha: float, tau: float) -> None:
    """Alpha is in [0, 1], tau > 0."""
    require_number(alpha, "0 <= alpha <= 1", "alpha")
    require_number(tau, "0 < tau < inf", "tau")
    require(0 <= alpha <= 1, "0 <= alpha <= 1", alpha, "alpha")
    require(0 < tau < math.inf, "0 < tau < inf", tau, "tau")


def label_smoothing(*, smoothing: float) -> None:
    """Smoothing is in [0, 1]."""
    require_number(smoothing, "0 <= smoothing <= 1", "smoothing")
    require(0 <= smoothing <= 1, "0 <= smoothing <= 1", smoothing, "smoothing")
