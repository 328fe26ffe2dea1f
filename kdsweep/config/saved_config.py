"""The saved configuration of a run: YAML that can be run again, with the run's record in a comment at its end.

A copied `config.yaml` is therefore enough to reproduce a run and to compare, without the store that has its record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kdsweep.system.errors import UserError, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

MARK = "# kdsweep-record: "


@dataclass(frozen=True)
class SavedConfig:
    """The content of a saved configuration.

    Attributes:
        config: The configuration, resolved, as plain dictionaries.
        record: What is known of the run: "run" (its id), "runtime" (device, precision and threads in force),
            "environment" (as `environment.describe`), "data" (hash of the pictures and labels), "teacher" (hash of what
            made it, or None), "sources" (hash of each file of the user's own code, if there is any), "inputs" (of the
            data set: name, classes, mean, std, and the pictures' height and width), and, if the run has ended well,
            "weights" (hash), "metrics" (the last of each, by name) and "history" (metric -> [[epoch, value], ...]).
            Empty for a configuration that no run has written.
    """

    config: dict[str, Any]
    record: dict[str, Any] = field(default_factory=dict)


def saved_text(config: str, record: Mapping[str, object]) -> str:
    """Returns the text of the file.

    Args:
        config: The configuration as YAML.
        record: What is known of the run.
    """
    return f"{config.rstrip()}\n{MARK}{json.dumps(record)}\n"


def parse(text: str) -> SavedConfig:
    """Reads what `saved_text` wrote, or any YAML mapping.

    Raises:
        UserError: The text is neither of them.
    """
    try:
        config = yaml.safe_load(text)
        found = re.search(f"^{MARK}(.*)$", text, re.MULTILINE)
        record = {} if found is None else json.loads(found[1])
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise UserError(f"this is no saved configuration ({one_line(error)}).") from error
    if not isinstance(config, dict) or not isinstance(record, dict):
        raise UserError("this is no saved configuration: it isn't a mapping of keys to values.")
    if "${" in json.dumps(config, default=str):
        # In somebody else's file, interpolations could read the environment. Runs save resolved values.
        remedy = "Take the config.yaml that a run has written, or print one with `kdsweep --cfg job --resolve`."
        raise UserError(f"a saved configuration holds values, but this one holds interpolations (${{...}}). {remedy}")
    return SavedConfig(config, record)


def moved(config: Mapping[str, Any], folders: Sequence[tuple[str, Path]]) -> dict[str, Any]:
    """Returns a configuration whose paths below old folders are moved to new ones.

    A path that exists at the old place alone stays as it is.

    Args:
        config: The configuration.
        folders: (old, new), the innermost first. A path is moved by the first old folder that it lies below.
    """
    return {key: _moved(value, folders) for key, value in config.items()}


def _moved(value: Any, folders: Sequence[tuple[str, Path]]) -> Any:
    if isinstance(value, Mapping):
        return moved(value, folders)
    if isinstance(value, list):
        return [_moved(item, folders) for item in value]
    # A name without a slash ("resnet18") would lie below the folder "."; the slashes of a URI separate no folders.
    if not isinstance(value, str) or "/" not in value or "://" in value:
        return value
    from kdsweep.numerics.weight_files import file_and_part  # imports torch

    file, part = file_and_part(value)
    for old, new in folders:
        path = Path(file)
        if path.is_relative_to(old):
            target = new / path.relative_to(old)
            keep = not target.exists() and (path.exists() or not Path(old).parts)
            return value if keep else ":".join(filter(None, (str(target), part)))
    return value
