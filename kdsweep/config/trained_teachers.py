"""Teachers that are trained as a whole (`teacher.train`: all or scratch), on the path of a student."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf

from kdsweep.config import build
from kdsweep.config.rules import is_trained
from kdsweep.numerics.hardware import resolve_device
from kdsweep.system.errors import UserError
from kdsweep.system.files import hash_identity, hash_text
from kdsweep.system.tensor_files import hash_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kdsweep.config.build import Components

# The keys of a student's training that a teacher's training has as well, by the same names.
SHARED = ("epochs", "batch_size", "precision", "memory_format", "compiled", "optimizer", "schedule", "augment")

# The loss that trains a teacher.
LOSS = {"_target_": "kdsweep.losses.ce", "_partial_": True}


def training_config(cfg: DictConfig) -> DictConfig:
    """Returns the configuration of a student that is trained as the teacher of `cfg` is to be.

    Its network is the teacher's, with everything free; it has no teacher itself, and learns the labels.
    """
    # Hydra's own part, which a study's configuration has, can't be resolved outside of a job.
    own = build.container(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]))
    teacher, epochs, n_passes = own["teacher"], cfg.teacher.training.epochs, cfg.teacher.training.n_passes
    own |= dict.fromkeys(("seed", "init_seed", "order_seed"), cfg.teacher.training.seed)
    own |= {"epochs": epochs, "n_passes": epochs if n_passes is None else n_passes}
    own |= {
        "batch_size": cfg.teacher.training.batch_size,
        "precision": cfg.teacher.training.precision,
        "memory_format": cfg.teacher.training.memory_format,
        "compiled": cfg.teacher.training.compiled,
        "augment": None if cfg.teacher.training.augment is None else teacher["training"]["augment"],
    }
    own |= {group: teacher["training"][group] for group in ("optimizer", "schedule")}
    own |= {"model": {**teacher["network"], "freeze": "none"}}
    made: DictConfig = OmegaConf.create({**own, "loss": LOSS, "teacher": None, "arm": "scratch"})
    # It serves all studies, so it doesn't count whether a study has it trained.
    made.compiled = build.compiled(made, in_study=False)
    return made


def shown(cfg: DictConfig, trained: DictConfig) -> DictConfig:
    """Returns the teacher's configuration `cfg` with what is in force in its training, which has the one `trained`."""
    own = cfg.copy()
    OmegaConf.set_readonly(own, False)
    for key in ("precision", "memory_format", "compiled"):
        own.teacher.training[key] = trained[key]
    return own


def training_components(cfg: DictConfig) -> Components:
    """Builds what the teacher of `cfg` is trained with; errors name the teacher's keys."""
    try:
        return build.components(training_config(cfg))
    except UserError as error:
        raise _renamed(error) from error


def rehearse(cfg: DictConfig) -> None:
    """Tries a step of each trained teacher of `cfg`, alone or a member of an average, as of a student."""
    for one in _trained(cfg):
        data, _ = build.inputs(one)
        own = training_config(one)
        try:
            built, precision = build.student(own, data)
            build.rehearse_training(own, data, built, precision)
        except UserError as error:
            raise _renamed(error) from error


def epochs_to_come(cfg: DictConfig) -> int:
    """Returns how many epochs the teachers of `cfg` have still to be trained for before the first student."""
    return sum(one.teacher.training.epochs for one in _trained(cfg) if not weights_path(one).exists())


def _trained(cfg: DictConfig) -> Iterator[DictConfig]:
    for one in build.each_teacher(cfg):
        if is_trained(one.teacher):
            yield one


def _renamed(error: UserError) -> UserError:
    """Returns an error about a student's key as one about the key of the teacher's training."""
    group = str(error.key).partition(".")[0]
    if group == "model":
        return UserError(error.message, str(error.key).replace("model", "teacher.network", 1))
    return UserError(error.message, f"teacher.training.{error.key}" if group in SHARED else error.key)


def weights_path(cfg: DictConfig) -> Path:
    """Returns the path of the weights of a trained teacher."""
    return Path(cfg.paths.cache) / "teachers" / f"trained-{training_id(cfg)}.safetensors"


def training_id(cfg: DictConfig) -> str:
    """Returns 16 hex digits that stand for everything that the weights of a trained teacher depend on."""
    own = training_config(cfg)
    where = {key: own[key] for key in ("data", "model", "augment", "optimizer", "schedule")}
    plain = {key: own[key] for key in ("epochs", "batch_size", "n_passes", "seed", "view_seed", "device", "threads")}
    plain |= {key: own[key] for key in ("precision", "memory_format", "compiled")}
    # The folder of decoded pictures changes nothing of what the training makes.
    plain |= {"deterministic": own.deterministic, "paths": {"cache": own.paths.cache}}
    key = build.key_of(OmegaConf.create({**where, **plain}))
    return _training_id(key)


@functools.lru_cache(maxsize=8)
def _training_id(key: str) -> str:
    own = build.of_key(key)
    own.init_seed = own.order_seed = own.seed
    own.teacher = None
    data, _ = build.inputs(own)
    network, precision = build.student(own, data)
    device = resolve_device(own.device)
    training = build.container(own)
    made_of: dict[str, Any] = {
        **{name: training[name] for name in ("epochs", "batch_size", "n_passes", "seed", "optimizer", "schedule")},
        **{"augment": training["augment"], "view_seed": own.view_seed, "padding": data.padding, "flip": data.flip},
        "data": data.labelled_fingerprint,  # it learns from labels alone
        "initial": hash_tensors(network.net.state_dict()),
        "architecture": hash_text(str(network.net)),
        "preprocessing": [network.input_size, network.mean.tolist(), network.std.tolist()],
        "arithmetic": [precision, network.format, own.compiled, bool(own.deterministic)],
        "backend": f"torch {torch.__version__} {device.type}",
    }
    if code := build.sources(*(own[name] for name in ("model", "augment", "optimizer", "schedule"))):
        made_of["sources"] = code
    return hash_identity(made_of)
