"""An MLflow store: runs are written to it here, and runs and studies are read back.

The default store is an SQLite file with its artifacts in `mlartifacts/` beside it; a server or another database is
named by its URI. Only MLflow's client is used, and never its fluent interface: no active run, no environment variable
(`MLFLOW_RUN_ID`) and no second run in the same process can divert what a run logs.

`import mlflow` takes four seconds, so it happens when a `Store` is opened and not when this module is imported.
"""

from __future__ import annotations

import re
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock

from kdsweep.system import fatal_signals, interrupts
from kdsweep.system.errors import RunError, UserError
from kdsweep.system.files import hash_text, require_writable
from kdsweep.system.masking import masked_text
from kdsweep.system.processes import parse_process, this_process
from kdsweep.system.sqlite import driver_uri, sqlite_path
from kdsweep.tracking import mlflow_calls, system_metrics, ui_columns
from kdsweep.tracking.journal import Journal, Owner
from kdsweep.tracking.location import (
    artifact_folder,
    correct_locations,
    default_experiment,
    file_path,
    holds_store,
    lock_path,
    unsent_folder,
    user_name,
)
from kdsweep.tracking.opening import find_experiment, import_mlflow, make_store, opening, through_proxy
from kdsweep.tracking.retry import PATIENCE_SECONDS, is_disk_full, is_forbidden, is_transient, patiently, reason
from kdsweep.tracking.run_records import ARM_TAG, PARENT, PROCESS, RunRecord, StudyRecord, read_back, require_one
from kdsweep.tracking.run_writer import (
    DESCRIBED,
    NOTE,
    Run,
    admitted,
    description,
    disk_full,
    ended,
    milliseconds,
)
from kdsweep.tracking.sender import LOCAL, REMOTE, Outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from kdsweep.tracking.journal import Entry

# What ended a run that isn't FINISHED.
ERROR = "kdsweep.error"

# An MLflow id, or its first letters; and as many candidates as are named where these fit several.
FIRST_LETTERS = re.compile("[0-9a-f]{1,32}")
MOST_CANDIDATES = 10

# Seconds for which a store that doesn't answer is asked again while it is opened.
OPEN_SECONDS = 4.0


class Store:
    """One experiment of an MLflow store; store and experiment are made if they aren't there.

    Several processes may open a fresh store at once. If the store's folder was moved or copied, the locations that the
    store records are corrected.

    Args:
        uri: The store's, as `store_uri` returns it.
        experiment: The experiment's name; None stands for `default_experiment`.
        unsent: Folder that keeps what runs can't hand to the store; None stands for `unsent_folder`.
        wait: Seconds for which a store that doesn't answer is asked again.

    Raises:
        AwayError: A `UserError` (key "uri"): the store doesn't answer.
        UserError: The store can't be opened (key "uri"), or the experiment was deleted (key "experiment").
    """

    def __init__(
        self, uri: str, experiment: str | None = None, unsent: Path | None = None, *, wait: float = OPEN_SECONDS
    ) -> None:
        self.uri = uri
        experiment = default_experiment() if experiment is None else experiment
        self.experiment = experiment
        self._shown = masked_text(uri)
        path = sqlite_path(uri)
        self._waiting = REMOTE if path is None else LOCAL
        self._unsent = unsent_folder(uri) if unsent is None else unsent
        self._crashes = self._unsent.with_name("crashes")
        self._lock = FileLock(lock_path(uri, path))
        self._places: dict[str, str] = {}
        self._artifacts_tried = False
        with opening(uri), self._lock:
            mlflow = import_mlflow()
            if path is not None and not holds_store(path):
                make_store(mlflow, path)
            if path is not None:
                correct_locations(path)
            self._client = mlflow.MlflowClient(tracking_uri=driver_uri(uri))
            location = None if path is None else artifact_folder(path).as_uri()
            self._experiment_id = patiently(
                lambda: find_experiment(self._client, uri, experiment, location),
                self._shown,
                wait,
                quietly=wait <= OPEN_SECONDS,
            )

    def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Calls a method of MLflow's client, again and again while the store doesn't answer.

        Raises:
            RunError: The store hasn't answered for minutes, or its disk is full.
        """
        return self._patiently(lambda: getattr(self._client, method)(*arguments, **named), Path(tempfile.gettempdir()))

    def _patiently(self, call: Callable[[], Any], folder: Path) -> Any:
        """Calls MLflow as `ask` does; an error for a full disk names the database, or `folder` if that isn't a file."""
        try:
            return patiently(call, self._shown, PATIENCE_SECONDS)
        except Exception as error:
            if is_disk_full(error):
                raise disk_full(sqlite_path(self.uri) or folder) from error
            if is_forbidden(error):
                raise UserError(
                    f"the MLflow store {self._shown} doesn't allow this: {reason(error)}{through_proxy(self.uri)}. Ask "
                    f"for the right to write into its experiment {self.experiment!r}, give a name that has it "
                    "(MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD), or record in another store.",
                    "tracking.uri",
                ) from error
            raise

    def _require_artifacts(self) -> None:
        """Tries, once, to write where artifacts of runs go, if that is a folder of this machine.

        A server may have been started with a folder of its own machine, into which each client is to write.

        Raises:
            UserError: The folder can't be written.
        """
        if self._artifacts_tried:
            return
        folder = file_path(self.ask("get_experiment", self._experiment_id).artifact_location)
        try:
            if folder is not None:
                require_writable(folder)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(Path(str(folder))) from error
            remedy = "Set its permissions; or start the server so that it hands them on (--artifacts-destination)."
            raise UserError(
                f"the MLflow store {self._shown} keeps the artifacts of {self.experiment!r} in {folder} on this "
                f"machine, where nothing can be written: {error.strerror}. {remedy}",
                "tracking.uri",
            ) from error
        self._artifacts_tried = True

    # Runs that are written

    @contextmanager
    def run(
        self, name: str, *, tags: Mapping[str, str], params: Mapping[str, object], parent: str | None = None
    ) -> Iterator[Run]:
        """Makes a run, yields it, and ends it with the block, whichever way the block ends.

        The run is FINISHED if there was no error. It is KILLED by KeyboardInterrupt, SystemExit and PrunedError (whose
        epoch is the tag kdsweep.pruned), and FAILED by any other exception, which the tag kdsweep.error names in one
        line. What was logged before is written in each case: to the folder `unsent` if the store doesn't answer.

        Args:
            name: Shown in the UI; names need not be unique.
            tags: At least the arm (`run_records.ARM_TAG`).
            params: A flat mapping; a value longer than MLflow takes (6,000 characters) is cut.
            parent: Id of the parent run.
        """
        own = {"mlflow.user": user_name(), "mlflow.source.name": "kdsweep", "mlflow.source.type": "LOCAL"}
        if parent is not None:
            own[PARENT] = parent
        # A signal in the middle of a transaction would keep the database locked, and the run could not be closed.
        with interrupts.deferred(), fatal_signals.written_down(self._crashes):
            run = self._writer(self.create(name, {**own, **tags}, milliseconds()), name)
            with ended(run), system_metrics.logged(self.uri, run.id):
                run.params(params)
                yield run

    @contextmanager
    def reopened(self, run_id: str) -> Iterator[Run]:
        """Yields an interrupted run to go on with, and ends it with the block as `run` does.

        What it couldn't send before the interruption is sent first.
        """
        with interrupts.deferred(), fatal_signals.written_down(self._crashes):
            self._require_artifacts()
            before = self.ask("get_run", run_id)
            # First, so that nobody takes it for a run whose process is gone.
            self.ask("set_tag", run_id, PROCESS, str(this_process()))
            if ERROR in before.data.tags:
                self.ask("delete_tag", run_id, ERROR)
            self.ask("update_run", run_id, status="RUNNING")
            run = self._writer(run_id, before.info.run_name)
            with ended(run), system_metrics.logged(self.uri, run.id, goes_on=True):
                run.catch_up()
                yield run

    def create(self, name: str, tags: Mapping[str, str], start: int) -> str:
        """Makes a run, whose status is RUNNING, and returns its id; `start` is in ms since 1970."""
        self._require_artifacts()
        asked = False

        def create() -> str:
            nonlocal asked
            # The store may have made the run at an earlier attempt, and only its answer was lost.
            if asked:
                for run in self._client.search_runs([self._experiment_id], f"attributes.start_time = {start}"):
                    if run.info.run_name == name and tags.items() <= run.data.tags.items():
                        return str(run.info.run_id)
            asked = True
            made = self._client.create_run(self._experiment_id, start_time=start, tags=dict(tags), run_name=name)
            return str(made.info.run_id)

        return str(self._patiently(create, self._unsent))

    def send(self, run_id: str, entry: Entry, folder: Path) -> None:
        """Writes one entry of a run (see run_writer.py); a repetition does no harm.

        Args:
            run_id: The run's.
            entry: What to write.
            folder: Holds the file of an entry that is an artifact.

        Raises:
            RunError: The store refuses the entry for good, or a disk is full.
            Exception: One for which `is_transient` holds.
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
            refused = f"The MLflow store {self._shown} refused {entry['kind']} of the run {run_id}"
            raise RunError(f"{refused}: {reason(error)}") from error

    def _place_of(self, run_id: str) -> str:
        """Returns the URI of a run's artifacts; it never changes, so the store is asked once."""
        if run_id not in self._places:
            self._places[run_id] = self._client.get_run(run_id).info.artifact_uri
        return self._places[run_id]

    def deliver(self, run_id: str, entries: Iterable[Entry], folder: Path, patience: float = PATIENCE_SECONDS) -> None:
        """Writes entries one by one, and waits for a store that doesn't answer; raises what `send` and `ask` raise."""
        for entry in entries:
            patiently(lambda entry=entry: self.send(run_id, entry, folder), self._shown, patience)  # type: ignore[misc]

    def _writer(self, run_id: str, name: str) -> Run:
        journal = Journal(self._unsent / run_id, Owner(run_id, self._shown, name))

        def send(entry: Entry) -> None:
            self.send(run_id, entry, journal.folder)

        return Run(run_id, Outbox(send, journal, self._shown, self._waiting), journal)

    def close_lost(self, run_id: str, cause: str) -> None:
        """Ends a run whose process is gone: its status becomes KILLED."""
        self.ask("set_tag", run_id, ERROR, cause)
        self.ask("set_terminated", run_id, "KILLED")

    def close_dead(self, run: RunRecord, cause: str = "its process was killed") -> str:
        """Ends a run whose process is gone, and returns the cause: a signal, where the process has written it down."""
        process = run.tags.get(PROCESS)
        signal = None if process is None else fatal_signals.ended_by(self._crashes, parse_process(process))
        cause = cause if signal is None else f"its process was ended by {signal}"
        self.close_lost(run.id, cause)
        return cause

    def close_all_dead(self) -> list[tuple[RunRecord, str]]:
        """Ends the experiment's runs whose process, of this machine, is gone; returns them, each with the cause.

        It leaves runs alone that the store doesn't let it end.
        """
        from mlflow.exceptions import MlflowException

        closed = []
        for run in self._search("attributes.status = 'RUNNING'"):
            process = parse_process(run.tags[PROCESS]) if PROCESS in run.tags else None
            if process is not None and process.same_boot and not process.lives():
                with suppress(MlflowException):
                    closed.append((run, self.close_dead(run)))
        return closed

    def group(self, key: str, name: str) -> str:
        """Returns the id of the run above the runs of one plain multirun; the first job that asks makes it.

        It is FINISHED from the start, since no job knows whether it is the last.

        Args:
            key: Stands for the multirun: its folder, which its jobs share.
            name: The new run's.
        """
        with self._lock:
            for record in self.tagged(arm="group"):
                if record.tags["kdsweep.group"] == key:
                    return record.id
            with self.run(name, tags={ARM_TAG: "group", "kdsweep.group": key}, params={}) as run:
                return run.id

    # What is added to a run that may have ended

    def attach(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Adds a file to the artifacts of a run; to `folder` ("report") in them if one is given."""
        name = path.name if folder is None else f"{folder}/{path.name}"
        self.deliver(run_id, [{"kind": "artifact", "name": name, "file": str(path.absolute())}], path.parent)

    def measure(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Adds metrics of the run as a whole."""
        now = milliseconds()
        if metrics:
            points = [[admitted(name), value, now, 0] for name, value in metrics.items()]
            self.deliver(run_id, [{"kind": "metrics", "metrics": points}], Path())

    def describe(self, run_id: str, text: str) -> None:
        """Sets the description of a run, unless somebody else wrote or changed it."""
        tags = self.ask("get_run", run_id).data.tags
        before = tags.get(NOTE, "")
        if not before or hash_text(before) == tags.get(DESCRIBED):
            self.deliver(run_id, [{"kind": "tags", "tags": description(text)}], Path())

    # Runs that are read back

    def page(self, run_id: str) -> str:
        """Returns the address of a run's page: the server's, or that of `kdsweep-ui` where it listens by default."""
        server = self._shown.rstrip("/") if self._shown.startswith("http") else f"http://127.0.0.1:{ui_columns.PORT}"
        return f"{server}/#/experiments/{self._experiment_id}/runs/{run_id}"

    def studies(self) -> list[RunRecord]:
        """Returns the parent runs of studies and of plain multiruns, the latest first."""
        found = [run for arm in ("study", "group") for run in self.tagged(arm=arm)]
        return sorted(found, key=lambda run: run.start, reverse=True)

    def study(self, name_or_id: str | None = None) -> StudyRecord:
        """Returns a study: the one of this id, or the latest of this name, or the latest of all for None.

        The first letters of an id will do.

        Raises:
            UserError: There is none, or several ids begin with these letters.
        """
        known = self.studies()
        wanted = [run for run in known if name_or_id is None or name_or_id in (run.name, run.id)]
        if not wanted and name_or_id:
            wanted = [run for run in known if run.id.startswith(name_or_id)]
            require_one(name_or_id, wanted)
        if wanted:
            return StudyRecord(wanted[0], tuple(self.children(wanted[0].id)))
        where = f"in the experiment {self.experiment!r} of {self._shown}"
        if not known:
            raise UserError(f"There is no study {where}. Make one with `kdsweep sweep=alpha_tau`.")
        names = ", ".join(dict.fromkeys(run.name for run in known))
        raise UserError(f"There is no study {name_or_id!r} {where}. Known: {names}.")

    def children(self, run_id: str) -> list[RunRecord]:
        """Returns the runs directly under a run, in the order of their start."""
        return self._search(f"tags.`{PARENT}` = '{run_id}'")

    def tagged(self, *, arm: str | None = None, **tags: str) -> list[RunRecord]:
        """Returns the runs of this arm with these kdsweep tags, in the order of their start."""
        wanted = {} if arm is None else {ARM_TAG: arm}
        wanted |= {f"kdsweep.{key}": value for key, value in tags.items()}
        return self._search(" and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items()))

    def having(self, tag: str) -> list[RunRecord]:
        """Returns the runs that have a tag of this name ("kdsweep.sent_from"), in the order of their start."""
        return self._search(f"tags.`{tag}` != ''")

    def runs(self) -> list[RunRecord]:
        """Returns all runs of the experiment, in the order of their start."""
        return self._search("")

    def find(self, run_id: str) -> RunRecord:
        """Returns the run with this id, or whose id alone begins with it, whatever its experiment.

        Raises:
            UserError: There is none, or there are several.
        """
        from mlflow.exceptions import MlflowException

        try:
            return read_back(self.ask("get_run", run_id))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            begun = self._begun_with(run_id) if FIRST_LETTERS.fullmatch(run_id) else []
            require_one(run_id, begun)
            if not begun:
                raise UserError(
                    f"There is no run {run_id!r} in {self._shown}. `kdsweep-report --list` and `kdsweep-ui` show them."
                ) from error
            return begun[0]

    def _begun_with(self, letters: str) -> list[RunRecord]:
        """Returns the latest runs, of all experiments, whose id begins with these letters."""
        experiments = [found.experiment_id for found in self.ask("search_experiments")]
        query = f"attributes.run_id LIKE '{letters}%'"
        return [read_back(run) for run in self.ask("search_runs", experiments, query, max_results=MOST_CANDIDATES)]

    def _search(self, filter_string: str) -> list[RunRecord]:
        """Returns the experiment's runs that match a filter of MLflow's, in the order of their start."""
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
            records += [read_back(run) for run in page]
            token = page.token
            if not token:
                return records

    def page_of(self, run_id: str) -> str | None:
        """Returns the address of a run's page in the MLflow UI, without secrets; None if the store is no server."""
        parts = urlsplit(self.uri)
        if parts.scheme not in ("http", "https"):
            return None
        place = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{place}{parts.path.rstrip('/')}/#/experiments/{self._experiment_id}/runs/{run_id}"

    # What a run holds

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Returns the (step, value) pairs of a metric, by step; an empty list if the run has no such metric."""
        points = self.ask("get_metric_history", run_id, metric)
        return [(point.step, point.value) for point in sorted(points, key=lambda p: (p.step, p.timestamp))]

    def text(self, run_id: str, name: str) -> str | None:
        """Returns an artifact of a run as text; None if it has none of that name."""
        with tempfile.TemporaryDirectory() as temporary:
            path = self.fetch(run_id, name, Path(temporary))
            return None if path is None else path.read_text(encoding="utf-8")

    def fetch(self, run_id: str, name: str, folder: Path) -> Path | None:
        """Copies an artifact of a run into `folder`, and returns its path there; None if there is none of that name."""
        inside = Path(name).parent.as_posix()
        known = self.ask("list_artifacts", run_id, None if inside == "." else inside)
        if name not in {artifact.path for artifact in known}:
            return None
        return Path(self.ask("download_artifacts", run_id, name, str(folder)))
