"""Sorts Hydra's override lines for a study: those that sweep, those that are fixed, and those that are replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from kdsweep.system.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Stands for a key that a configuration doesn't have. None can't, because null is a value.
UNKNOWN = object()


def parsed(lines: list[str]) -> list[Override]:
    """Parses override lines as Hydra does."""
    return list(OverridesParser.create().parse_overrides(lines))


def without_replaced_sweeps(overrides: Sequence[Override]) -> list[Override]:
    """Returns the overrides without sweeps over keys that a later override sets or sweeps."""
    last = {override.key_or_group: override for override in overrides}
    return [o for o in overrides if not o.is_sweep_override() or last[o.key_or_group] is o]


def kept_beside(own: Iterable[str], overrides: Iterable[Override]) -> list[str]:
    """Returns the lines of `overrides` that a run's `own` lines leave in force: no sweeps, and nothing that `own` sets.

    An override of a group ("loss=ce") replaces all that was set in it ("loss.alpha=0.3").
    """
    replaced = {line.partition("=")[0] for line in own}

    def holds(override: Override) -> bool:
        key = override.key_or_group
        return not override.is_sweep_override() and key not in replaced and key.partition(".")[0] not in replaced

    return [str(override.input_line) for override in overrides if holds(override)]


def require_key(override: Override, config: DictConfig) -> None:
    """Raises `UserError` if a sweep varies a key that the configuration doesn't have."""
    key = override.get_key_element()
    known = override.is_add() or OmegaConf.select(config, key.replace("/", "."), default=UNKNOWN) is not UNKNOWN
    if not known:
        line = override.input_line
        raise UserError(f"the search varies a key that isn't there ({line}). Choose its group, or other keys.", key)


def with_float_bounds(override: Override, config: DictConfig) -> str:
    """Returns the override's line, with `interval(0,1)` as `interval(0.0,1.0)` for a key whose default is a float.

    To Optuna, whole bounds mean whole numbers, which nobody wants for alpha.
    """
    interval, line = override.value(), str(override.input_line)
    if not isinstance(interval, IntervalSweep):
        return line
    key = override.get_key_element()
    if not isinstance(OmegaConf.select(config, key), float):
        return line
    bounds = f"interval({float(interval.start or 0)},{float(interval.end or 0)})"
    return f"{key}=tag({','.join(interval.tags)},{bounds})" if interval.tags else f"{key}={bounds}"
