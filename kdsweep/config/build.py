"""Builds objects from a configuration: components, data, networks and teacher.

Hydra and OmegaConf are known here and in the entry points only. Everything below takes plain arguments.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from kdsweep import loss_rules, losses, own_data, own_networks, own_training, training, unlabelled
from kdsweep.averaged_teachers import AveragedTeacher
from kdsweep.config.keys import STUDENT_KEYS, unclassified
from kdsweep.config.rules import attempt, is_averaged, require_objectives
from kdsweep.data import NONE
from kdsweep.evaluation import TOP
from kdsweep.numerics import compiling, gpu_memory, half_precision
from kdsweep.numerics.hardware import TEACHER_PRECISIONS, arithmetic, resolve_device, resolve_precision
from kdsweep.numerics.strided_convolutions import overrun
from kdsweep.own_arguments import separated
from kdsweep.own_data import OwnData
from kdsweep.own_networks import OwnNetwork, is_own
from kdsweep.system import user_code
from kdsweep.system.errors import UserError, is_number, require_kinds
from kdsweep.system.progress import note
from kdsweep.teachers import Teacher
from kdsweep.views import Views

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kdsweep.data import Dataset
    from kdsweep.models import Architecture, Classifier

# The only functions and classes that a configuration can name. Users add their own packages by KDSWEEP_TRUST.
COMPONENTS = (
    *(
        "kdsweep.data.*",
        "kdsweep.data_files.npz",
        "kdsweep.data_files.huggingface",
        "kdsweep.models.Architecture",
        "kdsweep.training.fit_head",
    ),
    *("kdsweep.augmentations.*", "kdsweep.mixing.*", "kdsweep.losses.*", "kdsweep.schedules.*", "torch.optim.*"),
)

# The number of training pictures on which a teacher is tried before it computes in fp16.
TRIED_PICTURES = 1024

# A process makes at least about so many runs of a study. It isn't counted, because a study may go on with more runs.
RUNS_OF_A_STUDY = 10

# Number of pictures in a forward pass without gradients.
EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Components:
    """The parts of a student's training: functions that have their settings, and wait for their last arguments.

    Attributes:
        loss: (student_logits, teacher_logits, labels) -> scalar, as in `losses.py`.
        optimizer: parameters -> torch.optim.Optimizer.
        schedule: (optimizer, number of steps) -> the learning rate's scheduler, as in `schedules.py`.
    """

    loss: Callable[..., torch.Tensor]
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Callable[..., Any]


def components(cfg: DictConfig) -> Components:
    """Builds loss, optimizer and schedule, which need no data.

    Raises:
        UserError: A component can't be built with its arguments.
    """
    return Components(component(cfg, "loss"), component(cfg, "optimizer"), component(cfg, "schedule"))


@functools.lru_cache(maxsize=8)
def architecture(group: str, key: str, weights: bool = True) -> Architecture | OwnNetwork:
    """Builds what describes the network of a group. It is kept for the other jobs of a sweep.

    Args:
        group: "model" or "teacher.network".
        key: `key_of` the group.
        weights: False leaves out the file of initial weights, which needn't be there then.

    Raises:
        UserError: The network can't be described so, or isn't trusted.
    """
    alone = OmegaConf.create()
    OmegaConf.update(alone, group, of_key(key))
    keys = container(OmegaConf.select(alone, group))
    target = keys["_target_"]
    if _is_recorded(target):
        if not weights:
            OmegaConf.update(alone, group, {"weights": None, "head": "new"})
        built: Architecture = component(alone, group)
        return built
    function = function_of(group, target)
    if not is_own(function):
        described: Architecture = component(alone, group)
        return described
    arguments, settings = separated(function, keys, own_networks.SETTINGS)
    if not weights:
        settings |= {"weights": None, "keep_head": None}

    def make(**given: object) -> object:
        # Not by Hydra, which wouldn't let a trusted function return a module of torch's own. Components among the
        # arguments are made anew for each network.
        return function(**_instantiate(arguments, "torch.nn.modules.*"), **given)

    own: OwnNetwork = attempt(group, lambda: OwnNetwork(function, make, arguments, **settings))
    return own


def function_of(group: str, target: str) -> Callable[..., object]:
    """Returns the function or class that a `_target_` names. Hydra decides whether it is trusted, and imports it.

    Raises:
        UserError: It isn't trusted, or isn't there.
    """
    found: Callable[..., object] = attempt(group, lambda: _instantiate({"_target_": target, "_partial_": True})).func
    return found


def component(cfg: DictConfig, group: str) -> Any:
    """Builds the component that a configuration group describes, or a function that waits for its last arguments."""
    described = _alone(cfg, group)
    # These wait for their last arguments, whether or not the user's file says so.
    if group in ("loss", "optimizer", "schedule") and OmegaConf.is_dict(described):
        described._partial_ = True
    built = attempt(group, lambda: _instantiate(described))
    if not isinstance(built, functools.partial):
        return built
    function, settings = built.func, built.keywords
    if group in own_training.N_GIVEN:
        attempt(group, lambda: own_training.require_settings(group, function, settings))
    if group == "loss" and isinstance(function, type):
        return attempt(group, built)  # an object that is called
    if group == "schedule":
        attempt(group, lambda: require_kinds(function, settings))
        return functools.partial(own_training.scheduled, function, settings)
    attempt(group, lambda: require_kinds(function, settings))
    ready = functools.partial(function, **settings)
    # A training calls its loss at every step, so the settings are checked here, once; Hydra's own partial, and our
    # losses by themselves, would check them at every call.
    attempt(group, lambda: loss_rules.check(ready))
    if group == "loss":
        attempt(group, lambda: own_training.require_settings_of_parts(ready))
    return losses.unchecked(ready) if function.__module__ == losses.__name__ else ready


def _instantiate(described: Any, *more: str) -> Any:
    """Lets Hydra build a component of ours, or of a package that the user trusts, or one that fits more patterns."""
    trusted = (*COMPONENTS, *user_code.trusted(), *more)
    return instantiate(described, _execution_whitelist_=trusted, _convert_="all")


def _is_recorded(target: str) -> bool:
    """Returns whether a target belongs to a package whose version every run records."""
    return target.partition(".")[0] in user_code.RECORDED


def sources(*described: Any) -> dict[str, str]:
    """Returns the user's own source files that parts of a configuration name by `_target_`, each with its SHA-256.

    Args:
        *described: Configurations, or parts of one.
    """
    return {name: hashlib.sha256(content).hexdigest() for name, content in source_files(*described).items()}


def source_files(*described: Any) -> dict[str, bytes]:
    """Returns the files of `sources` with their content."""
    plain = [OmegaConf.to_container(part, resolve=True) if OmegaConf.is_config(part) else part for part in described]
    return user_code.sources(_targets(plain))


def _targets(value: Any) -> Iterator[str]:
    """Yields the `_target_`s in a part of a configuration."""
    if isinstance(value, dict):
        if isinstance(value.get("_target_"), str):
            yield value["_target_"]
        for inner in value.values():
            yield from _targets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _targets(inner)


def _alone(cfg: DictConfig, group: str) -> Any:
    """Returns a group by itself. Hydra would otherwise copy the whole configuration for each component."""
    node = OmegaConf.select(cfg, group)
    return OmegaConf.create(OmegaConf.to_container(node, resolve=True)) if OmegaConf.is_dict(node) else node


def takes_whole_numbers(cfg: DictConfig, name: str, given: bool = True) -> bool:
    """Returns whether a key takes no fractions, which its component says, or for a key of no component its value.

    An argument that may be a fraction or not takes the kind of its value. Nothing is known of the users' own keys.

    Args:
        cfg: The configuration.
        name: The key.
        given: Whether the key's value in `cfg` says something.
    """
    value = OmegaConf.select(cfg, name) if given else None
    group, _, argument = name.rpartition(".")
    target = OmegaConf.select(cfg, f"{group}._target_") if group else None
    if target is None:
        return type(value) is int and not unclassified([name])
    parameter = inspect.signature(get_object(target)).parameters.get(argument)
    # An argument of ours that isn't named is one of `data.SplitOptions`, and a user's may have no annotation.
    annotation = inspect.Parameter.empty if parameter is None else parameter.annotation
    kinds = set(re.findall(r"\w+", "int | float" if annotation is inspect.Parameter.empty else str(annotation)))
    return "int" in kinds and ("float" not in kinds or type(value) is int)


def rehearse(cfg: DictConfig) -> None:
    """Builds everything that a run builds before training, so that errors in data, weights or teacher show now."""
    data, _ = inputs(cfg)
    require_classes(cfg, data)
    built, precision = student(cfg, data)
    rehearse_training(cfg, data, built, precision)
    if cfg.teacher is not None:
        untrained_teacher(cfg)


def require_classes(cfg: DictConfig, data: Dataset) -> None:
    """Refuses an objective for which the data set has too few classes."""
    if data.n_classes <= TOP:
        require_objectives(cfg, {"classes": f"{data.name} has {data.n_classes} classes, so a top {TOP} says nothing."})


# What `rehearse_training` has tried in this process.
_rehearsed: set[str] = set()


def rehearse_training(cfg: DictConfig, data: Dataset, built: Classifier, precision: str) -> None:
    """Tries a step of the student's training and an evaluation, on a batch of two pictures or of one, on a copy.

    The jobs of a sweep that differ in numbers alone, such as alpha, share one trial in each process.

    Raises:
        UserError: The network can't be trained or evaluated as it is configured.
    """
    # A batch of two is as good as a larger one; with one alone, batch normalisation may have a single value.
    n = min(cfg.batch_size, 2)
    heard = hears_unlabelled(cfg, data)
    if heard and n < 2:
        rule = "a batch has room for a picture with a label and for one without"
        raise UserError(f"`{rule}` must hold, but got batch_size={n}. Set batch_size >= 2.", "batch_size")
    # With pictures without labels, one of either kind.
    rows = [0, len(data.train)] if heard else slice(n)
    pictures, labels = data.shown[rows], data.shown_labels[rows]
    groups = [_without_numbers(container(cfg[name])) for name in ("loss", "optimizer", "schedule")]
    where = precision, built.format, cfg.device
    tried = json.dumps(
        [key_of(cfg.model), groups, n, data.n_classes, pictures.shape, where, cfg.teacher is None, heard]
    )
    if tried in _rehearsed:
        return
    device, parts = resolve_device(cfg.device), components(cfg)
    training.rehearse(
        built,
        views_of(cfg, data, pictures.to(device), cfg.view_seed, n_labelled=1 if heard else n),
        labels.to(device),
        loss=parts.loss,
        guided=cfg.teacher is not None,
        optimizer=parts.optimizer,
        schedule=parts.schedule,
        precision=precision,
    )
    _rehearsed.add(tried)


def _without_numbers(value: Any) -> Any:
    """Returns a part of a configuration without its numbers."""
    if isinstance(value, dict):
        return {key: _without_numbers(inner) for key, inner in value.items() if not is_number(inner)}
    return [_without_numbers(inner) for inner in value if not is_number(inner)] if isinstance(value, list) else value


def container(cfg: DictConfig) -> dict[str, Any]:
    """Returns a configuration as plain dictionaries, with its interpolations resolved."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def key_of(cfg: DictConfig) -> str:
    """Returns a configuration as text, for use as a key in caches of this process."""
    return json.dumps(container(cfg), sort_keys=True)


def of_key(key: str) -> DictConfig:
    """Returns the configuration from the text that `key_of` made."""
    made: DictConfig = OmegaConf.create(json.loads(key))
    return made


def inputs(cfg: DictConfig) -> tuple[Dataset, Views]:
    """Loads the data set and makes the views of its training pictures. Both are kept for the next job of a sweep."""
    return _inputs(_inputs_key(cfg), cfg.view_seed, cfg.device)


def _inputs_key(cfg: DictConfig) -> str:
    groups = {"data": container(cfg.data), "augment": None if cfg.augment is None else container(cfg.augment)}
    return json.dumps({**groups, "paths": {"cache": cfg.paths.cache}}, sort_keys=True)


@functools.lru_cache(maxsize=1)
def _inputs(key: str, view_seed: int, device: str) -> tuple[Dataset, Views]:
    cfg = of_key(key)
    data = dataset(cfg)
    pictures = gpu_memory.placed(data.shown, resolve_device(device), "training pictures")
    return data, views_of(cfg, data, pictures, view_seed)


def dataset(cfg: DictConfig) -> Dataset:
    """Loads the data set, one of ours or the user's own, with the pictures without labels that it is to have.

    Raises:
        UserError: It isn't there, isn't trusted, or can't be what the configuration says.
    """
    source = unlabelled_of(cfg)
    described = OmegaConf.create({"data": container(cfg.data)})
    if unlabelled.is_folder(source):  # the data set itself knows the other two
        described.data.unlabelled = NONE
    is_ours = _is_recorded(described.data._target_)
    data: Dataset = component(described, "data") if is_ours else _own_data(container(described.data))
    if unlabelled.is_folder(source):
        data = attempt("data", lambda: unlabelled.with_folder(data, source, Path(cfg.paths.cache)))
    return data


def unlabelled_of(cfg: DictConfig) -> str:
    """Returns where pictures without labels come from; configurations of before don't say."""
    return str(cfg.data.unlabelled) if "unlabelled" in cfg.data else NONE


def hears_unlabelled(cfg: DictConfig, data: Dataset) -> bool:
    """Returns whether a student is trained on pictures without labels too: there are some, and it hears a teacher."""
    return data.unlabelled is not None and cfg.teacher is not None and losses.hears_teacher(component(cfg, "loss"))


def views_of(
    cfg: DictConfig, data: Dataset, pictures: torch.Tensor, view_seed: int, n_labelled: int | None = None
) -> Views:
    """Makes the views of pictures, and tries the augmentation on one of them.

    Args:
        cfg: The configuration.
        data: The data set.
        pictures: Some of its pictures, those without labels last.
        view_seed: Decides the views.
        n_labelled: The number of those with labels; None: as many as the data set has.
    """
    n = len(data.train) if n_labelled is None else n_labelled
    if cfg.augment is None:
        return Views(pictures, data.padding, data.flip, view_seed, n_labelled=n)
    made_of = {"settings": container(cfg.augment), "sources": sources(cfg.augment)}
    views = Views(pictures, data.padding, data.flip, view_seed, component(cfg, "augment"), made_of, n)
    attempt("augment", lambda: views.batch(torch.arange(1, device=pictures.device), 0))
    return views


def _own_data(keys: dict[str, Any]) -> Dataset:
    """Loads a data set of the user's own, which the keys of the group describe."""
    function = attempt("data", lambda: _instantiate({"_target_": keys["_target_"], "_partial_": True})).func
    arguments, settings = separated(function, keys, own_data.SETTINGS)

    def make() -> object:
        return function(**_instantiate(arguments))

    described: OwnData = attempt("data", lambda: OwnData(function, make, arguments, sources(keys), **settings))
    data: Dataset = attempt("data", described.load)
    return data


def hardware(cfg: DictConfig) -> tuple[torch.device, str]:
    """Returns the device and the precision in force, which is the teacher's in a teacher's run."""
    device = resolve_device(cfg.device)
    return device, teacher_precision(cfg, device) if cfg.arm == "teacher" else resolve_precision(cfg.precision, device)


def member(cfg: DictConfig, name: str) -> DictConfig:
    """Returns `cfg` with one member of its averaged teacher as its teacher."""
    own = cfg.copy()
    OmegaConf.set_readonly(own, False)
    # Its interpolations, such as the precision's, are of the whole configuration.
    one = container(cfg.teacher.members)[name]
    own.teacher = OmegaConf.create({**one, "mode": cfg.teacher.mode, "shuffled": None})
    return own


def members(cfg: DictConfig) -> list[DictConfig]:
    """Returns `member` for each member of an averaged teacher."""
    return [member(cfg, str(name)) for name in cfg.teacher.members]


def each_teacher(cfg: DictConfig) -> list[DictConfig]:
    """Returns `cfg` for each network that its teacher is made of: the members of an average, one, or none."""
    return members(cfg) if is_averaged(cfg.teacher) else [] if cfg.teacher is None else [cfg]


@contextmanager
def of_member(name: str) -> Iterator[None]:
    """Lets the errors of this block name the keys of a member, and not those of the teacher that it would be alone."""
    try:
        yield
    except UserError as error:
        if error.key is None or not error.key.startswith("teacher"):
            raise
        raise UserError(error.message, error.key.replace("teacher", f"teacher.members.{name}", 1)) from error


def teacher_precision(cfg: DictConfig, device: torch.device) -> str:
    """Returns the precision of the teacher's passes; "auto" is fp16 on a GPU if the teacher's values fit, else tf32.

    Members of an average have their own; that of the first stands for all.
    """
    if is_averaged(cfg.teacher):
        return teacher_precision(members(cfg)[0], device)
    plain = resolve_precision(cfg.teacher.precision, device, TEACHER_PRECISIONS)
    if cfg.teacher.precision != "auto" or device.type != "cuda":
        return plain
    if not _fits_fp16(key_of(cfg.teacher.network), _inputs_key(cfg), cfg.view_seed, cfg.device):
        return "tf32" if plain == "bf16" else plain  # a GPU that multiplies bf16 itself does so with tf32 too
    return "fp16"


@functools.lru_cache(maxsize=8)
def _fits_fp16(network_key: str, inputs_key: str, view_seed: int, device: str) -> bool:
    """Tries a teacher's network on some training pictures in fp32; says what that means for the teacher's precision."""
    (data, _), where = _inputs(inputs_key, view_seed, device), resolve_device(device)
    cfg = OmegaConf.create({"teacher": {"network": of_key(network_key)}, "device": device})
    every = max(1, len(data.train) // TRIED_PICTURES)
    pictures = data.train.images[::every][:TRIED_PICTURES]
    with torch.random.fork_rng([where] if where.type == "cuda" else []):
        tried = network(cfg, "teacher.network", data, view_seed)

    def run() -> None:
        with arithmetic("fp32", where):
            for batch in pictures.split(EVALUATION_BATCH):
                tried.features(batch.to(where))

    largest = half_precision.largest_value(tried.eval(), run)
    fits = half_precision.fits(largest)
    values = f"its values, up to {largest:.3g},"
    limit = f"fp16's largest, {half_precision.LARGEST:,.0f}"
    note(
        f"Teacher: precision fp16, since {values} stay far below {limit}."
        if fits
        else f"Teacher: precision not fp16, since {values} come too close to {limit}."
    )
    return fits


def network(cfg: DictConfig, group: str, data: Dataset, seed: int) -> Classifier:
    """Builds the network that a group describes, on its device. Random weights are drawn from `seed`."""
    described = architecture(group, key_of(OmegaConf.select(cfg, group)))
    torch.manual_seed(seed)
    built: Classifier = attempt(group, lambda: described.build(data.n_classes, data.mean, data.std))
    attempt(group, lambda: built.check_size(*data.train.images.shape[1:3]))
    return built.to(resolve_device(cfg.device))


def student(cfg: DictConfig, data: Dataset) -> tuple[Classifier, str]:
    """Builds the network to train, and chooses precision and memory layout. Torch's random numbers stay as they were.

    `precision: auto` takes what the hardware suggests, and `memory_format: auto` takes channels_last, unless that would
    train this network wrongly.

    Returns:
        The network, and the precision (bf16, tf32 or fp32).

    Raises:
        UserError: The precision or the layout was chosen, and would train the network wrongly.
    """
    device = resolve_device(cfg.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        built = network(cfg, "model", data, cfg.init_seed)
    if cfg.memory_format not in ("auto", built.format):
        if built.format == "contiguous":
            raise UserError(
                "`the network takes pictures in channels_last` must hold, but this one flattens them by `view`. Set "
                "memory_format=auto, or let it use `flatten`.",
                "memory_format",
            )
        built.in_format(cfg.memory_format)
    precision = resolve_precision(cfg.precision, device)
    height, width = data.train.images.shape[1:3]
    # torch 2.15: where a strided convolution meets a map of 1 x 1, the gradient in the taps that see only padding is
    # whatever happened to lie in memory.
    if precision == "bf16" and device.type == "cpu" and built.strides_over_one_pixel(height, width):
        if cfg.precision != "auto":
            raise UserError(
                f"pictures of {height} x {width} leave this network a map of 1 x 1 before its last stride, for which a "
                "CPU computes wrong gradients in bf16. Set precision=fp32, a larger model.input_size, or "
                "model.stem=cifar.",
                "precision",
            )
        precision = "fp32"
    layer = overrun(built.net, precision, device)
    if layer is not None:
        fault = f"this processor can't train the network's {layer} in channels_last (oneDNN crashes in it)"
        if cfg.compiled is True:
            raise UserError(f"{fault}, which torch.compile takes. Set compiled=false.", "compiled")
        if cfg.memory_format == "channels_last":
            raise UserError(f"{fault}. Set memory_format=auto or contiguous.", "memory_format")
        built.in_format("contiguous")
    return built, precision


def compiled(cfg: DictConfig, in_study: bool | None = None) -> bool:
    """Returns whether the student's training is compiled: as demanded, or on a GPU if its steps earn it.

    What is counted is the same for all runs of a study, so that they are compiled alike: the steps over the whole
    training split, in RUNS_OF_A_STUDY runs.

    Args:
        cfg: The configuration of a run.
        in_study: Whether the run belongs to a study; None: as its stage says.
    """
    if cfg.compiled != "auto":
        return bool(cfg.compiled)
    device = resolve_device(cfg.device)
    if device.type == "cpu":
        return False
    data, _ = inputs(cfg)
    share = cfg.data.train_fraction if "train_fraction" in cfg.data else 1.0
    steps = max(1, round(len(data.train) / share) // cfg.batch_size)
    in_study = cfg.tracking.stage != "single" if in_study is None else in_study
    runs = RUNS_OF_A_STUDY if in_study else 1
    if not compiling.worth_compiling_training(runs * cfg.epochs * steps, device):
        return False
    reason = compiling.fault(device.type)
    if reason is not None:
        compiling.note_plain_training(reason)
    return reason is None


def in_force(cfg: DictConfig, chosen: tuple[Classifier, str] | None = None) -> DictConfig:
    """Returns `cfg` with each "auto" of precision, memory format and compiling replaced by what is in force.

    Args:
        chosen: What `student` returned; None for the run of a teacher.
    """
    own = cfg.copy()
    OmegaConf.set_readonly(own, False)
    if is_averaged(own.teacher):
        for name in own.teacher.members:
            own.teacher.members[name].precision = teacher_precision(member(cfg, name), resolve_device(cfg.device))
    elif own.teacher is not None:
        own.teacher.precision = teacher_precision(cfg, resolve_device(cfg.device))
    if chosen is not None:
        own.precision, own.memory_format = chosen[1], chosen[0].format
        own.compiled = compiled(cfg)
    return own


def teacher_config(cfg: DictConfig) -> DictConfig:
    """Returns the configuration of the run that makes the teacher of `cfg`, without the keys of its students."""
    return OmegaConf.create(_teachers(cfg))


def teacher_key(cfg: DictConfig) -> str:
    """Returns `key_of` the `teacher_config` outside of any study, since the teacher serves all later studies too."""
    own = _teachers(cfg)
    own["tracking"] |= dict.fromkeys(("parent", "study", "job", "trial", "reproduces")) | {"stage": "single"}
    own["evaluate_test"] = True
    return json.dumps(own, sort_keys=True)


def _teachers(cfg: DictConfig) -> dict[str, Any]:
    own = {**container(cfg), **dict.fromkeys(STUDENT_KEYS), "arm": "teacher"}
    # To whom the answers are dealt is a matter of the students.
    own["teacher"] = {key: value for key, value in own["teacher"].items() if key != "shuffled"}
    return own


def untrained_teacher(cfg: DictConfig) -> Teacher | AveragedTeacher:
    """Builds the teacher of `cfg` with untrained heads, or with the heads that came with their weights."""
    if is_averaged(cfg.teacher):
        return AveragedTeacher([untrained_member(one) for one in members(cfg)], cfg.teacher.average)
    return untrained_member(cfg)


def untrained_member(cfg: DictConfig, weights: dict[str, torch.Tensor] | None = None) -> Teacher:
    """Builds the teacher of `cfg`, which is one network, as `untrained_teacher` does; with its `weights` if given."""
    data, views = inputs(cfg)
    net = network(cfg, "teacher.network", data, cfg.view_seed)
    if weights is not None:
        net.net.load_state_dict(weights)
    tables = Path(cfg.paths.cache) / "tables"
    precision = teacher_precision(cfg, resolve_device(cfg.device))
    own = sources(cfg.teacher.network)
    settings = cfg.teacher.mode, cfg.teacher.batch_size, precision, cfg.teacher.compiled, own or None
    teacher: Teacher = attempt("teacher", lambda: Teacher(net, data, views, tables, *settings))
    return teacher
