"""What distillation adds to an epoch: nothing if the teacher's logits are in a table, else the teacher's passes."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch

from benchmarks import parts
from benchmarks.measuring import Figure, Finding, take_turns, timed
from kdsweep.system.tensor_files import read_tensors, write_tensors

GOAL = 1.03
# Numbers of trials that share a table, which the first of them makes.
TRIALS = (1, 10, 50)


def reading(folder: Path) -> float:
    """Returns the seconds that reading a pass of CIFAR's size takes."""
    path = folder / "pass.safetensors"
    write_tensors(path, {"outputs": torch.randn(parts.CIFAR_TRAIN, parts.CLASSES)})
    return timed(lambda: read_tensors(path))


def measure(arguments: argparse.Namespace) -> Finding:
    """A distilled epoch against a scratch epoch, with a finished table, and with a table that trials make and share"""
    batch = f"batch_size={arguments.batch}"
    with parts.workplace(arguments) as folder:
        side = f"teacher.network.input_size={parts.SIDE}"
        scratch = parts.Training(parts.configuration(arguments, folder, "scratch", batch))
        distilled = parts.Training(parts.configuration(arguments, folder, "distill", batch, side))
        sides = {
            "scratch": lambda: timed(functools.partial(next, iter(scratch.fit()))),
            "distilled": parts.warm_epochs(distilled),
            "table": parts.warm_passes(distilled),
        }
        for size in (parts.SIDE, arguments.large_side):
            own = parts.configuration(
                *(arguments, folder, "distill", f"teacher.network.input_size={size}"),
                pictures=arguments.large,
            )
            sides[f"pass at {size} px"] = parts.cold_passes(parts.Training(own))
        sides["large table"] = parts.warm_passes(parts.Training(own))
        turns = take_turns("distill", sides, rounds=arguments.rounds, threads=arguments.threads)
        read = reading(folder)

    def at_cifar(found: dict[str, float]) -> float:
        scratch_epoch = found["scratch"] * parts.CIFAR_TRAIN / scratch.pictures
        steps = (found["distilled"] - found["table"]) / found["scratch"]
        return steps + (read + found["large table"]) / scratch_epoch

    figures = [turns.ratio("a distilled epoch against a scratch epoch, warm table", "distilled", "scratch", goal=GOAL)]
    name = f"the same, {parts.CIFAR_TRAIN:,} pictures, teacher at {arguments.large_side} px"
    verifying = turns.median("large table")
    note = f"computed: with {read:.3f} s to read a pass, {verifying:.2f} s to verify it"
    figures.append(parts.computed(name, turns, at_cifar, goal=GOAL, note=note))
    for size in (parts.SIDE, arguments.large_side):
        key = f"pass at {size} px"
        for n in TRIALS:
            shared = f"{n} trials share each pass" if n > 1 else "one trial"
            name = f"a distilled epoch against a scratch epoch, cold table, teacher at {size} px, {shared}"

            def amortised(found: dict[str, float], key: str = key, n: int = n) -> float:
                a_pass = found[key] / arguments.large * distilled.pictures
                return (found["distilled"] + a_pass / n) / found["scratch"]

            figures.append(parts.computed(name, turns, amortised, note="computed from the seconds of a pass"))
        figures.append(Figure(f"teacher at {size} px", arguments.large / turns.median(key), unit="pictures/s"))
    figures += [
        Figure(f"{key} epoch", distilled.pictures / turns.median(key), unit="pictures/s")
        for key in ("scratch", "distilled")
    ]
    lines = [
        f"With a warm table, an epoch reads its pass, checks the sum, and computes 4 rows again. Epochs of "
        f"{distilled.pictures} pictures, batch {distilled.batch_size}; teacher {arguments.teacher}, passes of "
        f"{arguments.large} pictures.",
        parts.conditions(distilled, arguments),
    ]
    details = {**turns.values(), "reading": read}
    return Finding("distill: what a teacher costs an epoch", figures, details, notes=lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts.add_arguments(parser)
    parts.add_batch(parser)
    parts.add_large(parser)
