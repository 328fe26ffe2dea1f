"""Computes the teacher's passes before a student needs them, while a worker has nothing else to do."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kdsweep.averaged_teachers import AveragedTeacher
    from kdsweep.teachers import Teacher

log = logging.getLogger(__name__)

# The teacher of this process's last student, the student's passes in the order of its epochs, and what it hears.
_heard: tuple[Teacher | AveragedTeacher, Sequence[int], tuple[str, ...]] | None = None


def remember(teacher: Teacher | AveragedTeacher, passes: Sequence[int], heard: tuple[str, ...] = ("logits",)) -> None:
    """Remembers a teacher and passes: the next students will use this teacher, and these passes first.

    Args:
        teacher: The teacher.
        passes: The passes, in the order of a student's epochs.
        heard: Which outputs the student hears, as `Teacher.compute_part` takes them.
    """
    global _heard
    _heard = teacher, passes, heard


def compute_part(stop: Callable[[], bool]) -> bool:
    """Computes a missing part of the first remembered pass that isn't complete.

    An error only ends the computing ahead. The run that needs the pass will meet it again, and reports it better.

    Args:
        stop: Called after each batch of pictures; True means that the worker has something else to do now.

    Returns:
        True if a part was computed; False if none was missing, or if `stop` or an error ended it.
    """
    global _heard
    if _heard is None:
        return False
    teacher, passes, heard = _heard
    try:
        return any(teacher.compute_part(pass_index, stop, heard) for pass_index in passes)
    except Exception as error:
        log.warning("no passes are computed ahead any more (%s: %s)", type(error).__name__, error)
        _heard = None
        return False
