"""SQLite files: their URI, and the mode in which readers and a writer don't wait for each other."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

SQLITE = "sqlite:///"


def sqlite_uri(path: Path) -> str:
    """Returns the URI of an SQLite file."""
    # SQLAlchemy unquotes the path. Only what must be quoted is, so that people can read it.
    return SQLITE + str(path.absolute()).replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """Returns the file that an SQLite URI names; None for any other URI."""
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0])) if uri.startswith(SQLITE) else None


def driver_uri(uri: str) -> str:
    """Returns a URI with SQLite's driver in it, if it holds quoted characters; any other URI as it is.

    MLflow makes the parent folders of `sqlite:///` paths, and doesn't unquote them: beside "a 50%" it would leave an
    empty folder "a 50%25". Where the driver is named, it leaves that alone.
    """
    return f"sqlite+pysqlite:///{uri.removeprefix(SQLITE)}" if uri.startswith(SQLITE) and "%" in uri else uri


def write_ahead(path: Path) -> None:
    """Sets an SQLite file to the mode in which readers and a writer don't wait for each other; makes a missing file.

    The file keeps the mode. MLflow itself lets a writer wait 20 s for another.
    """
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
