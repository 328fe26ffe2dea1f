"""Times a whole study, as a user starts it, in a process of its own: `study --device cuda`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import Figure, Finding, positive
from benchmarks.parts import CIFAR_TRAIN, CIFAR_VALIDATION
from kdsweep.system.errors import RunError
from kdsweep.system.sqlite import sqlite_uri
from kdsweep.tracking.store import Store

# The goal on one H100: 71 runs of 16 epochs of CIFAR-10's size, 50 of them trials, in 17 minutes.
TRIALS, EPOCHS, GOAL_SECONDS = 50, 16, 17 * 60


def command(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Returns the command of the study: ResNet18 for pictures of CIFAR-10's size, taught by a ResNet50.

    Pictures are synthetic and weights random, because the time doesn't depend on them.
    """
    validation = max(10, arguments.pictures * CIFAR_VALIDATION // CIFAR_TRAIN)
    return [
        *(sys.executable, "-m", "kdsweep.train", "sweep=alpha_tau", "data=synthetic", "data.image_size=32"),
        *(f"data.n_train={arguments.pictures + validation}", f"data.val_size={validation}", "data.n_classes=10"),
        *(f"data.n_test={2 * validation}", "data.padding=4", "data.flip=true", "teacher.network.weights=null"),
        *(f"device={arguments.device}", f"epochs={arguments.epochs}", f"batch_size={arguments.batch}"),
        *(f"sweep.n_trials={arguments.trials or TRIALS}", f"sweep.n_jobs={arguments.jobs}", f"paths.root={folder}"),
        *arguments.set,
    ]


def measure(arguments: argparse.Namespace) -> Finding:
    """Runs the study, and takes its time from its start to its end."""
    with tempfile.TemporaryDirectory(prefix="kdsweep-benchmark-") as name:
        words, folder = command(arguments, Path(name)), Path(name)
        start = time.perf_counter()
        # Its lines go to the terminal, since they say what is compiled and in which precision the teacher computes.
        done = subprocess.run(words, stdout=sys.stderr, check=False)
        seconds = time.perf_counter() - start
        if done.returncode != 0:
            raise RunError(f"the study ended with status {done.returncode}: {' '.join(words[2:])}")
        store = Store(sqlite_uri(folder / "mlflow.db"), "kdsweep")
        (study,) = store.tagged(arm="study")
        runs = [run for run in store.children(study.id) if run.status == "FINISHED"]
    trained = [run for run in runs if run.arm != "teacher"]
    inside = sum(run.metrics["seconds"] for run in trained)
    as_the_goal = (arguments.trials or TRIALS, arguments.epochs, arguments.pictures) == (TRIALS, EPOCHS, CIFAR_TRAIN)
    figures = [
        Figure("a study from start to verdict", seconds, GOAL_SECONDS if as_the_goal else None, unit="s"),
        Figure("runs of students", len(trained)),
        Figure("training and evaluation of a run, mean", inside / len(trained), unit="s"),
    ]
    notes = [f"The goal is for one H100. {' '.join(words[2:])}"]
    return Finding("study: a whole one, as a user starts it", figures, {"command": words[2:]}, notes=notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="time a whole study there instead: cuda, cuda:1 or cpu")
    parser.add_argument("--epochs", type=positive, default=EPOCHS, help=f"of its runs; default: {EPOCHS}")
    parser.add_argument("--pictures", type=positive, default=CIFAR_TRAIN, help=f"in an epoch; default: {CIFAR_TRAIN}")
    parser.add_argument("--batch", type=positive, default=128, help="pictures a step; default: 128")
    parser.add_argument("--jobs", type=positive, default=1, help="its sweep.n_jobs; default: 1")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more of its overrides")
