"""Compares the two records of a study: Optuna's, which holds its trials, and MLflow's, which holds its runs.

They can come apart: the MLflow store is another one, was removed, or runs were deleted from it. A study that went on
all the same would make its baselines anew, and its report would miss the trials.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsweep.analysis.contest_plan import trial_job
from kdsweep.system.errors import UserError
from kdsweep.system.masking import masked_text
from kdsweep.system.progress import note
from kdsweep.system.sqlite import sqlite_path
from kdsweep.tracking.location import holds_store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kdsweep.study.search import EndedTrial, Search
    from kdsweep.tracking.run_records import RunRecord
    from kdsweep.tracking.store import Store

BY_OPTUNA = (
    "or let sweep.restart=restore record the trials again by Optuna's values, or begin anew with sweep.restart=fresh."
)
# The most trials that a message names.
NAMED = 5


def require_store(search: Search, uri: str) -> None:
    """Refuses a store that isn't there for a study that has been recorded somewhere; asks no server.

    Raises:
        UserError: It says where the study was recorded.
    """
    path = sqlite_path(uri)
    if path is not None and search.has_begun and not holds_store(path):
        raise _elsewhere(search, f"there is no MLflow store at {path}", uri)


def study_run(search: Search, store: Store) -> RunRecord | None:
    """Returns the study's own run; None if the store doesn't have it."""
    return next(iter(store.tagged(study_key=search.key)), None)


def without_run(search: Search, runs: Iterable[RunRecord], owner: str = "") -> list[EndedTrial]:
    """Returns the trials that ended well by Optuna's record, and have no such run among the study's `runs`.

    Args:
        search: Optuna's record.
        runs: The study's.
        owner: The contender whose search it is; empty for a study with one search.
    """
    finished, pruned = set(), set()
    for run in runs:
        job = run.tags.get("kdsweep.job")
        if run.status == "FINISHED":
            finished.add(job)
        elif "kdsweep.pruned" in run.tags:
            pruned.add(job)

    def ended(trial: EndedTrial) -> bool:
        name = trial_job(owner, trial.number) if owner else trial.name
        return name in (finished if trial.pruned_at is None else pruned)

    return [trial for trial in search.ended_well() if not ended(trial)]


def require_same(search: Search, store: Store, known: RunRecord | None, missing: list[EndedTrial]) -> None:
    """Refuses to go on with a study whose records disagree.

    A new study that has the name of an older one is only said to, since Optuna's record may have been removed on
    purpose.

    Args:
        search: Optuna's record.
        store: The MLflow store.
        known: What `study_run` found.
        missing: What `without_run` found.

    Raises:
        UserError: It names what is missing, and where it was recorded.
    """
    shown = masked_text(store.uri)
    if known is None and search.has_begun:
        raise _elsewhere(search, f"its run isn't in the MLflow store {shown}", store.uri)
    if missing:
        which = _trials([trial.number for trial in missing])
        raise UserError(
            f"Optuna's record of the study {search.name!r} has results of {which} without a whole run in the MLflow "
            f"store {shown}. If it was deleted, restore it there; if it is in unsent/, send it with `kdsweep-sync`; "
            f"{BY_OPTUNA}",
            "sweep.name",
        )
    if known is None and (older := store.tagged(arm="study", study=search.name)):
        note(
            f"The MLflow store has a study {search.name!r} already (run {older[-1].id}), which Optuna's record doesn't "
            "know: a new one begins beside it."
        )


def require_known(search: Search, runs: Iterable[RunRecord], owner: str = "") -> None:
    """Refuses to go on if MLflow has trials that Optuna doesn't have: their numbers would be given to other settings.

    Raises:
        UserError: It names the trials.
    """
    own = [run for run in runs if run.tags.get("kdsweep.contender", "") == owner]
    numbers = {int(run.tags["kdsweep.trial"]) for run in own if run.tags.get("kdsweep.trial", "").isdecimal()}
    unknown = sorted(number for number in numbers if number >= len(search.trials()))
    if unknown:
        raise UserError(
            f"MLflow has runs of {_trials(unknown)} of the study {search.name!r}, which Optuna's record lacks: it may "
            "be an older copy. Bring back the later one, or begin anew with sweep.restart=fresh.",
            "sweep.name",
        )


def _trials(numbers: list[int]) -> str:
    """Returns "trial 3", or "the trials 0, 3 and 4 more"."""
    if len(numbers) == 1:
        return f"trial {numbers[0]}"
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"the trials {', '.join(map(str, numbers[:NAMED]))}{more}"


def _elsewhere(search: Search, what: str, uri: str) -> UserError:
    count = len(search.ended_well())
    there = f"Optuna's record of the study {search.name!r} has {count} {'result' if count == 1 else 'results'}"
    if search.recorded_in is None:
        remedy = "Name the store that has it (tracking.uri, MLFLOW_TRACKING_URI, paths.root)"
    elif search.recorded_in == masked_text(uri):
        remedy = "It was recorded there: restore what was deleted"
    else:
        remedy = f"It was recorded in {search.recorded_in}: name that (tracking.uri, MLFLOW_TRACKING_URI, paths.root)"
    return UserError(f"{there}, but {what}. {remedy}; {BY_OPTUNA}", "sweep.name")
