"""Runs a training loop of another library (`loops.py`) in a process that makes a number of steps on request."""

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
    """A loop has ended by itself; the message is the last line that it printed."""


class Loop:
    """A loop over the pictures of `training`; its process lives in a `with` block.

    Args:
        name: A key of `loops.LOOPS`.
        training: Provides pictures and the student's name.
        folder: The folder for the loop's pictures and its log.
        teacher: torchvision's name of the teacher.
        side: The side of the teacher's input, in pixels; None keeps the pictures' own side.
        batch: The number of pictures in a step.
        threads: The number of CPU threads, and of workers that load pictures.
        python: The interpreter of an environment in which the loop's library is installed.

    Raises:
        LoopError: The loop could not be started.
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
        """Makes this many steps, and returns the seconds that they took."""
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
