"""Compares kdsweep's training with a bare loop over one prepared batch, in the same precision and layout.

On a GPU the bare loop replays a CUDA graph of the whole compiled step: forward, loss, backward and optimizer.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch

from benchmarks import parts
from benchmarks.measuring import Figure, Finding, positive, take_turns, timed
from kdsweep.config import build
from kdsweep.numerics.hardware import autocast, resolve_device, tf32
from kdsweep.numerics.small_convolutions import small_maps
from kdsweep.numerics.step_graph import WARM_UPS

LOSSES = {"ce": "scratch", "kd": "distill"}
GOALS = {128: 0.95, 512: 0.99}
GPU_GOALS = {128: 0.9, 512: 0.95}

# Steps of an epoch on a GPU, so that what an epoch needs once counts as little as in a real one.
GPU_STEPS = 100

GRAPH_LINE = "bare is a CUDA graph of the whole compiled step, replayed on one batch that lies preprocessed on the GPU."

# Steps of each side that don't count, because the first steps get their memory from the system, page by page.
SETTLING = 4


def bare_epochs(training: parts.Training, guided: bool) -> Callable[[], float]:
    """A side: makes the steps of an epoch, all on the same pictures, which are preprocessed and on the device."""
    pictures = training.data.train.images[: training.batch_size].to(training.device)
    labels = training.labels[: training.batch_size]
    inputs = training.network.preprocess(pictures)  # (B, 3, H, W)
    answers = torch.randn(len(labels), training.data.n_classes, device=training.device) if guided else None
    loss = build.component(training.cfg, "loss")
    optimizer = build.component(training.cfg, "optimizer")(list(training.network.parameters()))
    training.network.train()
    graphs = training.device.type == "cuda"
    network = torch.compile(training.network.net, dynamic=False) if graphs else training.network.net

    def step() -> None:
        with autocast(training.precision, training.device), small_maps(training.precision, training.device):
            logits = network(inputs)
        value = loss(logits, answers, labels)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    def compiled_loss(*batch: torch.Tensor | None) -> torch.Tensor:
        value: torch.Tensor = settled(*batch)
        return value

    if graphs:
        settled = loss
        loss = torch.compile(compiled_loss, dynamic=False)
        with tf32(training.precision, training.device):
            step = captured(step)

    def epoch() -> None:
        for _ in range(training.steps):
            step()
        parts.synchronised(training.device)

    return lambda: timed(epoch)


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Returns the replay of a CUDA graph of a step, after the steps that torch asks for before a capture."""
    stream, now = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(now)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            step()
    now.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


def measure(arguments: argparse.Namespace) -> Finding:
    """Training against a bare loop over one fixed batch, for several batch sizes, with and without a teacher"""
    figures, details, lines = [], {}, []
    # Any teacher will do, since a table has the same size for all of them.
    arguments.teacher = arguments.student
    on_gpu = resolve_device(arguments.device).type == "cuda"
    for batch in arguments.batch:
        for loss in arguments.loss:
            with parts.workplace(arguments) as folder:
                overrides = [f"batch_size={batch}"]
                if loss == "kd":
                    overrides.append("teacher.network.input_size=null")
                pictures = max(batch * GPU_STEPS if on_gpu else batch, arguments.pictures)
                cfg = parts.configuration(arguments, folder, LOSSES[loss], *overrides, pictures=pictures)
                training, bare = parts.Training(cfg), parts.Training(cfg)
                fit = training.fit(training.teacher() if loss == "kd" else None)
                sides = {"kdsweep": parts.epochs(fit), "bare": bare_epochs(bare, guided=loss == "kd")}
                for _ in range(math.ceil(SETTLING / training.steps)):
                    for side in sides.values():
                        side()
                turns = take_turns(f"{loss}, batch {batch}", sides, rounds=arguments.rounds, threads=arguments.threads)
            name = f"training against a bare loop, {loss}, batch {batch}"
            goal = (GPU_GOALS if on_gpu else GOALS).get(batch)
            figures.append(turns.ratio(name, "bare", "kdsweep", goal=goal, at_most=False))
            for name in sides:
                rate = training.pictures / turns.median(name)
                figures.append(Figure(f"{name}, {loss}, batch {batch}", rate, unit="pictures/s"))
            details[f"{loss} {batch}"] = {**turns.values(), "steps": training.steps}
            lines = [GRAPH_LINE] * on_gpu + [parts.conditions(training, arguments)]
    return Finding("limit: kdsweep's training against the machine's limit", figures, details, notes=lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts.add_arguments(parser, pictures=256)
    help_batch = "pictures a step; an epoch has at least one; default: 128 512"
    parser.add_argument("--batch", type=positive, nargs="+", default=list(GOALS), metavar="N", help=help_batch)
    parser.add_argument("--loss", nargs="+", choices=LOSSES, default=list(LOSSES), help="default: both")
