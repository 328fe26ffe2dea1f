"""Convolutions that crash a training on some processors: avoided where nobody chose, else refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from commands import SHORT
from configurations import composed
from needs import lacking
from networks import HALF
from torch import nn

from kdsweep.config import build
from kdsweep.models import Classifier, Head
from kdsweep.numerics import strided_convolutions
from kdsweep.numerics.strided_convolutions import AVX512, overrun, too_few
from kdsweep.system.environment import cpu_features
from kdsweep.system.errors import UserError

CPU = torch.device("cpu")


def network(frozen: bool = False) -> Classifier:
    """A network that begins as re-parameterised ones of timm do."""
    net = nn.Sequential(nn.Conv2d(3, 16, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Head(16, 10))
    return Classifier(net, "3", frozen=frozen, input_size=None, mean=HALF, std=HALF)


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with AVX2, and nothing after it."""
    monkeypatch.setattr(strided_convolutions, "cpu_features", lambda: ("AVX2", "avx", "avx2"))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)


@pytest.mark.usefixtures("avx2")
@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (nn.Conv2d(3, 16, 1, stride=2), True),
        (nn.Conv2d(7, 16, 1, stride=(1, 4), bias=False), True),
        (nn.Conv2d(8, 16, 1, stride=2), False),
        (nn.Conv2d(3, 16, 1), False),
        (nn.Conv2d(3, 16, 3, stride=2), False),
        (nn.Conv2d(4, 16, 1, stride=2, groups=2), False),
        (nn.Conv2d(3, 16, 1, stride=2).requires_grad_(False), False),
        (nn.Conv1d(3, 16, 1, stride=2), False),
    ],
)
def test_the_convolutions_that_crash_are_found(layer: nn.Module, found: bool) -> None:
    """One tap, a stride, fewer than eight channels, and weights that are trained; in fp32 on a CPU."""
    net = nn.Sequential(nn.ReLU(), layer)
    assert overrun(net, "fp32", CPU) == ("1" if found else None)
    assert overrun(net, "bf16", CPU) is None
    assert overrun(net, "fp32", torch.device("cuda")) is None


@pytest.mark.parametrize(
    ("features", "chosen", "fp32", "bf16"),
    [
        (("avx2",), "", 8, 0),
        (("avx2", *AVX512), "", 16, 16),
        (("avx2", *AVX512), "avx512_core", 16, 16),
        (("avx2", *AVX512), "avx2_vnni", 8, 0),
        (("avx2", "avx512f"), "", 8, 0),
        (("avx",), "", 0, 0),
        (("asimd",), "", 0, 0),
    ],
)
def test_the_processor_or_the_environment_decides(
    features: tuple[str, ...], chosen: str, fp32: int, bf16: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library is right from as many channels on as its registers hold numbers."""
    monkeypatch.setattr(strided_convolutions, "cpu_features", lambda: features)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", chosen)
    assert (too_few("fp32"), too_few("bf16")) == (fp32, bf16)


@pytest.mark.usefixtures("avx2")
def test_the_layout_is_avoided_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes the other layout, which the configuration then has; what was chosen is refused with a reason."""
    monkeypatch.setattr(build, "network", lambda *_: network())
    cfg = composed(*SHORT)
    data, _ = build.inputs(cfg)
    chosen = build.student(cfg, data)
    assert chosen[0].format == build.in_force(cfg, chosen).memory_format == "contiguous"
    said = r"can't train the network's 0 in channels_last \(oneDNN crashes in it\)"
    with pytest.raises(UserError, match=rf"^memory_format: .*{said}\. Set memory_format=auto or contiguous"):
        build.student(composed(*SHORT, "memory_format=channels_last"), data)
    with pytest.raises(UserError, match=rf"^compiled: .*{said}, which torch.compile takes\. Set compiled=false"):
        build.student(composed(*SHORT, "compiled=true"), data)
    monkeypatch.setattr(build, "network", lambda *_: network(frozen=True))
    assert build.student(cfg, data)[0].format == "channels_last"


CHILD = """
import torch
from torch import nn
from kdsweep.numerics.strided_convolutions import overrun, too_few
channels = too_few("fp32") - 1
net = nn.Sequential(nn.Conv2d(channels, 48, 1, stride=2, bias=False), nn.BatchNorm2d(48), nn.ReLU())
assert overrun(net, "fp32", torch.device("cpu")) == "0"
x = torch.randn(2, channels, 224, 224, generator=torch.Generator().manual_seed(0))
net(x).square().mean().backward()
found = net[0].weight.grad.clone()
net.zero_grad()
with torch.backends.mkldnn.flags(enabled=False):
    net(x).square().mean().backward()
torch.testing.assert_close(found, net[0].weight.grad, rtol=1e-3, atol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", ["AVX2", "DEFAULT"])
def test_the_other_layout_trains_rightly(code: str) -> None:
    """The contiguous layout doesn't crash, and gives torch's own gradient."""
    if "avx2" not in cpu_features():
        lacking("this processor has no AVX2")
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "ONEDNN_MAX_CPU_ISA": code}
    done = subprocess.run([sys.executable, "-c", CHILD], env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
