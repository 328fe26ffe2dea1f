"""Data sets in memory: uint8 pictures, a stratified validation split, nested fractions of the training pictures.

The official test split stays apart. The validation split is cut from the official training split, and the training
pictures are a prefix of the rest: 10 % of them are the first rows of 20 % of them.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import torch
from psutil import virtual_memory
from torch import Tensor
from torch.nn.functional import interpolate

from kdsweep.numerics import picture_files
from kdsweep.numerics.picture_files import CUT, MAX_SIDE
from kdsweep.system.errors import UserError, require
from kdsweep.system.files import locked
from kdsweep.system.progress import note
from kdsweep.system.tensor_files import hash_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# The number of pictures in scikit-learn's digits.
N_DIGITS = 1797

# The seed by which a test split is cut. It is no setting: the test pictures stay the same whatever else changes.
TEST_SEED = 0

# While a data set is made, memory holds its pictures as float32, or several copies of them as uint8.
BYTES_PER_VALUE = 4


@dataclass(frozen=True, eq=False)
class Split:
    """Pictures and their labels. `len(split)` is their number, and `split[indices]` is a split of some of them.

    Attributes:
        images: (N, H, W, 3) uint8, RGB.
        labels: (N,) int64, each the index of a class.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Split:
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of one data set, and how views of its pictures may be made.

    Attributes:
        name: Its name.
        classes: The names of the classes, in the order of the labels.
        train: The pictures to train on.
        validation: The pictures to select settings on, cut from the official training split.
        test: The official test split, or one that `with_test` has cut, for the final numbers only.
        padding: The number of pixels added on each side of a picture before a random crop.
        flip: Whether a mirrored picture has the same label.

    Raises:
        UserError: The training pictures have fewer than two classes, a split is empty, or a label is the index of no
            class.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    padding: int
    flip: bool

    def __post_init__(self) -> None:
        for split in ("train", "validation", "test"):
            labels: Tensor = getattr(self, split).labels
            fits = len(labels) > 0 and int(labels.min()) >= 0 and int(labels.max()) < self.n_classes
            rule = "each split has pictures, and each label is the index of a class"
            message = f"`{rule}` must hold, but in {split} of {self.name!r} it doesn't ({self.n_classes} classes)."
            if not fits:
                raise UserError(message)
        if self.n_classes < 2 or int(self.train.labels.min()) == int(self.train.labels.max()):
            remedy = "A network of one class is always right. Choose another data set."
            raise UserError(f"`at least two classes` must hold, but the pictures of {self.name!r} have one. {remedy}")

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def mean(self) -> tuple[float, float, float]:
        """The mean of each colour over the training pictures, in [0, 1]."""
        return self._moments[0]

    @property
    def std(self) -> tuple[float, float, float]:
        """The standard deviation of each colour over the training pictures, on the scale of `mean`; 1 if it is 0."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        # Histograms give the exact numbers, without a float copy of all pictures.
        counts = torch.stack([self.train.images[..., c].flatten().bincount(minlength=256) for c in range(3)]).double()
        share = counts / counts.sum(1, keepdim=True)  # (3, 256)
        value = torch.arange(256, dtype=torch.float64) / 255
        mean = (share * value).sum(1)
        std = (share * (value - mean[:, None]) ** 2).sum(1).sqrt()
        red, green, blue = mean.tolist()
        red_std, green_std, blue_std = (s or 1.0 for s in std.tolist())
        return (red, green, blue), (red_std, green_std, blue_std)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 (hex) of the pictures and labels of all splits."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return hash_tensors({f"{name}.{part}": t for name, split in splits.items() for part, t in vars(split).items()})


class SplitOptions(TypedDict):
    """What every data set takes besides its own arguments.

    Attributes:
        val_size: The validation split's size: a count (int >= 1), or a share of the training split (0 < float < 1).
        train_fraction: The share of the remaining training pictures to train on, in (0, 1].
        split_seed: Decides which pictures are validation pictures, and which are in a fraction.
        padding: As in `Dataset`.
        flip: As in `Dataset`.
    """

    val_size: int | float
    train_fraction: float
    split_seed: int
    padding: int
    flip: bool


# ---------------------------------------------------------------------------------------------------- data sets


def cifar10(root: str, **options: Unpack[SplitOptions]) -> Dataset:
    """Reads CIFAR-10 by torchvision: 50,000 and 10,000 pictures of 32x32, 10 classes (Krizhevsky 2009).

    Args:
        root: The archive's folder. A missing archive is downloaded to it.
        **options: As in `SplitOptions`.

    Raises:
        UserError: An option is out of range, or the archive can neither be read nor downloaded.
    """
    check_options(options)
    from torchvision.datasets import CIFAR10

    return _torchvision("cifar10", CIFAR10, folder_of(root, "root"), options)


def cifar100(root: str, **options: Unpack[SplitOptions]) -> Dataset:
    """Reads CIFAR-100, with its 100 fine classes, as `cifar10` reads CIFAR-10."""
    check_options(options)
    from torchvision.datasets import CIFAR100

    return _torchvision("cifar100", CIFAR100, folder_of(root, "root"), options)


def digits(image_size: int, n_test: int, **options: Unpack[SplitOptions]) -> Dataset:
    """Makes pictures of scikit-learn's 1,797 scans of handwritten digits: 8x8 grey, up-sampled, RGB. No download.

    Args:
        image_size: The side of the pictures, in pixels.
        n_test: The number of pictures in the test split, which is stratified. Other options don't change them.
        **options: As in `SplitOptions`.

    Raises:
        UserError: An argument is out of range.
    """
    check_options(options)
    require_side(image_size)
    _require_int(n_test, "n_test", 1)
    require_room(N_DIGITS, image_size, "image_size")
    from sklearn.datasets import load_digits

    scans = load_digits()
    grey = torch.from_numpy(scans.images).float()[:, None] * (255 / 16)  # (N, 1, 8, 8), from values of 0 to 16
    grey = interpolate(grey, (image_size, image_size), mode="bilinear", antialias=True).round().to(torch.uint8)
    images = grey.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    whole = Split(images, torch.from_numpy(scans.target).long())
    n_train = len(whole) - n_test
    require(n_train >= 10, f"n_test <= {len(whole) - 10}", n_test, "n_test", "Each of the 10 digits needs a picture.")
    order = stratified_order(whole.labels, seed=0)
    classes = [str(digit) for digit in range(10)]
    return divided("digits", classes, whole[order[:n_train]], whole[order[n_train:]], **options)


def synthetic(
    n_train: int, n_test: int, n_classes: int, image_size: int, seed: int, **options: Unpack[SplitOptions]
) -> Dataset:
    """Makes noisy copies of one coarse random pattern for each class: learnt in a few steps, made in milliseconds.

    Args:
        n_train: The number of pictures before the validation split is cut off; classes differ by one at most.
        n_test: The number of pictures in the test split.
        n_classes: The number of classes, at least 2.
        image_size: The side of the pictures, in pixels.
        seed: Decides the patterns and the noise.
        **options: As in `SplitOptions`.

    Raises:
        UserError: An argument is out of range.
    """
    check_options(options)
    _require_int(n_classes, "n_classes", 2)
    _require_int(n_train, "n_train", n_classes + 1)
    _require_int(n_test, "n_test", 1)
    require_side(image_size)
    _require_int(seed, "seed", 0)
    require_room(n_train + n_classes, image_size, "n_train")
    require_room(n_test, image_size, "n_test")
    generator = torch.Generator().manual_seed(seed)
    coarse = 48 + 160 * torch.rand(n_classes, 3, 4, 4, generator=generator)
    patterns = interpolate(coarse, (image_size, image_size)).permute(0, 2, 3, 1)  # (C, S, S, 3)

    def split(n: int) -> Split:
        labels = torch.arange(n) % n_classes
        noise = 24 * torch.randn(n, image_size, image_size, 3, generator=generator)
        return Split((patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels)

    return divided("synthetic", [f"class {c}" for c in range(n_classes)], split(n_train), split(n_test), **options)


def image_folder(
    root: str, cache: str, image_size: int, test_size: int | float | None = None, **options: Unpack[SplitOptions]
) -> Dataset:
    """Reads the user's own pictures, `<root>/train/<class>/*` and `<root>/test/<class>/*`, as square RGB.

    With `test_size`, it reads `<root>/<class>/*`, or `<root>/train/<class>/*` alone, and cuts the test split itself.

    A class may have sub-folders. Hidden files are left out. So are files whose names say that they hold something else
    (labels.csv), which is said. A picture is turned as its EXIF orientation says, and resized to a square (bilinear,
    antialiased), whatever its shape. The pictures are decoded once: later runs read one file in `cache`, until a name,
    a size or a modification time changes.

    Args:
        root: The folder with `train` and `test`, which hold folders for the same classes, or with the class folders.
        cache: The folder of the decoded pictures.
        image_size: The side of the pictures, in pixels.
        test_size: As in `with_test`; None for a folder that has its own test split.
        **options: As in `SplitOptions`.

    Raises:
        UserError: An argument is out of range, a folder is missing, or pictures can't be read.
    """
    check_options(options)
    require_test_size(test_size)
    require_side(image_size)
    folder = folder_of(root, "root").absolute()
    train, test = picture_files.class_files(folder, test_size)
    names = [name for classes in (train, test) for files in classes.values() for name in files]
    require_room(len(names), image_size, "image_size")
    images = picture_files.load(folder, names, image_size, folder_of(cache, "cache"))
    labels = torch.tensor([c for classes in (train, test) for c, files in enumerate(classes.values()) for _ in files])
    n_train = sum(map(len, train.values()))
    # clone: a view would keep all pictures in memory, and the splits are copies.
    test_split = Split(images[n_train:].clone(), labels[n_train:]) if test else None
    splits = with_test(folder.name, list(train), Split(images[:n_train], labels[:n_train]), test_split, test_size)
    return divided(folder.name, list(train), *splits, **options)


# ------------------------------------------------------------------------------------------------------- splits


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Orders the pictures such that every prefix holds the classes in their proportions.

    Each class first gets one picture, so n pictures have every class if n >= C. Apart from that, a prefix of length n
    is Webster's apportionment of n seats to the classes. Within a class the order is random.

    Args:
        labels: (N,) int64.
        seed: Decides the order within the classes.

    Returns:
        (N,) int64, indices into `labels`.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    grouped = shuffled[labels[shuffled].argsort(stable=True)]  # class after class, random within each
    count = labels.bincount()
    rank = torch.arange(len(labels)) - (count.cumsum(0) - count)[labels[grouped]]  # 0, 1, 2, ... within each class
    position = torch.where(rank == 0, 0.0, (rank + 0.5) / count[labels[grouped]].double())
    return grouped[position.argsort(stable=True)]


def with_test(
    name: str, classes: Sequence[str], train: Split, test: Split | None, test_size: int | float | None
) -> tuple[Split, Split]:
    """Returns the training and the test split of a data set; cuts the test split from `train` if there is none.

    The cut is stratified, and depends on the pictures and on `test_size` alone: no setting and no seed moves a picture
    between the two.

    Args:
        name: The data set's name.
        classes: The names of the classes.
        train: The training pictures, or all that there are.
        test: The data set's own test split, or None.
        test_size: The size of the test split that is cut: a count, or a share. None cuts none.

    Raises:
        UserError: There is no test split, or there are two, or a class would be left without a training picture.
    """
    require_test(name, test is not None, test_size)
    if test is not None:
        return train, test
    assert test_size is not None
    n, n_classes = len(train), len(classes)
    n_test = test_size if isinstance(test_size, int) else round(test_size * n)
    remedy = f"{name} has {n} pictures, and each of the {n_classes} classes keeps one for training."
    require(1 <= n_test <= n - n_classes, f"1 <= test pictures <= {n - n_classes}", test_size, "test_size", remedy)
    order = stratified_order(train.labels, TEST_SEED)
    rest, cut = train[order[: n - n_test]], train[order[n - n_test :]]
    untested = [str(classes[c]) for c, k in enumerate(cut.labels.bincount(minlength=n_classes)) if k == 0]
    if untested:
        note(f"{name}: {picture_files.named(untested)} {'has' if len(untested) == 1 else 'have'} no test picture.")
    return rest, cut


def require_test(name: str, there: bool, test_size: object) -> None:
    """Refuses a data set without a test split of its own if none shall be cut, and one with its own if one shall."""
    if there:
        require(test_size is None, "test_size is null", test_size, "test_size", f"{name} has a test split of its own.")
    elif test_size is None:
        raise UserError(f"`{name} has a test split` must hold, but it has none. {CUT}", "test_size")


def divided(
    name: str,
    classes: Sequence[str],
    train: Split,
    test: Split,
    validation: Split | None = None,
    *,
    val_size: int | float,
    train_fraction: float,
    split_seed: int,
    padding: int,
    flip: bool,
) -> Dataset:
    """Takes the validation pictures from the end of the stratified order, and the training pictures from its front.

    Args:
        name: The data set's name.
        classes: The names of the classes.
        train: The official training split.
        test: The official test split.
        validation: The official validation split, which leaves `val_size` unused; None cuts one from `train`.
        val_size: As in `SplitOptions`, as are the following.
        train_fraction: The share of the remaining pictures.
        split_seed: Decides the order.
        padding: As in `Dataset`.
        flip: As in `Dataset`.
    """
    n, n_classes = len(train), len(classes)
    n_validation = 0 if validation is not None else val_size if isinstance(val_size, int) else round(val_size * n)
    remedy = f"The training split has {n} pictures, and each of the {n_classes} classes keeps one for training."
    rule = f"1 <= validation pictures <= {n - n_classes}"
    require(validation is not None or 1 <= n_validation <= n - n_classes, rule, val_size, "val_size", remedy)
    require_room(n, max(train.images.shape[1:3]) + 2 * padding, "padding")
    lonely = "training picture" if validation is not None else "training picture, and so none for validation"
    for split, what in ((train, lonely), (test, "test picture")):
        lone = [str(classes[c]) for c, count in enumerate(split.labels.bincount()) if count == 1]
        if lone:
            note(f"{name}: {picture_files.named(lone)} {'has' if len(lone) == 1 else 'have'} one {what}.")
    order = stratified_order(train.labels, split_seed)
    n_left = n - n_validation
    n_train = max(n_classes, round(train_fraction * n_left))
    chosen = train[order[n_left:]] if validation is None else validation
    return Dataset(name, tuple(classes), train[order[:n_train]], chosen, test, padding, flip)


def check_options(options: SplitOptions) -> None:
    """Refuses wrong options before anything is downloaded or decoded."""
    fraction = options["train_fraction"]
    _require_size(options["val_size"], "val_size")
    in_range = type(fraction) in (int, float) and 0 < fraction <= 1
    require(in_range, "0 < train_fraction <= 1", fraction, "train_fraction")
    _require_int(options["split_seed"], "split_seed", 0)
    _require_int(options["padding"], "padding", 0)
    require(type(options["flip"]) is bool, "flip is true or false", options["flip"], "flip")


def require_test_size(test_size: object) -> None:
    """Refuses a size that no test split has; None is no size."""
    if test_size is not None:
        _require_size(test_size, "test_size")


def _require_size(size: object, key: str) -> None:
    # isinstance(True, int) is true, so the type is compared.
    is_size = (type(size) is int and size >= 1) or (type(size) is float and 0 < size < 1)
    require(is_size, f"{key} is int >= 1 (a count) or 0 < float < 1 (a share)", size, key)


def _require_int(value: object, key: str, minimum: int) -> None:
    require(type(value) is int and minimum <= value < 2**63, f"{key} is int >= {minimum}", value, key)


def require_side(image_size: object) -> None:
    """Refuses a side that no picture has."""
    whole = type(image_size) is int and 1 <= image_size <= MAX_SIDE
    require(whole, f"image_size is int, 1 <= image_size <= {MAX_SIDE}", image_size, "image_size", "It is in pixels.")


def require_room(n: int, image_size: int, key: str) -> None:
    """Refuses pictures that don't fit into the machine's memory; `key` is the argument to lower."""
    needed, there = n * image_size**2 * 3 * BYTES_PER_VALUE / 2**30, virtual_memory().total / 2**30
    if needed > there:
        size = f"{n} pictures of {image_size} x {image_size} take {needed:.3g} GiB, and the machine has {there:.3g}"
        raise UserError(f"`the data set fits in memory` must hold, but {size}. Lower it, or image_size.", key)


def folder_of(value: str, key: str) -> Path:
    """Returns the path that an argument names, with the home folder for `~`; refuses what is no path."""
    named = isinstance(value, str | Path) and str(value) != "" and "\0" not in str(value)
    require(named, f"{key} is a folder", value, key, "Name one.")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # there is no such user
        raise UserError(
            f"`{key} is a folder` must hold, but got {value!r} ({error}). Write the path out.", key
        ) from error


# -------------------------------------------------------------------------------------------------- torchvision


def _torchvision(name: str, reader: Any, root: Path, options: SplitOptions) -> Dataset:
    """Reads the data set of a torchvision class, and downloads missing files first."""

    def read(download: bool) -> tuple[Any, Any]:
        return reader(root, train=True, download=download), reader(root, train=False)

    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{root} is none and can't be made ({error.strerror})"
        raise UserError(f"`root is a folder` must hold, but {reason}. Name another.", "root") from error
    try:
        train, test = read(download=False)
    except RuntimeError:  # a file is missing, or its MD5 differs
        try:
            # Processes that start at the same time download once.
            with locked(root / f".{name}.lock"), _network_timeout(seconds=60):
                note(f"{name}: reading {root / reader.filename}, after a download from {reader.url} if it is missing")
                train, test = read(download=True)
        except (OSError, RuntimeError, HTTPException) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(
                f"{name} can neither be read from {root} nor fetched from {reader.url} ({reason}). Put "
                f"{reader.filename} (MD5 {reader.tgz_md5}) into {root}, without {reader.base_folder}/ beside it: "
                "the next start unpacks it.",
                "root",
            ) from error

    def split(data: Any) -> Split:
        return Split(torch.from_numpy(np.ascontiguousarray(data.data)), torch.tensor(data.targets))

    return divided(name, train.classes, split(train), split(test), **options)


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """Ends connections that stall for so long in this block; torchvision sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
