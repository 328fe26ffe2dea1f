"""Views: augmented versions of pictures. Each is a pure function of (view seed, pass, picture index).

A crop with zero padding and a horizontal flip give (2 * padding + 1)^2 * 2 views of a picture, and an augmentation may
change these further. A view doesn't depend on batch size, batch order, device or process, so a teacher's logits for it
can be computed once and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# splitmix64 (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195): increment and the finaliser's two multipliers.
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = (1 << 64) - 1

# Independent streams of numbers drawn from one seed.
_VIEW, _BATCH, _PASS = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Draw:
    """Random numbers for the pictures of a batch: functions of (view seed, pass, picture index, stream) alone.

    Attributes:
        key: The pass's key, as `Views.key` returns it, or the same as a tensor, () int64.
        indices: (B,) int64, indices of pictures.
    """

    key: int | Tensor
    indices: Tensor

    def below(self, stream: int, n: int) -> Tensor:
        """Returns whole numbers in [0, n), (B,) int64. Each stream, from 0, has numbers of its own."""
        picture = _mix(self.key, self.indices)  # its own 64 bits in this pass
        return _scaled(_mix(_signed(((stream + 1) * _GOLDEN) & _MASK), picture), n)


# (pictures (B, H, W, 3) uint8, their random numbers) -> changed pictures (B, H, W, 3) uint8
Augmentation = Callable[[Tensor, Draw], Tensor]


def view_ids(seed: int, pass_index: int, indices: Tensor, padding: int, flip: bool) -> Tensor:
    """Returns which view of each picture a pass shows.

    Args:
        seed: The view seed.
        pass_index: The pass.
        indices: (B,) int64, indices of pictures.
        padding: The padding before a crop, in pixels.
        flip: Whether half of the views are mirrored.

    Returns:
        (B,) int64 in [0, n_views).
    """
    return _keyed_view_ids(_key(seed, _VIEW, pass_index), indices, padding, flip)


def _keyed_view_ids(key: int | Tensor, indices: Tensor, padding: int, flip: bool) -> Tensor:
    return _scaled(_mix(key, indices), n_views(padding, flip))


def n_views(padding: int, flip: bool) -> int:
    """Returns the number of views that a picture has."""
    return (2 * padding + 1) ** 2 * (2 if flip else 1)


def batch_order(seed: int, epoch: int, n: int) -> Tensor:
    """Returns the order in which an epoch visits n pictures: a permutation of range(n), (n,) int64."""
    return torch.argsort(_hash(seed, _BATCH, epoch, torch.arange(n)), stable=True)


def pass_of_epoch(seed: int, epoch: int, n_passes: int) -> int:
    """Returns the pass that an epoch (from 0) trains on. Each cycle of `n_passes` epochs uses every pass once."""
    cycle, position = divmod(epoch, n_passes)
    order = torch.argsort(_hash(seed, _PASS, cycle, torch.arange(n_passes)), stable=True)
    return int(order[position])


def passes_of_run(seed: int, epochs: int, n_passes: int) -> list[int]:
    """Returns the passes that a run trains on, each once, in the order in which the run first uses them."""
    return list(dict.fromkeys(pass_of_epoch(seed, epoch, n_passes) for epoch in range(min(epochs, n_passes))))


class Views:
    """The views of a set of pictures, cut from one padded copy in memory.

    `len(views)` is the number of pictures.

    Args:
        pictures: (N, H, W, 3) uint8; the views are made on their device.
        padding: The number of black pixels added on each side before cropping back to (H, W).
        flip: Whether half of the views are mirrored.
        seed: The view seed; with it, pass and picture index decide the crop and the flip.
        augmentation: What happens to a picture after crop and flip; None leaves it.
        made_of: What tells the augmentation from others, fit for JSON: its name, its settings, and the hash of its
            source if it is the user's own.
    """

    def __init__(
        self,
        pictures: Tensor,
        padding: int,
        flip: bool,
        seed: int,
        augmentation: Augmentation | None = None,
        made_of: object = None,
    ) -> None:
        n, height, width, channels = pictures.shape
        padded = pictures.new_zeros(n, height + 2 * padding, width + 2 * padding, channels)
        padded[:, padding : padding + height, padding : padding + width] = pictures
        # All crops are windows on the padded copy, and take no memory of their own: (N, 2p+1, 2p+1, H, W, 3).
        self._windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
        self.padding, self.flip, self.seed = padding, flip, seed
        self._augmentation, self._made_of = augmentation, made_of
        self.device = pictures.device

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def policy(self) -> dict[str, object]:
        """What the views depend on besides the pictures, fit for JSON."""
        own: dict[str, object] = {"padding": self.padding, "flip": self.flip, "seed": self.seed}
        return own if self._augmentation is None else {**own, "augmentation": self._made_of}

    def batch(self, indices: Tensor, pass_index: int) -> Tensor:
        """Returns the pictures `indices` (B,) as pass `pass_index` shows them: (B, H, W, 3) uint8."""
        return self.keyed_batch(indices, self.key(pass_index))

    def key(self, pass_index: int) -> int:
        """Returns the number, of 64 bits with a sign, that `keyed_batch` takes for a pass."""
        return _key(self.seed, _VIEW, pass_index)

    def keyed_batch(self, indices: Tensor, key: int | Tensor) -> Tensor:
        """Does what `batch` does, for the pass with this `key`.

        A step that is captured once and replayed for all passes has it as a tensor, () int64.
        """
        pictures = self._cropped(indices, key)
        return pictures if self._augmentation is None else self._augmentation(pictures, Draw(key, indices))

    def _cropped(self, indices: Tensor, key: int | Tensor) -> Tensor:
        ids = _keyed_view_ids(key, indices, self.padding, self.flip)
        crops, flipped = (ids >> 1, ids & 1) if self.flip else (ids, torch.zeros_like(ids))
        rows, columns = crops // (2 * self.padding + 1), crops % (2 * self.padding + 1)
        pictures = self._windows[indices, rows, columns]  # (B, H, W, 3)
        if not self.flip:
            return pictures
        return torch.where(flipped.bool().view(-1, 1, 1, 1), pictures.flip(2), pictures)


def _scaled(bits: Tensor, n: int) -> Tensor:
    """Returns whole numbers in [0, n) that random bits make. Some are n / 2^32 likelier: too little to matter."""
    return (((bits >> 16) & 0xFFFFFFFF) * n) >> 32


def _hash(seed: int, stream: int, counter: int, indices: Tensor) -> Tensor:
    """Returns 64 random bits for each index, as int64: the same on every device, since integers wrap around."""
    return _mix(_key(seed, stream, counter), indices)


def _key(seed: int, stream: int, counter: int) -> int:
    """Returns 64 random bits as a signed integer."""
    return _signed(_mix_int(_mix_int(_mix_int(seed + _GOLDEN) + stream * _GOLDEN) + counter * _GOLDEN))


def _mix(key: int | Tensor, indices: Tensor) -> Tensor:
    """Returns 64 random bits for each index, drawn with a key, as int64."""
    z = indices * _signed(_GOLDEN) + key
    z = (z ^ _shift_right(z, 30)) * _signed(_MULTIPLIERS[0])
    z = (z ^ _shift_right(z, 27)) * _signed(_MULTIPLIERS[1])
    return z ^ _shift_right(z, 31)


def _mix_int(z: int) -> int:
    """Computes the splitmix64 finaliser of a Python integer."""
    z &= _MASK
    z = ((z ^ (z >> 30)) * _MULTIPLIERS[0]) & _MASK
    z = ((z ^ (z >> 27)) * _MULTIPLIERS[1]) & _MASK
    return z ^ (z >> 31)


def _signed(z: int) -> int:
    """Returns the int64 that has the bits of a uint64."""
    return z - (1 << 64) if z >> 63 else z


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shifts int64 to the right logically: zeros come in from the left, and not the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
