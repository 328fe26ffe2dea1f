"""The content of a study's report: its sorted runs, the statistics on them, and sentences about both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdsweep.analysis import (
    contest_findings,
    contest_stopping,
    contest_words,
    cost,
    landscape,
    per_class,
    stopping,
    teacher_pull,
    transfer,
    verdict,
    verdict_words,
)
from kdsweep.analysis.contest_plan import Plan
from kdsweep.analysis.sorted_runs import (
    Arm,
    Comparison,
    Readings,
    Spread,
    Trial,
    arm_label,
    compare,
    differing,
    pareto,
)
from kdsweep.analysis.statistics import FEWEST_PAIRS
from kdsweep.analysis.study_goals import ALPHA, TAU, setting, short_key
from kdsweep.config.keys import in_setting, in_training
from kdsweep.tracking.run_records import NOISY, RESTORED, STUDENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from kdsweep.analysis.contest_findings import Contest
    from kdsweep.analysis.cost import Cost
    from kdsweep.analysis.landscape import Landscape
    from kdsweep.analysis.per_class import ClassChange
    from kdsweep.analysis.verdict import Verdict
    from kdsweep.tracking.run_records import StudyRecord

SAME = 0.005  # points; a smaller difference is not visible in the table


@dataclass(frozen=True)
class Report:
    """Everything that is reported about a study.

    Attributes:
        headline: The verdict, or why there is none.
        front: The Pareto set of a study with several objectives, ordered by the first of them; else empty.
        findings: Sentences about the numbers.
        missing: Sentences about what is not there (yet).
        contest: What was found about contenders; None for a study with one search.
        classes: The arms' accuracies class by class, on test; empty if the runs don't tell them.
        files: The files that `kdsweep.report.writing.write` wrote.
        attached: Whether they are attached to the study's run in MLflow, too.
    """

    comparison: Comparison
    verdict: Verdict
    landscape: Landscape
    cost: Cost
    headline: str
    front: tuple[Trial, ...]
    findings: tuple[str, ...]
    missing: tuple[str, ...]
    classes: tuple[ClassChange, ...] = ()
    contest: Contest | None = None
    files: tuple[Path, ...] = field(default=())
    attached: bool = False

    @property
    def study(self) -> StudyRecord:
        """The study's runs as they were read."""
        return self.comparison.study

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The rows of the table of arms."""
        return self.comparison.arms

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The search's settings, the best first."""
        return self.comparison.trials

    @property
    def target(self) -> float | None:
        """The accuracy that "epochs to target" is about."""
        return self.comparison.target


def summarise(study: StudyRecord, readings: Readings) -> Report:
    """Makes the report of a study from its runs and their histories."""
    plan = Plan.read(study.parent.tags)
    if plan is not None:
        return _of_contest(study, readings, plan)
    found = compare(study, readings)
    judged = verdict.judge(found)
    surveyed = landscape.survey(found, judged.validation_noise)
    spent = cost.account(found)
    objectives = found.goals.objectives
    classes = per_class.changes(found)
    front = pareto(found.trials, objectives) if len(objectives) > 1 else ()
    # Where nothing was learned, the search has found nothing either.
    of_search = (
        ()
        if judged.nothing_learned
        else (
            *verdict_words.curse_words(judged, found),
            *_at_the_border(found),
            *landscape.words(surveyed, found.goals.objective, judged.validation_noise),
        )
    )
    findings = (
        *verdict_words.words(judged),
        *stopping.words(found),
        *_looks(found, judged),
        *_chosen(found, front),
        *_promised(found),
        *transfer.words(found),
        *_repeated(found),
        *_outside(found),
        *_started(found),
        *_others(found),
        *_unconfirmed(found, judged),
        *_teacher(found),
        *(() if judged.nothing_learned else per_class.words(classes)),
        *teacher_pull.words(found),
        *of_search,
        *cost.words(spent),
        *_unfair(found),
    )
    return Report(
        found,
        judged,
        surveyed,
        spent,
        verdict_words.headline(judged),
        front,
        findings,
        tuple(_missing(found)),
        classes,
    )


def _of_contest(study: StudyRecord, readings: Readings, plan: Plan) -> Report:
    """Makes the report of a contest: the same tables and figures, with its contenders as the arms."""
    found, held = contest_findings.compare(study, readings, plan)
    judged = contest_findings.judge(found, held)
    spent = cost.account(found)
    total = f"All runs together took {cost.duration(spent.total_seconds)}."
    return Report(
        found,
        judged,
        landscape.Landscape(),
        spent,
        contest_words.headline(held, judged),
        (),
        (*contest_words.words(held, judged), *contest_stopping.words(found, held), total),
        tuple(contest_words.missing(held, found.goals.stop)),
        contest=held,
    )


def _chosen(found: Comparison, front: tuple[Trial, ...]) -> Iterable[str]:
    """Says which trial the row of distill shows, and how it was chosen."""
    chosen, trials = found.chosen, found.trials
    if chosen is None:
        return
    metric = found.goals.objective.label
    what = f"distill is trial {chosen.number} ({setting(chosen.params)})"
    fresh = found.confirmed("distill")
    repeated = "one run" if len(chosen.runs) == 1 else f"{len(chosen.runs)} runs"
    if fresh:
        how = f"its row shows {len(fresh)} fresh {'seed' if len(fresh) == 1 else 'seeds'}, which chose nothing"
    else:
        how = repeated
    promise = found.goals.promise
    ties = 0 if promise is not None and promise.by_model else sum(trial.values == chosen.values for trial in trials)
    shared = f" {ties} trials share this {metric}; the first of them is taken." if ties > 1 else ""
    if len(trials) == 1:
        yield f"{what}, the only setting tried; {how}."
    elif front:
        size = (
            f"one of the {len(front)} of {len(trials)} trials that no other beats in one objective without losing in "
            "another"
        )
        yield f"{what}, {size if chosen in front else f'chosen from {len(trials)} trials'}; {how}."
    else:
        place = "best" if chosen is trials[0] else f"number {trials.index(chosen) + 1}"
        luck = "" if fresh else ": includes the luck of the search"
        stopped = f" ({len(found.pruned)} pruned besides)" if found.pruned else ""
        yield f"{what}, {place} of {len(trials)} trials by {metric}{stopped}; {how}{luck}.{shared}"


def _promised(found: Comparison) -> Iterable[str]:
    """Says what the model expects of its choice and of the best trial, or why it wasn't asked."""
    promise, objective, chosen = found.goals.promise, found.goals.objective, found.chosen
    if promise is None or chosen is None:
        return
    if not promise.by_model:
        yield f"The best trial is the choice, because {promise.reason}."
        return
    best = next((trial for trial in found.trials if trial.number == promise.best), None)
    scored = "trial scored" if len(chosen.runs) == 1 else f"{len(chosen.runs)} runs scored a mean of"
    what = (
        f"The choice is the setting with the highest posterior mean of a model of all trials: {objective.label} "
        f"{objective.shown(promise.expected)} (sd {objective.shown(promise.sd)}) is expected of it, and its "
        f"{scored} {objective.shown(chosen.value)}."
    )
    if best is None or best is chosen:
        yield f"{what} It has the best score too."
        return
    yield (
        f"{what} The best score is {objective.shown(best.value)}, of trial {best.number} ({setting(best.params)}), "
        f"of which the model expects {objective.shown(promise.best_expected)}."
    )


def _repeated(found: Comparison) -> Iterable[str]:
    """Says how often the settings of the search were run, where that is more than once."""
    goals, counts = found.goals, [len(trial.runs) for trial in found.trials]
    if not goals.repeats or not counts:
        return
    runs = f"{sum(counts)} runs of {len(counts)} settings, each with another seed"
    how = f"{min(counts)} of each" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)} of each"
    race = " Further runs went to settings that could still be the best (sweep.race)." if goals.race else ""
    yield f"The search made {runs}: {how}.{race} A setting's mean is what counts."


def _outside(found: Comparison) -> Iterable[str]:
    """Says which trials the space that is searched now doesn't have."""
    numbers = sorted(trial.number for trial in found.trials if not found.searched(trial))
    if numbers:
        one = len(numbers) == 1
        yield (
            f"{'Trial' if one else 'Trials'} {', '.join(map(str, numbers))} {'lies' if one else 'lie'} outside of what "
            f"is searched now, which was changed after the study began: {'it is' if one else 'they are'} kept, counted "
            "and known to the model, and not chosen."
        )


def _started(found: Comparison) -> Iterable[str]:
    """Says what the search knew before its first trial."""
    asked: dict[str, str] = {}
    for request in found.goals.requests:
        asked |= request.asked
    name = asked.get("start from", "nothing")
    if name != "nothing":
        yield (
            f"The search started from the trials of the study {name}: the sampler and the model of the choice know "
            "them. They are no trials of this study, and no comparison counts them."
        )
    n = int(asked.get("start", "0"))
    if n:
        yield f"{n} {'setting was' if n == 1 else 'settings were'} asked for first (sweep.start)."


def _at_the_border(found: Comparison) -> Iterable[str]:
    """Says where the choice lies at a limit of what was searched, and how to search beyond it."""
    params = {} if found.chosen is None else found.chosen.params
    # Without the teacher's part, its other settings do nothing.
    deaf = TAU.key if str(params.get(ALPHA.key)) in ("0", "0.0") else None
    for dimension in found.goals.space:
        value = None if dimension.key == deaf else params.get(dimension.key)
        wider = None if value is None or dimension.choices else dimension.wider(float(value))
        if value is not None and wider is not None:
            yield (
                f"The choice lies at the border of what was searched: {short_key(dimension.key)} {float(value):.4g} of "
                f"{dimension.low:g} to {dimension.high:g}. Better settings may lie beyond it. The same command "
                f"with more trials (sweep.n_trials) and '{wider}' searches there too."
            )


def _looks(found: Comparison, judged: Verdict) -> Iterable[str]:
    """Says that a verdict that was looked at before is looked at again: nothing corrects for that."""
    main = judged.of("distill", "scratch")
    # Studies of before don't say how often they ended, but an earlier choice had a verdict of its own.
    before = found.goals.looks or [(other.number, len(other.runs)) for other in found.others if other.earlier]
    looks = [look for look in before if look[1] >= FEWEST_PAIRS]
    if main is not None and found.chosen is not None and main.outcome != "unknown":
        now = (found.chosen.number, main.difference.n)
        # Runs that failed make fewer pairs than seeds.
        if not looks or now[0] != looks[-1][0] or now[1] > looks[-1][1]:
            looks.append(now)
    if len(looks) < 2 or not judged.comparisons:
        return
    if judged.at_any_time:
        choices = len({trial for trial, _ in looks})
        if choices > 1:
            yield (
                f"This study has confirmed {choices} choices. The verdict on each is always valid, but each has a "
                "probability of error of its own."
            )
        return
    told = ", then ".join(f"{seeds} of trial {trial}" for trial, seeds in looks)
    yield (
        f"This study was extended, and its verdict looked at {len(looks)} times: with fresh seeds {told}. P values and "
        "intervals don't correct for looking again: of equal arms, more than the promised 5% are told apart that way. "
        f"The same command with sweep.confirm_until={max(seeds for _, seeds in looks)} or more gives a verdict that "
        "holds however often one looks."
    )


def _others(found: Comparison) -> Iterable[str]:
    """Says which other trials have fresh seeds, since a study that was extended may choose anew."""
    for other in found.others:
        seeds = f"{len(other.runs)} fresh {'seed' if len(other.runs) == 1 else 'seeds'}"
        accuracy = "" if other.accuracy is None else f", {other.accuracy.mean:.2%} on test"
        which = "an earlier choice of this study" if other.earlier else "not the choice that is reported here"
        yield (
            f"Trial {other.number} ({setting(other.params)}) has {seeds} too{accuracy}: it is {which}, and no number "
            "of distill counts them."
        )


def _unconfirmed(found: Comparison, judged: Verdict) -> Iterable[str]:
    """Compares the first runs on test, or else on validation, if nothing was confirmed."""
    if judged.comparisons or found.goals.short_search:
        return
    for metric, where in (("test/accuracy", "test"), ("val/accuracy", "validation")):
        spreads = {arm.name: arm.metrics[metric] for arm in found.arms if metric in arm.metrics}
        scratch, distilled, smoothed = (spreads.get(arm) for arm in ("scratch", "distill", "label_smoothing"))
        if scratch is None:
            continue
        if distilled is not None:
            yield (
                f"On {where}, distill ({distilled.mean:.2%}, {_runs(distilled)}) is {_compare(distilled, scratch)} "
                f"scratch ({scratch.mean:.2%}, {_runs(scratch)}): no significance is claimed, that takes fresh seeds."
            )
        if smoothed is not None:
            what = f"Label smoothing, which needs no teacher, is {_compare(smoothed, scratch)}"
            yield f"{what} scratch on {where} ({_runs(smoothed)})."
        return


def _teacher(found: Comparison) -> Iterable[str]:
    """Says where the teacher stands among its students on test."""
    tested = {arm.name: arm.metrics["test/accuracy"] for arm in found.arms if "test/accuracy" in arm.metrics}
    teacher, scratch = tested.get("teacher"), tested.get("scratch")
    relations = [
        f"{_relation(teacher, tested[name])} {name}" for name in ("scratch", "distill") if teacher and name in tested
    ]
    if teacher is not None and relations:
        weak = scratch is not None and points(teacher, scratch) <= -SAME
        remark = " From a weaker teacher a student may gain only what label smoothing gives: that arm is the control."
        yield f"The teacher's test accuracy is {teacher.mean:.2%}, {' and '.join(relations)}.{remark if weak else ''}"


def points(first: Spread, second: Spread) -> float:
    """Returns the difference of two mean accuracies in points."""
    return 100 * (first.mean - second.mean)


def _compare(first: Spread, second: Spread) -> str:
    difference = points(first, second)
    if abs(difference) < SAME:
        return "as accurate as"
    return f"{abs(difference):.2f} points {'more' if difference > 0 else 'less'} accurate than"


def _relation(first: Spread, second: Spread) -> str:
    difference = points(first, second)
    return "equal to" if abs(difference) < SAME else "above" if difference > 0 else "below"


def _runs(spread: Spread) -> str:
    return "one run" if spread.n == 1 else f"mean of {spread.n} runs"


def _unfair(found: Comparison) -> Iterable[str]:
    """Says what differs besides the arm, and could explain a difference too."""
    for arm in found.arms:
        if keys := differing(arm.runs, in_setting):
            yield f"The {arm.label} runs differ in {_listed(keys)} too: their mean mixes settings."
    scratch, distilled = found.arm("scratch"), found.arm("distill")
    if scratch is not None and distilled is not None:
        both = differing([*scratch.runs, *distilled.runs], in_training)
        searched = set(found.chosen.params) if found.chosen is not None else set()
        keys = both - differing(scratch.runs, in_training) - differing(distilled.runs, in_training)
        chosen = any(key == name or key.startswith(f"{name}.") for key in keys for name in searched)
        tuned = ", of which the search chose the distilled one's" if chosen else ""
        if keys:
            yield f"distill and scratch differ in {_listed(keys)} too{tuned}, which may explain a difference."


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(sorted(keys))


def _missing(found: Comparison) -> Iterable[str]:
    arms = {arm.name for arm in found.arms}
    if "distill" not in arms:
        yield "There is no finished distilled run yet, so there is nothing to compare with scratch."
    if "scratch" not in arms:
        yield "There is no finished scratch run here, so there is no difference and no target accuracy."
    if "teacher" not in arms:
        yield "There is no teacher run here: a teacher that was trained before, or by a student, has a run of its own."
    planned, ended = found.goals.n_trials, sum(len(trial.runs) for trial in found.trials) + len(found.pruned)
    if planned is not None and ended < planned:
        # A trial that failed counts as one of the planned ones, so only an interrupted study has trials left.
        going_on = found.study.parent.status != "FINISHED" and ended + _n_failed(found) < planned
        rest = "the same command goes on with the study" if going_on else _unfinished(found, planned - ended)
        what = "runs of the search" if found.goals.repeats else "trials"
        yield f"{ended} of {planned} {what} have ended well; {rest}."
    restored = sum(RESTORED in run.tags for trial in found.trials for run in trial.runs)
    restored += sum(RESTORED in run.tags for run in found.study.runs("distill", status="KILLED"))
    if restored:
        yield f"{restored} of the trials are known by Optuna's values alone: their MLflow runs were gone."
    asked = [arm for arm in STUDENTS if arm != NOISY or arm in found.goals.baselines]
    yield from _missing_confirmation(found, {arm: len(found.confirmed(arm)) for arm in asked})


def _unfinished(found: Comparison, others: int) -> str:
    """Says what became of the trials that haven't ended well: they failed, unless they have no run here."""
    n_failed = _n_failed(found, "FAILED", "KILLED")
    gone = others - n_failed
    if gone <= 0:
        return "the others failed"
    return f"{f'{n_failed} failed, and ' if n_failed else ''}{gone} left no finished run here"


def _n_failed(found: Comparison, *statuses: str) -> int:
    """Returns the number of trials whose runs all ended in one of these ways, by default FAILED."""
    well = {int(run.tags.get("kdsweep.trial", trial.number)) for trial in found.trials for run in trial.runs}
    well |= {trial.number for trial in found.pruned}
    runs = [run for status in statuses or ("FAILED",) for run in found.study.runs("distill", "search", status)]
    failed = {number for run in runs if (number := run.tags.get("kdsweep.trial", "")).isdecimal()}
    return len({int(number) for number in failed} - well)


def _missing_confirmation(found: Comparison, fresh: Mapping[str, int]) -> Iterable[str]:
    planned, goals = found.goals.confirm_seeds, found.goals
    if goals.confirm_until is not None:
        planned = goals.confirm_until if goals.stop is None else goals.stop.seeds
    if planned == 0:
        yield "Nothing was confirmed, as configured (sweep.confirm_seeds=0): with five or so there is a verdict."
    elif planned is None and not any(fresh.values()):
        yield "Nothing was confirmed with fresh seeds, so there is no verdict: `kdsweep sweep=alpha_tau` makes one."
    elif planned is not None and min(fresh.values()) < planned:
        counts = ", ".join(f"{arm_label(arm)} {n}" for arm, n in fresh.items())
        yield f"The confirmation is not complete: of {planned} fresh seeds an arm there are {counts}."
