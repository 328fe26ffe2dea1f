"""How the entries of a run are written into an MLflow store; run_writer.py says what each kind holds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsweep.system.files import atomic_path
from kdsweep.tracking.location import file_path
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

    # MLflow ignores a metric that it has already.
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
        client.log_inputs(run_id, inputs)  # it failed because another run has just inserted one of these data sets


def _write_status(client: Any, run_id: str, entry: Entry) -> None:
    client.set_terminated(run_id, entry["status"], entry["end"])


# Kind of entry -> the function that writes it; a repetition does no harm.
WRITERS = {
    "params": _write_params,
    "tags": _write_tags,
    "metrics": _write_metrics,
    "inputs": _write_inputs,
    "status": _write_status,
}


def write_artifact(client: Any, run_id: str, entry: Entry, folder: Path, place: str) -> None:
    """Writes an artifact of a run.

    Args:
        client: MLflow's.
        run_id: The run's.
        entry: The artifact's.
        folder: The journal's, from which the path in the entry starts, unless it is absolute.
        place: URI of the folder of the run's artifacts.
    """
    source, name = folder / entry["file"], Path(entry["name"])
    local = file_path(place)
    if local is None:
        client.log_artifact(run_id, str(source), None if name.parent == Path() else name.parent.as_posix())
    else:  # MLflow would leave half a file on a full disk
        # Nobody else uses the files in the run's journal.
        place_file(source, local, name, own=not Path(entry["file"]).is_absolute())


def place_file(source: Path, folder: Path, name: Path, *, own: bool = False) -> None:
    """Copies a file to `folder`/`name`, whole or not at all.

    Args:
        source: The file, which stays.
        folder: The target's.
        name: The target's path in the folder.
        own: Whether nobody will change the source. The target may then be a hard link to it.

    Raises:
        ValueError: The name leads out of the folder.
        OSError: The disk is full, for example; it names the target.
    """
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"an artifact's name is a path inside the run, but got {str(name)!r}")
    with atomic_path(folder / name) as temporary:
        if not (own and _linked(source, temporary)):
            shutil.copyfile(source, temporary)


def _linked(source: Path, target: Path) -> bool:
    """Replaces `target` by a hard link to a file; if the disk can't do that, removes `target` and returns False."""
    target.unlink()
    try:
        target.hardlink_to(source)
    except OSError:
        return False
    return True
