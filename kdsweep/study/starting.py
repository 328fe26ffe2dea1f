"""Starts a search from what is known: settings that are tried first, and the trials of an earlier study.

An earlier study's trials are evidence for the sampler and for the model that chooses. They are no trials of this study:
they have no number in it, are not confirmed as they are, and no verdict counts them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdsweep.analysis.study_goals import Goals
from kdsweep.config import keys
from kdsweep.config.overrides import value_of
from kdsweep.study.proposals import EarlierTrial
from kdsweep.system.errors import UserError, require
from kdsweep.system.progress import note
from kdsweep.tracking.run_records import parameter_text

if TYPE_CHECKING:
    from kdsweep.study.search import Search
    from kdsweep.tracking.run_records import StudyRecord
    from kdsweep.tracking.store import Store

# The most differences that a refusal names.
NAMED = 3


def settings(start: object, search: Search) -> list[dict[str, object]]:
    """Returns the settings of `sweep.start` as Optuna has them.

    Raises:
        UserError: A setting lacks a searched key, has another, or lies outside the space.
    """
    rule = "start is null, or a list of settings: [{loss.alpha: 0.9, loss.tau: 4}]"
    listed = isinstance(start, Sequence) and not isinstance(start, str)
    require(start is None or listed, rule, start, "sweep.start")
    remedy = "A grid visits each of its settings anyhow."
    require(not (start and search.is_grid), "start is null with the sampler grid", start, "sweep.start", remedy)
    found = []
    for one in start if isinstance(start, Sequence) else ():
        require(isinstance(one, Mapping), rule, one, "sweep.start")
        own = {str(key): value for key, value in (one.items() if isinstance(one, Mapping) else ())}
        given = keys.flatten(own) if any(isinstance(value, Mapping) for value in own.values()) else own
        searched = ", ".join(search.space)
        require(
            given.keys() == search.space.keys(), f"each setting has the searched keys ({searched})", own, "sweep.start"
        )
        params = {key: _as_searched(search, key, value) for key, value in given.items()}
        require(search.holds(params), "each setting lies in the space that is searched", own, "sweep.start")
        found.append(params)
    require(len(found) <= search.n_settings, "start has at most sweep.n_trials settings", len(found), "sweep.start")
    return found


def _as_searched(search: Search, key: str, value: object) -> object:
    """Returns a value as the search has it: the choice that stands for it, or a number."""
    for axis in search.axes():
        if axis.key == key and axis.words:
            return next((word for word in axis.words if parameter_text(value_of(word)) == parameter_text(value)), value)
        if axis.key == key and isinstance(value, int | float):
            return int(value) if axis.whole and float(value).is_integer() else float(value)
    return value


def begin(
    search: Search,
    start: Sequence[Mapping[str, object]],
    earlier: str | None,
    store: Store,
    params: Mapping[str, object],
) -> None:
    """Adds what is known to a study, each thing once.

    Args:
        search: The study in Optuna.
        start: What `settings` returned.
        earlier: The name or id of another study in the store, whose trials are known too; None for none.
        store: The MLflow store.
        params: The parameters of this study's own run.

    Raises:
        UserError: There is no such study, or it differs in more than its seeds and its space.
    """
    if earlier is not None:
        _learn(search, earlier, store, params)
    new = [setting for setting in start if setting not in search.started()]
    rule = f"sweep.n_trials has room for {len(new)} more settings of sweep.start"
    remedy = f"{search.n_settings - search.room} trials are made already."
    require(len(new) <= search.room or not new, rule, search.n_settings, "sweep.n_trials", remedy)
    for setting in new:
        search.enqueue(setting)


def _learn(search: Search, name: str, store: Store, params: Mapping[str, object]) -> None:
    study = store.study(name)
    if search.key == study.parent.tags.get("kdsweep.study_key"):
        raise UserError(f"a study doesn't start from itself, but {name!r} is this study.", "sweep.start_from")
    known = search.earlier_study()
    if known == study.parent.id:
        return
    if known is not None:
        raise UserError(
            f"a study starts from one other, and this one started from {known} already. Choose another sweep.name.",
            "sweep.start_from",
        )
    _require_alike(study, params, search)
    trials = list(_trials(study, search))
    if not trials:
        raise UserError(f"the study {name!r} has no finished trials to start from.", "sweep.start_from")
    search.learn(study.parent.id, study.parent.name, trials)
    inside = sum(search.holds(trial.params) for trial in trials)
    outside = "" if inside == len(trials) else f", {len(trials) - inside} of them outside of what is searched here"
    note(f"Study {search.name} starts from {len(trials)} trials of {study.parent.name}{outside}.")


def _require_alike(study: StudyRecord, params: Mapping[str, object], search: Search) -> None:
    """Refuses another study unless it trained the same student on the same data with the same teacher and method."""
    now = {key: parameter_text(value) for key, value in params.items()}
    then = study.parent.params
    searched = {key.removeprefix("space.").lstrip("+") for key in then if key.startswith("space.")}
    own = {key.lstrip("+") for key in search.space}
    nothing = parameter_text(None)
    differing = [f"{key} was searched there and is {now.get(key, nothing)}" for key in sorted(searched - own)]
    for key in sorted({*now, *then}):
        if key in own | searched or not (keys.in_training(key) or keys.in_setting(key)) or key.startswith("space."):
            continue
        before, value = then.get(key, nothing), now.get(key, nothing)
        if before != value:
            differing.append(f"{key} was {before} and is {value}")
    objectives = [objective.metric for objective in Goals.read(study.parent.tags).objectives]
    asked = search.objectives()
    if objectives != asked:
        differing.append(f"objective was {', '.join(objectives)} and is {', '.join(asked)}")
    if differing:
        more = f", and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
        raise UserError(
            f"a study starts from one with the same data, student, teacher and method, but {study.parent.name!r} has "
            f"others ({'; '.join(differing[:NAMED])}{more}). Leave out sweep.start_from, or set what differs.",
            "sweep.start_from",
        )


def _trials(study: StudyRecord, search: Search) -> list[EarlierTrial]:
    metrics = search.objectives()
    found: dict[int, EarlierTrial] = {}
    for run in study.runs("distill", "search"):
        number, values = run.tags.get("kdsweep.trial", ""), [run.metrics.get(name, math.nan) for name in metrics]
        params = {key: _as_searched(search, key, _number(run.setting(key.lstrip("+")))) for key in search.space}
        if number.isdecimal() and all(map(math.isfinite, values)) and search.comparable(params):
            found[int(number)] = EarlierTrial(int(number), params, tuple(values))
    return [found[number] for number in sorted(found)]


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
