"""Compares the environment of a recorded run with this one: machine, software, source, data, teacher, folders.

Pure functions: they take descriptions made by `kdsweep.system.environment.describe`, and return the rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Key of a description -> its name in the table, in the table's order.
NAMES = {
    "kdsweep": "kdsweep",
    "git_commit": "git commit",
    "git_diff": "uncommitted changes",
    "python": "Python",
    "platform": "platform",
    "cpu": "CPU",
    "cpu_features": "CPU features",
    "cores": "cores",
    "gpu": "GPU",
    "cuda": "CUDA",
    "device": "device",
    "precision": "precision",
    "threads": "threads",
    "data": "data",
    "teacher": "teacher",
}
# Their values are shortened in the table.
HASHES = ("git_commit", "git_diff", "data", "teacher")
# Keys whose values are mappings, of which each entry is compared, and the name of an entry in the table.
MAPPINGS = {"packages": "package", "libraries": "library", "variables": "variable", "sources": "your code"}

HASH_SHOWN = 12  # digits of a hash


@dataclass(frozen=True)
class Change:
    """One thing that has changed, as texts; "-" stands for something that is missing."""

    name: str
    then: str
    now: str

    @property
    def is_own_code(self) -> bool:
        """Whether it is a source file of the user's."""
        return self.name.startswith(MAPPINGS["sources"])


@dataclass(frozen=True)
class Changes:
    """What differs.

    Attributes:
        found: The differences.
        unknown: Names of things that were not recorded then, and so can't be compared.
    """

    found: tuple[Change, ...]
    unknown: tuple[str, ...]


def compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Compares two descriptions.

    Args:
        then: What `environment.describe` returned, with "device", "precision", the hashes "data" and "teacher", and
            "sources" (file of the user's own code -> hash).
        now: The same for this environment.
    """
    known = [key for key in NAMES if key in then]
    rows = [row for key in known for row in _rows(key, then, now)]
    for key, kind in MAPPINGS.items():
        if key in then:
            rows += _entries(kind, then[key] or {}, now.get(key) or {})
    missing = [name for key, name in NAMES.items() if key not in then and now.get(key) is not None]
    missing += [MAPPINGS["sources"]] if "sources" not in then and now.get("sources") else []
    return Changes(tuple(rows), tuple(missing))


def _rows(key: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    before, after = then[key], now.get(key)
    if before == after:
        return
    if key == "cpu_features" and isinstance(before, Sequence) and isinstance(after, Sequence):
        # Of twenty words two matter, so each side shows the words that the other lacks.
        yield Change(NAMES[key], _words(before, after), _words(after, before))
        return
    nothing = "none" if key in ("git_diff", "gpu", "teacher") else "-"
    yield Change(NAMES[key], _shown(key, before, nothing), _shown(key, after, nothing))


def _words(own: Sequence[str], other: Sequence[str]) -> str:
    return " ".join(word for word in own if word not in other) or "-"


def _shown(key: str, value: object, nothing: str) -> str:
    if value is None:
        return nothing
    return str(value)[:HASH_SHOWN] if key in HASHES else str(value)


def _entries(kind: str, then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Change]:
    for name in sorted({*then, *now}):
        before, after = then.get(name), now.get(name)
        if before != after:
            shown = HASH_SHOWN if kind == MAPPINGS["sources"] else None
            yield Change(f"{kind} {name}", *("-" if value is None else value[:shown] for value in (before, after)))
