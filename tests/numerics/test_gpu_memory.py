"""Claims about a GPU's memory, with made-up figures, and with those of a GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from kdsweep.numerics.gpu_memory import CONTEXT_BYTES, free, peak, require_room, runs_that_fit
from kdsweep.system.errors import UserError

GIB = 2**30


@pytest.mark.parametrize(
    ("run", "there", "fit"),
    [(2 * GIB, 78 * GIB, 29), (2 * GIB, 2 * GIB, 0), (0, CONTEXT_BYTES, 1), (0, CONTEXT_BYTES - 1, 0)],
)
def test_each_process_takes_what_cuda_takes_too(run: int, there: int, fit: int) -> None:
    """Processes don't share what CUDA and its libraries load."""
    assert runs_that_fit(run, there) == fit


@pytest.mark.parametrize(("n_jobs", "gpus"), [(29, 1), (58, 2), (57, 2), (1, 1)])
def test_as_many_runs_as_fit_are_let_in(n_jobs: int, gpus: int) -> None:
    """They are divided among the GPUs as evenly as can be."""
    require_room(n_jobs, gpus, 2 * GIB, 78 * GIB)


def test_one_run_is_always_let_in() -> None:
    """If it doesn't fit, it says so itself."""
    require_room(1, 1, 100 * GIB, 10 * GIB)


@pytest.mark.parametrize(
    ("n_jobs", "gpus", "run", "said"),
    [
        (30, 1, 2 * GIB, r"got sweep.n_jobs=30: 30 on the GPU take 2.7 GiB each, and 78.0 GiB are free. Set .*=29\."),
        (59, 2, 2 * GIB, r"got sweep.n_jobs=59: 30 on each of 2 GPUs take 2.7 GiB each, and .* Set sweep.n_jobs=58\."),
        (2, 1, 80 * GIB, r"Lower batch_size, and set sweep.n_jobs=1\."),
    ],
)
def test_more_are_refused_before_they_start(n_jobs: int, gpus: int, run: int, said: str) -> None:
    """The message says how many would fit."""
    with pytest.raises(UserError, match=said) as error:
        require_room(n_jobs, gpus, run, 78 * GIB)
    assert error.value.key == "sweep.n_jobs"


def test_a_cpu_has_no_such_memory() -> None:
    """Nothing is measured there."""
    with peak(torch.device("cpu")) as taken:
        torch.zeros(1000)
        assert taken() == free(torch.device("cpu")) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpus_peak_is_measured() -> None:
    """What is freed within the block counts too."""
    gpu = torch.device("cuda")
    with peak(gpu) as taken:
        before = taken()
        torch.zeros(2**28, dtype=torch.uint8, device=gpu)
        assert taken() >= before + 2**28
    assert free(gpu) > 0
