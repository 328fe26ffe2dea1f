"""Data sets in files as others make them: NumPy's `.npz`, Parquet, and folders of Hugging Face's `datasets`."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, Unpack
from zipfile import BadZipFile

import numpy as np

from kdsweep import own_data
from kdsweep.data import Dataset, folder_of
from kdsweep.numerics.picture_files import named
from kdsweep.own_data import Kept, files_below, from_splits, require_settings, require_splits
from kdsweep.system.errors import UserError, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# The names of a split's two arrays, of Keras' files and of medmnist's.
ARRAYS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))

# The file by which `datasets` knows what it has saved: a dictionary of splits.
SAVED = "dataset_dict.json"


class Options(TypedDict):
    """What these data sets take besides their own arguments, each as in `own_data.OwnData`.

    Attributes:
        test_size: A count or a share of the training pictures, or None for the test split that the files have.
        val_size: A count, a share, or None for the validation split that the files have, or else a tenth.
        train_fraction: The share of the training pictures to train on.
        split_seed: Decides the division.
        padding: As in `Dataset`.
        flip: As in `Dataset`.
    """

    test_size: NotRequired[int | float | None]
    val_size: int | float | None
    train_fraction: float
    split_seed: int
    padding: int
    flip: bool


def npz(path: str, image_size: int | None, **options: Unpack[Options]) -> Dataset:
    """Reads pictures and labels from one `.npz` file.

    Its arrays have the names x_train, y_train, x_test and y_test, as in Keras' files, or train_images, train_labels,
    test_images and test_labels, as in medmnist's; a validation split is called val. Validation and test may be
    missing. Pictures are uint8 (N, H, W, 3), (N, H, W, 1) or (N, H, W). An array `classes` may have the names of the
    classes.

    Args:
        path: The file.
        image_size: The side to which pictures are resized (a square); None leaves them as they are.
        **options: As in `Options`.

    Raises:
        UserError: The file can't be read, it lacks an array, or an array has something else.
    """
    require_settings(options, image_size)
    file = folder_of(path, "path")
    if not file.is_file():
        raise UserError(f"`path is a file` must hold, but there is none: {file}.", "path")
    try:
        # A pickle, which could run code, is refused.
        with file.open("rb") as opened, np.lib.npyio.NpzFile(opened, allow_pickle=False) as loaded:
            arrays = dict(loaded)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        rule = f"{file.name} is an .npz file of plain arrays"
        raise UserError(f"`{rule}` must hold, but it can't be read: {one_line(error)}", "path") from error
    splits = {}
    for split in ("train", "val", "test"):
        pairs = [tuple(name.format(split) for name in names) for names in ARRAYS]
        pair = next((pair for pair in pairs if {*pair} <= arrays.keys()), None)
        if pair is not None:
            splits[split] = tuple(arrays[name] for name in pair)
        elif split == "train":
            rule = " or ".join(" and ".join(pair) for pair in pairs)
            there = named(list(arrays)) or "none"
            raise UserError(f"`{file.name} has the arrays {rule}` must hold, but it has {there}.", "path")
    classes = [str(name) for name in arrays["classes"].ravel()] if "classes" in arrays else None
    return from_splits(file.stem, splits, image_size, None, classes, **options)


def huggingface(
    path: str, image: str, label: str, cache: str, image_size: int | None, **options: Unpack[Options]
) -> Dataset:
    """Reads a folder of Parquet files, as the Hugging Face Hub has them, or one that `datasets` has saved.

    A Parquet file is of the split that its name begins with: train-00000-of-00002.parquet, test.parquet. Nothing is
    downloaded.

    Args:
        path: The folder, or what `DatasetDict.save_to_disk` was given; for that, the package `datasets` is needed.
        image: The name of the column of pictures.
        label: The name of the column of labels.
        cache: The folder of the decoded pictures.
        image_size: The side to which pictures are resized (a square); None leaves pictures of one size as they are.
        **options: As in `Options`.

    Raises:
        UserError: A package, a split or a column is missing, or a picture can't be read.
    """
    require_settings(options, image_size)
    folder = folder_of(path, "path").absolute()
    if not folder.is_dir():
        raise UserError(f"`path is a folder` must hold, but there is none: {folder}.", "path")
    splits = _saved(folder, image, label) if (folder / SAVED).is_file() else _parquet(folder, image, label)
    identity = {"path": str(folder), "image": image, "label": label, "files": files_below(folder)}
    kept = Kept(folder_of(cache, "cache"), folder.name, identity)
    return from_splits(folder.name, splits, image_size, kept, **options)


def _saved(folder: Path, image: str, label: str) -> Mapping[str, Any]:
    """Returns the splits that `datasets` has saved."""
    try:
        import datasets
    except ImportError as error:
        rule = f"datasets is installed, which has saved {folder}"
        raise UserError(f"`{rule}` must hold, but it isn't. pip install datasets", "path") from error
    loaded = {str(name): split for name, split in datasets.load_from_disk(str(folder)).items()}
    splits = require_splits(folder.name, loaded)
    for name, split in splits.items():
        _require_columns(split.column_names, image, label, name)
    own = own_data.PICTURE[0], own_data.LABEL[0]
    return {
        name: split.select_columns([image, label]).rename_columns(dict(zip((image, label), own, strict=True)))
        for name, split in splits.items()
    }


class ParquetPictures:
    """The pictures of one split in Parquet files, each an encoded picture, or `{"bytes": ...}` with one."""

    def __init__(self, files: list[Path], image: str, label: str, split: str) -> None:
        from pyarrow import ArrowInvalid, concat_tables
        from pyarrow.parquet import read_schema, read_table

        try:
            for file in files:
                _require_columns(read_schema(file).names, image, label, split)
            tables = [read_table(file, columns=[image, label]) for file in files]
        except (ArrowInvalid, OSError) as error:
            raise UserError(f"a Parquet file of {split} cannot be read: {one_line(error)}", "path") from error
        table = concat_tables(tables)
        self._pictures, self._labels = table.column(image), table.column(label).to_pylist()
        self.classes = _class_names(table.schema.metadata, label)

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Decodes a picture; returns it with its label."""
        from PIL import Image

        value = self._pictures[index].as_py()
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(encoded, bytes):
            rule = "the column of pictures has encoded pictures (PNG, JPEG)"
            raise UserError(f"`{rule}` must hold, but row {index} has a {type(encoded).__name__}.", "image")
        with Image.open(io.BytesIO(encoded)) as picture:
            picture.load()
            return picture, self._labels[index]


def _parquet(folder: Path, image: str, label: str) -> dict[str, Any]:
    """Returns the splits in a folder's Parquet files."""
    files: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        word = re.match(r"[A-Za-z]*", file.stem)
        files.setdefault(word[0] if word else "", []).append(file)
    if not files:
        remedy = f"Expected are Parquet files (train-*.parquet, test-*.parquet), or {SAVED}, which `datasets` writes."
        raise UserError(f"{folder} has no data set. {remedy}", "path")
    splits = require_splits(folder.name, files)
    return {name: ParquetPictures(those, image, label, name) for name, those in splits.items()}


def _require_columns(there: list[str], image: str, label: str, split: str) -> None:
    for key, name in (("image", image), ("label", label)):
        if name not in there:
            raise UserError(f"`{key} is a column of {split}` must hold, but it has {named(there)}, not {name!r}.", key)


def _class_names(metadata: Mapping[bytes, bytes] | None, label: str) -> list[str] | None:
    """Returns the names of the classes that `datasets` has written into a Parquet file, if it has."""
    found: Any = json.loads((metadata or {}).get(b"huggingface", b"null"))
    for key in ("info", "features", label, "names"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, list) else None
