"""The rounding noise in a network's outputs, measured by Monte Carlo arithmetic.

Every layer's output is multiplied by 1 + u * r, where u is the unit roundoff of the precision and r is drawn uniformly
from [-1, 1]. Another order of summation, another kernel or another processor could have given that as well (Parker
1997, "Monte Carlo arithmetic"). Real differences between two right ways to compute a network are of that size or
smaller: `scripts/benchmark.py tables` measures them.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

# The largest relative error of rounding to nearest: 2^-p, where p counts the bits of the significand.
UNIT_ROUNDOFF = {"fp32": 2.0**-24, "tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8}


@contextmanager
def rounding_noise(network: nn.Module, precision: str, seed: int, but: nn.Module | None = None) -> Iterator[None]:
    """Lets each innermost module of a network make random errors of the size of its rounding errors.

    Args:
        network: The network. Nothing of it is changed for good.
        precision: The precision in which the network runs.
        seed: The seed of the errors.
        but: A module that makes none.
    """
    generators: dict[torch.device, torch.Generator] = {}
    unit = UNIT_ROUNDOFF[precision]

    def shake(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        if output.device not in generators:
            generators[output.device] = torch.Generator(output.device).manual_seed(seed)
        errors = torch.rand(output.shape, generator=generators[output.device], device=output.device)
        # 1 + u * r isn't representable in a 16-bit type, so the product is computed in float32 and rounded.
        return (output.float() * (1 + unit * (2 * errors - 1))).to(output.dtype)

    innermost = [module for module in network.modules() if not any(True for _ in module.children())]
    hooks = [module.register_forward_hook(shake) for module in innermost if module is not but]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
