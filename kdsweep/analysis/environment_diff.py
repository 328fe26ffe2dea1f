"""What differs between the place where a run was made and this one: machine, software, source, data, teacher, folders.

Pure: descriptions as `kdsweep.system.environment.describe` makes them come in, rows of a table go out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a description holds -> how it is called, in the table's order. All but these three are compared as they are.
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
HASHES = ("git_commit", "git_diff", "data", "teacher")
MAPPINGS = {"packages": "package", "libraries": "library", "variables": "variable"}

HASH_SHOWN = 12  # digits


@dataclass(frozen=True)
class Change:
    """One thing that isn't as it was, as texts; "-" where it is missing."""

    name: str
    then: str
    now: str


@dataclass(frozen=True)
class Changes:
    """What differs.

    Attributes:
        found: One row a difference.
        unknown: Names of what was not recorded then, and so can't be compared.
    """

    found: tuple[Change, ...]
    unknown: tuple[str, ...]


def compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """What differs between two descriptions.

    Args:
        then, now: As `environment.describe`, and besides "device", "precision", "data" and "teacher" (hashes).
    """
    known = [key for key in NAMES if key in then]
    rows = [row for key in known for row in _rows(key, then, now)]
    for key, kind in MAPPINGS.items():
        if key in then:
            rows += _entries(kind, then[key] or {}, now.get(key) or {})
    missing = [name for key, name in NAMES.items() if key not in then and now.get(key) is not None]
    return Changes(tuple(rows), tuple(missing))


def _rows(key: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    before, after = then[key], now.get(key)
    if before == after:
        return
    if key == "cpu_features" and isinstance(before, Sequence) and isinstance(after, Sequence):
        # Twenty words, of which two matter: each side shows those that the other lacks.
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
            yield Change(f"{kind} {name}", "-" if before is None else before, "-" if after is None else after)


# Folders


def moved(config: Mapping[str, Any], folders: Sequence[tuple[str, Path]]) -> dict[str, Any]:
    """A configuration whose paths are those of another place.

    A text that lies below an old folder is moved to the new one, unless it exists at the old place alone.

    Args:
        folders: (old, new), the innermost first: a text is moved by the first that it lies below.
    """
    return {key: _moved(value, folders) for key, value in config.items()}


def _moved(value: Any, folders: Sequence[tuple[str, Path]]) -> Any:
    if isinstance(value, Mapping):
        return moved(value, folders)
    if isinstance(value, list):
        return [_moved(item, folders) for item in value]
    # A name without a separator ("resnet18") would lie below the folder "."; a URI's slashes aren't folders'.
    if not isinstance(value, str) or "/" not in value or "://" in value:
        return value
    for old, new in folders:
        path = Path(value)
        if path.is_relative_to(old):
            target = new / path.relative_to(old)
            keep = not target.exists() and (path.exists() or not Path(old).parts)
            return value if keep else str(target)
    return value
