"""Registers the study with Hydra as a sweeper. Every `kdsweep` command loads this module, so it imports little."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
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
    as_chosen: bool = False


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
    confirm_until: int | None = None
    # Those of a contest (conf/sweep/losses.yaml, data_hunger.yaml): who competes, and under which conditions.
    contenders: list[str] = field(default_factory=list)
    define: dict[str, list[str]] = field(default_factory=dict)
    for_all: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    choose: str = "posterior"
    start: Any = None
    start_from: str | None = None
    search_seeds: str = "fixed"
    replicates: int = 1
    race: int = 0
    fidelity: float | None = None
    fidelity_of: str = "epochs"
    pilot: int = 8
    executor: str | None = None
    ray_address: str | None = None
    max_restarts: int = 3
    restart: str | None = None


# Keys of kdsweep's configuration that other applications don't have together.
OWN_KEYS = {"arm", "objective", "tracking", "paths", "evaluate_test"}


class StudySweeper(Sweeper):
    """The sweeper that Hydra instantiates. It imports the controller only when a sweep starts."""

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
        from kdsweep.study.contest_controller import study_of

        self._study = study_of(**self._arguments)
        self._study.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the study."""
        return self._study.sweep(arguments)


ConfigStore.instance().store(group="hydra/sweeper", name="kdsweep", node=StudySweeperConf, provider="kdsweep")
# Another application doesn't find kdsweep's option of this name, and shall read what `StudySweeper.setup` says.
ConfigStore.instance().store(
    group="hydra/sweeper/pruner", name="none", node={"pruner": None}, package="hydra.sweeper", provider="kdsweep"
)
