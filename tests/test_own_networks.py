"""Claims about networks of the user's own: any nn.Module, described by its function, becomes a classifier."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import random_pictures
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.models import Head
from kdsweep.own_arguments import separated
from kdsweep.own_networks import SETTINGS, OwnNetwork, classes_argument, is_own
from kdsweep.system.errors import UserError

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(autouse=True)
def rng() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


class Tiny(nn.Module):
    """A network as anybody writes it; its layers stand in any order."""

    def __init__(self, num_classes: int = 10, width: int = 8, hidden: int = 4, answer: str = "logits") -> None:
        super().__init__()
        self.fc = nn.Linear(hidden, num_classes)
        self.hidden = nn.Linear(width, hidden)
        self.conv, self.answer = nn.Conv2d(3, width, 3, stride=2), answer

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(self.conv(x).mean((2, 3))).relu()
        x = self.fc(x) if self.answer != "unused" else x.repeat(1, 3)[:, :10]
        return x.softmax(1) if self.answer == "softmax" else x


class Flattened(nn.Module):
    """It flattens its maps by `view`, which no other layout than contiguous allows."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(4 * 8 * 8, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc(x.view(x.size(0), -1))


def fixed(width: int) -> nn.Module:
    """A function without a number of classes."""
    return Tiny(7, width)


def described(function: Callable[..., Any] = Tiny, /, **keys: Any) -> OwnNetwork:
    """What the configuration's keys describe."""
    arguments, settings = separated(function, keys, SETTINGS)
    return OwnNetwork(function, lambda **given: function(**arguments, **given), arguments, **settings)


def test_a_plain_module_becomes_a_classifier() -> None:
    """It gets the number of classes, normalised float pictures, and keeps its parameters' names and its bits."""
    torch.manual_seed(0)
    ours = described(width=6).build(10, HALF, (0.25, 0.25, 0.25)).eval()
    torch.manual_seed(0)
    theirs = Tiny(10, 6).eval()
    pictures = random_pictures()
    assert ours.net.state_dict().keys() == theirs.state_dict().keys()
    x = (pictures.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    torch.testing.assert_close(ours(pictures), theirs(x))
    torch.testing.assert_close(ours.head(ours.features(pictures)), ours(pictures))
    assert ours.features(pictures).shape == (4, 4)


@pytest.mark.parametrize("option", ["model", "teacher"])
def test_the_option_own_has_every_setting(option: str) -> None:
    """Its target is left to the user, and the settings say what they would be if they weren't there."""
    keys = OmegaConf.load(CONFIG_FOLDER / option / "own.yaml")
    plain = OmegaConf.to_container(keys.network if option == "teacher" else keys)
    assert plain.pop("_target_") == "???"
    assert tuple(plain) == SETTINGS
    assert plain == dict.fromkeys(SETTINGS) | ({"freeze": "backbone"} if option == "teacher" else {})


def test_the_number_of_classes_has_two_names() -> None:
    """A function without either is given none."""
    assert [classes_argument(function) for function in (Tiny, Flattened, fixed)] == ["num_classes", "n_classes", None]
    assert described(fixed, width=2).build(7, HALF, HALF).n_classes == 7


@pytest.mark.parametrize(
    ("hidden", "head", "expected"), [(4, None, "fc"), (10, None, "hidden"), (10, "fc", "fc"), (4, "fc", "fc")]
)
def test_the_head_is_the_last_linear_layer_that_fits_or_the_named_one(
    hidden: int, head: str | None, expected: str
) -> None:
    """Only layers with one output for each class count; a wrong guess shows in the forward pass or is named."""
    built = described(hidden=hidden, head=head).build(10, HALF, HALF)
    assert built.head_name == expected
    assert type(built.head) is Head


def test_a_head_inside_and_the_last_of_a_sequence_are_found() -> None:
    """Names have dots; what stands inside other modules counts."""

    def nested(n_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(12, 5), nn.Linear(5, n_classes)))

    assert described(nested).build(3, HALF, HALF).head_name == "1.1"


@pytest.mark.parametrize(
    ("function", "keys", "key", "message"),
    [
        (Tiny, {"widht": 3}, "widht", r"got widht=3\. Did you mean width\? Tiny takes num_classes, width, "),
        (Tiny, {"name": "resnet18", "stem": "cifar"}, None, r"kdsweep's own networks \(name, stem\): choose `own`"),
        (fixed, {}, "width", "`fixed gets all that it needs` must hold, but this argument is missing"),
        (Tiny, {"head": 3}, "head", "head is null or a module's name"),
        (Tiny, {"freeze": "all"}, "freeze", "freeze in {null, none, backbone}"),
        (Tiny, {"keep_head": True}, "keep_head", "keep_head = false without weights"),
        (Tiny, {"keep_head": "yes"}, "keep_head", "keep_head is null, true or false"),
        (Tiny, {"weights": "none/here.pth"}, "weights", "There is nothing at"),
        (Tiny, {"input_size": 0}, "input_size", "whole number > 0"),
        (Tiny, {"mean": [0.5]}, "mean", "three numbers"),
    ],
)
def test_a_wrong_description_is_refused_before_the_network_is_made(
    function: Callable[..., Any], keys: dict[str, Any], key: str | None, message: str
) -> None:
    """In one line, with its key."""
    with pytest.raises(UserError, match=message) as error:
        described(function, **keys)
    assert error.value.key == key


@pytest.mark.parametrize(
    ("function", "keys", "key", "message"),
    [
        (Tiny, {"num_classes": 3}, "num_classes", r"of the data's 10 classes` .* fc has 3.* Set num_classes=10\."),
        (fixed, {"width": 2}, "head", r"fc has 7.* Let fixed take the number of classes \(num_classes or n_classes\)"),
        (Tiny, {"head": "conv"}, "head", r"head is a linear layer of Tiny.* fc has 10, hidden has 4"),
        (Tiny, {"head": "hidden"}, "head", "hidden has 4"),
        (lambda: "text", {}, None, r"returns an nn\.Module` must hold, but it returned a str"),
        (lambda n_classes: nn.Linear(5, n_classes), {}, "head", "no linear layer inside"),
        (lambda n_classes: nn.Sequential(weight_norm(nn.Linear(5, n_classes))), {}, "head", r"plain nn\.Linear"),
    ],
)
def test_a_network_without_its_head_is_refused(
    function: Callable[..., Any], keys: dict[str, Any], key: str | None, message: str
) -> None:
    """The message has what there is, and a remedy."""
    with pytest.raises(UserError, match=message) as error:
        described(function, **keys).build(10, HALF, HALF)
    assert error.value.key == key


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"answer": "unused"}, r"`the head is the last linear layer that is used` must hold, but got head='fc'\. Name"),
        ({"answer": "softmax"}, "numbers >= 0 that sum to 1. Leave out its softmax"),
        ({"hidden": 10}, "that is used` must hold, but got head='hidden'"),
    ],
)
def test_one_forward_pass_shows_a_network_that_has_no_logits(keys: dict[str, Any], message: str) -> None:
    """A head that isn't called, one with another after it, and probabilities are refused before training."""
    built = described(**keys).build(10, HALF, HALF)
    with pytest.raises(UserError, match=message):
        built.check_size(16, 16)


def test_a_network_that_flattens_by_view_gets_contiguous_maps() -> None:
    """Most networks take channels_last, which is faster; this one would fail in it."""
    flattened, other = described(Flattened).build(5, HALF, HALF), described().build(5, HALF, HALF)
    for built in (flattened, other):
        assert built.format == "channels_last"
        built.check_size(16, 16)
    assert (flattened.format, other.format) == ("contiguous", "channels_last")
    assert flattened(random_pictures(height=16, width=16)).shape == (4, 5)


def test_a_setting_that_the_function_has_itself_is_the_functions() -> None:
    """A null leaves its default."""

    def mine(n_classes: int, input_size: int = 8, freeze: str = "no") -> nn.Module:
        return Tiny(n_classes, input_size)

    arguments, settings = separated(mine, {"_target_": "x", "input_size": 3, "freeze": None, "mean": None}, SETTINGS)
    assert (arguments, settings) == ({"input_size": 3}, {"mean": None})


def test_a_frozen_backbone_trains_its_head_alone() -> None:
    built = described(freeze="backbone").build(10, HALF, HALF)
    assert [name for name, p in built.net.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


def test_weights_come_from_a_file_with_or_without_the_head(tmp_path: Path) -> None:
    """Without, the classes of the file needn't be the data's."""
    torch.save(Tiny(3).state_dict(), path := tmp_path / "tiny.pth")
    saved = torch.load(path)
    fresh = described(weights=str(path)).build(10, HALF, HALF).net.state_dict()
    kept = described(weights=str(path), keep_head=True).build(3, HALF, HALF).net.state_dict()
    assert torch.equal(fresh["conv.weight"], saved["conv.weight"])
    assert torch.equal(kept["fc.weight"], saved["fc.weight"])
    assert described(weights=str(path), keep_head=True).brings_head
    assert not described(weights=str(path)).brings_head


def test_a_class_with_a_build_of_its_own_describes_a_network() -> None:
    """It is called as before there were other networks of one's own."""

    class Describing:
        def build(self) -> None: ...

    assert [is_own(function) for function in (Describing, Tiny, fixed)] == [False, True, True]


def test_missing_signature_is_no_obstacle() -> None:
    """A function in C may not tell its arguments, so its own errors have to do."""
    assert classes_argument(sys.getsizeof) is None
