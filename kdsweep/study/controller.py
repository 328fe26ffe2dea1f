"""The controller of a study: one command from the first baseline to the verdict, below one MLflow run."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl
from omegaconf import DictConfig, OmegaConf

from kdsweep import recording
from kdsweep.analysis import metrics
from kdsweep.config import build, checks, keys, rules
from kdsweep.config.keys import flatten
from kdsweep.config.overrides import parsed, require_key, with_float_bounds, without_replaced_sweeps
from kdsweep.execution.executors import Executor, InProcess, open_executor, require_executor
from kdsweep.execution.jobs import Task
from kdsweep.execution.trial_link import build_pruner, storage_url
from kdsweep.report import console, writing
from kdsweep.study.forecast import forecast
from kdsweep.study.search import Search, Space, delete, described, held_by, limits, silence_optuna, space_of
from kdsweep.study.stages import Baseline, Stages
from kdsweep.system.environment import cores
from kdsweep.system.errors import UserError, require
from kdsweep.system.processes import parse_process, this_process
from kdsweep.system.progress import note
from kdsweep.tracking import sending
from kdsweep.tracking.run_records import ARM_TAG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from hydra.core.override_parser.types import Override
    from hydra.types import HydraContext, TaskFunction

    from kdsweep.tracking.run_writer import Run
    from kdsweep.tracking.store import Store

NAME = re.compile(r"\w[\w.+-]*", re.ASCII)


class Study(OptunaSweeperImpl):
    """A sweeper that runs a whole experiment: baselines, hydra-optuna-sweeper's search, confirmation, and verdict.

    Args:
        sampler: Configuration of Optuna's sampler; Hydra leaves it to the sweeper to build it.
        sampler_seed: The sampler's seed where its configuration has none, or None.
        pruner: Configuration of Optuna's pruner, or None.
        baselines: For each arm its overrides, its number of seeds, and whether it is a control.
        confirm_seeds: The number of fresh seeds for the chosen setting and for each control.
        executor: The executor's name; None means `in_process` if n_jobs is 1, and `workers` otherwise.
        ray_address: The address of a Ray cluster; None starts Ray on this machine.
        max_restarts: How often a run whose process died is started again.
        restart: "fresh" begins anew; None goes on with what is done.
        search: The plug-in's own arguments.
    """

    storage: str | None

    def __init__(
        self,
        *,
        sampler: DictConfig,
        sampler_seed: int | None,
        pruner: DictConfig | None,
        baselines: Mapping[str, Any],
        confirm_seeds: int,
        executor: str | None,
        ray_address: str | None,
        max_restarts: int,
        restart: str | None,
        **search: Any,
    ) -> None:
        super().__init__(sampler=sampler, **search)
        self._sampler_seed, self._pruner = sampler_seed, pruner
        self._baselines = {
            name: Baseline(tuple(baseline.overrides), baseline.seeds, baseline.control)
            for name, baseline in baselines.items()
        }
        self._confirm_seeds, self._max_restarts, self._restart = confirm_seeds, max_restarts, restart
        self._executor = executor or ("in_process" if self.n_jobs == 1 else "workers")
        self._ray_address = ray_address

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra gives to every sweeper."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._task = Task(hydra_context, config, task_function)

    def sweep(self, arguments: list[str]) -> None:
        """Runs the study, or what is left of it; `arguments` are the overrides of the command line."""
        silence_optuna()
        overrides = without_replaced_sweeps(parsed([*self._parse_sweeper_params_config(), *arguments]))
        objectives = rules.objectives(self.config)
        directions = self._directions(objectives)
        self._check(directions)
        space = space_of(self._exact(overrides))
        self._check_limits(space)
        build.rehearse(self.config)
        folder = Path(self.sweep_dir)
        with only_controller(folder, str(self.study_name)):
            url = storage_url(self.storage, self.sweep_dir)
            if self._restart == "fresh":
                delete(url, str(self.study_name))
            search = Search(
                url,
                str(self.study_name),
                directions,
                space,
                self.sampler,
                self._pruner,
                self.n_trials,
                self._max_restarts,
                self._extender(),
                self._sampler_seed,
            )
            with search.held():
                searched = [override for override in overrides if override.is_sweep_override()]
                search.require_same({**self._conditions(searched), "directions": directions})
                self._run(search, overrides, list(zip(objectives, directions, strict=True)))

    # Before the first run

    def _directions(self, objectives: Sequence[str]) -> list[str]:
        """Returns which way each objective is better: as configured, or else as its metric is defined."""
        if self.direction is None:
            return [metrics.direction(name) for name in objectives]
        directions = [str(direction) for direction in self._get_directions()]
        rule = "one direction for each objective"
        require(len(directions) == len(objectives), rule, directions, "hydra.sweeper.direction", "null chooses them.")
        known = ("maximize", "minimize")
        require(set(directions) <= {*known}, f"direction in {known}", directions, "hydra.sweeper.direction")
        return directions

    def _check(self, directions: Sequence[str]) -> None:
        """Refuses values that would otherwise be refused only after the baselines."""
        checks.check(rules.settled(self.config))
        remedy = "A study always goes on where it was interrupted."
        require(self.config.resume is not True, "resume in (auto, false) in a study", True, "resume", remedy)
        require_executor(self._executor, self.n_jobs)
        rule = "seed is null or a whole number >= 0"
        own = OmegaConf.select(self.sampler, "seed")
        for key, seed in (("sweep.seed", self._sampler_seed), ("hydra.sweeper.sampler.seed", own)):
            require(seed is None or (type(seed) is int and seed >= 0), rule, seed, key)
        for name, baseline in self._baselines.items():
            key = "sweep.baseline_seeds" if baseline.control else f"hydra.sweeper.baselines.{name}.seeds"
            require(type(baseline.seeds) is int and baseline.seeds >= 0, "baseline seeds >= 0", baseline.seeds, key)
        for key, value, least in (
            ("n_trials", self.n_trials, 1),
            ("confirm_seeds", self._confirm_seeds, 0),
            ("max_restarts", self._max_restarts, 0),
        ):
            require(type(value) is int and value >= least, f"{key} >= {least}", value, f"sweep.{key}")
        require(self._restart in (None, "fresh"), "restart in (null, fresh)", self._restart, "sweep.restart")
        remedy = "It names a folder too: letters, digits and . _ + -"
        plain = self.study_name is not None and NAME.fullmatch(str(self.study_name)) is not None
        require(plain, "a plain name", self.study_name, "sweep.name", remedy)
        if self._pruner is not None:
            require(len(directions) == 1, "one objective with a pruner", len(directions), "hydra.sweeper.pruner")
            build_pruner(self._pruner)

    def _exact(self, overrides: Iterable[Override]) -> Iterator[Override]:
        """Yields the overrides with sweeps, with float bounds where the configuration has a float.

        Raises:
            UserError: A key isn't there, or all runs need the same value of it.
        """
        remedy = "Write one value, in quotes if it holds a comma."
        for override in overrides:
            if override.is_sweep_override():
                key = override.get_key_element()
                require_key(override, self.config)
                values = str(override.input_line).partition("=")[2]
                require(keys.may_be_searched(key), "one value for all runs", values, key, remedy)
                yield from parsed([with_float_bounds(override, self.config)])

    def _check_limits(self, space: Space) -> None:
        """Refuses a search space if a run couldn't take one of its limits or choices."""
        for key, values in limits(space).items():
            # The choices of a group are its options, which Hydra checks.
            if key.startswith("+") or OmegaConf.is_config(OmegaConf.select(self.config, key)) or "/" in key:
                continue
            for value in values:
                own = self.config.copy()
                OmegaConf.set_readonly(own, False)
                OmegaConf.update(own, key, value)
                checks.check(rules.settled(own))

    def _extender(self) -> Callable[[Any], None] | None:
        extend = self.custom_search_space_extender
        return None if extend is None else lambda trial: extend(self.config, trial)

    def _own(self) -> dict[str, object]:
        """Returns the configuration that the study's runs share, flattened."""
        names = [key for key in self.config if isinstance(key, str) and key != "hydra"]
        return flatten(build.container(OmegaConf.masked_copy(self.config, names)))

    def _conditions(self, searched: Iterable[Override]) -> dict[str, object]:
        """Returns what must be the same when the study goes on."""
        own = {key: value for key, value in self._own().items() if not keys.may_change_when_going_on(key)}
        arms = {f"baselines.{name}": (list(arm.overrides), arm.control) for name, arm in self._baselines.items()}
        return {**own, **_space_lines(searched), **arms}

    # The study's own run

    @contextmanager
    def _parent(self, store: Store, search: Search, params: Mapping[str, object]) -> Iterator[Run]:
        """Opens the MLflow run above all others: the one that the study has, or a new one."""
        known = store.tagged(study_key=search.key)
        if known:
            with store.reopened(known[0].id) as run:
                yield run
        else:
            tags = {ARM_TAG: "study", "kdsweep.study": search.name, "kdsweep.study_key": search.key}
            with store.run(search.name, tags=tags, params=params) as run:
                yield run

    def _run(self, search: Search, overrides: Sequence[Override], objectives: Sequence[tuple[str, str]]) -> None:
        store = recording.open_store(self.config)
        # The records that jobs of an interrupted study couldn't send say which of the jobs are done.
        sending.send_unsent(store, recording.unsent_folder(self.config))
        searched = [override for override in overrides if override.is_sweep_override()]
        with self._parent(store, search, {**self._own(), **_space_lines(searched)}) as parent:
            parent.tag(self._tags(search, objectives))
            stages = Stages(
                store,
                parent.id,
                search,
                overrides,
                [] if self._threads is None else [f"threads={self._threads}"],
                [name for name, _ in objectives],
                self._baselines,
                self._confirm_seeds,
                self._max_restarts,
                self.max_failure_rate,
            )
            # This measures, so it comes before the workers start and import.
            self._announce(stages)
            with stages.carried_out_by(self._open_executor(any(stages.left().values()))):
                stages.run_baselines()
                stages.run_search()
                parent.tag({"kdsweep.chosen": str(stages.confirm())})
            search.write_results(Path(self.sweep_dir) / "optimization_results.yaml")
        folder = writing.default_folder(Path(self.config.paths.root), store.study(parent.id))
        console.show(writing.write(store, parent.id, folder))

    def _tags(self, search: Search, objectives: Sequence[tuple[str, str]]) -> dict[str, str]:
        """Returns the tags that tell the report what the study as a whole is."""
        planned = {
            "n_trials": search.n_trials,
            "baseline_seeds": max((arm.seeds for arm in self._baselines.values() if arm.control), default=0),
            "confirm_seeds": self._confirm_seeds,
        }
        values = {"space": described(search.space), "objectives": objectives, "planned": planned}
        tags = {f"kdsweep.{name}": json.dumps(value) for name, value in values.items()}
        return {**tags, "kdsweep.process": str(this_process())}

    @property
    def _threads(self) -> int | None:
        """The number of threads that each run sets, its share of the cores; None leaves it to the configuration."""
        if self.config.threads is not None or self._executor == "in_process":
            return None
        n_jobs: int = self.n_jobs
        return max(1, cores() // n_jobs)

    def _open_executor(self, needed: bool) -> Executor:
        if not needed:
            return InProcess(self._task)
        return open_executor(
            self._executor,
            self._task,
            self.launcher,
            self.n_jobs,
            threads=self.config.threads or self._threads or cores(),
            device=self.config.device,
            ray_address=self._ray_address,
        )

    def _announce(self, stages: Stages) -> None:
        """Prints what the study is going to do, and about how long that takes."""
        planned, left = stages.planned(), stages.left()
        if not any(left.values()):
            note(f"Study {self.study_name}: all {sum(planned.values())} runs are done.")
            return
        elsewhere = self._executor == "launcher" or self._ray_address is not None
        found = forecast(
            self.config,
            planned,
            left,
            self.n_jobs,
            name=str(self.study_name),
            threads=self._threads,
            elsewhere=elsewhere,
        )
        for line in found.words():
            note(line)


@contextmanager
def only_controller(folder: Path, name: str) -> Iterator[None]:
    """Keeps other controllers of this machine out of the study's folder until the block ends.

    Raises:
        UserError: Another controller works in it already; the message names its process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "controller.lock")
    holder = folder / "controller"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        text = holder.read_text(encoding="utf-8") if holder.exists() else str(this_process())
        raise UserError(held_by(name, parse_process(text)), "sweep.name") from None
    try:
        holder.write_text(str(this_process()), encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _space_lines(searched: Iterable[Override]) -> dict[str, object]:
    """Returns the searched keys as they were written."""
    return {f"space.{override.get_key_element()}": override.input_line for override in searched}
