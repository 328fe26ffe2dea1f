"""Claims about the report of a contest: made-up runs of contenders, under one condition or several."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
from records import readings, record
from records import study as study_of

from kdsweep.analysis import contest_stopping, statistics
from kdsweep.analysis.contest_plan import Condition, Plan, fresh_job, texts, trial_job
from kdsweep.analysis.findings import Report, summarise
from kdsweep.analysis.progress_now import progress
from kdsweep.analysis.sorted_runs import Readings, arm_label, pair_label
from kdsweep.analysis.study_goals import Goals
from kdsweep.analysis.study_numbers import numbers
from kdsweep.report import tables
from kdsweep.report.figures import all_figures
from kdsweep.report.writing import _jsonable
from kdsweep.tracking.run_records import RunRecord

FRACTIONS = ["0.05", "0.1", "0.2", "0.5", "1"]
PICTURES = dict(zip(FRACTIONS, (500, 1000, 2000, 5000, 10000), strict=True))
WOBBLE = (0.001, -0.002, 0.0005, 0.0, 0.0005)


def fresh(
    name: str,
    tests: Sequence[float],
    place: Condition | None = None,
    trial: int | None = None,
    arm: str = "distill",
    **params: object,
) -> list[RunRecord]:
    """Fresh seeds of a contender with these test accuracies."""
    place = Condition({}) if place is None else place
    found = []
    for seed, test in enumerate(tests, 1000):
        tags = {"kdsweep.job": fresh_job(name, trial, place, seed), "kdsweep.contender": name}
        tags |= {"kdsweep.condition": place.slug} if place.values else {}
        tags |= {} if trial is None else {"kdsweep.trial": str(trial)}
        run = record(arm, test=test, stage="confirmation", params={"seed": seed, **place.values, **params}, tags=tags)
        pictures = PICTURES.get(place.label)
        found.append(run if pictures is None else replace(run, splits={"training": pictures}))
    return found


def noisy(mean: float, seeds: int = 5, shift: int = 0) -> list[float]:
    return [mean + WOBBLE[(i + shift) % len(WOBBLE)] for i in range(seeds)]


def told(plan: Plan, *runs: RunRecord, own: Readings | None = None, tags: Mapping[str, str] | None = None) -> Report:
    study = study_of(*runs)
    parent = replace(study.parent, tags={**study.parent.tags, "kdsweep.contest": plan.text(), **(tags or {})})
    return summarise(replace(study, parent=parent), own or readings(runs, None))


LOSSES = Plan(
    {name: [f"loss={name}"] for name in ("ce", "kd", "dkd")},
    ["kd"],
    {},
    {"kd": ["loss.alpha"], "dkd": ["loss.tau"]},
    {"kd": 1, "dkd": 0},
    5,
)


def losses(dkd: float = 0.93) -> list[RunRecord]:
    trials = [
        record(
            "distill",
            val=0.8 + 0.01 * number,
            stage="search",
            params={"loss.alpha": 0.5, "loss.tau": 2, "seed": 0},
            tags={
                "kdsweep.job": trial_job(name, number),
                "kdsweep.contender": name,
                "kdsweep.trial": str(number),
            },
        )
        for name in ("kd", "dkd")
        for number in (0, 1)
    ]
    return [
        record("teacher", test=0.95),
        *trials,
        *fresh("ce", noisy(0.90)),
        *fresh("kd", noisy(0.91, shift=1), trial=1, **{"loss.alpha": 0.3}),
        *fresh("dkd", noisy(dkd, shift=2), trial=0, **{"loss.tau": 4}),
    ]


def test_the_headline_names_who_beats_the_tuned_reference() -> None:
    """And who is worse; each contender has one row in the table of arms, with its fresh seeds."""
    report = told(LOSSES, *losses())
    assert report.headline == "dkd (by 2.00 points on test) beats tuned kd; ce is worse."
    assert [(arm.name, len(arm.runs)) for arm in report.arms] == [("teacher", 1), ("ce", 5), ("kd", 5), ("dkd", 5)]
    assert (
        told(LOSSES, *losses(0.91)).headline == "None of 2 contenders beats tuned kd by more than noise; ce is worse."
    )
    assert "kd is its trial 1: alpha 0.3." in report.findings


def test_a_shuffled_contender_leaves_the_noise_of_the_others_alone() -> None:
    """It is compared too, but it learns from wrong answers: what its seeds do says nothing of the others'."""
    plan = replace(LOSSES, contenders={**LOSSES.contenders, "wrong_answers": ["arm=shuffled", "loss=kd"]})
    wild = fresh("wrong_answers", [0.5, 0.7, 0.3, 0.6, 0.4], arm="shuffled")
    without, with_it = told(LOSSES, *losses()).verdict, told(plan, *losses(), *wild).verdict
    assert with_it.noise == without.noise
    assert [pair.difference for pair in with_it.comparisons[:2]] == [pair.difference for pair in without.comparisons]
    assert (with_it.comparisons[2].first, with_it.comparisons[2].pooled) == ("wrong_answers", None)
    assert told(plan, *losses(), *wild).headline.endswith("beats tuned kd; wrong answers, ce are worse.")


@pytest.mark.parametrize(
    ("dkd", "most", "why"), [(0.95, 20, "clear"), (0.91, 20, None), (0.91, 5, "spent"), (0.91, 6, "out of reach")]
)
def test_a_contest_stops_when_each_comparison_is_clear_or_out_of_reach(dkd: float, most: int, why: str | None) -> None:
    """With Holm's correction over all of them, at any look."""
    assert contest_stopping.decision(LOSSES, losses(dkd), range(1000, 1005), most, 0.0) == why


def test_seeds_beyond_the_stop_of_a_contest_dont_count() -> None:
    """The report says when it stopped and what that saved; its intervals hold at any look, and are wider."""
    planned = {"n_trials": 4, "confirm_seeds": 4, "confirm_until": 9}
    stop = {"trial": None, "seeds": 4, "last_seed": 1003, "why": "clear"}
    tags = {"kdsweep.planned": json.dumps(planned), "kdsweep.stopped": json.dumps(stop)}
    report, once = told(LOSSES, *losses(0.95), tags=tags), told(LOSSES, *losses(0.95))
    assert {len(arm.runs) for arm in report.arms if arm.name != "teacher"} == {4}
    assert len(report.comparison.beyond) == 3
    (line,) = [line for line in report.findings if line.startswith("The confirmation stopped")]
    assert "after 4 of at most 9 seeds an arm, because each comparison has an answer; 5 seeds an arm (15 runs)" in line
    assert report.verdict.at_any_time
    assert report.missing == ()
    for wide, narrow in zip(report.verdict.comparisons, once.verdict.comparisons, strict=True):
        assert wide.difference.high - wide.difference.low > narrow.difference.high - narrow.difference.low


def test_one_correction_covers_all_comparisons_of_all_conditions() -> None:
    """Holm's correction takes the p values of every condition together."""
    report = told(HUNGER, *hunger())
    pairs = report.verdict.comparisons
    assert len(pairs) == 3 * len(FRACTIONS)
    assert [paired.adjusted_p for paired in pairs] == list(statistics.holm([p.difference.p for p in pairs]))


def test_the_trials_of_all_searches_stand_in_one_table() -> None:
    """The best first, each with its contender and its own setting."""
    shown = tables.trials(told(LOSSES, *losses()), told(LOSSES, *losses()).trials)
    assert shown.headings[:3] == ("trial", "contender", "setting")
    assert [row[:3] for row in shown.rows][:2] == [("1", "dkd", "tau 2"), ("1", "kd", "alpha 0.5")]


def test_repeated_runs_of_a_contenders_setting_are_one_trial() -> None:
    """With the number of the first and the mean of all."""
    planned = {"n_trials": 4, "replicates": 2, "race": 0, "repeats": True}
    found = told(LOSSES, *losses(), tags={"kdsweep.planned": json.dumps(planned)}).trials
    assert [(one.number, one.value, len(one.runs)) for one in found] == [(0, pytest.approx(0.805), 2)] * 2


def test_an_earlier_choice_counts_nowhere() -> None:
    """Fresh seeds of a trial that isn't the chosen one any more are in no arm."""
    report = told(LOSSES, *losses(), *fresh("kd", noisy(0.5), trial=0))
    assert {arm.name: len(arm.runs) for arm in report.arms}["kd"] == 5


def test_what_is_missing_is_named() -> None:
    """While a study goes on, and where runs failed, the report says how many fresh seeds there are."""
    report = told(LOSSES, *losses()[:-4])
    assert report.missing == ("Of 5 fresh seeds each there are: dkd 1.",)
    two = told(LOSSES, *fresh("ce", noisy(0.9, 2)), *fresh("kd", noisy(0.91, 2), trial=1))
    assert two.headline.startswith("No verdict: that takes 3 fresh seeds")


HUNGER = Plan(
    {name: [f"loss={name}"] for name in ("scratch", "label_smoothing", "distill")},
    ["scratch", "label_smoothing"],
    {"data.train_fraction": FRACTIONS},
    {},
    {},
    5,
)


def hunger(gain: float = 1.8, key: str = "data.train_fraction") -> Iterator[RunRecord]:
    """Contenders to whom pictures are worth 1, 1 and `gain` times as much."""
    for (place, pictures), (shift, (name, worth)) in itertools.product(
        PICTURES.items(), enumerate({"scratch": 1.0, "label_smoothing": 1.0, "distill": gain}.items())
    ):
        values = noisy(1 - 3 * (worth * pictures) ** -0.4, shift=shift)
        yield from fresh(name, values, Condition({key: place}))


def test_data_that_is_saved_is_told_in_pictures() -> None:
    """By the clear points; where the curve of scratch ends, no number is made up."""
    report = told(HUNGER, *hunger())
    assert report.headline.startswith("Distill with 500 pictures equals scratch with 9")
    assert "95% interval" in report.headline
    (last,) = [line for line in report.findings if line.startswith("Distill with 10,000")]
    assert "equals scratch with more than was measured" in last
    assert "to more than was measured" in last


def test_nothing_saved_is_said_to_be_so() -> None:
    """An equal contender saves nothing by more than noise."""
    report = told(HUNGER, *hunger(gain=1.0))
    assert report.headline.startswith("Distill saves no pictures against scratch by more than noise")


SPEED = replace(HUNGER, grid=texts({"epochs": [5, 10, 20, 50]}))


def speed(gains: Mapping[str, float]) -> list[RunRecord]:
    runs = []
    for turn, (epochs, level) in enumerate((("5", 0.80), ("10", 0.85), ("20", 0.88), ("50", 0.90))):
        place = Condition({"epochs": epochs})
        runs += fresh("scratch", noisy(level, shift=turn), place)
        runs += fresh("label_smoothing", noisy(level, shift=1), place)
        runs += fresh("distill", noisy(level + gains[epochs], shift=2), place)
    return runs


@pytest.mark.parametrize(
    ("last", "words"), [(0.0, "the gain shrinks, by -3.00"), (-0.05, "it falls, by -8.00"), (0.03, "a change of +0.00")]
)
def test_whether_a_gain_lasts_is_the_headline_of_a_study_of_budgets(last: float, words: str) -> None:
    """The gain with the fewest epochs against that with the most, paired by seed."""
    report = told(SPEED, *speed({"5": 0.03, "10": 0.03, "20": 0.02, "50": last}))
    assert report.headline.startswith("distill - scratch is +3.00 points at 5 epochs and ")
    assert words in report.headline
    assert any(line.startswith("Distill with 5 epochs equals scratch with ") for line in report.findings)


def test_epochs_and_seconds_to_an_accuracy_are_paired() -> None:
    """95 % of what the reference reaches in the end, by each run's first epoch there; a run without it is named."""
    plan = replace(HUNGER, contenders={"scratch": [], "distill": []}, against=["scratch"], grid={}, confirm_seeds=3)
    runs = [*fresh("scratch", noisy(0.9, 3)), *fresh("distill", noisy(0.9, 3))]
    curves = {
        run.id: [(1, 0.5), (2, 0.9 if i >= 3 else 0.8), (3, 0.9 if i < 5 else 0.91)] for i, run in enumerate(runs)
    }
    took = {run.id: [(1, 2.0), (2, 2.0), (3, 2.0 + 0.1 * i)] for i, run in enumerate(runs)}
    report = told(plan, *runs, own=Readings({"val/accuracy": curves, "epoch_seconds": took}))
    (line,) = [line for line in report.findings if "is reached" in line]
    assert line.startswith("85.5% on validation is reached after 2.0 epochs by distill and after 3.0 by scratch")
    assert "difference -1.0" in line
    assert "seconds" in line
    never = {
        run.id: curve if i else [(1, 0.5)] for i, (run, curve) in enumerate(zip(runs, curves.values(), strict=True))
    }
    lines = told(plan, *runs, own=Readings({"val/accuracy": never})).findings
    assert "85.5% on validation is reached by 3 of 3 runs of distill and by 2 of scratch." in lines


def test_students_have_a_verdict_each() -> None:
    """Conditions without an amount are told one by one; a name of a network keeps its underscores."""
    plan = replace(HUNGER, grid={"model.name": ["resnet18", "net_v2"]})
    runs = []
    for name, gain in (("resnet18", 0.02), ("net_v2", 0.0)):
        place = Condition({"model.name": name})
        runs += fresh("scratch", noisy(0.8), place) + fresh("label_smoothing", noisy(0.8, shift=1), place)
        runs += fresh("distill", noisy(0.8 + gain, shift=2), place)
    report = told(plan, *runs)
    assert "distill - scratch, points on test: resnet18 (+2.00), net_v2 (0.00, not" in report.headline.replace(
        "+0.00", "0.00"
    )
    assert arm_label("label_smoothing at net_v2") == "label smoothing at net_v2"
    assert pair_label("label_smoothing at net_v2", "scratch at net_v2") == "label smoothing - scratch at net_v2"
    assert pair_label("kd_standardized", "kd") == "kd standardized - kd"
    assert not any("target" in heading for heading in tables.arms(report).headings)


def test_the_target_of_a_contest_is_that_of_its_reference() -> None:
    """Which needn't be scratch."""
    shown = tables.arms(told(LOSSES, *losses()))
    assert any("target" in heading for heading in shown.headings)
    assert "95% of kd's final mean" in shown.caption


@pytest.mark.parametrize("which", ["losses", "hunger", "students"])
def test_a_contest_has_figures_numbers_and_a_report_as_json(which: str) -> None:
    """Everything that a report writes is made from its contenders; a surface over alpha and tau isn't."""
    place = [Condition({"model.name": name}) for name in ("a", "b")]
    report = {
        "losses": lambda: told(LOSSES, *losses()),
        "hunger": lambda: told(HUNGER, *hunger()),
        "students": lambda: told(
            replace(HUNGER, grid={"model.name": ["a", "b"]}),
            *[run for own in place for name in HUNGER.contenders for run in fresh(name, noisy(0.8), own)],
        ),
    }[which]()
    drawn = dict(all_figures.draw(report))
    assert ("across.png" in drawn) is (which != "losses")
    assert "differences.png" in drawn
    assert "alpha_tau_surface.png" not in drawn
    json.dumps([panel.jsonable() for shown in all_figures.charts(report) for panel in shown.panels], allow_nan=False)
    json.dumps(_jsonable(report), allow_nan=False)
    assert all("," not in name for name in numbers(report))


def test_where_nothing_was_learned_there_is_no_verdict() -> None:
    """All contenders at the level of the most frequent class: the report says that, and compares nothing."""
    runs = [*fresh("ce", noisy(0.1)), *fresh("kd", noisy(0.1), trial=1), *fresh("dkd", noisy(0.1), trial=0)]
    counts = {index: {f"class {c}": (100, 10) for c in range(10)} for index, _ in enumerate(runs)}
    report = told(LOSSES, *runs, own=readings(runs, None, counts))
    assert report.headline.startswith("Nothing was learned: ")
    assert {paired.outcome for paired in report.verdict.comparisons} == {"unknown"}


def test_the_progress_of_a_contest_counts_every_contender() -> None:
    """Trials have the same numbers in each search; fresh seeds are those of all contenders under all conditions."""
    study = study_of(*losses()[:-2], planned={"n_trials": 6, "confirm_seeds": 5})
    told_of = replace(study, parent=replace(study.parent, tags={**study.parent.tags, "kdsweep.contest": LOSSES.text()}))
    stages = progress(told_of, Goals.read(told_of.parent.tags)).stages
    assert [(stage.name, stage.done, stage.planned) for stage in stages[1:]] == [
        ("trials", 4, 6),
        ("fresh seeds", 13, 15),
    ]
