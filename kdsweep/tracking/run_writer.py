"""A run that is being written: every call makes an entry, which an `Outbox` hands to the store.

What entries hold, by "kind":

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
from pathlib import Path
from typing import TYPE_CHECKING

from kdsweep.system.errors import PrunedError, RunError
from kdsweep.system.masking import masked_text
from kdsweep.tracking.retry import is_disk_full

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.figure import Figure

    from kdsweep.tracking.journal import Journal
    from kdsweep.tracking.sender import Outbox

# A trial of a few seconds is seen while it runs, and its epochs still share their transactions (5 to 60 ms each).
FLUSH_SECONDS = 2.0
MAX_METRICS = 1000  # a call to log_batch takes no more

# MLflow's limits; it cuts longer values with a warning for each, or refuses them.
MAX_PARAM_CHARACTERS = 6000
MAX_DIGEST_CHARACTERS = 36
MAX_ERROR_CHARACTERS = 500


class Run:
    """A run that is being written; `Store.run` makes it and ends it.

    No call waits for a server. What the store refuses for good is raised by the call itself or by a later one.
    """

    def __init__(self, run_id: str, outbox: Outbox, journal: Journal) -> None:
        self.id = run_id
        self._outbox, self._journal = outbox, journal
        self._pending: list[list[object]] = []
        self._flushed = time.monotonic()
        self._over = False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Records metrics of one step (an epoch, from 1). They reach the store within seconds, in batches.

        NaN and infinities are passed on: MLflow keeps NaN, and the largest float for an infinity.
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
        """Hands on what `log` has gathered."""
        pending, self._pending = self._pending, []
        self._flushed = time.monotonic()
        if pending:
            self._outbox.put({"kind": "metrics", "metrics": pending})
        else:
            self._outbox.check()

    def params(self, params: Mapping[str, object]) -> None:
        """Records parameters; a value longer than MLflow takes (6,000 characters) is cut."""
        texts = {admitted(key): str(value)[:MAX_PARAM_CHARACTERS] for key, value in params.items()}
        if texts:
            self._outbox.put({"kind": "params", "params": texts})

    def tag(self, tags: Mapping[str, str]) -> None:
        """Sets tags; a tag set before is replaced."""
        self._outbox.put({"kind": "tags", "tags": dict(tags)})

    def datasets(self, name: str, source: str, digest: str, profiles: Mapping[str, Mapping[str, object]]) -> None:
        """Records data that the run read, as MLflow data set inputs.

        Args:
            name: "cifar10".
            source: Where it comes from: a folder or an address.
            digest: Hash of its contents; any length.
            profiles: Of each context ("training", "validation" or "test") what is worth seeing at a glance, JSON-able:
                {"pictures": 45000, "classes": 10}.
        """
        inputs = []
        for context, profile in profiles.items():
            text = json.dumps({"digest": digest, **profile})
            # MLflow knows a data set by name and digest: under one digest a run would lose its second context, and the
            # experiment would keep the profile that was logged first.
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
        """Has `make` write the artifact `name`, at the path that it is given."""
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
        """Waits, within limits, until what an earlier process couldn't send has been sent."""
        self._outbox.drain(self._outbox.waiting.end_s)

    # Its end, which `Store` brings about

    def finish(self) -> None:
        """FINISHED, unless something was refused, which is raised. Waits, within limits, until all has been sent."""
        end = milliseconds()
        self.flush()
        drained = False
        try:
            drained = self._outbox.drain(self._outbox.waiting.end_s)
        except KeyboardInterrupt:  # the work is done: only the waiting ends
            self._end("FINISHED", end, 0.0)
            raise
        self._outbox.check()
        # A store that hasn't come back by now doesn't in the next minute either.
        self._end("FINISHED", end, self._outbox.waiting.end_s if drained else 0.0)

    def fail(self, error: BaseException) -> None:
        """KILLED by what ends a run on request, FAILED by any other error, which a tag then names."""
        if self._over:  # it failed, or was interrupted, while it was being closed
            return
        end = milliseconds()
        killed = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        pruned = isinstance(error, PrunedError)
        try:
            if isinstance(error, PrunedError):
                self.tag({"kdsweep.pruned": str(error.epoch)})
            elif not killed:
                line = " ".join(f"{type(error).__name__}: {error}".split())
                self.tag({"kdsweep.error": masked_text(line)[:MAX_ERROR_CHARACTERS]})
            self.flush()
        finally:  # metrics that MLflow refuses must not leave the run RUNNING
            patience = self._outbox.waiting.killed_s if killed else self._outbox.waiting.end_s
            self._end("KILLED" if killed or pruned else "FAILED", end, patience)

    def _end(self, status: str, end: int, patience: float) -> None:
        """Sends how the run ended, and closes it."""
        self._over = True
        try:
            self._outbox.put({"kind": "status", "status": status, "end": end})
        finally:
            try:
                self._outbox.drain(patience)
            finally:
                self._outbox.close()
        self._outbox.check()


def disk_full(place: Path) -> RunError:
    """The error for a disk on which nothing more can be written."""
    return RunError(f"no space is left on the disk of {place}. Free some, and start the same command again.")


def milliseconds() -> int:
    """The time, as MLflow writes it: milliseconds since 1970."""
    return int(time.time() * 1000)


def admitted(name: str) -> str:
    """The name with an underscore for each character that MLflow does not admit in names: ( ) + = and the like."""
    return re.sub(r"[^/\w.\- :]", "_", name)
