"""Views: augmented versions of pictures, each a pure function of (view seed, pass, picture index).

A crop with zero padding and a horizontal flip give (2 * padding + 1)^2 * 2 views. Because a view depends on nothing
else (not on batch size, batch order, device or process), a teacher's answer to it can be computed once and kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

# splitmix64 (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195): increment and the finaliser's two multipliers.
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = (1 << 64) - 1

# Independent streams of numbers drawn from one seed.
_VIEW, _BATCH, _PASS = 0, 1, 2


def view_ids(seed: int, pass_index: int, indices: Tensor, padding: int, flip: bool) -> Tensor:
    """The view of each picture in a pass: (B,) int64 in [0, n_views), for picture indices (B,) int64."""
    # 32 of the 64 bits, scaled: the bias of n_views / 2^32 is far below anything a training can feel.
    bits = (_hash(seed, _VIEW, pass_index, indices) >> 16) & 0xFFFFFFFF
    return (bits * n_views(padding, flip)) >> 32


def n_views(padding: int, flip: bool) -> int:
    """How many views one picture has."""
    return (2 * padding + 1) ** 2 * (2 if flip else 1)


def batch_order(seed: int, epoch: int, n: int) -> Tensor:
    """The order in which an epoch visits the pictures: a permutation of range(n), (n,) int64."""
    return torch.argsort(_hash(seed, _BATCH, epoch, torch.arange(n)), stable=True)


def pass_of_epoch(seed: int, epoch: int, n_passes: int) -> int:
    """The pass that an epoch (from 0) trains on: each cycle of `n_passes` epochs uses every pass once."""
    cycle, position = divmod(epoch, n_passes)
    order = torch.argsort(_hash(seed, _PASS, cycle, torch.arange(n_passes)), stable=True)
    return int(order[position])


def passes_of_run(seed: int, epochs: int, n_passes: int) -> list[int]:
    """The passes that a run of so many epochs trains on, each once, in the order in which it comes to them."""
    return list(dict.fromkeys(pass_of_epoch(seed, epoch, n_passes) for epoch in range(min(epochs, n_passes))))


class Views:
    """The views of a set of pictures, cut from one padded copy in memory.

    Args:
        pictures: (N, H, W, 3) uint8.
        padding: Black pixels added on each side before cropping back to (H, W).
        flip: Whether half of the views are mirrored.
        seed: The view seed.
    """

    def __init__(self, pictures: Tensor, padding: int, flip: bool, seed: int) -> None:
        n, height, width, channels = pictures.shape
        padded = pictures.new_zeros(n, height + 2 * padding, width + 2 * padding, channels)
        padded[:, padding : padding + height, padding : padding + width] = pictures
        # Every crop as a view of the padded copy, without a copy of its own: (N, 2p+1, 2p+1, H, W, 3).
        self._windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
        self.padding, self.flip, self.seed = padding, flip, seed
        self.device = pictures.device

    def __len__(self) -> int:
        return len(self._windows)

    def batch(self, indices: Tensor, pass_index: int) -> Tensor:
        """The pictures `indices` (B,) as pass `pass_index` shows them: (B, H, W, 3) uint8."""
        ids = view_ids(self.seed, pass_index, indices, self.padding, self.flip)
        crops, flipped = (ids >> 1, ids & 1) if self.flip else (ids, torch.zeros_like(ids))
        rows, columns = crops // (2 * self.padding + 1), crops % (2 * self.padding + 1)
        pictures = self._windows[indices, rows, columns]  # (B, H, W, 3)
        if not self.flip:
            return pictures
        return torch.where(flipped.bool().view(-1, 1, 1, 1), pictures.flip(2), pictures)


def _hash(seed: int, stream: int, counter: int, indices: Tensor) -> Tensor:
    """64 random bits for each index, as int64; the same on every device (integer arithmetic wraps around)."""
    key = _mix_int(_mix_int(_mix_int(seed + _GOLDEN) + stream * _GOLDEN) + counter * _GOLDEN)
    z = indices * _signed(_GOLDEN) + _signed(key)
    z = (z ^ _shift_right(z, 30)) * _signed(_MULTIPLIERS[0])
    z = (z ^ _shift_right(z, 27)) * _signed(_MULTIPLIERS[1])
    return z ^ _shift_right(z, 31)


def _mix_int(z: int) -> int:
    """The splitmix64 finaliser on a Python integer."""
    z &= _MASK
    z = ((z ^ (z >> 30)) * _MULTIPLIERS[0]) & _MASK
    z = ((z ^ (z >> 27)) * _MULTIPLIERS[1]) & _MASK
    return z ^ (z >> 31)


def _signed(z: int) -> int:
    """The int64 with the bits of a uint64."""
    return z - (1 << 64) if z >> 63 else z


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical (not arithmetic) shift of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
