"""Everything MLflow: runs are written here, and studies are read back.

The default store is an SQLite file with its artifacts in `mlartifacts/` beside it; a server or another database is
named by its URI. Below stands MLflow's client alone, never its fluent interface: no active run, no environment variable
(`MLFLOW_RUN_ID`) and no second run in the same process can divert what a run logs.

`import mlflow` takes four seconds, so it happens when a `Store` is opened and not when this module is imported.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdsweep.system import interrupts
from kdsweep.system.errors import RunError, UserError
from kdsweep.system.sqlite import sqlite_path, sqlite_uri, write_ahead
from kdsweep.tracking import mlflow_calls, ui_columns
from kdsweep.tracking.journal import Entry, Journal, Owner
from kdsweep.tracking.location import (
    artifact_folder,
    correct_locations,
    holds_store,
    lock_path,
    shown,
    unsent_folder,
    user_name,
)
from kdsweep.tracking.retry import PATIENCE_SECONDS, AwayError, first_line, is_disk_full, is_transient, patiently
from kdsweep.tracking.run_records import ARM_TAG, RunRecord, StudyRecord
from kdsweep.tracking.run_writer import Run, disk_full, milliseconds
from kdsweep.tracking.sender import LOCAL, REMOTE, Outbox

PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
# Digest of the description that we wrote.
DESCRIBED = "kdsweep.described"

# How long a store that doesn't answer is asked again when it is opened, and what MLflow waits for each answer.
OPEN_SECONDS = 4.0
OPEN_TIMEOUT, TIMEOUT = "10", "30"
TIMEOUT_KEY = "MLFLOW_HTTP_REQUEST_TIMEOUT"


def flatten(config: Mapping[str, object]) -> dict[str, object]:
    """Nested mappings as one: {"loss": {"alpha": 0.5}} becomes {"loss.alpha": 0.5}.

    A list of plain values stays one value; a list that holds mappings or lists is numbered ("stages.0.lr").
    """
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


class Store:
    """An MLflow store, seen through one of its experiments, which is made if it is not there.

    Several processes may open a fresh store at once. A store in a folder that was moved or copied is mended.

    Args:
        uri: As `store_uri` gives it.
        experiment: Its name.
        unsent: The folder for what runs can't hand to the store; None: as `unsent_folder`.
        wait: Seconds for which a store that doesn't answer is asked again.

    Raises:
        AwayError (a UserError, key "uri"): the store doesn't answer.
        UserError (key "uri"): the store cannot be opened; (key "experiment"): the experiment was deleted.
    """

    def __init__(
        self, uri: str, experiment: str = "kdsweep", unsent: Path | None = None, *, wait: float = OPEN_SECONDS
    ) -> None:
        self.uri = uri
        self.experiment = experiment
        path = sqlite_path(uri)
        self._waiting = REMOTE if path is None else LOCAL
        self._unsent = unsent_folder(uri) if unsent is None else unsent
        self._lock = FileLock(lock_path(uri, path))
        self._places: dict[str, str] = {}
        with _opening(uri), self._lock:
            mlflow = _import_mlflow()
            if path is not None and not holds_store(path):
                _make_store(mlflow, path)
            if path is not None:
                correct_locations(path)
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            location = None if path is None else artifact_folder(path).as_uri()
            self._experiment_id = patiently(
                lambda: self._find_experiment(location), shown(uri), wait, quietly=wait <= OPEN_SECONDS
            )

    def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Calls a method of MLflow's client, again and again while the store doesn't answer.

        Raises:
            RunError: It hasn't answered for minutes, or its disk is full.
        """
        try:
            return patiently(
                lambda: getattr(self._client, method)(*arguments, **named), shown(self.uri), PATIENCE_SECONDS
            )
        except Exception as error:
            if is_disk_full(error):
                raise disk_full(sqlite_path(self.uri) or Path(tempfile.gettempdir())) from error
            raise

    def _find_experiment(self, location: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return self._client.create_experiment(
                    self.experiment, artifact_location=location, tags={ui_columns.TAG: ui_columns.TEXT}
                )
            except MlflowException:  # on a server another host may have been first
                found = self._client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            remedy = f"Restore it (`mlflow experiments restore -x {found.experiment_id}`) or choose another name."
            raise UserError(
                f"The experiment {self.experiment!r} was deleted in {shown(self.uri)}. {remedy}", "experiment"
            )
        if found.tags.get(ui_columns.TAG) != ui_columns.TEXT:
            with suppress(MlflowException):  # a reader may not write, and needs no view
                self._client.set_experiment_tag(found.experiment_id, ui_columns.TAG, ui_columns.TEXT)
        return found.experiment_id

    @contextmanager
    def run(
        self, name: str, *, tags: Mapping[str, str], params: Mapping[str, object], parent: str | None = None
    ) -> Iterator[Run]:
        """A run that ends with its block, whichever way the block ends.

        FINISHED without an error; KILLED by KeyboardInterrupt, SystemExit and PrunedError (whose epoch is the tag
        kdsweep.pruned); FAILED by any other exception, which the tag kdsweep.error names in one line. What was logged
        before is written in each case; where the store is away, to the folder `unsent`.

        Args:
            name: Shown in the UI; names need not be unique.
            tags: At least the arm (`run_records.ARM_TAG`).
            params: Flat; a value longer than MLflow takes (6,000 characters) is cut.
            parent: Id of the parent run.
        """
        own = {"mlflow.user": user_name(), "mlflow.source.name": "kdsweep", "mlflow.source.type": "LOCAL"}
        if parent is not None:
            own[PARENT] = parent
        # A signal in the middle of a transaction would keep the database locked, and the run could not be closed.
        with interrupts.deferred():
            run = self._writer(self.create(name, {**own, **tags}, milliseconds()), name)
            with _ended(run):
                run.params(params)
                yield run

    @contextmanager
    def reopened(self, run_id: str) -> Iterator[Run]:
        """A run that was interrupted, going on; it ends with the block as in `run`.

        What it couldn't send before the interruption is sent first.
        """
        with interrupts.deferred():
            self.ask("update_run", run_id, status="RUNNING")
            run = self._writer(run_id, self.ask("get_run", run_id).info.run_name)
            with _ended(run):
                run.catch_up()
                yield run

    def create(self, name: str, tags: Mapping[str, str], start: int) -> str:
        """Makes a run, which is then RUNNING, and returns its id; `start` is in ms since 1970."""
        asked = False

        def create() -> str:
            nonlocal asked
            # The answer to an earlier attempt may have been lost, and not the question.
            if asked:
                for run in self._client.search_runs([self._experiment_id], f"attributes.start_time = {start}"):
                    if run.info.run_name == name and tags.items() <= run.data.tags.items():
                        return str(run.info.run_id)
            asked = True
            made = self._client.create_run(self._experiment_id, start_time=start, tags=dict(tags), run_name=name)
            return str(made.info.run_id)

        try:
            return patiently(create, shown(self.uri), PATIENCE_SECONDS)
        except Exception as error:
            if is_disk_full(error):
                raise disk_full(sqlite_path(self.uri) or self._unsent) from error
            raise

    def send(self, run_id: str, entry: Entry, folder: Path) -> None:
        """Writes one entry of a run (see run.py), whose artifact lies in `folder`; a repetition does no harm.

        Raises:
            RunError: The store refuses it for good, or a disk is full.
            Exception: One that `is_transient`.
        """
        try:
            if entry["kind"] == "artifact":
                mlflow_calls.write_artifact(self._client, run_id, entry, folder, self._place_of(run_id))
            else:
                mlflow_calls.WRITERS[entry["kind"]](self._client, run_id, entry)
        except Exception as error:
            if is_transient(error):
                raise
            if is_disk_full(error):
                place = getattr(error, "filename", None) or sqlite_path(self.uri) or folder
                raise disk_full(Path(str(place))) from error
            refused = f"The MLflow store {shown(self.uri)} refused {entry['kind']} of the run {run_id}"
            raise RunError(f"{refused}: {first_line(error)}") from error

    def _place_of(self, run_id: str) -> str:
        """Where a run's artifacts are; it stays there, and so is asked for once."""
        if run_id not in self._places:
            self._places[run_id] = self._client.get_run(run_id).info.artifact_uri
        return self._places[run_id]

    def deliver(self, run_id: str, entries: Iterable[Entry], folder: Path, patience: float = PATIENCE_SECONDS) -> None:
        """Writes entries one by one, waiting for a store that doesn't answer. Raises as `send` and `ask` do."""
        for entry in entries:
            patiently(lambda entry=entry: self.send(run_id, entry, folder), shown(self.uri), patience)  # type: ignore[misc]

    def _writer(self, run_id: str, name: str) -> Run:
        journal = Journal(self._unsent / run_id, Owner(run_id, shown(self.uri), name))

        def send(entry: Entry) -> None:
            self.send(run_id, entry, journal.folder)

        return Run(run_id, Outbox(send, journal, shown(self.uri), self._waiting), journal)

    def close_lost(self, run_id: str, cause: str) -> None:
        """Ends, as KILLED, a run whose process is gone."""
        self.ask("set_tag", run_id, "kdsweep.error", cause)
        self.ask("set_terminated", run_id, "KILLED")

    def group(self, key: str, name: str) -> str:
        """Id of the run under which the runs of one plain multirun stand; made by whichever job asks first.

        It is FINISHED from the start, since no job knows whether it is the last.

        Args:
            key: What the jobs of one multirun share: its folder.
            name: Name of the run, if it is to be made.
        """
        with self._lock:
            for record in self.tagged(arm="group"):
                if record.tags["kdsweep.group"] == key:
                    return record.id
            with self.run(name, tags={ARM_TAG: "group", "kdsweep.group": key}, params={}) as run:
                return run.id

    def studies(self) -> list[RunRecord]:
        """The parent runs of studies and of plain multiruns, the latest first."""
        found = [run for arm in ("study", "group") for run in self.tagged(arm=arm)]
        return sorted(found, key=lambda run: run.start, reverse=True)

    def study(self, name_or_id: str | None = None) -> StudyRecord:
        """A study by its run's name or id; the latest one of that name; the latest of all for None.

        Raises:
            UserError: there is none.
        """
        known = self.studies()
        for parent in known:
            if name_or_id is None or name_or_id in (parent.name, parent.id):
                return StudyRecord(parent, tuple(self.children(parent.id)))
        where = f"in the experiment {self.experiment!r} of {shown(self.uri)}"
        if not known:
            raise UserError(f"There is no study {where}. Make one with `kdsweep sweep=alpha_tau`.")
        names = ", ".join(dict.fromkeys(run.name for run in known))
        raise UserError(f"There is no study {name_or_id!r} {where}. Known: {names}.")

    def children(self, run_id: str) -> list[RunRecord]:
        """The runs directly under a run, in the order of their start."""
        return self._search(f"tags.`{PARENT}` = '{run_id}'")

    def tagged(self, *, arm: str | None = None, **tags: str) -> list[RunRecord]:
        """The runs of this arm with these kdsweep tags, in the order of their start."""
        wanted = {} if arm is None else {ARM_TAG: arm}
        wanted |= {f"kdsweep.{key}": value for key, value in tags.items()}
        return self._search(" and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items()))

    def find(self, run_id: str) -> RunRecord:
        """A run of any experiment by its id.

        Raises:
            UserError: there is none.
        """
        from mlflow.exceptions import MlflowException

        try:
            return _record(self.ask("get_run", run_id))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UserError(f"There is no run {run_id!r} in {shown(self.uri)}. `kdsweep-ui` shows them all.") from error

    def fetch(self, run_id: str, name: str, folder: Path) -> Path | None:
        """Copies an artifact of a run into `folder`, and says where it is; None where the run has none of that name."""
        inside = Path(name).parent.as_posix()
        known = self.ask("list_artifacts", run_id, None if inside == "." else inside)
        if name not in {artifact.path for artifact in known}:
            return None
        return Path(self.ask("download_artifacts", run_id, name, str(folder)))

    def text(self, run_id: str, name: str) -> str | None:
        """An artifact of a run as text; None where it has none of that name."""
        with tempfile.TemporaryDirectory() as temporary:
            path = self.fetch(run_id, name, Path(temporary))
            return None if path is None else path.read_text(encoding="utf-8")

    def register(self, run_id: str, name: str, folder: str) -> str:
        """Registers the artifacts in `folder` of a run as a model; returns the new version's number.

        Args:
            name: The model's, in MLflow's registry; it is made if it isn't there.
            folder: "export".
        """
        from mlflow.exceptions import MlflowException

        try:
            self.ask("create_registered_model", name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self.ask('get_run', run_id).info.artifact_uri}/{folder}"
        return str(self.ask("create_model_version", name, source, run_id).version)

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, by step; empty if the run has none of that name."""
        points = self.ask("get_metric_history", run_id, metric)
        return [(point.step, point.value) for point in sorted(points, key=lambda p: (p.step, p.timestamp))]

    def attach(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Adds a file to the artifacts of a run, which may have ended, in `folder` ("report") if one is given."""
        name = path.name if folder is None else f"{folder}/{path.name}"
        self.deliver(run_id, [{"kind": "artifact", "name": name, "file": str(path.absolute())}], path.parent)

    def describe(self, run_id: str, text: str) -> None:
        """Sets the description of a run, which may have ended; one that somebody else wrote, or changed, stays."""
        tags = self.ask("get_run", run_id).data.tags
        before = tags.get(NOTE, "")
        if not before or _digest(before) == tags.get(DESCRIBED):
            self.deliver(run_id, [{"kind": "tags", "tags": {NOTE: text, DESCRIBED: _digest(text)}}], Path())

    def having(self, tag: str) -> list[RunRecord]:
        """The runs that have a tag of this name ("kdsweep.sent_from"), in the order of their start."""
        return self._search(f"tags.`{tag}` != ''")

    def runs(self) -> list[RunRecord]:
        """All runs of the experiment, in the order of their start."""
        return self._search("")

    def _search(self, filter_string: str) -> list[RunRecord]:
        """All matching runs of the experiment, in the order of their start."""
        records: list[RunRecord] = []
        token = None
        while True:
            page = self.ask(
                "search_runs",
                [self._experiment_id],
                filter_string,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            records += [_record(run) for run in page]
            token = page.token
            if not token:
                return records


def _record(run: Any) -> RunRecord:
    info, data = run.info, run.data
    return RunRecord(
        id=info.run_id,
        name=info.run_name,
        status=info.status,
        start=datetime.fromtimestamp(info.start_time / 1000, UTC),
        duration_s=None if info.end_time is None else (info.end_time - info.start_time) / 1000,
        params=dict(data.params),
        metrics=dict(data.metrics),
        tags={key: value for key, value in data.tags.items() if not key.startswith("mlflow.")},
        parent=data.tags.get(PARENT),
    )


@contextmanager
def _ended(run: Run) -> Iterator[None]:
    """Ends a run with the block."""
    try:
        yield
        run.finish()
    except BaseException as error:
        try:
            run.fail(error)
        except Exception as second:  # the first error is the one to show
            error.add_note(f"The MLflow run {run.id} could not be closed either: {second}")
        raise


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _import_mlflow() -> Any:
    # Both can be set to false from outside. Telemetry: an experiment on this machine tells nobody else about itself.
    # Addresses: MLflow prints two lines at the end of each run, into the progress bar; and a bar of its own per file.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow would retry for minutes, without a word and deaf to Ctrl-C: outages.py does that.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    import mlflow

    # A fresh store would report its eighty migrations, since Hydra shows everything from INFO upwards.
    # A locked database and a lost connection come with stack traces and lines of their own, besides the error.
    silenced = {"alembic": logging.WARNING, "mlflow.store.db.utils": logging.CRITICAL, "urllib3": logging.ERROR}
    for name, level in silenced.items():
        logging.getLogger(name).setLevel(level)
    return mlflow


def _make_store(mlflow: Any, path: Path) -> None:
    """Makes a fresh SQLite store: aside, since MLflow takes seconds, and can't open one that was left half-made."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        mlflow.MlflowClient(tracking_uri=sqlite_uri(temporary)).search_experiments(max_results=1)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    write_ahead(path)


@contextmanager
def _opening(uri: str) -> Iterator[None]:
    """Turns what goes wrong while a store is opened into a `UserError`; a server has seconds to answer."""
    path = sqlite_path(uri)
    usual = os.environ.setdefault(TIMEOUT_KEY, TIMEOUT)
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        if usual == TIMEOUT:
            os.environ[TIMEOUT_KEY] = OPEN_TIMEOUT
        yield
    except UserError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, RunError) and error.__cause__ is not None else error
        message = f"The MLflow store {shown(uri)} cannot be opened: {first_line(cause)}"
        if path is None and is_transient(cause):
            remedy = "Start it; or keep this run here with tracking.offline=true, and send it later with `kdsweep-sync`"
            raise AwayError(f"{message}. {remedy}.", "uri") from cause
        raise UserError(message, "uri") from cause
    finally:
        os.environ[TIMEOUT_KEY] = usual
