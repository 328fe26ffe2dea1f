"""The share of an epoch's time that making views takes: crop, flip, scaling, normalisation, layout."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks import parts
from benchmarks.measuring import Figure, Finding, take_turns, timed
from kdsweep.views import batch_order

GOAL = 0.015
# An epoch's views take milliseconds, so this many epochs are measured together.
TIMES = 20


def views_of_epochs(training: parts.Training) -> Callable[[], float]:
    """A side: makes the views of `TIMES` epochs as training does."""

    def epochs() -> None:
        for epoch in range(TIMES):
            order = batch_order(training.cfg.order_seed, epoch, len(training.labels)).to(training.device)
            for indices in order[: training.pictures].split(training.batch_size):
                training.network.preprocess(training.views.batch(indices, epoch))
        parts.synchronised(training.device)

    return lambda: timed(epochs)


def measure(arguments: argparse.Namespace) -> Finding:
    """Making views, as a share of an epoch's time"""
    with parts.workplace(arguments) as folder:
        training = parts.Training(parts.configuration(arguments, folder, "scratch", f"batch_size={arguments.batch}"))
        sides = {"views": views_of_epochs(training), "epoch": parts.epochs(training.fit())}
        turns = take_turns("views", sides, rounds=arguments.rounds, threads=arguments.threads)
    rate = TIMES * training.pictures / turns.median("views")
    figures = [
        turns.ratio("views, of an epoch's time", "views", "epoch", goal=GOAL, scale=1 / TIMES),
        Figure("views", rate, unit="pictures/s"),
        Figure("training", training.pictures / turns.median("epoch"), unit="pictures/s"),
    ]
    lines = [f"Batch {training.batch_size}. {parts.conditions(training, arguments)}"]
    return Finding("views: what they cost", figures, turns.values(), notes=lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts.add_arguments(parser)
    parts.add_batch(parser)
