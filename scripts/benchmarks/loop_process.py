"""Training loops of other people (`loops.py`), each in a process that takes so many steps whenever it is asked to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import numpy as np

from benchmarks.parts import Training
from kdsweep.system.errors import RunError

_SCRIPT = Path(__file__).with_name("loops.py")


class LoopError(RunError):
    """Such a loop has ended: what it said last."""


class Loop:
    """A loop over the pictures of `training`, alive in this `with` block.

    Args:
        name: A key of `loops.LOOPS`.
        folder: Where it gets its pictures, and leaves its log.
        teacher: torchvision's name; `side`: pixels that it sees, None: the pictures' own.
        batch: Pictures a step.
        threads: Its own, and workers that load its pictures.
        python: The interpreter of an environment in which its library is installed.

    Raises:
        LoopError: It could not be started.
    """

    def __init__(
        self,
        name: str,
        training: Training,
        folder: Path,
        *,
        teacher: str,
        side: int | None,
        batch: int,
        threads: int,
        python: Path = Path(sys.executable),
    ) -> None:
        self._name = name
        pictures = folder / "pictures.npz"
        split = training.data.train
        np.savez(pictures, pictures=split.images.numpy(), labels=split.labels.numpy())
        command = [str(python), str(_SCRIPT), name, str(pictures), "--student", str(training.cfg.model.name)]
        command += ["--teacher", teacher, "--classes", str(training.data.n_classes), "--batch", str(batch)]
        command += ["--threads", str(threads), "--workers", str(threads)]
        command += [] if side is None else ["--side", str(side)]
        self._log = folder / f"{name}-{side}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )

    def __enter__(self) -> Loop:
        try:
            self._answer()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def seconds(self, steps: int) -> float:
        """What so many steps take."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise LoopError(f"the loop {self._name} has ended: {said[-1] if said else 'it said nothing'}")
        return line.strip()

    def _end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
