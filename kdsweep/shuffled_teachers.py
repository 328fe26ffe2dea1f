"""The shuffled teacher: for each picture the right answer to another picture, as a control of what a teacher gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdsweep.views import batch_order

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdsweep.averaged_teachers import AveragedTeacher
    from kdsweep.teachers import Teacher
    from kdsweep.views import Views


def partners(seed: int, pass_index: int, n: int) -> Tensor:
    """Returns for each of n pictures the other picture whose answer it gets in a pass: (n,) int64.

    The pictures stand in a random circle, a pure function of seed, pass and n, and each gets the answer to the next. So
    every answer is used once, and with two pictures or more nobody gets its own.

    Args:
        seed: The run's order seed, >= 0.
        pass_index: The pass.
        n: The number of pictures.
    """
    # The seeds of batch orders aren't negative, so this circle is no batch order of any run.
    circle = batch_order(-1 - seed, pass_index, n)
    return torch.empty_like(circle).scatter_(0, circle, circle.roll(-1))


class ShuffledTeacher:
    """A teacher whose answers to a pass are dealt to the wrong pictures.

    It reads the teacher's own tables: row `partners(...)[i]` for picture i. Where the teacher is asked online, it sees
    the view that the pass shows of the other picture, so both modes agree.

    Args:
        teacher: The teacher.
        views: The views of the training pictures.
        seed: The run's order seed.

    Attributes:
        mode: "table": the answers depend on the pictures' indices and not on the pictures that a step shows, whatever
            the teacher's own mode is.
    """

    mode = "table"

    def __init__(self, teacher: Teacher | AveragedTeacher, views: Views, seed: int) -> None:
        self._teacher, self._views, self._seed = teacher, views, seed

    def answers(self, pass_index: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns a function that gives the teacher's logits for the views of other pictures in a pass.

        Returns:
            (picture indices (B,), their views) -> logits (B, C) float32.
        """
        return self._dealt(self._teacher.answers(pass_index), pass_index)

    def answers_features(self, pass_index: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns the same for the teacher's pooled features, of the same other pictures."""
        return self._dealt(self._teacher.answers_features(pass_index), pass_index)

    @property
    def n_features(self) -> int:
        """The number of the teacher's pooled features."""
        return self._teacher.n_features

    @property
    def table_device(self) -> torch.device:
        """From where indices of rows come best."""
        return self._teacher.table_device

    def _dealt(
        self, answers: Callable[[Tensor, Tensor], Tensor], pass_index: int
    ) -> Callable[[Tensor, Tensor], Tensor]:
        wrong = partners(self._seed, pass_index, len(self._views))

        def dealt(indices: Tensor, pictures: Tensor) -> Tensor:
            others = wrong.to(indices.device)[indices]
            if self._teacher.mode == "online":
                shown = self._views.batch(others.to(self._views.device), pass_index)
                return answers(others, shown.to(indices.device))
            return answers(others, pictures)

        return dealt
