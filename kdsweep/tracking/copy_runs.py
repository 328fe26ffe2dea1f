"""Copies the runs of one MLflow store to another: parents first, and each once, however often it is interrupted.

Both sides are marked. The copy has the tag `kdsweep.sent_from`, the id of the original. When all of a run has been
copied, the original gets the tags `kdsweep.sent`, the id of the copy, and `kdsweep.sent_end`, the time at which the
original had ended (a run may go on later).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsweep.system.files import hash_text
from kdsweep.system.processes import parse_process
from kdsweep.tracking.location import file_path
from kdsweep.tracking.run_records import PARENT
from kdsweep.tracking.run_writer import DESCRIBED, NOTE, description, milliseconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kdsweep.tracking.journal import Entry
    from kdsweep.tracking.run_records import RunRecord
    from kdsweep.tracking.store import Store

SENT, SENT_END, SENT_FROM = "kdsweep.sent", "kdsweep.sent_end", "kdsweep.sent_from"

# Tags that hold the id of a run.
REFERENCES = (PARENT, "kdsweep.reproduces")


class Copier:
    """Copies the runs of one experiment.

    Args:
        source: The store that has them, in an SQLite file.
        target: The store to copy them to.
        patience: Seconds for which a target that doesn't answer is waited for.
    """

    def __init__(self, source: Store, target: Store, patience: float) -> None:
        self._source, self._target, self._patience = source, target, patience
        self._runs = {run.id: run for run in source.runs()}
        self._copies = {run.tags[SENT_FROM]: run.id for run in target.having(SENT_FROM)}

    def left(self) -> list[RunRecord]:
        """Returns the runs that are still to be copied, parents first.

        Runs that go on are left out, and so are runs whose parent goes on.
        """
        going_on = {run.id for run in self._runs.values() if is_going_on(run)}
        left = [run for run in self._runs.values() if not self._is_there(run) and run.id not in going_on]
        ready = [run for run in left if not going_on & {parent.id for parent in self._above(run)}]
        return sorted(ready, key=lambda run: (len(list(self._above(run))), run.start))

    def going_on(self) -> list[RunRecord]:
        """Returns the runs whose process lives."""
        return [run for run in self._runs.values() if is_going_on(run)]

    def copy(self, run: RunRecord) -> str:
        """Copies a run, whose parent has been copied already, and returns the id of the copy."""
        original = self._source.ask("get_run", run.id)
        tags = {key: value for key, value in original.data.tags.items() if key not in (SENT, SENT_END)}
        references = {key: self._copies.get(tags[key], tags[key]) for key in REFERENCES if key in tags}
        tags |= {**references, SENT_FROM: run.id}
        if run.id not in self._copies:
            self._copies[run.id] = self._target.create(run.name, tags, original.info.start_time)
        there = self._copies[run.id]
        if hash_text(tags.get(NOTE, "")) == tags.get(DESCRIBED):  # ours, with the run's id in its commands
            tags |= description(tags[NOTE].replace(run.id, there))
        self._target.deliver(there, self._entries(original, tags), Path(), self._patience)
        for key, value in ((SENT, there), (SENT_END, str(original.info.end_time))):
            self._source.ask("set_tag", run.id, key, value)
        return there

    def _is_there(self, run: RunRecord) -> bool:
        """Returns whether all of a run was copied, and nothing was added since."""
        end = run.end
        return run.tags.get(SENT) in self._copies.values() and run.tags.get(SENT_END) == str(end)

    def _above(self, run: RunRecord) -> Iterator[RunRecord]:
        """Yields the parent of a run, the parent's parent, and so on."""
        while run.parent is not None and run.parent in self._runs:
            run = self._runs[run.parent]
            yield run

    def _entries(self, run: Any, tags: dict[str, str]) -> Iterator[Entry]:
        """Yields all that a run holds as entries, with these tags in place of its own."""
        if run.data.params:
            yield {"kind": "params", "params": dict(run.data.params)}
        for name in run.data.metrics:
            history = self._source.ask("get_metric_history", run.info.run_id, name)
            points = [[point.key, point.value, point.timestamp, point.step] for point in history]
            yield {"kind": "metrics", "metrics": points}
        inputs = []
        for given in run.inputs.dataset_inputs:
            data = given.dataset
            context = next((tag.value for tag in given.tags if tag.key == "mlflow.data.context"), "")
            entry = {"name": data.name, "digest": data.digest, "source": data.source, "profile": data.profile}
            inputs.append({**entry, "context": context})
        if inputs:
            yield {"kind": "inputs", "inputs": inputs}
        folder = file_path(run.info.artifact_uri)
        assert folder is not None, "the source is an SQLite store"
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            # A hidden file, or a hidden folder, holds what a process that was killed had half written.
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                yield {"kind": "artifact", "name": name.as_posix(), "file": str(path)}
        lost = run.info.status in ("RUNNING", "SCHEDULED")
        yield {"kind": "tags", "tags": {**tags, **({"kdsweep.error": "its process was killed"} if lost else {})}}
        end = run.info.end_time if run.info.end_time is not None else milliseconds()
        yield {"kind": "status", "status": "KILLED" if lost else run.info.status, "end": end}


def is_going_on(run: RunRecord) -> bool:
    """Returns whether a run's process lives, or may live on another machine."""
    process = run.tags.get("kdsweep.process")
    if run.status != "RUNNING" or process is None:
        return False
    found = parse_process(process)
    return not found.is_here or found.lives()
