"""The precision and the memory layout in which a network trains fastest on this machine: measured once, and remembered.

The first candidate is what the hardware suggests, and the clock has to contradict it clearly: among near equals a
measurement would choose one today and another tomorrow, and the last bits of every weight with it.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsweep.convolutions import small_maps
from kdsweep.files import atomic_path, hash_identity, locked
from kdsweep.hardware import autocast, is_out_of_memory
from kdsweep.models import Classifier
from kdsweep.progress import note, progress

# Steps of a training from which a measurement is worth its time: it takes `1 + ROUNDS` of them for each candidate.
WORTH_STEPS = 2000

ROUNDS = 5

# How many times faster than the first candidate another must be.
MARGIN = 1.1


@dataclass(frozen=True)
class Arithmetic:
    """How a training computes.

    Attributes:
        precision: bf16 or fp32.
        memory_format: channels_last or contiguous.
    """

    precision: str
    memory_format: str

    def __str__(self) -> str:
        return f"{self.precision} {self.memory_format}"


def fastest(
    candidates: Sequence[Arithmetic],
    identity: Mapping[str, Any],
    folder: Path,
    step: Callable[[Arithmetic], Callable[[], None]],
) -> Arithmetic:
    """The candidate whose training steps take the least time, or the first, where none is `MARGIN` times as fast.

    Args:
        identity: What the answer depends on, JSON-able: machine, versions, network, size of pictures and batches.
        folder: Where answers are remembered; one process measures, and the others wait for it.
        step: Makes what is timed: a training step of a candidate.
    """
    path = folder / f"{hash_identity({'candidates': [*map(str, candidates)], **identity})}.json"
    known = _remembered(path, candidates)
    if known is not None:
        return known
    with locked(path.with_suffix(".lock")):
        known = _remembered(path, candidates)
        if known is None:
            seconds = _measure(candidates, step)
            best = min(seconds, key=lambda candidate: seconds[candidate])
            known = best if seconds[candidates[0]] >= MARGIN * seconds[best] else candidates[0]
            shown = ", ".join(f"{1000 * took:.0f} ms in {candidate}" for candidate, took in seconds.items())
            note(f"A training step takes {shown}: runs of this network compute in {known}.")
            measured = {str(candidate): took for candidate, took in seconds.items()}
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps({**asdict(known), "seconds": measured, "of": identity}, indent=1))
    return known


def training_step(network: Classifier, pictures: Tensor, labels: Tensor, arithmetic: Arithmetic) -> Callable[[], None]:
    """Forward and backward passes of a copy of `network`, which keeps its weights.

    Args:
        pictures: (B, H, W, 3) uint8, on the network's device.
        labels: (B,) int64.
    """
    own = copy.deepcopy(network).in_format(arithmetic.memory_format).train()

    def step() -> None:
        with autocast(arithmetic.precision, pictures.device), small_maps(arithmetic.precision, pictures.device):
            logits = own(pictures)
        F.cross_entropy(logits, labels).backward()
        own.zero_grad(set_to_none=True)
        if pictures.device.type == "cuda":
            torch.cuda.synchronize(pictures.device)

    return step


def _measure(
    candidates: Sequence[Arithmetic], step: Callable[[Arithmetic], Callable[[], None]]
) -> dict[Arithmetic, float]:
    """The median seconds of each candidate's step, in turns: what disturbs one disturbs all.

    Candidates but the first are left out where they take more memory than there is.
    """
    steps: dict[Arithmetic, Callable[[], None]] = {}
    for candidate in candidates:
        try:
            first = step(candidate)
            first()  # which also sets up what later ones find ready
        except (MemoryError, RuntimeError) as error:
            if candidate == candidates[0] or not is_out_of_memory(error):
                raise
        else:
            steps[candidate] = first
    seconds: dict[Arithmetic, list[float]] = {candidate: [] for candidate in steps}
    with progress("precision and memory format", total=ROUNDS * len(steps)) as advance:
        for _ in range(ROUNDS):
            for candidate, timed in steps.items():
                start = time.perf_counter()
                timed()
                seconds[candidate].append(time.perf_counter() - start)
                advance(1)
    return {candidate: median(took) for candidate, took in seconds.items()}


def _remembered(path: Path, candidates: Sequence[Arithmetic]) -> Arithmetic | None:
    """The answer in a file; None where there is none, or none that can be read."""
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))
        known = Arithmetic(answer["precision"], answer["memory_format"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if known in candidates else None
