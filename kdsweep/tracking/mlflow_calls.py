"""How the entries of a run are written into an MLflow store; what each holds, run.py says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsweep.tracking.location import file_path, place_file
from kdsweep.tracking.retry import is_transient

if TYPE_CHECKING:
    from kdsweep.tracking.journal import Entry


def _write_params(client: Any, run_id: str, entry: Entry) -> None:
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(*item) for item in entry["params"].items()], synchronous=True)


def _write_tags(client: Any, run_id: str, entry: Entry) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(*item) for item in entry["tags"].items()], synchronous=True)


def _write_metrics(client: Any, run_id: str, entry: Entry) -> None:
    from mlflow.entities import Metric

    # MLflow takes a repeated metric for the same one.
    client.log_batch(run_id, metrics=[Metric(*point) for point in entry["metrics"]], synchronous=True)


def _write_inputs(client: Any, run_id: str, entry: Entry) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    inputs = [
        DatasetInput(
            Dataset(one["name"], one["digest"], "local", one["source"], profile=one["profile"]),
            [InputTag("mlflow.data.context", one["context"])],
        )
        for one in entry["inputs"]
    ]
    try:
        client.log_inputs(run_id, inputs)
    except MlflowException as error:
        if is_transient(error):
            raise
        client.log_inputs(run_id, inputs)  # another run has just inserted one of these data sets; now it is there


def _write_status(client: Any, run_id: str, entry: Entry) -> None:
    client.set_terminated(run_id, entry["status"], entry["end"])


# Kind -> what writes such an entry; a repetition does no harm.
WRITERS = {
    "params": _write_params,
    "tags": _write_tags,
    "metrics": _write_metrics,
    "inputs": _write_inputs,
    "status": _write_status,
}


def write_artifact(client: Any, run_id: str, entry: Entry, folder: Path, place: str) -> None:
    """Writes a file, which lies in `folder`, to the run's artifacts, which lie at `place` (their URI)."""
    # An absolute path stays one.
    source, name = folder / entry["file"], Path(entry["name"])
    local = file_path(place)
    if local is None:
        client.log_artifact(run_id, str(source), None if name.parent == Path() else name.parent.as_posix())
    else:  # MLflow would leave half a file where the disk is full
        # What is relative lies in the run's journal.
        place_file(source, local, name, own=not Path(entry["file"]).is_absolute())
