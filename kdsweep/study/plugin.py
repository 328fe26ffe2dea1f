"""Registers the study and the grid with Hydra as sweepers. Every `kdsweep` command loads this module.

So it imports little.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_optuna_sweeper.config import OptunaSweeperConf
from omegaconf import MISSING, DictConfig


@dataclass
class BaselineConf:
    """The runs of an arm before the search. A control runs again, with fresh seeds, beside the chosen setting."""

    overrides: list[str] = field(default_factory=list)
    seeds: int = 1
    control: bool = True


@dataclass
class StudySweeperConf(OptunaSweeperConf):
    """The configuration of hydra-optuna-sweeper, with the study's own keys."""

    _target_: str = "kdsweep.study.plugin.StudySweeper"
    defaults: list[Any] = field(default_factory=lambda: [{"sampler": "gp"}, {"pruner": "none"}])
    # The study's own keys, and keys of the plug-in with another default. conf/sweep/alpha_tau.yaml describes each.
    n_jobs: int = 1
    direction: Any = None
    pruner: Any = MISSING
    sampler: Any = MISSING
    sampler_seed: Any = None
    baselines: dict[str, BaselineConf] = field(default_factory=dict)
    confirm_seeds: int = 0
    executor: str | None = None
    ray_address: str | None = None
    max_restarts: int = 3
    restart: str | None = None


# Keys of kdsweep's configuration that other applications don't have together.
OWN_KEYS = {"arm", "objective", "tracking", "paths", "evaluate_test"}


class StudySweeper(Sweeper):
    """The sweeper that Hydra instantiates. It imports `kdsweep.study.controller` only when a sweep starts."""

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra gives to every sweeper.

        Raises:
            ConfigCompositionException: The application isn't kdsweep. All Hydra applications show it in one line.
        """
        if not config.keys() >= OWN_KEYS:
            raise ConfigCompositionException(
                "hydra/sweeper=kdsweep: `the application is kdsweep` must hold, because this sweeper runs kdsweep's "
                f"own studies, but got {config.hydra.job.name!r}. Choose hydra/sweeper=optuna for a search in another."
            )
        from kdsweep.study.controller import Study

        self._study = Study(**self._arguments)
        self._study.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the study."""
        return self._study.sweep(arguments)


class GridSweeper(BasicSweeper):
    """Hydra's own sweeper, whose grid is checked whole before its first job and recorded below one MLflow run."""

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the grid."""
        from kdsweep.study.grid import run_grid

        assert self.hydra_context is not None
        assert self.config is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        jobs = [job for batch in self.split_arguments(overrides, None) for job in batch]
        return run_grid(self.hydra_context, self.config, self.launcher, jobs, self.max_batch_size)


def use_for_grids() -> None:
    """Lets `-m` use the `GridSweeper`, in this process alone: Hydra loads plug-ins in the commands of others too."""
    Plugins.instance().register(GridSweeper)
    node = BasicSweeperConf(_target_="kdsweep.study.plugin.GridSweeper")
    ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=node, provider="kdsweep", replace=True)


ConfigStore.instance().store(group="hydra/sweeper", name="kdsweep", node=StudySweeperConf, provider="kdsweep")
# Another application doesn't find kdsweep's option of this name, and shall read what `StudySweeper.setup` says.
ConfigStore.instance().store(
    group="hydra/sweeper/pruner", name="none", node={"pruner": None}, package="hydra.sweeper", provider="kdsweep"
)
