"""Claims about a study that is watched: what is done, what runs and how long the rest takes, from its runs alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from records import SPACE, fresh, record, study, trial
from rich.console import Console

from kdsweep.analysis.findings import summarise
from kdsweep.analysis.progress_now import progress
from kdsweep.analysis.sorted_runs import Readings
from kdsweep.analysis.study_goals import Goals
from kdsweep.report import watching
from kdsweep.system.processes import ProcessId, this_process
from kdsweep.tracking.run_records import PROCESS, RunRecord, StudyRecord

PLANNED = {
    "n_trials": 3,
    "confirm_seeds": 4,
    "confirm_until": 6,
    "baselines": {"teacher": 1, "scratch": 2, "label_smoothing": 2},
}
NOBODY = ProcessId(this_process().host, 2**22 + 1, 0.0)


def baselines() -> list[RunRecord]:
    return [
        record("scratch", val=v, test=None, stage="baseline", params={"seed": s}) for s, v in enumerate((0.8, 0.82))
    ]


def searched(number: int, **more: Any) -> RunRecord:
    run = trial(number, 0.2 * number, 4, val=0.8 + 0.01 * number)
    return replace(run, tags={**run.tags, "kdsweep.stage": "search"}, **more)


def running(study_: StudyRecord, process: ProcessId | None = None) -> StudyRecord:
    """The study while its controller, by default this process, lives."""
    tags = {**study_.parent.tags, PROCESS: str(process or this_process())}
    return replace(study_, parent=replace(study_.parent, status="RUNNING", tags=tags))


def shown(study_: StudyRecord, epochs: dict[str, int | None] | None = None) -> str:
    """What is printed of a study."""
    report = summarise(study_, Readings())
    console = Console(file=StringIO(), width=120)
    console.print(watching.render(report, progress(study_, report.comparison.goals), epochs or {}, Path("out")))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_what_is_left_takes_as_long_as_what_is_done() -> None:
    """Runs of ten seconds, two at a time: seven baselines and trials and 18 fresh seeds at most are left."""
    now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=4)
    going = [searched(number, status="RUNNING", duration_s=None) for number in (1, 2)]
    of = study(*baselines(), searched(0), *going, planned=PLANNED, chosen=None)
    found = progress(of, Goals.read(of.parent.tags), now)
    assert [(stage.name, stage.done, stage.planned) for stage in found.stages] == [
        ("baselines", 2, 5),
        ("trials", 1, 3),
        ("fresh seeds", 0, 18),
    ]
    assert found.seconds_left == pytest.approx((3 + 2 + 18) * 10 / 2 - 4)
    assert found.at_most


def test_a_failed_trial_is_over() -> None:
    """It counts as one of the planned ones; a trial that was started again has not failed."""
    of = study(searched(0, status="FAILED"), searched(1, status="FAILED"), searched(1), planned=PLANNED)
    found = progress(of, Goals.read(of.parent.tags))
    assert (found.stages[1].done, found.failed) == (2, 1)


def test_a_confirmation_that_stopped_has_nothing_left() -> None:
    """Then its seeds are those that count, and those beyond aren't done."""
    runs = [*fresh("scratch", [0.8] * 5), *fresh("label_smoothing", [0.8] * 4), *fresh("distill", [0.9] * 4, trial=0)]
    stop = {"trial": 0, "seeds": 4, "last_seed": 1003, "why": "clear"}
    of = study(searched(0), *runs, planned=PLANNED, chosen=0, stopped=stop)
    stage = progress(of, Goals.read(of.parent.tags)).stages[2]
    assert (stage.done, stage.planned, stage.at_most) == (12, 12, False)


def test_a_running_study_is_shown() -> None:
    """The best trial with the noise's interval, the answer so far, and each running run with its epoch."""
    going = searched(2, status="RUNNING", duration_s=None)
    going = replace(
        going, tags={**going.tags, "kdsweep.job": "trial-0002", PROCESS: str(NOBODY)}, params={"epochs": "9"}
    )
    runs = [*fresh("scratch", [0.8, 0.81, 0.8, 0.79]), *fresh("distill", [0.9, 0.91, 0.9, 0.9], trial=1)]
    of = running(study(*baselines(), searched(0), searched(1), *runs, going, planned=PLANNED, chosen=1, space=SPACE))
    told = shown(of, {going.id: 3})
    assert "min left" in told
    assert "2 of 3" in told
    assert "Best of 2 trials: validation accuracy 81.00% (" in told
    assert "by the noise over seeds, 95%), trial 1 (alpha 0.2, tau 4)" in told
    assert "distill - scratch: +10.2" in told
    assert "better, 4 pairs" in told
    assert f"trial-0002, epoch 3 of 9, process {NOBODY.pid} on {NOBODY.host}" in told
    assert "look in the middle" not in told


def test_a_study_whose_command_was_killed_is_not_waited_for() -> None:
    """Its run stays open in MLflow, but its process is gone."""
    of = running(study(*baselines(), planned=PLANNED), NOBODY)
    assert not watching.goes_on(of)
    assert "not running; its command goes on with it" in shown(of)
    assert "look in the middle" not in shown(of)


def test_watching_follows_a_study_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page loads itself again while the study runs, and no longer once it has ended."""
    first = running(study(*baselines(), planned=PLANNED))
    moments = [first, first, replace(first, parent=replace(first.parent, status="FINISHED"))]
    pages = []
    monkeypatch.setattr(watching.time, "sleep", lambda _: pages.append((tmp_path / "report.html").read_text()))
    monkeypatch.setattr("kdsweep.report.writing.readings", lambda *_: Readings())
    store: Any = SimpleNamespace(study=lambda _: moments.pop(0), history=lambda *_: [], page_of=lambda _: None)
    watching.watch(store, first.parent.id, tmp_path)
    last = (tmp_path / "report.html").read_text()
    assert ['http-equiv="refresh" content="30"' in page for page in [*pages, last]] == [True, True, False]
    assert capsys.readouterr().out.count("Study study") == 2
