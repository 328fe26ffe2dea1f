"""Networks compiled by torch.compile: a frozen one for long passes, and a student for its training on a GPU.

Compiling takes half a minute to a minute in each process that computes a pass. Whether a pass is long enough to earn
that is decided by counting its operations, and not by a clock, so that each start computes a pass in the same way.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from kdsweep.numerics.hardware import AUTOCAST, is_out_of_memory, tf32
from kdsweep.system.errors import RunError, one_line
from kdsweep.system.files import locked
from kdsweep.system.progress import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Loss = Callable[..., Tensor]


class Network(Protocol):
    """A network that can be compiled: it takes uint8 pictures (B, H, W, 3), as `models.Classifier` does.

    Attributes:
        mean: A tensor on the network's device.
        net: The part that takes preprocessed pictures.
    """

    mean: Tensor
    net: torch.nn.Module

    @property
    def head(self) -> Any:
        """The last layer of `net`, which returns its input if its attribute `bypass` is true."""

    def preprocess(self, pictures: Tensor) -> Tensor:
        """Turns uint8 (B, H, W, 3) into what `net` takes."""

    def eval(self) -> Any:
        """Sets evaluation mode, and returns the network."""

    def __call__(self, pictures: Tensor) -> Tensor:
        """Returns logits (B, C) for uint8 pictures (B, H, W, 3)."""


# A pass of this many floating-point operations or more is compiled: 12,200 pictures of 224 px in a ResNet50. On a core
# without bf16 such a pass takes 50 minutes, of which compiling takes half a minute and saves four; with bf16 it saves
# far more.
WORTH_FLOPS = 1e14

# A training of this many steps on a GPU is compiled. On an H100 a step of a ResNet18 with 128 pictures took 2.5 ms
# instead of 10.9, and compiling it 17 to 40 s.
WORTH_STEPS = 5000

# A cache with room for this many bytes has room for the code of a network.
CACHE_BYTES = 2**20

# The number of variants of one function that a process may compile.
MOST_COMPILED = 64

# Modules of torch that compile.
COMPILING = ("torch._inductor", "torch._dynamo.exc", "torch._functorch")


def worth_compiling(network: Network, pictures: Tensor) -> bool:
    """Returns whether a pass over `pictures` (N, H, W, 3) is long enough, and this machine has a compiler."""
    return len(pictures) * flops(network, *pictures.shape[1:3]) >= WORTH_FLOPS and has_compiler()


def worth_compiling_training(steps: int, device: torch.device) -> bool:
    """Returns whether so many steps in a process, of one training or of several, earn compiling; never on a CPU."""
    return device.type == "cuda" and steps >= WORTH_STEPS


def share_cache(folder: Path) -> None:
    """Lets all processes of a machine find what one of them has compiled; what $TORCHINDUCTOR_CACHE_DIR names stays."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.absolute()))


@functools.cache
def note_plain_training(reason: str) -> None:
    """Says, once in a process, why training isn't compiled though that would pay."""
    note(f"The training is not compiled (compiled=auto), which makes it several times slower on a GPU: {reason}.")


class CompileError(RunError):
    """torch.compile can't compile a network."""


def has_compiler() -> bool:
    """Returns whether there is a C++ compiler; torch.compile needs it on CPUs, and to launch its kernels on GPUs."""
    return _compiler() is not None


@functools.cache
def fault(device: str) -> str | None:
    """Returns why torch.compile can't work on this machine for a type of device; None if nothing speaks against it.

    It asks for what compiling needs, in a third of a second: a C++ compiler that finds Python's header, a cache that
    can be written, and Triton for a GPU. What torch can't compile of a network shows when it is compiled.
    """
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton isn't installed"
    compiler = _compiler()
    if compiler is None:
        return f"there is no C++ compiler ({os.environ.get('CXX') or 'g++ or clang++'})"
    command = [compiler, "-x", "c++", "-fsyntax-only", f"-I{sysconfig.get_path('include')}", "-"]
    header = "#include <Python.h>\n"
    try:
        tried = subprocess.run(command, input=header, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{compiler} doesn't work ({one_line(error)})"
    if tried.returncode != 0:
        lines = [line for line in tried.stderr.splitlines() if "error" in line]
        return f"{compiler} doesn't work ({lines[0].strip() if lines else f'exit status {tried.returncode}'})"
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    try:
        with tempfile.TemporaryFile(dir=cache_dir()) as file:
            file.write(bytes(CACHE_BYTES))
    except OSError as error:
        return f"its cache can't be written ({one_line(error)}; TORCHINDUCTOR_CACHE_DIR names another)"
    return None


def _compiler() -> str | None:
    """Returns the C++ compiler that torch would take: $CXX, or the first one in the path."""
    chosen = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [chosen] if chosen else ["g++", "clang++"])), None)


@contextmanager
def explained(key: str) -> Iterator[None]:
    """Turns what torch raises in this block because it can't compile into a `CompileError`; `key` switches it off."""
    try:
        yield
    except Exception as error:
        frames = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
        if is_out_of_memory(error) or not any(name.startswith(COMPILING) for name in (type(error).__module__, *frames)):
            raise
        # "backend='inductor' raised:" comes before what happened, and advice after it.
        found = one_line(str(error).partition("raised:\n")[2] or error, whole=False)
        raise CompileError(f"torch.compile can't compile the network ({found}). Set {key}=false.") from error


def flops(network: Network, height: int, width: int) -> int:
    """Counts the floating-point operations of a forward pass for one picture; a multiply-add counts as two."""
    counter = FlopCounterMode(display=False)
    picture = torch.zeros(1, height, width, 3, dtype=torch.uint8, device=network.mean.device)
    with torch.inference_mode(), counter:
        network(picture)
    return int(counter.get_total_flops())


def compiled_features(network: Network, precision: str, batch_size: int) -> Callable[[Tensor], Tensor]:
    """Returns `network.features` for a frozen network, compiled at its first call.

    Args:
        network: The network, in evaluation mode. It isn't changed: a copy with its present weights is compiled.
        precision: fp32, tf32, or bf16 or fp16 for all weights but the head's.
        batch_size: The largest number of pictures in a call; smaller batches are filled up.

    Returns:
        uint8 (B, H, W, 3) with B <= batch_size -> float32 (B, F). It raises a `CompileError` if torch can't compile.
    """
    own = copy.deepcopy(network).eval().requires_grad_(False)
    own.head.bypass = True
    dtype = AUTOCAST.get(precision, torch.float32)
    net: Callable[[Tensor], Tensor] = own.net.to(dtype)
    compiled = torch.compile(net, dynamic=False, options={"freezing": True})

    def features(pictures: Tensor) -> Tensor:
        missing = batch_size - len(pictures)
        filled = F.pad(pictures, (0, 0, 0, 0, 0, 0, 0, missing))
        with explained("teacher.compiled"), torch.inference_mode(), tf32(precision, pictures.device):
            found: Tensor = compiled(own.preprocess(filled).to(dtype))
        # clone: a row that is kept must not keep the whole batch in memory.
        return found[: len(pictures)].float().clone()

    return features


def compiled_forward(forward: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Returns a network for its training, or a method of one, compiled at its first call.

    Another network of the same shape needs no new compiling in the same process.

    Args:
        forward: uint8 (B, H, W, 3), B always the same, -> logits (B, C), perhaps with features.
    """
    return _compiled(forward)


def compiled_evaluation(network: Network, batch_size: int) -> Callable[[Tensor], Tensor]:
    """Returns a network for its evaluation, compiled at its first call.

    Args:
        network: The network, in evaluation mode.
        batch_size: The largest number of pictures in a call; smaller batches are filled up.

    Returns:
        uint8 (B, H, W, 3) with B <= batch_size -> logits (B, C). It raises a `CompileError` if torch can't compile.
    """
    compiled = _compiled(network)

    def forward(pictures: Tensor) -> Tensor:
        filled = F.pad(pictures, (0, 0, 0, 0, 0, 0, 0, batch_size - len(pictures)))
        with explained("compiled"):
            return compiled(filled)[: len(pictures)]

    return forward


def compiled_loss(loss: Loss, guided: bool, device: torch.device, given: Mapping[str, Any] | None = None) -> Loss:
    """Returns a loss that is compiled once for all values of its settings, or the loss itself if that can't be.

    The settings that are numbers become tensors, also in the terms of a sum and in schedules. A loss that takes them as
    numbers alone, such as one with `if alpha == 0`, would be compiled anew for each value.

    Args:
        loss: A function of (student logits, teacher logits or None, labels), or a partial with its settings.
        guided: Whether it gets a teacher's logits.
        device: The device of the logits.
        given: The keyword arguments that it gets at each step, for two examples.
    """
    settings = tensor_settings(loss, guided, given, device)
    if settings is None:
        return loss
    own: Loss = functools.partial(_compiled(loss.func), **settings)  # type: ignore[attr-defined]
    return own


def tensor_settings(
    loss: Loss,
    guided: bool,
    given: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any] | None:
    """Returns a loss's settings, with tensors for its numbers and for those of the losses in it.

    Args:
        loss: As in `compiled_loss`, as are the following.
        guided: Whether it gets a teacher's logits.
        given: The keyword arguments that it gets at each step, for two examples, on the CPU.
        device: Where the tensors shall be.

    Returns:
        The settings; None if the loss isn't a partial, or doesn't take tensors.
    """
    if not isinstance(loss, functools.partial) or loss.args:
        return None
    settings = _with_tensors(loss, "cpu").keywords
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            logits, labels = torch.empty(2, 3, requires_grad=True), torch.empty(2, dtype=torch.int64)
            value = loss.func(logits, torch.empty(2, 3) if guided else None, labels, **settings, **(given or {}))
            value.backward()
            fits = value.shape == () and value.dtype == torch.float32
    except Exception:  # whatever a function may raise that wants a number
        return None
    return _with_tensors(loss, device).keywords if fits else None


def _with_tensors(value: Any, device: torch.device | str, is_float: bool = False) -> Any:
    """Returns a loss or a setting with tensors for its numbers, and for those of the mappings and losses in it.

    A whole number becomes one where `is_float`, since it may stand for a float: loss.tau=4.
    """
    if type(value) is float or (is_float and type(value) is int):
        return torch.tensor(float(value), device=device)
    if isinstance(value, dict):
        return {name: _with_tensors(inner, device) for name, inner in value.items()}
    if not isinstance(value, functools.partial) or value.args:
        return value
    kinds = inspect.signature(value.func).parameters
    floats = {name for name, parameter in kinds.items() if parameter.annotation in ("float", float)}
    settings = {name: _with_tensors(inner, device, name in floats) for name, inner in value.keywords.items()}
    return functools.partial(value.func, **settings)


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # A process may train several networks, each of them for several sizes.
    torch._dynamo.config.recompile_limit = MOST_COMPILED
    made: Callable[..., Tensor] = torch.compile(function, dynamic=False)
    return made


# What this process has compiled for its GPU.
_announced: set[str] = set()


@contextmanager
def announced(what: str) -> Iterator[None]:
    """The context of the first training step on a GPU, which compiles: says so, and how long it took.

    The processes of a machine share what they compile. So while one compiles, the others wait, and then find it.

    Args:
        what: What is compiled; said once for each.
    """
    if what in _announced:
        yield
        return
    _announced.add(what)
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    note("The training step is compiled (compiled=true), once for all runs of this process: about half a minute.")
    with locked(Path(cache_dir()) / "lock"):
        start = time.perf_counter()
        yield
    note(f"The training step was compiled in {time.perf_counter() - start:.0f} s.")
