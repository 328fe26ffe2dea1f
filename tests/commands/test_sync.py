"""Claims about a real MLflow server that goes away, and about `kdsweep-sync`, which sends what it didn't take."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
from commands import SHORT, Command
from mlflow_servers import MlflowServer, mlflow_server

from kdsweep.commands import sync
from kdsweep.system.errors import RunError, UserError
from kdsweep.system.processes import this_process
from kdsweep.tracking import sender, sending
from kdsweep.tracking.location import offline_uri, store_uri
from kdsweep.tracking.run_writer import Run
from kdsweep.tracking.sender import Waiting
from kdsweep.tracking.store import Store

pytestmark = pytest.mark.slow

# `commands._run` itself is replaced in a test.
run_command = commands._run

DISTILL = {"kdsweep.role": "distill"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """Starts one server for all tests, since that takes seconds; each test leaves it as it was."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs has two seconds to answer, and the end of a run waits for three."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setattr(sender, "SLOW_SECONDS", 0.5)
    monkeypatch.setattr("kdsweep.tracking.store.REMOTE", Waiting(call_s=0.0, end_s=3.0, killed_s=1.0))


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def artifacts(uri: str, run_id: str, folder: str | None = None) -> set[str]:
    """Returns the paths of all artifacts of a run."""
    found = client(uri).list_artifacts(run_id, folder)
    inside = [artifacts(uri, run_id, item.path) for item in found if item.is_dir]
    return {item.path for item in found if not item.is_dir}.union(*inside)


def write(run: Run, source: Path) -> None:
    """Writes one of everything but metrics."""
    run.datasets("digits", "/data/digits", "ab" * 32, {"training": {"pictures": 3}})
    run.tag({"kdsweep.weights": "abc"})
    run.text("config.yaml", "seed: 0\n")
    run.file(source, "kept/model.bin")


def complete(uri: str, run_id: str, steps: int) -> None:
    """Claims that a run is at the server with all that `write` and `steps` epochs left."""
    run = client(uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "0"}
    assert run.data.tags["kdsweep.weights"] == "abc"
    history = client(uri).get_metric_history(run_id, "val/accuracy")
    assert [(point.step, point.value) for point in history] == [(step, step / 100) for step in range(steps)]
    assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["digits"]
    assert artifacts(uri, run_id) == {"config.yaml", "kept/model.bin"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\x00\x01" * 1000)
    return path


# Outages


def test_an_outage_in_the_middle_costs_nothing(
    server: MlflowServer, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server hangs, or is killed and started again: no call waits, and no metric is lost."""
    monkeypatch.setattr("kdsweep.tracking.store.REMOTE", Waiting(call_s=0.0, end_s=60.0, killed_s=1.0))
    store = Store(server.uri, unsent=tmp_path / "unsent")
    slowest = 0.0
    with store.run("outage", tags=DISTILL, params={"seed": 0}) as run:
        for step in range(40):
            start = time.monotonic()
            run.log({"val/accuracy": step / 100}, step)
            run.flush()
            if step == 20:
                write(run, weights)
            slowest = max(slowest, time.monotonic() - start)
            if step == 10:
                server.hang()
            if step == 25:
                server.kill()
        assert slowest < 1
        server.start()
    complete(server.uri, run.id, 40)
    assert not (tmp_path / "unsent").exists()


def test_a_server_that_is_gone_for_good_costs_no_result(
    server: MlflowServer, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends well; a line says where its rest is. `kdsweep-sync` fails in a line, later completes the run."""
    store = Store(server.uri, unsent=tmp_path / "unsent")
    with store.run("gone", tags=DISTILL, params={"seed": 0}) as run:
        server.hang()
        write(run, weights)
        for step in range(5):
            run.log({"val/accuracy": step / 100}, step)
        ended = time.time()
    assert f"The rest is in {tmp_path}/unsent/{run.id}: send it with" in " ".join(capsys.readouterr().err.split())
    assert synced(tmp_path) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"kdsweep-sync: The MLflow store {server.uri} cannot be opened: Read timed out.")
    server.go_on()
    assert synced(tmp_path) == 0
    assert capsys.readouterr().out == "Sent 1 run.\n"
    complete(server.uri, run.id, 5)
    # The end is when the run ended, and not when that was sent.
    assert abs(client(server.uri).get_run(run.id).info.end_time / 1000 - ended) < 0.5
    assert synced(tmp_path) == 0
    assert "nothing to send" in capsys.readouterr().out


def synced(root: Path, *words: str) -> int:
    """Returns the exit status of `kdsweep-sync`."""
    try:
        sync.main(["--root", str(root), *words])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def interrupted(store: Store, server: MlflowServer, runs: list[Run]) -> None:
    """Interrupts a run by Ctrl-C while its server hangs."""
    with store.run("killed", tags=DISTILL, params={}) as run:
        runs.append(run)
        run.summary({"before": 1.0})
        server.hang()
        run.summary({"during": 2.0})
        raise KeyboardInterrupt


def test_a_run_that_a_signal_ends_does_not_wait_for_the_server(server: MlflowServer, tmp_path: Path) -> None:
    """A process that is told to end has seconds. What it couldn't send is sent when the run goes on."""
    store = Store(server.uri, unsent=tmp_path / "unsent")
    runs: list[Run] = []
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted(store, server, runs)
    assert time.monotonic() - start < 2.5
    (run,) = runs
    server.go_on()
    with store.reopened(run.id) as again:
        assert set(store.find(run.id).metrics) == {"before", "during"}
        again.summary({"after": 3.0})
    found = client(server.uri).get_run(run.id)
    assert (found.info.status, set(found.data.metrics)) == ("FINISHED", {"before", "during", "after"})
    assert not (tmp_path / "unsent").exists()


def test_the_run_of_a_killed_process_is_closed(server: MlflowServer, tmp_path: Path) -> None:
    """SIGKILL during an outage: what the run had logged is sent, and it isn't left RUNNING."""
    unsent = tmp_path / "unsent"
    code = (
        "import sys, time; from pathlib import Path\n"
        "from kdsweep.tracking import sender; from kdsweep.tracking.store import Store\n"
        "sender.SLOW_SECONDS = 0.2\n"
        f"with Store({server.uri!r}, unsent=Path({str(unsent)!r})).run('dies', tags={{}}, params={{}}) as run:\n"
        "    run.flush(); print(run.id, flush=True); sys.stdin.readline()\n"
        "    for step in range(5): run.summary({'a': step}); time.sleep(.1)\n"
        "    print('written', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        server.hang()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "written\n"
        process.kill()
    server.go_on()
    store = Store(server.uri)
    assert sending.send_unsent(store, unsent).runs == 1
    record = store.find(run_id)
    assert (record.status, record.metrics) == ("KILLED", {"a": 4.0})
    assert record.tags["kdsweep.error"] == "its process was killed"


def test_a_question_waits_for_the_answer(
    server: MlflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading outlasts an outage; if the outage doesn't end, it fails in one line."""
    store = Store(server.uri)
    server.hang()
    resumed = subprocess.Popen(["sh", "-c", f"sleep 3; kill -CONT -{server.group}"])
    assert store.tagged(study="nobody") == []
    resumed.wait()
    assert " ".join(capsys.readouterr().err.split()).count("doesn't answer. Waiting for up to 4 minutes.") == 1
    server.hang()
    monkeypatch.setattr("kdsweep.tracking.store.PATIENCE_SECONDS", 1.0)
    with pytest.raises(RunError, match=r"^for 1 s the MLflow store http.* didn't answer \(Read timed out\)"):
        store.tagged(study="nobody")
    server.go_on()


def test_a_server_that_is_away_at_the_start_is_a_clear_error(server: MlflowServer, tmp_path: Path) -> None:
    """The error comes within seconds and has the remedy; no run is made."""
    server.hang()
    start = time.monotonic()
    with pytest.raises(UserError, match=r"^uri: .* cannot be opened: Read timed out\. .*tracking\.offline=true"):
        Store(server.uri, unsent=tmp_path)
    server.go_on()
    assert time.monotonic() - start < 15


# Real commands


def impatient_command(*arguments: Any) -> None:
    """Starts `kdsweep` as `commands.Command` does, but its end waits for the server for one second."""
    from kdsweep.tracking import store

    store.REMOTE = Waiting(call_s=0.0, end_s=1.0, killed_s=1.0)  # type: ignore[misc]
    run_command(*arguments)


def test_a_command_outlives_its_server(server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training whose server is killed ends with status 0; what it found goes to the server afterwards."""
    monkeypatch.setattr(commands, "_run", impatient_command)
    store = Store(server.uri, "command")
    env = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "MLFLOW_TRACKING_URI": server.uri}
    command = Command(*SHORT, "epochs=15", "tracking.experiment=command", root=tmp_path, env=env)
    command.wait_for(lambda: any(run.metrics for run in store.tagged(arm="distill")))
    (run_id,) = (run.id for run in store.tagged(arm="distill"))
    server.kill()
    done = command.outcome()
    assert done.status == 0, done.err
    assert "send it with `kdsweep-sync`" in " ".join(done.err.split())
    server.start()
    assert synced(tmp_path) == 0
    found = client(server.uri).get_run(run_id)
    assert found.info.status == "FINISHED"
    assert len(client(server.uri).get_metric_history(run_id, "val/accuracy")) == 15
    assert {"config.yaml", "model.safetensors"} <= artifacts(server.uri, run_id)


# The offline store


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Makes a folder with an offline study: its parent, two finished runs, and one that a killed process left."""
    root = tmp_path_factory.mktemp("offline")
    source = root / "weights.bin"
    source.write_bytes(b"12")
    store = Store(offline_uri(root), "away")
    ids = {}
    with store.run("study", tags={"kdsweep.role": "study"}, params={}) as study:
        ids["study"] = study.id
        for seed in (0, 1):
            with store.run(f"seed {seed}", tags=DISTILL, params={"seed": 0}, parent=study.id) as run:
                for step in range(4):
                    run.log({"val/accuracy": step / 100}, step)
                write(run, source)
                run.describe(f"`kdsweep-reproduce {run.id}`")
            ids[f"seed {seed}"] = run.id
    half_written = root / "offline" / "mlartifacts" / ids["seed 1"] / "artifacts" / ".log.txt.0123" / "log.txt"
    half_written.parent.mkdir()
    half_written.touch()
    mlflow = client(store.uri)
    ids["lost"] = mlflow.create_run(mlflow.get_experiment_by_name("away").experiment_id, run_name="lost").info.run_id
    return root, ids


def copies(uri: str, originals: dict[str, str]) -> dict[str, Any]:
    """Returns the runs at the server by their names."""
    store = Store(uri, "away")
    found = {run.tags["kdsweep.sent_from"]: run for run in store.runs()}
    assert len(found) == len(store.runs()), "a run was sent twice"
    return {name: client(uri).get_run(found[run_id].id) for name, run_id in originals.items() if run_id in found}


def test_offline_runs_are_copied_whole_and_once(
    server: MlflowServer, offline: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is copied, times and parents too; the next call completes a run whose copying was interrupted."""
    root, ids = offline
    assert synced(root, "--uri", server.uri) == 0
    assert capsys.readouterr().out == "Sent 4 runs.\n"
    found = copies(server.uri, ids)
    original = client(offline_uri(root)).get_run(ids["seed 1"])
    copy = found["seed 1"]
    complete(server.uri, copy.info.run_id, 4)
    assert (copy.info.start_time, copy.info.end_time) == (original.info.start_time, original.info.end_time)
    assert copy.data.tags["mlflow.parentRunId"] == found["study"].info.run_id
    assert copy.data.tags["mlflow.note.content"] == f"`kdsweep-reproduce {copy.info.run_id}`"
    assert found["lost"].info.status == "KILLED"
    assert synced(root, "--uri", server.uri) == 0
    assert "nothing to send" in capsys.readouterr().out
    # An interruption just before the mark.
    client(offline_uri(root)).delete_tag(ids["seed 0"], "kdsweep.sent")
    assert synced(root, "--uri", server.uri) == 0
    assert capsys.readouterr().out == "Sent 1 run.\n"
    complete(server.uri, copies(server.uri, ids)["seed 0"].info.run_id, 4)


def test_a_run_that_goes_on_is_left_for_the_next_call(
    server: MlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its process lives, and the runs under it need it first."""
    store = Store(offline_uri(tmp_path), "living")
    with store.run("study", tags={"kdsweep.process": str(this_process())}, params={}) as study:
        with store.run("child", tags=DISTILL, params={}, parent=study.id):
            pass
        assert synced(tmp_path, "--uri", server.uri) == 0
        assert capsys.readouterr().out == "Left for the next call, since they go on: study.\n"
    assert synced(tmp_path, "--uri", server.uri) == 0
    assert capsys.readouterr().out == "Sent 2 runs.\n"
    assert synced(tmp_path, "--uri", offline_uri(tmp_path)) == 2
    # What went on after it had been sent is sent again, to the same run.
    with store.reopened(study.id) as again:
        again.tag({"kdsweep.note": "seen"})
    assert synced(tmp_path, "--uri", server.uri) == 0
    assert [run.tags.get("kdsweep.note") for run in Store(server.uri, "living").runs()] == ["seen", None]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command doesn't say that the folder holds nothing."""
    assert synced(tmp_path / "misspelt") == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith(f"kdsweep-sync: --root: there is no folder {tmp_path / 'misspelt'}. Name the")
    assert list(tmp_path.iterdir()) == []


def test_offline_runs_may_go_to_a_local_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a server's name they go where runs go by default."""
    with Store(offline_uri(tmp_path)).run("one", tags=DISTILL, params={}) as run:
        run.text("config.yaml", "seed: 0\n")
    assert synced(tmp_path) == 0
    (found,) = Store(store_uri(None, tmp_path)).runs()
    assert found.tags["kdsweep.sent_from"] == run.id
    assert len(list((tmp_path / "mlartifacts" / found.id).rglob("config.yaml"))) == 1
