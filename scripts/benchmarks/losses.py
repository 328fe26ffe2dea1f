"""What each loss costs in a training step beside cross-entropy: its value and its gradient.

The gradient is that in the student's logits, and where a loss takes them in its features and in a projector.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import parts
from benchmarks.measuring import Figure, Finding, take_turns, timed
from kdsweep.config import build
from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.losses import FEATURES, given_to, needs_of, trained_with

# A loss takes a fraction of a millisecond, so this many are measured together.
TIMES = 200
PLAIN = "ce"

# The number of pooled features of a ResNet50.
TEACHERS_FEATURES = 2048


def values_of(training: parts.Training) -> Callable[[], float]:
    """A side: computes the configured loss and its gradient `TIMES` times on one batch, as a training's step does."""
    loss = build.component(training.cfg, "loss")
    shape = training.batch_size, training.data.n_classes
    student = torch.randn(shape, device=training.device, requires_grad=True)
    teacher, labels = torch.randn(shape, device=training.device), training.labels[: training.batch_size]
    width = training.network.head.in_features
    given = given_to(loss, training.device, (width, TEACHERS_FEATURES))
    trained = [student, *trained_with(given).values()]
    if FEATURES in needs_of(loss):
        sizes = {"student_features": width, "teacher_features": TEACHERS_FEATURES}
        given |= {name: torch.randn(len(labels), size, device=training.device) for name, size in sizes.items()}
        trained.append(given["student_features"].requires_grad_())

    def times() -> None:
        for _ in range(TIMES):
            torch.autograd.grad(loss(student, teacher, labels, **given), trained)
        parts.synchronised(training.device)

    return lambda: timed(times)


def measure(arguments: argparse.Namespace) -> Finding:
    """Each loss in a training step, beside cross-entropy"""
    with parts.workplace(arguments) as folder:
        prepared = functools.partial(_prepared, arguments, folder)
        training = prepared(PLAIN)
        sides = {name: values_of(prepared(name)) for name in (PLAIN, *arguments.loss)}
        turns = take_turns(
            "losses",
            {"step": parts.epochs(training.fit()), **sides},
            rounds=arguments.rounds,
            threads=arguments.threads,
        )

    def share(name: str, seconds: dict[str, float]) -> float:
        return (seconds[name] - seconds[PLAIN]) / TIMES / (seconds["step"] / training.steps)

    figures = [
        parts.computed(f"{name} more than {PLAIN}, of a step", turns, functools.partial(share, name))
        for name in arguments.loss
    ]
    figures += [
        Figure(f"{name}, value and gradient", 1000 * turns.median(name) / TIMES, unit="ms")
        for name in (PLAIN, *arguments.loss)
    ]
    figures.append(Figure(f"a step with {PLAIN}", 1000 * turns.median("step") / training.steps, unit="ms"))
    lines = [f"Batch {training.batch_size}. {parts.conditions(training, arguments)}"]
    return Finding("losses: what they cost in a step", figures, turns.values(), notes=lines)


def _prepared(arguments: argparse.Namespace, folder: Path, loss: str) -> parts.Training:
    overrides = f"batch_size={arguments.batch}", f"loss={loss}"
    return parts.Training(parts.configuration(arguments, folder, "scratch", *overrides))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts.add_arguments(parser)
    parts.add_batch(parser)
    every = [path.stem for path in sorted((CONFIG_FOLDER / "loss").glob("*.yaml")) if path.stem != PLAIN]
    parser.add_argument("--loss", nargs="+", choices=every, default=every, help=f"beside {PLAIN}; default: all")
