"""From a configuration to built objects: checks its values, builds its components, data, networks and teacher.

Hydra and OmegaConf end here and in the entry points; everything below takes plain arguments.
"""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from kdsweep import environment
from kdsweep.autotune import WORTH_STEPS, Arithmetic, fastest, training_step
from kdsweep.data import Dataset
from kdsweep.errors import UserError, require_kinds
from kdsweep.files import hash_identity
from kdsweep.hardware import resolve_device, resolve_precision
from kdsweep.models import FORMATS, Classifier
from kdsweep.rules import attempt
from kdsweep.teachers import Teacher
from kdsweep.views import Views

# Code runs from here alone: a configuration can't name any other function, of kdsweep neither.
COMPONENTS = (
    *("kdsweep.data.*", "kdsweep.models.Architecture", "kdsweep.training.fit_head"),
    *("kdsweep.losses.*", "kdsweep.schedules.*", "torch.optim.*"),
)

# Pictures in a forward pass without gradients.
EVALUATION_BATCH = 256

# Keys that have no part in the making of a teacher.
STUDENT_KEYS = (
    *("model", "loss", "optimizer", "schedule", "epochs", "n_passes", "seed", "init_seed", "order_seed"),
    *("precision", "memory_format"),
)

# Keys without a part in what a run computes; where its files are is of no account either.
UNESSENTIAL_KEYS = ("resume", "checkpoint_share", "paths")


def direction(objective: str) -> str:
    """Which way a metric is better: "maximize" or "minimize"."""
    return "minimize" if objective.endswith(("nll", "ece", "kl")) else "maximize"


def build(cfg: DictConfig, group: str) -> Any:
    """The component that a configuration group describes; a function that waits for arguments where it is partial."""
    trusted = (*COMPONENTS, *os.environ.get("KDSWEEP_TRUST", "").split())
    built = attempt(group, lambda: instantiate(_alone(cfg, group), _execution_whitelist_=trusted, _convert_="all"))
    if isinstance(built, functools.partial):
        attempt(group, lambda: require_kinds(built.func, built.keywords))
    # Hydra's own partial checks its arguments anew at every call, and so at every step.
    return functools.partial(built.func, **built.keywords) if isinstance(built, functools.partial) else built


def _alone(cfg: DictConfig, group: str) -> Any:
    """A group without the rest of the configuration, of which Hydra would make a copy for each component."""
    node = OmegaConf.select(cfg, group)
    return OmegaConf.create(OmegaConf.to_container(node, resolve=True)) if OmegaConf.is_dict(node) else node


def rehearse(cfg: DictConfig) -> None:
    """Builds all that a run builds before it trains, so that what is wrong with data, weights or teacher shows now."""
    data, _ = inputs(key_of(cfg.data), cfg.view_seed, cfg.device)
    student(cfg, data)
    if cfg.teacher is not None:
        untrained_teacher(cfg)


def container(cfg: DictConfig) -> dict[str, Any]:
    """A configuration as plain dictionaries, with its interpolations resolved."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def key_of(cfg: DictConfig) -> str:
    """A configuration as text, by which what was built from it is found again in the same process."""
    return json.dumps(container(cfg), sort_keys=True)


def of_key(key: str) -> DictConfig:
    """The configuration that `key_of` made a text of."""
    return OmegaConf.create(json.loads(key))


@functools.lru_cache(maxsize=1)
def inputs(data_key: str, view_seed: int, device: str) -> tuple[Dataset, Views]:
    """The data set and the views of its training pictures; kept for the next job of a sweep.

    Args:
        data_key: `key_of` the group `data`.
    """
    data: Dataset = build(OmegaConf.create({"data": of_key(data_key)}), "data")
    return data, Views(data.train.images.to(resolve_device(device)), data.padding, data.flip, view_seed)


def hardware(cfg: DictConfig) -> tuple[torch.device, str]:
    """The device and the precision (bf16 or fp32) in force: the student's, or of a teacher's run the teacher's."""
    device = resolve_device(cfg.device)
    return device, resolve_precision(cfg.teacher.precision if cfg.arm == "teacher" else cfg.precision, device)


def network(cfg: DictConfig, group: str, data: Dataset, seed: int) -> Classifier:
    """The network that a group describes, on its device; what is random in its weights is drawn from `seed`."""
    torch.manual_seed(seed)
    built: Classifier = attempt(group, lambda: build(cfg, group).build(data.n_classes, data.mean, data.std))
    attempt(group, lambda: built.check_size(*data.train.images.shape[1:3]))
    return built.to(resolve_device(cfg.device))


def student(cfg: DictConfig, data: Dataset) -> Classifier:
    """The network to train, as `network`, with the random numbers left as they were.

    Raises:
        UserError: It would be trained wrongly.
    """
    arithmetic = arithmetics(cfg, data)[0]
    kept = _first_student(cfg, data)
    if resolve_device(cfg.device).type == "cpu" and arithmetic.precision == "bf16" and kept.bf16_is_wrong:
        height, width = data.train.images.shape[1:3]
        raise UserError(
            f"pictures of {height} x {width} leave this network a map of 1 x 1 before its last stride, of which a CPU "
            "gets wrong gradients in bf16. Set precision=fp32, a larger model.input_size, or model.stem=cifar.",
            "precision",
        )
    return copy.deepcopy(kept.network).in_format(arithmetic.memory_format)


@dataclass(frozen=True)
class _FirstStudent:
    """A student as it comes from its seed, which is copied for each run that trains it.

    Attributes:
        bf16_is_wrong: Whether bf16 on a CPU trains it wrongly. torch 2.15: where a strided convolution meets a map of
            1 x 1, the gradient in the taps that see only padding is what happened to lie in memory.
    """

    network: Classifier
    bf16_is_wrong: bool


# The trials of a search start from one seed. A student takes a fifth of a second to make, and a tenth of that to copy.
_kept: dict[str, _FirstStudent] = {}


def _first_student(cfg: DictConfig, data: Dataset) -> _FirstStudent:
    made_of = json.dumps([container(cfg.model), cfg.init_seed, cfg.device, data.fingerprint, data.mean, data.std])
    if made_of not in _kept:
        _kept.clear()
        with _same_random_numbers(resolve_device(cfg.device)):
            made = network(cfg, "model", data, cfg.init_seed)
        _kept[made_of] = _FirstStudent(made, made.strides_over_one_pixel(*data.train.images.shape[1:3]))
    return _kept[made_of]


def _same_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def arithmetics(cfg: DictConfig, data: Dataset) -> list[Arithmetic]:
    """What the training of a student may compute in; first what the hardware suggests, or the only one that is left.

    bf16 is in question where the hardware has it, since emulated it is several times slower than fp32, and where it
    trains the network rightly.
    """
    precisions, formats = [str(cfg.precision)], [str(cfg.memory_format)]
    if cfg.precision == "auto":
        device = resolve_device(cfg.device)
        suggested = resolve_precision("auto", device)
        wrong = suggested == "bf16" and device.type == "cpu" and _first_student(cfg, data).bf16_is_wrong
        precisions = ["fp32"] if suggested == "fp32" or wrong else ["bf16", "fp32"]
    if cfg.memory_format == "auto":
        formats = [*FORMATS]
    return [Arithmetic(precision, name) for precision in precisions for name in formats]


def autotuned(cfg: DictConfig) -> DictConfig:
    """`cfg` with the precisions and the memory format in force, where it says auto.

    A teacher's precision is what the hardware suggests, since its passes serve all students. A student's, and its
    memory format, are measured where its training is long, and not compiled; others have what the hardware suggests.
    """
    own = cfg.copy()
    OmegaConf.set_readonly(own, False)
    if own.teacher is not None:
        own.teacher.precision = resolve_precision(cfg.teacher.precision, resolve_device(cfg.device))
    if cfg.arm != "teacher":
        data, _ = inputs(key_of(cfg.data), cfg.view_seed, cfg.device)
        candidates = arithmetics(cfg, data)
        steps = cfg.epochs * (len(data.train) // min(cfg.batch_size, len(data.train)))
        measured = len(candidates) > 1 and steps >= WORTH_STEPS and not cfg.compiled
        chosen = _fastest(cfg, data, candidates) if measured else candidates[0]
        own.precision, own.memory_format = chosen.precision, chosen.memory_format
    return own


def _fastest(cfg: DictConfig, data: Dataset, candidates: Sequence[Arithmetic]) -> Arithmetic:
    device = resolve_device(cfg.device)
    pictures, labels = (rows[: cfg.batch_size].to(device) for rows in (data.train.images, data.train.labels))
    here = environment.describe()
    names = ("cpu", "cpu_features", "gpu", "threads", "packages", "libraries", "variables")
    identity = {
        **{name: here[name] for name in names},
        **{"device": str(device), "deterministic": cfg.deterministic, "model": container(cfg.model)},
        **{"pictures": [*pictures.shape], "classes": data.n_classes},
    }
    steps = functools.partial(training_step, _first_student(cfg, data).network, pictures, labels)
    with _same_random_numbers(device):
        return fastest(candidates, identity, Path(cfg.paths.cache) / "autotune", steps)


def teacher_config(cfg: DictConfig) -> DictConfig:
    """The run that makes the teacher of `cfg`: what only its students need is left out."""
    return OmegaConf.create(_teachers(cfg))


def teacher_key(cfg: DictConfig) -> str:
    """`key_of` the `teacher_config` as part of no study: a teacher that a student has to make serves all later ones."""
    own = _teachers(cfg)
    own["tracking"] |= dict.fromkeys(("parent", "study", "job", "trial", "reproduces")) | {"stage": "single"}
    own["evaluate_test"] = True
    return json.dumps(own, sort_keys=True)


def _teachers(cfg: DictConfig) -> dict[str, Any]:
    return {**container(cfg), **dict.fromkeys(STUDENT_KEYS), "arm": "teacher"}


def untrained_teacher(cfg: DictConfig) -> Teacher:
    """The teacher of `cfg` with its head as it came: new, unless its weights bring a trained one."""
    data, views = inputs(key_of(cfg.data), cfg.view_seed, cfg.device)
    net = network(cfg, "teacher.network", data, cfg.view_seed)
    tables = Path(cfg.paths.cache) / "tables"
    precision = resolve_precision(cfg.teacher.precision, views.device)
    settings = cfg.teacher.mode, cfg.teacher.batch_size, precision, cfg.teacher.compiled
    teacher: Teacher = attempt("teacher", lambda: Teacher(net, data, views, tables, *settings))
    return teacher


def teacher_id(cfg: DictConfig, teacher: Teacher) -> str:
    """16 hex digits that stand for everything that made a trained teacher."""
    head = None if cfg.teacher.head is None else container(cfg.teacher.head)
    return hash_identity({"features": teacher.features_key, "head": head})


def run_key(cfg: DictConfig, data: Dataset, teacher: Teacher | None) -> str:
    """16 hex digits that stand for all that the numbers of a run depend on: only the very same run goes on from it."""
    own = {key: value for key, value in container(cfg).items() if key not in UNESSENTIAL_KEYS}
    surroundings = environment.describe()
    device, precision = hardware(cfg)
    where = {key: surroundings[key] for key in ("git_commit", "cpu", "gpu", "threads", "packages")}
    made_of = {"data": data.fingerprint, "teacher": None if teacher is None else teacher_id(cfg, teacher)}
    return hash_identity({"config": own, "device": str(device), "precision": precision, **where, **made_of})


def head_path(cfg: DictConfig, teacher: Teacher) -> Path:
    """Where the trained head of a teacher is kept."""
    return Path(cfg.paths.cache) / "teachers" / f"{teacher_id(cfg, teacher)}.safetensors"
