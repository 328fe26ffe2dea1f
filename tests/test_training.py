"""Training: identities of the loop, repeatability, and heads compared with scikit-learn's."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from kdsweep import data as datasets
from kdsweep.data import Dataset
from kdsweep.losses import ce, kd, label_smoothing
from kdsweep.models import Classifier
from kdsweep.schedules import constant, cosine
from kdsweep.system.errors import UserError
from kdsweep.system.tensor_files import hash_tensors
from kdsweep.teachers import Teacher
from kdsweep.training import SCALING_FLOOR, DivergedError, Fit, Metrics, fit_head, predict, rehearse
from kdsweep.views import Views, pass_of_epoch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

# These metrics are times, and differ from run to run.
TIMES = ("images_per_second", "epoch_seconds")

# Most processors emulate bf16. On those a small network shows the same in a tenth of the time.
NAMES = {"fp32": "resnet18", "bf16": "shufflenet_v2_x0_5"}


def small_data() -> Dataset:
    """50 pictures of 32 px for training, 18 and 12 for validation and test, 6 classes."""
    options: Any = {"val_size": 18, "train_fraction": 1.0, "split_seed": 0, "padding": 4, "flip": True}
    return datasets.synthetic(n_train=68, n_test=12, n_classes=6, image_size=32, seed=0, **options)


def build(seed: int = 0, **changes: Any) -> Classifier:
    """A random ResNet18 for the pictures of `small_data`."""
    return networks.build(6, seed, **changes)


DATA = small_data()


def views(device: str = "cpu") -> Views:
    return Views(DATA.train.images.to(device), DATA.padding, DATA.flip, seed=0)


def fitting(network: Classifier, shown: Views | None = None, **changes: Any) -> Iterator[Metrics]:
    """A training of `network` for two epochs of three steps, with `changes`."""
    plain: dict[str, Any] = {
        "loss": ce,
        "teacher": None,
        "optimizer": functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4),
        "schedule": functools.partial(cosine, warmup=0.2),
        "epochs": 2,
        "batch_size": 16,
        "n_passes": 2,
        "order_seed": 0,
        "precision": "fp32",
    }
    device = network.head.weight.device
    shown = views(str(device)) if shown is None else shown
    return iter(Fit(network, shown, DATA.train.labels.to(device), **plain | changes))


def train(network: Classifier, **changes: Any) -> list[Metrics]:
    """Trains `network` as `fitting` describes, and returns the metrics of each epoch."""
    return list(fitting(network, **changes))


def weights_hash(network: Classifier) -> str:
    return hash_tensors(network.net.state_dict())


def fingerprint(seed: int = 0, order_seed: int = 0, precision: str = "fp32", device: str = "cpu") -> str:
    """All that a run computes: its metrics, its weights and its logits, as bytes."""
    network = build(seed, name=NAMES[precision]).to(device)
    metrics = train(network, order_seed=order_seed, precision=precision)
    results = [{name: value.hex() for name, value in epoch.items() if name not in TIMES} for epoch in metrics]
    answers = hash_tensors({"logits": predict(network, DATA.test.images, 5, precision)})
    return hashlib.sha256(f"{results} {weights_hash(network)} {answers}".encode()).hexdigest()


# -------------------------------------------------------------------------------------------------- identities


@pytest.mark.slow
def test_dropout_depends_on_the_order_seed_alone() -> None:
    """It doesn't depend on random numbers drawn before, such as a teacher's new head."""
    trained = []
    for drawn, order_seed in ((0, 0), (7, 0), (0, 1)):
        network = build(1, name="mobilenet_v3_small")
        torch.rand(drawn)
        train(network, epochs=1, order_seed=order_seed)
        trained.append(weights_hash(network))
    assert trained[0] == trained[1]
    assert trained[0] != trained[2]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_alpha_zero_trains_the_weights_of_cross_entropy(tmp_path: Path, precision: str) -> None:
    """With alpha = 0 the student is bit for bit the one that is trained without a teacher; with 0.1 it isn't."""
    teacher = Teacher(build(9), DATA, views(), tmp_path, "table", 16, precision)
    trained = {}
    for name, loss, guide in (
        ("ce", ce, None),
        ("alpha 0", functools.partial(kd, alpha=0.0, tau=4.0), teacher),
        ("alpha 0.1", functools.partial(kd, alpha=0.1, tau=4.0), teacher),
    ):
        network = build(1, name=NAMES[precision])
        losses = [metrics["train/loss"] for metrics in train(network, loss=loss, teacher=guide, precision=precision)]
        trained[name] = losses, weights_hash(network)
    assert trained["alpha 0"] == trained["ce"]
    assert trained["alpha 0.1"][1] != trained["ce"][1]


@pytest.mark.slow
def test_no_smoothing_trains_the_weights_of_cross_entropy() -> None:
    """Label smoothing of 0 is the same training as well."""
    plain, smoothed = build(1), build(1)
    train(plain)
    train(smoothed, loss=functools.partial(label_smoothing, smoothing=0.0))
    assert weights_hash(plain) == weights_hash(smoothed)


@pytest.mark.slow
def test_a_few_epochs_learn_the_classes() -> None:
    """The loop does train: the student classifies pictures that it hasn't seen."""
    network = build()
    sgd = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    metrics = train(network, epochs=6, batch_size=10, optimizer=sgd)
    assert metrics[-1]["train/accuracy"] > 0.7
    predicted = predict(network, DATA.validation.images, 8, "fp32").argmax(dim=1)
    assert (predicted == DATA.validation.labels).double().mean() > 0.5


# ----------------------------------------------------------------------------------------------- repeatability


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seeds_give_the_same_bits(precision: str) -> None:
    """The same seeds give the same metrics, weights and logits; changing either seed gives others.

    For one number of threads: with another one, sums are taken in another order.
    """
    first = fingerprint(precision=precision)
    assert fingerprint(precision=precision) == first
    assert fingerprint(seed=1, precision=precision) != first
    assert fingerprint(order_seed=1, precision=precision) != first


@pytest.mark.slow
def test_another_process_gives_the_same_bits() -> None:
    """Another process with the same number of threads repeats the run exactly, in both precisions."""
    code = "import test_training as t; print([t.fingerprint(precision=p) for p in ('fp32', 'bf16')])"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": ":".join(sys.path)}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert there.stdout.strip() == str([fingerprint(precision=p) for p in ("fp32", "bf16")]), there.stderr


@needs_gpu
def test_a_gpu_repeats_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With deterministic kernels the same seed gives the same bits on CUDA too."""
    from kdsweep.numerics.hardware import set_determinism

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        set_determinism(True, torch.device("cuda"))
        assert fingerprint(device="cuda", precision="bf16") == fingerprint(device="cuda", precision="bf16")
    finally:
        torch.use_deterministic_algorithms(False)


# ---------------------------------------------------------------------------------------------------- the loop


class Recording(Views):
    """Views that note the (picture indices, pass) of each batch."""

    def __init__(self) -> None:
        super().__init__(DATA.train.images, DATA.padding, DATA.flip, seed=0)
        self.asked: list[tuple[list[int], int]] = []

    def keyed_batch(self, indices: Tensor, key: int | Tensor) -> Tensor:
        pass_of = {self.key(pass_index): pass_index for pass_index in range(10)}
        self.asked.append((indices.tolist(), pass_of[int(key)]))
        return super().keyed_batch(indices, key)


def recorded(**changes: Any) -> list[list[tuple[list[int], int]]]:
    """The (picture indices, pass) of the batches of each epoch."""
    shown = Recording()
    found = []
    for _ in fitting(build(freeze="backbone"), shown, schedule=constant, **changes):
        found.append(shown.asked)
        shown.asked = []
    return found


def test_an_epoch_shows_pictures_once_in_batches_of_one_size() -> None:
    """Fifty pictures make three batches of 16, without repeats. Each epoch leaves out two others."""
    epochs = recorded(epochs=4, batch_size=16, n_passes=3)
    orders = [[index for indices, _ in epoch for index in indices] for epoch in epochs]
    assert [[len(indices) for indices, _ in epoch] for epoch in epochs] == 4 * [[16, 16, 16]]
    assert all(len(set(order)) == 48 for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert len({frozenset(range(50)) - frozenset(order) for order in orders}) > 1


def test_an_epoch_trains_on_one_pass() -> None:
    """All batches of an epoch show the pass that the seed gives it; a cycle of epochs shows all passes."""
    for order_seed in (0, 1):
        epochs = recorded(epochs=6, batch_size=25, n_passes=3, order_seed=order_seed)
        passes = [{pass_index for _, pass_index in epoch} for epoch in epochs]
        assert passes == [{pass_of_epoch(order_seed, epoch, 3)} for epoch in range(6)]
        assert set.union(*passes[:3]) == set.union(*passes[3:]) == {0, 1, 2}


def test_less_data_than_a_batch_is_one_batch() -> None:
    """A data set that is smaller than a batch is one batch."""
    (epoch,) = recorded(epochs=1, batch_size=128, n_passes=1)
    assert [sorted(indices) for indices, _ in epoch] == [list(range(50))]


def test_metrics_say_what_happened() -> None:
    """train/loss is the mean over the batches, train/accuracy the share of right answers, lr the next step's rate."""
    losses: list[float] = []
    hits: list[float] = []

    def loss(logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        assert teacher_logits is None
        hits.append((logits.argmax(dim=1) == labels).double().mean().item())
        value = ce(logits, teacher_logits, labels)
        losses.append(value.item())
        return value

    metrics = train(build(), loss=loss)
    assert [epoch["train/loss"] for epoch in metrics] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])
    assert [epoch["train/accuracy"] for epoch in metrics] == pytest.approx([sum(hits[:3]) / 3, sum(hits[3:]) / 3])
    # One step of warm-up and five along half a cosine; three of these six are done.
    assert metrics[0]["lr"] == pytest.approx(0.02 * (1 + math.cos(math.pi * 2 / 5)) / 2)
    assert metrics[1]["lr"] == pytest.approx(0, abs=1e-12)
    assert all(epoch["images_per_second"] == pytest.approx(48 / epoch["epoch_seconds"]) for epoch in metrics)


@pytest.mark.parametrize(("bad", "message"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_a_loss_that_is_not_finite_ends_the_training(bad: float, message: str) -> None:
    """The error names step and epoch, and the epochs before it are yielded."""
    calls: list[int] = []

    def loss(logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        calls.append(0)
        return logits.sum() * 0 + (bad if len(calls) == 5 else 1.0)

    training = fitting(build(freeze="backbone"), loss=loss)
    next(training)
    with pytest.raises(DivergedError, match=rf"^the loss was {message} in epoch 2, step 2\. Lower optimizer\.lr"):
        next(training)


@pytest.mark.slow
def test_a_rate_that_is_too_high_is_told() -> None:
    """A real training that diverges says so, and how to mend it, in one line."""
    with pytest.raises(DivergedError, match=r"in epoch \d+, step \d+\. Lower optimizer\.lr, or lengthen schedule") as e:
        train(build(), optimizer=functools.partial(torch.optim.SGD, lr=1e12), schedule=constant, epochs=4)
    assert "\n" not in str(e.value)


# ------------------------------------------------------------------------------------------- frozen backbones


@pytest.mark.slow
def test_fit_leaves_a_frozen_backbone_alone() -> None:
    """Gradient descent on the head changes no bit of the rest, batch-norm statistics included."""
    network = build(freeze="backbone")
    backbone, whole = network.backbone_hash(), weights_hash(network)
    train(network)
    assert network.backbone_hash() == backbone
    assert weights_hash(network) != whole


@pytest.mark.slow
def test_fit_trains_a_backbone_that_is_not_frozen() -> None:
    """The same training changes all parameters and statistics if nothing is frozen."""
    network = build()
    before = {name: tensor.clone() for name, tensor in network.net.state_dict().items()}
    train(network)
    assert [name for name, tensor in network.net.state_dict().items() if torch.equal(tensor, before[name])] == []


def head_data(n: int, seed: int, classes: int = 6, features: int = 512) -> tuple[Tensor, Tensor]:
    """Features that say something about the label, on scales from 0.01 to 100 and around values other than zero."""
    patterns = 0.2 * torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    values = torch.randn(n, features, generator=torch.Generator().manual_seed(seed)) + patterns[labels]
    return values * torch.logspace(-2, 2, features) + torch.linspace(-3, 3, features), labels


def fit_random_head(network: Classifier, weight_decays: list[float], max_iterations: int = 100) -> list[Metrics]:
    """Trains the head of `network` on 60 examples and validates it on 300 others."""
    train_set, validation_set = head_data(60, seed=0), head_data(300, seed=1)
    return list(
        fit_head(network, *train_set, *validation_set, weight_decays=weight_decays, max_iterations=max_iterations)
    )


def test_fit_head_leaves_the_backbone_alone() -> None:
    """Training a head changes the head and nothing else, and asks for no gradient of the rest."""
    network = build(freeze="backbone").eval()
    backbone, head = network.backbone_hash(), network.head.weight.clone()
    fit_random_head(network, [1.0, 0.1])
    assert network.backbone_hash() == backbone
    assert not torch.equal(network.head.weight, head)


@pytest.mark.slow
@pytest.mark.parametrize("weight_decay", [1.0, 0.03])
def test_fit_head_finds_the_minimum_of_scikit_learn(weight_decay: float) -> None:
    """On the same standardised features the head is LogisticRegression's with C = 1 / (weight_decay * n)."""
    network = build()
    (features, labels), (other, _) = head_data(60, seed=0), head_data(300, seed=1)
    (metrics, best) = fit_random_head(network, [weight_decay], max_iterations=2000)
    assert best == metrics
    variance = features.var(dim=0, correction=0)
    std = (variance + SCALING_FLOOR * variance.mean()).sqrt()
    scaled, other_scaled = ((x - features.mean(dim=0)) / std for x in (features, other))
    theirs = LogisticRegression(C=1 / (weight_decay * len(labels)), tol=1e-8, max_iter=5000)
    theirs.fit(scaled.double().numpy(), labels.numpy())
    with torch.no_grad():
        ours = network.head(other).softmax(dim=1)
    expected = torch.from_numpy(theirs.predict_proba(other_scaled.double().numpy())).float()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)
    log_probabilities = torch.from_numpy(theirs.predict_log_proba(scaled.double().numpy()))
    assert metrics["train/loss"] == pytest.approx(F.nll_loss(log_probabilities, labels).item(), rel=1e-3)


def test_fit_head_puts_back_the_best_by_validation() -> None:
    """The head with the lowest validation NLL is kept, and its metrics name its weight decay."""
    network = build()
    validation_features, validation_labels = head_data(300, seed=1)
    nll: dict[float, float] = {}
    for metrics in fit_head(
        network,
        *head_data(60, seed=0),
        validation_features,
        validation_labels,
        weight_decays=[1e-4, 10.0, 3.0, 1e-2, 0.3, 0.1, 1.0, 1e-3],
        max_iterations=100,
    ):
        with torch.no_grad():
            found = F.cross_entropy(network.head(validation_features), validation_labels).item()
        last = metrics["head/weight_decay"]
        nll.setdefault(last, found)
    best = min(nll, key=lambda weight_decay: nll[weight_decay])
    assert last == best
    assert found == pytest.approx(nll[best], rel=1e-5)
    # They are tried from strong to weak, and no more than two beyond the best.
    assert list(nll) == sorted(nll, reverse=True)
    assert 10.0 > best > min(nll)
    assert len([weight_decay for weight_decay in nll if weight_decay < best]) == 2


def test_fit_head_does_not_blow_up_a_constant_feature() -> None:
    """A feature that never varies in training, but does elsewhere, gets no weight; all numbers stay finite."""
    network = build()
    features, labels = head_data(60, seed=0)
    features[:, 7] = 3.0
    for _ in fit_head(network, features, labels, features, labels, weight_decays=[0.1], max_iterations=50):
        pass
    assert network.head.weight[:, 7].abs().max() < 1e-6
    assert network.head.weight.isfinite().all()


def test_fit_head_takes_training_pictures_that_lack_a_class() -> None:
    """A class that only validation has gets a small, finite probability, and the head is trained for the others."""
    network = build()
    (features, labels), (other, other_labels) = head_data(60, seed=0), head_data(300, seed=1)
    kept = labels < 5
    list(
        fit_head(
            network, features[kept], labels[kept], other, other_labels, weight_decays=[1.0, 0.1], max_iterations=50
        )
    )
    with torch.no_grad():
        logits = network.head(other)
    assert logits.isfinite().all()
    assert 0 < logits.softmax(dim=1)[:, 5].max() < 1e-6
    assert (logits.argmax(dim=1) == other_labels)[other_labels < 5].double().mean() > 0.5


def test_a_head_without_bias_is_refused() -> None:
    """A head without a bias, such as maxvit_t's, can't include the scaling of its features; one line says so."""
    network = build()
    network.head.register_parameter("bias", None)
    with pytest.raises(UserError, match=r"the head has a bias` must hold .*teacher\.network\.name") as raised:
        fit_random_head(network, [1.0])
    assert "\n" not in str(raised.value)


def test_a_head_needs_a_weight_decay() -> None:
    """An empty list, which would silently leave the head random, is refused."""
    with pytest.raises(
        UserError, match=r"weight_decays: `at least one weight decay` must hold, but got weight_decays="
    ):
        fit_random_head(build(), [])


def test_features_that_are_not_finite_end_the_training_of_a_head() -> None:
    """A broken backbone is an error here, and not a useless teacher later."""
    features, labels = head_data(60, seed=0)
    features[3, 5] = math.inf
    fitting = fit_head(build(), features, labels, features, labels, weight_decays=[0.1], max_iterations=5)
    with pytest.raises(DivergedError, match=r"the head's validation NLL was nan with weight decay 0\.1"):
        list(fitting)


# --------------------------------------------------------------------------------------------------- prediction


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predictions_do_not_depend_on_the_batch(precision: str) -> None:
    """A picture's logits don't depend on its batch, and are float32; the network's statistics don't change."""
    network = build()
    before = weights_hash(network)
    whole, parts = (predict(network, DATA.test.images, size, precision) for size in (12, 5))
    assert whole.shape == (12, 6)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole, parts, rtol=1e-2 if precision == "bf16" else 1e-4, atol=1e-2)
    assert weights_hash(network) == before


# ------------------------------------------------------------------------------------------------------ rehearsal


def tried(network: Classifier, n: int = 2, guided: bool = False, **changes: Any) -> None:
    """Rehearses a training of `network` on its first pictures."""
    shown = Views(DATA.train.images[:n], DATA.padding, DATA.flip, seed=0)
    plain: dict[str, Any] = {
        "loss": ce,
        "optimizer": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        "schedule": constant,
        "precision": "fp32",
    }
    rehearse(network, shown, DATA.train.labels[:n], guided=guided, **plain | changes)


def with_dropout() -> Classifier:
    return networks.two_heads(lambda net, features, logits: logits)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_rehearsal_changes_nothing(precision: str) -> None:
    """Weights, statistics, gradients, mode and random numbers stay, and so does what is learnt afterwards."""
    plain, network = with_dropout(), with_dropout()
    before = torch.get_rng_state(), hash_tensors(network.state_dict())
    tried(network, precision=precision)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert hash_tensors(network.state_dict()) == before[1]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training
    first, second = ([epoch["train/loss"] for epoch in train(one, precision=precision)] for one in (network, plain))
    assert first == second
    assert hash_tensors(network.state_dict()) == hash_tensors(plain.state_dict()) != before[1]


def test_a_rehearsal_takes_the_step_that_training_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher's logits, loss, optimizer and schedule have their part in it; the copy's weights move."""
    seen: list[str] = []
    step = torch.optim.SGD.step

    def stepping(self: Any, *arguments: Any) -> Any:
        (weight, *_) = self.param_groups[0]["params"]
        old = weight.detach().clone()
        step(self, *arguments)
        seen.append("moved" if not torch.equal(old, weight) else "stood")

    monkeypatch.setattr(torch.optim.SGD, "step", stepping)

    def loss(logits: Tensor, answers: Tensor, labels: Tensor) -> Tensor:
        seen.append(f"{len(answers)} answers")
        return kd(logits, answers, labels, alpha=0.5, tau=2.0)

    tried(with_dropout(), guided=True, loss=loss)
    assert seen == ["2 answers", "moved"]


def test_one_value_a_channel_is_refused() -> None:
    """A batch of one whose maps have one pixel leaves batch norm nothing to do; two pictures, or larger maps, do."""
    network = build()
    with pytest.raises(UserError, match=r"^batch_size: `batch normalisation .* got batch_size=1. Set batch_size >= 2"):
        tried(network, n=1)
    tried(network, n=2)
    tried(build(stem="cifar"), n=1)


@pytest.mark.parametrize(
    ("answer", "changes", "found"),
    [
        (lambda net, f, y: (y, net.second(f)) if net.training else y, {}, "in training it returned a tuple"),
        (lambda net, f, y: y if net.training else y.squeeze(), {}, "in evaluation it returned a tensor"),
        (lambda net, f, y: y.detach(), {}, "2 pictures it ended in RuntimeError: element 0"),
        (lambda net, f, y: y, {"optimizer": torch.optim.LBFGS}, "TypeError: .*closure"),
        (lambda net, f, y: y, {"optimizer": torch.optim.Muon}, "ValueError: .*2D"),
        (lambda net, f, y: y, {"loss": lambda logits, answers, labels: logits.sum(1)}, "scalar outputs"),
        (lambda net, f, y: y, {"loss": lambda logits, answers, labels: answers.sum()}, "AttributeError: 'NoneType'"),
    ],
)
def test_a_training_that_cannot_work_is_refused(answer: Any, changes: dict[str, Any], found: str) -> None:
    """Auxiliary outputs, optimizers of another kind and losses without a gradient: each is refused in one line."""
    with pytest.raises(UserError, match=found) as error:
        tried(networks.two_heads(answer), **changes)
    assert "\n" not in str(error.value)


def test_what_cannot_be_copied_is_not_rehearsed() -> None:
    """Weights that torch computes from others can't be copied; such a network trains without a rehearsal."""
    network = with_dropout()
    network.net.drop = torch.nn.Sequential()
    network.net.own = network.head.weight * 2
    tried(network)


def test_what_takes_too_much_memory_is_the_runs_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's message names the settings that take less."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Fit, "_train_step", full)
    tried(with_dropout())
