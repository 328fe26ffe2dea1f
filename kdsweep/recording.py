"""Records a run in MLflow: what it is, what it started from, and what it found."""

from __future__ import annotations

import functools
import json
import logging
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kdsweep.analysis import contest_plan
from kdsweep.analysis.sorted_runs import arm_label
from kdsweep.config.build import (
    container,
    hardware,
    in_force,
    inputs,
    source_files,
    sources,
    student,
)
from kdsweep.config.identities import teacher_id, trained_id
from kdsweep.config.keys import flatten, is_parameter, may_be_searched, teacher_name
from kdsweep.config.overrides import UNKNOWN
from kdsweep.config.rules import attempt, is_recorded, is_trained
from kdsweep.config.saved_config import saved_text
from kdsweep.report import next_commands
from kdsweep.report.figures.curves import learning_curve
from kdsweep.system import environment
from kdsweep.system.errors import PrunedError, RunError, UserError
from kdsweep.system.files import atomic_path
from kdsweep.system.masking import masked, masked_text
from kdsweep.system.processes import this_process
from kdsweep.system.progress import note
from kdsweep.system.tensor_files import save_tensors
from kdsweep.tracking.location import UNSENT, offline_uri, store_uri
from kdsweep.tracking.run_records import ARM_TAG, RESTORED
from kdsweep.tracking.store import OPEN_SECONDS, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from kdsweep.averaged_teachers import AveragedTeacher
    from kdsweep.data import Dataset
    from kdsweep.experiment import Reached, Result
    from kdsweep.teachers import Teacher
    from kdsweep.tracking.run_writer import Run
    from kdsweep.training import Metrics

log = logging.getLogger(__name__)

# The folder of a run's artifacts that has the user's own code, as it was when the run began.
SOURCES = "source"

# The option of the loss that an arm's name says.
OWN_LOSS = {"scratch": "ce", "label_smoothing": "label_smoothing", "shuffled": "kd", "distill": "kd"}

# A study's run waits this long for an MLflow server that doesn't answer when the run starts.
STUDY_SECONDS = 240.0


def open_store(cfg: DictConfig) -> Store:
    """Opens the MLflow store that the configuration names, and closes the runs in it whose process has died here."""
    uri = uri_of(cfg)
    # A study's run waits until a server has been restarted. A single run doesn't, since somebody waits for it.
    wait = OPEN_SECONDS if cfg.tracking.parent is None else STUDY_SECONDS
    store: Store = attempt("tracking", lambda: Store(uri, cfg.tracking.experiment, unsent_folder(cfg), wait=wait))
    # A study closes its own runs, and has looked before its first one.
    if cfg.tracking.parent is None:
        for run, cause in store.close_all_dead():
            note(f"{run.name}, run {run.id}, was still marked as running, but {cause}: it is closed.")
    return store


def uri_of(cfg: DictConfig) -> str:
    """Returns the URI of the MLflow store that the configuration names."""
    root = Path(cfg.paths.root).absolute()
    return offline_uri(root) if cfg.tracking.offline else store_uri(cfg.tracking.uri, root)


def unsent_folder(cfg: DictConfig) -> Path:
    """Returns the folder in which runs keep what they couldn't send to the MLflow store."""
    return Path(cfg.paths.root).absolute() / UNSENT


def can_go_on(store: Store, run_id: str) -> bool:
    """Returns whether a run is in the store and isn't finished."""
    try:
        return store.find(run_id).status != "FINISHED"
    except UserError:
        return False


class Recording:
    """The MLflow run of a configuration; made by `started`.

    Args:
        cfg: The configuration.
        shown: The configuration without its secrets.
        run: The MLflow run.
        record: What is known of the run before it has ended, as in `SavedConfig`.
        commands: The run's description, to which its accuracies are added at its end.
    """

    def __init__(
        self, cfg: DictConfig, shown: dict[str, object], run: Run, record: Mapping[str, object], commands: str
    ) -> None:
        self.run_id, self._commands = run.id, commands
        self._cfg, self._shown, self._run, self._record = cfg, shown, run, dict(record)

    def epoch_log(
        self,
        reached: Reached,
        objective: str = "val/accuracy",
        report: Callable[[float, int], None] | None = None,
    ) -> Callable[[Metrics, int], None]:
        """Returns a function that logs an epoch's metrics to MLflow and the log file, and the objective to `report`."""

        def record(metrics: Metrics, epoch: int) -> None:
            self._run.log(metrics, epoch)
            log.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
            if report is not None:
                best = max(accuracy for _, accuracy in reached.history["val/accuracy"])
                report(metrics.get(objective, best), epoch)

        return record

    def resume(self, reached: Reached, store: Store, epochs: int) -> None:
        """Marks the run, which has so many epochs, as resumed; logs the finished ones that MLflow doesn't have yet."""
        self._run.catch_up()
        known = {step for step, _ in store.history(self.run_id, "val/accuracy")}
        for index in range(reached.epochs):
            if index + 1 not in known:
                metrics = {name: points[index][1] for name, points in reached.history.items()}
                self._run.log(metrics, index + 1)
        earlier = store.find(self.run_id).tags.get("kdsweep.resumed_after")
        after = str(reached.epochs) if earlier is None else f"{earlier}, {reached.epochs}"
        self._run.tag({"kdsweep.resumed_after": after, "kdsweep.process": str(this_process())})
        place = f"after epoch {reached.epochs}" if reached.epochs else "in epoch 1"
        note(f"{_name(self._cfg)}: goes on {place} of {epochs}, run {self.run_id}")

    def finish(self, result: Result, weights: dict[str, Tensor], file_name: str) -> None:
        """Logs the final metrics, the trained `weights` as `file_name` and the figures, and prints the result."""
        run, cfg = self._run, self._cfg
        run.summary({name: value for name, value in result.metrics.items() if name not in result.history})
        made: list[str] = []
        run.made_file(file_name, lambda path: made.append(save_tensors(path, weights, {"kdsweep_run": run.id})))
        (weights_hash,) = made
        # The steps of a teacher's head are weight decays, not epochs. A search has hundreds of trials, which the report
        # draws together; drawing a figure for each would take longer than everything else that a trial records.
        of_epochs = cfg.arm != "teacher" or is_trained(cfg.teacher)
        if result.history and of_epochs and cfg.tracking.stage != "search":
            run.figure("learning_curve.png", learning_curve(result.history, _name(cfg)))
        tags = {"kdsweep.weights": weights_hash}
        if result.reliability:
            run.text("reliability.json", json.dumps({"bins": result.reliability}))
            run.text("per_class.json", json.dumps({"classes": result.classes}))
            tags["kdsweep.test_read"] = "true"
        self._record |= {"weights": weights_hash, "metrics": result.metrics, "history": result.history}
        self.save_config()
        accuracies = [
            (name, result.metrics.get(f"{key}/accuracy")) for name, key in (("validation", "val"), ("test", "test"))
        ]
        shown = ", ".join(f"{name} {value:.2%}" for name, value in accuracies if value is not None)
        # MLflow's pages show metrics with all their digits.
        run.describe(f"{shown.capitalize()}.\n\n{self._commands}")
        run.tag(tags)  # last, because it waits for the files before it
        note(f"{_name(cfg)}: {shown}, {result.metrics['seconds']:.1f} s, run {run.id}")

    @functools.cached_property
    def _config(self) -> str:
        """The configuration without its secrets, as YAML."""
        return OmegaConf.to_yaml(OmegaConf.create(self._shown))

    def save_config(self) -> None:
        """Writes config.yaml, with what is known of the run so far, to MLflow and to the run's output folder."""
        text = saved_text(self._config, self._record)
        self._run.text("config.yaml", text)
        if HydraConfig.initialized():
            with atomic_path(Path(HydraConfig.get().runtime.output_dir) / "config.yaml") as path:
                path.write_text(text, encoding="utf-8")


@contextmanager
def started(
    cfg: DictConfig, data: Dataset, store: Store, teacher: Teacher | AveragedTeacher | None, run_id: str | None = None
) -> Iterator[Recording]:
    """Opens the MLflow run of a configuration and records all that is known before training; it ends with the block.

    Args:
        run_id: The interrupted run that is continued; None for a new run.
    """
    config = masked(container(cfg))
    surroundings = environment.describe()
    device, precision = hardware(cfg)
    runtime = {"device": str(device), "precision": precision, "threads": surroundings["threads"]}
    params = _params({**config, "runtime": runtime})
    code = source_files(cfg)
    new = store.run(_name(cfg), tags=_tags(cfg, surroundings, teacher), params=params, parent=_parent(cfg, store))
    with new if run_id is None else store.reopened(run_id) as run:
        record = {
            "run": run.id,
            "runtime": runtime,
            "environment": surroundings,
            "data": data.fingerprint,
            "inputs": {
                "name": data.name,
                "classes": list(data.classes),
                "mean": list(data.mean),
                "std": list(data.std),
                "picture": list(data.test.images.shape[1:3]),
            },
            "teacher": _teacher_id(cfg, teacher),
            **({"sources": sources(cfg)} if code else {}),
        }
        commands = next_commands.note(store.uri, run.id, cfg.arm)
        recording = Recording(cfg, config, run, record, commands)
        if run_id is None:
            run.describe(commands)
            contexts = {"training": data.train, "validation": data.validation, "test": data.test}
            profiles = {name: {"pictures": len(split), "classes": data.n_classes} for name, split in contexts.items()}
            if data.unlabelled is not None:
                profiles["unlabelled"] = {"pictures": len(data.unlabelled)}
            run.datasets(data.name, str(config["data"]["_target_"]), data.fingerprint, profiles)
            # Files come last, because training can begin while they are written.
            recording.save_config()
            overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
            run.text("overrides.yaml", OmegaConf.to_yaml(OmegaConf.create([masked_text(line) for line in overrides])))
            run.text("environment.json", json.dumps(surroundings, indent=2))
            changes = environment.uncommitted_changes()
            if changes is not None:
                run.text("uncommitted.patch", masked_text(changes))
            for name, content in code.items():
                run.text(f"{SOURCES}/{name}", masked_text(content.decode(errors="backslashreplace")))
        try:
            yield recording
        except RunError as error:
            error.run_id = run.id
            raise


def record_again(cfg: DictConfig, store: Store, metrics: Mapping[str, float], pruned_at: int | None) -> None:
    """Records a trial whose run is gone from the store, by what is known of it without that run.

    Args:
        cfg: The configuration of the trial's job.
        store: Gets the run.
        metrics: The known metrics, as they were after the last epoch.
        pruned_at: The epoch after which the trial was pruned; None if it reached its end.
    """
    data, _ = inputs(cfg)
    cfg = in_force(cfg, student(cfg, data))
    tags = {
        ARM_TAG: str(cfg.arm),
        RESTORED: "true",
        "kdsweep.stage": str(cfg.tracking.stage),
        "kdsweep.study": str(cfg.tracking.study),
        "kdsweep.job": str(cfg.tracking.job),
        "kdsweep.trial": str(cfg.tracking.trial),
    }
    place = contest_plan.tags_of(cfg.tracking.job)
    if "contender" in place:
        tags["kdsweep.contender"] = place["contender"]
    params = _params(masked(container(cfg)))
    with suppress(PrunedError), store.run(_name(cfg), tags=tags, params=params, parent=cfg.tracking.parent) as run:
        run.log(metrics, cfg.epochs if pruned_at is None else pruned_at)
        if pruned_at is not None:
            raise PrunedError(pruned_at)


def _teacher_id(cfg: DictConfig, teacher: Teacher | AveragedTeacher | None) -> str | None:
    """Returns the id of a run's teacher; in the run that trains one as a whole, of the teacher that it makes."""
    made = cfg.arm == "teacher" and is_trained(cfg.teacher)
    return trained_id(cfg) if made else None if teacher is None else teacher_id(cfg, teacher)


def _params(config: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in flatten(config).items() if is_parameter(key)}


def _tags(
    cfg: DictConfig, surroundings: dict[str, object], teacher: Teacher | AveragedTeacher | None
) -> dict[str, str]:
    place = contest_plan.tags_of(cfg.tracking.job)
    tags = {
        "stage": cfg.tracking.stage,
        "study": cfg.tracking.study,
        "job": cfg.tracking.job,
        "trial": cfg.tracking.trial,
        "contender": place.get("contender"),
        "condition": place.get("condition"),
        "options": _options(cfg),
        "reproduces": cfg.tracking.reproduces,
        "process": this_process(),
        "teacher": _teacher_id(cfg, teacher),
        "git_commit": surroundings["git_commit"],
        "git_dirty": surroundings["git_dirty"],
    }
    return {ARM_TAG: cfg.arm} | {f"kdsweep.{key}": str(value) for key, value in tags.items() if value is not None}


def _options(cfg: DictConfig) -> str | None:
    """Returns the option of each group as JSON, for the report of a search over options; None for a teacher's run.

    The configuration holds what an option contains, but not its name.
    """
    if cfg.arm == "teacher" or not HydraConfig.initialized():
        return None
    chosen = {str(key): option for key, option in HydraConfig.get().runtime.choices.items()}
    return json.dumps({key: option for key, option in chosen.items() if _fills_a_key(key, cfg)})


def _fills_a_key(choice: str, cfg: DictConfig) -> bool:
    """Returns whether a choice of a group ("optimizer", "optimizer@second") fills a key of what a run computes."""
    group, _, package = choice.partition("@")
    place = package or group.replace("/", ".")
    return may_be_searched(place) and OmegaConf.select(cfg, place, default=UNKNOWN) is not UNKNOWN


def _name(cfg: DictConfig) -> str:
    """Names a run by what distinguishes it; that comes first, since lists and legends may cut names at their end."""
    if cfg.arm == "teacher":
        network = f"teacher {teacher_name(flatten(container(cfg)))}"
        return f"{network} ({cfg.teacher.run_name})" if is_recorded(cfg.teacher) else network
    if (contests := contest_plan.in_words(str(cfg.tracking.job))) is not None:
        return contests.removeprefix("confirmation of ")
    arm, seed = arm_label(cfg.arm), f"seed {cfg.seed}"
    setting = [*_loss_name(cfg), *(f"{key} {value:.3g}" for key, value in _loss_numbers(cfg.loss).items())]
    if cfg.tracking.stage in ("pilot", "search") and cfg.tracking.trial is not None:
        return ", ".join([f"{'trial' if cfg.tracking.stage == 'search' else 'pilot'} {cfg.tracking.trial}", *setting])
    # In a study all baselines, and all confirmations, of an arm have one setting.
    return ", ".join([arm, seed] if cfg.tracking.study is not None else [arm, *setting, seed])


def _loss_name(cfg: DictConfig) -> list[str]:
    """Returns the name of a run's loss, in a list; an empty list if it is what the arm's name says."""
    module, _, name = cfg.loss._target_.rpartition(".")
    # Several options have one function of ours: kd and kd_variants, sum and sum_feature. A saved configuration, run by
    # --config-path, has no options.
    if module == "kdsweep.losses" and HydraConfig.initialized() and "loss" in HydraConfig.get().runtime.choices:
        name = str(HydraConfig.get().runtime.choices["loss"])
    return [] if name == OWN_LOSS[cfg.arm] else [name.replace("_", " ")]


def _loss_numbers(loss: DictConfig) -> dict[str, float]:
    """Returns the numbers among the settings of a loss, by name; of a sum, the weight of each term."""
    terms = loss.terms if "terms" in loss and OmegaConf.is_dict(loss.terms) else {}
    weights = {name: term.weight for name, term in terms.items() if OmegaConf.is_dict(term) and "weight" in term}
    return {str(key): value for key, value in {**loss, **weights}.items() if type(value) in (int, float)}


def _parent(cfg: DictConfig, store: Store) -> str | None:
    """Returns the id of the parent run: the study's or the grid's, or one that the jobs of another sweeper share."""
    if cfg.tracking.parent is not None:
        return str(cfg.tracking.parent)
    if cfg.arm != "teacher" and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        folder = Path(HydraConfig.get().sweep.dir).absolute()
        return store.group(group_key(HydraConfig.get().sweep.dir), f"multirun {folder.parent.name} {folder.name}")
    return None


def group_key(sweep_dir: str) -> str:
    """Returns what stands for another sweeper's multirun in the store: its folder (`hydra.sweep.dir`)."""
    return str(Path(sweep_dir).absolute())
