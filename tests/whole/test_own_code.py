"""Claims about code of the user's own, run as its user would: the examples, its errors, and its source on record."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from commands import SHORT, Command, Outcome, artifacts, runs
from in_process import run_here
from PIL import Image
from sklearn.datasets import load_digits

from kdsweep.config import build, identities
from kdsweep.config.saved_config import parse
from kdsweep.exporting import trained_student
from kdsweep.system import user_code

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_network"
DATA_EXAMPLE = EXAMPLE.with_name("own_data")
LOSS_EXAMPLE = EXAMPLE.with_name("own_loss")
TRUST = {"KDSWEEP_TRUST": "tinynets.*"}
# A run in a second, on the short run's pictures.
TINY = (
    *("data=synthetic", *(word for word in SHORT if word.startswith("data."))),
    *("epochs=1", "batch_size=16", "threads=1", "precision=fp32", "tracking.models=false"),
)


OWN = ("tinynets", "faulty", "scans", "teaching", "net")


def forget() -> None:
    """A command begins without anything of the user's code, as in a process of its own."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        del sys.modules[name]
    build.architecture.cache_clear()
    build._rehearsed.clear()
    user_code._content.cache_clear()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the example, whose package Python finds."""
    folder = shutil.copytree(EXAMPLE, tmp_path / "own_network", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget()
    yield folder
    forget()


def run(*words: str, place: Path) -> Outcome:
    """The command `kdsweep` in the example's folder."""
    forget()
    return run_here(["--config-dir", "conf", *words], place, TRUST)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.slow
def test_the_example_is_trained_exported_taught_and_swept(place: Path) -> None:
    """The commands of its README, on fewer pictures: a trained network of one's own teaches another, in a grid."""
    done = run(*TINY, "experiment=scratch", "model=wide", place=place)
    assert done.status == 0, done.err
    (wide,) = runs(place)
    words = [wide.info.run_id, "--out", "wide", "--format", "none"]
    done = run_here(words, place, TRUST, "kdsweep-export", "kdsweep.commands.export")
    assert done.status == 0, done.err
    card = (place / "wide" / "README.md").read_text()
    assert "tinynets.wide_net(**config" in card
    weights = "teacher.network.weights=wide/model.safetensors"
    done = run(*TINY, "model=tiny", "teacher=wide", weights, "-m", "model.width=4,6", place=place)
    assert done.status == 0, done.err
    swept = runs(place, "distill")
    assert [run.data.params["model.width"] for run in swept] == ["4", "6"]
    assert sorted(path.name for path in (artifacts(swept[0]) / "source" / "tinynets").iterdir()) == [
        *("__init__.py", "blocks.py", "nets.py")
    ]


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        # The constructor, the forward pass, and a step of training alone.
        (
            "nets.py",
            "nn.Linear(4 *",
            "nn.Linear(No *",
            r"model: your code failed: NameError: .*'No'.* \({}, line \d+, in ",
        ),
        ("nets.py", "return self.fc", "return self.fcc", r"AttributeError: .*'fcc' \({}, line \d+, in forward\)"),
        (
            "nets.py",
            "return self.fc(",
            "return 1 / 0, (",
            r"model: .*ZeroDivisionError: .* \({}, line \d+, in forward\)",
        ),
        (
            "nets.py",
            "return self.fc",
            "assert not self.training\n        return self.fc",
            r"step .*\({}, line \d+, in for",
        ),
        (
            "blocks.py",
            "nn.Conv2d(inputs,",
            "nn.Conv2d(7,",
            r"RuntimeError: .* channels.* \(.*nets.py, line \d+, in forw",
        ),
        ("blocks.py", "import nn", "import nnn", r"model: .*ImportError: cannot import name 'nnn'.* \({}, line 3\)"),
        ("blocks.py", "def block(", "def block((", r"model: .*SyntaxError: .* \({}, line \d+\)"),
    ],
)
def test_an_error_of_a_network_is_one_line_with_its_file_and_line(
    file: str, old: str, new: str, expected: str, place: Path
) -> None:
    """It is found before the run, which leaves none behind."""
    edit(place / "tinynets" / file, old, new)
    done = run(*TINY, "experiment=scratch", "model=tiny", place=place)
    assert (done.status, done.out) == (2, "")
    assert re.search(expected.format(re.escape(str(place / "tinynets" / file))), done.err), done.err
    assert done.err.count("\n") == 1
    assert not (place / "mlflow.db").exists()


FAULTY = """
from kdsweep.losses import ce


def loss(student_logits, teacher_logits, labels, *, weight):
    return ce(student_logits, teacher_logits, labels) * {}["loss"]


def optimizer(params, lr):
    raise OSError("no optimizer")


def schedule(optimizer, total_steps):
    return optimizer.schedule


def data():
    return open("/nowhere/pictures.npz")
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ("loss._target_=faulty.loss", "+loss.weight=1"),
            r"^kdsweep: loss: .*KeyError: 'loss' \({}, line 6, in loss\)",
        ),
        (("optimizer=mine",), r"^kdsweep: optimizer: .*OSError: no optimizer \({}, line 10, in optimizer\)"),
        (("schedule=mine",), r"^kdsweep: schedule: .*AttributeError: .* \({}, line 14, in schedule\)"),
        (("data=mine",), r"^kdsweep: data: .*FileNotFoundError: .*pictures\.npz.* \({}, line 18, in data\)"),
    ],
)
def test_an_error_of_any_other_component_is_one_line_too(words: tuple[str, ...], expected: str, place: Path) -> None:
    """A loss, an optimizer, a schedule and a data set, by the key of their group."""
    (place / "faulty.py").write_text(FAULTY)
    arguments = {"optimizer": "lr: 0.1", "schedule": "", "data": ""}
    for group, line in arguments.items():
        (place / "conf" / group).mkdir()
        partial = "" if group == "data" else "_partial_: true"
        (place / "conf" / group / "mine.yaml").write_text(f"_target_: faulty.{group}\n{partial}\n{line}\n")
    tiny = [word for word in TINY if not (words == ("data=mine",) and word.startswith("data"))]
    forget()
    every = ["--config-dir", "conf", *tiny, "experiment=scratch", "model=tiny", *words]
    done = run_here(every, place, {"KDSWEEP_TRUST": "tinynets.* faulty.*"})
    assert done.status == 2
    assert re.search(expected.format(re.escape(str(place / "faulty.py"))), done.err), done.err
    assert done.err.count("\n") == 1


def test_the_trace_behind_it_is_shown_on_demand(place: Path) -> None:
    edit(place / "tinynets" / "nets.py", "return self.fc", "return self.fcc")
    words = ["--config-dir", "conf", *TINY, "experiment=scratch", "model=tiny"]
    done = run_here(words, place, {**TRUST, "KDSWEEP_TRACEBACK": "1"})
    assert "Traceback (most recent call last):" in done.err
    assert done.err.splitlines()[-1].startswith("kdsweep: model: ")


def test_an_error_in_the_middle_of_a_run_is_one_line_too(place: Path) -> None:
    """The run is closed as failed."""
    edit(place / "tinynets" / "nets.py", "return self.fc", "self.n = getattr(self, 'n', 0) + 1\n        return self.fc")
    edit(place / "tinynets" / "nets.py", "self.body(x)", "self.body(x if self.n < 20 else self.gone)")
    done = run(*TINY, "experiment=scratch", "model=tiny", "epochs=9", place=place)
    assert done.status == 2
    assert re.search(r"your code failed: AttributeError: .*'gone' \(.*nets\.py, line \d+, in forward\)", done.err)
    assert "Traceback" not in done.err
    assert [run.info.status for run in runs(place)] == ["FAILED"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("model=own",), r"model\._target_: name your class or function"),
        (("teacher=own", "experiment=distill"), r"teacher\.network\._target_: name your class or function"),
        (
            ("model=tiny", "+model.depth=3"),
            r"model\.depth: .* Did you mean width|model\.depth: .*TinyNet takes num_classes",
        ),
        (("model._target_=tinynets.TinyNet",), r"model: .*kdsweep's own networks .*: choose `own`"),
        (("model=tiny", "+model.num_classes=3"), r"model\.num_classes: .*fc has 3.*Set num_classes=10"),
        (("model=tiny", "+model.head=body"), r"model\.head: `head is a linear layer of TinyNet`"),
    ],
)
def test_a_network_that_is_badly_configured_is_refused(words: tuple[str, ...], expected: str, place: Path) -> None:
    """By its key, in one line."""
    done = run(*TINY, *(() if "experiment=distill" in words else ("experiment=scratch",)), *words, place=place)
    assert done.status == 2
    assert re.search(expected, done.err), done.err
    assert done.err.count("\n") == 1


@pytest.mark.all
def test_the_example_is_studied_and_an_edited_study_does_not_go_on(place: Path) -> None:
    """The whole study of two networks of one's own; after an edit its command names the file, and does nothing."""
    study = ("--config-dir", "conf", *TINY, "model=tiny", "model.width=4", "sweep=alpha_tau", "sweep.n_trials=2")
    study += ("teacher=own", "teacher.network._target_=tinynets.wide_net", "sweep.baseline_seeds=1")
    study += ("sweep.confirm_seeds=1",)
    find = partial(sys.path.insert, 0, str(place))
    done = Command(*study, root=place, env=TRUST, prepare=find).outcome()
    assert done.status == 0, done.err
    assert len(runs(place, "distill", stage="search")) == 2
    edit(place / "tinynets" / "nets.py", "width: int = 16", "width: int = 8")
    done = Command(*study, root=place, env=TRUST, prepare=find).outcome()
    assert done.status == 2
    assert re.search(r"begun with another configuration \(your code tinynets/nets\.py was \w+ and is \w+", done.err)


@pytest.mark.slow
def test_edited_code_makes_another_run_and_is_named(place: Path) -> None:
    """The record has the hash of each file, a copy is kept, and kdsweep-reproduce names what differs."""

    def check(*more: str) -> Outcome:
        forget()
        return run_here([first.info.run_id, *more], place, TRUST, "kdsweep-reproduce", "kdsweep.commands.reproduce")

    words = (*TINY, "experiment=scratch", "model=tiny", "model.width=4")
    assert run(*words, place=place).status == 0
    (first,) = runs(place)
    assert "your code" not in check("--check").out
    file = place / "tinynets" / "blocks.py"
    before = file.read_text()
    edit(file, "nn.ReLU(inplace=True)", "nn.SiLU()")
    done = check("--check")
    assert done.status == 3
    assert re.search(r"your code tinynets/blocks\.py +[0-9a-f]{12} +[0-9a-f]{12}", done.out), done.out
    assert "in source/" in done.out
    assert (artifacts(first) / "source" / "tinynets" / "blocks.py").read_text() == before
    file.write_text(before)
    assert "Bit-for-bit the same" in check().out


def test_edited_code_is_no_continuation(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's identity has the user's code in it, and a teacher's too; without any it is what it was."""
    from hydra import compose, initialize_config_dir

    monkeypatch.setenv("KDSWEEP_TRUST", "tinynets.*")
    from kdsweep.config.folder import CONFIG_FOLDER

    searched = f"hydra.searchpath=[file://{place}/conf]"
    own = ("model=tiny", "teacher=own", "teacher.network._target_=tinynets.wide_net")
    with initialize_config_dir(str(CONFIG_FOLDER)):
        mine, plain = (compose("config", [searched, *TINY, *words]) for words in (own, ("experiment=scratch",)))
    paths = {"cache": str(place / "cache")}
    mine.paths.update(paths)

    def keys() -> tuple[str, str]:
        forget()
        data, _ = build.inputs(mine)
        teacher = build.untrained_teacher(mine)
        return identities.run_key(mine, data, None), identities.teacher_id(mine, teacher)

    before = keys()
    assert keys() == before
    edit(place / "tinynets" / "blocks.py", "nn.ReLU(inplace=True)", "nn.ReLU()")
    assert not {*keys()} & {*before}
    assert build.sources(plain) == {}


# ---------------------------------------------------------------------------------------------------------- data


@pytest.mark.slow
def test_the_data_example_is_trained_on_and_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its README's commands, on fewer pictures; the record has the hash of the pictures and the user's code."""
    folder = shutil.copytree(DATA_EXAMPLE, tmp_path / "own_data", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = runpy.run_path(str(folder / "make_scans.py"))
    made["main"](60, folder / "pictures")
    path = f"hydra.searchpath=[file://{folder}/conf]"
    network = (
        "model.name=shufflenet_v2_x0_5",
        "model.stem=imagenet",
        "epochs=1",
        "batch_size=16",
        "threads=1",
        "precision=fp32",
    )
    words = [path, "experiment=scratch", "data=scans", *network, "-m", "data.image_size=8,16"]
    done = run_here(words, folder, {"KDSWEEP_TRUST": "scans.*"})
    assert done.status == 0, done.err
    swept = runs(folder, "scratch")
    assert [run.data.params["data.image_size"] for run in swept] == ["8", "16"]
    digests = {dataset.dataset.digest.partition("-")[0] for run in swept for dataset in run.inputs.dataset_inputs}
    assert len(digests) == 2
    assert (artifacts(swept[0]) / "source" / "scans" / "__init__.py").exists()
    words = [swept[0].info.run_id, "--out", "exported", "--format", "none"]
    exported = run_here(words, folder, {"KDSWEEP_TRUST": "scans.*"}, "kdsweep-export", "kdsweep.commands.export")
    assert exported.status == 0, exported.err
    saved = parse((artifacts(swept[0]) / "config.yaml").read_text())
    monkeypatch.setenv("KDSWEEP_TRUST", "scans.*")
    monkeypatch.chdir(folder)  # where its pictures are
    assert trained_student.inputs(trained_student.config_below(folder, saved.config), saved).kind == "test pictures"


# ---------------------------------------------------------------------------------- loss, optimizer and schedule


@pytest.fixture
def teaching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the example with a loss, an optimizer and a schedule."""
    folder = shutil.copytree(LOSS_EXAMPLE, tmp_path / "own_loss", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget()
    yield folder
    forget()


def taught(folder: Path, *words: str) -> Outcome:
    """The command `kdsweep` in the folder of the example."""
    forget()
    network = ("model.name=shufflenet_v2_x0_5", "model.stem=imagenet", "teacher=random")
    return run_here(["--config-dir", "conf", *TINY, *network, *words], folder, {"KDSWEEP_TRUST": "teaching.*"})


@pytest.mark.slow
def test_the_loss_example_is_trained_with_and_swept(teaching: Path) -> None:
    """Its README's grid, on fewer pictures: the settings are parameters, and the code is on record."""
    words = ("loss=logit_matching", "optimizer=decayed_matrices", "schedule=trapezoid", "-m", "loss.weight=0.1,0.3")
    done = taught(teaching, *words)
    assert done.status == 0, done.err
    swept = runs(teaching, "distill")
    assert [run.data.params["loss.weight"] for run in swept] == ["0.1", "0.3"]
    assert swept[0].data.params["optimizer.lr"] == "0.05"
    assert (artifacts(swept[0]) / "source" / "teaching" / "__init__.py").exists()


@pytest.mark.slow
def test_a_study_searches_what_a_loss_of_ones_own_has(teaching: Path) -> None:
    """It has no alpha and no tau, which is said; and a setting may have no other value than the search's."""
    small = ("sweep=alpha_tau", "sweep.n_trials=1", "sweep.baseline_seeds=0", "sweep.confirm_seeds=0")
    without_file = ("loss=own", "loss._target_=teaching.logit_matching", "+loss.weight=interval(0,1)")
    done = taught(teaching, *small, *without_file)
    assert done.status == 0, done.err
    assert "loss.alpha and loss.tau are not searched, for loss=own has none." in done.err
    (study,) = runs(teaching, "study")
    assert study.data.params["space._loss.weight"] == "+loss.weight=interval(0,1)"
    assert "loss.weight" not in study.data.params
    (trial,) = runs(teaching, "distill", stage="search")
    assert 0 < float(trial.data.params["loss.weight"]) < 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("loss=logit_matching", "+loss.wieght=1"), r"loss\.wieght: .*mean weight\? logit_matching takes weight\."),
        (("loss=own", "loss._target_=teaching.logit_matching"), r"loss\.weight: .*this argument is missing"),
        (("optimizer=decayed_matrices", "+optimizer.wd_decay=1"), r"wd_decay: .*mean weight_decay\? .* takes lr, "),
        (("optimizer=own", "optimizer._target_=torch.optim.RMSprop", "+optimizer.alhpa=1"), r"mean alpha\? RMSprop"),
        (("schedule=trapezoid", "+schedule.dwon=1"), r"schedule\.dwon: .*Did you mean down\? trapezoid takes "),
        (("+loss.aplha=1",), r"loss\.aplha: .*Did you mean alpha\? kd takes alpha, tau"),
    ],
)  # fmt: skip
def test_a_misspelt_setting_is_refused_with_the_one_that_is_meant(
    words: tuple[str, ...], expected: str, teaching: Path
) -> None:
    """By its key, in one line, for ones own functions as for torch's and kdsweep's."""
    done = taught(teaching, *words)
    assert done.status == 2
    assert re.search(expected, done.error), done.err
    assert done.err.count("\n") == 1


# ------------------------------------------------------------------------------------------------- the tutorial


PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "own-pictures.md"


def commands_of_the_page() -> list[list[str]]:
    """The commands of the tutorial from a folder of pictures to a verdict, each as words."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if language == "" for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("kdsweep")]


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's own files, and a few scans of four digits in class folders without splits."""
    text = PAGE.read_text(encoding="utf-8")
    for name in ("net.py", "conf/experiment/mine.yaml"):
        (block,) = re.findall(rf"^```\w+\n((?:# @.*?\n)?# {name}\n.*?)^```", text, re.MULTILINE | re.DOTALL)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(block)
    scans = load_digits(n_class=4)
    for i, (grey, label) in enumerate(zip(scans.images[:120], scans.target[:120], strict=True)):
        (tmp_path / "PICTURES" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((grey * 15.9).astype("uint8")).save(tmp_path / "PICTURES" / str(label) / f"{i}.png")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget()
    yield tmp_path
    forget()


def test_the_tutorials_commands_are_those_that_are_run_here() -> None:
    """One run, one with the file, the study, its report, and what comes after."""
    programs = [words[0] for words in commands_of_the_page()]
    assert programs == ["kdsweep", "kdsweep", "kdsweep", "kdsweep-report", "kdsweep-ui", "kdsweep-export"]


@pytest.mark.slow
def test_the_tutorial_goes_from_class_folders_to_runs(stranger: Path) -> None:
    """Its first two commands, with fewer and smaller pictures: the test split is cut, and the same in both runs."""
    quick = (
        "data.image_size=8",
        "epochs=1",
        "batch_size=16",
        "threads=1",
        "precision=fp32",
        "n_passes=1",
        "tracking.models=false",
    )
    first, second, *_ = commands_of_the_page()
    for words in ([*first[1:], *quick], [*second[1:], *quick, "data.val_size=0.1", "teacher=random"]):
        done = run_here(words, stranger, {"KDSWEEP_TRUST": "net.*"})
        assert done.status == 0, done.err
    found = [run for arm in ("scratch", "distill") for run in runs(stranger, arm)]
    inputs = [run.inputs.dataset_inputs for run in found]
    assert len(found) == 2
    assert {run.data.params["data.test_size"] for run in found} == {"0.2"}
    assert inputs[0][0].dataset.digest == inputs[1][0].dataset.digest


@pytest.mark.all
def test_the_tutorial_goes_to_a_verdict(stranger: Path) -> None:
    """All of its commands, with the teacher that it names, on fewer pictures, epochs and seeds."""
    quick = ("epochs=2", "batch_size=32", "threads=1", "n_passes=2")
    few = ("sweep.n_trials=2", "sweep.baseline_seeds=1", "sweep.confirm_seeds=3")
    find = partial(sys.path.insert, 0, str(stranger))
    first, second, study, report, _, export = commands_of_the_page()
    trust = {"KDSWEEP_TRUST": "net.*"}
    for words in ([*first[1:], *quick], [*second[1:], *quick], [*study[1:], *quick, *few]):
        done = Command(*words, root=stranger, env=trust, prepare=find).outcome()
        assert done.status == 0, done.err
        assert re.search("The network is in MLflow: |Logged to MLflow as models: the networks of 9 ", done.err), (
            done.err
        )
    done = run_here(report[1:], stranger, trust, report[0], "kdsweep.commands.report")
    assert done.status == 0, done.err
    said = " ".join(done.out.split())
    assert re.search(r"better than|worse than|not distinguishable|Nothing was learned", said, re.IGNORECASE), said
    run_id = runs(stranger, "distill", stage="confirmation")[0].info.run_id[:8]
    words = [run_id if word == "RUN" else word for word in export[1:]]
    done = run_here([*words, "--format", "none"], stranger, trust, export[0], "kdsweep.commands.export")
    assert done.status == 0, done.err
