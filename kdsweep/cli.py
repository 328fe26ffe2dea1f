"""How the commands end: one line and an exit status for what a user can mend, a stack trace for what only we can."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from kdsweep import interrupts
from kdsweep.errors import RunError, UserError
from kdsweep.interrupts import TerminatedError

USER_ERROR, FAILURE, INTERRUPTED, TERMINATED = 2, 1, 130, 143


def command(name: str, body: Callable[[], None]) -> None:
    """Runs the body of a command and turns its exceptions into one line on stderr and an exit status.

    2: a `UserError`; 1: a `RunError`; 130 and 143: Ctrl-C and SIGTERM. With KDSWEEP_TRACEBACK=1 the stack trace comes
    before the line; of any other exception it is shown in any case, and the status is 1.
    """
    interrupts.install()
    try:
        body()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough (`kdsweep --help | head`). Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILURE)
    except Exception as error:
        known = explained(error)
        if known is None:
            raise
        if show_traceback():
            traceback.print_exception(error)
        fail(name, known)
    except TerminatedError:
        leave(name, "terminated", TERMINATED)
    except KeyboardInterrupt:
        leave(name, "interrupted", INTERRUPTED)
    finally:
        interrupts.forget()


def explained(error: Exception) -> UserError | RunError | None:
    """The error to show in one line, also where Hydra or OmegaConf raised it; None for one that only we can mend."""
    if isinstance(error, UserError | RunError):
        return error
    if isinstance(error, OSError) and error.filename is not None:
        return UserError(f"{error.strerror}: {error.filename}. Is it in a folder that can be written (paths.root)?")
    # Only a process that has these loaded can have raised from them; the import would cost the others half a second.
    if "hydra" not in sys.modules:
        return None
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, HydraException | OmegaConfBaseException):
        return _reworded(f"{error} {error.__cause__ or ''}")
    # Hydra refuses some words of the command line (`loss=null`, `-m --cfg job`) by plain exceptions.
    places = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, ValueError) and places and places[-1].startswith("hydra."):
        return _reworded(str(error))
    return None


def fail(name: str, error: UserError | RunError) -> NoReturn:
    """Leaves with the error in one line."""
    leave(name, _one_line(str(error)), USER_ERROR if isinstance(error, UserError) else FAILURE)


def leave(name: str, text: str, status: int) -> NoReturn:
    """Leaves with one line on stderr."""
    sys.stderr.write(f"{name}: {text}\n")
    sys.exit(status)


def show_traceback() -> bool:
    """Whether the user asked for stack traces."""
    return os.environ.get("KDSWEEP_TRACEBACK", "") not in ("", "0")


def _reworded(text: str) -> UserError:
    """Hydra's message in one line; its two most frequent ones with the key in front and the remedy behind."""
    text = _one_line(text)
    if found := re.search(r"Could not override '([^']+)'", text):
        guess = re.search(r"Did you mean: ('[^']+')", text)
        remedy = f"Did you mean {guess[1]}? " if guess else ""
        return UserError(f"there is no such key. {remedy}`kdsweep --help` lists them all.", found[1])
    options = r"Could not find '([^']+)/([^'/]+)' Available options in '[^']+': (.*?)( Config search|$)"
    if found := re.search(options, text):
        return UserError(f"there is no option {found[2]!r}. Choose from {', '.join(found[3].split())}.", found[1])
    if found := re.search(r"Error when parsing index: \d+, string: (.*?) out of \[.*?\]\. (.*?) See https:", text):
        remedy = "Quote what holds brackets, commas or spaces: 'key=\"a value\"'."
        return UserError(f"{found[1]!r} can't be read as key=value ({found[2]}). {remedy}")
    if found := re.search(r"Ambiguous value for argument '([^'=]+)=([^']+)'", text):
        remedy = "Add -m to try each value, or write a list as [a,b]."
        return UserError(f"one value must be given, but got {found[2]!r}. {remedy}", found[1])
    return UserError(re.sub(r"\s*(Config search path:|full_key:|object_type=).*", "", text))


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text.strip())
