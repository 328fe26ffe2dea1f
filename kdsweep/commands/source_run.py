"""The run that is to be made again, found in an MLflow store or in a file: its configuration and its results."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsweep.analysis.deviation import Left, left_by, seed_noise
from kdsweep.config.saved_config import SavedConfig, parse
from kdsweep.system.errors import UserError
from kdsweep.tracking.location import require_store
from kdsweep.tracking.run_records import RunRecord, StudyRecord
from kdsweep.tracking.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG = "config.yaml"


@dataclass(frozen=True)
class Original:
    """What is known of the run that is to be made again.

    Attributes:
        id: Its MLflow id; None for a configuration that no run has written.
        config: Its configuration.
        left: What it found.
        surroundings: Its machine, packages and data, as `environment_diff.compare` takes them.
        noise: For each metric its standard deviation over the seeds of the run's study.
        error: Why it failed, if it did.
    """

    id: str | None
    config: dict[str, Any]
    left: Left
    surroundings: dict[str, Any]
    noise: dict[str, float] = field(default_factory=dict)
    error: str | None = None


def find(name: str, uri: str) -> Original:
    """Finds a run, and returns what is known of it.

    Args:
        name: Its MLflow id, its config.yaml, or a folder that holds one.
        uri: The store to look in.

    Raises:
        UserError: There is no such run, or kdsweep didn't make it.
    """
    path = _file(name)
    if path is None:
        require_store(uri)
        store = Store(uri)
        run = store.find(name)
        if run.arm in ("study", "group"):
            raise UserError(f"{run.name!r} is a {run.arm}, not a run. Name one of the runs below it: `kdsweep-ui`.")
        text = store.text(run.id, CONFIG)
        if text is None:
            raise UserError(f"the run {run.id} has no {CONFIG}: it failed before it began, or isn't kdsweep's.")
        return _from_store(store, run, parse(text))
    saved = _read(path)
    if not _is_sound(saved.record):
        raise UserError(
            f"the last line of {path}, which says what came of the run, is damaged. Remove it to do without."
        )
    known = _known(uri, saved)
    if known is not None:
        return _from_store(*known, saved)
    return Original(saved.record.get("run"), saved.config, of_record(saved.record), _surroundings(saved.record))


def run_named(name: str) -> str:
    """Returns the MLflow id of a run that is named by its id, by its config.yaml, or by a folder that holds one.

    Raises:
        UserError: There is no such file, or no run has written it.
    """
    path = _file(name)
    run = name if path is None else _read(path).record.get("run")
    if not isinstance(run, str):
        raise UserError(f"{path} is a bare configuration, and doesn't say which run wrote it. Give the run's id.")
    return run


def _file(name: str) -> Path | None:
    """Returns the file of a configuration; None if `name` is the id of a run."""
    if not name.strip():
        raise UserError(f"`RUN names a run` must hold, but got {name!r}. Give its id, its {CONFIG}, or its folder.")
    path = Path(name)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise UserError(f"there is no {CONFIG} in the folder {path}. Name a run's output folder, or its id.")
        return path / CONFIG
    if path.is_file():
        return path
    if path.exists():
        raise UserError(f"{path} is neither a file nor a folder. Name a run's {CONFIG}, its folder, or its id.")
    if os.sep in name or path.suffix:
        raise UserError(f"there is no file {path}. Name a run's {CONFIG}, its folder, or its id.")
    return None


def _read(path: Path) -> SavedConfig:
    try:
        saved = parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text, and so no {CONFIG} of a run.") from None
    if not _is_of_a_run(saved.config):
        raise UserError(f"{path} is no configuration of a kdsweep run. The whole one is the run's artifact {CONFIG}.")
    return saved


def _known(uri: str, saved: SavedConfig) -> tuple[Store, RunRecord] | None:
    """Returns the store and the run that wrote a file; None if the store doesn't know it."""
    if "run" not in saved.record:
        return None
    try:
        require_store(uri)
        store = Store(uri, saved.config["tracking"]["experiment"])
        return store, store.find(saved.record["run"])
    except UserError:  # there is no store or no such run, so the file is all that is known
        return None


def _from_store(store: Store, run: RunRecord, saved: SavedConfig) -> Original:
    """Returns a run that the store knows.

    If the run was made by an older version or was cut short, its file lacks a part, which is read from the store.
    """
    surroundings = _surroundings(saved.record)
    if "runtime" not in saved.record:
        text = store.text(run.id, "environment.json")
        runtime = {key: run.params.get(f"runtime.{key}") for key in ("device", "precision", "threads")}
        known = {key: value for key, value in runtime.items() if value is not None}
        surroundings |= {**(json.loads(text) if text else {}), **known}
        if "threads" in known:
            surroundings["threads"] = int(str(known["threads"]))
        surroundings["teacher"] = run.tags.get("kdsweep.teacher")
    experiment = saved.config["tracking"]["experiment"]
    store = store if store.experiment == experiment else Store(store.uri, experiment)
    left = what_is_left(store, run, saved.record)
    return Original(run.id, saved.config, left, surroundings, _noise(store, run), run.tags.get("kdsweep.error"))


def what_is_left(store: Store, run: RunRecord, record: Mapping[str, Any]) -> Left:
    """Returns what a run found: from its file, or else from MLflow."""
    if "metrics" in record:
        return of_record(record)
    points = {name: store.history(run.id, name) for name in run.metrics}
    epochs = {name: [(step, value) for step, value in found if step >= 1] for name, found in points.items()}
    return left_by(run, {name: found for name, found in epochs.items() if found})


def of_record(record: Mapping[str, Any]) -> Left:
    """Returns what a run found, from the record in its saved configuration."""
    history = {name: [(epoch, value) for epoch, value in found] for name, found in record.get("history", {}).items()}
    return Left(record.get("weights"), record.get("metrics", {}), history)


def _is_of_a_run(config: Mapping[str, Any]) -> bool:
    groups = all(isinstance(config.get(key), dict) for key in ("data", "tracking", "paths"))
    return groups and "arm" in config and "experiment" in config["tracking"]


def _is_sound(record: Mapping[str, Any]) -> bool:
    """Returns whether a record, which anybody may have edited, has the shape of one."""
    parts = ("runtime", "environment", "metrics", "history")
    if not all(isinstance(record.get(part, {}), dict) for part in parts):
        return False
    series = record.get("history", {}).values()
    points = all(isinstance(found, list) and all(_numbers(point) == 2 for point in found) for found in series)
    return points and _numbers(list(record.get("metrics", {}).values())) is not None


def _numbers(values: object) -> int | None:
    """Returns how many numbers a list holds; None if it isn't a list of numbers."""
    plain = isinstance(values, list) and all(isinstance(value, int | float) for value in values)
    return len(values) if plain else None  # type: ignore[arg-type]


def _surroundings(record: Mapping[str, Any]) -> dict[str, Any]:
    hashes = {key: record[key] for key in ("data", "teacher", "sources") if key in record}
    return {**record.get("environment", {}), **record.get("runtime", {}), **hashes}


def _noise(store: Store, run: RunRecord) -> dict[str, float]:
    """Returns the noise over seeds among the runs of the same study or multirun; empty for a single run."""
    if run.parent is None:
        return {}
    return seed_noise(StudyRecord(store.find(run.parent), tuple(store.children(run.parent))), run.arm)
