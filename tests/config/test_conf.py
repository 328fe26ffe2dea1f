"""Claims about the configuration: all of it composes, fits the code that reads it, and has no key too many."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import configurations
import hydra
import numpy as np
import optuna
import pytest
from hydra.utils import get_object
from in_process import run_here
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import kdsweep
from kdsweep.config import build
from kdsweep.config.checks import check
from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.config.trained_teachers import training_components
from kdsweep.execution.trial_link import build_pruner
from kdsweep.losses import GIVEN
from kdsweep.study.contest_controller import study_of
from kdsweep.views import Mixing

# One process composes each of them once.
pytestmark = pytest.mark.xdist_group("compositions")

FILES = sorted(CONFIG_FOLDER.rglob("*.yaml"))
OPTIONS = [(path.relative_to(CONFIG_FOLDER).parent.as_posix(), path.stem) for path in FILES if path.stem != "config"]

# These leave a gap for the user's own function; tests/test_own_*.py and tests/whole/test_own_code.py fill it.
OWN = {(group, "own") for group in ("data", "model", "teacher", "loss", "optimizer", "schedule")}
WHOLE = [option for option in OPTIONS if option not in OWN]

# Where a component is called, this is what it gets besides what the configuration gives.
GIVEN_WHEN_CALLED = {
    *("student_logits", "teacher_logits", "labels", *GIVEN),
    *("params", "optimizer", "total_steps", "pictures", "draw"),
    *("network", "features", "validation_features", "validation_labels"),
}

# These need a download or a file: their arguments are bound like all others, the rest is test_data.py's and
# test_data_files.py's.
NEEDS_FILES = {"cifar10", "cifar100", "npz", "huggingface"}

# The modules that know the configuration.
READERS = (
    *("train", "recording", "config/build", "config/checks", "config/rules", "commands/reproduce"),
    *("config/recorded_teachers", "config/trained_teachers", "config/identities"),
    *("execution/grid", "study/controller", "study/contest_controller", "study/forecast", "study/measure_speed"),
)


def composed(*words: str) -> DictConfig:
    """The configuration that a command line stands for, with Hydra's own part."""
    return configurations.composed(*words, hydra=True)


def selecting(group: str, option: str) -> list[str]:
    """The words that select an option; the places of samplers and pruners exist in a sweep alone."""
    return [*(["sweep=alpha_tau"] if group.startswith("hydra") else []), f"{group}={option}"]


def own(config: DictConfig) -> DictConfig:
    """The configuration without Hydra's own part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def components(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a `_target_`, and where it stands."""
    if "_target_" in node:
        yield path, dict(node)
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from components(value, f"{path}.{key}".strip("."))


def leaves(node: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The dotted path of every value that belongs to no component."""
    if "_target_" in node:
        return
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}.{key}".strip("."))
        else:
            yield f"{path}.{key}".strip(".")


def parameters(target: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a target by name; those of an `Unpack`ed dictionary as keyword-only ones."""
    found = dict(inspect.signature(target).parameters)
    for name, parameter in list(found.items()):
        if parameter.kind == inspect.Parameter.VAR_KEYWORD:
            (options,) = typing.get_args(typing.get_type_hints(target)[name])
            del found[name]
            found |= {key: inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY) for key in options.__annotations__}
    return found


@functools.cache
def every_configuration() -> list[DictConfig]:
    """The default configuration, and one for each option."""
    return [composed(), *(composed(*selecting(*option)) for option in WHOLE)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures as `data=image_folder` wants it."""
    root = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(f"{split}/{kind}" for split in ("train", "test") for kind in ("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((8, 8, 3), 10 * number + i, np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize(("group", "option"), WHOLE)
def test_every_option_composes_without_gaps(group: str, option: str) -> None:
    """Nothing is missing, and every interpolation finds its value."""
    config = composed(*selecting(group, option))
    assert config.hydra.runtime.choices[group] == option
    OmegaConf.to_container(own(config), resolve=True, throw_on_missing=True)
    OmegaConf.to_container(config.hydra.sweeper, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize(("group", "option"), WHOLE)
def test_every_component_gets_exactly_its_arguments(group: str, option: str) -> None:
    """No argument that the target doesn't know, and all that it needs: no default hides in the code."""
    config = composed(*selecting(group, option))
    searching = {key: config.hydra.sweeper.get(key) for key in ("sampler", "pruner")}
    chosen = build.container(OmegaConf.merge(own(config), {key: node for key, node in searching.items() if node}))
    for path, component in components(chosen):
        known = parameters(get_object(component["_target_"]))
        given = {key for key in component if not key.startswith("_")}
        required = {name for name, parameter in known.items() if parameter.default is parameter.empty}
        later = GIVEN_WHEN_CALLED if "_partial_" in component else set()
        assert given <= known.keys(), path
        assert required - given <= later, path


@pytest.mark.parametrize("group", ["augment", "model", "loss", "optimizer", "schedule"])
def test_every_component_is_built(group: str) -> None:
    """Each option becomes the object that a run uses."""
    for option in [option for where, option in WHOLE if where == group and option not in ("none", "crop_flip")]:
        built = build.component(composed(f"{group}={option}"), group)
        assert isinstance(built, Mixing) or callable(getattr(built, "build", built))


@pytest.mark.parametrize("option", [option for group, option in WHOLE if group == "data" and option not in NEEDS_FILES])
def test_every_data_set_is_built(option: str, pictures: Path, tmp_path: Path) -> None:
    """Each option becomes a data set, apart from those that need a download or a file."""
    root = [f"data.root={pictures}"] if option == "image_folder" else []
    config = composed(f"data={option}", *root, f"paths.root={tmp_path}")
    data, _ = build.inputs(config)
    assert min(len(data.train), len(data.validation), len(data.test)) > 0


@pytest.mark.parametrize("option", [option for group, option in WHOLE if group == "teacher"])
def test_every_teacher_is_built(option: str) -> None:
    """Each option becomes an architecture and what trains its head, or no teacher at all."""
    config = composed(f"teacher={option}")
    if option == "none":
        assert config.teacher is None
        return
    if option in ("run", "members"):  # runs, or other options, say the rest
        assert config.teacher.network is config.teacher.head is None
        return
    assert callable(build.component(config, "teacher.network").build)
    if config.teacher.train in (None, "head"):
        assert callable(build.component(config, "teacher.head"))
    else:
        assert callable(training_components(config).optimizer)


@pytest.mark.parametrize(
    ("group", "option"), [o for o in OPTIONS if o[0] in ("experiment", "sweep") or o[0].startswith("hydra")]
)
def test_every_experiment_and_sweep_passes_its_own_checks(group: str, option: str) -> None:
    """The values of each preset keep the rules, and a sweep's sweeper and sampler can be made."""
    config = composed(*selecting(group, option))
    check(own(config))
    if group != "experiment":
        study_of(**{str(key): value for key, value in config.hydra.sweeper.items() if key != "_target_"})


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "hydra/sweeper/pruner"])
def test_every_pruner_is_built(option: str) -> None:
    """Each option becomes one of Optuna's pruners, apart from none; Hyperband's last epoch is the run's."""
    config = composed(*selecting("hydra/sweeper/pruner", option), "epochs=27").hydra.sweeper.pruner
    if option == "none":
        assert config is None
        return
    built = build_pruner(config)
    assert isinstance(built, optuna.pruners.BasePruner)
    assert option != "hyperband" or config.max_resource == 27


@pytest.mark.parametrize(
    "key",
    [
        "executor",
        "n_jobs",
        "ray_address",
        "max_restarts",
        "restart",
        "confirm_seeds",
        "confirm_until",
        "choose",
        "search_seeds",
        "replicates",
        "race",
    ],
)
def test_the_sweeper_gets_what_the_sweep_says(key: str) -> None:
    """A study's settings stand in the group sweep, and are its sweeper's arguments too."""
    config = composed("sweep=alpha_tau", f"sweep.{key}=7")
    assert str(config.hydra.sweeper[key]) == "7"
    assert config.hydra.sweep.dir == f"{config.paths.root}/studies/alpha_tau"


@pytest.mark.parametrize("option", ["losses", "data_hunger", "learning_speed", "students"])
@pytest.mark.parametrize("key", ["contenders", "define", "for_all", "against"])
def test_the_sweeper_of_a_contest_gets_what_the_sweep_says(option: str, key: str) -> None:
    """Each contender has a definition, and each that all are compared with is a contender."""
    config = composed(f"sweep={option}")
    assert config.hydra.sweeper[key] == config.sweep[key]
    assert {*config.sweep.against} <= {*config.sweep.contenders} <= {*config.sweep.define}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIG_FOLDER).as_posix())
def test_every_header_names_a_command_that_selects_the_file(path: Path) -> None:
    """The comment at the top holds a command; it composes, and chooses this option."""
    header = "".join(line for line in path.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
    found = re.search(r"\bkdsweep((?: [\w./-]+=[\w./-]+)*)", header)
    assert found is not None
    config = composed(*found[1].split())
    group = path.relative_to(CONFIG_FOLDER).parent.as_posix()
    assert group == "." or config.hydra.runtime.choices[group] == path.stem


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "experiment"])
def test_an_experiment_is_a_small_difference(option: str) -> None:
    """It chooses options and sets a few keys that the configuration has; it defines no component of its own."""
    difference = OmegaConf.load(CONFIG_FOLDER / "experiment" / f"{option}.yaml")
    assert isinstance(difference, DictConfig)
    difference.pop("defaults", None)
    keys = list(leaves(build.container(difference)))
    assert len(keys) <= 8
    base = composed(f"experiment={option}")
    assert [key for key in keys if OmegaConf.select(base, key, default=...) is ...] == []
    assert "_target_" not in str(difference)


@pytest.mark.parametrize("group", ["job_logging", "hydra_logging"])
@pytest.mark.parametrize("option", ["disabled", "none", "default"])
def test_hydras_ways_to_log_are_those_of_hydra(group: str, option: str) -> None:
    """Python's logging refuses a handler of ours without what Hydra's default says of it."""
    packaged = Path(hydra.__file__).parent / "conf" / "hydra" / group / f"{option}.yaml"
    chosen = composed(f"hydra/{group}={option}").hydra[group]
    theirs = OmegaConf.to_container(OmegaConf.load(packaged))
    assert OmegaConf.to_container(chosen) == theirs
    ours = composed().hydra[group].handlers
    assert (ours.console["class"], ours.console.level) == ("logging.StreamHandler", "WARNING")


@pytest.mark.slow
def test_no_key_is_dead() -> None:
    """Every key that is no component's argument is read by the code, or used by another key."""
    read, named = reads(), constants()
    used = {key for path in FILES for key in re.findall(r"\$\{([\w.]+)\}", path.read_text(encoding="utf-8"))}
    keys = {key for config in every_configuration() for key in leaves(build.container(own(config)))}
    assert {"epochs", "tracking.uri", "teacher.mode", "sweep.n_trials"} <= keys
    contenders = {key for key in keys if key.startswith("sweep.define.")}  # each has a name of its own
    assert sorted(keys - read - used - named - contenders) == []


def test_no_key_is_read_that_stands_nowhere() -> None:
    """Every key that the code reads is in the configuration of some option."""
    configurations = every_configuration()
    unknown = [key for key in reads() if all(OmegaConf.select(c, key, default=...) is ... for c in configurations)]
    assert sorted(unknown) == []


def reads() -> set[str]:
    """The dotted keys that the code reads from a configuration: `cfg.tracking.uri`, `config["data"]`."""
    found = set()
    for tree in sources():
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            # `cfg.copy()` reads no key.
            key = None if id(node) in called else _key(node)
            if key:
                found.add(key)
    return found


def constants() -> set[str]:
    """The words in quotes: keys that a loop goes through, and groups that are handed on by name."""
    nodes = [node for tree in sources() for node in ast.walk(tree)]
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def sources() -> list[ast.Module]:
    return [ast.parse((Path(kdsweep.__file__).parent / f"{name}.py").read_text(encoding="utf-8")) for name in READERS]


def _key(node: ast.AST) -> str | None:
    """The dotted key of an expression that starts at a configuration; "" for the configuration itself."""
    if isinstance(node, ast.Name):
        return "" if node.id in ("cfg", "config", "own") else None
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        inner, last = _key(node.value), str(node.slice.value)
    elif isinstance(node, ast.Attribute):
        if node.attr == "config" and isinstance(node.value, ast.Name) and node.value.id == "self":
            return ""
        inner, last = _key(node.value), node.attr
    else:
        return None
    return None if inner is None else f"{inner}.{last}".strip(".")


@pytest.mark.parametrize(
    ("line", "choices"),
    [
        ("kdsweep data=c", ["data=cifar10", "data=cifar100"]),
        ("kdsweep sweep=alpha_tau sweep.n", ["sweep.n_jobs=", "sweep.n_trials=", "sweep.name="]),
    ],
)
def test_the_shell_completes_options_and_keys(line: str, choices: list[str], tmp_path: Path) -> None:
    """As the line of docs/tutorials/study.md has the shell ask for them; of a sweep the keys are known too."""
    done = run_here(["-sc", "query=bash"], tmp_path, {"COMP_LINE": line, "COMP_POINT": str(len(line))})
    assert done.out.split() == choices
