"""Student, teacher and pictures of the benchmarks of training: the product's own, built from its own configuration.

Random weights and synthetic pictures serve: what a step takes doesn't depend on them.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console

from benchmarks.measuring import ROUNDS, Figure, Turns, positive, timed
from kdsweep.config import build
from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.numerics import hardware
from kdsweep.system import progress
from kdsweep.teachers import Teacher
from kdsweep.training import Fit
from kdsweep.views import pass_of_epoch

# CIFAR's pictures; the teacher is worth listening to at the side that it was trained at.
SIDE, LARGE_SIDE = 32, 224
CLASSES = 10
CIFAR_TRAIN, CIFAR_VALIDATION = 45_000, 5_000

# A training that is measured an epoch at a time never comes to its end.
ENDLESS = 100_000


def add_arguments(parser: argparse.ArgumentParser, pictures: int = 512) -> None:
    """The options that the benchmarks of training have in common."""
    parser.add_argument("--pictures", type=positive, default=pictures, help=f"in an epoch; default: {pictures}")
    parser.add_argument("--student", default="resnet18", help="torchvision's name; default: resnet18")
    parser.add_argument("--teacher", default="resnet50", help="torchvision's name; default: resnet50")
    parser.add_argument("--rounds", type=positive, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--threads", type=positive, default=1, help="of the CPU; default: 1, as in a study's workers")
    parser.add_argument("--precision", choices=hardware.PRECISIONS, default="auto", help="of kdsweep; default: auto")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda; default: auto")


def add_batch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=positive, default=128, help="pictures a step; default: 128")


def add_large(parser: argparse.ArgumentParser) -> None:
    help_large = f"pictures a step with the teacher at {LARGE_SIDE} px, which is slow; default: 16"
    parser.add_argument("--large", type=positive, default=16, metavar="N", help=help_large)
    help_side = f"what {LARGE_SIDE} px is; a smaller one tries the benchmark out"
    parser.add_argument("--large-side", type=positive, default=LARGE_SIDE, metavar="PIXELS", help=help_side)


@contextmanager
def workplace(arguments: argparse.Namespace) -> Iterator[Path]:
    """A folder for caches; in this block torch has the threads asked for, and nobody hears the product's progress."""
    threads, console = torch.get_num_threads(), progress.console
    with tempfile.TemporaryDirectory(prefix="kdsweep-benchmark-") as folder:
        torch.set_num_threads(arguments.threads)
        progress.console = Console(file=io.StringIO())
        try:
            yield Path(folder)
        finally:
            torch.set_num_threads(threads)
            progress.console = console


def configuration(
    arguments: argparse.Namespace, folder: Path, experiment: str, *overrides: str, pictures: int | None = None
) -> DictConfig:
    """The product's configuration of an experiment on synthetic pictures.

    Args:
        folder: For what it keeps.
        experiment: scratch | distill.
        overrides: Further ones, Hydra's way.
        pictures: In an epoch; None: as asked for.
    """
    n_train = arguments.pictures if pictures is None else pictures
    n_validation = max(CLASSES, n_train * CIFAR_VALIDATION // CIFAR_TRAIN)
    lines = [
        *(f"experiment={experiment}", "data=synthetic", f"data.n_train={n_train + n_validation}", "data.n_test=10"),
        *(f"data.val_size={n_validation}", f"data.n_classes={CLASSES}", f"data.image_size={SIDE}", "data.padding=4"),
        *("data.flip=true", f"model.name={arguments.student}", "model.stem=imagenet", f"paths.root={folder}"),
        *(f"precision={arguments.precision}", f"device={arguments.device}"),
    ]
    if experiment == "distill":
        lines += [f"teacher.network.name={arguments.teacher}", "teacher.network.weights=null"]
    with hydra.initialize_config_dir(str(CONFIG_FOLDER)):
        return hydra.compose("config", [*lines, *overrides])


class Training:
    """What a run of `cfg` trains with, built as the product builds it.

    Attributes:
        pictures: How many an epoch trains on; what doesn't fill a batch is left out.
        network: The student.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.data, self.views = build.inputs(build.key_of(cfg.data), cfg.view_seed, cfg.device)
        self.device = self.views.device
        self.network, self.precision = build.student(cfg, self.data)
        self.labels = self.data.train.labels.to(self.device)
        self.batch_size = min(cfg.batch_size, len(self.labels))
        self.steps = len(self.labels) // self.batch_size
        self.pictures = self.steps * self.batch_size

    def fit(self, teacher: Teacher | None = None, epochs: int = ENDLESS, n_passes: int = 1) -> Fit:
        """The product's training; the student goes on from where it is."""
        return Fit(
            self.network,
            self.views,
            self.labels,
            loss=build.component(self.cfg, "loss"),
            teacher=teacher,
            optimizer=build.component(self.cfg, "optimizer"),
            schedule=build.component(self.cfg, "schedule"),
            epochs=epochs,
            batch_size=self.batch_size,
            n_passes=n_passes,
            order_seed=self.cfg.order_seed,
            precision=self.precision,
        )

    def teacher(self) -> Teacher:
        """The teacher, as a process that starts finds it: no pass is verified yet."""
        return build.untrained_teacher(self.cfg)


def epochs(fit: Fit) -> Callable[[], float]:
    """A side: the next epoch of one training, whose first has set up what later ones find ready."""
    training = iter(fit)
    return lambda: timed(lambda: next(training))


def warm_epochs(training: Training) -> Callable[[], float]:
    """A side: an epoch whose pass is in a table that this process has not read yet; it is read and verified.

    What a teacher does once, with its first pass (a hash of its weights), is set-up.
    """
    fill(training)
    return lambda: timed(functools.partial(next, iter(training.fit(_new_teacher(training), n_passes=2))))


def warm_passes(training: Training) -> Callable[[], float]:
    """A side: what the teacher does at the start of such an epoch."""
    fill(training)
    first = pass_of_epoch(training.cfg.order_seed, 0, n_passes=2)
    return lambda: timed(functools.partial(_new_teacher(training).answers, first))


def fill(training: Training) -> None:
    """Makes the passes of `warm_epochs` and `warm_passes`, where they aren't there."""
    teacher = training.teacher()
    for pass_index in (0, 1):
        teacher.answers(pass_index)


def _new_teacher(training: Training) -> Teacher:
    """A teacher that has verified another pass than that of the first epoch."""
    teacher = training.teacher()
    teacher.answers(1 - pass_of_epoch(training.cfg.order_seed, 0, n_passes=2))
    return teacher


def cold_passes(training: Training) -> Callable[[], float]:
    """A side: a pass that is in no table yet, computed and written."""
    teacher = training.teacher()
    unknown = itertools.count()
    return lambda: timed(lambda: teacher.answers(next(unknown)))


def synchronised(device: torch.device) -> None:
    """Waits for what the device was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def computed(
    name: str,
    turns: Turns,
    value: Callable[[dict[str, float]], float],
    *,
    goal: float | None = None,
    at_most: bool = True,
    note: str = "",
) -> Figure:
    """A figure of what `value` makes of each round's seconds, side -> seconds: the median and the range."""
    rounds = zip(*turns.seconds.values(), strict=True)
    values = [value(dict(zip(turns.seconds, seconds, strict=True))) for seconds in rounds]
    side = next(iter(turns.seconds))
    # A ratio, for what it says about disturbed rounds.
    figure = turns.ratio(name, side, side, goal=goal, at_most=at_most, note=note)
    return replace(figure, value=median(values), spread=(min(values), max(values)))


def conditions(training: Training, arguments: argparse.Namespace) -> str:
    """What was measured, in a line."""
    threads = f"{arguments.threads} thread{'s' * (arguments.threads > 1)}"
    return (
        f"{arguments.student} with the ImageNet stem, pictures of {SIDE} px, {training.device.type}, "
        f"{training.precision}, channels_last, {threads}."
    )
