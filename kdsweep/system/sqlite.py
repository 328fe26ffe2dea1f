"""SQLite files: their URI, and the mode in which readers and a writer don't wait for each other."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

SQLITE = "sqlite:///"


def sqlite_uri(path: Path) -> str:
    """Returns the URI of an SQLite file."""
    # SQLAlchemy unquotes the path. Only what must be quoted is: MLflow would also create a folder of the quoted name.
    return SQLITE + str(path.absolute()).replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """Returns the file that an SQLite URI names; None for any other URI."""
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0])) if uri.startswith(SQLITE) else None


def write_ahead(path: Path) -> None:
    """Sets an SQLite file to the mode in which readers and a writer don't wait for each other; makes a missing file.

    The file keeps the mode. MLflow itself lets a writer wait 20 s for another.
    """
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
