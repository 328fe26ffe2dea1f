"""Packs what a process that runs jobs is sent and what it sends back: tasks, environment, outcomes."""

from __future__ import annotations

import os
import pickle
import traceback

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import setup_globals

from kdsweep.execution.jobs import Outcome, Task
from kdsweep.system.errors import RunError, UserError


def worker_environment(threads: int) -> dict[str, str]:
    """Returns a worker's environment: this process's, with the worker's number of threads and without progress bars."""
    count = str(threads)
    own = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
    return {**os.environ, **own, "KDSWEEP_PLAIN": "1"}


def packed_task(task: Task) -> bytes:
    """Packs a task and the state of Hydra that belongs to it.

    cloudpickle is needed because Hydra's decorator hides the task function, so it can't be imported by name.
    """
    message: bytes = cloudpickle.dumps((task, Singleton.get_state()))
    return message


def received_task(message: bytes) -> Task:
    """Unpacks a task in a process in which Hydra wasn't started, and gives Hydra the sender's state there."""
    setup_globals()
    task, state = pickle.loads(message)
    Singleton.set_state(state)
    assert isinstance(task, Task)
    return task


def packed_outcome(outcome: Outcome) -> bytes:
    """Packs an outcome for another process.

    An exception carries its stack trace as a note. An exception that can't be pickled and unpickled is replaced by a
    `RunError` with its type and message.
    """
    error = outcome.error
    if error is not None and not isinstance(error, UserError | RunError):
        error.add_note("Raised in another process:\n" + "".join(traceback.format_exception(error)).rstrip())
    try:
        message: bytes = cloudpickle.dumps(outcome)
        pickle.loads(message)
        return message
    except Exception as obstacle:
        if error is None:
            what = f"the job's result, a {type(outcome.value).__name__}, can't be sent to the study ({obstacle})"
        else:
            what = f"{type(error).__name__}: {error}"
        stand_in = RunError(what)
        for note in getattr(error, "__notes__", ()):
            stand_in.add_note(note)
        substitute: bytes = cloudpickle.dumps(Outcome(error=stand_in, lost=outcome.lost))
        return substitute


def received_outcome(message: bytes) -> Outcome:
    """Unpacks an outcome that `packed_outcome` has packed."""
    outcome = pickle.loads(message)
    assert isinstance(outcome, Outcome)
    return outcome
