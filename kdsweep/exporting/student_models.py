"""Logs students as models of MLflow's: when that is asked for, and at the end of single runs and of studies."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kdsweep.exporting import trained_student
from kdsweep.exporting.exporter import Exporter
from kdsweep.system.progress import note, progress
from kdsweep.tracking import logged_model
from kdsweep.tracking.retry import StoreAwayError, reason
from kdsweep.tracking.run_records import SHORT_ID
from kdsweep.tracking.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kdsweep.report.model_card import Check
    from kdsweep.tracking.run_records import RunRecord


def log(store: Store, run_id: str, exporter: Exporter) -> tuple[str, dict[str, Check]]:
    """Logs the student of a run to it as a model of MLflow's, unless that was done before.

    Returns:
        The model's id, and how its program compares with the network; nothing if it was logged before.

    Raises:
        UserError: There is no such run or student, or the data set has changed.
        RunError: The stored weights are damaged, or the program gives other logits than the network.
    """
    run = store.find(run_id)
    saved = trained_student.saved_config(store, run)
    known = logged_model.find(store, run)
    if known is not None:
        return known, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        inputs, checks = exporter.write(store, run, saved, folder, "pt2")
        program = logged_model.Program(
            path=folder / logged_model.PROGRAM,
            beside=[folder / name for name in ("README.md", "config.json")],
            example=inputs.pictures[:1].numpy(),
            classes=inputs.classes,
        )
        return logged_model.log(store, run, program), checks


def log_of_run(uri: str, experiment: str, run_id: str, root: Path) -> None:
    """Logs the student of a run that has just ended, and prints where it is, or in one line why it isn't there.

    Args:
        uri: The MLflow store.
        experiment: The run's experiment.
        run_id: The run's.
        root: The project folder.
    """
    try:
        model_id, _ = log(Store(uri, experiment), run_id, Exporter(root, trained_student.MAX_CHECKED_BY_THE_WAY))
    except KeyboardInterrupt as signal:  # the same command would train it again
        raise type(signal)(_lacking([run_id])) from signal
    except Exception as error:  # whatever keeps its model out, the run has ended well
        note(_lacking([run_id], reason(error)))
    else:
        note(f"The network is in MLflow: models:/{model_id}")


def log_of_study(store: Store, runs: Iterable[RunRecord], root: Path) -> None:
    """Logs the students with a study's fresh seeds where that hasn't been done; prints how many, and what failed."""
    trained = [run for run in runs if run.stage == "confirmation" and run.status == "FINISHED"]
    left = [run for run in trained if logged_model.WEIGHTS_TAG in run.tags and logged_model.find(store, run) is None]
    if not left:
        return
    # In a contest these have networks, or normalisations, of their own.
    left.sort(key=lambda run: [run.tags.get(tag, "") for tag in ("kdsweep.contender", "kdsweep.condition")])
    exporter = Exporter(root, trained_student.MAX_CHECKED_BY_THE_WAY, several=len(left) > 1)
    done = 0
    failed: dict[str, list[str]] = {}
    with progress("logging the networks to MLflow", len(left), "networks") as advance:
        for run in left:
            try:
                log(store, run.id, exporter)
                done += 1
            except StoreAwayError as error:
                failed[reason(error)] = [other.id for other in left[left.index(run) :]]
                break
            except Exception as error:  # whatever keeps a model out, the study has its answer
                failed.setdefault(reason(error), []).append(run.id)
            advance(1)
    if done:
        logged = "1 confirmation run" if done == 1 else f"{done} confirmation runs"
        note(f"Logged to MLflow as models: the networks of {logged}.")
    for why, ids in failed.items():
        note(_lacking(ids, why))


def _lacking(ids: list[str], why: str = "") -> str:
    """Returns the line that says why networks aren't in MLflow, and what logs the first of them."""
    networks = "The network isn't" if len(ids) == 1 else f"The networks of {len(ids)} runs aren't"
    reason_given = f" ({why.rstrip('.')})" if why else ""
    return f"{networks} in MLflow as a model{reason_given}. To log one: kdsweep-export {ids[0][:SHORT_ID]} --mlflow"
