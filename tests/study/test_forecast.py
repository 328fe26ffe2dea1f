"""Claims about what is printed before a study starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import SHORT
from hydra import compose, initialize_config_dir
from speeds import PLANNED, speed, without_teacher

from kdsweep.config.checks import check
from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.study import forecast as forecast_module
from kdsweep.study.forecast import LONG_SECONDS, Alternative, Forecast, estimate, forecast, less_work, roughly, worth_it
from kdsweep.study.measure_speed import Speed
from kdsweep.system.errors import UserError

NOTHING = dict.fromkeys(PLANNED, 0)


def made_up(ours: Speed | None = None, left: dict[str, int] | None = None, n_jobs: int = 1, **more: Any) -> Forecast:
    """Makes the forecast of a default study on a machine of the given speed."""
    ours, left = ours or speed(), PLANNED if left is None else left
    cost = estimate(ours, left, n_jobs)
    return Forecast("digits", more.pop("planned", PLANNED), left, n_jobs, ours, cost, **more)


# -------------------------------------------------------------------------------------------------------- words


def test_all_runs_are_announced() -> None:
    """They are listed stage by stage, with seeds for confirmations, and with their sum."""
    assert made_up().words()[0] == (
        "Study digits: 1 teacher, 3 scratch, 3 label smoothing; 30 trials; "
        "then 5 fresh seeds of the best setting and of both controls: 52 runs."
    )


@pytest.mark.parametrize(
    ("planned", "expected"),
    [
        ({"trials": 2, "confirmation": 0}, "Study digits: 2 trials: 2 runs."),
        ({"trials": 2, "confirmation": 3}, "2 trials; then 3 fresh seeds of the best setting: 5 runs."),
        ({"scratch": 0, "trials": 2, "confirmation": 2}, "then 1 fresh seed of the best setting and of the control: 4"),
        ({"scratch": 0, "trials": 2, "confirmation": 3}, "then 3 runs with fresh seeds: 5 runs."),
        ({"a": 1, "b": 1, "c": 1, "trials": 2, "confirmation": 8}, "2 fresh seeds of the best setting and of 3 contr"),
    ],
)
def test_other_studies_are_announced_as_they_are(planned: dict[str, int], expected: str) -> None:
    """The study has no confirmation, no controls, one control, or three."""
    assert expected in made_up(left=planned, planned=planned).words()[0]


def test_a_study_that_goes_on_says_what_is_done() -> None:
    """Of 52 runs, 7 baselines and 4 trials are done; of a finished study nothing is left."""
    left = NOTHING | {"trials": 26, "confirmation": 15}
    assert made_up(left=left).words()[0].endswith(": 52 runs. 11 of them are done.")
    assert made_up(left=NOTHING).words()[1:] == ["Nothing is left to run."]


def test_the_teachers_work_is_announced() -> None:
    """The line says what is missing, of how much, and about how long it takes."""
    assert made_up(speed(passes_missing=(1, 2))).words()[1] == (
        "Teacher: 2 of 10 passes over 1,000 pictures and features of 1,500 pictures still to be computed (about 6 min)."
    )
    with_features = made_up(speed(passes_missing=(1, 2), feature_bytes=40 * 2**20)).words()[1]
    assert (
        "2 of 10 passes over 1,000 pictures (their features take 40 MiB of the disk) and features of" in with_features
    )
    assert made_up(without_teacher()).words()[1] == "Teacher: all 10 passes are computed."
    assert made_up(without_teacher(online=True)).words()[1] == "Teacher: it answers every batch."
    online = made_up(speed(online=True, passes_missing=())).words()[1]
    assert online == (
        "Teacher: features of 1,500 pictures still to be computed (about 2 min), then it answers every batch."
    )


def test_without_a_teacher_none_is_mentioned() -> None:
    """There is no line if the study has no teacher, or if only controls are left."""
    alone = made_up(without_teacher(teacher_rate=None))
    controls_left = made_up(left=NOTHING | {"scratch": 2})
    assert not any(line.startswith("Teacher") for line in [*alone.words(), *controls_left.words()])


def test_the_time_says_what_it_was_computed_from() -> None:
    """Two trials take 102 s each, on one worker or on two; the line names the measured step."""
    left = NOTHING | {"trials": 2}
    one, two = (made_up(without_teacher(step_seconds=s, cores=2), left, n).words()[2] for s, n in ((1.0, 1), (0.37, 2)))
    assert one == "About 3 min, one run at a time (one step of 100 pictures takes 1.0 s; measured now)."
    assert two == "About 40 s, on 2 workers (one step of 100 pictures takes 370 ms; measured now)."


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.1, "5 s"),
        (42, "40 s"),
        (57.4, "55 s"),
        (57.6, "1 min"),
        (720, "12 min"),
        (3569, "59 min"),
        (3571, "1 h"),
        (6100, "1 h 40 min"),
        (35800, "9 h 55 min"),
        (36000, "10 h"),
        (112_000, "31 h"),
        (5 * 86400, "5 days"),
    ],
)
def test_times_are_as_rough_as_they_are_known(seconds: float, words: str) -> None:
    """There are no seconds beside hours, and no hours beside days."""
    assert roughly(seconds) == words


# ------------------------------------------------------------------------------------------------- alternatives


def found(ours: Speed) -> dict[str, Alternative]:
    """Returns the proposals that need no measurement, by their overrides."""
    return {way.overrides: way for way in less_work(ours, 1, estimate(ours, PLANNED, 1))}


def test_half_the_epochs_take_half_the_passes() -> None:
    """This holds if there are as many passes as epochs; if there are fewer, their number stays."""
    assert found(speed())["epochs=5"].speed == speed(epochs=5, n_passes=5, passes_missing=(0, 1, 2, 3, 4))
    assert found(speed(n_passes=3))["epochs=5"].speed.n_passes == 3
    assert not any(override.startswith("epochs") for override in found(speed(epochs=1)))


def test_other_pictures_are_new_to_the_teacher() -> None:
    """For half of the training pictures all tables must be made again, because they belong to the whole."""
    half = found(without_teacher(train_fraction=0.5))["data.train_fraction=0.25"].speed
    assert half == speed(train_fraction=0.5, n_train=500, features_missing=500 + 200 + 300)
    online = found(without_teacher(online=True))["data.train_fraction=0.5"].speed
    assert online.passes_missing == ()
    alone = found(without_teacher(teacher_rate=None))["data.train_fraction=0.5"].speed
    assert (alone.passes_missing, alone.features_missing) == ((), 0)


def test_fewer_passes_are_proposed_where_the_teacher_is_dear() -> None:
    """At 0.5 pictures/s its ten passes take most of the time; at 10 pictures/s they don't."""
    assert found(speed(teacher_rate=0.5))["n_passes=2"].speed.passes_missing == (0, 1)
    assert "n_passes=2" not in found(speed())


def test_a_proposal_must_save_a_tenth() -> None:
    """Proposals come shortest first, each with its time; what saves nothing is left out."""
    ours = without_teacher()
    cost = estimate(ours, PLANNED, 1)
    ways = [Alternative(name, without_teacher(step_seconds=s), 1) for name, s in (("a", 0.5), ("b", 0.95), ("c", 0.1))]
    kept = worth_it(ways, PLANNED, cost)
    assert [way.overrides for way in kept] == ["c", "a"]
    assert kept[1].seconds == pytest.approx(estimate(ways[0].speed, PLANNED, 1).seconds)


def test_proposals_stand_below_a_long_forecast() -> None:
    """They have overrides to copy, times and prices; a GPU is mentioned if there is none."""
    ways = (
        Alternative("epochs=5", speed(), 1, "less learnt", 1800.0),
        Alternative("n_passes=2", speed(), 1, "", 2400.0),
    )
    assert made_up(shorter=ways).words()[3:] == [
        "Each of these alone would make it shorter:",
        "  epochs=5    about 30 min (less learnt)",
        "  n_passes=2  about 40 min",
        "  A GPU would be many times as fast (not measured here).",
    ]
    assert made_up(speed(gpus=1), shorter=ways).words()[-1] == "  n_passes=2  about 40 min"
    assert len(made_up(speed(gpus=1)).words()) == 3


# ------------------------------------------------------------------------------------------------- measured now


def config(root: Path, *words: str) -> Any:
    with initialize_config_dir(str(CONFIG_FOLDER)):
        cfg = compose("config", [*SHORT, f"paths.root={root}", *words])
    check(cfg)
    return cfg


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes measurements short, since here they needn't be right."""
    monkeypatch.setattr("kdsweep.study.measure_speed.STEPS_SECONDS", 0.0)
    monkeypatch.setattr("kdsweep.study.measure_speed.FORWARD_SECONDS", 0.01)


def test_what_is_done_within_the_hour_needs_no_proposals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the epochs would save half the time, but they are proposed only above an hour."""
    monkeypatch.setattr("kdsweep.study.forecast.measure", lambda cfg, threads: without_teacher())
    cfg = config(tmp_path)
    for n_trials, proposed in ((30, False), (40, True)):
        found = forecast(cfg, {"trials": n_trials}, {"trials": n_trials}, 1, name="short")
        assert any(way.overrides == "epochs=5" for way in found.shorter) == proposed


@pytest.mark.slow
@pytest.mark.usefixtures("briefly")
def test_a_short_study_has_no_proposals(tmp_path: Path) -> None:
    """A study of seconds gets three lines, and nothing is left behind."""
    found = forecast(config(tmp_path), PLANNED, NOTHING | {"trials": 1}, 1, name="short")
    assert len(found.words()) == 3
    assert 0 < found.cost.seconds < LONG_SECONDS
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("briefly")
def test_a_long_study_has_measured_proposals(tmp_path: Path) -> None:
    """For 100,000 epochs with the slow stem: the other stem, half the epochs, and more workers if there are cores."""
    cfg = config(tmp_path, "model.name=resnet18", "model.stem=cifar", "epochs=100000", "n_passes=2")
    long = forecast(cfg, PLANNED, PLANNED, 1, name="long")
    ways = {way.overrides.partition("=")[0]: way for way in long.shorter}
    assert {"model.stem", "epochs"} <= ways.keys()
    assert ways["model.stem"].seconds < long.cost.seconds
    assert ("sweep.executor" in ways) == (long.speed.cores > 1)
    assert long.words()[3] == "Each of these alone would make it shorter:"
    assert cfg.model.stem == "cifar"


def test_a_long_study_that_goes_on_keeps_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs were made with them, so only the number of workers is free, and not even that on other machines."""
    monkeypatch.setattr(
        "kdsweep.study.forecast.measure", lambda cfg, threads: without_teacher(cores=4, step_seconds=100.0)
    )
    cfg, left = config(tmp_path, "model.name=resnet18", "model.stem=cifar"), PLANNED | {"scratch": 0}
    here, elsewhere = (forecast(cfg, PLANNED, left, 2, name="long", elsewhere=e) for e in (False, True))
    assert [way.overrides for way in here.shorter] == ["sweep.executor=workers sweep.n_jobs=4"]
    assert elsewhere.shorter == ()


@pytest.mark.parametrize(
    ("words", "machine", "n_jobs", "overrides"),
    [
        ("threads=null", {"cores": 4, "threads": 4}, 1, "sweep.executor=workers sweep.n_jobs=4"),
        ("threads=4", {"cores": 4, "threads": 4}, 1, "sweep.executor=workers sweep.n_jobs=4 threads=1"),
        ("threads=1", {"cores": 16, "gpus": 2}, 1, "sweep.executor=workers sweep.n_jobs=2"),
        ("threads=1", {"cores": 16, "gpus": 2}, 2, None),
        ("threads=1", {"cores": 4}, 4, None),
        ("threads=1", {"cores": 4}, 2, "sweep.executor=workers sweep.n_jobs=4"),
        ("threads=4", {"cores": 4, "threads": 4}, 4, None),
        ("threads=4", {"cores": 16, "threads": 4, "gpus": 2}, 1, "sweep.executor=workers sweep.n_jobs=2"),
    ],
)
def test_workers_are_proposed_for_every_core_or_gpu(
    words: str,
    machine: dict[str, int],
    n_jobs: int,
    overrides: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thread a run, which is measured too where it is another number; nothing where all are used."""
    asked: list[int | None] = []

    def measured(_: object, threads: int | None) -> Speed:
        asked.append(threads)
        own = machine if threads is None else machine | {"threads": threads}
        return without_teacher(step_seconds=100.0, **own)

    monkeypatch.setattr("kdsweep.study.forecast.measure", measured)
    left = PLANNED | {"scratch": 2}
    found = forecast(config(tmp_path, words), PLANNED, left, n_jobs, name="long")
    assert [way.overrides for way in found.shorter] == ([] if overrides is None else [overrides])
    asks_again = overrides is not None and machine.get("threads", 1) > 1 and "gpus" not in machine
    assert asked == [None, 1][: 1 + asks_again]


@pytest.mark.slow
@pytest.mark.usefixtures("briefly")
def test_jobs_share_the_cores(tmp_path: Path) -> None:
    """With several runs at a time and no number of threads configured, a run is measured with its share."""
    found = forecast(config(tmp_path, "threads=null"), PLANNED, PLANNED, 10_000, name="many")
    assert found.speed.threads == 1


# ------------------------------------------------------------------------------------------------ GPUs, made up


def test_the_memory_of_a_gpu_is_announced() -> None:
    """What a run takes, what is free, and how many runs that is; on a CPU there is no such line."""
    there = made_up(speed(gpus=1, gpu_bytes=2 * 2**30, gpu_free=78 * 2**30)).words()
    line = "Memory: a run takes about 2.0 GiB of a GPU, beside CUDA's own; 78.0 GiB are free, for 29 at a time."
    assert line in there
    assert not any(found.startswith("Memory") for found in made_up().words())


def test_a_study_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its workers start; on a cluster, whose GPUs aren't known, it isn't."""
    small = speed(gpus=2, gpu_bytes=3 * 2**30, gpu_free=10 * 2**30)
    monkeypatch.setattr(forecast_module, "measure", lambda cfg, threads: small)
    cfg = SimpleNamespace(threads=1, model={})
    with pytest.raises(
        UserError, match=r"sweep.n_jobs=6: 3 on each of 2 GPUs take 3.7 GiB each, .* Set sweep.n_jobs=4"
    ):
        forecast(cfg, PLANNED, PLANNED, 6, name="s")  # type: ignore[arg-type]
    forecast(cfg, PLANNED, PLANNED, 6, name="s", elsewhere=True)  # type: ignore[arg-type]
