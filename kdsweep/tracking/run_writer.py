"""A run that is being written: every call makes an entry, which an `Outbox` (sender.py) hands to the store.

What an entry holds depends on its "kind":

    params, tags    {name: text}
    metrics         [[name, value, time in ms since 1970, step], ...]
    inputs          "inputs": [{name, digest, source, profile, context}, ...]
    artifact        "name" in the run's artifacts; "file", its path in the journal's folder, or an absolute one
    status          "status", and "end" in ms since 1970
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kdsweep.system.errors import PrunedError, RunError
from kdsweep.system.files import hash_text
from kdsweep.system.masking import masked_text
from kdsweep.tracking.retry import is_disk_full
from kdsweep.tracking.run_records import parameter_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from matplotlib.figure import Figure

    from kdsweep.tracking.journal import Journal
    from kdsweep.tracking.sender import Outbox

# Short enough to show a trial of a few seconds while it runs; long enough for epochs to share a transaction (5 to 60 ms
# each).
FLUSH_SECONDS = 2.0
MAX_METRICS = 1000  # the most that a call to log_batch takes

# MLflow's limits: it refuses longer values, or cuts them with a warning for each.
MAX_PARAM_CHARACTERS = 6000
MAX_DIGEST_CHARACTERS = 36
MAX_ERROR_CHARACTERS = 500

# The description of a run.
NOTE = "mlflow.note.content"
# Hash of the description that kdsweep wrote.
DESCRIBED = "kdsweep.described"


class Run:
    """A run that is being written; `Store.run` makes it and ends it.

    No call waits for a server. If the store refuses something for good, the call or a later one raises the error.

    Args:
        run_id: MLflow's id of the run.
        outbox: Sends the run's entries.
        journal: Keeps the files of artifacts until they have been sent.
    """

    def __init__(self, run_id: str, outbox: Outbox, journal: Journal) -> None:
        self.id = run_id
        self._outbox, self._journal = outbox, journal
        self._pending: list[list[object]] = []
        self._flushed = time.monotonic()
        self._over = False
        self._end_before: int | None = None

    def ends_at(self, end: int) -> None:
        """Lets the run finish with the end, in ms since 1970, that it had before, because nothing was added to it."""
        self._end_before = end

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Records metrics of one step (an epoch, from 1). They reach the store within seconds, in batches.

        MLflow keeps NaN as it is, and the largest float in place of an infinity.
        """
        now = milliseconds()
        self._pending += [[admitted(name), float(value), now, step] for name, value in metrics.items()]
        if len(self._pending) >= MAX_METRICS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Records metrics of the run as a whole ("test/accuracy")."""
        self.log(metrics, step=0)
        self.flush()

    def flush(self) -> None:
        """Sends the metrics that `log` has gathered."""
        pending, self._pending = self._pending, []
        self._flushed = time.monotonic()
        if pending:
            self._outbox.put({"kind": "metrics", "metrics": pending})
        else:
            self._outbox.check()

    def params(self, params: Mapping[str, object]) -> None:
        """Records parameters as `parameter_text` writes them, of each as much as MLflow takes (6,000 characters)."""
        texts = {admitted(key): parameter_text(value)[:MAX_PARAM_CHARACTERS] for key, value in params.items()}
        if texts:
            self._outbox.put({"kind": "params", "params": texts})

    def tag(self, tags: Mapping[str, str]) -> None:
        """Sets tags; a tag set before is replaced."""
        self._outbox.put({"kind": "tags", "tags": dict(tags)})

    def describe(self, text: str) -> None:
        """Sets the run's description, in Markdown."""
        self.tag(description(text))

    def datasets(self, name: str, source: str, digest: str, profiles: Mapping[str, Mapping[str, object]]) -> None:
        """Records the data set that the run read, as MLflow data set inputs.

        Args:
            name: The data set's ("cifar10").
            source: The folder or address that it comes from.
            digest: Hash of its contents, of any length.
            profiles: Context ("training", "validation" or "test") -> what the UI shows of it, JSON-able:
                {"pictures": 45000, "classes": 10}.
        """
        inputs = []
        for context, profile in profiles.items():
            text = json.dumps({"digest": digest, **profile})
            # MLflow identifies a data set by name and digest. If the contexts shared one digest, a run would lose its
            # second context, and the experiment would keep the profile that was logged first.
            part = hashlib.sha256(f"{context}:{text}".encode()).hexdigest()[:8]
            identity = f"{digest[: MAX_DIGEST_CHARACTERS - 9]}-{part}"
            entry = {"name": name, "digest": identity, "source": json.dumps({"uri": source}), "profile": text}
            inputs.append({**entry, "context": context})
        self._outbox.put({"kind": "inputs", "inputs": inputs})

    def text(self, name: str, content: str) -> None:
        """Writes `content` as the artifact `name` ("config.yaml", "logs/errors.txt")."""
        self._artifact(name, content.encode())

    def file(self, path: Path, name: str | None = None) -> None:
        """Copies a file into the artifacts, as `name` ("weights/student.safetensors") or under its own name."""
        self._artifact(name or path.name, path)

    def made_file(self, name: str, make: Callable[[Path], None]) -> None:
        """Adds the artifact `name`, which `make` writes to the path that it is called with."""
        self._artifact(name, make)

    def figure(self, name: str, figure: Figure) -> None:
        """Writes a matplotlib figure as the artifact `name` ("learning_curves.png")."""
        picture = io.BytesIO()
        figure.savefig(picture, format=Path(name).suffix.removeprefix(".") or "png")
        self._artifact(name, picture.getvalue())

    def _artifact(self, name: str, content: bytes | Path | Callable[[Path], None]) -> None:
        try:
            file = self._journal.keep(content, name)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(self._journal.folder) from error
            raise
        self._outbox.put({"kind": "artifact", "name": name, "file": file})

    def catch_up(self) -> None:
        """Waits (for a limited time) until what an earlier process couldn't send has been sent."""
        self._outbox.drain(self._outbox.waiting.end_s)

    # The end of the run: see `ended`

    def finish(self) -> None:
        """Ends the run as FINISHED, and waits (for a limited time) until all has been sent.

        Raises:
            Exception: The store refused something for good; the run isn't FINISHED then.
        """
        end = milliseconds() if self._end_before is None else self._end_before
        self.flush()
        drained = False
        try:
            drained = self._outbox.drain(self._outbox.waiting.end_s)
        except KeyboardInterrupt:  # the work is done, so only the waiting ends
            self._end("FINISHED", end, 0.0)
            raise
        self._outbox.check()
        # A store that hasn't come back by now won't in the next minute either.
        self._end("FINISHED", end, self._outbox.waiting.end_s if drained else 0.0)

    def fail(self, error: BaseException) -> None:
        """Ends the run as KILLED if `error` is a request to end it, else as FAILED with a tag that names the error."""
        if self._over:  # the error came while the run was being closed
            return
        end = milliseconds()
        killed = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        pruned = isinstance(error, PrunedError)
        try:
            if isinstance(error, PrunedError):
                self.tag({"kdsweep.pruned": str(error.epoch)})
            elif not killed:
                # `kdsweep-reproduce` compares this text with that of earlier versions, which made it so.
                line = " ".join(f"{type(error).__name__}: {error}".split())
                self.tag({"kdsweep.error": masked_text(line)[:MAX_ERROR_CHARACTERS]})
            self.flush()
        finally:  # metrics that MLflow refuses must not leave the run RUNNING
            patience = self._outbox.waiting.killed_s if killed else self._outbox.waiting.end_s
            self._end("KILLED" if killed or pruned else "FAILED", end, patience)

    def _end(self, status: str, end: int, patience: float) -> None:
        """Sends the status with which the run ended, and closes it."""
        self._over = True
        try:
            self._outbox.put({"kind": "status", "status": status, "end": end})
        finally:
            try:
                self._outbox.drain(patience)
            finally:
                self._outbox.close()
        self._outbox.check()


@contextmanager
def ended(run: Run) -> Iterator[None]:
    """Ends a run with the block, whichever way the block ends."""
    try:
        yield
        run.finish()
    except BaseException as error:
        try:
            run.fail(error)
        except Exception as second:  # the first error is the one to show
            error.add_note(f"The MLflow run {run.id} could not be closed either: {second}")
        raise


def disk_full(place: Path) -> RunError:
    """Returns the error for a full disk: `place` is a path on it."""
    return RunError(f"no space is left on the disk of {place}. Free some, and start the same command again.")


def milliseconds() -> int:
    """Returns the time in MLflow's unit: milliseconds since 1970."""
    return int(time.time() * 1000)


def description(text: str) -> dict[str, str]:
    """Returns the tags that make a text the description of a run, and tell it from what somebody else writes."""
    return {NOTE: text, DESCRIBED: hash_text(text)}


def admitted(name: str) -> str:
    """Returns a name with an underscore for each character that MLflow doesn't admit in names: ( ) + = and others."""
    return re.sub(r"[^/\w.\- :]", "_", name)
