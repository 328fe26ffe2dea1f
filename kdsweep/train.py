"""THE entry point: builds objects from a configuration, makes a run of them, and returns what the run found."""

from __future__ import annotations

import functools
import math
import os
import sys
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import kdsweep
from kdsweep.config import help_page
from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.system import exit_status, interrupts, masking, user_code
from kdsweep.system.errors import RunError, UserError, one_line
from kdsweep.system.progress import note

# Importing torch and MLflow takes seconds, and Hydra a third of one. So they are imported where they are needed: a
# misspelt key is refused without torch and MLflow, and `kdsweep --help` needs none of the three.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from omegaconf import DictConfig
    from torch import Tensor

    from kdsweep.averaged_teachers import AveragedTeacher
    from kdsweep.config.build import Components
    from kdsweep.data import Dataset
    from kdsweep.execution.trial_link import TrialLink
    from kdsweep.experiment import Result
    from kdsweep.system.checkpoint import Checkpoints
    from kdsweep.teachers import Teacher
    from kdsweep.tracking.store import Store
    from kdsweep.training import Metrics


GOES_ON = "Give the same command again: it goes on from there."


def main() -> None:
    """Runs the command `kdsweep`."""
    # With this, Hydra raises its errors instead of printing them, and `exit_status.command` turns them into one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    begins_anew = any(word.lower() == "resume=false" for word in sys.argv)
    exit_status.command("kdsweep", _help_or_run, after_a_signal="" if begins_anew else GOES_ON)


def _help_or_run() -> None:
    words = sys.argv[1:]
    if words == ["--version"]:
        print(f"kdsweep {kdsweep.__version__}")
        return
    if help_page.answers(words):
        print(help_page.page(CONFIG_FOLDER, words))
        return
    import hydra

    # A sweep is a multirun. Hydra has to know the mode before it reads sweep/*.yaml, so that file can't set it.
    if any(word.startswith("sweep=") for word in words) and not any(word.startswith("hydra.mode=") for word in words):
        sys.argv.append("hydra.mode=MULTIRUN")
    from kdsweep.execution.grid_sweeper import use_for_grids

    _searches.clear()
    use_for_grids()
    hydra.main(config_path=str(CONFIG_FOLDER), config_name="config")(hydra_main)()
    for key, cfg in _searches.items():
        _say_what_a_search_found(cfg, key)


# The multirun of another sweeper whose jobs this process has run, by its key in the store, with the last job's
# configuration. The grid says itself what it found.
_searches: dict[str, DictConfig] = {}


def hydra_main(cfg: DictConfig) -> float | tuple[float, ...]:
    """Runs one job; Hydra calls this for a single run, and for each job of a multirun.

    The job runs in the folder in which the command was given, to which relative paths belong. Hydra may have gone to
    the job's own folder (`hydra.job.chdir=true`), where the same words would name other pictures, caches and stores.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from kdsweep.config.unread import require_read
    from kdsweep.execution.grid_sweeper import GRID_SWEEPER

    hydra_cfg = HydraConfig.get()
    multirun = hydra_cfg.mode == RunMode.MULTIRUN
    masking.mask_logs()
    try:
        with chdir(hydra_cfg.runtime.cwd):
            for folder in (hydra_cfg.runtime.output_dir, *([hydra_cfg.sweep.dir] if multirun else [])):
                masking.mask_files(Path(folder))
            require_read(cfg, cast("DictConfig", hydra_cfg))
            done = train(cfg)
            if not multirun:
                _log_model(cfg, done)
                _say_what_comes_next(cfg, done)
            elif cfg.tracking.parent is None:
                from kdsweep.recording import group_key

                _searches[group_key(hydra_cfg.sweep.dir)] = cfg
            return done.objective
    except Exception as error:
        known = exit_status.explained(error)
        # A sweeper other than that of grids decides what a failed job means, so it gets the exception. In all other
        # cases Hydra would add lines of its own, so the command ends here.
        decided = multirun and hydra_cfg.sweeper._target_ != GRID_SWEEPER
        if known is None or exit_status.show_traceback() or decided:
            raise
        exit_status.fail(
            "kdsweep", known, f"job {hydra_cfg.job.num}: {hydra_cfg.job.override_dirname}" if multirun else None
        )


def _log_model(cfg: DictConfig, done: Trained) -> None:
    """Logs the student of a single run as a model of MLflow's, if that is asked for."""
    from kdsweep import recording
    from kdsweep.config.rules import settled
    from kdsweep.exporting import student_models
    from kdsweep.tracking.run_records import STUDENTS

    if cfg.tracking.models and not cfg.tracking.offline and str(settled(cfg).arm) in STUDENTS:
        uri, root = recording.uri_of(cfg), Path(cfg.paths.root)
        student_models.log_of_run(uri, cfg.tracking.experiment, done.run_id, root)


def _say_what_comes_next(cfg: DictConfig, done: Trained) -> None:
    from kdsweep import recording
    from kdsweep.config.rules import settled
    from kdsweep.report import next_commands

    arm = str(settled(cfg).arm)
    note(next_commands.after_run(recording.uri_of(cfg), Path(cfg.paths.root), done.run_id, arm))


def _say_what_a_search_found(cfg: DictConfig, key: str) -> None:
    """Prints the best run of a multirun, and the next commands; nothing if the store doesn't know the multirun.

    Args:
        cfg: The configuration of one of its jobs.
        key: As `recording.group_key` returns it.
    """
    from kdsweep import recording
    from kdsweep.analysis.study_goals import Objective
    from kdsweep.config.rules import objectives
    from kdsweep.report import next_commands
    from kdsweep.tracking.location import require_store
    from kdsweep.tracking.store import Store

    uri, root, objective = recording.uri_of(cfg), Path(cfg.paths.root), Objective.of(objectives(cfg)[0])
    with suppress(UserError, RunError):  # the runs have ended well, though the store doesn't answer now
        require_store(uri)
        store = Store(uri, cfg.tracking.experiment)
        known = {group.tags["kdsweep.group"]: group.id for group in store.tagged(arm="group")}
        if key in known:
            for line in next_commands.after_grid(uri, root, known[key], store.children(known[key]), objective):
                note(line)


@dataclass(frozen=True)
class Trained:
    """The outcome of a run.

    Attributes:
        run_id: Its MLflow id.
        metrics: The last value of each metric, by name.
        objectives: The values that a sweep selects on, in the order of the configuration's `objective`. NaN stands for
            a metric that a baseline or a confirmation of a study doesn't have, which nobody selects on.
    """

    run_id: str
    metrics: Metrics
    objectives: tuple[float, ...]

    @property
    def objective(self) -> float | tuple[float, ...]:
        """What Hydra's sweepers expect: a number, or a tuple for several objectives."""
        return self.objectives if len(self.objectives) > 1 else self.objectives[0]


def train(cfg: DictConfig) -> Trained:
    """Runs the experiment that `cfg` describes, and logs it.

    Raises:
        UserError: A value, a file or a key is wrong; its message says which.
        DivergedError: The loss became NaN or infinite.
        PrunedError: The run is a trial that its study's pruner stops.
    """
    # A worker sends an error without its stack trace, so the place in the user's code is put into the message here.
    with user_code.explained():
        return _train(cfg)


def _train(cfg: DictConfig) -> Trained:
    from kdsweep.config.rules import check_values, objectives, require_places, settled

    cfg = settled(cfg)
    check_values(cfg)
    require_places(cfg)
    # What follows imports torch.
    from kdsweep.config.build import in_force, teacher_config
    from kdsweep.config.checks import check_components
    from kdsweep.config.recorded_teachers import filled

    cfg = filled(cfg)
    components = check_components(cfg)
    with _enough_memory(cfg), _trial(cfg) as trial:
        if cfg.arm == "teacher":
            run_id, result = train_teacher(teacher_config(in_force(cfg)))
        else:
            run_id, result = train_student(cfg, components, trial)
        done = Trained(run_id, result.metrics, tuple(result.metrics.get(name, math.nan) for name in objectives(cfg)))
        if trial is not None:
            trial.leave(done.objectives)
    return done


@contextmanager
def _enough_memory(cfg: DictConfig) -> Iterator[None]:
    """Turns a failed allocation into a `RunError` that says which settings take less memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        from kdsweep.numerics.hardware import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        sizes = [f"batch_size (now {cfg.batch_size})"]
        if cfg.teacher is not None:
            sizes.append(f"teacher.batch_size (now {cfg.teacher.batch_size})")
        reason = one_line(error)[:200]
        message = f"out of memory ({reason}). Lower {', '.join(sizes)}, the pictures' size, or sweep.n_jobs."
        raise RunError(message) from error


@contextmanager
def _trial(cfg: DictConfig) -> Iterator[TrialLink | None]:
    """Connects this run to its trial, for as long as the block runs; yields None for a run outside of a search."""
    if cfg.tracking.trial is None or cfg.tracking.stage != "search":
        yield None
        return
    from hydra.core.hydra_config import HydraConfig

    from kdsweep.analysis import contest_plan
    from kdsweep.execution.trial_link import TrialLink, build_pruner, storage_url

    study = HydraConfig.get().sweeper
    pruner = None if study.pruner is None else build_pruner(study.pruner)
    url = storage_url(study.storage, HydraConfig.get().sweep.dir)
    own = contest_plan.search_name(study.study_name, contest_plan.tags_of(cfg.tracking.job).get("contender"))
    link = TrialLink(url, own, cfg.tracking.trial, pruner, cfg.epochs)
    with link.alive():
        yield link


def train_student(
    cfg: DictConfig, components: Components, trial: TrialLink | None = None, of_teacher: DictConfig | None = None
) -> tuple[str, Result]:
    """Trains one student, with a teacher or without, logs it, and reports its epochs to its `trial`.

    Args:
        of_teacher: The configuration of the teacher that is trained here, on this same path; None for a student.

    Returns:
        The run's MLflow id, and what it found.
    """
    from kdsweep import experiment, recording, training
    from kdsweep.config import build, identities, rules, trained_teachers
    from kdsweep.config.rules import is_shuffled
    from kdsweep.execution import prefetch
    from kdsweep.losses import FEATURES
    from kdsweep.shuffled_teachers import ShuffledTeacher
    from kdsweep.system.tensor_files import write_tensors
    from kdsweep.views import passes_of_run

    data, views = build.inputs(cfg)
    build.require_classes(cfg, data)
    # Data, network and teacher are built before the run is opened: a wrong value then leaves no failed run behind.
    network, precision = build.student(cfg, data)
    build.rehearse_training(cfg, data, network, precision)
    cfg = build.in_force(cfg, (network, precision))
    shown = cfg if of_teacher is None else trained_teachers.shown(of_teacher, cfg)
    store = recording.open_store(shown)
    teacher = None if cfg.teacher is None else trained_teacher(build.teacher_key(cfg))
    # A teacher that the loss doesn't hear is compared with the student, but computes no passes over its pictures.
    outputs = training.heard_by(components.loss)
    heard = teacher if outputs else None
    labels = data.train.labels if heard is None else data.shown_labels
    passes = passes_of_run(cfg.order_seed, cfg.epochs, cfg.n_passes)
    if heard is not None and FEATURES in outputs:
        heard.require_room(passes)
        heard.say_size(passes)
    dealt = ShuffledTeacher(heard, views, cfg.order_seed) if heard is not None and is_shuffled(cfg.teacher) else heard

    def predict(split: str) -> Tensor:
        images = getattr(data, split).images
        return training.predict(network, images, build.EVALUATION_BATCH, precision, cfg.compiled)

    with _checkpoints(cfg, identities.run_key(cfg, data, teacher), store) as (checkpoints, state):
        run_id = None if state is None else state["run"]
        with recording.started(shown, data, store, teacher, run_id) as recorded:
            if trial is not None:
                trial.recorded(recorded.run_id, store.page(recorded.run_id))
            fitting = training.Fit(
                network,
                views,
                labels.to(network.head.weight.device),
                loss=components.loss,
                teacher=dealt,
                optimizer=components.optimizer,
                schedule=components.schedule,
                epochs=cfg.epochs,
                batch_size=cfg.batch_size,
                n_passes=cfg.n_passes,
                order_seed=cfg.order_seed,
                precision=precision,
                compiled=cfg.compiled,
                init_seed=cfg.init_seed,
            )
            if heard is not None:
                prefetch.remember(heard, passes, outputs)
            reached = experiment.Reached()
            if state is not None:
                fitting.load(state["training"])
                reached = experiment.Reached(**state["reached"])
                recorded.resume(reached, store, cfg.epochs)

            def now() -> dict[str, object]:
                return {"run": recorded.run_id, "training": fitting.state(), "reached": vars(reached)}

            try:
                result = experiment.run(
                    fitting.after(reached.epochs),
                    predict,
                    data,
                    teacher,
                    recorded.epoch_log(reached, rules.objectives(cfg)[0], None if trial is None else trial.report),
                    cfg.evaluate_test,
                    reached,
                    keep=lambda _: checkpoints.offer(now),
                )
                weights = network.net.state_dict()
                # A reproduction that deviates must not replace the teacher that students have learned from.
                if of_teacher is not None and not trained_teachers.weights_path(of_teacher).exists():
                    write_tensors(trained_teachers.weights_path(of_teacher), weights)
                recorded.finish(result, weights, "model.safetensors")
            except KeyboardInterrupt:
                if fitting.between_steps:
                    with interrupts.closing():
                        checkpoints.save(now())
                raise
    return recorded.run_id, result


@contextmanager
def _checkpoints(cfg: DictConfig, key: str, store: Store) -> Iterator[tuple[Checkpoints, dict[str, Any] | None]]:
    """Yields the checkpoints of a student's run, and the state of an interrupted run that goes on, else None.

    Raises:
        UserError: There is nothing to go on from, and the configuration demands it.
    """
    from kdsweep import recording
    from kdsweep.system import checkpoint

    def takes(state: Mapping[str, Any]) -> bool:
        return cfg.resume is not False and recording.can_go_on(store, state["run"])

    folder = Path(cfg.paths.cache) / "checkpoints" / key
    with checkpoint.kept(folder, cfg.checkpoint_share, takes) as (checkpoints, state):
        if state is None and cfg.resume is True:
            raise UserError(
                "`an interrupted run of the same configuration, versions, data and threads is there` must hold, but "
                "got resume=True and none. Repeat its command, or set resume=auto.",
                "resume",
            )
        yield checkpoints, state


def train_teacher(cfg: DictConfig) -> tuple[str, Result]:
    """Trains the teacher's head unless it came trained, logs the teacher, and keeps the head for its students.

    Returns:
        The run's MLflow id, and what it found.
    """
    from kdsweep import experiment, recording
    from kdsweep.config import build, identities
    from kdsweep.config.rules import is_averaged, is_trained
    from kdsweep.system.tensor_files import write_tensors

    data, _ = build.inputs(cfg)
    build.require_classes(cfg, data)
    if is_averaged(cfg.teacher):
        return _evaluate_average(cfg, data)
    if is_trained(cfg.teacher):
        return _train_or_evaluate(cfg, data)
    teacher = build.untrained_member(cfg)
    with recording.started(cfg, data, recording.open_store(cfg), teacher) as recorded:
        fitting: Iterable[Metrics] = ()
        if cfg.teacher.head is not None:
            fitting = build.component(cfg, "teacher.head")(teacher.network, *teacher.head_data())
        reached = experiment.Reached()
        log = recorded.epoch_log(reached)
        result = experiment.run(fitting, teacher.logits, data, None, log, cfg.evaluate_test, reached)
        head, path = teacher.network.head.state_dict(), identities.head_path(cfg, teacher)
        # A reproduction that deviates must not replace the head that students have learned from.
        if cfg.tracking.reproduces is None or not path.exists():
            write_tensors(path, head)
        recorded.finish(result, head, "head.safetensors")
    return recorded.run_id, result


def _train_or_evaluate(cfg: DictConfig, data: Dataset) -> tuple[str, Result]:
    """Makes the run of a teacher that is trained as a whole; evaluates and logs it alone where it was trained before.

    A reproduction trains it again in any case.
    """
    from kdsweep import experiment, recording
    from kdsweep.config import build, trained_teachers
    from kdsweep.system.files import locked
    from kdsweep.system.tensor_files import read_tensors

    if cfg.tracking.reproduces is not None:
        return _train_whole(cfg)
    path = trained_teachers.weights_path(cfg)
    with locked(Path(f"{path}.lock")):
        weights = read_tensors(path)
        if weights is None:
            return _train_whole(cfg)
    note(f"This teacher was trained before ({path}): it is evaluated.")
    teacher = build.untrained_member(cfg, weights)
    with recording.started(cfg, data, recording.open_store(cfg), teacher) as recorded:
        reached = experiment.Reached()
        result = experiment.run((), teacher.logits, data, None, recorded.epoch_log(reached), cfg.evaluate_test, reached)
        recorded.finish(result, weights, "model.safetensors")
    return recorded.run_id, result


def _train_whole(cfg: DictConfig) -> tuple[str, Result]:
    """Trains the teacher of `cfg` as a whole, goes on with that if it was interrupted, and keeps its weights."""
    from kdsweep.config.trained_teachers import training_components, training_config

    return train_student(training_config(cfg), training_components(cfg), of_teacher=cfg)


def _evaluate_average(cfg: DictConfig, data: Dataset) -> tuple[str, Result]:
    """Evaluates an averaged teacher, and logs it with the heads of its members."""
    from kdsweep import experiment, recording
    from kdsweep.averaged_teachers import AveragedTeacher
    from kdsweep.config import build

    teacher = trained_teacher(build.teacher_key(cfg))
    assert isinstance(teacher, AveragedTeacher)
    with recording.started(cfg, data, recording.open_store(cfg), teacher) as recorded:
        reached = experiment.Reached()
        result = experiment.run((), teacher.logits, data, None, recorded.epoch_log(reached), cfg.evaluate_test, reached)
        heads = {
            f"{name}.{key}": tensor
            for name, member in zip(cfg.teacher.members, teacher.members, strict=True)
            for key, tensor in member.network.head.state_dict().items()
        }
        recorded.finish(result, heads, "head.safetensors")
    return recorded.run_id, result


@functools.lru_cache(maxsize=1)
def trained_teacher(teacher_key: str) -> Teacher | AveragedTeacher:
    """Finds the trained teacher by the hash of everything that makes it; trains and logs it first where there is none.

    Args:
        teacher_key: As `build.teacher_key` makes it. The teacher stays in memory for the next job of a sweep.
    """
    from kdsweep.averaged_teachers import AveragedTeacher
    from kdsweep.config import build, identities
    from kdsweep.config.rules import is_averaged, is_trained

    cfg = build.of_key(teacher_key)
    if is_averaged(cfg.teacher):
        trained = (trained_teacher(build.teacher_key(member)) for member in build.members(cfg))
        return AveragedTeacher([one for one in trained if not isinstance(one, AveragedTeacher)], cfg.teacher.average)
    if is_trained(cfg.teacher):
        return _trained_whole(cfg)
    teacher = build.untrained_member(cfg)
    if cfg.teacher.head is None:
        return teacher
    new = "This teacher is new: its head is trained first, once for all students."
    head = _made_once(identities.head_path(cfg, teacher), new, lambda: train_teacher(cfg))
    teacher.network.head.load_state_dict(head)
    return teacher


def _trained_whole(cfg: DictConfig) -> Teacher:
    """Returns the teacher of `cfg`, which is trained as a whole; trains and logs it first where there is none."""
    from kdsweep.config import build, trained_teachers

    epochs = cfg.teacher.training.epochs
    new = f"This teacher is new: it is trained first, once for all students, for {epochs} epochs."
    weights = _made_once(trained_teachers.weights_path(cfg), new, lambda: _train_whole(cfg))
    return build.untrained_member(cfg, weights)


def _made_once(path: Path, new: str, make: Callable[[], object]) -> dict[str, Tensor]:
    """Reads what was trained of a teacher; where there is nothing, says so and makes it first, under a lock."""
    from kdsweep.system.files import locked
    from kdsweep.system.tensor_files import read_tensors

    with locked(Path(f"{path}.lock")):
        found = read_tensors(path)
        if found is None:
            note(new)
            try:
                make()
            except RunError as error:
                error.run_id = None  # the run that was asked for hasn't begun
                raise
            found = read_tensors(path)
    if found is None:
        raise OSError(f"the teacher was written to {path}, and can't be read back")
    return found


if __name__ == "__main__":
    # With its name, a worker process would import this module as the main one too, and Python warns of the second copy.
    __spec__ = None  # type: ignore[assignment]
    main()
