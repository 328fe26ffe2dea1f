"""Claims about how a training comes to its precision and memory layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import networks
import pytest
import torch
from commands import SHORT
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from kdsweep import assembly, autotune
from kdsweep.autotune import MARGIN, ROUNDS, Arithmetic, fastest, training_step
from kdsweep.files import hash_tensors
from kdsweep.train import CONFIG_FOLDER

FIRST, SECOND = Arithmetic("fp32", "channels_last"), Arithmetic("fp32", "contiguous")


class Clock:
    """Steps that take the seconds they are told to, on a clock of their own; counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[Arithmetic, float]) -> None:
        self.now, self.steps = 0.0, 0
        self._seconds = seconds
        monkeypatch.setattr(autotune.time, "perf_counter", lambda: self.now)

    def step(self, arithmetic: Arithmetic) -> Callable[[], None]:
        def run() -> None:
            self.steps += 1
            self.now += self._seconds[arithmetic]

        return run


@pytest.mark.parametrize(("factor", "chosen"), [(1.02, SECOND), (0.98, FIRST), (0.5, FIRST)])
def test_the_clock_has_to_contradict_clearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, chosen: Arithmetic
) -> None:
    """Another than the first candidate is chosen where it is faster by the margin, and not by a little."""
    clock = Clock(monkeypatch, {FIRST: factor * MARGIN, SECOND: 1.0})
    assert fastest([FIRST, SECOND], {}, tmp_path, clock.step) == chosen


def test_it_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer stays, however fast the steps are later; another network, or other candidates, are measured anew."""
    clock = Clock(monkeypatch, {FIRST: 2.0, SECOND: 1.0})
    assert fastest([FIRST, SECOND], {"model": 1}, tmp_path, clock.step) == SECOND
    assert clock.steps == 2 * (1 + ROUNDS)
    later = Clock(monkeypatch, {FIRST: 1.0, SECOND: 2.0})
    assert fastest([FIRST, SECOND], {"model": 1}, tmp_path, later.step) == SECOND
    assert later.steps == 0
    assert fastest([FIRST, SECOND], {"model": 2}, tmp_path, later.step) == FIRST
    assert fastest([SECOND, FIRST], {"model": 1}, tmp_path, later.step) == FIRST


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"precision": "fp8", "memory_format": "contiguous"}'])
def test_what_cannot_be_read_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """A damaged answer, or one that is no candidate, is replaced."""
    clock = Clock(monkeypatch, {FIRST: 2.0, SECOND: 1.0})
    fastest([FIRST, SECOND], {}, tmp_path, clock.step)
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["seconds"] == {str(FIRST): 2.0, str(SECOND): 1.0}
    path.write_text(damage)
    assert fastest([FIRST, SECOND], {}, tmp_path, clock.step) == SECOND
    assert clock.steps == 4 * (1 + ROUNDS)
    assert json.loads(path.read_text())["memory_format"] == "contiguous"


def test_what_takes_too_much_memory_is_no_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first fits the run goes on with it; where it doesn't, the run wouldn't either, and says so."""
    clock = Clock(monkeypatch, {FIRST: 2.0, SECOND: 1.0})

    def step(arithmetic: Arithmetic) -> Callable[[], None]:
        if arithmetic == SECOND:
            raise torch.OutOfMemoryError("out of memory")
        return clock.step(arithmetic)

    assert fastest([FIRST, SECOND], {}, tmp_path, step) == FIRST
    with pytest.raises(torch.OutOfMemoryError):
        fastest([SECOND, FIRST], {}, tmp_path, step)


def test_a_step_that_fails_otherwise_is_an_error(tmp_path: Path) -> None:
    """It would fail in the training too."""

    def step(arithmetic: Arithmetic) -> Callable[[], None]:
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        fastest([FIRST, SECOND], {}, tmp_path, step)


@pytest.mark.parametrize("name", ["channels_last", "contiguous"])
def test_a_step_is_a_training_step_in_its_layout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and pictures lie as they are told to, and the network itself learns nothing from it."""
    network = networks.build(name="shufflenet_v2_x0_5")
    before = hash_tensors(network.net.state_dict())
    layouts: list[bool] = []
    layout = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}[name]
    original = torch.nn.Conv2d.forward

    def spied(self: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        if self.in_channels == 3:
            layouts.extend(tensor.is_contiguous(memory_format=layout) for tensor in (x, self.weight))
        return original(self, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", spied)
    training_step(network, networks.random_pictures(4), torch.arange(4), Arithmetic("fp32", name))()
    assert layouts == [True, True]
    assert hash_tensors(network.net.state_dict()) == before


def config(root: Path, *words: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER)):
        return compose("config", [*SHORT, "device=cpu", "precision=auto", f"paths.root={root}", *words])


def test_a_long_training_is_measured_and_a_short_one_is_not(tmp_path: Path) -> None:
    """What is in force is in the configuration then; the data of this run give four steps an epoch."""
    short = assembly.autotuned(config(tmp_path))
    suggested = assembly.resolve_precision("auto", torch.device("cpu"))
    assert (short.precision, short.memory_format, short.teacher.precision) == (suggested, "channels_last", suggested)
    assert not (tmp_path / "cache" / "autotune").exists()
    torch.rand(1)
    state = torch.get_rng_state()
    tuned = assembly.autotuned(config(tmp_path, "epochs=1000"))
    assert torch.equal(torch.get_rng_state(), state)
    (answer,) = (tmp_path / "cache" / "autotune").glob("*.json")
    known = json.loads(answer.read_text())
    assert (tuned.precision, tuned.memory_format) == (known["precision"], known["memory_format"])
    assert known["of"]["pictures"] == [16, 32, 32, 3]


def test_what_is_set_is_not_measured(tmp_path: Path) -> None:
    """The user's own precision and layout stand; a teacher has the precision of its students unless told otherwise."""
    words = (
        "epochs=1000",
        "memory_format=contiguous",
        "precision=bf16",
        "teacher.precision=fp32",
        "model.stem=imagenet",
    )
    tuned = assembly.autotuned(config(tmp_path, *words))
    assert (tuned.precision, tuned.memory_format, tuned.teacher.precision) == ("bf16", "contiguous", "fp32")
    assert assembly.autotuned(config(tmp_path, *words[:3])).teacher.precision == "bf16"
    assert not (tmp_path / "cache" / "autotune").exists()


def test_auto_is_never_what_would_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bf16 on a CPU gives wrong gradients, hardware that has bf16 suggests it in vain."""
    monkeypatch.setattr(assembly, "resolve_precision", lambda name, device: "bf16" if name == "auto" else name)
    words = ("model.name=resnet18", "teacher.network.name=shufflenet_v2_x0_5")
    small = config(tmp_path, *words, "data.image_size=16")
    assert assembly.autotuned(small).precision == "fp32"
    assembly.rehearse(small)
    assert assembly.autotuned(config(tmp_path, *words)).precision == "bf16"
