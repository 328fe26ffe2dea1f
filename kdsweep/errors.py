"""The errors whose one line says enough: what a user can mend, and what made a run fail."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong value, file or key given by the user.

    Args:
        message: The rule, the value found, and the remedy: "`tau > 0` must hold, but got tau=0.0."
        key: The configuration key at fault, relative to the component that raises ("tau"); `within` completes it.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.key = key

    def within(self, group: str) -> UserError:
        """The same error with its key seen from outside the component: "tau" within "loss" is "loss.tau"."""
        return UserError(self.message, group if self.key is None else f"{group}.{self.key}")

    def __str__(self) -> str:
        return self.message if self.key is None else f"{self.key}: {self.message}"


class RunError(RuntimeError):
    """A run that can't go on, though its configuration is sound: what happened and where, in one line."""


class PrunedError(Exception):
    """Ends a run that its study's pruner stops: no failure, and no result.

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
    """Raises `UserError` where `value` is not a number at all, such as a word; `rule` says what it should be."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    require(is_number, rule, value, key, "It is a number.")
