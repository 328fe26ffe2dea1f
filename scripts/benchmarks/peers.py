"""Compares a distilled step of kdsweep with training loops of other libraries, on the same pictures and networks.

The libraries are installed in a virtual environment of their own, which takes torch from this one. If one of them can't
be installed, or doesn't work with this torch, its figures have no value and say why.
"""

from __future__ import annotations

import argparse
import functools
import math
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import parts
from benchmarks.loop_process import Loop, LoopError
from benchmarks.measuring import Figure, Finding, Turns, take_turns

# The package to install for each loop, without its own requirements (an old torch, linters).
PACKAGES = {"usual": None, "torchdistill": "torchdistill==1.1.5", "KD_Lib": "KD-Lib==0.0.32"}
# KD_Lib is left out, because it also computes the teacher's gradients, which takes gigabytes at 224 px.
AT_LARGE_SIDE = ("torchdistill",)

GOAL_SMALL, GOAL_LARGE, GOAL_SHARED = 2.5, 80.0, 60.0
SHARED_BY = 20  # trials, each with 30 epochs and 30 passes


def environment(folder: Path) -> tuple[Path, dict[str, str]]:
    """Makes a virtual environment with the libraries, or finds what an earlier call has made.

    Args:
        folder: The folder of the environment.

    Returns:
        The environment's interpreter, and for each loop whose library couldn't be installed the reason.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, symlinks=True)
        own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
        # Makes everything in this environment visible in the other, above all torch.
        (own / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    missing = {}
    for name, package in PACKAGES.items():
        if package is not None and not (folder / f"{name}.installed").exists():
            reason = _install(python, package)
            if reason is None:
                (folder / f"{name}.installed").touch()
            else:
                missing[name] = reason
    return python, missing


def _install(python: Path, package: str) -> str | None:
    """Installs a package without its requirements; returns why that failed, or None."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or ["pip failed"])[-1]


def measure(arguments: argparse.Namespace) -> Finding:
    """A distilled step against those of torchdistill, KD_Lib and PyTorch's tutorial"""
    with parts.workplace(arguments) as folder:
        try:
            python, missing = environment(arguments.venv or folder / "venv")
        except (OSError, subprocess.CalledProcessError) as error:
            python, missing = Path(sys.executable), {name: str(error) for name, package in PACKAGES.items() if package}
        overrides = f"batch_size={arguments.batch}", f"teacher.network.input_size={parts.SIDE}"
        training = parts.Training(parts.configuration(arguments, folder, "distill", *overrides))
        found = Peers(arguments, folder, python, training, parts.warm_epochs(training))
        small, small_details = found.small(missing)
        # A loop that didn't start won't start with a larger teacher either.
        large, large_details = found.large(small_details["skipped"])
    lines = [
        f"Ratios compare seconds per picture; kdsweep reads a warm table. Batch {training.batch_size}; at "
        f"{arguments.large_side} px the others have {arguments.large}, which makes the student's part a little slower. "
        f"The other loops: fp32, torch's default layout, {arguments.threads} thread(s) and as many loading workers; "
        f"usual is PyTorch's tutorial with augmented pictures. Teacher {arguments.teacher}.",
        parts.conditions(training, arguments),
    ]
    details = {f"{parts.SIDE} px": small_details, f"{arguments.large_side} px": large_details}
    return Finding("peers: kdsweep against other training loops", [*small, *large], details, notes=lines)


@dataclass(frozen=True)
class Peers:
    """The sides, and their figures.

    Args:
        arguments: The options of the command line.
        folder: The folder for tables, and for pictures and logs of loops.
        python: The interpreter of the environment with the libraries.
        training: kdsweep's training, whose pictures all loops use.
        warm: A side: kdsweep's epoch from a warm table.
    """

    arguments: argparse.Namespace
    folder: Path
    python: Path
    training: parts.Training
    warm: Callable[[], float]

    def small(self, missing: Mapping[str, str]) -> tuple[list[Figure], dict[str, Any]]:
        """Compares all loops with the teacher at the pictures' side; returns figures and the values behind them."""
        training = self.training
        steps, batch = training.steps, training.batch_size
        turns, skipped = self._take_turns(tuple(PACKAGES), missing, None, batch, steps, {})
        figures = []
        for name in PACKAGES:
            words = f"{name}, teacher at {parts.SIDE} px, against a warm table"
            if name in skipped:
                figures.append(_skipped(words, GOAL_SMALL, skipped[name]))
            else:
                figures.append(turns.ratio(words, name, "kdsweep", goal=GOAL_SMALL, at_most=False))
        for side in turns.seconds:
            rate = training.pictures / turns.median(side)
            figures.append(Figure(f"{side}, teacher at {parts.SIDE} px", rate, unit="pictures/s"))
        return figures, {**turns.values(), "batch": batch, "steps": steps, "skipped": skipped}

    def large(self, missing: Mapping[str, str]) -> tuple[list[Figure], dict[str, Any]]:
        """Compares single steps of a loop, with the teacher at the large side, and measures a pass for a table."""
        n, size = self.arguments.large, self.arguments.large_side
        overrides = f"teacher.network.input_size={size}"
        own = parts.configuration(self.arguments, self.folder, "distill", overrides, pictures=n)
        cold = {"pass": parts.cold_passes(parts.Training(own))}
        turns, skipped = self._take_turns(AT_LARGE_SIDE, missing, size, n, 1, cold)
        details = {**turns.values(), "batch": n, "steps": 1, "skipped": skipped}
        return self.large_figures(turns, skipped), details

    def large_figures(self, turns: Turns, skipped: Mapping[str, str]) -> list[Figure]:
        """Makes figures per picture of a loop's step and kdsweep's; the latter also with its share of a pass."""
        training, n, size = self.training, self.arguments.large, self.arguments.large_side
        figures = []
        for name in AT_LARGE_SIDE:
            words = f"{name}, teacher at {size} px, against a warm table"
            shared = f"{name}, teacher at {size} px, against a table made for {SHARED_BY} trials"
            if name in skipped:
                figures.append(_skipped(words, GOAL_LARGE, skipped[name]))
                figures.append(_skipped(shared, GOAL_SHARED, skipped[name]))
                continue

            def amortised(seconds: dict[str, float], name: str = name) -> float:
                own = seconds["kdsweep"] * n / training.pictures
                return seconds[name] / (own + seconds["pass"] / SHARED_BY)

            scale = training.pictures / n
            figures.append(turns.ratio(words, name, "kdsweep", goal=GOAL_LARGE, at_most=False, scale=scale))
            note = "computed from the seconds of a pass"
            figures.append(parts.computed(shared, turns, amortised, goal=GOAL_SHARED, at_most=False, note=note))
        for side in turns.seconds:
            pictures = training.pictures if side == "kdsweep" else n
            rate = pictures / turns.median(side)
            figures.append(Figure(f"{side}, teacher at {size} px", rate, unit="pictures/s"))
        return figures

    def _take_turns(
        self,
        names: Sequence[str],
        missing: Mapping[str, str],
        side: int | None,
        batch: int,
        steps: int,
        more: Mapping[str, Callable[[], float]],
    ) -> tuple[Turns, dict[str, str]]:
        """Measures kdsweep, the loops that can be started, and `more` sides; returns also why loops were skipped."""
        skipped = {name: reason for name, reason in missing.items() if name in names}
        sides: dict[str, Callable[[], float]] = {"kdsweep": self.warm}
        with ExitStack() as stack:
            for name in names:
                if name in skipped:
                    continue
                loop = Loop(
                    *(name, self.training, self.folder),
                    teacher=self.arguments.teacher,
                    side=side,
                    batch=batch,
                    threads=self.arguments.threads,
                    python=self.python,
                )
                try:
                    sides[name] = functools.partial(stack.enter_context(loop).seconds, steps)
                except LoopError as error:
                    skipped[name] = str(error)
            size = parts.SIDE if side is None else side
            sides.update(more)
            options = {"rounds": self.arguments.rounds, "threads": self.arguments.threads}
            return take_turns(f"teacher at {size} px", sides, **options), skipped


def _skipped(name: str, goal: float, reason: str) -> Figure:
    return Figure(name, math.nan, goal, at_most=False, note=f"skipped: {reason}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts.add_arguments(parser, pictures=128)
    parts.add_batch(parser)
    parts.add_large(parser)
    help_venv = "where the libraries are installed, and found again; default: a temporary folder"
    parser.add_argument("--venv", type=Path, metavar="FOLDER", help=help_venv)
