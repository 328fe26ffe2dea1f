"""Claims about the report in the terminal: it shows what there is, a missing number is no zero, and lines fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from records import fresh, pruned, record, summary, trial

from kdsweep.analysis.findings import Report
from kdsweep.report import console
from kdsweep.report.console import WIDTH


def shown(report: Report, capsys: pytest.CaptureFixture[str]) -> str:
    console.show(report)
    return capsys.readouterr().out


def test_nothing_at_all_is_still_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    """A study that has just begun prints what is not there yet."""
    printed = shown(summary(), capsys)
    assert "runs: no runs" in printed
    assert "No verdict" in printed
    assert "no finished distilled run" in printed
    assert "no finished scratch run" in printed


def test_a_list_names_studies_grids_and_single_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Runs below others are counted; other programs' runs aren't kdsweep's."""
    study = replace(record("study", status="KILLED"), name="alpha_tau", metrics={})
    search = replace(record("group"), name="multirun 2026-01-01", metrics={})
    grid = replace(record("group", tags={"kdsweep.process": "a"}, status="KILLED"), name="multirun mine", metrics={})
    below = [replace(record("distill"), parent=study.id) for _ in range(3)]
    foreign = replace(record("distill"), tags={}, name="somebody's")
    console.show_list([study, *below, search, grid, record("scratch", val=0.4567), foreign])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[3:] == [
        f"study {study.id} alpha_tau 2026-01-01 00:00 3 killed",
        f"grid {search.id} multirun 2026-01-01 2026-01-01 00:00 0",
        f"grid {grid.id} multirun mine 2026-01-01 00:00 0 killed",
        f"run {lines[6].split()[1]} scratch 2026-01-01 00:00 finished 45.67",
    ]
    console.show_list([])
    assert capsys.readouterr().out.startswith("There are no runs yet.")


def test_trials_without_baselines(capsys: pytest.CaptureFixture[str]) -> None:
    """There is a table but no target, and nothing is said about a difference."""
    found = summary(trial(0, 0.5, 4))
    assert "target:" not in shown(found, capsys)
    assert found.target is None
    assert not any("On test" in finding for finding in found.findings)


def test_a_run_without_test_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    """A missing metric is a dash, not a zero."""
    printed = shown(summary(record("scratch", test=None)), capsys)
    (row,) = [line for line in printed.splitlines() if line.startswith("scratch")]
    assert row.split() == ["scratch", "1", "90.00", "-", "-", "-", "-", "never", "10.0"]


def test_runs_that_never_reach_the_target_are_not_averaged_away(capsys: pytest.CaptureFixture[str]) -> None:
    """One of two scratch runs gets there, and the cell says so; a distilled run that doesn't has "never"."""
    runs = (record("scratch", val=0.9), record("scratch", val=0.7), trial(0, 0.5, 4))
    printed = shown(summary(*runs, curves={0: [0.5, 0.9], 1: [0.6, 0.7], 2: [0.1, 0.2]}), capsys)
    assert "2.0 (1 of 2)" in printed
    assert "never" in printed


def test_lines_fit_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """The widest table, with three fresh runs per arm, fits into 100 characters without breaking a cell."""
    values = (0.91, 0.92, 0.93)
    runs = [run for role in ("scratch", "label_smoothing", "distill") for run in fresh(role, values, val=0.9)]
    runs += [trial(number, 0.01234 * number, 2) for number in range(40)]
    printed = shown(summary(*runs), capsys)
    assert max(map(len, printed.splitlines())) <= WIDTH
    assert "label smoothing    3*  90.00 ±0.00  92.00 ±1.00" in printed
    assert "the best 10 of 40" in printed


def test_the_verdict_stands_above_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict is what the reader came for."""
    runs = [*fresh("scratch", [0.9, 0.91, 0.9]), *fresh("distill", [0.92, 0.935, 0.9])]
    printed = shown(summary(*runs), capsys)
    assert 0 < printed.index("Distillation is not distinguishable") < printed.index("test")


def test_pruned_runs_are_not_called_killed(capsys: pytest.CaptureFixture[str]) -> None:
    """The heading counts them as pruned."""
    killed = record("scratch", status="KILLED")
    assert "runs: 1 pruned, 1 killed" in shown(summary(pruned(0, 2), killed), capsys)


def test_the_pareto_set_has_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """It has both objectives; a study with one objective has no Pareto set."""
    runs = [
        record("distill", val=a, metrics={"val/nll": n}, params={"loss.alpha": i}, tags={"kdsweep.trial": str(i)})
        for i, (a, n) in enumerate([(0.9, 0.5), (0.8, 0.1)])
    ]
    both = [["val/accuracy", "maximize"], ["val/nll", "minimize"]]
    assert "Pareto set" in shown(summary(*runs, objectives=both), capsys)
    assert "Pareto set" not in shown(summary(*runs), capsys)


def test_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At 80 columns the deviation stands under the mean, and every number is whole."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal
    monkeypatch.setenv("COLUMNS", "80")
    printed = shown(summary(record("scratch", val=0.9), record("scratch", val=0.92)), capsys)
    assert "91.00 " in printed
    assert "±1.41" in printed
    assert "91.00 ±1.41" not in printed
    assert "…" not in printed
