"""The search of a study: Optuna asked for settings and told what became of them, through any interruption."""

from __future__ import annotations

import functools
import json
import math
import statistics
import time
import uuid
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import optuna
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl, create_optuna_distribution_from_override
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from kdsweep.config.rules import attempt
from kdsweep.execution.trial_link import (
    BEAT,
    BEAT_SECONDS,
    PROCESS,
    STALE_SECONDS,
    TRUSTED,
    VALUES,
    Pulse,
    beating,
    build_pruner,
    open_storage,
)
from kdsweep.system.errors import UserError
from kdsweep.system.processes import ProcessId, parse_process, this_process
from kdsweep.system.progress import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

# What the sweeper writes into a trial, and into the study.
STARTS, PRUNED_AT, CAUSE = "kdsweep.starts", "kdsweep.pruned_at", "kdsweep.cause"
KEY, CONDITIONS, CONTROLLER = "kdsweep.key", "kdsweep.conditions", "kdsweep.controller"

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Search:
    """A study in Optuna's storage.

    Args:
        url: The storage.
        name: The study's name there.
        directions: "maximize" or "minimize" for each objective.
        space: What is searched: key -> Optuna's distribution.
        sampler: Configuration of the sampler; its seed is moved on by the trials that are there.
        pruner: Configuration of the pruner, or None.
        n_trials: How many trials there are to be in all, whatever their end.
        max_restarts: How often a trial whose process died is started again.
        extend: Suggests further parameters for a trial, or None.
    """

    def __init__(
        self,
        url: str,
        name: str,
        directions: Sequence[str],
        space: Mapping[str, BaseDistribution],
        sampler: DictConfig,
        pruner: DictConfig | None,
        n_trials: int,
        max_restarts: int,
        extend: Callable[[Trial], None] | None = None,
    ) -> None:
        self.name, self.directions, self.space = name, list(directions), dict(space)
        self.n_trials, self._max_restarts, self._extend = n_trials, max_restarts, extend
        self._storage = open_storage(url)
        self._pulse = Pulse()
        self._study = optuna.create_study(
            study_name=name,
            storage=self._storage,
            directions=[StudyDirection[direction.upper()] for direction in directions],
            load_if_exists=True,
        )
        self._study_id = self._storage.get_study_id_from_name(name)
        self._study.sampler = self._sampler(sampler)
        if pruner is not None:
            self._study.pruner = build_pruner(pruner)
        # Optuna's Gaussian process doesn't see pruned trials, and would propose the same bad region again.
        self._hides_pruned = isinstance(self._study.sampler, optuna.samplers.GPSampler)

    def _sampler(self, config: DictConfig) -> Any:
        known = len(self.trials())
        seed = OmegaConf.select(config, "seed")
        # A sampler that begins anew with its seed would propose its first points again. QMC and the grid count their
        # points in the storage, in an order that is the seed's.
        counts = str(config["_target_"]).endswith(("QMCSampler", "GridSampler"))
        if seed is not None and known and not counts:
            config = OmegaConf.create({**config, "seed": seed + known})
        sampler = instantiate(config, _execution_whitelist_=TRUSTED)
        if isinstance(sampler, functools.partial):  # the grid: only it waits for the search space
            grid = {key: _choices(key, distribution) for key, distribution in self.space.items()}
            self.n_trials = min(self.n_trials, math.prod(map(len, grid.values())))
            return sampler(grid)
        return sampler

    @property
    def key(self) -> str:
        """What no other study has, made when it is first asked for."""
        found = self._study.user_attrs.get(KEY)
        if found is None:
            found = uuid.uuid4().hex
            self._study.set_user_attr(KEY, found)
        return str(found)

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self._study.get_trials(deepcopy=False)

    def count(self, *states: TrialState) -> int:
        """How many trials are in one of these states."""
        return sum(trial.state in states for trial in self.trials())

    def require_same(self, conditions: Mapping[str, object]) -> None:
        """Refuses to go on with a study under other conditions than it was begun with; remembers them the first time.

        Raises:
            UserError: It names what differs.
        """
        now = {key: str(value) for key, value in conditions.items()}
        text = self._study.user_attrs.get(CONDITIONS)
        if text is None:
            self._study.set_user_attr(CONDITIONS, json.dumps(now))
            return
        then = json.loads(text)
        differing = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        if differing:
            shown = "; ".join(f"{key} was {then.get(key)} and is {now.get(key)}" for key in differing[:3])
            more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
            remedy = "Repeat its command, choose another sweep.name, or begin anew with sweep.restart=fresh."
            raise UserError(
                f"the study {self.name!r} was begun with another configuration ({shown}{more}). {remedy}", "sweep.name"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """In this block no other controller, on whatever machine, works on the study.

        Raises:
            UserError: One does already.
        """
        _require_free(self._study)

        def beat() -> None:
            self._study.set_user_attr(CONTROLLER, {"process": str(this_process()), "beat": time.time()})

        try:
            with beating(beat):
                yield
        finally:
            self._study.set_user_attr(CONTROLLER, None)

    def next(self) -> Trial | None:
        """The trial to compute next: one that was interrupted, or a new one; None when there are enough."""
        trials = self.trials()
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if not waiting and len(trials) >= self.n_trials:
            return None
        trial = self._study.ask(fixed_distributions=self.space)
        if self._extend is not None:
            self._extend(trial)
        trial.set_user_attr(STARTS, trial.user_attrs.get(STARTS, 0) + 1)
        return trial

    def complete(self, number: int, values: Sequence[float]) -> None:
        """Tells the result of a trial."""
        self._tell(number, values=list(values))

    def prune(self, number: int, epoch: int) -> None:
        """Tells that a trial was stopped after `epoch`."""
        trial = self.trials()[number]
        self._set(trial, PRUNED_AT, epoch)
        value = self._extrapolated(trial) if self._hides_pruned else None
        if value is None:
            self._tell(number, state=TrialState.PRUNED)
        else:
            self._tell(number, values=value)

    def fail(self, number: int, cause: str) -> None:
        """Tells that a trial has no result."""
        self._set(self.trials()[number], CAUSE, cause)
        self._tell(number, state=TrialState.FAIL)

    def give_back(self, number: int) -> None:
        """A trial that was interrupted on purpose: it is proposed again, and that doesn't count as a restart."""
        trial = self.trials()[number]
        if trial.state == TrialState.RUNNING:
            self._set(trial, STARTS, trial.user_attrs.get(STARTS, 1) - 1)
            self.recover(number)

    def recover(self, number: int, values: Sequence[float] | None = None) -> str:
        """Decides about a trial whose process is gone; says what was decided.

        With a result (`values`, or what the job left) it is complete. Else it is proposed again with its number and
        parameters, or given up after too many starts.
        """
        trial = self.trials()[number]
        values = trial.user_attrs.get(VALUES, values)
        if values is not None:
            self.complete(number, values)
            return "its result is there"
        starts = trial.user_attrs.get(STARTS, 0)
        if starts > self._max_restarts:
            self.fail(number, f"its process died {starts} times")
            return f"given up after {starts} starts"
        self._storage.set_trial_state_values(self._id(number), state=TrialState.WAITING)
        return "it is started again"

    def orphans(self) -> tuple[list[int], list[ProcessId]]:
        """The trials that run though no controller knows them: those that are dead, and the processes of the others."""
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

    def best(self) -> FrozenTrial | None:
        """The trial with the best value; of several objectives, the best in the first one among the Pareto set."""
        full = self._full()
        sign = 1 if self.directions[0] == "maximize" else -1
        return max(full, key=lambda trial: (sign * trial.values[0], -trial.number), default=None)

    def write_results(self, path: Path) -> None:
        """Writes hydra-optuna-sweeper's file: the best parameters, or the Pareto set."""
        best = self.best()
        if len(self.directions) == 1 and best is not None:
            found = {"name": "optuna", "best_params": best.params, "best_value": best.values[0]}
        else:
            solutions = [{"params": t.params, "values": list(t.values)} for t in self._study.best_trials]
            found = {"name": "optuna", "solutions": solutions}
        OmegaConf.save(OmegaConf.create(found), path)

    def _full(self) -> list[FrozenTrial]:
        """The trials with a value that they reached, and not one that was extrapolated for the sampler."""
        return [t for t in self.trials() if t.state == TrialState.COMPLETE and PRUNED_AT not in t.user_attrs]

    def _extrapolated(self, trial: FrozenTrial) -> float | None:
        """What a pruned trial might have reached: its last value and what others gained from that epoch on.

        Never better than the best value that was reached. None without a report, or without a full trial.
        """
        epoch = trial.last_step
        full = [t for t in self._full() if epoch in t.intermediate_values]
        if epoch is None or not full:
            return None
        gain = statistics.median(t.values[0] - t.intermediate_values[epoch] for t in full)
        best = self._study.direction == StudyDirection.MAXIMIZE
        limit = (max if best else min)(t.values[0] for t in full)
        return (min if best else max)(trial.intermediate_values[epoch] + gain, limit)

    def _tell(self, number: int, **end: Any) -> None:
        try:
            self._study.tell(number, skip_if_finished=True, **end)
        except RuntimeError as error:
            # After its last point a grid wants to stop `optimize`, which isn't there; the trial has been told by then.
            if "Study.stop" not in str(error):
                raise

    def _id(self, number: int) -> int:
        return int(self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number))

    def _set(self, trial: FrozenTrial, name: str, value: object) -> None:
        if not trial.state.is_finished():
            self._storage.set_trial_user_attr(self._id(trial.number), name, value)


def delete(url: str, name: str) -> None:
    """Forgets a study, if there is one.

    Raises:
        UserError: A controller works on it.
    """
    storage = open_storage(url)
    if name in optuna.get_all_study_names(storage):
        _require_free(optuna.load_study(study_name=name, storage=storage))
        optuna.delete_study(study_name=name, storage=storage)


def held_by(name: str, holder: ProcessId) -> str:
    """The message for a second controller."""
    since = datetime.fromtimestamp(holder.started).astimezone().isoformat(" ", "seconds")
    return (
        f"the study {name!r} is being run by process {holder.pid} on {holder.host}, started {since}. Wait until it has "
        "ended, end it, or choose another name."
    )


def distribution_of(key: str, override: Any) -> BaseDistribution:
    """Optuna's distribution for an override that sweeps."""
    found: BaseDistribution = attempt(key, lambda: create_optuna_distribution_from_override(override))
    return found


def described(distribution: BaseDistribution) -> dict[str, object]:
    """A distribution as plain values: low, high and log, or choices."""
    if isinstance(distribution, CategoricalDistribution):
        return {"choices": list(distribution.choices)}
    found = json.loads(optuna.distributions.distribution_to_json(distribution))["attributes"]
    return {name: found[name] for name in ("low", "high", "log")}


def limits(distribution: BaseDistribution) -> list[Any]:
    """The choices of a distribution, or its two ends."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    known = described(distribution)
    return [known["low"], known["high"]]


def _require_free(study: optuna.Study) -> None:
    holder = study.user_attrs.get(CONTROLLER)
    if holder is None:
        return
    process = parse_process(holder["process"])
    if process.lives() if process.is_here else _beats(study, holder["beat"]):
        raise UserError(held_by(study.study_name, process), "sweep.name")


def _beats(study: optuna.Study, beat: float) -> bool:
    """Whether a controller on another machine is at work, which wrote `beat` last."""
    now = time.time()
    if beat <= now + BEAT_SECONDS:
        return now - beat < STALE_SECONDS
    # From the future: one of the clocks is wrong, and only another beat shows.
    note(f"The clocks of two machines differ by {beat - now:.0f} s: waiting for a sign of life from the controller.")
    time.sleep(2 * BEAT_SECONDS)
    holder = study.user_attrs.get(CONTROLLER)
    return holder is not None and holder["beat"] != beat


def _choices(key: str, distribution: BaseDistribution) -> Sequence[Any]:
    """The values of a distribution that a grid visits."""
    found: Sequence[Any] = attempt(key, lambda: OptunaSweeperImpl._to_grid_sampler_choices(distribution))
    return found
