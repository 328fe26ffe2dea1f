"""The trained student of a recorded run: its configuration, its network, and the pictures that the network takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsweep.config.keys import network_name
from kdsweep.config.saved_config import SavedConfig, moved, parse
from kdsweep.system.errors import RunError, UserError
from kdsweep.system.masking import MASK
from kdsweep.tracking.run_records import STUDENTS, RunRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omegaconf import DictConfig
    from torch import Tensor

    from kdsweep.models import Classifier
    from kdsweep.tracking.store import Store

WEIGHTS = "model.safetensors"

# The number of test pictures on which an exported file is compared with the network: of a student whose export was
# asked for, and of one that is exported by the way.
MAX_CHECKED, MAX_CHECKED_BY_THE_WAY = 1000, 64


@dataclass(frozen=True)
class Inputs:
    """What a network takes, and what its logits stand for.

    Attributes:
        name: The name of the data set.
        classes: The names of the classes, in the order of the logits.
        mean: The mean of each colour over the training pictures, in [0, 1].
        std: The standard deviation of each colour over the training pictures, on the same scale.
        pictures: (N, H, W, 3) uint8, on which an exported file is compared with the network.
        kind: What the pictures are: "test pictures" or "random pictures".
    """

    name: str
    classes: tuple[str, ...]
    mean: Sequence[float]
    std: Sequence[float]
    pictures: Tensor
    kind: str


def saved_config(store: Store, run: RunRecord) -> SavedConfig:
    """Returns the configuration of a run that has left a student.

    Raises:
        UserError: The run has none.
    """
    if run.arm == "teacher" and run.params.get("teacher.train", "None") not in ("head", "None"):
        raise UserError(
            f"the run {run.id} is a teacher. Its weights are in MLflow ({WEIGHTS}), and kdsweep exports students: name "
            "one of them.",
            "RUN",
        )
    if run.arm == "teacher":
        weights = run.params.get("teacher.network.weights", "None")
        network = f"{network_name(run.params, 'teacher.network')}, {'random' if weights == 'None' else weights}"
        raise UserError(
            f"the run {run.id} is a teacher, and MLflow keeps only a teacher's head (head.safetensors; the rest is "
            f"{network}). Export one of its students, or any other run.",
            "RUN",
        )
    if run.arm not in STUDENTS:
        raise UserError(f"the run {run.id} is no single run ({run.arm}). `kdsweep-ui` lists its runs.", "RUN")
    text = store.text(run.id, "config.yaml")
    if text is None or "kdsweep.weights" not in run.tags:
        raise UserError(
            f"the run {run.id} has left no trained network ({run.status.lower()}). Choose one that has finished.", "RUN"
        )
    return parse(text)


def config_below(root: Path, saved: Mapping[str, Any]) -> DictConfig:
    """Returns a saved configuration with its folders below `root`.

    Raises:
        UserError: The description of the data or of the model holds a secret, which wasn't recorded.
    """
    from omegaconf import OmegaConf

    paths = {name: str(saved["paths"][name]) for name in ("data", "cache", "root") if name in saved["paths"]}
    below = [path for path in paths.values() if Path(path).is_relative_to(paths["root"])]
    config = moved(saved, [(path, root / Path(path).relative_to(paths["root"])) for path in below])
    cfg: DictConfig = OmegaConf.create(config)
    for group in ("data", "model"):
        if MASK in OmegaConf.to_yaml(cfg[group]):
            raise UserError(f"a secret of this group wasn't recorded ({MASK}), and the data needs it.", group)
    return cfg


def inputs(cfg: DictConfig, saved: SavedConfig, most: int = MAX_CHECKED) -> Inputs:
    """Reads the run's data set; if its pictures are missing or have changed, takes what the run recorded of it.

    Args:
        cfg: The run's configuration, as `config_below` returns it.
        saved: What the run saved.
        most: The most test pictures to compare on.

    Raises:
        UserError: The pictures are missing or have changed, and the run is too old to have recorded what they were.
    """
    import torch

    from kdsweep.config import build

    recorded = saved.record.get("inputs")
    try:
        data = build.dataset(cfg)
    except UserError:
        if recorded is None:
            raise
        data = None
    if data is not None and saved.record.get("data") in (None, data.fingerprint):
        pictures = data.test.images[:most]
        return Inputs(data.name, data.classes, data.mean, data.std, pictures, "test pictures")
    if recorded is None:
        raise UserError(
            "these aren't the pictures that the run was trained on (their hash differs), so the normalisation would "
            "differ too. Put the same pictures there.",
            "data",
        )
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (64, *recorded["picture"], 3), dtype=torch.uint8, generator=generator)
    statistics = recorded["mean"], recorded["std"]
    return Inputs(recorded["name"], tuple(recorded["classes"]), *statistics, pictures, "random pictures")


def weights(store: Store, run: RunRecord, folder: Path) -> dict[str, Tensor]:
    """Fetches a run's weights as a file in `folder`, and reads them.

    Raises:
        RunError: The weights in MLflow are missing or damaged.
    """
    from kdsweep.system.tensor_files import hash_tensors, read_tensors

    path = store.fetch(run.id, WEIGHTS, folder)
    found = None if path is None else read_tensors(path)
    if found is None or hash_tensors(found) != run.tags["kdsweep.weights"]:
        state = "missing" if path is None else "damaged"
        raise RunError(f"the weights of the run {run.id} ({WEIGHTS} in MLflow) are {state}. Make it again.")
    return found


def network(cfg: DictConfig, inputs: Inputs) -> Classifier:
    """Builds the network of a run, which still needs the run's weights (`net.load_state_dict`)."""
    import torch

    from kdsweep.config import build

    # The weights that training began with needn't be there any more.
    described = build.architecture("model", build.key_of(cfg.model), weights=False)
    built: Classifier = described.build(len(inputs.classes), inputs.mean, inputs.std)
    built.check_size(*inputs.pictures.shape[1:3])  # which finds the layout of the pictures that it takes
    # A file would hold channels_last weights in that order, and not every reader expects it.
    return built.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
