"""Gradients of convolutions with outputs of a few pixels, for which oneDNN on some CPUs takes most of a training step.

Where pictures have 32 pixels, the last block of a ResNet works on maps of one: of a 3 x 3 kernel only the centre meets
anything but padding. Its weights' gradient is then one matrix product, of which oneDNN computes nine, and slowly. Only
this gradient is computed otherwise here; outputs and the inputs' gradients are the library's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

# Pixels of a convolution's output up to which it counts as small.
SMALL = 4

Pair = tuple[int, int]


def small_maps(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a network that is trained runs forward: on a CPU in fp32, convolutions with small outputs
    have their weights' gradients computed tap by tap; all else is left as it is.
    """
    return _SmallMaps() if precision == "fp32" and device.type == "cpu" else nullcontext()


class _SmallMaps(TorchFunctionMode):
    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is torch.conv2d and not kwargs and len(args) == 7:  # as nn.Conv2d calls it
            inputs, weight, bias, stride, padding, dilation, groups = args
            if bias is None and groups == 1 and _is_small(inputs, weight, stride, padding, dilation):
                return _Convolution.apply(inputs, weight, stride, padding)
        return function(*args, **(kwargs or {}))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(inputs, weight, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        inputs, weight = ctx.saved_tensors
        of_inputs = of_weight = None
        if ctx.needs_input_grad[0]:
            of_inputs = torch.ops.aten.convolution_backward(
                *(gradient, inputs, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1),
                (True, False, False),
            )[0]
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(inputs, gradient, cast(Pair, tuple(weight.shape[2:])), ctx.stride, ctx.padding)
        return of_inputs, of_weight, None, None


def weight_gradient(inputs: Tensor, gradient: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """The gradient of a convolution's weights (O, C, *kernel), channels_last, without the taps that meet only padding.

    Args:
        inputs: (B, C, H, W).
        gradient: Of the outputs (B, O, h, w).
    """
    x, g = inputs.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)  # (B, H, W, C), (B, h, w, O)
    result = x.new_zeros(g.shape[3], *kernel, x.shape[3])  # (O, *kernel, C)
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            outputs, seen = zip(
                _meeting(row, x.shape[1], g.shape[1], stride[0], padding[0]),
                _meeting(column, x.shape[2], g.shape[2], stride[1], padding[1]),
                strict=True,
            )
            left = g[:, outputs[0], outputs[1]].reshape(-1, g.shape[3])  # (pairs, O)
            if len(left) > 0:
                right = x[:, seen[0], seen[1]].reshape(-1, x.shape[3])  # (pairs, C)
                torch.mm(left.T, right, out=result[:, row, column])
    return result.permute(0, 3, 1, 2)


def _meeting(tap: int, inputs: int, outputs: int, stride: int, padding: int) -> tuple[slice, slice]:
    """Along one axis: the outputs for which a tap of the kernel meets an input, and these inputs."""
    first = max(0, -((tap - padding) // stride))
    last = min(outputs - 1, (inputs - 1 - tap + padding) // stride)
    n = max(0, last - first + 1)
    start = first * stride + tap - padding
    return slice(first, first + n), slice(start, start + n * stride, stride) if n else slice(0, 0)


def _is_small(inputs: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> bool:
    if isinstance(padding, str) or tuple(dilation) != (1, 1) or inputs.dim() != 4:
        return False
    if not (weight.requires_grad and torch.is_grad_enabled() and weight.shape[2] * weight.shape[3] > 1):
        return False
    if inputs.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    sides = ((inputs.shape[2 + i] + 2 * padding[i] - weight.shape[2 + i]) // stride[i] + 1 for i in (0, 1))
    return 0 < next(sides) * next(sides) <= SMALL
