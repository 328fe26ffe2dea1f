"""The search of a study: asks Optuna for settings, and tells it their results, through any interruption."""

from __future__ import annotations

import inspect
import json
import math
import statistics
import time
import uuid
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import optuna
from hydra.core.override_parser.types import RangeSweep
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl, create_optuna_distribution_from_override
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from kdsweep.analysis.choice import Axis, Scored
from kdsweep.analysis.racing import contenders, next_of
from kdsweep.config.keys import may_change_when_going_on
from kdsweep.config.overrides import choices, override_line, value_of
from kdsweep.config.rules import attempt
from kdsweep.execution.heartbeat import Pulse, beating, lives_at_once
from kdsweep.execution.trial_link import BEAT, PROCESS, TRUSTED, VALUES, build_pruner, open_storage, usable
from kdsweep.study.proposals import FROM_TRIALS, EarlierTrial, alike, lies_in, propose
from kdsweep.system.errors import UserError, one_line
from kdsweep.system.processes import ProcessId, parse_process, this_process
from kdsweep.tracking.run_records import parameter_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from hydra.core.override_parser.types import Override

# The user attributes that the sweeper writes into a trial, and into the study.
STARTS, PRUNED_AT, CAUSE = "kdsweep.starts", "kdsweep.pruned_at", "kdsweep.cause"
KEY, CONDITIONS, CONTROLLER = "kdsweep.key", "kdsweep.conditions", "kdsweep.controller"
STORE = "kdsweep.store"
# The number of trials from which a setting between them was chosen; and what was chosen from which trials, and how.
CHOSEN_FROM, CHOICE, CHOOSE = "kdsweep.chosen_from", "kdsweep.choice", "kdsweep.choose"
# The length of the trials' runs: what was asked for, and what the pilot decided.
LENGTH, FIDELITY = "kdsweep.length", "kdsweep.fidelity"
# The settings that were asked for first, and the trials of an earlier study.
START, EARLIER = "kdsweep.start", "kdsweep.earlier"
# Marks a trial that runs the setting of an earlier one again.
AGAIN = "kdsweep.again"

# Begins the names of those conditions of a study that are files of the user's own code.
CODE = "your code "

# The place of the sampler's configuration.
SAMPLER = "hydra.sweeper.sampler"

# What a study searches: each key with Optuna's distribution of its values.
Space = Mapping[str, BaseDistribution]


@dataclass(frozen=True)
class Setting:
    """What a trial tries.

    Attributes:
        number: The trial's number.
        params: The searched keys and their values; choices as `overrides.choices` writes them.
    """

    number: int
    params: Mapping[str, object]

    @property
    def name(self) -> str:
        """The name of the trial's job."""
        return f"trial-{self.number:04d}"

    @property
    def overrides(self) -> list[str]:
        """The values as override lines."""
        return [override_line(key, value) for key, value in self.params.items()]


@dataclass(frozen=True)
class EndedTrial(Setting):
    """A trial that ended well, as Optuna has it.

    Attributes:
        values: The value of each objective; of a pruned trial the last one that it reported, if it reported any.
        pruned_at: The epoch after which the pruner stopped it; None for a trial that reached its end.
        seconds: The time from its proposal to its end.
    """

    values: tuple[float, ...]
    pruned_at: int | None
    seconds: float


class Search:
    """A study in Optuna's storage.

    Args:
        url: The URL of the storage.
        name: The study's name in the storage.
        directions: "maximize" or "minimize" for each objective.
        space: What is searched.
        sampler: Configuration of the sampler. The number of trials in the storage is added to its seed.
        pruner: Configuration of the pruner, or None.
        n_trials: The number of trials that the sampler proposes, however they end; a grid has no more than its points.
        max_restarts: How often a trial whose process died is started again.
        extend: Suggests further parameters for one of Optuna's trials, or None.
        seed: The sampler's seed where its configuration has none; a sampler that takes no seed doesn't get it.
        replicates: How often each setting is run; each time is a trial of its own.
        race: The number of further trials, each of a setting that could still be the best.

    Attributes:
        n_settings: The number of trials that the sampler proposes.
        n_trials: The total number of trials.
        repeats: Whether trials of one setting are its repeated runs, each with another seed.

    Raises:
        UserError: The sampler or the pruner can't be built as configured.
    """

    def __init__(
        self,
        url: str,
        name: str,
        directions: Sequence[str],
        space: Space,
        sampler: DictConfig,
        pruner: DictConfig | None,
        n_trials: int,
        max_restarts: int,
        extend: Callable[[Trial], None] | None = None,
        seed: int | None = None,
        replicates: int = 1,
        race: int = 0,
    ) -> None:
        self.name, self.directions, self.space = name, list(directions), dict(space)
        self.n_settings, self._max_restarts, self._extend = n_trials, max_restarts, extend
        self._replicates, self._race = replicates, race
        self._storage = open_storage(url)
        self._pulse = Pulse()
        with usable(url):
            self._study = optuna.create_study(
                study_name=name,
                storage=self._storage,
                directions=[StudyDirection[direction.upper()] for direction in directions],
                load_if_exists=True,
            )
        self._study_id = self._storage.get_study_id_from_name(name)
        self._study.sampler = self._sampler(sampler, seed)
        if pruner is not None:
            self._study.pruner = build_pruner(pruner)
        self.n_trials = self.n_settings * replicates + race if self.n_settings else 0
        self.repeats = replicates > 1 or race > 0 or any(AGAIN in trial.user_attrs for trial in self.trials())
        # Optuna's Gaussian process doesn't see pruned trials, and would propose the same bad region again.
        self._hides_pruned = isinstance(self._study.sampler, optuna.samplers.GPSampler)

    def _sampler(self, config: DictConfig, seed: int | None) -> Any:
        own = OmegaConf.select(config, "seed")
        seed = seed if own is None else own
        build: Any = attempt(SAMPLER, lambda: instantiate({**config, "_partial_": True}, _execution_whitelist_=TRUSTED))
        kind: Any = build.func
        arguments: dict[str, Any] = {}
        # A resumed sampler with its old seed would propose its first points again. QMC and the grid count their points
        # in the storage, and need the old seed because it decides their order.
        if seed is not None and kind not in (optuna.samplers.QMCSampler, optuna.samplers.GridSampler):
            seed += len(self.trials())
        parameters = inspect.signature(kind).parameters.values()
        takes_seed = any(
            parameter.name == "seed" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters
        )
        if seed is not None and (own is not None or takes_seed):
            arguments["seed"] = seed
        if kind is optuna.samplers.GridSampler:
            arguments["search_space"] = {key: _choices(key, values) for key, values in self.space.items()}
            self.n_settings = min(self.n_settings, math.prod(map(len, arguments["search_space"].values())))
        return attempt(SAMPLER, lambda: build(**arguments))

    def name_objectives(self, names: Sequence[str]) -> None:
        """Gives the objectives their names in Optuna's record, which its dashboard shows."""
        if self._study.metric_names != [*names]:
            self._study.set_metric_names([*names])

    @property
    def key(self) -> str:
        """A key that no other study has; made when it is first asked for."""
        found = self._study.user_attrs.get(KEY)
        if found is None:
            found = uuid.uuid4().hex
            self._study.set_user_attr(KEY, found)
        return str(found)

    @property
    def recorded_in(self) -> str | None:
        """The URI of the MLflow store in which the study's runs were recorded last, without credentials."""
        found = self._study.user_attrs.get(STORE)
        return None if found is None else str(found)

    @property
    def has_begun(self) -> bool:
        """Whether the study has had a run in an MLflow store."""
        # Versions before that attribute didn't set it.
        return self.recorded_in is not None or self.count_finished() > 0

    def record_in(self, uri: str) -> None:
        """Notes the URI, without credentials, of the MLflow store that has the study's runs."""
        if uri != self.recorded_in:
            self._study.set_user_attr(STORE, uri)

    def trials(self) -> list[FrozenTrial]:
        """Returns all trials by number, as Optuna has them."""
        return self._study.get_trials(deepcopy=False)

    def ended_well(self) -> list[EndedTrial]:
        """Returns the trials that have a result or were pruned."""
        return [_ended(t) for t in self.trials() if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]

    def count_finished(self) -> int:
        """Returns how many trials are complete, pruned or failed."""
        return sum(trial.state.is_finished() for trial in self.trials())

    def count_failed(self) -> int:
        """Returns how many trials have failed."""
        return sum(trial.state == TrialState.FAIL for trial in self.trials())

    def require_same(self, conditions: Mapping[str, object]) -> None:
        """Refuses conditions that differ from those the study was begun with; stores them if it is new, or has grown.

        A wider or narrower range of a searched key and further baselines are no other study.

        Raises:
            UserError: It names the keys that differ.
        """
        now = {key: parameter_text(value) for key, value in conditions.items()}
        text = self._study.user_attrs.get(CONDITIONS)
        if text is None:
            self._study.set_user_attr(CONDITIONS, json.dumps(now))
            return
        written = now
        # A key that may change now may have been a condition in an older version.
        known = {key: parameter_text(value) for key, value in json.loads(text).items()}
        then = {key: value for key, value in known.items() if not may_change_when_going_on(key)}
        if not any(key.startswith(CODE) for key in then):  # begun before the user's own code was a condition
            now = {key: value for key, value in now.items() if not key.startswith(CODE)}
        # A key that the study's version didn't have counts as null, which leaves things as they were.
        nothing = parameter_text(None)
        before_and_now = {key: (then.get(key, nothing), now.get(key, nothing)) for key in {**then, **now}}
        differing = [
            key
            for key, (before, value) in before_and_now.items()
            if before != value and not self._may_grow(key, before == nothing, value == nothing)
        ]
        if differing:
            shown = "; ".join("{} was {} and is {}".format(key, *before_and_now[key]) for key in differing[:3])
            more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
            remedy = "Repeat its command, choose another sweep.name, or begin anew with sweep.restart=fresh."
            raise UserError(
                f"the study {self.name!r} was begun with another configuration ({shown}{more}). {remedy}", "sweep.name"
            )
        if any(before != value for before, value in before_and_now.values()):
            self._study.set_user_attr(CONDITIONS, json.dumps(written))

    def _may_grow(self, condition: str, is_new: bool, is_gone: bool) -> bool:
        """Returns whether a condition may have another value than before, or be new, without being another study's."""
        kind, _, name = condition.partition(".")
        if kind == "baselines":
            return is_new
        if kind != "space" or is_new or is_gone:
            return False
        tried = [trial.distributions[name] for trial in self.trials() if name in trial.distributions]
        return all(alike(one, self.space[name]) for one in tried)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other controllers, on any machine, from working on the study until the block ends.

        Raises:
            UserError: Another controller works on it already.
        """
        _require_free(self._study)

        def beat() -> None:
            self._study.set_user_attr(CONTROLLER, {"process": str(this_process()), "beat": time.time()})

        try:
            with beating(beat):
                yield
        finally:
            self._study.set_user_attr(CONTROLLER, None)

    def next(self) -> Setting | None:
        """Returns the trial to run next: an interrupted one, a new one, or an earlier setting again.

        None if there are enough trials, or if which setting is to be run again depends on trials that still run.
        """
        trials, waiting = self.trials(), self._waits()
        if not waiting and len(trials) >= self.n_trials:
            return None
        if not waiting and self._room(trials) <= 0:
            again = self._next_again()
            if again is None:
                return None
            self._study.enqueue_trial(again, user_attrs={AGAIN: True})
        elif not waiting and self._sees_others():
            params = propose(self._study.sampler, self.directions, self.space, trials, self._earlier())
            self._study.enqueue_trial(params)
        trial = self._study.ask(fixed_distributions=self.space)
        if self._extend is not None:
            self._extend(trial)
        trial.set_user_attr(STARTS, trial.user_attrs.get(STARTS, 0) + 1)
        return Setting(trial.number, trial.params)

    def first(self, n: int) -> list[Setting]:
        """Returns the settings of the first `n` < `n_settings` trials; those that aren't there yet are proposed.

        None of them begins by this: `next` returns those that have no result.
        """
        asked = []
        while self._waits() or len(self.trials()) < n:
            setting = self.next()
            assert setting is not None
            asked.append(setting)
        for setting in asked:
            self.give_back(setting.number)
        return [Setting(trial.number, trial.params) for trial in self.trials()[:n]]

    def next_of(self, n: int) -> Setting | None:
        """Returns the next of the first `n` trials that waits to be begun; None if none does."""
        return self.next() if any(trial.state == TrialState.WAITING for trial in self.trials()[:n]) else None

    # Settings that are run more than once

    @property
    def room(self) -> int:
        """How many settings the sampler is still to propose."""
        return self._room(self.trials())

    def _room(self, trials: Iterable[FrozenTrial]) -> int:
        return self.n_settings - sum(AGAIN not in trial.user_attrs for trial in trials)

    def runs_before(self, setting: Setting) -> int:
        """Returns how many earlier trials have run the same setting; 0 where trials of one setting aren't its runs."""
        if not self.repeats:
            return 0
        return sum(trial.params == setting.params for trial in self.trials()[: setting.number])

    def _settings(self, trials: Iterable[FrozenTrial]) -> list[list[FrozenTrial]]:
        """Returns the trials of each setting; those of one setting are together if they are its repeated runs."""
        if not self.repeats:
            return [[trial] for trial in trials]
        groups: dict[str, list[FrozenTrial]] = {}
        for trial in trials:
            groups.setdefault(repr(sorted(trial.params.items())), []).append(trial)
        return list(groups.values())

    def _next_again(self) -> dict[str, Any] | None:
        """Returns the setting that is run again; None if that depends on what still runs, or if all have failed."""
        settings = {own[0].number: own for own in self._settings(self.trials()) if self.holds(own[0].params)}
        runs = {number: len(own) for number, own in settings.items()}
        full = {trial.number for trial in self._full()}
        if len(self.trials()) < self.n_settings * self._replicates:
            lost = (TrialState.FAIL, TrialState.PRUNED)
            ranked = [n for n, own in settings.items() if any(trial.state not in lost for trial in own)]
        else:
            scores = {n: [trial.values[0] for trial in own if trial.number in full] for n, own in settings.items()}
            known = {n: values for n, values in scores.items() if values}
            ranked = contenders(known, maximise=self.directions[0] == "maximize") if known else []
        chosen = next_of(ranked, runs)
        return None if chosen is None else dict(settings[chosen][0].params)

    def _waits(self) -> bool:
        return any(trial.state == TrialState.WAITING for trial in self.trials())

    def complete(self, number: int, result: object) -> str | None:
        """Tells Optuna the result of a trial: a number, or one for each objective. Without them the trial fails.

        Returns:
            The cause of the failure; None if the trial is complete.
        """
        values = numbers(result)
        if len(values) == len(self.directions) and not any(map(math.isnan, values)):
            self._tell(number, values=values)
            return None
        rule = "a number" if len(self.directions) == 1 else f"{len(self.directions)} numbers"
        cause = f"its objective must be {rule}, but it is {one_line(repr(result))}"
        self.fail(number, cause)
        return cause

    def prune(self, number: int, epoch: int) -> None:
        """Tells Optuna that a trial was stopped after `epoch`."""
        trial = self.trials()[number]
        self._set(trial, PRUNED_AT, epoch)
        value = self._extrapolated(trial) if self._hides_pruned else None
        if value is None:
            self._tell(number, state=TrialState.PRUNED)
        else:
            self._tell(number, values=value)

    def fail(self, number: int, cause: str) -> None:
        """Tells Optuna that a trial has failed."""
        self._set(self.trials()[number], CAUSE, cause)
        self._tell(number, state=TrialState.FAIL)

    def give_back(self, number: int) -> None:
        """Gives back a trial that was interrupted on purpose. It is proposed again, and this counts as no restart."""
        trial = self.trials()[number]
        if trial.state == TrialState.RUNNING:
            self._set(trial, STARTS, trial.user_attrs.get(STARTS, 1) - 1)
            self.recover(number)

    def recover(self, number: int, values: Sequence[float] | None = None) -> str:
        """Settles a trial whose process is gone.

        If there is a result, which is what the job left or else `values`, it is told. Otherwise the trial is proposed
        again with its number and parameters, or fails after too many starts.

        Returns:
            The decision in words.
        """
        trial = self.trials()[number]
        values = trial.user_attrs.get(VALUES, values)
        if values is not None:
            cause = self.complete(number, values)
            return "its result is there" if cause is None else f"it failed: {cause}"
        starts = trial.user_attrs.get(STARTS, 0)
        if starts > self._max_restarts:
            self.fail(number, f"its process died {starts} times")
            return f"given up after {starts} starts"
        self._storage.set_trial_state_values(self._id(number), state=TrialState.WAITING)
        return "it is started again"

    def orphans(self) -> tuple[list[int], list[ProcessId]]:
        """Finds the trials that are running in Optuna's record although this controller hasn't started them.

        Returns:
            The numbers of those that are dead, and the processes of those that live.
        """
        dead, living = [], []
        for trial in self.trials():
            if trial.state == TrialState.RUNNING:
                process = parse_process(trial.user_attrs[PROCESS]) if PROCESS in trial.user_attrs else None
                if process in (None, this_process()) or not self._lives(process, trial.user_attrs.get(BEAT, 0.0)):
                    dead.append(trial.number)
                else:
                    living.append(process)
        return dead, living

    def _lives(self, process: ProcessId, beat: float) -> bool:
        return process.lives() if process.is_here else self._pulse.lives(str(process), beat)

    def best(self) -> Setting | None:
        """Returns the trial with the best value of the first objective; None if no trial is complete.

        Of a setting that was run more than once, the mean counts, and its first trial stands for it.
        """
        best = self._best()
        return None if best is None else Setting(best[0].number, best[0].params)

    def _best(self) -> list[FrozenTrial] | None:
        """Returns the trials of the setting with the best mean; mostly it is one."""
        full = self._settings(trial for trial in self._full() if self.holds(trial.params))
        sign = 1 if self.directions[0] == "maximize" else -1
        return max(full, key=lambda own: (sign * _mean(own), -own[0].number), default=None)

    def scored(self) -> list[Scored]:
        """Returns the trials that a choice is made from: those with a value, without the choice between them."""
        tried = [trial for trial in self._full() if trial.user_attrs.get(CHOSEN_FROM, -1) < self.n_trials]
        first = {trial.number: own[0].number for own in self._settings(tried) for trial in own}
        own = [
            Scored(t.number, t.params, t.values[0], inside=self.holds(t.params), first=first[t.number]) for t in tried
        ]
        if not own:
            return []
        return own + [
            Scored(-1 - one.number, one.params, one.values[0], own=False, inside=self.holds(one.params))
            for one in self._earlier()
        ]

    # What is known besides the trials

    def holds(self, params: Mapping[str, object]) -> bool:
        """Returns whether a setting lies in what is searched."""
        return lies_in(self.space, params)

    def comparable(self, params: Mapping[str, object]) -> bool:
        """Returns whether a model of this search can take a setting: its words are choices, the rest is numbers."""
        return all(
            params[axis.key] in axis.words if axis.words else isinstance(params[axis.key], int | float)
            for axis in self.axes()
        )

    def objectives(self) -> list[str]:
        """Returns the names of the objectives."""
        return list(self._study.metric_names or [])

    @property
    def is_grid(self) -> bool:
        """Whether the sampler visits each point of a grid once."""
        return isinstance(self._study.sampler, optuna.samplers.GridSampler)

    def started(self) -> list[Mapping[str, object]]:
        """Returns the settings that were asked for first, as `enqueue` got them."""
        return list(self._study.user_attrs.get(START, []))

    def enqueue(self, params: Mapping[str, object]) -> None:
        """Adds a trial of this setting, which `next` returns before it asks the sampler."""
        self._study.enqueue_trial(dict(params), user_attrs={START: True}, skip_if_exists=True)
        self._study.set_user_attr(START, [*self.started(), dict(params)])

    def learn(self, study_id: str, name: str, trials: Sequence[EarlierTrial]) -> None:
        """Keeps the trials of another study, which the sampler and the model of the choice then know."""
        self._study.set_user_attr(EARLIER, {"id": study_id, "name": name, "trials": [asdict(one) for one in trials]})

    def earlier_study(self) -> str | None:
        """Returns the id of the study whose trials are known; None for none."""
        found = self._study.user_attrs.get(EARLIER)
        return None if found is None else str(found["id"])

    def earlier_name(self) -> str | None:
        """Returns the name of the study whose trials are known; None for none."""
        found = self._study.user_attrs.get(EARLIER)
        return None if found is None else str(found["name"])

    def _earlier(self) -> list[EarlierTrial]:
        found = self._study.user_attrs.get(EARLIER, {"trials": []})["trials"]
        return [EarlierTrial(one["number"], one["params"], tuple(one["values"])) for one in found]

    @property
    def is_changed(self) -> bool:
        """Whether trials were proposed in another space than this."""
        return any(
            trial.distributions.get(key, distribution) != distribution
            for trial in self.trials()
            for key, distribution in self.space.items()
        )

    def _sees_others(self) -> bool:
        """Returns whether the sampler needs `propose`: for an earlier study's trials, or in a changed space."""
        return isinstance(self._study.sampler, FROM_TRIALS) and (self.is_changed or self.earlier_study() is not None)

    def axes(self) -> list[Axis]:
        """Returns the searched keys as the choice's model has them."""
        return [_axis(key, distribution) for key, distribution in self.space.items()]

    def between(self) -> EndedTrial | None:
        """Returns the trial of the setting that was chosen between as many trials as there are now; None before it."""
        made = [trial for trial in self.trials() if trial.user_attrs.get(CHOSEN_FROM) == self.n_trials]
        return _ended(made[0]) if made else None

    def try_between(self, params: Mapping[str, object]) -> None:
        """Adds a trial beyond `n_trials`, of a setting that was chosen between the others; `next` returns it."""
        self._study.enqueue_trial(dict(params), user_attrs={CHOSEN_FROM: self.n_trials})

    def noted(self, name: str) -> Any:
        """Returns what was noted under a name in the study's record; None if nothing was."""
        return self._study.user_attrs.get(name)

    def keep(self, name: str, value: object) -> None:
        """Notes a plain value in the study's record."""
        self._study.set_user_attr(name, value)

    def write_results(self, path: Path) -> None:
        """Writes hydra-optuna-sweeper's file: the best parameters, or the Pareto set."""
        best = self._best()
        if len(self.directions) == 1 and best is not None:
            found = {"name": "optuna", "best_params": _values(best[0].params), "best_value": _mean(best)}
        else:
            solutions = [{"params": _values(t.params), "values": list(t.values)} for t in self._study.best_trials]
            found = {"name": "optuna", "solutions": solutions}
        OmegaConf.save(OmegaConf.create(found), path)

    def _full(self) -> list[FrozenTrial]:
        """Returns the trials that reached their value; the values of others were extrapolated for the sampler."""
        return [t for t in self.trials() if t.state == TrialState.COMPLETE and PRUNED_AT not in t.user_attrs]

    def _extrapolated(self, trial: FrozenTrial) -> float | None:
        """Extrapolates what a pruned trial might have reached: its last value plus the others' median gain since then.

        The result is never better than the best value that was reached. It is None if the trial has no report, or if
        no complete trial has one at that epoch.
        """
        epoch = trial.last_step
        full = [t for t in self._full() if epoch in t.intermediate_values]
        if epoch is None or not full:
            return None
        gain = statistics.median(t.values[0] - t.intermediate_values[epoch] for t in full)
        best = self._study.direction == StudyDirection.MAXIMIZE
        limit = (max if best else min)(t.values[0] for t in full)
        return float((min if best else max)(trial.intermediate_values[epoch] + gain, limit))

    def _tell(self, number: int, **end: Any) -> None:
        try:
            self._study.tell(number, skip_if_finished=True, **end)
        except (RuntimeError, KeyError) as error:
            # After its last point the grid tries to stop `Study.optimize`, which isn't running, and before that it
            # looks up the point of a trial that has none of its own. The trial has been told by then.
            if "Study.stop" not in str(error) and error.args != ("grid_id",):
                raise

    def _id(self, number: int) -> int:
        return int(self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number))

    def _set(self, trial: FrozenTrial, name: str, value: object) -> None:
        if not trial.state.is_finished():
            self._storage.set_trial_user_attr(self._id(trial.number), name, value)


def _ended(trial: FrozenTrial) -> EndedTrial:
    pruned_at = trial.user_attrs.get(PRUNED_AT)
    values = trial.values if pruned_at is None else list(trial.intermediate_values.values())[-1:]
    seconds = 0.0 if trial.duration is None else trial.duration.total_seconds()
    return EndedTrial(trial.number, trial.params, tuple(values or ()), pruned_at, seconds)


def _mean(trials: Sequence[FrozenTrial]) -> float:
    """Returns the mean value of the first objective over trials that are complete."""
    return statistics.fmean(trial.values[0] for trial in trials)


def _axis(key: str, distribution: BaseDistribution) -> Axis:
    if isinstance(distribution, CategoricalDistribution):
        return Axis(key, words=tuple(distribution.choices))
    found = json.loads(optuna.distributions.distribution_to_json(distribution))["attributes"]
    whole = isinstance(distribution, optuna.distributions.IntDistribution)
    return Axis(key, found["low"], found["high"], found["log"], found["step"], whole)


def delete(url: str, name: str) -> None:
    """Deletes a study, if there is one.

    Raises:
        UserError: A controller works on it.
    """
    storage = open_storage(url)
    if name in optuna.get_all_study_names(storage):
        _require_free(optuna.load_study(study_name=name, storage=storage))
        optuna.delete_study(study_name=name, storage=storage)


def held_by(name: str, holder: ProcessId) -> str:
    """Returns the message for a second controller: who holds the study, and what to do."""
    since = datetime.fromtimestamp(holder.started).astimezone().isoformat(" ", "seconds")
    return (
        f"the study {name!r} is being run by process {holder.pid} on {holder.host}, started {since}. Wait until it has "
        "ended, end it, or choose another name."
    )


def space_of(overrides: Iterable[Override]) -> Space:
    """Returns the search space that overrides with sweeps describe.

    Raises:
        UserError: Optuna has no such distribution; the error's key is the override's.
    """
    return {override.get_key_element(): _distribution(override) for override in overrides}


def _distribution(override: Override) -> BaseDistribution:
    def make() -> BaseDistribution:
        sweep = override.value()
        if override.is_choice_sweep() or (isinstance(sweep, RangeSweep) and (sweep.shuffle or sweep.transformers)):
            return CategoricalDistribution(choices(override))  # type: ignore[arg-type]
        found: BaseDistribution = create_optuna_distribution_from_override(override)
        return found

    made: BaseDistribution = attempt(override.get_key_element(), make)
    return made


def described(space: Space) -> dict[str, dict[str, object]]:
    """Returns a space as plain values: for each key its choices, or low, high and log."""
    return {key: _described(distribution) for key, distribution in space.items()}


def _described(distribution: BaseDistribution) -> dict[str, object]:
    if isinstance(distribution, CategoricalDistribution):
        return {"choices": [value_of(choice) for choice in distribution.choices]}
    found = json.loads(optuna.distributions.distribution_to_json(distribution))["attributes"]
    return {name: found[name] for name in ("low", "high", "log")}


def limits(space: Space) -> dict[str, list[object]]:
    """Returns the choices of each key of a space, or the two ends of its interval."""
    return {key: _limits(distribution) for key, distribution in space.items()}


def _limits(distribution: BaseDistribution) -> list[object]:
    if isinstance(distribution, CategoricalDistribution):
        return [value_of(choice) for choice in distribution.choices]
    known = _described(distribution)
    return [known["low"], known["high"]]


def _values(params: Mapping[str, object]) -> dict[str, object]:
    return {key: value_of(choice) for key, choice in params.items()}


def settings_by_option(space: Space, groups: Iterable[str]) -> list[Setting]:
    """Returns a setting for each option of each of the searched groups, with the first value of everything else."""
    first = {key: _first(distribution) for key, distribution in space.items()}
    found = [first]
    for key in groups:
        distribution = space[key]
        assert isinstance(distribution, CategoricalDistribution)
        found += [{**first, key: option} for option in distribution.choices[1:]]
    return [Setting(number, params) for number, params in enumerate(found)]


def extended(space: Space, extend: Callable[[Trial], None]) -> Setting:
    """Returns one random setting of the space and of what a user's function suggests beside it; nothing is recorded."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask(fixed_distributions=dict(space))
    extend(trial)
    return Setting(trial.number, trial.params)


def _first(distribution: BaseDistribution) -> object:
    return distribution.choices[0] if isinstance(distribution, CategoricalDistribution) else _limits(distribution)[0]


def silence_optuna() -> None:
    """Turns off Optuna's own log lines, and its warnings about experimental parts, which are chosen on purpose."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def _require_free(study: optuna.Study) -> None:
    holder = study.user_attrs.get(CONTROLLER)
    if holder is None:
        return
    process = parse_process(holder["process"])

    def read_again() -> float | None:
        again = study.user_attrs.get(CONTROLLER)
        return None if again is None else float(again["beat"])

    if process.lives() if process.is_here else lives_at_once(holder["beat"], read_again):
        raise UserError(held_by(study.study_name, process), "sweep.name")


def numbers(result: Any) -> list[float]:
    """Returns what a job returned as numbers, of whatever type; NaN stands for what is none."""
    try:
        values = list(result)
    except TypeError:  # a number, None, or an array or tensor without dimensions
        values = [result]
    return [_number(value) for value in values]


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # torch raises the last for several values
        return math.nan


def _choices(key: str, distribution: BaseDistribution) -> Sequence[Any]:
    """Returns the values of a distribution that a grid visits."""
    found: Sequence[Any] = attempt(key, lambda: OptunaSweeperImpl._to_grid_sampler_choices(distribution))
    return found
