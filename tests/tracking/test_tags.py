"""The names under which kdsweep records things in MLflow and in Optuna never change.

Recorded runs and half-done studies of earlier versions are read by these names. A rename would make old runs unreadable
without any error: a study would train again what it has, a report would show nothing. The names begin like those of
modules, so renaming a module by search and replace could rename a tag.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import kdsweep

PACKAGE = Path(kdsweep.__file__).parent

# Tags of MLflow runs.
RUN_TAGS = {
    *("kdsweep.role", "kdsweep.stage", "kdsweep.study", "kdsweep.study_key", "kdsweep.job", "kdsweep.trial"),
    "kdsweep.options",
    *("kdsweep.contest", "kdsweep.contender", "kdsweep.condition"),
    *("kdsweep.group", "kdsweep.process", "kdsweep.teacher", "kdsweep.weights", "kdsweep.test_read"),
    *("kdsweep.git_commit", "kdsweep.git_dirty", "kdsweep.reproduces", "kdsweep.resumed_after"),
    *("kdsweep.pruned", "kdsweep.error", "kdsweep.described"),
    *("kdsweep.space", "kdsweep.objectives", "kdsweep.planned", "kdsweep.chosen", "kdsweep.looks"),
    "kdsweep.command",
    *("kdsweep.choice", "kdsweep.fidelity"),
    *("kdsweep.stopped", "kdsweep.requests"),
    *("kdsweep.sent", "kdsweep.sent_end", "kdsweep.sent_from", "kdsweep.restored"),
}

# User attributes of Optuna's trials and studies.
ATTRIBUTES = {
    *("kdsweep.process", "kdsweep.beat", "kdsweep.values", "kdsweep.starts", "kdsweep.pruned_at", "kdsweep.cause"),
    *("kdsweep.key", "kdsweep.conditions", "kdsweep.controller", "kdsweep.store"),
    *("kdsweep.chosen_from", "kdsweep.choose", "kdsweep.start", "kdsweep.earlier", "kdsweep.length"),
    "kdsweep.again",
}

# The functions that put `kdsweep.{key}` together, each with the name of the dictionary that has the keys. Those of
# `tagged` are its callers' keyword arguments, for which it asks the store.
PREFIXED = {
    ("recording.py", "_tags"): "tags",
    ("study/controller.py", "_tags"): "values",
    ("tracking/store.py", "tagged"): "tags",
}


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """All nodes of all modules, with the module's path inside the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield path.relative_to(PACKAGE).as_posix(), node


def is_module(name: str) -> bool:
    place = PACKAGE.joinpath(*name.split(".")[1:])
    return place.is_dir() or place.with_suffix(".py").exists()


def test_the_recorded_names_stay() -> None:
    """The text constants of all modules name these tags and attributes, and no others."""
    texts = {
        found
        for _, node in nodes()
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        # Alone, or quoted as in a filter of MLflow's; a docstring mentions names within a sentence.
        for found in re.findall(r"(?:^|`)(kdsweep\.[a-z_]+)(?:$|`)", node.value)
    }
    computed = {f"kdsweep.{key}" for _, _, keys in prefixed() for key in keys}
    assert {name for name in texts if not is_module(name)} | computed == RUN_TAGS | ATTRIBUTES


def test_the_names_that_are_put_together_are_known() -> None:
    """No other function makes a name of the prefix and a variable: the test above would not see it."""
    assert {(module, function) for module, function, _ in prefixed()} == PREFIXED.keys()


def prefixed() -> Iterator[tuple[str, str, list[str]]]:
    """The functions with an f-string that begins with the prefix: module, function, keys of the dictionary."""
    for module, function in nodes():
        if not isinstance(function, ast.FunctionDef) or not any(map(is_prefixed, ast.walk(function))):
            continue
        wanted = PREFIXED.get((module, function.name))
        yield (
            module,
            function.name,
            [
                key.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
                if isinstance(node.targets[0], ast.Name) and node.targets[0].id == wanted
                for key in node.value.keys
                if isinstance(key, ast.Constant)
            ],
        )


def is_prefixed(node: ast.AST) -> bool:
    if not isinstance(node, ast.JoinedStr) or not isinstance(node.values[0], ast.Constant):
        return False
    return str(node.values[0].value) == "kdsweep."
