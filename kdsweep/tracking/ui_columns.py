"""The table in which MLflow's UI compares our runs: its columns, and its order.

Of itself the UI shows a study as one line, without a metric, and first of all a page for language models. It has shared
views, which it keeps in tags of an experiment; a `Store` sets ours, and `kdsweep-ui` opens it.
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

# The best on validation first.
STATE = {"orderByKey": COLUMNS[0], "orderByAsc": False, "selectedColumns": [*COLUMNS]}
TEXT = json.dumps(STATE)


def address(server: str, experiment_id: str) -> str:
    """Where a server shows it, for an experiment that has the tag.

    Args:
        server: "http://127.0.0.1:5000".
        experiment_id: The experiment.
    """
    shown = urlencode({"workflowType": "machine_learning", "viewStateShareKey": KEY})
    return f"{server}/#/experiments/{experiment_id}/runs?{shown}"
