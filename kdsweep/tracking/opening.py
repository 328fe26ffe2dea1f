"""How an MLflow store is opened: MLflow's own settings, a fresh SQLite store, and what is said if it fails."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from kdsweep.system.errors import RunError, UserError
from kdsweep.system.files import atomic_path
from kdsweep.system.masking import masked_text
from kdsweep.system.sqlite import driver_uri, sqlite_path, sqlite_uri, write_ahead
from kdsweep.tracking import ui_columns
from kdsweep.tracking.retry import AwayError, is_transient, reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Seconds that MLflow waits for an answer: while a store is opened, and later.
OPEN_TIMEOUT, TIMEOUT = "10", "30"
TIMEOUT_KEY = "MLFLOW_HTTP_REQUEST_TIMEOUT"


def import_mlflow() -> Any:
    """Imports MLflow, with its telemetry, its own retries and its output switched off; takes four seconds."""
    # All but the retries can be switched on from outside. An experiment on this machine tells nobody else about itself.
    # MLflow prints two lines with addresses at the end of each run, into the progress bar, and a bar of its own a file.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow would retry for minutes, without a word and deaf to Ctrl-C; retry.py retries instead.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    import mlflow

    # A fresh store would report its eighty migrations, since Hydra shows everything from INFO upwards.
    # A locked database and a lost connection come with stack traces and lines of their own, besides the error.
    silenced = {"alembic": logging.WARNING, "mlflow.store.db.utils": logging.CRITICAL, "urllib3": logging.ERROR}
    for name, level in silenced.items():
        logging.getLogger(name).setLevel(level)
    return mlflow


def make_store(mlflow: Any, path: Path) -> None:
    """Makes a fresh SQLite store."""
    # In another place first: MLflow takes seconds, and can't open a store that was left half-made.
    with atomic_path(path) as temporary:
        mlflow.MlflowClient(tracking_uri=driver_uri(sqlite_uri(temporary))).search_experiments(max_results=1)
    write_ahead(path)


def find_experiment(client: Any, uri: str, name: str, location: str | None) -> str:
    """Returns the id of an experiment, which is made if it isn't there; sets the columns in which the UI shows it.

    Args:
        client: MLflow's.
        uri: The store's, for messages.
        name: The experiment's.
        location: Folder of the artifacts of a new experiment, as a URI; None leaves it to the server.

    Raises:
        UserError: The experiment was deleted (key "experiment").
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            tags = {ui_columns.TAG: ui_columns.TEXT}
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException:  # on a server another host may have been first
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        remedy = f"Restore it (`mlflow experiments restore -x {found.experiment_id}`) or choose another name."
        raise UserError(f"The experiment {name!r} was deleted in {masked_text(uri)}. {remedy}", "experiment")
    if found.tags.get(ui_columns.TAG) != ui_columns.TEXT:
        with suppress(MlflowException):  # a user who may only read needs no columns
            client.set_experiment_tag(found.experiment_id, ui_columns.TAG, ui_columns.TEXT)
    return str(found.experiment_id)


def through_proxy(uri: str) -> str:
    """Returns words for a message about a server that is asked through a proxy; "" if it is asked directly."""
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(uri, get_environ_proxies(uri)) if uri.startswith("http") else None
    if proxy is None:
        return ""
    host = urlparse(uri).hostname
    return f" (asked through the proxy {masked_text(proxy)}; with NO_PROXY={host} it is asked directly)"


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """Turns what goes wrong while a store is opened into a `UserError`, and gives a server seconds to answer."""
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
        message = f"The MLflow store {masked_text(uri)} cannot be opened: {reason(cause)}{through_proxy(uri)}"
        if path is None and is_transient(cause):
            remedy = "Start it; or keep this run here with tracking.offline=true, and send it later with `kdsweep-sync`"
            raise AwayError(f"{message}. {remedy}.", "uri") from cause
        raise UserError(message, "uri") from cause
    finally:
        os.environ[TIMEOUT_KEY] = usual
