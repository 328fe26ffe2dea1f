"""The table in which MLflow's UI compares the runs of kdsweep: its columns and its order.

By default the UI opens a page for language models, and shows a study as one line without a metric. It keeps shared
views in tags of an experiment; a `Store` sets kdsweep's, and `kdsweep-ui` opens it.
"""

from __future__ import annotations

import json
from urllib.parse import urlencode

KEY = "kdsweep"
TAG = f"mlflow.sharedViewState.{KEY}"

COLUMNS = (
    *("metrics.`val/accuracy`", "metrics.`test/accuracy`", "metrics.`val/nll`"),
    *("params.`loss.alpha`", "params.`loss.tau`", "params.`seed`"),
    *("tags.`kdsweep.stage`", "tags.`kdsweep.study`"),
)

# The runs with the highest validation accuracy come first.
STATE = {"orderByKey": COLUMNS[0], "orderByAsc": False, "selectedColumns": [*COLUMNS]}
TEXT = json.dumps(STATE)


def address(server: str, experiment_id: str) -> str:
    """Returns the address of the table of an experiment that has the tag.

    Args:
        server: The server's address ("http://127.0.0.1:5000").
        experiment_id: The experiment's.
    """
    view = urlencode({"workflowType": "machine_learning", "viewStateShareKey": KEY})
    return f"{server}/#/experiments/{experiment_id}/runs?{view}"
