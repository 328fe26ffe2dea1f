"""The share of an epoch that evaluation on the validation split takes, for CIFAR's 45,000 and 5,000 pictures.

The rates are measured on fewer pictures, and the share is computed from them. An epoch is training and evaluation.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import parts
from benchmarks.measuring import Figure, Finding, positive, take_turns, timed
from kdsweep.config.build import EVALUATION_BATCH
from kdsweep.evaluation import evaluate
from kdsweep.training import predict

GOAL = 0.03


def evaluations(training: parts.Training, pictures: Tensor, teacher_logits: Tensor | None) -> Callable[[], float]:
    """A side: evaluates as a run does after an epoch, and compares with the teacher's logits if there are any."""
    labels = torch.arange(len(pictures)) % training.data.n_classes

    def evaluation() -> None:
        logits = predict(training.network, pictures, EVALUATION_BATCH, training.precision)
        evaluate(logits.cpu(), labels, teacher_logits)

    return lambda: timed(evaluation)


def measure(arguments: argparse.Namespace) -> Finding:
    """Evaluation on the validation split, as a share of an epoch's time"""
    with parts.workplace(arguments) as folder:
        training = parts.Training(parts.configuration(arguments, folder, "scratch", f"batch_size={arguments.batch}"))
        pictures = training.data.train.images[: arguments.evaluated]
        sides = {
            "epoch": parts.epochs(training.fit()),
            "scratch": evaluations(training, pictures, None),
            "distilled": evaluations(training, pictures, torch.randn(len(pictures), training.data.n_classes)),
        }
        turns = take_turns("evaluate", sides, rounds=arguments.rounds, threads=arguments.threads)
    # Scales to the seconds of 5,000 evaluated pictures over those of 45,000 trained ones.
    scale = parts.CIFAR_VALIDATION / len(pictures) / (parts.CIFAR_TRAIN / training.pictures)
    figures = []
    for side in ("scratch", "distilled"):
        name = f"evaluation of a {side} epoch's student, of the epoch's time"
        ratio = turns.ratio(name, side, "epoch", goal=GOAL, scale=scale)
        assert ratio.spread is not None
        low, high = (value / (1 + value) for value in ratio.spread)
        figures.append(replace(ratio, value=ratio.value / (1 + ratio.value), spread=(low, high)))
    figures.append(Figure("training", training.pictures / turns.median("epoch"), unit="pictures/s"))
    figures.append(Figure("evaluation", len(pictures) / turns.median("scratch"), unit="pictures/s"))
    lines = [
        f"Computed for {parts.CIFAR_TRAIN:,} and {parts.CIFAR_VALIDATION:,} pictures from the rates of "
        f"{training.pictures:,} and {len(pictures):,}. Batch {training.batch_size}, in evaluation {EVALUATION_BATCH}. "
        + parts.conditions(training, arguments)
    ]
    return Finding("evaluate: what validation costs", figures, turns.values(), notes=lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts.add_arguments(parser)
    parts.add_batch(parser)
    help_evaluated = f"pictures that are evaluated, at most as many as trained on; default: {EVALUATION_BATCH}"
    parser.add_argument("--evaluated", type=positive, default=EVALUATION_BATCH, metavar="N", help=help_evaluated)
