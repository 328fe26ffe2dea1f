"""Errors that one line explains: what a user can mend, and what made a run fail."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TypeGuard

# Ends a message about code that isn't ours.
SEE_TRACEBACK = "KDSWEEP_TRACEBACK=1 shows where."

# No number of a configuration is larger than this.
LARGEST = 1e30

# Arguments that no optimizer takes if they are negative.
NOT_NEGATIVE = ("lr", "momentum", "weight_decay", "dampening", "eps")


class UserError(ValueError):
    """A wrong value, file or key given by the user.

    Args:
        message: The rule, the value found, and the remedy: "`tau > 0` must hold, but got tau=0.0."
        key: The configuration key at fault, relative to the component that raises the error ("tau"); `within` completes
            it.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.key = key

    def within(self, group: str) -> UserError:
        """Returns the same error with its key as seen from outside the component: "tau" within "loss" is "loss.tau"."""
        return UserError(self.message, group if self.key is None else f"{group}.{self.key}")

    def __str__(self) -> str:
        return self.message if self.key is None else f"{self.key}: {self.message}"


class RunError(RuntimeError):
    """A run that can't go on, though its configuration is sound; the message says what happened and where.

    Attributes:
        run_id: MLflow id of the run that failed; None if no run had begun.
    """

    run_id: str | None = None


class PrunedError(Exception):
    """Ends a run that its study's pruner stops; this is no failure, and the run has no result.

    Args:
        epoch: The last epoch that was trained, from 1.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__(epoch)
        self.epoch = epoch

    def __str__(self) -> str:
        return f"pruned after epoch {self.epoch}"


def require(condition: bool, rule: str, value: object, key: str, remedy: str = "") -> None:
    """Raises `UserError` unless `condition` holds: "`rule` must hold, but got key=value. remedy"."""
    if not condition:
        name = key.rsplit(".", 1)[-1]
        raise UserError(f"`{rule}` must hold, but got {name}={value!r}.{' ' if remedy else ''}{remedy}", key)


def require_number(value: object, rule: str, key: str) -> None:
    """Raises `UserError` if `value` isn't a number but, say, a word; `rule` says which numbers are allowed."""
    require(is_number(value), rule, value, key, "It is a number.")


def require_kinds(function: Callable[..., object], arguments: Mapping[str, object]) -> None:
    """Raises `UserError` if the kind of an argument isn't that of the default that `function` has for it.

    torch's optimizers take most words, lists and NaN, and fail in the middle of a run, if at all. An argument whose
    default is true or false must be one of them; if the default is a number, it must be a finite number; if it is a
    tuple of numbers, it must be as many finite numbers. The function itself checks arguments with another default, or
    without one.
    """
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in arguments or parameter.default is inspect.Parameter.empty:
            continue
        value, default = arguments[name], parameter.default
        if isinstance(default, bool):
            require(isinstance(value, bool), f"{name} is true or false", value, name)
        elif is_number(default):
            require(_is_finite(value), f"{name} is a finite number", value, name, f"Its default is {default:g}.")
            if name in NOT_NEGATIVE:
                require(value >= 0, f"{name} >= 0", value, name, f"Its default is {default:g}.")  # type: ignore[operator]
        elif isinstance(default, tuple) and all(map(is_number, default)):
            # OmegaConf's lists are sequences too.
            fits = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == len(default)
            finite = fits and all(map(_is_finite, value))  # type: ignore[call-overload]
            rule, remedy = f"{name} is {len(default)} finite numbers", f"Its default is {list(default)}."
            require(finite, rule, value, name, remedy)


def one_line(error: object, *, whole: bool = True) -> str:
    """Returns what an error or a text says, in one line; the name of its type for an error that says nothing.

    Args:
        error: The error or the text.
        whole: Whether to take all lines. False takes the first: what follows in the messages of torch, MLflow and
            others is advice or a stack trace.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return "" if isinstance(error, str) else type(error).__name__
    return " ".join(lines) if whole else lines[0]


def is_number(value: object) -> TypeGuard[float]:
    """Returns whether a value is a number; true and false aren't, NaN is."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    # A configuration may hold whole numbers of any size, and torch refuses those that float32 can't hold.
    return is_number(value) and abs(value) <= LARGEST
