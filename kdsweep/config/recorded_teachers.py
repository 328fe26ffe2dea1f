"""Students of recorded runs as teachers: their weights, preprocessing and precision, by the run's id."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from kdsweep.config import build
from kdsweep.config.keys import network_name
from kdsweep.config.rules import attempt, is_averaged, is_recorded
from kdsweep.config.saved_config import SavedConfig, parse
from kdsweep.own_arguments import name_of, parameters
from kdsweep.own_networks import is_own
from kdsweep.system.errors import RunError, UserError, require
from kdsweep.system.files import locked
from kdsweep.system.masking import MASK
from kdsweep.system.tensor_files import hash_tensors, read_tensors, write_tensors
from kdsweep.tracking.location import offline_uri, require_store, store_uri
from kdsweep.tracking.run_records import SHORT_ID, STUDENTS, RunRecord
from kdsweep.tracking.store import Store

if TYPE_CHECKING:
    from kdsweep.data import Dataset

# The artifact of a student's run that holds its weights.
WEIGHTS = "model.safetensors"

# What a run with fewer or other training pictures may differ in: its validation and test pictures are the same.
OF_TRAINING = ("train_fraction", "padding", "flip", "root")

# So many classes are named in a message.
MOST_NAMED = 5


def filled(cfg: DictConfig) -> DictConfig:
    """Returns `cfg` with what `teacher.run` stands for: the network of that run, with its weights in a file here.

    A configuration that was filled before needs no store as long as the file is there.

    Raises:
        UserError: There is no such run, it has left no student, or the student was trained on other data.
        RunError: The run's weights are missing or damaged, or others than this configuration was recorded with.
    """
    if is_averaged(cfg.teacher):
        return _with_members(cfg)
    if not is_recorded(cfg.teacher):
        return cfg
    own = cfg.copy()
    OmegaConf.set_readonly(own, False)
    teacher = build.container(cfg.teacher)
    if not _is_here(teacher, Path(cfg.paths.cache)):
        data, _ = build.inputs(cfg)
        places = _uri(cfg), str(cfg.tracking.experiment), str(cfg.paths.cache)
        data_keys = json.dumps(build.container(cfg.data), sort_keys=True)
        teacher = json.loads(_filled(json.dumps(teacher), *places, data_keys, data))
    own.teacher = OmegaConf.create(teacher)
    return own


def _with_members(cfg: DictConfig) -> DictConfig:
    """Returns `cfg` with each member of its teacher described in whole; ids of runs become names."""
    own = cfg.copy()
    OmegaConf.set_readonly(own, False)
    members = build.container(cfg.teacher)["members"]
    named = members if isinstance(members, dict) else {f"run_{name[:SHORT_ID]}": name for name in members}
    rule = "each member once"
    require(len(named) == len(members), rule, members, "teacher.members", "Weights can't be given yet.")
    common = {key: cfg.teacher[key] for key in ("uri", "precision", "batch_size", "compiled", "mode")}
    empty = dict.fromkeys(("run_name", "run_weights", "network", "head"))
    own.teacher.members = {
        name: {**common, **empty, "run": member} if isinstance(member, str) else member
        for name, member in named.items()
    }
    for name in named:
        with build.of_member(name):
            own.teacher.members[name] = filled(build.member(own, name)).teacher
    return own


def _uri(cfg: DictConfig) -> str:
    """Returns the URI of the store that has the teacher's run: the student's, unless `teacher.uri` names another."""
    root = Path(cfg.paths.root).absolute()
    if cfg.teacher.uri is None and cfg.tracking.offline:
        return offline_uri(root)
    uri = cfg.tracking.uri if cfg.teacher.uri is None else cfg.teacher.uri
    return str(attempt("teacher", lambda: store_uri(uri, root)))


def _path(cache: Path, run_id: str) -> Path:
    return cache / "teachers" / f"run-{run_id}.safetensors"


def _is_here(teacher: dict[str, Any], cache: Path) -> bool:
    """Returns whether a configuration is filled, and its weights are in their file."""
    if teacher["network"] is None or teacher["run_weights"] is None:
        return False
    path = _path(cache, teacher["run"])
    teacher["network"]["weights"] = str(path)
    return _has(path, teacher["run_weights"])


def _has(path: Path, weights_hash: str) -> bool:
    found = read_tensors(path)
    return found is not None and hash_tensors(found) == weights_hash


@functools.lru_cache(maxsize=4)
def _filled(teacher_key: str, uri: str, experiment: str, cache: str, data_keys: str, data: Dataset) -> str:
    """Returns the filled teacher as JSON; it is kept for the other jobs of a sweep."""
    teacher = json.loads(teacher_key)
    attempt("teacher", lambda: require_store(uri))
    store = Store(uri, experiment)
    run = _found(store, teacher["run"])
    saved = _saved(store, run)
    inputs = saved.record.get("inputs", {})
    _require_same_data(run, saved, json.loads(data_keys), data)
    weights = run.tags["kdsweep.weights"]
    expected = teacher["run_weights"]
    if expected not in (None, weights):
        raise RunError(
            f"the weights of the run {run.id} have the hash {weights[:12]}, and this configuration was recorded with "
            f"{expected[:12]}. Set teacher.run_weights=null to take them nevertheless."
        )
    path = _path(Path(cache), run.id)
    _fetch(store, run, path)
    model = dict(saved.config["model"])
    own: dict[str, object] = {"weights": str(path), "freeze": "backbone"}
    # What the student took from its own data has to be said, since the pictures here may be fewer.
    own |= {name: model.get(name) or inputs.get(name) for name in ("mean", "std")}
    own |= {"keep_head": True} if _is_own(model, run) else {"weights_by": "name", "head": "keep"}
    teacher |= {"network": {**model, **own}, "run": run.id, "run_name": run.name, "run_weights": weights}
    if teacher["precision"] is None:
        teacher["precision"] = saved.record.get("runtime", {}).get("precision", saved.config.get("precision"))
    return json.dumps(teacher)


def _found(store: Store, name: str) -> RunRecord:
    try:
        return store.find(name)
    except UserError as error:
        remedy = (
            "If it is in another store, name that: teacher.uri=sqlite:////path/to/mlflow.db, or a server's address."
        )
        raise UserError(f"{error.message} {remedy}", "teacher.run") from error


def _saved(store: Store, run: RunRecord) -> SavedConfig:
    """Returns the configuration of a run that has left a student.

    Raises:
        UserError: It has left none.
    """
    if run.arm not in STUDENTS:
        remedy = "Name one of its runs." if run.arm in ("study", "group") else "Name a student's run."
        raise UserError(f"the run {run.id} ({run.name}) is a {run.arm}, and no student. {remedy}", "teacher.run")
    text = store.text(run.id, "config.yaml")
    if text is None or "kdsweep.weights" not in run.tags:
        raise UserError(
            f"the run {run.id} ({run.name}) has left no trained network ({run.status.lower()}). Choose one that has "
            "finished.",
            "teacher.run",
        )
    saved = parse(text)
    if MASK in json.dumps(saved.config["model"]):
        raise UserError(
            f"a secret of the network of the run {run.id} wasn't recorded ({MASK}), and it can't be built without. "
            "Describe it by teacher=own, with its exported weights.",
            "teacher.run",
        )
    return saved


def _require_same_data(run: RunRecord, saved: SavedConfig, now: dict[str, Any], data: Dataset) -> None:
    """Refuses a student of other pictures: other classes, another size, or another cut into training and validation.

    A student that was trained on a larger or smaller share of the same training pictures may teach.
    """
    inputs = saved.record.get("inputs")
    if saved.record.get("data") == data.fingerprint:
        return
    name = network_name(run.params, "model")
    if inputs is None:
        raise UserError(
            f"the run {run.id} was trained on other pictures (their hash differs), and is too old to say on which. "
            "Choose a run on this data.",
            "teacher.run",
        )
    then, remedy = saved.config["data"], "Choose a run on this data."
    if list(inputs["classes"]) != list(data.classes):
        raise UserError(
            f"`teacher and student have the same classes` must hold, but {name} of the run {run.id} knows "
            f"{_named(inputs['classes'])} of {inputs['name']}, and {data.name} has {_named(data.classes)}. {remedy}",
            "teacher.run",
        )
    side = list(data.train.images.shape[1:3])
    rule = f"the pictures have the size {inputs['picture']} that the teacher's had"
    require(list(inputs["picture"]) == side, rule, side, "teacher.run", remedy)
    others = sorted(key for key in {*then, *now} if key not in OF_TRAINING and then.get(key) != now.get(key))
    if others or then.get("train_fraction") == now.get("train_fraction"):
        what = ", ".join(f"data.{key}={then.get(key)}" for key in others) or "pictures of another hash"
        here = ", ".join(f"{now.get(key)}" for key in others) or "these"
        raise UserError(
            f"`teacher and student have the same pictures` must hold, but the run {run.id} had {what}, and here it is "
            f"{here}: it may have learned the pictures that are kept for validation. {remedy}",
            "teacher.run",
        )


def _named(classes: Any) -> str:
    names = [str(name) for name in classes]
    shown = ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
    return f"{len(names)} classes ({shown})"


def _is_own(model: dict[str, Any], run: RunRecord) -> bool:
    """Returns whether a run's network is made by a function of the user's own.

    Raises:
        UserError: kdsweep can't give it weights, because the function has an argument of that name.
    """
    target = str(model["_target_"])
    if target.startswith("kdsweep."):
        return False
    function = build.function_of("teacher.network", target)
    if not is_own(function):
        return False
    for key in ("weights", "keep_head", "freeze"):
        if key in (parameters(function) or {}):
            raise UserError(
                f"{name_of(function)}, the network of the run {run.id}, has an argument {key} of its own, so it can't "
                "be given its weights by that key. Export the run, and load the file in your code (teacher=own).",
                "teacher.run",
            )
    return True


def _fetch(store: Store, run: RunRecord, path: Path) -> None:
    """Puts the weights of a run into a file, unless they are there.

    Raises:
        RunError: They are missing in MLflow, or damaged.
    """
    with locked(Path(f"{path}.lock")):
        if _has(path, run.tags["kdsweep.weights"]):
            return
        with tempfile.TemporaryDirectory() as folder:
            fetched = store.fetch(run.id, WEIGHTS, Path(folder))
            weights = None if fetched is None else read_tensors(fetched)
            if weights is None or hash_tensors(weights) != run.tags["kdsweep.weights"]:
                found = "missing" if fetched is None else "damaged"
                message = f"the weights of the run {run.id} ({WEIGHTS} in MLflow) are {found}. Make it again."
                raise RunError(message)
            write_tensors(path, weights)
