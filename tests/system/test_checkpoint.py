"""Checkpoints: what was saved comes back bit for bit, damage is noticed, and an interruption leaves no trace."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SHORT, Command, checkpoints, client, runs
from crashes import kill_at
from in_process import kdsweep
from torch import Tensor, nn

from kdsweep import data as datasets
from kdsweep.losses import ce
from kdsweep.models import Classifier, Head
from kdsweep.schedules import constant, cosine, one_cycle
from kdsweep.system import checkpoint, interrupts
from kdsweep.system.checkpoint import Checkpoints, expire, kept, packed, unpacked
from kdsweep.system.errors import PrunedError, RunError
from kdsweep.system.tensor_files import hash_tensors
from kdsweep.training import Fit, Metrics
from kdsweep.views import Views

OPTIONS: Any = {"val_size": 18, "train_fraction": 1.0, "split_seed": 0, "padding": 4, "flip": True}
DATA = datasets.synthetic(n_train=68, n_test=12, n_classes=6, image_size=32, seed=0, **OPTIONS)

TIMES = {"images_per_second", "epoch_seconds", "seconds", "teacher_seconds"}


def everything(state: Mapping[str, Any]) -> bool:
    return True


def state(epoch: int) -> dict[str, Any]:
    """A small state that tells its epoch."""
    return {"epoch": epoch, "weights": torch.full((3, 2), float(epoch))}


def offered(checkpoints: Checkpoints, *epochs: int) -> None:
    for epoch in epochs:
        checkpoints.save(state(epoch))


# ------------------------------------------------------------------------------------------- states as tensors


def test_a_state_comes_back_as_it_was() -> None:
    """Keys that are numbers, tuples, None, the bits of floats and tensors without a dimension come back."""
    given = {
        "param_groups": [{"betas": (0.9, 0.999), "lr": 0.1 + 0.2, "foreach": None, "params": [0, 1]}],
        "state": {0: {"step": torch.tensor(3.0)}, 1: {}},
        "nothing": [],
    }
    found = unpacked(packed(given))
    assert torch.equal(found["state"][0].pop("step"), given["state"][0].pop("step"))  # type: ignore[index]
    assert found == given


def test_what_has_no_place_in_a_checkpoint_is_refused() -> None:
    """A function in a scheduler's state, say, raises an error and isn't silently left out."""
    with pytest.raises(TypeError, match="JSON"):
        packed({"scheduler": {"lr_lambda": max}})


# ------------------------------------------------------------------------------------------------ files


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    """Older ones are removed, and the later of the two is loaded."""
    checkpoints = Checkpoints(tmp_path / "run", share=1)
    checkpoints.claim()
    offered(checkpoints, 1, 2, 3)
    found = checkpoints.load()
    assert found is not None
    assert (found["epoch"], found["weights"][0, 0]) == (3, 3.0)
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == ["000002.safetensors", "000003.safetensors"]


@pytest.mark.parametrize("position", [0, 8, 40, 200, -1])
@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_a_damaged_one_falls_back_to_the_one_before(
    position: int, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That holds wherever the damage is, and a line says so."""
    checkpoints = Checkpoints(tmp_path / "run", share=1)
    checkpoints.claim()
    offered(checkpoints, 1, 2)
    path = tmp_path / "run" / "000002.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content if how == "flipped" else content[: position or 1])
    found = checkpoints.load()
    assert found is not None
    assert found["epoch"] == 1
    assert "000002.safetensors is damaged" in "".join(capsys.readouterr().err.split("\n"))


def test_no_more_than_their_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of a tenth leaves nine seconds of training for one of saving; a fresh run estimates by size."""
    clock = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(checkpoint, "BYTES_PER_SECOND", sum(t.nbytes for t in packed(state(0)).values()))
    saved: list[float] = []

    def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
        saved.append(clock[0])
        clock[0] += 1.0

    monkeypatch.setattr(checkpoint, "write_tensors", write)
    checkpoints = Checkpoints(tmp_path / "run", share=0.1)
    for _ in range(100):
        clock[0] += 0.5
        checkpoints.offer(lambda: state(1))
    assert saved[:3] == [109.0, 119.0, 129.0]


@pytest.mark.parametrize(("share", "n"), [(0.0, 0), (1.0, 5)])
def test_none_or_every_one(share: float, n: int, tmp_path: Path) -> None:
    """A share of 0 saves nothing, a share of 1 saves at every occasion."""
    checkpoints = Checkpoints(tmp_path / "run", share)
    checkpoints.claim()
    for epoch in range(5):
        checkpoints.offer(lambda epoch=epoch: state(epoch))  # type: ignore[misc]
    assert [int(path.stem) for path in checkpoints._files()] == list(range(1, n + 1))[-2:]


# ------------------------------------------------------------------------------------------- whose they are


def ended_by(error: BaseException, folder: Path, *epochs: int) -> None:
    """A run that saves these epochs, and is ended by an error."""
    with suppress(type(error)), kept(folder, 1, everything) as (checkpoints, found):
        assert found is None
        offered(checkpoints, *epochs)
        raise error


def test_an_interrupted_run_goes_on_and_a_finished_one_does_not(tmp_path: Path) -> None:
    """What the block reached before Ctrl-C is there for the next one, and gone after its good end."""
    ended_by(KeyboardInterrupt(), tmp_path / "key", 1, 2)
    with kept(tmp_path / "key", 1, everything) as (_, found):
        assert found is not None
        assert found["epoch"] == 2
    assert list((tmp_path / "key").iterdir()) == []


@pytest.mark.parametrize("error", [RunError("the loss was nan"), PrunedError(3)])
def test_what_would_only_come_again_is_forgotten(error: Exception, tmp_path: Path) -> None:
    """A run that diverged or was pruned leaves no checkpoint."""
    ended_by(error, tmp_path / "key", 1)
    assert list((tmp_path / "key").iterdir()) == []


def test_two_of_a_kind_do_not_share(tmp_path: Path) -> None:
    """If the same command runs twice at a time, the second begins a run of its own."""
    with kept(tmp_path / "key", 1, everything) as (first, _):
        offered(first, 1)
        with kept(tmp_path / "key", 1, everything) as (second, found):
            assert found is None
            offered(second, 5)
        latest = first.load()
    assert latest is not None
    assert latest["epoch"] == 1


def test_a_state_that_is_not_wanted_is_forgotten(tmp_path: Path) -> None:
    """That is so if its run was deleted, or with resume=false."""
    ended_by(KeyboardInterrupt(), tmp_path / "key", 1)
    with kept(tmp_path / "key", 1, lambda state: state["epoch"] > 1) as (_, found):
        assert found is None


def test_a_month_later_nobody_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted runs don't fill the disk for ever; younger ones stay."""
    for name in ("old", "young"):
        offered(Checkpoints(tmp_path / "key" / name, 1), 1)
    now = time.time()
    os.utime(tmp_path / "key" / "old", (now - 40 * 86400,) * 2)
    expire(tmp_path)
    assert [path.name for path in (tmp_path / "key").iterdir() if path.is_dir()] == ["young"]


# --------------------------------------------------------------------------------------------- trainings


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True),
    "adamw": partial(torch.optim.AdamW, lr=1e-3),
}
SCHEDULES = {
    "one_cycle": partial(one_cycle, warmup=0.3),
    "cosine": partial(cosine, warmup=0.3),
    "constant": constant,
}


def small_network() -> Classifier:
    """One convolution with batch-norm and dropout, whose random numbers count too."""
    layers = [nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Dropout(0.5), Head.of(nn.Linear(32, 6)))
    return Classifier(net, "6", frozen=False, input_size=None, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def fitting(optimizer: str, schedule: str) -> tuple[Fit, nn.Module]:
    """A training of three epochs of three steps."""
    torch.manual_seed(0)
    network = small_network()
    fit = Fit(
        network,
        Views(DATA.train.images, DATA.padding, DATA.flip, seed=0),
        DATA.train.labels,
        loss=ce,
        teacher=None,
        optimizer=OPTIMIZERS[optimizer],
        schedule=SCHEDULES[schedule],
        epochs=3,
        batch_size=16,
        n_passes=2,
        order_seed=0,
        precision="fp32",
    )
    return fit, network.net


def trained(fit: Fit, stop: int | None = None) -> list[Metrics]:
    """Trains until Ctrl-C comes after `stop` further steps; the metrics of the epochs that ended."""
    ended: list[Metrics] = []
    steps = 0

    def step(*arguments: Any) -> None:
        nonlocal steps
        steps += 1
        Fit._train_step(fit, *arguments)
        if steps == stop:
            press_ctrl_c()

    fit._train_step = step  # type: ignore[method-assign]
    try:
        ended.extend({name: value for name, value in epoch.items() if name not in TIMES} for epoch in fit)
    except KeyboardInterrupt:
        assert fit.between_steps
    return ended


def press_ctrl_c() -> None:
    """Interrupts as Ctrl-C does in a training: at the end of the step."""
    interrupts._pending = KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_training_goes_on_bit_for_bit(optimizer: str, schedule: str, stop: int) -> None:
    """Interrupted within an epoch or at its end, it has the same weights, and the same metrics in the epochs left."""
    whole, network = fitting(optimizer, schedule)
    expected = trained(whole)
    first, _ = fitting(optimizer, schedule)
    before = trained(first, stop)
    saved = unpacked(packed(first.state()))
    torch.manual_seed(99)
    second, again = fitting(optimizer, schedule)
    second.load(saved)
    assert before + trained(second) == expected
    assert hash_tensors(again.state_dict()) == hash_tensors(network.state_dict())


# ------------------------------------------------------------------------------------------------- commands


# Steps of milliseconds, with dropout, and a checkpoint after every epoch.
EPOCHS = 8
LONG = (
    *SHORT,
    *("model.name=mobilenet_v3_small", "model.stem=imagenet", "precision=fp32"),
    *(f"epochs={EPOCHS}", "n_passes=2", "checkpoint_share=1"),
)


def result(root: Path) -> tuple[str, dict[str, float], list[float]]:
    """Of the one distilled run of a folder: its weights' hash, its metrics, and validation by epoch."""
    (run,) = runs(root, "distill")
    assert run.info.status == "FINISHED"
    points = client(root).get_metric_history(run.info.run_id, "val/nll")
    assert [point.step for point in points] == list(range(1, EPOCHS + 1))
    metrics = {name: value for name, value in run.data.metrics.items() if name not in TIMES}
    return run.data.tags["kdsweep.weights"], metrics, [point.value for point in points]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, float], list[float]]:
    """What the run finds that nobody interrupts."""
    root = tmp_path_factory.mktemp("undisturbed")
    done = kdsweep(*LONG, root=root)
    assert done.status == 0, done.err
    return result(root)


WRITTEN = "kdsweep.system.checkpoint:write_tensors"
# Where a run commits something: a checkpoint has been written and the older ones are there; it has been written and
# not renamed; all is in MLflow but the status.
PLACES = [
    partial(kill_at, WRITTEN, "after", call=2),
    partial(kill_at, "kdsweep.system.files:_sync", "before", call=3, about="checkpoints"),
    partial(kill_at, "kdsweep.tracking.run_writer:Run._end", "before"),
]


def resumed_after(root: Path) -> list[int]:
    """Returns the epochs after which the one run of a folder went on."""
    (run,) = runs(root, "distill")
    return [int(epoch) for epoch in run.data.tags["kdsweep.resumed_after"].split(", ")]


@pytest.mark.slow
def test_kills_leave_no_trace(undisturbed: tuple[str, dict[str, float], list[float]], tmp_path: Path) -> None:
    """Killed wherever it commits something, the same run goes on: same weights, same metrics, each logged once."""
    teacher = partial(kill_at, "kdsweep.tracking.run_writer:Run._end", "after")
    assert Command(*LONG, root=tmp_path, prepare=teacher).outcome().status == -signal.SIGKILL
    for place in PLACES:
        done = Command(*LONG, root=tmp_path, prepare=place).outcome()
        assert done.status == -signal.SIGKILL, done.err
    done = kdsweep(*LONG, root=tmp_path)
    assert done.status == 0, done.err
    # The second was killed with its second checkpoint half-written, which is an epoch further.
    assert resumed_after(tmp_path) == [2, 3, EPOCHS]
    assert result(tmp_path) == undisturbed
    assert checkpoints(tmp_path) == []


@pytest.mark.slow
def test_a_run_killed_when_it_had_finished_is_not_repeated_into(
    undisturbed: tuple[str, dict[str, float], list[float]], tmp_path: Path
) -> None:
    """Its checkpoints are still there; the same command makes a run of its own and removes them."""
    last = partial(kill_at, "kdsweep.system.checkpoint:Checkpoints.discard", "before")
    assert Command(*LONG, root=tmp_path, prepare=last).outcome().status == -signal.SIGKILL
    assert result(tmp_path) == undisturbed
    assert checkpoints(tmp_path) != []
    assert kdsweep(*LONG, root=tmp_path).status == 0
    assert [run.data.tags["kdsweep.weights"] for run in runs(tmp_path, "distill")] == 2 * [undisturbed[0]]
    assert checkpoints(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_interruption_at_a_random_moment_leaves_no_trace(
    number: int, undisturbed: tuple[str, dict[str, float], list[float]], tmp_path: Path
) -> None:
    """The same run goes on, and ends with the same weights and metrics, each logged once."""
    command = Command(*LONG, root=tmp_path)
    command.wait_for(lambda: checkpoints(tmp_path))
    time.sleep(random.Random(number).uniform(0, 0.1))
    command.signal(number)
    done = command.outcome()
    assert done.status == (143 if number == signal.SIGTERM else -number), done.err
    done = kdsweep(*LONG, root=tmp_path)
    assert done.status == 0, done.err
    assert len(resumed_after(tmp_path)) == 1
    assert result(tmp_path) == undisturbed
    assert checkpoints(tmp_path) == []


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_an_epoch(
    undisturbed: tuple[str, dict[str, float], list[float]], tmp_path: Path
) -> None:
    """The one before it is taken, a line says so, and the end is the same."""
    second = partial(kill_at, WRITTEN, "after", call=2)
    assert Command(*LONG, root=tmp_path, prepare=second).outcome().status == -signal.SIGKILL
    latest = max(checkpoints(tmp_path))
    latest.write_bytes(latest.read_bytes()[:-1])
    done = kdsweep(*LONG, root=tmp_path)
    assert done.status == 0, done.err
    assert f"{latest.name} is damaged" in done.err
    assert resumed_after(tmp_path) == [1]
    assert result(tmp_path) == undisturbed


@pytest.mark.slow
def test_what_resume_says(tmp_path: Path) -> None:
    """resume=true refuses if there is nothing to go on from, and false begins anew."""
    refused = kdsweep(*LONG, "resume=true", root=tmp_path)
    assert (refused.status, refused.error[:16]) == (2, "kdsweep: resume:")
    command = Command(*LONG, root=tmp_path)
    command.wait_for(lambda: checkpoints(tmp_path) != [])
    command.signal(signal.SIGTERM)
    command.outcome()
    other = kdsweep(*LONG, "resume=true", "seed=1", root=tmp_path)
    assert other.status == 2
    assert kdsweep(*LONG, "resume=false", root=tmp_path).status == 0
    assert [run.info.status for run in runs(tmp_path, "distill")] == ["KILLED", "FINISHED"]
    assert checkpoints(tmp_path) == []
