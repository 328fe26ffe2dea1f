"""Convolutions on small maps: they and their gradients equal the library's but for rounding; others are left alone."""

from __future__ import annotations

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsweep.numerics import small_convolutions
from kdsweep.numerics.small_convolutions import convolved, input_gradient, small_maps, weight_gradient

CPU = torch.device("cpu")


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
def test_outputs_and_gradients_are_the_librarys_in_double_precision(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    layout: torch.memory_format,
) -> None:
    """It equals the library's for odd and even sizes, kernels, strides and paddings, in both layouts."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, *size, generator=generator).contiguous(memory_format=layout)
    w = torch.randn(4, 5, *kernel, generator=generator).contiguous(memory_format=layout)
    exact_x, exact_w = x.double().requires_grad_(), w.double().requires_grad_()
    exact = F.conv2d(exact_x, exact_w, None, stride, padding)
    g = torch.randn(exact.shape, generator=generator).contiguous(memory_format=layout)
    expected = (exact.detach(), *torch.autograd.grad(exact, [exact_x, exact_w], g.double()))
    found = (
        convolved(x, w, stride, padding),
        input_gradient(w, g, size, stride, padding),
        weight_gradient(x, g, kernel, stride, padding),
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.is_contiguous(memory_format=torch.channels_last) or min(ours.shape[1:]) == 1
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def gradients(training: bool, precision: str = "fp32", **changes: object) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of a ResNet18 for pictures of 32 px and its parameters' gradients, inside the context or not."""
    network = networks.build(10, **changes).to(memory_format=torch.channels_last)
    context = small_maps(precision, CPU) if training else torch.enable_grad()
    with context, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = network(networks.random_pictures(8))
    F.cross_entropy(logits, torch.arange(8)).backward()
    return logits, {name: p.grad for name, p in network.net.named_parameters() if p.grad is not None}


@pytest.mark.slow
def test_a_network_learns_the_same() -> None:
    """Its logits and gradients equal the library's to the precision of float32, though not in every bit."""
    (ours, fast), (theirs, slow) = gradients(True), gradients(False)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert fast.keys() == slow.keys()
    assert any(not torch.equal(fast[name], slow[name]) for name in slow)
    for name in slow:
        torch.testing.assert_close(fast[name], slow[name], rtol=1e-3, atol=1e-4 * float(slow[name].abs().max()))


def test_an_evaluation_computes_what_training_does() -> None:
    """The outputs have the same bits with and without gradients, and for frozen weights."""
    layer, x = nn.Conv2d(64, 64, 3, padding=1, bias=False), torch.randn(2, 64, 2, 2)
    with small_maps("fp32", CPU):
        trained = layer(x).detach()
        with torch.inference_mode():
            evaluated = layer(x)
        frozen = layer.requires_grad_(False)(x)
    assert torch.equal(trained, evaluated)
    assert torch.equal(trained, frozen)


@pytest.mark.parametrize("case", ["bf16", "cuda", "large", "groups", "dilation", "words"])
def test_all_else_is_left_alone(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library computes all other precisions, devices, sizes and kinds of convolution."""

    def fail(*_: object) -> None:
        raise AssertionError("this convolution is not small")

    monkeypatch.setattr(small_convolutions._Convolution, "apply", fail)
    options = {"groups": {"groups": 2}, "dilation": {"dilation": 2, "padding": 2}, "words": {"padding": "same"}}
    layer = nn.Conv2d(4, 4, 3, bias=False, **{"padding": 1, **options.get(case, {})})
    x = torch.randn(2, 4, *((3, 3) if case == "large" else (1, 1)))
    context = small_maps("bf16" if case == "bf16" else "fp32", torch.device("cuda") if case == "cuda" else CPU)
    with context:
        layer(x)


def test_a_small_convolution_goes_our_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small convolution is computed by this module, so the test above can fail."""
    monkeypatch.setattr(small_convolutions._Convolution, "apply", lambda *_: "ours")
    with small_maps("fp32", CPU):
        assert nn.Conv2d(4, 4, 3, padding=1, bias=False)(torch.randn(2, 4, 1, 1)) == "ours"
