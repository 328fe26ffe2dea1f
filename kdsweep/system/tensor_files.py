"""Files of tensors (safetensors) that are whole or absent, each with a checksum, and the hash of tensors."""

from __future__ import annotations

import hashlib
import logging
import re
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kdsweep.system.files import atomic_path, os_error

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

log = logging.getLogger(__name__)


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """Returns the SHA-256 (hex) of the names, dtypes, shapes and bytes of `tensors`, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Writes a safetensors file, whole or not at all, with a checksum and `metadata` in its header.

    Returns:
        The checksum: `hash_tensors` of the tensors.

    Raises:
        OSError: The file can't be written (`errno` ENOSPC: no space is left); `filename` is `path`.
    """
    with atomic_path(path) as temporary:
        return save_tensors(temporary, tensors, metadata)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Writes what `write_tensors` does, straight to `path`: for a file that no other process reads yet."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    checksum = hash_tensors(plain)
    try:
        save_file(plain, path, metadata={**(metadata or {}), "sha256": checksum})
    except SafetensorError as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise os_error(int(number[1]), path) from error
        raise
    return checksum


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """Reads what `write_tensors` wrote; None if the file is absent or damaged. The log tells of damage."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
            checksum = (stored.metadata() or {})["sha256"]
    except (SafetensorError, OSError, KeyError) as error:
        log.warning("%s can't be read (%s): it is made again.", path, error)
        return None
    if hash_tensors(tensors) != checksum:
        log.warning("%s is damaged (wrong checksum): it is made again.", path)
        return None
    return tensors
