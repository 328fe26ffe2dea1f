"""Rules for a configuration's values that can be checked without torch, whose import takes seconds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from kdsweep import loss_rules
from kdsweep.analysis.metrics import OBJECTIVES, row
from kdsweep.config.keys import GROUPS
from kdsweep.system import user_code
from kdsweep.system.errors import UserError, require
from kdsweep.system.files import NOT_ALLOWED, require_writable
from kdsweep.tracking.location import UNSENT, store_uri
from kdsweep.tracking.run_records import ARMS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kdsweep.analysis.metrics import Need

# Memory layouts of a student's weights and pictures.
MEMORY_FORMATS = ("auto", "channels_last", "contiguous")

# Hydra's remedy for a component from a package that isn't trusted, and ours in its place.
HYDRAS_REMEDY = "Pass _execution_whitelist_ from trusted code to allow expected targets."
OUR_REMEDY = "If it is yours, name its package in the environment: KDSWEEP_TRUST='package.*'."

MEMBERS = "teacher.members"

# How much of a teacher is trained.
TRAINED = ("head", "all", "scratch")

# Larger numbers are mistakes, and some would overflow later arithmetic.
MOST = {"epochs": 10**6, "batch_size": 10**7, "n_passes": 10**6}
# The stages whose runs return the objective to somebody who ranks them: single runs and plain grids, and trials.
RANKED_STAGES = ("single", "pilot", "search")
LARGEST_SEED = 2**63 - 1
LONGEST_NAME = 250


def check_values(cfg: DictConfig) -> None:
    """Refuses a configuration that lacks a component, or in which the value of a top-level key breaks a rule.

    Raises:
        UserError: Its key is the configuration's.
    """
    _check_groups(cfg)
    _check_numbers(cfg)
    _check_choices(cfg)
    _check_objectives(cfg)
    _check_loss(cfg)
    _check_places(cfg)


def require_places(cfg: DictConfig, *more: Path) -> None:
    """Refuses folders that a run couldn't write into, before any work: the cache, and where unsent results are kept.

    Args:
        cfg: The configuration.
        *more: Folders below `paths.root` that are written too.

    Raises:
        UserError: A folder can't be written; the error's key is the configuration's.
        OSError: A disk is full, or a file stands where a folder belongs.
    """
    places = [("paths.cache", Path(cfg.paths.cache)), ("paths.root", Path(cfg.paths.root) / UNSENT)]
    for key, folder in (*places, *(("paths.root", path) for path in more)):
        try:
            require_writable(folder)
        except OSError as error:
            if error.errno not in NOT_ALLOWED:
                raise
            raise UserError(
                f"`files can be written below {folder}` must hold, but got: {error.strerror}. Set its permissions, or "
                f"name another folder ({key}).",
                key,
            ) from error


def settled(cfg: DictConfig) -> DictConfig:
    """Returns `cfg` with what follows from its other keys.

    The teacher is null where none is chosen but details of one are set: a study's baselines choose teacher=none, while
    its sweep or experiment file may say teacher.network.input_size. The arm follows from loss and teacher where it
    isn't given.
    """
    network = OmegaConf.select(cfg, "teacher.network") if OmegaConf.is_dict(cfg.teacher) else None
    whole = network is not None and (not OmegaConf.is_dict(network) or "_target_" in network.keys())  # noqa: SIM118
    whole = whole or is_recorded(cfg.teacher) or is_averaged(cfg.teacher)
    details = OmegaConf.is_dict(cfg.teacher) and not whole
    if not details and cfg.arm is not None:
        return cfg
    own = cfg.copy()
    OmegaConf.set_readonly(own, False)
    if details:
        own.teacher = None
    if own.arm is None:
        own.arm = _arm(own)
    return own


def _arm(cfg: DictConfig) -> str:
    """Returns the arm of a student by how it is taught; a trial of a study is distilled, whatever its options are."""
    if OmegaConf.select(cfg, "tracking.trial") is not None:
        return "distill"
    taught = {"kdsweep.losses.ce": "scratch", "kdsweep.losses.label_smoothing": "label_smoothing"}
    return taught.get(str(OmegaConf.select(cfg, "loss._target_")), "scratch" if cfg.teacher is None else "distill")


def is_recorded(teacher: Any) -> bool:
    """Returns whether a configuration's teacher is the student of a recorded run (teacher=run)."""
    return OmegaConf.is_dict(teacher) and "run" in teacher and "mode" in teacher


def is_averaged(teacher: Any) -> bool:
    """Returns whether a configuration's teacher is the average of several (teacher=members)."""
    return OmegaConf.is_dict(teacher) and "members" in teacher and "mode" in teacher


def is_trained(teacher: Any) -> bool:
    """Returns whether a configuration's teacher is trained as a whole; those of older versions were not."""
    return OmegaConf.is_dict(teacher) and "train" in teacher and teacher.train not in (None, "head")


def is_shuffled(teacher: DictConfig | None) -> bool:
    """Returns whether a configuration's teacher answers for the wrong pictures; those of older versions never did."""
    return teacher is not None and "shuffled" in teacher and bool(teacher.shuffled)


def objectives(cfg: DictConfig) -> list[str]:
    """Returns the names of the metrics that a run returns to a sweep."""
    return [str(name) for name in cfg.objective] if OmegaConf.is_list(cfg.objective) else [str(cfg.objective)]


def attempt(group: str, action: Callable[[], Any]) -> Any:
    """Returns what `action` returns; if it refuses an argument, raises a `UserError` that names the group."""
    try:
        return action()
    except UserError as error:
        raise error.within(group) from error
    except Exception as error:
        cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ is not None else error
        if isinstance(cause, UserError):
            raise cause.within(group) from error
        own = user_code.as_user_error(error)
        if own is not None:
            raise own.within(group) from error
        if not isinstance(error, HydraException | TypeError | ValueError | OverflowError):
            raise
        text = " ".join(str(cause).partition("full_key:")[0].split()).rstrip(".") + "."
        raise UserError(text.replace(HYDRAS_REMEDY, OUR_REMEDY), group) from error


def _check_groups(cfg: DictConfig) -> None:
    """Refuses a group that doesn't describe a component."""
    for key in ("tracking", "paths"):
        require(OmegaConf.is_dict(cfg[key]), f"{key} is a group of keys", cfg[key], key, "Set its keys one by one.")
    for key in GROUPS:
        if key == "teacher" or (key == "augment" and cfg.augment is None):
            continue
        remedy = f"`kdsweep --help` lists its options ({key}=...)."
        _require_target(cfg, key)
        require(
            OmegaConf.is_dict(cfg[key]) and "_target_" in cfg[key], f"{key} is chosen", _shown(cfg, key), key, remedy
        )
    if is_averaged(cfg.teacher):
        _check_members(cfg)
    if OmegaConf.is_dict(cfg.teacher) and "train" in cfg.teacher:
        require_training(cfg.teacher)
    if is_recorded(cfg.teacher):
        named = isinstance(cfg.teacher.run, str) and cfg.teacher.run != ""
        remedy = "Hydra takes digits for a number: put them in quotes, teacher.run=\"'12345678'\"."
        remedy = remedy if isinstance(cfg.teacher.run, int | float) else "`kdsweep-ui` lists them: teacher.run=ID."
        require(named, "teacher.run is the id of a student's run", cfg.teacher.run, "teacher.run", remedy)
    recorded = is_averaged(cfg.teacher) or (is_recorded(cfg.teacher) and cfg.teacher.network is None)
    groups = () if cfg.teacher is None else ("teacher",) if recorded else ("teacher", "teacher.network")
    for key in groups:
        value = OmegaConf.select(cfg, key)
        require(OmegaConf.is_dict(value), f"{key} is a group of keys", value, key, "Choose another: teacher=...")
        _require_target(cfg, key)


def require_training(teacher: DictConfig) -> None:
    """Refuses wrong settings of the training of a whole teacher, as far as that can be told without torch.

    Raises:
        UserError: Its key is the configuration's.
    """
    key = "teacher.train"
    require(teacher.train in (None, *TRAINED), f"train in {TRAINED}", teacher.train, key)
    if not is_trained(teacher):
        return
    whole = OmegaConf.is_dict(OmegaConf.select(teacher, "training"))
    remedy = "Choose an option that has the settings, such as teacher=resnet50_finetuned."
    require(whole, f"teacher.training says how a teacher with train={teacher.train} is trained", None, key, remedy)
    rule = "the head is trained with the rest"
    require(OmegaConf.select(teacher, "head") is None, rule, "settings of its own", "teacher.head", "Set it to null.")
    weights = OmegaConf.select(teacher, "network.weights")
    remedy = "Set teacher.train=all, or teacher.network.weights=null."
    require(teacher.train == "all" or weights is None, "train = scratch without weights", weights, key, remedy)
    training = teacher.training
    for name in ("epochs", "batch_size", "n_passes"):
        value, rule = training[name], f"{name} >= 1"
        fits = type(value) is int and 1 <= value <= MOST[name]
        require(fits or (name == "n_passes" and value is None), rule, value, f"teacher.training.{name}")
    fits = type(training.seed) is int and 0 <= training.seed <= LARGEST_SEED
    require(fits, "seed >= 0", training.seed, "teacher.training.seed", "It is a whole number.")


def _check_members(cfg: DictConfig) -> None:
    """Refuses members that are no teachers, and names that can't be part of a key."""
    members = cfg.teacher.members
    remedy = "Give ids of students' runs, teacher.members=[ID,ID], or names with teachers; ids of digits in quotes."
    several = OmegaConf.is_config(members) and len(members) >= 2
    require(several, "teacher.members has two teachers or more", _shown(cfg.teacher, "members"), MEMBERS, remedy)
    named = OmegaConf.is_dict(members)
    for name in members if named else range(len(members)):
        member = members[name]
        plain = not named or re.fullmatch(r"\w+", str(name)) is not None
        require(plain, "a member's name is a word", name, MEMBERS)
        fits = isinstance(member, str) or (named and OmegaConf.is_dict(member) and "mode" in member)
        require(fits, "a member is a run's id or a whole teacher", _shown(members, name), MEMBERS, remedy)


def _require_target(cfg: DictConfig, key: str) -> None:
    """Refuses an option for a component of the user's own that doesn't say which, and what is no name."""
    node = OmegaConf.select(cfg, key)
    if not OmegaConf.is_dict(node):
        return
    if OmegaConf.is_missing(node, "_target_"):
        example = "TinyNet" if key in ("model", "teacher.network") else f"my_{key}"
        raise UserError(f"name your class or function: mypackage.{example}.", f"{key}._target_")
    if "_target_" in node:
        rule = "_target_ is the full name of a class or function"
        require(isinstance(node["_target_"], str), rule, _shown(node, "_target_"), f"{key}._target_")


def _shown(cfg: DictConfig, key: str | int) -> object:
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
    if "models" in cfg.tracking:  # which saved configurations of before don't have
        choices["tracking.models"] = cfg.tracking.models
    if cfg.teacher is not None and "shuffled" in cfg.teacher and cfg.teacher.shuffled is not None:
        choices["teacher.shuffled"] = cfg.teacher.shuffled
    for key, value in choices.items():
        require(type(value) is bool, f"{key} is true or false", value, key)
    rule = "compiled is auto, true or false"
    require(cfg.compiled == "auto" or type(cfg.compiled) is bool, rule, cfg.compiled, "compiled")
    rule = f"memory_format in {MEMORY_FORMATS}"
    require(cfg.memory_format in MEMORY_FORMATS, rule, cfg.memory_format, "memory_format")
    require(cfg.resume == "auto" or type(cfg.resume) is bool, "resume in (auto, true, false)", cfg.resume, "resume")
    names = objectives(cfg)
    require(len(names) >= 1, "at least one objective", cfg.objective, "objective")
    for name in names:
        require(
            name in OBJECTIVES, f"objective in {OBJECTIVES}", name, "objective", "The test split is not selected on."
        )
    require(len(set(names)) == len(names), "each objective once", names, "objective")


def _check_objectives(cfg: DictConfig) -> None:
    """Refuses an objective that the run will not have, as far as that can be told without the data."""
    lacking: dict[Need, str] = {}
    if cfg.arm == "teacher" or cfg.teacher is None:
        lacking["teacher"] = "It compares a student with its teacher, and this run has no teacher."
    if cfg.arm == "teacher" and cfg.teacher is not None and OmegaConf.select(cfg, "teacher.head") is None:
        lacking["epochs"] = "This teacher isn't trained."
    require_objectives(cfg, lacking)


def require_objectives(cfg: DictConfig, lacking: Mapping[Need, str]) -> None:
    """Refuses an objective that needs what the run lacks, unless nobody will ask for its value.

    Baselines and confirmations of a study are compared in the metrics that they have. Only its trials are ranked.

    Args:
        cfg: The configuration.
        lacking: What the run lacks, each with the reason in a sentence.

    Raises:
        UserError: The message has the reason.
    """
    if cfg.tracking.stage not in RANKED_STAGES:
        return
    for name in objectives(cfg):
        need = row(name).needs
        reason = None if need is None else lacking.get(need)
        others = ", ".join(other for other in OBJECTIVES if row(other).needs not in lacking)
        remedy = f"{reason} Choose from {others}."
        require(reason is None, "objective is a metric of the run", name, "objective", remedy)


def _check_loss(cfg: DictConfig) -> None:
    """Refuses wrong settings of our own losses. The loss itself reports missing and unknown settings."""
    if loss_rules.rule_of(str(cfg.loss._target_)) is not None:
        attempt("loss", lambda: loss_rules.check(OmegaConf.to_container(cfg.loss, resolve=True)))


def _check_places(cfg: DictConfig) -> None:
    """Refuses wrong folders, stores, names and numbers that say where a run is recorded."""
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
