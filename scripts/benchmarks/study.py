"""Measures the controller's work for each trial over many empty trials: ask, tell, and records in MLflow."""

from __future__ import annotations

import argparse
import logging
import math
import random
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console, Group
from rich.table import Table

from benchmarks import whole_study
from benchmarks.measuring import Clock, Figure, Finding, Seconds, bar, in_milliseconds, positive, shown_number
from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.config.keys import flatten
from kdsweep.config.overrides import parsed
from kdsweep.execution.jobs import Job, Outcome
from kdsweep.execution.trial_link import TrialLink, build_pruner
from kdsweep.study.search import Search, Setting, delete, space_of
from kdsweep.study.stages import Stages
from kdsweep.system import progress
from kdsweep.system.errors import PrunedError, RunError
from kdsweep.system.sqlite import sqlite_uri
from kdsweep.tracking.run_records import ARM_TAG
from kdsweep.tracking.store import Store

if TYPE_CHECKING:
    from kdsweep.data import Dataset

ASK, TELL, REST = "ask", "tell", "everything else"
LINK = "the trial's link to Optuna"
OPEN, ENDS, PARAMS, TAGS, DATA = "store opened", "run created and ended", "parameters", "tags", "data sets"
METRICS, MADE = "metrics", "what is logged, gathered"
FILES = "written"
STAND_IN = "stand-in for Hydra"  # the benchmark's own work, which no sum contains

GROUPS = {
    "controller": (ASK, TELL, REST),
    "job, Optuna": (LINK,),
    "job, MLflow": (OPEN, ENDS, PARAMS, TAGS, DATA, METRICS, MADE),
}

EVERYTHING = tuple(part for parts in GROUPS.values() for part in parts)

# Artifacts take longer than everything else. They are files of one run, so their time can't grow with the number of
# trials. Only every tenth trial has them, and its time is in no other sum.
WITH_ARTIFACTS = 10

SAMPLERS = ("random", "tpe", "gp", "qmc")
PRUNERS = ("none", "median", "percentile", "asha", "hyperband")
# The default number of trials. A Gaussian process is fitted at each ask to all earlier trials, so it gets fewer.
TRIALS = {"gp": 100}
MANY_TRIALS = 500
WINDOW = 50  # trials at both ends whose medians are compared
FLAT = 1.5  # goal: last / first
MARKS = (10, 50, 100, 200, 500, 1000)  # trials at which the time of an ask is shown
AROUND = 5

SEARCHED = ("loss.alpha=interval(0.0,1.0)", "loss.tau=tag(log,interval(1.0,20.0))")
EPOCH_METRICS = (
    *("train/loss", "train/accuracy", "lr", "images_per_second", "epoch_seconds"),
    *("val/accuracy", "val/nll", "val/ece", "val/top5", "val/agreement", "val/teacher_kl"),
)


@dataclass
class Series:
    """One sampler's trials.

    Args:
        sampler: The sampler's name.
        laps: For each trial, in order, the seconds of each part.
    """

    sampler: str
    laps: Sequence[Mapping[str, Seconds]]
    window: int = field(init=False)

    def __post_init__(self) -> None:
        self.window = max(1, min(WINDOW, len(self.laps) // 2))

    def seconds(self, parts: Iterable[str], kind: int = 0) -> dict[int, float]:
        """Returns for each trial the seconds of these parts.

        If artifacts are one of the parts, only the trials that write artifacts count; otherwise only the others do.

        Args:
            parts: The names of the parts.
            kind: 0 for elapsed time, 1 for the processor's time.
        """
        names = tuple(parts)
        return {
            number: sum(lap[name][kind] for name in names if name in lap)
            for number, lap in enumerate(self.laps)
            if (FILES in names) == (FILES in lap)
        }

    def ends(self, parts: Iterable[str], kind: int = 0) -> tuple[float, float]:
        """Returns medians over the first and the last `window` trials; NaN if none of them counts."""
        seconds = self.seconds(parts, kind)
        first = [value for number, value in seconds.items() if number < self.window]
        last = [value for number, value in seconds.items() if number >= len(self.laps) - self.window]
        return (median(first) if first else math.nan), (median(last) if last else math.nan)

    def ratio(self, parts: Iterable[str], kind: int = 0) -> float:
        """Returns the last median over the first."""
        first, last = self.ends(parts, kind)
        return last / first if first > 0 else math.nan

    def asks(self) -> dict[int, float]:
        """Returns for each mark the median time of an ask over the `AROUND` trials up to it."""
        seconds = [lap.get(ASK, (0.0, 0.0))[0] for lap in self.laps]
        return {mark: median(seconds[mark - AROUND : mark]) for mark in MARKS if mark <= len(seconds)}

    def rows(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Yields (group, name, parts) for each row of the table; sums come below their parts."""
        for group, parts in GROUPS.items():
            if len(parts) > 1:
                yield from ((group, part, (part,)) for part in parts)
            yield group, "sum" if len(parts) > 1 else parts[0], parts
        yield "trial", "sum", EVERYTHING
        yield "artifacts", "config, environment, curve, weights", (FILES, MADE)

    def values(self) -> dict[str, object]:
        """Returns everything as plain values, in seconds."""
        found = []
        for group, name, parts in self.rows():
            (first, last), (cpu_first, cpu_last) = self.ends(parts, 0), self.ends(parts, 1)
            numbers = {
                "wall": {"first": first, "last": last, "ratio": self.ratio(parts, 0)},
                "cpu": {"first": cpu_first, "last": cpu_last, "ratio": self.ratio(parts, 1)},
            }
            # JSON has no NaN.
            known = {k: {n: None if math.isnan(v) else v for n, v in kind.items()} for k, kind in numbers.items()}
            found.append({"group": group, "part": name, **known})
        return {
            "sampler": self.sampler,
            "trials": len(self.laps),
            "window": self.window,
            "parts": found,
            "ask_around": self.asks(),
            "wall_of_each": [{name: seconds[0] for name, seconds in lap.items()} for lap in self.laps],
        }


class TimedSearch(Search):
    """kdsweep's search; each `next` begins a lap of the clock."""

    clock: Clock

    def next(self) -> Setting | None:
        """Begins a lap, and times the ask."""
        self.laps.append(self.clock.lap())
        with self.clock.part(ASK):
            return super().next()

    def complete(self, number: int, result: object) -> str | None:
        """Times the tell."""
        with self.clock.part(TELL):
            return super().complete(number, result)

    def prune(self, number: int, epoch: int) -> None:
        """Times the tell."""
        with self.clock.part(TELL):
            super().prune(number, epoch)

    def timed_by(self, clock: Clock) -> list[dict[str, Seconds]]:
        """Sets the clock; returns the list to which it adds laps, the first of them before the first trial."""
        self.clock = clock
        self.laps: list[dict[str, Seconds]] = []
        return self.laps


class TimedStore(Store):
    """kdsweep's store; each write is charged to the kind of what it writes.

    Args:
        uri: The URI of the store.
        clock: The clock to charge. A run's writer is a thread of its own, for which the run waits.
        artifacts: Whether files are written.
    """

    PARTS: Mapping[str, str] = {
        **{"params": PARAMS, "metrics": METRICS, "tags": TAGS},
        **{"inputs": DATA, "status": ENDS, "artifact": FILES},
    }

    def __init__(self, uri: str, clock: Clock, artifacts: bool) -> None:
        self._clock, self._artifacts = clock, artifacts
        with clock.part(OPEN):
            super().__init__(uri)

    def create(self, name: str, tags: Mapping[str, str], start: int) -> str:
        """Times the creation of a run."""
        with self._clock.part(ENDS):
            return super().create(name, tags, start)

    def send(self, run_id: str, entry: Any, folder: Path) -> None:
        """Times a write; leaves out files unless they are wanted."""
        if entry["kind"] != "artifact" or self._artifacts:
            with self._clock.part(self.PARTS[entry["kind"]]):
                super().send(run_id, entry, folder)


@dataclass
class EmptyTrials:
    """An executor whose jobs train nothing: they record a run as a real trial does, and return a number.

    Hydra's part of a job (its configuration and its log file) is left out, and the weights are a single number.

    Args:
        cfg: The configuration of a study's run, before the run's own overrides.
        data: The pictures that the run would read.
        mlflow: The URI of the MLflow store.
        storage: The URL of Optuna's storage.
        study: The study's name in the storage.
        pruner: Configuration of the pruner, or None.
        clock: The clock to charge.
        ended: A function that is called after each job.
        slots: The number of jobs at the same time.
    """

    cfg: DictConfig
    data: Dataset
    mlflow: str
    storage: str
    study: str
    pruner: DictConfig | None
    clock: Clock
    ended: Callable[[], None]
    slots: int = 1

    def submit(self, job: Job) -> None:
        """Takes a job."""
        self._job = job

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Runs the job."""
        with self.clock.part(STAND_IN):
            cfg = OmegaConf.merge(self.cfg, OmegaConf.from_dotlist([*self._job.overrides]))
            assert isinstance(cfg, DictConfig)
            try:
                outcome = Outcome(self._run(cfg))
            except PrunedError as error:
                outcome = Outcome(error=error)
            self.ended()
        return [(self._job, outcome)]

    def close(self) -> None:
        """Does nothing, since nothing runs."""

    def _run(self, cfg: DictConfig) -> float:
        """Does what `kdsweep.train` does around a trial's training."""
        clock, number = self.clock, int(cfg.tracking.trial)
        with ExitStack() as stack:
            with clock.part(LINK):
                pruner = None if self.pruner is None else build_pruner(self.pruner)
                link = TrialLink(self.storage, self.study, number, pruner)
                stack.enter_context(link.alive())
            value = self._record(cfg, TimedLink(link, clock), number)
            with clock.part(LINK):
                link.leave([value])
                stack.close()
        return value

    def _record(self, cfg: DictConfig, link: Any, number: int) -> float:
        """Records the MLflow run of a trial."""
        from torch import zeros

        from kdsweep import experiment, recording

        value = score(cfg.loss.alpha, cfg.loss.tau, number)
        metrics = dict.fromkeys(EPOCH_METRICS, value)
        artifacts = number % WITH_ARTIFACTS == 0
        points = [(epoch, value) for epoch in range(1, cfg.epochs + 1)]
        result = experiment.Result(
            {**metrics, "best/val_accuracy": value, "best/epoch": 1.0, "seconds": 0.0, "teacher_seconds": 0.0},
            # Without a history there is no curve.
            dict.fromkeys(metrics, points) if artifacts else {},
        )
        store = TimedStore(self.mlflow, self.clock, artifacts)
        with self.clock.part(MADE), recording.started(cfg, self.data, store, None) as recorded:
            reached = experiment.Reached({"val/accuracy": points})
            log = recorded.epoch_log(reached, cfg.objective, link.report)
            for epoch in range(1, cfg.epochs + 1):
                log(metrics, epoch)
            recorded.finish(result, {"weight": zeros(1)}, "model.safetensors")
        return value


@dataclass
class TimedLink:
    """A trial's link to Optuna with timed reports."""

    link: TrialLink
    clock: Clock

    def report(self, value: float, epoch: int) -> None:
        """Times a report."""
        with self.clock.part(LINK):
            self.link.report(value, epoch)


def score(alpha: float, tau: float, number: int) -> float:
    """Returns a made-up accuracy: smooth in both searched keys, with noise like that of real ones (sd 0.005)."""
    smooth = 0.8 - 0.1 * (alpha - 0.6) ** 2 - 0.02 * math.log(tau / 4) ** 2
    return smooth + random.Random(number).gauss(0, 0.005)


@contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Sends kdsweep's lines of this block to files in `folder`, where they take as long as in a study."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.logging import WARNING, set_verbosity

    set_verbosity(WARNING)
    handler = logging.FileHandler(folder / "study.log")
    root, terminal = logging.getLogger(), progress.console
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    with (folder / "notes.txt").open("w") as notes, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        progress.console = Console(file=notes, highlight=False)
        try:
            yield
        finally:
            progress.console = terminal
            root.setLevel(level)
            root.removeHandler(handler)
            handler.close()


def composed(sampler: str, pruner: str, folder: Path) -> DictConfig:
    """Composes the configuration of kdsweep's study."""
    lines = ["sweep=alpha_tau", "data=synthetic", "device=cpu", f"paths.root={folder}"]
    lines += [f"hydra/sweeper/sampler={sampler}", f"hydra/sweeper/pruner={pruner}"]
    with hydra.initialize_config_dir(str(CONFIG_FOLDER)):
        return hydra.compose("config", lines, return_hydra_config=True)


def measure_study(sampler: str, pruner: str, n_trials: int, storage: str | None, folder: Path) -> Series:
    """Runs a study of empty trials, without baselines and confirmation, with its own stores in `folder`."""
    from kdsweep.config import build, rules

    folder.mkdir(parents=True, exist_ok=True)
    whole = composed(sampler, pruner, folder)
    own = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    data, _ = build.inputs(own)
    overrides = parsed([*SEARCHED])
    settings = whole.hydra.sweeper
    # A storage that others use too may hold an earlier study.
    url, name = storage or sqlite_uri(folder / "optuna.db"), f"benchmark-{uuid.uuid4().hex[:8]}"
    clock, mlflow = Clock(REST), sqlite_uri(folder / "mlflow.db")
    with quiet(folder), bar(f"study, {sampler}", n_trials) as advance:
        search = TimedSearch(
            url,
            name,
            ["maximize"],
            space_of(overrides),
            settings.sampler,
            settings.pruner,
            n_trials,
            settings.max_restarts,
            seed=settings.sampler_seed,
        )
        laps = search.timed_by(clock)
        store = Store(mlflow)
        executor = EmptyTrials(own, data, mlflow, url, name, settings.pruner, clock, advance)
        tags = {ARM_TAG: "study", "kdsweep.study": name, "kdsweep.study_key": search.key}
        params = flatten(build.container(own))
        try:
            with search.held(), store.run(name, tags=tags, params=params) as parent:
                work = overrides, [], rules.objectives(own), {}, 0, settings.max_restarts, 0.0
                stages = Stages(store, parent.id, search, *work, choose="best", search_seeds="fixed")
                with stages.carried_out_by(executor):
                    stages.run_search()
            if search.count_finished() != n_trials:
                raise RunError(f"{search.count_finished()} of {n_trials} trials have ended")
        finally:
            if storage is not None:
                delete(url, name)
    return Series(sampler, laps[1:])


def table(series: Series) -> Table:
    """Makes a table of the medians of both ends and their ratio, part by part."""
    title = f"study: {len(series.laps)} empty trials, sampler {series.sampler}; median milliseconds a trial"
    shown = Table(title=title, title_justify="left")
    for column in ("", "part"):
        shown.add_column(column)
    for column in (f"first {series.window}", f"last {series.window}", "last/first"):
        shown.add_column(column, justify="right")
    for column in ("CPU first", "CPU last", "last/first"):
        shown.add_column(column, justify="right", style="dim")
    last_group = None
    for group, name, parts in series.rows():
        cells = []
        for kind in (0, 1):
            first, last = series.ends(parts, kind)
            cells += [in_milliseconds(first), in_milliseconds(last), shown_number(series.ratio(parts, kind), 2)]
        is_sum = name == "sum" or len(GROUPS.get(group, ())) == 1
        style = "bold" if is_sum else None
        shown.add_row("" if group == last_group else group, name, *cells, style=style, end_section=is_sum)
        last_group = group
    return shown


def judged(ratio: float) -> str:
    """Returns a ratio in words; time that shrinks a lot shows that the machine has changed, not the study."""
    if ratio > FLAT:
        return "GROWS"
    return "flat" if ratio > 1 / FLAT else "UNCLEAR, since the machine had less else to do at the end"


def verdict(series: Series) -> str:
    """Says whether the time per trial stays the same."""
    if series.sampler == "gp":
        marks = ", ".join(f"{in_milliseconds(seconds)} at trial {mark}" for mark, seconds in series.asks().items())
        return (
            f"Sampler gp: an ask takes (ms) {marks or 'unknown, with so few trials'}. It is fitted to all earlier "
            "trials, so this time must grow; the other parts are the controller's own."
        )
    words = []
    for name, parts in (("a trial", EVERYTHING), ("the controller", GROUPS["controller"])):
        wall, cpu = (series.ratio(parts, kind) for kind in (0, 1))
        words.append(f"{name} {judged(wall)} ({wall:.2f}, processor's time {cpu:.2f})")
    return f"Sampler {series.sampler}: {' and '.join(words)}; goal: last/first <= {FLAT}."


def measure(arguments: argparse.Namespace) -> Finding:
    """Time per trial outside training, over a study of empty trials; with --device, the time of a whole study"""
    if arguments.device is not None:
        return whole_study.measure(arguments)
    from kdsweep.tracking.opening import import_mlflow

    import_mlflow()  # takes seconds, which no trial should be charged
    chosen = [arguments.sampler] if arguments.sampler else ["random", "gp"]
    found = []
    with ExitStack() as stack:
        out = arguments.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kdsweep-benchmark-")))
        for sampler in chosen:
            default = TRIALS.get(sampler, MANY_TRIALS)
            # By default the Gaussian process gets no more trials than it can be fitted to in a minute.
            n_trials = arguments.trials or default
            if arguments.sampler is None:
                n_trials = min(n_trials, default)
            folder = out / f"{sampler}-{uuid.uuid4().hex[:8]}"
            found.append(measure_study(sampler, arguments.pruner, n_trials, arguments.storage, folder))
    lines = [verdict(series) for series in found]
    lines.append(
        f"Every {WITH_ARTIFACTS}th trial writes artifacts, and counts only for their time. Not measured: Hydra's part "
        "of a job, and weights of a real size. The sampler random takes next to no time, so its study shows the "
        "controller's own overhead."
    )
    details = {"pruner": arguments.pruner, "goal": FLAT, "studies": [series.values() for series in found]}
    figures = [
        Figure(f"{name}, last {WINDOW} against first ({series.sampler})", series.ratio(parts), FLAT)
        for series in found
        for name, parts in (("the controller", GROUPS["controller"]), ("a trial without its training", EVERYTHING))
        if series.sampler != "gp"
    ]
    title = "study: what the controller does for each trial"
    return Finding(title, figures, details, Group(*(table(series) for series in found)), lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    help_sampler = "default: random, which shows the controller's own overhead, and then gp over fewer trials"
    whole_study.add_arguments(parser)
    help_trials = f"default: 500; for gp 100; with --device {whole_study.TRIALS}"
    parser.add_argument("--trials", type=positive, metavar="N", help=help_trials)
    parser.add_argument("--sampler", choices=SAMPLERS, help=help_sampler)
    parser.add_argument("--pruner", choices=PRUNERS, default="none", help="with one, each epoch is reported to Optuna")
    parser.add_argument("--storage", metavar="URL", help="of Optuna's record; default: an SQLite file")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep the stores there; default: a temporary folder")
