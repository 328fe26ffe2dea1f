"""Where and how numbers are computed: device, precision, threads, determinism, random state."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from kdsweep.system.environment import cpu_features
from kdsweep.system.errors import UserError, require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# Networks that are trained take the first four. fp16 is for a teacher: it needs no gradients, which fp16 can't hold.
PRECISIONS = ("auto", "bf16", "tf32", "fp32")
TEACHER_PRECISIONS = (*PRECISIONS, "fp16")
GPU_PRECISIONS = ("tf32", "fp16")
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

# No machine has more cores than this, and thousands of threads would bring it to a halt.
MAX_THREADS = 1024

# The features of processors that multiply bf16: x86, x86 and ARM.
CPU_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def resolve_device(name: str) -> torch.device:
    """Returns the device called `name`; "auto" is the first GPU, or the CPU if there is none.

    Raises:
        UserError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if not isinstance(name, str):
            raise TypeError  # torch would take 0 as the first GPU
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"no device is called {name!r}. Use auto, cpu, cuda or cuda:<n>.", "device") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"kdsweep runs on cpu and cuda, but got device={name!r}.", "device")
    found = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= found:
        machine = f"this machine has {found} GPUs" if device.type == "cuda" else "all CPU cores are one device"
        raise UserError(f"device={name!r} isn't there: {machine}. Use auto or cpu.", "device")
    return device


def resolve_precision(name: str, device: torch.device, choices: Sequence[str] = PRECISIONS) -> str:
    """Returns the precision called `name`; "auto" is bf16 if the hardware multiplies bf16 itself, and else fp32.

    Raises:
        UserError: It isn't one of the `choices`, or the device doesn't have it.
    """
    require(name in choices, f"precision in {choices}", name, "precision")
    rule = f"a GPU for precision in {GPU_PRECISIONS}"
    require(name not in GPU_PRECISIONS or device.type == "cuda", rule, name, "precision", "Take fp32 on a CPU.")
    if name != "auto":
        return name
    # By default torch counts emulation too, which is slower than fp32.
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = not CPU_BF16.isdisjoint(cpu_features())
    return "bf16" if native else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Returns the context in which networks run forward: mixed bf16 or fp16, or plain float32."""
    return torch.autocast(device.type, AUTOCAST[precision]) if precision in AUTOCAST else nullcontext()


@contextmanager
def tf32(precision: str, device: torch.device) -> Iterator[None]:
    """Lets a GPU round the factors of float32 products to tf32 if that is the precision, and forbids it otherwise.

    torch allows it for convolutions unless it is told not to.
    """
    if device.type != "cuda":
        yield
        return
    settings: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.allow_tf32 = value


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """The context in which networks run forward without gradients, in one of the precisions."""
    with torch.inference_mode(), tf32(precision, device), autocast(precision, device):
        yield


def set_threads(threads: int | None) -> int:
    """Sets the number of CPU threads, and returns the number in force; None leaves torch's choice."""
    if threads is not None:
        require(type(threads) is int and threads >= 1, "threads >= 1", threads, "threads", "It is a whole number.")
        require(threads <= MAX_THREADS, f"threads <= {MAX_THREADS}", threads, "threads", "null takes all cores.")
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def set_determinism(deterministic: bool, device: torch.device) -> None:
    """Makes CUDA kernels deterministic; those without a deterministic version warn.

    CPU kernels are deterministic anyway, for a given number of threads.
    """
    require(isinstance(deterministic, bool), "deterministic is true or false", deterministic, "deterministic")
    if device.type == "cuda" and deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


def random_state() -> dict[str, object]:
    """Returns the state of torch's random generators, on the CPU and on each GPU in use."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": gpus}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Sets torch's random generators to what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that an allocation has failed, on the CPU or on a GPU."""
    words = ("can't allocate memory", "out of memory", "not enough memory")
    own = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return own or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
