"""Teachers: logits from tables are the network's, are found by all that made them, and train the same student."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import build, two_heads
from safetensors.torch import load_file
from torch import Tensor

from kdsweep import data as datasets
from kdsweep import teachers
from kdsweep.augmentations import color, cutout, trivial
from kdsweep.data import Dataset
from kdsweep.losses import kd
from kdsweep.mixing import CutMix, MixUp
from kdsweep.models import Classifier
from kdsweep.schedules import constant
from kdsweep.system.errors import UserError
from kdsweep.system.tensor_files import hash_tensors, write_tensors
from kdsweep.tables import TableMismatchError
from kdsweep.teachers import Teacher
from kdsweep.training import Fit
from kdsweep.views import Augmentation, Mixing, Views

PRECISIONS = ("fp32", "bf16")
# How far two right ways to compute logits may be apart, relative to the largest.
TOLERANCE = {"bf16": 2e-2, "fp32": 1e-4}


def small_data(seed: int = 0) -> Dataset:
    """32 pictures of 32 px for training, 16 and 12 for validation and test, 6 classes."""
    options: Any = {"val_size": 16, "train_fraction": 1.0, "split_seed": 0, "padding": 4, "flip": True}
    return datasets.synthetic(n_train=48, n_test=12, n_classes=6, image_size=32, seed=seed, **options)


DATA = small_data()
NETWORK = build(6, seed=9, freeze="backbone")
with torch.no_grad():
    NETWORK.head.weight.mul_(5)  # larger logits, which differ more from view to view


AUGMENTATIONS: dict[str, Augmentation | Mixing] = {
    "cutout": functools.partial(cutout, size=8, fill=128),
    "color": functools.partial(color, brightness=0.4, contrast=0.4, saturation=0.4),
    "trivial": trivial,
    "mixup": MixUp(concentration=1.0),
    "cutmix": CutMix(concentration=1.0),
}


def views(data: Dataset = DATA, seed: int = 0, padding: int = 4, flip: bool = True) -> Views:
    return Views(data.train.images, padding, flip, seed)


def teacher(
    root: Path,
    network: Classifier = NETWORK,
    data: Dataset = DATA,
    shown: Views | None = None,
    mode: str = "table",
    batch_size: int = 12,
    precision: str = "fp32",
    compiled: Any = False,
) -> Teacher:
    return Teacher(network, data, views(data) if shown is None else shown, root, mode, batch_size, precision, compiled)


def folder(made: Teacher, outputs: str) -> str:
    """The name of the folder of the teacher's logits or features."""
    root = made._root
    before = set(root.iterdir()) if root.exists() else set()
    made.answers(0) if outputs == "logits" else made.features("test")
    (new,) = set(root.iterdir()) - before
    return new.name


# ------------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize("precision", PRECISIONS)
def test_answers_from_a_table_are_the_networks(tmp_path: Path, precision: str) -> None:
    """For any pictures of a pass, in any order, the table has the logits that the network computes for their views."""
    indices, pass_index = torch.tensor([30, 2, 2, 17, 0]), 3
    pictures = views().batch(indices, pass_index)
    from_table = teacher(tmp_path, precision=precision).answers(pass_index)(indices, pictures)
    online = teacher(tmp_path, precision=precision, mode="online").answers(pass_index)(indices, pictures)
    assert from_table.dtype == online.dtype == torch.float32
    tolerance = TOLERANCE[precision] * float(online.abs().max())
    torch.testing.assert_close(from_table, online, rtol=0, atol=tolerance)
    # The comparison means something, because other views get other logits.
    other_pass = teacher(tmp_path, precision=precision).answers(pass_index + 1)(indices, pictures)
    assert (other_pass - online).abs().max() > 3 * tolerance


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_teacher_answers_for_augmented_pictures(tmp_path: Path, name: str) -> None:
    """A table holds what it says online, for each augmentation; another one, or other settings, has another table."""
    indices = torch.tensor([30, 2, 2, 17, 0])
    policies = ({"_target_": name, "size": size} for size in (8, 9))
    shown, other = (Views(DATA.train.images, 4, True, 0, AUGMENTATIONS[name], policy) for policy in policies)
    pictures = shown.batch(indices, 3)
    ours = teacher(tmp_path, shown=shown)
    online = teacher(tmp_path, shown=shown, mode="online").answers(3)(indices, pictures)
    torch.testing.assert_close(ours.answers(3)(indices, pictures), online, rtol=1e-4, atol=1e-4)
    plain = teacher(tmp_path).answers(3)(indices, pictures)
    assert (plain - online).abs().max() > 1e-2
    assert len({teacher(tmp_path, shown=v)._logits_tables().key for v in (shown, other, views())}) == 3


def test_a_table_is_filled_from_all_pictures_in_order(tmp_path: Path) -> None:
    """Row i of the file has the logits for picture i's view, in float32, whatever the batch size."""
    teacher(tmp_path, batch_size=5).answers(2)
    (path,) = tmp_path.glob("*/pass-0002.safetensors")
    with torch.inference_mode():
        expected = NETWORK.eval()(views().batch(torch.arange(32), 2))
    torch.testing.assert_close(load_file(path)["outputs"], expected, rtol=1e-4, atol=1e-5)


def test_online_answers_keep_no_table(tmp_path: Path) -> None:
    """The mode online writes nothing."""
    teacher(tmp_path, mode="online").answers(0)(torch.arange(2), views().batch(torch.arange(2), 0))
    assert list(tmp_path.iterdir()) == []


def test_only_passes_that_are_asked_for_are_computed(tmp_path: Path) -> None:
    """A run that stops early causes only the passes that it has used."""
    ours = teacher(tmp_path)
    for pass_index in (4, 1, 4):
        ours.answers(pass_index)
    found = sorted(path.name for path in tmp_path.glob("*/*.safetensors"))
    assert found == ["pass-0001.safetensors", "pass-0004.safetensors"]


def test_a_teacher_says_what_it_has_still_to_compute(tmp_path: Path) -> None:
    """Missing are passes and features without a table; in the mode online no pass is kept, so none is missing."""
    ours = teacher(tmp_path)
    ours.answers(2)
    ours.features("validation")
    for one in (ours, teacher(tmp_path)):
        assert one.missing_passes(4) == [0, 1, 3]
        assert one.missing_features() == ["train", "test"]
    assert teacher(tmp_path, mode="online").missing_passes(4) == []
    assert teacher(tmp_path / "elsewhere").missing_passes(2) == [0, 1]


def test_a_question_about_passes_leaves_the_head_free(tmp_path: Path) -> None:
    """Asking what is missing doesn't fix the head: the logits are those of the head that is trained later."""
    network = build(6, seed=9)
    ours = teacher(tmp_path, network)
    ours.missing_passes(1)
    with torch.no_grad():
        network.head.weight.mul_(-1)
        network.head.bias.mul_(-1)
    ours.answers(0)
    assert teacher(tmp_path, network).missing_passes(1) == []
    assert teacher(tmp_path, build(6, seed=9)).missing_passes(1) == [0]


def test_features_are_what_the_head_takes(tmp_path: Path) -> None:
    """The head makes the network's logits of the features of un-augmented pictures."""
    ours = teacher(tmp_path)
    for split in ("train", "validation", "test"):
        pictures = getattr(DATA, split).images
        assert ours.features(split).shape == (len(pictures), 512)
        with torch.inference_mode():
            torch.testing.assert_close(ours.logits(split), NETWORK.eval()(pictures), rtol=1e-4, atol=1e-5)


def test_a_teacher_is_frozen(tmp_path: Path) -> None:
    """The network is in evaluation mode, and none of its parameters needs a gradient, the head's included."""
    network = build(6, seed=1)
    teacher(tmp_path, network)
    assert not network.training
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_time_spent_on_tables_is_counted(tmp_path: Path) -> None:
    """`seconds` grows when a table is filled or read."""
    ours = teacher(tmp_path)
    assert ours.seconds == 0
    ours.answers(0)
    after_pass = ours.seconds
    ours.features("test")
    assert 0 < after_pass < ours.seconds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "cached"}, r"mode: `mode in \('table', 'online'\)` must hold, but got mode='cached'"),
        ({"batch_size": 0}, "batch_size: `batch_size >= 1` must hold, but got batch_size=0"),
        ({"batch_size": 2.5}, "batch_size: `batch_size >= 1` must hold, but got batch_size=2.5"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """The error names rule, value and key."""
    with pytest.raises(UserError, match=message):
        teacher(tmp_path, **changes)


# ----------------------------------------------------------------------------------------------------- identity


@pytest.mark.slow
def test_logits_belong_to_all_that_made_them(tmp_path: Path) -> None:
    """Another head, backbone, precision, input size, normalisation, data set or view policy makes other tables."""
    other_head = build(6, seed=9, freeze="backbone")
    other_statistics = build(6, seed=9, freeze="backbone")
    other_statistics.net.get_buffer("bn1.running_mean").add_(0.1)
    other_statistics.head.load_state_dict(NETWORK.head.state_dict())
    made = [
        teacher(tmp_path),
        teacher(tmp_path, other_head),
        teacher(tmp_path, other_statistics),
        teacher(tmp_path, build(6, seed=10)),
        teacher(tmp_path, build(6, seed=9, input_size=40)),
        teacher(tmp_path, build(6, seed=9, mean=(0.5, 0.5, 0.5))),
        teacher(tmp_path, build(6, seed=9, std=(0.5, 0.5, 0.5))),
        teacher(tmp_path, precision="bf16"),
        teacher(tmp_path, data=small_data(seed=1)),
        teacher(tmp_path, shown=views(seed=1)),
        teacher(tmp_path, shown=views(padding=3)),
        teacher(tmp_path, shown=views(flip=False)),
    ]
    # `folder` fails if a teacher finds the folder of another one.
    assert len({folder(one, "logits") for one in made}) == len(made)


def test_features_belong_to_the_backbone(tmp_path: Path) -> None:
    """Features are shared by heads and view policies, but not by backbones, preprocessings, precisions or data sets."""
    other_head = build(6, seed=9)
    key = teacher(tmp_path).features_key
    for same in (teacher(tmp_path, other_head), teacher(tmp_path, shown=views(seed=1, padding=3, flip=False))):
        assert same.features_key == key
    others = [
        teacher(tmp_path, build(6, seed=10)),
        teacher(tmp_path, build(6, seed=9, input_size=40)),
        teacher(tmp_path, build(6, seed=9, mean=(0.5, 0.5, 0.5))),
        teacher(tmp_path, precision="bf16"),
        teacher(tmp_path, data=small_data(seed=1)),
    ]
    assert len({key, *(other.features_key for other in others)}) == 1 + len(others)
    assert folder(teacher(tmp_path), "features") == key


def test_the_same_teacher_finds_its_tables(tmp_path: Path) -> None:
    """A network built again from the same seed reads the tables of the first, with any batch size."""
    teacher(tmp_path, build(6, seed=9)).answers(0)
    (path,) = tmp_path.glob("*/*.safetensors")
    written = path.stat().st_mtime_ns
    again = teacher(tmp_path, build(6, seed=9), small_data(), batch_size=7)
    again.answers(0)
    assert [(found, found.stat().st_mtime_ns) for found in tmp_path.glob("*/*.safetensors")] == [(path, written)]


def test_a_head_trained_before_the_first_answer_counts(tmp_path: Path) -> None:
    """The logits are those of the head at the first use, and not of the head that the teacher was built with."""
    network = build(6, seed=9)
    ours = teacher(tmp_path, network)
    ours.features("train")
    with torch.no_grad():
        network.head.weight.mul_(-1)
        network.head.bias.mul_(-1)
    indices = torch.arange(4)
    theirs = teacher(tmp_path, build(6, seed=9)).answers(0)(indices, DATA.train.images)
    torch.testing.assert_close(ours.answers(0)(indices, DATA.train.images), -theirs)


def test_features_without_room_on_the_gpu_give_the_same_head_and_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor trains the head, from all of them, and the GPU gets them batch by batch for their logits."""
    ours = teacher(tmp_path)
    known, logits = ours.head_data(), ours.logits("train")
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(teachers, "stays", lambda *own, copies=1, so: asked.append((own[2], copies)) or True)
    again = ours.head_data()
    assert {tensor.device.type for tensor in again} == {"cpu"}
    assert all(torch.equal(*pair) for pair in zip(known, again, strict=True))
    parts: list[int] = []
    head = ours._head
    monkeypatch.setattr(ours, "_head", lambda features: parts.append(len(features)) or head(features))
    torch.testing.assert_close(ours.logits("train"), logits)
    assert parts == [12, 12, 8]
    assert asked == [("teacher's features of the train pictures", 2), ("teacher's features of the train pictures", 1)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_table_of_another_network_is_refused(tmp_path: Path, precision: str) -> None:
    """A whole file with a right checksum but another network's logits ends the run; the error names the file."""
    teacher(tmp_path, precision=precision).answers(0)
    (path,) = tmp_path.glob("*/*.safetensors")
    with torch.inference_mode():
        wrong = build(6, seed=10).eval()(views().batch(torch.arange(32), 0))
    write_tensors(path, {"outputs": wrong})
    with pytest.raises(TableMismatchError, match=r"pass-0000\.safetensors by .* another network or library"):
        teacher(tmp_path, precision=precision).answers(0)


# ----------------------------------------------------------------------------------------------------- training


def train(guide: Teacher, loss: Callable[..., Tensor], precision: str = "fp32") -> list[float]:
    """The losses of two epochs of a student under `guide`."""
    student = build(6, seed=1)
    fitting = Fit(
        student,
        views(),
        DATA.train.labels,
        loss=loss,
        teacher=guide,
        optimizer=functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        schedule=constant,
        epochs=2,
        batch_size=16,
        n_passes=2,
        order_seed=2,  # its first epoch trains on the second pass
        precision=precision,
    )
    return [metrics["train/loss"] for metrics in fitting]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_table_and_online_train_the_same_student(tmp_path: Path, precision: str) -> None:
    """A student's losses are the same whether its teacher's logits come from a table or from the network.

    Both ask the teacher about 16 pictures at a time. Some processors round differently for other batch sizes, and even
    this short training amplifies a difference in the last bit of a logit to 1 % of the loss.
    """
    loss = functools.partial(kd, alpha=1.0, tau=2.0)
    from_table = train(teacher(tmp_path, batch_size=16, precision=precision), loss, precision)
    online = train(teacher(tmp_path, batch_size=16, precision=precision, mode="online"), loss, precision)
    assert from_table == pytest.approx(online, rel=TOLERANCE[precision])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["table", "online"])
def test_a_loss_may_keep_the_answers_for_its_gradient(tmp_path: Path, mode: str) -> None:
    """A new loss, such as the squared difference of logits, works in either mode."""
    losses = train(teacher(tmp_path, mode=mode), lambda ours, theirs, _: F.mse_loss(ours, theirs))
    assert all(loss > 0 for loss in losses)


@pytest.mark.slow
def test_training_a_student_leaves_the_teacher_alone(tmp_path: Path) -> None:
    """No bit of the teacher changes, batch-norm statistics included, and no gradient reaches it."""
    network = build(6, seed=9)
    before = hash_tensors(network.net.state_dict())
    train(teacher(tmp_path, network, mode="online"), functools.partial(kd, alpha=0.5, tau=2.0))
    assert hash_tensors(network.net.state_dict()) == before
    assert all(parameter.grad is None for parameter in network.parameters())


# ------------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize(
    ("answer", "takes"),
    [
        (lambda net, features, logits: logits, True),
        # Its last step commutes with a linear head, so tables hold its logits but for rounding.
        (lambda net, features, logits: torch.stack([logits, logits]).mean(0), True),
        (lambda net, features, logits: logits + net.second(features), False),
        (lambda net, features, logits: logits + net.second.weight.sum(), False),
        (lambda net, features, logits: logits.flatten(1) if logits.shape[1] == 10 else features[:, :3], False),
    ],
)
def test_a_teacher_is_tried_by_the_head_of_its_features(tmp_path: Path, answer: Any, takes: bool) -> None:
    """A network whose logits are more than its head's is refused before a table is made."""
    network = two_heads(answer, frozen=True)
    if takes:
        teacher(tmp_path, network)
        return
    with pytest.raises(UserError, match=r"^network: .* by its head alone` must hold.* second head\?") as error:
        teacher(tmp_path, network)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_second_head_of_timms_is_no_teacher(tmp_path: Path) -> None:
    """Volo adds a second head's logits: it can be a student, and is refused as a teacher."""
    volo = build(6, library="timm", name="volo_d1_224", input_size=224)
    volo.check_size(32, 32)
    with pytest.raises(UserError, match=r"^network: .* these aren't \(RuntimeError: The size"):
        teacher(tmp_path, volo)
