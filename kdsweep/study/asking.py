"""Keeps what was asked of a study, and when: its trials, space, sampler, baselines and fresh seeds."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kdsweep.analysis.study_goals import Request, requests
from kdsweep.system.masking import masked_text
from kdsweep.system.progress import note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kdsweep.tracking.run_records import RunRecord

# MLflow accepts no longer tag.
LONGEST = 5000


def tag(known: RunRecord | None, asked: Mapping[str, str]) -> dict[str, str]:
    """Returns the tag with all requests of a study so far; the same request again adds nothing.

    Args:
        known: The study's own run, if it has one.
        asked: What is asked now: a name, and its value in words.
    """
    before = [] if known is None else list(requests(known.tags))
    in_force: dict[str, str] = {}
    for request in before:
        in_force |= request.asked
    shown = {name: masked_text(value) for name, value in asked.items()}
    changed = {name: value for name, value in shown.items() if in_force.get(name) != value}
    if before and changed:
        note(f"Asked for anew: {', '.join(f'{name} {value}' for name, value in changed.items())}.")
    if changed:
        before.append(Request(datetime.now(UTC).isoformat(timespec="seconds"), changed))
    kept = [{"when": request.when, "asked": dict(request.asked)} for request in before]
    while len(json.dumps(kept)) > LONGEST and len(kept) > 1:
        del kept[1]  # the first one says what the study began as
    return {"kdsweep.requests": json.dumps(kept)}
