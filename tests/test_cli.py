"""Claims about how commands end: the line, the exit status, and the trace that is only shown when it is asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import SHORT, kdsweep, statuses
from conftest import console_script
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import resnet18

from kdsweep import cli
from kdsweep.errors import RunError, UserError
from kdsweep.interrupts import ENDS, TerminatedError

pytestmark = pytest.mark.slow

MISSING = "/no/such/place"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and weights with something wrong, each under the name of its fault."""
    root = tmp_path_factory.mktemp("files")
    for name, test_class in (("differ", "cow"), ("unreadable", "dog")):
        for split, kinds in (("train", ("cat", "dog")), ("test", ("cat", test_class))):
            for kind in kinds:
                (root / name / split / kind).mkdir(parents=True)
                for i in range(3):
                    Image.new("RGB", (8, 8), (40 * i, 9, 9)).save(root / name / split / kind / f"{i}.png")
    (root / "unreadable" / "train" / "cat" / "broken.png").write_bytes(b"no picture")
    (root / "empty").mkdir()
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7), "other": torch.zeros(2)}, root / "misfit.safetensors")
    save_file(resnet18(num_classes=7).state_dict(), root / "seven.safetensors")
    return root


@pytest.fixture
def handlers() -> Iterator[None]:
    """The signal handlers of the test process, put back."""
    before = {number: signal.getsignal(number) for number in ENDS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# The words, the key that the line starts with, and what else it says.
WRONG = [
    ("loss.alpha=1.5", "loss.alpha", ("0 <= alpha <= 1", "alpha=1.5")),
    ("loss.alpha=-0.1", "loss.alpha", ("0 <= alpha <= 1", "alpha=-0.1")),
    ("loss.alpha=nan", "loss.alpha", ("0 <= alpha <= 1", "alpha=nan")),
    ("loss.alpha=much", "loss.alpha", ("0 <= alpha <= 1", "alpha='much'")),
    ("loss.tau=0", "loss.tau", ("0 < tau < inf", "tau=0")),
    ("loss.tau=-2", "loss.tau", ("0 < tau < inf", "tau=-2")),
    ("loss=label_smoothing loss.smoothing=2", "loss.smoothing", ("0 <= smoothing <= 1", "smoothing=2")),
    ("model=resnet19", "model", ("no option 'resnet19'", "resnet18")),
    ("model.name=resnet19", "model.name", ("'resnet19'", "resnet18")),
    ("data=cifra10", "data", ("no option 'cifra10'", "cifar10")),
    ("loss=dk", "loss", ("no option 'dk'", "kd")),
    ("experiment=nothing", "experiment", ("no option 'nothing'", "scratch")),
    ("sweep=nothing", "sweep", ("no option 'nothing'", "alpha_tau")),
    ("loss.alhpa=0.3", "loss.alhpa", ("no such key", "'alpha'")),
    ("+loss.gamma=0.3", "loss", ("gamma",)),
    ("epochs=0", "epochs", ("epochs >= 1", "epochs=0")),
    ("epochs=2.5", "epochs", ("whole number", "epochs=2.5")),
    ("n_passes=0", "n_passes", ("n_passes >= 1", "n_passes=0")),
    ("batch_size=0", "batch_size", ("batch_size >= 1", "batch_size=0")),
    ("batch_size=-8", "batch_size", ("batch_size >= 1", "batch_size=-8")),
    ("seed=-1", "seed", ("seed >= 0", "seed=-1")),
    ("data.val_size=96", "data.val_size", ("validation pictures <= 86", "val_size=96")),
    ("data.val_size=0", "data.val_size", ("int >= 1", "val_size=0")),
    ("data.train_fraction=0", "data.train_fraction", ("0 < train_fraction <= 1", "train_fraction=0")),
    ("optimizer.lr=-1", "optimizer", ("learning rate", "-1")),
    ("schedule.warmup=2", "schedule.warmup", ("0 < warmup < 1", "warmup=2")),
    ("precision=fp8", "precision", ("bf16", "'fp8'")),
    ("threads=0", "threads", ("threads >= 1", "threads=0")),
    ("device=tpu", "device", ("'tpu'", "cpu")),
    ("device=cuda:99", "device", ("'cuda:99'", "cpu")),
    ("loss=kd teacher=none", "loss", ("kd needs a teacher", "null")),
    ("arm=teacher teacher=none", "teacher", ("no teacher",)),
    ("teacher.mode=fast", "teacher.mode", ("table", "mode='fast'")),
    ("objective=test/accuracy", "objective", ("val/accuracy", "'test/accuracy'")),
    ("objective=val/acuracy", "objective", ("val/accuracy", "'val/acuracy'")),
    ("sweep=alpha_tau hydra/sweeper/sampler=best", "hydra/sweeper/sampler", ("no option 'best'", "tpe")),
    ("loss.alpha=[", "'loss.alpha=['", ("key=value",)),
    ("loss.alpha", "'loss.alpha'", ("key=value", "EQUAL")),
    ("loss.alpha=0.3,0.6", "loss.alpha", ("one value", "'0.3,0.6'", "-m")),
    ("loss=null", "Config group", ("NoneType",)),
    ("tracking.uri=somewhere", "tracking.uri", ("SQLite", "'somewhere'")),
    (f"tracking.uri=sqlite:////proc{MISSING}/mlflow.db", "tracking.uri", ("cannot be opened", "/proc")),
    (f"paths.root=/proc{MISSING}", "No such file", ("/proc/no", "paths.root")),
    (f"data=image_folder data.root={MISSING}", "data.root", (MISSING, "does not exist")),
    ("data=image_folder data.root=FILES/empty", "data.root", ("empty has no folder train/",)),
    ("data=image_folder data.root=FILES/differ", "data.root", ("classes", "'cow'", "'dog'")),
    ("data=image_folder data.root=FILES/unreadable", "data.root", ("1 of 13 pictures", "'train/cat/broken.png'")),
    (f"model.weights={MISSING}.safetensors", "model.weights", (f"{MISSING}.safetensors", "is a file")),
    ("model.weights=IMAGENET1K_V9", "model.weights", ("'IMAGENET1K_V9'", "IMAGENET1K_V1")),
    ("model.weights=FILES/misfit.safetensors", "model.weights", ("missing: bn1.weight", "unexpected: other")),
    (
        "teacher.head=null teacher.network.head=keep teacher.network.weights=FILES/seven.safetensors",
        "teacher.network.head",
        ("10 classes", "a file with 7"),
    ),
]


@pytest.mark.parametrize(("words", "start", "parts"), WRONG, ids=[words for words, _, _ in WRONG])
def test_a_wrong_value_is_one_line(words: str, start: str, parts: tuple[str, ...], files: Path, tmp_path: Path) -> None:
    """Exit status 2, one line with key, value and rule, no trace, and no run left behind."""
    base = ("experiment=debug", "threads=1") if "image_folder" in words else SHORT
    done = kdsweep(*base, *words.replace("FILES", str(files)).split(), root=tmp_path)
    assert done.status == 2
    assert done.err == done.error + "\n"
    assert done.error.startswith(f"kdsweep: {start}")
    assert [part for part in parts if part not in done.error] == []
    assert "Traceback" not in done.out + done.err
    assert statuses(tmp_path) == []


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    """The key and the address, before anything is trained."""
    done = kdsweep(*SHORT, "tracking.uri=http://127.0.0.1:9", root=tmp_path)
    assert done.status == 2
    assert done.error.startswith("kdsweep: tracking.uri: The MLflow store http://127.0.0.1:9 cannot be opened")


def test_a_trace_can_be_asked_for(tmp_path: Path) -> None:
    """KDSWEEP_TRACEBACK=1 shows it before the line, and the exit status stays."""
    done = kdsweep(*SHORT, "loss.alpha=2", root=tmp_path, env={"KDSWEEP_TRACEBACK": "1"})
    assert done.status == 2
    assert "Traceback (most recent call last)" in done.err
    assert "losses.py" in done.err
    assert done.error == "kdsweep: loss.alpha: `0 <= alpha <= 1` must hold, but got alpha=2."


def test_a_job_of_a_grid_is_named_with_its_error(tmp_path: Path) -> None:
    """In a plain multirun the line of the error stands below the overrides of the job."""
    done = kdsweep("-m", *SHORT, "loss.alpha=2,3", root=tmp_path)
    assert done.status == 2
    assert "alpha=2" in done.error
    assert "Traceback" not in done.err


def test_the_reader_may_leave_early(tmp_path: Path) -> None:
    """`kdsweep --help | head -1` prints its line and no complaint."""
    line = f"{sys.executable} -m kdsweep.train --help | head -1"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("kdsweep: ")
    assert done.stderr == ""


def test_the_installed_command_refuses_in_one_line(tmp_path: Path) -> None:
    """What users type, in a process that has imported nothing before."""
    done = console_script("loss.alpha=[", root=tmp_path)
    assert done.status == 2
    assert done.err == done.error + "\n"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("too much", "loss.alpha"), 2, "loss.alpha: too much"),
        (UserError("first\n  second"), 2, "first second"),
        (RunError("the loss was nan"), 1, "the loss was nan"),
        (OSError(28, "No space left on device", "/full/file"), 2, "No space left on device: /full/file"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (TerminatedError(), 143, "terminated"),
    ],
)
def test_each_end_has_its_exit_status(
    error: BaseException, status: int, line: str, handlers: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """2 for what the user can mend, 1 for a run that failed, 128 + n for signals; one line each."""
    with pytest.raises(SystemExit) as left:
        cli.command("command", lambda: _raise(error))
    assert left.value.code == status
    printed = capfd.readouterr().err
    assert printed.startswith(f"command: {line}")
    assert printed.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_trace(handlers: None) -> None:
    """An exception that no user can mend is not dressed up."""
    with pytest.raises(ZeroDivisionError):
        cli.command("command", lambda: _raise(ZeroDivisionError()))
    assert cli.explained(ValueError("from our own code")) is None


def test_sigterm_ends_a_command_like_ctrl_c(handlers: None) -> None:
    """It arrives as a KeyboardInterrupt, so that every run on the way is closed."""
    with pytest.raises(SystemExit) as left:
        cli.command("command", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert left.value.code == 143
    assert issubclass(TerminatedError, KeyboardInterrupt)


def _raise(error: BaseException) -> None:
    raise error
