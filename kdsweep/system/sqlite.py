"""SQLite files as databases: their URI, and the mode in which readers and a writer don't wait for each other."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

SQLITE = "sqlite:///"


def sqlite_uri(path: Path) -> str:
    """The URI of an SQLite file."""
    # SQLAlchemy unquotes the path; quoting more than it needs would make MLflow create a folder of the quoted name too.
    return SQLITE + str(path.absolute()).replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other URI."""
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0])) if uri.startswith(SQLITE) else None


def write_ahead(path: Path) -> None:
    """Makes an SQLite file one in which readers and a writer do not wait for each other; a missing file is made.

    The mode stays with the file. MLflow itself lets a writer wait 20 s for another.
    """
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
