"""Data sets of the user's own: any function or class that gives pictures and labels becomes a `Dataset` in memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kdsweep.data import (
    Dataset,
    Split,
    check_options,
    divided,
    folder_of,
    require_room,
    require_side,
    require_test,
    require_test_size,
    with_test,
)
from kdsweep.numerics.picture_files import DECODER_VERSION, as_rgb, cache_faults, named, stamp
from kdsweep.own_arguments import name_of, require_arguments
from kdsweep.system.errors import UserError, require
from kdsweep.system.files import hash_identity, locked
from kdsweep.system.progress import note, progress
from kdsweep.system.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from PIL import Image

# The settings that kdsweep adds to those of the user's function.
SETTINGS = ("image_size", "test_size", "val_size", "train_fraction", "split_seed", "padding", "flip", "cache")

# The names of splits, as data sets have them.
TRAIN, VALIDATION, TEST = ("train", "training"), ("val", "valid", "validation", "dev"), ("test", "testing")

# The names of the columns, where an item of a data set is a mapping.
PICTURE, LABEL = ("image", "img"), ("label", "labels", "fine_label")

# The share of the training pictures that validation gets, unless the data set has a validation split of its own.
VALIDATION_SHARE = 0.1

# Decoded pictures are kept where decoding them takes longer, in seconds.
WORTH_KEEPING = 2.0

# So many pictures of each split are compared with those that were kept.
N_COMPARED = 32

# The first picture is read so often: a random change of it shows.
N_READ = 6


class Pictures(Protocol):
    """A split of a data set of the user's own, as torchvision's data sets are.

    If it has `classes`, a sequence of names in the order of the labels, they become the names of the classes.
    """

    def __len__(self) -> int:
        """The number of pictures."""

    def __getitem__(self, index: int) -> tuple[Image.Image | np.ndarray | Tensor, int]:
        """Reads one picture, always as it is: kdsweep makes the views.

        Args:
            index: From 0 to the number of pictures.

        Returns:
            A picture, and its label, the index of a class (0 to C - 1). The picture is a PIL picture of any mode, a
            uint8 array (H, W), (H, W, 1) or (H, W, 3), or a uint8 tensor (H, W), (1, H, W) or (3, H, W). Values lie
            between 0 and 255, in the order red, green, blue.
        """


class DataFunction(Protocol):
    """What `data._target_` names: a function that returns the splits of a data set, or a class of such.

    All arguments come from the configuration.
    """

    def __call__(self, **arguments: Any) -> Sequence[Any] | Mapping[str, Any] | Dataset:
        """Gives the splits.

        Returns:
            A pair (train, test), or a mapping with "train", "test", and "val" if there is a validation split, or an
            object that has them as attributes, or one split alone, from which `data.test_size` cuts the test split.
            Each split is a `Pictures`, or a pair of arrays: pictures (N, H, W, 3),
            (N, H, W, 1) or (N, H, W) uint8, and labels (N,). A whole `kdsweep.Dataset` is taken as it is.
        """


@dataclass(frozen=True)
class OwnData:
    """A data set of the user's own as the configuration describes it.

    Attributes:
        function: The user's function or class.
        make: Calls it with the configured arguments.
        arguments: The configured arguments.
        sources: The hash of each file of the user's code that the function is made of.
        image_size: The side in pixels to which every picture is resized (a square); None leaves pictures of one size as
            they are.
        test_size: As in `data.with_test`; None takes the data set's own test split.
        val_size: As in `SplitOptions`; None takes the data set's own validation split, or `VALIDATION_SHARE`.
        train_fraction: As in `SplitOptions`.
        split_seed: As in `SplitOptions`.
        padding: As in `Dataset`.
        flip: As in `Dataset`.
        cache: The folder of decoded pictures; None keeps none.
    """

    function: Callable[..., object]
    make: Callable[[], object]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    image_size: int | None = None
    test_size: int | float | None = None
    val_size: int | float | None = None
    train_fraction: float = 1.0
    split_seed: int = 0
    padding: int = 4
    flip: bool = True
    cache: str | None = None

    def __post_init__(self) -> None:
        require_settings(self._options(), self.image_size)
        require_arguments(self.function, self.arguments, SETTINGS)

    def load(self) -> Dataset:
        """Calls the function, and decodes its pictures, or reads them from the cache.

        Raises:
            UserError: The function returns something else than the splits of a data set, or a picture or a label is
                none that can be trained on.
        """
        name, made = name_of(self.function), self.make()
        if isinstance(made, Dataset):
            for setting in fields(self):
                value = getattr(self, setting.name)
                alone = setting.name not in SETTINGS or setting.name == "cache" or value == setting.default
                remedy = f"{name} returns a whole kdsweep.Dataset, and so has to decide this itself."
                require(alone, f"{setting.name} is left alone", value, setting.name, remedy)
            return made
        splits = require_splits(name, made)
        paths = sorted(filter(None, (_path_of(value) for value in self.arguments.values())))
        kept = None
        # Nothing else tells that the pictures behind a function are the same as before.
        if self.cache is not None and paths:
            target = f"{self.function.__module__}.{name}"
            code = {"target": target, "arguments": dict(self.arguments), "sources": dict(self.sources)}
            kept = Kept(folder_of(self.cache, "cache"), name, {**code, "files": [files_below(path) for path in paths]})
        return from_splits(name, splits, self.image_size, kept, **self._options())

    def _options(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in SETTINGS if key not in ("image_size", "cache")}


@dataclass(frozen=True)
class Kept:
    """Where decoded pictures are kept, and what tells them from others.

    Attributes:
        folder: The cache.
        name: The data set's name.
        identity: What the pictures depend on, apart from their size.
    """

    folder: Path
    name: str
    identity: Mapping[str, Any]

    def path(self, image_size: int | None, lengths: Mapping[str, int]) -> Path:
        """Returns the file for pictures of this size."""
        made_of = {**self.identity, "image_size": image_size, "lengths": dict(lengths), "decoder": DECODER_VERSION}
        side = "" if image_size is None else f"-{image_size}px"
        return self.folder / f"{self.name}{side}-{hash_identity(made_of)}.safetensors"


def require_settings(options: Mapping[str, Any], image_size: int | None) -> None:
    """Refuses wrong settings before anything is read; `val_size`, `test_size` and `image_size` may be None."""
    share = VALIDATION_SHARE if options["val_size"] is None else options["val_size"]
    check_options({**options, "val_size": share})  # type: ignore[typeddict-item]
    require_test_size(options.get("test_size"))
    if image_size is not None:
        require_side(image_size)


def require_splits(name: str, made: object) -> dict[str, Any]:
    """Returns the splits that a function has returned under the names train, test and val.

    One split alone is the training split.

    Raises:
        UserError: They are no pair and no mapping, or train isn't among them.
    """
    remedy = 'Return a pair (train, test), or {"train": ..., "test": ...}, with "val" if there is one.'
    if isinstance(made, Mapping):
        kinds = {key: known[0] for known in (TRAIN, VALIDATION, TEST) for key in known if key in made}
        found = {kind: made[key] for key, kind in kinds.items()}
        if "train" not in found or len(found) != len(made):
            rule = "the splits are train, test and at most val"
            there = named([str(key) for key in made]) or "none"
            raise UserError(f"`{rule}` must hold, but {name} returned {there}. {remedy}")
        return found
    if hasattr(made, "train") and hasattr(made, "test"):
        own = {key: getattr(made, key, None) for key in ("train", "val", "test")}
        return {key: split for key, split in own.items() if split is not None}
    if isinstance(made, tuple | list) and len(made) == 2 and not _is_arrays(made):
        return {"train": made[0], "test": made[1]}
    if _is_arrays(made) or (_is_split(made) and not isinstance(made, tuple | list)):
        return {"train": made}
    raise UserError(f"`{name} returns splits` must hold, but it returned a {type(made).__name__}. {remedy}")


def from_splits(
    name: str,
    splits: Mapping[str, Any],
    image_size: int | None,
    kept: Kept | None = None,
    classes: Sequence[str] | None = None,
    *,
    test_size: int | float | None = None,
    val_size: int | float | None,
    train_fraction: float,
    split_seed: int,
    padding: int,
    flip: bool,
) -> Dataset:
    """Decodes the splits of a data set into memory.

    Args:
        name: The data set's name.
        splits: "train", and "test" and "val" if the data set has them: each a `Pictures` or a pair of arrays.
        image_size: The side to which pictures are resized; None leaves pictures of one size as they are.
        kept: Where decoded pictures are kept; None keeps none.
        classes: The names of the classes; None asks the training split for them, and takes the numbers if it has none.
        test_size: As in `OwnData`, as are the following.
        val_size: The validation split's size.
        train_fraction: The share of the training pictures.
        split_seed: Decides the order.
        padding: As in `Dataset`.
        flip: As in `Dataset`.

    Raises:
        UserError: A picture or a label is none that can be trained on, or sizes differ.
    """
    options: dict[str, Any] = {"train_fraction": train_fraction, "split_seed": split_seed, "padding": padding}
    options |= {"flip": flip, "val_size": VALIDATION_SHARE if val_size is None else val_size}
    if "val" in splits:
        remedy = f"{name} has a validation split of its own."
        require(val_size is None, "val_size is null", val_size, "val_size", remedy)
    for split, items in splits.items():
        if not _is_split(items):
            rule = f"{split} has pictures with labels, by len(...) and [index]"
            raise UserError(f"`{rule}` must hold, but in {name} it is a {type(items).__name__}.")
    require_test(name, "test" in splits, test_size)  # before all pictures are decoded
    decoded = _decoded(splits, image_size, kept)
    names = _classes(name, _names(splits["train"]) if classes is None else classes, decoded)
    train, test = with_test(name, names, decoded["train"], decoded.get("test"), test_size)
    return divided(name, names, train, test, decoded.get("val"), **options)


def files_below(path: Path) -> list[tuple[str, int, int]]:
    """Returns name, size and modification time of a file, or of all files in a folder that aren't hidden."""
    if path.is_file():
        return [stamp(path.parent, path.name)]
    found = []
    for place, folders, files in os.walk(path, followlinks=True):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        below = os.path.relpath(place, path)
        found += [stamp(path, f"{below}/{file}") for file in sorted(files) if not file.startswith(".")]
    return found


# ------------------------------------------------------------------------------------------------------ decoding


def _decoded(splits: Mapping[str, Any], image_size: int | None, kept: Kept | None) -> dict[str, Split]:
    """Returns the pictures of each split, from the cache if they are there and agree with some that are read anew."""
    if kept is None:
        return _read(splits, image_size)
    path = kept.path(image_size, {name: _length(split) for name, split in splits.items()})
    with ExitStack() as stack:
        with cache_faults(kept.folder):
            kept.folder.mkdir(parents=True, exist_ok=True)
            # Processes that start at the same time decode once: the others wait here, and then read.
            stack.enter_context(locked(path.with_suffix(".lock")))
            stored = read_tensors(path)
        if stored is not None:
            found = {name: Split(stored[f"{name}.images"], stored[f"{name}.labels"]) for name in splits}
            if _agree(splits, found, image_size):
                return found
            note(f"{kept.name}: its pictures have changed, so they are decoded again.")
        start = time.perf_counter()
        found = _read(splits, image_size)
        if time.perf_counter() - start > WORTH_KEEPING:
            tensors = {f"{name}.{part}": value for name, split in found.items() for part, value in vars(split).items()}
            with cache_faults(kept.folder):
                write_tensors(path, tensors)
    return found


def _agree(splits: Mapping[str, Any], found: Mapping[str, Split], image_size: int | None) -> bool:
    """Returns whether some pictures and labels of each split are the ones that were kept."""
    for name, split in splits.items():
        n = len(found[name])
        for index in np.linspace(0, n - 1, min(n, N_COMPARED)).astype(int).tolist():
            picture, label = _item(split, index, f"{name}[{index}]")
            rgb = _array(picture, image_size, f"{name}[{index}]")
            same = np.array_equal(rgb, found[name].images[index].numpy())
            if not same or label != int(found[name].labels[index]):
                return False
    return True


def _read(splits: Mapping[str, Any], image_size: int | None) -> dict[str, Split]:
    """Reads and decodes all pictures."""
    lengths = {name: _length(split) for name, split in splits.items()}
    for name, n in lengths.items():
        if n == 0:
            raise UserError(f"`each split has pictures` must hold, but {name} has none.")
    _refuse_random(splits["train"], image_size)
    first = _array(_item(splits["train"], 0, "train[0]")[0], image_size, "train[0]")
    require_room(sum(lengths.values()), max(first.shape[:2]), "image_size")
    found = {}
    with progress("decoding", sum(lengths.values()), "pictures") as advance:
        for name, split in splits.items():
            whole = _whole_arrays(split, image_size)
            if whole is not None and whole.images.shape[1:] == first.shape:
                found[name] = whole
                advance(len(whole))
                continue
            images, labels = torch.empty(lengths[name], *first.shape, dtype=torch.uint8), []
            rows = images.numpy()
            for index in range(lengths[name]):
                what = f"{name}[{index}]"
                picture, label = _item(split, index, what)
                row = _array(picture, image_size, what)
                if row.shape != first.shape:
                    sizes = f"{what} has {_size(row)} pixels, and train[0] {_size(first)}"
                    remedy = f"Set image_size, such as {min(first.shape[:2])}, and each is resized to a square."
                    raise UserError(f"`all pictures have one size` must hold, but {sizes}. {remedy}", "image_size")
                rows[index] = row
                labels.append(label)
                advance(1)
            found[name] = Split(images, torch.tensor(labels))
    return found


def _refuse_random(split: Any, image_size: int | None) -> None:
    """Refuses a picture that is another one each time, such as by a random crop."""
    read = [_array(_item(split, 0, "train[0]")[0], image_size, "train[0]") for _ in range(N_READ)]
    if any(not np.array_equal(read[0], other) for other in read[1:]):
        raise UserError(
            "`a picture is the same each time` must hold, but train[0] has changed when it was read again. Leave out "
            "random transforms: kdsweep decodes each picture once, and makes its views itself (padding, flip)."
        )


def _whole_arrays(split: Any, image_size: int | None) -> Split | None:
    """Returns a split that is a pair of arrays, if nothing has to be resized; None otherwise."""
    if not _is_arrays(split) or not isinstance(split[0], np.ndarray):
        return None
    images, labels = split[0], np.asarray(split[1])
    images = images[..., None] if images.ndim == 3 else images
    labelled = labels.dtype.kind in "iu" and labels.size > 0 and labels.min() >= 0
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not labelled:
        return None  # the rules for single pictures say what is wrong
    if image_size is not None and images.shape[1:3] != (image_size, image_size):
        return None
    rgb = np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)))
    # copy: an array that is mapped from a file can't be written, which torch warns of.
    return Split(torch.from_numpy(rgb.copy()), torch.from_numpy(labels.reshape(len(labels)).astype(np.int64)))


def _is_arrays(value: Any) -> bool:
    """Returns whether something is a pair of arrays, the pictures of a split and their labels."""
    pair = isinstance(value, tuple | list) and len(value) == 2
    return pair and all(isinstance(part, np.ndarray | Tensor) for part in value)


def _is_split(value: object) -> bool:
    """Returns whether something may be read as pictures with labels."""
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str | Mapping)


def _length(split: Any) -> int:
    if not _is_arrays(split):
        return len(split)
    images, labels = split
    if len(images) != len(labels) or np.asarray(labels).size != len(labels):
        shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
        raise UserError(f"`each picture has one label` must hold, but the arrays have the shapes {shapes}.")
    return len(images)


def _item(split: Any, index: int, what: str) -> tuple[Any, int]:
    """Returns a picture, undecoded, and its label."""
    item = (split[0][index], split[1][index]) if _is_arrays(split) else split[index]
    if isinstance(item, Mapping):
        keys = [next((key for key in known if key in item), None) for known in (PICTURE, LABEL)]
        if None in keys:
            rule = "a picture has the key image, and its label the key label"
            raise UserError(f"`{rule}` must hold, but {what} has {named(list(map(str, item)))}. Rename the columns.")
        item = (item[keys[0]], item[keys[1]])
    if not isinstance(item, tuple | list) or len(item) != 2:
        kind = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, tuple | list) else "")
        raise UserError(f"`an item is a pair (picture, label)` must hold, but {what} is {kind}.")
    return item[0], _label(item[1], what)


def _label(value: object, what: str) -> int:
    if isinstance(value, Tensor | np.ndarray | np.generic):
        plain = np.asarray(value)
        value = plain.item() if plain.size == 1 else f"an array {plain.shape}"
    if type(value) is not int or value < 0:
        rule = "a label is the index of a class, 0 to C - 1"
        raise UserError(f"`{rule}` must hold, but the label of {what} is {value!r}.")
    return value


def _array(picture: Any, image_size: int | None, what: str) -> np.ndarray:
    """Returns a picture as uint8 (H, W, 3), resized to a square if a size is given (bilinear, antialiased)."""
    from PIL import Image

    if isinstance(picture, Image.Image):
        try:
            shown = as_rgb(picture)
        except ValueError as error:
            raise UserError(f"{what} cannot be read ({error}). Convert it to RGB.") from error
    else:
        rgb = _of_array(picture, what)
        if image_size is None or rgb.shape[:2] == (image_size, image_size):
            return rgb
        shown = Image.fromarray(rgb)
    size = shown.size if image_size is None else (image_size, image_size)
    return np.asarray(shown if shown.size == size else shown.resize(size, Image.Resampling.BILINEAR))


def _of_array(picture: Any, what: str) -> np.ndarray:
    """Returns an array or a tensor as uint8 (H, W, 3)."""
    rule = "a picture is a PIL picture, or a uint8 array (H, W, 3) or (H, W), or a uint8 tensor (3, H, W)"
    if not isinstance(picture, np.ndarray | Tensor):
        raise UserError(f"`{rule}` must hold, but {what} is a {type(picture).__name__}.")
    found = f"a tensor {picture.dtype}" if isinstance(picture, Tensor) else f"an array {picture.dtype}"
    message = f"`{rule}` must hold, but {what} is {found} {tuple(picture.shape)}."
    if str(picture.dtype).removeprefix("torch.") != "uint8":
        raise UserError(f"{message} Leave out ToTensor and Normalize: kdsweep normalises (mean, std of the network).")
    if isinstance(picture, Tensor):
        picture = (picture.permute(1, 2, 0) if picture.ndim == 3 else picture).contiguous().numpy()
    if picture.ndim == 2:
        picture = picture[..., None]
    if picture.ndim != 3 or picture.shape[2] not in (1, 3) or picture.size == 0:
        raise UserError(message)
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))


def _size(row: np.ndarray) -> str:
    return f"{row.shape[0]} x {row.shape[1]}"


# ------------------------------------------------------------------------------------------------------- classes


def _classes(name: str, names: Sequence[str] | None, decoded: Mapping[str, Split]) -> Sequence[str]:
    """Returns the names of the classes: those that are given, or else numbers."""
    counts = decoded["train"].labels.bincount()
    if names is None:
        absent = (counts == 0).nonzero().flatten().tolist()
        if absent:
            rule = "the labels of the training pictures are 0 to C - 1"
            first = " Let the labels begin at 0." if absent[0] == 0 else ""
            remedy = f"{first} If the data set has other classes, name them all (`classes`)."
            message = f"in {name} the largest is {len(counts) - 1}, and none is {named(absent)}"
            raise UserError(f"`{rule}` must hold, but {message}.{remedy}")
        names = [str(label) for label in range(len(counts))]
    for split, its in decoded.items():
        largest = int(its.labels.max())
        if largest >= len(names):
            rule = f"labels are 0 to {len(names) - 1}"
            raise UserError(f"`{rule}` must hold for {len(names)} classes, but {split} of {name} has {largest}.")
    return names


def _names(split: Any) -> list[str] | None:
    """Returns the names of a data set's classes, as torchvision's (`classes`) or those of Hugging Face have them."""
    names = getattr(split, "classes", None)
    features = getattr(split, "features", None)
    if names is None and isinstance(features, Mapping):
        names = next((getattr(features[key], "names", None) for key in LABEL if key in features), None)
    if isinstance(names, str) or not isinstance(names, Sequence) or len(names) == 0:
        return None
    return [str(name) for name in names]


def _path_of(value: object) -> Path | None:
    """Returns the file or folder that an argument names, if there is one."""
    if not isinstance(value, str) or not value:
        return None
    try:
        path = Path(value).expanduser().absolute()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None
