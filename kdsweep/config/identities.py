"""What identifies a trained teacher and a run: hashes of everything that their numbers depend on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsweep.averaged_teachers import AveragedTeacher
from kdsweep.config import build
from kdsweep.config.keys import flatten, identifies
from kdsweep.config.rules import is_recorded, is_trained
from kdsweep.config.trained_teachers import training_id
from kdsweep.numerics.hardware import resolve_device
from kdsweep.system import environment
from kdsweep.system.files import hash_identity

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from kdsweep.data import Dataset
    from kdsweep.teachers import Teacher


def teacher_id(cfg: DictConfig, teacher: Teacher | AveragedTeacher) -> str:
    """Returns 16 hex digits that identify a trained teacher: a hash of everything that made it."""
    if isinstance(teacher, AveragedTeacher):
        ids = [teacher_id(one, built) for one, built in zip(build.members(cfg), teacher.members, strict=True)]
        return hash_identity({"average": cfg.teacher.average, "members": ids})
    if is_trained(cfg.teacher):
        return trained_id(cfg)
    head = None if cfg.teacher.head is None else build.container(cfg.teacher.head)
    own = {"sources": code} if (code := build.sources(head)) else {}
    # A recorded student brings its head, of which the features don't tell.
    own |= {"run_weights": cfg.teacher.run_weights} if is_recorded(cfg.teacher) else {}
    return hash_identity({"features": teacher.features_key, "head": head, **own})


def trained_id(cfg: DictConfig) -> str:
    """Returns the id of a teacher that is trained as a whole, which is known before it is trained."""
    precision = build.teacher_precision(cfg, resolve_device(cfg.device))
    return hash_identity({"training": training_id(cfg), "precision": precision})


def run_key(cfg: DictConfig, data: Dataset, teacher: Teacher | AveragedTeacher | None) -> str:
    """Returns 16 hex digits that identify a run: a hash of everything that its numbers depend on.

    An interrupted run can be continued only by a run with the same key.
    """
    own = {key: value for key, value in flatten(build.container(cfg)).items() if identifies(key)}
    surroundings = environment.describe()
    device, precision = build.hardware(cfg)
    where = {key: surroundings[key] for key in ("git_commit", "cpu", "gpu", "threads", "packages")}
    made_of: dict[str, Any] = {
        "data": data.fingerprint,
        "teacher": None if teacher is None else teacher_id(cfg, teacher),
    }
    # Runs without the user's own code keep the identity that they had before its source was part of it.
    if code := build.sources(cfg):
        made_of["sources"] = code
    return hash_identity({"config": own, "device": str(device), "precision": precision, **where, **made_of})


def head_path(cfg: DictConfig, teacher: Teacher) -> Path:
    """Returns the path of a teacher's trained head."""
    return Path(cfg.paths.cache) / "teachers" / f"{teacher_id(cfg, teacher)}.safetensors"
