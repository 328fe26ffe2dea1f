"""Claims about the table of metrics: it is complete, and what is derived from it is as it should be."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import runs

from kdsweep.analysis import metrics
from kdsweep.report.figures.curves import PANELS
from kdsweep.tracking import ui_columns


def test_each_metric_has_one_row() -> None:
    """No name is there twice."""
    assert len(metrics.ROWS) == len(metrics.METRICS)


@pytest.mark.slow
def test_every_metric_that_a_run_logs_has_its_row(home: Path) -> None:
    """The runs of a student and its teacher log all of them, except the one that the report computes."""
    logged = {name for run in runs(home) for name in run.data.metrics}
    assert logged == metrics.ROWS.keys() - {metrics.EPOCHS_TO_TARGET}


def test_names_used_elsewhere_have_their_rows() -> None:
    """The columns of MLflow's table, and the lines of a learning curve."""
    columns = [name.removeprefix("metrics.").strip("`") for name in ui_columns.COLUMNS if name.startswith("metrics.")]
    names = {*columns, *ui_columns.CURVES, *(name for names in PANELS.values() for name in names)}
    assert names <= metrics.ROWS.keys()
    assert columns[0] == metrics.DEFAULT_OBJECTIVE
    assert ui_columns.STATE["orderByAsc"] is (metrics.direction(columns[0]) == "minimize")


@pytest.mark.parametrize("name", metrics.OBJECTIVES)
def test_every_objective_has_a_direction(name: str) -> None:
    """More accuracy and agreement is better, more of anything else is worse."""
    more = "accuracy" in name or name in ("val/top5", "val/agreement")
    assert metrics.direction(name) == ("maximize" if more else "minimize")


def test_the_test_split_is_no_objective() -> None:
    """Nothing is selected on test; the default objective may be chosen."""
    assert metrics.DEFAULT_OBJECTIVE in metrics.OBJECTIVES
    assert not [name for name in metrics.OBJECTIVES if "test" in name]


def test_a_metric_of_another_version_is_shown_as_it_is() -> None:
    """A name that isn't ours has no unit, no direction of its own, and is not of the clock."""
    found = metrics.row("val/other")
    assert (found.heading, found.shown(0.51234), found.difference_unit) == ("val/other", "0.5123", "")
    assert not metrics.is_of_the_clock("val/other")
    assert metrics.is_of_the_clock("system/cpu_utilization_percentage")
