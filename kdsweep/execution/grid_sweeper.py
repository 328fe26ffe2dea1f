"""Registers the plain grid with Hydra as a sweeper. Every `kdsweep` command loads this module, so it imports little."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins

GRID_SWEEPER = "kdsweep.execution.grid_sweeper.GridSweeper"


class GridSweeper(BasicSweeper):
    """Hydra's own sweeper, whose grid is checked whole before its first job and recorded below one MLflow run."""

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the grid."""
        from kdsweep.execution.grid import run_grid

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
    node = BasicSweeperConf(_target_=GRID_SWEEPER)
    ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=node, provider="kdsweep", replace=True)
