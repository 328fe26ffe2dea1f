"""Files that are either whole or absent, and hashes of what they hold."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdsweep.system import interrupts
from kdsweep.system.processes import ProcessId, this_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

# A folder in which a file is being written: ".<name>.<host>.<pid>.<birth of the process>.<random>".
_WORKPLACE = re.compile(r"\..+\.(?P<host>[0-9a-f]{16})\.(?P<pid>\d+)\.(?P<birth>[0-9a-f]{8}-\d+|t\d+)\.[0-9a-f]{8}")
# Whether a process of another machine lives nobody can ask here; no file takes so long to write.
FOREIGN_SECONDS = 24 * 3600.0

# How often one who waits for a lock looks for a signal.
LOCK_SECONDS = 0.5


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path of the same name: renamed to `path` when the block ends without an error, else removed.

    It lies in a hidden folder of its own beside `path`, because libraries that write a file make temporary ones beside
    it. What a killed process left there is removed by the next one that writes into the folder of `path`.

    Raises:
        OSError: The file can't be written (`errno` ENOSPC: no space is left); `filename` is `path`.
    """
    workplace = path.parent / f".{path.name}.{_owner(this_process())}.{uuid.uuid4().hex[:8]}"
    temporary = workplace / path.name
    with _named_after(path):
        if path.is_dir():
            raise _os_error(errno.EISDIR, path)
        if path.exists() and not path.is_file():  # a device would be gone for everybody
            raise OSError(errno.EEXIST, "What is there is no file", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        try:
            workplace.mkdir()
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            # safetensors makes its files private, whatever the umask says.
            temporary.chmod(mode)
            _sync(temporary)
            temporary.replace(path)
            # The new name, too, outlives a power cut; not every file system can be asked for that.
            with suppress(OSError):
                _sync(path.parent)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """In this block no other process is in a block with this `path`; Ctrl-C and SIGTERM end the wait for it.

    The file stays. The kernel holds the lock, and frees it when its owner ends in whatever way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=LOCK_SECONDS)
            break
        except Timeout:
            interrupts.check()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """As `locked`, without waiting: yields whether this process has the lock."""
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except (Timeout, FileNotFoundError):  # or somebody has just removed the folder
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of `tensors`, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_identity(identity: dict[str, Any]) -> str:
    """16 hex digits that stand for a JSON-able description of what made a file."""
    return hash_text(json.dumps(identity, sort_keys=True, separators=(",", ":")))


def hash_text(text: str) -> str:
    """16 hex digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Writes a safetensors file, whole or not at all, with a checksum and `metadata` in its header.

    Returns:
        The checksum: `hash_tensors` of the tensors.

    Raises:
        OSError: The file can't be written (`errno` ENOSPC: no space is left); `filename` is `path`.
    """
    with atomic_path(path) as temporary:
        return save_tensors(temporary, tensors, metadata)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """As `write_tensors`, for a file that only this process knows: nobody waits until it is on the disk."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    checksum = hash_tensors(plain)
    try:
        save_file(plain, path, metadata={**(metadata or {}), "sha256": checksum})
    except SafetensorError as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise _os_error(int(number[1]), path) from error
        raise
    return checksum


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """What `write_tensors` wrote; None where the file is absent, or damaged, which the log then says."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
            checksum = (stored.metadata() or {})["sha256"]
    except (SafetensorError, OSError, KeyError) as error:
        log.warning("%s can't be read (%s): it is made again.", path, error)
        return None
    if hash_tensors(tensors) != checksum:
        log.warning("%s is damaged (wrong checksum): it is made again.", path)
        return None
    return tensors


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _os_error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))


@contextmanager
def _named_after(path: Path) -> Iterator[None]:
    """Gives an OSError of this block the name of the file that is to be written: writing itself raises without."""
    try:
        yield
    except OSError as error:
        hidden = isinstance(error.filename, str | os.PathLike) and f".{path.name}." in str(error.filename)
        if error.errno is not None and (error.filename is None or hidden):
            raise _os_error(error.errno, path) from error
        raise


def _owner(process: ProcessId) -> str:
    return f"{hash_text(process.host)}.{process.pid}.{process.birth}"


def _remove_leftovers(folder: Path) -> None:
    """Removes the workplaces of processes that have been killed."""
    here = this_process()
    for entry in folder.glob(".*"):
        owner = _WORKPLACE.fullmatch(entry.name)
        if owner is None:
            continue
        if owner["host"] == hash_text(here.host):
            dead = not ProcessId(here.host, int(owner["pid"]), 0.0, owner["birth"]).lives()
        else:
            dead = _age(entry) > FOREIGN_SECONDS
        if dead:
            shutil.rmtree(entry, ignore_errors=True)


def _age(path: Path) -> float:
    """Seconds since a path was changed; 0 for one that is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
