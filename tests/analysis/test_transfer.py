"""Claims about what a report says of a search of shorter runs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from records import fresh, record, summary

from kdsweep.analysis.findings import Report
from kdsweep.analysis.study_goals import pilot_job
from kdsweep.report.conditions import conditions
from kdsweep.tracking.run_records import RunRecord


def run(number: int, job: str, *, val: float, epochs: int) -> RunRecord:
    """A trial's run, or one of the pilot's; an epoch takes a second."""
    stage = "pilot" if job.startswith("pilot") else "search"
    return record(
        "distill",
        val=val,
        test=None,
        stage=stage,
        params={"loss.alpha": number / 10, "epochs": epochs, "seed": 0},
        tags={"kdsweep.trial": str(number), "kdsweep.job": job},
        metrics={"seconds": float(epochs)},
    )


def reported(*, cheap: bool) -> Report:
    """A study with a pilot of six settings, whose short runs lose 0.1, and two more trials."""
    scores = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.6]
    found = []
    for number, value in enumerate(scores[:6]):
        found.append(run(number, pilot_job(number, short=True), val=value - 0.1, epochs=5))
        found.append(run(number, pilot_job(number, short=False), val=value, epochs=20))
    for number in (6, 7):
        val = scores[number] - 0.1 * cheap
        found.append(run(number, f"trial-000{number}", val=val, epochs=5 if cheap else 20))
    for arm, trial in (("distill", 6), ("scratch", None), ("label_smoothing", None)):
        found += fresh(arm, [0.8, 0.81, 0.79], val=0.8, trial=trial, epochs=20)
    pilot = [(number, [value - 0.1], [value]) for number, value in enumerate(scores[:6])]
    fidelity = {"key": "epochs", "short": 5, "full": 20, "cheap": cheap, "pilot": pilot}
    space = {"loss.alpha": {"low": 0, "high": 1, "log": False}}
    return summary(*found, space=space, fidelity=json.loads(json.dumps(fidelity)), planned={"n_trials": 8})


@pytest.mark.parametrize("cheap", [True, False])
def test_trials_are_the_runs_of_the_searchs_length(cheap: bool) -> None:
    """The pilot's other runs are no trials, whatever they scored."""
    report = reported(cheap=cheap)
    assert [len(trial.runs) for trial in report.trials] == [1] * 8
    assert {run.params["epochs"] for trial in report.trials for run in trial.runs} == {"5" if cheap else "20"}
    assert report.trials[0].value == pytest.approx(0.7 if cheap else 0.8)


def test_the_report_says_what_the_pilot_showed_and_saved() -> None:
    """The short search takes 6 * 5 + 6 * 20 + 2 * 5 = 160 s, as eight long runs do. The conditions name its length."""
    said = " ".join(reported(cheap=True).findings)
    assert "accuracy with epochs=5 has a rank correlation of 1.00 (0.38 to 1.00) with that at epochs=20." in said
    assert "The search's trials have epochs=5." in said
    assert "Search and pilot took 2 min 40 s of training; a search with epochs=20 would have taken 2 min 40 s" in said
    rows = dict(conditions(reported(cheap=True)).rows)
    assert rows["search"].endswith("its runs have epochs=5")


def test_a_pilot_that_is_all_there_was_cost_its_short_runs() -> None:
    """Six of five seconds."""
    said = " ".join(reported(cheap=False).findings)
    assert "a search with epochs=20 would have taken 2 min 40 s: 30 s more." in said


def test_short_scores_are_compared_with_no_long_one() -> None:
    """Neither a winner's curse nor a noise floor of the search, and no seconds of short runs as those of an arm."""
    report = reported(cheap=True)
    assert report.verdict.curse is None
    assert report.verdict.expected_curse is None
    assert report.verdict.validation_noise is None
    assert "nothing is said of a winner's curse" in " ".join(report.findings)
    assert reported(cheap=False).verdict.curse is not None
    assert set(report.comparison.seconds("distill")) == {10.0, 20.0}


def test_before_the_decision_the_pilots_runs_are_no_trials() -> None:
    """A report in the middle of the pilot shows no distilled run yet."""
    study = reported(cheap=True).study
    some = [run for run in study.children if run.stage == "pilot"][:4]
    assert summary(*(replace(run) for run in some)).trials == ()
