"""Claims about kdsweep-reproduce: real runs made again by the real command, from other folders and from files alone."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from commands import SHORT, Command, Outcome, artifacts, checkpoints, client, runs, statuses
from in_process import kdsweep, run_here
from omegaconf import OmegaConf

from kdsweep.analysis.deviation import Left
from kdsweep.analysis.metrics import is_of_the_clock
from kdsweep.commands import reproduce
from kdsweep.commands.source_run import Original
from kdsweep.config import rules, saved_config
from kdsweep.config.build import STUDENT_KEYS
from kdsweep.system.errors import UserError

if TYPE_CHECKING:
    from mlflow.entities import Run

STUDY = ("sweep=alpha_tau", *SHORT, "sweep.n_trials=2", "sweep.baseline_seeds=1", "sweep.confirm_seeds=1")
# The demo, with its data and its teacher, and less of everything.
DEMO = (
    *("sweep=demo", "sweep.n_trials=1", "sweep.baseline_seeds=0", "sweep.confirm_seeds=0", "epochs=2", "n_passes=2"),
    *("model.name=shufflenet_v2_x0_5", "precision=fp32", "teacher.network.input_size=64"),
    *("data.train_fraction=0.05", "data.val_size=97", "data.n_test=100", "tracking.models=false"),
)
SCRATCH = (*SHORT, "arm=scratch", "loss=ce", "teacher=none")
# A source that nobody is changing while tests run: git isn't asked.
NO_GIT = {"GIT_DIR": "/nowhere"}
EXACT = "Bit-for-bit the same: the weights, "


def again(*words: str, cwd: Path, env: Mapping[str, str] | None = None) -> Outcome:
    """Runs a `kdsweep-reproduce` command to its end; its root is the folder in which it is called."""
    return run_here(words, cwd, env, program="kdsweep-reproduce", module="kdsweep.commands.reproduce")


def newest(root: Path) -> Run:
    """The reproduction that was made last."""
    return runs(root, stage="reproduction")[-1]


def numbers(root: Path, run: Run) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every metric that isn't of the clock, read by MLflow's own client."""
    names = [name for name in run.data.metrics if not is_of_the_clock(name)]
    store = client(root)
    return {name: [(p.step, p.value) for p in store.get_metric_history(run.info.run_id, name)] for name in names}


def in_noise(metric: str, done: Outcome) -> str:
    """A metric's deviation in units of the noise, as the table has it."""
    (row,) = [line.split() for line in done.out.splitlines() if line.startswith(f"{metric} ")]
    return row[-2]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of every arm."""
    root = tmp_path_factory.mktemp("reproduced")
    done = kdsweep(*STUDY, root=root)
    assert done.status == 0, done.err
    return root


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one scratch run, made where git isn't."""
    root = tmp_path_factory.mktemp("single")
    done = kdsweep(*SCRATCH, root=root, env=NO_GIT)
    assert done.status == 0, done.err
    return root


@pytest.fixture(scope="session")
def scratch(single: Path) -> Run:
    return runs(single, "scratch", stage="single")[0]


# Bit for bit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "arm"),
    [
        ("baseline", "teacher"),
        ("baseline", "scratch"),
        ("baseline", "label_smoothing"),
        ("search", "distill"),
        ("confirmation", "distill"),
    ],
)
def test_every_arm_of_a_study_comes_out_the_same(stage: str, arm: str, place: Path, tmp_path: Path) -> None:
    """From another working directory: weights and every number, as MLflow itself tells them; part of no study."""
    then = max(runs(place, arm, stage=stage), key=lambda run: run.data.metrics["val/accuracy"])  # the best trial
    done = again(then.info.run_id, "--root", str(place), cwd=tmp_path)
    assert (done.status, EXACT in done.out) == (0, True), done
    now = newest(place)
    assert now.data.tags["kdsweep.reproduces"] == then.info.run_id
    assert now.info.run_id in done.out
    assert now.data.tags["kdsweep.weights"] == then.data.tags["kdsweep.weights"]
    assert numbers(place, now) == numbers(place, then)
    assert not {"mlflow.parentRunId", "kdsweep.study", "kdsweep.trial", "kdsweep.job"} & now.data.tags.keys()
    assert not [line for line in done.err.splitlines() if "Warning" in line]


@pytest.mark.all
def test_the_demo_comes_out_the_same(tmp_path: Path) -> None:
    """A trial with its pictures and its teacher, which is trained and comes from a package."""
    assert kdsweep(*DEMO, root=tmp_path).status == 0
    (then,) = runs(tmp_path, "distill", stage="search")
    done = again(then.info.run_id, cwd=tmp_path)
    assert (done.status, EXACT in done.out) == (0, True), done


@pytest.mark.slow
def test_a_killed_run_with_pictures_without_labels_comes_out_the_same(tmp_path: Path) -> None:
    """With mixed pictures too: after kill -9 it ends in the same bits, which kdsweep-reproduce finds again."""
    words = (
        *(*SHORT, "epochs=6", "checkpoint_share=1", "loss=sum"),
        *("data.train_fraction=0.25", "data.unlabelled=rest", "augment=cutmix"),
    )
    assert kdsweep(*words, root=tmp_path / "whole").status == 0
    killed = Command(*words, root=tmp_path / "killed")
    killed.wait_for(lambda: checkpoints(tmp_path / "killed"))
    killed.kill()
    assert killed.outcome().status == -signal.SIGKILL
    assert kdsweep(*words, root=tmp_path / "killed").status == 0
    (whole,), (resumed,) = (runs(tmp_path / name, "distill") for name in ("whole", "killed"))
    assert resumed.data.tags["kdsweep.resumed_after"] in "12345"
    assert resumed.data.tags["kdsweep.weights"] == whole.data.tags["kdsweep.weights"]
    pictures = {i.tags[0].value: json.loads(i.dataset.profile)["pictures"] for i in whole.inputs.dataset_inputs}
    assert pictures == {"training": 16, "unlabelled": 48, "validation": 32, "test": 32}
    done = again(whole.info.run_id, "--root", str(tmp_path / "whole"), cwd=tmp_path)
    assert (done.status, EXACT in done.out) == (0, True), done


@pytest.mark.slow
def test_a_copied_file_is_enough(place: Path, tmp_path: Path) -> None:
    """Without the store, its artifacts or its teacher: the teacher is trained here, as part of no study."""
    then = runs(place, "distill", stage="search")[0]
    shutil.copy(artifacts(then) / "config.yaml", tmp_path / "mine.yaml")
    done = again("mine.yaml", cwd=tmp_path)
    assert (done.status, EXACT in done.out) == (0, True), done
    assert newest(tmp_path).data.tags["kdsweep.weights"] == then.data.tags["kdsweep.weights"]
    (teacher,) = runs(tmp_path, "teacher")
    assert teacher.data.tags["kdsweep.stage"] == "single"
    assert "kdsweep.reproduces" not in teacher.data.tags


@pytest.mark.slow
def test_a_store_that_was_moved_is_enough(tmp_path: Path) -> None:
    """The whole project folder has another name, and the old one is gone."""
    assert kdsweep(*SCRATCH, root=tmp_path / "old").status == 0
    (tmp_path / "old").rename(tmp_path / "new")
    (then,) = runs(tmp_path / "new", "scratch")
    done = again(then.info.run_id, cwd=tmp_path / "new")
    assert (done.status, EXACT in done.out) == (0, True), done
    assert not (tmp_path / "old").exists()


@pytest.mark.slow
def test_a_run_from_before_there_were_records_is_read_from_the_store(tmp_path: Path) -> None:
    """Its file is a bare configuration: metrics, weights, environment and threads are elsewhere in MLflow."""
    assert kdsweep(*SCRATCH, root=tmp_path).status == 0
    (then,) = runs(tmp_path, "scratch")
    path = artifacts(then) / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.load(path)))
    done = again(then.info.run_id, cwd=tmp_path)
    assert (done.status, EXACT in done.out) == (0, True), done
    assert "Not recorded then: data." in done.out


@pytest.mark.slow
def test_a_bare_configuration_has_nothing_to_compare_with(scratch: Run, tmp_path: Path) -> None:
    """It runs all the same."""
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.load(artifacts(scratch) / "config.yaml")))
    done = again(".", cwd=tmp_path)
    assert (done.status, "There is nothing to compare with." in done.out) == (0, True), done
    assert newest(tmp_path).data.tags["kdsweep.weights"] == scratch.data.tags["kdsweep.weights"]


# Runs that did not end well


@pytest.mark.slow
def test_a_run_that_was_stopped_is_compared_in_its_epochs(tmp_path: Path) -> None:
    """It says nothing of its end; so it is with a pruned trial (test_controller.py)."""
    command = Command(*SCRATCH, "epochs=20", "n_passes=2", root=tmp_path)
    command.wait_for(lambda: "RUNNING" in statuses(tmp_path) and "val/accuracy" in runs(tmp_path)[0].data.metrics)
    command.signal(signal.SIGTERM)
    assert command.outcome().status == 143
    (then,) = runs(tmp_path, "scratch")
    epochs = len(numbers(tmp_path, then)["val/accuracy"])
    done = again(then.info.run_id, cwd=tmp_path)
    compared = "one epoch" if epochs == 1 else f"each of {epochs} epochs"
    assert (done.status, f"{compared}. The weights of the earlier run are not known." in done.out) == (0, True), done


@pytest.mark.slow
def test_a_run_that_diverged_diverges_again(tmp_path: Path) -> None:
    """In the same step; that is its result, and the command has done what it was asked for."""
    assert kdsweep(*SCRATCH, "optimizer.lr=1e30", root=tmp_path).status == 1
    (then,) = runs(tmp_path, "scratch")
    done = again(then.info.run_id, cwd=tmp_path)
    assert (done.status, "and fails in the same way now." in done.out) == (0, True), done
    done = again(then.info.run_id, "--set", "optimizer.lr=0.01", cwd=tmp_path)
    assert (done.status, "and does not now." in done.out) == (3, True), done


# The same, but


@pytest.mark.slow
def test_another_seed_deviates(place: Path, tmp_path: Path) -> None:
    """By a multiple of the study's noise over seeds, with status 3; what follows the seed follows it."""
    then = runs(place, "scratch", stage="confirmation")[0]
    done = again(then.info.run_id, "--root", str(place), "--set", "seed=7", cwd=tmp_path)
    assert (done.status, "With seed=7:\nDeviates: " in done.out) == (3, True), done
    assert float(in_noise("val/nll", done)) > 0
    assert {newest(place).data.params[key] for key in ("seed", "init_seed", "order_seed")} == {"7"}


@pytest.mark.slow
def test_the_jobs_of_a_plain_grid_know_their_noise(tmp_path: Path) -> None:
    """Their siblings are those of the multirun."""
    assert kdsweep("-m", *SCRATCH, "seed=1,2", root=tmp_path).status == 0
    then = runs(tmp_path, "scratch")[0]
    done = again(then.info.run_id, "--set", "seed=3", cwd=tmp_path)
    assert (done.status, "With seed=3:" in done.out) == (3, True), done
    assert float(in_noise("val/nll", done)) > 0


# What differs from then


def test_check_runs_nothing(single: Path, scratch: Run, tmp_path: Path) -> None:
    """Status 0 where nothing differs; output folder, artifact folder, file, and an id's first letters name the run."""
    (output,) = (single / "outputs").glob("*/*")
    known = len(runs(single))
    for name in (scratch.info.run_id[:12], output, artifacts(scratch), output / "config.yaml"):
        done = again(str(name), "--root", str(single), "--check", cwd=tmp_path, env=NO_GIT)
        assert (done.status, done.err) == (0, ""), done
        assert done.out.startswith("Nothing differs from then")
    assert len(runs(single)) == known


def test_what_differs_is_a_table(single: Path, scratch: Run, tmp_path: Path) -> None:
    """Status 3: other threads, and other data."""
    but = ("--set", "threads=2", "--set", "data.seed=1")
    done = again(scratch.info.run_id, "--root", str(single), "--check", *but, cwd=tmp_path, env=NO_GIT)
    assert done.status == 3
    rows = [line.split()[0] for line in done.out.splitlines()]
    assert [row for row in rows if row in ("threads", "data", "python", "package")] == ["threads", "data"]


# The new configuration


def original(**config: Any) -> Original:
    """A run of the default configuration of a folder that is gone."""
    saved = OmegaConf.to_container(reproduce._defaults(), resolve=True)
    assert isinstance(saved, dict)
    paths = {"root": "/gone", "data": "/gone/data", "cache": "/gone/cache"}
    whole = {**{str(key): value for key, value in saved.items()}, "paths": paths, **config}
    return Original("r" * 32, whole, Left(), {"device": "cpu", "precision": "fp32", "threads": 1})


def configured(run: Original, root: Path, *lines: str, **options: object) -> Any:
    given = {"root": root, "uri": None, "experiment": None, "set": list(lines), **options}
    return reproduce.again(run, argparse.Namespace(**given))


def test_hardware_is_as_it_was_in_force(tmp_path: Path) -> None:
    """Whatever `auto` would choose here; the user has the last word."""
    cfg = configured(original(), tmp_path)
    assert (cfg.device, cfg.precision, cfg.threads) == ("cpu", "fp32", 1)
    assert configured(original(), tmp_path, "threads=3").threads == 3


def test_keys_that_an_older_version_did_not_have_are_as_it_was_then(tmp_path: Path) -> None:
    """All students were in channels_last, and a teacher had its student's precision, as it was in force."""
    run = original(precision="auto")
    for key in ("precision", "compiled"):
        del run.config["teacher"][key]
    for key in ("memory_format", "compiled"):
        run.config.pop(key, None)
    cfg = configured(run, tmp_path)
    assert cfg.compiled is False
    assert (cfg.memory_format, cfg.teacher.precision, cfg.teacher.compiled) == ("channels_last", "fp32", False)
    bare = Original(None, run.config, Left(), {})
    assert configured(bare, tmp_path).teacher.precision == "auto"


def test_a_teachers_run_is_its_own(tmp_path: Path) -> None:
    """Its configuration has nothing of a student, and the precision of its passes."""
    run = original(arm="teacher", **dict.fromkeys(STUDENT_KEYS))
    run.config["teacher"]["precision"] = "bf16"
    run.surroundings["precision"] = "bf16"
    cfg = configured(run, tmp_path)
    assert (cfg.teacher.precision, cfg.memory_format) == ("bf16", "auto")
    rules.check_values(cfg)


def test_a_gpu_that_is_not_here_becomes_the_first(tmp_path: Path) -> None:
    """The kind of device counts, not the place in which it sat."""
    run = original()
    run.surroundings["device"] = "cuda:9"
    assert configured(run, tmp_path).device == "cuda"


def test_the_new_run_belongs_to_no_study(tmp_path: Path) -> None:
    """It names the run that it makes again, and doesn't go on with what was interrupted."""
    tracking = {"uri": "http://gone", "experiment": "mine", "offline": True, "parent": "p", "study": "s", "trial": 3}
    cfg = configured(original(tracking={**tracking, "stage": "search", "job": "trial-0003"}), tmp_path)
    own = dict.fromkeys(("uri", "parent", "study", "job", "trial"))
    expected = {**own, "experiment": "mine", "offline": False, "models": True, "stage": "reproduction"}
    expected["reproduces"] = "r" * 32
    assert OmegaConf.to_container(cfg.tracking) == expected
    assert cfg.resume is False


def test_paths_are_those_of_this_place(tmp_path: Path) -> None:
    """Data below the old folder move with it; a data folder that was elsewhere and is there stays."""
    data = {"_target_": "kdsweep.data.image_folder", "root": "/gone/data/pictures", "cache": "/gone/cache"}
    cfg = configured(original(data=data), tmp_path)
    assert cfg.paths == {"root": str(tmp_path), "data": f"{tmp_path}/data", "cache": f"{tmp_path}/cache"}
    assert (cfg.data.root, cfg.data.cache) == (f"{tmp_path}/data/pictures", f"{tmp_path}/cache")
    (tmp_path / "elsewhere").mkdir()
    paths = {"root": "/gone", "data": f"{tmp_path}/elsewhere", "cache": "/else/gone"}
    cfg = configured(original(paths=paths), tmp_path / "new")
    assert (cfg.paths.data, cfg.paths.cache) == (f"{tmp_path}/elsewhere", f"{tmp_path}/new/cache")


def test_a_key_that_an_older_version_lacked_has_its_default(tmp_path: Path) -> None:
    """And a group that the run did without stays empty."""
    run = original(teacher=None)
    del run.config["deterministic"], run.config["tracking"]
    run.config["tracking"] = {"experiment": "kdsweep"}
    cfg = configured(run, tmp_path)
    assert cfg.deterministic is True
    assert cfg.tracking.uri is None
    assert cfg.teacher is None


def test_what_followed_another_key_follows_it_again(tmp_path: Path) -> None:
    """Unless it had a value of its own."""
    cfg = configured(original(), tmp_path, "seed=7", "epochs=5")
    assert (cfg.init_seed, cfg.order_seed, cfg.n_passes) == (7, 7, 5)
    cfg = configured(original(init_seed=3, n_passes=2), tmp_path, "seed=7", "epochs=5")
    assert (cfg.init_seed, cfg.order_seed, cfg.n_passes) == (3, 7, 2)


def test_a_masked_value_has_to_be_given(tmp_path: Path) -> None:
    """It was not saved, and stars are no value."""
    run = original()
    run.config["model"] = {**run.config["model"], "weights": "https://me:***@host/net.pth"}
    with pytest.raises(UserError, match=r"^model.weights: its value is secret and was not saved. Give it: --set"):
        configured(run, tmp_path)
    assert configured(run, tmp_path, "model.weights=null").model.weights is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("loss.alhpa=1", "loss.alhpa: there is no such key"),
        ("loss=ce", "loss: a saved configuration has no choice of groups"),
        ("loss.alpha=1,2", "loss.alpha: `--set loss.alpha=one value` must hold"),
        ("loss.alpha=interval(0,1)", "loss.alpha: `--set loss.alpha=one value` must hold"),
        ("+loss.beta=1", "loss.beta: "),
        ("++loss.alpha=1", "loss.alpha: "),
        ("~loss.alpha", "loss.alpha: "),
        ("arm=teacher", "arm: a reproduction has its own."),
        ("tracking.stage=search", "tracking.stage: a reproduction has its own."),
        ("paths.root=/tmp", "paths.root: a reproduction has its own. Give --root."),
        ("tracking.uri=http://x", "tracking.uri: a reproduction has its own. Give --uri."),
    ],
)
def test_what_cannot_be_set(line: str, message: str, tmp_path: Path) -> None:
    """Each is refused with its key."""
    with pytest.raises(UserError) as raised:
        configured(original(), tmp_path, line)
    assert str(raised.value).startswith(message)


def test_a_teacher_has_none_of_its_students_keys(tmp_path: Path) -> None:
    """They would change nothing."""
    run = original(arm="teacher", epochs=None, seed=None)
    with pytest.raises(UserError, match=r"^epochs: the run of a teacher has no such key"):
        configured(run, tmp_path, "epochs=3")
    assert configured(run, tmp_path, "teacher.batch_size=8").teacher.batch_size == 8


# Wrong input


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "`RUN names a run` must hold"),
        ("0" * 32, "There is no run"),
        ("../../etc", "there is no file"),
        ("nothing.yaml", "there is no file"),
        ("folder", "there is no config.yaml in the folder"),
        ("fifo", "neither a file nor a folder"),
        ("binary.yaml", "is no text"),
        ("list.yaml", "this is no saved configuration"),
        ("torn.yaml", "this is no saved configuration"),
        ("other.yaml", "is no configuration of a kdsweep run"),
        ("damaged.yaml", "which says what came of the run, is damaged"),
        ("é\n", "There is no run"),
    ],
)
def test_wrong_names_are_refused_in_one_line(
    name: str, message: str, single: Path, scratch: Run, tmp_path: Path
) -> None:
    """Status 2, and no run is made."""
    config = (artifacts(scratch) / "config.yaml").read_text()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "list.yaml").write_text("[1]")
    (tmp_path / "torn.yaml").write_text(config[:-40])
    (tmp_path / "other.yaml").write_text("a: 1")
    bare = OmegaConf.to_yaml(OmegaConf.load(artifacts(scratch) / "config.yaml"))
    (tmp_path / "damaged.yaml").write_text(saved_config.saved_text(bare, {"history": {"a": [3]}}))
    known = len(runs(single))
    done = again(name, "--root", str(single), cwd=tmp_path)
    assert (done.status, message in done.err) == (2, True), done
    assert done.err.startswith("kdsweep-reproduce: ")
    assert done.err.count("\n") == 1
    assert len(runs(single)) == known


def test_a_study_is_no_run(place: Path, tmp_path: Path) -> None:
    """Its runs are."""
    (parent,) = runs(place, "study")
    done = again(parent.info.run_id, "--root", str(place), cwd=tmp_path)
    assert (done.status, "is a study, not a run" in done.err) == (2, True), done


def test_without_a_store_there_is_no_run(tmp_path: Path) -> None:
    """And none is made by asking."""
    done = again("0" * 32, cwd=tmp_path)
    assert (done.status, "There is no MLflow store" in done.err) == (2, True), done
    assert not (tmp_path / "mlflow.db").exists()
