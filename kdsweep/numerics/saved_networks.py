"""The networks in a file of weights: where they lie among what was saved with them, and under which prefix.

People save a network alone (`net.state_dict()`), or with the state of its training: `{"state_dict": ..., "epoch": 3}`,
`{"model": ..., "model_ema": ...}`, or a checkpoint of Lightning. Wrappers put a prefix before each tensor's name:
`module.`, `_orig_mod.`, `backbone.`, `net.`, alone and nested. A prefix is recognised by what follows it, the names of
the network's own tensors, and not by a list of wrappers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Collection

# No file has its network below more dictionaries than these.
MAX_DEPTH = 4

TOP = "."


@dataclass(frozen=True)
class SavedNetwork:
    """One network in a file.

    Attributes:
        keys: The keys of the dictionaries on the way to its tensors.
        prefix: What stands before each of its names ("module."); "" for nothing.
        state: Its tensors, by their names without the prefix.
        others: The names of the tensors beside it that don't have the prefix.
        matched: How many of its names are names of the wanted network.
    """

    keys: tuple[str, ...]
    prefix: str
    state: dict[str, Tensor]
    others: tuple[str, ...]
    matched: int

    @property
    def name(self) -> str:
        """Its name in the file, by which it can be chosen: keys and prefix, joined by dots; "." at the top."""
        return ".".join(filter(None, [*self.keys, self.prefix.removesuffix(".")])) or TOP

    def lies_in(self, part: str) -> bool:
        """Returns whether a part of the file, named as in `name`, is or holds this network."""
        return self.name == part or self.name.startswith(f"{part}.")


def state_dicts(saved: object, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yields all state dicts (name: tensor) in what a file holds, each with the keys on the way to it."""
    if not isinstance(saved, Mapping) or not saved:
        return
    named = {key: value for key, value in saved.items() if isinstance(key, str)}
    if len(named) == len(saved) and all(isinstance(value, Tensor) for value in named.values()):
        yield keys, named
    elif len(keys) < MAX_DEPTH:
        for key, value in named.items():
            yield from state_dicts(value, (*keys, key))


def saved_networks(keys: tuple[str, ...], state: Mapping[str, Tensor], wanted: Collection[str]) -> list[SavedNetwork]:
    """Returns the networks that a state dict may hold, those first that share most names with the wanted one.

    Args:
        keys: The keys on the way to the state dict.
        state: Its tensors.
        wanted: The names of the wanted network's tensors.
    """
    matched = Counter({"": 0})
    for name in state:
        parts = name.split(".")
        for index in range(len(parts)):
            if ".".join(parts[index:]) in wanted:
                matched["".join(f"{part}." for part in parts[:index])] += 1
    return [
        SavedNetwork(
            keys,
            prefix,
            {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)},
            tuple(name for name in state if not name.startswith(prefix)),
            count,
        )
        for prefix, count in matched.most_common()
    ]
