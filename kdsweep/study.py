"""The study: baselines, then a search over alpha and tau, as the children of one MLflow run."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl, create_optuna_distribution_from_override
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution
from optuna.trial import Trial, TrialState

from kdsweep import assembly, recording, report
from kdsweep.errors import RunError, UserError, require
from kdsweep.progress import note
from kdsweep.tracking import flatten

# What stands for a key that a configuration doesn't have, since null is a value.
UNKNOWN = object()

SAMPLERS = ("optuna.samplers.*", "hydra_plugins.hydra_optuna_sweeper.*")


class Study(OptunaSweeperImpl):
    """hydra-optuna-sweeper's search with the baselines before it and the report after it.

    Args:
        baselines: Name -> overrides and number of seeds of the runs that are made first.
        sampler: Configuration of an Optuna sampler; Hydra leaves it to the sweeper to build it.
        search: The plug-in's own arguments.
    """

    storage: str | None

    def __init__(self, *, baselines: Mapping[str, Any], sampler: DictConfig, **search: Any) -> None:
        super().__init__(sampler=instantiate(sampler, _execution_whitelist_=SAMPLERS), **search)
        self._baselines = baselines
        self._search_start = 0.0

    def sweep(self, arguments: list[str]) -> None:
        """Runs the study; `arguments` are the overrides of the command line."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        Path(self.sweep_dir).mkdir(parents=True, exist_ok=True)
        # Not by interpolation in YAML: the folder's name holds the time, which would be another one there.
        self.storage = self.storage or f"sqlite:///{self.sweep_dir}/optuna.db"
        overrides = without_replaced_sweeps(parsed([*self._parse_sweeper_params_config(), *arguments]))
        # From here on the overrides are the one source of the search space.
        self.params = None
        self._check(overrides)
        store = recording.open_store(self.config)
        tags = {"kdsweep.role": "study", "kdsweep.study": self.study_name}
        with store.run(self.study_name, tags=tags, params=self._parameters(overrides)) as parent:
            runs = [f"{baseline.seeds} {name}" for name, baseline in self._baselines.items()]
            note(f"Study {self.study_name}: {', '.join(runs)}, then {self.n_trials} trials.")
            ours = [f"tracking.parent={parent.id}", f"tracking.study={self.study_name}"]
            self._run_baselines(overrides, ours)
            self._search(overrides, ours)
        folder = report.default_folder(Path(self.config.paths.root), store.study(parent.id))
        report.show(report.write(store, parent.id, folder))

    def _check(self, overrides: Iterable[Override]) -> None:
        """Refuses now what would be refused after the baselines."""
        assembly.check(self.config)
        require(self.n_trials >= 1, "n_trials >= 1", self.n_trials, "sweep.n_trials")
        for override in overrides:
            if override.is_sweep_override():
                require_key(override, self.config)
                self._check_space(override)
        directions = self._get_directions()
        self._record = assembly.attempt(
            "hydra.sweeper",
            lambda: optuna.create_study(
                study_name=self.study_name, storage=self.storage, directions=directions, load_if_exists=True
            ),
        )
        assembly.rehearse(self.config)

    def _check_space(self, override: Override) -> None:
        key = override.get_key_element()
        (exact,) = parsed([with_float_bounds(override, self.config)])
        distribution = assembly.attempt(key, lambda: create_optuna_distribution_from_override(exact))
        if isinstance(self.sampler, functools.partial):  # the grid: only it waits for the search space
            assembly.attempt(key, lambda: self._to_grid_sampler_choices(distribution))

    def _parameters(self, overrides: Iterable[Override]) -> dict[str, object]:
        """What the study's own run shows: the configuration that its runs share, and the search space."""
        own = [key for key in self.config if isinstance(key, str) and key != "hydra"]
        shared = OmegaConf.masked_copy(self.config, own)
        space = {
            override.get_key_element(): override.input_line for override in overrides if override.is_sweep_override()
        }
        return {**flatten(assembly.container(shared)), **{f"space.{key}": line for key, line in space.items()}}

    def _run_baselines(self, overrides: Sequence[Override], ours: list[str]) -> None:
        for baseline in self._baselines.values():
            runs = [[*baseline.overrides, f"seed={seed}"] for seed in range(baseline.seeds)]
            jobs = [[*kept_beside(own, overrides), *own, *ours, "tracking.stage=baseline"] for own in runs]
            for done in self.launcher.launch(jobs, initial_job_idx=self.job_idx):
                # Raises what the job raised: without a baseline there is nothing to compare with.
                _ = done.return_value
            self.job_idx += len(jobs)

    def _search(self, overrides: Sequence[Override], ours: list[str]) -> None:
        self._search_start = time.perf_counter()
        lines = [with_float_bounds(override, self.config) for override in overrides]
        try:
            super().sweep([*lines, *ours, "tracking.stage=search"])
        except ValueError as error:
            # The plug-in asks for the best trial even where there is none.
            if self._record.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                raise
            message = f"none of the {self.n_trials} trials could be finished: the warnings above say why."
            raise RunError(message) from error

    def _configure_trials(
        self,
        trials: list[Trial],
        search_space_distributions: dict[str, BaseDistribution],
        fixed_params: dict[str, Any],
        fixed_overrides: list[str],
    ) -> Sequence[Sequence[str]]:
        """The plug-in's overrides for the next trials, and each trial's number."""
        jobs = super()._configure_trials(trials, search_space_distributions, fixed_params, fixed_overrides)
        done = trials[0].number
        left = (time.perf_counter() - self._search_start) / done * (self.n_trials - done) if done else None
        eta = "" if left is None else f", about {left / 60:.1f} min left"
        for trial in trials:
            setting = ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in trial.params.items()
            )
            note(f"Trial {trial.number} ({trial.number + 1} of {self.n_trials}){eta}: {setting}")
        return [(*job, f"tracking.trial={trial.number}") for job, trial in zip(jobs, trials, strict=True)]


def parsed(lines: list[str]) -> list[Override]:
    """Lines of the command line as Hydra understands them."""
    return list(OverridesParser.create().parse_overrides(lines))


def without_replaced_sweeps(overrides: Sequence[Override]) -> list[Override]:
    """The overrides without the sweeps over keys that a later one sets or sweeps."""
    last = {override.key_or_group: override for override in overrides}
    return [o for o in overrides if not o.is_sweep_override() or last[o.key_or_group] is o]


def kept_beside(own: Iterable[str], overrides: Iterable[Override]) -> list[str]:
    """The lines of `overrides` that still hold beside a run's `own`: no sweeps, nothing that `own` sets or replaces.

    An override of a group ("loss=ce") replaces all that was set in it ("loss.alpha=0.3").
    """
    replaced = {line.partition("=")[0] for line in own}

    def holds(override: Override) -> bool:
        key = override.key_or_group
        return not override.is_sweep_override() and key not in replaced and key.partition(".")[0] not in replaced

    return [str(override.input_line) for override in overrides if holds(override)]


def require_key(override: Override, config: DictConfig) -> None:
    """Raises `UserError` where a sweep varies a key that the configuration doesn't have."""
    key = override.get_key_element()
    known = override.is_add() or OmegaConf.select(config, key.replace("/", "."), default=UNKNOWN) is not UNKNOWN
    if not known:
        line = override.input_line
        raise UserError(f"the search varies a key that isn't there ({line}). Choose its group, or other keys.", key)


def with_float_bounds(override: Override, config: DictConfig) -> str:
    """The override's line; `interval(0,1)` becomes `interval(0.0,1.0)` for a key whose default is a float.

    To Optuna whole bounds mean whole numbers, which nobody wants of alpha.
    """
    interval, line = override.value(), str(override.input_line)
    if not isinstance(interval, IntervalSweep):
        return line
    key = override.get_key_element()
    if not isinstance(OmegaConf.select(config, key), float):
        return line
    bounds = f"interval({float(interval.start or 0)},{float(interval.end or 0)})"
    return f"{key}=tag({','.join(interval.tags)},{bounds})" if interval.tags else f"{key}={bounds}"
