"""Arguments of functions of the user's own, which stand beside kdsweep's settings in a group of the configuration."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

from kdsweep.system.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

# Keys of a component that are Hydra's, and no arguments.
HYDRAS = ("_target_", "_partial_", "_convert_", "_recursive_")


def parameters(function: Callable[..., object]) -> Mapping[str, inspect.Parameter] | None:
    """Returns a function's parameters; None for one in C that doesn't tell."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def name_of(function: object) -> str:
    """Returns the name of a function or class."""
    return str(getattr(function, "__name__", type(function).__name__))


def separated(
    function: Callable[..., object], keys: Mapping[str, Any], settings: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the function's arguments, and kdsweep's settings, of the keys of a group.

    A setting that the function has an argument for is the function's, unless it is null.

    Args:
        function: The user's function or class.
        keys: The keys of the group, with their values.
        settings: The names of kdsweep's settings.
    """
    known = parameters(function) or {}
    ours = {key for key in settings if key not in known}
    empty = {key for key in settings if key in known and keys.get(key) is None}
    arguments = {key: value for key, value in keys.items() if key not in {*ours, *empty, *HYDRAS}}
    return arguments, {key: value for key, value in keys.items() if key in ours}


def require_arguments(
    function: Callable[..., object],
    arguments: Mapping[str, Any],
    settings: Sequence[str],
    given: Iterable[str] = (),
    foreign: Iterable[str] = (),
    n_given: int = 0,
) -> None:
    """Refuses arguments that the function doesn't have, and the absence of those that it needs.

    Args:
        function: The user's function or class.
        arguments: The configured arguments.
        settings: The names of kdsweep's settings.
        given: The names of the arguments that kdsweep gives.
        foreign: Keys of the group's other options, which `own` doesn't have.
        n_given: The number of the function's first arguments that kdsweep gives, and that nobody can configure.

    Raises:
        UserError: Its key is the argument.
    """
    known = parameters(function)
    if known is None:
        return
    name = name_of(function)
    named = [p.name for p in known.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    named = named[n_given:]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in known.values())
    unknown = [] if takes_all else [key for key in arguments if key not in named]
    given = {*given}
    if unknown:
        others = sorted({*unknown} & {*foreign})
        if others:
            remedy = f"The option in use describes kdsweep's own networks ({', '.join(others)}): choose `own`."
        else:
            own = [key for key in named if key not in given]
            near = difflib.get_close_matches(unknown[0], [*own, *settings], n=1)
            remedy = f"Did you mean {near[0]}? " if near else ""
            remedy += f"{name} takes {', '.join(named) or 'nothing'}"
            remedy += f"; kdsweep takes {', '.join(settings)}." if settings else "."
        raise UserError(
            f"`{name} has this argument` must hold, but got {unknown[0]}={arguments[unknown[0]]!r}. {remedy}",
            None if others else unknown[0],
        )
    for key in named:
        if known[key].default is inspect.Parameter.empty and key not in {*arguments, *given}:
            raise UserError(f"`{name} gets all that it needs` must hold, but this argument is missing.", key)
