"""The user's own code: which packages are trusted, where in it an error arose, and the source files that a run uses."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kdsweep.system.errors import PrunedError, RunError, UserError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# The environment variable that names the packages whose functions a configuration may name.
TRUST = "KDSWEEP_TRUST"

# Ends a message about the user's code.
WHOLE_TRACE = "KDSWEEP_TRACEBACK=1 shows the whole stack trace."

# Packages whose versions a run records, so their source isn't kept.
RECORDED = ("kdsweep", "torch", "torchvision", "timm")

# Folders of installed packages.
INSTALLED = ("site-packages", "dist-packages")


def trusted() -> tuple[str, ...]:
    """Returns the patterns of targets that the user trusts, such as "mypackage.*"."""
    return tuple(os.environ.get(TRUST, "").split())


def fault(error: BaseException) -> str:
    """Returns type and message of an error in one line, with the place in the user's code if it arose there."""
    found = _found(error)
    culprit = error if found is None else found[0]
    message = culprit.msg if isinstance(culprit, SyntaxError) else culprit
    text = one_line(f"{type(culprit).__name__}: {message}", whole=False)
    return text if found is None else f"{text.rstrip('.')} ({found[1]})"


def place_of(error: BaseException) -> str | None:
    """Returns where in the user's code an error arose, "/home/me/net.py, line 7, in forward"; None for other errors.

    It is the innermost call in a file of the user's, at or below a call of a trusted package. What the error was raised
    from counts as well, since Hydra raises its own errors from those of a component.
    """
    found = _found(error)
    return None if found is None else found[1]


@contextmanager
def explained() -> Iterator[None]:
    """Turns errors that arise in the user's code, in this block, into a `UserError` of one line that says where."""
    try:
        yield
    except Exception as error:
        known = as_user_error(error)
        if known is None:
            raise
        raise known from error


def as_user_error(error: Exception) -> UserError | None:
    """Returns an error of the user's code as one line that says where; None if it is another's or is explained."""
    if isinstance(error, UserError | RunError | PrunedError) or place_of(error) is None:
        return None
    return UserError(f"your code failed: {fault(error)}. {WHOLE_TRACE}")


def _found(error: BaseException | None) -> tuple[BaseException, str] | None:
    """Returns the error that arose in the user's code, and where."""
    roots = {pattern.partition(".")[0] for pattern in trusted()}
    while error is not None and roots:
        if isinstance(error, SyntaxError) and error.filename and _is_own_file(error.filename):
            return error, f"{error.filename}, line {error.lineno}"
        place = None
        for frame, line in traceback.walk_tb(error.__traceback__):
            name, file = frame.f_code.co_name, frame.f_code.co_filename
            inside = str(frame.f_globals.get("__name__")).partition(".")[0] in roots
            if inside or (place is not None and _is_own_file(file)):
                place = f"{file}, line {line}" + ("" if name == "<module>" else f", in {name}")
        if place is not None:
            return error, place
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def sources(targets: Iterable[str]) -> dict[str, bytes]:
    """Returns the source files of the user's functions and classes, and of the user's modules that these import.

    Installed packages of others aren't the user's, nor is what a module imports by a computed name.

    Args:
        targets: Full names: "mypackage.net.TinyNet". Names of `RECORDED` packages are left out.

    Returns:
        The name of each file below the folder that Python finds it in ("mypackage/net.py"), and its content as this
        process has first seen it.
    """
    names = sorted({target for target in targets if target.partition(".")[0] not in RECORDED})
    tops = {name.partition(".")[0] for name in names}
    found: dict[str, bytes] = {}
    todo = [prefix for name in names for prefix in _prefixes(name)]
    seen: set[str] = set()
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        path = _file_of(module)
        if path is None or not (module.partition(".")[0] in tops or _is_own_file(str(path))):
            continue
        package = path.name == "__init__.py"
        content = _content(path)
        found[f"{module.replace('.', '/')}{'/__init__' if package else ''}.py"] = content
        todo += _imported(content, module if package else module.rpartition(".")[0])
    return dict(sorted(found.items()))


@functools.cache
def _content(path: Path) -> bytes:
    # Cached, since the process goes on with the code that it has loaded, whatever is edited while it runs.
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _file_of(module: str) -> Path | None:
    """Returns the file of a module, without importing it; None for a built-in one and for what is no module."""
    top, *inner = module.split(".")
    if top in RECORDED or (not inner and top in sys.builtin_module_names):
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not inner:
        path = Path(spec.origin or "")
        return path if path.suffix == ".py" and path.is_file() else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *inner)
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file():
                return path
    return None


def _imported(content: bytes, package: str) -> Iterator[str]:
    """Yields the modules that a source file may import, with the packages that hold them.

    Args:
        content: The file.
        package: The package that its relative imports start from.
    """
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _prefixes(alias.name)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if node.level else []
            parts = parts[: len(parts) - node.level + 1] if node.level else parts
            base = ".".join(filter(None, [*parts, node.module]))
            # What is imported from a package may be a module in it.
            for alias in node.names:
                yield from _prefixes(f"{base}.{alias.name}" if base else alias.name)


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def _is_own_file(name: str) -> bool:
    """Returns whether a source file is neither Python's, nor kdsweep's, nor of an installed package."""
    path = Path(name)
    below = (Path(__file__).parents[1], Path(os.__file__).parent)
    return path.suffix == ".py" and not {*INSTALLED} & {*path.parts} and not any(map(path.is_relative_to, below))
