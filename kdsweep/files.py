"""Files that are either whole or absent, and hashes of what they hold."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`: renamed to `path` when the block ends without an error, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        # safetensors makes its files private, whatever the umask says.
        temporary.chmod(mode)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of `tensors`, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_identity(identity: dict[str, Any]) -> str:
    """16 hex digits that stand for a JSON-able description of what made a file."""
    return hash_text(json.dumps(identity, sort_keys=True, separators=(",", ":")))


def hash_text(text: str) -> str:
    """16 hex digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file, whole or not at all, with a checksum and `metadata` in its header."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata={**(metadata or {}), "sha256": hash_tensors(plain)})


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """What `write_tensors` wrote; None where the file is absent, or damaged, which the log then says."""
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
