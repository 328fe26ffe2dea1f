"""Claims about compiled passes: they give the same logits, are for long passes only, and have tables of their own."""

from __future__ import annotations

import errno
import functools
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SHORT
from configurations import composed
from needs import lacking
from networks import build, random_pictures
from test_teachers import DATA, teacher, views
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters

from kdsweep import teachers
from kdsweep.config import build as build_module
from kdsweep.config.build import component
from kdsweep.config.checks import check
from kdsweep.execution import grid
from kdsweep.losses import kd
from kdsweep.models import Classifier, Head
from kdsweep.numerics import compiling
from kdsweep.numerics.compiling import CompileError, compiled_features, flops, has_compiler, worth_compiling
from kdsweep.schedules import constant
from kdsweep.system.errors import UserError
from kdsweep.system.files import if_free
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


# --------------------------------------------------------------------------------- where nothing can be compiled


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiler that doesn't find Python's header."""
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho '<stdin>:1:10: fatal error: Python.h: No such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    compiling.fault.cache_clear()
    teachers._note_plain.cache_clear()
    yield
    compiling.fault.cache_clear()


def failing(*_: object, **__: object) -> Any:
    """Stands for torch.compile on a network that Inductor can't compile; the message has lines of advice."""

    def compiled(*_: object) -> None:
        raise BackendCompilerFailed(failing, RuntimeError("no lowering for it\nadvice"), None)

    return compiled


@pytest.mark.usefixtures("broken")
def test_a_compiler_that_finds_no_header_is_told() -> None:
    """The message has the compiler's own line; another place of the header would be found by it."""
    reason = compiling.fault("cpu")
    assert reason is not None
    assert re.fullmatch(r"/.*/c\+\+ doesn't work \(<stdin>:1:10: fatal error: Python.h: No such file\)", reason)


@pytest.mark.parametrize("case", ["none", "cache", "room", "hangs"])
def test_other_reasons_are_told(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler, a cache that is a file, one without room, and a compiler that can't be started."""
    (tmp_path / "file").touch()
    (tmp_path / "compiler").write_text("no program")
    (tmp_path / "compiler").chmod(0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / ("file" if case == "cache" else "cache")))
    monkeypatch.setenv("CXX", {"none": "no-such-compiler", "hangs": str(tmp_path / "compiler")}.get(case, "true"))
    if case == "room":
        monkeypatch.setattr(compiling, "CACHE_BYTES", -1)

        def full(**_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(tempfile, "TemporaryFile", full)
    said = {
        "none": r"there is no C\+\+ compiler \(no-such-compiler\)",
        "cache": r"its cache can't be written \(.*File exists.*; TORCHINDUCTOR_CACHE_DIR names another\)",
        "room": r"its cache can't be written \(.*No space left.*",
        "hangs": r".*/compiler doesn't work \(.*Exec format error.*",
    }
    compiling.fault.cache_clear()
    found = compiling.fault("cpu")
    compiling.fault.cache_clear()
    assert found is not None
    assert re.fullmatch(said[case], found)


@pytest.mark.usefixtures("broken")
def test_a_compiler_that_is_asked_for_is_checked_before_the_run(tmp_path: Path) -> None:
    """compiled=true and teacher.compiled=true are refused in one line."""
    with pytest.raises(UserError, match=r"^compiled: .* fatal error: Python.h: No such file\)\. Set compiled=false"):
        check(composed(*SHORT, "compiled=true"))
    with pytest.raises(UserError, match=r"^compiled: .* Python.h: No such file\)\. Set it to null or false"):
        teacher(tmp_path, NETWORK, compiled=True)


@pytest.mark.usefixtures("broken")
def test_a_compiler_that_nobody_asked_for_costs_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A long pass is then computed as a short one is, and kept as such; the note comes once in a process."""
    monkeypatch.setattr(compiling, "WORTH_FLOPS", 0)
    made = [teacher(tmp_path, NETWORK, compiled=None) for _ in range(2)]
    assert made[0].features_key == teacher(tmp_path, NETWORK, compiled=False).features_key
    assert capsys.readouterr().err.count("without torch.compile: ") == 1


def test_a_network_that_cannot_be_compiled_costs_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What Inductor can't compile shows at the first batch; all are then computed by the network as it is."""
    monkeypatch.setattr(compiling, "WORTH_FLOPS", 0)
    monkeypatch.setattr(compiling, "fault", lambda device: None)
    monkeypatch.setattr(torch, "compile", failing)
    teachers._note_plain.cache_clear()
    plain = teacher(tmp_path / "plain", NETWORK).logits("test")
    assert torch.equal(teacher(tmp_path, NETWORK, compiled=None).logits("test"), plain)
    assert capsys.readouterr().err.count("can't compile the network") == 1
    with pytest.raises(CompileError, match=r"no lowering for it\)\. Set teacher.compiled=false\.$"):
        teacher(tmp_path / "asked", NETWORK, compiled=True).logits("test")


def test_a_student_that_cannot_be_compiled_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run fails with the switch; other errors stay as they are."""
    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(CompileError, match=r"no lowering for it\)\. Set compiled=false\.$"):
        train(compiled=True)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda pictures: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        train(compiled=True)


# --------------------------------------------------------------------------------------------------------- passes


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


# ------------------------------------------------------------------------------------------- compiled: auto


@pytest.mark.parametrize(
    ("lines", "stage", "expected"),
    [
        (["epochs=100"], "single", False),  # 6 steps an epoch
        (["epochs=1000"], "single", True),
        (["epochs=100"], "search", True),  # all runs of a study count, whatever their number
        (["epochs=100", "data.train_fraction=0.1"], "confirmation", True),  # and are compiled alike
        (["epochs=10"], "search", False),
        (["epochs=1", "compiled=true"], "single", True),
        (["epochs=10000", "compiled=false"], "single", False),
    ],
)
def test_training_is_compiled_where_its_steps_earn_it(
    lines: list[str], stage: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the number of steps decides, which a configuration tells, and no clock."""
    cfg = composed(*SHORT, "data.n_train=130", f"tracking.stage={stage}", *lines)
    monkeypatch.setattr(build_module, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(build_module, "inputs", lambda *_: (component(cfg, "data"), None))
    monkeypatch.setattr(compiling, "fault", lambda device: None)
    assert build_module.compiled(cfg) is expected


def test_on_a_cpu_nothing_is_compiled_by_itself() -> None:
    """compiled=auto is false there, however long the training is."""
    assert build_module.compiled(composed(*SHORT, "device=cpu", "epochs=100000")) is False
    assert not compiling.worth_compiling_training(10**9, torch.device("cpu"))


def test_a_grid_from_before_auto_goes_on() -> None:
    """It had false, which auto is on a CPU: what is in force tells grids and studies apart."""
    lines = [*SHORT, "device=cpu"]
    assert grid._key([composed(*lines)]) == grid._key([composed(*lines, "compiled=false")])
    assert grid._key([composed(*lines)]) != grid._key([composed(*lines, "compiled=true")])


def test_what_hinders_compiling_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GPU without a compiler trains without one, several times as slowly."""
    cfg = composed(*SHORT, "epochs=100000")
    monkeypatch.setattr(build_module, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(build_module, "inputs", lambda *_: (component(cfg, "data"), None))
    monkeypatch.setattr(compiling, "fault", lambda device: "there is no C++ compiler (g++ or clang++)")
    assert [build_module.compiled(cfg) for _ in range(2)] == [False, False]
    assert capsys.readouterr().err.count("not compiled (compiled=auto), which makes it several times slower") == 1


def test_the_first_step_says_that_it_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once for each kind of step, in the folder that all processes of the machine share, one after the other."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "user's"))
    compiling.share_cache(tmp_path / "compiled")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "user's")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compiling.share_cache(tmp_path / "compiled")
    monkeypatch.setattr(compiling, "_announced", set())
    lock = tmp_path / "compiled" / "lock"
    for _ in range(2):
        with compiling.announced("a network"):
            pass
    with compiling.announced("another"), if_free(lock) as free:
        assert not free
    said = capsys.readouterr().err
    assert said.count("The training step is compiled (compiled=true)") == 2
    assert said.count("The training step was compiled in 0 s.") == 2
