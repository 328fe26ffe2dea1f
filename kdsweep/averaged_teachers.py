"""Several teachers as one: their answers to the same view, averaged as probabilities or as logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdsweep.system.errors import UserError, require

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from kdsweep.teachers import Teacher

AVERAGES = ("probabilities", "logits")


def require_average(average: object) -> None:
    """Raises `UserError` if there is no such average."""
    require(average in AVERAGES, f"average in {AVERAGES}", average, "average")


def averaged(logits: Sequence[Tensor], average: str) -> Tensor:
    """Returns the logits of the average of several answers to the same pictures.

    With M members and their logits z_m:

    - probabilities: z = log(1/M * sum_m softmax(z_m)). At temperature 1, softmax(z) is the mean of the members'
      probabilities, which is a mixture (Hinton et al. 2015, arXiv 1503.02531, distil such an ensemble). At another
      temperature it is that mean tempered as a whole, softmax(z / tau) ~ mean^(1 / tau), and not the mean of the
      tempered probabilities: those couldn't be had from one table for every tau.
    - logits: z = 1/M * sum_m z_m. softmax(z / tau) is the normalised geometric mean of the members' probabilities at
      each temperature tau. One member that is sure a class is wrong excludes it.

    Args:
        logits: Of each member (B, C) float32.
        average: One of `AVERAGES`.

    Returns:
        (B, C) float32.
    """
    stacked = torch.stack(list(logits))  # (M, B, C)
    if average == "logits":
        return stacked.mean(dim=0)
    return stacked.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(stacked))


class AveragedTeacher:
    """Several teachers that answer as one. Each keeps its own tables, which other studies share.

    Args:
        members: The teachers, which have the same mode.
        average: One of `AVERAGES`.

    Attributes:
        mode: The members' mode.

    Raises:
        UserError: There is no such average.
    """

    def __init__(self, members: Sequence[Teacher], average: str) -> None:
        require_average(average)
        self.members, self._average = tuple(members), average
        self.mode = self.members[0].mode

    @property
    def seconds(self) -> float:
        """The time spent so far on filling and reading tables."""
        return math.fsum(member.seconds for member in self.members)

    @property
    def table_device(self) -> torch.device:
        """From where indices of rows come best: from the computer's memory if a member's table had to stay there."""
        devices = [member.table_device for member in self.members]
        return next((device for device in devices if device.type == "cpu"), devices[0])

    def answers(self, pass_index: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns a function that gives the averaged logits for the views of one pass, as `Teacher.answers` does."""
        each = [member.answers(pass_index) for member in self.members]
        return lambda indices, pictures: averaged([answer(indices, pictures) for answer in each], self._average)

    def ask(self, pictures: Tensor) -> Tensor:
        """Computes the averaged logits (B, C) of pictures (B, H, W, 3) uint8."""
        return averaged([member.ask(pictures) for member in self.members], self._average)

    def logits(self, split: str) -> Tensor:
        """Returns the averaged logits (N, C) float32 of the un-augmented pictures of a split."""
        return averaged([member.logits(split) for member in self.members], self._average)

    def compute_part(self, pass_index: int, stop: Callable[[], bool], heard: tuple[str, ...]) -> bool:
        """Computes a part of a pass of the first member that lacks one; returns whether there was one."""
        return any(member.compute_part(pass_index, stop, heard) for member in self.members)

    @property
    def n_features(self) -> int:
        """Refuses a loss that hears pooled features, which each member has of its own kind.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "`the loss hears logits alone` must hold for an average of teachers, since pooled features of different "
            "networks can't be averaged. Choose one teacher, or a loss without features.",
            "teacher",
        )

    def answers_features(self, pass_index: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Raises what `n_features` raises."""
        raise AssertionError(self.n_features)

    def feature_bytes(self, passes: Collection[int]) -> int:
        """Raises what `n_features` raises."""
        return self.n_features

    def require_room(self, passes: Collection[int]) -> None:
        """Raises what `n_features` raises."""
        assert self.n_features

    def say_size(self, passes: Collection[int]) -> None:
        """Raises what `n_features` raises."""
        assert self.n_features

    def missing_features(self) -> list[str]:
        """Returns the splits for which a member has no features yet."""
        return sorted({split for member in self.members for split in member.missing_features()})
