"""Mixing: torchvision's formulas, each picture with its own partner and share, and labels that follow the pixels."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from configurations import composed
from scipy import stats
from test_augmentations import draw, pictures
from test_paper_losses import LOSSES
from test_unlabelled import ALL, DATA, NETWORK, N, fit, told
from torch import Tensor
from torchvision.transforms import v2

from kdsweep import losses
from kdsweep.config import build
from kdsweep.config.checks import check
from kdsweep.mixing import LEVELS, CutMix, MixUp, drawn_shares
from kdsweep.own_training import try_mixed_labels
from kdsweep.system.errors import UserError
from kdsweep.teachers import Teacher
from kdsweep.training import _n_right
from kdsweep.views import Draw, Mixing, Views, mixed_labels, partners

MIXINGS: dict[str, Mixing] = {"mixup": MixUp(concentration=0.7), "cutmix": CutMix(concentration=1.0)}
N_CLASSES = 5


def by_torchvision(name: str, picture: Tensor, partner: Tensor, share: float, box: tuple[int, ...]) -> Tensor:
    """What torchvision makes of a picture (H, W, 3) and its partner, in float32, rounded."""
    pair = torch.stack([partner, picture]).permute(0, 3, 1, 2).float()  # the second is mixed with the first
    kind: Any = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[name]
    labels = torch.zeros(2)
    known = {"labels": labels, "batch_size": 2, "lam": share, "box": box, "lam_adjusted": share}
    mixed: Tensor = kind(num_classes=N_CLASSES).transform(pair, known)
    return mixed[1].permute(1, 2, 0).round().to(torch.uint8)


def torchvisions_box(numbers: Draw, index: int, lam: float, height: int, width: int) -> tuple[int, int, int, int]:
    """The rectangle that v2.CutMix makes of a share and a place: x1, y1, x2, y2."""
    y, x = (int(numbers.below(stream, side)[index]) for stream, side in ((2, height), (3, width)))
    r = 0.5 * math.sqrt(1.0 - lam)
    half_width, half_height = int(r * width), int(r * height)
    return max(x - half_width, 0), max(y - half_height, 0), min(x + half_width, width), min(y + half_height, height)


@pytest.mark.parametrize("shape", [(32, 32), (9, 7)])
@pytest.mark.parametrize("name", MIXINGS)
def test_mixing_is_torchvisions(name: str, shape: tuple[int, int]) -> None:
    """With the share and the place that were drawn, each picture is bit for bit what torchvision makes of it."""
    mixing, numbers, batch = MIXINGS[name], draw(), pictures(40, *shape)
    others = batch[partners(numbers, 40, 40)]
    found, shares = mixing.mixed(batch, others, numbers), mixing.shares(numbers, *shape)
    drawn = drawn_shares(numbers, MIXINGS[name].concentration)  # type: ignore[attr-defined]
    for i in range(40):
        box = torchvisions_box(numbers, i, float(drawn[i]), *shape)
        if name == "cutmix":
            assert float(shares[i]) == 1.0 - (box[2] - box[0]) * (box[3] - box[1]) / (shape[0] * shape[1])
        assert torch.equal(found[i], by_torchvision(name, batch[i], others[i], float(shares[i]), box))


def test_labels_are_torchvisions() -> None:
    """A label has the share of its picture, and the partner's the rest; both are one where they are the same class."""
    labels, others, shares = torch.tensor([0, 4, 2]), torch.tensor([1, 4, 3]), torch.tensor([0.25, 0.75, 1.0]).double()
    found = mixed_labels(labels, others, shares, N_CLASSES)
    for row, label, other, share in zip(found, labels, others, shares.tolist(), strict=True):
        pair = torch.stack([other, label])
        assert torch.equal(row, v2.MixUp(num_classes=N_CLASSES)._mixup_label(pair, lam=share)[1])


@pytest.mark.parametrize("concentration", [0.2, 1.0, 8.0])
def test_shares_have_their_distribution(concentration: float) -> None:
    """They are multiples of 1/256, each as frequent as Beta(c, c) says, within what chance explains."""
    n = 200_000
    counts = (drawn_shares(draw(n), concentration) * LEVELS).long().bincount(minlength=LEVELS + 1).double()
    edges = [0.0, *((level + 0.5) / LEVELS for level in range(LEVELS)), 1.0]
    expected = torch.tensor(stats.beta(concentration, concentration).cdf(edges)).diff() * n
    enough = expected > 5
    distance = float(((counts - expected)[enough] ** 2 / expected[enough]).sum())
    assert stats.chi2(int(enough.sum()) - 1).sf(distance) > 1e-4


@pytest.mark.parametrize("name", MIXINGS)
def test_a_mixed_view_is_its_pictures_own(name: str) -> None:
    """Picture and label don't depend on the batch, but on pass and view seed; the partner is mixed as its own view."""
    batch, labels = pictures(), torch.arange(40) % N_CLASSES
    views, plain = Views(batch, 2, True, 0, MIXINGS[name], name), Views(batch, 2, True, 0)
    every, some = torch.arange(40), torch.tensor([31, 2, 2, 17, 0])
    whole = views.batch(every, 3)
    assert torch.equal(views.batch(some, 3), whole[some])
    assert not torch.equal(whole, views.batch(every, 4))
    targets = views.targets(labels, every, views.key(3), N_CLASSES)
    assert torch.equal(views.targets(labels, some, views.key(3), N_CLASSES), targets[some])
    numbers = Draw(views.key(3), every)
    other = partners(numbers, 40, 40)
    assert torch.equal(MIXINGS[name].mixed(plain.batch(every, 3), plain.batch(other, 3), numbers), whole)
    assert torch.equal(mixed_labels(labels, labels[other], MIXINGS[name].shares(numbers, 32, 32), N_CLASSES), targets)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", MIXINGS)
def test_a_gpu_mixes_the_same(name: str) -> None:
    """Views and labels on CUDA equal the CPU's, so tables that were made on one serve the other."""
    found = []
    for device in ("cpu", "cuda"):
        views, rows = Views(pictures().to(device), 4, True, 0, MIXINGS[name]), torch.arange(40, device=device)
        targets = views.targets(rows % N_CLASSES, rows, views.key(3), N_CLASSES)
        found.append((views.batch(rows, 3).cpu(), targets.cpu()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", MIXINGS)
def test_no_shape_depends_on_what_is_drawn(name: str) -> None:
    """On a GPU nothing waits for a number: the same operations run on tensors that have no values."""
    batch, numbers = pictures().to("meta"), Draw(0, torch.arange(40, device="meta"))
    assert MIXINGS[name].mixed(batch, batch, numbers).shape == batch.shape
    assert MIXINGS[name].shares(numbers, 32, 32).shape == (40,)


def test_pictures_with_labels_are_mixed_with_such() -> None:
    """And those without with those without, so that a label is known whole or not at all."""
    numbers = Draw(3, torch.arange(40))
    other = partners(numbers, 10, 40)
    assert bool((other[:10] < 10).all())
    assert bool((other[10:] >= 10).all())
    assert torch.equal(other[:10], partners(numbers, 10, 10)[:10])
    targets = Views(DATA.shown, 4, True, 0, MixUp(1.0), "", n_labelled=N).targets(
        DATA.shown_labels, torch.arange(ALL), 7, 6
    )
    assert targets.sum(1).tolist() == pytest.approx([1.0] * N + [0.0] * (ALL - N))


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize("concentration", [0, -1.0, math.inf, "a"])
def test_a_concentration_out_of_range_is_refused(kind: type, concentration: object) -> None:
    """One line names the rule and the value."""
    with pytest.raises(UserError, match="concentration: `0 < concentration < inf` must hold"):
        kind(concentration)


# ------------------------------------------------------------------------------------------------------- losses

LINEAR = [name for name in LOSSES if name not in ("dkd", "nkd", "tf_kd")]


@pytest.mark.parametrize("name", [*LINEAR, "ce", "label_smoothing", "pseudo_labels"])
def test_a_mixed_label_is_both_labels_with_their_shares(name: str) -> None:
    """If all pictures have the share 1/4, a loss is 1/4 of that with their labels and 3/4 of that with the others."""
    own: dict[str, Any] = {
        "ce": losses.ce,
        "label_smoothing": functools.partial(losses.label_smoothing, smoothing=0.1),
        "pseudo_labels": functools.partial(losses.pseudo_labels, alpha=0.3),
    }
    loss = {**own, **LOSSES}[name]
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(8, N_CLASSES, generator=generator, dtype=torch.float64) for _ in range(2))
    labels, others = (torch.randint(0, N_CLASSES, (8,), generator=generator) for _ in range(2))
    mixed = mixed_labels(labels, others, torch.full((8,), 0.25).double(), N_CLASSES).double()
    expected = 0.25 * loss(student, teacher, labels) + 0.75 * loss(student, teacher, others)
    torch.testing.assert_close(loss(student, teacher, mixed), expected)


@pytest.mark.parametrize("name", ["dkd", "nkd", "tf_kd"])
def test_losses_that_need_one_label_are_refused(name: str) -> None:
    """One line says which loss it is, and which others there are."""
    message = f"loss: `.*` must hold for augment, but {name} needs one label for each picture. Choose another loss"
    with pytest.raises(UserError, match=message):
        check(composed("experiment=debug", "augment=cutmix", f"loss={name}"))
    with pytest.raises(UserError, match="needs one label for each picture, but the labels are those of mixed"):
        LOSSES[name](torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3) / 3)


def by_index(student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
    return -student.log_softmax(1)[torch.arange(len(student)), labels].mean()


def test_a_loss_of_ones_own_that_takes_whole_labels_alone_is_refused() -> None:
    """What it ended in is said."""
    with pytest.raises(UserError, match=r"for augment, but by_index ended in IndexError"):
        try_mixed_labels(by_index, "augment", with_teacher=False)
    try_mixed_labels(losses.ce, "augment", with_teacher=False)


# ----------------------------------------------------------------------------------------------------- training


def test_a_right_answer_is_the_class_with_the_largest_share() -> None:
    """That is what train/accuracy counts; a picture without a label counts nowhere."""
    logits = torch.eye(3)[[0, 1, 0, 0]]
    labels = torch.tensor([[0.7, 0.3, 0.0], [0.6, 0.4, 0.0], [0.2, 0.1, 0.7], [0.0, 0.0, 0.0]])
    assert int(_n_right(logits, labels)) == 1
    assert int(_n_right(logits, torch.tensor([0, 2, 2, -1]))) == 1


@pytest.mark.parametrize("name", MIXINGS)
def test_a_table_trains_as_the_teacher_itself_does(tmp_path: Path, name: str) -> None:
    """The teacher answers for the mixed pictures, from a table and online, with pictures that have no labels too."""
    views = Views(DATA.shown, 4, True, 0, MIXINGS[name], name, n_labelled=N)
    trained = []
    for mode in ("table", "online"):
        teacher = Teacher(NETWORK, DATA, views, tmp_path, mode, 10, "fp32")
        network, fitting = fit(tmp_path, teacher=teacher, shown=views)
        trained.append(told(network, list(fitting))[0])
    for of_table, online in zip(*trained, strict=True):
        assert of_table == pytest.approx(online, rel=1e-3)


@pytest.mark.parametrize("option", ["mixup", "cutmix"])
def test_the_options_are_in_the_tables_key(option: str) -> None:
    """Another concentration is another policy; without mixing it is that of before."""
    policies = []
    for words in ([], [f"augment={option}"], [f"augment={option}", "augment.concentration=0.5"]):
        config = composed("data=synthetic", *words)
        policies.append(build.inputs(config)[1].policy)
    assert policies[0] == {"padding": 2, "flip": False, "seed": 0}
    assert policies[1]["augmentation"] != policies[2]["augmentation"]
