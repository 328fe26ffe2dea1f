"""The controller of a study: one command from the first baseline to the verdict, below one MLflow run."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl
from omegaconf import DictConfig, OmegaConf, open_dict

from kdsweep import recording
from kdsweep.analysis import metrics
from kdsweep.analysis.study_goals import Goals
from kdsweep.config import build, checks, keys, recorded_teachers, rules, trained_teachers
from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.config.keys import flatten
from kdsweep.config.overrides import (
    adds,
    around,
    in_whole_numbers,
    is_there,
    kept_beside,
    override_line,
    parsed,
    require_key,
    without_replaced_sweeps,
)
from kdsweep.config.unread import require_read
from kdsweep.execution.executors import Executor, InProcess, open_executor, ray_cluster, require_executor
from kdsweep.execution.jobs import Task, all_overrides
from kdsweep.execution.trial_link import build_pruner, storage_url
from kdsweep.exporting import student_models
from kdsweep.report import console, next_commands, writing
from kdsweep.study import asking, choosing, fidelity, starting, two_records
from kdsweep.study.forecast import forecast
from kdsweep.study.search import (
    CODE,
    FIDELITY,
    Search,
    Setting,
    Space,
    delete,
    described,
    extended,
    held_by,
    limits,
    settings_by_option,
    silence_optuna,
    space_of,
)
from kdsweep.study.stages import Baseline, Stages
from kdsweep.system.environment import cores
from kdsweep.system.errors import UserError, is_number, require
from kdsweep.system.exit_status import explained
from kdsweep.system.masking import masked_text
from kdsweep.system.processes import parse_process, this_process
from kdsweep.system.progress import note
from kdsweep.tracking import sending
from kdsweep.tracking.run_records import ARM_TAG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from hydra.core.override_parser.types import Override
    from hydra.types import HydraContext, TaskFunction

    from kdsweep.analysis.study_goals import Stop
    from kdsweep.execution.jobs import Job
    from kdsweep.study.fidelity import Lengths
    from kdsweep.study.search import EndedTrial
    from kdsweep.tracking.run_records import RunRecord
    from kdsweep.tracking.run_writer import Run
    from kdsweep.tracking.store import Store

# MLflow accepts no longer tag.
LONGEST_COMMAND = 5000

MULTIRUN = "hydra.mode=MULTIRUN"

NAME = re.compile(r"\w[\w.+-]*", re.ASCII)


class Study(OptunaSweeperImpl):
    """A sweeper that runs a whole experiment: baselines, hydra-optuna-sweeper's search, confirmation, and verdict.

    Args:
        sampler: Configuration of Optuna's sampler; Hydra leaves it to the sweeper to build it.
        sampler_seed: The sampler's seed where its configuration has none, or None.
        pruner: Configuration of Optuna's pruner, or None.
        baselines: For each arm its overrides, its number of seeds, whether it is a control, and whether it then has the
            chosen setting. An arm without any run is left out.
        confirm_seeds: The number of fresh seeds for the chosen setting and for each control.
        confirm_until: The most fresh seeds of a confirmation that stops when its answer is clear; None for exactly
            `confirm_seeds`.
        choose: The rule by which the confirmed setting is chosen, one of `choosing.RULES`.
        start: The settings that are tried first, or None.
        start_from: The name or id of another study whose trials are known too, or None.
        search_seeds: "fresh" gives each trial its own seed, "fixed" the configured one to all.
        replicates: How often each setting of the search is run, with another seed each time.
        race: The number of further runs, each of a setting that could still be the best.
        fidelity: The share of `fidelity_of` that a trial has if a pilot shows that ranks transfer; None for all of it.
        fidelity_of: What is cut down, one of `fidelity.KEYS`.
        pilot: The number of the pilot's settings.
        executor: The executor's name; None means `in_process` if n_jobs is 1, and `workers` otherwise.
        ray_address: The address of a Ray cluster, as in `executors.ray_cluster`.
        max_restarts: How often a run whose process died is started again.
        restart: "fresh" begins anew; None goes on with what is done; "restore" too, and records trials whose MLflow
            runs are gone again.
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
        confirm_until: int | None,
        choose: str,
        start: Any,
        start_from: str | None,
        search_seeds: str,
        replicates: int,
        race: int,
        fidelity: float | None,
        fidelity_of: str,
        pilot: int,
        executor: str | None,
        ray_address: str | None,
        max_restarts: int,
        restart: str | None,
        **search: Any,
    ) -> None:
        super().__init__(sampler=sampler, **search)
        self._sampler_seed, self._pruner = sampler_seed, pruner
        self._baselines = {
            name: Baseline(
                tuple(baseline.overrides),
                baseline.seeds,
                baseline.control,
                baseline.as_chosen,
            )
            for name, baseline in baselines.items()
            if baseline.control or baseline.seeds != 0
        }
        self._confirm_seeds, self._max_restarts, self._restart = confirm_seeds, max_restarts, restart
        self._confirm_until, self._start, self._start_from = confirm_until, start, start_from
        self._executor = executor or ("in_process" if self.n_jobs == 1 else "workers")
        self._ray_address, self._choose, self._search_seeds = ray_address, choose, search_seeds
        self._fidelity, self._fidelity_of, self._pilot = fidelity, fidelity_of, pilot
        self._replicates, self._race = replicates, race
        # Keys of the configuration that the search alone gives, each with one of its values.
        self._added: dict[str, object] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra gives to every sweeper."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._task = Task(hydra_context, config, task_function)

    def sweep(self, arguments: list[str]) -> None:
        """Runs the study, or what is left of it; `arguments` are the overrides of the command line."""
        silence_optuna()
        loader = self.hydra_context.config_loader
        overrides = without_replaced_sweeps(parsed([*self._parse_sweeper_params_config(), *arguments], loader))
        self.config = self._with_searched(overrides)
        objectives = rules.objectives(self.config)
        directions = self._directions(objectives)
        self._check(directions)
        self._hold(overrides, objectives, directions)

    def _hold(self, overrides: list[Override], objectives: list[str], directions: list[str]) -> None:
        self._check_arms(overrides)
        overrides = self._searchable(overrides)
        space = space_of(self._exact(overrides))
        self._check_extension(space, overrides)
        self._check_repeats(space)
        lengths = self._lengths(space)
        for config, words in self._configurations(space, overrides):
            with beside(words):
                self._check_limits(space, config)
                config = recorded_teachers.filled(rules.settled(config))
                build.rehearse(config)
                trained_teachers.rehearse(config)
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
                self._replicates,
                self._race,
            )
            with search.held():
                searched = [override for override in overrides if override.is_sweep_override()]
                search.require_same({**self._conditions(searched), "directions": directions})
                fidelity.require_same(search, lengths)
                self._run(search, overrides, list(zip(objectives, directions, strict=True)), lengths)

    # Before the first run

    def _parse_sweeper_params_config(self) -> list[str]:
        """Returns hydra.sweeper.params as override lines; what isn't text in the YAML file, such as null, stays so."""
        params = build.container(self.params) if self.params else {}
        return [
            f"{key}={value}" if isinstance(value, str) else override_line(key, value) for key, value in params.items()
        ]

    def _searchable(self, overrides: Sequence[Override]) -> list[Override]:
        """Returns the overrides without the search over alpha and tau of `sweep=alpha_tau`, if the loss has none.

        Raises:
            UserError: Nothing is left to search; the message has a command that searches what the loss has.
        """
        shipped = OmegaConf.load(CONFIG_FOLDER / "sweep" / "alpha_tau.yaml").hydra.sweeper.params
        lines = {f"{key}={value}" for key, value in shipped.items()}
        lost = [o for o in overrides if o.input_line in lines and not is_there(o.key_or_group, self.config)]
        left = [override for override in overrides if override not in lost]
        if not lost:
            return left
        chosen = f"loss={self.config.hydra.runtime.choices.loss}"
        names = " and ".join(override.key_or_group for override in lost)
        if any(override.is_sweep_override() for override in left) or self._extender() is not None:
            verb = "is" if len(lost) == 1 else "are"
            note(f"Study {self.study_name}: {names} {verb} not searched, for {chosen} has none.")
            return left
        own = {name: value for name, value in flatten(build.container(self.config.loss)).items() if is_number(value)}
        words = [f"loss.{name}={around(value)}" for name, value in own.items()]
        if not words:
            rate = OmegaConf.select(self.config, "optimizer.lr")
            words = [f"optimizer.lr={around(rate)}"] if is_number(rate) else []
        remedy = f"Choose another loss, or say what to search, such as: {_command()} {shlex.join(words)}"
        raise UserError(f"a study searches something, but {chosen} has no {names}. {remedy}", "loss")

    def _with_searched(self, overrides: Iterable[Override]) -> DictConfig:
        """Returns the configuration with a value for each key that the search alone gives (+loss.weight=interval(0,1)).

        The value is one that the search may propose, for what is tried and measured before the first trial.
        """
        searched = [override for override in overrides if override.is_sweep_override() and adds(override)]
        names = {override.key_or_group for override in searched if not self._is_group(override.key_or_group)}
        missing = {name for name in names if not is_there(name, self.config)}
        config = self.config.copy()
        OmegaConf.set_readonly(config, False)
        for key, values in limits(space_of(o for o in searched if o.key_or_group in missing)).items():
            value = values[0]
            plain = int(value) if type(value) is float and value.is_integer() else value
            self._added[key.lstrip("+")] = plain
            with open_dict(config):
                OmegaConf.update(config, key.lstrip("+"), plain)
        return config

    def _arms(self) -> dict[str, Baseline]:
        """Returns the baselines; the teacher's, which reads no student's keys, has those that only the search gives."""
        lines = [override_line(f"+{key}", value) for key, value in self._added.items()]
        arms = dict(self._baselines)
        for name, arm in arms.items():
            if "arm=teacher" in arm.overrides:
                arms[name] = dataclasses.replace(arm, overrides=(*arm.overrides, *lines))
        return arms

    def _check_arms(self, overrides: Sequence[Override]) -> None:
        """Refuses a search over keys without a value of their own where a baseline needs them too."""
        for name, arm in self._arms().items() if self._added else ():
            lines = [*kept_beside(arm.overrides, overrides, whole_groups=True), *arm.overrides]
            try:
                checks.check(rules.settled(self.hydra_context.config_loader.load_sweep_config(self.config, lines)))
            except UserError as error:
                if error.key not in self._added:
                    raise
                value = override_line(f"+{error.key}", self._added[error.key])
                remedy = f"Give it a value beside the search ({value}), for the runs of {name}."
                raise UserError(f"with the baseline {name}, {error.message} {remedy}", error.key) from error

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
        require_read(self.config, self.config.hydra)
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
            ("replicates", self._replicates, 1),
            ("race", self._race, 0),
        ):
            require(type(value) is int and value >= least, f"{key} >= {least}", value, f"sweep.{key}")
        most = self._confirm_until
        rule = "confirm_until is null, or a whole number >= confirm_seeds >= 1"
        fits = most is None or (type(most) is int and most >= self._confirm_seeds >= 1)
        require(fits, rule, most, "sweep.confirm_until")
        require(self._choose in choosing.RULES, f"choose in {choosing.RULES}", self._choose, "sweep.choose")
        rule = "search_seeds in (fresh, fixed)"
        require(self._search_seeds in ("fresh", "fixed"), rule, self._search_seeds, "sweep.search_seeds")
        rule = "restart in (null, fresh, restore)"
        require(self._restart in (None, "fresh", "restore"), rule, self._restart, "sweep.restart")
        remedy = "It names a folder too: letters, digits and . _ + -"
        plain = self.study_name is not None and NAME.fullmatch(str(self.study_name)) is not None
        require(plain, "a plain name", self.study_name, "sweep.name", remedy)
        rules.require_places(self.config, Path(self.config.paths.root) / "reports" / str(self.study_name))
        if self._pruner is not None:
            require(len(directions) == 1, "one objective with a pruner", len(directions), "hydra.sweeper.pruner")
            build_pruner(self._pruner)

    def _lengths(self, space: Space) -> Lengths | None:
        """Returns the lengths of the search's runs, if there are two; a short run's configuration is checked too."""
        full = OmegaConf.select(self.config, str(self._fidelity_of))
        lengths = fidelity.plan(self._fidelity, self._fidelity_of, self._pilot, full, self.n_trials, space)
        if lengths is not None:
            rule, remedy = (
                "start_from is null with a fidelity",
                "Scores of short runs can't be mixed with another study's.",
            )
            require(self._start_from is None, rule, self._start_from, "sweep.start_from", remedy)
            own = self.config.copy()
            OmegaConf.set_readonly(own, False)
            OmegaConf.update(own, lengths.key, lengths.short)
            checks.check(rules.settled(own))
        return lengths

    def _exact(self, overrides: Iterable[Override], config: DictConfig | None = None) -> Iterator[Override]:
        """Yields the overrides with sweeps, in whole numbers where the key takes no others.

        Args:
            overrides: The overrides.
            config: The configuration that has their keys; None for the study's.

        Raises:
            UserError: A key isn't there, or all runs need the same value of it.
        """
        remedy = "Write one value, in quotes if it holds a comma."
        config = self.config if config is None else config
        for override in overrides:
            if override.is_sweep_override():
                key = override.key_or_group
                require_key(override, config)
                values = str(override.input_line).partition("=")[2]
                require(keys.may_be_searched(key), "one value for all runs", values, key, remedy)
                whole = build.takes_whole_numbers(config, key, given=key not in self._added)
                line = in_whole_numbers(override) if whole else str(override.input_line)
                yield from parsed([line], self.hydra_context.config_loader)

    def _check_extension(self, space: Space, overrides: Iterable[Override]) -> None:
        """Refuses a function of the user's that suggests a key which the command line fixes."""
        extend = self._extender()
        if extend is None:
            return
        key = "hydra.sweeper.custom_search_space"
        setting: Setting = rules.attempt(key, lambda: extended(space, extend))
        fixed = {override.key_or_group for override in overrides if not override.is_sweep_override()}
        both = sorted(name for name in setting.params if name.lstrip("+") in fixed)
        require(not both, "a key is fixed or searched", ", ".join(both), key, "Leave out its value.")

    def _check_repeats(self, space: Iterable[str]) -> None:
        """Refuses to run a setting again where that couldn't be told from another setting, or would change nothing."""
        for key, value, once in (("replicates", self._replicates, 1), ("race", self._race, 0)):
            if value == once:
                continue
            rule = f"{key}={once} where hydra.sweeper.custom_search_space suggests keys"
            require(self._extender() is None, rule, value, f"sweep.{key}")
            searched = {name.lstrip("+") for name in space}
            require("seed" not in searched, f"{key}={once} where the seed is searched", value, f"sweep.{key}")

    def _configurations(self, space: Space, overrides: Sequence[Override]) -> Iterator[tuple[DictConfig, str]]:
        """Yields a trial's configuration for each option of a searched group, and the options in words.

        Raises:
            UserError: An option lacks a key that is fixed or searched.
        """
        groups = [key for key in space if self._is_group(key)]
        if not groups:
            yield self.config, ""
            return
        loader = self.hydra_context.config_loader
        for setting in settings_by_option(space, groups):
            own = setting.overrides
            words = " ".join(f"{key}={setting.params[key]}" for key in groups)
            with beside(words):
                lines = [*kept_beside(own, overrides, whole_groups=False), *own]
                config = loader.load_sweep_config(self.config, lines)
            yield config, words

    def _check_limits(self, space: Space, config: DictConfig) -> None:
        """Refuses a search space if a run couldn't take one of its limits or choices."""
        for key, values in limits(space).items():
            if self._is_group(key):
                continue
            for value in values:
                own = config.copy()
                OmegaConf.set_readonly(own, False)
                with open_dict(own):
                    OmegaConf.update(own, key.lstrip("+"), value)
                require_read(own, own.hydra)
                checks.check(rules.settled(own))

    def _is_group(self, key: str) -> bool:
        """Returns whether the values of a searched key are options of a group, which are files."""
        return bool(self.hydra_context.config_loader.get_group_options(key.lstrip("+").partition("@")[0]))

    def _extender(self) -> Callable[[Any], None] | None:
        extend = self.custom_search_space_extender
        return None if extend is None else lambda trial: extend(self.config, trial)

    def _own(self) -> dict[str, object]:
        """Returns the configuration that the study's runs share, flattened."""
        names = [key for key in self.config if isinstance(key, str) and key != "hydra"]
        own = flatten(build.container(OmegaConf.masked_copy(self.config, names)))
        return {name: value for name, value in own.items() if name not in self._added}

    def _params(self, searched: Sequence[Override]) -> dict[str, object]:
        """Returns the parameters of the study's own run: what its runs share, its budget, and what is searched."""
        varied = {override.key_or_group for override in searched}
        own = {key: value for key, value in self._own().items() if key.startswith("sweep.") or keys.is_parameter(key)}
        return {key: value for key, value in own.items() if key not in varied} | space_lines(searched)

    def _conditions(self, searched: Iterable[Override]) -> dict[str, object]:
        """Returns what must be the same when the study goes on."""
        own = {key: value for key, value in self._own().items() if not keys.may_change_when_going_on(key)}
        # As it is in force: studies from before `auto` had false there.
        own["compiled"] = build.compiled(self.config, in_study=True)
        arms = {
            f"baselines.{name}": (list(arm.overrides), arm.control)
            for name, arm in self._baselines.items()
            if not arm.as_chosen  # it is only run at the end, and may be added when the study goes on
        }
        named = build.sources(*(self.config[group] for group in keys.GROUPS))
        code = {f"{CODE}{name}": digest[:12] for name, digest in named.items()}
        return {**own, **space_lines(searched), **arms, **code}

    # The study's own run

    @contextmanager
    def _parent(
        self, store: Store, search: Search, known: RunRecord | None, params: Mapping[str, object]
    ) -> Iterator[Run]:
        """Opens the MLflow run above all others: the one that the study has, or a new one."""
        if known is not None:
            with store.reopened(known.id) as run:
                yield run
        else:
            tags = {ARM_TAG: "study", "kdsweep.study": search.name, "kdsweep.study_key": search.key}
            with store.run(search.name, tags=tags, params=params) as run:
                yield run

    def _run(
        self,
        search: Search,
        overrides: Sequence[Override],
        objectives: Sequence[tuple[str, str]],
        lengths: Lengths | None,
    ) -> None:
        if self._restart is None:
            two_records.require_store(search, recording.uri_of(self.config))
        store = recording.open_store(self.config)
        # The records that jobs of an interrupted study couldn't send say which of the jobs are done.
        sending.send_unsent(store, recording.unsent_folder(self.config))
        searched = [override for override in overrides if override.is_sweep_override()]
        known = two_records.study_run(search, store)
        runs = [] if known is None else store.children(known.id)
        two_records.require_known(search, runs)
        missing = two_records.without_run(search, runs)
        if self._restart is None:
            two_records.require_same(search, store, known, missing)
        looks = _looks(known)
        explicit = any(override.key_or_group in ("sweep.choose", "hydra.sweeper.choose") for override in overrides)
        until = self._until(search, known)
        search.name_objectives([name for name, _ in objectives])
        asked = OmegaConf.to_container(self._start) if OmegaConf.is_config(self._start) else self._start
        first = starting.settings(asked, search)
        starting.begin(search, first, self._start_from, store, self._params(searched))
        choose = choosing.rule_in_force(search, self._choose, explicit=explicit)
        with self._parent(store, search, known, self._params(searched)) as parent:
            search.record_in(masked_text(store.uri))
            parent.tag(self._tags(search, objectives, until))
            parent.tag(asking.tag(known, self._asked(searched, search, until)))
            stages = Stages(
                store,
                parent.id,
                search,
                overrides,
                [] if self._threads is None else [f"threads={self._threads}"],
                [name for name, _ in objectives],
                self._arms(),
                self._confirm_seeds,
                self._max_restarts,
                self.max_failure_rate,
                choose,
                self._search_seeds,
                until,
                lengths=lengths,
            )
            for trial in missing:
                self._record_again(store, stages.trial_job(trial), trial, [name for name, _ in objectives])
            # This measures, so it comes before the workers start and import.
            self._announce(stages)
            anything_left = any(stages.left().values())
            parent.tag(stopped(stages.stop))
            if known is not None and known.end is not None and known.status == "FINISHED" and not anything_left:
                parent.ends_at(known.end)
            with stages.carried_out_by(self._open_executor(anything_left)):
                stages.run_baselines()
                stages.run_pilot()
                if lengths is not None:
                    parent.tag({"kdsweep.fidelity": json.dumps(search.noted(FIDELITY))})
                stages.run_search()
                chosen = stages.choose()
                # Before its first run, so that a report in the middle of a new confirmation takes no other trial's.
                choice = {} if stages.choice is None else dataclasses.asdict(stages.choice)
                parent.tag({"kdsweep.chosen": str(chosen.number), "kdsweep.choice": json.dumps(choice, default=str)})
                stages.confirm(chosen)
            parent.tag(stopped(stages.stop))
            look = (chosen.number, self._confirm_seeds if stages.stop is None else stages.stop.seeds)
            if self._confirm_seeds and look not in looks[-1:]:
                looks.append(look)
            parent.tag({"kdsweep.looks": json.dumps(looks)})
            search.write_results(Path(self.sweep_dir) / "optimization_results.yaml")
        self._report(store, parent.id)

    def _report(self, store: Store, parent_id: str) -> None:
        """Writes and prints the report."""
        folder = writing.default_folder(Path(self.config.paths.root), store.study(parent_id))
        report = writing.write(store, parent_id, folder)
        console.show(report)
        # The answer is shown before, so nobody waits for this.
        if self.config.tracking.models and not self.config.tracking.offline:
            student_models.log_of_study(store, store.children(parent_id), Path(self.config.paths.root))
        console.show_line(next_commands.after_study(store.uri, Path(self.config.paths.root), report))

    def _record_again(self, store: Store, job: Job, trial: EndedTrial, objectives: Sequence[str]) -> None:
        """Records a trial whose run is gone, by Optuna's values."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, all_overrides(job))
        names = [key for key in config if isinstance(key, str) and key != "hydra"]
        metrics = {**dict(zip(objectives, trial.values, strict=False)), "seconds": trial.seconds}
        config = recorded_teachers.filled(rules.settled(OmegaConf.masked_copy(config, names)))
        recording.record_again(config, store, metrics, trial.pruned_at)
        note(f"Trial {trial.number} is recorded again by Optuna's values: it has no curves and no weights.")

    def _until(self, search: Search, known: RunRecord | None) -> int | None:
        """Returns the most seeds of a confirmation that stops by itself; a study that has had such a rule keeps it."""
        before = None if known is None else Goals.read(known.tags).confirm_until
        if self._confirm_until is None and before is not None:
            note(f"Study {search.name} has sweep.confirm_until={before}, and goes on like that.")
            return max(before, self._confirm_seeds)
        return self._confirm_until

    def _tags(
        self,
        search: Search,
        objectives: Sequence[tuple[str, str]],
        until: int | None,
        contest_planned: Mapping[str, int] | None = None,
    ) -> dict[str, str]:
        """Returns the tags that tell the report what the study as a whole is."""
        planned = {
            "n_trials": search.n_trials if contest_planned is None else contest_planned["trials"],
            "baseline_seeds": max((arm.seeds for arm in self._baselines.values() if arm.control), default=0),
            "confirm_seeds": self._confirm_seeds,
            "confirm_until": until,
            "baselines": {name: arm.seeds for name, arm in self._baselines.items()},
        }
        if search.repeats:
            planned |= {"replicates": self._replicates, "race": self._race, "repeats": True}
        values = {"space": described(search.space), "objectives": objectives, "planned": planned}
        tags = {f"kdsweep.{name}": json.dumps(value) for name, value in values.items()}
        return {**tags, "kdsweep.command": _command(), "kdsweep.process": str(this_process())}

    def _asked(self, searched: Iterable[Override], search: Search, until: int | None) -> dict[str, str]:
        """Returns what is asked of the study, in words."""
        sampler = str(OmegaConf.select(self.sampler, "_target_")).rpartition(".")[2]
        seeds = str(self._confirm_seeds) if until is None else f"{self._confirm_seeds} to {until}"
        return {
            "trials": str(search.n_settings),
            **{override.get_key_element(): str(override.input_line).partition("=")[2] for override in searched},
            "sampler": sampler,
            "baselines": ", ".join(f"{name} {arm.seeds}" for name, arm in self._baselines.items()),
            "fresh seeds": seeds,
            "start": str(len(search.started())),
            "start from": search.earlier_name() or "nothing",
            **({"replicates": str(self._replicates), "race": str(self._race)} if search.repeats else {}),
        }

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
        left = stages.left()
        planned = stages.planned()
        if not any(left.values()):
            note(f"Study {self.study_name}: all {sum(planned.values())} runs are done.")
            return
        on_cluster = self._executor == "ray" and ray_cluster(self._ray_address) is not None
        elsewhere = self._executor == "launcher" or on_cluster
        config = recorded_teachers.filled(self.config)
        epochs = trained_teachers.epochs_to_come(config)
        if epochs:
            note(f"The teacher is trained first, for {epochs} epochs, which the forecast leaves out.")
        found = forecast(
            config,
            planned,
            left,
            self.n_jobs,
            name=str(self.study_name),
            threads=self._threads,
            elsewhere=elsewhere,
            share=stages.share,
        )
        for line in found.words():
            note(line)
        if self._confirm_until is not None and stages.stop is None:
            note(
                f"Confirmation looks from {self._confirm_seeds} fresh seeds on, and stops when the answer is clear or "
                f"out of reach; {self._confirm_until} are the most."
            )


def _command() -> str:
    """Returns the command line that the study was started, or went on, with; without secrets."""
    program, *words = sys.argv
    name = Path(program).name
    # What `train.main` adds for a sweep isn't the user's.
    words = [word for word in words if word != MULTIRUN]
    return masked_text(shlex.join(["kdsweep" if name == "train.py" else name, *words]))[:LONGEST_COMMAND]


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


@contextmanager
def beside(options: str) -> Iterator[None]:
    """Lets the errors of this block, which tries the configuration of a trial, name its options of searched groups."""
    try:
        yield
    except Exception as error:
        known = explained(error) if options else None
        if not isinstance(known, UserError):
            raise
        remedy = "What is set or searched beside a searched group has to fit each option: make a study for each if not."
        raise UserError(f"with {options}, {known.message} {remedy}", known.key) from error


def stopped(stop: Stop | None) -> dict[str, str]:
    """Returns the tag that says where the confirmation stopped by itself, if it did."""
    return {"kdsweep.stopped": json.dumps(None if stop is None else dataclasses.asdict(stop))}


def _looks(known: RunRecord | None) -> list[tuple[int, int]]:
    """Returns at what the study ended with a verdict before: the trial and the number of fresh seeds of each.

    Args:
        known: The study's own run, if it has one. An older one that has finished ended with one verdict at least.
    """
    if known is None:
        return []
    goals = Goals.read(known.tags)
    if not goals.looks and known.status == "FINISHED" and goals.chosen is not None and goals.confirm_seeds:
        return [(goals.chosen, goals.confirm_seeds)]
    return list(goals.looks)


def space_lines(searched: Iterable[Override]) -> dict[str, object]:
    """Returns the searched keys as they were written."""
    return {f"space.{override.get_key_element()}": override.input_line for override in searched}
