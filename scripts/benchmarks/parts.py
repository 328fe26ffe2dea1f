"""Student, teacher and pictures for the benchmarks of training, built by kdsweep from its own configuration.

Weights are random and pictures synthetic, since the time of a step doesn't depend on them.
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

# The side of CIFAR's pictures, and of the pictures that the teacher was trained on, at which it is good.
SIDE, LARGE_SIDE = 32, 224
CLASSES = 10
CIFAR_TRAIN, CIFAR_VALIDATION = 45_000, 5_000

# A training that is measured epoch by epoch must not come to its end.
ENDLESS = 100_000


def add_arguments(parser: argparse.ArgumentParser, pictures: int = 512) -> None:
    """Adds the options that the benchmarks of training share."""
    parser.add_argument("--pictures", type=positive, default=pictures, help=f"in an epoch; default: {pictures}")
    parser.add_argument("--student", default="resnet18", help="torchvision's name; default: resnet18")
    parser.add_argument("--teacher", default="resnet50", help="torchvision's name; default: resnet50")
    parser.add_argument("--rounds", type=positive, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--threads", type=positive, default=1, help="of the CPU; default: 1, as in a study's workers")
    parser.add_argument("--precision", choices=hardware.PRECISIONS, default="auto", help="of kdsweep; default: auto")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda; default: auto")


def add_batch(parser: argparse.ArgumentParser) -> None:
    """Adds the option for the batch size."""
    parser.add_argument("--batch", type=positive, default=128, help="pictures a step; default: 128")


def add_large(parser: argparse.ArgumentParser) -> None:
    """Adds the options for a teacher at the large side."""
    help_large = f"pictures a step with the teacher at {LARGE_SIDE} px, which is slow; default: 16"
    parser.add_argument("--large", type=positive, default=16, metavar="N", help=help_large)
    help_side = f"what {LARGE_SIDE} px is; a smaller one tries the benchmark out"
    parser.add_argument("--large-side", type=positive, default=LARGE_SIDE, metavar="PIXELS", help=help_side)


@contextmanager
def workplace(arguments: argparse.Namespace) -> Iterator[Path]:
    """Yields a temporary folder; in this block torch has the threads asked for, and kdsweep prints no progress."""
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
    """Composes kdsweep's configuration of an experiment on synthetic pictures.

    Args:
        arguments: The options that the benchmarks of training share.
        folder: The folder for caches and runs.
        experiment: "scratch" or "distill".
        overrides: Further Hydra overrides.
        pictures: The number of pictures in an epoch; None takes that of `arguments`.
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
    """What a run of `cfg` trains with, built as kdsweep builds it.

    Attributes:
        pictures: The number of pictures that an epoch trains on. Pictures that don't fill a batch are left out.
        network: The student.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.data, self.views = build.inputs(cfg)
        self.device = self.views.device
        self.network, self.precision = build.student(cfg, self.data)
        self.labels = self.data.train.labels.to(self.device)
        self.batch_size = min(cfg.batch_size, len(self.labels))
        self.steps = len(self.labels) // self.batch_size
        self.pictures = self.steps * self.batch_size

    def fit(self, teacher: Teacher | None = None, epochs: int = ENDLESS, n_passes: int = 1) -> Fit:
        """Makes kdsweep's training, which goes on with the student's weights as they are."""
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
            compiled=self.device.type == "cuda",  # as by default in all trainings that take more than a minute
        )

    def teacher(self) -> Teacher:
        """Makes the teacher as a new process finds it, with no pass verified yet."""
        return build.untrained_teacher(self.cfg)


def epochs(fit: Fit) -> Callable[[], float]:
    """A side: makes the next epoch of one training. The first epoch also sets up what later ones find ready."""
    training = iter(fit)
    return lambda: timed(lambda: next(training))


def warm_epochs(training: Training) -> Callable[[], float]:
    """A side: makes an epoch whose pass is in a table that this process hasn't read yet, so it is read and verified.

    The hash of the teacher's weights, which is computed once, with its first pass, isn't measured.
    """
    fill(training)
    return lambda: timed(functools.partial(next, iter(training.fit(_new_teacher(training), n_passes=2))))


def warm_passes(training: Training) -> Callable[[], float]:
    """A side: does what the teacher does at the start of an epoch of `warm_epochs`."""
    fill(training)
    first = pass_of_epoch(training.cfg.order_seed, 0, n_passes=2)
    return lambda: timed(functools.partial(_new_teacher(training).answers, first))


def fill(training: Training) -> None:
    """Computes the passes for `warm_epochs` and `warm_passes` unless the table has them."""
    teacher = training.teacher()
    for pass_index in (0, 1):
        teacher.answers(pass_index)


def _new_teacher(training: Training) -> Teacher:
    """Makes a teacher that has verified a pass, but not that of the first epoch."""
    teacher = training.teacher()
    teacher.answers(1 - pass_of_epoch(training.cfg.order_seed, 0, n_passes=2))
    return teacher


def cold_passes(training: Training) -> Callable[[], float]:
    """A side: computes and writes a pass that no table has yet."""
    teacher = training.teacher()
    unknown = itertools.count()
    return lambda: timed(lambda: teacher.answers(next(unknown)))


def synchronised(device: torch.device) -> None:
    """Waits until the device has done its work."""
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
    """Makes a figure of a function of each round's seconds by side: its median and range over the rounds."""
    rounds = zip(*turns.seconds.values(), strict=True)
    values = [value(dict(zip(turns.seconds, seconds, strict=True))) for seconds in rounds]
    side = next(iter(turns.seconds))
    # Only the ratio's note about disturbed rounds is kept.
    figure = turns.ratio(name, side, side, goal=goal, at_most=at_most, note=note)
    return replace(figure, value=median(values), spread=(min(values), max(values)))


def conditions(training: Training, arguments: argparse.Namespace) -> str:
    """Describes in a line what was measured."""
    threads = f"{arguments.threads} thread{'s' * (arguments.threads > 1)}"
    return (
        f"{arguments.student} with the ImageNet stem, pictures of {SIDE} px, {training.device.type}, "
        f"{training.precision}, channels_last, {threads}."
    )
