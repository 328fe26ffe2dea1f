"""How the commands end: one line and an exit status for what a user can mend, a stack trace for what only we can."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import sys
import traceback
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from kdsweep.config.keys import GROUPS
from kdsweep.system import interrupts
from kdsweep.system.errors import RunError, UserError
from kdsweep.system.interrupts import HungUpError, TerminatedError
from kdsweep.system.masking import masked_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

USER_ERROR, FAILURE, HUNG_UP, INTERRUPTED, TERMINATED = 2, 1, 129, 130, 143

# What the operating system says, and what helps. The first two kinds end a run whose configuration is sound.
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
DEVICE = {
    errno.EIO: "The disk or its connection is at fault: look at the system's log, or set another paths.root.",
    errno.ENOMEM: "The machine is out of memory: end other programs, or lower batch_size or sweep.n_jobs.",
    errno.EMFILE: "Too many files are open: raise the limit (`ulimit -n 4096`), or lower sweep.n_jobs.",
    errno.ENFILE: "Too many files are open on this machine: end other programs.",
}
REFUSED = {
    errno.EACCES: "Set its permissions, or choose a folder that you may write (paths.root, KDSWEEP_HOME).",
    errno.EPERM: "Set its permissions, or choose a folder that you may write (paths.root, KDSWEEP_HOME).",
    errno.EROFS: "This disk can't be written: choose a folder on another (paths.root, KDSWEEP_HOME).",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOTDIR: "A file stands where a folder belongs: remove it, or choose another folder (paths.root).",
    errno.EEXIST: "A file stands where a folder belongs: remove it, or choose another folder (paths.root).",
    errno.EISDIR: "A folder stands where a file belongs: remove it, or choose another name.",
}
NOT_THERE = "Is it in a folder that can be written (paths.root)?"

# Where Hydra makes a configuration of the words of the command line.
COMPOSING = ("hydra.core.override_parser", "hydra._internal.config_loader_impl", "hydra._internal.defaults_list")

SEE_HELP = "`kdsweep --help` lists keys and options."

# Groups of the configuration, whose value is the name of an option.
CHOSEN = (*GROUPS, "experiment", "sweep", "hydra")


def command(name: str, body: Callable[[], None]) -> None:
    """Runs the body of a command and turns its exceptions into one line on stderr and an exit status.

    2: a `UserError`; 1: a `RunError`; 129, 130 and 143: SIGHUP, Ctrl-C and SIGTERM. With KDSWEEP_TRACEBACK=1 the stack
    trace comes before the line; of any other exception it is shown in any case, and the status is 1.
    """
    interrupts.install()
    # It announces every attempt to reach a server; the error, or a note, comes when there is nothing left to try.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        with one_line_arguments():
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
            sys.stderr.write(masked_text("".join(traceback.format_exception(error))))
        fail(name, known)
    except HungUpError:
        leave(name, "the terminal was closed", HUNG_UP)
    except TerminatedError:
        leave(name, "terminated", TERMINATED)
    except KeyboardInterrupt:
        leave(name, "interrupted", INTERRUPTED)
    finally:
        interrupts.forget()


@contextmanager
def one_line_arguments() -> Iterator[None]:
    """In this block wrong options raise `UserError`: argparse would print the usage before it, and so would Hydra."""
    before = argparse.ArgumentParser.error

    def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        raise UserError(f"{message}. `{parser.prog} --help` says what can be given.")

    argparse.ArgumentParser.error = refuse  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        argparse.ArgumentParser.error = before  # type: ignore[method-assign]


def explained(error: Exception) -> UserError | RunError | None:
    """The error to show in one line, also where Hydra or OmegaConf raised it; None for one that only we can mend."""
    if isinstance(error, UserError | RunError):
        return error
    # Hydra's own "no such option" is an OSError too.
    if isinstance(error, OSError) and (known := _of_the_system(error)) is not None:
        return known
    # Only a process that has these loaded can have raised from them; the import would cost the others half a second.
    if "hydra" not in sys.modules:
        return None
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, OmegaConfBaseException):
        return _reworded(str(error), getattr(error, "full_key", None))
    if isinstance(error, HydraException):
        return _reworded(f"{error} {error.__cause__ or ''}")
    # Some words (`loss=null`, `-m --cfg job`, `+=`) make Hydra fail in the middle of its work, whatever the exception.
    places = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    composing = any(place.startswith(COMPOSING) for place in places)
    # The logging that it sets up refuses words in hydra.job_logging.
    refuses = isinstance(error, ValueError) and places and places[-1].startswith(("hydra.", "logging."))
    if composing or refuses:
        return _reworded(str(error) or "the command line can't be read")
    return None


def fail(name: str, error: UserError | RunError, where: str | None = None) -> NoReturn:
    """Leaves with the error in one line, which ends with `where` it happened, if that is given."""
    line = line_of(error) if where is None else f"{line_of(error)} ({masked_text(where)})"
    leave(name, line, USER_ERROR if isinstance(error, UserError) else FAILURE)


def line_of(error: Exception) -> str:
    """What an error says, in one line and without credentials."""
    return masked_text(_one_line(str(error)))


def leave(name: str, text: str, status: int) -> NoReturn:
    """Leaves with one line on stderr."""
    with suppress(OSError):  # a closed terminal takes no line
        sys.stderr.write(f"{name}: {text}\n")
    sys.exit(status)


def show_traceback() -> bool:
    """Whether the user asked for stack traces."""
    return os.environ.get("KDSWEEP_TRACEBACK", "") not in ("", "0")


def _of_the_system(error: OSError) -> UserError | RunError | None:
    """What the operating system refused, and what helps; None where it is no matter of files."""
    fault = error.strerror or type(error).__name__
    # A write has no file name, but a full disk is a full disk.
    place = "" if error.filename is None else f": {_quoted(error.filename)}"
    if error.errno in DISK_FULL:
        return RunError(f"{fault}{place}. Free some space, and give the same command again: it goes on from there.")
    if error.errno in DEVICE:
        return RunError(f"{fault}{place}. {DEVICE[error.errno]}")
    if error.filename is None:
        return None
    return UserError(f"{fault}{place}. {REFUSED.get(error.errno or 0, NOT_THERE)}")


def _reworded(text: str, key: str | None = None) -> UserError:
    """Hydra's message in one line; its most frequent ones with the key in front and the remedy behind.

    Args:
        key: The key at fault where the exception knows it.
    """
    text = _one_line(text)
    if found := re.search(r"Could not override '([^']+)'", text):
        guess = re.search(r"Did you mean: ('[^']+')", text)
        remedy = f"Did you mean {guess[1]}? " if guess else ""
        return UserError(f"there is no such key. {remedy}`kdsweep --help` lists them all.", found[1])
    options = r"Could not find '([^']+)' Available options in '[^']+': (.*?)( Config search|$)"
    if found := re.search(options, text):
        # An option that begins with a slash follows the group's own.
        group, mark, option = found[1].partition("//")
        group, _, option = (group, mark, f"/{option}") if mark else found[1].rpartition("/")
        return UserError(f"there is no option {option!r}. Choose from {', '.join(found[2].split())}.", group)
    if found := re.search(r"Error when parsing index: \d+, string: (.*?) out of \[.*?\]\. (.*?) See https:", text):
        remedy = "Quote what holds brackets, commas, spaces or letters beyond ASCII: 'key=\"a value\"'."
        return UserError(f"{found[1]!r} can't be read as key=value ({found[2]}). {remedy}")
    if found := re.search(r"Ambiguous value for argument '([^'=]+)=([^']+)'", text):
        remedy = "Add -m to try each value, or write a list as [a,b]."
        return UserError(f"one value must be given, but got {found[2]!r}. {remedy}", found[1])
    if found := re.search(r"Sweep parameters '([^'=]+)=(.*)' requires --multirun", text):
        return UserError(f"one value must be given, but got {found[2]!r}. Add -m to try several.", found[1])
    if found := re.search(r"While dereferencing interpolation '\$\{([\w.]+)\}': (.*)", text):
        return UserError(f"this value doesn't fit: {_ended(found[2])} {SEE_HELP}", found[1])
    if found := re.search(r"Error merging override [+~]*([^=\s]+)=(.*)", text):
        return UserError(f"this value doesn't fit: {_ended(found[2])} {SEE_HELP}", found[1])
    if text.startswith("Config group override must be a string"):
        word = _group_word()
        group = word.partition("=")[0]
        return UserError(
            f"`{group or 'a group'} is one option` must hold, but got {word or text}. {SEE_HELP}", group or None
        )
    text = re.sub(r"\s*(Config search path:|full_key:|object_type=|reference_type=).*", "", text)
    return UserError(f"{_ended(text)} {SEE_HELP}", key or None)


def _ended(text: str) -> str:
    """A sentence with its full stop."""
    return text if text.endswith((".", "?")) else f"{text}."


def _group_word() -> str:
    """The word of the command line that gives a group something other than a name, which Hydra doesn't tell; or ""."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for word in sys.argv[1:]:
        key, mark, _ = word.partition("=")
        if mark and re.fullmatch(r"[\w/]+", key) and not key.startswith("-"):
            (override,) = OverridesParser.create().parse_overrides([word])
            if key in CHOSEN and not isinstance(override.value(), str | list):
                return word
    return ""


def _quoted(name: object) -> str:
    """A path as it is; with quotes and escapes where it would break the line."""
    text = os.fsdecode(name) if isinstance(name, bytes) else str(name)
    return text if text.isprintable() else repr(text)


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text.strip())
