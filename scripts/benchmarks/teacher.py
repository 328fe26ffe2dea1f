"""Compares the teacher's passes in kdsweep, compiled or not, with the plain network in speed and in logits."""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import parts
from benchmarks.measuring import Figure, Finding, positive, take_turns, timed
from kdsweep.config import build
from kdsweep.models import Classifier
from kdsweep.numerics.compiling import WORTH_FLOPS, compiled_features, flops, has_compiler
from kdsweep.numerics.hardware import autocast
from kdsweep.numerics.rounding_noise import rounding_noise
from kdsweep.table_check import NOISE_ALLOWED

GOAL = 5.0

Forward = Callable[[Tensor], Tensor]


def plain(network: Classifier, precision: str) -> Forward:
    """Returns the forward pass of most code: eager, in torch's default layout."""
    own = copy.deepcopy(network).to(memory_format=torch.contiguous_format)

    def forward(pictures: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(precision, pictures.device):
            return own.net(own.preprocess(pictures).contiguous()).float()

    return forward


def product(network: Classifier, precision: str) -> Forward:
    """Returns the forward pass of kdsweep's short passes and online teachers."""

    def forward(pictures: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(precision, pictures.device):
            return network.head(network.features(pictures))

    return forward


def compiled(network: Classifier, precision: str, batch_size: int) -> Forward:
    """Returns the compiled forward pass of kdsweep's long passes."""
    features = compiled_features(network, precision, batch_size)

    def forward(pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            return network.head(features(pictures))

    return forward


def measure(arguments: argparse.Namespace) -> Finding:
    """Pictures per second of a teacher's pass against eager fp32 and bf16, and how far the logits differ"""
    figures = []
    with parts.workplace(arguments) as folder:
        size = f"teacher.network.input_size={arguments.side}"
        cfg = parts.configuration(arguments, folder, "distill", size, pictures=max(arguments.batch, 2 * parts.CLASSES))
        device, precision = build.hardware(cfg)
        data, _ = build.inputs(cfg)
        network = build.untrained_teacher(cfg).network
        pictures = data.train.images[: arguments.batch].to(device)
        forwards = {"eager fp32": plain(network, "fp32"), "product, short pass": product(network, precision)}
        # Machines that emulate bf16 take many times as long, so they are left out.
        if precision == "bf16":
            forwards["eager bf16"] = plain(network, "bf16")
        compile_seconds = math.nan
        if has_compiler():
            forwards["product, long pass"] = compiled(network, precision, arguments.batch)
            compile_seconds = timed(lambda: forwards["product, long pass"](pictures))
        turns = take_turns("teacher", {name: _side(forward, pictures) for name, forward in forwards.items()},
                           rounds=arguments.rounds, threads=arguments.threads)  # fmt: skip
        answers = {name: forward(pictures) for name, forward in forwards.items()}
        pass_flops = flops(network, *pictures.shape[1:3])
    best = "product, long pass" if has_compiler() else "product, short pass"
    goal = GOAL if arguments.side == parts.LARGE_SIDE else None
    figures.append(turns.ratio(f"{best}, times eager fp32", "eager fp32", best, goal=goal, at_most=False))
    figures += [
        turns.ratio(f"{best}, times {other}", other, best) for other in forwards if other not in (best, "eager fp32")
    ]
    figures += [Figure(name, len(pictures) / turns.median(name), unit="pictures/s") for name in forwards]
    spread = _distance(answers["eager fp32"], answers["eager fp32"].mean(0))
    with rounding_noise(network.net, precision, seed=0, but=network.head):
        noise = _distance(product(network, precision)(pictures), answers["product, short pass"])
    for name in forwards:
        if name != "eager fp32":
            distance = _distance(answers[name], answers["eager fp32"])
            figures.append(Figure(f"distance of logits from eager fp32, of their spread, {name}", distance / spread))
    if "product, long pass" in answers:
        distance = _distance(answers["product, long pass"], answers["product, short pass"])
        name = "distance of a long pass's logits from a short one's, in rounding noise"
        figures.append(Figure(name, distance / noise, NOISE_ALLOWED))
    figures.append(Figure("compiling", compile_seconds, unit="s"))
    figures.append(Figure("pictures from which a pass is compiled", math.ceil(WORTH_FLOPS / pass_flops)))
    rate = flops_rate(arguments.threads)
    figures.append(
        Figure(
            "eager fp32's share of what matrix products reach here",
            pass_flops * len(pictures) / turns.median("eager fp32") / rate,
        )
    )
    notes = [
        f"{arguments.teacher} at {arguments.side} px in batches of {arguments.batch}, {device.type}, {precision}, "
        f"{arguments.threads} thread{'s' * (arguments.threads > 1)}. Matrix products in fp32 run at {rate / 1e9:.0f} "
        "GFLOP/s, which limits what can be gained over eager fp32 without bf16.",
    ]
    return Finding("teacher: a pass", figures, turns.values(), notes=notes)


def flops_rate(threads: int) -> float:
    """Measures the floating-point operations per second of large fp32 matrix products."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right = torch.randn(2, 1024, 1024)
        seconds = min(timed(lambda: left @ right) for _ in range(5))
    finally:
        torch.set_num_threads(before)
    return 2 * 1024**3 / seconds


def _side(forward: Forward, pictures: Tensor) -> Callable[[], float]:
    return lambda: timed(lambda: forward(pictures).cpu())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts.add_arguments(parser)
    parser.add_argument("--batch", type=positive, default=16, help="pictures at a time; default: 16")
    parser.add_argument("--side", type=positive, default=parts.LARGE_SIDE, metavar="PIXELS", help="default: 224")


def _distance(found: Tensor, expected: Tensor) -> float:
    """Returns the root mean square of the differences."""
    return float((found - expected).square().mean().sqrt())
