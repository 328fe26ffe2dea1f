"""How the commands end: with one line for what a user can mend, with a stack trace for a fault of kdsweep's own."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import sys
import traceback
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from kdsweep.config.keys import GROUPS, flatten, meant, nearest
from kdsweep.system import interrupts, user_code
from kdsweep.system.errors import RunError, UserError, one_line
from kdsweep.system.interrupts import HungUpError, TerminatedError
from kdsweep.system.masking import masked_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

USER_ERROR, FAILURE = 2, 1
# What a command says and its status where a signal ends it: 128 and the signal's number.
SIGNALLED: dict[type[KeyboardInterrupt], tuple[str, int]] = {
    HungUpError: ("the terminal was closed", 129),
    KeyboardInterrupt: ("interrupted", 130),
    TerminatedError: ("terminated", 143),
}

# Errors of the operating system, by number, and what helps. The first two kinds say nothing against the configuration.
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
# Options that Hydra's documentation names, and the packages that bring them.
PLUGINS = {
    "hydra/launcher=joblib": "hydra-joblib-launcher",
    "hydra/launcher=ray": "hydra-ray-launcher",
    "hydra/launcher=rq": "hydra-rq-launcher",
    "hydra/launcher=submitit_local": "hydra-submitit-launcher",
    "hydra/launcher=submitit_slurm": "hydra-submitit-launcher",
    "hydra/sweeper=ax": "hydra-ax-sweeper",
    "hydra/sweeper=nevergrad": "hydra-nevergrad-sweeper",
    "hydra/job_logging=colorlog": "hydra-colorlog",
    "hydra/hydra_logging=colorlog": "hydra-colorlog",
}

NOT_THERE = "Is it in a folder that can be written (paths.root)?"

# Modules in which Hydra turns the words of the command line into a configuration.
COMPOSING = ("hydra.core.override_parser", "hydra._internal.config_loader_impl", "hydra._internal.defaults_list")

SEE_HELP = "`kdsweep --help` lists keys and options."

# Groups of the configuration: their value is the name of an option.
CHOSEN = (*GROUPS, "experiment", "sweep", "hydra")


def command(name: str, body: Callable[[], None], *, after_a_signal: str = "") -> None:
    """Runs the body of a command and turns its exceptions into one line on stderr and an exit status.

    The status is 2 for a `UserError`, 1 for a `RunError`, 129 for SIGHUP, 130 for Ctrl-C and 143 for SIGTERM. With
    KDSWEEP_TRACEBACK=1 the stack trace comes before the line. Any other exception always shows its stack trace, and its
    status is 1.

    Args:
        name: The command's.
        body: What it does.
        after_a_signal: A sentence that says how to go on after Ctrl-C, SIGTERM or SIGHUP; a signal's exception may have
            another as its argument.
    """
    interrupts.install()
    # urllib3 announces every attempt to reach a server; kdsweep says so once, or raises an error.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        with one_line_arguments():
            body()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe (`kdsweep --help | head`). Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILURE)
    except Exception as error:
        known = explained(error)
        if known is None:
            raise
        if show_traceback():
            sys.stderr.write(masked_text("".join(traceback.format_exception(error))))
        fail(name, known)
    except KeyboardInterrupt as signal:
        text, status = SIGNALLED[type(signal)]
        how = signal.args[0] if signal.args else after_a_signal
        leave(name, f"{text}. {how}" if how else text, status)
    finally:
        interrupts.forget()


@contextmanager
def one_line_arguments() -> Iterator[None]:
    """Makes wrong options raise `UserError` in this block; argparse, and Hydra with it, would print the usage first."""
    before = argparse.ArgumentParser.error

    def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        raise UserError(f"{message}. `{parser.prog} --help` says what can be given.")

    argparse.ArgumentParser.error = refuse  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        argparse.ArgumentParser.error = before  # type: ignore[method-assign]


def explained(error: Exception) -> UserError | RunError | None:
    """Returns the error to show in one line, also for what Hydra or OmegaConf raises; None for a fault of kdsweep's."""
    if isinstance(error, UserError | RunError):
        return error
    broken = isinstance(error, OSError) and error.errno in {*DISK_FULL, *DEVICE}
    own = None if broken else user_code.as_user_error(error)
    if own is not None:
        return own
    # Hydra's error for a missing option is an OSError too, but has no number.
    if isinstance(error, OSError) and (known := _of_the_system(error)) is not None:
        return known
    # In a process that hasn't loaded Hydra the error isn't Hydra's, and importing it would cost half a second.
    if "hydra" not in sys.modules:
        return None
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, OmegaConfBaseException):
        return _reworded(str(error), getattr(error, "full_key", None))
    if isinstance(error, HydraException):
        text = f"{error} {error.__cause__ or ''}"
        if found := re.search(r"Could not override '([^']+)'", one_line(text)):
            keys = _known(found[1], error)
            return UserError(f"there is no such key. {_added(found[1], keys)}{meant(found[1], keys)}", found[1])
        return _reworded(text)
    # Some words (`loss=null`, `-m --cfg job`, `+=`) make Hydra fail in the middle of its work, with any exception.
    places = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    composing = any(place.startswith(COMPOSING) for place in places)
    # Wrong words in hydra.job_logging are refused by Python's logging, which Hydra sets up.
    refuses = isinstance(error, ValueError) and places and places[-1].startswith(("hydra.", "logging."))
    if composing or refuses:
        return _reworded(str(error) or "the command line can't be read")
    return None


def fail(name: str, error: UserError | RunError, where: str | None = None) -> NoReturn:
    """Leaves with the error in one line; `where` it happened is added to the end of the line."""
    line = masked_text(one_line(error))
    line = line if where is None else f"{line} ({masked_text(where)})"
    leave(name, line, USER_ERROR if isinstance(error, UserError) else FAILURE)


def leave(name: str, text: str, status: int) -> NoReturn:
    """Leaves with one line on stderr."""
    with suppress(OSError):  # the terminal may be closed
        sys.stderr.write(f"{name}: {text}\n")
    sys.exit(status)


def show_traceback() -> bool:
    """Returns whether the user asked for stack traces."""
    return os.environ.get("KDSWEEP_TRACEBACK", "") not in ("", "0")


def _of_the_system(error: OSError) -> UserError | RunError | None:
    """Returns an error that says what the operating system refused, and what helps; None if it isn't about files."""
    fault = error.strerror or type(error).__name__
    # An error of writing has no file name, but the number of a full disk says enough.
    place = "" if error.filename is None else f": {_quoted(error.filename)}"
    if error.errno in DISK_FULL:
        return RunError(f"{fault}{place}. Free some space, and give the same command again: it goes on from there.")
    if error.errno in DEVICE:
        return RunError(f"{fault}{place}. {DEVICE[error.errno]}")
    if error.filename is None:
        return None
    return UserError(f"{fault}{place}. {REFUSED.get(error.errno or 0, NOT_THERE)}")


def _reworded(text: str, key: str | None = None) -> UserError:
    """Returns Hydra's message as an error of one line; its frequent messages get the key in front and a remedy.

    Args:
        text: The message.
        key: The key at fault, if the exception knows it.
    """
    text = one_line(text)
    options = r"Could not find '([^']+)' Available options in '[^']+': (.*?)( Config search|$)"
    if found := re.search(options, text):
        # The option's own name may begin with a slash, which then follows the group's slash.
        group, mark, option = found[1].partition("//")
        group, _, option = (group, mark, f"/{option}") if mark else found[1].rpartition("/")
        package = PLUGINS.get(f"{group}={option}")
        remedy = "" if package is None else f" It comes with a package: pip install {package}."
        return UserError(f"there is no option {option!r}. Choose from {', '.join(found[2].split())}.{remedy}", group)
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


def _known(key: str, error: BaseException) -> list[str]:
    """Returns the keys of the configuration, which OmegaConf's error knows; Hydra's own only beside one of them."""
    from omegaconf import OmegaConf

    node = getattr(error.__cause__, "parent_node", None)
    config: Any = {} if node is None else OmegaConf.to_container(node._get_root(), resolve=False)
    of_hydra = key.startswith("hydra.")
    return [name for name in flatten(config) if name.startswith("hydra.") == of_hydra]


def _added(key: str, known: list[str]) -> str:
    """Says how a component gets an argument that its file has no value for; "" where a key beside it is meant."""
    component = key.rpartition(".")[0]
    beside = (nearest(key, known) or "").rpartition(".")[0] == component
    takes = f"{component}._target_" in known and not beside
    return f"If {component}._target_ takes it, write +{key}. " if takes else ""


def _ended(text: str) -> str:
    """Returns a sentence with a full stop."""
    return text if text.endswith((".", "?")) else f"{text}."


def _group_word() -> str:
    """Returns the word of the command line that sets a group to something other than a name; "" if there is none.

    Hydra's message doesn't name it.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for word in sys.argv[1:]:
        key, mark, _ = word.partition("=")
        if mark and re.fullmatch(r"[\w/]+", key) and not key.startswith("-"):
            (override,) = OverridesParser.create().parse_overrides([word])
            if key in CHOSEN and not isinstance(override.value(), str | list):
                return word
    return ""


def _quoted(name: object) -> str:
    """Returns a path as it is, or with quotes and escapes if it would break the line."""
    text = os.fsdecode(name) if isinstance(name, bytes) else str(name)
    return text if text.isprintable() else repr(text)
