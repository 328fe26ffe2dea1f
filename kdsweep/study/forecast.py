"""Forecasts what a study will cost: its runs, the teacher's passes, the time, and what would make it shorter."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdsweep.analysis.sorted_runs import arm_label
from kdsweep.numerics.gpu_memory import gibibytes, require_room, runs_that_fit
from kdsweep.study.measure_speed import Speed, measure, student_speed
from kdsweep.system.environment import cores
from kdsweep.system.errors import UserError
from kdsweep.teachers import mebibytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from omegaconf import DictConfig

# For longer studies, a forecast says what would make them shorter.
LONG_SECONDS = 3600.0
# A proposal must save this share of the time. Fewer passes are proposed only if the teacher takes this share of it.
LEAST_SAVING = 0.1
TEACHERS_SHARE = 0.25

# The parts of a study that aren't controls.
TEACHER, PILOT, TRIALS, CONFIRMATION = "teacher", "pilot", "trials", "confirmation"

# The time that a run takes besides training and evaluation, to build a network and to open and close its record.
RUN_SECONDS = 2.0


@dataclass(frozen=True)
class Alternative:
    """Another way to get an answer.

    Attributes:
        overrides: What to add to the command line.
        speed: How fast runs would be.
        n_jobs: The number of runs at the same time.
        price: What the alternative gives up; empty if nothing.
        seconds: The time that the whole study would take; NaN until it is computed.
    """

    overrides: str
    speed: Speed
    n_jobs: int
    price: str = ""
    seconds: float = math.nan


@dataclass(frozen=True)
class Forecast:
    """What a study will cost.

    Attributes:
        name: The study's name.
        planned: The number of runs of each part: baselines by name, "trials", "confirmation".
        left: The number of runs of each part that are still to be made.
        n_jobs: The number of runs at the same time.
        speed: The speed from which the cost was computed.
        cost: What the runs that are left will take.
        shorter: Alternatives, shortest first; empty unless the study is long.
        full_length: What they will take if a pilot doesn't let the search have shorter runs; None without a pilot to
            come.
    """

    name: str
    planned: Mapping[str, int]
    left: Mapping[str, int]
    n_jobs: int
    speed: Speed
    cost: Estimate
    shorter: tuple[Alternative, ...] = ()
    full_length: Estimate | None = None

    def words(self) -> list[str]:
        """Returns the forecast as lines for the terminal."""
        lines = self._runs(), self._teacher(), self._memory(), self._time(), *self._shorter()
        return [line for line in lines if line]

    def _runs(self) -> str:
        others = PILOT, TRIALS, CONFIRMATION
        baselines = [f"{n} {arm_label(name)}" for name, n in self.planned.items() if n and name not in others]
        parts = [", ".join(baselines), *self._search(), self._confirmation()]
        total, left = sum(self.planned.values()), sum(self.left.values())
        done = "" if left == total else f" {total - left} of them are done."
        return f"Study {self.name}: {'; '.join(part for part in parts if part)}: {total} runs.{done}"

    def _search(self) -> list[str]:
        settings, n = self.planned.get(PILOT, 0) // 2, self.planned.get(TRIALS, 0)
        trials = f"trial{'s' * (n != 1)}"
        if not settings:
            return [f"{n} {trials}"]
        return [f"a pilot of {settings} settings at two lengths", f"then {n} more {trials}"]

    def _confirmation(self) -> str:
        runs, n_controls = self.planned.get(CONFIRMATION, 0), len(controls(self.planned))
        if not runs:
            return ""
        seeds, rest = divmod(runs, 1 + n_controls)
        if rest:
            return f"then {runs} runs with fresh seeds"
        of_controls = {0: "", 1: " and of the control", 2: " and of both controls"}
        others = of_controls.get(n_controls, f" and of {n_controls} controls")
        return f"then {seeds} fresh seed{'s' * (seeds > 1)} of the best setting{others}"

    def _teacher(self) -> str:
        speed = self.speed
        if speed.teacher_rate is None or not asks_teacher(self.left):
            return ""
        missing = []
        if self.cost.passes:
            size = f" (their features take {mebibytes(speed.feature_bytes)} of the disk)" if speed.feature_bytes else ""
            missing.append(f"{self.cost.passes} of {speed.n_passes} passes over {speed.n_train:,} pictures{size}")
        if speed.features_missing:
            missing.append(f"features of {speed.features_missing:,} pictures")
        online = "it answers every batch" if speed.online else ""
        if not missing:
            there = "its pass is computed" if speed.n_passes == 1 else f"all {speed.n_passes} passes are computed"
            return f"Teacher: {online or there}."
        need = f"{' and '.join(missing)} still to be computed (about {roughly(self.cost.teacher_seconds)})"
        return f"Teacher: {need}{', then ' * bool(online)}{online}."

    def _memory(self) -> str:
        speed = self.speed
        if not speed.gpu_free or not any(self.left.values()):
            return ""
        fit = runs_that_fit(speed.gpu_bytes, speed.gpu_free)
        taken, there = gibibytes(speed.gpu_bytes), gibibytes(speed.gpu_free)
        return f"Memory: a run takes about {taken} of a GPU, beside CUDA's own; {there} are free, for {fit} at a time."

    def _time(self) -> str:
        if not any(self.left.values()):
            return "Nothing is left to run."
        speed = self.speed
        step = f"one step of {speed.batch_size} pictures takes {_step(speed.step_seconds)}; measured now"
        where = f"on {self.n_jobs} workers" if self.n_jobs > 1 else "one run at a time"
        took = f"About {roughly(self.cost.seconds)}"
        if self.full_length is not None:
            took += f" if the pilot shows that ranks transfer, else {roughly(self.full_length.seconds)}"
        return f"{took}, {where} ({step})."

    def _shorter(self) -> list[str]:
        if not self.shorter and (self.cost.seconds <= LONG_SECONDS or self.speed.gpus):
            return []
        width = max((len(way.overrides) for way in self.shorter), default=0)
        lines = [
            f"  {way.overrides:<{width}}  about {roughly(way.seconds)}{way.price and f' ({way.price})'}"
            for way in self.shorter
        ]
        if not self.speed.gpus:
            lines.append("  A GPU would be many times as fast (not measured here).")
        return ["Each of these alone would make it shorter:", *lines]


def forecast(
    cfg: DictConfig,
    planned: Mapping[str, int],
    left: Mapping[str, int],
    n_jobs: int,
    *,
    name: str,
    threads: int | None = None,
    elsewhere: bool = False,
    share: float = 1.0,
) -> Forecast:
    """Measures for some seconds, and forecasts what the study's remaining runs will cost.

    Args:
        cfg: The configuration that the study's runs share, after `checks.check`.
        planned: The number of runs of each part of the study: its baselines by name (all but "teacher" count as
            controls), "trials", and "confirmation" (runs, not seeds).
        left: The same without the runs that are done.
        n_jobs: The number of runs at the same time.
        name: The study's name.
        threads: CPU threads of a run. None means the configuration's number, or a share of the cores if it has none.
        elsewhere: Whether runs may be made on other machines, whose cores and GPUs aren't known.
        share: The length of the search's runs, as a share of the others'; what is to be decided by a pilot counts as
            decided.

    Raises:
        UserError: `n_jobs` runs don't fit into the memory of the GPUs.
    """
    if threads is None and cfg.threads is None and n_jobs > 1:
        threads = max(1, cores() // n_jobs)
    speed = measure(cfg, threads)
    if speed.gpu_free and not elsewhere:
        require_room(n_jobs, speed.gpus, speed.gpu_bytes, speed.gpu_free)
    cost = estimate(speed, left, n_jobs, elsewhere, share)
    ways: list[Alternative] = []
    if cost.seconds > LONG_SECONDS:
        ways += [] if elsewhere else _more_workers(cfg, speed, n_jobs)
        # Runs that are done have these settings, and the rest must match them; it can only be divided differently.
        if sum(left.values()) == sum(planned.values()):
            ways += [*_another_stem(cfg, speed, n_jobs), *less_work(speed, n_jobs, cost)]
    shorter = worth_it(ways, left, cost, elsewhere, share)
    full_length = estimate(speed, left, n_jobs, elsewhere) if left.get(PILOT) else None
    return Forecast(name, planned, left, n_jobs, speed, cost, shorter, full_length)


# ------------------------------------------------------------------------------------------------- alternatives


def _more_workers(cfg: DictConfig, speed: Speed, n_jobs: int) -> Iterator[Alternative]:
    """Proposes every GPU, or every core with one thread a run, which is the best use of cores for small batches."""
    places = speed.gpus or speed.cores
    if n_jobs < places:
        more = speed if speed.gpus or speed.threads == 1 else measure(cfg, 1)
        alone = "" if cfg.threads in (None, 1) or speed.gpus else " threads=1"
        yield Alternative(f"sweep.executor=workers sweep.n_jobs={places}{alone}", more, places)


def _another_stem(cfg: DictConfig, speed: Speed, n_jobs: int) -> Iterator[Alternative]:
    """Proposes the published stem, with which the feature maps of a ResNet are sixteen times smaller."""
    from omegaconf import OmegaConf

    if "stem" in cfg.model and cfg.model.stem == "cifar":
        own = cfg.copy()
        OmegaConf.set_readonly(own, False)
        own.model.stem = "imagenet"
        try:
            step_seconds, evaluation_rate = student_speed(own, speed.threads)
        except UserError:  # the pictures are too small for this stem
            return
        other = replace(speed, step_seconds=step_seconds, evaluation_rate=evaluation_rate)
        yield Alternative("model.stem=imagenet", other, n_jobs, "another student, weaker on small pictures")


def less_work(speed: Speed, n_jobs: int, cost: Estimate) -> Iterator[Alternative]:
    """Proposes half the epochs or pictures, and a quarter of the teacher's passes if they take much of the time."""
    if speed.epochs > 1:
        epochs = speed.epochs // 2
        # By default there are as many passes as epochs.
        n_passes = epochs if speed.n_passes == speed.epochs else speed.n_passes
        other = replace(_with_passes(speed, n_passes), epochs=epochs)
        yield Alternative(f"epochs={epochs}", other, n_jobs, "all arms learn for half as long")
    if speed.train_fraction is not None and speed.n_train >= 2 * speed.batch_size:
        yield Alternative(
            f"data.train_fraction={speed.train_fraction / 2:.3g}",
            _with_pictures(speed, speed.n_train // 2),
            n_jobs,
            "answers another question: how well half the labels do",
        )
    n_passes = max(1, speed.n_passes // 4)
    if n_passes < speed.n_passes and cost.teacher_seconds > TEACHERS_SHARE * cost.seconds:
        other = _with_passes(speed, n_passes)
        yield Alternative(f"n_passes={n_passes}", other, n_jobs, "later epochs repeat the views of earlier ones")


def _with_passes(speed: Speed, n_passes: int) -> Speed:
    missing = tuple(index for index in speed.passes_missing if index < n_passes)
    return replace(speed, n_passes=n_passes, passes_missing=missing)


def _with_pictures(speed: Speed, n_train: int) -> Speed:
    """Returns the speed for another set of training pictures, for which the teacher has no tables yet."""
    if speed.teacher_rate is None:
        return replace(speed, n_train=n_train)
    passes = () if speed.online else tuple(range(speed.n_passes))
    pictures = n_train + speed.n_validation + speed.n_test
    return replace(speed, n_train=n_train, passes_missing=passes, features_missing=pictures)


def worth_it(
    ways: Iterable[Alternative], left: Mapping[str, int], cost: Estimate, elsewhere: bool = False, share: float = 1.0
) -> tuple[Alternative, ...]:
    """Returns the alternatives that save enough of `cost`, with their seconds, shortest first."""
    timed = [replace(way, seconds=estimate(way.speed, left, way.n_jobs, elsewhere, share).seconds) for way in ways]
    saving = [way for way in timed if way.seconds <= (1 - LEAST_SAVING) * cost.seconds]
    return tuple(sorted(saving, key=lambda way: way.seconds))


# -------------------------------------------------------------------------------------------------------- words


def roughly(seconds: float) -> str:
    """Returns a length of time, rounded as an estimate should be: "20 s", "12 min", "1 h 40 min", "31 h", "5 days"."""
    if seconds < 57.5:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 10 * 60:
        hours, rest = divmod(5 * round(minutes / 5), 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    hours = round(seconds / 3600)
    return f"{hours} h" if hours < 72 else f"{round(hours / 24)} days"


def _step(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


@dataclass(frozen=True)
class Estimate:
    """What runs will take.

    Attributes:
        seconds: The time from the start of the first run to the end of the last, `teacher_seconds` included.
        teacher_seconds: The time for the teacher's features and passes.
        passes: The number of the teacher's passes that are computed in this time.
    """

    seconds: float
    teacher_seconds: float
    passes: int


def estimate(
    speed: Speed, runs: Mapping[str, int], n_jobs: int, elsewhere: bool = False, share: float = 1.0
) -> Estimate:
    """Estimates what `runs` will take.

    Stages follow each other. In each stage, n_jobs runs go on at the same time, but no more than cores or GPUs allow.
    The teacher's passes are computed one after another, and a run that needs a pass waits for it.

    Args:
        speed: What the parts of a run take.
        runs: The number of runs of each part of a study: "teacher", "trials", "confirmation", and controls by name.
        n_jobs: The number of runs at the same time.
        elsewhere: Whether the runs may be made on other machines, whose cores and GPUs aren't known.
        share: The length of a trial as a share of the other runs'; half of the pilot's runs have it too.
    """
    jobs = n_jobs if elsewhere else min(n_jobs, max(1, speed.gpus or speed.cores // speed.threads))
    names = controls(runs)
    arms = 1 + len(names)
    seeds = bool(runs.get(PILOT) or runs.get(TRIALS)) + math.ceil(runs.get(CONFIRMATION, 0) / arms)
    # Each seed needs other passes in its epochs, until all passes are computed.
    passes = min(len(speed.passes_missing), seeds * speed.epochs)
    teacher_seconds = 0.0
    if speed.teacher_rate is not None and asks_teacher(runs):
        teacher_seconds = (passes * speed.n_train + speed.features_missing) / speed.teacher_rate
    distilled, plain = _run_seconds(speed, distilled=True), _run_seconds(speed, distilled=False)
    confirmed = (distilled + len(names) * plain) / arms + speed.n_test / speed.evaluation_rate
    stages = (
        (sum(runs[name] for name in names), plain),
        (runs.get(PILOT, 0), (1 + share) / 2 * distilled),
        (runs.get(TRIALS, 0), share * distilled),
        (runs.get(CONFIRMATION, 0), confirmed),
    )
    seconds = sum(math.ceil(count / jobs) * each for count, each in stages)
    return Estimate(seconds + teacher_seconds + runs.get(TEACHER, 0) * RUN_SECONDS, teacher_seconds, passes)


def controls(runs: Mapping[str, int]) -> list[str]:
    """Returns the parts of a study that are controls, which are the baselines other than the teacher."""
    return [name for name in runs if name not in (TEACHER, PILOT, TRIALS, CONFIRMATION)]


def asks_teacher(runs: Mapping[str, int]) -> bool:
    """Returns whether any of the runs needs the teacher."""
    return any(runs.get(part) for part in (TEACHER, PILOT, TRIALS, CONFIRMATION))


def _run_seconds(speed: Speed, distilled: bool) -> float:
    """Returns the time of one student: training, and validation after each epoch."""
    step = speed.step_seconds
    if distilled and speed.online and speed.teacher_rate is not None:
        step += speed.batch_size / speed.teacher_rate
    steps = speed.n_train // speed.batch_size
    return speed.epochs * (steps * step + speed.n_validation / speed.evaluation_rate) + RUN_SECONDS
