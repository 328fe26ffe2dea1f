"""Claims about the stages of a study: made-up runs on a real MLflow store and a real Optuna storage."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from kdsweep.analysis.choice import Choice, choose
from kdsweep.config.overrides import parsed
from kdsweep.execution.jobs import Job, Outcome
from kdsweep.study import choosing
from kdsweep.study import stages as stages_module
from kdsweep.study.fidelity import Lengths
from kdsweep.study.search import CAUSE, PRUNED_AT, STARTS, Search, Setting
from kdsweep.study.stages import Baseline, Stages
from kdsweep.system import interrupts
from kdsweep.system.errors import PrunedError, RunError
from kdsweep.system.interrupts import TerminatedError
from kdsweep.system.processes import ProcessId, this_process
from kdsweep.system.sqlite import sqlite_uri
from kdsweep.tracking.location import store_uri
from kdsweep.tracking.run_records import PARENT, RunRecord
from kdsweep.tracking.store import Store

ALPHA: dict[str, BaseDistribution] = {"loss.alpha": FloatDistribution(0, 1)}
COMMAND = parsed(["loss.alpha=interval(0.0,1.0)", "optimizer.lr=0.03", "seed=5", "loss.tau=3"])
BASELINES = {
    "teacher": Baseline(("arm=teacher",), 1, control=False),
    "scratch": Baseline(("arm=scratch", "loss=ce"), 2, control=True),
    "smoothing": Baseline(("arm=smoothing", "loss=label_smoothing"), 1, control=True),
}
BASELINE_JOBS = ["teacher-0", "scratch-0", "scratch-1", "smoothing-0"]
NOBODY = ProcessId(this_process().host, 2**22 + 1, 0.0)  # more than Linux numbers its processes
LOST = RunError("its process was killed by signal 9")


class Place:
    """The place of a study: an MLflow store with the study's own run, and Optuna's storage."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self._url, self.space = store, sqlite_uri(folder / "optuna.db"), ALPHA
        with store.run("study", tags={"kdsweep.role": "study"}, params={}) as parent:
            self.parent_id = parent.id

    def search(self, n_trials: int = 2, n_objectives: int = 1, max_restarts: int = 2, **again: int) -> Search:
        sampler = OmegaConf.create({"_target_": "optuna.samplers.RandomSampler", "seed": 0})
        directions = ["maximize", "minimize"][:n_objectives]
        return Search(self._url, "study", directions, self.space, sampler, None, n_trials, max_restarts, **again)

    def stages(
        self,
        n_trials: int = 2,
        confirm_seeds: int = 2,
        max_failure_rate: float = 1.0,
        n_objectives: int = 1,
        choose: str = "best",
        search_seeds: str = "fixed",
        confirm_until: int | None = None,
        lengths: Lengths | None = None,
        **again: int,
    ) -> Stages:
        """Makes a controller that starts the study, or goes on with it."""
        objectives = ["val/accuracy", "val/ece"][:n_objectives]
        search = self.search(n_trials, n_objectives, **again)
        work = COMMAND, ["threads=1"], objectives, BASELINES, confirm_seeds
        return Stages(
            self.store,
            self.parent_id,
            search,
            *work,
            max_restarts=2,
            max_failure_rate=max_failure_rate,
            choose=choose,
            search_seeds=search_seeds,
            confirm_until=confirm_until,
            lengths=lengths,
        )

    def opened(self, name: str, process: ProcessId) -> str:
        """Opens a job's MLflow run as a process does, and returns its id."""
        tags = {PARENT: self.parent_id, "kdsweep.job": name, "kdsweep.process": str(process)}
        return str(self._client.create_run(self._experiment, tags=tags).info.run_id)

    def ended(self, run_id: str, status: str, metrics: Sequence[float] = ()) -> None:
        for name, value in zip(("val/accuracy", "val/ece"), metrics, strict=False):
            self._client.log_metric(run_id, name, value)
        self._client.set_terminated(run_id, status)

    def runs(self, name: str) -> list[RunRecord]:
        """Returns the runs of a job."""
        return [run for run in self.store.children(self.parent_id) if run.tags["kdsweep.job"] == name]

    def trials(self) -> list[Any]:
        return self.search().trials()

    @property
    def _client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.store.uri)

    @property
    def _experiment(self) -> str:
        return str(self._client.get_experiment_by_name(self.store.experiment).experiment_id)


class AtOnce:
    """An executor that makes a run of each job when `wait` is called, the latest job first.

    Args:
        place: Where the runs are recorded.
        slots: The number of jobs that it takes.
        n_objectives: The number of values that a job returns: alpha, and 1 - alpha.
        ends: For jobs that don't end well, the exceptions of their attempts, in order; LOST leaves the run open.
    """

    def __init__(self, place: Place, slots: int = 1, n_objectives: int = 1, **ends: Sequence[BaseException]) -> None:
        self.slots, self.closed, self.most = slots, False, 0
        self.jobs: list[Job] = []
        self._place, self._n_objectives = place, n_objectives
        self._ends = {name.replace("_", "-"): list(errors) for name, errors in ends.items()}
        self._waiting: list[Job] = []

    @property
    def names(self) -> list[str]:
        return [job.name for job in self.jobs]

    def submit(self, job: Job) -> None:
        assert len(self._waiting) < self.slots
        self._waiting.append(job)
        self.most = max(self.most, len(self._waiting))

    def wait(self) -> list[tuple[Job, Outcome]]:
        job = self._waiting.pop()
        self.jobs.append(job)
        return [(job, self._run(job))]

    def close(self) -> None:
        self.closed = True

    def alpha(self, job: Job) -> float:
        return float(words(job).get("loss.alpha", 0))

    def _run(self, job: Job) -> Outcome:
        error = next(iter(self._ends.get(job.name, [])), None)
        run_id = self._place.opened(job.name, NOBODY if error is LOST else this_process())
        if error is not None:
            self._ends[job.name].pop(0)
            if not isinstance(error, Exception):
                raise error
            if error is not LOST:
                self._place.ended(run_id, "KILLED" if isinstance(error, PrunedError) else "FAILED")
            return Outcome(error=error, lost=error is LOST)
        alpha = self.alpha(job)
        values = (alpha, 1 - alpha)[: self._n_objectives]
        self._place.ended(run_id, "FINISHED", values)
        return Outcome(values if self._n_objectives > 1 else values[0])


def words(job: Job) -> dict[str, str]:
    """Returns a job's overrides by key."""
    return {line.partition("=")[0]: line.partition("=")[2] for line in job.overrides}


def carry_out(stages: Stages, executor: AtOnce) -> int:
    """Carries out all stages as the sweeper does, and returns the number of the chosen trial."""
    with stages.carried_out_by(executor):
        stages.run_baselines()
        stages.run_search()
        chosen = stages.choose()
        stages.confirm(chosen)
        return chosen.number


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for all tests, because making one takes seconds."""
    return Store(store_uri(None, tmp_path_factory.mktemp("stages")))


@pytest.fixture
def place(store: Store, tmp_path: Path) -> Place:
    return Place(store, tmp_path)


@pytest.fixture(autouse=True)
def no_signal_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a signal after a job whose process died."""
    monkeypatch.setattr(stages_module, "OWN_SIGNAL_SECONDS", 0.0)


# What is run


def test_stages_follow_each_other_and_pairs_each_seed(place: Place) -> None:
    """Baselines and trials come first, then fresh seeds of the best setting and the controls, seed by seed."""
    executor = AtOnce(place)
    best = carry_out(place.stages(), executor)
    pairs = [f"confirm-{arm}-{s}" for s in (1000, 1001) for arm in (f"trial-{best:04d}", "scratch", "smoothing")]
    assert executor.names == [*BASELINE_JOBS, "trial-0000", "trial-0001", *pairs]
    assert best == max(place.trials(), key=lambda trial: trial.value).number


def gains(distill: float) -> Any:
    """Stands in for what runs reached on test: arms whose seeds differ by little, and distill gains so much."""
    values = {"scratch": 0.9, "label_smoothing": 0.901, "distill": 0.9 + distill}

    def accuracies(runs: Sequence[RunRecord], trial: int) -> dict[str, dict[int, float]]:
        names = {run.tags["kdsweep.job"] for run in runs if run.status == "FINISHED"}
        jobs = {"distill": f"trial-{trial:04d}", "scratch": "scratch", "label_smoothing": "smoothing"}
        seeds = range(1000, 1030)
        return {
            arm: {s: value + 0.0007 * math.sin(s * len(arm)) for s in seeds if f"confirm-{jobs[arm]}-{s}" in names}
            for arm, value in values.items()
        }

    return accuracies


def confirmed_seeds(executor: AtOnce) -> list[int]:
    """The fresh seeds whose runs were made, in their order."""
    return list(dict.fromkeys(int(name[-4:]) for name in executor.names if name.startswith("confirm")))


@pytest.mark.parametrize(("slots", "beyond"), [(1, 0), (2, 1), (7, 3)])
def test_a_confirmation_ends_when_it_is_clear(
    place: Place, monkeypatch: pytest.MonkeyPatch, slots: int, beyond: int
) -> None:
    """However many workers there are, it stops at the same seed; those had begun a few later seeds at most."""
    monkeypatch.setattr(stages_module, "accuracies", gains(0.05))
    stages, executor = place.stages(confirm_seeds=4, confirm_until=20), AtOnce(place, slots)
    carry_out(stages, executor)
    assert stages.stop is not None
    assert (stages.stop.seeds, stages.stop.last_seed, stages.stop.why) == (4, 1003, "clear")
    assert len(confirmed_seeds(executor)) <= 4 + beyond
    assert stages.left()["confirmation"] == 0
    assert stages.planned()["confirmation"] == 12


def test_a_confirmation_that_isnt_clear_goes_on_to_its_limit(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A higher limit later goes on with it; a run that failed counts as ended."""
    monkeypatch.setattr(stages_module, "accuracies", gains(0.001))
    monkeypatch.setattr("kdsweep.analysis.always_valid.out_of_reach", lambda *_: False)
    stages = place.stages(confirm_seeds=4, confirm_until=5)
    carry_out(stages, AtOnce(place, confirm_scratch_1000=[RunError("no")]))
    assert stages.stop is not None
    assert (stages.stop.seeds, stages.stop.why) == (5, "spent")
    later, executor = place.stages(confirm_seeds=4, confirm_until=6), AtOnce(place)
    carry_out(later, executor)
    assert executor.names == ["confirm-scratch-1000", *executor.names[1:]]
    assert confirmed_seeds(executor) == [1000, 1005]


def test_a_confirmation_stops_at_the_same_seed_after_a_kill(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks again at what is recorded, and makes what is missing before its stop."""
    monkeypatch.setattr(stages_module, "accuracies", gains(0.05))
    with pytest.raises(KeyboardInterrupt):
        carry_out(
            place.stages(confirm_seeds=4, confirm_until=20), AtOnce(place, confirm_smoothing_1002=[KeyboardInterrupt()])
        )
    again, executor = place.stages(confirm_seeds=4, confirm_until=20), AtOnce(place)
    carry_out(again, executor)
    assert confirmed_seeds(executor) == [1002, 1003]
    assert again.stop is not None
    assert again.stop.seeds == 4
    third = place.stages(confirm_seeds=4, confirm_until=20)
    assert third.left()["confirmation"] == 0
    assert third.stop == again.stop


def test_only_the_teacher_and_confirmations_read_test(place: Place) -> None:
    """Runs on which a search or its controls could be tuned never read the test split."""
    executor = AtOnce(place)
    carry_out(place.stages(), executor)
    reading = {job.name for job in executor.jobs if words(job)["evaluate_test"] == "True"}
    assert reading == {name for name in executor.names if name.startswith(("teacher", "confirm"))}
    assert {words(job)["evaluate_test"] for job in executor.jobs} == {"True", "False"}


def test_a_job_knows_its_place(place: Place) -> None:
    """Its overrides hold study, parent, stage, name and trial, and what all jobs share."""
    executor = AtOnce(place)
    best = carry_out(place.stages(), executor)
    found = {job.name: words(job) for job in executor.jobs}
    assert {line["tracking.parent"] for line in found.values()} == {place.parent_id}
    assert {(line["tracking.study"], line["threads"]) for line in found.values()} == {("study", "1")}
    assert all(line["tracking.job"] == name for name, line in found.items())
    stages = [found[name]["tracking.stage"] for name in ("scratch-0", "trial-0001", "confirm-scratch-1000")]
    assert stages == ["baseline", "search", "confirmation"]
    numbers = {name: line["tracking.trial"] for name, line in found.items() if "tracking.trial" in line}
    chosen = {f"confirm-trial-{best:04d}-{seed}": str(best) for seed in (1000, 1001)}
    assert numbers == {"trial-0000": "0", "trial-0001": "1", **chosen}


def test_the_command_line_holds_beside_an_arms_own_words(place: Place) -> None:
    """Its fixed values reach all arms unless the arm sets them or replaces their group; its sweeps reach no arm."""
    executor = AtOnce(place)
    best = carry_out(place.stages(), executor)
    found = {job.name: words(job) for job in executor.jobs}
    assert {line["optimizer.lr"] for line in found.values()} == {"0.03"}
    assert [found[name]["seed"] for name in ("scratch-0", "scratch-1", "trial-0000")] == ["0", "1", "5"]
    assert "loss.tau" not in found["scratch-0"]
    trial, confirmation = found[f"trial-{best:04d}"], found[f"confirm-trial-{best:04d}-1001"]
    assert trial["loss.tau"] == "3"
    assert float(trial["loss.alpha"]) == place.trials()[best].params["loss.alpha"]
    assert {**trial, **confirmation} == {**confirmation}
    assert confirmation["seed"] == "1001"
    assert confirmation["loss.alpha"] == trial["loss.alpha"]


def test_a_control_may_have_the_chosen_setting(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no baselines; with each fresh seed it runs as the chosen setting does, but for its own words."""
    shuffled = Baseline(("arm=shuffled", "teacher.shuffled=true"), 0, control=True, as_chosen=True)
    monkeypatch.setitem(BASELINES, "shuffled", shuffled)
    executor = AtOnce(place)
    best = carry_out(place.stages(), executor)
    names = [f"confirm-shuffled-trial-{best:04d}-{seed}" for seed in (1000, 1001)]
    assert [name for name in executor.names if "shuffled" in name] == names
    found = {job.name: words(job) for job in executor.jobs}
    control, chosen = found[names[0]], found[f"confirm-trial-{best:04d}-1000"]
    own = {"arm": "shuffled", "teacher.shuffled": "true", "tracking.job": names[0]}
    assert control == chosen | own


def test_what_is_fixed_holds_for_every_option_of_a_searched_group(place: Place) -> None:
    """Trials, confirmations and controls have the same learning rate; only arms replace whole groups."""
    place.space = {"optimizer": CategoricalDistribution(["sgd", "adamw"]), "loss": CategoricalDistribution(["kd"])}
    executor = AtOnce(place)
    best = carry_out(place.stages(), executor)
    found = {job.name: words(job) for job in executor.jobs}
    assert {line["optimizer.lr"] for line in found.values()} == {"0.03"}
    distilled = [found["trial-0000"], found["trial-0001"], found[f"confirm-trial-{best:04d}-1000"]]
    assert [(line["loss"], line["loss.tau"]) for line in distilled] == [("kd", "3")] * 3
    assert {line["optimizer"] for line in distilled} <= {"sgd", "adamw"}
    assert not {"optimizer", "loss.tau"} & found["confirm-scratch-1000"].keys()


def test_a_study_without_confirmation_only_chooses(place: Place) -> None:
    """Without fresh seeds, nothing runs after the search."""
    executor = AtOnce(place)
    stages = place.stages(confirm_seeds=0)
    assert stages.planned() == {"teacher": 1, "scratch": 2, "smoothing": 1, "trials": 2, "confirmation": 0}
    assert carry_out(stages, executor) in (0, 1)
    assert executor.names == [*BASELINE_JOBS, "trial-0000", "trial-0001"]


def test_all_slots_are_kept_busy_and_stages_apart(place: Place) -> None:
    """There are as many jobs at a time as slots, and no trial starts before the last baseline has ended."""
    executor = AtOnce(place, slots=3)
    carry_out(place.stages(n_trials=4), executor)
    assert executor.most == 3
    assert sorted(executor.names[:4]) == sorted(BASELINE_JOBS)
    assert [name.partition("-")[0] for name in executor.names[4:]] == [*["trial"] * 4, *["confirm"] * 6]


def test_several_objectives_are_all_told(place: Place) -> None:
    """A job returns a tuple; the trial gets each value, and the first one chooses."""
    best = carry_out(place.stages(n_objectives=2), AtOnce(place, n_objectives=2))
    values = [trial.values for trial in place.search(n_objectives=2).trials()]
    assert values == [[alpha, 1 - alpha] for alpha, _ in values]
    assert values[best][0] == max(first for first, _ in values)


def test_what_is_left_is_said(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Each job has a line; from the second on it tells how long the rest takes."""
    carry_out(place.stages(), AtOnce(place))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Teacher, seed 0"
    assert all("about 0.0 min left" in line for line in lines[1:])
    assert [line.partition(",")[0] for line in lines if line.startswith("Trial")] == [
        "Trial 0 (1 of 2)",
        "Trial 1 (2 of 2)",
    ]
    assert "loss.alpha 0." in lines[4]


# What goes wrong


@pytest.mark.parametrize("name", ["scratch-1", "confirm-scratch-1001"])
def test_a_job_whose_process_died_is_started_again(name: str, place: Place) -> None:
    """It is started again as often as it may, and MLflow shows each lost run as killed, with the cause."""
    executor = AtOnce(place, **{name.replace("-", "_"): [LOST, LOST]})
    carry_out(place.stages(), executor)
    assert executor.names.count(name) == 3
    assert [run.status for run in place.runs(name)] == ["KILLED", "KILLED", "FINISHED"]
    assert place.runs(name)[0].tags["kdsweep.error"] == "its process was killed by signal 9"


@pytest.mark.parametrize("name", ["scratch-0", "trial-0000"])
def test_nothing_is_started_again_while_the_study_ends(
    name: str, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A time limit's SIGTERM ends the processes of jobs a moment before it reaches the study."""
    monkeypatch.setattr(stages_module, "OWN_SIGNAL_SECONDS", 60.0)
    executor = AtOnce(place, **{name.replace("-", "_"): [LOST]})
    run, signals = executor._run, {number: signal.getsignal(number) for number in interrupts.ENDS}

    def killed_first(job: Job) -> Outcome:
        if job.name == name:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return run(job)

    monkeypatch.setattr(executor, "_run", killed_first)
    stages = place.stages()
    interrupts.install()
    try:
        with pytest.raises(TerminatedError), interrupts.deferred():
            carry_out(stages, executor)
    finally:
        interrupts.forget()
        for number, handler in signals.items():
            signal.signal(number, handler)
    assert executor.names.count(name) == 1
    assert "again" not in capsys.readouterr().err


def test_a_baseline_that_always_dies_ends_the_study(place: Place) -> None:
    """After its restarts it has failed, and its error ends the study."""
    executor = AtOnce(place, scratch_0=[LOST] * 9)
    with pytest.raises(RunError, match="signal 9"):
        carry_out(place.stages(), executor)
    assert executor.names == ["teacher-0", *["scratch-0"] * 3]
    assert {run.status for run in place.runs("scratch-0")} == {"KILLED"}


def test_a_baseline_that_fails_ends_the_study(place: Place) -> None:
    """It ends with the run's own error, without a second try, and the executor is closed."""
    executor = AtOnce(place, scratch_0=[ValueError("no such file")])
    with pytest.raises(ValueError, match="no such file"):
        carry_out(place.stages(), executor)
    assert executor.names == ["teacher-0", "scratch-0"]
    assert executor.closed


def test_a_trial_that_fails_costs_one_trial(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason is printed and stored, and another setting is chosen."""
    best = carry_out(place.stages(), AtOnce(place, trial_0001=[ValueError("alpha\n is 2")]))
    assert (best, place.trials()[1].state) == (0, TrialState.FAIL)
    assert place.trials()[1].user_attrs[CAUSE] == "alpha is 2"
    assert "Trial 1 failed: alpha is 2\n" in capsys.readouterr().err


@pytest.mark.parametrize(("n_failing", "ends"), [(2, False), (3, True)])
def test_a_study_gives_up_when_too_many_trials_fail(n_failing: int, ends: bool, place: Place) -> None:
    """The allowed share is one of all planned trials, not of those so far."""
    failing = {f"trial_{number:04d}": [ValueError("diverged")] for number in range(n_failing)}
    executor, stages = AtOnce(place, **failing), place.stages(n_trials=4, max_failure_rate=0.5)
    if not ends:
        assert carry_out(stages, executor) in (2, 3)
        return
    with pytest.raises(RunError, match=r"^3 of 4 trials have failed, and max_failure_rate is 0\.5"):
        carry_out(stages, executor)
    assert executor.names[-1] == "trial-0002"


def test_without_a_finished_trial_there_is_nothing_to_confirm(place: Place) -> None:
    """The study ends, and its error says that the lines above give the reasons."""
    failing = AtOnce(place, trial_0000=[ValueError("a")], trial_0001=[PrunedError(1)])
    with pytest.raises(RunError, match="none of the 2 trials could be finished"):
        carry_out(place.stages(), failing)


@pytest.mark.parametrize("value", [math.nan, None])
def test_a_trial_without_a_number_has_failed(
    value: object, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value that can't be compared is no result, and a line says so."""
    executor = AtOnce(place)
    monkeypatch.setattr(executor, "_run", lambda job: Outcome(value))
    stages = place.stages(n_trials=1)
    with stages.carried_out_by(executor):
        stages.run_search()
    assert place.trials()[0].state == TrialState.FAIL
    assert str(value) in place.trials()[0].user_attrs[CAUSE]
    assert f"Trial 0 failed: its objective must be a number, but it is {value}.\n" in capsys.readouterr().err


def test_a_pruned_trial_is_told_as_pruned(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Optuna gets its last epoch; the trial is neither a failure nor the best."""
    best = carry_out(place.stages(max_failure_rate=0.0), AtOnce(place, trial_0000=[PrunedError(3)]))
    first = place.trials()[0]
    assert (best, first.state, first.user_attrs[PRUNED_AT]) == (1, TrialState.PRUNED, 3)
    assert "Trial 0 pruned after epoch 3.\n" in capsys.readouterr().err


def test_a_trial_that_always_dies_is_given_up(place: Place) -> None:
    """It keeps its number and setting in each start; in the end it has failed, and the search goes on."""
    executor = AtOnce(place, trial_0000=[LOST] * 9)
    carry_out(place.stages(), executor)
    starts = [words(job)["loss.alpha"] for job in executor.jobs if job.name == "trial-0000"]
    assert (len(starts), len(set(starts))) == (3, 1)
    assert [trial.state for trial in place.trials()] == [TrialState.FAIL, TrialState.COMPLETE]
    assert {run.status for run in place.runs("trial-0000")} == {"KILLED"}


def test_a_confirmation_that_fails_costs_a_pair(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The other runs are made, and the next controller tries it again."""
    carry_out(place.stages(), AtOnce(place, confirm_scratch_1000=[ValueError("diverged")]))
    assert "The confirmation of scratch, seed 1000 failed: diverged\n" in capsys.readouterr().err
    again = AtOnce(place)
    stages = place.stages()
    assert stages.left()["confirmation"] == 1
    carry_out(stages, again)
    assert again.names == ["confirm-scratch-1000"]


# What an interruption leaves


def test_a_finished_study_has_nothing_left(place: Place) -> None:
    """The same command runs no job at all, and makes the same choice."""
    stages = place.stages()
    assert stages.left() == stages.planned()
    best = carry_out(stages, AtOnce(place))
    later, executor = place.stages(), AtOnce(place)
    assert set(later.left().values()) == {0}
    assert carry_out(later, executor) == best
    assert executor.names == []


def test_more_can_be_asked_for(place: Place) -> None:
    """If there are to be more trials and seeds than before, only those are run."""
    best = carry_out(place.stages(n_trials=2, confirm_seeds=1), AtOnce(place))
    executor = AtOnce(place, trial_0002=[ValueError("so that the choice stays")])
    carry_out(place.stages(n_trials=3, confirm_seeds=2), executor)
    fresh = [f"confirm-{arm}-1001" for arm in (f"trial-{best:04d}", "scratch", "smoothing")]
    assert executor.names == ["trial-0002", *fresh]


def test_an_interruption_gives_trials_back(place: Place) -> None:
    """After Ctrl-C, a trial is proposed again with its setting, no restart is counted, and its run is closed."""
    executor = AtOnce(place, slots=2, trial_0001=[KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        carry_out(place.stages(), executor)
    given_back = place.trials()
    assert executor.closed
    assert [trial.state for trial in given_back] == [TrialState.WAITING] * 2
    assert [trial.user_attrs[STARTS] for trial in given_back] == [0, 0]
    assert [run.status for run in place.runs("trial-0001")] == ["KILLED"]
    later = AtOnce(place)
    carry_out(place.stages(), later)
    assert later.names[:2] == ["trial-0000", "trial-0001"]
    assert [trial.params for trial in place.trials()] == [trial.params for trial in given_back]


def test_runs_that_a_dead_process_left_open_are_closed(place: Place) -> None:
    """The next controller closes them as killed, and runs their jobs again."""
    run_id = place.opened("scratch-0", NOBODY)
    place.ended(place.opened("teacher-0", NOBODY), "FINISHED")
    stages, executor = place.stages(), AtOnce(place)
    (closed,) = place.runs("scratch-0")
    assert (closed.id, closed.status) == (run_id, "KILLED")
    assert closed.tags["kdsweep.error"] == "its process was killed"
    assert stages.left()["teacher"] == 0
    carry_out(stages, executor)
    assert executor.names[:2] == ["scratch-0", "scratch-1"]


def test_a_result_that_nobody_was_told_is_taken_from_mlflow(place: Place) -> None:
    """The trial's run had finished when its controller died, before it told Optuna; the trial isn't run again."""
    assert place.search().next() is not None
    place.ended(place.opened("trial-0000", NOBODY), "FINISHED", (0.75,))
    stages, executor = place.stages(), AtOnce(place)
    assert (place.trials()[0].state, place.trials()[0].values) == (TrialState.COMPLETE, [0.75])
    carry_out(stages, executor)
    assert "trial-0000" not in executor.names


def test_a_trial_that_died_with_its_controller_is_started_again(place: Place) -> None:
    """Its run had not finished, so a restart is counted."""
    assert place.search().next() is not None
    place.opened("trial-0000", NOBODY)
    executor = AtOnce(place)
    carry_out(place.stages(), executor)
    assert executor.names.count("trial-0000") == 1
    assert place.trials()[0].user_attrs[STARTS] == 2
    assert [run.status for run in place.runs("trial-0000")] == ["KILLED", "FINISHED"]


def test_a_run_that_still_lives_is_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker may outlive its controller by some seconds, and what it finishes in them counts."""
    with subprocess.Popen(["sleep", "60"]) as worker:
        owner = ProcessId(this_process().host, worker.pid, psutil.Process(worker.pid).create_time())
        run_id = place.opened("teacher-0", owner)

        def meanwhile(seconds: float) -> None:
            place.ended(run_id, "FINISHED")

        monkeypatch.setattr(stages_module.time, "sleep", meanwhile)
        stages = place.stages()
        worker.kill()
    assert stages.left()["teacher"] == 0
    assert "Waiting for runs that an interrupted controller has left" in capsys.readouterr().err


def searched(place: Place, executor: AtOnce, n_trials: int = 8) -> Stages:
    """A study that chooses by a model of its trials, searched and chosen."""
    stages = place.stages(n_trials, choose="posterior")
    with stages.carried_out_by(executor):
        stages.run_search()
        stages.choose()
    return stages


def between(choice: Choice) -> Choice:
    """The same choice, as if the model had found a setting between the trials."""
    return replace(choice, number=None, params={"loss.alpha": 0.7}, reason="")


def test_a_choice_is_made_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same trials give the setting that was kept, whatever a later version's model would choose."""
    first = searched(place, AtOnce(place)).choose()
    monkeypatch.setattr(choosing, "choose", None)
    again = place.stages(8, choose="posterior")
    assert again.choose() == first
    assert again.left()["confirmation"] == 6


def test_a_setting_between_the_trials_is_tried_as_one_more(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a number, a run and a score; it is confirmed, and a study that goes on doesn't try another."""
    monkeypatch.setattr(choosing, "choose", lambda *args, **kwargs: between(choose(*args, **kwargs)))
    executor = AtOnce(place)
    stages = searched(place, executor)
    assert executor.names[-1] == "trial-0008"
    assert stages.choose().params == {"loss.alpha": 0.7}
    assert stages.left()["trials"] == 0
    again = place.stages(8, choose="posterior")
    assert again.choose().number == 8
    assert len(place.search(8).trials()) == 9


def test_a_setting_between_the_trials_that_fails_leaves_the_likely_best(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the others, that of which the model expects most."""
    monkeypatch.setattr(choosing, "choose", lambda *args, **kwargs: between(choose(*args, **kwargs)))
    stages = searched(place, AtOnce(place, trial_0008=[ValueError("no")]))
    assert stages.choice is not None
    assert stages.choose().number == stages.choice.tried
    assert len(place.search(8).trials()) == 9


def test_a_study_of_before_keeps_the_best_trial(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """One that has begun without a rule, unless the command line names one."""
    with (stages := place.stages(2)).carried_out_by(AtOnce(place)):
        stages.run_search()
    search = place.search(2)
    assert choosing.rule_in_force(search, "posterior", explicit=False) == "best"
    assert "goes on like that: sweep.choose=posterior" in capsys.readouterr().err
    assert choosing.rule_in_force(search, "posterior", explicit=True) == "posterior"
    assert choosing.rule_in_force(search, "posterior", explicit=False) == "posterior"


def test_trials_can_have_seeds_of_their_own(place: Place) -> None:
    """None is that of a baseline or of a confirmation; with fixed seeds all have that of the command line."""
    for search_seeds, seeds in (("fresh", ["seed=1000000", "seed=1000001"]), ("fixed", ["seed=5", "seed=5"])):
        stages = place.stages(search_seeds=search_seeds)
        lines = [stages.trial_job(Setting(number, {"loss.alpha": 0.5})).overrides for number in (0, 1)]
        assert [line for job in lines for line in job if line.startswith("seed=")] == seeds


def seeds_by_alpha(executor: AtOnce) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for job in executor.jobs:
        found.setdefault(words(job)["loss.alpha"], []).append(words(job)["seed"])
    return found


def test_runs_of_a_setting_have_seeds_that_settings_share(place: Place) -> None:
    """The first has the command line's; killed ones are started again with the seed that they had."""
    executor = AtOnce(place, trial_0004=[LOST])
    stages = place.stages(2, replicates=3)
    assert stages.planned()["trials"] == 6
    with stages.carried_out_by(executor):
        stages.run_search()
    assert executor.names == [*(f"trial-{number:04d}" for number in (0, 1, 2, 3, 4)), "trial-0004", "trial-0005"]
    first, other = seeds_by_alpha(executor).values()
    assert first == ["5", "2000001", "2000002", "2000002"]
    assert other == ["5", "2000001", "2000002"]
    assert place.stages(2, replicates=3).left()["trials"] == 0


def test_fresh_seeds_stay_fresh_in_a_race(place: Place) -> None:
    """Each trial has its own. Without noise, all of a race goes to the best setting once that is known."""
    executor = AtOnce(place)
    with (stages := place.stages(3, search_seeds="fresh", race=3)).carried_out_by(executor):
        stages.run_search()
        best = stages.choose()
    assert [words(job)["seed"] for job in executor.jobs] == [str(1_000_000 + number) for number in range(6)]
    assert best.number < 3
    assert len(seeds_by_alpha(executor)[str(best.params["loss.alpha"])]) == 4


def test_an_interrupted_race_goes_on(place: Place) -> None:
    """Another controller starts the trial again that the first one left, and makes the rest."""
    killed = AtOnce(place, trial_0004=[KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt), (stages := place.stages(3, race=3)).carried_out_by(killed):
        stages.run_search()
    executor = AtOnce(place)
    with (stages := place.stages(3, race=3)).carried_out_by(executor):
        stages.run_search()
    assert executor.names == ["trial-0004", "trial-0005"]
    assert words(executor.jobs[0])["seed"] == words(killed.jobs[-1])["seed"] == "2000002"
