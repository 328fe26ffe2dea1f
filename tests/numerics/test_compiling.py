"""Claims about compiled passes: they give the same logits, are for long passes only, and have tables of their own."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from needs import lacking
from networks import build, random_pictures
from test_teachers import DATA, teacher, views
from torch import Tensor, nn
from torch._dynamo.utils import counters

from kdsweep.losses import kd
from kdsweep.models import Classifier, Head
from kdsweep.numerics import compiling
from kdsweep.numerics.compiling import compiled_features, flops, has_compiler, worth_compiling
from kdsweep.schedules import constant
from kdsweep.system.errors import UserError
from kdsweep.training import Fit
from kdsweep.views import Views


def small_network(frozen: bool = True) -> Classifier:
    """Two convolutions with batch-norm and a head: it compiles in seconds."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), Head.of(nn.Linear(32, 6)))
    with torch.no_grad():
        for module in net:
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        net[-1].weight.mul_(20)  # type: ignore[operator] # larger logits
    made = Classifier(net, "8", frozen=frozen, input_size=None, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    return made.to(memory_format=torch.channels_last).eval()


NETWORK = small_network()

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def compiler() -> None:
    """A C++ compiler, which torch.compile calls."""
    if not has_compiler():
        lacking("this machine has no C++ compiler")


def test_operations_are_counted() -> None:
    """ResNet18 at 224 px takes 1.81 G multiply-adds (He et al. 2016, table 1: 1.8), and each counts as two."""
    assert flops(build(1000, input_size=224).eval(), 32, 32) == pytest.approx(2 * 1.814e9, rel=0.01)


def test_long_passes_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of operations decides, not the clock; nothing is compiled without a compiler."""
    pictures = random_pictures(8)
    pass_flops = 8 * flops(NETWORK, 32, 32)
    monkeypatch.setattr(compiling, "has_compiler", lambda: True)
    monkeypatch.setattr(compiling, "WORTH_FLOPS", pass_flops)
    assert worth_compiling(NETWORK, pictures)
    assert not worth_compiling(NETWORK, pictures[:7])
    monkeypatch.setattr(compiling, "has_compiler", lambda: False)
    assert not worth_compiling(NETWORK, pictures)


def test_a_compiler_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler is found in the path, or by $CXX."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not has_compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert not has_compiler()


@pytest.mark.all
@pytest.mark.usefixtures("compiler")
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_teacher_answers_alike(tmp_path: Path, precision: str) -> None:
    """Its tables agree with the network, and are the same each time they are made.

    They agree within the tolerance by which every table is checked, and stand in folders of their own; the network
    itself is left as it was.
    """
    before = {name: value.clone() for name, value in NETWORK.net.state_dict().items()}
    options: dict[str, Any] = {"precision": precision, "network": NETWORK}
    made = [teacher(tmp_path / place, compiled=True, **options) for place in ("first", "second")]
    online = teacher(tmp_path, mode="online", **options).answers(1)(
        torch.arange(32), views().batch(torch.arange(32), 1)
    )
    rows = [one.answers(1)(torch.arange(32), DATA.train.images) for one in made]
    assert torch.equal(rows[0], rows[1])
    torch.testing.assert_close(
        rows[0], online, rtol=0, atol={"bf16": 2e-2, "fp32": 1e-4}[precision] * float(online.abs().max())
    )
    assert made[0].features_key != teacher(tmp_path, **options).features_key
    assert all(torch.equal(before[name], value) for name, value in NETWORK.net.state_dict().items())
    assert not NETWORK.head.bypass


@pytest.mark.all
@pytest.mark.usefixtures("compiler")
@pytest.mark.slow
def test_a_batch_may_be_shorter() -> None:
    """A batch that is too small is filled up, and its rows don't change."""
    features = compiled_features(NETWORK, "fp32", batch_size=4)
    pictures = random_pictures(4)
    whole: Tensor = features(pictures)
    assert torch.equal(features(pictures[:3]), whole[:3])
    assert whole.shape == (4, 32)


@pytest.mark.all
@pytest.mark.usefixtures("compiler")
@pytest.mark.slow
def test_a_table_that_is_there_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows are checked by the plain network, so a run that finds all passes starts at once."""
    teacher(tmp_path, NETWORK, compiled=True).answers(0)
    monkeypatch.setattr(torch, "compile", None)
    teacher(tmp_path, NETWORK, compiled=True).answers(0)


# --------------------------------------------------------------------------------------------------- training


def train(compiled: bool, device: str = "cpu", alpha: float = 0.0, steps: int = 6) -> list[float]:
    """The losses of a student's epochs of two steps each."""
    network = small_network(frozen=False).to(device)
    guide = torch.zeros(16, 6, device=device)
    fit = Fit(
        network,
        Views(DATA.train.images.to(device), DATA.padding, DATA.flip, seed=0),
        DATA.train.labels.to(device),
        loss=lambda logits, _, labels: kd(logits, guide, labels, alpha=alpha, tau=2.0),
        teacher=None,
        optimizer=functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        schedule=constant,
        epochs=steps // 2,
        batch_size=16,
        n_passes=2,
        order_seed=0,
        precision="fp32",
        compiled=compiled,
    )
    return [metrics["train/loss"] for metrics in fit]


@pytest.mark.all
@pytest.mark.usefixtures("compiler")
@pytest.mark.slow
def test_a_compiled_student_learns_the_same_and_is_compiled_once() -> None:
    """The losses are the same at each step, and another network and another alpha need no new compiling."""
    assert train(compiled=True) == pytest.approx(train(compiled=False), rel=1e-4)
    compiled = counters["stats"]["unique_graphs"]
    assert train(compiled=True, alpha=0.5) == pytest.approx(train(compiled=False, alpha=0.5), rel=1e-4)
    assert counters["stats"]["unique_graphs"] == compiled


@needs_gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_an_epoch_on_a_gpu_waits_for_nothing(compiled: bool) -> None:
    """No step waits for the GPU, and CUDA graphs give the same losses as plain kernels."""
    fit = train(compiled, "cuda")
    before = Fit._train_step

    def unsynchronised(*arguments: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            before(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "_train_step", unsynchronised)
        assert train(compiled, "cuda") == pytest.approx(fit, rel=1e-4)
    assert fit == pytest.approx(train(False, "cpu"), rel=1e-2)


def test_a_wrong_setting_is_refused(tmp_path: Path) -> None:
    """The error names rule, value and key."""
    with pytest.raises(UserError, match="compiled: `compiled is true, false or null` must hold, but got compiled='no'"):
        teacher(tmp_path, compiled="no")
