"""What a function reads, taken apart into tensors and constants, so that two such functions can be compared."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
from typing import Any

import torch
from torch import Tensor, nn

# What compares equal only if it is the same for a function that reads it.
PLAIN: tuple[type, ...] = (
    *(bool, int, float, complex, str, bytes, type(None), type, enum.Enum, set, frozenset),
    *(types.FunctionType, types.BuiltinFunctionType, types.ModuleType),
    *(torch.Size, torch.dtype, torch.device, torch.memory_format, torch.layout),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Same:
    """An object that is compared by being the same one."""

    value: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    __hash__ = None  # type: ignore[assignment]


class _UnknownError(Exception):
    """A value can't be compared."""


def taken_apart(value: object) -> tuple[object, list[Tensor]]:
    """Takes networks, settings and collections of them apart.

    Two functions that read equal constants, and find equal values in tensors of the same shapes, compute the same.

    Args:
        value: A nested value. Attributes of modules and data classes are parts of it.

    Returns:
        The constants, and the tensors in a fixed order. The constants are None if a part can't be compared, or if two
        tensors share memory: then nothing is known to be equal.
    """
    tensors: list[Tensor] = []
    try:
        constants = _parts(value, tensors, {})
        if not all(map(_is_whole, tensors)) or len({tensor.data_ptr() for tensor in tensors}) < len(tensors):
            return None, tensors
    except _UnknownError:
        return None, tensors
    return constants, tensors


def _is_whole(tensor: Tensor) -> bool:
    """Returns whether a tensor is all that lies in its memory."""
    size = tensor.numel() * tensor.element_size()
    return tensor.layout == torch.strided and size > 0 and tensor.untyped_storage().nbytes() == size


def _parts(value: Any, tensors: list[Tensor], seen: dict[int, int]) -> object:
    def each(values: Any) -> list[object]:
        return [_parts(inner, tensors, seen) for inner in values]

    if isinstance(value, Tensor | nn.Module) or dataclasses.is_dataclass(type(value)):
        if id(value) in seen:
            return "seen", seen[id(value)]
        seen[id(value)] = len(seen)
    if isinstance(value, Tensor):
        tensors.append(value)
        return Tensor, value.shape, value.stride(), value.dtype, value.device, value.requires_grad
    if isinstance(value, Same):
        return value
    if isinstance(value, PLAIN):
        return type(value), value  # 1 and True are equal, and may compute something else
    if isinstance(value, tuple | list):
        return type(value), each(value)
    if isinstance(value, dict):
        return type(value), each(value), each(value.values())
    if isinstance(value, functools.partial):
        return functools.partial, each((value.func, value.args, value.keywords))
    if isinstance(value, nn.Module) or dataclasses.is_dataclass(value):
        return type(value), each((vars(value),))
    raise _UnknownError
