"""Claims about the table of conditions: it says what a study was run with, and leaves out what isn't known."""

from __future__ import annotations

from dataclasses import replace

from records import SPACE, record, summary, trial

from kdsweep.analysis.findings import Report
from kdsweep.report.conditions import conditions

PARAMS = {
    **{"epochs": 30, "batch_size": 50, "n_passes": 8, "deterministic": True, "arm": "distill"},
    **{"data._target_": "kdsweep.data.digits", "data.train_fraction": 0.1, "data.padding": 4, "data.flip": False},
    **{"model.name": "resnet18", "model.stem": "cifar", "model.weights": None, "model.freeze": "none"},
    **{"teacher.network.name": "lite0", "teacher.network.weights": "pkg://lite0/models/lite0.pth"},
    **{"teacher.network.input_size": 128, "teacher.network.freeze": "backbone"},
    **{"optimizer._target_": "torch.optim.SGD", "optimizer.lr": 0.05, "optimizer.momentum": 0.9},
    **{"schedule._target_": "kdsweep.schedules.one_cycle", "schedule.warmup": 0.25},
    **{"runtime.device": "cpu", "runtime.precision": "fp32", "runtime.threads": 1},
}
AROUND = {
    **{"cpu": "Xeon", "gpu": None, "kdsweep": "0.1.0", "python": "3.11.7", "packages": {"torch": "2.9", "rich": "14"}},
    **{"git_commit": "0123456789abcdef", "git_dirty": True},
}


def rows(report: Report) -> dict[str, str]:
    return {row[0]: row[1] for row in conditions(report).rows}


def test_a_study_states_its_conditions() -> None:
    """Networks, data with the pictures of each split, training, machine, versions and commands."""
    run = replace(trial(0, 0.5, 4, **PARAMS), splits={"training": 1000, "validation": 297, "test": 500})
    report = summary(run, space=SPACE, planned={"n_trials": 10})
    parent = replace(report.study.parent, tags={**report.study.parent.tags, "kdsweep.command": "kdsweep sweep=demo"})
    found = replace(
        report.comparison,
        study=replace(report.study, parent=parent),
        readings=replace(report.comparison.readings, environment=AROUND),
    )
    assert rows(replace(report, comparison=found)) == {
        "student": "resnet18, random initialisation, cifar stem",
        "teacher": "lite0, weights lite0.pth, at 128 px, frozen: backbone",
        "data": "digits, 1,000 training, 297 validation, 500 test pictures; train_fraction 0.1",
        "augmentation": "random crop with a padding of 4 px, no flip, 8 views of each picture",
        "training": "30 epochs, batches of 50, SGD (rate 0.05, momentum 0.9), one-cycle schedule with a warm-up of "
        "0.25",
        "search": "10 trials over alpha 0 to 1, tau 1 to 20 (logarithmic); by validation accuracy",
        "machine": "Xeon, device cpu, fp32, 1 thread a run, deterministic",
        "versions": "kdsweep 0.1.0, Python 3.11.7, torch 2.9, commit 0123456789ab with changes",
        "command": "kdsweep sweep=demo",
        "this report": f"kdsweep-report {parent.short_id}",
    }


def test_values_that_differ_are_listed() -> None:
    """A grid over the learning rate has several."""
    runs = [trial(k, 0.5, 4, **{**PARAMS, "optimizer.lr": lr}) for k, lr in enumerate((0.1, 0.2))]
    assert "SGD (rate 0.1, 0.2, momentum 0.9)" in rows(summary(*runs))["training"]


def test_what_is_not_known_is_left_out() -> None:
    """A study that has just begun, and runs of another version without these parameters, have no empty rows."""
    assert rows(summary()) == {}
    assert "" not in rows(summary(record("scratch"))).values()
