"""Claims about what is said at the end of a run, a grid and a study: it can be typed as it stands."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from configurations import composed
from records import fresh, record, summary, trial

from kdsweep import train
from kdsweep.analysis.study_goals import Objective
from kdsweep.report import next_commands
from kdsweep.tracking.location import store_uri

RUN = "0123456789abcdef" * 2
ACCURACY = Objective("val/accuracy")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project folder, which the environment names, without a store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("KDSWEEP_HOME", str(tmp_path))
    return tmp_path


def test_after_a_run_its_id_stands_in_the_commands(home: Path) -> None:
    """A teacher has no export."""
    uri = store_uri(None, home)
    exported = "Next: kdsweep-export 01234567, kdsweep-reproduce 01234567, kdsweep-ui"
    assert next_commands.after_run(uri, home, RUN, "distill") == exported
    assert next_commands.after_run(uri, home, RUN, "scratch") == exported
    assert next_commands.after_run(uri, home, RUN, "teacher") == "Next: kdsweep-reproduce 01234567, kdsweep-ui"


def test_a_student_whose_arm_follows_from_its_loss_can_be_exported(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user's experiment file needs no arm."""
    config = composed("data=synthetic", "teacher=random", "arm=null")
    train._say_what_comes_next(config, train.Trained(RUN, {}, ()))
    assert capsys.readouterr().err.startswith("Next: kdsweep-export 01234567, kdsweep-reproduce 01234567")


def test_what_the_environment_does_not_say_is_an_option(home: Path) -> None:
    """A folder or a store that was given on the command line is needed by the next command too."""
    folder = home / "my pets"
    line = next_commands.after_run(store_uri(None, folder), folder, RUN, "teacher")
    assert line.startswith(f"Next, each with --root {shlex.quote(str(folder))}: ")
    line = next_commands.after_run(f"sqlite:///{home}/other.db", home, RUN, "teacher")
    assert line.startswith(f"Next, each with --uri sqlite:///{home}/other.db: ")


def test_a_server_is_named_without_its_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its own page, so nobody needs kdsweep-ui."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:geheim@host:5000")
    line = next_commands.after_run(store_uri(None, home), home, RUN, "teacher")
    assert line == "Next: kdsweep-reproduce 01234567, http://me:***@host:5000"


def test_after_a_grid_its_best_run_is_named(home: Path) -> None:
    """By the first objective, whichever way is better; runs that failed, or lack it, are counted alone."""
    uri = store_uri(None, home)
    runs = [
        replace(record("distill", val=val), id=f"{number}{RUN}") for number, val in enumerate((0.5, 0.75, math.nan))
    ]
    runs.append(record("distill", val=0.99, status="FAILED"))
    found, line = next_commands.after_grid(uri, home, RUN, runs, ACCURACY)
    assert found == "Grid: 3 of 4 runs finished; the best validation accuracy is 75.00%, run 10123456 (distill)."
    assert line == "Next: kdsweep-report 01234567, kdsweep-export 10123456, kdsweep-reproduce 10123456, kdsweep-ui"
    runs = [replace(run, metrics={"val/nll": nll}) for run, nll in zip(runs[:3], (0.25, 2.0, 1.0), strict=True)]
    found, line = next_commands.after_grid(uri, home, RUN, runs, Objective("val/nll", maximise=False))
    assert found.startswith("Grid: 3 runs; the best validation NLL is 0.25")
    assert "kdsweep-export 00123456," in line


def test_after_a_grid_without_results_its_report_is_left(home: Path) -> None:
    """There is no best run."""
    lines = next_commands.after_grid(store_uri(None, home), home, RUN, [record("distill", status="KILLED")], ACCURACY)
    assert lines == ["Grid: 0 of 1 run finished.", "Next: kdsweep-report 01234567, kdsweep-ui"]


def test_after_a_study_the_first_fresh_seed_is_named(home: Path) -> None:
    """It has the chosen setting, and has read the test split; without fresh seeds it is the chosen trial's run."""
    uri, searched = store_uri(None, home), [trial(0, 0.3, 4, val=0.8), trial(1, 0.6, 2, val=0.9)]
    confirmed = [run for arm in ("scratch", "distill") for run in fresh(arm, (0.8, 0.9))]
    report = summary(*searched, *confirmed)
    (first,) = [arm.runs[0] for arm in report.arms if arm.name == "distill"]
    parent = report.study.parent.id[:8]
    expected = f"Next: kdsweep-report {parent}, kdsweep-export {first.id}, kdsweep-reproduce {first.id}, kdsweep-ui"
    assert next_commands.after_study(uri, home, report) == expected
    report = summary(*searched)
    line = next_commands.after_study(uri, home, report)
    assert f"kdsweep-reproduce {searched[1].id}," in line
    assert "kdsweep-export" not in next_commands.after_study(uri, home, summary())
