"""What goes to a process that runs jobs, and what comes back: tasks, surroundings, outcomes."""

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
    """This process's environment with what a worker's differs in: its number of threads, and no progress bars."""
    count = str(threads)
    own = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
    return {**os.environ, **own, "KDSWEEP_PLAIN": "1"}


def packed_task(task: Task) -> bytes:
    """A task with the state of Hydra that belongs to it.

    By cloudpickle: what Hydra calls the task function is what its decorator hides, and can't be imported by name.
    """
    message: bytes = cloudpickle.dumps((task, Singleton.get_state()))
    return message


def received_task(message: bytes) -> Task:
    """The task, in a process in which Hydra was not started; now it has the sender's state."""
    setup_globals()
    task, state = pickle.loads(message)
    Singleton.set_state(state)
    assert isinstance(task, Task)
    return task


def packed_outcome(outcome: Outcome) -> bytes:
    """An outcome for another process.

    An exception takes its stack trace along as a note, and one that wouldn't survive the journey is replaced by a
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
    """The outcome that `packed_outcome` made a message of."""
    outcome = pickle.loads(message)
    assert isinstance(outcome, Outcome)
    return outcome
