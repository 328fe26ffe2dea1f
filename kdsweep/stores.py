"""Where an MLflow store is: its URI, an SQLite store's file and artifact folder, the lock of its first start."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from kdsweep.errors import UserError

SQLITE = "sqlite:///"
SERVERS = ("http", "https", "databricks")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def store_uri(uri: str | None, root: Path) -> str:
    """The URI of the store to use: `uri`, else `$MLFLOW_TRACKING_URI`, else `mlflow.db` in the folder `root`.

    A relative SQLite path is made absolute (from the working directory), so that the answer means the same everywhere.

    Raises:
        UserError: the URI is neither a database nor a server.
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


def sqlite_uri(path: Path) -> str:
    """The URI of an SQLite file."""
    # SQLAlchemy unquotes the path; quoting more than it needs would make MLflow create a folder of the quoted name too.
    return SQLITE + str(path.absolute()).replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other URI."""
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0])) if uri.startswith(SQLITE) else None


def artifact_folder(database: Path) -> Path:
    """Where the artifacts of an SQLite store lie: beside its file."""
    return database.absolute().parent / "mlartifacts"


def require_store(uri: str) -> None:
    """Raises `UserError` if `uri` names an SQLite file in which there is no MLflow store (a server is not asked)."""
    path = sqlite_path(uri)
    if path is not None and not holds_store(path):
        raise UserError(f"There is no MLflow store at {path}. Make one with `kdsweep`, or name another.", "uri")


def holds_store(path: Path) -> bool:
    """Whether an SQLite file is there and not empty; `UserError` if it is something other than an MLflow store."""
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} cannot be read as an SQLite database: {error}. Name another file.", "uri") from error
    if tables and "experiments" not in tables:
        raise UserError(f"{path} is an SQLite database, but not an MLflow store. Name another file.", "uri")
    return bool(tables)


def user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return "unknown"


def lock_path(uri: str, database: Path | None) -> Path:
    """Beside an SQLite file; for a server, one lock a user and machine (other machines are not kept out)."""
    if database is not None:
        return database.with_name(f"{database.name}.lock")
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"kdsweep-{user_name()}-{name}.lock"


def write_ahead(path: Path) -> None:
    """Makes an SQLite file one in which readers and a writer do not wait for each other; a missing file is made.

    The mode stays with the file. MLflow itself lets a writer wait 20 s for another.
    """
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")


def shown(uri: str) -> str:
    """The URI without the password that it may hold."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", uri)
