"""Hardware: devices, precision, threads, determinism."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdsweep.numerics.hardware import (
    TEACHER_PRECISIONS,
    autocast,
    resolve_device,
    resolve_precision,
    set_determinism,
    set_threads,
    tf32,
)
from kdsweep.system.errors import UserError

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def torch_settings() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = benchmark


def test_auto_is_the_gpu_where_there_is_one() -> None:
    """Without a GPU "auto" is the CPU."""
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("banana", r"device: no device is called 'banana'\. Use auto, cpu, cuda or cuda:<n>\."),
        ("", r"device: no device is called ''"),
        ("CUDA", r"device: no device is called 'CUDA'"),
        ("cuda:-1", r"device: no device is called 'cuda:-1'"),
        (None, r"device: no device is called None"),
        ("meta", r"device: kdsweep runs on cpu and cuda, but got device='meta'\."),
        ("cuda:99", r"device: device='cuda:99' isn't there: this machine has \d+ GPUs\. Use auto or cpu\."),
        ("cpu:1", r"device: device='cpu:1' isn't there: all CPU cores are one device\."),
    ],
)
def test_a_device_that_is_not_there_is_refused(name: str, message: str) -> None:
    """One line names the device and what to use instead."""
    with pytest.raises(UserError, match=message) as raised:
        resolve_device(name)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    """Asking for a GPU on a machine without one says so."""
    with pytest.raises(UserError, match=r"device='cuda' isn't there: this machine has 0 GPUs\."):
        resolve_device("cuda")


@needs_gpu
def test_a_gpu_is_found_by_its_number() -> None:
    """cuda:0 is the first GPU, and a recent one computes bf16 by itself."""
    assert resolve_device("cuda:0") == torch.device("cuda", 0)
    native = torch.cuda.get_device_capability(0)[0] >= 8
    assert resolve_precision("auto", torch.device("cuda", 0)) == ("bf16" if native else "fp32")


def test_named_precisions_are_taken_as_they_are() -> None:
    """bf16 and fp32 mean themselves, on any hardware."""
    assert [resolve_precision(name, CPU) for name in ("bf16", "fp32")] == ["bf16", "fp32"]


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="reads Linux's list of x86 features"
)
def test_auto_precision_is_bf16_where_the_cpu_multiplies_it() -> None:
    """The kernel's list of the CPU's features decides; emulated bf16, which is slow, does not count."""
    features = Path("/proc/cpuinfo").read_text().split()
    native = "avx512_bf16" in features or "amx_bf16" in features
    assert resolve_precision("auto", CPU) == ("bf16" if native else "fp32")


@pytest.mark.parametrize("name", ["fp8", "fp16", "", None, 32])
def test_other_precisions_are_refused(name: str) -> None:
    """The message lists what there is."""
    with pytest.raises(
        UserError, match=r"precision: `precision in \('auto', 'bf16', 'tf32', 'fp32'\)` must hold, but got"
    ):
        resolve_precision(name, CPU)


@pytest.mark.parametrize("name", ["tf32", "fp16"])
def test_precisions_of_gpus_are_refused_elsewhere(name: str) -> None:
    """A CPU would compute them in another way, or very slowly."""
    with pytest.raises(UserError, match=r"a GPU for precision in .* Take fp32 on a CPU"):
        resolve_precision(name, CPU, TEACHER_PRECISIONS)
    assert resolve_precision(name, torch.device("cuda"), TEACHER_PRECISIONS) == name


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("bf16", False), ("tf32", True)])
def test_fp32_is_never_tf32(precision: str, allowed: bool) -> None:
    """Inside, a GPU rounds float32 products to tf32 only where that is the precision; afterwards all is as before."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    with tf32(precision, torch.device("cuda")):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before
    with tf32(precision, CPU):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before


def test_autocast_computes_in_the_precision() -> None:
    """Products are bf16 in the context of bf16, and float32 in that of fp32."""
    a = torch.ones(2, 2)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with autocast(precision, CPU):
            assert (a @ a).dtype == dtype


@pytest.mark.usefixtures("torch_settings")
def test_the_number_of_threads_is_set_and_told() -> None:
    """A number is set, and None leaves torch's choice; both return the number in force."""
    assert set_threads(1) == torch.get_num_threads() == 1
    assert set_threads(2) == torch.get_num_threads() == 2
    assert set_threads(None) == torch.get_num_threads() == 2


@pytest.mark.parametrize("threads", [0, -1, 1.0, "2", True])
def test_wrong_numbers_of_threads_are_refused(threads: int) -> None:
    """The number of threads must be whole and at least 1."""
    with pytest.raises(UserError, match=r"threads: `threads >= 1` must hold, but got threads="):
        set_threads(threads)


@pytest.mark.usefixtures("torch_settings")
def test_determinism_is_asked_of_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA deterministic kernels are switched on; on CPUs nothing has to be. A user's workspace setting is kept."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.use_deterministic_algorithms(False)
    set_determinism(True, CPU)
    set_determinism(False, torch.device("cuda"))
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    set_determinism(True, torch.device("cuda"))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_determinism(True, torch.device("cuda"))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
