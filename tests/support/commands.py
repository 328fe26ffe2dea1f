"""Runs kdsweep commands as processes of their own that start in milliseconds, and reads what they leave in MLflow.

The imports of a command take fifteen seconds. Here a server imports them once, and every command is forked from it: a
real process, with an exit status, output and environment of its own, that can be sent signals.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlparse

import fresh_stores

if TYPE_CHECKING:
    from mlflow.entities import Run

T = TypeVar("T")

# A distilled run in a second: few small pictures, and a small student. A step of ResNet18 takes 330 ms on a processor
# that has AVX2 alone: its last maps are of one pixel here, for which oneDNN has no quick gradient.
SHORT = (
    "experiment=debug",
    *("model.name=shufflenet_v2_x0_5", "precision=fp32"),
    *("data.n_train=96", "data.val_size=32", "data.n_test=32"),
    *("epochs=2", "batch_size=16", "threads=1"),
)

PRELOADED = [
    *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "alembic.command"),
    *("sqlalchemy.dialects.sqlite", "mlflow.store.tracking.sqlalchemy_workspace_store"),
    *("torch._dynamo", "torchvision", "sklearn.datasets", "sklearn.gaussian_process", "PIL.PngImagePlugin"),
    *("matplotlib.backends.backend_agg", "matplotlib.figure", "mpl_toolkits.mplot3d", "rich._emoji_codes"),
    *("optuna", "optuna.storages", "hydra_plugins.hydra_optuna_sweeper._impl"),
    *("kdsweep.train", "kdsweep.training", "kdsweep.recording", "kdsweep.config.checks", "kdsweep.execution.prefetch"),
    *("kdsweep.study.plugin", "kdsweep.study.controller", "kdsweep.report.writing", "fresh_stores"),
]

# A command that takes longer hangs.
SECONDS = 300.0


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The line by which the command says why it failed; it is the only one of its kind, and the last."""
        lines = self.err.splitlines()
        assert [line for line in lines if line.startswith("kdsweep: ")] == lines[-1:]
        return lines[-1]


class Command:
    """A `kdsweep` command that runs.

    Args:
        words: Its arguments.
        root: Its working directory, and where it keeps runs, caches and the MLflow store.
        env: What its environment has besides ours.
        prepare: Is called in its process first; it brings a fault.
    """

    def __init__(
        self,
        *words: str,
        root: Path,
        env: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        name = f"command-{time.time_ns()}"
        self._out, self._err = root / f"{name}.out", root / f"{name}.err"
        arguments = (words, root, environment(root, env or {}), self._out, self._err, prepare)
        self._process: ForkServerProcess = context.Process(target=_run, args=arguments)
        self._process.start()

    def signal(self, number: int) -> None:
        """Sends a signal to the process."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL, if the process hasn't ended by itself."""
        self._process.kill()

    def wait_for(self, condition: Callable[[], T]) -> T:
        """Waits until the condition holds, and gives what it gave; fails if the command ends before that."""
        while not (found := condition()):
            assert self._process.is_alive(), self.outcome()
            time.sleep(0.05)
        return found

    def outcome(self) -> Outcome:
        """Waits for the end of the command."""
        self._process.join(SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        assert self._process.exitcode is not None
        return Outcome(self._process.exitcode, self._out.read_text(), self._err.read_text())


def environment(root: Path, env: Mapping[str, str]) -> dict[str, str]:
    """What a command in a folder finds in its environment besides ours, which its process was forked too early for."""
    return {"KDSWEEP_HOME": str(root), **fresh_stores.passed_on(), **env}


def kdsweep(*words: str, root: Path, env: Mapping[str, str] | None = None) -> Outcome:
    """Runs a `kdsweep` command to its end."""
    return Command(*words, root=root, env=env).outcome()


def _run(
    words: Sequence[str],
    root: Path,
    env: Mapping[str, str],
    out: Path,
    err: Path,
    prepare: Callable[[], None] | None = None,
) -> None:
    """The command's process."""
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(env)
    os.chdir(root)
    # A shell that starts the tests in its background, or nohup, has the system ignore what their commands shall hear.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.argv = ["kdsweep", *words]
    fresh_stores.copy_stores()
    if prepare is not None:
        prepare()
    from kdsweep.train import main

    main()


def client(root: Path) -> Any:
    """MLflow's own client, as anybody would use it, on the store of a folder."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def runs(root: Path, arm: str | None = None, **tags: object) -> list[Run]:
    """The runs in the store of a folder, in the order of their start, of this arm and with these kdsweep tags."""
    wanted = {f"kdsweep.{key}": str(value) for key, value in {"role": arm, **tags}.items() if value is not None}
    store = client(root)
    (experiment,) = store.search_experiments(filter_string="name = 'kdsweep'")
    found = store.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return [run for run in found if wanted.items() <= run.data.tags.items()]


def statuses(root: Path) -> list[str]:
    """The status of every run, read past MLflow while a command writes; empty as long as there is no store."""
    if not (root / "mlflow.db").exists():
        return []
    try:
        with closing(sqlite3.connect(f"file:{root}/mlflow.db?mode=ro", uri=True)) as database:
            return [status for (status,) in database.execute("SELECT status FROM runs ORDER BY start_time")]
    except sqlite3.OperationalError:  # its tables are being made
        return []


def checkpoints(root: Path) -> list[Path]:
    """The checkpoints below a folder that are whole: one that is being written lies in a hidden folder."""
    return list((root / "cache" / "checkpoints").glob("*/[!.]*/[!.]*.safetensors"))


def artifacts(run: Run) -> Path:
    """The folder of a run's artifacts."""
    return Path(unquote(urlparse(run.info.artifact_uri).path))
