"""What a study set out to do, as the tags of its parent run say: its search space, its objectives, its budget.

Alpha and tau, and the words for searched parameters, have their home here too.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kdsweep.analysis import metrics
from kdsweep.tracking.run_records import parameter_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kdsweep.analysis.metrics import Metric


# A setting lies at the border of its space within this share of the range.
AT_THE_BORDER = 0.02


@dataclass(frozen=True)
class Parameter:
    """A parameter of the distillation loss that every study is about.

    Attributes:
        key: Its key in the configuration.
        name: Its name in tables and sentences.
        label: Its name on the axis of a figure.
        log: Whether it is seen on a logarithmic scale where the study declares none.
    """

    key: str
    name: str
    label: str
    log: bool


ALPHA = Parameter("loss.alpha", "alpha", "alpha (weight of the distillation term)", log=False)
TAU = Parameter("loss.tau", "tau", "tau (softmax temperature)", log=True)
PARAMETERS = {parameter.key: parameter for parameter in (ALPHA, TAU)}


@dataclass(frozen=True)
class Objective:
    """A metric that the search optimises, and which way."""

    metric: str
    maximise: bool = True

    @classmethod
    def of(cls, metric: str) -> Objective:
        """Returns the objective that optimises a metric in its own direction."""
        return cls(metric, metrics.direction(metric) == "maximize")

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is: values times the sign are to be maximised."""
        return 1 if self.maximise else -1

    @property
    def row(self) -> Metric:
        """How the metric is called and printed."""
        return metrics.row(self.metric)

    @property
    def scale(self) -> int:
        """What values are multiplied by to be printed: 100 for fractions."""
        return self.row.scale

    @property
    def label(self) -> str:
        """The metric in words: "validation accuracy"."""
        return self.row.label

    @property
    def heading(self) -> str:
        """The metric in words, with its unit: "validation accuracy %"."""
        return self.row.heading

    def shown(self, value: float) -> str:
        """Prints a value without its unit."""
        return self.row.shown(value)


@dataclass(frozen=True)
class Dimension:
    """A key that the search varies: from `low` to `high`, or one of `choices`."""

    key: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[str, ...] = ()

    def holds(self, value: str) -> bool:
        """Returns whether a value, as runs have it, lies in what is searched."""
        if self.choices:
            return value in self.choices
        if self.low is None or self.high is None:
            return True
        try:
            # Runs are recorded with all digits; the ends of a range may have been rounded.
            return self.low - 1e-12 <= float(value) <= self.high + 1e-12
        except ValueError:
            return False

    def wider(self, value: float) -> str | None:
        """Returns the override that searches beyond the limit at which a value lies; None if it lies at none.

        On the scale that is searched, "at" is within a fiftieth of the range. Nothing lies beyond alpha = 0 and 1.
        """
        if self.low is None or self.high is None or not self.low < self.high:
            return None
        scale = math.log if self.log else float
        low, high = scale(self.low), scale(self.high)
        place, reach = (scale(value) - low) / (high - low), (high - low) / 2
        natural = (0.0, 1.0) if self.key == ALPHA.key else (None, None)
        if place <= AT_THE_BORDER and self.low != natural[0]:
            low -= reach
        elif place >= 1 - AT_THE_BORDER and self.high != natural[1]:
            high += reach
        else:
            return None
        if self.log:
            low, high = math.exp(low), math.exp(high)
        elif self.low > 0:
            low = max(low, self.low / 2)  # rates, sizes and counts are positive
        interval = f"interval({low:.3g},{high:.3g})"
        return f"{self.key}={f'tag(log,{interval})' if self.log else interval}"


@dataclass(frozen=True)
class Promise:
    """What the model of all trials promised of the chosen setting and of the best trial; `choice.Choice` explains it.

    Attributes:
        expected, sd: The chosen setting's value without a run's noise, and how sure that is; NaN without a model.
        best: The number of the trial with the best score.
        best_expected: What the model expected of it.
        reason: Why the best trial was taken and not the model's choice; empty if the model chose.
    """

    expected: float
    sd: float
    best: int
    best_expected: float
    reason: str

    @property
    def by_model(self) -> bool:
        """Whether the model chose."""
        return not self.reason


@dataclass(frozen=True)
class Fidelity:
    """The length of the search's runs, and the pilot that decided it.

    Attributes:
        key: What is cut down: "epochs", "data.train_fraction" or "n_passes".
        short, full: Its value in a short run and in a long one.
        cheap: Whether the search's trials are short.
        pilot: For each setting that was run at both lengths its trial's number and its objectives, short and long; None
            for a run that failed.
    """

    key: str
    short: float
    full: float
    cheap: bool
    pilot: tuple[tuple[int, tuple[float, ...] | None, tuple[float, ...] | None], ...]

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Fidelity:
        """Reads what Optuna's record and the tag kdsweep.fidelity hold."""
        pilot = tuple((number, as_tuple(short), as_tuple(full)) for number, short, full in found["pilot"])
        return cls(found["key"], found["short"], found["full"], found["cheap"], pilot)

    @property
    def searched(self) -> str:
        """The length of the search's trials as an override: "epochs=8"."""
        return f"{self.key}={self.short if self.cheap else self.full:g}"

    def job(self, number: int) -> str:
        """Returns the name of the pilot's job whose run is the trial's."""
        return pilot_job(number, short=self.cheap)


def as_tuple(values: Iterable[float] | None) -> tuple[float, ...] | None:
    """Returns values as a tuple; None stays None."""
    return None if values is None else tuple(values)


def pilot_job(number: int, *, short: bool) -> str:
    """Returns the name of a job of the pilot."""
    return f"pilot-{number:04d}-{'short' if short else 'full'}"


@dataclass(frozen=True)
class Request:
    """What was asked of a study at one time.

    Attributes:
        when: The time, in ISO 8601.
        asked: A name, and its value in words; of a later request only what it changed.
    """

    when: str
    asked: Mapping[str, str]


def requests(tags: Mapping[str, str]) -> tuple[Request, ...]:
    """Returns what was asked of a study, the first request first; empty for one of an older version."""
    return tuple(Request(**one) for one in json.loads(tags.get("kdsweep.requests", "[]")))


Why = Literal["clear", "out of reach", "spent"]


@dataclass(frozen=True)
class Stop:
    """When a confirmation by `sweep.confirm_until` stopped.

    Attributes:
        trial: The number of the confirmed trial; None in a contest, which confirms several.
        seeds: The number of fresh seeds that count.
        last_seed: The last of them.
        why: Why no more were made.
    """

    trial: int | None
    seeds: int
    last_seed: int
    why: Why


@dataclass(frozen=True)
class Goals:
    """What a study set out to do.

    Attributes:
        space: The keys that are searched; empty where the parent run doesn't say (a plain grid, or an older version).
        objectives: One, or several in a multi-objective study.
        chosen: The number of the trial that is confirmed, from its first fresh seed on; None before the choice.
        n_trials, baseline_seeds, confirm_seeds: The budget; None where the parent run doesn't say.
        promise: What the model promised of the choice; None where the best trial was taken without a model.
        replicates, race: How often each setting was to be run, and how many further runs those that could still be the
            best were to have.
        repeats: Whether trials with one setting are its repeated runs.
        confirm_until: The most fresh seeds of a confirmation that stops when its answer is clear; None if their number
            is fixed.
        stop: When it stopped; None before that.
        requests: What was asked, and when.
        baselines: The planned runs of each baseline; empty where the parent run doesn't say.
        looks: The number of the confirmed trial and of its fresh seeds, each time that the study ended with a verdict.
        fidelity: The length of the search's runs; None where all runs have one length.
    """

    space: tuple[Dimension, ...] = ()
    objectives: tuple[Objective, ...] = (Objective(metrics.DEFAULT_OBJECTIVE),)
    chosen: int | None = None
    promise: Promise | None = None
    n_trials: int | None = None
    baseline_seeds: int | None = None
    confirm_seeds: int | None = None
    replicates: int = 1
    race: int = 0
    repeats: bool = False
    looks: tuple[tuple[int, int], ...] = ()
    fidelity: Fidelity | None = None
    confirm_until: int | None = None
    stop: Stop | None = None
    requests: tuple[Request, ...] = ()
    baselines: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, tags: Mapping[str, str]) -> Goals:
        """Reads the tags kdsweep.space, .objectives, .chosen, .choice, .planned, .looks and the like.

        What isn't there keeps its default.
        """
        space = json.loads(tags.get("kdsweep.space", "{}"))
        objectives = json.loads(tags.get("kdsweep.objectives", "[]"))
        chosen = tags.get("kdsweep.chosen", "")
        planned = json.loads(tags.get("kdsweep.planned", "{}"))
        fidelity = json.loads(tags.get("kdsweep.fidelity", "null"))
        stopped = json.loads(tags.get("kdsweep.stopped", "null"))
        return cls(
            space=tuple(_dimension(key, limits) for key, limits in space.items()),
            objectives=tuple(Objective(metric, way == "maximize") for metric, way in objectives) or cls.objectives,
            chosen=int(chosen) if chosen.isdecimal() else None,
            promise=_promise(json.loads(tags.get("kdsweep.choice", "{}"))),
            looks=tuple((trial, seeds) for trial, seeds in json.loads(tags.get("kdsweep.looks", "[]"))),
            fidelity=None if fidelity is None else Fidelity.read(fidelity),
            requests=requests(tags),
            baselines=planned.get("baselines", {}),
            replicates=planned.get("replicates", 1),
            race=planned.get("race", 0),
            repeats=planned.get("repeats", False),
            stop=None if stopped is None else Stop(**stopped),
            **{name: planned.get(name) for name in ("n_trials", "baseline_seeds", "confirm_seeds", "confirm_until")},
        )

    @property
    def short_search(self) -> bool:
        """Whether the search's trials are shorter than all other runs, so that scores can't be compared."""
        return self.fidelity is not None and self.fidelity.cheap

    @property
    def objective(self) -> Objective:
        """The first objective, by which trials are ranked."""
        return self.objectives[0]


def short_key(key: str) -> str:
    """Returns a searched key as it is printed: "alpha" for loss.alpha; other keys in full."""
    return PARAMETERS[key].name if key in PARAMETERS else key


def axis_label(key: str) -> str:
    """Returns a searched key as it is written along the axis of a figure."""
    return PARAMETERS[key].label if key in PARAMETERS else key


def is_logarithmic(key: str) -> bool:
    """Returns whether a key is seen on a logarithmic scale where the study declares none."""
    return key in PARAMETERS and PARAMETERS[key].log


def short_value(value: str) -> str:
    """Returns a searched value as it is printed: a number with three significant digits, other texts as they are."""
    try:
        return f"{float(value):.3g}"
    except ValueError:
        return value


def setting(params: Mapping[str, str]) -> str:
    """Returns searched parameters as they are printed: "alpha 0.625, tau 4"."""
    return ", ".join(f"{short_key(key)} {short_value(value)}" for key, value in params.items())


def _promise(choice: Mapping[str, Any]) -> Promise | None:
    return Promise(**{name: choice[name] for name in Promise.__dataclass_fields__}) if choice else None


def _dimension(line_key: str, limits: Mapping[str, object]) -> Dimension:
    key = line_key.lstrip("+")  # "+optimizer.eps" adds the key optimizer.eps
    if "choices" in limits:
        choices = limits["choices"]
        assert isinstance(choices, list)
        return Dimension(key, choices=tuple(map(parameter_text, choices)))
    low, high = float(str(limits["low"])), float(str(limits["high"]))
    return Dimension(key, low, high, bool(limits["log"]))
