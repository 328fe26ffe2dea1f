"""Sends what runs couldn't send to their MLflow store: the journals in a folder, each once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdsweep.system.errors import RunError, UserError
from kdsweep.system.masking import masked_text
from kdsweep.system.progress import note, progress
from kdsweep.tracking import journal
from kdsweep.tracking.retry import StoreAwayError

if TYPE_CHECKING:
    from pathlib import Path

    from kdsweep.tracking.store import Store

# Short, since somebody waits at the terminal, and can give the command again.
PATIENCE_SECONDS = 30.0


@dataclass
class Sent:
    """The runs that were sent, and those that weren't.

    Attributes:
        runs: Number of the runs that were sent.
        going_on: Names of the runs that are left for the next call, since they go on.
        failed: A line for each run that the store refused, with the reason.
    """

    runs: int = 0
    going_on: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def send_unsent(store: Store, folder: Path, *, anywhere: bool = False, patience: float = PATIENCE_SECONDS) -> Sent:
    """Sends the journals in `folder` that are meant for a store, and removes them.

    Args:
        store: Gets them.
        folder: Holds the journals.
        anywhere: Whether to send those too that are meant for another URI (the same store may have a new address).
        patience: Seconds for which a store that doesn't answer is waited for.

    Raises:
        StoreAwayError: The store doesn't answer; what wasn't sent stays.
    """
    sent = Sent()
    waiting = [path for path in journals(folder) if anywhere or meant_for(path) == masked_text(store.uri)]
    with progress("sending unsent results", len(waiting), "files") as advance:
        for path in waiting:
            _send_journal(store, path, patience, sent)
            advance(1)
    return sent


def journals(folder: Path) -> list[Path]:
    """Returns the folders of the journals in `folder`; removes folders without a journal, which killed runs left."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.is_dir():
            continue
        if journal.read(path) is not None:
            found.append(path)
        elif (held := journal.try_acquire(path)) is not None:
            held.release()
    return found


def meant_for(path: Path) -> str:
    """Returns the URI of the store that a journal is meant for, without credentials; "" if there is no journal."""
    found = journal.read(path)
    return "" if found is None else found[0].uri


def _send_journal(store: Store, path: Path, patience: float, sent: Sent) -> None:
    """Sends one journal and removes it, unless its run goes on or the store refuses it."""
    held = journal.try_acquire(path)
    found = journal.read(path)
    if held is None or found is None:
        sent.going_on += [] if found is None else [found[0].name]
        return
    owner, entries = found
    try:
        whole = [entry for entry in entries if "file" not in entry or (path / entry["file"]).exists()]
        if len(whole) < len(entries):
            note(f"{len(entries) - len(whole)} artifacts of {owner.name} (run {owner.run}) are missing in {path}.")
        store.deliver(owner.run, whole, path, patience)
        # A run without a final status was killed, and couldn't record that.
        run = store.find(owner.run)
        if run.status == "RUNNING" and not any(entry["kind"] == "status" for entry in entries):
            store.close_dead(run)
        held.clear()
        sent.runs += 1
    except StoreAwayError:
        raise
    except (RunError, UserError) as error:
        sent.failed.append(f"{owner.name}: {error} It stays in {path}.")
    finally:
        held.release()
