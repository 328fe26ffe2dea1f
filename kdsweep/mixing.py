"""Augmentations that mix two pictures and their labels: mixup and CutMix.

A picture's partner and its share are functions of (view seed, pass, picture index), like everything else of a view. So
a teacher's answers to mixed pictures can be kept.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdsweep.system.errors import require, require_number

if TYPE_CHECKING:
    from kdsweep.views import Draw

# Shares that are drawn are multiples of 1 / LEVELS: float32 then holds a mixed pixel exactly, before it is rounded.
LEVELS = 256

# A share is drawn by a whole number below this.
FINENESS = 2**31

# Which of a picture's random numbers decides what; `views.PARTNER` has decided the partner.
_SHARE, _ROW, _COLUMN = 1, 2, 3


@dataclass(frozen=True)
class MixUp:
    """The weighted mean of two pictures, pixel by pixel. Zhang et al. 2018 (ICLR), arXiv 1710.09412.

    torchvision's v2.MixUp computes the same, with one share for a whole batch.

    Args:
        concentration: Shares have the distribution Beta(c, c) with this c (the paper's alpha), rounded
            to multiples of 1/256: at 0.2 most pictures are hardly mixed, and at 1 all shares are equally likely.

    Raises:
        UserError: concentration isn't finite and > 0.
    """

    concentration: float

    def __post_init__(self) -> None:
        _require_concentration(self.concentration)

    def shares(self, draw: Draw, height: int, width: int) -> Tensor:
        """Returns the weight of each picture, (B,) float64."""
        return drawn_shares(draw, self.concentration)

    def mixed(self, pictures: Tensor, partners: Tensor, draw: Draw) -> Tensor:
        """Returns the weighted means, (B, H, W, 3) uint8."""
        share = drawn_shares(draw, self.concentration).float().view(-1, 1, 1, 1)
        return partners.float().lerp_(pictures.float(), share).round_().to(torch.uint8)


@dataclass(frozen=True)
class CutMix:
    """A rectangle of the partner over the picture. Yun et al. 2019 (ICCV), arXiv 1905.04899.

    torchvision's v2.CutMix does the same, with one share and one place for a whole batch. The middle of the rectangle
    may be anywhere in the picture, and what lies outside is cut off, so that the label's share is that of the pixels.

    Args:
        concentration: The rectangle's area before that has the share 1 - x of the picture, where x has the distribution
            Beta(c, c), where c is the concentration (the paper's alpha), rounded to multiples of 1/256.

    Raises:
        UserError: concentration isn't finite and > 0.
    """

    concentration: float

    def __post_init__(self) -> None:
        _require_concentration(self.concentration)

    def shares(self, draw: Draw, height: int, width: int) -> Tensor:
        """Returns the share of the pixels that each picture keeps, (B,) float64."""
        (top, bottom), (left, right) = self._box(draw, height, width)
        return 1 - ((bottom - top) * (right - left)).double() / (height * width)

    def mixed(self, pictures: Tensor, partners: Tensor, draw: Draw) -> Tensor:
        """Returns the pictures with the rectangle, (B, H, W, 3) uint8."""
        inside = []
        sides = pictures.shape[1:3]
        for side, (first, end) in zip(sides, self._box(draw, *sides), strict=True):
            place = torch.arange(side, device=pictures.device)  # (side,)
            inside.append(((place >= first[:, None]) & (place < end[:, None])).to(torch.uint8) * 255)
        rows, columns = inside
        # By bits, because torch.where takes ten times as long on bytes: all of them are set inside of the rectangle.
        values = columns.repeat_interleave(pictures.shape[3], dim=1)  # (B, W * 3)
        box = (rows[:, :, None] & values[:, None, :]).view(pictures.shape)
        return pictures ^ ((pictures ^ partners) & box)

    def _box(self, draw: Draw, height: int, width: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Returns first and end of the rectangle's rows, and of its columns, each (B,) int64."""
        reach = 0.5 * (1 - drawn_shares(draw, self.concentration)).sqrt()
        ends = []
        for stream, side in ((_ROW, height), (_COLUMN, width)):
            middle, half = draw.below(stream, side), (reach * side).long()
            ends.append(((middle - half).clamp_min(0), (middle + half).clamp_max(side)))
        rows, columns = ends
        return rows, columns


def drawn_shares(draw: Draw, concentration: float) -> Tensor:
    """Returns shares (B,) float64 with the distribution Beta(c, c) of a concentration c, in multiples of 1/256."""
    number = draw.below(_SHARE, FINENESS)
    return torch.bucketize(number, _limits(concentration, number.device), right=True).double() / LEVELS


@functools.lru_cache(maxsize=16)
def _limits(concentration: float, device: torch.device) -> Tensor:
    """Returns from which number on a share is at least 1/256, 2/256, ..., 1: the distribution at the middles between.

    They are kept, because a step that a GPU replays can take nothing from the computer's memory.
    """
    from scipy import special  # most runs need none of it

    middles = [(level + 0.5) / LEVELS for level in range(LEVELS)]
    steps = [round(special.betainc(concentration, concentration, x) * FINENESS) for x in middles]
    return torch.tensor(steps, device=device)


def _require_concentration(concentration: object) -> None:
    require_number(concentration, "0 < concentration < inf", "concentration")
    require(0 < concentration < math.inf, "0 < concentration < inf", concentration, "concentration")  # type: ignore[operator]
