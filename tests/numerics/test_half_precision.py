"""Claims about fp16: a network whose values fit into it keeps them there, and one whose values don't is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SHORT
from configurations import composed
from networks import random_pictures
from test_compiling import small_network
from test_teachers import DATA, teacher
from torch import Tensor, nn

from kdsweep import teachers
from kdsweep.config import build
from kdsweep.models import Classifier
from kdsweep.numerics import half_precision
from kdsweep.numerics.half_precision import fits, largest_value
from kdsweep.numerics.hardware import arithmetic
from kdsweep.system.errors import RunError
from kdsweep.teachers import Teacher, _note_overflow
from kdsweep.views import Views

PICTURES = random_pictures(16)


def scaled(factor: float) -> Classifier:
    """A small network whose second convolution computes `factor` times as much; the batch norm after it undoes that."""
    network = small_network()
    convolution, norm = network.net[3], network.net[4]  # type: ignore[index]
    with torch.no_grad():
        convolution.weight.mul_(factor)
        norm.running_mean.mul_(factor)
        norm.running_var.mul_(factor**2)
    return network


def emulated(network: Classifier) -> torch.Tensor:
    """Features of a network each of whose modules rounds its output to fp16, as a GPU does in that precision."""

    def rounded(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.half().float()

    hooks = [module.register_forward_hook(rounded) for module in network.net.modules()]
    try:
        with torch.inference_mode():
            return network.features(PICTURES)
    finally:
        for hook in hooks:
            hook.remove()


def largest(network: Classifier) -> float:
    with torch.inference_mode():
        return largest_value(network.net, lambda: network.features(PICTURES))


def test_a_network_whose_values_fit_keeps_them() -> None:
    """Its features in emulated fp16 are those of fp32 but for rounding errors."""
    network = scaled(10)
    assert fits(largest(network))
    with torch.inference_mode():
        plain = network.features(PICTURES)
    torch.testing.assert_close(emulated(network), plain, rtol=1e-2, atol=1e-2)


def test_a_network_whose_values_do_not_fit_is_found() -> None:
    """In emulated fp16 it overflows inside, where the batch norm after it would bring the values back."""
    network = scaled(1e6)
    assert not fits(largest(network))
    assert not emulated(network).isfinite().all()


def test_large_weights_are_found_too() -> None:
    """A variance beyond fp16's largest number would be infinite, though no output is."""
    network = small_network()
    with torch.no_grad():
        network.net[4].running_var.fill_(1e5)  # type: ignore[index,union-attr]
    assert not fits(largest(network))


@pytest.mark.parametrize(("value", "expected"), [(1.0, True), (16376.0, True), (16377.0, False), (float("nan"), False)])
def test_a_margin_is_kept(value: float, expected: bool) -> None:
    """Pictures that weren't tried may have values four times as large."""
    assert fits(value) is expected


def test_the_network_is_left_as_it_was() -> None:
    """It keeps no hooks."""
    network = small_network()
    largest(network)
    assert not any(module._forward_hooks for module in network.net.modules())


def overflowing(own: Teacher, pictures: Tensor) -> Tensor:
    """Features of which those of bright pictures are infinite, as they may be in fp16."""
    features = own._forward(own.network.features, pictures)
    bright = pictures.float().mean((1, 2, 3)) > pictures.float().mean()
    assert 0 < int(bright.sum()) < len(bright)
    return torch.where(bright[:, None], torch.inf, features)


def test_pictures_that_overflow_are_computed_in_tf32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others stay as they are, and so do the passes before; a table that was kept is believed again."""
    _note_overflow.cache_clear()
    rows = torch.arange(len(DATA.train))
    plain = teacher(tmp_path / "fp32", small_network()).answers(0)(rows, DATA.train.images)
    monkeypatch.setattr(Teacher, "_passing", overflowing)
    monkeypatch.setattr(teachers, "arithmetic", lambda precision, device: arithmetic("fp32", device))
    for _ in range(2):
        made = teacher(tmp_path / "fp16", small_network())
        made._precision = "fp16"
        torch.testing.assert_close(made.answers(0)(rows, DATA.train.images), plain)
    assert capsys.readouterr().err.count("some pictures overflow fp16, so their answers are computed in tf32") == 1


def test_what_overflows_in_tf32_too_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says so. In other precisions such values are left to those who use them."""
    made = teacher(tmp_path, small_network())
    infinite = torch.full((16, 32), torch.inf)
    monkeypatch.setattr(Teacher, "_passing", lambda own, pictures: infinite[: len(pictures)])
    monkeypatch.setattr(made.network, "features", lambda pictures: infinite[: len(pictures)])
    monkeypatch.setattr(made, "_precision", "fp16")
    with pytest.raises(RunError, match=r"outputs aren't finite, in tf32 either"):
        made._pass(0)(torch.arange(16))
    monkeypatch.setattr(made, "_precision", "bf16")
    made._pass(0)(torch.arange(16))


@pytest.mark.parametrize(
    ("bf16", "fit", "expected"), [(True, True, "fp16"), (True, False, "tf32"), (False, False, "fp32")]
)
def test_auto_takes_fp16_on_a_gpu_where_it_fits(
    bf16: bool, fit: bool, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise tf32, or fp32 where the GPU has neither; a line says why. What is asked for is taken as it is."""
    cfg = composed(*SHORT, "precision=auto", "device=cpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(half_precision, "LARGEST", half_precision.LARGEST if fit else 1e-3)
    build._fits_fp16.cache_clear()
    gpu = torch.device("cuda")
    for _ in range(2):
        assert build.teacher_precision(cfg, gpu) == expected
    build._fits_fp16.cache_clear()
    said = capsys.readouterr().err
    assert said.count("Teacher: precision fp16, since its values" if fit else "Teacher: precision not fp16") == 1
    assert build.teacher_precision(composed(*SHORT, "teacher.precision=fp32"), gpu) == "fp32"


def test_a_cpu_has_its_own_auto() -> None:
    """No network is tried there."""
    cfg, cpu = composed(*SHORT, "precision=auto"), torch.device("cpu")
    assert build.teacher_precision(cfg, cpu) == build.resolve_precision("auto", cpu)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_computes_in_fp16(tmp_path: Path) -> None:
    """Its logits for a pass are those of fp32 but for rounding errors."""
    shown = Views(DATA.train.images.to("cuda"), DATA.padding, DATA.flip, seed=0)
    logits = [
        Teacher(small_network().to("cuda"), DATA, shown, tmp_path, "table", 16, precision).answers(0)(
            torch.arange(32, device="cuda"), DATA.train.images
        )
        for precision in ("fp16", "fp32")
    ]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-2, atol=1e-2 * float(logits[1].abs().max()))
