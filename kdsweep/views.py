"""Views: augmented versions of pictures. Each is a pure function of (view seed, pass, picture index).

A crop with zero padding and a horizontal flip give (2 * padding + 1)^2 * 2 views of a picture, and an augmentation may
change these further. A view doesn't depend on batch size, batch order, device or process, so a teacher's logits for it
can be computed once and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

# splitmix64 (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195): increment and the finaliser's two multipliers.
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = (1 << 64) - 1

# Independent streams of numbers drawn from one seed.
_VIEW, _BATCH, _PASS = 0, 1, 2

# Which of a picture's random numbers decides what it is mixed with.
PARTNER = 0


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


@runtime_checkable
class Mixing(Protocol):
    """An augmentation that makes one picture, and one label, of two."""

    def shares(self, draw: Draw, height: int, width: int) -> Tensor:
        """Returns the share that each picture has of what is mixed, in [0, 1]: (B,) float64, on the draw's device."""

    def mixed(self, pictures: Tensor, partners: Tensor, draw: Draw) -> Tensor:
        """Mixes pictures (B, H, W, 3) uint8 with their partners, which have the same shape."""


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


def mixed_order(seed: int, epoch: int, n_labelled: int, n: int, batch_size: int) -> Tensor:
    """Returns the order in which an epoch visits n pictures of which the first n_labelled have labels.

    Each batch has as many pictures with labels as `labelled_in_batch` says, and they come first in it. The pictures of
    either kind come in the order of `batch_order`, and begin anew where an epoch needs more than there are.

    Returns:
        Indices, (steps * batch_size,) int64.
    """
    steps, own = n // batch_size, labelled_in_batch(n_labelled, n, batch_size)
    order = batch_order(seed, epoch, n)
    kinds = (order[order < n_labelled], own), (order[order >= n_labelled], batch_size - own)
    rows = [kind[torch.arange(steps * share) % len(kind)].view(steps, share) for kind, share in kinds]
    return torch.cat(rows, dim=1).flatten()


def labelled_in_batch(n_labelled: int, n: int, batch_size: int) -> int:
    """Returns how many pictures of a batch have labels: their share of all pictures, rounded up, but not the batch.

    So each picture with a label is seen in each epoch.
    """
    return n_labelled if batch_size == n else min(-(-batch_size * n_labelled // n), batch_size - 1)


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
        n_labelled: The number of pictures with labels, which come first; None if all have one. A mixing augmentation
            mixes pictures of one kind.
    """

    def __init__(
        self,
        pictures: Tensor,
        padding: int,
        flip: bool,
        seed: int,
        augmentation: Augmentation | Mixing | None = None,
        made_of: object = None,
        n_labelled: int | None = None,
    ) -> None:
        n, height, width, channels = pictures.shape
        padded = pictures.new_zeros(n, height + 2 * padding, width + 2 * padding, channels)
        padded[:, padding : padding + height, padding : padding + width] = pictures
        # All crops are windows on the padded copy, and take no memory of their own: (N, 2p+1, 2p+1, H, W, 3).
        self._windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
        self.padding, self.flip, self.seed = padding, flip, seed
        self._mixing = augmentation if isinstance(augmentation, Mixing) else None
        self._augmentation, self._made_of = augmentation, made_of
        self._n_labelled = n if n_labelled is None else n_labelled
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
        pictures, draw = self._cropped(indices, key), Draw(key, indices)
        if self._mixing is not None:
            return self._mixing.mixed(pictures, self._cropped(self._partners(draw), key), draw)
        return pictures if self._augmentation is None else self._augmentation(pictures, draw)  # type: ignore[operator]

    def targets(self, labels: Tensor, indices: Tensor, key: int | Tensor, n_classes: int) -> Tensor:
        """Returns what the pictures of `keyed_batch` show.

        Args:
            labels: (N,) int64, the label of each picture, or -1 for a picture without one; on any device.
            indices: (B,) int64, on the device of the labels.
            key: As in `keyed_batch`.
            n_classes: The number of classes.

        Returns:
            Their labels (B,) int64; or, where pictures are mixed, the share of each class (B, n_classes) float32, zeros
            for a picture without a label.
        """
        if self._mixing is None:
            return labels[indices]
        draw = Draw(key, indices)
        height, width = self._windows.shape[3:5]
        return mixed_labels(
            labels[indices], labels[self._partners(draw)], self._mixing.shares(draw, height, width), n_classes
        )

    def _partners(self, draw: Draw) -> Tensor:
        return partners(draw, self._n_labelled, len(self))

    def _cropped(self, indices: Tensor, key: int | Tensor) -> Tensor:
        ids = _keyed_view_ids(key, indices, self.padding, self.flip)
        crops, flipped = (ids >> 1, ids & 1) if self.flip else (ids, torch.zeros_like(ids))
        rows, columns = crops // (2 * self.padding + 1), crops % (2 * self.padding + 1)
        pictures = self._windows[indices, rows, columns]  # (B, H, W, 3)
        if not self.flip:
            return pictures
        return torch.where(flipped.bool().view(-1, 1, 1, 1), pictures.flip(2), pictures)


def partners(draw: Draw, n_labelled: int, n: int) -> Tensor:
    """Returns which picture each is mixed with, (B,) int64: one with a label with one that has a label, too.

    Args:
        draw: The pictures' random numbers.
        n_labelled: The number of pictures with labels, which come first.
        n: The number of all pictures.
    """
    own = draw.below(PARTNER, n_labelled)
    if n_labelled == n:
        return own
    return torch.where(draw.indices < n_labelled, own, n_labelled + draw.below(PARTNER, n - n_labelled))


def mixed_labels(labels: Tensor, others: Tensor, shares: Tensor, n_classes: int) -> Tensor:
    """Returns the share of each class in mixed pictures, (B, n_classes) float32.

    Args:
        labels: (B,) int64, the pictures' labels; -1 stands for none.
        others: (B,) int64, their partners' labels.
        shares: (B,) float64, the pictures' shares.
        n_classes: The number of classes.
    """
    classes = torch.arange(n_classes, device=labels.device)
    own, other = ((some[:, None] == classes).double() for some in (labels, others))
    return (shares[:, None] * own + (1 - shares)[:, None] * other).float()


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
