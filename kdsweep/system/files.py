"""Files that are either whole or absent, locks between processes, and short hashes of texts."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from kdsweep.system import interrupts
from kdsweep.system.errors import UserError
from kdsweep.system.processes import ProcessId, this_process

if TYPE_CHECKING:
    from collections.abc import Iterator

# A folder in which a file is being written: ".<name>.<host>.<pid>.<birth of the process>.<random>".
_WORKPLACE = re.compile(r"\..+\.(?P<host>[0-9a-f]{16})\.(?P<pid>\d+)\.(?P<birth>[0-9a-f]{8}-\d+|t\d+)\.[0-9a-f]{8}")
# No file takes so long to write. A workplace of another machine that is older was left by a killed process: whether the
# process lives can't be asked from here.
FOREIGN_SECONDS = 24 * 3600.0

# Folders for temporary files, for when the usual one has too long a name.
SHORT_FOLDERS = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))

# What the system says if this user may not write somewhere, or nobody may.
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)

# Seconds between two looks for a signal while a lock is waited for.
LOCK_SECONDS = 0.5


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path of the same name: renamed to `path` if the block ends without an error, else removed.

    It is an empty file in a hidden folder of its own beside `path`, because libraries that write a file make temporary
    ones beside it. What killed processes left in the folder of `path` is removed.

    Raises:
        OSError: The file can't be written (`errno` ENOSPC: no space is left); `filename` is `path`.
    """
    workplace = path.parent / f".{path.name}.{_owner(this_process())}.{uuid.uuid4().hex[:8]}"
    temporary = workplace / path.name
    with _named_after(path, workplace):
        if path.is_dir():
            raise os_error(errno.EISDIR, path)
        if path.exists() and not path.is_file():  # replacing a device would take it from everybody
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
            # The new name must survive a power cut too; some file systems can't be asked for that.
            with suppress(OSError):
                _sync(path.parent)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Runs the block while no other process is in a block with this `path`; Ctrl-C and SIGTERM end the wait for it.

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
    """Takes the lock of `locked` without waiting; yields whether this process has it."""
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except (Timeout, FileNotFoundError):  # FileNotFoundError: somebody has just removed the folder
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def require_writable(folder: Path) -> None:
    """Tries to write into a folder, or where it is still to be made, and leaves nothing behind.

    Permissions alone don't tell: the disk may be read-only, and root may write nearly everywhere.

    Raises:
        OSError: It can't be written; `filename` is the folder.
    """
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    try:
        Path(tempfile.mkdtemp(dir=place, prefix=".kdsweep-")).rmdir()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def short_folder(usual: Path, longest: int) -> Path:
    """Returns a folder for temporary files whose name is short enough: `usual`, or else one that any system has.

    The name of a socket has at most 107 bytes, and TMPDIR may have more by itself.

    Raises:
        UserError: No other folder can be written.
    """
    for folder in (usual, *SHORT_FOLDERS):
        if len(os.fsencode(folder)) > longest:
            continue
        with suppress(OSError):
            require_writable(folder)
            return folder
    raise UserError(
        f"`the folder of sockets has at most {longest} bytes` must hold, but got {usual}, and none of "
        f"{', '.join(map(str, SHORT_FOLDERS))} can be written. Set TMPDIR to a folder with a shorter name.",
        "TMPDIR",
    )


def hash_identity(identity: dict[str, Any]) -> str:
    """Returns 16 hex digits that stand for a JSON-able description of what made a file."""
    return hash_text(json.dumps(identity, sort_keys=True, separators=(",", ":")))


def hash_text(text: str) -> str:
    """Returns 16 hex digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def os_error(number: int, path: Path) -> OSError:
    """Returns the error that the operating system would raise with this `errno` for a file."""
    return OSError(number, os.strerror(number), str(path))


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _named_after(path: Path, workplace: Path) -> Iterator[None]:
    """Gives an OSError of this block the name of the file that was to be written.

    Writing itself raises an error without a name; what works on the temporary file names that one; and what copies to
    it names the source, and the temporary file second.
    """
    try:
        yield
    except OSError as error:
        names = map(str, (error.filename, error.filename2))
        ours = error.filename is None or any(workplace.name in name for name in names)
        if error.errno is not None and ours:
            raise os_error(error.errno, path) from error
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
    """Returns the seconds since a path was changed; 0 for one that is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
