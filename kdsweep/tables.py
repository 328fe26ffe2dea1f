"""Tables: outputs of a frozen network, computed once for all runs and kept on disk.

A table folder is named by the hash of everything that its numbers depend on, and holds one file for each pass. A file
is whole or absent (written aside and renamed), carries a checksum, and is computed by one process while others wait.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdsweep.errors import RunError
from kdsweep.files import atomic_path, hash_identity, locked, read_tensors, write_tensors
from kdsweep.progress import progress

# How many rows are computed anew before a table from disk is believed.
ROWS_CHECKED = 4


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

    def rows(self, name: str, n: int, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """The outputs for rows 0 .. n-1 of the pass called `name`: (n, outputs) float32, from disk if they are there.

        Args:
            name: File name of the pass, such as "pass-0007".
            n: Number of rows.
            compute: Row indices (B,) int64 -> outputs (B, outputs).

        Raises:
            TableMismatchError: The file is whole, but the network now answers something else.
            OSError: It can't be written: `errno` ENOSPC where no space is left.
        """
        path = self._path(name)
        version = _version(path)
        table = _read(path, n)
        if table is None:
            with locked(Path(f"{path}.lock")):
                # Another process may have made it meanwhile; a damaged one is read, and complained of, once.
                if _version(path) != version:
                    table = _read(path, n)
                if table is None:
                    table = self._compute(path, n, compute)
                    self._verified.add(name)
        if name not in self._verified:
            self._verify(path, table, compute)
            self._verified.add(name)
        return table

    def has(self, name: str) -> bool:
        """Whether the pass called `name` has a file; that it is whole only `rows` finds out."""
        return self._path(name).exists()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _compute(self, path: Path, n: int, compute: Callable[[Tensor], Tensor]) -> Tensor:
        batches = []
        with progress(f"teacher {path.stem}", total=n) as advance:
            for indices in torch.arange(n).split(self._batch_size):
                batches.append(compute(indices).cpu())
                advance(len(indices))
        table = torch.cat(batches)
        with atomic_path(self.folder / "identity.json") as description:
            description.write_text(json.dumps(self._identity, indent=2, sort_keys=True))
        write_tensors(path, {"outputs": table})
        return table

    def _verify(self, path: Path, table: Tensor, compute: Callable[[Tensor], Tensor]) -> None:
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
