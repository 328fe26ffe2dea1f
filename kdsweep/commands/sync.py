"""`kdsweep-sync`: sends what is kept on this machine to the MLflow server that it is meant for.

Two kinds are kept: results that runs couldn't send while their server didn't answer (`<root>/unsent`), and runs that
were made with tracking.offline=true (`<root>/offline`). Nothing is sent twice, even if the command is interrupted and
repeated.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kdsweep.system import exit_status
from kdsweep.system.errors import RunError, UserError
from kdsweep.system.masking import MASK, masked_text
from kdsweep.system.progress import progress
from kdsweep.system.sqlite import sqlite_path
from kdsweep.tracking.copy_runs import Copier
from kdsweep.tracking.location import UNSENT, experiments, holds_store, offline_uri, store_uri
from kdsweep.tracking.retry import AwayError
from kdsweep.tracking.sending import PATIENCE_SECONDS, Sent, journals, meant_for, send_unsent
from kdsweep.tracking.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command `kdsweep-sync`."""
    exit_status.command("kdsweep-sync", lambda: _main(arguments))


def send_offline(uri: str, root: Path, experiment: str | None = None) -> Sent:
    """Copies the runs of the offline store in `root` to the store `uri`, unless they are there already.

    Args:
        uri: The target. A run goes to the experiment of the same name there.
        root: The project folder.
        experiment: The experiment whose runs are copied; None stands for all.
    """
    sent = Sent()
    path = sqlite_path(offline_uri(root))
    assert path is not None
    if not holds_store(path):
        return sent
    known = [name for name in experiments(path) if experiment in (None, name)]
    for name in known:
        copier = Copier(Store(offline_uri(root), name), Store(uri, name), PATIENCE_SECONDS)
        sent.going_on += [run.name for run in copier.going_on()]
        left = copier.left()
        with progress(f"sending the runs of {name}", len(left), "runs") as advance:
            for run in left:
                copier.copy(run)
                sent.runs += 1
                advance(1)
    return sent


def _main(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    if not options.root.is_dir():
        raise UserError(f"there is no folder {options.root}. Name the project folder, which holds mlflow.db.", "--root")
    uri = store_uri(options.uri, options.root)
    if uri == store_uri(offline_uri(options.root), options.root):
        raise UserError("the offline store can't be sent to itself. Name a server.", "--uri")
    try:
        found = [*_send_journals(options, uri), send_offline(uri, options.root, options.experiment)]
    except AwayError as error:
        raise RunError(f"{error.message.partition('. Start it;')[0]}. Nothing is lost: call again later.") from error
    total = Sent(
        sum(sent.runs for sent in found),
        [name for sent in found for name in sent.going_on],
        [line for sent in found for line in sent.failed],
    )
    _show(total, options.root)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdsweep-sync",
        description="Sends to the MLflow server what is kept on this machine: results that couldn't be sent while the "
        "server was away (<root>/unsent), and the runs made with tracking.offline=true (<root>/offline). It can be "
        "interrupted and repeated; nothing is sent twice.",
    )
    root = Path(os.environ.get("KDSWEEP_HOME", "."))
    option = parser.add_argument
    store = "MLflow store (default: $MLFLOW_TRACKING_URI, else <root>/mlflow.db; unsent results: where they belong)"
    option("--uri", metavar="URI", help=store)
    option("--experiment", metavar="NAME", help="of the offline runs, only those of this experiment (default: all)")
    option("--root", metavar="DIR", type=Path, default=root, help="project folder (default: $KDSWEEP_HOME, else .)")
    return parser


def _send_journals(options: argparse.Namespace, uri: str) -> list[Sent]:
    """Sends the journals below the root: each to its store, or all to the one that --uri names."""
    folder = options.root / UNSENT
    known = journals(folder)
    if options.uri is not None:
        return [send_unsent(Store(uri), folder, anywhere=True)] if known else []
    found = []
    for meant in sorted({meant_for(path) for path in known}):
        path = sqlite_path(meant)
        here = meant == masked_text(uri)
        if here or (path is not None and not path.exists()):  # a missing file: the whole folder was moved
            found.append(send_unsent(Store(uri), folder, anywhere=not here))
        elif MASK in meant:
            found.append(Sent(failed=[f"Results for {meant} need its password: name the store with --uri."]))
        else:
            found.append(send_unsent(Store(meant), folder))
    return found


def _show(sent: Sent, root: Path) -> None:
    if sent.runs:
        print(f"Sent {sent.runs} {'run' if sent.runs == 1 else 'runs'}.")
    if sent.going_on:
        print(f"Left for the next call, since they go on: {', '.join(sent.going_on)}.")
    if not (sent.runs or sent.going_on or sent.failed):
        print(f"There is nothing to send in {root.absolute()}.")
    if sent.failed:
        raise RunError(" ".join(sent.failed))


if __name__ == "__main__":
    main()
