"""Claims about the benchmarks: what they add up and what they say; that they measure, on a study of a few trials."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import benchmark
import pytest
import torch
from benchmarks import limit, study, whole_study
from benchmarks.measuring import Clock, Figure, Load, take_turns
from configurations import composed

from kdsweep.system.sqlite import sqlite_uri
from kdsweep.tracking.store import Store


def series(*seconds: float, sampler: str = "random") -> Any:
    """Trials whose ask took so long; nothing else took any time."""
    return study.Series(sampler, [{study.ASK: (value, value / 2)} for value in seconds])


def test_the_innermost_part_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured inside a part is not in that part too, and the parts of a lap add up to its time."""
    now = iter([0.0, 1.0, 3.0, 7.0, 8.0, 13.0])
    monkeypatch.setattr(Clock, "_now", lambda self: (next(now), 0.0))
    clock = Clock("rest")
    with clock.part("outer"), clock.part("inner"):
        pass
    lap = {name: wall for name, (wall, _) in clock.lap().items()}
    assert lap == {"rest": 1.0 + 5.0, "outer": 2.0 + 1.0, "inner": 4.0}


def test_a_lap_starts_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the lap before it took is not in it."""
    now = iter([0.0, 5.0, 7.0])
    monkeypatch.setattr(Clock, "_now", lambda self: (next(now), 0.0))
    clock = Clock("rest")
    clock.lap()
    assert clock.lap() == {"rest": (2.0, 0.0)}


@pytest.mark.parametrize(("last", "word"), [(0.7, "flat"), (1.4, "flat"), (1.6, "GROWS"), (0.6, "UNCLEAR")])
def test_the_ends_of_a_study_are_compared(last: float, word: str) -> None:
    """The medians of the last 50 trials against those of the first 50, whatever lies between."""
    found = series(*[1.0] * 49, 99.0, *[50.0] * 30, 99.0, *[last] * 49)
    assert found.ratio([study.ASK]) == pytest.approx(last)
    said = study.verdict(found)
    assert f"the controller {word}" in said
    assert f"({last:.2f}" in said


def test_ends_do_not_overlap() -> None:
    """Of five trials, two and two."""
    assert series(1.0, 1.0, 9.0, 2.0, 2.0).ends([study.ASK]) == (1.0, 2.0)


def test_trials_with_artifacts_count_for_those_alone() -> None:
    """Their other parts are in no median; a window without such a trial has no number, which JSON shows as null."""
    with_artifacts = {study.FILES: (5.0, 5.0), study.ASK: (9.0, 9.0)}
    found = study.Series("random", [with_artifacts, *series(1.0, 1.0, 1.0).laps])
    assert found.ends([study.ASK]) == (1.0, 1.0)
    first, last = found.ends([study.FILES])
    assert first == 5.0
    assert math.isnan(last)
    assert "NaN" not in json.dumps(found.values())


def test_a_gaussian_process_is_shown_over_its_trials() -> None:
    """Its ask grows by its nature: it is said how much, and is no verdict."""
    said = study.verdict(series(*[9.0] * 5, *[0.01] * 5, *[0.2] * 40, sampler="gp"))
    assert "10.0 at trial 10, 200 at trial 50" in said
    assert "GROWS" not in said


@pytest.mark.parametrize(("before", "after", "busy"), [(0.5, 2.0, False), (2.5, 1.0, True), (0.5, 2.1, True)])
def test_a_busy_machine_is_said_to_be_one(before: float, after: float, busy: bool) -> None:
    """More processes than cores want to run, before or after."""
    load = Load(before, after, 2)
    assert load.busy is busy
    assert ("BUSY" in load.words()) is busy


def test_ratios_are_of_what_stood_side_by_side() -> None:
    """Each round gives a ratio, and the figure is their median: a machine that slows down changes nothing."""
    slow, fast = iter([9.0, 2.0, 4.0, 8.0]), iter([9.0, 1.0, 2.0, 4.0])
    turns = take_turns("", {"slow": lambda: next(slow), "fast": lambda: next(fast)}, rounds=3, threads=-99)
    figure = turns.ratio("slow against fast", "slow", "fast", goal=1.5)
    assert turns.disturbed == 0
    assert (figure.value, figure.spread, figure.holds) == (2.0, (2.0, 2.0), False)


def test_disturbed_rounds_are_measured_again_and_then_said_to_be_busy() -> None:
    """With no core to spare for whatever else runs, each round is disturbed: three times as many, and a note."""
    calls: list[None] = []
    turns = take_turns("", {"side": lambda: calls.append(None) or 1.0}, rounds=2, threads=99)
    assert len(calls) == 1 + 3 * 2
    assert "BUSY: 2 of 2" in turns.ratio("", "side", "side").note


@pytest.mark.parametrize(("at_most", "holds"), [(True, False), (False, True)])
def test_goals_have_a_direction(at_most: bool, holds: bool) -> None:
    """At most, or at least; and a figure that couldn't be measured neither holds nor fails."""
    assert Figure("", 1.1, 1.0, at_most).holds is holds
    assert Figure("", math.nan, 1.0, at_most).holds is None


@pytest.mark.all
@pytest.mark.slow
def test_a_study_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real stores; every trial has each part, MLflow has each run, the terminal a table without the study's notes."""
    words = ["study", "--trials", "4", "--sampler", "random", "--pruner", "median", "--out", str(tmp_path / "kept")]
    benchmark.main([*words, "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    (measured,) = found["studies"]
    assert measured["trials"] == len(measured["wall_of_each"]) == 4
    assert all(lap.keys() >= set(study.EVERYTHING) for lap in measured["wall_of_each"])
    assert [study.FILES in lap for lap in measured["wall_of_each"]] == [True, False, False, False]
    assert found["machine"]["cpu"]
    assert found["load"]["cores"] >= 1

    (folder,) = (tmp_path / "kept").iterdir()
    store = Store(sqlite_uri(folder / "mlflow.db"))
    runs = store.study().runs(arm="distill", stage="search")
    assert [run.tags["kdsweep.job"] for run in runs] == [f"trial-{number:04d}" for number in range(4)]
    assert store.text(runs[0].id, "config.yaml") is not None
    assert store.text(runs[1].id, "config.yaml") is None

    printed = capsys.readouterr()
    assert "4 empty trials" in printed.out
    assert "Trial 0" not in printed.out + printed.err
    assert "Trial 3 (4 of 4)" in (folder / "notes.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_storage_of_others_is_left_as_it_was(tmp_path: Path) -> None:
    """The study is taken out of a storage that was named."""
    url = sqlite_uri(tmp_path / "shared.db")
    benchmark.main(["study", "--trials", "2", "--sampler", "qmc", "--storage", url])
    import optuna

    assert optuna.get_all_study_names(url) == []


def test_trials_must_be_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    """One line says so."""
    with pytest.raises(SystemExit):
        benchmark.main(["study", "--trials", "0"])
    assert "a whole number from 1 must be given, but got '0'" in capsys.readouterr().err


def test_a_whole_study_is_that_of_the_goal(tmp_path: Path) -> None:
    """50 trials of 16 epochs of 45,000 pictures, beside baselines and confirmation; overrides come last."""
    words = ["study", "--device", "cuda", "--jobs", "2", "--set", "optimizer.lr=0.05", "sweep.baseline_seeds=2"]
    command = whole_study.command(benchmark.parser().parse_args(words), tmp_path)
    assert command[1:3] == ["-m", "kdsweep.train"]
    cfg = composed(*command[3:])
    assert (cfg.device, cfg.epochs, cfg.sweep.n_trials, cfg.sweep.n_jobs) == ("cuda", 16, 50, 2)
    assert cfg.data.n_train - cfg.data.val_size == 45_000
    assert (cfg.optimizer.lr, cfg.sweep.baseline_seeds, cfg.teacher.network.weights) == (0.05, 2, None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.slow
def test_the_limit_of_a_gpu_is_a_graph(tmp_path: Path) -> None:
    """The other side replays a CUDA graph of the whole step, and the figure's line says so."""
    words = ["limit", "--device", "cuda", "--batch", "128", "--rounds", "1", "--json", str(tmp_path / "found.json")]
    benchmark.main(words)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["notes"][0] == limit.GRAPH_LINE
    assert [figure["goal"] for figure in found["figures"] if "against" in figure["name"]] == [">= 0.9"] * 2
