"""Tables are computed once, are whole or absent, and are compared with the network before they are used."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdsweep.system.tensor_files import write_tensors
from kdsweep.table_check import Asked
from kdsweep.tables import TableMismatchError, Tables

IDENTITY: dict[str, Any] = {"weights": "abc", "precision": "fp32"}
N = 23
LOOKED_AT = [0, 7, 14, 22]  # the rows that are computed again before a table is written or used
NOISE = 1e-3  # what rounding changes, as a share of an output
WEIGHT = torch.randn(5, generator=torch.Generator().manual_seed(0))


def tables(root: Path, **identity: Any) -> Tables:
    return Tables(root, IDENTITY | identity, batch_size=4)


def network(rows: Tensor) -> Tensor:
    """Stands for a network: (B,) -> (B, 5), each row a function of its index alone."""
    return torch.sin(rows[:, None] + 1.0) * WEIGHT


def answers(ours: Tables, compute: Callable[[Tensor], Tensor] = network, name: str = "pass-0000", n: int = N) -> Tensor:
    """A pass of a network, whose rounding errors are `NOISE`."""
    uncounted = compute.compute if isinstance(compute, Counter) else compute
    return ours.rows(name, n, compute, Asked(compute, lambda rows: uncounted(rows) * (1 + NOISE)))


class Counter:
    """A network that remembers which rows it was asked for."""

    def __init__(self, compute: Callable[[Tensor], Tensor] = network) -> None:
        self.compute = compute
        self.rows: list[int] = []

    def __call__(self, rows: Tensor) -> Tensor:
        self.rows += rows.tolist()
        return self.compute(rows)


def damaged(path: Path) -> list[bytes]:
    """The file with a byte flipped in its length, header and numbers, and cut short."""
    good = path.read_bytes()
    flips = [good[:k] + bytes([good[k] ^ 1]) + good[k + 1 :] for k in (0, 20, len(good) // 2, len(good) - 1)]
    return [*flips, good[: len(good) // 2], b""]


# ------------------------------------------------------------------------------------------------ one process


def test_a_pass_is_computed_once_and_then_read(tmp_path: Path) -> None:
    """The first use computes every row once and a few again. Then the same object computes none, a later one a few."""
    ours, first = tables(tmp_path), Counter()
    assert torch.equal(answers(ours, first), network(torch.arange(N)))
    assert first.rows == [*range(N), *LOOKED_AT]
    assert torch.equal(answers(ours, first), network(torch.arange(N)))
    assert first.rows == [*range(N), *LOOKED_AT]
    later, second = tables(tmp_path), Counter()
    for _ in range(2):
        assert torch.equal(answers(later, second), network(torch.arange(N)))
    assert second.rows == LOOKED_AT


def test_passes_have_files_of_their_own(tmp_path: Path) -> None:
    """Two passes are two files in one folder, and the folder says what made them."""
    ours = tables(tmp_path)
    answers(ours, network)
    answers(ours, lambda rows: -network(rows), name="pass-0001")
    assert torch.equal(answers(tables(tmp_path), network), network(torch.arange(N)))
    assert sorted(path.name for path in ours.folder.glob("*.safetensors")) == [
        "pass-0000.safetensors",
        "pass-0001.safetensors",
    ]
    assert json.loads((ours.folder / "identity.json").read_text()) == IDENTITY


def test_another_identity_is_another_folder(tmp_path: Path) -> None:
    """A change of any part of the identity makes other tables."""
    weights, precision = {"weights": "abd"}, {"precision": "bf16"}
    changed: list[dict[str, Any]] = [{}, weights, precision, {"views": {"seed": 0}}, {"views": {"seed": 1}}]
    assert len({tables(tmp_path, **change).folder for change in changed}) == len(changed)


def test_a_damaged_table_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A table with a flipped byte or a missing end is computed again, and the log says so."""
    path = tables(tmp_path).folder / "pass-0000.safetensors"
    answers(tables(tmp_path), network)
    for content in damaged(path):
        path.write_bytes(content)
        counter = Counter()
        caplog.clear()
        assert torch.equal(answers(tables(tmp_path), counter), network(torch.arange(N)))
        assert counter.rows == [*range(N), *LOOKED_AT]
        assert caplog.text.count("it is made again") == 1
        assert torch.equal(answers(tables(tmp_path), Counter()), network(torch.arange(N)))


def test_a_table_damaged_in_use_is_noticed(tmp_path: Path) -> None:
    """The checksum is read with every pass, not only with the first."""
    ours, counter = tables(tmp_path), Counter()
    answers(ours, counter)
    path = ours.folder / "pass-0000.safetensors"
    path.write_bytes(damaged(path)[3])
    assert torch.equal(answers(ours, counter), network(torch.arange(N)))
    assert counter.rows == 2 * [*range(N), *LOOKED_AT]


def test_a_table_of_another_length_is_computed_again(tmp_path: Path) -> None:
    """A file with too few or too many rows is computed again."""
    for n in (N, N + 1, N - 1):
        assert len(answers(tables(tmp_path), n=n)) == n


@pytest.mark.parametrize(
    "other",
    [
        lambda rows: network(rows + 1),  # another picture's answers
        lambda rows: network(rows) * 1.05,  # another network's
        lambda rows: torch.where(rows[:, None] == 0, torch.nan, network(rows)),
        lambda rows: torch.full((len(rows), 5), torch.nan),
    ],
)
def test_another_networks_answers_are_refused(tmp_path: Path, other: Callable[[Tensor], Tensor]) -> None:
    """A whole file with a right checksum ends the run if the network now computes something else."""
    ours = tables(tmp_path)
    ours.folder.mkdir()
    write_tensors(ours.folder / "pass-0000.safetensors", {"outputs": other(torch.arange(N))})
    with pytest.raises(TableMismatchError, match=r"differ from the table .*pass-0000\.safetensors by .* Delete its fo"):
        answers(ours, network)


def test_rounding_is_forgiven(tmp_path: Path) -> None:
    """The table is used if the network's answers differ by no more than rounding explains; it isn't changed."""
    answers(tables(tmp_path), network)
    slightly_other = answers(tables(tmp_path), lambda rows: network(rows) * (1 + 1.9 * NOISE))
    assert torch.equal(slightly_other, network(torch.arange(N)))


def test_a_table_of_a_version_without_control_rows_is_used(tmp_path: Path) -> None:
    """Its own rows are compared with the network's answers, and the file stays as it is."""
    path = tables(tmp_path).folder / "pass-0000.safetensors"
    path.parent.mkdir()
    write_tensors(path, {"outputs": network(torch.arange(N)) * (1 + NOISE)})
    before = path.read_bytes()
    counter = Counter()
    assert torch.equal(answers(tables(tmp_path), counter), network(torch.arange(N)) * (1 + NOISE))
    assert (set(counter.rows), path.read_bytes()) == (set(range(N)), before)


def test_no_table_of_another_network_is_written(tmp_path: Path) -> None:
    """What fills tables, compiled code for example, computes something else than the network that is then asked."""
    ours = tables(tmp_path)
    asked = Asked(network, lambda rows: network(rows) * (1 + NOISE))
    with pytest.raises(TableMismatchError, match="Delete its folder"):
        ours.rows("pass-0000", N, lambda rows: network(rows + 1), asked)
    assert not ours.has("pass-0000")


def test_a_table_whose_rows_noise_hides_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same bits are believed all the same; other bits tell nothing, so the rows are computed here."""
    noisy = Asked(network, lambda rows: network(rows) + 10)
    tables(tmp_path).rows("pass-0000", N, lambda rows: network(rows) * (1 + NOISE), noisy)
    assert "rounding moves the network's outputs by 10" in caplog.text
    again = Counter()
    tables(tmp_path).rows("pass-0000", N, again, noisy)
    assert again.rows == []
    other = Counter(lambda rows: network(rows) * (1 + NOISE))
    tables(tmp_path).rows("pass-0000", N, other, Asked(other, noisy.shaken))
    assert other.rows.count(1) >= 1
    assert "it is made again" in caplog.text


def test_answers_may_be_all_zero(tmp_path: Path) -> None:
    """Outputs that are all zero, as a new head's may be, agree with themselves."""
    for _ in range(2):
        assert not answers(tables(tmp_path), lambda rows: torch.zeros(len(rows), 5)).any()


def test_tables_say_what_they_have(tmp_path: Path) -> None:
    """`has` finds a pass that any process has computed. It computes nothing, and makes no folder."""
    assert not tables(tmp_path).has("pass-0000")
    assert list(tmp_path.iterdir()) == []
    answers(tables(tmp_path), network)
    assert tables(tmp_path).has("pass-0000")
    assert not tables(tmp_path).has("pass-0001")
    assert not tables(tmp_path, weights="abd").has("pass-0000")


def test_a_failed_computation_leaves_nothing(tmp_path: Path) -> None:
    """An error half-way leaves no file and no lock, and the next attempt computes all rows."""

    def fail(rows: Tensor) -> Tensor:
        if rows[0] > 10:
            raise RuntimeError("out of memory")
        return network(rows)

    ours = tables(tmp_path)
    with pytest.raises(RuntimeError, match="out of memory"):
        answers(ours, fail)
    assert not list(ours.folder.glob("*.safetensors"))
    assert torch.equal(answers(ours, network), network(torch.arange(N)))


def test_a_lock_file_that_nobody_holds_is_no_obstacle(tmp_path: Path) -> None:
    """What a killed process left behind keeps nobody waiting."""
    ours = tables(tmp_path)
    ours.folder.mkdir()
    (ours.folder / "pass-0000.safetensors.lock").write_text("12345")
    assert torch.equal(answers(ours, network), network(torch.arange(N)))


# ------------------------------------------------------------------------------------------------------- parts


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a pass is one batch: 23 rows in batches of four have six."""
    monkeypatch.setattr("kdsweep.tables.PART_BATCHES", 1)


@pytest.mark.usefixtures("short_parts")
def test_a_long_pass_is_made_of_parts(tmp_path: Path) -> None:
    """The parts make the same table. Each row is computed once, a few are checked, and no part is left behind."""
    ours, counter = tables(tmp_path), Counter()
    assert torch.equal(answers(ours, counter), network(torch.arange(N)))
    assert counter.rows == [*range(N), *LOOKED_AT]
    assert {path.name for path in ours.folder.iterdir()} == {
        *("identity.json", "pass-0000.safetensors", "pass-0000.safetensors.lock")
    }


@pytest.mark.usefixtures("short_parts")
def test_parts_outlive_a_failure(tmp_path: Path) -> None:
    """Parts that were whole when a computation failed are kept; a part that was damaged since is computed again."""
    ours, after = tables(tmp_path), Counter()

    def fail(rows: Tensor) -> Tensor:
        if rows[0] >= 12:
            raise RuntimeError("out of memory")
        return network(rows)

    with pytest.raises(RuntimeError, match="out of memory"):
        answers(ours, fail)
    assert not ours.has("pass-0000")
    (ours.folder / "pass-0000.parts" / "00000004-00000008.safetensors").write_bytes(b"half")
    assert torch.equal(answers(tables(tmp_path), after), network(torch.arange(N)))
    assert sorted(after.rows) == sorted([4, 5, 6, 7, *range(12, N), *LOOKED_AT])


@pytest.mark.usefixtures("short_parts")
def test_a_pass_can_be_filled_part_by_part(tmp_path: Path) -> None:
    """`fill_part` computes the next part until none is left; a part that is stopped doesn't count."""
    ours, counter = tables(tmp_path), Counter()
    assert not ours.fill_part("pass-0000", N, counter, stop=lambda: True)
    counter.rows.clear()
    filled = 0
    while ours.fill_part("pass-0000", N, counter, stop=lambda: False):
        filled += 1
    assert filled == 6
    assert torch.equal(answers(ours, counter), network(torch.arange(N)))
    assert counter.rows == [*range(N), *LOOKED_AT]
    assert not ours.fill_part("pass-0000", N, counter, stop=lambda: False)
    assert not (ours.folder / "pass-0000.parts").exists()


@pytest.mark.usefixtures("short_parts")
def test_a_pass_that_is_there_is_asked_for_no_part(tmp_path: Path) -> None:
    """A pass that is whole has no part left to compute."""
    answers(tables(tmp_path), network)
    assert not tables(tmp_path).fill_part("pass-0000", N, Counter(), stop=lambda: False)


def test_a_table_is_a_memory_map(tmp_path: Path) -> None:
    """A table in use takes none of the process's own memory, because its 40 MB are mapped from the file."""
    rows = 1_000_000

    def wide(rows: Tensor) -> Tensor:
        return rows[:, None].float().expand(-1, 10).contiguous()

    Tables(tmp_path, IDENTITY, batch_size=rows).rows("pass-0000", rows, wide, Asked(wide, wide))
    before = anonymous_bytes()
    table = tables(tmp_path).rows("pass-0000", rows, wide, Asked(wide, wide))
    assert anonymous_bytes() - before < 10e6
    assert float(table[-1, 0]) == rows - 1


def anonymous_bytes() -> int:
    """The bytes of this process's memory that belong to no file."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


# ------------------------------------------------------------------------------------------- several processes

# Forked from a server that has imported torch once; forks of the test process itself could inherit a held lock.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["kdsweep.tables"])


def ask(root: Path, computed: Path, seconds: float) -> None:
    """Asks for a pass in a process of its own, taking `seconds` a batch, and notes each row that it computes."""

    def slowly(rows: Tensor) -> Tensor:
        time.sleep(seconds)
        with computed.open("a") as file:
            file.writelines(f"{row}\n" for row in rows.tolist())
        return network(rows)

    table = answers(tables(root), slowly)
    assert torch.equal(table, network(torch.arange(N)))


def ask_in_parts(root: Path, computed: Path, seconds: float) -> None:
    """The same, where a part is one batch."""
    import kdsweep.tables

    kdsweep.tables.PART_BATCHES = 1
    ask(root, computed, seconds)


def die_in_computation(root: Path) -> None:
    """Is killed after half of the rows."""

    def die(rows: Tensor) -> Tensor:
        if rows[0] > 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return network(rows)

    answers(tables(root), die)


def die_in_writing(root: Path) -> None:
    """Is killed when half of the file is on disk."""

    def half(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half of a table")
        os.kill(os.getpid(), signal.SIGKILL)

    from kdsweep.system import tensor_files

    tensor_files.save_file = half  # type: ignore[assignment]
    answers(tables(root), network)


def run_process(target: Callable[..., None], *arguments: Path) -> int | None:
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.slow
def test_processes_that_ask_at_once_compute_once(tmp_path: Path) -> None:
    """Three processes ask for the same pass: one computes its rows, and the others wait, check a few, and read."""
    computed = tmp_path / "computed"
    started = [processes.Process(target=ask, args=(tmp_path / "tables", computed, 0.05)) for _ in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0, 0]
    rows = [int(line) for line in computed.read_text().split()]
    assert sorted(rows) == sorted([*range(N), *3 * LOOKED_AT])


@pytest.mark.slow
@pytest.mark.parametrize("die", [die_in_computation, die_in_writing])
def test_a_killed_process_leaves_no_half_table(tmp_path: Path, die: Callable[..., None]) -> None:
    """SIGKILL in the middle leaves no table and no lock, and the next process computes all of it.

    It also removes what the killed one had begun to write.
    """
    assert run_process(die, tmp_path) == -signal.SIGKILL
    assert not list(tables(tmp_path).folder.glob("*.safetensors"))
    counter = Counter()
    assert torch.equal(answers(tables(tmp_path), counter), network(torch.arange(N)))
    assert counter.rows == [*range(N), *LOOKED_AT]
    assert not list(tables(tmp_path).folder.glob(".*"))


@pytest.mark.slow
def test_the_one_who_waits_takes_over_from_the_dead(tmp_path: Path) -> None:
    """A process that waits for another's table computes it when the other is killed."""
    computed = tmp_path / "computed"
    first = processes.Process(target=ask, args=(tmp_path / "tables", tmp_path / "first", 0.5))
    first.start()
    while not (tmp_path / "first").exists():
        time.sleep(0.01)
    second = processes.Process(target=ask, args=(tmp_path / "tables", computed, 0.0))
    second.start()
    time.sleep(0.5)
    assert not computed.exists()
    first.kill()
    second.join(60)
    assert second.exitcode == 0
    assert sorted(map(int, computed.read_text().split())) == sorted([*range(N), *LOOKED_AT])


@pytest.mark.slow
def test_processes_share_a_pass(tmp_path: Path) -> None:
    """Two processes that ask for the same pass compute different parts of it, no row twice, and check a few rows."""
    noted = [tmp_path / "first", tmp_path / "second"]
    started = [processes.Process(target=ask_in_parts, args=(tmp_path / "tables", path, 0.3)) for path in noted]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0]
    rows = [[int(line) for line in path.read_text().split()] for path in noted]
    assert sorted(rows[0] + rows[1]) == sorted([*range(N), *LOOKED_AT, *LOOKED_AT])
    assert min(map(len, rows)) >= 8


@pytest.mark.slow
def test_a_killed_process_costs_one_part(tmp_path: Path) -> None:
    """The parts that the killed process had computed are kept, and the other computes the rest."""
    first = processes.Process(target=ask_in_parts, args=(tmp_path / "tables", tmp_path / "first", 0.2))
    first.start()
    parts = tables(tmp_path / "tables").folder / "pass-0000.parts"
    while len(list(parts.glob("*.safetensors"))) < 3:
        time.sleep(0.01)
    first.kill()
    first.join(60)
    whole = {int(path.stem.partition("-")[0]) for path in parts.glob("*.safetensors")}
    second = processes.Process(target=ask_in_parts, args=(tmp_path / "tables", tmp_path / "second", 0.0))
    second.start()
    second.join(60)
    assert second.exitcode == 0
    rows = sorted(map(int, (tmp_path / "second").read_text().split()))
    assert rows == sorted([*(row for row in range(N) if row // 4 * 4 not in whole), *LOOKED_AT])
