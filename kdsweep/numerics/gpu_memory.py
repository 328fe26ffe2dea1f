"""What fits into a GPU's memory: runs at a time, and pictures or tables beside a network."""

from __future__ import annotations

import functools
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdsweep.system.errors import UserError
from kdsweep.system.progress import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What CUDA and its libraries take of a GPU in each process, beside torch's tensors.
CONTEXT_BYTES = 700 * 2**20


# Pictures or a table may take this share of what is free of a GPU's memory. The network and its steps need the rest.
DATA_SHARE = 0.5

# What follows where pictures or a table stay in the computer's memory.
FETCHED = "each batch is fetched while the GPU works on earlier ones"

# A batch is put into one of so many buffers, while the GPU may still copy the others.
BUFFERS = 3


def goes_to_gpu(n_bytes: int, free_bytes: int) -> bool:
    """Returns whether pictures or a table of this size go to a GPU with so much free memory."""
    return n_bytes <= DATA_SHARE * free_bytes


def placed(tensor: Tensor, device: torch.device, what: str) -> Tensor:
    """Returns a tensor on a device; if a GPU has no room for it, the tensor as it is, after a note that says so.

    Args:
        tensor: Pictures or a table, in the computer's memory or on the device.
        device: The device.
        what: What it is called in the note: "training pictures".
    """
    return tensor if stays(tensor, device, what) else tensor.to(device)


def stays(tensor: Tensor, device: torch.device, what: str, copies: int = 1, so: str = FETCHED) -> bool:
    """Returns whether a GPU has no room for a tensor, as `placed` decides; a note says so, once for each `what`.

    Args:
        tensor: As in `placed`, as are the following.
        device: The device.
        what: What the tensor is called.
        copies: The number of tensors of this size for which there has to be room.
        so: What follows from it.
    """
    if device.type == "cpu" or tensor.device == device:
        return False
    n_bytes, there = tensor.numel() * tensor.element_size(), free(device)
    if goes_to_gpu(copies * n_bytes, there):
        return False
    _note_staying(what, gibibytes(n_bytes), gibibytes(there), so)
    return True


# What has been said to stay; the figures differ a little from epoch to epoch.
_staying: set[str] = set()


def _note_staying(what: str, size: str, there: str, so: str) -> None:
    if what in _staying:
        return
    _staying.add(what)
    note(f"The {what} ({size}) stay in the computer's memory, since the GPU has {there} free: {so}.")


class Fetcher:
    """Copies batches to a device, and doesn't wait until it has worked off what it was given before.

    A GPU copies them from pinned memory by itself, while it computes. A buffer is filled again when it has been copied.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._pinned = device, device.type == "cuda"
        self._stream = _copying(device) if self._pinned else None
        self._buffers: list[Tensor] = []
        self._copied: list[Any] = []
        self._turn = 0

    def __call__(self, batch: Tensor) -> Tensor:
        """Returns a copy of a batch on the device; all batches have the same shape and type."""
        self._turn = (self._turn + 1) % BUFFERS
        if len(self._buffers) < BUFFERS:
            self._turn = len(self._buffers)
            self._buffers.append(torch.empty(batch.shape, dtype=batch.dtype, pin_memory=self._pinned))
            self._copied.append(torch.cuda.Event() if self._pinned else None)
        buffer, copied = self._buffers[self._turn], self._copied[self._turn]
        if self._stream is None:
            return buffer.copy_(batch).to(self._device, copy=True)
        copied.synchronize()  # an event that was never recorded doesn't wait
        buffer.copy_(batch)
        now = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            there = buffer.to(self._device, non_blocking=True)
            copied.record()
        now.wait_event(copied)
        there.record_stream(now)  # so that the next batch doesn't take its memory while a step still reads it
        return there


@functools.cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    """Returns the stream of all such copies: on the stream of the steps they would wait for the steps before them."""
    return torch.cuda.Stream(device)


@contextmanager
def peak(device: torch.device) -> Iterator[Callable[[], int]]:
    """Yields a function that returns the most bytes that torch has taken of a GPU since the block began; 0 on a CPU."""
    if device.type != "cuda":
        yield lambda: 0
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    yield lambda: torch.cuda.max_memory_reserved(device)


def free(device: torch.device) -> int:
    """Returns the bytes of a GPU that nobody has taken; 0 on a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def room_for_another(device: torch.device) -> bool:
    """Returns whether a GPU has as much free as torch has taken of it in this process; true on a CPU."""
    return device.type != "cuda" or torch.cuda.memory_reserved(device) <= free(device)


def runs_that_fit(run_bytes: int, free_bytes: int) -> int:
    """Returns how many processes that take `run_bytes` each, beside what CUDA takes, fit into `free_bytes`."""
    return free_bytes // (run_bytes + CONTEXT_BYTES)


def require_room(n_jobs: int, gpus: int, run_bytes: int, free_bytes: int) -> None:
    """Refuses more runs at a time than fit.

    Args:
        n_jobs: The number of runs at a time.
        gpus: The number of GPUs, alike, among which they are divided.
        run_bytes: What a run takes of a GPU, beside what CUDA takes.
        free_bytes: What a GPU has free.

    Raises:
        UserError: They don't fit; the message says how many would.
    """
    fit, each = runs_that_fit(run_bytes, free_bytes), math.ceil(n_jobs / gpus)
    if n_jobs == 1 or each <= fit:
        return
    taken = gibibytes(run_bytes + CONTEXT_BYTES)
    where = "the GPU" if gpus == 1 else f"each of {gpus} GPUs"
    remedy = f"Set sweep.n_jobs={max(1, fit * gpus)}." if fit else "Lower batch_size, and set sweep.n_jobs=1."
    raise UserError(
        f"`the runs on a GPU fit into its memory` must hold, but got sweep.n_jobs={n_jobs}: {each} on {where} take "
        f"{taken} each, and {gibibytes(free_bytes)} are free. {remedy}",
        "sweep.n_jobs",
    )


def gibibytes(n: int) -> str:
    """Returns a number of bytes in words: "2.4 GiB"."""
    return f"{n / 2**30:.1f} GiB"
