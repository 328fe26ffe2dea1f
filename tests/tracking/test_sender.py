"""Claims about sending a run's entries to a store that fails, and about the journal that keeps them meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdsweep.system.errors import RunError
from kdsweep.tracking import journal, retry, sender
from kdsweep.tracking.journal import Entry, Journal, Owner
from kdsweep.tracking.retry import is_transient, patiently
from kdsweep.tracking.sender import Outbox, Waiting

OWNER = Owner("run1", "http://server", "a run")
WAITING = Waiting(call_s=0.0, end_s=1.0, killed_s=0.2)


class Shop:
    """Takes entries, or fails as long as `error` is set, or hangs as long as `open` isn't set."""

    def __init__(self) -> None:
        self.got: list[Entry] = []
        self.error: Exception | None = None
        self.open = threading.Event()
        self.open.set()

    def send(self, entry: Entry) -> None:
        self.open.wait()
        if self.error is not None:
            raise self.error
        self.got.append(entry)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other in hundredths of a second."""
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(sender, "SLOW_SECONDS", 0.1)


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    yield made
    made.open.set()


def opened(shop: Shop, folder: Path, waiting: Waiting = WAITING) -> Outbox:
    return Outbox(shop.send, Journal(folder, OWNER), "the server", waiting)


def entries(count: int) -> list[Entry]:
    return [{"kind": "metrics", "metrics": [["a", 1.0, 0, step]]} for step in range(count)]


def test_entries_arrive_in_order_and_leave_no_file(shop: Shop, tmp_path: Path) -> None:
    """While all goes well nothing is written to the disk."""
    box = opened(shop, tmp_path / "unsent" / "run1")
    for entry in entries(50):
        box.put(entry)
    assert box.drain(5.0)
    box.close()
    assert shop.got == entries(50)
    assert list(tmp_path.iterdir()) == []


def test_an_outage_costs_neither_time_nor_entries(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calls return at once. The disk keeps the entries until the store is back, in order; two lines tell of it."""
    shop.error = ConnectionError("refused")
    box = opened(shop, tmp_path / "unsent" / "run1")
    start = time.monotonic()
    for entry in entries(20):
        box.put(entry)
    assert time.monotonic() - start < 1
    while journal.read(tmp_path / "unsent" / "run1") != (OWNER, entries(20)):
        time.sleep(0.01)
    shop.error = None
    assert box.drain(5.0)
    box.close()
    assert shop.got == entries(20)
    assert list(tmp_path.iterdir()) == []
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("doesn't answer (refused). The run goes on") == 1
    assert said.count("is back, and has all of this run") == 1


def test_a_store_that_hangs_is_an_outage(shop: Shop, tmp_path: Path) -> None:
    """An entry that isn't sent after seconds is on disk, in case the process is killed."""
    shop.open.clear()
    box = opened(shop, tmp_path / "unsent" / "run1")
    box.put(entries(2)[0])
    time.sleep(0.15)
    box.put(entries(2)[1])
    assert journal.read(tmp_path / "unsent" / "run1") == (OWNER, entries(2))
    shop.open.set()
    assert box.drain(5.0)
    box.close()


@pytest.mark.parametrize("hangs", [True, False])
def test_what_a_store_never_takes_stays_and_goes_with_the_next_process(
    shop: Shop, tmp_path: Path, hangs: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's end waits no longer than agreed, a line says where the rest is, and the run sends it if it goes on."""
    if hangs:
        shop.open.clear()
    else:
        shop.error = ConnectionError("refused")
    box = opened(shop, tmp_path / "unsent" / "run1")
    for entry in [*entries(3), {"kind": "status", "status": "KILLED", "end": 1}]:
        box.put(entry)
    assert not box.drain(0.2)
    box.close()
    assert "send it with `kdsweep-sync`" in " ".join(capsys.readouterr().err.split())
    later = Shop()
    again = opened(later, tmp_path / "unsent" / "run1")
    again.put({"kind": "tags", "tags": {"a": "b"}})
    assert again.drain(5.0)
    again.close()
    # How it ended then isn't how it ends now.
    assert later.got == [*entries(3), {"kind": "tags", "tags": {"a": "b"}}]
    assert list(tmp_path.iterdir()) == []


def test_a_refused_entry_is_raised_once_and_the_others_are_sent(shop: Shop, tmp_path: Path) -> None:
    """Waiting wouldn't help, but the end of the run must still reach the store."""
    shop.error = RunError("no such metric")
    box = opened(shop, tmp_path / "unsent" / "run1", Waiting(call_s=5.0, end_s=5.0, killed_s=1.0))
    with pytest.raises(RunError, match="no such metric"):
        box.put(entries(1)[0])
    shop.error = None
    box.put({"kind": "status", "status": "FAILED", "end": 1})
    assert [entry["kind"] for entry in shop.got] == ["status"]
    box.close()


def test_an_artifact_is_not_waited_for(shop: Shop, tmp_path: Path) -> None:
    """Later entries are sent, and so the error of an artifact that the store refuses comes from a later call."""
    shop.open.clear()
    box = opened(shop, tmp_path / "unsent" / "run1", Waiting(call_s=5.0, end_s=5.0, killed_s=1.0))
    artifact = {"kind": "artifact", "name": "a.txt", "file": str(tmp_path / "a.txt")}
    box.put(artifact)
    assert shop.got == []
    shop.open.set()
    box.put(entries(1)[0])
    assert shop.got == [artifact, *entries(1)]
    shop.error = RunError("no such folder")
    box.put(artifact)
    with pytest.raises(RunError, match="no such folder"):
        box.put({"kind": "tags", "tags": {}})
    shop.error = None
    box.drain(5.0)
    box.close()


def test_a_journal_that_was_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    """A crash or a full disk may cut the last line at any byte: whole entries are read, and no others."""
    kept = Journal(tmp_path / "unsent" / "run1", OWNER)
    kept.write(entries(3))
    kept.release()
    path = tmp_path / "unsent" / "run1" / "journal.jsonl"
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        found = journal.read(tmp_path / "unsent" / "run1")
        assert found is None if b"\n" not in whole[:size] else found == (OWNER, entries(whole[:size].count(b"\n") - 1))
    path.write_bytes(whole[:-5])
    again = Journal(tmp_path / "unsent" / "run1", OWNER)
    assert again.resume() == entries(2)
    again.write([{"kind": "tags", "tags": {}}])
    assert journal.read(tmp_path / "unsent" / "run1") == (OWNER, [*entries(2), {"kind": "tags", "tags": {}}])
    again.release()


def test_a_journal_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    """`kdsweep-sync` leaves it alone while the run goes on, and takes it when the run has ended."""
    kept = Journal(tmp_path / "unsent" / "run1", OWNER)
    kept.write(entries(1))
    assert journal.try_acquire(tmp_path / "unsent" / "run1") is None
    kept.release()
    found = journal.try_acquire(tmp_path / "unsent" / "run1")
    assert found is not None
    found.clear()
    found.release()
    assert list(tmp_path.iterdir()) == []


def test_files_are_kept_until_they_are_sent(shop: Shop, tmp_path: Path) -> None:
    """The journal has a copy, since the caller may remove the file; it is removed as soon as it has been sent."""
    source = tmp_path / "weights.bin"
    source.write_bytes(b"12")
    kept = Journal(tmp_path / "unsent" / "run1", OWNER)
    box = Outbox(shop.send, kept, "the server", WAITING)
    shop.open.clear()
    file = kept.keep(source, "kept/model.bin")
    source.unlink()
    box.put({"kind": "artifact", "name": "kept/model.bin", "file": file})
    assert (kept.folder / file).read_bytes() == b"12"
    shop.open.set()
    assert box.drain(5.0)
    assert not (kept.folder / file).exists()
    box.close()
    assert not (tmp_path / "unsent").exists()


def test_failures_that_pass_are_waited_for_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The answer comes in the end; an error that waiting doesn't help is raised at once."""
    answers = iter([ConnectionError("refused"), TimeoutError("late"), 5])

    def ask() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(ask, "the server", 10.0) == 5
    assert " ".join(capsys.readouterr().err.split()).count("the server doesn't answer") == 1
    with pytest.raises(ZeroDivisionError):
        patiently(lambda: 1 // 0, "the server", 10.0)


def test_waiting_ends_in_one_line() -> None:
    """The line says how long it waited, why, and what to do."""

    def ask() -> None:
        raise ConnectionError("refused")

    with pytest.raises(RunError, match=r"^for 0 s the MLflow store the server didn't answer \(refused\)\. Start it"):
        patiently(ask, "the server", 0.1)


def test_what_passes_by_itself() -> None:
    """No answer and a locked database may pass; a full disk, a missing file and a refusal don't."""
    assert is_transient(ConnectionResetError("reset"))
    assert is_transient(RuntimeError("(sqlite3.OperationalError) database is locked"))
    for error in (
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
        RuntimeError("(sqlite3.OperationalError) attempt to write a readonly database"),
        OSError(28, "No space left on device"),
        FileNotFoundError("x"),
        ValueError("x"),
    ):
        assert not is_transient(error)
