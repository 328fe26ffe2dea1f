"""Recorded students as teachers, and teachers that answer for the wrong pictures: runs made by the real entry point."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import SHORT, Outcome, artifacts, client, runs
from in_process import run_here, train_here
from safetensors.torch import load_file

if TYPE_CHECKING:
    from mlflow.entities import Run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("test_recorded_teachers")]

SCRATCH = (*SHORT, "epochs=1", "teacher=none", "loss=ce", "arm=scratch")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a student was trained from scratch."""
    folder = tmp_path_factory.mktemp("home")
    made(folder, *SCRATCH)
    return folder


@pytest.fixture(scope="module")
def first(root: Path) -> Run:
    """The student that was trained from scratch."""
    return runs(root, "scratch")[0]


@pytest.fixture(scope="module")
def taught(root: Path, first: Run) -> Run:
    """A student of that student."""
    return made(root, *by(first.info.run_id[:8]))


def by(run_id: str, *words: str) -> tuple[str, ...]:
    return (*SHORT, "epochs=1", "arm=distill", "teacher=run", f"teacher.run='{run_id}'", *words)


def made(root: Path, *words: str) -> Run:
    """Makes a run, and gives it back as MLflow has it."""
    done = train_here(words, root)
    assert done.status == 0, done.err
    return client(root).get_run(run_id_in(done))


def run_id_in(done: Outcome) -> str:
    return re.findall(r"run (\w{32})$", done.err, re.MULTILINE)[-1]


def refused(root: Path, *words: str) -> str:
    done = train_here(words, root)
    assert done.status == 2, done.err
    return done.error


def tables(root: Path) -> set[Path]:
    return {*root.rglob("pass-*.safetensors")}


def weights(run: Run) -> str:
    return str(run.data.tags["kdsweep.weights"])


def test_a_recorded_student_teaches(root: Path, first: Run, taught: Run) -> None:
    """By the first letters of its id; its weights, its head, its normalisation and its precision are the run's."""
    params = taught.data.params
    assert params["teacher.run"] == first.info.run_id
    assert params["teacher.run_name"] == "scratch, seed 0"
    assert params["teacher.run_weights"] == weights(first)
    assert (params["teacher.network.name"], params["teacher.precision"]) == ("shufflenet_v2_x0_5", "fp32")
    assert params["teacher.network.mean"] != "None"
    kept, own = load_file(params["teacher.network.weights"]), load_file(artifacts(first) / "model.safetensors")
    assert all(kept[name].equal(own[name]) for name in own)
    # Its answers to the validation pictures are what the run itself found.
    evaluated = made(root, *by(first.info.run_id, "arm=teacher"))
    assert evaluated.data.metrics["val/nll"] == pytest.approx(first.data.metrics["val/nll"], rel=1e-5)
    assert evaluated.data.metrics["test/accuracy"] == first.data.metrics["test/accuracy"]


def test_a_chain_goes_on(root: Path, taught: Run) -> None:
    """A student of a student teaches in its turn; each link has a teacher of its own."""
    third = made(root, *by(taught.info.run_id))
    assert third.data.params["teacher.run_name"] == taught.info.run_name
    assert third.data.tags["kdsweep.teacher"] != taught.data.tags["kdsweep.teacher"]


@pytest.mark.all
def test_heads_on_one_backbone_are_two_teachers(root: Path, first: Run) -> None:
    """Students that train their heads alone share all features, and still aren't the same teacher."""
    file = artifacts(first) / "model.safetensors"
    probes = [
        made(root, *SCRATCH, f"model.weights={file}", "model.freeze=backbone", f"optimizer.lr={lr}")
        for lr in (0.02, 0.2)
    ]
    ids = {made(root, *by(probe.info.run_id)).data.tags["kdsweep.teacher"] for probe in probes}
    assert len(ids) == 2


def test_its_table_is_what_it_says_online(root: Path, first: Run, taught: Run) -> None:
    """teacher.mode=online trains the same student, but for rounding."""
    online = made(root, *by(first.info.run_id, "teacher.mode=online"))
    assert online.data.metrics["train/loss"] == pytest.approx(taught.data.metrics["train/loss"], rel=1e-4)


def test_a_student_of_a_recorded_student_is_reproduced(root: Path, taught: Run) -> None:
    """Bit for bit, with the teacher's weights from the cache, and fetched again where they are gone."""
    file = Path(taught.data.params["teacher.network.weights"])
    for there in (True, False):
        if not there:
            file.unlink()
        done = run_here([taught.info.run_id], root, module="kdsweep.commands.reproduce", program="kdsweep-reproduce")
        assert done.status == 0, done.err + done.out
        assert "Bit-for-bit the same" in done.out
    assert file.exists()


def test_other_weights_than_recorded_are_refused(root: Path, first: Run, taught: Run) -> None:
    """A saved configuration holds the hash of its teacher's weights: another run of that id isn't taken for it."""
    words = by(first.info.run_id, f"teacher.run_weights={'0' * 64}")
    done = train_here(words, root)
    assert (done.status, "teacher.run_weights=null" in done.error) == (1, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("teacher.run=0123456789abcdef",), "There is no run '0123456789abcdef'.*teacher.uri="),
        (("teacher.run=null",), "teacher.run: `teacher.run is the id of a student's run`.*kdsweep-ui"),
        (("teacher.run=12345678",), "in quotes"),
        (("teacher.uri=sqlite:////nowhere/mlflow.db",), "There is no MLflow store at /nowhere/mlflow.db"),
        (("data.n_classes=4",), "knows 10 classes .* of synthetic, and synthetic has 4 classes"),
        (("data.image_size=48",), r"size \[32, 32\]"),
        (("data.seed=7",), "had data.seed=0, and here it is 7"),
        (("data.split_seed=7",), "had data.split_seed=0.*kept for validation"),
        (("teacher.shuffled=3",), "shuffled is true or false"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_in_one_line(
    root: Path, first: Run, words: tuple[str, ...], says: str
) -> None:
    """No such run, no such store, other classes, other pictures: what it is, and what helps."""
    assert re.search(says, refused(root, *by(first.info.run_id, *words)))


def test_a_teacher_run_or_an_unfinished_one_is_refused(root: Path, first: Run) -> None:
    """A teacher's run has no student in it; a run that failed has left none."""
    own = made(root, *SHORT, "arm=teacher")
    assert "is a teacher, and no student" in refused(root, *by(own.info.run_id))
    done = train_here((*SCRATCH, "optimizer.lr=1e30"), root)
    assert done.status == 1
    failed = next(run for run in runs(root, "scratch") if run.info.status == "FAILED")
    assert "has left no trained network (failed)" in refused(root, *by(failed.info.run_id))


def test_a_teacher_may_have_had_more_pictures(root: Path, first: Run) -> None:
    """A student of all pictures teaches one that has a quarter; its normalisation is that of all pictures."""
    part = made(root, *by(first.info.run_id, "data.train_fraction=0.5"))
    assert part.data.params["teacher.network.mean"].startswith("[")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def test_a_run_of_another_store_teaches(elsewhere: Path, root: Path, first: Run) -> None:
    """teacher.uri names its store; the student is recorded in its own."""
    student = made(elsewhere, *by(first.info.run_id, f"teacher.uri=sqlite:///{root}/mlflow.db"))
    assert student.data.params["teacher.run"] == first.info.run_id
    assert [run.info.run_id for run in runs(elsewhere)] == [student.info.run_id]


def test_a_shuffled_teacher_reads_the_same_table(root: Path, first: Run, taught: Run) -> None:
    """No pass is computed for it, and it is the same teacher; its student is another, and in online mode the same."""
    before = tables(root)
    shuffled, online = (
        made(root, *by(first.info.run_id, "arm=shuffled", "teacher.shuffled=true", f"teacher.mode={mode}"))
        for mode in ("table", "online")
    )
    assert tables(root) == before
    assert shuffled.info.run_name == "shuffled, alpha 0.5, tau 4, seed 0"
    assert shuffled.data.tags["kdsweep.teacher"] == taught.data.tags["kdsweep.teacher"]
    assert weights(shuffled) != weights(taught)
    assert online.data.metrics["train/loss"] == pytest.approx(shuffled.data.metrics["train/loss"], rel=1e-4)


@pytest.mark.all
def test_members_are_averaged_from_their_own_tables(root: Path, first: Run, taught: Run) -> None:
    """Two students as one teacher: no pass is computed again, and both modes agree; two averages are two teachers."""
    ids = [run.info.run_id[:8] for run in (first, taught)]
    members = f"teacher.members=['{ids[0]}','{ids[1]}']"
    words = (*SHORT, "epochs=1", "arm=distill", "teacher=members", members)
    made(root, *by(ids[1]))  # which computes the pass of the second member
    before = tables(root)
    student, online, other = (
        made(root, *words, *more) for more in ((), ("teacher.mode=online",), ("teacher.average=logits",))
    )
    assert tables(root) == before
    assert online.data.metrics["train/loss"] == pytest.approx(student.data.metrics["train/loss"], rel=1e-4)
    assert other.data.tags["kdsweep.teacher"] != student.data.tags["kdsweep.teacher"]
    assert student.data.params[f"teacher.members.run_{ids[0]}.run"] == first.info.run_id
    done = run_here([student.info.run_id], root, module="kdsweep.commands.reproduce", program="kdsweep-reproduce")
    assert "Bit-for-bit the same" in done.out, done.err
    evaluated = made(root, *words, "arm=teacher")
    assert evaluated.info.run_name == "teacher average of shufflenet_v2_x0_5, shufflenet_v2_x0_5"
    assert evaluated.data.tags["kdsweep.teacher"] == student.data.tags["kdsweep.teacher"]


@pytest.mark.all
def test_members_may_have_heads_to_be_trained(root: Path, first: Run) -> None:
    """An option of the group beside a run: its head is trained as ever, in a run of its own, and it is one member."""
    before = len(runs(root, "teacher"))
    words = (*SHORT, "epochs=1", "teacher=members", "+teacher@teacher.members.fresh=random")
    words = (*words, "teacher.members.fresh.head.max_iterations=77")  # no other test has such a head
    done = run_here((*words, f"+teacher.members.old='{first.info.run_id}'"), root)
    assert done.status == 0, done.err
    student = client(root).get_run(run_id_in(done))
    assert student.data.params["teacher.members.old.run_name"] == "scratch, seed 0"
    assert student.data.params["teacher.members.fresh.network.name"] == "resnet18"
    assert len(runs(root, "teacher")) == before + 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "teacher.members: `teacher.members has two teachers or more`"),
        (("teacher.members=['01234567']",), "two teachers or more"),
        (("teacher.members=[12345678,87654321]",), "in quotes"),
        (("teacher.members=['abcdef01','abcdef02']",), "teacher.members.run_abcdef01.run: There is no run"),
        (("teacher.members=['abcdef01','abcdef01']",), "each member once"),
    ],
)
def test_members_that_are_no_teachers_are_refused_in_one_line(root: Path, words: tuple[str, ...], says: str) -> None:
    """Fewer than two, no ids, no such run."""
    assert says in refused(root, *SHORT, "arm=distill", "teacher=members", *words)


def test_an_unknown_average_is_refused(root: Path, first: Run, taught: Run) -> None:
    """Its choices are named."""
    members = f"teacher.members=['{first.info.run_id}','{taught.info.run_id}']"
    said = refused(root, *SHORT, "arm=distill", "teacher=members", members, "teacher.average=median")
    assert "teacher.average: `average in ('probabilities', 'logits')`" in said


@pytest.mark.all
def test_a_study_has_a_recorded_teacher_and_a_shuffled_control(root: Path, first: Run) -> None:
    """Its arms, its verdict and its conditions name them; the teacher's own run says how it was trained."""
    words = (
        *SHORT,
        "epochs=1",
        "sweep=alpha_tau",
        "sweep.n_trials=2",
        "sweep.baseline_seeds=1",
        "sweep.confirm_seeds=3",
    )
    done = run_here((*words, "teacher=run", f"teacher.run='{first.info.run_id[:8]}'", "sweep.shuffled=true"), root)
    assert done.status == 0, done.err
    assert re.search("shuffled", done.out)
    confirmed = runs(root, "shuffled", stage="confirmation")
    chosen = runs(root, "distill", stage="confirmation")
    assert [run.data.params["loss.alpha"] for run in confirmed] == [run.data.params["loss.alpha"] for run in chosen]
    (teacher,) = runs(root, "teacher", stage="baseline")
    assert teacher.info.run_name == "teacher shufflenet_v2_x0_5 (scratch, seed 0)"
    (report,) = root.glob("reports/*/report.html")
    assert f"the student of the run {first.info.run_id[:8]} (scratch, seed 0)" in report.read_text()
