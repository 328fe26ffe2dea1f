"""A job's line to its trial: says that it lives, reports each epoch, hears whether to go on, and leaves its result.

Only the sweeper tells Optuna how a trial ended; the job reports, and raises `PrunedError` where it is to stop.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from hydra.utils import instantiate
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.trial import Trial

from kdsweep.config.rules import attempt
from kdsweep.system.errors import PrunedError, UserError
from kdsweep.system.masking import masked_text
from kdsweep.system.processes import this_process
from kdsweep.system.sqlite import sqlite_path, sqlite_uri, write_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from omegaconf import DictConfig

log = logging.getLogger(__name__)

TRUSTED = ("optuna.samplers.*", "optuna.pruners.*", "hydra_plugins.hydra_optuna_sweeper.*")

# What a job writes into its trial, as user attributes.
PROCESS, BEAT, VALUES = "kdsweep.process", "kdsweep.beat", "kdsweep.values"

BEAT_SECONDS = 20.0
# A job on another machine that has said nothing for so long is taken for dead.
STALE_SECONDS = 120.0
# How long one writer of an SQLite file waits for another.
SQLITE_WAIT_SECONDS = 60


def storage_url(storage: str | None, folder: str) -> str:
    """The URL of a study's Optuna storage: `storage`, else an SQLite file in the study's `folder`."""
    return sqlite_uri(Path(folder) / "optuna.db") if storage is None else str(storage)


@functools.lru_cache(maxsize=2)
def open_storage(url: str) -> BaseStorage:
    """Optuna's storage at `url`; kept, because opening it takes a tenth of a second.

    With Optuna's cache of finished trials, without which a job's first report reads all of them.
    """
    path = sqlite_path(url)
    if path is None:
        # An idle connection may be closed by the server between two trials.
        options: dict[str, Any] = {"pool_pre_ping": True}
    else:
        write_ahead(path)
        options = {"connect_args": {"timeout": SQLITE_WAIT_SECONDS}}
    try:
        return get_storage(RDBStorage(url, engine_kwargs=options))
    except Exception as error:  # SQLAlchemy's, Alembic's, the driver's or Optuna's own
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        remedy = "Name a database that is there and Optuna's alone, such as postgresql://user@host/trials."
        message = f"Optuna's storage {masked_text(url)} can't be opened: {masked_text(reason)[:300]}. {remedy}"
        raise UserError(message, "hydra.sweeper.storage") from error


def build_pruner(config: DictConfig) -> optuna.pruners.BasePruner:
    """The pruner that a configuration describes."""
    pruner: optuna.pruners.BasePruner = attempt(
        "hydra.sweeper.pruner", lambda: instantiate(config, _execution_whitelist_=TRUSTED)
    )
    return pruner


class TrialLink:
    """The trial of a study, as seen from the job that computes it.

    Args:
        url: The study's Optuna storage.
        study_name: Its name there.
        number: The trial's number.
        pruner: Decides after each report; None never stops a run.
    """

    def __init__(self, url: str, study_name: str, number: int, pruner: optuna.pruners.BasePruner | None) -> None:
        self._storage = open_storage(url)
        # The job never samples: with the study's own sampler each report could fit a Gaussian process.
        study = optuna.load_study(
            study_name=study_name,
            storage=self._storage,
            sampler=optuna.samplers.RandomSampler(),
            pruner=pruner or optuna.pruners.NopPruner(),
        )
        study_id = self._storage.get_study_id_from_name(study_name)
        self._id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        self._trial = Trial(study, self._id)
        self._prunes = pruner is not None

    @contextmanager
    def alive(self) -> Iterator[None]:
        """In this block the trial shows that its job lives."""
        self._storage.set_trial_user_attr(self._id, PROCESS, str(this_process()))
        with beating(self._beat):
            yield

    def report(self, value: float, epoch: int) -> None:
        """Records the objective after an epoch (from 1).

        Raises:
            PrunedError: The trial isn't worth going on with.
        """
        # A run that diverges fails by itself, and is not to be taken for pruned.
        if not self._prunes or not math.isfinite(value):
            return
        self._trial.report(value, epoch)
        if self._trial.should_prune():
            raise PrunedError(epoch)

    def leave(self, values: Sequence[float]) -> None:
        """Leaves the result, in case that whoever waits for it is killed before it arrives."""
        self._storage.set_trial_user_attr(self._id, VALUES, list(values))

    def _beat(self) -> None:
        self._storage.set_trial_user_attr(self._id, BEAT, time.time())


class Pulse:
    """Whether something on another machine lives that writes a beat, as one can tell who looks again and again.

    Clocks are set, and differ between machines. So only the first look compares a beat with our clock, and takes one
    from the future for new; from then on, what counts is that the beat changes, by a clock that nobody sets.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}  # name -> its beat, and when it was written by our time

    def lives(self, name: str, beat: float) -> bool:
        """Whether what is called `name`, which has now `beat`, has written it in the last `STALE_SECONDS`."""
        now = time.monotonic()
        last = self._last.get(name)
        if last is None:
            last = (beat, now - max(0.0, time.time() - beat))
        elif last[0] != beat:
            last = (beat, now)
        self._last[name] = last
        return now - last[1] < STALE_SECONDS


@contextmanager
def beating(beat: Callable[[], None]) -> Iterator[None]:
    """In this block `beat` is called: first now, where it may raise, then again and again from a thread of its own."""
    ended = threading.Event()

    def keep_beating() -> None:
        while not ended.wait(BEAT_SECONDS):
            try:
                beat()
            except Exception as error:  # the database may be away for a moment; the run itself doesn't need it now
                log.warning("no sign of life could be written: %s", error)

    beat()
    thread = threading.Thread(target=keep_beating, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
