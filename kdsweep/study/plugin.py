"""Registers the study with Hydra as a sweeper: the part that every `kdsweep` command loads, and so imports little."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_optuna_sweeper.config import OptunaSweeperConf
from omegaconf import MISSING, DictConfig


@dataclass
class BaselineConf:
    """Runs before the search; a control is run again, with fresh seeds, beside the chosen setting."""

    overrides: list[str] = field(default_factory=list)
    seeds: int = 1
    control: bool = True


@dataclass
class StudySweeperConf(OptunaSweeperConf):
    """hydra-optuna-sweeper's configuration, and the study's own."""

    _target_: str = "kdsweep.study.plugin.StudySweeper"
    defaults: list[Any] = field(default_factory=lambda: [{"sampler": "gp"}, {"pruner": "none"}])
    # Beside the plug-in's own keys; each is described in conf/sweep/alpha_tau.yaml.
    n_jobs: int = 1
    direction: Any = None
    pruner: Any = MISSING
    baselines: dict[str, BaselineConf] = field(default_factory=dict)
    confirm_seeds: int = 0
    executor: str | None = None
    ray_address: str | None = None
    max_restarts: int = 3
    restart: str | None = None


class StudySweeper(Sweeper):
    """What Hydra instantiates: hands everything to `kdsweep.study`, which it imports only when a sweep starts."""

    def __init__(self, **arguments: Any) -> None:
        from kdsweep.study.controller import Study

        self._study = Study(**arguments)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._study.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        return self._study.sweep(arguments)


ConfigStore.instance().store(group="hydra/sweeper", name="kdsweep", node=StudySweeperConf, provider="kdsweep")
