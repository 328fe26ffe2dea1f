"""Claims about `kdsweep-ui`: the real server, on a free port of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import needs
import optuna
import pytest

from kdsweep.commands import ui
from kdsweep.system.errors import UserError
from kdsweep.tracking import ui_columns
from kdsweep.tracking.location import store_uri
from kdsweep.tracking.store import Store

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning:mlflow.store.tracking.sqlalchemy_store",
)

COMMAND = [sys.executable, "-m", "kdsweep.commands.ui", "--no-browser"]
VERSION = tuple(int(part) for part in mlflow.__version__.split(".")[:2])
ORDERS_COLUMNS = (3, 15)  # MLflow 3.13 and older ignore the order and the widths that a view asks for


@pytest.fixture(scope="session", autouse=True)
def no_other_store() -> Iterator[None]:
    """Tests write to no store that the environment names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A root folder with a store, and the id of a run in it that has an artifact."""
    root = tmp_path_factory.mktemp("ui")
    with Store(store_uri(None, root)).run("shown", tags={"kdsweep.role": "scratch"}, params={"seed": 0}) as run:
        run.text("config.yaml", "seed: 0\n")
    return root, run.id


@contextlib.contextmanager
def started(root: Path) -> Iterator[subprocess.Popen[str]]:
    """A `kdsweep-ui` that has just begun to start its server."""
    command = [*COMMAND, "--root", str(root), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert str(root) in line_of(process)
            yield process
        finally:
            process.terminate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def page_of(process: subprocess.Popen[str]) -> str:
    """Waits until it says that the server answers, and with which page."""
    found = re.match(r"Open (http://127\.0\.0\.1:\d+\S*) ", line_of(process))
    assert found is not None
    return found[1]


def address_of(process: subprocess.Popen[str]) -> str:
    """Waits until it says that the server answers, and where."""
    return page_of(process).partition("/#")[0]


def writes_through_a_server(address: str, root: Path) -> None:
    """A server is a store like any other: a study written to it reads back, and its artifacts lie beside the file."""
    served = Store(address, experiment="served")
    with served.run("study", tags={"kdsweep.role": "study"}, params={"alpha": 0.5}) as run:
        run.log({"val/accuracy": 0.5}, step=1)
        run.text("config.yaml", "seed: 1\n")
    assert served.group("folder", "multirun") == served.group("folder", "multirun")
    study = Store(store_uri(None, root), experiment="served").study("study")
    assert (study.parent.status, study.parent.params) == ("FINISHED", {"alpha": "0.5"})
    assert served.history(run.id, "val/accuracy") == [(1, 0.5)]
    assert [found.read_text() for found in (root / "mlartifacts").rglob(f"{run.id}/**/config.yaml")] == ["seed: 1\n"]


def get(address: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=60) as answer:
        return str(answer.read().decode())


def still_there(folder: Path) -> bool:
    """Whether a server of the folder's store runs on this machine: its environment tells."""
    wanted = str(folder).encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.name != str(os.getpid()) and wanted in (process / "environ").read_bytes():
                return True
    return False


@pytest.mark.slow
def test_the_ui_is_a_server_that_leaves_no_process(written: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It serves its page, a run with its artifact, and other programs' runs; after SIGTERM nothing of it runs."""
    root, run_id = written
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with started(root) as process:
        address = address_of(process)
        assert get(f"{address}/health") == "OK"
        assert "<html" in get(f"{address}/")
        assert '"shown"' in get(f"{address}/api/2.0/mlflow/runs/get?run_id={run_id}")
        assert get(f"{address}/get-artifact?path=config.yaml&run_uuid={run_id}") == "seed: 0\n"
        writes_through_a_server(address, root)
        assert still_there(root)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not still_there(root)
        with pytest.raises(urllib.error.URLError):
            get(f"{address}/health")


@pytest.mark.slow
def test_it_opens_the_table_of_the_experiment_in_use_and_killed_leaves_no_server(tmp_path: Path) -> None:
    """Of three: an older one that has the latest run, a newer one, and one of another program.

    SIGKILL, which nothing can catch, takes the server with it (on Linux, which alone tells a process that its parent
    was killed).
    """
    uri = store_uri(None, tmp_path)
    used = Store(uri, experiment="used")
    newer = Store(uri, experiment="newer")
    for store in (used, newer, used):
        with store.run("run", tags={"kdsweep.role": "scratch"}, params={}):
            time.sleep(0.01)
    client = mlflow.MlflowClient(tracking_uri=uri)
    client.create_run(client.create_experiment("others"))
    with started(tmp_path) as process:
        address, _, page = page_of(process).partition("/#/experiments/")
        experiment, _, view = page.partition("/runs?")
        assert view == "workflowType=machine_learning&viewStateShareKey=kdsweep"
        answer = json.loads(get(f"{address}/api/2.0/mlflow/experiments/get?experiment_id={experiment}"))
        assert answer["experiment"]["name"] == "used"
        tags = {tag["key"]: tag["value"] for tag in answer["experiment"]["tags"]}
        state = json.loads(tags["mlflow.sharedViewState.kdsweep"])
        assert state["orderByKey"] in state["selectedColumns"]
        assert "params.`loss.alpha`" in state["selectedColumns"]
        if sys.platform == "linux":
            process.kill()
            process.wait(60)
            end = time.monotonic() + 60
            while still_there(tmp_path) and time.monotonic() < end:
                time.sleep(0.1)
            assert not still_there(tmp_path)


def test_an_experiment_that_was_there_before_gets_the_view(tmp_path: Path) -> None:
    """Made by somebody else, or by an earlier version with other columns."""
    uri = store_uri(None, tmp_path)
    Store(uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    number = client.create_experiment("theirs", tags={ui_columns.TAG: "{}"})
    Store(uri, experiment="theirs")
    assert client.get_experiment(number).tags[ui_columns.TAG] == ui_columns.TEXT


def test_without_an_answer_there_is_no_table_to_open() -> None:
    """The UI then opens as MLflow shows it."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    assert ui.viewed_experiment("127.0.0.1", port) is None


def test_mlflows_page_still_knows_shared_views() -> None:
    """They are no part of its interface for programs: this says when an upgrade drops them or renames their parts."""
    scripts = (Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js").glob("*.js")
    text = "".join(path.read_text(encoding="utf-8", errors="replace") for path in scripts)
    for part in (
        '"mlflow.sharedViewState."',
        '"viewStateShareKey"',
        'MACHINE_LEARNING="machine_learning"',
        # What a view may hold.
        '["searchFilter","orderByKey","orderByAsc"',
        '"selectedColumns"',
        *(['"columnOrder","columnWidths"'] if VERSION >= ORDERS_COLUMNS else []),
        '"compareRunCharts","compareRunSections"',
        *('"groupBy"', '"useGroupedValuesInCharts"', '"runsHiddenMode"', 'SHOWALL="SHOW_ALL"'),
        # The parts of a chart and of a section, and the names of MLflow's own columns.
        *("selectedMetricKeys", "metricSectionId", "xAxisScaleType", ".columns", 'LINE="LINE"'),
        *('"Run Name"', 'field:"runDateAndNestInfo"', 'field:"duration"'),
    ):
        assert part in text


@pytest.mark.slow
def test_a_start_that_is_interrupted_leaves_no_process(written: tuple[Path, str]) -> None:
    """Ctrl-C before the server answers ends what has started."""
    root, _ = written
    with started(root) as process:
        while not still_there(root):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not still_there(root)


# optuna-dashboard


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A folder with two studies; the second has a trial."""
    for name in ("older", "later"):
        (tmp_path / "studies" / name).mkdir(parents=True)
        study = optuna.create_study(storage=f"sqlite:///{tmp_path}/studies/{name}/optuna.db", study_name=name)
    study.add_trial(optuna.trial.create_trial(value=0.5))
    os.utime(tmp_path / "studies" / "older" / "optuna.db", (1, 1))
    return tmp_path


def test_the_storage_of_a_study_is_found(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, by its URL, or as the latest; what isn't there is an error that names what is."""
    monkeypatch.setattr(ui.importlib.util, "find_spec", lambda name: name)
    assert ui.optuna_storage(studies, "") == f"sqlite:///{studies}/studies/later/optuna.db"
    older = f"sqlite:///{studies}/studies/older/optuna.db"
    assert ui.optuna_storage(studies, "older") == ui.optuna_storage(Path(), older) == older
    assert ui.optuna_storage(Path(), "postgresql://me@host/trials") == "postgresql://me@host/trials"
    for missing in ("other", f"sqlite:///{studies}/none.db"):
        with pytest.raises(UserError, match=r"--optuna: there is no study .*there are: older, later\)"):
            ui.optuna_storage(studies, missing)


def test_without_optuna_dashboard_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit status 2."""
    monkeypatch.setattr(ui.importlib.util, "find_spec", lambda _: None)
    assert ui.main(["--optuna", "--root", str(tmp_path)]) == 2
    assert re.fullmatch(r"kdsweep-ui: --optuna: .*pip install 'kdsweep\[dashboard\]'\n", capsys.readouterr().err)


@pytest.mark.all
@pytest.mark.slow
def test_optunas_dashboard_is_served(studies: Path) -> None:
    """It serves its page and the latest study, and ends with SIGTERM."""
    needs.package("optuna_dashboard")
    command = [*COMMAND, "--root", str(studies), "--port", "0", "--optuna"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            page = page_of(process)
            address = page.removesuffix("/dashboard/studies/1")
            assert "<html" in get(page)
            told = json.loads(get(f"{address}/api/studies"))
            assert [study["study_name"] for study in told["study_summaries"]] == ["later"]
        finally:
            process.terminate()
        assert process.wait(60) == 0


def test_a_missing_store_names_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit status 2."""
    assert ui.main(["--uri", f"sqlite:///{tmp_path}/mlflow.db"]) == 2
    expected = f"kdsweep-ui: uri: There is no MLflow store at {tmp_path}/mlflow.db. Make one with `kdsweep`, or name "
    assert capsys.readouterr().err == f"{expected}another.\n"


def test_a_uri_that_names_no_store_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit status 2."""
    assert ui.main(["--uri", "mlruns"]) == 2
    assert re.fullmatch(r"kdsweep-ui: uri: uri must name .* but got 'mlruns'.*\n", capsys.readouterr().err)


def test_a_port_in_use_is_refused(written: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    """One line with the address, exit status 2; a host or number that cannot be listened on likewise."""
    uri = store_uri(f"sqlite:///{written[0]}/mlflow.db", Path())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert ui.main(["--uri", uri, "--port", str(port)]) == 2
    expected = rf"kdsweep-ui: port: Cannot listen on 127.0.0.1:{port} \(Address already in use\). Choose .*\n"
    assert re.fullmatch(expected, capsys.readouterr().err)
    assert ui.main(["--uri", uri, "--port", "70000"]) == 2
    assert capsys.readouterr().err == "kdsweep-ui: port: `0 <= port <= 65535` must hold, but got port=70000.\n"
    assert ui.main(["--uri", uri, "--host", "203.0.113.1"]) == 2
    assert re.fullmatch(r"kdsweep-ui: port: Cannot listen on 203.0.113.1:5000 .*\n", capsys.readouterr().err)


def test_a_server_is_named_and_not_served_again(capsys: pytest.CaptureFixture[str]) -> None:
    """Its address, without the password."""
    assert ui.main(["--uri", "https://me:secret@host:5000"]) == 0
    assert "https://me:***@host:5000" in capsys.readouterr().out


def test_a_password_is_on_no_command_line() -> None:
    """A database's URI goes through the environment, which only its owner can read."""
    uri = "postgresql://me:secret@host/runs"
    assert "secret" not in " ".join(ui.command(uri, "127.0.0.1", 5000))
    assert ui.environment(uri)["MLFLOW_BACKEND_STORE_URI"] == uri
