"""Refuses, before any work, a configuration whose values break a rule: one line with key, rule, value and remedy."""

from __future__ import annotations

import functools
from functools import partial
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig, OmegaConf

from kdsweep import training
from kdsweep.config.build import component, key_of, of_key
from kdsweep.config.rules import attempt, check_values
from kdsweep.numerics.hardware import resolve_device, resolve_precision, set_determinism, set_threads
from kdsweep.system.errors import UserError, require

if TYPE_CHECKING:
    from collections.abc import Mapping


def check(cfg: DictConfig) -> None:
    """Refuses values that break a rule: `rules.check_values` and `check_components`.

    Raises:
        UserError: Its key is the configuration's.
    """
    check_values(cfg)
    check_components(cfg)


def check_components(cfg: DictConfig) -> None:
    """Refuses what the components say is wrong: builds and tries each one that needs no data.

    Raises:
        UserError: Its key is the configuration's.
    """
    device = resolve_device(cfg.device)
    resolve_precision(cfg.precision, device)
    set_threads(cfg.threads)
    set_determinism(cfg.deterministic, device)
    _check_components(cfg)


def _check_components(cfg: DictConfig) -> None:
    if cfg.teacher is None and cfg.arm == "teacher":
        raise UserError("there is no teacher to train. Choose one, such as teacher=resnet50_imagenet.", "teacher")
    # From the quick to the slow: a network is made before it is refused.
    loss = component(cfg, "loss")
    answers = None if cfg.teacher is None else torch.zeros(2, 3)
    attempt("loss", lambda: loss(torch.zeros(2, 3), answers, torch.tensor([0, 1])))
    optimizer, schedule = component(cfg, "optimizer"), component(cfg, "schedule")
    stepper = attempt("optimizer", lambda: optimizer([torch.nn.Parameter(torch.zeros(1))]))
    attempt("schedule", lambda: schedule(stepper, 10))
    _check_network("model", key_of(cfg.model))
    if cfg.teacher is not None:
        attempt("teacher", lambda: resolve_precision(cfg.teacher.precision, resolve_device(cfg.device)))
        _check_network("teacher.network", key_of(cfg.teacher.network))
        _check_head(cfg)


@functools.lru_cache(maxsize=8)
def _check_network(group: str, key: str) -> None:
    """Refuses an architecture; for each once, since that makes it, and a sweep's jobs have the same."""
    alone = OmegaConf.create()
    OmegaConf.update(alone, group, of_key(key))
    component(alone, group)


def _check_head(cfg: DictConfig) -> None:
    """How the teacher's head is trained; a network without a trained head needs that."""
    head = component(cfg, "teacher.head")
    if head is None:
        remedy = "Only a network that brings its own (teacher.network.head=keep) does without."
        kept = cfg.teacher.network.head == "keep"
        require(kept, "the teacher's head is trained somewhere", None, "teacher.head", remedy)
    elif isinstance(head, partial) and head.func is training.fit_head:
        attempt("teacher.head", lambda: training.require_head_settings(**_settings(head.keywords)))


def _settings(keywords: Mapping[str, object]) -> dict[str, object]:
    return {name: keywords.get(name) for name in ("weight_decays", "max_iterations")}
