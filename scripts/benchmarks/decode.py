"""Decodes a folder of pictures in threads, in one thread, and from the cache that keeps decoded pictures."""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import parts
from benchmarks.measuring import ROUNDS, Figure, Finding, positive, take_turns, timed
from kdsweep.numerics import picture_files
from kdsweep.system.environment import cores
from kdsweep.system.errors import UserError
from kdsweep.system.progress import progress

# The side of pictures that are made here, which is usual for photos on the web.
MADE_SIDE = 320
ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}


def make(root: Path, n: int) -> list[str]:
    """Writes JPEG files that compress like photos, since they are smooth with a little noise; returns their names."""
    root.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    names = [f"{index:05d}.jpg" for index in range(n)]
    with progress("making pictures", n, "pictures") as advance:
        for name in names:
            coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((MADE_SIDE, MADE_SIDE), Image.Resampling.BICUBIC), np.int16)
            noisy = smooth + random.integers(-8, 9, smooth.shape, dtype=np.int16)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / name, quality=85)
            advance(1)
    return names


def found(root: Path, n: int) -> list[str]:
    """Returns the names of the first `n` pictures below a folder, relative to it.

    Raises:
        UserError: The folder has no pictures.
    """
    paths = itertools.islice((path for path in sorted(root.rglob("*")) if path.suffix.lower() in ENDINGS), n)
    names = [path.relative_to(root).as_posix() for path in paths]
    if not names:
        raise UserError(f"{root} has no pictures ({', '.join(sorted(ENDINGS))}).", "--root")
    return names


def one_thread(root: Path, names: Sequence[str], side: int) -> Callable[[], float]:
    """A side: decodes one picture after another."""
    rows = torch.empty(len(names), side, side, 3, dtype=torch.uint8).numpy()

    def decode() -> None:
        for name, row in zip(names, rows, strict=True):
            picture_files._decode_one(root / name, row)

    return lambda: timed(decode)


def measure(arguments: argparse.Namespace) -> Finding:
    """Decoding a folder of pictures: in threads and from the cache, against one thread"""
    with parts.workplace(arguments) as folder:
        root = arguments.root.absolute() if arguments.root else folder / "pictures"
        names = found(root, arguments.pictures) if arguments.root else make(root, arguments.pictures)
        warm = folder / "cache"

        def load(cache: Path) -> torch.Tensor:
            return picture_files.load(root, names, arguments.side, cache)

        first = load(warm)
        again = load(warm)
        sides = {
            "one thread": one_thread(root, names, arguments.side),
            "decoded": lambda: timed(lambda: load(Path(tempfile.mkdtemp(dir=folder)))),
            "cached": lambda: timed(lambda: load(warm)),
        }
        turns = take_turns("decode", sides, rounds=arguments.rounds, threads=cores())
    n = cores()
    figures = [
        turns.ratio("decoded and cached, against one thread", "one thread", "decoded", note=f"{n} cores"),
        turns.ratio("from the cache, against one thread", "one thread", "cached"),
        Figure(
            "pictures that differ when they come from the cache", float((first != again).flatten(1).any(1).sum()), 0.0
        ),
        *(Figure(name, len(names) / turns.median(name), unit="pictures/s") for name in sides),
    ]
    kind = f"from {root.name}" if arguments.root else f"JPEG files of {MADE_SIDE} px, made for this"
    notes = [f"{len(names)} pictures ({kind}) to {arguments.side} px."]
    return Finding("decode: pictures from files", figures, turns.values(), notes=notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, metavar="FOLDER", help="with pictures; default: some are made")
    parser.add_argument("--pictures", type=positive, default=1000, help="default: 1000")
    parser.add_argument("--side", type=positive, default=parts.SIDE, help=f"to decode to; default: {parts.SIDE} px")
    parser.add_argument("--rounds", type=positive, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.set_defaults(threads=1)
