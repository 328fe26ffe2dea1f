"""Files with what a run couldn't send to its MLflow store yet: `<unsent>/<run id>/journal.jsonl` and `artifacts/`.

Each line of the journal is an entry, in the order in which they are to be sent; the first line says which run they
belong to. An entry may be sent twice without harm, so a journal is kept until all of it has been sent.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = logging.getLogger(__name__)

# JSON-able; "kind" says what else it holds: see run_writer.py.
Entry: TypeAlias = dict[str, Any]

LINES, ARTIFACTS, LOCK = "journal.jsonl", "artifacts", "lock"

# Seconds for which a run that goes on waits for a `kdsweep-sync` that is sending its journal.
LOCK_SECONDS = 120.0


@dataclass(frozen=True)
class Owner:
    """The run that a journal's entries belong to.

    Attributes:
        run: Id of the MLflow run.
        uri: URI of its store, without credentials.
        name: The run's name.
    """

    run: str
    uri: str
    name: str


class Journal:
    """The folder of one run's unsent entries; it is made when there is something to keep.

    Only one process at a time has it; others wait for it.

    Args:
        folder: `<unsent>/<run id>`.
        owner: The run, which the first line names.
    """

    def __init__(self, folder: Path, owner: Owner) -> None:
        self.folder = folder
        self._owner = owner
        self._lock: FileLock | None = None
        self._files = 0

    @property
    def exists(self) -> bool:
        """Whether the folder holds entries."""
        return (self.folder / LINES).exists()

    def acquire(self, timeout: float = LOCK_SECONDS) -> None:
        """Makes the folder this process's own.

        Raises:
            Timeout: Another process still has it after `timeout` seconds.
        """
        while self._lock is None:
            # The process that had it before may have removed the folder, or be about to.
            with suppress(FileNotFoundError):
                self._try_acquire(timeout)

    def _try_acquire(self, timeout: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # The thread of an `Outbox` may acquire the lock, and the run's own thread release it.
        lock = FileLock(self.folder / LOCK, thread_local=False)
        lock.acquire(timeout=timeout)
        if (self.folder / LOCK).exists():
            self._lock = lock
        else:
            lock.release()

    def keep(self, content: bytes | Path | Callable[[Path], None], name: str) -> str:
        """Puts a file into the folder, and returns its path there, for an entry.

        Args:
            content: The file's bytes, a file to copy, or a function that writes the file to the path that it gets.
            name: The file's name; folders in it are left out.

        Raises:
            OSError: The disk is full, for example; nothing is left of the file then.
        """
        self.acquire()
        self._files += 1
        # The process is part of the name, because the folder of a run that goes on may hold an earlier process's files.
        place = self.folder / ARTIFACTS / f"{os.getpid()}-{self._files}" / Path(name).name
        try:
            place.parent.mkdir(parents=True)
            if isinstance(content, bytes):
                place.write_bytes(content)
            elif isinstance(content, Path):
                shutil.copyfile(content, place)
            else:
                # safetensors makes its files private, whatever the umask says.
                place.touch()
                mode = place.stat().st_mode
                content(place)
                place.chmod(mode)
        except OSError:
            shutil.rmtree(place.parent, ignore_errors=True)
            raise
        return place.relative_to(self.folder).as_posix()

    def forget(self, file: str) -> None:
        """Removes a file that has been sent."""
        shutil.rmtree((self.folder / file).parent, ignore_errors=True)

    def write(self, entries: Iterable[Entry]) -> None:
        """Appends entries, and returns when they are on the disk."""
        self.acquire()
        first = [] if self.exists else [vars(self._owner)]
        with (self.folder / LINES).open("a", encoding="utf-8") as file:
            file.write("".join(f"{json.dumps(line)}\n" for line in [*first, *entries]))
            file.flush()
            os.fsync(file.fileno())

    def resume(self) -> list[Entry]:
        """Returns the entries that an earlier process left; cuts off a last line that isn't whole."""
        if not self.exists:
            return []
        self.acquire()
        if not self.exists:
            return []
        path = self.folder / LINES
        whole = path.read_bytes()
        whole = whole[: whole.rfind(b"\n") + 1]
        with path.open("r+b") as file:
            file.truncate(len(whole))
        found = read(self.folder)
        return [] if found is None else found[1]

    def clear(self) -> None:
        """Removes the entries and their files, which have all been sent."""
        (self.folder / LINES).unlink(missing_ok=True)
        shutil.rmtree(self.folder / ARTIFACTS, ignore_errors=True)

    def release(self) -> None:
        """Lets other processes have the folder, and removes it if it holds no entries."""
        if self._lock is None:
            return
        if not self.exists:
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):  # other runs' journals are there
                self.folder.parent.rmdir()
        self._lock.release()
        self._lock = None


def read(folder: Path) -> tuple[Owner, list[Entry]] | None:
    """Returns the owner and the entries of the journal in a folder.

    None stands for no journal, or one without a whole first line. A line that a crash cut short ends the list.
    """
    path = folder / LINES
    if not path.exists():
        return None
    lines = []
    for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last newline is not whole
        try:
            lines.append(json.loads(line))
        except ValueError:
            log.warning("%s is damaged after line %d: what follows is left out.", path, len(lines))
            break
    if not lines or not {"run", "uri", "name"} <= lines[0].keys():
        return None
    return Owner(**lines[0]), lines[1:]


def try_acquire(folder: Path) -> Journal | None:
    """Returns the journal in a folder, acquired; None while another process has it, such as the run that writes it."""
    known = read(folder)
    found = Journal(folder, Owner(folder.name, "", "") if known is None else known[0])
    try:
        found.acquire(timeout=0)
    except Timeout:
        return None
    return found
