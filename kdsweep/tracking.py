"""Everything MLflow: runs are written here, and studies are read back.

The default store is an SQLite file with its artifacts in `mlartifacts/` beside it; a server or another database is
named by its URI. Below stands MLflow's client alone, never its fluent interface: no active run, no environment variable
(`MLFLOW_RUN_ID`) and no second run in the same process can divert what a run logs.

`import mlflow` takes four seconds, so it happens when a `Store` is opened and not when this module is imported.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from kdsweep import interrupts
from kdsweep.errors import PrunedError, UserError
from kdsweep.records import RunRecord, StudyRecord
from kdsweep.stores import (
    artifact_folder,
    holds_store,
    lock_path,
    shown,
    sqlite_path,
    sqlite_uri,
    user_name,
    write_ahead,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# A trial of a few seconds is seen while it runs, and its epochs still share their transactions (5 to 60 ms each).
FLUSH_SECONDS = 2.0
MAX_METRICS = 1000  # a call to log_batch takes no more

# MLflow's limits; it cuts longer values with a warning for each, or refuses them.
MAX_PARAM_CHARACTERS = 6000
MAX_DIGEST_CHARACTERS = 36
MAX_ERROR_CHARACTERS = 500

PARENT = "mlflow.parentRunId"


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


class Run:
    """A run that is being written; `Store.run` makes it and ends it."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.id = run_id
        self._client = client
        self._pending: list[Any] = []
        self._flushed = time.monotonic()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Records metrics of one step (an epoch, from 1). They reach the store within seconds, in batches.

        NaN and infinities are passed on: MLflow keeps NaN, and the largest float for an infinity.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [Metric(_admitted(name), float(value), now, step) for name, value in metrics.items()]
        if len(self._pending) >= MAX_METRICS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Records metrics of the run as a whole ("test/accuracy")."""
        self.log(metrics, step=0)
        self.flush()

    def flush(self) -> None:
        """Writes what `log` has gathered."""
        # A batch that was interrupted stays pending and is sent again: MLflow takes a repeated metric for the same one.
        self._client.log_batch(self.id, metrics=self._pending, synchronous=True)
        self._pending = []
        self._flushed = time.monotonic()

    def tag(self, tags: Mapping[str, str]) -> None:
        """Sets tags; a tag set before is replaced."""
        from mlflow.entities import RunTag

        self._client.log_batch(self.id, tags=[RunTag(key, value) for key, value in tags.items()], synchronous=True)

    def dataset(self, name: str, source: str, digest: str, profile: Mapping[str, object], context: str) -> None:
        """Records data that the run read, as an MLflow data set input.

        Args:
            name: "cifar10".
            source: Where it comes from: a folder or an address.
            digest: Hash of its contents; any length.
            profile: What is worth seeing at a glance, JSON-able: {"pictures": 45000, "classes": 10}.
            context: "training", "validation" or "test".
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        text = json.dumps({"digest": digest, **profile})
        # MLflow knows a data set by name and digest: under one digest a run would lose its second context, and the
        # experiment would keep the profile that was logged first.
        part = hashlib.sha256(f"{context}:{text}".encode()).hexdigest()[:8]
        identity = f"{digest[: MAX_DIGEST_CHARACTERS - 9]}-{part}"
        dataset = Dataset(name, identity, "local", json.dumps({"uri": source}), profile=text)
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])]
        try:
            self._client.log_inputs(self.id, inputs)
        except MlflowException:  # another run has just inserted the same data set; now it is there to be found
            self._client.log_inputs(self.id, inputs)

    def text(self, name: str, content: str) -> None:
        """Writes `content` as the artifact `name` ("config.yaml", "logs/errors.txt")."""
        self._client.log_text(self.id, content, name)

    def file(self, path: Path, name: str | None = None) -> None:
        """Copies a file into the artifacts, as `name` ("weights/student.safetensors") or under its own name."""
        target = Path(name or path.name)
        folder = None if target.parent == Path() else target.parent.as_posix()
        if target.name == path.name:
            self._client.log_artifact(self.id, str(path), folder)
            return
        with tempfile.TemporaryDirectory() as temporary:
            renamed = shutil.copyfile(path, Path(temporary) / target.name)
            self._client.log_artifact(self.id, str(renamed), folder)

    def figure(self, name: str, figure: Figure) -> None:
        """Writes a matplotlib figure as the artifact `name` ("learning_curves.png")."""
        self._client.log_figure(self.id, figure, name)


class Store:
    """An MLflow store, seen through one of its experiments, which is made if it is not there.

    Several processes may open a fresh store at once.

    Raises:
        UserError (key "uri"): the store cannot be opened; (key "experiment"): the experiment was deleted.
    """

    def __init__(self, uri: str, experiment: str = "kdsweep") -> None:
        self.uri = uri
        self.experiment = experiment
        path = sqlite_path(uri)
        self._lock = FileLock(lock_path(uri, path))
        with _opening(uri), self._lock:
            mlflow = _import_mlflow()
            if path is not None and not holds_store(path):
                _make_store(mlflow, path)
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            location = None if path is None else artifact_folder(path).as_uri()
            self._experiment_id = self._find_experiment(location)

    def _find_experiment(self, location: str | None) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            from mlflow.exceptions import MlflowException

            try:
                return self._client.create_experiment(self.experiment, artifact_location=location)
            except MlflowException:  # on a server another host may have been first
                found = self._client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            remedy = f"Restore it (`mlflow experiments restore -x {found.experiment_id}`) or choose another name."
            raise UserError(
                f"The experiment {self.experiment!r} was deleted in {shown(self.uri)}. {remedy}", "experiment"
            )
        return found.experiment_id

    @contextmanager
    def run(
        self, name: str, *, tags: Mapping[str, str], params: Mapping[str, object], parent: str | None = None
    ) -> Iterator[Run]:
        """A run that ends with its block, whichever way the block ends.

        FINISHED without an error; KILLED by KeyboardInterrupt, SystemExit and PrunedError (whose epoch is the tag
        kdsweep.pruned); FAILED by any other exception, which the tag kdsweep.error names in one line. What was logged
        before is written in each case.

        Args:
            name: Shown in the UI; names need not be unique.
            tags: At least kdsweep.role.
            params: Flat; a value longer than MLflow takes (6,000 characters) is cut.
            parent: Id of the parent run.
        """
        own = {"mlflow.user": user_name(), "mlflow.source.name": "kdsweep", "mlflow.source.type": "LOCAL"}
        if parent is not None:
            own[PARENT] = parent
        # A signal in the middle of a transaction would keep the database locked, and the run could not be closed.
        with interrupts.deferred():
            created = self._client.create_run(self._experiment_id, tags={**own, **tags}, run_name=name)
            run = Run(self._client, created.info.run_id)
            with self._ended(run):
                self._log_params(run.id, params)
                yield run

    @contextmanager
    def reopened(self, run_id: str) -> Iterator[Run]:
        """A run that was interrupted, going on; it ends with the block as in `run`."""
        with interrupts.deferred():
            self._client.update_run(run_id, status="RUNNING")
            run = Run(self._client, run_id)
            with self._ended(run):
                yield run

    @contextmanager
    def _ended(self, run: Run) -> Iterator[None]:
        """Ends a run with the block."""
        try:
            yield
            run.flush()
            self._client.set_terminated(run.id, "FINISHED")
        except BaseException as error:
            try:
                self._end(run, error)
            except Exception as second:  # the first error is the one to show
                error.add_note(f"The MLflow run {run.id} could not be closed either: {second}")
            raise

    def close_lost(self, run_id: str, cause: str) -> None:
        """Ends, as KILLED, a run whose process is gone."""
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag("kdsweep.error", cause)], synchronous=True)
        self._client.set_terminated(run_id, "KILLED")

    def _log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        texts = {_admitted(key): str(value)[:MAX_PARAM_CHARACTERS] for key, value in params.items()}
        self._client.log_batch(run_id, params=[Param(*item) for item in texts.items()], synchronous=True)

    def _end(self, run: Run, error: BaseException) -> None:
        """Ends a run whose block raised."""
        killed = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | PrunedError)
        try:
            if isinstance(error, PrunedError):
                run.tag({"kdsweep.pruned": str(error.epoch)})
            elif not killed:
                line = " ".join(f"{type(error).__name__}: {error}".split())
                run.tag({"kdsweep.error": line[:MAX_ERROR_CHARACTERS]})
            run.flush()
        finally:  # metrics that MLflow refuses must not leave the run RUNNING
            self._client.set_terminated(run.id, "KILLED" if killed else "FAILED")

    def group(self, key: str, name: str) -> str:
        """Id of the run under which the runs of one plain multirun stand; made by whichever job asks first.

        It is FINISHED from the start, since no job knows whether it is the last.

        Args:
            key: What the jobs of one multirun share: its folder.
            name: Name of the run, if it is to be made.
        """
        with self._lock:
            for record in self.tagged(role="group"):
                if record.tags["kdsweep.group"] == key:
                    return record.id
            with self.run(name, tags={"kdsweep.role": "group", "kdsweep.group": key}, params={}) as run:
                return run.id

    def studies(self) -> list[RunRecord]:
        """The parent runs of studies and of plain multiruns, the latest first."""
        found = [run for role in ("study", "group") for run in self.tagged(role=role)]
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

    def tagged(self, **tags: str) -> list[RunRecord]:
        """The runs with these kdsweep tags, in the order of their start."""
        return self._search(" and ".join(f"tags.`kdsweep.{key}` = '{value}'" for key, value in tags.items()))

    def find(self, run_id: str) -> RunRecord:
        """A run of any experiment by its id.

        Raises:
            UserError: there is none.
        """
        from mlflow.exceptions import MlflowException

        try:
            return _record(self._client.get_run(run_id))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UserError(f"There is no run {run_id!r} in {shown(self.uri)}. `kdsweep-ui` shows them all.") from error

    def fetch(self, run_id: str, name: str, folder: Path) -> Path | None:
        """Copies an artifact of a run into `folder`, and says where it is; None where the run has none of that name."""
        inside = Path(name).parent.as_posix()
        known = self._client.list_artifacts(run_id, None if inside == "." else inside)
        if name not in {artifact.path for artifact in known}:
            return None
        return Path(self._client.download_artifacts(run_id, name, str(folder)))

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
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{folder}"
        return str(self._client.create_model_version(name, source, run_id).version)

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, by step; empty if the run has none of that name."""
        points = self._client.get_metric_history(run_id, metric)
        return [(point.step, point.value) for point in sorted(points, key=lambda p: (p.step, p.timestamp))]

    def attach(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Adds a file to the artifacts of a run, which may have ended, in `folder` ("report") if one is given."""
        self._client.log_artifact(run_id, str(path), folder)

    def _search(self, filter_string: str) -> list[RunRecord]:
        """All matching runs of the experiment, in the order of their start."""
        records: list[RunRecord] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], filter_string, order_by=["attributes.start_time ASC"], page_token=token
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
    )


def _admitted(name: str) -> str:
    """The name with an underscore for each character that MLflow does not admit in names: ( ) + = and the like."""
    return re.sub(r"[^/\w.\- :]", "_", name)


def _import_mlflow() -> Any:
    # Both can be set to false from outside. Telemetry: an experiment on this machine tells nobody else about itself.
    # Addresses: MLflow prints two lines at the end of each run, into the progress bar; and a bar of its own per file.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    # A fresh store would report its eighty migrations, since Hydra shows everything from INFO upwards.
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
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
    # Later calls get MLflow's patience (seven retries, four minutes): a run of hours should outlast a restart.
    hurry = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    hurry = {key: value for key, value in hurry.items() if key not in os.environ}
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        os.environ.update(hurry)
        yield
    except UserError:
        raise
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0][:MAX_ERROR_CHARACTERS]
        raise UserError(f"The MLflow store {shown(uri)} cannot be opened: {first_line}", "uri") from error
    finally:
        for key in hurry:
            os.environ.pop(key, None)
