"""Networks compiled by torch.compile: a frozen one for long passes, and a student for its training on a GPU.

Compiling takes half a minute to a minute in every process that computes a pass. Whether a pass is long enough to earn
that is decided by its arithmetic alone, and not by the clock: the same pass gets the same numbers on every start.
"""

from __future__ import annotations

import copy
import os
import shutil
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Callable


class Network(Protocol):
    """What is compiled: a network that takes uint8 pictures (B, H, W, 3), such as `models.Classifier`.

    Attributes:
        net: The part that takes preprocessed pictures.
        head: Its last layer, which hands its input through where `bypass` is set.
    """

    mean: Tensor
    net: torch.nn.Module

    @property
    def head(self) -> Any: ...

    def preprocess(self, pictures: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) to what `net` takes."""

    def eval(self) -> Any:
        """As `nn.Module.eval`."""

    def __call__(self, pictures: Tensor) -> Tensor: ...


# Floating-point operations of a pass from which it is compiled: 12,200 pictures of a ResNet50 at 224 px. On a core
# without bf16 that is 50 minutes, of which compiling saves four and takes half of one; with bf16 it saves far more.
WORTH_FLOPS = 1e14


def worth_compiling(network: Network, pictures: Tensor) -> bool:
    """Whether a pass of `network` over `pictures` (N, H, W, 3) is long enough, and this machine has a compiler."""
    return len(pictures) * flops(network, *pictures.shape[1:3]) >= WORTH_FLOPS and has_compiler()


def has_compiler() -> bool:
    """Whether a C++ compiler is there, which torch's own compiler needs on a CPU and for its GPU kernels' launchers."""
    chosen = os.environ.get("CXX")
    return any(shutil.which(name) is not None for name in ([chosen] if chosen else ["g++", "clang++"]))


def flops(network: Network, height: int, width: int) -> int:
    """Floating-point operations of a forward pass for one picture (two for a multiplication with its addition)."""
    counter = FlopCounterMode(display=False)
    picture = torch.zeros(1, height, width, 3, dtype=torch.uint8, device=network.mean.device)
    with torch.inference_mode(), counter:
        network(picture)
    return int(counter.get_total_flops())


def compiled_features(network: Network, precision: str, batch_size: int) -> Callable[[Tensor], Tensor]:
    """`network.features` of a frozen network, compiled at its first call.

    Args:
        network: In evaluation mode; it stays as it is, and the compiled copy has the weights that it has now.
        precision: bf16 (of all weights but the head's) or fp32.
        batch_size: Pictures at a time; a smaller batch is filled up, and larger ones are not taken.

    Returns:
        uint8 (B, H, W, 3) with B <= batch_size -> float32 (B, F).
    """
    own = copy.deepcopy(network).eval().requires_grad_(False)
    own.head.bypass = True
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    compiled = torch.compile(own.net.to(dtype), dynamic=False, options={"freezing": True})

    def features(pictures: Tensor) -> Tensor:
        missing = batch_size - len(pictures)
        filled = F.pad(pictures, (0, 0, 0, 0, 0, 0, 0, missing))
        with torch.inference_mode():
            found: Tensor = compiled(own.preprocess(filled).to(dtype))
        # clone: what is kept of a batch shall not keep the rest.
        return found[: len(pictures)].float().clone()

    return features


def compiled_forward(network: Network) -> Callable[[Tensor], Tensor]:
    """`network` for its training, compiled at its first call; on a GPU its steps are replayed as CUDA graphs.

    The loss is no part of it, so that another alpha or tau, or another network of the same shape, needs no compiling.

    Returns:
        uint8 (B, H, W, 3), B always the same, -> logits (B, C), to be used before the next call.
    """
    graphs = network.mean.device.type == "cuda"
    compiled = torch.compile(network, dynamic=False, mode="reduce-overhead" if graphs else None)

    def forward(pictures: Tensor) -> Tensor:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        logits: Tensor = compiled(pictures)
        return logits

    return forward
