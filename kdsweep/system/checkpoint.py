"""Checkpoints: the state of a run on disk, so that an interrupted run ends as if it had never been interrupted.

They are `checkpoints/<key>/<id>/000012.safetensors`. The key stands for all that a run's numbers depend on, so only the
same run finds them. A file is whole or absent, and carries a checksum; the last two are kept. The process that writes
holds a lock, which the system releases when the process dies, however it dies.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from kdsweep.system.errors import PrunedError, RunError
from kdsweep.system.progress import note
from kdsweep.system.tensor_files import read_tensors, write_tensors

KEPT = 2  # checkpoints of a run
# An assumed speed of the disk, neither slow nor fast, until a checkpoint has been timed.
BYTES_PER_SECOND = 200e6
# Interrupted runs that nobody continues within this time are removed.
EXPIRY_SECONDS = 30 * 24 * 3600.0


class Checkpoints:
    """The checkpoints of one run, and the right to write them.

    Args:
        folder: The run's folder.
        share: Share of the run's time that checkpoints may take; 1 makes one at every occasion, 0 none.
    """

    def __init__(self, folder: Path, share: float) -> None:
        self._folder, self._share = folder, share
        self._lock = FileLock(f"{folder}.lock")
        self._ended = time.monotonic()
        self._cost: float | None = None  # seconds that one takes

    def claim(self) -> bool:
        """Takes the right to write, unless another process has it; returns whether this process has it now."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Gives the right back, and keeps the files."""
        self._lock.release()

    def load(self) -> dict[str, Any] | None:
        """Returns the latest state whose file isn't damaged; None if there is none. Prints which files are damaged."""
        for path in reversed(self._files()):
            tensors = read_tensors(path)
            if tensors is not None:
                return unpacked(tensors)
            note(f"The checkpoint {path} is damaged: the one before it is taken, if there is one.")
        return None

    def offer(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Saves what `state` returns if the time since the last checkpoint allows it."""
        if self._share == 0:
            return
        if self._cost is None:
            self._cost = sum(tensor.nbytes for tensor in packed(state()).values()) / BYTES_PER_SECOND
        # The share refers to the time with the checkpoint in it, so a share of 1 always leaves enough.
        if self._cost * (1 - self._share) <= self._share * (time.monotonic() - self._ended):
            self.save(state())

    def save(self, state: Mapping[str, Any]) -> None:
        """Saves a state, and removes all but the last two. On a full disk the run goes on without the checkpoint."""
        start = time.monotonic()
        files = self._files()
        number = int(files[-1].stem) + 1 if files else 1
        try:
            write_tensors(self._folder / f"{number:06d}.safetensors", packed(state))
        except OSError as error:
            note(f"No checkpoint could be written ({error}): the run goes on without a new one.")
        for path in self._files()[:-KEPT]:
            path.unlink(missing_ok=True)
        self._ended = time.monotonic()
        self._cost = self._ended - start

    def discard(self) -> None:
        """Removes all checkpoints of the run, which has ended."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*.safetensors"))


@contextmanager
def kept(
    folder: Path, share: float, takes: Callable[[Mapping[str, Any]], bool]
) -> Iterator[tuple[Checkpoints, dict[str, Any] | None]]:
    """Yields the checkpoints of a run, and its state if it continues an interrupted one (else None).

    The checkpoints are removed when the block ends well, and after an error that would come again.

    Args:
        folder: Holds the checkpoints of all interrupted runs like this one; the latest is tried first.
        share: As for `Checkpoints`.
        takes: Returns whether to continue from a state; the checkpoints of a state that isn't taken are removed.
    """
    expire(folder.parent)
    checkpoints, state = _interrupted(folder, share, takes) or (_new(folder, share), None)
    try:
        yield checkpoints, state
    except (RunError, PrunedError):
        checkpoints.discard()
        raise
    except BaseException:
        checkpoints.release()
        raise
    checkpoints.discard()


def _interrupted(
    folder: Path, share: float, takes: Callable[[Mapping[str, Any]], bool]
) -> tuple[Checkpoints, dict[str, Any]] | None:
    runs = [path for path in folder.glob("*") if path.is_dir()]
    for path in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True):
        checkpoints = Checkpoints(path, share)
        if checkpoints.claim():
            state = checkpoints.load()
            if state is not None and takes(state):
                return checkpoints, state
            checkpoints.discard()
    return None


def _new(folder: Path, share: float) -> Checkpoints:
    checkpoints = Checkpoints(folder / uuid.uuid4().hex, share)
    checkpoints.claim()
    return checkpoints


def expire(root: Path) -> None:
    """Removes the checkpoints of interrupted runs that nobody has continued for a month.

    Args:
        root: Holds the folders of all keys.
    """
    now = time.time()
    for path in root.glob("*/*"):
        if path.is_dir() and now - path.stat().st_mtime > EXPIRY_SECONDS:
            checkpoints = Checkpoints(path, 0)
            if checkpoints.claim():
                checkpoints.discard()


# ------------------------------------------------------------------------------------------- states as tensors


def packed(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns a nested state as named tensors; one more tensor holds, as JSON, all that isn't a tensor.

    Keys of dictionaries keep their types (optimizers number their parameters), and tuples stay tuples.

    Raises:
        TypeError: The state holds something other than tensors, dictionaries, lists, tuples and JSON's plain values.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = f"tensor-{len(tensors):05d}"
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"dict": [[key, plain(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [plain(item) for item in value]}
        return value

    structure = json.dumps(plain(state)).encode()
    return {"structure": torch.frombuffer(bytearray(structure), dtype=torch.uint8), **tensors}


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the state that `packed` made these tensors of."""

    def whole(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {key: whole(item) for key, item in content}
        return [whole(item) for item in content] if kind == "list" else tuple(map(whole, content))

    found: dict[str, Any] = whole(json.loads(tensors["structure"].numpy().tobytes()))
    return found
