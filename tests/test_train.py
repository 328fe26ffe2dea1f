"""Claims about real runs, read back from MLflow as anybody would read them.

The first is made by the installed command; those beside it are made in this process.
"""

from __future__ import annotations

import json
import math
import re
import runpy
import signal
import sys
from collections.abc import Callable
from multiprocessing.spawn import get_preparation_data
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import yaml
from commands import SHORT, Command, artifacts, client, runs, statuses
from configurations import composed
from in_process import kdsweep, run_here
from safetensors.torch import load_file
from torchvision.models import shufflenet_v2_x0_5

from kdsweep import recording, train
from kdsweep.config import rules
from kdsweep.execution import grid
from kdsweep.system.tensor_files import hash_tensors
from kdsweep.tracking.location import store_uri

if TYPE_CHECKING:
    from mlflow.entities import Run
    from omegaconf import DictConfig

pytestmark = pytest.mark.slow

PER_EPOCH = {
    *(
        "train/loss",
        "train/accuracy",
        "train/teacher_share",
        "train/gradient_ratio",
        "lr",
        "images_per_second",
        "epoch_seconds",
    ),
    *("val/accuracy", "val/nll", "val/ece", "val/top5", "val/agreement", "val/teacher_kl"),
}
SUMMARY = {
    *("test/accuracy", "test/nll", "test/ece", "test/top5", "test/agreement", "test/teacher_kl"),
    *("best/val_accuracy", "best/epoch", "seconds", "teacher_seconds"),
}
# What no two runs share.
TIMES = {"images_per_second", "epoch_seconds", "seconds", "teacher_seconds"}


@pytest.fixture(scope="module")
def run(home: Path) -> Run:
    """The run of the shared debug command."""
    return runs(home, "distill")[0]


@pytest.fixture(scope="module")
def made(home: Path) -> Callable[..., Run]:
    """Makes a run with other words, beside the shared one, and gives it back; each combination is made once."""
    known: dict[tuple[str, ...], Run] = {}

    def make(*words: str) -> Run:
        if words not in known:
            done = kdsweep(*words, root=home)
            assert done.status == 0, done.err
            *_, run_id = re.findall(r"run (\w{32})$", done.err, re.MULTILINE)
            assert f"kdsweep-reproduce {run_id[:8]}" in done.err.splitlines()[-1]
            known[words] = client(home).get_run(run_id)
        return known[words]

    return make


def weights(run: Run) -> str:
    return str(run.data.tags["kdsweep.weights"])


def test_parameters_are_the_configuration(run: Run) -> None:
    """Every key, flattened; what was chosen automatically; nothing unresolved, and no bookkeeping."""
    params = run.data.params
    expected = {
        "loss.alpha": "0.5",
        "loss.tau": "4",
        "seed": "0",
        "data.val_size": "32",
        "model.name": "shufflenet_v2_x0_5",
    }
    assert expected.items() <= params.items()
    assert params["n_passes"] == params["epochs"] == "2"
    assert params["precision"] == params["teacher.precision"] == params["runtime.precision"] == "fp32"
    assert params["memory_format"] == "channels_last"
    assert params["runtime.threads"] == "1"
    assert not [value for value in params.values() if "${" in value]
    assert not [key for key in params if key.startswith(("tracking.", "paths.", "sweep.")) or key == "resume"]


def test_a_run_is_named_and_described_for_whoever_reads_it_in_mlflow(run: Run) -> None:
    """Its name begins with what distinguishes it, and is short; its description has accuracies and the commands."""
    assert run.info.run_name == "distill, alpha 0.5, tau 4, seed 0"
    note = run.data.tags["mlflow.note.content"]
    metrics = run.data.metrics
    shown = f"Validation {metrics['val/accuracy']:.2%}, test {metrics['test/accuracy']:.2%}."
    assert note.startswith(shown)
    assert f"`kdsweep-reproduce {run.info.run_id}`" in note
    assert f"`kdsweep-export {run.info.run_id}`" in note


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("loss.alpha=0.548813",), "distill, alpha 0.549, tau 4, seed 0"),
        (("tracking.stage=search", "tracking.trial=7", "tracking.study=x"), "trial 7, alpha 0.5, tau 4"),
        (("tracking.stage=confirmation", "tracking.study=x", "seed=1000"), "distill, seed 1000"),
        (("experiment=label_smoothing", "seed=3"), "label smoothing, smoothing 0.1, seed 3"),
        (("experiment=scratch",), "scratch, seed 0"),
        (("loss=dkd",), "distill, dkd, ce_weight 1, target_weight 1, others_weight 8, tau 4, seed 0"),
        (("loss=pseudo_labels",), "distill, pseudo labels, alpha 0.5, seed 0"),
        (("loss=sum", "loss.terms.kd.weight=0.25"), "distill, weighted sum, ce 1, kd 0.25, dist 1, seed 0"),
    ],
)
def test_names_begin_with_what_distinguishes_runs(words: tuple[str, ...], name: str) -> None:
    """MLflow's lists and legends cut names at their end."""
    assert recording._name(rules.settled(composed(*words))) == name


def test_metrics_come_once_an_epoch(run: Run, home: Path) -> None:
    """Epochs are counted from 1; what describes the run as a whole comes once; the test split is read at the end."""
    store = client(home)
    steps = {
        name: [point.step for point in store.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
    }
    assert {name for name, found in steps.items() if sorted(found) == [1, 2]} == PER_EPOCH
    assert {name for name, found in steps.items() if found == [0]} == SUMMARY
    assert steps.keys() == PER_EPOCH | SUMMARY
    assert all(math.isfinite(value) for value in run.data.metrics.values())


def test_tags_say_what_the_run_is(run: Run, home: Path) -> None:
    """Role, stage, teacher and the source's commit; a single run has neither study nor parent."""
    tags = run.data.tags
    assert (tags["kdsweep.role"], tags["kdsweep.stage"]) == ("distill", "single")
    assert not {"kdsweep.study", "kdsweep.trial", "mlflow.parentRunId"} & tags.keys()
    environment = json.loads((artifacts(run) / "environment.json").read_text())
    assert tags.get("kdsweep.git_commit") == environment["git_commit"]
    assert runs(home, "teacher")[0].data.tags["kdsweep.teacher"] == tags["kdsweep.teacher"]


def test_the_pictures_are_inputs(run: Run) -> None:
    """Each split is an MLflow data set with its context, size and digest."""
    found = {given.tags[0].value: given.dataset for given in run.inputs.dataset_inputs}
    sizes = {context: json.loads(dataset.profile)["pictures"] for context, dataset in found.items()}
    assert sizes == {"training": 64, "validation": 32, "test": 32}
    assert {dataset.name for dataset in found.values()} == {"synthetic"}
    assert len({json.loads(dataset.profile)["digest"] for dataset in found.values()}) == 1


def test_a_run_holds_all_that_is_needed_to_judge_it(run: Run) -> None:
    """Configuration, overrides, environment, weights, a figure, and how far its confidence can be trusted."""
    folder = artifacts(run)
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "overrides.yaml", "environment.json"),
        *("model.safetensors", "learning_curve.png", "reliability.json", "per_class.json"),
    }
    assert yaml.safe_load((folder / "overrides.yaml").read_text()) == list(SHORT)
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    environment = json.loads((folder / "environment.json").read_text())
    assert {"torch", "mlflow", "hydra-core"} <= environment["packages"].keys()


def test_confidence_is_kept_bin_by_bin(run: Run) -> None:
    """15 bins of all test pictures, from which the calibration error follows."""
    bins = json.loads((artifacts(run) / "reliability.json").read_text())["bins"]
    assert (len(bins), sum(found["count"] for found in bins)) == (15, 32)
    apart = [found["count"] * abs(found["confidence"] - found["accuracy"]) for found in bins if found["count"]]
    assert sum(apart) / 32 == pytest.approx(run.data.metrics["test/ece"], abs=1e-6)
    assert run.data.tags["kdsweep.test_read"] == "true"


def test_what_is_right_is_kept_class_by_class(run: Run) -> None:
    """All test pictures under the names of their classes; together they give the accuracy."""
    found = json.loads((artifacts(run) / "per_class.json").read_text())["classes"]
    assert sum(row["pictures"] for row in found) == 32
    assert sum(row["right"] for row in found) / 32 == pytest.approx(run.data.metrics["test/accuracy"])
    assert len({row["name"] for row in found}) == len(found)


def test_a_run_can_leave_the_test_split_alone(run: Run, made: Callable[..., Run]) -> None:
    """evaluate_test=false: the same weights, and nothing in MLflow that was read from test pictures."""
    blind = made(*SHORT, "evaluate_test=false")
    assert weights(blind) == weights(run)
    assert run.data.metrics.keys() - blind.data.metrics.keys() == {name for name in SUMMARY if name.startswith("test/")}
    assert "kdsweep.test_read" not in blind.data.tags
    assert not {"reliability.json", "per_class.json"} & {path.name for path in artifacts(blind).iterdir()}


def test_a_trial_of_a_search_draws_no_curve(run: Run, made: Callable[..., Run]) -> None:
    """Its metrics are the curve, in MLflow as in the report of its study; the weights are those of any other run."""
    trial = made(*SHORT, "tracking.stage=search")
    assert weights(trial) == weights(run)
    assert not (artifacts(trial) / "learning_curve.png").exists()
    assert (artifacts(trial) / "model.safetensors").exists()


def test_a_single_run_may_have_several_objectives(run: Run, made: Callable[..., Run]) -> None:
    """Which metrics are returned has no part in the training."""
    assert weights(made(*SHORT, "objective=[val/accuracy,val/ece]")) == weights(run)


def test_the_weights_fit_the_librarys_own_network(run: Run) -> None:
    """Torchvision's ResNet18 loads them as they are; their hash is the run's tag."""
    state = load_file(artifacts(run) / "model.safetensors")
    shufflenet_v2_x0_5(num_classes=10).load_state_dict(state)
    assert hash_tensors(state) == weights(run)


def test_the_saved_configuration_makes_the_run_again(run: Run, made: Callable[..., Run]) -> None:
    """config.yaml alone is enough: the same weights, bit for bit, from the same parameters."""
    again = made(f"--config-path={artifacts(run)}", "--config-name=config")
    assert again.info.run_id != run.info.run_id
    assert weights(again) == weights(run)
    assert again.data.params == run.data.params


def test_the_same_command_gives_the_same_bits(run: Run, made: Callable[..., Run]) -> None:
    """Weights and every metric but the times."""
    again = made(*SHORT)
    assert weights(again) == weights(run)
    assert {name: value for name, value in again.data.metrics.items() if name not in TIMES} == {
        name: value for name, value in run.data.metrics.items() if name not in TIMES
    }


def test_another_seed_gives_other_weights(run: Run, made: Callable[..., Run]) -> None:
    """The seed decides initialisation and order; each of them alone changes the weights too."""
    others = [made(*SHORT, word) for word in ("seed=1", "init_seed=1", "order_seed=1")]
    assert len({weights(run), *map(weights, others)}) == 4


def test_alpha_zero_is_cross_entropy_to_the_bit(run: Run, made: Callable[..., Run]) -> None:
    """loss=kd at alpha 0, loss=ce, and loss=ce without any teacher train the same network."""
    ways = (["loss.alpha=0"], ["loss=ce"], ["loss=ce", "teacher=none", "arm=scratch"])
    found = [weights(made(*SHORT, *way)) for way in ways]
    assert found[0] == found[1] == found[2] != weights(run)


@pytest.mark.all
def test_a_teacher_that_the_loss_does_not_hear_computes_no_passes(home: Path, made: Callable[..., Run]) -> None:
    """It is compared with the student all the same; a loss that hears it has its passes computed."""
    passes = {}
    for view_seed, loss in ((5, "tf_kd"), (6, "nkd")):
        before = {*home.rglob("pass-*.safetensors")}
        student = made(*SHORT, f"loss={loss}", f"view_seed={view_seed}")
        assert {"val/agreement", "test/teacher_kl"} <= student.data.metrics.keys()
        passes[loss] = len({*home.rglob("pass-*.safetensors")} - before)
    assert passes == {"tf_kd": 0, "nkd": 2}


def test_a_table_gives_what_the_teacher_would(run: Run, made: Callable[..., Run]) -> None:
    """teacher.mode=online asks the teacher for each batch; in fp32 the losses agree to rounding."""
    ways = [made(*SHORT, "precision=fp32", f"teacher.mode={mode}") for mode in ("table", "online")]
    table, online = (way.data.metrics for way in ways)
    assert online["train/loss"] == pytest.approx(table["train/loss"], rel=1e-3)
    assert online["val/nll"] == pytest.approx(table["val/nll"], rel=1e-2)


def test_the_teacher_is_a_run_of_its_own(home: Path, made: Callable[..., Run]) -> None:
    """Its head was trained and logged by the first student; `experiment=teacher` finds the same teacher."""
    first = runs(home, "teacher")[0]
    assert "mlflow.parentRunId" not in first.data.tags
    assert {"val/accuracy", "test/accuracy", "test/nll"} <= first.data.metrics.keys()
    assert first.data.metrics["val/accuracy"] > 0.9
    assert (artifacts(first) / "head.safetensors").exists()
    alone = made(*SHORT, "arm=teacher")
    assert alone.data.tags["kdsweep.teacher"] == first.data.tags["kdsweep.teacher"]
    assert weights(alone) == weights(first)


def test_a_teacher_is_trained_once(run: Run, home: Path, made: Callable[..., Run]) -> None:
    """A second student finds it by its hash; a student of another teacher has one trained."""
    before = len(runs(home, "teacher"))
    student = made(*SHORT, "loss.tau=2")
    assert student.data.tags["kdsweep.teacher"] == run.data.tags["kdsweep.teacher"]
    assert len(runs(home, "teacher")) == before
    other = made(*SHORT, "teacher.head.max_iterations=5")
    assert other.data.tags["kdsweep.teacher"] != run.data.tags["kdsweep.teacher"]
    assert len(runs(home, "teacher")) == before + 1


def test_a_run_that_diverges_fails_in_one_line(home: Path) -> None:
    """Exit status 1; in MLflow the run has failed, and says where."""
    done = kdsweep(*SHORT, "optimizer.lr=1e30", "seed=77", root=home)
    assert done.status == 1
    assert "epoch 1, step" in done.error
    assert "optimizer.lr" in done.error
    assert "Traceback" not in done.err
    failed = next(run for run in runs(home, "distill") if run.data.params["seed"] == "77")
    assert failed.info.status == "FAILED"
    assert failed.data.tags["kdsweep.error"].startswith("DivergedError: the loss was nan in epoch 1")


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_closes_the_run(number: int, status: int, word: str, home: Path) -> None:
    """Ctrl-C and SIGTERM while it trains: one line, 128 + n, and the run is killed, not left running."""
    before = len(statuses(home))
    command = Command(*SHORT, "epochs=100000", "n_passes=1", "resume=false", root=home)
    command.wait_for(lambda: statuses(home)[before:] == ["RUNNING"])
    command.signal(number)
    done = command.outcome()
    assert (done.status, done.error) == (status, f"kdsweep: {word}")
    assert statuses(home)[before:] == ["KILLED"]


def test_no_run_is_left_running(home: Path, made: Callable[..., Run]) -> None:
    """After successes, an error and signals every run has an end."""
    made(*SHORT)
    assert "RUNNING" not in statuses(home)


@pytest.mark.parametrize("multirun", [(), ("-m", "seed=0,1")])
def test_relative_paths_belong_to_the_folder_of_the_command(
    multirun: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if Hydra goes to the folder of the job: pictures, weights, caches, and stores that are named or default."""
    found = []

    def look(cfg: DictConfig) -> train.Trained:
        named = (cfg.paths.root, cfg.paths.cache, cfg.data.root, cfg.model.weights)
        stores = (store_uri(uri, Path(cfg.paths.root)) for uri in ("sqlite:///runs/a.db", None))
        found.append([*(str(Path(name).absolute().relative_to(tmp_path)) for name in named), *stores])
        return train.Trained("0123", {}, (0.5,))

    monkeypatch.setattr(train, "train", look)
    monkeypatch.setattr(grid, "_rehearse", lambda *_: None)  # neither the pictures nor the weights are there
    words = ("data=image_folder", "data.root=../pets", "model.weights=w/mine.safetensors", "hydra.job.chdir=true")
    done = run_here((*words, *multirun), tmp_path / "here", {"KDSWEEP_HOME": "project"})
    assert done.status == 0, done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("Next: kdsweep-report") if multirun else last.startswith("Next: kdsweep-export 0123")
    places = ["here/project", "here/project/cache", "here/../pets", "here/w/mine.safetensors"]
    stores = [f"sqlite:///{tmp_path}/here/runs/a.db", f"sqlite:///{tmp_path}/here/project/mlflow.db"]
    assert found == [[*places, *stores]] * (2 if multirun else 1)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["project"]  # with Hydra's own files


@pytest.mark.filterwarnings("ignore:'kdsweep.train' found in sys.modules")  # it is imported in this process
def test_workers_do_not_import_the_entry_point_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `python -m kdsweep.train`, a worker imports the main module by its path: by its name, Python would warn."""
    monkeypatch.setattr(sys, "argv", ["kdsweep", "--version"])
    main = ModuleType("__main__")
    vars(main).update(runpy.run_module("kdsweep.train", run_name="__main__"))
    monkeypatch.setitem(sys.modules, "__main__", main)
    told = get_preparation_data("worker")
    assert "init_main_from_name" not in told
    assert told["init_main_from_path"] == train.__file__
