"""Renders the model card of an exported network: what it is, what its numbers mean, and how to load it."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kdsweep
from kdsweep.analysis.metrics import CARD
from kdsweep.analysis.sorted_runs import arm_label
from kdsweep.analysis.study_goals import ALPHA, TAU
from kdsweep.config.keys import teacher_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kdsweep.analysis.sorted_runs import Spread
    from kdsweep.tracking.run_records import RunRecord

TEMPLATE = "model_card.md.jinja"

STAGES = {
    "single": "a single run",
    "baseline": "a baseline of a study",
    "search": "a trial of a study's search",
    "confirmation": "a fresh seed in a study's confirmation",
    "reproduction": "a reproduction of another run",
}


@dataclass(frozen=True)
class Check:
    """How the logits of an exported file compare with those of the network, on the same pictures in fp32.

    Attributes:
        pictures: The number and kind of the pictures: "500 test pictures".
        difference: The largest absolute difference of two logits.
        agreement: The share of pictures that get the same class, in [0, 1].
    """

    pictures: str
    difference: float
    agreement: float

    def __str__(self) -> str:
        """The check in words."""
        return f"{self.pictures}, largest difference {self.difference:.1e}, same class {self.agreement:.2%}"


@dataclass(frozen=True)
class Card:
    """The content of a model card.

    Attributes:
        run: The run that trained the network.
        interface: The content of `config.json`.
        config: The run's configuration as YAML, without secrets.
        precision: The precision in which the run measured its numbers: bf16, tf32 or fp32.
        parameters: The number of the network's parameters.
        checks: Name of an exported file -> its check; empty if nothing but the weights was exported.
        spread: The test accuracy over the fresh seeds of the run's arm, for a confirmation run; None for other runs.
    """

    run: RunRecord
    interface: Mapping[str, Any]
    config: str
    precision: str
    parameters: int
    checks: Mapping[str, Check]
    spread: Spread | None


def render(card: Card) -> str:
    """Renders the card as Markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Names come from outside, and Markdown ends up as HTML.
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
        arm=arm_label(card.run.arm or "student"),
        stage=STAGES.get(card.run.stage or "", "a run"),
        params=params,
        teacher=teacher_name(params),
        alpha=params.get(ALPHA.key),
        tau=params.get(TAU.key, "-"),
        numbers=list(numbers(card.run.metrics)),
        test_read=any(name.startswith("test/") for name in card.run.metrics),
        interface=card.interface,
        config=_Raw(_fenced(card.config, "yaml")),
        loading=_Raw(_fenced(loading(card.interface), "python")),
        classes=shortened(card.interface["classes"]),
        version=kdsweep.__version__,
    )


def numbers(metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yields name and value of each number of a run that the card shows."""
    for metric in CARD:
        if metric.name in metrics:
            yield f"{metric.card} {metric.unit}".rstrip(), metric.shown(metrics[metric.name])


def loading(interface: Mapping[str, Any]) -> str:
    """Returns Python code that loads the weights with the library's own class; `pictures` are uint8 (B, H, W, 3)."""
    network, size = interface["architecture"], interface["input"]["resize"]
    package, made = _making(network)
    lines = [
        f"import json, pathlib, torch, {package}",
        "from safetensors.torch import load_file",
        'config = json.loads(pathlib.Path("config.json").read_text())',
        f"net = {made}",
    ]
    if network.get("stem") == "cifar":
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


def _making(network: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the module to import, and the expression that makes the network."""
    classes = 'len(config["classes"])'
    if "function" in network:
        asked, given = network["classes_argument"], network["arguments"]
        arguments = '**config["architecture"]["arguments"]'
        arguments += f", {asked}={classes}" if asked is not None and asked not in given else ""
        return network["function"].rpartition(".")[0], f"{network['function']}({arguments})"
    timm = network["library"] == "timm"
    make = "timm.create_model" if timm else "torchvision.models.get_model"
    return "timm" if timm else "torchvision", f'{make}(config["architecture"]["name"], num_classes={classes})'


def shortened(names: Sequence[str], most: int = 20) -> str:
    """Lists the first names, and says how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def plain(text: str) -> str:
    """Returns a text in one line, with the characters escaped that Markdown or HTML would take for markup."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*\[\]|])|(?<!\w)_|_(?!\w)", r"\\\g<0>", escaped)


class _Raw(str):
    """A text that goes into the card without being escaped."""


def _fenced(text: str, language: str) -> str:
    """Returns a block of code whose fence is longer than any inside it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
