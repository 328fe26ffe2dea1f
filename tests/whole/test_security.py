"""Claims about what kdsweep doesn't do: run code from files, tell secrets, listen to strangers, leave its folder."""

from __future__ import annotations

import ast
import base64
import json
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import needs
import psutil
import pytest
import servers
import torch
from commands import SHORT, Outcome, kdsweep
from in_process import run_here
from jobs import application
from mlflow_servers import MlflowServer
from omegaconf import OmegaConf
from records import fresh, pruned, record, summary, trial
from torchvision.datasets import CIFAR10, CIFAR100

import kdsweep as package
from kdsweep.commands import export, ui
from kdsweep.config import build
from kdsweep.config.saved_config import parse
from kdsweep.execution.executors import open_executor
from kdsweep.report import writing
from kdsweep.report.figures import all_figures
from kdsweep.report.html import embedded, render
from kdsweep.system.errors import UserError
from kdsweep.system.tensor_files import read_tensors
from kdsweep.tracking.run_records import StudyRecord

SECRET = "geheim4711"

# Messages between a command and processes that it has started itself.
PICKLES = {"serialization"}


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._marker,)


def told(root: Path, *outcomes: Outcome) -> list[str]:
    """Where the secret stands: in which files below a folder, and in which lines of commands' outputs."""
    holders = [path for path in root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    lines = [line for done in outcomes for line in (done.out + done.err).splitlines() if SECRET in line]
    return [str(path.relative_to(root)) for path in holders] + lines


# Code in files


def test_no_module_reads_what_can_run_code() -> None:
    """No pickle, no unsafe YAML, no eval; torch.load with weights_only; no shell."""
    wrong = {"pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load", "np.load"}
    wrong |= {"numpy.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system"}
    found = []
    for path in Path(package.__file__).parent.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name, words = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
            unsafe = name == "torch.load" and words.get("weights_only") != "True"
            if (name in wrong and path.stem not in PICKLES) or unsafe or words.get("shell") == "True":
                found.append(f"{path.name}:{call.lineno}: {name}")
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("key", ["model", "teacher.network"])
def test_a_pickle_as_weights_is_refused(key: str, suffix: str, tmp_path: Path) -> None:
    """The command ends in one line, and the code in the file hasn't run."""
    path, marker = tmp_path / f"weights{suffix}", tmp_path / "marker"
    (torch.save if suffix != ".safetensors" else lambda o, p: p.write_bytes(pickle.dumps(o)))(Evil(marker), path)
    done = run_here((*SHORT, f"{key}.weights={path}"), tmp_path / "root")
    assert done.status == 2
    assert done.error.startswith(f"kdsweep: {key}.weights: ")
    assert not marker.exists()


@pytest.mark.parametrize("reader", [CIFAR10, CIFAR100])
def test_other_pickles_than_the_published_are_not_read_as_cifar(reader: Any, tmp_path: Path) -> None:
    """CIFAR comes as pickles, in a folder that a user can name: one of another MD5 isn't opened."""
    folder, marker = tmp_path / reader.base_folder, tmp_path / "marker"
    folder.mkdir()
    for name, _ in [*reader.train_list, *reader.test_list, (reader.meta["filename"], "")]:
        (folder / name).write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        reader(tmp_path)
    assert not marker.exists()


def test_a_pickle_in_the_cache_is_a_damaged_file(tmp_path: Path) -> None:
    """Tables, heads, decoded pictures and checkpoints are safetensors: anything else is made again."""
    path, marker = tmp_path / "pass-0000.safetensors", tmp_path / "marker"
    path.write_bytes(pickle.dumps(Evil(marker)))
    assert read_tensors(path) is None
    assert not marker.exists()


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "builtins.eval", "pickle.loads", "torch.load", "kdsweepy.losses.kd", "hydra.utils.instantiate"),
        # By way of a module that may be named.
        *(
            "kdsweep.data.np.load",
            "kdsweep.numerics.weight_files.torch.load",
            "torch.optim.optimizer.functools.partial",
        ),
    ],
)
def test_a_configuration_names_no_foreign_code(target: str) -> None:
    """A _target_ is kdsweep's own or an optimizer of torch's, by whatever name it is called."""
    with pytest.raises(UserError, match=r"^loss: .*(KDSWEEP_TRUST|cannot be authorized)"):
        build.component(OmegaConf.create({"loss": {"_target_": target}}), "loss")


def test_a_saved_configuration_runs_no_code(tmp_path: Path) -> None:
    """A config.yaml of somebody else's may hold bytes, and name functions of kdsweep that take them for a pickle."""
    marker = tmp_path / "marker"
    message = base64.b64encode(pickle.dumps(Evil(marker))).decode()
    text = f"loss:\n  _target_: kdsweep.execution.serialization.received_outcome\n  message: !!binary {message}\n"
    with suppress(UserError, AssertionError):
        build.component(OmegaConf.create(parse(text).config), "loss")
    assert not marker.exists()


@pytest.mark.parametrize(
    "target",
    [
        "kdsweep.commands.ui.serve",
        "kdsweep.system.tensor_files.write_tensors",
        "kdsweep.execution.serialization.packed_task",
    ],
)
def test_a_configuration_calls_components_alone(target: str) -> None:
    """Of kdsweep's functions only those that are made for it can be named."""
    with pytest.raises(UserError, match="KDSWEEP_TRUST"):
        build.component(OmegaConf.create({"loss": {"_target_": target}}), "loss")


# Secrets


HIDDEN = (
    *(f"+hub_token={SECRET}", f"+mirror='https://me:{SECRET}@host/x'", f"+auth={{user:me,password:{SECRET}}}"),
    # Nothing else reads them.
    "hydra.help.footer='${hub_token} ${mirror} ${auth}'",
)


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("-m", "seed=0,1"), ("optimizer.lr=1e15",)])
def test_a_run_leaves_no_secret(words: tuple[str, ...], tmp_path: Path) -> None:
    """Not in parameters, artifacts, tags, log files, .hydra, multirun.yaml or on the terminal; a failed run neither."""
    done = kdsweep(*SHORT, "epochs=1", *HIDDEN, *words, root=tmp_path)
    assert done.status == (1 if "optimizer.lr=1e15" in words else 0), done.err
    assert told(tmp_path, done) == []


@pytest.mark.all
@pytest.mark.slow
def test_a_study_on_a_server_leaves_no_secret(tmp_path: Path, postgresql: servers.PostgreSQL) -> None:
    """The passwords of Optuna's database and of MLflow's stay out of every file, worker and report."""
    psycopg = needs.package("psycopg")
    with closing(psycopg.connect(postgresql.uri, autocommit=True)) as connection:
        connection.execute("CREATE DATABASE trials")
        connection.execute("CREATE DATABASE runs")
    database = postgresql.uri.replace("@", f":{SECRET}@").rpartition("/")[0]
    sizes = ("epochs=1", "sweep.n_trials=1", "sweep.baseline_seeds=1", "sweep.confirm_seeds=1", "sweep.n_jobs=2")
    stores = (f"hydra.sweeper.storage='{database}/trials'", f"tracking.uri='{database}/runs'")
    done = kdsweep(*SHORT, "sweep=alpha_tau", *sizes, *stores, *HIDDEN, root=tmp_path)
    assert done.status == 0, done.err
    assert told(tmp_path, done) == []


@pytest.mark.slow
def test_a_servers_credentials_stay_out_of_runs(tmp_path: Path) -> None:
    """MLFLOW_TRACKING_URI may hold a password: it is used, and told to nobody."""
    server, root = MlflowServer(tmp_path), tmp_path / "root"
    server.start()
    try:
        env = {"MLFLOW_TRACKING_URI": server.uri.replace("//", f"//me:{SECRET}@"), "MLFLOW_TRACKING_TOKEN": SECRET}
        done = kdsweep(*SHORT, "epochs=1", root=root, env=env)
    finally:
        server.kill()
    assert done.status == 0, done.err
    assert told(tmp_path, done) == []


REFUSED = [
    (f"tracking.uri=foo://me:{SECRET}@127.0.0.1:1/x",),
    (f"tracking.uri=http://me:{SECRET}@127.0.0.1:1/x",),
    (f"token={SECRET}",),
    (f"data.token={SECRET}",),
    (f"+loss.token={SECRET}",),
    (f"+x.password=[{SECRET}",),
    (f"+token={SECRET}", "epochs=0"),
    (f"+token={SECRET}", "data=nowhere"),
    (f"model.weights=https://me:{SECRET}@host/weights.pth",),
    (f"data.root=s3://me:{SECRET}@host/x", "data=image_folder"),
]


@pytest.mark.slow
@pytest.mark.parametrize("words", REFUSED)
def test_errors_tell_no_secret(words: tuple[str, ...], tmp_path: Path) -> None:
    """The line that says what is wrong quotes values, but no credentials."""
    done = run_here((*SHORT, *words), tmp_path)
    assert done.status == 2
    assert SECRET not in done.out + done.err


# Strangers


def test_the_ui_listens_on_this_machine_alone() -> None:
    """Unless --host says otherwise."""
    assert ui.parser().parse_args([]).host == "127.0.0.1"
    words = ui.command("sqlite:///x.db", "127.0.0.1", 5000)
    assert words[words.index("--host") + 1] == "127.0.0.1"


@pytest.mark.slow
def test_the_ui_hides_passwords_from_other_users() -> None:
    """Everyone may read a command line; the environment, its owner alone."""
    uri = f"postgresql://me:{SECRET}@host/x"
    assert not any(SECRET in word for word in ui.command(uri, "127.0.0.1", 5000))
    assert ui.environment(uri)["MLFLOW_BACKEND_STORE_URI"] == uri


def listening(process: psutil.Process) -> Iterator[str]:
    """The addresses on which a process and its descendants listen."""
    for one in (process, *process.children(recursive=True)):
        with one.oneshot():
            yield from (c.laddr.ip for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN)


@pytest.mark.all
@pytest.mark.slow
def test_ray_listens_on_the_loopback_alone(tmp_path: Path) -> None:
    """Whoever reaches Ray's ports can run code: nobody on the network does. Nothing of this is left behind."""
    needs.package("ray")
    before = dict(os.environ)
    with application(tmp_path) as task, closing(open_executor("ray", task, None, 1, device="cpu")):
        found = {address.removeprefix("::ffff:") for address in listening(psutil.Process())}
        assert found == {"127.0.0.1"}
    assert {key: value for key, value in os.environ.items() if "CLUSTER" in key} == {
        key: value for key, value in before.items() if "CLUSTER" in key
    }


# Names


BAD_NAMES = ["../../evil", "/tmp/evil", "a/../../evil", "..", ".", "a/b", "~", "$(touch evil)", "a;b", ".hidden", "-rf"]


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_study_is_no_path(name: str, tmp_path: Path) -> None:
    """A study's name is its folder's: nothing else than a plain name is taken."""
    root = tmp_path / "a" / "b" / "root"
    done = run_here((*SHORT, "sweep=alpha_tau", f"sweep.name='{name}'", "sweep.n_trials=1"), root)
    assert done.status == 2
    assert "a plain name" in done.error
    assert [path.name for path in tmp_path.rglob("*") if not path.is_relative_to(root)] == ["a", "b"]


@pytest.mark.parametrize("name", [*BAD_NAMES, "", "\x00", "a\nb", "é" * 300, "x" * 300, "CON", "<b>", "...", "____"])
def test_names_from_a_store_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    """Runs may be named by anyone who can write to the store: reports and exports stay one folder below theirs."""
    run = replace(record("distill"), name=name, id="../../0123456789")
    assert export.default_folder(tmp_path, run).resolve().parent == tmp_path / "exports"
    assert not export.default_folder(tmp_path, run).name.startswith((".", "-"))
    export.default_folder(tmp_path, run).mkdir(parents=True)
    assert writing.default_folder(tmp_path, StudyRecord(run, ())).resolve().parent == tmp_path / "reports"


# Pages


MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{7*7}}$\\frac"


class Elements(HTMLParser):
    """What stands in a page besides text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {tag} | {f"{tag}.{name}" for name, _ in attrs if name.startswith("on") or name == "srcdoc"}


def elements(page: str) -> set[str]:
    parser = Elements()
    parser.feed(page)
    return parser.found


@pytest.mark.slow
def test_a_report_takes_no_markup_from_a_store() -> None:
    """Names, parameters, tags and statuses are texts, on the page and in its figures."""

    def hostile(run: Any) -> Any:
        params = {**run.params, "data._target_": MARKUP, "model.name": MARKUP, "optimizer.lr": MARKUP}
        return replace(run, name=MARKUP, params=params, status=run.status)

    runs = [trial(0, 0.5, 4), trial(1, 0.7, 3), pruned(2, 2), record("teacher"), record(MARKUP)]
    runs += [*fresh("scratch", [0.9, 0.91, 0.9]), *fresh("distill", [0.92, 0.93, 0.921])]
    clean, dirty = summary(*runs), summary(*map(hostile, runs))
    parent = replace(dirty.study.parent, name=MARKUP)
    dirty = replace(dirty, comparison=replace(dirty.comparison, study=replace(dirty.study, parent=parent)))
    page = render(dirty, list(all_figures.charts(dirty)), lambda run: f"http://{run.name}")
    assert elements(page) <= elements(render(clean, list(all_figures.charts(clean)))) | {"li", "ul", "a"}
    assert "alert(1)" in page
    assert "{{7*7}}" in page
    for _, figure in all_figures.draw(dirty):
        figure.canvas.draw()


def test_every_template_escapes() -> None:
    """The report's page escapes by itself; what is marked as safe in `html.py` is ours, and JSON without any `<`."""
    assert not re.search("[<>&]", embedded({MARKUP: [MARKUP, "</script>"]}))
    assert json.loads(embedded({MARKUP: [MARKUP]})) == {MARKUP: [MARKUP]}
    page = (Path(package.__file__).parent / "report/templates/report.html.jinja").read_text()
    assert not re.search(r"\|\s*safe\b|autoescape\s+false|Markup", page)
