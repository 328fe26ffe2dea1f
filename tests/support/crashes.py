"""Lets a command die, or stand still, at a named function: where it commits something, and not at a random moment.

Both are called in the command's process before it starts (`Command(prepare=partial(kill_at, ...))`); the product knows
nothing of them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal


def kill_at(
    place: str, when: Literal["before", "after"], call: int = 1, about: str = "", by: int = signal.SIGKILL
) -> None:
    """Sends a signal to this process at a call of a function.

    Args:
        place: The function, where its callers look it up: "package.module:function" or "package.module:Class.method".
        when: Before the function does its work, or after it.
        call: Which call, from 1.
        about: Calls count only if this text is in one of their arguments.
        by: The signal.
    """
    calls = 0

    def counted(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += any(about in str(argument) for argument in arguments) if about else 1
        if calls == call and when == "before":
            os.kill(os.getpid(), by)
        result = function(*arguments, **named)
        if calls == call:
            os.kill(os.getpid(), by)
        return result

    _replace(place, counted)


def wait_at(place: str, until: Path) -> None:
    """Lets each call of a function wait until a file exists."""

    def waiting(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        until.with_suffix(".waiting").touch()
        while not until.exists():
            time.sleep(0.05)
        return function(*arguments, **named)

    _replace(place, waiting)


def _replace(place: str, around: Callable[..., Any]) -> None:
    """Replaces a function by one that calls `around` with it and its arguments."""
    module, _, path = place.partition(":")
    owner: Any = import_module(module)
    *classes, name = path.split(".")
    for inner in classes:
        owner = getattr(owner, inner)
    function = getattr(owner, name)

    def replaced(*arguments: Any, **named: Any) -> Any:
        return around(function, *arguments, **named)

    setattr(owner, name, replaced)
