"""Makes the choice of a study once, and keeps it: the same trials always give the same setting."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING

from kdsweep.analysis.choice import Choice, choose
from kdsweep.study.search import CHOICE, CHOOSE, described
from kdsweep.system.progress import note

if TYPE_CHECKING:
    from kdsweep.study.search import Search

RULES = ("posterior", "best")


def rule_in_force(search: Search, wanted: str, *, explicit: bool) -> str:
    """Returns the rule by which a study chooses, and keeps it.

    Args:
        search: The study in Optuna.
        wanted: The configured rule.
        explicit: Whether the command line sets it. A study that was begun before there were rules keeps the best trial
            unless it does.
    """
    if search.noted(CHOOSE) is None and search.has_begun and not explicit:
        if wanted != "best":
            note(
                f"Study {search.name} was begun when the best trial was always chosen, and goes on like that: "
                f"sweep.choose={wanted} on the command line changes it."
            )
        return "best"
    if search.noted(CHOOSE) != wanted:
        search.keep(CHOOSE, wanted)
    return wanted


def known_choice(search: Search) -> Choice | None:
    """Returns the choice that was made from the trials that there are; None if there is none yet."""
    found = search.noted(CHOICE)
    if found is None or found["trials"] != _digest(search):
        return None
    return Choice(**found["choice"])


def make_choice(search: Search) -> Choice:
    """Chooses from the trials that have a result, of which there must be one, and keeps the choice."""
    known = known_choice(search)
    if known is not None:
        return known
    made = choose(search.axes(), search.scored(), maximise=search.directions[0] == "maximize")
    search.keep(CHOICE, {"trials": _digest(search), "choice": dataclasses.asdict(made)})
    if made.reason:
        note(f"The best trial is chosen, because {made.reason}.")
    return made


def _digest(search: Search) -> str:
    trials: list[tuple[object, ...]] = [
        (trial.number, sorted(trial.params.items()), trial.value, *([] if trial.inside else ["outside"]))
        for trial in search.scored()
    ]
    if search.is_changed:  # the model looks in the space that is searched now
        trials.append(("space", described(search.space)))
    return hashlib.sha256(json.dumps(trials, default=str).encode()).hexdigest()[:16]
