"""Tries which of torchvision's and timm's classifiers go in, as student and as teacher: docs/reference/networks.md.

    python scripts/networks_table.py --write        in some minutes
    python scripts/networks_table.py --all          each network of timm, in an hour

A network is built on torch's device "meta", where it costs neither memory nor arithmetic. As a student it takes a step
of training and an evaluation; as a teacher its head takes its features. One small network is tried for each module and
beginning of a name. What doesn't work on "meta" is tried on the CPU.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import timm
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kdsweep.models import Architecture, Classifier
from kdsweep.system.errors import UserError, one_line

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "networks.md"
N_CLASSES = 10
HALF = (0.5, 0.5, 0.5)

SECOND = "its logits are more than its head's, as with a second head"

# What a refusal says, and what the table says.
REASONS = {
    "one head": "several heads (distillation tokens)",
    "auxiliary outputs": "auxiliary outputs",
    "last layer is linear": "its last layer isn't one linear layer",
}

# Words for small networks, in the order in which they are taken to stand for their neighbours.
SIZES = ("test", "zepto", "atto", "femto", "pico", "nano", "lite", "xxs", "xx", "xs", "mini", "tiny", "small", "s", "t")


@dataclass(frozen=True)
class Tried:
    """What became of a network: "" if it goes in as a student or as a teacher, else why not."""

    student: str
    teacher: str


# The heads switch autocast off, and torch has none for "meta".
@mock.patch.object(torch, "autocast", mock.MagicMock())
def tried(library: str, name: str, size: int) -> Tried:
    """Tries one network with pictures of this size."""
    found = Tried("", "")
    for device in ("meta", "cpu"):
        try:
            network = _built(library, name, size, device)
        except UserError as error:
            return Tried(_reason(error), _reason(error))
        except Exception as error:
            found = Tried(_reason(error), _reason(error))
            continue
        found = Tried(_fault(_train, network, size), _fault(_teach, network, size))
        if found == Tried("", ""):
            break
    return found


def _built(library: str, name: str, size: int, device: str) -> Classifier:
    described = Architecture(library, name, "imagenet", None, "name", "new", "none", size, HALF, HALF)
    with torch.device(device):
        # Some processors can't train all networks in the other layout (numerics/strided_convolutions.py).
        return described.build(N_CLASSES, HALF, HALF).in_format("contiguous")


def _train(network: Classifier, size: int) -> None:
    network.check_size(size, size)
    network.train()
    logits = network(_pictures(network, 2, size))
    network.require_logits(logits, 2)
    F.cross_entropy(logits, torch.zeros(2, dtype=torch.int64, device=logits.device)).backward()


def _teach(network: Classifier, size: int) -> None:
    """Asks whether the logits are the head's, without numbers: they are the very tensor that it has returned."""
    made: list[Tensor] = []
    network.eval()
    hook = network.head.register_forward_hook(lambda *given: made.append(given[2]))
    with torch.no_grad():
        logits = network(_pictures(network, 1, size))
        hook.remove()
        features = network.features(_pictures(network, 1, size))
    if not any(logits is one for one in made) or features.shape != (1, network.head.in_features):
        raise UserError(SECOND)


def _pictures(network: Classifier, n: int, size: int) -> Tensor:
    return torch.zeros(n, size, size, 3, dtype=torch.uint8, device=network.mean.device)


def _fault(action: Callable[[Classifier, int], None], network: Classifier, size: int) -> str:
    try:
        action(network, size)
    except Exception as error:
        return SECOND if action is _teach else _reason(error)
    return ""


def _reason(error: Exception) -> str:
    text = one_line(error, whole=False)
    known = (reason for words, reason in REASONS.items() if words in text)
    return next(known, f"{type(error).__name__}: {text}"[:100].replace("|", "/"))


# ------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Group:
    """Networks of one family whose names begin alike, the one that is tried for all, and the size of its pictures."""

    family: str
    names: list[str]
    tried: str
    size: int


def torchvisions() -> Iterator[Group]:
    """Yields the groups of torchvision's classifiers."""
    names = torchvision.models.list_models(module=torchvision.models)
    families = {name: torchvision.models.get_model_builder(name).__module__.rpartition(".")[2] for name in names}
    for family, group in _groups(families):
        yield Group(family, group, min(group, key=_size), 224)


def timms(every: bool) -> Iterator[Group]:
    """Yields the groups of timm's; each network is a group of its own if `every` is true."""
    families = {name: timm.models._registry._model_to_module[name] for name in timm.list_models()}
    for family, group in ((families[name], [name]) for name in families) if every else _groups(families):
        name = min(group, key=_size)
        known = timm.get_pretrained_cfg(name, allow_unregistered=True)
        yield Group(family, group, name, 224 if known is None else known.input_size[1])


def _groups(families: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Yields a family and its networks whose names begin with the same letters; distilled ones are apart."""
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for name, family in families.items():
        beginning = re.sub(r"^(tf_|test_)?([a-z]*).*", r"\2", name)
        groups.setdefault((family, beginning, "distilled" in name), []).append(name)
    for (family, *_), group in groups.items():
        yield family, group


def _size(name: str) -> tuple[int, int, str]:
    """Returns what sorts names by the size of their networks, as far as they tell it."""
    words = name.split("_")
    smallest = next((rank for rank, word in enumerate(SIZES) if word in words), len(SIZES))
    numbers = [int(number) for number in re.findall(r"\d+", name)]
    return smallest, max(numbers, default=0), name


def table(groups: Iterable[Group], library: str) -> Iterator[str]:
    """Yields the lines of a library's table: a line for each family and verdict."""
    lines: dict[tuple[str, Tried], list[Group]] = {}
    for group in groups:
        found = tried(library, group.tried, group.size)
        said = found.student or "student", found.teacher or "teacher"
        print(library, group.tried, *said, sep=" | ", file=sys.stderr, flush=True)
        lines.setdefault((group.family, found), []).append(group)
    yield "| family | tried | networks | student | teacher | why not |"
    yield "|---|---|---|---|---|---|"
    for (family, found), alike in sorted(lines.items(), key=lambda line: line[0][0]):
        names = ", ".join(f"`{group.tried}`" for group in alike)
        number = sum(len(group.names) for group in alike)
        student, teacher = ("no" if fault else "yes" for fault in (found.student, found.teacher))
        yield f"| {family} | {names} | {number} | {student} | {teacher} | {found.student or found.teacher} |"


def page(every: bool) -> str:
    """Returns the page of the documentation."""
    versions = f"torchvision {torchvision.__version__} and timm {timm.__version__}"
    parts = [HEAD.format(versions=versions), "## torchvision", "", *table(torchvisions(), "torchvision")]
    return "\n".join([*parts, "", "## timm", "", *table(timms(every), "timm"), ""])


HEAD = """\
# Which networks go in

<!-- made by scripts/networks_table.py --write -->

A student (`model`) takes a step of training and an evaluation. A teacher (`teacher.network`) has one more rule: its
logits are made of its features by its head alone, because tables keep its features. kdsweep tries both before a run,
and refuses in one line what doesn't fit.

These are the networks of {versions}. A small network of each family and beginning of
a name was tried, and stands for all of them; the third column has their number.
"""


def main() -> None:
    """Prints the page, or writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(PAGE.parents[2])}")
    parser.add_argument("--all", action="store_true", help="try every network of timm")
    options = parser.parse_args()
    text = page(options.all)
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
