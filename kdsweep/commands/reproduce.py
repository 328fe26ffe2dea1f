"""`kdsweep-reproduce`: makes a run again from its saved configuration, and says whether it is the same bit for bit."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsweep.config.keys import GROUPS, KEYS, STUDENT_KEYS, Purpose
from kdsweep.system import exit_status
from kdsweep.system.errors import RunError, UserError
from kdsweep.system.masking import MASK
from kdsweep.tracking.location import store_uri

# Modules that train and compute take seconds to import, so they are imported where they are needed.
if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.table import Table

    from kdsweep.analysis.deviation import Left
    from kdsweep.commands.source_run import Original
    from kdsweep.tracking.run_records import RunRecord

DIFFERS = 3  # exit status
CONFIG = "config.yaml"
WIDTH = 110  # characters a line, where the output is no terminal

# A reproduction belongs to no study, whatever the run belonged to.
OWN = {"parent": None, "study": None, "job": None, "trial": None, "stage": "reproduction"}
# Keys that can't be set, and the option to use instead.
REFUSED = {
    **{row.name: "" for row in KEYS if row.purpose is Purpose.MEMBERSHIP},
    **{"tracking": "", "paths": " Give --root.", "paths.root": " Give --root.", "arm": ""},
    **{"tracking.uri": " Give --uri.", "tracking.experiment": " Give --experiment."},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command `kdsweep-reproduce`."""
    exit_status.command("kdsweep-reproduce", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    from kdsweep.commands.source_run import find

    original = find(options.run, store_uri(options.uri, options.root))
    cfg = again(original, options)
    changed = _show_surroundings(original, cfg)
    if options.check:
        sys.exit(DIFFERS if changed else 0)
    if not _make(original, cfg, options.set):
        sys.exit(DIFFERS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdsweep-reproduce",
        description="Makes a run again from its saved configuration, as a new run, and compares the two: every metric "
        "of every epoch, and the weights. Before that it says what differs from then: source, versions, machine, data, "
        "teacher. Exit status 0: bit-for-bit the same (or nothing to compare with); 3: it deviates.",
    )
    root = Path(os.environ.get("KDSWEEP_HOME", "."))
    option = parser.add_argument
    option(
        "run",
        metavar="RUN",
        help=f"MLflow id of a run, or its first letters; or a {CONFIG}, or a folder that holds one",
    )
    option("--uri", metavar="URI", help="MLflow store (default: $MLFLOW_TRACKING_URI, else <root>/mlflow.db)")
    option("--experiment", metavar="NAME", help="MLflow experiment of the new run (default: that of the run)")
    option("--root", metavar="DIR", type=Path, default=root, help="project folder (default: $KDSWEEP_HOME, else .)")
    same_but = "the same, but with another value of a key; can be repeated"
    option("--set", metavar="KEY=VALUE", action="append", default=[], help=same_but)
    option("--check", action="store_true", help="only say what differs from then (exit status 3), and run nothing")
    return parser


# The configuration of the new run


def again(original: Original, options: argparse.Namespace) -> DictConfig:
    """Returns the configuration of the new run: the old one, with its hardware settings, in this folder, and --set."""
    from omegaconf import DictConfig, OmegaConf

    from kdsweep.config.saved_config import moved

    defaults = _defaults()
    saved, old = original.config, dict(original.config.get("paths") or {})
    paths = _paths(old, options.root)
    folders = [(old[name], Path(paths[name])) for name in ("data", "cache", "root") if old.get(name)]
    in_force = _in_force(original.surroundings)
    groups = moved({name: saved.get(name) for name in GROUPS}, folders)
    if groups["teacher"] is not None:
        # Runs from before these keys compiled no pass, and their teachers had the student's precision.
        older = {"compiled": False, "precision": in_force.get("precision", saved.get("precision"))}
        groups["teacher"] = {**older, **groups["teacher"]}
    # Keys that older versions lacked get their default; groups of components don't.
    base = {name: defaults[name] for name in defaults if name not in (*GROUPS, "arm")}
    tracking = {**OWN, "offline": False, "reproduces": original.id}
    base |= {"memory_format": "channels_last", "compiled": False}  # as runs were before these keys
    cfg = OmegaConf.merge(base, saved, groups, {"paths": paths, "tracking": tracking, "resume": False})
    assert isinstance(cfg, DictConfig)
    cfg.tracking.uri = None if options.uri is None else store_uri(options.uri, options.root)
    if options.experiment is not None:
        cfg.tracking.experiment = options.experiment
    cfg.update(in_force)
    _tie(cfg, defaults)
    if cfg.arm == "teacher":
        # A teacher's run leaves out the students' keys, but the check of values needs them.
        for key in STUDENT_KEYS:
            cfg[key] = defaults[key]
    _set(cfg, options.set)
    _refuse_masked(cfg)
    return cfg


def _defaults() -> DictConfig:
    """Composes the configuration of `kdsweep` without arguments."""
    from hydra import compose, initialize_config_dir

    from kdsweep.config.folder import CONFIG_FOLDER

    with initialize_config_dir(str(CONFIG_FOLDER)):
        return compose("config")


def _paths(old: Mapping[str, str], root: Path) -> dict[str, str]:
    """Returns the folders of the new run: below `root`, unless the user had chosen others that still exist."""
    paths = {"root": str(root)}
    for name in ("data", "cache"):
        was = Path(old.get(name, name))
        elsewhere = was.is_absolute() and not was.is_relative_to(old.get("root", "."))
        paths[name] = str(was) if elsewhere and was.is_dir() else str(root / name)
    return paths


def _in_force(surroundings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns device, precision and threads that were in force, whatever the configuration left open."""
    import torch

    own = {key: surroundings[key] for key in ("device", "precision", "threads") if surroundings.get(key) is not None}
    device, _, index = str(own.get("device", "")).partition(":")
    if device == "cuda" and index and int(index) >= torch.cuda.device_count():
        own["device"] = device  # this machine has fewer GPUs
    return own


def _tie(cfg: DictConfig, defaults: DictConfig) -> None:
    """Lets keys follow others again, as init_seed follows seed by default, so that --set seed=1 changes both."""
    from omegaconf import OmegaConf

    raw = OmegaConf.to_container(defaults)
    assert isinstance(raw, dict)
    for name in map(str, defaults):
        if OmegaConf.is_interpolation(defaults, name):
            value = cfg[name]
            OmegaConf.update(cfg, name, raw[name])
            if cfg[name] != value:
                cfg[name] = value


def _set(cfg: DictConfig, lines: Iterable[str]) -> None:
    """Sets the keys that the user gave by --set.

    Raises:
        UserError: No such key, a group's choice, more than one value.
    """
    from omegaconf import OmegaConf

    from kdsweep.config.overrides import UNKNOWN, parsed

    for override in parsed(list(lines)):
        key = override.key_or_group
        known = OmegaConf.select(cfg, key.replace("/", "."), default=UNKNOWN)
        if override.is_sweep_override() or override.is_add() or override.is_force_add() or override.is_delete():
            raise UserError(f"`--set {key}=one value` must hold, but got {override.input_line}.", key)
        if known is UNKNOWN:
            raise UserError("there is no such key in the saved configuration.", key)
        if key in REFUSED:
            raise UserError(f"a reproduction has its own.{REFUSED[key]}", key)
        value = override.value()
        if key in GROUPS and not isinstance(value, Mapping):
            remedy = f"Set its keys (--set {key}.<key>=value), or start a run with `kdsweep {key}={value}`."
            raise UserError(f"a saved configuration has no choice of groups, but got {key}={value!r}. {remedy}", key)
        if cfg.arm == "teacher" and key.partition(".")[0] in STUDENT_KEYS:
            raise UserError("the run of a teacher has no such key: it is its students'.", key)
        OmegaConf.update(cfg, key, value)


def _refuse_masked(cfg: DictConfig) -> None:
    from kdsweep.config.build import container
    from kdsweep.config.keys import flatten

    for key, value in flatten({name: container(cfg)[name] for name in GROUPS}).items():
        if MASK in str(value):
            raise UserError(f"its value is secret and was not saved. Give it: --set {key}=VALUE.", key)


# The comparison


def _show_surroundings(original: Original, cfg: DictConfig) -> bool:
    """Prints what differs from then; returns whether anything does."""
    from kdsweep.analysis import environment_diff
    from kdsweep.recording import SOURCES

    found = environment_diff.compare(original.surroundings, _here(cfg))
    if not original.surroundings:
        _print("Where the run was made is not known: the file is a bare configuration.")
    elif found.found:
        rows = [(change.name, change.then, change.now) for change in found.found]
        _print(_table(("differs", "then", "now"), rows))
        if any(change.is_own_code for change in found.found):
            _print(f"The code of then is in the run's artifacts, in {SOURCES}/.")
    else:
        _print("Nothing differs from then: source, versions, machine, threads, data and teacher are the same.")
    if found.unknown and original.surroundings:
        _print(f"Not recorded then: {', '.join(found.unknown)}.")
    return bool(found.found)


def _here(cfg: DictConfig) -> dict[str, Any]:
    """Describes what the new run is made with, as a run's record does; refuses what can't be run."""
    from kdsweep.config import build, checks, identities, recorded_teachers, rules
    from kdsweep.system import environment

    cfg = rules.settled(cfg)
    checks.check(cfg)
    cfg = recorded_teachers.filled(cfg)
    device, precision = build.hardware(cfg)
    data, _ = build.inputs(cfg)
    teacher = None if cfg.teacher is None else identities.teacher_id(cfg, build.untrained_teacher(cfg))
    runtime = {"device": str(device), "precision": precision}
    made_of = {"data": data.fingerprint, "teacher": teacher, "sources": build.sources(cfg)}
    return {**environment.describe(), **runtime, **made_of}


def _make(original: Original, cfg: DictConfig, but: Sequence[str]) -> bool:
    """Makes the run, and prints how it compares; returns whether it is the same."""
    from kdsweep import train
    from kdsweep.analysis import deviation
    from kdsweep.system.masking import masked_text

    error: RunError | None = None
    try:
        run_id = train.train(cfg).run_id
    except RunError as failure:
        # A teacher that fails has a run of its own, which is not the one that is made again.
        if original.error is None or failure.run_id is None:
            raise
        error, run_id = failure, failure.run_id
    run, now = _made(cfg, run_id)
    found = deviation.compare(original.left, now, original.noise)
    rows = deviation.table(found)
    if rows:
        _print(_table(("metric", "then", "now", "difference", "in noise", "from epoch"), rows))
    for names, side in ((found.only_then, "then"), (found.only_now, "now")):
        if names:
            _print(f"Only {side}: {', '.join(names)}.")
    if but:
        _print(f"With {masked_text(' '.join(but))}:")
    fails_alike = _show_failures(original.error, run.tags.get("kdsweep.error"))
    if error is None or not found.nothing:
        _print(deviation.headline(found))
    _print(f"{'The configuration' if original.id is None else original.id} was made again as run {run.id}.")
    return found.exact and fails_alike


def _show_failures(then: str | None, now: str | None) -> bool:
    """Says how a run that failed fares now; returns whether it ends alike, as far as that depends on its numbers."""
    if then is None:
        return True
    how = "does not now" if now is None else "fails in the same way now" if now == then else f"fails now: {now}"
    _print(f"The run failed then ({then}), and {how}.")
    # A full disk or too little memory is a matter of the machine, not of the run.
    return now == then or (now is None and not then.startswith("DivergedError"))


def _made(cfg: DictConfig, run_id: str) -> tuple[RunRecord, Left]:
    """Reads back the run that was just made, and what it left."""
    from kdsweep import recording
    from kdsweep.commands.source_run import what_is_left
    from kdsweep.config.saved_config import parse

    try:
        store = recording.open_store(cfg)
        run = store.find(run_id)
        text = store.text(run.id, CONFIG)
    except UserError as error:
        raise RunError(f"the run was made, but can't be read back for the comparison: {error.message}") from error
    return run, what_is_left(store, run, {} if text is None else parse(text).record)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _print(text: str | Table) -> None:
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(text, soft_wrap=isinstance(text, str))


if __name__ == "__main__":
    main()
