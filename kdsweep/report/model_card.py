"""The model card of an exported network: what it is, what its numbers mean, and how to load it."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kdsweep

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kdsweep.analysis.sorted_runs import Spread
    from kdsweep.tracking.run_records import RunRecord

TEMPLATE = "model_card.md.jinja"

# Metric, its name, the factor and the decimals by which it is shown.
NUMBERS = (
    ("test/accuracy", "test accuracy %", 100, 2),
    ("test/top5", "test top-5 accuracy %", 100, 2),
    ("test/nll", "test NLL", 1, 4),
    ("test/ece", "test expected calibration error %", 100, 2),
    ("test/agreement", "test agreement with the teacher %", 100, 2),
    ("val/accuracy", "validation accuracy %", 100, 2),
    ("val/nll", "validation NLL", 1, 4),
)

STAGES = {
    "single": "a single run",
    "baseline": "a baseline of a study",
    "search": "a trial of a study's search",
    "confirmation": "a fresh seed in a study's confirmation",
    "reproduction": "a reproduction of another run",
}


@dataclass(frozen=True)
class Check:
    """How the answers of an exported file compare with the network's own, on the same pictures in fp32.

    Attributes:
        pictures: How many, and what they are ("500 test pictures").
        difference: The largest absolute difference of two logits.
        agreement: Share of the pictures that get the same class, in [0, 1].
    """

    pictures: str
    difference: float
    agreement: float

    def __str__(self) -> str:
        return f"{self.pictures}, largest difference {self.difference:.1e}, same class {self.agreement:.2%}"


@dataclass(frozen=True)
class Card:
    """What a model card tells.

    Attributes:
        run: The run that trained the network.
        interface: What `config.json` holds.
        config: The run's configuration as YAML, masked.
        precision: In which the run measured its numbers: bf16 or fp32.
        parameters: How many the network has.
        checks: By the name of the exported file; empty where there is none.
        spread: Test accuracy over the fresh seeds of the run's arm, for a confirmation; None for other runs.
    """

    run: RunRecord
    interface: Mapping[str, Any]
    config: str
    precision: str
    parameters: int
    checks: Mapping[str, Check]
    spread: Spread | None


def render(card: Card) -> str:
    """The card as Markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Names come from outside; Markdown is read as HTML in the end.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=False,
        finalize=lambda value: value if isinstance(value, _Raw) else plain(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    params = {key: value for key, value in card.run.params.items() if value != "None"}
    return environment.get_template(TEMPLATE).render(
        card=card,
        run=card.run,
        role=(card.run.role or "student").replace("_", " "),
        stage=STAGES.get(card.run.stage or "", "a run"),
        params=params,
        numbers=list(numbers(card.run.metrics)),
        test_read=any(name.startswith("test/") for name in card.run.metrics),
        interface=card.interface,
        config=_Raw(_fenced(card.config, "yaml")),
        loading=_Raw(_fenced(loading(card.interface), "python")),
        classes=shortened(card.interface["classes"]),
        version=kdsweep.__version__,
    )


def numbers(metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Name and value of each number of a run that the card shows."""
    for metric, name, factor, decimals in NUMBERS:
        if metric in metrics:
            yield name, f"{factor * metrics[metric]:.{decimals}f}"


def loading(interface: Mapping[str, Any]) -> str:
    """Python that loads the weights with the library's own class; `pictures` are uint8 (B, H, W, 3)."""
    network, size = interface["architecture"], interface["input"]["resize"]
    timm = network["library"] == "timm"
    make = "timm.create_model" if timm else "torchvision.models.get_model"
    lines = [
        f"import json, pathlib, torch, {'timm' if timm else 'torchvision'}",
        "from safetensors.torch import load_file",
        'config = json.loads(pathlib.Path("config.json").read_text())',
        f'net = {make}(config["architecture"]["name"], num_classes=len(config["classes"]))',
    ]
    if network["stem"] == "cifar":
        convolution = "torch.nn.Conv2d(3, net.conv1.out_channels, 3, padding=1, bias=False)"
        lines.append(f"net.conv1, net.maxpool = {convolution}, torch.nn.Identity()")
    lines += ['net.load_state_dict(load_file("model.safetensors"))', "net.eval()", ""]
    lines.append("x = pictures.permute(0, 3, 1, 2) / 255")
    if size is not None:
        antialias = size < max(interface["input"]["height"], interface["input"]["width"])
        resize = f'interpolate(x, ({size}, {size}), mode="bilinear", antialias={antialias})'
        lines.append(f"x = torch.nn.functional.{resize}")
    lines.append('mean, std = (torch.tensor(config["input"][key]).view(3, 1, 1) for key in ("mean", "std"))')
    lines.append("logits = net((x - mean) / std)")
    return "\n".join(lines)


def shortened(names: Sequence[str], most: int = 20) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def plain(text: str) -> str:
    """A text without the characters that Markdown or HTML would take for markup, in one line."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*\[\]|])|(?<!\w)_|_(?!\w)", r"\\\g<0>", escaped)


class _Raw(str):
    """A text that goes into the card as it is."""


def _fenced(text: str, language: str) -> str:
    """A block of code whose fence is longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
