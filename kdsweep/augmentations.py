"""Augmentations beyond crop and flip: functions of uint8 pictures and of random numbers that are each picture's own.

The numbers come from (view seed, pass, picture index), so a view is the same in every batch, process and run, and a
teacher's answers to it can be kept. Each operation computes what torchvision's functional operation computes for one
picture, bit for bit, and takes a whole batch of settings.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsweep.system.errors import require, require_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdsweep.views import Draw

# torchvision's weights of red, green and blue (ITU-R BT.601).
GREY = (0.2989, 0.587, 0.114)

# Factors of colour are multiples of this: they and their complements are exact in float32.
STEP = 1 / 256

# TrivialAugment Wide: the number of magnitudes that an operation has.
BINS = 31


def cutout(pictures: Tensor, draw: Draw, *, size: int, fill: int) -> Tensor:
    """Paints a square at a random place over each picture, of which a part may lie outside.

    DeVries and Taylor 2017, arXiv 1708.04552.

    Args:
        pictures: (B, H, W, 3) uint8.
        draw: The pictures' random numbers.
        size: The square's side in pixels, >= 1.
        fill: What it is painted with, in [0, 255]; the paper's is the mean of the pictures.

    Returns:
        (B, H, W, 3) uint8.

    Raises:
        UserError: An argument is out of range.
    """
    require(type(size) is int and size >= 1, "size is int >= 1", size, "size", "It is in pixels.")
    require(type(fill) is int and 0 <= fill <= 255, "fill is int, 0 <= fill <= 255", fill, "fill")
    covered = []
    for stream, side in enumerate(pictures.shape[1:3]):
        first = draw.below(stream, side)[:, None] - size // 2  # (B, 1)
        place = torch.arange(side, device=pictures.device)  # (side,)
        covered.append((place >= first) & (place < first + size))
    rows, columns = covered
    return torch.where((rows[:, :, None] & columns[:, None, :])[..., None], fill, pictures).to(torch.uint8)


def color(pictures: Tensor, draw: Draw, *, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Changes brightness, then contrast, then saturation, each by a random factor in [1 - x, 1 + x].

    torchvision's ColorJitter does the same in a random order.

    Args:
        pictures: (B, H, W, 3) uint8.
        draw: The pictures' random numbers.
        brightness: The largest change x, in [0, 1]; 0 leaves it. So have the following two.
        contrast: Towards, or away from, the picture's mean grey.
        saturation: Towards, or away from, the picture in grey.

    Returns:
        (B, H, W, 3) uint8.

    Raises:
        UserError: An argument is out of range.
    """
    changes = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for stream, (name, change) in enumerate(changes.items()):
        require_number(change, f"0 <= {name} <= 1", name)
        require(0 <= change <= 1, f"0 <= {name} <= 1", change, name)
        most = math.floor(change / STEP)
        factor = 1 + (draw.below(stream, 2 * most + 1) - most).double() * STEP
        pictures = (_brightness, _contrast, _saturation)[stream](pictures, factor)
    return pictures


def trivial(pictures: Tensor, draw: Draw) -> Tensor:
    """Changes each picture by one random operation of a random strength: TrivialAugment Wide.

    Mueller and Hutter 2021, arXiv 2103.10158, with torchvision's 14 operations, 31 strengths and nearest pixels.

    Args:
        pictures: (B, H, W, 3) uint8.
        draw: The pictures' random numbers.

    Returns:
        (B, H, W, 3) uint8.
    """
    which, strength = draw.below(0, len(OPERATIONS)), draw.below(1, BINS)
    signed = 1 - 2 * draw.below(2, 2)
    result = pictures.clone()
    for number, (change, largest, has_sign) in enumerate(OPERATIONS):
        # Scaled as torch.linspace(0, largest, BINS) does it, which torchvision takes its strengths from.
        scale = torch.linspace(0, largest, BINS, device=pictures.device).double()
        chosen = which == number
        amount = scale[strength] * (signed if has_sign else 1)
        if pictures.device.type != "cpu":  # all pictures, because to find those that are meant would wait for the GPU
            result = torch.where(chosen.view(-1, 1, 1, 1), change(pictures, amount), result)
        elif len(rows := chosen.nonzero()[:, 0]):
            result[rows] = change(pictures[rows], amount[rows])
    return result


# ------------------------------------------------------ operations on (B, H, W, 3) uint8, with (B,) float64 amounts


def _blend(pictures: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    """Returns `factor * pictures + (1 - factor) * others`, rounded down."""
    own, rest = (f.float().view(-1, 1, 1, 1) for f in (factor, 1 - factor))
    return (own * pictures + rest * others).clamp(0, 255).to(torch.uint8)


def _grey(pictures: Tensor) -> Tensor:
    red, green, blue = (weight * channel for weight, channel in zip(GREY, pictures.unbind(3), strict=True))
    return (red + green + blue).to(torch.uint8)[..., None]  # (B, H, W, 1)


def _brightness(pictures: Tensor, factor: Tensor) -> Tensor:
    return _blend(pictures, torch.zeros((), device=pictures.device), factor)


def _contrast(pictures: Tensor, factor: Tensor) -> Tensor:
    grey = _grey(pictures).flatten(1)
    mean = grey.sum(1).float() / grey.shape[1]  # a sum of whole numbers, the same in every order
    return _blend(pictures, mean.view(-1, 1, 1, 1), factor)


def _saturation(pictures: Tensor, factor: Tensor) -> Tensor:
    return _blend(pictures, _grey(pictures), factor)


def _sharpness(pictures: Tensor, factor: Tensor) -> Tensor:
    if min(pictures.shape[1:3]) <= 2:
        return pictures
    x = pictures.permute(0, 3, 1, 2).int()  # (B, 3, H, W)
    # The mean of a pixel and its eight neighbours, with weight 5 for itself; whole numbers until the division.
    sums = F.avg_pool2d(x.double(), 3, stride=1, divisor_override=1) + 4 * x[:, :, 1:-1, 1:-1]
    blurred = x.clone()
    blurred[:, :, 1:-1, 1:-1] = (sums / 13).round().int()
    return _blend(pictures, blurred.permute(0, 2, 3, 1), factor)


def _posterize(pictures: Tensor, lost: Tensor) -> Tensor:
    """Keeps the highest bits of each value, 8 - lost of them."""
    mask = 256 - 2 ** lost.round().int()
    return pictures & mask.to(torch.uint8).view(-1, 1, 1, 1)


def _solarize(pictures: Tensor, below: Tensor) -> Tensor:
    """Inverts values of at least 255 - below."""
    return torch.where(pictures >= (255 - below).float().view(-1, 1, 1, 1), 255 - pictures, pictures)


def _autocontrast(pictures: Tensor, _: Tensor) -> Tensor:
    x = pictures.float()
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    scale = 255 / (high - low)
    flat = ~scale.isfinite()
    return ((x - low.masked_fill(flat, 0)) * scale.masked_fill(flat, 1)).clamp(0, 255).to(torch.uint8)


def _equalize(pictures: Tensor, _: Tensor) -> Tensor:
    """Spreads the values of each colour evenly, by PIL's rule."""
    channels = pictures.permute(0, 3, 1, 2).flatten(2).long()  # (B, 3, H * W)
    counts = torch.zeros(*channels.shape[:2], 256, dtype=torch.int64, device=pictures.device)
    counts.scatter_add_(2, channels, torch.ones_like(channels))
    last = counts.gather(2, channels.amax(2, keepdim=True))  # how many have the highest value
    step = (channels.shape[2] - last) // 255
    kept = step.clamp_min(1)
    table = ((counts.cumsum(2) - counts + kept // 2) // kept).clamp(0, 255)
    spread = torch.where(step > 0, table.gather(2, channels), channels)
    n, height, width, colours = pictures.shape
    return spread.to(torch.uint8).view(n, colours, height, width).permute(0, 2, 3, 1)


def _moved(pictures: Tensor, rows: tuple[Tensor, Tensor, Tensor], columns: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Takes each pixel from where an affine map sends it: the nearest one there, or black outside.

    Args:
        pictures: (B, H, W, 3) uint8.
        rows: (B,) float64 each: the factors of x and y, and the shift, that give a pixel's source row from its place
            relative to the picture's centre, in pixels.
        columns: The same for the source column.
    """
    n, height, width, _ = pictures.shape
    y = (torch.arange(height, device=pictures.device).double() - (height - 1) / 2)[None, :, None]
    x = (torch.arange(width, device=pictures.device).double() - (width - 1) / 2)[None, None, :]
    places = []
    for (by_x, by_y, shift), side in ((rows, height), (columns, width)):
        by_x, by_y, shift = (value.view(-1, 1, 1) for value in (by_x, by_y, shift))
        places.append((by_x * x + by_y * y + shift + (side - 1) / 2).round().long())  # (B, H, W)
    inside = ((places[0] >= 0) & (places[0] < height) & (places[1] >= 0) & (places[1] < width))[..., None]
    number = torch.arange(n, device=pictures.device).view(-1, 1, 1)
    found = pictures[number, places[0].clamp(0, height - 1), places[1].clamp(0, width - 1)]
    return torch.where(inside, found, 0).to(torch.uint8)


def _shear_x(pictures: Tensor, by: Tensor) -> Tensor:
    # TrivialAugment shears about the upper left corner.
    zero, one, middle = torch.zeros_like(by), torch.ones_like(by), pictures.shape[1] / 2
    return _moved(pictures, (zero, one, zero), (one, by, by * middle))


def _shear_y(pictures: Tensor, by: Tensor) -> Tensor:
    zero, one, middle = torch.zeros_like(by), torch.ones_like(by), pictures.shape[2] / 2
    return _moved(pictures, (by, one, by * middle), (one, zero, zero))


def _translate_x(pictures: Tensor, by: Tensor) -> Tensor:
    zero, one = torch.zeros_like(by), torch.ones_like(by)
    return _moved(pictures, (zero, one, zero), (one, zero, -by.trunc()))


def _translate_y(pictures: Tensor, by: Tensor) -> Tensor:
    zero, one = torch.zeros_like(by), torch.ones_like(by)
    return _moved(pictures, (zero, one, -by.trunc()), (one, zero, zero))


def _rotate(pictures: Tensor, degrees: Tensor) -> Tensor:
    sine, cosine, zero = degrees.deg2rad().sin(), degrees.deg2rad().cos(), torch.zeros_like(degrees)
    return _moved(pictures, (sine, cosine, zero), (cosine, -sine, zero))


def _unchanged(pictures: Tensor, _: Tensor) -> Tensor:
    return pictures


def _factor(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda pictures, amount: change(pictures, 1 + amount)


# Torchvision's order: the operation, its largest amount, and whether half of the amounts are negative.
OPERATIONS: tuple[tuple[Callable[[Tensor, Tensor], Tensor], float, bool], ...] = (
    (_unchanged, 0.0, False),
    (_shear_x, 0.99, True),
    (_shear_y, 0.99, True),
    (_translate_x, 32.0, True),
    (_translate_y, 32.0, True),
    (_rotate, 135.0, True),
    (_factor(_brightness), 0.99, True),
    (_factor(_saturation), 0.99, True),
    (_factor(_contrast), 0.99, True),
    (_factor(_sharpness), 0.99, True),
    (_posterize, 6.0, False),
    (_solarize, 255.0, False),
    (_autocontrast, 0.0, False),
    (_equalize, 0.0, False),
)
