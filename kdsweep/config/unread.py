"""Refuses keys that nothing reads, which would otherwise be set without a word and without an effect."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from kdsweep.config import keys
from kdsweep.config.keys import flatten
from kdsweep.config.overrides import parsed
from kdsweep.system.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# The part of Hydra's own configuration that repeats the command line.
WORDS = "overrides"


def require_read(cfg: DictConfig, hydra: Any) -> None:
    """Refuses a key of the configuration that neither kdsweep nor an interpolation reads.

    A group of the user's own is read if an interpolation reads a part of it. Its other parts may then stand in its
    files, but not on the command line. Nothing is refused where functions of the user's get the whole configuration.

    Args:
        cfg: The configuration as Hydra composed it, with its interpolations.
        hydra: Hydra's own part of it.

    Raises:
        UserError: Its key is the first unread one, and its message says which key is probably meant.
    """
    own = {name: value for name, value in _leaves(cfg).items() if name.partition(".")[0] != "hydra"}
    asked = {name for name in own if not keys.is_read(name)}
    if not asked or _others_read(hydra):
        return
    of_hydra = {f"hydra.{name}": value for name, value in _leaves(hydra).items() if name.partition(".")[0] != WORDS}
    unread = _unread(asked, {**own, **of_hydra})
    lines: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    words = {override.key_or_group.lstrip("+") for override in parsed(lines)}
    alive = {_group(name) for name in asked - unread}
    for name in own:
        if name in unread and (_group(name) not in alive or name in words):
            remedy = keys.meant(name, (known for known in own if known not in unread))
            raise UserError(f"nothing reads this key. {remedy}", name)


def _leaves(cfg: DictConfig) -> Mapping[str, object]:
    container: Any = OmegaConf.to_container(cfg, resolve=False)
    return flatten(container)


def _others_read(hydra: DictConfig) -> bool:
    """Returns whether functions of the user's get the configuration: callbacks, and a function of a search space."""
    return bool(hydra.callbacks) or OmegaConf.select(hydra, "sweeper.custom_search_space") is not None


def _unread(asked: set[str], config: Mapping[str, object]) -> set[str]:
    """Returns which of the keys that are `asked` for no other key of the configuration reads, not even in a chain."""
    unread, found = set(asked), set(asked)
    while found:
        read = {path for name, value in config.items() if name not in unread for path in _references(name, value)}
        found = {name for name in unread if any(_overlap(name, path) for path in read)}
        unread -= found
    return unread


def _overlap(name: str, path: str) -> bool:
    """Returns whether two dotted keys are the same, or one lies in the other."""
    return f"{name}.".startswith(f"{path}.") or f"{path}.".startswith(f"{name}.")


def _references(name: str, value: object) -> Iterator[str]:
    """Yields the keys to which the interpolations in a key's value refer, and more words of their resolvers."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    while found := re.search(r"\$\{([^{}]*)\}", text):
        text = text[: found.start()] + text[found.end() :]
        for word in re.split(r"[:,\s'\"()+*/]", re.sub(r"\[([^\]]*)\]", r".\1", found[1])):
            path = word.lstrip(".")
            dots = len(word) - len(path)
            # One dot is the mapping in which the value stands, and each further one the mapping around it.
            parents = name.split(".")[:-dots] if dots else []
            if path.strip("."):
                yield ".".join([*parents, path.strip(".")])


def _group(name: str) -> str:
    """Returns the user's own group in which a key lies, or the key itself if it lies in a group of kdsweep's."""
    group = name.partition(".")[0]
    ours = group in keys.PARTS or any(row.name.partition(".")[0] == group for row in keys.KEYS)
    return name if ours else group
