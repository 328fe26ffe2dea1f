"""Claims about contests as commands: real runs, killed and gone on with, and their report."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path

import optuna
import pytest
from commands import SHORT, Command, artifacts, runs
from crashes import kill_at
from in_process import kdsweep
from optuna.trial import TrialState

from kdsweep.system.sqlite import sqlite_uri

pytestmark = pytest.mark.slow

LOSSES = (
    "sweep=losses",
    *SHORT,
    *("epochs=1", "batch_size=96", "sweep.contenders=[ce,kd]", "sweep.against=[kd]"),
    *("sweep.n_trials=1", "sweep.confirm_seeds=1", "sweep.max_restarts=50"),
)


def jobs(root: Path) -> list[str]:
    return sorted(run.data.tags["kdsweep.job"] for run in runs(root) if "kdsweep.job" in run.data.tags)


def test_a_contest_of_losses_that_is_killed_goes_on(tmp_path: Path) -> None:
    """Killed in a search and in the choice; no job is done twice, each search keeps its trials, and all is recorded."""
    for place, when in (
        ("kdsweep.study.search:Search._tell", "before"),
        ("kdsweep.study.stages:Stages.choose", "after"),
        ("kdsweep.report.writing:write", "before"),
    ):
        done = Command(*LOSSES, root=tmp_path, prepare=partial(kill_at, place, when)).outcome()
        assert done.status == -signal.SIGKILL, (place, done)
    done = kdsweep(*LOSSES, root=tmp_path)
    assert done.status == 0, done.err
    assert "all 5 runs are done" in done.err
    finished = [run for run in runs(tmp_path) if run.info.status == "FINISHED" and "kdsweep.job" in run.data.tags]
    assert sorted(run.data.tags["kdsweep.job"] for run in finished) == [
        *("ce--trial-0000", "confirm-ce--trial-0000-1000", "confirm-kd--trial-0000-1000"),
        *("kd--trial-0000", "teacher-0"),
    ]
    assert {run.data.tags.get("kdsweep.contender") for run in finished} == {None, "ce", "kd"}
    for name in ("losses/ce", "losses/kd"):
        study = optuna.load_study(study_name=name, storage=sqlite_uri(tmp_path / "studies" / "losses" / "optuna.db"))
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE]
    (parent,) = runs(tmp_path, "study")
    assert parent.info.status == "FINISHED"
    told = json.loads((artifacts(parent) / "report" / "report.json").read_text())
    assert [arm["arm"] for arm in told["arms"]] == ["teacher", "ce", "kd"]
    changed = kdsweep(*LOSSES, "sweep.define.kd=['loss=kd','loss.tau=3']", root=tmp_path)
    assert changed.status == 2
    assert "another configuration" in changed.error


@pytest.mark.all
def test_data_hunger_runs_every_contender_with_every_share(tmp_path: Path) -> None:
    """The report says how many pictures each had, and more seeds can be added to it."""
    words = ("sweep=data_hunger", *SHORT, "epochs=1", "sweep.fractions=[0.5,1.0]", "sweep.against=[scratch]")
    words = (*words, "sweep.contenders=[scratch,distill,shuffled]")
    for seeds in (1, 2):
        done = kdsweep(*words, f"sweep.confirm_seeds={seeds}", root=tmp_path)
        assert done.status == 0, done.err
    fresh = [job for job in jobs(tmp_path) if job.startswith("confirm")]
    assert fresh == [
        f"confirm-{name}--fixed--at-{share}-{seed}"
        for name in ("distill", "scratch", "shuffled")
        for share in ("0.5", "1")
        for seed in (1000, 1001)
    ]
    (parent,) = runs(tmp_path, "study")
    told = json.loads((artifacts(parent) / "report" / "report.json").read_text())
    assert [cell["amount"] for cell in told["contest"]["cells"]] == [32, 32, 32, 64, 64, 64]
    assert {run.data.tags["kdsweep.role"] for run in runs(tmp_path, contender="shuffled")} == {"shuffled"}
    assert (artifacts(parent) / "report" / "across.png").exists()
