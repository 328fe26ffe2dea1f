"""Time and memory as the work grows: pictures in an epoch, trials in one process, passes in a table."""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor

from benchmarks import parts, running
from benchmarks.measuring import Figure, Finding, bar, positive, take_turns, timed
from kdsweep import evaluation
from kdsweep.data import synthetic
from kdsweep.table_check import Asked
from kdsweep.tables import Tables
from kdsweep.views import Views, batch_order, n_views

LINEAR, FLAT_MEMORY, FREE_MEMORY = 1.1, 1.05, 0.05
FEW = 1_000  # pictures, with which larger numbers are compared
BATCH = 128
EARLY = 5  # the last trial's memory is compared with that of this one; as many trials at both ends are timed
PADDING = 4
PASSES = n_views(PADDING, flip=True)
BATCH_OF_PASS = 4096
READINGS = 3  # how often all passes are read


def epoch_without_network(n: int, times: int) -> Callable[[], float]:
    """A side: makes `times` epochs without the network: order, views, table rows, evaluation."""
    settings = {"val_size": parts.CLASSES, "train_fraction": 1.0, "split_seed": 0, "padding": PADDING, "flip": True}
    made = synthetic(n + parts.CLASSES, parts.CLASSES, parts.CLASSES, parts.SIDE, 0, **settings)  # type: ignore[arg-type]
    own = Views(made.train.images, PADDING, True, 0)
    table = torch.zeros(n, parts.CLASSES)
    numbers = itertools.count()

    def epochs() -> None:
        for number in itertools.islice(numbers, times):
            for indices in batch_order(0, number, n).split(BATCH):
                own.batch(indices, number).float()
                table[indices]
            evaluation.evaluate(table, made.train.labels)

    return lambda: timed(epochs)


def over_pictures(arguments: argparse.Namespace, folder: Path) -> tuple[list[Figure], dict[str, Any]]:
    """Compares the time per picture of long and short epochs, with and without the network."""
    few, many, trained = (min(n, arguments.pictures) for n in (FEW, arguments.pictures, arguments.trained))
    sides = {"few": epoch_without_network(few, max(1, many // few)), "many": epoch_without_network(many, 1)}
    bare = take_turns("pictures", sides, rounds=arguments.rounds, threads=arguments.threads)
    scale = few * max(1, many // few) / many
    figures = [
        bare.ratio(f"time per picture, {many:,} against {few:,}", "many", "few", goal=LINEAR, scale=scale,
                   note="without the network"),
    ]  # fmt: skip
    training = {}
    for n in (few, trained):
        cfg = parts.configuration(arguments, folder, "scratch", f"batch_size={min(BATCH, few)}", pictures=n)
        training[n] = parts.Training(cfg)
    # The scale counts only pictures that fill a batch, because an epoch leaves the others out.
    whole = {f"{n}": parts.epochs(own.fit()) for n, own in training.items()}
    turns = take_turns("training", whole, rounds=arguments.rounds, threads=arguments.threads)
    scale = training[few].pictures / training[trained].pictures
    figures.append(
        turns.ratio(
            f"the same in training, {trained:,} against {few:,}", f"{trained}", f"{few}", goal=LINEAR, scale=scale
        )
    )
    return figures, {"without the network": bare.values(), "training": turns.values()}


def over_trials(arguments: argparse.Namespace, folder: Path) -> tuple[list[Figure], dict[str, Any]]:
    """Measures memory and time of the trials of one process."""
    lines = [
        *("experiment=debug", f"data.n_train={96 + parts.CLASSES}", f"data.val_size={parts.CLASSES}", "data.n_test=10"),
        *("epochs=1", "batch_size=32", f"model.name={arguments.student}", f"threads={arguments.threads}"),
        *(
            f"teacher.network.name={arguments.student}",
            f"precision={arguments.precision}",
            f"device={arguments.device}",
        ),
    ]
    own = psutil.Process()
    memory: list[int] = []
    seconds: list[float] = []
    with running.task(lines, folder) as shared, bar("trials", arguments.trials) as advance:
        parent = running.parent_run(folder)
        for number in range(arguments.trials):
            trial = running.trial(number, parent, lines)
            seconds.append(timed(functools.partial(running.run, shared, trial)))
            memory.append(own.memory_info().rss)
            advance()
    early = min(EARLY, len(memory))
    first, last = seconds[1 : early + 1], seconds[-early:]
    name = f"memory (RSS) after trial {len(memory)}, against trial {early}"
    figures = [
        Figure(name, memory[-1] / memory[early - 1], FLAT_MEMORY, note=f"{memory[-1] / 2**20:,.0f} MiB"),
        Figure(f"time of the last {len(last)} trials, against the first", median(last) / median(first or last)),
        Figure("a trial of one epoch of 96 pictures", median(seconds), unit="s", spread=(min(seconds), max(seconds))),
    ]
    return figures, {"rss": memory, "seconds": seconds}


def own_memory() -> int:
    """Returns this process's memory that isn't mapped from files, in bytes; the kernel can drop mapped pages."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return int(psutil.Process().memory_info().rss)


def over_passes(arguments: argparse.Namespace, folder: Path) -> tuple[list[Figure], dict[str, Any]]:
    """Writes passes of a table, then reads and keeps all: measures the time of each, and the memory of all."""
    n = arguments.pictures
    written: list[float] = []
    tables = tables_of(folder)
    with bar("passes", (1 + READINGS) * arguments.passes) as advance:
        for index in range(arguments.passes):
            written.append(timed(lambda index=index: a_pass(tables, n, index)))  # type: ignore[misc]
            advance()
        before = own_memory()
        readings = []
        for _ in range(READINGS):
            seconds, held = reading(tables_of(folder), arguments.passes, n, advance)
            readings.append(seconds)
        grown = own_memory() - before
    # Reading takes milliseconds. The least of several readings counts, because disturbances only add.
    read = [min(seconds) for seconds in zip(*readings, strict=True)]
    size = sum(table.nbytes for table in held)
    name = f"memory that {len(held)} passes of {n:,} x {parts.CLASSES} take when all are read and held"
    figures = [
        Figure(name, max(0, grown) / size, FREE_MEMORY, note=f"of their {size / 2**20:,.0f} MiB"),
        Figure("time of a pass, written late against early", late(written)),
        Figure("time of a pass, read late against early", late(read), LINEAR),
        Figure("a pass read", 1000 * median(read), unit="ms"),
    ]
    return figures, {"written": written, "read": read, "bytes": size, "grown": grown}


def reading(tables: Tables, passes: int, n: int, advance: Callable[[], None]) -> tuple[list[float], list[Tensor]]:
    """Reads all passes of `n` pictures as a new run does; returns the seconds of each, and the passes."""
    seconds: list[float] = []
    held: list[Tensor] = []
    for index in range(passes):
        seconds.append(timed(lambda index=index: held.append(a_pass(tables, n, index))))  # type: ignore[misc]
        advance()
    return seconds, held


def tables_of(folder: Path) -> Tables:
    """Opens the benchmark's tables in a folder."""
    return Tables(folder / "tables", {"benchmark": "scale"}, BATCH_OF_PASS)


def a_pass(tables: Tables, n: int, index: int) -> Tensor:
    """Returns the rows of a pass, from the disk if they are there."""
    compute = answers(index)
    return tables.rows(f"pass-{index:04d}", n, compute, Asked(compute, compute))


def answers(index: int) -> Callable[[Tensor], Tensor]:
    """Returns the function that computes a pass in place of a network: quickly, and the same each time."""
    return lambda rows: (rows[:, None] * (1 + torch.arange(parts.CLASSES)) + index).float()


def late(seconds: Sequence[float]) -> float:
    """Returns the median of the last quarter over that of the first."""
    quarter = max(1, len(seconds) // 4)
    return median(seconds[-quarter:]) / median(seconds[:quarter])


def measure(arguments: argparse.Namespace) -> Finding:
    """Time and memory as pictures, trials and passes grow in number"""
    figures: list[Figure] = []
    details: dict[str, Mapping[str, Any]] = {}
    for part in (over_passes, over_pictures, over_trials):
        with parts.workplace(arguments) as folder:
            found, own = part(arguments, folder)
        figures += found
        details[part.__name__] = own
    notes = [f"Student {arguments.student}; trials one after the other in one process."]
    return Finding("scale: as the work grows", figures, details, notes=notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts.add_arguments(parser, pictures=50_000)
    parser.set_defaults(student="shufflenet_v2_x0_5")
    parser.add_argument(
        "--trained", type=positive, default=4 * FEW, help=f"pictures that are trained on; default: {4 * FEW}"
    )
    parser.add_argument("--trials", type=positive, default=50, metavar="N", help="default: 50")
    parser.add_argument("--passes", type=positive, default=PASSES, metavar="N", help=f"default: {PASSES}, all views")
