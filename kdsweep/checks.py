"""Refuses, before any work, a configuration whose values break a rule: one line with key, rule, value and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from kdsweep import training
from kdsweep.assembly import ARMS, GROUPS, OBJECTIVES, attempt, build, objectives
from kdsweep.errors import UserError, require
from kdsweep.hardware import resolve_device, resolve_precision, set_determinism, set_threads
from kdsweep.stores import store_uri

# Larger numbers are mistakes, and some wouldn't fit the arithmetic below.
MOST = {"epochs": 10**6, "batch_size": 10**7, "n_passes": 10**6}
LARGEST_SEED = 2**63 - 1
LONGEST_NAME = 250


def check(cfg: DictConfig) -> None:
    """Refuses values that break a rule: builds and tries every component that needs no data.

    Raises:
        UserError: Its key is the configuration's.
    """
    _check_groups(cfg)
    _check_numbers(cfg)
    _check_choices(cfg)
    _check_places(cfg)
    device = resolve_device(cfg.device)
    resolve_precision(cfg.precision, device)
    set_threads(cfg.threads)
    set_determinism(cfg.deterministic, device)
    _check_components(cfg)


def _check_groups(cfg: DictConfig) -> None:
    """Every group is a component, or rather a description of one."""
    for key in ("tracking", "paths"):
        require(OmegaConf.is_dict(cfg[key]), f"{key} is a group of keys", cfg[key], key, "Set its keys one by one.")
    for key in GROUPS:
        if key == "teacher":
            continue
        remedy = f"`kdsweep --help` lists its options ({key}=...)."
        require(
            OmegaConf.is_dict(cfg[key]) and "_target_" in cfg[key], f"{key} is chosen", _shown(cfg, key), key, remedy
        )
    for key in ("teacher", "teacher.network") if cfg.teacher is not None else ():
        value = OmegaConf.select(cfg, key)
        require(OmegaConf.is_dict(value), f"{key} is a group of keys", value, key, "Choose another: teacher=...")


def _shown(cfg: DictConfig, key: str) -> object:
    return OmegaConf.to_container(cfg[key]) if OmegaConf.is_config(cfg[key]) else cfg[key]


def _check_numbers(cfg: DictConfig) -> None:
    for key, most in MOST.items():
        require(type(cfg[key]) is int and cfg[key] >= 1, f"{key} >= 1", cfg[key], key, "It is a whole number.")
        require(cfg[key] <= most, f"{key} <= {most}", cfg[key], key)
    for key in ("seed", "init_seed", "order_seed", "view_seed"):
        require(type(cfg[key]) is int and cfg[key] >= 0, f"{key} >= 0", cfg[key], key, "It is a whole number.")
        require(cfg[key] <= LARGEST_SEED, f"{key} <= {LARGEST_SEED}", cfg[key], key)
    share = cfg.checkpoint_share
    in_range = type(share) in (int, float) and 0 <= share <= 1
    require(in_range, "0 <= checkpoint_share <= 1", share, "checkpoint_share", "It is a share of the run's time.")


def _check_choices(cfg: DictConfig) -> None:
    require(cfg.arm in ARMS, f"arm in {ARMS}", cfg.arm, "arm", "Choose an experiment, such as experiment=scratch.")
    choices = {
        "evaluate_test": cfg.evaluate_test,
        "deterministic": cfg.deterministic,
        "tracking.offline": cfg.tracking.offline,
    }
    for key, value in choices.items():
        require(type(value) is bool, f"{key} is true or false", value, key)
    require(cfg.resume == "auto" or type(cfg.resume) is bool, "resume in (auto, true, false)", cfg.resume, "resume")
    names = objectives(cfg)
    require(len(names) >= 1, "at least one objective", cfg.objective, "objective")
    for name in names:
        require(
            name in OBJECTIVES, f"objective in {OBJECTIVES}", name, "objective", "The test split is not selected on."
        )
    require(len(set(names)) == len(names), "each objective once", names, "objective")


def _check_places(cfg: DictConfig) -> None:
    """Folders, names and numbers that say where a run belongs."""
    for key in cfg.paths:
        value = cfg.paths[key]
        require(isinstance(value, str) and value != "", f"{key} is a folder", value, f"paths.{key}")
    uri, experiment, trial = cfg.tracking.uri, cfg.tracking.experiment, cfg.tracking.trial
    require(uri is None or isinstance(uri, str), "uri is null or a URI", uri, "tracking.uri")
    named = isinstance(experiment, str) and experiment.strip() != "" and len(experiment) <= LONGEST_NAME
    rule = f"experiment is a name of 1 to {LONGEST_NAME} characters"
    require(named, rule, experiment, "tracking.experiment")
    require(
        trial is None or type(trial) is int, "trial is null or a number", trial, "tracking.trial", "A study sets it."
    )
    attempt("tracking", lambda: store_uri(uri, Path(cfg.paths.root)))


def _check_components(cfg: DictConfig) -> None:
    build(cfg, "model")
    if cfg.teacher is not None:
        build(cfg, "teacher.network")
        _check_head(cfg)
    elif cfg.arm == "teacher":
        raise UserError("there is no teacher to train. Choose one, such as teacher=resnet50_imagenet.", "teacher")
    loss = build(cfg, "loss")
    answers = None if cfg.teacher is None else torch.zeros(2, 3)
    attempt("loss", lambda: loss(torch.zeros(2, 3), answers, torch.tensor([0, 1])))
    optimizer, schedule = build(cfg, "optimizer"), build(cfg, "schedule")
    stepper = attempt("optimizer", lambda: optimizer([torch.nn.Parameter(torch.zeros(1))]))
    attempt("schedule", lambda: schedule(stepper, 10))


def _check_head(cfg: DictConfig) -> None:
    """How the teacher's head is trained; a network without a trained head needs that."""
    head = build(cfg, "teacher.head")
    if head is None:
        remedy = "Only a network that brings its own (teacher.network.head=keep) does without."
        kept = cfg.teacher.network.head == "keep"
        require(kept, "the teacher's head is trained somewhere", None, "teacher.head", remedy)
    elif isinstance(head, partial) and head.func is training.fit_head:
        attempt("teacher.head", lambda: training.require_head_settings(**_settings(head.keywords)))


def _settings(keywords: Mapping[str, object]) -> dict[str, object]:
    return {name: keywords.get(name) for name in ("weight_decays", "max_iterations")}
