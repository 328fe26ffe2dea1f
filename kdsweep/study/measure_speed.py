"""Measures in a few seconds how fast this machine trains a configuration's student and runs its teacher."""

from __future__ import annotations

import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kdsweep.averaged_teachers import AveragedTeacher
from kdsweep.config import build, identities, trained_teachers
from kdsweep.config.rules import is_trained
from kdsweep.losses import FEATURES, LOGITS, given_to, needs
from kdsweep.numerics import gpu_memory
from kdsweep.numerics.hardware import resolve_device, set_threads
from kdsweep.numerics.step_graph import WARM_UPS
from kdsweep.system.environment import cores
from kdsweep.system.tensor_files import read_tensors
from kdsweep.training import DivergedError, Fit, heard_by, predict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from omegaconf import DictConfig

    from kdsweep.data import Dataset
    from kdsweep.models import Classifier
    from kdsweep.teachers import Teacher

# The time limits of a measurement's parts: several steps together, one step, one forward pass.
STEPS_SECONDS = 2.0
STEP_SECONDS = 1.5
FORWARD_SECONDS = 0.4
MAX_STEPS = 12

# A training step costs about as much as three forward passes, since it also computes gradients of outputs and weights.
FORWARDS_PER_STEP = 3
# Smaller batches would not keep the network's layers busy.
SMALLEST_BATCH = 8


@dataclass(frozen=True)
class Speed:
    """The time that each part of a run takes on this machine, and the number of parts.

    Attributes:
        step_seconds: The time of one training step of `batch_size` pictures, without the teacher.
        evaluation_rate: The speed of the student's forward passes, in pictures/s.
        teacher_rate: The speed of the teacher's forward passes, in pictures/s; None without a teacher.
        batch_size: The number of pictures in a training step.
        epochs: The configuration's number of epochs.
        n_passes: The configuration's number of passes.
        train_fraction: The configuration's fraction of the training pictures; None if its data set has none.
        n_train: The number of pictures in the training split.
        n_validation: The number of pictures in the validation split.
        n_test: The number of pictures in the test split.
        online: Whether the teacher computes its logits for every batch anew, and keeps no passes.
        passes_missing: The passes among 0 .. n_passes - 1 that the teacher has still to compute.
        features_missing: The number of un-augmented pictures whose features the teacher has still to compute.
        feature_bytes: What the features of the missing passes take on the disk, if the loss hears them.
        threads: CPU threads of the measured run.
        cores: CPU cores that this process may use.
        gpus: The number of GPUs that runs may use; 0 if they use the CPU.
        gpu_bytes: The most that a run takes of a GPU's memory, beside what CUDA takes; 0 on a CPU.
        gpu_free: What is free of a GPU's memory, in bytes; 0 on a CPU.
    """

    step_seconds: float
    evaluation_rate: float
    teacher_rate: float | None
    batch_size: int
    epochs: int
    n_passes: int
    train_fraction: float | None
    n_train: int
    n_validation: int
    n_test: int
    online: bool
    passes_missing: tuple[int, ...]
    features_missing: int
    threads: int
    cores: int
    gpus: int
    gpu_bytes: int = 0
    gpu_free: int = 0
    feature_bytes: int = 0


def measure(cfg: DictConfig, threads: int | None = None) -> Speed:
    """Measures the speed of a configuration, with real pictures and the code that runs use.

    It writes nothing, and restores torch's random numbers and number of threads.

    Args:
        cfg: The configuration, after `checks.check`.
        threads: CPU threads. None means the configuration's number, or torch's choice if it has none.
    """
    device = resolve_device(cfg.device)
    data, _ = build.inputs(cfg)
    with gpu_memory.peak(device) as peak:
        step_seconds, evaluation_rate = student_speed(cfg, threads)
        gpu_bytes = peak()
    gpu_free = gpu_memory.free(device)
    with _undisturbed(cfg, threads):
        teacher_rate: float | None = None
        passes: tuple[int, ...] = ()
        features = feature_bytes = table_row = 0
        if cfg.teacher is not None:
            heard = heard_by(build.component(cfg, "loss"))
            teacher = build.untrained_teacher(cfg)
            teacher_rate = _rate(teacher.ask, data.train.images[: cfg.teacher.batch_size].to(device))
            passes = missing_passes(cfg, teacher, heard)
            table_row = 4 * data.n_classes
            if FEATURES in heard:
                teacher.require_room(range(cfg.n_passes))
                feature_bytes = teacher.feature_bytes(range(cfg.n_passes))
                table_row += 2 * teacher.n_features
            features = sum(len(getattr(data, split)) for split in teacher.missing_features())
        return Speed(
            step_seconds=step_seconds,
            evaluation_rate=evaluation_rate,
            teacher_rate=teacher_rate,
            batch_size=min(cfg.batch_size, len(data.train)),
            epochs=cfg.epochs,
            n_passes=cfg.n_passes,
            train_fraction=cfg.data.train_fraction if "train_fraction" in cfg.data else None,
            n_train=len(data.train),
            n_validation=len(data.validation),
            n_test=len(data.test),
            online=cfg.teacher is not None and cfg.teacher.mode == "online",
            passes_missing=passes,
            features_missing=features,
            threads=torch.get_num_threads(),
            cores=cores(),
            gpus=0 if device.type == "cpu" else 1 if device.index is not None else torch.cuda.device_count(),
            # A distilled run has the table of a pass on the GPU, and keeps a second one for a moment.
            gpu_bytes=gpu_bytes + 2 * table_row * len(data.train),
            gpu_free=gpu_free,
            feature_bytes=feature_bytes,
        )


def student_speed(cfg: DictConfig, threads: int | None = None) -> tuple[float, float]:
    """Returns the seconds of a training step of `cfg.batch_size` pictures, and the pictures/s of forward passes."""
    data, _ = build.inputs(cfg)
    with _undisturbed(cfg, threads):
        student, precision = build.student(cfg, data)

        def evaluate(pictures: torch.Tensor) -> torch.Tensor:
            return predict(student, pictures, len(pictures), precision)

        rate = _rate(evaluate, data.train.images[: build.EVALUATION_BATCH])
        return _step_seconds(cfg, student, precision, data, rate), rate


def missing_passes(
    cfg: DictConfig, teacher: Teacher | AveragedTeacher, heard: tuple[str, ...] = (LOGITS,)
) -> tuple[int, ...]:
    """Returns the passes that the teacher has still to compute: all of them if its head isn't trained yet.

    Args:
        cfg: The configuration.
        teacher: Its teacher.
        heard: What students hear of it, as `training.heard_by` says.
    """
    if isinstance(teacher, AveragedTeacher):
        each = zip(build.members(cfg), teacher.members, strict=True)
        return tuple(sorted({index for one, built in each for index in missing_passes(one, built, heard)}))
    if is_trained(cfg.teacher):
        weights = read_tensors(trained_teachers.weights_path(cfg))
        if weights is None:
            return () if teacher.mode == "online" else tuple(range(cfg.n_passes))
        teacher = build.untrained_member(cfg, weights)
    elif cfg.teacher.head is not None:
        head = read_tensors(identities.head_path(cfg, teacher))
        if head is None:
            return () if teacher.mode == "online" else tuple(range(cfg.n_passes))
        teacher.network.head.load_state_dict(head)
    return tuple(teacher.missing_passes(cfg.n_passes, heard))


@contextmanager
def _undisturbed(cfg: DictConfig, threads: int | None) -> Iterator[None]:
    """Gives torch other threads in this block, and restores its threads and random numbers afterwards."""
    device = resolve_device(cfg.device)
    before = torch.get_num_threads()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            set_threads(cfg.threads if threads is None else threads)
            yield
        finally:
            torch.set_num_threads(before)
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _rate(forward: Callable[[torch.Tensor], torch.Tensor], pictures: torch.Tensor) -> float:
    """Returns the pictures/s of forward passes over `pictures`, or over as many as take about FORWARD_SECONDS."""

    def seconds(n: int) -> float:
        return _timed(lambda: forward(pictures[:n]).cpu())

    seconds(1)  # the first pass also sets up what later passes find ready
    n = min(SMALLEST_BATCH, len(pictures))
    took = seconds(n)
    while n < len(pictures) and took < FORWARD_SECONDS / 2:
        n = min(2 * n, len(pictures))
        took = seconds(n)
    return n / (took if took > FORWARD_SECONDS else statistics.median([took, seconds(n), seconds(n)]))


def _step_seconds(cfg: DictConfig, network: Classifier, precision: str, data: Dataset, rate: float) -> float:
    """Returns the median time of a few training steps. If a step would take too long, it scales a smaller batch."""
    device = resolve_device(cfg.device)
    batch_size: int = min(cfg.batch_size, len(data.train))
    affordable = max(SMALLEST_BATCH, int(rate / FORWARDS_PER_STEP * STEP_SECONDS))
    n = min(batch_size, affordable)
    loss = build.component(cfg, "loss")
    # Zeros stand for the teacher's answers, because a loss takes the same time for any.
    answers = None if cfg.teacher is None else torch.zeros(n, data.n_classes, device=device)
    width = network.head.in_features
    given = given_to(loss, device, (width, width))

    @needs(*({FEATURES} & {*heard_by(loss)}))
    def timed_loss(logits: torch.Tensor, _: object, labels: torch.Tensor, **features: torch.Tensor) -> torch.Tensor:
        if features:
            features["teacher_features"] = torch.zeros(n, width, device=device)
        value: torch.Tensor = loss(logits, answers, labels, **given, **features)
        return value

    compiled = device.type == "cuda" and build.compiled(cfg, in_study=True)
    settling = WARM_UPS + 2 if compiled else 1  # these steps also set up what later steps find ready
    epochs_of_one_step = Fit(
        network,
        build.views_of(cfg, data, data.train.images[:n].to(device), cfg.view_seed),
        data.train.labels[:n].to(device),
        loss=timed_loss,
        teacher=None,
        optimizer=build.component(cfg, "optimizer"),
        schedule=build.component(cfg, "schedule"),
        epochs=MAX_STEPS + settling,
        batch_size=n,
        n_passes=1,
        order_seed=cfg.order_seed,
        precision=precision,
        compiled=compiled,
    )
    steps: list[float] = []
    try:
        for metrics in epochs_of_one_step:
            steps.append(metrics["epoch_seconds"])
            if compiled and len(steps) <= settling:
                continue
            # The first step alone is believed only if a second one would take far too long.
            enough = STEPS_SECONDS if len(steps) > 1 else 3 * STEPS_SECONDS
            if len(steps) == MAX_STEPS + settling - 1 or sum(steps[settling - 1 :]) > enough:
                break
    except DivergedError:  # the runs report that themselves, and some have other settings
        pass
    return statistics.median(steps[settling:] or steps) * batch_size / n


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
