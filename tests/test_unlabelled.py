"""Pictures without labels: the teacher's part hears them, the labels' part doesn't, and nothing else changes."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
import torch.nn.functional as F
from configurations import composed
from in_process import train_here
from PIL import Image
from test_paper_losses import LOSSES
from torch import Tensor

from kdsweep import data as datasets
from kdsweep import gradients, losses
from kdsweep.config import build
from kdsweep.config.checks import check
from kdsweep.data import Dataset
from kdsweep.models import Classifier
from kdsweep.schedules import constant
from kdsweep.system.errors import UserError
from kdsweep.system.tensor_files import hash_tensors
from kdsweep.teachers import Teacher
from kdsweep.training import Fit, Metrics
from kdsweep.unlabelled import with_folder
from kdsweep.views import Views, batch_order, labelled_in_batch, mixed_order, pass_of_epoch

OPTIONS: Any = {"val_size": 14, "split_seed": 0, "padding": 4, "flip": True}
TIMES = ("images_per_second", "epoch_seconds")


def small_data(train_fraction: float = 0.25, unlabelled: str = "rest") -> Dataset:
    """40 training pictures of 32 px, of which 10 have labels, and 6 classes."""
    options = {**OPTIONS, "train_fraction": train_fraction, "unlabelled": unlabelled}
    return datasets.synthetic(n_train=54, n_test=12, n_classes=6, image_size=32, seed=0, **options)


DATA = small_data()
N, ALL = len(DATA.train), DATA.n_shown
NETWORK = networks.build(6, seed=9, freeze="backbone", name="shufflenet_v2_x0_5")


def views(data: Dataset = DATA) -> Views:
    return Views(data.shown, data.padding, data.flip, 0, n_labelled=len(data.train))


def fit(
    tmp_path: Path, mode: str = "table", labels: Tensor | None = None, shown: Views | None = None, **changes: Any
) -> tuple[Classifier, Fit]:
    """A training of two epochs of four steps, on 2 pictures with labels and 8 without in each."""
    network = networks.build(6, 0, name="shufflenet_v2_x0_5")
    taught: dict[str, Any] = {
        "loss": functools.partial(losses.kd, alpha=0.6, tau=3.0),
        "teacher": Teacher(NETWORK, DATA, views(), tmp_path, mode, 10, "fp32"),
        "optimizer": functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        "schedule": constant,
        **{"epochs": 2, "batch_size": 10, "n_passes": 2, "order_seed": 0, "precision": "fp32"},
    }
    labels = DATA.shown_labels if labels is None else labels
    return network, Fit(network, views() if shown is None else shown, labels, **{**taught, **changes})


def told(network: Classifier, metrics: list[Metrics]) -> tuple[list[Metrics], str]:
    """The numbers of a training, but for its times."""
    plain = [{name: value for name, value in epoch.items() if name not in TIMES} for epoch in metrics]
    return plain, hash_tensors(network.net.state_dict())


# ----------------------------------------------------------------------------------------------------- pictures


def test_the_rest_are_the_training_pictures_that_a_fraction_leaves_out() -> None:
    """Each picture of the training split is there once, and none of validation or test is among them."""
    whole, none = small_data(1.0, "none"), small_data(0.25, "none")
    assert torch.equal(DATA.shown, whole.train.images)
    assert torch.equal(DATA.shown_labels, torch.cat([whole.train.labels[:N], torch.full((ALL - N,), -1)]))
    assert none.unlabelled is None
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(DATA, split).images, getattr(none, split).images)
    assert (DATA.mean, DATA.std) == (none.mean, none.std)


def test_a_fraction_that_leaves_none_out_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """With all training pictures there are none without a label, as in the last step of a study over fractions."""
    assert small_data(1.0).unlabelled is None
    assert "train_fraction=1.0 leaves no training pictures out" in capsys.readouterr().err


def test_they_are_a_part_of_the_data_and_none_of_the_teacher(tmp_path: Path) -> None:
    """Other pictures without labels are other data with other tables, and the same teacher."""
    assert DATA.unlabelled is not None
    other = dataclasses.replace(DATA, unlabelled=DATA.unlabelled.flip(0))
    none = dataclasses.replace(DATA, unlabelled=None)
    sets = (DATA, other, none)
    assert len({data.fingerprint for data in sets}) == 3
    assert none.fingerprint == none.labelled_fingerprint == DATA.labelled_fingerprint
    made = [Teacher(NETWORK, data, views(data), tmp_path, "table", 10, "fp32") for data in sets]
    assert len({teacher.features_key for teacher in made}) == 1
    assert len({teacher._logits_tables().key for teacher in made}) == 3


def painted(folder: Path, values: list[int]) -> Path:
    (folder / "deep").mkdir(parents=True)
    for value in values:
        Image.new("RGB", (40, 50), (value, 0, value)).save(folder / "deep" / f"{value}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_has_pictures_in_any_place_and_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are resized to the data set's size, sorted by name. Copies of test pictures are left out, which is said."""
    folder = painted(tmp_path / "more", [10, 30, 50])
    found = with_folder(DATA, str(folder), tmp_path / "cache").unlabelled
    assert found is not None
    assert found.shape == (3, 32, 32, 3)
    assert found[:, 5, 5, 0].tolist() == [10, 30, 50]
    test = dataclasses.replace(DATA.test, images=torch.cat([DATA.test.images[1:], found[1:2]]))
    again = with_folder(dataclasses.replace(DATA, test=test), str(folder), tmp_path / "cache").unlabelled
    assert again is not None
    assert again[:, 5, 5, 0].tolist() == [10, 50]
    assert "1 of 3 pictures are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent", "unlabelled: `unlabelled is none, rest or a folder of pictures` must hold, but there is no folder"),
        ("empty", "unlabelled: `the folder has pictures` must hold"),
        ("bad", "unlabelled: 1 of 1 pictures in .* cannot be read"),
    ],
)
def test_a_folder_without_pictures_is_refused(tmp_path: Path, source: str, message: str) -> None:
    """One line says which folder it is, and what is wrong."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no picture")
    with pytest.raises(UserError, match=message):
        with_folder(DATA, str(tmp_path / source), tmp_path / "cache")


# ------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize(("n_labelled", "n", "batch_size"), [(10, 40, 10), (4, 40, 16), (3, 1000, 50), (39, 40, 8)])
def test_each_batch_has_its_share_of_labels(n_labelled: int, n: int, batch_size: int) -> None:
    """It is that of all pictures, rounded up; every picture comes as often as any other, or once more."""
    order = mixed_order(0, 3, n_labelled, n, batch_size).view(-1, batch_size)
    own = labelled_in_batch(n_labelled, n, batch_size)
    assert own == min(math.ceil(batch_size * n_labelled / n), batch_size - 1)
    assert len(order) == n // batch_size
    assert bool((order[:, :own] < n_labelled).all())
    assert bool((order[:, own:] >= n_labelled).all())
    for first, end, kind in ((0, n_labelled, order[:, :own]), (n_labelled, n, order[:, own:])):
        counts = kind.flatten().bincount(minlength=n)[first:end]
        assert int(counts.max()) - int(counts.min()) <= 1
    seen = min(n_labelled, own * len(order))
    assert torch.equal(order[:, :own].flatten()[:seen], batch_order(0, 3, n_labelled)[:seen])


def test_the_order_is_a_function_of_the_seed_and_the_epoch() -> None:
    """The same again, and another one for another seed or epoch."""
    orders = [mixed_order(seed, epoch, 10, 40, 10) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert torch.equal(orders[0], orders[1])
    assert len({tuple(order.tolist()) for order in orders}) == 3


# ------------------------------------------------------------------------------------------------------- losses

SOME = torch.tensor([0, 1, 2, -1, -1, -1, -1])
DRAWN = torch.Generator().manual_seed(0)
STUDENT, TEACHER = (3 * torch.randn(7, 5, generator=DRAWN, dtype=torch.float64) for _ in range(2))

# The part of each loss that needs labels, by the settings that leave it alone, and its weight.
PARTS: dict[str, tuple[dict[str, float], float]] = {
    **{name: ({"alpha": 1.0}, 0.6) for name in ("kd", "kd_reverse", "kd_js", "kd_standardized", "mse")},
    **{name: ({"ce_weight": 0.0}, 1.0) for name in ("dist", "wttm")},
}


@pytest.mark.parametrize("name", PARTS)
def test_the_teacher_is_heard_on_all_and_the_labels_where_they_are(name: str) -> None:
    """The loss is that of the labels' part on pictures with labels, and of the teacher's part on all pictures."""
    loss: Any = LOSSES[name]
    alone, weight = PARTS[name]
    teachers = functools.partial(loss.func, **{**loss.keywords, **alone})(STUDENT, TEACHER, torch.zeros(7).long())
    share = loss.keywords.get("alpha", 1.0)
    expected = weight * F.cross_entropy(STUDENT[:3], SOME[:3]) + share * teachers
    torch.testing.assert_close(loss(STUDENT, TEACHER, SOME), expected)


@pytest.mark.parametrize("name", ["feature", "rkd", "sp"])
def test_features_are_compared_on_all_pictures(name: str) -> None:
    """So are those of pictures without labels, and the labels' part is that of the others."""
    weights = {
        "feature": {"weight": 0.7, "distance": "cosine"},
        "rkd": {"distance_weight": 0.7, "angle_weight": 2.0},
        "sp": {"weight": 0.7},
    }
    loss: Any = functools.partial(getattr(losses, name), **weights[name])
    example = losses.example_for(loss, 7)
    given = {key: torch.randn_like(value, dtype=torch.float64) for key, value in example.items()}
    found, alone = (loss(STUDENT, TEACHER, SOME, ce_weight=weight, **given) for weight in (1.0, 0.0))
    torch.testing.assert_close(found, F.cross_entropy(STUDENT[:3], SOME[:3]) + alone)
    every = loss(STUDENT, TEACHER, torch.zeros(7).long(), ce_weight=0.0, **given)
    torch.testing.assert_close(alone, every)


def test_cross_entropy_is_that_of_the_pictures_with_labels() -> None:
    """With and without smoothing, for labels and for shares of classes."""
    for smoothing in (0.0, 0.2):
        expected = F.cross_entropy(STUDENT[:3], SOME[:3], label_smoothing=smoothing)
        shares = losses.label_shares(STUDENT, SOME)
        for labels in (SOME, shares):
            torch.testing.assert_close(losses.cross_entropy(STUDENT, labels, smoothing), expected)


def test_pseudo_labels_are_the_teachers_answers() -> None:
    """The share alpha is of the class that the teacher finds likeliest; 0 is cross-entropy."""
    answers = F.cross_entropy(STUDENT, TEACHER.argmax(1))
    expected = 0.4 * F.cross_entropy(STUDENT[:3], SOME[:3]) + 0.6 * answers
    torch.testing.assert_close(losses.pseudo_labels(STUDENT, TEACHER, SOME, alpha=0.6), expected)
    student = STUDENT.clone().requires_grad_()
    assert torch.equal(losses.pseudo_labels(student, TEACHER, SOME, alpha=0.0), losses.ce(student, None, SOME))


def test_the_teachers_share_of_the_gradient_knows_them() -> None:
    """With alpha = 0 the teacher has no share, and the gradient is that of cross-entropy."""
    share, ratio = gradients.of_the_teacher(functools.partial(losses.kd, alpha=0.0, tau=3.0), STUDENT, TEACHER, SOME)  # type: ignore[misc]
    assert float(share) < 1e-6
    assert float(ratio) == pytest.approx(1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss=dkd"], "loss: `.*` must hold for data.unlabelled, but dkd needs one label for each picture"),
        (["loss=sum", "+loss@loss.terms.nkd.of=nkd", "+loss.terms.nkd.weight=1"], "weighted_sum needs one label"),
    ],
)
def test_losses_that_need_each_label_are_refused(words: list[str], message: str) -> None:
    """One line says which loss it is, and which others there are."""
    with pytest.raises(UserError, match=message):
        check(composed("experiment=debug", "data.unlabelled=rest", "data.train_fraction=0.5", *words))


def with_wrong_label(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return -student.log_softmax(1)[torch.arange(len(labels)), labels].mean()


def test_a_loss_of_ones_own_that_takes_minus_one_for_a_class_is_refused() -> None:
    """-1 would be the last class, silently."""
    from kdsweep.own_training import try_without_label

    with pytest.raises(UserError, match="for this one -1 is the last class"):
        try_without_label(with_wrong_label, "data.unlabelled", with_teacher=True)
    try_without_label(functools.partial(losses.kd, alpha=0.5, tau=4), "data.unlabelled", with_teacher=True)


# ----------------------------------------------------------------------------------------------------- training


def test_a_table_trains_as_the_teacher_itself_does(tmp_path: Path) -> None:
    """The table has a row for each picture, and the student's numbers are those with the teacher asked online."""
    trained = [
        told(network, list(fitting)) for network, fitting in (fit(tmp_path, mode) for mode in ("table", "online"))
    ]
    for of_table, online in zip(trained[0][0], trained[1][0], strict=True):
        assert of_table == pytest.approx(online, rel=1e-3)
    assert Teacher(NETWORK, DATA, views(), tmp_path, "table", 10, "fp32").missing_passes(2) == []


def test_a_training_can_be_resumed_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """It ends in the same bits as one that was never interrupted."""
    network, fitting = fit(tmp_path)
    whole = told(network, list(fitting))
    network, fitting = fit(tmp_path)
    first = pass_of_epoch(0, 0, 2)
    network.train()
    for _ in range(2):
        assert fitting._teacher is not None
        rows = fitting._order()[fitting._step * 10 : fitting._step * 10 + 10]
        fitting._train_step(rows, rows, first, fitting._teacher.answers(first))
        fitting._step += 1
    resumed, again = fit(tmp_path)
    again.load(copy.deepcopy(fitting.state()))
    assert told(resumed, list(again)) == whole


def test_accuracy_is_of_the_pictures_with_labels(tmp_path: Path) -> None:
    """Labels that the student never misses are an accuracy of 1, however many pictures have none."""
    network, fitting = fit(tmp_path, labels=torch.where(DATA.shown_labels < 0, -1, 2), epochs=1)
    with torch.no_grad():
        network.head.bias.fill_(-100.0)[2] = 100.0
    assert next(iter(fitting))["train/accuracy"] == 1.0


SHORT = (
    *("experiment=debug", "model.name=shufflenet_v2_x0_5", "precision=fp32", "epochs=1", "batch_size=16", "threads=1"),
    *("data.n_train=96", "data.val_size=32", "data.n_test=32", "data.train_fraction=0.25"),
)


def test_a_run_without_a_teacher_sees_the_labelled_ones_alone(tmp_path: Path) -> None:
    """It is bit for bit the run without the others, so that a study's baselines are what they say."""
    hashes = []
    for unlabelled in ("none", "rest"):
        config = composed(*SHORT, "loss=ce", "teacher=none", f"data.unlabelled={unlabelled}", f"paths.root={tmp_path}")
        data, shown = build.inputs(config)
        network, _ = build.student(config, data)
        assert not build.hears_unlabelled(config, data)
        fitting = Fit(
            network,
            shown,
            data.train.labels,
            loss=losses.ce,
            teacher=None,
            **{"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "schedule": constant},
            **{"epochs": 1, "batch_size": 8, "n_passes": 1, "order_seed": 0, "precision": "fp32"},
        )
        hashes.append(told(network, list(fitting)))
    assert hashes[0] == hashes[1]


def test_a_batch_of_one_is_refused(tmp_path: Path) -> None:
    """It has no room for both kinds."""
    found = train_here([*SHORT, "data.unlabelled=rest", "batch_size=1"], tmp_path)
    assert found.status == 2
    assert "batch_size: `a batch has room for a picture with a label and for one without` must hold" in found.error
