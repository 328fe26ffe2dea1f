"""Servers that tests start for themselves on loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# PostgreSQL refuses to run as root; Debian's package makes this user.
USER = "postgres"


@dataclass(frozen=True)
class PostgreSQL:
    """A server with an empty database.

    Attributes:
        uri: The database's, for SQLAlchemy.
    """

    uri: str


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, which Debian keeps out of the path; None where it isn't installed."""
    known = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if known:
        return known[-1].parent
    found = shutil.which("initdb")
    return None if found is None else Path(found).parent


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL of Debian's on a free port of loopback, with its files in a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="kdsweep-postgresql-"))
    as_user: list[str] = []
    if os.getuid() == 0:
        owner = pwd.getpwnam(USER)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = programs()
    assert where is not None
    initdb = [*as_user, str(where / "initdb"), "-D", f"{folder}/data", "-U", USER, "-A", "trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd="/")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [*as_user, str(where / "pg_ctl"), "-D", f"{folder}/data", "-w", "-l", f"{folder}/log"]
    subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True, cwd="/")
    try:
        yield PostgreSQL(f"postgresql://{USER}@127.0.0.1:{port}/{USER}")
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/")
        shutil.rmtree(folder)
