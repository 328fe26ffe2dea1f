"""What each configuration key is for: the one home of that knowledge.

Everything that asks about keys asks here: what identifies a run, what a teacher's run leaves out, what makes two runs
repeats of one setting, what makes a comparison fair, what may change when a study goes on, and what may be searched.
A key that isn't listed here makes a test fail.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# The groups of components that a run is made of.
GROUPS = ("data", "augment", "model", "teacher", "loss", "optimizer", "schedule")

# Groups whose component refuses keys that it doesn't know.
OF_TRAINING = tuple(f"teacher.training.{group}." for group in ("augment", "optimizer", "schedule"))
STRICT = (*(f"{group}." for group in GROUPS if group != "teacher"), "teacher.network.", "teacher.head.", *OF_TRAINING)
# What is read of the groups that describe no component.
PARTS = {
    "teacher": (
        *("network", "head", "mode", "precision", "batch_size", "compiled", "shuffled"),
        *("run", "uri", "run_name", "run_weights", "members", "average", "train"),
        *(f"training.{name}" for name in ("epochs", "batch_size", "n_passes", "seed")),
        *(
            f"training.{name}"
            for name in ("precision", "memory_format", "compiled", "augment", "optimizer", "schedule")
        ),
    ),
    "paths": ("root", "data", "cache"),
}
# The smallest likeness of two words, from 0 to 1, at which one may be meant by the other.
ALIKE = 0.8


class Purpose(Enum):
    """What a key decides."""

    TRAINING = auto()
    """How students train. All arms of a fair comparison agree in it."""
    METHOD = auto()
    """What students are taught by: the difference between the arms."""
    SEED = auto()
    """Which random numbers are drawn. Runs that differ in nothing else repeat each other."""
    HARDWARE = auto()
    """Where the run computes. It changes the last bits of the numbers at most."""
    ANSWER = auto()
    """What is read off a finished training."""
    COURSE = auto()
    """How a run survives interruptions. It changes no number."""
    PLACE = auto()
    """Where files and records go."""
    MEMBERSHIP = auto()
    """Which run of which study this is."""
    STUDY = auto()
    """How a study is carried out."""


@dataclass(frozen=True)
class Key:
    """A key of the configuration, or a group of keys.

    Attributes:
        name: "epochs"; with a dot at its end a whole group: "loss." stands for loss.alpha and all others below it.
        purpose: What it decides.
        student: Whether only students need it, so that the run of a teacher leaves it out.
        free: Whether it may differ when an interrupted study goes on.
        identifies: Whether it tells one run from another, so that only a run that agrees in it can go on.
    """

    name: str
    purpose: Purpose
    student: bool = False
    free: bool = False
    identifies: bool = True

    def covers(self, name: str) -> bool:
        """Returns whether the dotted key `name` is this one, or lies in this group."""
        return name == self.name.removesuffix(".") or (self.name.endswith(".") and name.startswith(self.name))


KEYS = (
    *(Key(f"{group}.", Purpose.TRAINING) for group in ("data", "augment")),
    *(Key(f"{group}.", Purpose.TRAINING, student=True) for group in ("model", "optimizer", "schedule")),
    *(Key(name, Purpose.TRAINING, student=True) for name in ("epochs", "batch_size", "n_passes")),
    *(Key(name, Purpose.TRAINING, student=True) for name in ("precision", "memory_format", "compiled")),
    Key("deterministic", Purpose.TRAINING),
    Key("loss.", Purpose.METHOD, student=True),
    Key("teacher.", Purpose.METHOD),
    Key("arm", Purpose.METHOD),
    *(Key(name, Purpose.SEED, student=True) for name in ("seed", "init_seed", "order_seed")),
    Key("view_seed", Purpose.SEED),
    *(Key(name, Purpose.HARDWARE, free=True) for name in ("device", "threads")),
    # A recorded run has what was in force as well.
    Key("runtime.", Purpose.HARDWARE, free=True),
    *(Key(name, Purpose.ANSWER) for name in ("objective", "evaluate_test")),
    *(Key(name, Purpose.COURSE, free=True, identifies=False) for name in ("resume", "checkpoint_share")),
    Key("paths.", Purpose.PLACE, free=True, identifies=False),
    Key("tracking.experiment", Purpose.PLACE),
    # A study that goes on looks for its own run, so the store may have another address than it had.
    *(Key(f"tracking.{name}", Purpose.PLACE, free=True) for name in ("uri", "offline")),
    Key("tracking.models", Purpose.PLACE, free=True, identifies=False),
    *(
        Key(f"tracking.{name}", Purpose.MEMBERSHIP, free=True)
        for name in ("parent", "study", "stage", "job", "trial", "reproduces")
    ),
    Key("sweep.name", Purpose.STUDY),
    *(
        Key(f"sweep.{name}", Purpose.STUDY, free=True)
        for name in (
            *("n_trials", "baseline_seeds", "confirm_seeds", "confirm_until", "shuffled", "choose", "search_seeds"),
            *("replicates", "race"),
            # A study refuses another length itself (`study.fidelity`), because older studies don't have these keys.
            *("fidelity", "fidelity_of", "pilot"),
            *("seed", "start.", "start_from", "executor", "n_jobs", "ray_address", "max_restarts", "restart"),
            *("contenders", "define.", "for_all", "against", "fractions", "budgets", "students"),
        )
    ),
)


@functools.lru_cache(maxsize=1024)
def key(name: str) -> Key | None:
    """Returns the row of a dotted key, such as "loss.alpha"; None for a key that is not ours."""
    return next((row for row in KEYS if row.covers(name)), None)


def _names(choose: Callable[[Key], bool]) -> tuple[str, ...]:
    """The top-level names of the rows that are chosen."""
    return tuple(row.name.removesuffix(".") for row in KEYS if choose(row))


# What the run of a teacher leaves out.
STUDENT_KEYS = _names(lambda row: row.student)


def identifies(name: str) -> bool:
    """Returns whether a key tells one run from another."""
    row = key(name)
    return row is None or row.identifies


def in_training(name: str) -> bool:
    """Returns whether all arms of a fair comparison agree in a key."""
    return _purpose(name) is Purpose.TRAINING


def in_setting(name: str) -> bool:
    """Returns whether runs that repeat one setting agree in a key: in training, method and the user's own keys."""
    return not may_differ_in_repeats(name) and name != "arm"


def may_differ_in_repeats(name: str) -> bool:
    """Returns whether runs that differ in a key alone repeat each other: it is no part of training and method."""
    return _purpose(name) not in (None, Purpose.TRAINING, Purpose.METHOD)


def may_change_when_going_on(name: str) -> bool:
    """Returns whether a study that is continued may have another value of a key than it began with."""
    row = key(name)
    return row is not None and row.free


def may_be_searched(name: str) -> bool:
    """Returns whether a search may vary a key: not what is read off a run, nor where it is recorded."""
    fixed = (Purpose.ANSWER, Purpose.COURSE, Purpose.PLACE, Purpose.MEMBERSHIP, Purpose.STUDY)
    return name != "arm" and _purpose(name) not in fixed


def is_parameter(name: str) -> bool:
    """Returns whether a key is a parameter of a run in MLflow: not where and how it was recorded, or for which study.

    The run's config.yaml has all keys.
    """
    return _purpose(name) not in (Purpose.COURSE, Purpose.PLACE, Purpose.MEMBERSHIP, Purpose.STUDY)


def is_read(name: str) -> bool:
    """Returns whether kdsweep reads a key wherever it stands, or a component would refuse it.

    The keys of a study (`sweep.`) count as unread, because a study gets them by interpolations. Without a study nobody
    asks for them.
    """
    # A member of an averaged teacher is a teacher.
    name = re.sub(r"^teacher\.members\.\w+", "teacher", name)
    group, _, part = name.partition(".")
    if name.startswith(STRICT) or name == "hydra" or name.startswith("hydra."):
        return True
    if group in PARTS:
        return part in ("", *PARTS[group])
    is_group = any(row.name.startswith(f"{name}.") for row in KEYS)
    return is_group or (_purpose(name) not in (None, Purpose.STUDY) and group != "runtime")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known key that is probably meant by another one: that with the most similar last word.

    Among several of that kind it is the one with the most similar group, and then the one that is least deep.
    """
    group, _, leaf = name.rpartition(".")
    found = {}
    for key in known:
        own, _, word = key.rpartition(".")
        may_be_set = not word.startswith("_") and _purpose(key) is not Purpose.MEMBERSHIP
        if may_be_set and key != name and _likeness(leaf, word) >= ALIKE:
            found[key] = _likeness(leaf, word), _likeness(group, own), -key.count(".")
    return max(found, key=found.__getitem__, default=None)


def _likeness(one: str, other: str) -> float:
    """Returns how similar two words are, from 0 to 1; "max_epochs" is as good as "epochs"."""
    short, long = sorted((one, other), key=len)
    within = f"_{short}_" in f"_{long}_"
    return max(difflib.SequenceMatcher(None, one, other).ratio(), ALIKE if short and within else 0.0)


def meant(name: str, known: Iterable[str]) -> str:
    """Returns the remedy for a key that isn't there or that nothing reads: which key is meant, if one is similar."""
    guess = nearest(name, known)
    in_study = name.startswith("sweep.") and guess is None
    hint = f"Did you mean {guess}? " if guess else "It belongs to a study: add sweep=alpha_tau. " if in_study else ""
    return f"{hint}`kdsweep --help` lists them all."


def unclassified(names: Iterable[str]) -> list[str]:
    """Returns the keys that no row covers."""
    return [name for name in names if key(name) is None and not re.match(r"hydra\.", name)]


def flatten(config: Mapping[str, object]) -> dict[str, object]:
    """Returns a nested configuration under its full keys: {"loss": {"alpha": 0.5}} becomes {"loss.alpha": 0.5}.

    A list of plain values stays one value; the items of a list that holds mappings or lists are numbered
    ("stages.0.lr").
    """
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


def network_name(params: Mapping[str, object], group: str) -> str:
    """Returns the name of a network: the library's name, or for one of the user's own its function's; "None" if none.

    Args:
        params: A run's parameters, or its configuration flattened; what isn't there is None or "None".
        group: "model" or "teacher.network".
    """
    name, target = (str(params.get(f"{group}.{key}")) for key in ("name", "_target_"))
    return name if name != "None" else target.rpartition(".")[2]


def member_groups(params: Iterable[Mapping[str, object]]) -> list[str]:
    """Returns the groups of the teachers that are averaged in runs with these parameters: "teacher.members.<name>"."""
    found = (re.match(r"teacher\.members\.\w+(?=\.network\.)", name) for own in params for name in own)
    return [*dict.fromkeys(match[0] for match in found if match is not None)]


def teacher_name(params: Mapping[str, object]) -> str:
    """Returns the name of a teacher's network, or those of its members, each as `network_name` returns it.

    Args:
        params: As for `network_name`.
    """
    names = [network_name(params, f"{group}.network") for group in member_groups([params])]
    return f"average of {', '.join(names)}" if names else network_name(params, "teacher.network")


def _purpose(name: str) -> Purpose | None:
    row = key(name)
    return None if row is None else row.purpose
