"""Picture files: class folders, decoding in threads, and a cache of the decoded pictures."""

from __future__ import annotations

import errno
import mimetypes
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from kdsweep.system.environment import cores
from kdsweep.system.errors import UserError, require
from kdsweep.system.files import hash_identity, locked
from kdsweep.system.progress import note, progress
from kdsweep.system.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from PIL import Image

# A part of the key of decoded pictures. Increase it when `_decode_one` comes to return other pixels.
DECODER_VERSION = 1

# The largest side of a picture, in pixels. A larger one is a typing error, and would fill the memory.
MAX_SIDE = 8192

# What helps where pictures have no test split.
CUT = "Set data.test_size=0.2, and kdsweep keeps a fifth of each class apart as the test split, the same in all runs."

# The names of folders that look like splits, and like no classes.
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")
VALIDATION = ("val", "valid", "validation", "dev")

# Kinds of files by the ends of their names: Python's own list, which is the same on all machines.
_KINDS = mimetypes.MimeTypes()

# A message names this many items of a list.
N_NAMED = 5


def class_files(root: Path, test_size: object = None) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Lists the pictures of `<root>/train/<class>/*` and of `<root>/test/<class>/*`.

    With a `test_size`, which says that the test split is yet to be cut, those of `<root>/train/<class>/*` alone, or of
    `<root>/<class>/*`.

    A class may have sub-folders. Hidden files are left out. So are files whose names say that they hold something else
    (labels.csv, notes.txt), which is said. Every other file has to be a picture.

    Returns:
        For train and for test: class -> its pictures, as paths relative to `root`. Classes and paths are sorted. With
        a `test_size`, test has none.

    Raises:
        UserError: A folder is missing, a class is empty, a split has fewer than two classes, train and test have
            different classes, or there is a test split that a `test_size` would replace.
    """
    if not root.is_dir():
        raise _bad_folder(f"{root} is a file" if root.exists() else f"the folder {root} does not exist")
    others: list[str] = []
    parted = _is_parted(root)
    if parted and (unread := [name for name in _subfolders(root) if name.lower() in VALIDATION]):
        note(f"{root}: {unread[0]}/ isn't read, for validation is cut from train/ (data.val_size).")
    if test_size is None:
        train, test = _split_files(root, "train", others), _split_files(root, "test", others)
    else:
        remedy = f"{root} has a test split of its own, test/."
        require(not (parted and (root / "test").is_dir()), "test_size is null", test_size, "test_size", remedy)
        train, test = _split_files(root, "train" if parted else "", others), {}
    if test and train.keys() != test.keys():
        without_test = named(sorted(train.keys() - test.keys())) or "nothing"
        without_train = named(sorted(test.keys() - train.keys())) or "nothing"
        differences = f"only train/ has {without_test}; only test/ has {without_train}"
        raise _bad_folder(f"the classes of test/ and train/ in {root} must be the same, but {differences}")
    _note_others(root, others)
    return train, test


def pictures_below(root: Path) -> list[str]:
    """Lists the pictures in a folder and its sub-folders as sorted paths relative to it, but for hidden ones.

    Files whose names say that they hold something else are left out, which is said.
    """
    names = [os.path.normpath(name) for name in _files(root, root)]
    pictures = sorted(name for name in names if _may_be_picture(name))
    _note_others(root, [name for name in names if not _may_be_picture(name)])
    return pictures


def load(root: Path, names: Sequence[str], image_size: int, cache: Path) -> Tensor:
    """Returns pictures as square RGB, from the cache; decodes them into the cache if they aren't there.

    A picture is turned as its EXIF orientation says, and resized to a square (bilinear, antialiased), whatever its
    shape. All pictures are decoded again when a name, a size or a modification time has changed.

    Args:
        root: The absolute folder of the pictures.
        names: Their paths relative to `root`.
        image_size: The side of the pictures, in pixels.
        cache: The folder of the decoded pictures.

    Returns:
        (N, S, S, 3) uint8, in the order of `names`.

    Raises:
        UserError: Pictures can't be read (key "root"), or the cache can't be written (key "cache").
        OSError: The disk is full.
    """
    stamps = [stamp(root, name) for name in names]
    identity = {"root": str(root), "files": stamps, "image_size": image_size, "decoder": DECODER_VERSION}
    path = cache / f"{root.name}-{image_size}px-{hash_identity(identity)}.safetensors"
    with cache_faults(cache):
        cache.mkdir(parents=True, exist_ok=True)
        # Processes that start at the same time decode once: the others wait here, and then read.
        with locked(path.with_suffix(".lock")):
            stored = read_tensors(path)
            if stored is not None:
                return stored["pictures"]
            pictures = _decode(root, names, image_size)
            write_tensors(path, {"pictures": pictures})
            return pictures


@contextmanager
def cache_faults(cache: Path) -> Iterator[None]:
    """Explains why decoded pictures can't be kept in a folder, where the block fails at that.

    Raises:
        UserError: The cache can't be read or written (key "cache").
        OSError: The disk is full.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the message has to say that the disk is full
        reason = " ".join(str(error).split())
        raise UserError(f"{cache} cannot keep decoded pictures ({reason}). Choose another folder.", "cache") from error


def _decode(root: Path, names: Sequence[str], image_size: int) -> Tensor:
    """Decodes pictures in one thread for each core that this process may use (Pillow releases the GIL)."""
    pictures = torch.empty(len(names), image_size, image_size, 3, dtype=torch.uint8)
    rows = pictures.numpy()

    def decode(chunk: Sequence[int]) -> list[tuple[str, str | None]]:
        return [(names[i], _decode_one(root / names[i], rows[i])) for i in chunk]

    unreadable = []
    # Handing over small pictures one by one takes as long as decoding them, so a thread gets 32 at a time.
    chunks = [range(len(names))[start : start + 32] for start in range(0, len(names), 32)]
    pool = ThreadPoolExecutor(cores())
    try:
        with progress("decoding", len(names), "pictures") as advance:
            for done in pool.map(decode, chunks):
                advance(len(done))
                unreadable += [(name, fault) for name, fault in done if fault is not None]
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C doesn't wait for all pictures
    if unreadable:
        listed = named([name for name, _ in unreadable])
        message = f"{len(unreadable)} of {len(names)} pictures in {root} cannot be read: {listed}"
        raise UserError(f"{message} (the first: {unreadable[0][1]}). Remove or replace them.", "root")
    return pictures


def _decode_one(path: Path, row: np.ndarray) -> str | None:
    """Decodes the picture at `path` into `row`, (S, S, 3) uint8; returns what is wrong with the picture, or None."""
    from PIL import Image, UnidentifiedImageError

    # Opening a pipe would wait for a writer, possibly for ever.
    if not path.is_file():
        return "a link to nothing" if not path.exists() else "neither a file nor a link to one"
    try:
        with Image.open(path) as file:
            row[:] = np.asarray(as_rgb(file).resize(row.shape[:2], Image.Resampling.BILINEAR))
    except UnidentifiedImageError:
        return "not a picture"
    # For damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error, EOFError and others.
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def as_rgb(picture: Image.Image) -> Image.Image:
    """Returns a picture as RGB, turned as its EXIF orientation says.

    Raises:
        ValueError: Its numbers have no known range.
    """
    from PIL import Image, ImageOps

    turned: Image.Image = ImageOps.exif_transpose(picture)
    if turned.mode in ("I", "F"):
        raise ValueError(f"mode {turned.mode}, 32 bits a pixel without a known range")
    if turned.mode.startswith("I;16"):  # Pillow would clip its values to 255, which makes it white
        turned = Image.fromarray((np.asarray(turned) // 257).astype(np.uint8))
    if "transparency" in turned.info:  # Pillow warns if a palette with transparency becomes RGB directly
        turned = turned.convert("RGBA")
    return turned.convert("RGB")


def _note_others(root: Path, others: list[str]) -> None:
    if others:
        number = "1 file is" if len(others) == 1 else f"{len(others)} files are"
        note(f"{root}: {number} skipped, whose name isn't that of a picture: {named(others)}.")


def _is_parted(root: Path) -> bool:
    """Returns whether a folder is parted into splits; train/ without folders may be a class of trains."""
    return (root / "test").is_dir() or ((root / "train").is_dir() and bool(_subfolders(root / "train")))


def _split_files(root: Path, split: str, others: list[str]) -> dict[str, list[str]]:
    """Returns the classes of a split, each with its pictures as sorted paths relative to `root`.

    Files that hold no pictures, by their names, are added to `others`.

    Args:
        root: The folder.
        split: "train" or "test", or "" if the class folders lie in `root` itself.
        others: Gets the other files.
    """
    folder = root / split
    if not folder.is_dir():
        deeper = [name for name in _subfolders(root) if (root / name / split).is_dir()]
        below = _subfolders(root)
        remedy = ""
        if deeper:
            remedy = f". {root / deeper[0]} has one: name it"
        elif split == "test":
            remedy = f". {CUT}"
        elif len(below) > 1:
            remedy = f", but the folders {named(below)}. If they are the classes, {CUT[0].lower()}{CUT[1:]}"
        raise _bad_folder(f"{root} has no folder {split}/{remedy}")
    names = _subfolders(folder)
    if not names:
        raise _bad_folder(f"{folder} has no class folders")
    splits = [name for name in names if name.lower() in SPLITS]
    if split == "" and len(splits) > 1:
        raise _bad_folder(
            f"{named(splits)} in {folder} look like splits, and not like classes. Call them train and test"
        )
    if len(names) == 1:
        raise _one_class(folder, names[0])
    files = {name: _files(root, folder / name) for name in names}
    classes = {name: [path for path in paths if _may_be_picture(path)] for name, paths in files.items()}
    others += [path for paths in files.values() for path in paths if not _may_be_picture(path)]
    if empty := [name for name, files in classes.items() if not files]:
        raise _bad_folder(f"in {folder} these class folders have no pictures: {named(empty)}")
    return classes


def _one_class(folder: Path, name: str) -> UserError:
    """Returns the error for a split with a single class folder, which says so if the classes lie deeper."""
    message = f"a data set has at least two classes, but {folder} has one class folder, {name!r}"
    inner = folder / name
    while len(below := _subfolders(inner)) == 1:
        inner /= below[0]
    if below:
        message += f". If {named(below)} in {inner} are the classes, move them to {folder}"
    return _bad_folder(message)


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _ignored(entry.name))


def _files(root: Path, folder: Path) -> list[str]:
    found = []
    for place, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not _ignored(name)]
        found += [os.path.relpath(place, root) + "/" + name for name in files if not _ignored(name)]
    return sorted(found)


def _may_be_picture(name: str) -> bool:
    """Returns whether a file's name says that it is a picture, or says nothing."""
    kind = _KINDS.guess_type(name)[0]
    return kind is None or kind.startswith("image/") or kind == "application/postscript"


def _ignored(name: str) -> bool:
    """Returns whether a file is hidden, or one that desktops leave behind: .DS_Store, ._picture.jpg, Thumbs.db."""
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini", "__MACOSX")


def stamp(root: Path, name: str) -> tuple[str, int, int]:
    """Returns a file's name, size in bytes and modification time in nanoseconds."""
    try:
        stat = (root / name).stat()
    except OSError:  # a link to nothing: `_decode` reports it as unreadable
        return name, -1, -1
    return name, stat.st_size, stat.st_mtime_ns


def _bad_folder(message: str) -> UserError:
    remedy = "Expected are <root>/train/<class>/* and <root>/test/<class>/*, or with data.test_size <root>/<class>/*."
    return UserError(f"{message.removesuffix('.')}. {remedy}", "root")


def named(items: Sequence[str]) -> str:
    """Returns the first few items as text for a message, and how many more there are."""
    more = len(items) - N_NAMED
    # repr: a name may hold a line break.
    return ", ".join(map(repr, items[:N_NAMED])) + (f" and {more} more" if more > 0 else "")
