"""Claims about faults, each provoked for real: disks that are full, files that are damaged, processes that are killed.

docs/reliability.md lists all faults and the tests that hold what is promised, here and elsewhere.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import commands
import fresh_stores
import optuna
import pytest
import torch
from commands import SHORT, Command, Outcome, artifacts, kdsweep, runs, statuses
from crashes import kill_at
from in_process import run_here
from needs import lacking
from optuna.trial import TrialState
from read_only import read_only
from torch import Tensor

from kdsweep.system.sqlite import sqlite_uri
from kdsweep.system.tensor_files import read_tensors
from kdsweep.train import GOES_ON

pytestmark = pytest.mark.slow

# A study of two trials and no controls, whose jobs are three steps each.
STUDY = (
    *("sweep=alpha_tau", *SHORT, "epochs=1", "batch_size=32", "sweep.baseline_seeds=0", "sweep.confirm_seeds=0"),
    *("hydra/sweeper/sampler=grid", "loss.alpha=0.5", "loss.tau=4"),
)


def hidden(root: Path) -> list[Path]:
    """What a writer leaves that doesn't clean up after itself."""
    return [path for path in root.rglob(".*") if path.name != ".hydra"]


def damaged(path: Path) -> list[bytes]:
    """The content of a file with a bit flipped in its length, header and numbers, cut short, and lengthened."""
    good = path.read_bytes()
    flips = [good[:k] + bytes([good[k] ^ 4]) + good[k + 1 :] for k in (0, 5, 20, len(good) // 2, len(good) - 1)]
    return [*flips, b"", good[:7], good[: len(good) // 2], good[:-1], good + b"\0"]


def trials(root: Path) -> dict[str, TrialState]:
    """How the trials of the study in `root` ended, by the setting that they had."""
    study = optuna.load_study(study_name="alpha_tau", storage=sqlite_uri(root / "studies" / "alpha_tau" / "optuna.db"))
    return {str(next(iter(trial.params.values()))): trial.state for trial in study.trials}


# Disk full


class Disk:
    """A disk of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lacking(f"a small disk can't be mounted ({done.stderr.strip()}): run as root, or under `unshare -rm`")

    def has(self, kilobytes: int) -> None:
        """Makes it hold so much and no more."""
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", self.folder], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    yield made
    made.close()


def assert_refused(done: Outcome, disk: Disk) -> None:
    """One line that says what is full, and nothing half-written."""
    assert done.status == 1, done.err
    assert f"No space left on device: {disk.folder}" in done.error
    assert hidden(disk.folder) == []
    for path in disk.folder.rglob("*.safetensors"):
        assert read_tensors(path) is not None


def test_a_full_disk_costs_no_table_that_was_whole(tmp_path: Path, disk: Disk) -> None:
    """Features, head and passes: whichever of them finds no room, the command says so, and goes on once there is."""
    words = (*SHORT, f"paths.cache={disk.folder}", "epochs=1")
    kept: set[Path] = set()
    # Features take 136, 72 and 72 KB, the head 20, and logits 4.
    for kilobytes in (64, 180, 250, 304):
        disk.has(kilobytes)
        assert_refused(kdsweep(*words, root=tmp_path), disk)
        now = set(disk.folder.rglob("*.safetensors"))
        assert now > kept or kilobytes == 64
        kept = now
    disk.has(200_000)
    done = kdsweep(*words, root=tmp_path)
    assert done.status == 0, done.err
    assert kept < set(disk.folder.rglob("*.safetensors"))
    assert hidden(disk.folder) == []


def test_a_full_disk_costs_decoded_pictures_only_time(tmp_path: Path, disk: Disk) -> None:
    """They are decoded again once there is room."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for split, n in (("train", 40), ("test", 8)):
        for kind in ("cats", "dogs"):
            (tmp_path / "pets" / split / kind).mkdir(parents=True)
            for index in range(n):
                pixels = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(tmp_path / "pets" / split / kind / f"{index}.png")
    words = ("experiment=scratch", "data=image_folder", f"data.root={tmp_path}/pets", "data.val_size=0.2", "epochs=1")
    words = (*words, "data.image_size=32", "batch_size=16", "threads=1", f"paths.cache={disk.folder}")
    words = (*words, "tracking.models=false")
    disk.has(100)
    assert_refused(kdsweep(*words, root=tmp_path), disk)
    disk.has(200_000)
    done = kdsweep(*words, root=tmp_path)
    assert done.status == 0, done.err


def test_a_full_disk_fails_a_run_that_can_keep_no_weights(tmp_path: Path, disk: Disk) -> None:
    """Weights are written into the run's journal before MLflow takes them: the run is FAILED, and says why."""
    disk.has(300)
    (tmp_path / "unsent").symlink_to(disk.folder)
    done = kdsweep(*SHORT, "epochs=1", root=tmp_path)
    assert done.status == 1, done.err
    assert f"no space is left on the disk of {tmp_path / 'unsent'}" in done.error
    (run,) = runs(tmp_path, "distill")
    assert run.info.status == "FAILED"
    assert "no space is left" in run.data.tags["kdsweep.error"]
    assert not list(artifacts(run).rglob("*.safetensors"))


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path: Path, disk: Disk) -> None:
    """The run goes on and says so; what was written before is there for the run that goes on after it."""
    words = (*SHORT, "epochs=12", f"paths.cache={disk.folder}", "checkpoint_share=1")
    disk.has(4_500)  # a checkpoint has 2,900 KB
    command = Command(*words, root=tmp_path)
    logs = tmp_path.glob
    command.wait_for(lambda: any("No checkpoint could" in log.read_text() for log in logs("outputs/*/*/train.log")))
    command.kill()
    command.outcome()
    (path,) = disk.folder.glob("checkpoints/*/*/*.safetensors")
    assert read_tensors(path) is not None
    done = kdsweep(*words, root=tmp_path)
    assert done.status == 0, done.err
    assert hidden(disk.folder) == []
    (run,) = runs(tmp_path, "distill")
    assert int(run.data.tags["kdsweep.resumed_after"]) >= 1


# Disks that can be read only


@pytest.mark.parametrize(
    ("place", "words", "start"),
    [
        ("cache", SHORT, "paths.cache: `files can be written below {}` must hold, but got: Read-only file system."),
        ("cache", STUDY, "paths.cache: `files can be written below {}` must hold"),
        ("unsent", SHORT, "paths.root: `files can be written below {}` must hold"),
        ("reports", STUDY, "paths.root: `files can be written below {}/alpha_tau` must hold"),
        ("studies", STUDY, "Read-only file system: {}/alpha_tau."),
        ("outputs", SHORT, "Read-only file system: {}/"),
    ],
)
def test_a_folder_that_can_only_be_read_is_refused(
    place: str, words: tuple[str, ...], start: str, tmp_path: Path
) -> None:
    """Before anything is trained or recorded, each folder that would be written into is tried."""
    with read_only(tmp_path / place) as folder:
        done = run_here((*words, "optimizer.lr=0.02"), tmp_path)
    assert done.status == 2
    assert done.err == done.error + "\n"
    assert done.error.startswith(f"kdsweep: {start.format(folder)}")
    assert not (tmp_path / "mlflow.db").exists()


# Damaged files


def test_a_damaged_cache_is_noticed_and_made_again(tmp_path: Path) -> None:
    """Tables and heads: whatever is done to them, the log says it, and the weights come out the same."""
    words = (*SHORT, "epochs=1")
    assert kdsweep(*words, root=tmp_path).status == 0
    (path,) = tmp_path.glob("cache/teachers/*.safetensors")
    (table,) = tmp_path.glob("cache/tables/*/pass-*.safetensors")
    whole = {path: path.read_bytes(), table: table.read_bytes()}
    for damage in (0, 2, 4, 7):
        for file, content in whole.items():
            file.write_bytes(content)
            file.write_bytes(damaged(file)[damage])
        done = kdsweep(*words, root=tmp_path)
        assert done.status == 0, done.err
        assert done.err.count("it is made again") == 2
        for file, content in whole.items():
            assert str(file) in done.err
            assert file.read_bytes() == content
    assert len({run.data.tags["kdsweep.weights"] for run in runs(tmp_path, "distill")}) == 1


# Losses that are no numbers, and memory


def test_a_loss_that_is_no_number_costs_one_trial(tmp_path: Path) -> None:
    """The run is FAILED with epoch and step, the trial too, and the study finishes with the others."""
    done = kdsweep(*STUDY, "optimizer.lr=choice(0.02,1e25)", root=tmp_path)
    assert done.status == 0, done.err
    assert trials(tmp_path) == {"0.02": TrialState.COMPLETE, "1e+25": TrialState.FAIL}
    failed, finished = sorted(runs(tmp_path, "distill"), key=lambda run: run.info.status)
    assert (failed.info.status, finished.info.status) == ("FAILED", "FINISHED")
    error = failed.data.tags["kdsweep.error"]
    assert "epoch 1" in error
    assert "step" in error
    (study,) = runs(tmp_path, "study")
    assert study.info.status == "FINISHED"


def take_memory(megabytes: int) -> None:
    """Leaves this process so much more address space than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def test_out_of_memory_is_one_line_that_says_what_to_lower(tmp_path: Path) -> None:
    """An allocation in the middle of a training fails: the run is FAILED."""
    words = ("experiment=scratch", "data=synthetic", "data.n_train=200", "data.val_size=32", "data.n_test=32")
    words = (*words, "data.image_size=224", "batch_size=160", "epochs=1", "threads=1")
    done = Command(*words, root=tmp_path, prepare=partial(take_memory, 2500)).outcome()
    assert done.status == 1, done.err
    assert "out of memory" in done.error
    assert "Lower batch_size (now 160)" in done.error
    assert [run.info.status for run in runs(tmp_path, "scratch")] == ["FAILED"]


def test_out_of_memory_costs_one_trial(tmp_path: Path) -> None:
    """Pictures that are too large for the machine: the study goes on with the others."""
    words = (*STUDY, "data.image_size=choice(32,2048)")
    done = Command(*words, root=tmp_path, prepare=partial(take_memory, 2500)).outcome()
    assert done.status == 0, done.err
    assert "out of memory" in done.err
    assert trials(tmp_path) == {"32": TrialState.COMPLETE, "2048": TrialState.FAIL}


# Processes that are killed, and that start at once


def count_passes(notes: Path, stop_at: int | None = None) -> None:
    """Notes each batch that is computed for a table; at batch `stop_at` it stands still."""
    from kdsweep.tables import Advance, Compute, Tables

    computed = Tables._computed

    def counted(tables: Tables, part: Path, compute: Compute, advance: Advance) -> Tensor:
        def noted(rows: Tensor) -> Tensor:
            with notes.open("a") as file:
                file.write(f"{len(rows)}\n")
            if stop_at is not None and len(batches(notes)) >= stop_at:
                time.sleep(1000)
            return compute(rows)

        return computed(tables, part, noted, advance)

    Tables._computed = counted  # type: ignore[method-assign]


def batches(notes: Path) -> list[int]:
    return [int(line) for line in notes.read_text().split()] if notes.exists() else []


def test_a_teacher_killed_in_a_pass_is_taken_over(tmp_path: Path) -> None:
    """Who waits for its pass computes it, once and whole, and finishes."""
    words = (*SHORT, "teacher.batch_size=16", "epochs=1")
    first = Command(*words, root=tmp_path, prepare=partial(count_passes, tmp_path / "first", 3))
    first.wait_for(lambda: len(batches(tmp_path / "first")) == 3)
    second = Command(*words, root=tmp_path, prepare=partial(count_passes, tmp_path / "second"))
    second.wait_for(lambda: len(list(tmp_path.glob("outputs/*/*/train.log"))) == 2)
    time.sleep(1)
    assert batches(tmp_path / "second") == []
    first.kill()
    done = second.outcome()
    assert done.status == 0, done.err
    # Features of 64 + 32 + 32 pictures, and logits of 64.
    assert sum(batches(tmp_path / "second")) == 192
    assert hidden(tmp_path / "cache") == []
    assert [run.info.status for run in runs(tmp_path, "distill")] == ["FINISHED"]


def test_four_that_start_at_once_on_nothing_share_what_they_make(tmp_path: Path) -> None:
    """A fresh folder: all finish, with one experiment, one teacher, and each table computed once."""
    notes = [tmp_path / f"batches-{number}" for number in range(4)]
    with fresh_stores.built_by_mlflow():
        started = [
            Command(*SHORT, f"loss.alpha=0.{number + 1}", root=tmp_path, prepare=partial(count_passes, path))
            for number, path in enumerate(notes)
        ]
    done = [command.outcome() for command in started]
    assert [outcome.status for outcome in done] == [0, 0, 0, 0], [outcome.err for outcome in done]
    # Features of 64 + 32 + 32 pictures, and two passes of 64.
    assert sum(sum(batches(path)) for path in notes) == 256
    assert len(runs(tmp_path, "teacher")) == 1
    assert [run.info.status for run in runs(tmp_path, "distill")] == ["FINISHED"] * 4
    assert len({run.data.tags["kdsweep.teacher"] for run in runs(tmp_path, "distill")}) == 1


# The clock


def set_clock_back(seconds: float) -> None:
    """An hour back, `seconds` from now: what psutil reads of a process's start moves with it."""
    import psutil

    now, create_time, start = time.time, psutil.Process.create_time, time.monotonic()

    def shift() -> float:
        return -3600.0 if time.monotonic() - start > seconds else 0.0

    time.time = lambda: now() + shift()
    psutil.Process.create_time = lambda process: create_time(process) + shift()  # type: ignore[method-assign]


def test_a_clock_set_back_disturbs_no_study(tmp_path: Path) -> None:
    """In the middle of it: all is done once, times are times, and nobody takes a living process for a dead one."""
    words = (*STUDY, "optimizer.lr=choice(0.02,0.03)", "epochs=6")
    command = Command(*words, root=tmp_path, prepare=partial(set_clock_back, 2.0))
    done = command.outcome()
    assert done.status == 0, done.err
    assert set(trials(tmp_path).values()) == {TrialState.COMPLETE}
    found = runs(tmp_path)
    assert {run.info.status for run in found} == {"FINISHED"}
    for run in runs(tmp_path, "distill"):
        seconds = run.data.metrics["seconds"]
        assert 0 < seconds < 300
        history = commands.client(tmp_path).get_metric_history(run.info.run_id, "val/accuracy")
        assert sorted(point.step for point in history) == list(range(1, 7))


@pytest.mark.all
def test_a_study_killed_before_the_clock_was_set_back_goes_on(tmp_path: Path) -> None:
    """Its signs of life lie in the future; its process is dead all the same."""
    words = (*STUDY, "optimizer.lr=choice(0.02,0.03)", "epochs=6")
    first = Command(*words, root=tmp_path)
    first.wait_for(lambda: statuses(tmp_path).count("RUNNING") == 2)
    first.kill()
    first.outcome()
    done = Command(*words, root=tmp_path, prepare=partial(set_clock_back, 0.0)).outcome()
    assert done.status == 0, done.err
    assert set(trials(tmp_path).values()) == {TrialState.COMPLETE}


# Signals

LONG = (*SHORT, "epochs=2000", "n_passes=1")


def test_a_closed_terminal_ends_a_run(tmp_path: Path) -> None:
    """The system sends SIGHUP: the run is killed in MLflow, and the status is 129."""
    command = Command(*LONG, root=tmp_path)
    command.wait_for(lambda: statuses(tmp_path) == ["FINISHED", "RUNNING"])
    command.signal(signal.SIGHUP)
    done = command.outcome()
    assert done.status == 129, done.err
    assert done.error == f"kdsweep: the terminal was closed. {GOES_ON}"
    assert [run.info.status for run in runs(tmp_path, "distill")] == ["KILLED"]


def lead_a_session(terminal: str) -> None:
    """As a shell's job whose terminal this is; only opening it for reading, too, makes it so."""
    os.setsid()
    os.open(terminal, os.O_RDWR)


def test_a_terminal_that_is_gone_ends_a_run_that_talks_to_it(tmp_path: Path) -> None:
    """The system sends the signal; what the run then prints goes nowhere, and its closing isn't disturbed."""
    ours, theirs = os.openpty()
    terminal = os.ttyname(theirs)
    streams = 2 * [Path(terminal)]
    arguments = (LONG, tmp_path, commands.environment(tmp_path, {}), *streams, partial(lead_a_session, terminal))
    process = multiprocessing.get_context("forkserver").Process(target=commands._run, args=arguments)
    process.start()
    try:
        while statuses(tmp_path) != ["FINISHED", "RUNNING"]:
            assert process.is_alive()
            time.sleep(0.05)
        os.close(theirs)
        os.close(ours)
        process.join(60)
        assert process.exitcode == 129
    finally:
        process.kill()
    assert statuses(tmp_path) == ["FINISHED", "KILLED"]


def ignore_hangups() -> None:
    """As `nohup` does."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_nohup_lets_a_run_outlive_its_terminal(tmp_path: Path) -> None:
    """It was asked for."""
    command = Command(*SHORT, root=tmp_path, prepare=ignore_hangups)
    command.wait_for(lambda: statuses(tmp_path) == ["FINISHED", "RUNNING"])
    command.signal(signal.SIGHUP)
    assert command.outcome().status == 0


def test_a_storm_of_signals_cuts_no_closing_short(tmp_path: Path) -> None:
    """SIGTERM and SIGHUP again and again, as a session's end sends them: run and study are closed as killed."""
    command = Command(*STUDY, "optimizer.lr=choice(0.02,0.03)", "epochs=2000", "n_passes=1", root=tmp_path)
    command.wait_for(lambda: statuses(tmp_path).count("RUNNING") == 2)
    with suppress(ProcessLookupError):
        for number in 20 * (signal.SIGTERM, signal.SIGHUP):
            command.signal(number)
            time.sleep(0.01)
    done = command.outcome()
    # Where both wait when Python looks, it handles the lower number first.
    first = {143: f"kdsweep: terminated. {GOES_ON}", 129: f"kdsweep: the terminal was closed. {GOES_ON}"}
    assert done.error == first.get(done.status), done.err
    assert "RUNNING" not in statuses(tmp_path)


# What is written about them


def test_each_promise_names_tests_that_exist() -> None:
    """docs/reliability.md, file by file and test by test."""
    folder = Path(__file__).parents[1]
    text = (folder.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+\.py)::(\w+)`", text))
    assert len(named) > 30
    sources = {path.name: path.read_text(encoding="utf-8") for path in folder.rglob("test_*.py")}
    assert sorted(pair for pair in named if f"def {pair[1]}(" not in sources.get(pair[0], "")) == []


# Crashes in native code


def test_a_crash_leaves_no_run_running(tmp_path: Path) -> None:
    """The next command, here of another run, closes it and names the signal; the same command then goes on with it."""
    words = (*SHORT, "teacher=none", "loss=ce", "arm=scratch", "checkpoint_share=1")
    crash = partial(kill_at, "kdsweep.tracking.run_writer:Run.log", "after", by=signal.SIGSEGV)
    crashed = Command(*words, root=tmp_path, prepare=crash).outcome()
    assert (crashed.status, statuses(tmp_path)) == (-signal.SIGSEGV, ["RUNNING"])
    other = kdsweep(*words, "seed=1", "epochs=1", root=tmp_path)
    assert "was still marked as running, but its process was ended by SIGSEGV: it is closed." in other.err
    assert statuses(tmp_path) == ["KILLED", "FINISHED"]
    assert runs(tmp_path)[0].data.tags["kdsweep.error"] == "its process was ended by SIGSEGV"
    again = kdsweep(*words, root=tmp_path)
    assert "goes on after epoch 1" in again.err
    assert statuses(tmp_path) == ["FINISHED", "FINISHED"]
    assert "kdsweep.error" not in runs(tmp_path)[0].data.tags
    assert not (tmp_path / "crashes").exists()
