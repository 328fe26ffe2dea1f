"""How much of a GPU's memory a run takes, and how many runs fit there at a time."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from kdsweep.system.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What CUDA and its libraries take of a GPU in each process, beside torch's tensors.
CONTEXT_BYTES = 700 * 2**20


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
