"""Claims about wrong input (commands, keys, values, files, URIs, names): refused in one line, with nothing left behind.

The table is the documentation: words that a user may type, the key that the line starts with, what else it says. The
commands `kdsweep-reproduce`, `kdsweep-export` and `kdsweep-sync` have their tables in their own test files.

The first case of each kind, and each that is about the command line, places or devices, runs in a process of its own.
The others are refused in the process of the tests: wrong values by what Hydra calls, all else by the command's `main`.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from commands import PRELOADED, SECONDS, SHORT, statuses
from in_process import run_here, train_here
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import resnet18

pytestmark = pytest.mark.slow

PROGRAMS = {
    "kdsweep": "kdsweep.train",
    "kdsweep-report": "kdsweep.commands.report",
    "kdsweep-ui": "kdsweep.commands.ui",
}

# A study with as little to do as a study can have: what isn't refused would begin.
STUDY = ("sweep=alpha_tau", *SHORT, "sweep.n_trials=1", "sweep.baseline_seeds=1", "sweep.confirm_seeds=0")
CONTEST = ("sweep=losses", *SHORT, "sweep.contenders=[ce,kd]", "sweep.against=[kd]", "sweep.n_trials=1")
PICTURES = ("experiment=debug", "threads=1", "epochs=1", "data=image_folder")

MISSING = "/no/such/place"
HUGE = "99999999999999999999"


class Wrong(NamedTuple):
    """One wrong input.

    Args:
        words: What is typed; a string is split at its spaces. FILES is the folder of the fixture `files`.
        start: What the line begins with after the command's name: the key.
        parts: What else it says: the rule, the value, the remedy.
        base: Words before these.
        program: The command.
        env: Its environment, besides ours.
        status: The exit status.
    """

    words: str | tuple[str, ...]
    start: str
    parts: tuple[str, ...]
    base: tuple[str, ...] = SHORT
    program: str = "kdsweep"
    env: Mapping[str, str] = {}
    status: int = 2


def _id(case: Wrong) -> str:
    words = case.words if isinstance(case.words, str) else " ".join(case.words)
    text = f"{case.program} {words}".encode("ascii", "backslashreplace").decode()
    return text.replace("\n", "\\n")[:90]


SCALARS = [
    Wrong("epochs=0", "epochs", ("epochs >= 1", "epochs=0")),
    Wrong("epochs=2.5", "epochs", ("whole number", "epochs=2.5")),
    Wrong("epochs=1e3", "epochs", ("whole number", "epochs=1000.0")),
    Wrong("epochs=abc", "epochs", ("whole number", "epochs='abc'")),
    Wrong("epochs=null", "epochs", ("epochs >= 1", "epochs=None")),
    Wrong("epochs=[1]", "epochs", ("epochs >= 1", "epochs=[1]")),
    Wrong("epochs={}", "epochs", ("epochs >= 1", "epochs={}")),
    Wrong("epochs=true", "epochs", ("epochs >= 1", "epochs=True")),
    Wrong("epochs=nan", "epochs", ("epochs >= 1", "epochs=nan")),
    Wrong("epochs=''", "epochs", ("epochs >= 1", "epochs=''")),
    Wrong("n_passes=0", "n_passes", ("n_passes >= 1", "n_passes=0")),
    Wrong("batch_size=0", "batch_size", ("batch_size >= 1", "batch_size=0")),
    Wrong("batch_size=-8", "batch_size", ("batch_size >= 1", "batch_size=-8")),
    Wrong("batch_size=1", "batch_size", ("more than one value a channel", "batch_size=1", "batch_size >= 2")),
    Wrong("seed=-1", "seed", ("seed >= 0", "seed=-1")),
    Wrong("seed=1.5", "seed", ("seed >= 0", "whole number")),
    Wrong("view_seed=null", "view_seed", ("view_seed >= 0", "view_seed=None")),
    Wrong("arm=abc", "arm", ("distill", "arm='abc'", "experiment=scratch")),
    Wrong("evaluate_test=1", "evaluate_test", ("true or false", "evaluate_test=1")),
    Wrong("deterministic=maybe", "deterministic", ("true or false", "deterministic='maybe'")),
    Wrong("compiled=1", "compiled", ("auto, true or false", "compiled=1")),
    Wrong("teacher.compiled=2", "teacher.compiled", ("true, false or null", "compiled=2")),
    Wrong("objective=test/accuracy", "objective", ("val/accuracy", "'test/accuracy'")),
    Wrong("objective=val/acuracy", "objective", ("val/accuracy", "'val/acuracy'")),
    Wrong("objective=[]", "objective", ("at least one objective",)),
    Wrong("objective=null", "objective", ("val/accuracy", "None")),
    Wrong("precision=fp8", "precision", ("bf16", "'fp8'")),
    Wrong("precision=[bf16]", "precision", ("bf16", "['bf16']")),
    Wrong("teacher.precision=fp8", "teacher.precision", ("bf16", "'fp8'")),
    Wrong("memory_format=nhwc", "memory_format", ("channels_last", "'nhwc'")),
    Wrong("threads=0", "threads", ("threads >= 1", "threads=0")),
    Wrong("threads=abc", "threads", ("threads >= 1", "threads='abc'")),
    Wrong("threads=5000", "threads", ("threads <= 1024", "threads=5000")),
    Wrong(f"threads={HUGE}", "threads", ("threads <= 1024", HUGE)),
    Wrong("device=tpu", "device", ("'tpu'", "cpu")),
    Wrong("device=cuda:99", "device", ("'cuda:99'", "cpu")),
    Wrong("device=5", "device", ("no device is called 5", "cpu")),
    Wrong("device=null", "device", ("no device is called None", "cpu")),
    Wrong("device=mps", "device", ("cpu and cuda", "'mps'")),
    Wrong(f"n_passes={HUGE}", "n_passes", (HUGE,)),
    Wrong(f"epochs={HUGE}", "epochs", (HUGE,)),
    Wrong(f"seed={HUGE}", "seed", (HUGE,)),
    Wrong(f"init_seed={HUGE}", "init_seed", (HUGE,)),
    Wrong(f"view_seed={HUGE}", "view_seed", (HUGE,)),
    Wrong("objective=[val/nll,val/nll]", "objective", ("val/nll",)),
]

LEARNING = [
    Wrong("loss.alpha=1.5", "loss.alpha", ("0 <= alpha <= 1", "alpha=1.5")),
    Wrong("loss.alpha=-0.1", "loss.alpha", ("0 <= alpha <= 1", "alpha=-0.1")),
    Wrong("loss.alpha=nan", "loss.alpha", ("0 <= alpha <= 1", "alpha=nan")),
    Wrong("loss.alpha=much", "loss.alpha", ("0 <= alpha <= 1", "alpha='much'")),
    Wrong("loss.alpha=null", "loss.alpha", ("0 <= alpha <= 1", "alpha=None")),
    Wrong("loss.alpha=[0.3]", "loss.alpha", ("0 <= alpha <= 1", "alpha=[0.3]")),
    Wrong("loss.tau=0", "loss.tau", ("0 < tau < inf", "tau=0")),
    Wrong("loss.tau=-2", "loss.tau", ("0 < tau < inf", "tau=-2")),
    Wrong("loss.tau=inf", "loss.tau", ("0 < tau < inf", "tau=inf")),
    Wrong("loss.tau=true", "loss.tau", ("It is a number", "tau=True")),
    Wrong("loss=label_smoothing loss.smoothing=2", "loss.smoothing", ("0 <= smoothing <= 1", "smoothing=2")),
    Wrong("schedule.warmup=2", "schedule.warmup", ("0 < warmup < 1", "warmup=2")),
    Wrong("schedule.warmup=nan", "schedule.warmup", ("0 < warmup < 1", "warmup=nan")),
    Wrong("schedule=cosine schedule.warmup=1", "schedule.warmup", ("0 <= warmup < 1", "warmup=1")),
    Wrong("loss=kd teacher=none", "loss", ("kd needs a teacher", "null")),
    Wrong("arm=teacher teacher=none", "teacher", ("no teacher",)),
    Wrong("teacher.mode=fast", "teacher.mode", ("table", "mode='fast'")),
    Wrong("teacher.batch_size=0", "teacher.batch_size", ("batch_size >= 1", "batch_size=0")),
    Wrong("teacher.network.input_size=0", "teacher.network.input_size", ("> 0", "input_size=0")),
    Wrong("optimizer.lr=abc", "optimizer.lr", ("finite number", "lr='abc'", "default")),
    Wrong("optimizer.lr=-1", "optimizer.lr", ("lr >= 0", "lr=-1")),
    Wrong("optimizer.lr=nan", "optimizer.lr", ("finite number", "lr=nan")),
    Wrong("optimizer.lr=inf", "optimizer.lr", ("finite number", "lr=inf")),
    Wrong("optimizer.lr=true", "optimizer.lr", ("finite number", "lr=True")),
    Wrong("optimizer.momentum=-1", "optimizer.momentum", ("momentum >= 0", "momentum=-1")),
    Wrong(f"optimizer.momentum={'9' * 40}", "optimizer.momentum", ("finite number",)),
    Wrong("optimizer.nesterov=abc", "optimizer.nesterov", ("true or false", "nesterov='abc'")),
    Wrong("optimizer.weight_decay=null", "optimizer.weight_decay", ("finite number", "None")),
    Wrong("optimizer=adamw optimizer.betas=[0.9]", "optimizer.betas", ("2 finite numbers", "[0.9]")),
    Wrong("teacher.head.weight_decays=[]", "teacher.head.weight_decays", ("at least one weight decay",)),
    Wrong("teacher.head.weight_decays=[-1]", "teacher.head.weight_decays", ("weight_decays=[-1]",)),
    Wrong("teacher.head.weight_decays=abc", "teacher.head.weight_decays", ("'abc'",)),
    Wrong("teacher.head.max_iterations=abc", "teacher.head.max_iterations", ("max_iterations >= 1", "'abc'")),
    Wrong("teacher.head.max_iterations=0", "teacher.head.max_iterations", ("max_iterations >= 1",)),
    Wrong("teacher.network=5", "teacher.network", ("5",)),
    Wrong("teacher.head=null", "teacher.head", ("keep",)),
]

NETWORKS = [
    Wrong("model.name=resnet19", "model.name", ("'resnet19'", "resnet18")),
    Wrong("model.name=null", "model.name", ("classifier of torchvision", "name=None")),
    Wrong("model.name=../../etc", "model.name", ("classifier of torchvision", "'../../etc'")),
    Wrong("model.name=inception_v3", "model.name", ("not supported", "'inception_v3'")),
    Wrong("model.name=vit_b_16", "model.input_size", ("must take its input", "input_size=224")),
    Wrong("model.name=mobilenet_v3_small model.stem=cifar", "model.stem", ("ResNets only", "mobilenet_v3_small")),
    Wrong("model.library=abc", "model.library", ("torchvision", "library='abc'")),
    Wrong("model.stem=null", "model.stem", ("imagenet, cifar", "stem=None")),
    Wrong("model.head=keep", "model.head", ("without weights", "head='keep'")),
    Wrong("model.freeze={}", "model.freeze", ("backbone", "freeze={}")),
    Wrong("model.input_size=1.5", "model.input_size", ("whole number > 0", "input_size=1.5")),
    Wrong(f"model.input_size={HUGE}", "model.input_size", ("input_size <= 8192", HUGE)),
    Wrong("model.mean=[nan,1,1]", "model.mean", ("three numbers", "Finite")),
    Wrong("model.mean={a:1,b:2,c:3}", "model.mean", ("three numbers", "'a': 1")),
    Wrong("model.mean=[1,2,3,4]", "model.mean", ("three numbers", "[1, 2, 3, 4]")),
    Wrong("model.std=[1e-320,1,1]", "model.std", ("std > 0", "1e-320")),
    Wrong("model.std=abc", "model.std", ("three numbers", "std='abc'")),
    Wrong(f"model.weights={MISSING}.safetensors", "model.weights", (f"{MISSING}.safetensors", "is a file")),
    Wrong("model.weights=IMAGENET1K_V9", "model.weights", ("'IMAGENET1K_V9'", "IMAGENET1K_V1")),
    Wrong("model.weights=pkg://nothing_at_all/x.pth", "model.weights", ("package is installed", "pip install")),
    Wrong("model.weights=pkg://torch/../../../etc/passwd", "model.weights", ("weights in {null", "passwd")),
    Wrong("model.weights=/dev/zero", "model.weights", ("weights in {null", "/dev/zero")),
    Wrong("model.weights=FILES/folder.pth", "model.weights", ("is a file", "There is a folder at")),
    Wrong("model.weights=FILES/pipe.pth", "model.weights", ("is a file", "There is something else at")),
]

# The weights of ResNet18 with ImageNet's stem, in a file with something wrong.
WEIGHTS = [
    Wrong(f"model.weights=FILES/{name}", start, parts, base=(*SHORT, "model.name=resnet18"))
    for name, start, parts in [
        ("misfit.safetensors", "model.weights", ("missing: bn1.weight", "unexpected: other")),
        ("code.pth", "model.weights", ("posix.system", "could run code", "refused")),
        ("code_in_a_dict.pt", "model.weights", ("posix.system", "could run code", "refused")),
        ("pickle.pth", "model.weights", ("cannot be read", "torch.save didn't write it", "Get it again")),
        ("garbage.pth", "model.weights", ("cannot be read", "torch.save didn't write it", "Get it again")),
        ("garbage.safetensors", "model.weights", ("cannot be read", "header", "Get it again")),
        ("empty.pth", "model.weights", ("cannot be read", "EOFError")),
        ("empty.safetensors", "model.weights", ("cannot be read", "header too small")),
        ("half.pth", "model.weights", ("cannot be read", "PytorchStreamReader", "Get it again")),
        ("half.safetensors", "model.weights", ("cannot be read", "incomplete metadata")),
        ("list.pth", "model.weights", ("state dict", "a list", "Save net.state_dict() alone")),
        ("two.pth", "model.weights", ("one network in the file fits", "has model and model_ema", "two.pth:model_ema.")),
        ("two.pth:ema", "model.weights", ("`ema is in ", "has model, model_ema. Write one of these")),
        ("numbered.pth", "model.weights", ("state dict", "a dict with 1")),
        ("nan.safetensors", "model.weights", ("finite numbers", "conv1.weight", "Get it again")),
        ("whole.safetensors", "model.weights", ("type: conv1.weight torch.int32 instead of torch.float32",)),
        ("resnet18.safetensors model.stem=cifar", "model.weights", ("shape: conv1.weight", "stem")),
        ("resnet18.safetensors model.head=keep", "model.head", ("10 classes", "with 7", "head=new")),
    ]
]

WEIGHTS.append(Wrong(('model.weights="FILES/two\nlines.pth"',), "model.weights", ("cannot be read", r"two\nlines.pth")))

DATA = [
    Wrong("data.val_size=96", "data.val_size", ("validation pictures <= 86", "val_size=96")),
    Wrong("data.val_size=0", "data.val_size", ("int >= 1", "val_size=0")),
    Wrong("data.val_size=1.5", "data.val_size", ("0 < float < 1", "val_size=1.5")),
    Wrong("data.val_size=nan", "data.val_size", ("0 < float < 1", "val_size=nan")),
    Wrong("data.train_fraction=0", "data.train_fraction", ("0 < train_fraction <= 1", "train_fraction=0")),
    Wrong("data.train_fraction=true", "data.train_fraction", ("0 < train_fraction <= 1", "True")),
    Wrong("data.split_seed=-1", "data.split_seed", ("int >= 0", "split_seed=-1")),
    Wrong("data.flip=2", "data.flip", ("true or false", "flip=2")),
    Wrong("data.padding=1.5", "data.padding", ("int >= 0", "padding=1.5")),
    Wrong("data.padding=1000000", "data.padding", ("fits in memory", "GiB", "Lower it")),
    Wrong("data.n_train=abc", "data.n_train", ("int >= 11", "n_train='abc'")),
    Wrong("data.n_train=1000000000000", "data.n_train", ("fits in memory", "GiB", "Lower it")),
    Wrong(f"data.n_train={HUGE}", "data.n_train", ("int >= 11", HUGE)),
    Wrong("data.n_classes=1", "data.n_classes", ("int >= 2", "n_classes=1")),
    Wrong("data.image_size=100000", "data.image_size", ("image_size <= 8192", "pixels")),
    Wrong("data=digits data.n_test=1797", "data.n_test", ("n_test <= 1787",), ("experiment=debug",)),
    Wrong("data=digits data.image_size=8000", "data.image_size", ("fits in memory",), ("experiment=debug",)),
    Wrong("data=cifar10 data.root=FILES/file", "data.root", ("is a folder", "File exists"), ("experiment=debug",)),
    Wrong("data=cifar10 data.root=FILES/file/x", "data.root", ("is a folder",), ("experiment=debug",)),
    Wrong(f"data.root={MISSING}", "data.root", (MISSING, "does not exist"), PICTURES),
    Wrong("data.root=null", "data.root", ("root is a folder", "root=None"), PICTURES),
    Wrong("data.root=[a]", "data.root", ("root is a folder", "root=['a']"), PICTURES),
    Wrong("data.root=FILES/file", "data.root", ("is a file", "<root>/train/<class>/*"), PICTURES),
    Wrong(("data.root='~nobody-here/x'",), "data.root", ("root is a folder", "Write the path out"), PICTURES),
    Wrong(f"data.root={'n' * 300}", "File name too long", ("Choose a shorter name",), PICTURES),
    Wrong("data.root=FILES/empty", "data.root", ("empty has no folder train/",), PICTURES),
    Wrong("data.root=FILES/differ", "data.root", ("classes", "'cow'", "'dog'"), PICTURES),
    Wrong("data.root=FILES/nested", "data.root", ("at least two classes", "'images'", "'cat', 'dog'"), PICTURES),
    Wrong("data.root=FILES/unreadable", "data.root", ("1 of 13 pictures", "'train/cat/broken.png'"), PICTURES),
    Wrong("data.root=FILES/half", "data.root", ("1 of 12 pictures", "truncated", "Remove or replace"), PICTURES),
    Wrong("data.root=FILES/pipe", "data.root", ("1 of 13 pictures", "neither a file"), PICTURES),
    Wrong("data.root=FILES/link", "data.root", ("1 of 13 pictures", "a link to nothing"), PICTURES),
    Wrong("data.root=FILES/half data.cache=FILES/file", "data.cache", ("Choose another folder",), PICTURES),
]

COMMAND_LINE = [
    Wrong("model=resnet19", "model", ("no option 'resnet19'", "resnet18")),
    Wrong("model=''", "model", ("no option ''", "resnet18")),
    Wrong("data=cifra10", "data", ("no option 'cifra10'", "cifar10")),
    Wrong("loss=dk", "loss", ("no option 'dk'", "kd")),
    Wrong("loss=/etc/passwd", "loss", ("no option '/etc/passwd'", "kd")),
    Wrong("loss=../kd", "In config", ("..",)),
    Wrong("loss=null", "loss", ("loss is one option", "loss=null", "--help")),
    Wrong("model=5", "model", ("model is one option", "model=5", "--help")),
    Wrong("experiment=nothing", "experiment", ("no option 'nothing'", "scratch")),
    Wrong("loss.alhpa=0.3", "loss.alhpa", ("no such key", "mean loss.alpha?")),
    Wrong("alpha=0.3", "alpha", ("no such key", "mean loss.alpha?"), ("experiment=debug",)),
    Wrong("+alpha=0.3", "alpha", ("nothing reads", "mean loss.alpha?"), ("experiment=debug",)),
    Wrong("trainer.max_epochs=3", "trainer.max_epochs", ("no such key", "mean epochs?")),
    Wrong("+loss.gamma=0.3", "loss", ("gamma",)),
    Wrong("löss.alpha=1", "'löss.alpha=1'", ("key=value", "ASCII")),
    Wrong("loss.alpha=[", "'loss.alpha=['", ("key=value",)),
    Wrong("loss.alpha", "'loss.alpha'", ("key=value", "EQUAL")),
    Wrong(("",), "''", ("key=value",)),
    Wrong(("loss.alpha=0.3\n0.4",), "'loss.alpha=0.3 0.4'", ("key=value",)),
    Wrong("=5", "", ("option",)),
    Wrong("loss.alpha=0.3,0.6", "loss.alpha", ("one value", "'0.3,0.6'", "-m")),
    Wrong("loss.alpha=interval(0,1)", "loss.alpha", ("one value", "'interval(0,1)'", "-m")),
    Wrong("loss.alpha=${nothing}", "loss", ("nothing",)),
    Wrong("loss._target_=os.system", "loss", ("os.system", "authorized")),
    Wrong("loss._target_=kdsweep.losses.nothing", "loss", ("Error loading 'kdsweep.losses.nothing'",)),
    Wrong("model._target_=my.network", "model", ("my.network", "KDSWEEP_TRUST")),
    Wrong(
        "model._target_=null",
        "model._target_",
        ("_target_ is the full name of a class or function", "got _target_=None"),
    ),
    Wrong("~loss", "loss", ("loss is chosen", "--help")),
    Wrong("hydra.run.dir=null", "hydra.run.dir", ("not Optional", "--help")),
    Wrong("hydra.mode=abc", "Invalid hydra.mode", ("'abc'", "MULTIRUN")),
    Wrong("hydra.job_logging.handlers.console.level=NOTHING", "Unable to configure handler", ("console",)),
    Wrong("--nothing", "unrecognized arguments", ("--nothing", "kdsweep --help")),
    Wrong("--cfg nothing", "argument --cfg", ("'nothing'", "kdsweep --help")),
    Wrong("--config-name nothing", "Cannot find primary config", ("'nothing'", "--help")),
    Wrong("~model", "model", ("model is chosen", "--help"), ("experiment=debug",)),
    Wrong("~loss._target_", "loss", ("loss is chosen", "--help")),
    Wrong("tracking=null", "tracking", ("group of keys", "tracking=None", "one by one")),
    Wrong("tracking=5", "tracking", ("5",)),
    Wrong("hydra/launcher=joblib -m seed=0,1", "hydra/launcher", ("'joblib'", "pip install hydra-joblib-launcher")),
    Wrong("hydra/sweeper=ax -m seed=0,1", "hydra/sweeper", ("'ax'", "pip install hydra-ax-sweeper")),
]

PLACES = [
    Wrong("tracking.uri=somewhere", "tracking.uri", ("SQLite", "'somewhere'")),
    Wrong("tracking.uri=ftp://host/x", "tracking.uri", ("SQLite", "'ftp://host/x'")),
    Wrong(("tracking.uri=''",), "tracking.uri", ("SQLite", "''")),
    Wrong("tracking.uri=sqlite:///", "tracking.uri", ("SQLite", "'sqlite:///'")),
    Wrong("tracking.uri=sqlite:///FILES/junk.db", "tracking.uri", ("junk.db", "Name another file")),
    Wrong("tracking.uri=sqlite:///FILES/other.db", "tracking.uri", ("not an MLflow store", "Name another file")),
    Wrong(f"tracking.uri=sqlite:////proc{MISSING}/mlflow.db", "tracking.uri", ("cannot be opened", "/proc")),
    Wrong("tracking.uri=sqlite:////dev/null", "tracking.uri", ("is a file", "/dev/null")),
    Wrong("tracking.uri=http://127.0.0.1:9", "tracking.uri", ("http://127.0.0.1:9", "cannot be opened")),
    Wrong("tracking.uri=http://me:geheim@127.0.0.1:9", "tracking.uri", ("http://me:***@127.0.0.1:9",)),
    Wrong("", "tracking.uri", ("SQLite", "'nonsense'"), env={"MLFLOW_TRACKING_URI": "nonsense"}),
    Wrong(f"paths.root=/proc{MISSING}", "No such file", ("/proc/no", "paths.root")),
    Wrong("paths.root=FILES/file", "Not a directory", ("FILES/file", "remove it", "paths.root")),
    Wrong("", "Not a directory", ("/dev/null", "paths.root"), env={"KDSWEEP_HOME": "/dev/null"}),
    Wrong("hydra.run.dir=FILES/file", "File exists", ("FILES/file", "remove it")),
    Wrong("tracking.uri=5", "tracking.uri", ("5",)),
    Wrong("tracking.uri=[]", "tracking.uri", ("[]",)),
    Wrong("tracking.experiment=null", "tracking.experiment", ("None",)),
    Wrong("tracking.experiment=''", "tracking.experiment", ("''",)),
    Wrong(f"tracking.experiment={'e' * 501}", "tracking.experiment", ("eee",)),
    Wrong("tracking.trial=abc", "tracking.trial", ("'abc'",)),
    Wrong("paths.root=null", "paths.root", ("None",)),
    Wrong("paths.cache=5", "paths.cache", ("5",)),
]

STUDIES = [
    *(
        Wrong((f"sweep.name={name}",), "sweep.name", ("plain name", shown, "letters, digits"), STUDY)
        for name, shown in [
            ("../x", "'../x'"),
            ("a/b", "'a/b'"),
            ("''", "''"),
            ("null", "None"),
            ('"two\nlines"', r"two\nlines"),
            ("'<script>'", "'<script>'"),
            (".hidden", "'.hidden'"),
        ]
    ),
    Wrong(f"sweep.name={'n' * 300}", "", ("nnn",), STUDY),
    Wrong("sweep=nothing", "sweep", ("no option 'nothing'", "alpha_tau")),
    Wrong("sweep.name=x", "sweep.name", ("no such key",)),
    Wrong("sweep.n_trials=0", "sweep.n_trials", ("n_trials >= 1", "n_trials=0"), STUDY),
    Wrong("sweep.n_trials=abc", "sweep.n_trials", ("'abc'", "Integer"), STUDY),
    Wrong("sweep.n_trials=null", "sweep.n_trials", ("None", "int"), STUDY),
    Wrong("sweep.confirm_seeds=-1", "sweep.confirm_seeds", ("confirm_seeds >= 0",), STUDY),
    Wrong("sweep.n_jobs=0", "sweep.n_jobs", ("n_jobs >= 1", "n_jobs=0"), STUDY),
    Wrong("sweep.executor=abc", "sweep.executor", ("workers", "'abc'"), STUDY),
    Wrong("sweep.restart=abc", "sweep.restart", ("fresh", "'abc'"), STUDY),
    Wrong("hydra/sweeper/sampler=best", "hydra/sweeper/sampler", ("no option 'best'", "tpe"), STUDY),
    Wrong("hydra/sweeper/pruner=best", "hydra/sweeper/pruner", ("no option 'best'", "median"), STUDY),
    Wrong("hydra.sweeper.direction=up", "hydra.sweeper.direction", ("maximize", "'up'"), STUDY),
    Wrong("paths.root=a,b", "paths.root", ("one value", "a,b"), STUDY),
    Wrong("nothing=interval(0,1)", "nothing", ("isn't there",), STUDY),
    Wrong("+beta=interval(0,1)", "beta", ("nothing reads",), STUDY),
    Wrong("optimizer.lr=-1", "optimizer", ("-1",), STUDY),
    Wrong("hydra.sweep.dir=FILES/file", "File exists", ("FILES/file", "remove it"), STUDY),
    Wrong("sweep.name='ünï'", "sweep.name", ("plain name",), STUDY),
    Wrong("sweep.baseline_seeds=-1", "sweep.baseline_seeds", ("seeds >= 0", "=-1"), STUDY),
    Wrong("sweep.seed=abc", "sweep.seed", ("'abc'",), STUDY),
    Wrong("sweep.seed=-1", "sweep.seed", ("-1",), STUDY),
    Wrong("loss.alpha=interval(0,2)", "loss.alpha", ("0 <= alpha <= 1", "2.0"), STUDY),
    Wrong("loss.alpha=choice(a,b)", "loss.alpha", ("0 <= alpha <= 1", "'a'"), STUDY),
    Wrong("seed=choice(-1,-2)", "seed", ("seed >= 0", "-1"), STUDY),
    Wrong("sweep.fidelity=0.5", "sweep.fidelity", ("fidelity is null", "0.5", "one search"), CONTEST),
    Wrong("sweep.confirm_until=9", "sweep.confirm_until", ("pictures or epochs", "=9"), ("sweep=data_hunger", *SHORT)),
    Wrong("sweep.start_from=other", "sweep.start_from", ("start_from is null", "'other'"), CONTEST),
    Wrong("sweep.shuffled=true", "sweep.shuffled", ("no control", "'shuffled'", "sweep.contenders"), CONTEST),
    Wrong("sweep.contenders=[kd]", "sweep.contenders", ("two contenders at least", "'kd'"), CONTEST),
    Wrong("sweep.against=[dkd]", "sweep.against", ("against in (ce, kd)", "'dkd'"), CONTEST),
]

GRIDS = [
    Wrong("-m loss=kd,nothing", "loss", ("no option 'nothing'", "kd")),
    Wrong("-m nothing=1,2", "nothing", ("no such key",)),
    Wrong("-m hydra.sweep.dir=/proc/x seed=1", "No such file", ("/proc/x",)),
    Wrong("-m loss.alpha=2,3", "loss.alpha", ("0 <= alpha <= 1", "alpha=2")),
    Wrong("-m loss.alpha=0.3,2", "loss.alpha", ("alpha=2", "job 1:")),
    Wrong("-m loss.alpha=0.3,0.6 +alpha=0.5", "alpha", ("nothing reads", "mean loss.alpha?", "job 0:")),
    Wrong("-m model.name=shufflenet_v2_x0_5,resnet19", "model.name", ("resnet18", "job 1:")),
    Wrong("-m seed=-1,-2", "seed", ("seed >= 0", "seed=-1")),
    Wrong("-m tracking.uri=x seed=1,2", "tracking.uri", ("SQLite", "'x'")),
]


def _report(words: str | tuple[str, ...], start: str, *parts: str, env: Mapping[str, str] = {}) -> Wrong:
    return Wrong(words, start, parts, (), "kdsweep-report", env)


def _ui(words: str | tuple[str, ...], start: str, *parts: str, env: Mapping[str, str] = {}) -> Wrong:
    return Wrong(words, start, parts, ("--no-browser",), "kdsweep-ui", env)


OTHERS = [
    _report("", "uri", "no MLflow store", "mlflow.db", "Make one with `kdsweep`"),
    _report("nothing", "uri", "no MLflow store"),
    _report("one two", "unrecognized arguments", "two", "kdsweep-report --help"),
    _report("--nothing", "unrecognized arguments", "--nothing", "kdsweep-report --help"),
    _report("--root /no/such", "uri", "/no/such/mlflow.db"),
    _report("--uri nonsense", "uri", "SQLite", "'nonsense'"),
    _report("--uri sqlite:///FILES/junk.db", "uri", "junk.db", "Name another file"),
    _report("--uri sqlite:///FILES/other.db", "uri", "not an MLflow store"),
    _report("--uri", "argument --uri", "expected one argument", "--help"),
    _report("", "uri", "'nonsense'", env={"MLFLOW_TRACKING_URI": "nonsense"}),
    _report("--plan", "uri", "no MLflow store", "--noise 0.2"),
    _report("--plan --noise abc", "argument --noise", "'abc'", "--help"),
    _report("--plan --noise -1", "--noise", "noise > 0"),
    _report("--plan --noise nan", "--noise", "noise > 0", "nan"),
    _report("--plan --noise inf", "--noise", "noise > 0", "inf"),
    _report("--plan --noise 0.2 --difference 0", "--difference", "difference > 0"),
    _report("--plan --noise 0.2 --trials 0", "--trials", "trials >= 1"),
    _report("--plan --noise 0.2 --trials 1.5", "argument --trials", "'1.5'"),
    _report("--plan --noise 0.2 --jobs -5", "--jobs", "jobs >= 1"),
    _report("--plan --noise 0.2 --seconds nan", "--seconds", "seconds > 0"),
    _ui("", "uri", "no MLflow store", "Make one with `kdsweep`"),
    _ui("extra", "unrecognized arguments", "extra", "kdsweep-ui --help"),
    _ui("--port abc", "argument --port", "'abc'", "--help"),
    _ui("--uri nonsense", "uri", "SQLite", "'nonsense'"),
    _ui("--uri ftp://me:geheim@host/x", "uri", "ftp://me:***@host/x"),
    _ui("--root FILES/file", "uri", "no MLflow store"),
    _ui("", "uri", "'nonsense'", env={"MLFLOW_TRACKING_URI": "nonsense"}),
]

KINDS = [SCALARS, LEARNING, NETWORKS, WEIGHTS, DATA, COMMAND_LINE, PLACES, STUDIES, GRIDS, OTHERS]
TABLE = [case for kind in KINDS for case in kind]
# Kinds that are about the values of keys.
VALUES = [SCALARS, LEARNING, NETWORKS, WEIGHTS, DATA]
# The first of each kind, and of each command.
FIRST = [*(kind[0] for kind in KINDS), next(case for case in OTHERS if case.program == "kdsweep-ui")]


class _Code:
    """What a pickle can hold: a call that is made where it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._path}",)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, weights and databases with something wrong, each under the name of its fault."""
    root = tmp_path_factory.mktemp("files")
    _make_pictures(root)
    _make_weights(root)
    (root / "file").write_text("a file")
    (root / "empty").mkdir()
    (root / "junk.db").write_bytes(b"no database" * 100)
    with closing(sqlite3.connect(root / "other.db")) as database:
        database.execute("CREATE TABLE addresses (name)")
    return root


def _make_pictures(root: Path) -> None:
    for name, test_class in (("differ", "cow"), *((name, "dog") for name in ("unreadable", "half", "pipe", "link"))):
        for split, kinds in (("train", ("cat", "dog")), ("test", ("cat", test_class))):
            for kind in kinds:
                (root / name / split / kind).mkdir(parents=True)
                for i in range(3):
                    Image.new("RGB", (8, 8), (40 * i, 9, 9)).save(root / name / split / kind / f"{i}.png")
    for split in ("train", "test"):
        shutil.copytree(root / "half" / split, root / "nested" / split / "images")
    (root / "unreadable" / "train" / "cat" / "broken.png").write_bytes(b"no picture")
    Image.effect_noise((64, 64), 50).save(root / "half" / "train" / "cat" / "0.png")
    _halve(root / "half" / "train" / "cat" / "0.png")
    os.mkfifo(root / "pipe" / "train" / "cat" / "pipe.png")
    (root / "link" / "train" / "cat" / "link.png").symlink_to(MISSING)


def _make_weights(root: Path) -> None:
    state = resnet18(num_classes=7).state_dict()
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7), "other": torch.zeros(2)}, root / "misfit.safetensors")
    save_file(state, root / "resnet18.safetensors")
    save_file({**state, "conv1.weight": torch.full((64, 3, 7, 7), float("nan"))}, root / "nan.safetensors")
    save_file({**state, "conv1.weight": torch.ones(64, 3, 7, 7).int()}, root / "whole.safetensors")
    save_file(state, root / "half.safetensors")
    torch.save(state, root / "half.pth")
    torch.save(_Code(root / "executed"), root / "code.pth")
    torch.save({"weight": _Code(root / "executed")}, root / "code_in_a_dict.pt")
    (root / "pickle.pth").write_bytes(pickle.dumps(_Code(root / "executed")))
    torch.save([1, 2], root / "list.pth")
    torch.save({"model": state, "model_ema": state}, root / "two.pth")
    torch.save({1: torch.zeros(2)}, root / "numbered.pth")
    for name in ("garbage.pth", "garbage.safetensors", "two\nlines.pth"):
        (root / name).write_bytes(b"garbage\x00\xff" * 20)
    for name in ("empty.pth", "empty.safetensors"):
        (root / name).touch()
    for name in ("half.pth", "half.safetensors"):
        _halve(root / name)
    (root / "folder.pth").mkdir()
    os.mkfifo(root / "pipe.pth")


def _halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def run(program: str, words: Sequence[str], root: Path, env: Mapping[str, str]) -> tuple[int, str]:
    """Runs a command to its end, in a process of its own; returns its exit status and what it wrote to stderr."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    err = root.with_name("err")
    process = context.Process(target=_run, args=(program, words, root, env, err))
    process.start()
    process.join(SECONDS)
    assert process.exitcode is not None, f"hangs: {err.read_text()}"
    return process.exitcode, err.read_text()


def _run(program: str, words: Sequence[str], root: Path, env: Mapping[str, str], err: Path) -> None:
    """The command's process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.environ.update(env)
    os.chdir(root)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [program, *words]
    sys.exit(import_module(PROGRAMS[program]).main())


def needs_a_process(case: Wrong) -> bool:
    """Returns whether a case is the first of its kind, or about the command line itself, places or devices."""
    words = case.words if isinstance(case.words, str) else " ".join(case.words)
    itself = case in COMMAND_LINE and (words.startswith("-") or not words.isascii() or not words.isprintable())
    return case in [*FIRST, *PLACES] or itself or any(text in words for text in ("/pipe", "/dev/"))


def leftovers(folder: Path) -> list[Path]:
    """Hidden files below a folder: what a writer that was cut short leaves, unlike Hydra's notes."""
    return [path for path in folder.rglob(".*") if path.name != ".hydra"]


@pytest.mark.parametrize("case", [c if not isinstance(c, Wrong) else pytest.param(c, id=_id(c)) for c in TABLE])
def test_a_wrong_input_is_one_line_and_leaves_nothing(case: Wrong, files: Path, tmp_path: Path) -> None:
    """The exit status, one line with key, rule and remedy; no trace, no run, no file half-written or elsewhere."""
    words = case.words.split() if isinstance(case.words, str) else case.words
    words = [word.replace("FILES", str(files)) for word in (*case.base, *words)]
    root = tmp_path / "root"
    root.mkdir()
    if needs_a_process(case):
        status, err = run(case.program, words, root, {"KDSWEEP_HOME": str(root), **case.env})
    elif any(case in kind for kind in VALUES):
        done = train_here(words, root)
        status, err = done.status, done.err
    else:
        done = run_here(words, root, case.env, case.program, PROGRAMS[case.program])
        status, err = done.status, done.err
    assert err.count("\n") == 1, err
    assert err.startswith(f"{case.program}: {case.start}"), err
    assert [part for part in case.parts if part.replace("FILES", str(files)) not in err] == [], err
    assert err.rstrip("\n").isprintable()
    assert status == case.status
    assert "geheim" not in err
    assert statuses(root) == []
    assert leftovers(root) == []
    assert {path.name for path in tmp_path.iterdir()} <= {"root", "err"}


def test_the_table_is_as_long_as_was_promised() -> None:
    """At least 80 wrong inputs, each once, in all three commands."""
    cases = [case.values[0] if not isinstance(case, Wrong) else case for case in TABLE]
    typed = [(case.program, case.base, case.words, tuple(case.env)) for case in cases]
    assert len(set(typed)) == len(typed) >= 80
    assert {case.program for case in cases} == set(PROGRAMS)


def test_no_code_in_a_file_of_weights_was_run(files: Path, tmp_path: Path) -> None:
    """What the pickles of the table would do when they are read the usual way hasn't happened."""
    for name in ("code.pth", "code_in_a_dict.pt", "pickle.pth"):
        words = (*SHORT, "model.name=resnet18", f"model.weights={files / name}")
        assert run("kdsweep", words, tmp_path, {"KDSWEEP_HOME": str(tmp_path)})[0] == 2
    assert not (files / "executed").exists()
    pickle.loads((files / "pickle.pth").read_bytes())
    assert (files / "executed").exists()
