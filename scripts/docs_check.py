"""Checks that every public name of the API reference has a docstring, and that the reference shows every exported name.

The reference's modules are those that the pages in docs/reference/api name as `::: kdsweep.<module>`. They are read
and not imported. Exit status 1: names are missing, each in a line of its own.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

import kdsweep

ROOT = Path(__file__).resolve().parents[1]
SHOWN = re.compile(r"^::: (kdsweep[\w.]*)", re.MULTILINE)


def shown_modules() -> set[str]:
    """The dotted names of all modules that the API reference shows."""
    pages = sorted((ROOT / "docs" / "reference" / "api").glob("*.md"))
    return {name for page in pages for name in SHOWN.findall(page.read_text(encoding="utf-8"))}


def undocumented(scope: griffe.Module | griffe.Class) -> Iterator[str]:
    """The module or class itself, its public functions and classes, and theirs, where they have no docstring."""
    if not scope.has_docstring:
        yield scope.path
    for name, member in scope.members.items():
        if name.startswith("_") or member.is_alias:
            continue
        if isinstance(member, griffe.Class):
            yield from undocumented(member)
        elif is_function(member) and not member.has_docstring and not overrides(scope, name):
            yield member.path


def is_function(member: griffe.Object) -> bool:
    """Tells whether a member is a function, a method or a property."""
    return isinstance(member, griffe.Function) or "property" in member.labels


def overrides(scope: griffe.Module | griffe.Class, name: str) -> bool:
    """Tells whether `name` is a method of a library's base class, whose documentation holds for it."""
    if not isinstance(scope, griffe.Class):
        return False
    bases = [griffe_base.canonical_path for griffe_base in scope.bases if isinstance(griffe_base, griffe.Expr)]
    return any(base.startswith("torch.nn.") for base in bases) and name in ("forward", "train")


def unexported(modules: set[str]) -> Iterator[str]:
    """The names in `kdsweep.__all__` that don't exist, have no docstring, or stand on no page of the reference."""
    for name in getattr(kdsweep, "__all__", ()):
        thing = getattr(kdsweep, name, None)
        if thing is None:
            yield f"kdsweep.{name} (in __all__, and not there)"
        elif inspect.isroutine(thing) or inspect.isclass(thing) or inspect.ismodule(thing):
            home = thing.__name__ if inspect.ismodule(thing) else thing.__module__
            if not thing.__doc__:
                yield f"kdsweep.{name}"
            elif home not in modules:
                yield f"kdsweep.{name} (no page of docs/reference/api shows {home})"


def main() -> int:
    """Prints what is missing, and returns the exit status."""
    modules = shown_modules()
    package = griffe.load("kdsweep", search_paths=[str(ROOT)], allow_inspection=False)
    assert isinstance(package, griffe.Module)
    missing = list(unexported(modules))
    for name in sorted(modules):
        module = package if name == "kdsweep" else package[name.removeprefix("kdsweep.")]
        assert isinstance(module, griffe.Module)
        missing += undocumented(module) if name != "kdsweep" else []
    for name in missing:
        print(f"docs: no docstring: {name}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
