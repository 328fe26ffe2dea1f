"""Refuses a configuration whose values break a rule, before any work: one line with key, rule, value and remedy."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kdsweep import own_training, training
from kdsweep.averaged_teachers import require_average
from kdsweep.config.build import (
    Components,
    architecture,
    component,
    components,
    key_of,
    member,
    of_member,
    unlabelled_of,
)
from kdsweep.config.recorded_teachers import filled
from kdsweep.config.rules import attempt, check_values, is_averaged, is_trained, require_training
from kdsweep.config.trained_teachers import training_components
from kdsweep.data import NONE
from kdsweep.losses import example_for, hears_teacher
from kdsweep.numerics import compiling
from kdsweep.numerics.hardware import (
    TEACHER_PRECISIONS,
    resolve_device,
    resolve_precision,
    set_determinism,
    set_threads,
)
from kdsweep.system.errors import UserError, require
from kdsweep.views import Mixing

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from omegaconf import DictConfig


def check(cfg: DictConfig) -> None:
    """Refuses values that break a rule, by `rules.check_values` and `check_components`.

    Raises:
        UserError: Its key is the configuration's.
    """
    check_values(cfg)
    check_components(filled(cfg))


def check_components(cfg: DictConfig) -> Components:
    """Builds and tries each component that needs no data, and sets the threads and determinism that `cfg` asks for.

    Returns:
        What a student is trained with, so that nothing is built twice.

    Raises:
        UserError: A component says that a value is wrong; the error's key is the configuration's.
    """
    device = resolve_device(cfg.device)
    resolve_precision(cfg.precision, device)
    set_threads(cfg.threads)
    set_determinism(cfg.deterministic, device)
    if device.type == "cuda":
        compiling.share_cache(Path(cfg.paths.cache) / "compiled")
    if cfg.compiled is True:
        reason = compiling.fault(device.type)
        if reason is not None:
            rule = "torch.compile works on this machine"
            raise UserError(f"`{rule}` must hold, but {reason}. Set compiled=false.", "compiled")
    if cfg.teacher is None and cfg.arm == "teacher":
        raise UserError("there is no teacher to train. Choose one, such as teacher=resnet50_imagenet.", "teacher")
    built = components(cfg)
    _try(built, with_teacher=cfg.teacher is not None)
    _check_labels(cfg, built)
    architecture("model", key_of(cfg.model))
    if is_averaged(cfg.teacher):
        attempt("teacher", lambda: require_average(cfg.teacher.average))
        for name in cfg.teacher.members:
            with of_member(name):
                _check_teacher(member(cfg, name), device)
    elif cfg.teacher is not None:
        _check_teacher(cfg, device)
    return built


def _check_teacher(cfg: DictConfig, device: torch.device) -> None:
    """Refuses a wrong network, precision or head of a teacher that is one network."""
    attempt("teacher", lambda: resolve_precision(cfg.teacher.precision, device, TEACHER_PRECISIONS))
    architecture("teacher.network", key_of(cfg.teacher.network))
    if is_trained(cfg.teacher):
        require_training(cfg.teacher)  # of a member, which the check of values doesn't know
        training_components(cfg)
    else:
        _check_head(cfg)


def _try(built: Components, *, with_teacher: bool) -> None:
    """Calls each component once, on the smallest input."""
    example = example_for(built.loss, own_training.TRIED, with_teacher)
    attempt("loss", lambda: own_training.try_loss(partial(built.loss, **example), with_teacher=with_teacher))
    optimizer = attempt("optimizer", lambda: own_training.try_optimizer(built.optimizer))
    attempt("schedule", lambda: own_training.try_schedule(built.schedule, optimizer))


def _check_labels(cfg: DictConfig, built: Components) -> None:
    """Refuses a loss that can't use the labels that its pictures have: mixed ones, or none for some pictures."""
    taught = cfg.teacher is not None and hears_teacher(built.loss)
    without = taught and unlabelled_of(cfg) != NONE
    mixed = cfg.augment is not None and isinstance(component(cfg, "augment"), Mixing)
    loss = partial(built.loss, **example_for(built.loss, 2, cfg.teacher is not None))
    for there, key, try_it in (
        (without, "data.unlabelled", own_training.try_without_label),
        (mixed, "augment", own_training.try_mixed_labels),
    ):
        if there:
            attempt("loss", partial(try_it, loss, key, with_teacher=cfg.teacher is not None))


def _check_head(cfg: DictConfig) -> None:
    """Refuses wrong settings for the training of the teacher's head, and their absence where it has to be trained."""
    head = component(cfg, "teacher.head")
    if head is None:
        remedy = "Only a network that brings its own (teacher.network.head=keep) does without."
        # Somebody's own class knows what its `build` makes.
        kept = getattr(architecture("teacher.network", key_of(cfg.teacher.network)), "brings_head", True)
        require(kept, "the teacher's head is trained somewhere", None, "teacher.head", remedy)
    elif isinstance(head, partial) and head.func is training.fit_head:
        attempt("teacher.head", lambda: training.require_head_settings(**_settings(head.keywords)))


def _settings(keywords: Mapping[str, object]) -> dict[str, object]:
    return {name: keywords.get(name) for name in ("weight_decays", "max_iterations")}
