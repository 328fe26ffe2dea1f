"""A search of shorter runs: what is cut down, and the pilot that asks first whether ranks transfer to full length."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdsweep.analysis.study_goals import Fidelity, as_tuple, pilot_job
from kdsweep.analysis.transfer import FEWEST, transfer
from kdsweep.study.search import FIDELITY, LENGTH
from kdsweep.system.errors import UserError, require

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kdsweep.study.search import Search

KEYS = ("epochs", "data.train_fraction", "n_passes")


@dataclass(frozen=True)
class Lengths:
    """What a study wants of its search's runs.

    Attributes:
        key: What is cut down, one of `KEYS`.
        short, full: Its value in a short run and in a long one.
        n: The number of the pilot's settings.
    """

    key: str
    short: float
    full: float
    n: int

    def line(self, *, short: bool) -> list[str]:
        """Returns the override lines of a run; a long one needs none."""
        return [f"{self.key}={self.short:g}"] if short else []


def plan(share: float | None, key: str, n: int, full: object, n_trials: int, searched: Iterable[str]) -> Lengths | None:
    """Returns the plan of a search of shorter runs; None if all runs have one length.

    Args:
        share: The share of `key` that short runs have.
        key: What is cut down.
        n: The number of the pilot's settings.
        full: The configured value of `key`; None if the configuration has none.
        n_trials: The number of trials.
        searched: The searched keys.

    Raises:
        UserError: A rule is broken.
    """
    if share is None:
        return None
    number = type(share) in (int, float)
    require(number and 0 < share < 1, "fidelity is null or a share, 0 < fidelity < 1", share, "sweep.fidelity")
    require(key in KEYS, f"fidelity_of in {KEYS}", key, "sweep.fidelity_of")
    rule = "what is searched isn't cut down too"
    require(key not in {name.lstrip("+") for name in searched}, rule, key, "sweep.fidelity_of", "Choose another key.")
    rule = f"{FEWEST} <= pilot < n_trials"
    require(type(n) is int and FEWEST <= n < n_trials, f"{rule} = {n_trials}", n, "sweep.pilot")
    if not isinstance(full, int | float):
        raise UserError(f"the configuration has no {key} that could be cut down. Choose another.", "sweep.fidelity_of")
    short = float(f"{share * full:.6g}") if isinstance(full, float) else max(1, round(share * full))
    rule = f"a short run has less than {key}={full:g}"
    require(short < full, rule, f"{key}={short:g}", "sweep.fidelity", "Choose a smaller share, or leave it out.")
    return Lengths(key, short, full, n)


def require_same(search: Search, wanted: Lengths | None) -> None:
    """Refuses another length than the study was begun with; notes it if the study is new.

    Raises:
        UserError: It names both.
    """
    if wanted is not None:  # a grid has fewer trials than were asked for
        require(wanted.n < search.n_settings, f"pilot < n_trials = {search.n_settings}", wanted.n, "sweep.pilot")
    now = None if wanted is None else dataclasses.asdict(wanted)
    known = search.noted(LENGTH)
    if known == now:
        return
    if known is None and not search.trials():
        search.keep(LENGTH, now)
        return
    then = None if known is None else Lengths(**known)
    raise UserError(
        f"the length of the search's runs is decided once, and the study {search.name!r} was begun with "
        f"{_words(then)}, not with {_words(wanted)}. Repeat its command, choose another sweep.name, or begin anew with "
        "sweep.restart=fresh.",
        "sweep.fidelity",
    )


def _words(wanted: Lengths | None) -> str:
    if wanted is None:
        return "runs of one length"
    return f"{wanted.key}={wanted.short:g} of {wanted.full:g} and a pilot of {wanted.n}"


def known(search: Search) -> Fidelity | None:
    """Returns what the pilot decided; None before, and where all runs have one length."""
    found = search.noted(FIDELITY)
    return None if found is None else Fidelity.read(found)


def decide(search: Search, wanted: Lengths, values: Mapping[str, Sequence[float]]) -> Fidelity:
    """Decides from the values of the pilot's jobs, by their names, how long the trials are, and keeps that."""

    def of(number: int, *, short: bool) -> tuple[float, ...] | None:
        return as_tuple(values.get(pilot_job(number, short=short)))

    pilot = tuple((number, of(number, short=True), of(number, short=False)) for number in range(wanted.n))
    decided = Fidelity(wanted.key, wanted.short, wanted.full, transfer(pilot).shown, pilot)
    search.keep(FIDELITY, dataclasses.asdict(decided))
    return decided


def tell(search: Search, decided: Fidelity) -> None:
    """Tells Optuna the results of those of the pilot's trials that it doesn't have."""
    while (setting := search.next_of(len(decided.pilot))) is not None:
        _, short, full = decided.pilot[setting.number]
        values = short if decided.cheap else full
        if values is None:
            search.fail(setting.number, f"its {'short' if decided.cheap else 'full-length'} run of the pilot failed")
        else:
            search.complete(setting.number, values)


def trial_of(search: Search, job: str) -> str:
    """Returns the name of the trial whose run a job is; the job's own name if it is no run of the pilot that counts."""
    decided = known(search)
    if decided is not None:
        for number, *_ in decided.pilot:
            if decided.job(number) == job:
                return f"trial-{number:04d}"
    return job
