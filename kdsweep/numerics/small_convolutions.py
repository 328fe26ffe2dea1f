"""Convolutions with outputs of a few pixels, which take oneDNN most of a training step on some CPUs.

With pictures of 32 x 32 pixels, the last block of a ResNet works on maps of 1 x 1. There only the centre of a 3 x 3
kernel meets anything but padding, so the convolution is one matrix product; oneDNN computes nine of them, and slowly.
This module computes such a convolution and both of its gradients tap by tap, without the taps that meet only padding.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

# A convolution is small if its output has this many pixels or fewer.
SMALL = 4

Pair = tuple[int, int]


def small_maps(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Returns the context in which students run forward, for training and for evaluation.

    On a CPU in fp32, convolutions with small outputs and their gradients are computed tap by tap. Everything else is
    left as it is.
    """
    return _SmallMaps() if precision == "fp32" and device.type == "cpu" else nullcontext()


class _SmallMaps(TorchFunctionMode):
    """Replaces the call of torch.conv2d by `_Convolution` if the convolution is small."""

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
    """`convolved`, with its two gradients."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.stride, ctx.padding = stride, padding
        return convolved(inputs, weight, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        inputs, weight = ctx.saved_tensors
        of_inputs = of_weight = None
        if ctx.needs_input_grad[0]:
            of_inputs = input_gradient(weight, gradient, cast("Pair", tuple(inputs.shape[2:])), ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(
                inputs, gradient, cast("Pair", tuple(weight.shape[2:])), ctx.stride, ctx.padding
            )
        return of_inputs, of_weight, None, None


def convolved(inputs: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Computes the outputs (B, O, h, w), channels_last, for inputs (B, C, H, W) and weights (O, C, *kernel)."""
    x, kernels = inputs.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)  # (B, H, W, C), (O, *kernel, C)
    size = [_output_side(inputs, weight, stride, padding, axis) for axis in (0, 1)]
    result = x.new_zeros(len(x), *size, len(kernels))  # (B, h, w, O)
    for row, column, outputs, seen in _taps(kernels.shape[1:3], x.shape[1:3], result.shape[1:3], stride, padding):
        pixels = x[:, *seen]
        # One product of two matrices: by itself torch chooses one by whether the weights are trained.
        product = pixels.reshape(-1, pixels.shape[3]) @ kernels[:, row, column].T
        result[:, *outputs] += product.view(*pixels.shape[:3], -1)
    return result.permute(0, 3, 1, 2)


def input_gradient(weight: Tensor, gradient: Tensor, size: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Computes the gradient with respect to the inputs: (B, C, *size), channels_last.

    Args:
        weight: The weights (O, C, *kernel).
        gradient: The gradient with respect to the outputs, (B, O, h, w).
        size: Height and width of the inputs.
        stride: The convolution's, for rows and columns.
        padding: The convolution's, for rows and columns.
    """
    g, kernels = gradient.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)  # (B, h, w, O), (O, *kernel, C)
    result = g.new_zeros(len(g), *size, kernels.shape[3])  # (B, H, W, C)
    for row, column, outputs, seen in _taps(kernels.shape[1:3], size, g.shape[1:3], stride, padding):
        result[:, *seen] += g[:, *outputs] @ kernels[:, row, column]
    return result.permute(0, 3, 1, 2)


def weight_gradient(inputs: Tensor, gradient: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Computes the gradient with respect to the weights: (O, C, *kernel), channels_last.

    Args:
        inputs: The inputs (B, C, H, W).
        gradient: The gradient with respect to the outputs, (B, O, h, w).
        kernel: Height and width of the kernel.
        stride: The convolution's, for rows and columns.
        padding: The convolution's, for rows and columns.
    """
    x, g = inputs.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)  # (B, H, W, C), (B, h, w, O)
    result = x.new_zeros(g.shape[3], *kernel, x.shape[3])  # (O, *kernel, C)
    for row, column, outputs, seen in _taps(kernel, x.shape[1:3], g.shape[1:3], stride, padding):
        left = g[:, *outputs].reshape(-1, g.shape[3])  # (pairs, O)
        right = x[:, *seen].reshape(-1, x.shape[3])  # (pairs, C)
        torch.mm(left.T, right, out=result[:, row, column])
    return result.permute(0, 3, 1, 2)


def _taps(
    kernel: Sequence[int], inputs: Sequence[int], outputs: Sequence[int], stride: Pair, padding: Pair
) -> Iterator[tuple[int, int, tuple[slice, slice], tuple[slice, slice]]]:
    """Yields each tap of a kernel that meets more than padding.

    Args:
        kernel: Height and width of the kernel.
        inputs: Height and width of the inputs.
        outputs: Height and width of the outputs.
        stride: The convolution's, for rows and columns.
        padding: The convolution's, for rows and columns.

    Yields:
        The tap's row and column, the slices of the outputs that it has a part in, and the slices of the inputs that it
        meets for them.
    """
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            rows = _meeting(row, inputs[0], outputs[0], stride[0], padding[0])
            columns = _meeting(column, inputs[1], outputs[1], stride[1], padding[1])
            if rows is not None and columns is not None:
                yield row, column, (rows[0], columns[0]), (rows[1], columns[1])


def _meeting(tap: int, inputs: int, outputs: int, stride: int, padding: int) -> tuple[slice, slice] | None:
    """Returns, along one axis, the outputs for which a tap meets an input, and these inputs; None if it meets none."""
    first = max(0, -((tap - padding) // stride))
    last = min(outputs - 1, (inputs - 1 - tap + padding) // stride)
    n = last - first + 1
    if n <= 0:
        return None
    start = first * stride + tap - padding
    return slice(first, last + 1), slice(start, start + n * stride, stride)


def _is_small(inputs: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> bool:
    """Returns whether a convolution is one that this module computes: fp32, small, and with a kernel beyond 1 x 1."""
    if isinstance(padding, str) or tuple(dilation) != (1, 1) or inputs.dim() != 4:
        return False
    if weight.shape[2] * weight.shape[3] == 1 or inputs.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    height, width = (_output_side(inputs, weight, stride, padding, axis) for axis in (0, 1))
    return min(height, width) > 0 and height * width <= SMALL


def _output_side(inputs: Tensor, weight: Tensor, stride: Pair, padding: Pair, axis: int) -> int:
    """Returns the height (axis 0) or the width (axis 1) of a convolution's outputs."""
    return (inputs.shape[2 + axis] + 2 * padding[axis] - weight.shape[2 + axis]) // stride[axis] + 1
