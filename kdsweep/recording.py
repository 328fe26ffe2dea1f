"""What a run leaves in MLflow: who it is, what it started from, and what it found."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from kdsweep import environment
from kdsweep.assembly import attempt, container, hardware, teacher_id
from kdsweep.data import Dataset
from kdsweep.experiment import Result
from kdsweep.figures import learning_curve
from kdsweep.files import hash_tensors, write_tensors
from kdsweep.processes import this_process
from kdsweep.progress import note
from kdsweep.stores import store_uri
from kdsweep.teachers import Teacher
from kdsweep.tracking import Run, Store, flatten
from kdsweep.training import Metrics

if TYPE_CHECKING:
    from kdsweep.trials import TrialLink

log = logging.getLogger(__name__)


def open_store(cfg: DictConfig) -> Store:
    """The MLflow store that the configuration names."""
    store: Store = attempt(
        "tracking", lambda: Store(store_uri(cfg.tracking.uri, Path(cfg.paths.root)), cfg.tracking.experiment)
    )
    return store


@contextmanager
def started(cfg: DictConfig, data: Dataset, store: Store, teacher: Teacher | None) -> Iterator[Run]:
    """The MLflow run of a configuration, with all that is known before it starts; it ends with the block."""
    config = container(cfg)
    surroundings = environment.describe()
    device, precision = hardware(cfg)
    runtime = {"device": str(device), "precision": precision, "threads": surroundings["threads"]}
    params = flatten({**config, "runtime": runtime})
    with store.run(
        _name(cfg), tags=_tags(cfg, surroundings, teacher), params=params, parent=_parent(cfg, store)
    ) as run:
        run.text("config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
        run.text("overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(overrides)))
        run.text("environment.json", json.dumps(surroundings, indent=2))
        for split, context in (("train", "training"), ("validation", "validation"), ("test", "test")):
            profile = {"pictures": len(getattr(data, split)), "classes": data.n_classes}
            run.dataset(data.name, str(config["data"]["_target_"]), data.fingerprint, profile, context)
        yield run


def epoch_log(
    run: Run, objective: str = "val/accuracy", trial: TrialLink | None = None
) -> Callable[[Metrics, int], None]:
    """Receives the metrics of each epoch: for MLflow, for the run's log file, and the objective for its `trial`."""
    best: float | None = None

    def record(metrics: Metrics, epoch: int) -> None:
        nonlocal best
        run.log(metrics, epoch)
        log.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        if trial is not None:
            accuracy = metrics["val/accuracy"]
            best = accuracy if best is None else max(best, accuracy)
            trial.report(metrics.get(objective, best), epoch)

    return record


def finish(cfg: DictConfig, run: Run, result: Result, weights: dict[str, Tensor], file_name: str) -> None:
    """Logs what is known at the end of a run, its trained `weights` as `file_name`, and says the result to the user."""
    run.summary({name: value for name, value in result.metrics.items() if name not in result.history})
    run.tag({"kdsweep.weights": hash_tensors(weights)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file_name
        write_tensors(path, weights, {"kdsweep_run": run.id})
        run.file(path)
    # A teacher's steps are weight decays, not epochs.
    if result.history and cfg.arm != "teacher":
        run.figure("learning_curve.png", learning_curve(result.history, _name(cfg)))
    if result.reliability:
        run.text("reliability.json", json.dumps({"bins": result.reliability}))
        run.tag({"kdsweep.test_read": "true"})
    accuracies = [
        (name, result.metrics.get(f"{key}/accuracy")) for name, key in (("validation", "val"), ("test", "test"))
    ]
    shown = ", ".join(f"{name} {value:.2%}" for name, value in accuracies if value is not None)
    note(f"{_name(cfg)}: {shown}, {result.metrics['seconds']:.1f} s, run {run.id}")


def _tags(cfg: DictConfig, surroundings: dict[str, object], teacher: Teacher | None) -> dict[str, str]:
    tags = {
        "role": cfg.arm,
        "stage": cfg.tracking.stage,
        "study": cfg.tracking.study,
        "job": cfg.tracking.job,
        "trial": cfg.tracking.trial,
        "process": this_process(),
        "teacher": None if teacher is None else teacher_id(cfg, teacher),
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
