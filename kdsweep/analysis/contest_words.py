"""What a contest found, in sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsweep.analysis import always_valid, verdict_words
from kdsweep.analysis.sorted_runs import arm_label, pair_label
from kdsweep.analysis.statistics import ROUNDING
from kdsweep.analysis.study_goals import setting
from kdsweep.analysis.verdict import SIGNIFICANCE, Paired, Verdict
from kdsweep.tracking.run_records import NOISY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kdsweep.analysis.contest_findings import Change, Contest, Saved, Speed
    from kdsweep.analysis.equivalent import Equivalent
    from kdsweep.analysis.study_goals import Stop


def headline(contest: Contest, judged: Verdict) -> str:
    """States what the contest is about in one or two sentences."""
    if judged.nothing_learned:
        return verdict_words.headline(judged)
    if not any(paired.outcome != "unknown" for paired in judged.comparisons):
        least = always_valid.FEWEST_PAIRS if judged.at_any_time else 3
        own = f"{least} fresh seeds of each contender (sweep.confirm_seeds={least})"
        return f"No verdict: that takes {own}, and there are fewer."
    if contest.saved:
        # The last contender is the newest method, unless it is the control.
        best = ([saved for saved in contest.saved if saved.contender != NOISY] or contest.saved)[-1]
        return " ".join(_saved_words(best)) if contest.unit == "pictures" else _budget(contest)
    if contest.plan.grid:
        return _grid(contest, judged)
    return " ".join(_against(contest, judged))


def _against(contest: Contest, judged: Verdict) -> Iterator[str]:
    for reference in contest.plan.against:
        own = [paired for paired in judged.comparisons if reference in (paired.first, paired.second)]
        better: list[tuple[float, str]] = []
        worse: list[tuple[float, str]] = []
        for paired in own:
            gain = paired.difference.mean if paired.second == reference else -paired.difference.mean
            name = arm_label(paired.first if paired.second == reference else paired.second)
            if paired.outcome in ("better", "worse"):
                (better if gain > 0 else worse).append((gain, name))
        tuned = "tuned " if reference in contest.plan.chosen else ""
        if better:
            told = ", ".join(f"{name} (by {100 * gain:.2f} points on test)" for gain, name in sorted(better)[::-1])
            text = f"{told} {'beats' if len(better) == 1 else 'beat'} {tuned}{arm_label(reference)}"
        else:
            text = f"None of {len(own)} contenders beats {tuned}{arm_label(reference)} by more than noise"
        if worse:
            text += f"; {_listed([name for _, name in sorted(worse)])} {'is' if len(worse) == 1 else 'are'} worse"
        yield f"{text}."


def _grid(contest: Contest, judged: Verdict) -> str:
    """Says for each pair under which conditions it differs."""
    parts = []
    for first, second in contest.plan.pairs:
        named = [
            (place, judged.of(contest.plan.cell(first, place), contest.plan.cell(second, place)))
            for place in contest.plan.conditions
        ]
        known = [(place, paired) for place, paired in named if paired is not None]
        told = [
            f"{place.label} ({100 * paired.difference.mean:+.2f}{'' if _clear(paired) else ', not distinguishable'})"
            for place, paired in known
        ]
        if told:
            parts.append(f"{arm_label(first)} - {arm_label(second)}, points on test: {', '.join(told)}.")
    return " ".join(parts[: len(contest.plan.contenders) - 1])


def _clear(paired: Paired) -> bool:
    return paired.outcome in ("better", "worse")


def _budget(contest: Contest) -> str:
    """Says whether what is gained with few epochs is still there with many."""
    told = [change for change in contest.changes if change.second == contest.plan.against[0]]
    if not told:
        return "No verdict: the shortest and the longest budget take fresh seeds of all contenders."
    return _change(contest, ([change for change in told if change.first != NOISY] or told)[-1])


def _at(contest: Contest, place: str) -> str:
    """Returns a condition as it stands in a sentence: "8 epochs"; others say themselves what they are."""
    return f"{place} epoch{'s' * (place != '1')}" if contest.unit == "epochs" else place


def _change(contest: Contest, change: Change) -> str:
    early, late = (f"{100 * gain:+.2f} points" for gain in change.gains)
    known = not math.isnan(change.change.low)
    limits = f" (95% interval {100 * change.change.low:+.2f} to {100 * change.change.high:+.2f})" if known else ""
    by = f"{100 * change.change.mean:+.2f}{limits}"
    if not known:
        outcome = f"a change of {by}, with too few pairs to say whether it is noise"
    elif change.change.p >= SIGNIFICANCE:
        outcome = f"a change of {by}, not distinguishable from none"
    else:
        more = change.change.mean > 0
        gains = min(change.gains) > -ROUNDING
        outcome = f"the gain {'grows' if more else 'shrinks'}" if gains else f"it {'rises' if more else 'falls'}"
        outcome += f", by {by}"
    first, last = (_at(contest, place) for place in change.at)
    names = f"{arm_label(change.first)} - {arm_label(change.second)}"
    return f"{names} is {early} at {first} and {late} at {last}: {outcome}."


def _saved_words(saved: Saved) -> Iterator[str]:
    """Says what a contender saves: the amount whose saving is surest first, or that nothing is distinguishable."""
    clear = [point for point in saved.points if point.clear]
    if not clear:
        yield (
            f"{_name(saved.contender)} saves no {saved.unit} against {arm_label(saved.reference)} by more than noise: "
            f"{_point(saved, saved.points[0])}."
        )
        return
    yield f"{_point(saved, clear[0])}."
    if len(clear) < len(saved.points):
        others = ", ".join(_number(p.amount) for p in saved.points if not p.clear)
        yield f"With {others} {saved.unit} the two are not distinguishable."


def _name(name: str) -> str:
    text = arm_label(name)
    return text[:1].upper() + text[1:]


def _point(saved: Saved, point: Equivalent) -> str:
    """Returns "Distill with 5,000 pictures equals scratch with 9,100 (95% interval 7,400 to 12,000)"."""
    limits = ""
    if not math.isnan(point.low):
        low = "less than was measured" if point.low == 0 else _number(point.low)
        high = "more than was measured" if math.isinf(point.high) else _number(point.high)
        everything = point.low == 0 and math.isinf(point.high)
        limits = " (95% interval: all that was measured)" if everything else f" (95% interval {low} to {high})"
    equals = (
        "more than was measured"
        if math.isinf(point.equals)
        else "less than was measured"
        if point.equals == 0
        else _number(point.equals)
    )
    return (
        f"{_name(saved.contender)} with {_number(point.amount)} {saved.unit} equals {arm_label(saved.reference)} with "
        f"{equals}{limits}"
    )


def _number(amount: float) -> str:
    """Prints an amount with three significant digits: "9,100", "12.5"."""
    return f"{float(f'{amount:.3g}'):,.0f}" if amount >= 100 else f"{amount:.3g}"


def words(contest: Contest, judged: Verdict) -> Iterator[str]:
    """Yields the findings, each of one or two sentences."""
    if judged.nothing_learned:
        yield from verdict_words.words(judged)
        return
    for saved in contest.saved:
        for point in saved.points:
            yield f"{_point(saved, point)}; {point.pairs} seed{'s' * (point.pairs != 1)}."
    for change in contest.changes:
        yield _change(contest, change)
    clear = [paired for paired in judged.comparisons if _clear(paired)]
    for paired in sorted(clear, key=lambda one: one.adjusted_p)[:12]:
        yield verdict_words.sentence(paired, len(judged.comparisons))
    same = [paired for paired in judged.comparisons if paired.outcome == "not distinguishable"]
    if same:
        widest = max(paired.bound for paired in same)
        names = _listed([pair_label(one.first, one.second) for one in same[:6]])
        more = f", and {len(same) - 6} more pairs" if len(same) > 6 else ""
        yield (
            f"Not distinguishable on test, and not more than {100 * widest:.2f} points apart: {names}{more}. "
            "report.html has a table of them."
        )
    for speed in contest.speeds:
        yield _speed_words(contest, speed)
    if judged.noise is not None:
        noise = judged.noise
        yield (
            f"Noise over seeds, on test: {100 * noise.sd:.2f} points standard deviation (95% interval "
            f"{100 * noise.low:.2f} to {100 * noise.high:.2f}, from {noise.n} runs)."
        )
    for name, number in contest.plan.chosen.items():
        cell = next((cell for cell in contest.cells if cell.contender == name), None)
        if cell is not None:
            params = {key: cell.runs[0].setting(key) for key in contest.plan.searched(name)}
            yield f"{arm_label(name)} is its trial {number}: {setting(params)}."


def missing(contest: Contest, stop: Stop | None) -> Iterator[str]:
    """Yields what is not there (yet).

    Args:
        contest: What was found.
        stop: Where the confirmation stopped by itself, if it did.
    """
    planned = contest.plan.confirm_seeds if stop is None else stop.seeds
    short = []
    for condition in contest.plan.conditions:
        for name in contest.plan.contenders:
            cell = contest.cell(name, condition)
            n = 0 if cell is None else len(cell.runs)
            if n < planned:
                short.append(f"{arm_label(contest.plan.cell(name, condition))} {n}")
    if short:
        more = f" and {len(short) - 8} more" if len(short) > 8 else ""
        yield f"Of {planned} fresh seeds each there are: {', '.join(short[:8])}{more}."


def _speed_words(contest: Contest, speed: Speed) -> str:
    where = f" at {_at(contest, speed.place)}" if speed.place else ""
    a, b = arm_label(speed.first), arm_label(speed.second)
    level = f"{100 * speed.level:.1f}% on validation{where}"
    n = speed.reached[2]
    if speed.epochs is None or min(speed.reached[:2]) < n:
        return f"{level} is reached by {speed.reached[0]} of {n} runs of {a} and by {speed.reached[1]} of {b}."
    text = f"{level} is reached after {speed.means[0]:.1f} epochs by {a} and after {speed.means[1]:.1f} by {b}"
    if math.isnan(speed.epochs.low):
        return f"{text}; {speed.epochs.n} pairs say too little about the noise."
    text += f" (difference {speed.epochs.mean:+.1f}, 95% interval {speed.epochs.low:+.1f} to {speed.epochs.high:+.1f}"
    if speed.seconds is not None and not math.isnan(speed.seconds.low):
        own = speed.seconds
        text += f"; {own.mean:+.1f} seconds, {own.low:+.1f} to {own.high:+.1f}"
    return f"{text})."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
