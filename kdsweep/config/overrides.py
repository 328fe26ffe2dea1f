"""Hydra's override lines as a study uses them: which of them hold in a run, and how values are written in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
    Transformer,
)
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from kdsweep.system.errors import UserError, require

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hydra.core.config_loader import ConfigLoader

# Stands for a key that a configuration doesn't have. None can't, because null is a value.
UNKNOWN = object()


def parsed(lines: list[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Parses override lines as Hydra does; only with its `loader` can `glob()` list the options of a group."""
    return list(OverridesParser.create(config_loader=loader).parse_overrides(lines))


def choices(override: Override) -> list[object]:
    """Returns the choices of a sweep over single values, each as it is written in an override line.

    A line with the text of a choice sets the same value as the job of a plain Hydra grid has. Numbers, true and false
    stay what they are, because studies of older versions have them like that in Optuna's record, and because they are
    written as they are printed. The order is that of the sweep without its `shuffle`, since a study that goes on needs
    the same choices again, and a sampler doesn't care for their order.

    Raises:
        UserError: A choice is a sweep itself.
    """
    sweep = override.value()
    values = list(sweep.list if isinstance(sweep, ChoiceSweep) else sweep if isinstance(sweep, RangeSweep) else [])
    if not values:  # glob(), whose options Hydra knows
        values = list(override.sweep_iterator())
    if any(isinstance(value, ChoiceSweep) for value in values):
        raise UserError("a choice is one value, but here it is a choice again. Write all of them in one choice().")
    texts: list[object] = [_text(value) for value in values]
    plain = [value if isinstance(value, int | float) else text for value, text in zip(values, texts, strict=True)]
    # To Optuna, 1, 1.0 and true are one choice.
    return plain if len(set(plain)) == len(set(texts)) else texts


def value_of(choice: object) -> object:
    """Returns the value for which a choice stands, which may be the text of a list, of null or of a quoted word."""
    return parsed([f"key={choice}"])[0].value() if isinstance(choice, str) and _is_single(choice) else choice


def override_line(key: str, value: object) -> str:
    """Returns the override line that sets a key to a value.

    Args:
        key: The key as on the command line, such as "loss.alpha" or "+optimizer.eps".
        value: A text that can stand behind `key=` stays as it is, since that is how `choices` writes lists and null.
            Any other text is quoted.
    """
    whole = isinstance(value, str) and _is_single(value)
    return f"{key}={value if whole else Transformer.str(_quoted(value))}"


def _text(value: Any) -> str:
    """Returns the text of a choice, as the parser returned it: a word as it is, unless it would be read otherwise."""
    if not isinstance(value, str):
        return str(Transformer.str(value))
    return value if _is_single(value) and value_of(value) == value else str(Transformer.str(_quoted(value)))


def _is_single(text: str) -> bool:
    """Returns whether a text can stand behind `key=` and is one value there, not a sweep."""
    try:
        return not parsed([f"key={text}"])[0].is_sweep_override()
    except HydraException:
        return False


def _quoted(value: Any) -> Any:
    """Returns a value with its texts as quoted words, so that "1" stays one; Hydra takes no quoted keys of mappings."""
    if isinstance(value, str):
        return QuotedString(value, Quote.single)
    if isinstance(value, Mapping):
        return {key: _quoted(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_quoted(item) for item in value]
    return value


def without_replaced_sweeps(overrides: Sequence[Override]) -> list[Override]:
    """Returns the overrides without sweeps over keys that a later override sets or sweeps."""
    last = {override.key_or_group: override for override in overrides}
    return [o for o in overrides if not o.is_sweep_override() or last[o.key_or_group] is o]


def kept_beside(own: Iterable[str], overrides: Iterable[Override], *, whole_groups: bool) -> list[str]:
    """Returns the lines of `overrides` that a run's `own` lines leave in force: no sweeps, and nothing that `own` sets.

    Args:
        own: The lines that the run adds.
        overrides: Those of the command line.
        whole_groups: Whether a choice of a group ("loss=ce") also replaces what was set in it ("loss.alpha=0.3"). It
            does in the runs of an arm, which is another method. It doesn't in those of a trial: what is fixed beside
            a search over the options of a group holds for each of them.
    """
    replaced = {own_line.partition("=")[0].lstrip("+") for own_line in own}

    def holds(override: Override) -> bool:
        key = override.key_or_group
        in_group = whole_groups and key.partition(".")[0] in replaced
        return not override.is_sweep_override() and key not in replaced and not in_group

    return [str(override.input_line) for override in overrides if holds(override)]


def is_there(key: str, config: DictConfig) -> bool:
    """Returns whether a configuration has a key, or a group."""
    return OmegaConf.select(config, key.replace("/", "."), default=UNKNOWN) is not UNKNOWN


def adds(override: Override) -> bool:
    """Returns whether an override may bring a key that the configuration doesn't have."""
    return bool(override.is_add() or override.is_force_add())


def require_key(override: Override, config: DictConfig) -> None:
    """Raises `UserError` if a sweep varies a key that the configuration doesn't have."""
    key = override.key_or_group
    if not adds(override) and not is_there(key, config):
        line = override.input_line
        remedy = "Choose its group, or other keys; hydra.sweeper.params=null takes away the sweep file's own."
        raise UserError(f"the search varies a key that isn't there ({line}). {remedy}", key)


def around(value: float) -> str:
    """Returns a sweep about a setting's value as an example: from its half to its double, a share up to 1 at most."""
    if value == 0:
        return "interval(0,1)"
    top = min(2 * value, 1) if 0 < value <= 1 else 2 * value
    low = value // 2 if isinstance(value, int) else value / 2
    return "interval({:g},{:g})".format(*sorted((low, top)))


def in_whole_numbers(override: Override) -> str:
    """Returns the line of a sweep over a key that takes whole numbers only; an interval then proposes no others.

    Hydra takes the bounds of `interval(4,32)` for fractions, however they are written.

    Raises:
        UserError: A bound is no whole number.
    """
    sweep = override.value()
    if not isinstance(sweep, IntervalSweep):
        return str(override.input_line)
    bounds = [sweep.start, sweep.end]
    text = override.get_value_string()
    remedy = "Write whole bounds, such as int(interval(4,32))."
    whole = all(bound is not None and float(bound).is_integer() for bound in bounds)
    require(whole, "an interval of whole numbers", text, override.key_or_group, remedy)
    return f"{override.get_key_element()}=int({text})"
