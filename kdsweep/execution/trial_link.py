"""Links a job to its trial in Optuna: the job shows that it lives, reports each epoch, and leaves its result.

Only the sweeper tells Optuna how a trial ended. The job reports, and raises `PrunedError` if the pruner says stop.
"""

from __future__ import annotations

import functools
import math
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from hydra.utils import instantiate
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.trial import Trial

from kdsweep.config.rules import attempt
from kdsweep.execution.heartbeat import beating
from kdsweep.system.errors import PrunedError, UserError, one_line
from kdsweep.system.masking import masked_text
from kdsweep.system.processes import this_process
from kdsweep.system.sqlite import sqlite_path, sqlite_uri, write_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from omegaconf import DictConfig

# The only classes that the configuration of a sampler or a pruner can name.
TRUSTED = ("optuna.samplers.*", "optuna.pruners.*", "hydra_plugins.hydra_optuna_sweeper.*")

# The user attributes that a job writes into its trial.
PROCESS, BEAT, VALUES = "kdsweep.process", "kdsweep.beat", "kdsweep.values"
# Those that lead from a trial to its run in MLflow, for people who look at Optuna's record.
RUN, PAGE = "mlflow.run", "mlflow.page"

# A writer of an SQLite file waits so long for another writer.
SQLITE_WAIT_SECONDS = 60


def storage_url(storage: str | None, folder: str) -> str:
    """Returns the URL of a study's Optuna storage: `storage`, or an SQLite file in `folder` if that is None."""
    return sqlite_uri(Path(folder) / "optuna.db") if storage is None else str(storage)


@functools.lru_cache(maxsize=2)
def open_storage(url: str) -> BaseStorage:
    """Opens Optuna's storage at `url`, and keeps it open, because opening takes a tenth of a second.

    It has Optuna's cache of finished trials; without it, a job's first report would read all of them.

    Raises:
        UserError: The storage can't be opened.
    """
    path = sqlite_path(url)
    with usable(url):
        if path is None:
            # An idle connection may be closed by the server between two trials.
            options: dict[str, Any] = {"pool_pre_ping": True}
        else:
            write_ahead(path)
            options = {"connect_args": {"timeout": SQLITE_WAIT_SECONDS}}
        return get_storage(RDBStorage(url, engine_kwargs=options))


@contextmanager
def usable(url: str) -> Iterator[None]:
    """Turns what goes wrong with the storage at `url` in this block into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # SQLAlchemy's, Alembic's, the driver's or Optuna's own
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ is not None else error
        reason = one_line(getattr(cause, "orig", None) or cause)
        remedy = (
            "Name an existing database that only Optuna uses and you may write, such as postgresql://user@host/trials."
        )
        message = f"Optuna's storage {masked_text(url)} can't be used: {masked_text(reason)[:300]}. {remedy}"
        raise UserError(message, "hydra.sweeper.storage") from error


def build_pruner(config: DictConfig) -> optuna.pruners.BasePruner:
    """Builds the pruner that a configuration describes."""
    pruner: optuna.pruners.BasePruner = attempt(
        "hydra.sweeper.pruner", lambda: instantiate(config, _execution_whitelist_=TRUSTED)
    )
    return pruner


class TrialLink:
    """A trial of a study, seen from the job that computes it.

    Args:
        url: The URL of the study's Optuna storage.
        study_name: The study's name in the storage.
        number: The trial's number.
        pruner: Decides after each report whether the run goes on; None never stops a run.
        epochs: The run's epochs: after the last one there is nothing to stop. None if they aren't known.
    """

    def __init__(
        self,
        url: str,
        study_name: str,
        number: int,
        pruner: optuna.pruners.BasePruner | None,
        epochs: int | None = None,
    ) -> None:
        self._storage = open_storage(url)
        # The job never samples. With the study's own sampler, each report could fit a Gaussian process.
        study = optuna.load_study(
            study_name=study_name,
            storage=self._storage,
            sampler=optuna.samplers.RandomSampler(),
            pruner=pruner or optuna.pruners.NopPruner(),
        )
        study_id = self._storage.get_study_id_from_name(study_name)
        self._id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        self._trial = Trial(study, self._id)
        self._prunes, self._epochs = pruner is not None, epochs
        # Optuna has an order of values for one objective alone, and takes no reports where there are several.
        self._reports = len(study.directions) == 1
        # A job that goes on, or that begins anew, comes to epochs that were reported before; Optuna keeps the first.
        self._reported = set(self._storage.get_trial(self._id).intermediate_values)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Writes into the trial, until the block ends, that its job lives."""
        self._storage.set_trial_user_attr(self._id, PROCESS, str(this_process()))
        with beating(self._beat):
            yield

    def report(self, value: float, epoch: int) -> None:
        """Reports the objective after an epoch; epochs count from 1.

        Raises:
            PrunedError: The pruner stops the trial.
        """
        # A run that diverges fails by itself, and must not count as pruned.
        if not self._reports or not math.isfinite(value):
            return
        if epoch not in self._reported:
            self._trial.report(value, epoch)
        if self._prunes and epoch != self._epochs and self._trial.should_prune():
            raise PrunedError(epoch)

    def recorded(self, run_id: str, page: str) -> None:
        """Writes into the trial which MLflow run records it, and the address of the run's page."""
        for name, text in ((RUN, run_id), (PAGE, page)):
            self._storage.set_trial_user_attr(self._id, name, text)

    def leave(self, values: Sequence[float]) -> None:
        """Writes the result into the trial, in case the controller is killed before the result arrives."""
        self._storage.set_trial_user_attr(self._id, VALUES, [float(value) for value in values])

    def _beat(self) -> None:
        self._storage.set_trial_user_attr(self._id, BEAT, time.time())
