"""Convolutions on small maps: their gradients are the slow formula's, and nothing else about them changes."""

from __future__ import annotations

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsweep import convolutions
from kdsweep.convolutions import small_maps, weight_gradient

CPU = torch.device("cpu")


def transcribed(
    x: Tensor, g: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """dL/dw[o, c, a, b]: the sum over outputs (i, j) of g[o, i, j] * x[c, i * stride + a - padding, ...]."""
    result = torch.zeros(g.shape[1], x.shape[1], *kernel, dtype=torch.float64)
    for a in range(kernel[0]):
        for b in range(kernel[1]):
            for i in range(g.shape[2]):
                for j in range(g.shape[3]):
                    row, column = i * stride[0] + a - padding[0], j * stride[1] + b - padding[1]
                    if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                        result[:, :, a, b] += g[:, :, i, j].double().T @ x[:, :, row, column].double()
    return result


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((1, 1), (3, 3), (1, 1), (1, 1)),
        ((2, 2), (3, 3), (1, 1), (1, 1)),
        ((2, 2), (3, 3), (2, 2), (1, 1)),
        ((3, 3), (3, 3), (2, 2), (1, 1)),
        ((4, 4), (3, 3), (2, 2), (1, 1)),
        ((5, 2), (3, 2), (3, 1), (0, 1)),
        ((4, 3), (2, 3), (2, 1), (0, 0)),
        ((1, 2), (5, 5), (1, 1), (2, 2)),
        ((2, 1), (3, 3), (1, 1), (3, 3)),
    ],
)
def test_the_gradient_is_that_of_the_formula(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    layout: torch.memory_format,
) -> None:
    """For odd and even sizes, kernels, strides and paddings, in both layouts."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, *size, generator=generator).contiguous(memory_format=layout)
    shape = F.conv2d(x, torch.zeros(4, 5, *kernel), None, stride, padding).shape
    g = torch.randn(shape, generator=generator).contiguous(memory_format=layout)
    expected = transcribed(x, g, kernel, stride, padding)
    found = weight_gradient(x, g, kernel, stride, padding)
    assert found.is_contiguous(memory_format=torch.channels_last) or min(found.shape[1:]) == 1
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def gradients(training: bool, precision: str = "fp32", **changes: object) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of a ResNet18 for pictures of 32 px, and the gradients of its parameters, inside the context or not."""
    network = networks.build(10, **changes).to(memory_format=torch.channels_last)
    context = small_maps(precision, CPU) if training else torch.enable_grad()
    with context, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = network(networks.random_pictures(8))
    F.cross_entropy(logits, torch.arange(8)).backward()
    return logits, {name: p.grad for name, p in network.net.named_parameters() if p.grad is not None}


@pytest.mark.slow
def test_a_network_learns_the_same() -> None:
    """Its answers are the same bits; so is all of its gradient but that of kernels on small maps, which is as near as
    float32 comes."""
    (ours, fast), (theirs, slow) = gradients(True), gradients(False)
    assert torch.equal(ours, theirs)
    assert fast.keys() == slow.keys()
    other = {name for name in slow if not torch.equal(fast[name], slow[name])}
    assert {f"layer4.{block}.conv{i}.weight" for block in (0, 1) for i in (1, 2)} <= other
    assert all("conv" in name and name.startswith(("layer3", "layer4")) for name in other)
    for name in other:
        torch.testing.assert_close(fast[name], slow[name], rtol=1e-4, atol=1e-4 * float(slow[name].abs().max()))


@pytest.mark.parametrize("case", ["bf16", "cuda", "large", "groups", "dilation", "words", "frozen", "no gradient"])
def test_all_else_is_left_alone(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other precisions, devices, sizes and kinds of convolution go the library's way."""

    def fail(*_: object) -> None:
        raise AssertionError("this convolution is not small")

    monkeypatch.setattr(convolutions._Convolution, "apply", fail)
    options = {"groups": {"groups": 2}, "dilation": {"dilation": 2, "padding": 2}, "words": {"padding": "same"}}
    layer = nn.Conv2d(4, 4, 3, bias=False, **{"padding": 1, **options.get(case, {})})
    x = torch.randn(2, 4, *((3, 3) if case == "large" else (1, 1)))
    layer.requires_grad_(case != "frozen")
    context = small_maps("bf16" if case == "bf16" else "fp32", torch.device("cuda") if case == "cuda" else CPU)
    with torch.set_grad_enabled(case != "no gradient"), context:
        layer(x)


def test_a_small_convolution_goes_our_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above would let through is there."""
    monkeypatch.setattr(convolutions._Convolution, "apply", lambda *_: "ours")
    with small_maps("fp32", CPU):
        assert nn.Conv2d(4, 4, 3, padding=1, bias=False)(torch.randn(2, 4, 1, 1)) == "ours"
