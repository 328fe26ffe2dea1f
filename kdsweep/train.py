"""THE entry point: a configuration becomes built objects, the objects a run, and the run an objective."""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kdsweep import cli
from kdsweep.errors import UserError
from kdsweep.progress import note

# torch and MLflow take seconds to import: a run imports them, `kdsweep --help` and a misspelt key do without.
if TYPE_CHECKING:
    from torch import Tensor

    from kdsweep.data import Dataset
    from kdsweep.experiment import Result
    from kdsweep.teachers import Teacher
    from kdsweep.tracking import Run, Store
    from kdsweep.training import Metrics

# In a wheel the configuration lies inside the package, in a checkout beside it.
_PACKAGE = Path(__file__).resolve().parent
CONFIG_FOLDER = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"

# Pictures in a forward pass without gradients.
EVALUATION_BATCH = 256


def main() -> None:
    """The command `kdsweep`."""
    # Hydra then raises what it would otherwise print over several lines, and `cli.command` makes one line of it.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # A sweep is a multirun. Hydra wants to know that before it reads sweep/*.yaml, which therefore can't say it.
    words = sys.argv[1:]
    if any(word.startswith("sweep=") for word in words) and not any(word.startswith("hydra.mode=") for word in words):
        sys.argv.append("hydra.mode=MULTIRUN")
    cli.command("kdsweep", hydra_main)


@hydra.main(config_path=str(CONFIG_FOLDER), config_name="config")
def hydra_main(cfg: DictConfig) -> float:
    """What Hydra calls for a run, and for each job of a multirun."""
    try:
        return train(cfg)
    except Exception as error:
        # In a multirun the sweeper decides what a failed job means. In a single run Hydra would add a line of its own.
        known = cli.explained(error)
        if known is None or cli.show_traceback() or HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        cli.fail("kdsweep", known)


def train(cfg: DictConfig) -> float:
    """Runs the experiment that `cfg` describes, logs it, and returns its objective.

    Raises:
        UserError: A value, a file or a key is wrong; its message says which.
        DivergedError: The loss became NaN or infinite.
    """
    from kdsweep.assembly import OBJECTIVES, check, teacher_config

    check(cfg)
    result = train_teacher(teacher_config(cfg)) if cfg.arm == "teacher" else train_student(cfg)
    if cfg.objective not in result.metrics:
        known = ", ".join(name for name in sorted(result.metrics) if name.startswith(OBJECTIVES))
        raise UserError(f"this run has no metric {cfg.objective!r}. It has {known}.", "objective")
    return result.metrics[cfg.objective]


def train_student(cfg: DictConfig) -> Result:
    """One student, with a teacher or without: builds it, trains it, logs it."""
    from kdsweep import assembly, experiment, training

    device, precision = assembly.hardware(cfg)
    data, views = assembly.inputs(assembly.key_of(cfg.data), cfg.view_seed, cfg.device)
    # What a user got wrong in data, model or teacher shows before the run is opened, and leaves no failed run behind.
    network = assembly.network(cfg, "model", data, cfg.init_seed)
    store = _store(cfg)
    teacher = None if cfg.teacher is None else trained_teacher(assembly.key_of(_shared(assembly.teacher_config(cfg))))

    def predict(split: str) -> Tensor:
        return training.predict(network, getattr(data, split).images, EVALUATION_BATCH, precision)

    with _logged(cfg, data, store) as run:
        fitting = training.fit(
            network,
            views,
            data.train.labels.to(device),
            loss=assembly.build(cfg, "loss"),
            teacher=teacher,
            optimizer=assembly.build(cfg, "optimizer"),
            schedule=assembly.build(cfg, "schedule"),
            epochs=cfg.epochs,
            batch_size=cfg.batch_size,
            n_passes=cfg.n_passes,
            order_seed=cfg.order_seed,
            precision=precision,
        )
        result = experiment.run(fitting, predict, data, teacher, run.log)
        _finish(cfg, run, result, network.net.state_dict(), "model.safetensors")
    return result


def train_teacher(cfg: DictConfig) -> Result:
    """The teacher's head (unless it came trained): trains it, logs it, and keeps it where its students find it."""
    from kdsweep import assembly, experiment
    from kdsweep.files import write_tensors

    data, views = assembly.inputs(assembly.key_of(cfg.data), cfg.view_seed, cfg.device)
    teacher = assembly.untrained_teacher(cfg)
    with _logged(cfg, data, _store(cfg)) as run:
        fitting: Iterable[Metrics] = ()
        if cfg.teacher.head is not None:
            splits = ("train", "validation")
            features = [teacher.features(split) for split in splits]
            labels = [getattr(data, split).labels.to(views.device) for split in splits]
            fitting = assembly.build(cfg, "teacher.head")(
                teacher.network, features[0], labels[0], features[1], labels[1]
            )
        result = experiment.run(fitting, teacher.logits, data, None, run.log)
        head = teacher.network.head.state_dict()
        write_tensors(_head_path(cfg, teacher), head)
        run.tag({"kdsweep.teacher": assembly.teacher_id(cfg, teacher)})
        _finish(cfg, run, result, head, "head.safetensors")
    return result


@functools.lru_cache(maxsize=1)
def trained_teacher(teacher_key: str) -> Teacher:
    """The teacher with its trained head: found by the hash of what makes it, or trained and logged now, once.

    Args:
        teacher_key: `key_of` the `teacher_config`; the teacher is kept for the next job of a sweep.
    """
    from filelock import FileLock

    from kdsweep import assembly
    from kdsweep.files import read_tensors

    cfg = assembly.of_key(teacher_key)
    teacher = assembly.untrained_teacher(cfg)
    if cfg.teacher.head is None:
        return teacher
    path = _head_path(cfg, teacher)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        head = read_tensors(path)
        if head is None:
            note("This teacher is new: its head is trained first, once for all students.")
            train_teacher(cfg)
            head = read_tensors(path)
    if head is None:
        raise OSError(f"the teacher's head was written to {path}, and can't be read back")
    teacher.network.head.load_state_dict(head)
    return teacher


def _shared(cfg: DictConfig) -> DictConfig:
    """The same run as part of no study: a teacher that a student had to make serves all later ones too."""
    own = cfg.copy()
    own.tracking.update({"parent": None, "study": None, "stage": "single", "trial": None})
    return own


def _head_path(cfg: DictConfig, teacher: Teacher) -> Path:
    from kdsweep.assembly import teacher_id

    return Path(cfg.paths.cache) / "teachers" / f"{teacher_id(cfg, teacher)}.safetensors"


def _store(cfg: DictConfig) -> Store:
    from kdsweep.assembly import attempt
    from kdsweep.tracking import Store, store_uri

    store: Store = attempt(
        "tracking", lambda: Store(store_uri(cfg.tracking.uri, Path(cfg.paths.root)), cfg.tracking.experiment)
    )
    return store


@contextmanager
def _logged(cfg: DictConfig, data: Dataset, store: Store) -> Iterator[Run]:
    """The MLflow run of a configuration, with all that is known before it starts."""
    from kdsweep import environment
    from kdsweep.assembly import container, hardware
    from kdsweep.tracking import flatten

    config = container(cfg)
    surroundings = environment.describe()
    device, precision = hardware(cfg)
    runtime = {"device": str(device), "precision": precision, "threads": surroundings["threads"]}
    params = flatten({**config, "runtime": runtime})
    with store.run(_name(cfg), tags=_tags(cfg, surroundings), params=params, parent=_parent(cfg, store)) as run:
        run.text("config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
        run.text("overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(overrides)))
        run.text("environment.json", json.dumps(surroundings, indent=2))
        for split, context in (("train", "training"), ("validation", "validation"), ("test", "test")):
            profile = {"pictures": len(getattr(data, split)), "classes": data.n_classes}
            run.dataset(data.name, str(config["data"]["_target_"]), data.fingerprint, profile, context)
        yield run


def _finish(cfg: DictConfig, run: Run, result: Result, weights: dict[str, Tensor], file_name: str) -> None:
    """Logs what is known at the end of a run, and says it to the user."""
    from kdsweep.figures import learning_curve
    from kdsweep.files import hash_tensors, write_tensors

    run.summary({name: value for name, value in result.metrics.items() if name not in result.history})
    run.tag({"kdsweep.weights": hash_tensors(weights)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file_name
        write_tensors(path, weights, {"kdsweep_run": run.id})
        run.file(path)
    if result.history:
        run.figure("learning_curve.png", learning_curve(result.history, _name(cfg)))
    validation, test = result.metrics["val/accuracy"], result.metrics["test/accuracy"]
    note(f"{_name(cfg)}: validation {validation:.2%}, test {test:.2%}, {result.metrics['seconds']:.1f} s, run {run.id}")


def _tags(cfg: DictConfig, surroundings: dict[str, object]) -> dict[str, str]:
    tags = {
        "role": cfg.arm,
        "stage": cfg.tracking.stage,
        "study": cfg.tracking.study,
        "trial": cfg.tracking.trial,
        "git_commit": surroundings["git_commit"],
        "git_dirty": surroundings["git_dirty"],
    }
    return {f"kdsweep.{key}": str(value) for key, value in tags.items() if value is not None}


def _name(cfg: DictConfig) -> str:
    """A run's name: its arm, and what tells it from others of the arm."""
    if cfg.arm == "teacher":
        return f"teacher {cfg.teacher.network.name}"
    numbers = {key: value for key, value in cfg.loss.items() if isinstance(value, int | float) and key != "_partial_"}
    return " ".join([cfg.arm, *(f"{key}={value:.4g}" for key, value in numbers.items()), f"seed={cfg.seed}"])


def _parent(cfg: DictConfig, store: Store) -> str | None:
    """The MLflow run above this one: a study's, or the one that a plain multirun's jobs share."""
    if cfg.tracking.parent is not None:
        return str(cfg.tracking.parent)
    if cfg.arm != "teacher" and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        folder = Path(HydraConfig.get().sweep.dir).absolute()
        return store.group(str(folder), f"multirun {folder.parent.name} {folder.name}")
    return None


if __name__ == "__main__":
    main()
