"""Files of tensors come back bit for bit or not at all, and a hash tells what they hold."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kdsweep.system.tensor_files import hash_tensors, read_tensors, write_tensors


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"weight": torch.randn(3, 2, generator=generator), "steps": torch.tensor(7)}


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    """What is written is read, whatever its dtype, memory layout or gradient."""
    written = {
        **tensors(),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "half": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "view": torch.arange(10)[::2],
        "empty": torch.zeros(0, 3),
    }
    write_tensors(tmp_path / "x", written, {"run": "abc"})
    read = read_tensors(tmp_path / "x")
    assert read is not None
    assert read.keys() == written.keys()
    assert all(torch.equal(read[name].nan_to_num(), written[name].nan_to_num()) for name in read)


def test_an_absent_file_is_none_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing there is no damage."""
    assert read_tensors(tmp_path / "x") is None
    assert caplog.text == ""


def test_every_flipped_byte_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Wherever one byte of a file changes, header or numbers, it is not believed, and the log says so."""
    path = tmp_path / "x"
    write_tensors(path, tensors())
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 0x10
        path.write_bytes(bad)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert read_tensors(path) is None, f"byte {position} of {len(good)}"
        assert "it is made again" in caplog.text
    path.write_bytes(good)
    assert read_tensors(path) is not None


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    """A file that ends early, or runs on, is not believed."""
    path = tmp_path / "x"
    write_tensors(path, tensors())
    good = path.read_bytes()
    for bad in (*(good[:length] for length in range(len(good))), good + b"\0"):
        path.write_bytes(bad)
        assert read_tensors(path) is None


def test_a_file_without_checksum_is_not_believed(tmp_path: Path) -> None:
    """A safetensors file by others is no file of ours."""
    save_file(tensors(), tmp_path / "x")
    assert read_tensors(tmp_path / "x") is None


def test_hash_is_sha256_of_names_dtypes_shapes_and_bytes() -> None:
    """The hash is what its docstring says, so that it can be computed elsewhere."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors().items()):
        shape = ", ".join(str(side) for side in tensor.shape) + ("," if tensor.ndim == 1 else "")
        digest.update(f"{name}:{tensor.dtype}:({shape});".encode() + tensor.numpy().tobytes())
    assert hash_tensors(tensors()) == digest.hexdigest()


def test_hash_ignores_order_and_memory_layout() -> None:
    """The same numbers under the same names have the same hash."""
    weight = torch.randn(2, 3, 4, 4)
    plain = {"a": weight, "b": torch.ones(1)}
    shuffled = {"b": torch.ones(1), "a": weight.to(memory_format=torch.channels_last).requires_grad_()}
    assert hash_tensors(plain) == hash_tensors(shuffled)


def test_hash_tells_names_dtypes_shapes_and_bits_apart() -> None:
    """A change of anything else changes it, down to the sign of a zero."""
    variants = [
        {"a": torch.zeros(4)},
        {"b": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": torch.tensor([0.0, 0.0, 0.0, -0.0])},
        {"a": torch.zeros(2), "b": torch.zeros(2)},
    ]
    assert len({hash_tensors(variant) for variant in variants}) == len(variants)
