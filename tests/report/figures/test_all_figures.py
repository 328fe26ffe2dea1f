"""Claims about the choice of figures: a report has those for which there are data, and no empty ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from records import SPACE, fresh, pruned, record, summary, trial

from kdsweep.analysis.findings import Report
from kdsweep.report.figures.all_figures import DRAWINGS, charts, draw
from kdsweep.tracking.run_records import RunRecord

RISE = [0.5, 0.7, 0.8, 0.85, 0.9]


def names(report: Report) -> list[str]:
    return [name.removesuffix(".png") for name, _ in draw(report)]


def search(n: int, **params: object) -> list[RunRecord]:
    return [trial(k, 0.1 * k, 2 + k, val=0.8 + 0.01 * k, **params) for k in range(n)]


def test_a_study_that_has_just_begun_has_no_figures() -> None:
    """Neither does one whose runs logged no epochs."""
    assert names(summary()) == []
    assert names(summary(record("teacher"), record("scratch"))) == []


def test_baselines_have_curves() -> None:
    """They are drawn before there is a search."""
    assert names(summary(record("scratch"), curves={0: RISE})) == ["learning_curves", "reach"]


@pytest.mark.slow
def test_a_confirmed_study_has_differences(tmp_path: Path) -> None:
    """It has surface, curves, course and parallel coordinates, and each can be saved."""
    runs = [*search(8), pruned(8, 2), *fresh("scratch", [0.9, 0.91]), *fresh("distill", [0.92, 0.935])]
    counted = {place: {"cat": (50, 20 + place), "dog": (50, 45)} for place in range(9, 13)}
    report = summary(*runs, curves={-1: RISE, -3: RISE}, classes=counted, space=SPACE, chosen=7)
    found = ["differences", "alpha_tau_surface", "learning_curves", "per_class", "reach", "history", "parallel"]
    assert names(report) == found
    for name, figure in draw(report):
        figure.savefig(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} <= {drawing.name for drawing in DRAWINGS}
    assert [shown.name.removesuffix(".png") for shown in charts(report)] == found


def test_the_distilled_curve_says_which_trial_it_is() -> None:
    """It is called the best of so many trials, until it is confirmed."""
    runs = search(3)
    (curves,) = [figure for name, figure in draw(summary(*runs, curves={2: RISE})) if name == "learning_curves.png"]
    assert curves.axes[0].lines[0].get_label() == "distill, best of 3 trials"
    confirmed = [*runs, *fresh("distill", [0.9])]
    (curves,) = [
        figure for name, figure in draw(summary(*confirmed, curves={3: RISE})) if name == "learning_curves.png"
    ]
    assert curves.axes[0].lines[0].get_label() == "distill, trial 2"


def test_a_search_without_alpha_and_tau_has_no_surface() -> None:
    """With one parameter, or a loss without these, there are course and parallel coordinates."""
    runs = [
        record("distill", val=0.8 + 0.01 * k, params={"optimizer.lr": 0.1 * (k + 1)}, tags={"kdsweep.trial": str(k)})
        for k in range(4)
    ]
    space = {"optimizer.lr": {"low": 0.01, "high": 1, "log": True}}
    assert names(summary(*runs, space=space)) == ["history", "parallel"]


def test_an_untrusted_plateau_hatches_nothing() -> None:
    """A reader would believe an outline, so there is none, and the figure says so."""
    values = [0.9, 0.91, 0.9, 0.91, 0.9, 0.905]
    runs = [trial(k, [0.1, 0.9, 0.5][k % 3], [2, 9][k % 2], val=value) for k, value in enumerate(values)]
    report = summary(*runs, space=SPACE)
    assert report.landscape.plateau is not None
    assert not report.landscape.plateau.trusted
    assert report.landscape.surface is not None
    member = report.landscape.surface.x[None, :] > 0.5 * np.ones((report.landscape.surface.y.size, 1))
    half = replace(report.landscape, surface=replace(report.landscape.surface, member=member))
    drawn = dict(draw(replace(report, landscape=half)))
    surface = drawn["alpha_tau_surface.png"]
    assert "Nothing is hatched" in surface.axes[0].get_title()
    assert "ruled out (" not in surface.axes[0].get_title()
    assert "outline" not in surface.axes[1].get_title()


def test_several_objectives_have_a_front() -> None:
    """It is drawn only if there are two objectives."""
    runs = [
        record("distill", val=a, metrics={"val/nll": n}, params={"loss.alpha": i}, tags={"kdsweep.trial": str(i)})
        for i, (a, n) in enumerate([(0.9, 0.5), (0.8, 0.1)])
    ]
    both = [["val/accuracy", "maximize"], ["val/nll", "minimize"]]
    assert names(summary(*runs, objectives=both)) == ["history", "parallel", "pareto"]
