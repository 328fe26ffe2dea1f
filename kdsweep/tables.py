"""Tables: outputs of a frozen network, computed once for all runs and kept on disk.

A folder of tables is named by the hash of everything that their numbers depend on, and holds one file for each pass. A
file is either whole or absent, because it is written aside and renamed; it has a checksum, and is read as a memory map.
A long pass is computed in parts. All processes that wait for the pass compute some of them, and a process that is
killed loses only the part that it was computing.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdsweep.system.errors import RunError
from kdsweep.system.files import atomic_path, hash_identity, if_free, locked
from kdsweep.system.progress import progress
from kdsweep.system.tensor_files import read_tensors, write_tensors
from kdsweep.table_check import Asked, Comparison, compare, control_rows, distances

log = logging.getLogger(__name__)

# The number of batches in a part of a pass.
PART_BATCHES = 16

# The time between two looks for the parts that other processes compute.
WAIT_SECONDS = 0.2

Compute = Callable[[Tensor], Tensor]  # row indices (B,) int64 -> outputs (B, n_outputs)
Advance = Callable[[int], None]  # takes the number of rows that are done


class _StoppedError(Exception):
    """The part is given up, because nobody needs it any more."""


@dataclass(frozen=True)
class _Table:
    """What a file holds.

    Attributes:
        outputs: (n, n_outputs).
        control: The network's plain answers to a few rows when the table was made; None in files of before, and parts.
    """

    outputs: Tensor
    control: Tensor | None


class TableMismatchError(RunError):
    """The rows of a table differ from what the network computes now."""


class Tables:
    """The outputs of one frozen network.

    Args:
        root: The folder that holds the table folders of all networks.
        identity: Everything that the numbers depend on (weights, preprocessing, precision, data, views), fit for JSON.
        batch_size: The number of rows computed at a time.

    Attributes:
        key: The hash of the identity.
        folder: The folder of these tables.
    """

    def __init__(self, root: Path, identity: dict[str, Any], batch_size: int) -> None:
        self.key = hash_identity(identity)
        self.folder = root / self.key
        self._identity, self._batch_size = identity, batch_size
        self._verified: set[str] = set()

    def rows(self, name: str, n: int, compute: Compute, network: Asked) -> Tensor:
        """Returns the outputs of a pass, from disk if they are there; else computes and keeps them.

        Args:
            name: The pass's file name, such as "pass-0007".
            n: The number of rows.
            compute: Row indices (B,) int64 -> outputs (B, n_outputs).
            network: Asked for a few rows before the table is believed.

        Returns:
            (n, n_outputs), of the type that `compute` returns.

        Raises:
            TableMismatchError: The file is whole, but the network now computes something else.
            OSError: The file can't be written (`errno` is ENOSPC if the disk is full).
        """
        path = self._path(name)
        version = _version(path)
        found = _read(path, n)
        if found is None:
            found = self._filled(path, n, version, compute, network)
        if name not in self._verified:
            comparison = compare(found.outputs, found.control, network)
            if comparison is not None:
                _refuse_other(path, comparison)
                if not comparison.tells:
                    log.warning(
                        "%s was computed by other arithmetic, and noise hides its rows: it is made again.", path
                    )
                    found = self._filled(path, n, _version(path), compute, network)
            self._verified.add(name)
        return found.outputs

    def free_bytes(self) -> int:
        """Returns how much room is left on the disk of the tables."""
        there = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        return shutil.disk_usage(there).free

    def has(self, name: str) -> bool:
        """Returns whether the pass called `name` has a file. Only `rows` finds out whether the file is whole."""
        return self._path(name).exists()

    def fill_part(self, name: str, n: int, compute: Compute, stop: Callable[[], bool]) -> bool:
        """Computes one part of a pass that no other process is computing.

        Args:
            name: As in `rows`.
            n: As in `rows`.
            compute: As in `rows`.
            stop: Called after each batch; if it returns True, what has been computed of the part is dropped.

        Returns:
            Whether a part was computed.
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

    def _filled(self, path: Path, n: int, version: tuple[int, int] | None, compute: Compute, network: Asked) -> _Table:
        """Makes the table of a pass whose file is absent or damaged, together with all processes that wait for it.

        Args:
            path: The file.
            n: The number of rows.
            version: The file's version before it was read. If it has changed, another process has made the table.
            compute: As in `rows`.
            network: As in `rows`.
        """

        def made() -> bool:
            return _version(path) != version

        parts = self._parts(path, n)
        with progress(f"teacher, {re.sub('pass-0*(?=[0-9])', 'pass ', path.stem)}", n, "pictures") as advance:
            if len(parts) > 1:
                self._fill_all(parts, made, compute, advance)
            with locked(Path(f"{path}.lock")):
                # Another process may have made it meanwhile. A damaged file isn't read again: it warns at each read.
                table = _read(path, n) if made() else None
                if table is None:
                    # Compute missing rows: a damaged part, or a pass with a single part.
                    found = [(part, _read(part, len(_rows_of(part)))) for part in parts]
                    outputs = torch.cat(
                        [
                            self._computed(part, compute, advance) if rows is None else rows.outputs
                            for part, rows in found
                        ]
                    )
                    table = _Table(outputs, network.plain(control_rows(n)).cpu())
                    self._check_new(path, table, network)
                    self._write(path, table)
                    self._verified.add(path.stem)
        shutil.rmtree(parts[0].parent, ignore_errors=True)
        return table

    def _parts(self, path: Path, n: int) -> list[Path]:
        """Returns the files of a pass's parts, named by their rows: pass-0007.parts/00001024-00002048.safetensors."""
        size = PART_BATCHES * self._batch_size
        bounds = [(start, min(start + size, n)) for start in range(0, n, size)]
        return [path.with_suffix(".parts") / f"{start:08d}-{end:08d}.safetensors" for start, end in bounds]

    def _fill_all(self, parts: list[Path], made: Callable[[], bool], compute: Compute, advance: Advance) -> None:
        """Computes parts that no other process computes, until all are there or the whole pass is `made`."""
        missing = parts
        while missing and not made():
            own = [part for part in missing if self._fill(part, made, compute, advance)]
            others = [part for part in missing if part not in own and part.exists()]
            advance(sum(len(_rows_of(part)) for part in others))
            missing = [part for part in missing if part not in own and part not in others]
            if missing and not own:
                time.sleep(WAIT_SECONDS)

    def _fill(self, part: Path, made: Callable[[], bool], compute: Compute, advance: Advance) -> bool:
        """Computes a part, unless it is there, another process computes it, or the whole pass is `made`.

        Returns:
            Whether this process has computed it.
        """
        if made() or part.exists():
            return False
        with if_free(part.with_suffix(".lock")) as free:
            # The process that has all parts writes the whole pass, and then removes the parts.
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

    def _check_new(self, path: Path, table: _Table, network: Asked) -> None:
        """Compares a table with the network before it is written."""
        rows = table.outputs[control_rows(len(table.outputs))]
        if table.control is None or torch.equal(rows, table.control.to(rows.dtype)):
            return
        comparison = distances(table.outputs, network)
        _refuse_other(path, comparison)
        if comparison.poor:
            log.warning(
                "In this precision, rounding moves the network's outputs by %.2g and another picture by %.2g, so that "
                "they say little about a picture. Take a better one, such as teacher.precision=fp32.",
                comparison.noise,
                comparison.spread,
            )

    def _write(self, path: Path, table: _Table) -> None:
        with atomic_path(self.folder / "identity.json") as description:
            description.write_text(json.dumps(self._identity, indent=2, sort_keys=True))
        tensors = {"outputs": table.outputs} | ({} if table.control is None else {"control": table.control})
        write_tensors(path, tensors)


def _refuse_other(path: Path, found: Comparison) -> None:
    """Raises `TableMismatchError` if a table's rows are further from the network's than rounding explains."""
    if not found.agrees:
        raise TableMismatchError(
            f"the network's outputs differ from the table {path} by {found.distance:.2g}, where rounding explains "
            f"{found.noise:.2g} and pictures differ by {found.spread:.2g}: another network or library computed it. "
            "Delete its folder."
        )


def _rows_of(part: Path) -> Tensor:
    """Returns the indices of a part's rows, which its name tells."""
    start, _, end = part.stem.partition("-")
    return torch.arange(int(start), int(end))


def _read(path: Path, n: int) -> _Table | None:
    """Returns the table in a file; None if the file is absent, damaged, or of another length."""
    tensors = read_tensors(path)
    if tensors is None or len(tensors.get("outputs", ())) != n:
        return None
    return _Table(tensors["outputs"], tensors.get("control"))


def _version(path: Path) -> tuple[int, int] | None:
    """Returns what changes when a file is written again; None if the file is absent."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
