"""Claims about the benchmarks of what runs around a training: each measures the product at a tiny size."""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import benchmark
import pytest
from benchmarks import decode, measuring, scale, start, trial, workers
from benchmarks.measuring import Clock
from PIL import Image

from kdsweep.system.errors import RunError, UserError

QUICK = "shufflenet_v2_x0_5"
TINY = ("--pictures", "32", "--rounds", "1", "--student", QUICK, "--teacher", QUICK, "--precision", "fp32")

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def each_round_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run beside others, and no figure of theirs is for anybody's eyes."""
    monkeypatch.setattr(measuring, "PATIENCE", 1)


def measured(name: str, folder: Path, *words: str) -> dict[str, Any]:
    """What the subcommand wrote; its figures by name."""
    benchmark.main([name, *words, "--json", str(folder / "found.json")])
    found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return {**found, "figures": {figure["name"]: figure for figure in found["figures"]}}


def goals(found: dict[str, Any]) -> dict[str, str]:
    """The goals of the figures that have one, by the first words of their names."""
    return {name.partition(",")[0]: figure["goal"] for name, figure in found["figures"].items() if figure["goal"]}


def assert_finite(found: dict[str, Any]) -> None:
    """All figures have a value, and none is negative."""
    values = [figure["value"] for figure in found["figures"].values()]
    assert all(value is not None and 0 <= value < math.inf for value in values)


# ------------------------------------------------------------------------------------------------------------ start


@pytest.mark.all
def test_commands_are_measured_as_whole_processes(tmp_path: Path) -> None:
    """Help and the refusals have the issue's goal; what Hydra takes by itself stands beside them."""
    found = measured("start", tmp_path, "--rounds", "1", "--short")
    assert_finite(found)
    names = ("kdsweep --help", *(f"the refusal of {name}" for name in start.REFUSALS))
    assert goals(found) == dict.fromkeys(names, "<= 1.5")
    assert found["figures"]["an empty Hydra application: --help"]["goal"] == ""
    (bare,), (helped,) = (found["short"]["seconds"][side] for side in ("import hydra", "help"))
    assert found["figures"]["kdsweep --help"]["value"] == pytest.approx(helped / bare)


def test_what_imports_torch_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal of a value that torch judges, with the same goal, and a whole run; five times and once to warm up."""
    asked: list[str] = []
    monkeypatch.setattr(start, "process", lambda folder, *command, status=0: lambda: asked.append(command[-1]) or 1.0)
    found = start.measure(benchmark.parser().parse_args(["start", "--rounds", "1"]))
    assert [figure.goal for figure in found.figures if figure.name.endswith("torch judges")] == [1.5]
    assert asked.count(start.TORCH_REFUSAL) == asked.count(start.TINY[-1]) == 6


def test_a_process_that_ends_otherwise_is_no_measurement(tmp_path: Path) -> None:
    """A command that fails where it should work, quickly, is not called quick."""
    with pytest.raises(RunError, match=r"kdsweep.train loss.alhpa=1` ended with status 2: kdsweep: loss.alhpa: there"):
        start.process(tmp_path, *start.KDSWEEP, "loss.alhpa=1")()


# ------------------------------------------------------------------------------------------------------------ trial


@pytest.mark.all
def test_a_trial_is_measured_part_by_part(tmp_path: Path) -> None:
    """In this process and in workers; the parts of a trial add up to it, and its training is in none of them."""
    found = measured("trial", tmp_path, *TINY)
    assert_finite(found)
    assert goals(found) == {
        "a trial in process": "<= 0.5 s",
        "the start of a worker's job": "<= 0.1 s",
        "the same in a worker that waits": "<= 0.1 s",
        "tracking": "<= 0.005",
    }
    assert len(found["trials"]) == 2
    for lap in found["trials"]:
        assert lap.keys() >= {trial.COMPOSITION, trial.TRAINING, trial.REST, "MLflow", "student built", "table lookup"}
    last = found["trials"][-1]
    outside = sum(last.values()) - last[trial.TRAINING]
    assert found["figures"]["a trial in process, outside its training"]["value"] == pytest.approx(outside)
    epoch, tracked = found["tracking"]["seconds"]["epoch"][0], found["tracking"]["seconds"]["tracking"][0]
    share = tracked / trial.EPOCHS / (epoch * 45_000 / 32)
    assert found["figures"]["tracking, of an epoch"]["value"] == pytest.approx(share)


def test_the_product_is_left_as_it_was() -> None:
    """What is charged to parts is so for the block alone, whatever ends it."""
    before = [getattr(owner, name) for places in trial.timed_parts().values() for owner, name in places]
    with pytest.raises(RuntimeError), trial.charged(Clock("rest")):
        raise RuntimeError
    assert before == [getattr(owner, name) for places in trial.timed_parts().values() for owner, name in places]


# ---------------------------------------------------------------------------------------------------------- workers


@pytest.mark.all
def test_processes_on_one_device_are_measured(tmp_path: Path) -> None:
    """What `workers --device cuda` does, here on a CPU: one process and two, with the same results."""
    words = ["workers", *TINY, "--device", "cpu", "--workers", "2", "--epochs", "1"]
    found = workers.on_one_device(benchmark.parser().parse_args(words))
    figures = {figure.name: figure.value for figure in found.figures}
    assert figures["runs that differ"] == 0
    assert all(figures[f"processes: {n}"] > 0 for n in (1, 2))
    assert figures["2 processes against one, pictures/s"] > 0
    assert "sweep.n_jobs=" in found.notes[0]


@pytest.mark.all
def test_workers_are_measured_against_one_process(tmp_path: Path) -> None:
    """As many pictures on both sides; no more threads than cores; the same weights from one worker and from two."""
    found = measured("workers", tmp_path, *TINY, "--device", "cpu", "--workers", "2", "--epochs", "1")
    assert_finite(found)
    ratio = "2 workers of 1 thread against 1 process of 2 threads, pictures/s"
    (one,), (many,) = (found["seconds"][side] for side in ("one process", "workers"))
    assert found["figures"][ratio]["value"] == pytest.approx(one / many)
    assert found["figures"][ratio]["goal"] == ">= 1"
    assert found["figures"]["threads that all workers may compute with, per core"]["value"] == 1.0
    assert found["figures"]["runs that differ between 1 worker and 2"]["value"] == 0.0


def test_threads_that_run_are_counted() -> None:
    """This one does; a process that is gone has none."""
    assert workers.running_threads(os.getpid()) >= 1
    assert workers.running_threads(2**22 + 1) == 0


def test_jobs_are_counted_from_the_first_start_to_the_last_end() -> None:
    """What overlaps counts once."""
    assert workers.span([{"began": 1.0, "ended": 3.0}, {"began": 2.0, "ended": 5.0}]) == 4.0


# ----------------------------------------------------------------------------------------------------------- decode


def test_decoding_is_measured(tmp_path: Path) -> None:
    """Of pictures that are made, and the cache gives the same."""
    found = measured("decode", tmp_path, "--pictures", "40", "--rounds", "1")
    assert_finite(found)
    assert found["figures"]["pictures that differ when they come from the cache"]["value"] == 0.0
    single, cached = (found["seconds"][side][0] for side in ("one thread", "cached"))
    assert found["figures"]["from the cache, against one thread"]["value"] == pytest.approx(single / cached)


def test_pictures_of_a_folder_are_decoded(tmp_path: Path) -> None:
    """As many as were asked for, from sub-folders too; other files are left out; without any there is an error."""
    for name in ("a/1.png", "a/b/2.JPG", "3.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    assert decode.found(tmp_path, 9) == ["3.jpeg", "a/1.png", "a/b/2.JPG"]
    assert len(decode.found(tmp_path, 2)) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no pictures"):
        decode.found(tmp_path / "empty", 9)


# ------------------------------------------------------------------------------------------------------------ scale


@pytest.mark.all
def test_growth_is_measured(tmp_path: Path) -> None:
    """Over pictures, trials and passes, each in proportion to how many there are."""
    sizes = ("--pictures", "1200", "--trained", "24", "--trials", "3", "--passes", "4")
    found = measured("scale", tmp_path, *sizes, "--rounds", "1", "--student", QUICK, "--precision", "fp32")
    assert_finite(found)
    assert set(goals(found).values()) == {"<= 1.1", "<= 1.05", "<= 0.05"}
    assert len(found["over_trials"]["rss"]) == 3
    assert len(found["over_passes"]["read"]) == 4
    assert found["over_passes"]["bytes"] == 4 * 1200 * 10 * 4
    few, many = (found["over_pictures"]["without the network"]["seconds"][side][0] for side in ("few", "many"))
    ratio = found["figures"]["time per picture, 1,200 against 1,000"]["value"]
    assert ratio == pytest.approx(many / few * 1000 / 1200)


def test_late_is_held_against_early() -> None:
    """The last quarter's median over the first's."""
    assert scale.late([1.0, 1.0, 9.0, 9.0, 9.0, 9.0, 3.0, 3.0]) == 3.0
    assert scale.late([2.0]) == 1.0


def test_memory_of_files_is_nobodys() -> None:
    """Bytes that are written to count; the figure is the kernel's."""
    before = scale.own_memory()
    # More than what other tests may give back meanwhile.
    held = bytearray(os.urandom(1 << 27))
    assert scale.own_memory() - before > (1 << 26)
    del held


def test_each_subcommand_has_its_defaults() -> None:
    """At least five rounds, as the issue asks for, and 50 trials, 162 passes and 50,000 pictures to grow to."""
    given: dict[str, argparse.Namespace] = {
        name: benchmark.parser().parse_args([name]) for name in ("start", "trial", "workers", "decode", "scale")
    }
    assert min(arguments.rounds for arguments in given.values()) >= 5
    grown = given["scale"]
    assert (grown.pictures, grown.trials, grown.passes) == (50_000, 50, 162)
