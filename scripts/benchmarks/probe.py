"""How long training the teacher's head takes on cached features, with the configuration's own weight decays.

The features are artificial but like those of a real network: not negative, half of them zero, correlated, and with
variances that fall along their principal directions about as 1/k. A head classifies nine in ten unseen pictures.
"""

from __future__ import annotations

import argparse
import functools
import os
from statistics import median
from types import SimpleNamespace
from typing import Any

import hydra
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import ROUNDS, Figure, Finding, positive, take_turns, timed
from kdsweep.config import build
from kdsweep.config.folder import CONFIG_FOLDER

GOAL = 10.0
CLASSES = 10
RANK = 256  # of the part that features share; the rest is independent noise


def made(n: int, n_features: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Makes features (n, n_features) and labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    randn = functools.partial(torch.randn, generator=generator)
    scales = torch.arange(1, RANK + 1) ** -0.5
    patterns = randn(RANK, n_features) * (scales / scales.norm())[:, None]
    offsets = 0.5 * randn(n_features) - 0.3
    centres = 0.25 * randn(CLASSES, RANK)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    features = torch.empty(n, n_features)
    for rows in torch.arange(n).split(4096):
        latent = centres[labels[rows]] + randn(len(rows), RANK)
        features[rows] = (latent @ patterns + offsets + 0.3 * randn(len(rows), n_features)).relu_()
    return features, labels


def measure(arguments: argparse.Namespace) -> Finding:
    """Training the teacher's head on cached features"""
    threads = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        return _measure(arguments)
    finally:
        torch.set_num_threads(threads)


def _measure(arguments: argparse.Namespace) -> Finding:
    with hydra.initialize_config_dir(str(CONFIG_FOLDER)):
        fit_head = build.component(hydra.compose("config", ["experiment=teacher"]), "teacher.head")
    features, labels = made(arguments.pictures + arguments.validation, arguments.features)
    parts = [arguments.pictures, arguments.validation]
    (train, validation), (answers, validation_answers) = features.split(parts), labels.split(parts)
    network: Any = SimpleNamespace(head=torch.nn.Linear(arguments.features, CLASSES), n_classes=CLASSES)
    found: dict[float, dict[str, float]] = {}

    def head() -> float:
        return timed(lambda: list(fit_head(network, train, answers, validation, validation_answers)))

    def product() -> float:
        # It has as many multiplications as one evaluation of the objective and its gradient, in a fast shape.
        side = max(1, round((2 * CLASSES * arguments.pictures * arguments.features) ** (1 / 3)))
        one, other = torch.randn(side, side), torch.randn(side, side)
        return timed(lambda: one @ other)

    turns = take_turns("probe", {"head": head, "product": product}, rounds=arguments.rounds, threads=arguments.threads)
    with torch.no_grad():
        for metrics in fit_head(network, train, answers, validation, validation_answers):
            logits = network.head(validation)
            found[metrics["head/weight_decay"]] = {
                "train_loss": metrics["train/loss"],
                "validation_nll": float(F.cross_entropy(logits, validation_answers)),
                "validation_accuracy": float((logits.argmax(dim=1) == validation_answers).double().mean()),
            }
    seconds = turns.seconds["head"]
    busy = f"BUSY: {turns.disturbed} of {len(seconds)} rounds were disturbed" if turns.disturbed else ""
    name = f"the head on {arguments.pictures:,} x {arguments.features:,} features"
    best = min(found.values(), key=lambda scores: scores["validation_nll"])
    figures = [
        Figure(name, median(seconds), GOAL, unit="s", spread=(min(seconds), max(seconds)), note=busy),
        turns.ratio("against a square matrix product of one evaluation's size", "head", "product"),
        Figure("the head's accuracy on validation", best["validation_accuracy"]),
    ]
    rows = [{"weight_decay": decay, **scores} for decay, scores in found.items()]
    notes = [
        f"Weight decays {', '.join(f'{decay:g}' for decay in found)}; {arguments.validation:,} validation pictures; "
        f"{arguments.threads} threads; the goal is for 45,000 to 50,000 pictures of 2,048 features on two cores."
    ]
    return Finding("probe: the teacher's head", figures, {**turns.values(), "path": rows}, notes=notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--pictures", type=positive, default=45_000, metavar="N", help="trained on; default: 45000")
    parser.add_argument("--validation", type=positive, default=5_000, metavar="N", help="default: 5000")
    parser.add_argument("--features", type=positive, default=2048, metavar="N", help="of a picture; default: 2048")
    parser.add_argument("--threads", type=positive, default=cores, metavar="N", help="default: all cores")
    parser.add_argument("--rounds", type=positive, default=ROUNDS, metavar="N", help=f"default: {ROUNDS}")
