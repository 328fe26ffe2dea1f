"""A student as a model of MLflow's, which MLflow shows with its scores, loads, serves and registers.

The model is the program that `kdsweep-export` writes and checks (torch.export, pt2). It has the preprocessing inside,
so it takes uint8 pictures (B, H, W, 3), and it answers with logits (B, classes) float32. It holds no pickle, and runs
with torch, numpy and MLflow alone.
"""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsweep.system.errors import RunError, UserError
from kdsweep.tracking.location import user_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from kdsweep.tracking.run_records import RunRecord
    from kdsweep.tracking.store import Store

# Where MLflow's flavour for PyTorch looks for an exported program.
DATA, PROGRAM = "data", "model.pt2"
REQUIRED = ("mlflow", "torch", "numpy")
REQUIREMENTS, ENVIRONMENT = "requirements.txt", "python_env.yaml"

WEIGHTS_TAG = "kdsweep.weights"
# The metrics that say how good a student is begin with these, and are of the data set's part with this name in MLflow.
SPLITS = {"val/": "validation", "test/": "test", "best/": "validation"}


@dataclass(frozen=True)
class Program:
    """An exported student.

    Attributes:
        path: The pt2 file.
        beside: Files that are logged with it, such as the model card.
        example: (1, H, W, 3) uint8, a picture that it takes.
        classes: The names of the classes, in the order of the logits.
    """

    path: Path
    beside: Sequence[Path]
    example: NDArray[np.uint8]
    classes: Sequence[str]


def find(store: Store, run: RunRecord) -> str | None:
    """Returns the id of the model that was logged for the run's weights before; None if there is none."""
    for output in store.ask("get_run", run.id).outputs.model_outputs:
        model = store.ask("get_logged_model", output.model_id)
        if str(model.status) == "READY" and model.tags.get(WEIGHTS_TAG) == run.tags[WEIGHTS_TAG]:
            return str(model.model_id)
    return None


def log(store: Store, run: RunRecord, program: Program) -> str:
    """Logs a program as the model of its run, with the run's parameters and scores, and returns the model's id."""
    from mlflow.entities import LoggedModelOutput

    recorded = store.ask("get_run", run.id)
    model = store.ask(
        "create_logged_model",
        recorded.info.experiment_id,
        name=f"{run.arm}-{run.short_id}",
        source_run_id=run.id,
        tags={WEIGHTS_TAG: run.tags[WEIGHTS_TAG], "mlflow.user": user_name(), "mlflow.source.name": "kdsweep-export"},
        params={key: value for key, value in run.params.items() if value != "None"},
        model_type="image classifier",
    )
    model_id = str(model.model_id)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), program, run.id, model_id)
            store.ask("log_model_artifacts", model_id, folder)
        scores = list(_scores(store, recorded, model_id))
        store.ask("log_batch", run.id, metrics=scores, synchronous=True)
        store.ask("log_outputs", run.id, [LoggedModelOutput(model_id, step=0)])
        store.ask("finalize_logged_model", model_id, "READY")
    except BaseException:
        with suppress(RunError, UserError):  # the first error is the one to show
            store.ask("finalize_logged_model", model_id, "FAILED")
        raise
    return model_id


def register(store: Store, run_id: str, model_id: str, name: str, alias: str | None = None) -> str:
    """Registers a logged model as the next version of a model, and returns the version's number.

    Args:
        store: The store that has it.
        run_id: Its run.
        model_id: Its id.
        name: The name in MLflow's registry; the model is made if it isn't there.
        alias: Another name of this version ("champion"), which is taken from the version that had it.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    try:
        store.ask("create_registered_model", name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model = store.ask("get_logged_model", model_id)
    # MLflow would look for `models:/` in the store of its global settings, which only on a server is this one.
    source = f"models:/{model_id}" if store.uri.startswith(("http:", "https:")) else model.artifact_location
    made = store.ask("create_model_version", name, source, run_id, model_id=model_id)
    if alias is not None:
        store.ask("set_registered_model_alias", name, alias, str(made.version))
    # By this tag the model's page names its versions. A server sets it by itself.
    known = json.loads(model.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    known.append({"name": name, "version": str(made.version)})
    store.ask("set_logged_model_tags", model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(known)})
    return str(made.version)


def _write(folder: Path, program: Program, run_id: str, model_id: str) -> None:
    """Writes the folder of a model, as MLflow's flavours for PyTorch and for Python functions read it."""
    import numpy as np
    import torch

    with warnings.catch_warnings(action="ignore"):  # MLflow warns of type hints of its own
        from mlflow.models import Model, ModelSignature
        from mlflow.models.utils import _save_example
        from mlflow.pyfunc import add_to_model
        from mlflow.types import Schema, TensorSpec

    (folder / DATA).mkdir()
    shutil.copyfile(program.path, folder / DATA / PROGRAM)
    for path in program.beside:
        shutil.copyfile(path, folder / path.name)
    pictures = TensorSpec(np.dtype(np.uint8), (-1, *program.example.shape[1:]))
    logits = TensorSpec(np.dtype(np.float32), (-1, len(program.classes)))
    model = Model(
        run_id=run_id,
        model_id=model_id,
        signature=ModelSignature(Schema([pictures]), Schema([logits])),
        metadata={"classes": list(program.classes)},
    )
    _save_example(model, program.example, str(folder))
    model.add_flavor("pytorch", model_data=DATA, pytorch_version=str(torch.__version__), code=None)
    # MLflow would take a GPU wherever there is one, and refuse a program that was exported on the CPU.
    own: dict[str, Any] = {"data": DATA, "python_env": ENVIRONMENT, "model_config": {"device": "cpu"}}
    add_to_model(model, loader_module="mlflow.pytorch", **own)
    model.model_size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    model.save(str(folder / "MLmodel"))
    required = "".join(f"{package}=={version(package)}\n" for package in REQUIRED)
    (folder / REQUIREMENTS).write_text(required, encoding="utf-8")
    (folder / ENVIRONMENT).write_text(
        f"python: {platform.python_version()}\nbuild_dependencies:\n- pip\ndependencies:\n- -r {REQUIREMENTS}\n",
        encoding="utf-8",
    )


def _scores(store: Store, recorded: Any, model_id: str) -> Iterator[Any]:
    """Yields the run's last scores, each as a metric of the model on its part of the data set."""
    from mlflow.entities import Metric

    parts = {}
    for given in recorded.inputs.dataset_inputs:
        for tag in given.tags:
            if tag.key == "mlflow.data.context":
                parts[tag.value] = given.dataset
    for name in recorded.data.metrics:
        part = next((context for prefix, context in SPLITS.items() if name.startswith(prefix)), None)
        if part is None:
            continue
        points = store.ask("get_metric_history", recorded.info.run_id, name)
        last = max(points, key=lambda point: (point.step, point.timestamp))
        own = {"dataset_name": parts[part].name, "dataset_digest": parts[part].digest} if part in parts else {}
        # The run has this point already, and MLflow keeps it once.
        yield Metric(name, last.value, last.timestamp, last.step, model_id=model_id, run_id=last.run_id, **own)
