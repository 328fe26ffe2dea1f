"""Files are whole or absent, and locks let one process in."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from read_only import read_only

from kdsweep.system import files, interrupts
from kdsweep.system.files import atomic_path, hash_identity, locked, require_writable
from kdsweep.system.processes import ProcessId, this_process
from kdsweep.system.tensor_files import write_tensors


@pytest.fixture(params=[0o022, 0o027, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    """Until the block has ended the path has its old content; then the new, and nothing lies beside it."""
    path = tmp_path / "new folder" / "notes.txt"
    for text in ("first", "second"):
        with atomic_path(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert names(path.parent) == ["notes.txt"]


def test_an_error_leaves_the_old_file_alone(tmp_path: Path) -> None:
    """A block that fails half-way changes nothing and leaves no temporary file."""
    path = tmp_path / "notes.txt"
    path.write_text("old")

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["notes.txt"]


def workplace(folder: Path, process: ProcessId, name: str = "notes.txt") -> Path:
    """Makes what a process that writes `name` into `folder` has there, with half of the file."""
    made = folder / f".{name}.{files._owner(process)}.0123abcd"
    made.mkdir()
    (made / name).write_text("half")
    return made


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """The next process that writes there removes it, whatever it writes; what a living one has begun stays."""
    dead = dataclasses.replace(this_process(), birth="0123abcd-77")
    killed = [workplace(tmp_path, dead), workplace(tmp_path, dead, "another.file")]
    living = workplace(tmp_path, this_process())
    (tmp_path / ".gitignore").touch()
    with atomic_path(tmp_path / "notes.txt") as temporary:
        temporary.write_text("whole")
    assert not any(path.exists() for path in killed)
    assert names(tmp_path) == [".gitignore", living.name, "notes.txt"]


def test_what_another_machine_left_is_removed_a_day_later(tmp_path: Path) -> None:
    """Nobody here can ask whether its process lives; a clock that was set back makes it stay."""
    foreign = dataclasses.replace(this_process(), host="elsewhere")
    old, new, coming = (workplace(tmp_path, foreign, name) for name in ("old", "new", "coming"))
    for path, days in ((old, -2), (coming, 2)):
        os.utime(path, times=(time.time() + days * 86400,) * 2)
    with atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("whole")
    assert sorted(names(tmp_path)) == sorted([new.name, coming.name, "x"])


def test_an_error_names_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    """It doesn't name the temporary one, and it names the file though the system's error names none."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as directory, atomic_path(tmp_path / "folder"):
        pass
    assert directory.value.filename == str(tmp_path / "folder")
    with pytest.raises(OSError, match="No space left") as full, atomic_path(tmp_path / "notes.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(tmp_path / "notes.txt"))
    with pytest.raises(OSError, match="No space left") as copying, atomic_path(tmp_path / "notes.txt") as temporary:
        raise OSError(errno.ENOSPC, "No space left on device", "source.txt", None, str(temporary))
    assert copying.value.filename == str(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError) as missing, atomic_path(tmp_path / "notes.txt") as temporary:
        shutil.copyfile(tmp_path / "absent", temporary)
    assert missing.value.filename == str(tmp_path / "absent")
    assert names(tmp_path) == ["folder"]


def test_a_lock_lets_one_in_and_the_wait_for_it_ends_with_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is free again after the block, however it ended."""
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.01)
    path = tmp_path / "new folder" / "lock"
    with locked(path):
        monkeypatch.setattr(interrupts, "_pending", KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt), locked(path):
            pytest.fail("two were let in")
    with pytest.raises(ValueError, match="anything"), locked(path):
        raise ValueError("anything")
    with locked(path):
        pass


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    """A missing one isn't made either."""
    require_writable(tmp_path)
    require_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    """It may be there or not; on a read-only disk root can't write either, whatever the permissions say."""
    with read_only(tmp_path / "disk") as disk:
        for folder in (disk, disk / "a" / "b"):
            with pytest.raises(OSError, match="Read-only file system") as error:
                require_writable(folder)
            assert error.value.filename == str(folder)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        require_writable(tmp_path / "file" / "a")


def test_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    """Text and tensors alike are as readable as any file of this user: a cache may be shared."""
    with atomic_path(tmp_path / "text") as temporary:
        temporary.write_text("x")
    write_tensors(tmp_path / "tensors", {"steps": torch.tensor(7)})
    for name in ("text", "tensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


def test_identity_does_not_depend_on_the_order_of_keys() -> None:
    """The hash stands for the description; it is the same in every process and version."""
    assert hash_identity({"a": 1, "b": [1.5, None]}) == hash_identity({"b": [1.5, None], "a": 1})
    assert hash_identity({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()[:16]
    assert hash_identity({"a": 1}) != hash_identity({"a": 2})
