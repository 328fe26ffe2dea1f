"""A tiny Hydra application whose jobs return, fail, sleep or die as they are told, for the tests of executors.

`python tests/support/jobs.py FOLDER EXECUTOR [MODULE]` runs two long jobs in a process that can be sent signals, like a
study. The server of its workers imports the module first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from kdsweep.execution import prefetch
from kdsweep.execution.executors import open_executor
from kdsweep.execution.jobs import Job, Task
from kdsweep.system.errors import UserError

CONFIG = """
action: value   # what the job does
value: 0        # what it returns
seconds: 0.0    # how long it sleeps first
until: null     # a file that ends its sleep
hydra:
  output_subdir: null
"""


class Diligent:
    """A teacher that never runs out of parts to compute, and creates a file in `folder` when it has computed one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def compute_part(self, pass_index: int, stop: Callable[[], bool], heard: tuple[str, ...]) -> bool:
        time.sleep(0.02)
        (self.folder / "ahead").touch()
        return not stop()


class TwoArgumentsError(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def job(name: str, **values: object) -> Job:
    """A job that sets these keys."""
    return Job(name, tuple(f"{key}={value}" for key, value in values.items()))


@contextmanager
def application(folder: Path) -> Iterator[Task]:
    """Makes the application; its jobs write into `folder`, and its function can't be imported by name."""

    def act(cfg: DictConfig) -> Any:
        Path(folder, "started").mkdir(exist_ok=True)
        if cfg.action == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            Path(folder, "started", str(os.getpid())).touch()  # from here on, tests send it signals
            # In steps, like training, because Ray's cancelling doesn't interrupt a system call.
            limit = time.monotonic() + cfg.seconds
            while time.monotonic() < limit and not (cfg.until and Path(cfg.until).exists()):
                time.sleep(0.01)
        except KeyboardInterrupt as interrupt:
            time.sleep(0.3)  # closing an MLflow run takes its time
            Path(folder, f"{os.getpid()}.ended").write_text(type(interrupt).__name__)
            raise
        match cfg.action:
            case "remember":
                prefetch.remember(Diligent(folder), [0])  # type: ignore[arg-type]
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "refuse":
                raise UserError("`value > 0` must hold.", "value")
            case "fail":
                raise TwoArgumentsError("out of", "luck")
            case "leave":
                sys.exit(3)
            case "lock":
                return threading.Lock()
            case "print":
                print("a line of the job", file=sys.stderr)
            case "describe":
                return {"pid": os.getpid(), "folder": str(Path.cwd()), "environment": dict(os.environ)}
            case "hydra":
                hydra = HydraConfig.get()
                return hydra.runtime.output_dir, hydra.job.id, hydra.job.num
        return cfg.value

    (folder / "conf").mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "config.yaml").write_text(CONFIG)
    with initialize_config_dir(str(folder / "conf")):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        sweep = [f"hydra.sweep.dir={folder}/sweep", f"hydra.run.dir={folder}/run"]
        config = hydra.compose_config("config", sweep, RunMode.MULTIRUN, with_log_configuration=False)
    yield Task(HydraContext(hydra.config_loader, Callbacks()), config, act)


def started(folder: Path) -> set[int]:
    """Returns the ids of the processes in which jobs have been started."""
    return {int(path.name) for path in (folder / "started").glob("*")}


def main() -> None:
    """Runs two jobs that would take minutes, with two threads each."""
    from kdsweep.execution import workers
    from kdsweep.system import exit_status

    folder, name = Path(sys.argv[1]), sys.argv[2]
    workers.PRELOADED[:] = [*sys.argv[3:], "kdsweep.execution.worker"]  # these jobs need no torch

    def study() -> None:
        with (
            application(folder) as task,
            closing(open_executor(name, task, None, 2, threads=2, device="cpu")) as executor,  # type: ignore[arg-type]
        ):
            for number in range(2):
                executor.submit(job(f"long-{number}", seconds=200))
            executor.wait()

    # A shell starts background processes with SIGINT ignored, and this process would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exit_status.command("jobs", study)


if __name__ == "__main__":
    main()
