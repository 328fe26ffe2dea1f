"""Passes of the teacher that are computed ahead of their readers, while a worker has nothing else to do."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kdsweep.teachers import Teacher

log = logging.getLogger(__name__)

# What the last student of this process listened to, and its passes in the order of its epochs.
_heard: tuple[Teacher, Sequence[int]] | None = None


def remember(teacher: Teacher, passes: Sequence[int]) -> None:
    """The students that come next will listen to this teacher, and to these passes first."""
    global _heard
    _heard = teacher, passes


def compute_part(stop: Callable[[], bool]) -> bool:
    """Computes a part of the first of these passes that is missing; whether there was one, and it was not stopped.

    Whatever goes wrong is left to the run that needs the pass: it says so better.

    Args:
        stop: Asked after each batch of pictures: the worker has something else to do now.
    """
    global _heard
    if _heard is None:
        return False
    teacher, passes = _heard
    try:
        return any(teacher.compute_part(pass_index, stop) for pass_index in passes)
    except Exception as error:
        log.warning("no passes are computed ahead any more (%s: %s)", type(error).__name__, error)
        _heard = None
        return False
