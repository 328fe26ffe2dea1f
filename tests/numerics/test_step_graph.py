"""Claims about the training step that a GPU replays: it can be captured, and replaying it trains the same network.

Most of them are tested without a GPU: on tensors without content, and on a stand-in for CUDA graphs.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networks
import pytest
import torch
from configurations import composed
from test_compiling import DATA, small_network
from test_teachers import teacher
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from kdsweep import losses, teachers
from kdsweep.config import build
from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.losses import unchecked
from kdsweep.models import Classifier
from kdsweep.numerics import compiling, step_graph
from kdsweep.numerics.compiling import tensor_settings
from kdsweep.numerics.gpu_memory import Fetcher
from kdsweep.numerics.step_graph import WARM_UPS, make_capturable, obstacle, rates_as_tensors
from kdsweep.numerics.taken_apart import taken_apart
from kdsweep.schedules import constant
from kdsweep.schedules import one_cycle as rising_and_falling
from kdsweep.system.tensor_files import hash_tensors
from kdsweep.teachers import Teacher
from kdsweep.training import Fit
from kdsweep.views import Views

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

SGD = functools.partial(torch.optim.SGD, lr=0.03125, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
ADAMW = functools.partial(torch.optim.AdamW, lr=0.001, fused=True)
KD = functools.partial(losses.kd.__wrapped__, alpha=0.5, tau=2)  # type: ignore[attr-defined]

# The rates are powers of two, which a tensor in float32 holds as exactly as a number in Python.
HALVING = functools.partial(lambda optimizer, steps: LambdaLR(optimizer, lambda step: 2.0 ** -(step % 5)))


# The pictures of trainings that share a graph.
SHOWN = Views(DATA.train.images, DATA.padding, DATA.flip, seed=0)


def fitting(network: Classifier, **changes: Any) -> Fit:
    """A training of two epochs of four steps on a device that `changes` may name."""
    device = changes.pop("device", "cpu")
    plain: dict[str, Any] = {"loss": losses.ce, "teacher": None, "optimizer": SGD, "schedule": HALVING}
    plain |= {"epochs": 2, "batch_size": 8, "n_passes": 2, "order_seed": 0, "precision": "fp32"}
    on_device = Views(DATA.train.images.to(device), DATA.padding, DATA.flip, seed=0)
    shown = changes.pop("shown", on_device)
    return Fit(network.to(device), shown, DATA.train.labels.to(device), **plain | changes)


def outcome(fit: Fit) -> tuple[list[tuple[float, ...]], str]:
    """What a training found, and the hash of its weights."""
    found = [(epoch["train/loss"], epoch["train/accuracy"], epoch["lr"]) for epoch in fit]
    return found, hash_tensors(fit._network.net.state_dict())


# ----------------------------------------------------------------------------------- what can be captured


def emptied(network: Classifier) -> Classifier:
    """The network with tensors that have no content, in a `FakeTensorMode`."""
    for module in network.modules():
        for name, old in module._parameters.items():
            if old is not None:
                module._parameters[name] = nn.Parameter(torch.empty_strided(old.shape, old.stride()))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_strided(buffer.shape, buffer.stride(), dtype=buffer.dtype)
    return network


def step_without_content(network: Classifier, **changes: Any) -> tuple[Tensor, Tensor]:
    """Makes two steps as they are captured, on tensors without content."""
    with FakeTensorMode():
        pictures, labels = torch.empty(8, 32, 32, 3, dtype=torch.uint8), torch.empty(8, dtype=torch.int64)
        settings = {name: torch.empty(()) for name in ("alpha", "tau")}
        plain: dict[str, Any] = {"loss": functools.partial(KD.func, **settings), "optimizer": SGD, **changes}
        common: dict[str, Any] = {
            "epochs": 1,
            "batch_size": 4,
            "n_passes": 1,
            "order_seed": 0,
            "precision": "bf16",
            "n_labelled": 8,
        }
        shown = Views(pictures, 4, True, seed=0)
        fit = Fit(emptied(network), shown, labels, teacher=None, schedule=constant, **common, **plain)
        make_capturable(fit._optimizer)
        indices, key, answers = labels[:4], torch.empty((), dtype=torch.int64), torch.empty(4, network.n_classes)
        for _ in range(2):
            with rates_as_tensors(fit._optimizer, [torch.empty(())]):
                made = fit._computed(indices, key, lambda *_: answers, None)
    return made[:2]


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_a_step_asks_no_tensor_for_its_content(optimizer: Any) -> None:
    """Views, preprocessing, forward, loss, backward and optimizer run on tensors without content.

    So no host waits for the GPU, and no shape depends on data. The settings of the loss and the rate are tensors.
    """
    loss, correct = step_without_content(small_network(frozen=False), optimizer=optimizer)
    assert (loss.shape, loss.dtype, correct.shape, correct.dtype) == ((), torch.float32, (), torch.int64)


@pytest.mark.all
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small", "efficientnet_b0", "vit_b_16"])
def test_steps_of_known_networks_ask_for_no_content(name: str) -> None:
    """Batch norm, dropout, squeeze-and-excitation, stochastic depth and attention are no obstacle."""
    size = 224 if name.startswith("vit") else None
    step_without_content(networks.build(6, name=name, input_size=size))


class Asking(nn.Module):
    """A network that asks what a tensor holds."""

    def __init__(self, ask: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.ask = small_network(frozen=False), ask

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.net(pictures)
        self.ask(logits)
        return logits


def test_such_steps_are_refused() -> None:
    """The test above can fail: an optimizer that isn't fused asks for the rate, and losses may ask for anything."""
    with pytest.raises(DataDependentOutputException):
        step_without_content(small_network(frozen=False), optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    with pytest.raises(DynamicOutputShapeException):
        step_without_content(small_network(frozen=False), loss=lambda logits, _, labels: logits[labels > 1].mean())


@pytest.mark.parametrize(
    ("ask", "optimizer", "reason"),
    [
        (len, SGD, None),
        (lambda logits: logits.sum().item(), SGD, r"waits for the GPU \(aten._local_scalar_dense"),
        (lambda logits: 1 if logits.sum() > 0 else 2, SGD, "waits for the GPU"),
        (lambda logits: logits[logits > 0], SGD, r"shapes that depend on the data \(aten.nonzero"),
        (len, ADAMW, None),
        (len, functools.partial(torch.optim.SGD, lr=0.1), r"can't capture this SGD: set optimizer.fused=true"),
        (len, functools.partial(torch.optim.Adagrad, lr=0.1), "can't capture this Adagrad$"),
    ],
)
def test_what_speaks_against_a_capture_is_said(ask: Any, optimizer: Any, reason: str | None) -> None:
    """It is found before any step, on a copy: the network, its gradients and the random numbers stay as they are."""
    network = Asking(ask)
    before, drawn = hash_tensors(network.state_dict()), torch.get_rng_state()
    pictures, labels = DATA.train.images[:4], DATA.train.labels[:4]
    found = obstacle(network, losses.ce, optimizer(list(network.parameters())), pictures, None, labels)
    assert re.search(reason or "^None$", str(found))
    assert hash_tensors(network.state_dict()) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in network.parameters())


# ------------------------------------------------------------------------------- replaying, with a stand-in


class Recorder(TorchDispatchMode):
    """Stands for a CUDA graph on a CPU: it notes operations with the memory that they read and write, for `replay`."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Any, Any, Any, list[tuple[int, Tensor]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}))  # the same memory, whoever moves elsewhere
        memory = {tensor.untyped_storage().data_ptr() for tensor in tree_leaves(given) if isinstance(tensor, Tensor)}
        found = func(*args, **(kwargs or {}))
        made = [
            (place, tensor.detach())
            for place, tensor in enumerate(tree_leaves(found))
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in memory
        ]
        if made or func._schema.is_mutable:  # the others are views of what is there
            self.noted.append((func, *given, made))
        return found

    def replay(self) -> None:
        with torch.inference_mode():  # it may change what an online teacher has answered
            for func, args, kwargs, made in self.noted:
                found = tree_leaves(func(*args, **kwargs))
                for place, tensor in made:
                    tensor.copy_(found[place])


class StandIn:
    """Stands for CUDA graphs on a CPU. Capturing leaves everything as it was, and replaying repeats the operations.

    Attributes:
        fit: The training.
        fault: What a capture ends in, if anything.
        seen: "capture" and "replay", in the order in which they happened.
    """

    def __init__(self) -> None:
        self.fit: Any = None
        self.fault: Exception | None = None
        self.seen: list[str] = []

    @contextmanager
    def capturing(self, made: Any, stream: object) -> Iterator[None]:
        self.seen.append("capture")
        network, optimizer = self.fit._network.net, self.fit._optimizer
        held = [*network.state_dict().values(), *(x for kept in optimizer.state.values() for x in kept.values())]
        before = [(tensor, tensor.clone()) for tensor in held if isinstance(tensor, Tensor)]
        recorder = Recorder()
        made.replay = lambda: (self.seen.append("replay"), recorder.replay())
        with recorder:
            yield
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        if self.fault is not None:
            try:
                raise self.fault
            except RuntimeError:  # torch ends the capture, which fails too
                raise RuntimeError("the capture was invalidated")  # noqa: B904

    def trained(self, network: Classifier, **changes: Any) -> Fit:
        """A training that captures its steps."""
        self.fit = fitting(network, **changes)
        self.fit._captures = True
        self.fit._labels = self.fit._labels.clone()
        self.fit._loss = self.fit._compiled_loss()
        make_capturable(self.fit._optimizer)
        return self.fit


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    stream = SimpleNamespace(device=torch.device("cpu"), wait_stream=lambda other: None)
    monkeypatch.setattr(step_graph, "_stream", lambda device: stream)
    monkeypatch.setattr(step_graph, "_kept", [])
    monkeypatch.setattr(compiling, "_compiled", lambda function: function)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda own: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "graph", made.capturing)
    return made


@pytest.mark.parametrize("optimizer", [SGD, functools.partial(ADAMW, lr=2.0**-10)], ids=["sgd", "adamw"])
def test_replayed_steps_train_the_same_network(gpu: StandIn, optimizer: Any) -> None:
    """The first steps are made by the function, and all others by one graph: bit for bit what the function trains."""
    plain = outcome(fitting(small_network(frozen=False), optimizer=optimizer))
    assert outcome(gpu.trained(small_network(frozen=False), optimizer=optimizer)) == plain
    assert gpu.seen == ["capture", *["replay"] * (8 - WARM_UPS)]
    assert gpu.fit._step_graph is None  # its memory is free


@pytest.mark.parametrize("mode", ["table", "online"])
def test_a_graph_hears_the_teacher_of_each_pass(gpu: StandIn, tmp_path: Path, mode: str) -> None:
    """The table changes from pass to pass, and the graph stays."""
    guide = teacher(tmp_path, mode=mode)
    plain = outcome(fitting(small_network(frozen=False), teacher=guide, loss=KD))
    assert outcome(gpu.trained(small_network(frozen=False), teacher=guide, loss=KD)) == plain
    assert gpu.seen.count("capture") == 1


@pytest.mark.parametrize("captures", [False, True])
def test_pictures_may_be_fetched(gpu: StandIn, tmp_path: Path, captures: bool) -> None:
    """They are cut where they lie and copied, and train the same network; a graph takes them as its input."""
    guide = teacher(tmp_path)
    plain = outcome(fitting(small_network(frozen=False), teacher=guide, loss=KD))
    fit = gpu.trained(small_network(frozen=False), teacher=guide, loss=KD)
    fit._captures, fit._fetch = captures, Fetcher(torch.device("cpu"))
    assert outcome(fit) == plain
    assert gpu.seen.count("capture") == captures


@pytest.mark.parametrize("captures", [False, True])
def test_a_table_may_be_fetched(gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captures: bool) -> None:
    """A table without room on the GPU is read row by row from where it lies, and trains the same network."""
    plain = outcome(fitting(small_network(frozen=False), teacher=teacher(tmp_path), loss=KD))
    fetched: list[Tensor] = []

    class Noting(Fetcher):
        def __call__(self, batch: Tensor) -> Tensor:
            fetched.append(super().__call__(batch))
            return fetched[-1]

    monkeypatch.setattr(teachers, "stays", lambda *_: True)
    monkeypatch.setattr(teachers, "Fetcher", Noting)
    fit = gpu.trained(small_network(frozen=False), teacher=teacher(tmp_path), loss=KD)
    fit._captures = captures
    assert outcome(fit) == plain
    assert [rows.shape for rows in fetched] == [(8, 6)] * 8
    assert gpu.seen.count("capture") == captures


def test_a_training_goes_on_with_a_graph_of_its_own(gpu: StandIn) -> None:
    """Its optimizer's state is another than the one that a graph has captured."""
    whole = outcome(gpu.trained(small_network(frozen=False)))
    fit = gpu.trained(small_network(frozen=False))
    first = next(iter(fit))
    state = fit.state()
    again = gpu.trained(small_network(frozen=False))
    next(iter(again))  # it has captured a graph before it is loaded
    again.load(state)
    found, weights = outcome(again)
    assert ([(first["train/loss"], first["train/accuracy"], first["lr"]), *found], weights) == whole


def test_a_step_that_cannot_be_captured_is_made_plainly(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says why, once, and the training is the same."""
    said: list[str] = []
    monkeypatch.setattr(step_graph, "note", said.append)
    plain = outcome(fitting(small_network(frozen=False)))
    gpu.fault = RuntimeError("operation not permitted when stream is capturing")
    assert outcome(gpu.trained(small_network(frozen=False))) == plain
    assert gpu.seen == ["capture"]
    (line,) = said
    assert line.startswith("The training step is not replayed as a CUDA graph, so it takes longer: ")
    assert "operation not permitted" in line


def test_a_loss_that_waits_is_not_captured(gpu: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    """That is found before the first step."""

    def waiting(logits: Tensor, _: Tensor | None, labels: Tensor) -> Tensor:
        value = losses.ce(logits, None, labels)
        return value if value.item() > 0 else -value

    plain = outcome(fitting(small_network(frozen=False), loss=waiting))
    assert outcome(gpu.trained(small_network(frozen=False), loss=waiting)) == plain
    assert gpu.seen == []
    assert "the network or the loss waits for the GPU" in capsys.readouterr().err


def test_a_schedule_may_change_more_than_the_rate(gpu: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    """A graph knows the momentum that it has captured, so a schedule that changes it goes on without one."""

    def cycle(optimizer: Any, steps: int) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.03, total_steps=steps, cycle_momentum=True)

    plain = outcome(fitting(small_network(frozen=False), schedule=cycle))
    assert outcome(gpu.trained(small_network(frozen=False), schedule=cycle)) == plain
    assert gpu.seen == []
    assert "the schedule changes more of the optimizer than its rate" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- from trial to trial


one_cycle = functools.partial(rising_and_falling, warmup=0.3)


def summed(number: int) -> Any:
    """A sum with a searched weight, of distillation with a falling temperature and of smoothed labels."""
    plan = {"start": number + 2.0, "end": 1 + number / 2, "shape": "linear", "until": 0.5}
    falling = functools.partial(losses.scheduled, of=functools.partial(losses.kd, alpha=number / 4, tau=plan))
    terms = {
        "kd": {"weight": 0.5 + number, "of": falling},
        "smoothing": {"weight": 1.0, "of": functools.partial(losses.label_smoothing, smoothing=number / 10)},
    }
    return unchecked(functools.partial(losses.weighted_sum, terms=terms))


def trial(number: int, **changes: Any) -> dict[str, Any]:
    """What a search changes: alpha, tau, the rate, and the seed."""
    loss = functools.partial(KD.func, alpha=number / 4, tau=number + 1)
    optimizer = changes.pop("optimizer", SGD)
    own = {"loss": loss, "optimizer": functools.partial(optimizer, lr=2.0 ** -(5 + number)), "order_seed": number}
    return own | changes


def started(number: int) -> Classifier:
    """A network with weights of its own."""
    network = small_network(frozen=False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + number / 8)
    return network


@pytest.mark.slow
@pytest.mark.parametrize("loss", [None, summed], ids=["kd", "sum"])
@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_trials_replay_the_graph_of_the_first(gpu: StandIn, tmp_path: Path, optimizer: Any, loss: Any) -> None:
    """Each finds what it would find with a graph of its own, bit for bit; nothing is captured or kept but once."""
    guide = teacher(tmp_path)
    networks_before: list[tuple[Classifier, str]] = []
    places: list[list[int]] = []
    for number in range(3):
        options = trial(number, optimizer=optimizer, teacher=guide, schedule=one_cycle)
        options |= {} if loss is None else {"loss": loss(number)}
        step_graph._kept, kept = [], step_graph._kept
        alone = outcome(gpu.trained(started(number), shown=SHOWN, **options))
        step_graph._kept = kept
        captures = gpu.seen.count("capture")
        network = started(number)
        assert outcome(gpu.trained(network, shown=SHOWN, **options)) == alone
        assert gpu.seen.count("capture") == captures + (number == 0)
        networks_before.append((network, hash_tensors(network.net.state_dict())))
        (kept_step,) = step_graph._kept
        places.append([place.data_ptr() for place in kept_step.places])
    assert places[0] == places[1] == places[2]
    # What was trained before is left alone.
    assert all(hash_tensors(network.net.state_dict()) == before for network, before in networks_before)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [None, summed], ids=["kd", "sum"])
def test_a_study_compiles_and_captures_once(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: Any
) -> None:
    """Network and loss are compiled, and the step is captured, in the first of several trials alone."""
    torch._dynamo.reset()
    counter, guide = CompileCounter(), teacher(tmp_path)
    monkeypatch.setattr(compiling, "_compiled", functools.partial(torch.compile, dynamic=False, backend=counter))
    counts = []
    for number in range(3):
        options = trial(number, teacher=guide, epochs=1) | ({} if loss is None else {"loss": loss(number)})
        fit = gpu.trained(started(number), shown=SHOWN, **options)
        fit._forward = compiling.compiled_forward(fit._network)
        outcome(fit)
        counts.append((counter.frame_count, gpu.seen.count("capture")))
    assert counts[0][0] > 0
    assert counts == [(counts[0][0], 1)] * 3


def test_two_trainings_at_a_time_have_graphs_of_their_own(gpu: StandIn) -> None:
    """A graph is taken by one training only, and given back when that one ends, or isn't iterated over any more."""
    plain = [outcome(fitting(started(number), shown=SHOWN, **trial(number, loss=losses.ce))) for number in range(3)]
    found = [gpu.trained(started(number), shown=SHOWN, **trial(number, loss=losses.ce)) for number in range(3)]
    epochs = [iter(fit) for fit in found]
    ends: list[list[dict[str, float]]] = []
    for fit, epoch in zip(found, epochs, strict=True):
        gpu.fit = fit
        ends.append([next(epoch)])
    assert gpu.seen.count("capture") == 3
    for end, epoch, fit, expected in zip(ends, epochs, found, plain, strict=True):
        end.extend(epoch)
        assert [made["train/loss"] for made in end] == [made[0] for made in expected[0]]
        assert hash_tensors(fit._network.net.state_dict()) == expected[1]
    iterator = iter(gpu.trained(started(0), shown=SHOWN, **trial(0, loss=losses.ce)))
    next(iterator)
    assert step_graph._kept == []
    iterator.close()  # as where a trial is pruned
    assert len(step_graph._kept) == 1
    assert gpu.seen.count("capture") == 3


def test_a_graph_is_kept_where_there_is_room(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the first steps of the next training might not fit beside it."""
    monkeypatch.setattr(step_graph, "room_for_another", lambda device: False)
    outcome(gpu.trained(started(0), shown=SHOWN, loss=losses.ce, epochs=1))
    assert step_graph._kept == []


class Scaled(nn.Module):
    """A network whose output depends on a number that its text doesn't show."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def scaled(factor: float) -> Classifier:
    network = small_network(frozen=False)
    network.net.insert(0, Scaled(factor))
    network.head_name = "9"
    return network


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 4},
        {"optimizer": functools.partial(SGD, momentum=0.5)},
        {"loss": functools.partial(KD, alpha=0.5, tau=2, direction="reverse")},
        {"network": scaled(2.0)},
        {"shown": Views(DATA.train.images, DATA.padding, DATA.flip, seed=0)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_differs_is_captured_anew(gpu: StandIn, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Another batch, optimizer, loss, network or set of pictures; and the graph of before is dropped."""
    guide = teacher(tmp_path)
    assert outcome(gpu.trained(scaled(1.0), **trial(1, teacher=guide, shown=SHOWN, epochs=1)))
    network = changes.get("network", scaled(1.0))
    kept = {key: value for key, value in changes.items() if key != "network"}
    options = trial(2, teacher=guide, shown=SHOWN, epochs=1) | kept
    fresh = outcome(fitting(copy.deepcopy(network), **options))
    assert outcome(gpu.trained(network, **options)) == fresh
    assert gpu.seen.count("capture") == 2
    assert len(step_graph._kept) == 1


def test_only_what_can_be_compared_is_used_again() -> None:
    """Tensors that share memory, parts of others, and unknown objects make no constants."""
    weight = torch.zeros(4)
    known = {"a": [1, weight], "b": functools.partial(KD, alpha=weight)}
    assert taken_apart(known) == taken_apart({"a": [1, weight], "b": functools.partial(KD, alpha=weight)})
    assert taken_apart(1)[0] != taken_apart(True)[0]
    for unknown in (object(), [weight, weight.view(2, 2)], weight[:2], torch.zeros(1).expand(4), torch.zeros(0)):
        assert taken_apart(unknown)[0] is None


# ------------------------------------------------------------------------------------------------- compiling


def test_another_setting_and_another_network_compile_nothing() -> None:
    """Network and loss are one whole graph for torch.compile, and alpha and tau are tensors in it."""
    torch._dynamo.reset()
    counter = CompileCounter()

    def learned(network: Classifier, loss: Any, settings: Any, *batch: Tensor) -> Tensor:
        pictures, answers, labels = batch
        value: Tensor = loss(network(pictures), answers, labels, **settings)
        return value

    compiled = torch.compile(learned, fullgraph=True, dynamic=False, backend=counter)
    pictures, labels, answers = DATA.train.images[:8], DATA.train.labels[:8], torch.randn(8, 6)
    for alpha, tau in ((0.5, 2), (0.0, 4.0), (0.3, 7.5)):
        network = small_network(frozen=False).train()
        loss = functools.partial(KD.func, alpha=alpha, tau=tau)
        settings = tensor_settings(loss, guided=True)
        assert settings is not None
        found = compiled(network, loss.func, settings, pictures, answers, labels)
        other = small_network(frozen=False).train()
        torch.testing.assert_close(found, loss(other(pictures), answers, labels))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("loss", "guided", "names"),
    [
        (functools.partial(KD, alpha=1, tau=4), True, ["alpha", "tau"]),
        (functools.partial(losses.ce), False, []),
        (losses.ce, False, None),
        (KD, False, None),
        (functools.partial(losses.label_smoothing.__wrapped__, smoothing=0.1), False, ["smoothing"]),  # type: ignore[attr-defined]
        (functools.partial(lambda s, t, y, **own: losses.ce(s, t, y) * own["k"], k=0.5), False, ["k"]),
        (functools.partial(lambda s, t, y, *, k: F.cross_entropy(s, y, label_smoothing=k), k=0.5), False, None),
        (functools.partial(lambda s, t, y, *, k: losses.ce(s, t, y) * (2 if k > 1 else 1), k=0.5), False, None),
    ],
)
def test_settings_become_tensors_where_a_loss_takes_them(loss: Any, guided: bool, names: list[str] | None) -> None:
    """Not where torch itself wants a number, or where Python decides by one."""
    found = tensor_settings(loss, guided)
    assert (None if found is None else [name for name in found if isinstance(found[name], Tensor)]) == names


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIG_FOLDER.glob("loss/*.yaml") if path.stem != "own"))
def test_each_loss_of_ours_takes_its_numbers_as_tensors(name: str) -> None:
    """All of them, also those in the terms of a sum and in schedules: no number is left that a capture would fix."""
    loss = unchecked(build.component(composed("experiment=debug", f"loss={name}"), "loss"))
    guided = losses.hears_teacher(loss)
    settings = tensor_settings(loss, guided, losses.example_for(loss, 2, guided))
    assert settings is not None
    left = [settings]
    while left:
        for value in left.pop().values():
            assert not isinstance(value, float)
            left.extend([value.keywords] if isinstance(value, functools.partial) else [])
            left.extend([value] if isinstance(value, dict) else [])


# ---------------------------------------------------------------------------------------------------- on a GPU


@needs_gpu
@pytest.mark.slow
def test_a_gpu_replays_what_it_computes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the graph's training is bit for bit that of its function, with the network compiled in both."""
    captured = outcome(fitting(small_network(frozen=False), device="cuda", compiled=True))
    assert "not replayed" not in capsys.readouterr().err
    monkeypatch.setattr(step_graph, "WARM_UPS", 1000)
    assert outcome(fitting(small_network(frozen=False), device="cuda", compiled=True)) == captured
    plain = outcome(fitting(small_network(frozen=False), device="cuda"))
    assert [epoch[0] for epoch in captured[0]] == pytest.approx([epoch[0] for epoch in plain[0]], rel=1e-3)


@needs_gpu
@pytest.mark.slow
def test_trials_on_a_gpu_replay_the_graph_of_the_first(tmp_path: Path) -> None:
    """Each finds what it finds with a graph of its own, bit for bit, and no memory is added."""
    shown = Views(DATA.train.images.to("cuda"), DATA.padding, DATA.flip, seed=0)
    taken: list[int] = []
    guide = Teacher(small_network().to("cuda"), DATA, shown, tmp_path, "table", 16, "fp32")
    for number in range(4):
        options = trial(number, teacher=guide, shown=shown, device="cuda", compiled=True)
        step_graph._kept, kept = [], step_graph._kept
        alone = outcome(fitting(started(number), **options))
        step_graph._kept = kept
        graph = kept[0].graph if kept else None
        assert outcome(fitting(started(number), **options)) == alone
        assert graph is None or step_graph._kept[0].graph is graph
        taken.append(torch.cuda.memory_allocated())
    assert taken[3] <= taken[1]
    step_graph._kept.clear()


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["table", "online"])
def test_a_gpu_hears_the_teacher_of_each_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """With a teacher's table, and with a teacher that is asked within the graph."""
    network = small_network().to("cuda")
    shown = Views(DATA.train.images.to("cuda"), DATA.padding, DATA.flip, seed=0)
    guide = Teacher(network, DATA, shown, tmp_path, mode, 16, "fp32")
    options: dict[str, Any] = {"device": "cuda", "compiled": True, "teacher": guide, "loss": KD}
    captured = outcome(fitting(small_network(frozen=False), **options))
    monkeypatch.setattr(step_graph, "WARM_UPS", 1000)
    assert outcome(fitting(small_network(frozen=False), **options)) == captured


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_fetches_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    """A table in the computer's memory trains the same network as one on the GPU, bit for bit."""
    shown = Views(DATA.train.images.to("cuda"), DATA.padding, DATA.flip, seed=0)
    guide = Teacher(small_network().to("cuda"), DATA, shown, tmp_path, "table", 16, "fp32")
    options: dict[str, Any] = {"device": "cuda", "compiled": compiled, "teacher": guide, "loss": KD}
    there = outcome(fitting(small_network(frozen=False), **options))
    monkeypatch.setattr(teachers, "stays", lambda *_: True)
    assert outcome(fitting(small_network(frozen=False), **options)) == there


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_fetches_pictures(compiled: bool) -> None:
    """Pictures in the computer's memory train the same network as those on the GPU, bit for bit."""
    options: dict[str, Any] = {"device": "cuda", "compiled": compiled}
    there = outcome(fitting(small_network(frozen=False), **options))
    shown = Views(DATA.train.images, DATA.padding, DATA.flip, seed=0)
    assert outcome(fitting(small_network(frozen=False), shown=shown, **options)) == there


@needs_gpu
@pytest.mark.slow
def test_a_gpu_goes_on_bit_for_bit() -> None:
    """A training that is continued captures its graph anew, dropout included."""
    network = functools.partial(networks.two_heads, lambda _, __, logits: logits)
    options: dict[str, Any] = {"device": "cuda", "compiled": True, "epochs": 4}
    whole = outcome(fitting(network(), **options))
    fit = fitting(network(), **options)
    epochs = iter(fit)
    first = [next(epochs) for _ in range(2)]
    again = fitting(network(), **options)
    again.load(fit.state())
    found, weights = outcome(again)
    earlier = [(epoch["train/loss"], epoch["train/accuracy"], epoch["lr"]) for epoch in first]
    assert ([*earlier, *found], weights) == whole


@needs_gpu
@pytest.mark.slow
def test_a_gpu_goes_on_after_a_capture_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    """A loss that waits for the GPU in a way that isn't found before: the training ends as it would without a graph."""

    def waiting(logits: Tensor, _: Tensor | None, labels: Tensor) -> Tensor:
        torch.cuda.synchronize()
        return losses.ce(logits, None, labels)

    found = outcome(fitting(small_network(frozen=False), device="cuda", compiled=True, loss=waiting))
    assert "not replayed as a CUDA graph" in capsys.readouterr().err
    assert found == outcome(fitting(small_network(frozen=False), device="cuda", compiled=True, loss=losses.ce))
