"""`kdsweep-export`: writes a run's student as files for use elsewhere, checked to give the same answers."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kdsweep.exporting import description, network_files, student_models, trained_student
from kdsweep.exporting.exporter import Exporter
from kdsweep.system import exit_status
from kdsweep.system.errors import UserError, require
from kdsweep.system.masking import masked_text
from kdsweep.tracking import logged_model
from kdsweep.tracking.location import EXPERIMENT, default_experiment, require_store, store_uri
from kdsweep.tracking.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kdsweep.report.model_card import Check
    from kdsweep.tracking.run_records import RunRecord


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command `kdsweep-export`."""
    exit_status.command("kdsweep-export", lambda: _main(arguments))


def export(
    store: Store, run_id: str, root: Path, out: Path | None = None, file_format: str = "pt2", force: bool = False
) -> tuple[Path, dict[str, Check]]:
    """Writes the student of a run to a folder, whole or not at all.

    Args:
        store: The store that has the run.
        run_id: The run's MLflow id.
        root: The project folder, which holds the data set and the default folder.
        out: The folder; None stands for <root>/exports/<name of the run>-<8 digits of its id>.
        file_format: One of `network_files.FORMATS`; "none" writes only the weights, config.json and the card.
        force: Whether an earlier export in the folder may be replaced.

    Returns:
        The folder, and for the name of each exported file how it compares with the network.

    Raises:
        UserError: There is no such run or student, the data set has changed, or the folder is taken.
        RunError: The stored weights are damaged, or an exported file gives other logits than the network.
    """
    run = store.find(run_id)
    saved = trained_student.saved_config(store, run)
    out = (default_folder(root, run) if out is None else out).absolute()
    _require_free(out, force)
    network_files.require_tools(file_format)
    with _aside(out) as folder:
        _, checks = Exporter(root).write(store, run, saved, folder, file_format)
    return out, checks


def default_folder(root: Path, run: RunRecord) -> Path:
    """Returns the folder for a run: its name and the start of its id, without what a folder's name can't hold."""
    name = re.sub(r"[^\w.+=,-]+", "_", f"{run.name[:80]}-{run.id[:8]}")
    return root / "exports" / name.lstrip("._-")


def _main(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    to_mlflow = options.mlflow or options.register is not None
    _check(options, to_mlflow)
    uri = store_uri(options.uri, options.root)
    require_store(uri)
    store = Store(uri, options.experiment)
    from kdsweep.commands.source_run import run_named

    run = store.find(run_named(options.run)).id
    if options.out is not None or not to_mlflow:
        folder, checks = export(store, run, options.root, options.out, options.format, options.force)
        _print(checks)
        print(f"written to {folder}")
    if to_mlflow:
        _to_mlflow(store, run, options)


def _check(options: argparse.Namespace, to_mlflow: bool) -> None:
    """Raises `UserError` for options that don't go together, and for names that MLflow doesn't take."""
    name, alias = options.register, options.alias
    allowed = name is None or re.fullmatch(r"\w[\w .+=,-]{0,199}", name) is not None
    require(allowed, "NAME is a word or more, without / and :", name, "--register")
    require(alias is None or name is not None, "--alias comes with --register", alias, "--alias")
    reserved = alias is not None and re.fullmatch(r"v\d+|latest", alias, re.IGNORECASE)
    allowed = alias is None or (re.fullmatch(r"[\w-]{1,255}", alias, re.ASCII) is not None and not reserved)
    require(allowed, "ALIAS is letters, digits, _ and -, and neither latest nor a version (v1)", alias, "--alias")
    program = options.out is not None or options.format == "pt2" or not to_mlflow
    require(program, "MLflow gets the network as pt2", options.format, "--format", "Give --out for other files.")


def _to_mlflow(store: Store, run: str, options: argparse.Namespace) -> None:
    """Logs a run's student as a model, registers it if that is asked for, and prints where it is."""
    model_id, checks = student_models.log(store, run, Exporter(options.root))
    _print(checks)
    place = f"models:/{model_id}"
    print(f"{'logged to MLflow' if checks else 'logged to MLflow before'}: {place}")
    if options.register is not None:
        number = logged_model.register(store, run, model_id, options.register, options.alias)
        alias = "" if options.alias is None else f", alias {options.alias}"
        place = f"models:/{options.register}{f'@{options.alias}' if alias else f'/{number}'}"
        print(f"registered as {options.register}, version {number}{alias}: {place}")
    serve = ["mlflow", "models", "serve", "--env-manager", "local", "--model-uri", place]
    print(f"Serve it: MLFLOW_TRACKING_URI={shlex.quote(masked_text(store.uri))} {shlex.join(serve)}")


def _print(checks: Mapping[str, Check]) -> None:
    for name, check in checks.items():
        print(f"{name}: {check}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdsweep-export",
        description="Writes the student of a run for use elsewhere: weights (safetensors), a model card, and the "
        "network with its preprocessing as one file that needs torch (pt2) or onnxruntime (onnx) alone. Each file is "
        "loaded again and compared with the network before anything is left behind. With --mlflow or --register it "
        "goes to MLflow, and to a folder only if --out names one.",
    )
    root = Path(os.environ.get("KDSWEEP_HOME", "."))
    option = parser.add_argument
    files = "file with the preprocessing inside (default: %(default)s)"
    option(
        "run",
        metavar="RUN",
        help="MLflow id of a student's run, or its first letters; or a config.yaml, or a folder that holds one",
    )
    option("--out", metavar="DIR", type=Path, help="folder to write (default: <root>/exports/<run's name>-<id>)")
    option("--format", choices=network_files.FORMATS, default="pt2", help=files)
    option("--force", action="store_true", help="replace an earlier export in the folder")
    option("--mlflow", action="store_true", help="log the network to its run as a model of MLflow's, which serves it")
    option("--register", metavar="NAME", help="do that, and register it in MLflow's model registry under this name")
    option("--alias", metavar="ALIAS", help="call the registered version so, too: champion, for example")
    option("--uri", metavar="URI", help="MLflow store (default: $MLFLOW_TRACKING_URI, else <root>/mlflow.db)")
    option("--experiment", metavar="NAME", default=default_experiment(), help=EXPERIMENT)
    option("--root", metavar="DIR", type=Path, default=root, help="project folder (default: $KDSWEEP_HOME, else .)")
    return parser


def _require_free(out: Path, force: bool) -> None:
    """Raises `UserError` if an export must not replace what is at `out`."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise UserError(f"there is already something at {out}. Choose another folder, or give --force.", "--out")
    config = out / "config.json"
    if not config.is_file() or description.KIND not in config.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"--force replaces earlier exports alone, and {out} isn't one. Choose another folder.", "--out")


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """Yields a folder beside `out`, which takes the place of `out` when the block ends without an error."""
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
