"""Compares an epoch from a warm table with an online teacher, in kdsweep and in the usual loop.

The usual loop is that of PyTorch's distillation tutorial: workers load and transform PIL pictures; it is eager fp32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks import parts
from benchmarks.loop_process import Loop
from benchmarks.measuring import Figure, Finding, take_turns


def measure(arguments: argparse.Namespace) -> Finding:
    """An epoch from a warm table against an online teacher, in kdsweep and in the usual loop"""
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    with parts.workplace(arguments) as folder, ExitStack() as stack:
        at_side = f"teacher.network.input_size={parts.SIDE}"
        batch = f"batch_size={arguments.batch}"
        table = parts.Training(parts.configuration(arguments, folder, "distill", batch, at_side))
        warm = parts.warm_epochs(table)
        for size in (parts.SIDE, arguments.large_side):
            small = size == parts.SIDE
            own = parts.configuration(
                *(arguments, folder, "distill", f"batch_size={arguments.batch if small else arguments.large}"),
                *(f"teacher.network.input_size={size}", "teacher.mode=online"),
                pictures=None if small else arguments.large,
            )
            live = parts.Training(own)
            usual = stack.enter_context(
                Loop(
                    *("usual", live, folder),
                    teacher=arguments.teacher,
                    side=None if small else size,
                    batch=live.batch_size,
                    threads=arguments.threads,
                )
            )
            sides: dict[str, Callable[[], float]] = {
                "table": warm,
                "online": parts.epochs(live.fit(live.teacher())),
                "usual": lambda usual=usual, live=live: usual.seconds(live.steps),  # type: ignore[misc]
            }
            turns = take_turns(f"teacher at {size} px", sides, rounds=arguments.rounds, threads=arguments.threads)
            scale = table.pictures / live.pictures
            for side, words in (("online", "teacher.mode=online"), ("usual", "the usual loop")):
                name = f"{words}, teacher at {size} px, against a warm table"
                figures.append(turns.ratio(name, side, "table", at_most=False, scale=scale))
            figures.append(
                Figure(f"warm table, beside {size} px", table.pictures / turns.median("table"), unit="pictures/s")
            )
            for side in ("online", "usual"):
                rate = live.pictures / turns.median(side)
                figures.append(Figure(f"{side}, teacher at {size} px", rate, unit="pictures/s"))
            details[f"{size} px"] = {**turns.values(), "pictures": {"table": table.pictures, "live": live.pictures}}
    lines = [
        f"Ratios compare seconds per picture. Batch {table.batch_size}; {arguments.large} with an online teacher at "
        f"{arguments.large_side} px, which makes the student's part a little slower. A table costs the same for every "
        f"side of the teacher's input, except for the 4 rows of a pass that are verified.",
        f"Teacher {arguments.teacher}. {parts.conditions(table, arguments)}",
    ]
    return Finding("online: what a table saves", figures, details, notes=lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts.add_arguments(parser, pictures=256)
    parts.add_batch(parser)
    parts.add_large(parser)
