"""Teachers that are trained as a whole: by the student's path, once, and as if they had never been interrupted."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import SHORT, Command, artifacts, checkpoints, client, kdsweep, runs
from in_process import run_here, train_here
from safetensors.torch import load_file

from kdsweep.system.tensor_files import hash_tensors

if TYPE_CHECKING:
    from mlflow.entities import Run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("test_trained_teachers")]

STUDENT = (*SHORT, "epochs=1", "batch_size=64", "arm=distill")
TRAINED = (
    *("teacher=resnet50_scratch", "teacher.network.name=shufflenet_v2_x0_5", "teacher.network.stem=imagenet"),
    *("teacher.training.epochs=2", "teacher.training.batch_size=16", "teacher.training.precision=fp32"),
    *("teacher.training.optimizer.lr=0.02", "teacher.training.seed=3"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a first student had its teacher trained."""
    folder = tmp_path_factory.mktemp("home")
    made(folder, *STUDENT, *TRAINED)
    return folder


@pytest.fixture(scope="module")
def teacher(root: Path) -> Run:
    """The run of the teacher."""
    return runs(root, "teacher")[0]


def made(root: Path, *words: str) -> Run:
    done = train_here(words, root)
    assert done.status == 0, done.err
    return client(root).get_run(re.findall(r"run (\w{32})$", done.err, re.MULTILINE)[-1])


def weights(run: Run) -> str:
    return str(run.data.tags["kdsweep.weights"])


def test_a_teacher_is_trained_and_logged_by_its_first_student(root: Path, teacher: Run) -> None:
    """A run of its own with two epochs and all weights; its students say the same of it, and hear those weights."""
    (student,) = runs(root, "distill")
    assert teacher.data.tags["kdsweep.teacher"] == student.data.tags["kdsweep.teacher"]
    assert "mlflow.parentRunId" not in teacher.data.tags
    assert len(client(root).get_metric_history(teacher.info.run_id, "val/accuracy")) == 2
    params = teacher.data.params
    assert (params["teacher.train"], params["teacher.training.seed"]) == ("scratch", "3")
    (kept,) = (root / "cache" / "teachers").glob("trained-*.safetensors")
    state = load_file(artifacts(teacher) / "model.safetensors")
    assert hash_tensors(state) == hash_tensors(load_file(kept)) == weights(teacher)
    assert {"learning_curve.png"} <= {path.name for path in artifacts(teacher).iterdir()}


def test_it_is_what_a_student_of_the_same_settings_becomes(root: Path, teacher: Run) -> None:
    """Bit for bit: there is one way to train a network."""
    words = (*SHORT, "teacher=none", "loss=ce", "arm=scratch", "epochs=2", "batch_size=16", "optimizer.lr=0.02")
    alike = made(root, *words, "model.stem=imagenet", "seed=3", "optimizer.nesterov=true")
    assert weights(alike) == weights(teacher)


def test_it_is_trained_once(root: Path, teacher: Run) -> None:
    """Another student, other passes and the teacher's own run find it; another seed is another teacher."""
    before = len(runs(root, "teacher"))
    other = made(root, *STUDENT, *TRAINED, "seed=1", "teacher.mode=online")
    assert other.data.tags["kdsweep.teacher"] == teacher.data.tags["kdsweep.teacher"]
    assert len(runs(root, "teacher")) == before
    evaluated = made(root, *STUDENT, *TRAINED, "arm=teacher")
    assert weights(evaluated) == weights(teacher)
    assert evaluated.data.metrics["test/accuracy"] == teacher.data.metrics["test/accuracy"]
    assert "epoch_seconds" not in evaluated.data.metrics
    another = made(root, *STUDENT, *TRAINED, "teacher.training.seed=4")
    assert another.data.tags["kdsweep.teacher"] != teacher.data.tags["kdsweep.teacher"]


def test_weights_can_be_trained_on(root: Path, teacher: Run) -> None:
    """teacher.train=all starts from the network's weights: those of a file here, for other settings of its training."""
    file = artifacts(teacher) / "model.safetensors"
    words = (*STUDENT, *TRAINED, "teacher.train=all", f"teacher.network.weights={file}", "teacher.training.epochs=1")
    student = made(root, *words)
    tuned = runs(root, "teacher")[-1]
    assert tuned.data.tags["kdsweep.teacher"] == student.data.tags["kdsweep.teacher"]
    assert weights(tuned) != weights(teacher)
    body = [
        load_file(artifacts(run) / "model.safetensors")["conv1.0.weight"] for run in (teacher, tuned)
    ]  # which a frozen backbone would keep
    assert not body[0].equal(body[1])
    assert (body[0] - body[1]).abs().max() < 0.3


def test_teacher_and_student_are_reproduced(root: Path, teacher: Run) -> None:
    """Bit for bit; the teacher is trained again for it, and its file stays as it was."""
    for run in (teacher, runs(root, "distill")[0]):
        done = run_here([run.info.run_id], root, module="kdsweep.commands.reproduce", program="kdsweep-reproduce")
        assert done.status == 0, done.err + done.out
        assert "Bit-for-bit the same" in done.out
        assert "each of 2 epochs" in done.out or run is not teacher


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("teacher.train=most",), "teacher.train: `train in ('head', 'all', 'scratch')`"),
        (("teacher.training.epochs=0",), "teacher.training.epochs: `epochs >= 1`"),
        (("teacher.training.optimizer.lr=-1",), "teacher.training.optimizer.lr: `lr >= 0`"),
        (("teacher.training.epoch=3",), "epochs"),
        (("teacher.network.weights=x.pth",), "train = scratch without weights"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(root: Path, words: tuple[str, ...], says: str) -> None:
    """By the teacher's own keys."""
    done = train_here((*STUDENT, *TRAINED, *words), root)
    assert done.status == 2, done.err
    assert says in done.error


def test_a_killed_teacher_goes_on(root: Path, teacher: Run, tmp_path: Path) -> None:
    """Kill -9 in the middle of it: the same command ends it, in the same run, with the same weights to the bit."""
    words = (*STUDENT, *TRAINED, "checkpoint_share=1")
    command = Command(*words, root=tmp_path)
    command.wait_for(lambda: checkpoints(tmp_path))
    command.signal(signal.SIGKILL)
    assert command.outcome().status == -signal.SIGKILL
    done = kdsweep(*words, root=tmp_path)
    assert done.status == 0, done.err
    (run,) = runs(tmp_path, "teacher")
    assert run.data.tags["kdsweep.resumed_after"] == "1"
    assert weights(run) == weights(teacher)


def test_an_option_without_a_training_is_refused(root: Path) -> None:
    """It has a head to be trained; the remedy names an option that says how all is trained."""
    done = train_here((*STUDENT, "teacher.train=all"), root)
    assert (done.status, "such as teacher=resnet50_finetuned" in done.error) == (2, True)


@pytest.mark.all
def test_a_study_has_its_teacher_trained_first(root: Path, teacher: Run) -> None:
    """In the study's own run of the teacher, once; the forecast says so, and the report says how it was trained."""
    words = ("sweep=alpha_tau", "sweep.name=trained", "sweep.n_trials=2", "sweep.baseline_seeds=1")
    own = (*STUDENT, *TRAINED, "teacher.training.seed=9", "sweep.confirm_seeds=1")
    done = run_here([word for word in (*words, *own) if not word.startswith("arm=")], root)
    assert done.status == 0, done.err
    assert "The teacher is trained first, for 2 epochs" in done.err
    (trained,) = (run for run in runs(root, "teacher") if run.data.params["teacher.training.seed"] == "9")
    assert trained.data.tags["kdsweep.stage"] == "baseline"
    assert {run.data.tags["kdsweep.teacher"] for run in runs(root, "distill", study="trained")} == {
        trained.data.tags["kdsweep.teacher"]
    }
    (report,) = root.glob("reports/*/report.html")
    assert "random initialisation, trained from scratch for 2 epochs" in report.read_text()


@pytest.mark.all
def test_parallel_students_train_it_once(teacher: Run, tmp_path: Path) -> None:
    """Two commands at once: one trains the teacher, the other waits for it."""
    commands = [Command(*STUDENT, *TRAINED, f"seed={seed}", root=tmp_path) for seed in (0, 1)]
    assert [command.outcome().status for command in commands] == [0, 0]
    (run,) = runs(tmp_path, "teacher")
    assert weights(run) == weights(teacher)
