"""Lets a sampler propose from trials that the study's own record can't show it.

Optuna's samplers read the trials of one study, and take only keys whose range is the same in all of them. Where the
space was changed, or another study's trials are known, they are asked in a study in memory that has all in one space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    Space = Mapping[str, BaseDistribution]

# Samplers that take all that they know from the trials. Others keep a state in Optuna's record.
FROM_TRIALS = (optuna.samplers.GPSampler, optuna.samplers.TPESampler)


@dataclass(frozen=True)
class EarlierTrial:
    """A trial of another study.

    Attributes:
        number: Its number there.
        params: The keys that this study searches, as Optuna has their values.
        values: The value of each objective.
    """

    number: int
    params: Mapping[str, object]
    values: tuple[float, ...]


def lies_in(space: Space, params: Mapping[str, object]) -> bool:
    """Returns whether a setting lies in a space, of which it must have each key."""
    return all(key in params and _holds(distribution, params[key]) for key, distribution in space.items())


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError):  # a word that is no choice, or no number
        return False


def alike(one: BaseDistribution, other: BaseDistribution) -> bool:
    """Returns whether Optuna can keep values of both under one key: the same kind, scale and choices."""
    try:
        optuna.distributions.check_distribution_compatibility(one, other)
    except ValueError:
        return False
    return True


def propose(
    sampler: optuna.samplers.BaseSampler,
    directions: Sequence[str],
    space: Space,
    trials: Iterable[FrozenTrial],
    earlier: Iterable[EarlierTrial],
) -> dict[str, Any]:
    """Returns the setting that a sampler proposes next.

    Args:
        sampler: One of `FROM_TRIALS`.
        directions: "maximize" or "minimize" for each objective.
        space: What is searched.
        trials: The study's trials. Those outside the space are left out.
        earlier: Trials of another study.
    """
    named = [optuna.study.StudyDirection[direction.upper()] for direction in directions]
    known = optuna.create_study(sampler=sampler, directions=named)

    def add(params: Mapping[str, Any], **end: Any) -> None:
        if lies_in(space, params):
            own = {key: params[key] for key in space}
            known.add_trial(optuna.trial.create_trial(params=own, distributions=dict(space), **end))

    for one in earlier:
        add(one.params, values=list(one.values))
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            add(trial.params, values=trial.values)
        elif trial.state == TrialState.PRUNED:
            add(trial.params, state=trial.state, intermediate_values=trial.intermediate_values)
        elif trial.state == TrialState.RUNNING:
            add(trial.params, state=trial.state)
    return known.ask(fixed_distributions=dict(space)).params
