"""An epoch from a warm table against the same with the teacher asked live, by the product and by the usual loop.

The usual loop is that of PyTorch's distillation tutorial: workers that load and transform PIL pictures, fp32, eager.
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
    """A warm table against a teacher that is asked live, in the product and in the usual loop"""
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
        f"Ratios are of seconds a picture. Batch {table.batch_size}; where the teacher is asked live at "
        f"{arguments.large_side} px {arguments.large}, for which the student's part is a little dearer. A table costs "
        f"the same whatever the teacher saw, but for the 4 rows of a pass that are verified.",
        f"Teacher {arguments.teacher}. {parts.conditions(table, arguments)}",
    ]
    return Finding("online: what a table saves", figures, details, notes=lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts.add_arguments(parser, pictures=256)
    parts.add_batch(parser)
    parts.add_large(parser)
