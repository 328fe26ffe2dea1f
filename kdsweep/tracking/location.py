"""Where an MLflow store is: its URI, and an SQLite store's file, artifact folder and lock.

An SQLite store records artifacts by absolute folders; if it was moved or copied, they are corrected.
"""

from __future__ import annotations

import getpass
import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

from kdsweep.system.errors import UserError
from kdsweep.system.files import hash_text
from kdsweep.system.sqlite import SQLITE, sqlite_path, sqlite_uri

SERVERS = ("http", "https", "databricks")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")

# What the commands' help says of their option --experiment.
EXPERIMENT = "MLflow experiment (default: $MLFLOW_EXPERIMENT_NAME, else kdsweep)"

# Folders beside an SQLite store's file.
ARTIFACTS, UNSENT = "mlartifacts", "unsent"

# Tables and columns that hold absolute folders, besides the experiments'.
LOCATIONS = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def store_uri(uri: str | None, root: Path) -> str:
    """Returns the URI of the store to use: `uri`, else `$MLFLOW_TRACKING_URI`, else `mlflow.db` in the folder `root`.

    A relative SQLite path is made absolute (from the working directory), so that the result means the same everywhere.

    Raises:
        UserError: The URI names neither a database nor a server.
    """
    if uri is None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(root / "mlflow.db")
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in (*SERVERS, *DATABASES) or uri in (SQLITE, f"{SQLITE}:memory:"):
        example = f"`{SQLITE}mlflow.db` or `http://127.0.0.1:5000`"
        raise UserError(f"uri must name an SQLite file, a database or a server, but got {uri!r}. Try {example}.", "uri")
    path = sqlite_path(uri)
    if path is None:
        return uri
    _, mark, query = uri.partition("?")
    return sqlite_uri(path) + mark + query


def default_experiment() -> str:
    """Returns the name of the MLflow experiment of which commands speak: `$MLFLOW_EXPERIMENT_NAME`, else "kdsweep"."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "kdsweep"


def artifact_folder(database: Path) -> Path:
    """Returns the folder of an SQLite store's artifacts, which is beside its file."""
    return database.absolute().parent / ARTIFACTS


def offline_uri(root: Path) -> str:
    """Returns the URI of the store for runs that are kept on this machine until `kdsweep-sync` sends them."""
    return sqlite_uri(root / "offline" / "mlflow.db")


def unsent_folder(uri: str) -> Path:
    """Returns the default folder for what a store doesn't take: beside an SQLite store's file, else in the root."""
    path = sqlite_path(uri)
    return (Path(os.environ.get("KDSWEEP_HOME", ".")).absolute() if path is None else path.parent) / UNSENT


def file_path(uri: str) -> Path | None:
    """Returns the folder that a "file:" URI or a plain absolute path names; None for any other URI."""
    if uri.startswith("file:"):
        return Path(unquote(urlparse(uri).path))
    return Path(uri) if uri.startswith("/") else None


def correct_locations(database: Path) -> None:
    """Corrects the artifact folders that an SQLite store records, in case it was moved or copied here.

    New runs are then written beside the store, and never to the folder that it came from. The artifacts of an old run
    are looked for here, unless they still lie in the old place and not here. Locations that other programs chose stay.
    """
    own = artifact_folder(database)
    with closing(sqlite3.connect(database, timeout=20)) as store:
        found = store.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
        others = {location for _, location in found if location and _is_elsewhere(location, own)}
        for location in others:
            query = "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?"
            with store:  # one transaction
                for table, column in LOCATIONS:
                    _move_rows(store, table, column, location, own)
                store.execute(query, (own.as_uri(), location))


def _is_elsewhere(location: str, own: Path) -> bool:
    """Returns whether a location is a folder that kdsweep chose for artifacts, but another store's."""
    folder = file_path(location)
    if folder is None or folder.name != ARTIFACTS or folder == own:
        return False
    return not (folder.exists() and own.exists() and folder.samefile(own))


def _move_rows(store: sqlite3.Connection, table: str, column: str, old: str, own: Path) -> None:
    """Replaces the folder `old` by `own` in a column of URIs."""
    there = file_path(old)
    assert there is not None
    if not store.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchall():
        return
    query = f"SELECT rowid, {column} FROM {table} WHERE substr({column}, 1, ?) = ?"
    for row, uri in store.execute(query, (len(old) + 1, f"{old}/")).fetchall():
        rest = uri[len(old) :]
        folder = unquote(rest).lstrip("/").partition("/")[0]
        if (own / folder).exists() or not (there / folder).exists():
            store.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (own.as_uri() + rest, row))


def require_store(uri: str) -> None:
    """Raises `UserError` if `uri` names an SQLite file without an MLflow store in it; asks no server."""
    path = sqlite_path(uri)
    if path is not None and not holds_store(path):
        raise UserError(f"There is no MLflow store at {path}. Make one with `kdsweep`, or name another.", "uri")


def holds_store(path: Path) -> bool:
    """Returns whether an SQLite file is there and not empty.

    Raises:
        UserError: Something other than an MLflow store is there.
    """
    if not path.exists():
        return False
    if not path.is_file():  # a device or a folder, which would be replaced
        raise UserError(f"`the store is a file` must hold, but {path} is none. Name another.", "uri")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} cannot be read as an SQLite database: {error}. Name another file.", "uri") from error
    if tables and "experiments" not in tables:
        raise UserError(f"{path} is an SQLite database, but not an MLflow store. Name another file.", "uri")
    return bool(tables)


def experiments(path: Path) -> list[str]:
    """Returns the names of those experiments of an SQLite store that have runs."""
    query = "SELECT name FROM experiments WHERE experiment_id IN (SELECT experiment_id FROM runs) ORDER BY name"
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        return [name for (name,) in database.execute(query)]


def user_name() -> str:
    """Returns the user's name; "unknown" if the system has none for this user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return "unknown"


def lock_path(uri: str, database: Path | None) -> Path:
    """Returns the lock of a store: beside an SQLite file; for a server, one per user of this machine.

    A server's lock keeps no other machine out.
    """
    if database is not None:
        return database.with_name(f"{database.name}.lock")
    return Path(tempfile.gettempdir()) / f"kdsweep-{user_name()}-{hash_text(uri)}.lock"
