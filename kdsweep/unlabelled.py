"""A folder of pictures without labels, beside the pictures of a data set."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from kdsweep.data import NONE, REST, folder_of, require_room
from kdsweep.numerics import picture_files
from kdsweep.system.errors import UserError, require
from kdsweep.system.progress import note

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from kdsweep.data import Dataset

KEY = "unlabelled"


def is_folder(source: object) -> bool:
    """Returns whether a data set's `unlabelled` names a folder."""
    return source not in (NONE, REST)


def with_folder(data: Dataset, source: str, cache: Path) -> Dataset:
    """Adds the pictures of a folder and its sub-folders to a data set, without labels, in the size of its own.

    Pictures that are in the validation split or in the test split too, pixel by pixel, are left out, which is said.

    Args:
        data: The data set.
        source: The folder. Hidden files are skipped, and files whose names say that they hold no pictures.
        cache: The folder of decoded pictures.

    Raises:
        UserError: There is no such folder, it has no pictures, one can't be read, or the data set's aren't squares
            (key "unlabelled").
    """
    folder = folder_of(source, KEY).absolute()
    if not folder.is_dir():
        rule = "unlabelled is none, rest or a folder of pictures"
        raise UserError(f"`{rule}` must hold, but there is no folder {folder}. Name another.", KEY)
    height, width = data.train.images.shape[1:3]
    require(height == width, "pictures are squares", f"{height} x {width}", KEY, "Set data.image_size.")
    names = picture_files.pictures_below(folder)
    if not names:
        raise UserError(f"`the folder has pictures` must hold, but {folder} has none. Name another.", KEY)
    require_room(len(names), height, KEY)
    try:
        found = picture_files.load(folder, names, height, cache)
    except UserError as error:
        raise UserError(error.message, KEY if error.key == "root" else error.key) from error
    kept = _not_in(found, (data.validation.images, data.test.images))
    if len(kept) < len(found):
        left_out = len(found) - len(kept)
        note(f"{folder}: {left_out} of {len(found)} pictures are left out, for validation or test have them too.")
    if len(kept) == 0:
        raise UserError(f"all pictures of {folder} are validation or test pictures. Name another folder.", KEY)
    return dataclasses.replace(data, unlabelled=kept)


def _not_in(pictures: Tensor, others: tuple[Tensor, ...]) -> Tensor:
    """Returns the pictures (N, H, W, 3) that equal none of the others."""
    known = {picture.numpy().tobytes() for split in others for picture in split}
    fresh = [picture.numpy().tobytes() not in known for picture in pictures]
    return pictures if all(fresh) else pictures[torch.tensor(fresh)]
