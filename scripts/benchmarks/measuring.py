"""What all benchmarks share: sides that take turns, figures with goals, the machine's load, and the output.

A side is a function that does some work and returns the seconds that it took. A figure is usually the ratio of two
sides that were measured in turns, so that a slow machine slows down both. Rounds in which other processes used the
cores are measured again; if that doesn't help, the figures say that the machine was busy.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import psutil
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kdsweep.system import environment, interrupts

Seconds = tuple[float, float]  # elapsed time, and the processor's time

ROUNDS = 5

# On average over a round, other processes may use this many of the cores that are measured on.
TOLERATED = 0.1
# Disturbed rounds are measured again, until this many times the wanted rounds have been made.
PATIENCE = 3


@dataclass(frozen=True)
class Figure:
    """One number, and what it should be.

    Attributes:
        name: "a distilled epoch against a scratch epoch".
        value: The number; NaN if it could not be measured.
        goal: The limit that the value should keep; None if there is no goal.
        at_most: True if the goal is an upper limit, False if it is a lower one.
        unit: "" for a ratio; otherwise "s", "ms", "pictures/s", ...
        spread: The least and the largest value of all rounds; None for a single value.
        note: What a reader has to know, such as the reason why there is no value.
    """

    name: str
    value: float
    goal: float | None = None
    at_most: bool = True
    unit: str = ""
    spread: tuple[float, float] | None = None
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the goal is met; None if there is no goal or no value."""
        if self.goal is None or math.isnan(self.value):
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def goal_in_words(self) -> str:
        """Returns the goal as text: "<= 0.5 s"."""
        if self.goal is None:
            return ""
        return f"{'<=' if self.at_most else '>='} {plain_number(self.goal)}{' ' * bool(self.unit)}{self.unit}"

    def values(self) -> dict[str, Any]:
        """Returns the figure as plain values, with None for NaN, which JSON doesn't have."""
        value = None if math.isnan(self.value) else self.value
        own = {"name": self.name, "value": value, "unit": self.unit, "goal": self.goal_in_words(), "holds": self.holds}
        return {**own, "spread": self.spread, "note": self.note}


@dataclass(frozen=True)
class Load:
    """The average number of processes that wanted a core in the minute before a measurement and in its last minute."""

    before: float
    after: float
    cores: int

    @property
    def busy(self) -> bool:
        """Whether more processes wanted a core than there are cores."""
        return max(self.before, self.after) > self.cores

    def words(self) -> str:
        """Returns the load as text, with a warning if the machine was busy."""
        text = f"load {self.before:.1f} before and {self.after:.1f} after, {self.cores} cores"
        return f"{text}: BUSY, trust the processor's time more than elapsed time" if self.busy else f"{text}: not busy"


@dataclass(frozen=True)
class Finding:
    """What a subcommand found.

    Attributes:
        title: The title of the table.
        figures: What was measured, in order.
        details: All values behind the figures, for JSON.
        shown: What the terminal shows instead of a table of the figures.
        notes: Lines below the table.
    """

    title: str
    figures: Sequence[Figure] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    shown: RenderableType | None = None
    notes: Sequence[str] = ()

    def renderable(self) -> RenderableType:
        """Returns what the terminal shows."""
        shown = figures_table(self.title, self.figures) if self.shown is None else self.shown
        return Group(shown, *(Text(line) for line in self.notes))


def figures_table(title: str, figures: Sequence[Figure]) -> Table:
    """Makes a table with a row for each figure: name, value, range over the rounds, goal, and whether it holds."""
    shown = Table("", title=title, title_justify="left")
    for column in ("figure", "least - most", "goal"):
        shown.add_column(column, justify="right")
    shown.add_column("")
    for figure in figures:
        name = f"{figure.name} ({figure.note})" if figure.note else figure.name
        value = f"{plain_number(figure.value)} {figure.unit}".strip()
        spread = "" if figure.spread is None else " - ".join(map(plain_number, figure.spread))
        word = {True: "holds", False: "MISSED", None: ""}[figure.holds]
        shown.add_row(name, value, spread, figure.goal_in_words(), word)
    return shown


@dataclass(frozen=True)
class Turns:
    """What `take_turns` measured.

    Attributes:
        seconds: For each side the seconds of each round, in order.
        disturbed: The number of counted rounds that other processes disturbed.
    """

    seconds: Mapping[str, Sequence[float]]
    disturbed: int

    def median(self, side: str) -> float:
        """Returns a side's median seconds."""
        return median(self.seconds[side])

    def ratio(
        self,
        name: str,
        over: str,
        under: str,
        *,
        goal: float | None = None,
        at_most: bool = True,
        scale: float = 1.0,
        note: str = "",
    ) -> Figure:
        """Makes a figure of seconds of `over` / seconds of `under` * scale: the median of the rounds' ratios."""
        pairs = zip(self.seconds[over], self.seconds[under], strict=True)
        ratios = [scale * first / second for first, second in pairs]
        if self.disturbed:
            note = "; ".join(filter(None, [note, f"BUSY: {self.disturbed} of {len(ratios)} rounds were disturbed"]))
        return Figure(name, median(ratios), goal, at_most, spread=(min(ratios), max(ratios)), note=note)

    def values(self) -> dict[str, Any]:
        """Returns the measurement as plain values."""
        return {"seconds": {side: list(values) for side, values in self.seconds.items()}, "disturbed": self.disturbed}


def take_turns(
    description: str, sides: Mapping[str, Callable[[], float]], *, rounds: int = ROUNDS, threads: int = 1
) -> Turns:
    """Measures the sides in turns, round after round.

    Each side is run once before, to warm up. A round in which other processes used more cores than the sides leave free
    is measured again, up to a limit.

    Args:
        description: The text of the progress bar.
        sides: The functions to measure, by name. Each returns the seconds that it took, without its set-up.
        rounds: The number of rounds that count.
        threads: The number of cores that the sides use.
    """
    kept: list[dict[str, float]] = []
    dirty: list[tuple[float, dict[str, float]]] = []
    spare = (os.cpu_count() or 1) - threads
    with bar(description, (rounds + 1) * len(sides)) as advance:
        for side in sides.values():
            side()
            advance()
        while len(kept) < rounds and len(kept) + len(dirty) < PATIENCE * rounds:
            found: dict[str, float] = {}
            before = _others(), time.perf_counter()
            for name, side in sides.items():
                found[name] = side()
            others = (_others() - before[0]) / (time.perf_counter() - before[1])
            if others <= spare + TOLERATED:
                kept.append(found)
                for _ in sides:
                    advance()
            else:
                dirty.append((others, found))
    disturbed = rounds - len(kept)
    dirty.sort(key=lambda pair: pair[0])
    kept += [found for _, found in dirty[:disturbed]]
    return Turns({name: [found[name] for found in kept] for name in sides}, disturbed)


def timed(action: Callable[[], object]) -> float:
    """Returns the seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _others() -> float:
    """Returns the processor seconds, since boot, of all processes except this one and its children."""
    times = psutil.cpu_times()
    everybody = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
    own = psutil.Process()
    mine = own.cpu_times()
    total: float = everybody - mine.user - mine.system - mine.children_user - mine.children_system
    for child in own.children(recursive=True):
        try:
            used = child.cpu_times()
        except psutil.Error:  # the child has ended meanwhile
            continue
        total -= used.user + used.system + used.children_user + used.children_system
    return total


class Clock:
    """Divides time among parts. At every moment only the innermost part is charged, so the parts add up to all time.

    Args:
        rest: The part that is charged outside all blocks.
    """

    def __init__(self, rest: str) -> None:
        self._stack = [rest]
        self._parts: dict[str, Seconds] = {}
        self._since = self._now()

    @staticmethod
    def _now() -> Seconds:
        return time.perf_counter(), time.process_time()

    def _charge(self) -> None:
        wall, cpu = self._now()
        known = self._parts.get(self._stack[-1], (0.0, 0.0))
        self._parts[self._stack[-1]] = known[0] + wall - self._since[0], known[1] + cpu - self._since[1]
        self._since = wall, cpu

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charges the block to `name`."""
        self._charge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def lap(self) -> dict[str, Seconds]:
        """Returns the time of each part since the last lap."""
        self._charge()
        parts, self._parts = self._parts, {}
        return parts


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Shows a progress bar on stderr; yields a function that advances it by one, and that Ctrl-C interrupts."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    shown = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
    with shown:
        task = shown.add_task(description, total=total)

        def advance() -> None:
            shown.update(task, advance=1)
            interrupts.check()

        yield advance


def machine(load: Load) -> tuple[dict[str, Any], str]:
    """Describes this machine and its load, as plain values and as a line."""
    found = environment.describe()
    commit = str(found["git_commit"])[:7]
    line = f"{found['cpu']}, {load.words()}; this process may use {found['cores']}; commit {commit}."
    return {**found, "load": {**vars(load), "busy": load.busy}, "line": line}, line


def in_milliseconds(seconds: float) -> str:
    """Formats seconds as milliseconds."""
    return shown_number(1000 * seconds, 1 if seconds < 0.1 else 0)


def shown_number(value: float, digits: int) -> str:
    """Formats a number with this many decimal places; "-" for NaN."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def plain_number(value: float) -> str:
    """Formats a number with three significant digits, or with all digits before the point: 0.957, 12.3, 1,056."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def positive(text: str) -> int:
    """Parses a whole number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 must be given, but got {text!r}")
    return int(text)
