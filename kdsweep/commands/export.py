"""`kdsweep-export`: a run's student as files for use elsewhere, checked to give the same answers."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import uuid
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kdsweep
from kdsweep.config.saved_config import SavedConfig, moved, parse
from kdsweep.system import exit_status
from kdsweep.system.errors import RunError, UserError, one_line, require
from kdsweep.system.masking import MASK, masked
from kdsweep.tracking.location import require_store, store_uri
from kdsweep.tracking.run_records import STUDENTS, RunRecord
from kdsweep.tracking.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from omegaconf import DictConfig
    from torch import Tensor

    from kdsweep.analysis.sorted_runs import Spread
    from kdsweep.models import Classifier
    from kdsweep.report.model_card import Check

FORMATS = ("pt2", "onnx", "none")
WEIGHTS = "model.safetensors"
ONNX = ("onnx", "onnxscript", "onnxruntime")

# What `config.json` says of itself.
KIND = "kdsweep-export 1"

# Pictures on which an exported file is compared with the network, and how many at a time.
MAX_CHECKED, BATCH = 1000, 250
# Between two logits, relative to the largest: more than another order of fp32 additions makes.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Inputs:
    """What a network takes and answers.

    Attributes:
        name: The data set's.
        classes: Their names, in the order of the logits.
        mean, std: Of the training pictures, in [0, 1].
        pictures: (N, H, W, 3) uint8, to compare answers on.
        kind: What the pictures are: "test pictures".
    """

    name: str
    classes: tuple[str, ...]
    mean: Sequence[float]
    std: Sequence[float]
    pictures: Tensor
    kind: str


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `kdsweep-export`."""
    exit_status.command("kdsweep-export", lambda: _main(arguments))


def export(
    store: Store, run_id: str, root: Path, out: Path | None = None, file_format: str = "pt2", force: bool = False
) -> tuple[Path, dict[str, Check]]:
    """Writes the student of a run to a folder, whole or not at all.

    Args:
        root: The project folder: where the data set is, and under which the default folder lies.
        out: The folder; None for <root>/exports/<name of the run>-<8 digits of its id>.
        file_format: One of `FORMATS`; "none" writes the weights, config.json and the card alone.
        force: Replaces an earlier export in the folder.

    Returns:
        The folder, and the check of each exported file by its name.

    Raises:
        UserError: There is no such run or student, the data set has changed, or the folder is taken.
        RunError: The stored weights are damaged, or an exported file answers otherwise than the network.
    """
    run = store.find(run_id)
    saved = _saved(store, run)
    out = (default_folder(root, run) if out is None else out).absolute()
    _require_free(out, force)
    missing = [name for name in ONNX if importlib.util.find_spec(name) is None] if file_format == "onnx" else []
    require(not missing, f"{', '.join(ONNX)} are installed", "onnx", "--format", "pip install 'kdsweep[onnx]'")
    cfg = _config(saved.config, root)
    inputs = _inputs(cfg, saved)
    with _aside(out) as folder:
        network = _network(store, run, cfg, inputs, folder)
        checks = _written(network, inputs, folder, file_format)
        _describe(folder, store, run, saved, network, inputs, checks)
    return out, checks


def default_folder(root: Path, run: RunRecord) -> Path:
    """Where a run is exported to: its name and the start of its id, with what a folder's name can't hold replaced."""
    name = re.sub(r"[^\w.+=,-]+", "_", f"{run.name[:80]}-{run.id[:8]}")
    return root / "exports" / name.lstrip("._-")


def register(store: Store, run_id: str, folder: Path, name: str) -> str:
    """Logs an export to its run, under export/, and registers it in MLflow's registry; returns the version."""
    for path in sorted(folder.iterdir()):
        store.attach(run_id, path, "export")
    return store.register(run_id, name, "export")


def _main(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    name = options.register
    allowed = name is None or re.fullmatch(r"\w[\w .+=,-]{0,199}", name) is not None
    rule = "NAME is a word or more, without / and :"
    require(allowed, rule, name, "--register")
    uri = store_uri(options.uri, options.root)
    require_store(uri)
    store = Store(uri, options.experiment)
    from kdsweep.commands.source_run import run_named

    run = run_named(options.run)
    folder, checks = export(store, run, options.root, options.out, options.format, options.force)
    for file_name, check in checks.items():
        print(f"{file_name}: {check}")
    print(f"written to {folder}")
    if name is not None:
        print(f"registered as {name}, version {register(store, run, folder, name)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdsweep-export",
        description="Writes the student of a run for use elsewhere: weights (safetensors), a model card, and the "
        "network with its preprocessing as one file that needs torch (pt2) or onnxruntime (onnx) alone. Each file is "
        "loaded again and compared with the network before anything is left behind.",
    )
    root = Path(os.environ.get("KDSWEEP_HOME", "."))
    option = parser.add_argument
    option("run", metavar="RUN", help="MLflow run id of a student; or a config.yaml, or a folder that holds one")
    option("--out", metavar="DIR", type=Path, help="folder to write (default: <root>/exports/<run's name>-<id>)")
    option("--format", choices=FORMATS, default="pt2", help="file with the preprocessing inside (default: %(default)s)")
    option("--force", action="store_true", help="replace an earlier export in the folder")
    option("--register", metavar="NAME", help="log the files to the run, and register them in MLflow under this name")
    option("--uri", metavar="URI", help="MLflow store (default: $MLFLOW_TRACKING_URI, else <root>/mlflow.db)")
    option("--experiment", metavar="NAME", default="kdsweep", help="MLflow experiment (default: %(default)s)")
    option("--root", metavar="DIR", type=Path, default=root, help="project folder (default: $KDSWEEP_HOME, else .)")
    return parser


def _saved(store: Store, run: RunRecord) -> SavedConfig:
    """The configuration of a run that has a student; `UserError` for other runs."""
    if run.arm == "teacher":
        weights = run.params.get("teacher.network.weights", "None")
        network = f"{run.params.get('teacher.network.name')}, {'random' if weights == 'None' else weights}"
        raise UserError(
            f"the run {run.id} is a teacher, of which MLflow keeps the head alone (head.safetensors; the rest is "
            f"{network}). Export one of its students, or any other run.",
            "RUN",
        )
    if run.arm not in STUDENTS:
        raise UserError(f"the run {run.id} is no single run ({run.arm}). Its runs are listed by `kdsweep-ui`.", "RUN")
    text = store.text(run.id, "config.yaml")
    if text is None or "kdsweep.weights" not in run.tags:
        raise UserError(
            f"the run {run.id} has left no trained network ({run.status.lower()}). Choose one that has finished.", "RUN"
        )
    return parse(text)


def _config(saved: Mapping[str, Any], root: Path) -> DictConfig:
    """The configuration with its folders below `root`, and without the weights that the training started from."""
    from omegaconf import OmegaConf

    paths = {name: str(saved["paths"][name]) for name in ("data", "cache", "root") if name in saved["paths"]}
    below = [path for path in paths.values() if Path(path).is_relative_to(paths["root"])]
    config = moved(saved, [(path, root / Path(path).relative_to(paths["root"])) for path in below])
    config["model"] = {**config["model"], "weights": None, "head": "new"}
    cfg: DictConfig = OmegaConf.create(config)
    for group in ("data", "model"):
        if MASK in OmegaConf.to_yaml(cfg[group]):
            raise UserError(f"a secret of this group wasn't recorded ({MASK}), and the data needs it.", group)
    return cfg


def _inputs(cfg: DictConfig, saved: SavedConfig) -> Inputs:
    """The run's data set; what the run recorded of it where the pictures are missing or others."""
    import torch

    from kdsweep.config import build

    recorded = saved.record.get("inputs")
    try:
        data = build.component(cfg, "data")
    except UserError:
        if recorded is None:
            raise
        data = None
    if data is not None and saved.record.get("data") in (None, data.fingerprint):
        pictures = data.test.images[:MAX_CHECKED]
        return Inputs(data.name, data.classes, data.mean, data.std, pictures, "test pictures")
    if recorded is None:
        raise UserError(
            "these aren't the pictures that the run was trained on (their hash differs), and so the normalisation "
            "would be another. Put the same pictures there.",
            "data",
        )
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (64, *recorded["picture"], 3), dtype=torch.uint8, generator=generator)
    statistics = recorded["mean"], recorded["std"]
    return Inputs(recorded["name"], tuple(recorded["classes"]), *statistics, pictures, "random pictures")


def _network(store: Store, run: RunRecord, cfg: DictConfig, inputs: Inputs, folder: Path) -> Classifier:
    """The trained network, with the weights that it fetches into `folder`."""
    import torch

    from kdsweep.config import build
    from kdsweep.system.tensor_files import hash_tensors, read_tensors

    path = store.fetch(run.id, WEIGHTS, folder)
    weights = None if path is None else read_tensors(path)
    if weights is None or hash_tensors(weights) != run.tags["kdsweep.weights"]:
        found = "missing" if path is None else "damaged"
        raise RunError(f"the weights of the run {run.id} ({WEIGHTS} in MLflow) are {found}. Make it again.")
    network: Classifier = build.component(cfg, "model").build(len(inputs.classes), inputs.mean, inputs.std)
    network.net.load_state_dict(weights)
    # channels_last weights would be stored in that order, which not every reader of the files expects.
    return network.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


def _written(network: Classifier, inputs: Inputs, folder: Path, file_format: str) -> dict[str, Check]:
    """Writes the network as one file of the format, and compares what that answers."""
    if file_format == "none":
        return {}
    path = folder / f"model.{file_format}"
    write, load = (_write_pt2, _load_pt2) if file_format == "pt2" else (_write_onnx, _load_onnx)
    try:
        # What the converters warn of is theirs; whether it matters, the comparison shows.
        with warnings.catch_warnings(action="ignore"):
            write(network, inputs.pictures[:2], path)
            answer = load(path)
    except Exception as error:  # a network that the converter can't follow can raise anything
        reason = one_line(f"{type(error).__name__}: {error}")[:300]
        raise RunError(f"this network can't be written as {file_format} ({reason}). Try another --format.") from error
    return {path.name: _compared(network, answer, inputs, path.name)}


def _write_pt2(network: Classifier, pictures: Tensor, path: Path) -> None:
    import torch

    batch = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(network, (pictures,), dynamic_shapes=(batch,)), path)


def _load_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    import torch

    return torch.export.load(path).module()


def _write_onnx(network: Classifier, pictures: Tensor, path: Path) -> None:
    import torch

    program = torch.onnx.export(
        network,
        (pictures,),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["pictures"],
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    program.save(path)


def _load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pictures: torch.from_numpy(session.run(None, {"pictures": pictures.numpy()})[0])


def _compared(network: Classifier, answer: Callable[[Tensor], Tensor], inputs: Inputs, name: str) -> Check:
    """How `answer` compares with the network; `RunError` if they differ by more than arithmetic explains."""
    import torch

    from kdsweep.report.model_card import Check

    with torch.inference_mode():
        batches = inputs.pictures.split(BATCH)
        expected = torch.cat([network(batch) for batch in batches])
        given = torch.cat([answer(batch) for batch in batches])
    difference = (given - expected).abs().max().item()
    same = (given.argmax(1) == expected.argmax(1)).double().mean().item()
    check = Check(f"{len(expected)} {inputs.kind}", difference, same)
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise RunError(f"{name} answers otherwise than the network ({check}): nothing was written.")
    return check


def _describe(
    folder: Path,
    store: Store,
    run: RunRecord,
    saved: SavedConfig,
    network: Classifier,
    inputs: Inputs,
    checks: Mapping[str, Check],
) -> None:
    """Writes config.json and the model card."""
    import yaml

    from kdsweep.report import model_card

    network_of = {key: saved.config["model"][key] for key in ("library", "name", "stem")}
    height, width = inputs.pictures.shape[1:3]
    interface = {
        "kind": KIND,
        "data": inputs.name,
        "architecture": network_of,
        "classes": list(inputs.classes),
        "input": {
            **{"dtype": "uint8", "layout": "NHWC", "channels": "RGB", "range": [0, 255]},
            **{"height": height, "width": width, "resize": network.input_size},
            **{"mean": network.mean.tolist(), "std": network.std.tolist()},
        },
        "output": "logits",
        "weights": run.tags["kdsweep.weights"],
        "run": run.id,
        "kdsweep": kdsweep.__version__,
    }
    card = model_card.Card(
        run=run,
        interface=interface,
        config=yaml.safe_dump(masked(saved.config), sort_keys=False, allow_unicode=True),
        precision=run.params.get("runtime.precision", "unknown precision"),
        parameters=sum(parameter.numel() for parameter in network.net.parameters()),
        checks=checks,
        spread=_spread(store, run),
    )
    (folder / "config.json").write_text(json.dumps(interface, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card.render(card), encoding="utf-8")


def _spread(store: Store, run: RunRecord) -> Spread | None:
    """Test accuracy over the fresh seeds of a confirmation's arm; None for other runs."""
    from kdsweep.analysis.sorted_runs import spread

    parent = run.params.get("tracking.parent", "None")
    if run.stage != "confirmation" or parent == "None":
        return None
    arm = [other for other in store.children(parent) if (other.arm, other.stage) == (run.arm, run.stage)]
    return spread(other.metrics.get("test/accuracy") for other in arm if other.status == "FINISHED")


def _require_free(out: Path, force: bool) -> None:
    """Raises `UserError` if there is something at `out` that an export may not replace."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise UserError(f"there is already something at {out}. Choose another folder, or give --force.", "--out")
    config = out / "config.json"
    if not config.is_file() or KIND not in config.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"--force replaces earlier exports alone, and {out} isn't one. Choose another folder.", "--out")


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, and is gone otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder, old = (out.parent / f".{out.name}.{uuid.uuid4().hex}" for _ in range(2))
    folder.mkdir()
    try:
        yield folder
        if out.exists():
            out.rename(old)
        folder.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        for left in (folder, old):
            shutil.rmtree(left, ignore_errors=True)
