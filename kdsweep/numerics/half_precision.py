"""Whether a frozen network may compute in fp16, which rounds eight times less than bf16 and ends at 65,504."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdsweep.system.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST = float(torch.finfo(torch.float16).max)

# Pictures that weren't tried, and sums within a layer, may have values that are so many times as large.
MARGIN = 4.0


def largest_value(network: nn.Module, run: Callable[[], object]) -> float:
    """Returns the largest absolute value among a network's weights and the outputs of its modules; NaN if one is NaN.

    Args:
        network: The network. It is left as it was.
        run: Runs it, in a precision that holds all values.
    """
    tops = [value.detach().abs().max() for value in network.state_dict().values() if value.is_floating_point()]

    def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            tops.append(output.detach().abs().max())

    hooks = [module.register_forward_hook(look) for module in network.modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return float(torch.stack([top.float() for top in tops]).max())


def fits(largest: float) -> bool:
    """Returns whether a network with values of this size may compute in fp16; not if it is NaN or infinite."""
    return largest * MARGIN <= LARGEST


def require_finite(features: Tensor) -> Tensor:
    """Returns what a network has computed for pictures that overflow fp16.

    Raises:
        RunError: A value has overflowed here too, so that it is no fault of fp16.
    """
    if not bool(features.isfinite().all()):
        raise RunError("the teacher's outputs aren't finite, in tf32 either: a weight or a layer of it is broken.")
    return features
