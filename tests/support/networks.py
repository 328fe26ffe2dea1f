"""Small networks and pictures for the tests of models and of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdsweep.models import Architecture, Classifier, Head

HALF = (0.5, 0.5, 0.5)


def architecture(**changes: Any) -> Architecture:
    """Describes torchvision's ResNet18 as published, with random weights, all trainable; with `changes`."""
    plain: dict[str, Any] = {
        "library": "torchvision",
        "name": "resnet18",
        "stem": "imagenet",
        "weights": None,
        "weights_by": "name",
        "head": "new",
        "freeze": "none",
        "input_size": None,
        "mean": None,
        "std": None,
    }
    return Architecture(**(plain | changes))


def build(n_classes: int = 10, seed: int = 0, **changes: Any) -> Classifier:
    """Builds the network that `architecture` describes, with weights drawn from `seed`."""
    torch.manual_seed(seed)
    return architecture(**changes).build(n_classes, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


class TwoHeads(nn.Module):
    """A convolution with batch norm and dropout, a head, and whatever `answer` makes of both in training or not.

    Args:
        answer: Takes this module, the features (B, 8) and the logits (B, 10), and returns what the network returns.
    """

    def __init__(self, answer: Callable[[TwoHeads, Tensor, Tensor], object]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.drop, self.head, self.second = nn.Dropout(0.5), Head(8, 10), nn.Linear(8, 10)
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        features = self.drop(self.norm(self.conv(x)).relu().mean((2, 3)))
        return self.answer(self, features, self.head(features))


def two_heads(answer: Callable[[TwoHeads, Tensor, Tensor], object], frozen: bool = False) -> Classifier:
    """Builds a small network of one's own; the second head is for `answer`."""
    torch.manual_seed(0)
    return Classifier(TwoHeads(answer), "head", frozen=frozen, input_size=None, mean=HALF, std=HALF)


def random_pictures(n: int = 4, height: int = 32, width: int = 32) -> Tensor:
    """Returns pictures (N, H, W, 3) uint8, the same ones each time."""
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], without: str) -> None:
    """Asserts that two state dicts are equal bit for bit, but for names that start with `without`."""
    kept = {name for name in theirs if not name.startswith(without)}
    assert kept == {name for name in ours if not name.startswith(without)}
    assert all(torch.equal(ours[name], theirs[name]) for name in kept)
