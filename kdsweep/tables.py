"""Tables: outputs of a frozen network, computed once for all runs and kept on disk.

A table folder is named by the hash of everything that its numbers depend on, and holds one file for each pass. A file
is whole or absent (written aside and renamed) and carries a checksum; it is read as a memory map. A long pass is
computed in parts, which all processes that wait for it share among them: a process that is killed costs its part.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdsweep.system.errors import RunError
from kdsweep.system.files import atomic_path, hash_identity, if_free, locked
from kdsweep.system.progress import progress
from kdsweep.system.tensor_files import read_tensors, write_tensors

# How many rows are computed anew before a table from disk is believed.
ROWS_CHECKED = 4

# Batches in a part of a pass.
PART_BATCHES = 16

# How often one who waits for others' parts looks for them.
WAIT_SECONDS = 0.2

Compute = Callable[[Tensor], Tensor]
Advance = Callable[[int], None]


class _StoppedError(Exception):
    """Nobody needs the part any more."""


class TableMismatchError(RunError):
    """A table's rows are not what the network answers now."""


class Tables:
    """The outputs of one frozen network.

    Args:
        root: Folder in which the folders of all networks' tables stand.
        identity: Everything that the numbers depend on (weights, preprocessing, precision, data, views), JSON-able.
        batch_size: Rows computed at a time.
        tolerance: Largest difference, relative to the largest output, allowed between a row on disk and the same row
            computed now; batches of other sizes may be summed in another order.
    """

    def __init__(self, root: Path, identity: dict[str, Any], batch_size: int, tolerance: float) -> None:
        self.key = hash_identity(identity)
        self.folder = root / self.key
        self._identity, self._batch_size, self._tolerance = identity, batch_size, tolerance
        self._verified: set[str] = set()

    def rows(self, name: str, n: int, compute: Compute, check: Compute | None = None) -> Tensor:
        """The outputs for rows 0 .. n-1 of the pass called `name`: (n, outputs) float32, from disk if they are there.

        Args:
            name: File name of the pass, such as "pass-0007".
            n: Number of rows.
            compute: Row indices (B,) int64 -> outputs (B, outputs).
            check: The same, by which a few rows are compared; None: `compute`.

        Raises:
            TableMismatchError: The file is whole, but the network now answers something else.
            OSError: It can't be written: `errno` ENOSPC where no space is left.
        """
        path = self._path(name)
        version = _version(path)
        table = _read(path, n)
        if table is None:
            table = self._filled(path, n, version, compute)
        if name not in self._verified:
            self._verify(path, table, compute if check is None else check)
            self._verified.add(name)
        return table

    def has(self, name: str) -> bool:
        """Whether the pass called `name` has a file; that it is whole only `rows` finds out."""
        return self._path(name).exists()

    def fill_part(self, name: str, n: int, compute: Compute, stop: Callable[[], bool]) -> bool:
        """Computes one part of a pass that nobody else computes now; whether there was one, and it was not stopped.

        Args:
            name, n, compute: As for `rows`.
            stop: Asked after each batch; on True what has been computed of the part is dropped.
        """

        def advance(rows: int) -> None:
            if stop():
                raise _StoppedError

        for part in self._parts(self._path(name), n):
            with suppress(_StoppedError):
                if self._fill(part, lambda: self.has(name), compute, advance):
                    return True
                continue
            return False
        return False

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _filled(self, path: Path, n: int, version: tuple[int, int] | None, compute: Compute) -> Tensor:
        """The table of a pass without a good file, computed here as far as others don't.

        Args:
            version: Of the file, before it was found to be absent or damaged; another one means that it was made.
        """

        def made() -> bool:
            return _version(path) != version

        parts = self._parts(path, n)
        with progress(f"teacher {path.stem}", total=n) as advance:
            if len(parts) > 1:
                self._fill_all(parts, made, compute, advance)
            with locked(Path(f"{path}.lock")):
                # Another process may have made it meanwhile; a damaged one is read, and complained of, once.
                table = _read(path, n) if made() else None
                if table is None:
                    # Of a part that is damaged, or of a pass of one part, the rows may still be to be computed.
                    found = [_read(part, len(_rows_of(part))) for part in parts]
                    pairs = zip(parts, found, strict=True)
                    table = torch.cat(
                        [self._computed(part, compute, advance) if rows is None else rows for part, rows in pairs]
                    )
                    self._write(path, table)
                    if not any(rows is not None for rows in found):  # all of it was computed here and now
                        self._verified.add(path.stem)
        shutil.rmtree(parts[0].parent, ignore_errors=True)
        return table

    def _parts(self, path: Path, n: int) -> list[Path]:
        """The files of a pass's parts, named for their rows: `pass-0007.parts/00001024-00002048.safetensors`."""
        size = PART_BATCHES * self._batch_size
        bounds = [(start, min(start + size, n)) for start in range(0, n, size)]
        return [path.with_suffix(".parts") / f"{start:08d}-{end:08d}.safetensors" for start, end in bounds]

    def _fill_all(self, parts: list[Path], made: Callable[[], bool], compute: Compute, advance: Advance) -> None:
        """Computes parts that nobody else computes, until all are there or the whole pass is `made`."""
        missing = parts
        while missing and not made():
            own = [part for part in missing if self._fill(part, made, compute, advance)]
            others = [part for part in missing if part not in own and part.exists()]
            advance(sum(len(_rows_of(part)) for part in others))
            missing = [part for part in missing if part not in own and part not in others]
            if missing and not own:
                time.sleep(WAIT_SECONDS)

    def _fill(self, part: Path, made: Callable[[], bool], compute: Compute, advance: Advance) -> bool:
        """Computes a part, unless it is there, or somebody else is at it, or the whole pass is `made`."""
        if made() or part.exists():
            return False
        with if_free(part.with_suffix(".lock")) as free:
            # Whoever has the last part writes the whole, and then removes the parts.
            if not free or part.exists() or made():
                return False
            write_tensors(part, {"outputs": self._computed(part, compute, advance)})
            return True

    def _computed(self, part: Path, compute: Compute, advance: Advance) -> Tensor:
        batches = []
        for indices in _rows_of(part).split(self._batch_size):
            batches.append(compute(indices).cpu())
            advance(len(indices))
        return torch.cat(batches)

    def _write(self, path: Path, table: Tensor) -> None:
        with atomic_path(self.folder / "identity.json") as description:
            description.write_text(json.dumps(self._identity, indent=2, sort_keys=True))
        write_tensors(path, {"outputs": table})

    def _verify(self, path: Path, table: Tensor, compute: Compute) -> None:
        indices = torch.linspace(0, len(table) - 1, min(ROWS_CHECKED, len(table))).long()
        found, expected = table[indices], compute(indices).cpu()
        difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
        # A NaN compares false, and must not pass.
        if not difference <= self._tolerance * largest:
            raise TableMismatchError(
                f"the network's answers differ from the table {path} by {difference:.2g}, and the largest is "
                f"{largest:.2g} (tolerance {self._tolerance:g} of it): it was computed by another network or library. "
                "Delete its folder."
            )


def _rows_of(part: Path) -> Tensor:
    """The rows that a part holds, from its name."""
    start, _, end = part.stem.partition("-")
    return torch.arange(int(start), int(end))


def _read(path: Path, n: int) -> Tensor | None:
    """The table in a file, or None where it is absent, damaged or of another length."""
    tensors = read_tensors(path)
    if tensors is None or len(tensors.get("outputs", ())) != n:
        return None
    return tensors["outputs"]


def _version(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written anew; None for one that is absent."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
