"""Runs kdsweep commands as processes of their own that start in milliseconds.

Imports take a command fifteen seconds. Here a server imports all that they need once, and every command is forked from
it: a real process, with an exit status, an output and an environment of its own, that can be sent signals.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

PRELOADED = [
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "alembic.command",
    "torchvision",
    "torch._dynamo",
    "sklearn.datasets",
    "kdsweep.train",
    "kdsweep.training",
    "kdsweep.study",
]

SECONDS = 120.0


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


class Command:
    """A `kdsweep` command that runs.

    Args:
        words: Its arguments.
        root: Its working directory, and where it keeps runs, caches and the MLflow store.
        env: What its environment has besides ours.
    """

    def __init__(self, *words: str, root: Path, env: Mapping[str, str] | None = None) -> None:
        root.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        name = f"{time.monotonic_ns()}"
        self._out, self._err = root / f"{name}.out", root / f"{name}.err"
        arguments = (words, root, {"KDSWEEP_HOME": str(root), **(env or {})}, self._out, self._err)
        self._process: ForkServerProcess = context.Process(target=_run, args=arguments)
        self._process.start()

    def signal(self, number: int) -> None:
        """Sends a signal to the process."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Waits until the condition holds; fails if the command ends before that."""
        while not condition():
            assert self._process.is_alive(), self.outcome()
            time.sleep(0.05)

    def outcome(self) -> Outcome:
        """Waits for the end of the command."""
        self._process.join(SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        assert self._process.exitcode is not None
        return Outcome(self._process.exitcode, self._out.read_text(), self._err.read_text())


def kdsweep(*words: str, root: Path, env: Mapping[str, str] | None = None) -> Outcome:
    """Runs a `kdsweep` command to its end."""
    return Command(*words, root=root, env=env).outcome()


def _run(words: Sequence[str], root: Path, env: Mapping[str, str], out: Path, err: Path) -> None:
    """The command's process."""
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(env)
    os.chdir(root)
    sys.argv = ["kdsweep", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from kdsweep.train import main

    main()
