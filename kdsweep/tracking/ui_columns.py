"""How MLflow's UI shows the runs of kdsweep: the columns of its table, the groups, and the charts.

By default the UI opens a page for language models, and shows a study as one line without a metric. It keeps shared
views in tags of an experiment; a `Store` sets kdsweep's, and `kdsweep-ui` opens it. What a view may hold is no
documented interface of MLflow's: a test looks for its parts in the page that is installed.
"""

from __future__ import annotations

import json
from urllib.parse import urlencode

# Where `kdsweep-ui` listens unless it is told otherwise.
PORT = 5000

KEY = "kdsweep"
TAG = f"mlflow.sharedViewState.{KEY}"

# The columns in their order, each with its width in pixels.
WIDTHS = {
    **{"metrics.`val/accuracy`": 110, "metrics.`test/accuracy`": 110},
    **{"params.`loss.alpha`": 90, "params.`loss.tau`": 90, "params.`seed`": 60},
    **{"tags.`kdsweep.stage`": 110, "tags.`kdsweep.trial`": 100, "tags.`kdsweep.role`": 120},
    **{"metrics.`val/nll`": 90, "params.`epochs`": 80, "params.`data._target_`": 160, "tags.`kdsweep.study`": 110},
}
COLUMNS = tuple(WIDTHS)

# MLflow's own columns. Without the width the names of runs would be cut.
NAME, CREATED, DURATION = "attributes.`Run Name`", "runDateAndNestInfo", "duration"
OWN_WIDTHS = {NAME: 250, CREATED: 130, DURATION: 80}

# What the charts show.
CURVES = ("val/accuracy", "val/nll", "train/loss")
SECTION = "kdsweep-curves"


def _chart(metric: str) -> dict[str, object]:
    """Returns the chart of a metric against epochs, one line for each run, as MLflow's page describes it."""
    return {
        **{"uuid": f"kdsweep-{metric}", "type": "LINE", "metricSectionId": SECTION, "displayName": metric},
        **{"metricKey": metric, "selectedMetricKeys": [metric], "yAxisKey": "metric", "yAxisExpressions": []},
        **{"xAxisKey": "step", "selectedXAxisMetricKey": "", "xAxisScaleType": "linear", "scaleType": "linear"},
        **{"range": {}, "lineSmoothness": 0, "ignoreOutliers": False, "runsCountToCompare": 100},
        **{"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True, "deleted": False, "isGenerated": False},
    }


STATE = {
    # The runs with the highest validation accuracy come first.
    "orderByKey": COLUMNS[0],
    "orderByAsc": False,
    "selectedColumns": [*COLUMNS],
    "columnOrder": [NAME, CREATED, *COLUMNS, DURATION],
    "columnWidths": {**WIDTHS, **OWN_WIDTHS},
    # The rows are grouped by arm, and the charts show each run, not the mean of its group.
    "groupBy": "tag.average.kdsweep.role",
    "useGroupedValuesInCharts": False,
    "runsHiddenMode": "SHOW_ALL",  # MLflow's charts would show ten runs
    "compareRunCharts": [_chart(metric) for metric in CURVES],
    "compareRunSections": [
        {"uuid": SECTION, "name": "Learning curves", "display": True, "isReordered": False, "columns": 1}
    ],
    "isAccordionReordered": True,
}
TEXT = json.dumps(STATE)


def address(server: str, experiment_id: str) -> str:
    """Returns the address of the table of an experiment that has the tag.

    Args:
        server: The server's address ("http://127.0.0.1:5000").
        experiment_id: The experiment's.
    """
    view = urlencode({"workflowType": "machine_learning", "viewStateShareKey": KEY})
    return f"{server}/#/experiments/{experiment_id}/runs?{view}"
