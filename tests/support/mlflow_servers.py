"""Real `mlflow server` processes on loopback, which tests stop, kill and start again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fresh_stores

from kdsweep.commands import ui
from kdsweep.system.sqlite import sqlite_uri


class MlflowServer:
    """A server whose store lies in `folder`; it starts with `start`, which takes seconds.

    Attributes:
        uri: Its address, which stays the same when it is started again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = int(free.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and returns when it answers."""
        store = self._folder / "mlflow.db"
        if not store.exists():
            shutil.copyfile(fresh_stores.empty_store(), store)  # the server would take seconds to build it
        uri = sqlite_uri(store)
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                ui.command(uri, "127.0.0.1", self._port),
                env=ui.environment(uri),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while not ui.answers("127.0.0.1", self._port):
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            time.sleep(0.1)

    @property
    def group(self) -> int:
        """Its process group, with all its workers."""
        assert self._process is not None
        return self._process.pid

    def hang(self) -> None:
        """It takes connections, and answers none of them: SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It answers again."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """It is gone at once: SIGKILL."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _signal(self, number: int) -> None:
        os.killpg(self.group, number)


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """A server that answers, and is killed after the block."""
    server = MlflowServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
