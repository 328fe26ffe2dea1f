"""The configuration of a job, as Hydra composes it, without composing anew what all jobs of a study have in common.

Hydra puts the options of groups together, and then sets the values of single keys. The jobs of a study choose a few
options and differ in values: what the options give is kept, which leaves a quarter of the time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

# The one value of Hydra's own that a job has; others may change how a configuration is made.
OWN_FOLDER = "hydra.sweep.subdir"

# Of one study: its baselines choose other options than its trials.
MOST_KEPT = 16


class Composer:
    """Composes the configurations of the jobs that share one.

    Args:
        loader: Hydra's.
        config: The configuration of the command itself, from which jobs take its `hydra.` keys.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self.config = config
        self._loader = loader
        self._groups = set(loader.list_groups(""))
        self._kept: dict[tuple[str, ...], DictConfig] = {}

    def composed(self, lines: Sequence[str]) -> DictConfig:
        """What `load_sweep_config` of Hydra's loader returns for these overrides.

        Raises:
            HydraException, OmegaConfBaseException: As that does.
        """
        try:
            quick = self._quickly(lines)
        except (HydraException, OmegaConfBaseException, ValueError):  # which Hydra explains, with all that it was given
            quick = None
        return self._loader.load_sweep_config(self.config, [*lines]) if quick is None else quick

    def _quickly(self, lines: Sequence[str]) -> DictConfig | None:
        """From what is kept; None where that doesn't do."""
        overrides = OverridesParser.create().parse_overrides([*lines])
        choices = [override for override in overrides if self._chooses(override)]
        values = [override for override in overrides if self._sets(override)]
        # Keys that are added, taken away or extended depend on their order among all others.
        if len(choices) + len(values) < len(overrides):
            return None
        own = copy.deepcopy(self._chosen(tuple(str(override.input_line) for override in choices)))
        for override in values:
            OmegaConf.update(own, override.key_or_group, override.value(), merge=True)
        with open_dict(own.hydra):
            given = own.hydra.overrides
            given.task = [override.input_line for override in overrides if not override.is_hydra_override()]
            given.hydra = [
                *self.config.hydra.overrides.hydra,
                *(override.input_line for override in overrides if override.is_hydra_override()),
            ]
        return own

    def _chooses(self, override: Override) -> bool:
        """Whether an override chooses an option of a group."""
        key = override.key_or_group
        return override.type is OverrideType.CHANGE and not override.is_value_path and self._is_group(key)

    def _sets(self, override: Override) -> bool:
        """Whether an override sets the value of a key that is there."""
        key = override.key_or_group
        changes = override.type is OverrideType.CHANGE and override.package is None and not override.is_value_path
        own = key == OWN_FOLDER or key.partition(".")[0] != "hydra"
        return changes and own and not override.is_sweep_override() and not self._is_group(key)

    def _is_group(self, key: str) -> bool:
        return "/" in key or key in self._groups

    def _chosen(self, choices: tuple[str, ...]) -> DictConfig:
        """The configuration that has these options and no value of its own; kept."""
        if choices not in self._kept:
            if len(self._kept) == MOST_KEPT:
                self._kept.clear()
            self._kept[choices] = self._loader.load_sweep_config(self.config, [*choices])
        return self._kept[choices]


_latest: Composer | None = None


def composed(loader: ConfigLoader, config: DictConfig, lines: Sequence[str]) -> DictConfig:
    """As `Composer`, which is kept for the next job of the same study."""
    global _latest
    if _latest is None or _latest.config is not config:
        _latest = Composer(loader, config)
    return _latest.composed(lines)
