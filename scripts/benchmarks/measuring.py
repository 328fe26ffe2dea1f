"""What all benchmarks share: sides that take turns, figures with goals, the machine's load, what is shown and written.

A figure is a ratio of two sides that were measured in one run, in turns, so that what slows down the machine slows
down both. Rounds in which other processes wanted the same cores are measured again, and where that doesn't help the
machine is said to be busy.
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

Seconds = tuple[float, float]  # of the clock on the wall, and of the processor

ROUNDS = 5

# Cores that other processes may take, on average over a round, beyond those that nobody measures on.
TOLERATED = 0.1
# Rounds that were disturbed are measured again, until there are this many times as many as wanted.
PATIENCE = 3


@dataclass(frozen=True)
class Figure:
    """One number, and what it should be.

    Attributes:
        name: "a distilled epoch against a scratch epoch".
        value: NaN where it could not be measured.
        goal: None where there is none.
        at_most: Whether the goal is the most that the value may be, and not the least.
        unit: "" for a ratio; otherwise "s", "ms", "pictures/s", ...
        spread: The least and the largest of the rounds, where there were several.
        note: What a reader has to know; why there is no value.
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
        """Whether the goal is met; None where there is none, or no value."""
        if self.goal is None or math.isnan(self.value):
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def goal_in_words(self) -> str:
        if self.goal is None:
            return ""
        return f"{'<=' if self.at_most else '>='} {plain_number(self.goal)}{' ' * bool(self.unit)}{self.unit}"

    def values(self) -> dict[str, Any]:
        """As plain values; JSON knows no NaN."""
        value = None if math.isnan(self.value) else self.value
        own = {"name": self.name, "value": value, "unit": self.unit, "goal": self.goal_in_words(), "holds": self.holds}
        return {**own, "spread": self.spread, "note": self.note}


@dataclass(frozen=True)
class Load:
    """How many processes of this machine wanted a core, the average of a minute, before and after a measurement."""

    before: float
    after: float
    cores: int

    @property
    def busy(self) -> bool:
        """Whether others took part of the time that was measured."""
        return max(self.before, self.after) > self.cores

    def words(self) -> str:
        text = f"load {self.before:.1f} before and {self.after:.1f} after, {self.cores} cores"
        return f"{text}: BUSY, trust the processor's time more than the wall's" if self.busy else f"{text}: not busy"


@dataclass(frozen=True)
class Finding:
    """What a subcommand found.

    Attributes:
        title: What the table says.
        figures: What was measured, in order.
        details: JSON-able; all that stands behind the figures.
        shown: What the terminal gets instead of a table of the figures.
        notes: Lines below it.
    """

    title: str
    figures: Sequence[Figure] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    shown: RenderableType | None = None
    notes: Sequence[str] = ()

    def renderable(self) -> RenderableType:
        shown = figures_table(self.title, self.figures) if self.shown is None else self.shown
        return Group(shown, *(Text(line) for line in self.notes))


def figures_table(title: str, figures: Sequence[Figure]) -> Table:
    """A line for each figure: what it is, its value, its range over the rounds, its goal, and whether that holds."""
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
        seconds: Side -> seconds of each round, in order.
        disturbed: How many of the rounds that count were disturbed by other processes.
    """

    seconds: Mapping[str, Sequence[float]]
    disturbed: int

    def median(self, side: str) -> float:
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
        """Seconds of `over` / seconds of `under` * scale: the median over rounds of what stood side by side."""
        pairs = zip(self.seconds[over], self.seconds[under], strict=True)
        ratios = [scale * first / second for first, second in pairs]
        if self.disturbed:
            note = "; ".join(filter(None, [note, f"BUSY: {self.disturbed} of {len(ratios)} rounds were disturbed"]))
        return Figure(name, median(ratios), goal, at_most, spread=(min(ratios), max(ratios)), note=note)

    def values(self) -> dict[str, Any]:
        return {"seconds": {side: list(values) for side, values in self.seconds.items()}, "disturbed": self.disturbed}


def take_turns(
    description: str, sides: Mapping[str, Callable[[], float]], *, rounds: int = ROUNDS, threads: int = 1
) -> Turns:
    """Measures the sides in turns, round after round; each returns how many seconds it took, its set-up left out.

    Every side is run once before, which doesn't count. A round in which other processes took more than the cores that
    are left over is measured again, up to a limit.

    Args:
        threads: How many cores the sides use.
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
    """Seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _others() -> float:
    """Processor seconds that all processes but this one and its children have used since the machine was started."""
    times = psutil.cpu_times()
    everybody = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
    own = psutil.Process()
    mine = own.cpu_times()
    total: float = everybody - mine.user - mine.system - mine.children_user - mine.children_system
    for child in own.children(recursive=True):
        try:
            used = child.cpu_times()
        except psutil.Error:  # it has ended meanwhile
            continue
        total -= used.user + used.system + used.children_user + used.children_system
    return total


class Clock:
    """Divides time among parts: at every moment exactly one part is charged, the innermost, so parts add up to all.

    Args:
        rest: The part that is charged outside of every block.
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
        """The parts since the last lap."""
        self._charge()
        parts, self._parts = self._parts, {}
        return parts


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar with elapsed and remaining time on stderr; yields what moves it on by one, and hears Ctrl-C."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    shown = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
    with shown:
        task = shown.add_task(description, total=total)

        def advance() -> None:
            shown.update(task, advance=1)
            interrupts.check()

        yield advance


def machine(load: Load) -> tuple[dict[str, Any], str]:
    """What this machine is, as plain values and as a line."""
    found = environment.describe()
    commit = str(found["git_commit"])[:7]
    line = f"{found['cpu']}, {load.words()}; this process may use {found['cores']}; commit {commit}."
    return {**found, "load": {**vars(load), "busy": load.busy}, "line": line}, line


def in_milliseconds(seconds: float) -> str:
    return shown_number(1000 * seconds, 1 if seconds < 0.1 else 0)


def shown_number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def plain_number(value: float) -> str:
    """Three figures, or all before the point: 0.957, 12.3, 1,056."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 must be given, but got {text!r}")
    return int(text)
