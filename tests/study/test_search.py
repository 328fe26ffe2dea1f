"""Claims about the search: real Optuna studies in SQLite files, interrupted in every way."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna
import psutil
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from read_only import read_only

from kdsweep.config.overrides import parsed
from kdsweep.execution import heartbeat, trial_link
from kdsweep.study.proposals import EarlierTrial
from kdsweep.study.search import CAUSE, PRUNED_AT, STARTS, Search, Setting, delete, described, limits, space_of
from kdsweep.system.errors import UserError
from kdsweep.system.processes import ProcessId, this_process
from kdsweep.system.sqlite import sqlite_uri

SPACE = {"loss.alpha": FloatDistribution(0, 1), "loss.tau": FloatDistribution(1, 20, log=True)}
SAMPLERS = {"gp": "GP", "tpe": "TPE", "cmaes": "CmaEs", "qmc": "QMC", "random": "Random"}


def sampler(name: str = "random", **arguments: object) -> DictConfig:
    return OmegaConf.create({"_target_": f"optuna.samplers.{SAMPLERS[name]}Sampler", "seed": 0, **arguments})


def search(
    folder: Path,
    *,
    kind: DictConfig | None = None,
    n_trials: int = 5,
    max_restarts: int = 3,
    directions: Sequence[str] = ("maximize",),
    space: Mapping[str, BaseDistribution] = SPACE,
    pruner: DictConfig | None = None,
    replicates: int = 1,
    race: int = 0,
) -> Search:
    """A controller's view of the study in a folder."""
    url, again = sqlite_uri(folder / "optuna.db"), {"replicates": replicates, "race": race}
    return Search(url, "study", directions, space, kind or sampler(), pruner, n_trials, max_restarts, **again)


def ask(found: Search) -> Setting:
    """The trial that comes next; there must be one."""
    setting = found.next()
    assert setting is not None
    return setting


def as_its_job(folder: Path, number: int) -> optuna.Trial:
    """A trial as its job writes into it."""
    study = optuna.load_study(study_name="study", storage=sqlite_uri(folder / "optuna.db"))
    return optuna.Trial(study, study.trials[number]._trial_id)


def params(found: Search) -> list[tuple[object, ...]]:
    return [tuple(trial.params.values()) for trial in found.trials()]


def test_the_search_ends_with_its_total(tmp_path: Path) -> None:
    """Finished, failed and running trials count alike."""
    found = search(tmp_path, n_trials=3)
    found.complete(ask(found).number, [0.5])
    found.fail(ask(found).number, "because")
    ask(found)
    assert found.next() is None
    assert (found.count_finished(), found.count_failed()) == (2, 1)


def test_more_trials_can_be_asked_for_later(tmp_path: Path) -> None:
    """A study of two becomes one of three."""
    found = search(tmp_path, n_trials=2)
    for _ in range(2):
        found.complete(ask(found).number, [0.5])
    assert ask(search(tmp_path, n_trials=3)).number == 2


def test_an_orphan_keeps_its_number_and_parameters(tmp_path: Path) -> None:
    """The next controller proposes it again before anything new."""
    orphan = ask(search(tmp_path))
    later = search(tmp_path)
    assert later.orphans() == ([0], [])
    assert "started again" in later.recover(0)
    again = ask(later)
    assert (again.number, again.params) == (0, orphan.params)
    assert ask(later).number == 1


def test_a_trial_that_had_no_parameters_yet_gets_them(tmp_path: Path) -> None:
    """The controller was killed between the trial's row and its parameters' rows."""
    found = search(tmp_path)
    study = optuna.load_study(study_name="study", storage=sqlite_uri(tmp_path / "optuna.db"))
    study.ask({"loss.alpha": SPACE["loss.alpha"]})
    found.recover(0)
    trial = ask(found)
    assert (trial.number, set(trial.params)) == (0, set(SPACE))
    assert trial.params["loss.alpha"] == study.trials[0].params["loss.alpha"]


def test_a_result_that_was_left_is_taken(tmp_path: Path) -> None:
    """The job left it in its trial, or the run in MLflow: the trial isn't computed again."""
    found = search(tmp_path, n_trials=2)
    for _ in range(2):
        ask(found)
    trial_link.TrialLink(sqlite_uri(tmp_path / "optuna.db"), "study", 0, None).leave([0.7])
    later = search(tmp_path, n_trials=2)
    later.recover(0)
    later.recover(1, [0.6])
    assert [trial.values for trial in later.trials()] == [[0.7], [0.6]]
    assert later.next() is None


def test_a_trial_that_always_dies_is_given_up(tmp_path: Path) -> None:
    """It fails after its first start and all restarts that it may have."""
    found = search(tmp_path, max_restarts=2)
    for _ in range(3):
        assert ask(found).number == 0
        said = found.recover(0)
    assert said == "given up after 3 starts"
    assert found.trials()[0].state == TrialState.FAIL
    assert ask(found).number == 1


def test_an_interruption_on_purpose_is_no_restart(tmp_path: Path) -> None:
    """Ctrl-C may be pressed as often as one likes."""
    found = search(tmp_path, max_restarts=0)
    for _ in range(3):
        found.give_back(ask(found).number)
    assert found.trials()[0].state == TrialState.WAITING
    assert found.trials()[0].user_attrs[STARTS] == 0


def test_a_trial_of_a_living_process_is_no_orphan(tmp_path: Path) -> None:
    """A process of this machine is known to live or to be dead."""
    found = search(tmp_path)
    trial = ask(found)
    with subprocess.Popen(["sleep", "60"]) as process:
        owner = ProcessId(this_process().host, process.pid, psutil.Process(process.pid).create_time())
        as_its_job(tmp_path, trial.number).set_user_attr(trial_link.PROCESS, str(owner))
        assert found.orphans() == ([], [owner])
        process.kill()
    assert found.orphans() == ([trial.number], [])


@pytest.mark.parametrize("age", [0.0, heartbeat.STALE_SECONDS + 1])
def test_another_machine_is_believed_for_a_while(age: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trial is an orphan once its last heartbeat is old."""
    found = search(tmp_path)
    job = as_its_job(tmp_path, ask(found).number)
    job.set_user_attr(trial_link.PROCESS, "elsewhere:1:0.0")
    job.set_user_attr(trial_link.BEAT, time.time() - age)
    assert bool(found.orphans()[0]) == (age > 0)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_resumed_sampler_repeats_no_point(name: str, tmp_path: Path) -> None:
    """A new controller for each trial: all points differ."""
    for index in range(7):
        found = search(tmp_path, kind=sampler(name), n_trials=7)
        found.complete(ask(found).number, [index / 10])
    assert len(set(params(found))) == 7


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_quasi_random_points_go_on_where_they_stopped(tmp_path: Path) -> None:
    """QMC counts in the storage: resumed or not, the points are the same."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    at_once = search(whole, kind=sampler("qmc", scramble=True))
    for _ in range(4):
        at_once.complete(ask(at_once).number, [0.0])
        resumed = search(parts, kind=sampler("qmc", scramble=True))
        resumed.complete(ask(resumed).number, [0.0])
    # The first is drawn independently, before a relative space is known.
    assert params(at_once)[1:] == params(resumed)[1:]


def test_a_grid_ends_with_its_last_point(tmp_path: Path) -> None:
    """Each point once, across controllers, though more trials were asked for."""
    grid = {"a": CategoricalDistribution([1, 2]), "b": CategoricalDistribution(["x", "y"])}
    kind = OmegaConf.create({"_target_": "optuna.samplers.GridSampler", "_partial_": True, "seed": 0})
    for _ in range(4):
        found = search(tmp_path, kind=kind, space=grid, n_trials=30)
        found.complete(ask(found).number, [0.0])
    assert sorted(params(found)) == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    assert search(tmp_path, kind=kind, space=grid, n_trials=30).next() is None


# Samplers of other kinds


@pytest.mark.parametrize(
    "target", ["optuna.samplers.RandomSampler", "hydra_plugins.hydra_optuna_sweeper._impl.create_nsgaii_sampler"]
)
def test_a_sampler_takes_the_studys_seed_if_it_has_none_of_its_own(target: str, tmp_path: Path) -> None:
    """A configuration without a seed, or with null, gets the study's; its own seed wins."""
    points = []
    for index, own in enumerate(({"seed": 7}, {}, {"seed": None}, {"seed": 3})):
        url = sqlite_uri(tmp_path / f"{index}.db")
        config = OmegaConf.create({"_target_": target, **own})
        points.append(ask(Search(url, "study", ["maximize"], SPACE, config, None, 2, 0, seed=7)).params)
    assert points[0] == points[1] == points[2] != points[3]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_sampler_that_takes_no_seed_gets_none(tmp_path: Path) -> None:
    """The study's seed isn't passed to it."""
    target = "optuna.samplers.PartialFixedSampler"
    settings = {"fixed_params": {"loss.tau": 4.0}, "base_sampler": {"_target_": "optuna.samplers.RandomSampler"}}
    kind = OmegaConf.create({"_target_": target, **settings})
    found = Search(sqlite_uri(tmp_path / "optuna.db"), "study", ["maximize"], SPACE, kind, None, 2, 0, seed=7)
    assert ask(found).params["loss.tau"] == 4.0


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "optuna.samplers.BruteForceSampler", "n_startup_trials": 5}, "unexpected keyword .*n_startup"),
        ({"_target_": "optuna.samplers.PartialFixedSampler", "seed": 1}, "unexpected keyword .*'seed'"),
        ({"_target_": "hydra_plugins.hydra_optuna_sweeper.config.raise_motpe_removed"}, "'motpe' .*sampler=tpe"),
        ({"_target_": "subprocess.call", "args": "ls"}, "subprocess.call"),
    ],
)
def test_a_sampler_that_cannot_be_built_is_named(config: dict[str, object], message: str, tmp_path: Path) -> None:
    """The error is the user's, in one line, with its place."""
    with pytest.raises(UserError, match=rf"hydra\.sweeper\.sampler: .*{message}") as raised:
        search(tmp_path, kind=OmegaConf.create(config))
    assert "\n" not in str(raised.value)


# Pruning


def median() -> DictConfig:
    return OmegaConf.create({"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1})


def pruned_study(folder: Path, name: str) -> Search:
    """Two complete trials (0.8 and 0.6 after 0.5 and 0.3 at epoch 2), and one stopped at epoch 2 with 0.1."""
    found = search(folder, kind=sampler(name), pruner=median())
    for reached, early in ((0.8, 0.5), (0.6, 0.3)):
        number = ask(found).number
        as_its_job(folder, number).report(early, 2)
        found.complete(number, [reached])
    number = ask(found).number
    as_its_job(folder, number).report(0.1, 2)
    found.prune(number, 2)
    return found


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_gaussian_process_sees_pruned_trials(tmp_path: Path) -> None:
    """They count as complete, with their last value plus what the others gained from that epoch on."""
    pruned = pruned_study(tmp_path, "gp").trials()[2]
    assert pruned.state == TrialState.COMPLETE
    assert pruned.value == pytest.approx(0.1 + 0.3)
    assert pruned.user_attrs[PRUNED_AT] == 2


def test_other_samplers_are_told_that_a_trial_was_pruned(tmp_path: Path) -> None:
    """They deal with pruned trials themselves."""
    pruned = pruned_study(tmp_path, "tpe").trials()[2]
    assert (pruned.state, pruned.user_attrs[PRUNED_AT]) == (TrialState.PRUNED, 2)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_pruned_trial_is_never_the_best(tmp_path: Path) -> None:
    """Its extrapolated value is never better than the best value reached, and doesn't count."""
    found = search(tmp_path, kind=sampler("gp"), pruner=median())
    for early, reached in ((0.1, 0.8), (0.9, None)):
        number = ask(found).number
        as_its_job(tmp_path, number).report(early, 1)
        if reached is None:
            found.prune(number, 1)
        else:
            found.complete(number, [reached])
    assert found.trials()[1].value == 0.8
    best = found.best()
    assert best is not None
    assert best.number == 0


def test_without_a_full_trial_there_is_nothing_to_extrapolate_from(tmp_path: Path) -> None:
    """Then the trial is pruned for every sampler."""
    found = search(tmp_path, kind=sampler("random"), pruner=median())
    trial = ask(found)
    found.prune(trial.number, 1)
    assert found.trials()[0].state == TrialState.PRUNED
    assert found.best() is None


# Several objectives


def test_any_type_of_number_is_a_result(tmp_path: Path) -> None:
    """It needn't be Python's float, as with hydra-optuna-sweeper."""
    results = [1, True, np.int64(1), np.float32(1), np.array(1.0), np.array([1.0]), torch.tensor(1.0), [1.0]]
    found = search(tmp_path, n_trials=len(results))
    assert [found.complete(ask(found).number, result) for result in results] == [None] * len(results)
    assert [trial.values for trial in found.trials()] == [[1.0]] * len(results)


def test_what_is_no_number_fails_its_trial(tmp_path: Path) -> None:
    """The cause shows it; a text isn't read as a number."""
    results = [math.nan, np.float32("nan"), torch.tensor([0.5, 0.5]), 1j, None, "0.5", "5", (0.5, 0.5), {}, 10**400]
    found = search(tmp_path, n_trials=len(results))
    for result in results:
        cause = found.complete(ask(found).number, result)
        assert cause == f"its objective must be a number, but it is {result!r}"
        assert found.trials()[-1].user_attrs[CAUSE] == cause
    assert {trial.state for trial in found.trials()} == {TrialState.FAIL}


def test_several_objectives_come_in_any_sequence(tmp_path: Path) -> None:
    """A tuple, a list, an array or a tensor, with as many numbers as there are directions."""
    found = search(tmp_path, directions=("maximize", "minimize"), n_trials=8)
    for good in ((1, np.float32(0.5)), [1, 0.5], np.array([1, 0.5]), torch.tensor([1, 0.5])):
        assert found.complete(ask(found).number, good) is None
        assert found.trials()[-1].values == [1.0, 0.5]
    for bad in (0.5, (0.5, math.nan), (0.5,), (0.5, 0.5, 0.5)):
        cause = found.complete(ask(found).number, bad)
        assert cause == f"its objective must be 2 numbers, but it is {bad!r}"


def test_an_interrupted_trial_that_left_no_number_has_failed(tmp_path: Path) -> None:
    """What the job left is judged as what it returns, and the words say so."""
    search(tmp_path).next()
    trial_link.TrialLink(sqlite_uri(tmp_path / "optuna.db"), "study", 0, None).leave([float("nan")])
    assert "it failed: its objective must be a number, but it is [nan]" in search(tmp_path).recover(0)
    assert search(tmp_path).trials()[0].state == TrialState.FAIL


def test_of_several_objectives_the_first_chooses(tmp_path: Path) -> None:
    """Both trials are on the Pareto front; the one with the better first value is taken, and all are written down."""
    found = search(tmp_path, directions=("maximize", "minimize"))
    for values in ([0.8, 0.1], [0.9, 0.3], [0.7, 0.2]):
        found.complete(ask(found).number, values)
    best = found.best()
    assert best is not None
    assert best.number == 1
    found.write_results(tmp_path / "results.yaml")
    written = OmegaConf.load(tmp_path / "results.yaml")
    assert [list(solution["values"]) for solution in written.solutions] == [[0.8, 0.1], [0.9, 0.3]]


def test_at_equal_values_the_earlier_trial_is_best(tmp_path: Path) -> None:
    """This also holds for an objective to be minimised."""
    found = search(tmp_path, directions=("minimize",))
    for value in (0.5, 0.2, 0.2):
        found.complete(ask(found).number, [value])
    best = found.best()
    assert best is not None
    assert best.number == 1


# Who may work on it


def test_a_study_goes_on_under_its_own_conditions_alone(tmp_path: Path) -> None:
    """A changed key is named with both values, and with what to do."""
    search(tmp_path).require_same({"epochs": 3, "loss.smoothing": None})
    search(tmp_path).require_same({"epochs": 3, "loss.smoothing": None})
    search(tmp_path).require_same({"epochs": 3.0, "loss.smoothing": None})
    with pytest.raises(UserError, match=r"^sweep\.name: .*\(epochs was 3 and is 4\)\. .*sweep\.restart=fresh"):
        search(tmp_path).require_same({"epochs": 4, "loss.smoothing": None})


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_objectives_have_their_names_in_optunas_record(tmp_path: Path) -> None:
    """The dashboard shows them; a study of an older version gets them when it goes on."""
    search(tmp_path)
    found = search(tmp_path)
    found.name_objectives(["val/nll"])
    found.name_objectives(["val/nll"])
    assert optuna.load_study(study_name="study", storage=sqlite_uri(tmp_path / "optuna.db")).metric_names == ["val/nll"]


def test_a_second_controller_is_refused(tmp_path: Path) -> None:
    """It can neither run nor delete the study as long as the first, on another machine, writes heartbeats."""
    url = sqlite_uri(tmp_path / "optuna.db")
    found = search(tmp_path)
    study = optuna.load_study(study_name="study", storage=url)
    holder = {"process": "elsewhere:42:0.0", "beat": time.time()}
    study.set_user_attr("kdsweep.controller", holder)
    with pytest.raises(UserError, match=r"process 42 on elsewhere"), search(tmp_path).held():
        pass
    with pytest.raises(UserError, match=r"process 42 on elsewhere"):
        delete(url, "study")
    study.set_user_attr("kdsweep.controller", {**holder, "beat": holder["beat"] - heartbeat.STALE_SECONDS - 1})
    with search(tmp_path).held():
        assert study.user_attrs["kdsweep.controller"]["process"] == str(this_process())
    assert study.user_attrs["kdsweep.controller"] is None
    assert found.key == search(tmp_path).key


def test_a_fresh_start_forgets_all(tmp_path: Path) -> None:
    """Trials, conditions, and the key by which its MLflow run is found; deleting what isn't there is fine."""
    url = sqlite_uri(tmp_path / "optuna.db")
    delete(url, "study")
    found = search(tmp_path)
    key = found.key
    found.complete(ask(found).number, [0.5])
    delete(url, "study")
    assert (search(tmp_path).trials(), search(tmp_path).key != key) == ([], True)


def test_a_space_is_described_in_plain_values() -> None:
    """Intervals have limits and a scale, and choices are listed; the limits are what must be checked."""
    space = space_of(parsed(["loss.tau=tag(log,interval(1.0,20.0))", "loss=a,b"]))
    assert space == {"loss.tau": SPACE["loss.tau"], "loss": CategoricalDistribution(["a", "b"])}
    assert described(space) == {"loss.tau": {"low": 1, "high": 20, "log": True}, "loss": {"choices": ["a", "b"]}}
    assert limits(space) == {"loss.tau": [1, 20], "loss": ["a", "b"]}


def test_choices_come_back_from_optuna_as_values(tmp_path: Path) -> None:
    """Another controller proposes them again; the record of results and the report's space hold values."""
    space = space_of(parsed(["mean=null,[0.5,0.4],'Größe=a,b'"]))
    grid = OmegaConf.create({"_target_": "optuna.samplers.GridSampler", "_partial_": True, "seed": 0})
    found = search(tmp_path, kind=grid, space=space)
    first = [ask(found) for _ in range(3)]
    for setting in first:
        found.give_back(setting.number)
    later = search(tmp_path, kind=grid, space=space)
    again = [ask(later) for _ in range(3)]
    assert again == first
    values = [parsed(setting.overrides)[0].value() for setting in again]
    assert sorted(map(str, values)) == ["Größe=a,b", "None", "[0.5, 0.4]"]
    for setting in again:
        later.complete(setting.number, [0.5 + (setting.params["mean"] == "[0.5,0.4]")])
    later.write_results(tmp_path / "results.yaml")
    assert OmegaConf.load(tmp_path / "results.yaml").best_params.mean == [0.5, 0.4]
    assert described(space) == {"mean": {"choices": [None, [0.5, 0.4], "Größe=a,b"]}}


def test_a_setting_is_written_as_overrides() -> None:
    """Each searched key with its value, in order."""
    assert Setting(3, {"loss.alpha": 0.5, "loss": "kd"}).overrides == ["loss.alpha=0.5", "loss=kd"]


def test_a_record_that_can_only_be_read_is_refused(tmp_path: Path) -> None:
    """A colleague's file, or one on a read-only disk: before any run of the study."""
    search(tmp_path)
    trial_link.open_storage.cache_clear()
    refused = r"^hydra\.sweeper\.storage: Optuna's storage .*optuna\.db can't be used: attempt to write a readonly"
    with read_only(tmp_path / "optuna.db"), pytest.raises(UserError, match=refused):
        search(tmp_path)


# What is known besides the trials


NARROW = {"loss.alpha": FloatDistribution(0, 0.4), "loss.tau": FloatDistribution(1, 40, log=True)}


def completed(found: Search, n: int) -> None:
    """Makes so many trials, which are the better the less alpha they have."""
    for _ in range(n):
        setting = ask(found)
        found.complete(setting.number, [1 - float(str(setting.params["loss.alpha"]))])


@pytest.mark.parametrize("kind", ["gp", "tpe"])
def test_a_search_goes_on_in_another_space(tmp_path: Path, kind: str) -> None:
    """New trials lie in the new space, and the sampler still learns: Optuna's would draw at random from then on."""
    completed(search(tmp_path, kind=sampler(kind), n_trials=12), 12)
    later = search(tmp_path, kind=sampler(kind), n_trials=18, space=NARROW)
    assert later.is_changed
    completed(later, 6)
    new = [trial.params["loss.alpha"] for trial in later.trials()[12:]]
    assert all(0 <= alpha <= 0.4 for alpha in new)
    assert np.median(new) < 0.2
    outside = [trial.number for trial in later.scored() if not trial.inside]
    assert outside == [t.number for t in later.trials() if t.params["loss.alpha"] > 0.4]
    assert later.next() is None


def test_the_best_trial_lies_in_the_space(tmp_path: Path) -> None:
    """A trial that the space doesn't hold any more isn't chosen."""
    found = search(tmp_path, n_trials=2)
    found.enqueue({"loss.alpha": 0.9, "loss.tau": 2.0})
    found.enqueue({"loss.alpha": 0.3, "loss.tau": 2.0})
    found.complete(ask(found).number, [0.9])
    found.complete(ask(found).number, [0.5])
    assert found.best() == Setting(0, {"loss.alpha": 0.9, "loss.tau": 2.0})
    best = search(tmp_path, n_trials=2, space=NARROW).best()
    assert best is not None
    assert best.number == 1


def test_an_interrupted_trial_keeps_its_setting_in_another_space(tmp_path: Path) -> None:
    """Its number was given to that setting, whose run may be half done."""
    found = search(tmp_path)
    found.enqueue({"loss.alpha": 0.9, "loss.tau": 2.0})
    ask(found)
    later = search(tmp_path, space=NARROW)
    later.recover(0)
    again = ask(later)
    assert (again.number, again.params) == (0, {"loss.alpha": 0.9, "loss.tau": 2.0})


def test_a_changed_space_and_further_baselines_are_the_same_study(tmp_path: Path) -> None:
    """A wider range is no other study; another scale, other choices, other keys or a changed baseline are."""
    began = {"space.loss.alpha": "loss.alpha=interval(0,1)", "baselines.scratch": "arm=scratch"}
    found = search(tmp_path)
    found.require_same(began)
    completed(found, 1)
    wider = {**began, "space.loss.alpha": "loss.alpha=interval(0,0.4)", "baselines.more": "arm=more"}
    changed = search(tmp_path, space=NARROW)
    changed.require_same(wider)
    changed.require_same(wider)
    with pytest.raises(UserError, match=r"baselines\.more was"):
        search(tmp_path, space=NARROW).require_same(began)
    with pytest.raises(UserError, match=r"baselines\.scratch was"):
        search(tmp_path, space=NARROW).require_same({**wider, "baselines.scratch": "arm=other"})
    scaled = {**NARROW, "loss.alpha": FloatDistribution(0.1, 1, log=True)}
    logged = {**wider, "space.loss.alpha": "loss.alpha=tag(log,interval(0.1,1))"}
    with pytest.raises(UserError, match=r"space\.loss\.alpha was"):
        search(tmp_path, space=scaled).require_same(logged)
    with pytest.raises(UserError, match=r"space\.optimizer\.lr was None"):
        search(tmp_path, space=NARROW).require_same({**wider, "space.optimizer.lr": "optimizer.lr=interval(0,1)"})


def test_settings_that_are_asked_for_come_first(tmp_path: Path) -> None:
    """They count as trials, and a controller that goes on doesn't try them again."""
    found = search(tmp_path, n_trials=3)
    wanted = [{"loss.alpha": 0.9, "loss.tau": 4.0}, {"loss.alpha": 0.1, "loss.tau": 2.0}]
    for setting in wanted:
        found.enqueue(setting)
    assert ask(found).params == wanted[0]
    later = search(tmp_path, n_trials=3)
    later.enqueue(wanted[0])
    later.recover(0)
    assert [ask(later).params for _ in range(2)] == wanted
    ask(later)
    assert later.next() is None


def test_an_earlier_studys_trials_are_known_and_no_trials(tmp_path: Path) -> None:
    """The sampler begins where they ended, the model of the choice sees them, and none has a number here."""
    grid = [(i, alpha, 1 - alpha) for i, alpha in enumerate(np.linspace(0, 1, 12).tolist())]
    earlier = [EarlierTrial(i, {"loss.alpha": alpha, "loss.tau": 4.0}, (value,)) for i, alpha, value in grid]
    found = search(tmp_path, kind=sampler("gp"), n_trials=4)
    found.learn("abc", "before", earlier)
    assert found.scored() == []
    completed(found, 4)
    again = search(tmp_path, kind=sampler("gp"), n_trials=4)
    assert again.earlier_study() == "abc"
    assert again.next() is None
    assert np.median([trial.params["loss.alpha"] for trial in again.trials()]) < 0.3
    assert [trial.own for trial in again.scored()] == [True] * 4 + [False] * 12
    assert again.count_finished() == 4


WORDS: dict[str, BaseDistribution] = {"loss": CategoricalDistribution(["ce", "kd", "dist", "mse"])}
GRID = OmegaConf.create({"_target_": "optuna.samplers.GridSampler"})


def tried(found: Search) -> list[object]:
    return [trial.params["loss"] for trial in found.trials()]


def run_all(found: Search, scores: Mapping[str, Sequence[float]]) -> None:
    """Gives each run of a loss its next score."""
    while (setting := found.next()) is not None:
        found.complete(setting.number, scores[str(setting.params["loss"])][found.runs_before(setting)])


def test_replicates_run_each_setting_again_in_rounds(tmp_path: Path) -> None:
    """The best mean is the best setting, and its first trial stands for it."""
    found = search(tmp_path, kind=GRID, space=WORDS, n_trials=4, replicates=2)
    run_all(found, {"ce": [0.5, 0.5], "kd": [0.9, 0.1], "dist": [0.6, 0.7], "mse": [0.2, 0.2]})
    assert tried(found)[4:] == tried(found)[:4]
    best = found.best()
    assert best is not None
    assert (best.number, best.params) == (tried(found).index("dist"), {"loss": "dist"})
    assert [one.setting for one in found.scored()] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_race_leaves_out_who_is_clearly_worse(tmp_path: Path) -> None:
    """Those that could still be the best share what is left; a new controller goes on with it."""
    scores = {"ce": [0.1, 0.11], "kd": [0.8, 0.82, 0.79, 0.8], "dist": [0.81, 0.8, 0.8, 0.8], "mse": [0.2, 0.21]}
    run_all(search(tmp_path, kind=GRID, space=WORDS, n_trials=4, replicates=2), scores)
    run_all(search(tmp_path, kind=GRID, space=WORDS, n_trials=4, replicates=2, race=1), scores)
    found = search(tmp_path, kind=GRID, space=WORDS, n_trials=4, replicates=2, race=4)
    run_all(found, scores)
    assert sorted(map(str, tried(found)[8:])) == ["dist", "dist", "kd", "kd"]
    assert found.next() is None


def test_a_race_without_replicates_begins_with_the_best(tmp_path: Path) -> None:
    """Nothing is known of the noise before a setting was run twice."""
    found = search(tmp_path, kind=GRID, space=WORDS, n_trials=4, race=2)
    run_all(found, {"ce": [0.5, 0.5], "kd": [0.9, 0.4], "dist": [0.6, 0.6], "mse": [0.2]})
    assert tried(found)[4:] == ["kd", "dist"]


def test_a_race_waits_for_results(tmp_path: Path) -> None:
    """With several workers the first runs may all go on when the race begins; then there is nothing to decide by."""
    found = search(tmp_path, kind=GRID, space=WORDS, n_trials=4, race=1)
    first = [ask(found) for _ in range(4)]
    assert found.next() is None
    found.complete(first[2].number, [0.5])
    assert ask(found).params == first[2].params
    for setting in first:
        found.complete(setting.number, [0.6])


@pytest.mark.parametrize("name", ["random", "gp", "tpe"])
def test_more_settings_can_be_asked_for_after_repeats(name: str, tmp_path: Path) -> None:
    """They are proposed first, and then run again as the others were."""
    found = search(tmp_path, kind=sampler(name), n_trials=2, replicates=2)
    while (setting := found.next()) is not None:
        found.complete(setting.number, [0.5])
    found = search(tmp_path, kind=sampler(name), n_trials=3, replicates=2)
    while (setting := found.next()) is not None:
        found.complete(setting.number, [0.5])
    values = params(found)
    assert values[:2] == values[2:4]
    assert values[4] == values[5]
    assert len(set(values)) == 3


def test_a_grids_repeats_may_end_before_its_last_point(tmp_path: Path) -> None:
    """Optuna's grid looks for the point of a trial that has none of its own."""
    found = search(tmp_path, kind=GRID, space=WORDS, n_trials=4, race=1)
    first = [ask(found) for _ in range(4)]
    for setting in first[:3]:
        found.complete(setting.number, [0.5])
    found.complete(ask(found).number, [0.5])
    found.complete(3, [0.5])
    assert found.count_finished() == 5


def test_what_failed_isnt_run_again(tmp_path: Path) -> None:
    """The runs of a setting without a result go to the others."""
    found = search(tmp_path, kind=GRID, space=WORDS, n_trials=4, replicates=2)
    while (setting := found.next()) is not None:
        if setting.params["loss"] == "mse":
            found.fail(setting.number, "because")
        else:
            found.complete(setting.number, [0.5])
    well = [loss for loss in tried(found)[:4] if loss != "mse"]
    assert tried(found)[4:] == [*well, well[0]]


def test_without_repeats_alike_trials_stay_apart(tmp_path: Path) -> None:
    """A sampler may propose a choice again: each is a trial with the study's one seed, as it was before."""
    found = search(tmp_path, space=WORDS, n_trials=9)
    while (setting := found.next()) is not None:
        assert found.runs_before(setting) == 0
        found.complete(setting.number, [0.5])
    assert [one.setting for one in found.scored()] == list(range(9))
