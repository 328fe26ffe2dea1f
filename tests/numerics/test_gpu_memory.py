"""Claims about a GPU's memory, with made-up figures, and with those of a GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from kdsweep.numerics import gpu_memory
from kdsweep.numerics.gpu_memory import (
    BUFFERS,
    CONTEXT_BYTES,
    Fetcher,
    free,
    goes_to_gpu,
    peak,
    placed,
    require_room,
    runs_that_fit,
    stays,
)
from kdsweep.system.errors import UserError

GIB = 2**30

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


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


@pytest.mark.parametrize(("taken", "there", "room"), [(30, 50, True), (40, 40, True), (50, 30, False)])
def test_room_for_as_much_again(monkeypatch: pytest.MonkeyPatch, taken: int, there: int, room: bool) -> None:
    """A captured step is kept for the next training if the memory that this process has taken is there once more."""
    monkeypatch.setattr(gpu_memory, "free", lambda device: there * GIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: taken * GIB)
    assert gpu_memory.room_for_another(torch.device("cuda")) is room
    assert gpu_memory.room_for_another(torch.device("cpu"))


def test_a_cpu_has_no_such_memory() -> None:
    """Nothing is measured there."""
    with peak(torch.device("cpu")) as taken:
        torch.zeros(1000)
        assert taken() == free(torch.device("cpu")) == 0


# ------------------------------------------------------------------------------------------- pictures and tables


@pytest.mark.parametrize(("size", "there", "expected"), [(5, 10, True), (6, 10, False), (0, 0, True)])
def test_half_of_the_memory_is_for_the_network(size: int, there: int, expected: bool) -> None:
    """Pictures and tables that take more than the other half stay in the computer's memory."""
    assert goes_to_gpu(size * GIB, there * GIB) is expected


def test_what_does_not_fit_stays_with_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The note says what, how large it is, and how much is free."""
    monkeypatch.setattr(gpu_memory, "free", lambda device: 2**28)
    monkeypatch.setattr(gpu_memory, "_staying", set())
    pictures = torch.zeros(2**28 // (32 * 32 * 3), 32, 32, 3, dtype=torch.uint8)
    assert placed(pictures, torch.device("cuda"), "training pictures") is pictures
    said = " ".join(capsys.readouterr().err.split())
    assert "The training pictures (0.2 GiB) stay in the computer's memory, since the GPU has 0.2 GiB free" in said
    assert placed(pictures, torch.device("cuda"), "training pictures") is pictures  # said once in a process
    assert placed(pictures, torch.device("cpu"), "training pictures") is pictures
    assert capsys.readouterr().err == ""


def test_work_that_needs_copies_needs_their_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quarter of what is free has room once and twice, and not three times; what follows from it is said."""
    monkeypatch.setattr(gpu_memory, "free", lambda device: 400)
    monkeypatch.setattr(gpu_memory, "_staying", set())
    features = torch.zeros(25)
    found = [stays(features, torch.device("cuda"), "features", copies, "the head waits") for copies in (1, 2, 3)]
    assert found == [False, False, True]
    assert "since the GPU has 0.0 GiB free: the head waits." in " ".join(capsys.readouterr().err.split())


def test_fetched_batches_are_copies() -> None:
    """More batches than buffers: none is overwritten by a later one."""
    fetch = Fetcher(torch.device("cpu"))
    batches = [torch.full((2, 3), number, dtype=torch.uint8) for number in range(3 * BUFFERS)]
    fetched = [fetch(batch) for batch in batches]
    assert all(torch.equal(*pair) for pair in zip(batches, fetched, strict=True))


# ---------------------------------------------------------------------------------------------------- on a GPU


@needs_gpu
def test_a_gpu_fetches_what_was_asked_for() -> None:
    """While it is busy, too: a buffer is filled again only when it has been copied."""
    fetch = Fetcher(torch.device("cuda"))
    batches = [torch.randint(256, (64, 64, 64, 3), dtype=torch.uint8) for _ in range(3 * BUFFERS)]
    busy = torch.randn(4096, 4096, device="cuda")
    fetched = []
    for batch in batches:
        busy = busy @ busy
        fetched.append(fetch(batch))
    assert all(torch.equal(batch, there.cpu()) for batch, there in zip(batches, fetched, strict=True))


@needs_gpu
def test_a_gpus_peak_is_measured() -> None:
    """What is freed within the block counts too."""
    gpu = torch.device("cuda")
    with peak(gpu) as taken:
        before = taken()
        torch.zeros(2**28, dtype=torch.uint8, device=gpu)
        assert taken() >= before + 2**28
    assert free(gpu) > 0
