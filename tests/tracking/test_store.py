"""Claims about what reaches MLflow, and about what comes back from it. Every store is a real one."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import fresh_stores
import pytest
from configurations import composed
from matplotlib.figure import Figure
from mlflow_servers import mlflow_server
from needs import lacking
from read_only import read_only

from kdsweep.system.errors import PrunedError, RunError, UserError
from kdsweep.system.processes import ProcessId, this_process
from kdsweep.system.sqlite import driver_uri, sqlite_path
from kdsweep.tracking.location import artifact_folder, default_experiment, require_store, store_uri
from kdsweep.tracking.mlflow_calls import place_file
from kdsweep.tracking.retry import AwayError, is_forbidden, is_transient, reason
from kdsweep.tracking.run_records import parameter_text
from kdsweep.tracking.run_writer import Run
from kdsweep.tracking.sender import Waiting
from kdsweep.tracking.store import Store

pytestmark = pytest.mark.filterwarnings(
    # MLflow 3.17 with SQLAlchemy 2.1, once a process, where a run is first read.
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning:mlflow.store.tracking.sqlalchemy_store",
)

DISTILL = {"kdsweep.role": "distill", "kdsweep.stage": "search"}


@pytest.fixture(scope="session", autouse=True)
def no_other_store() -> Iterator[None]:
    """Tests write to no store that the environment names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Makes a store in a folder whose name needs quoting; once, since a fresh SQLite store takes seconds."""
    return Store(store_uri(None, tmp_path_factory.mktemp("root") / "a folder, 50%"))


@pytest.fixture(scope="session")
def recorded(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Records a run with one of everything, and returns its id."""
    weights = tmp_path_factory.mktemp("made") / "weights.bin"
    weights.write_bytes(b"\x00\x01")
    params = {"loss.alpha": 0.5, "loss.tau": 4, "seed": 0, "teacher": None, "model.mean": [0.1, 0.2]}
    with store.run("one", tags={**DISTILL, "kdsweep.trial": "7"}, params=params) as run:
        for epoch in (1, 2, 3):
            run.log({"train/loss": 1 / epoch, "val/accuracy": epoch / 10}, step=epoch)
        run.summary({"test/accuracy": 0.25})
        profiles = {context: {"pictures": 3} for context in ("training", "validation", "test")}
        run.datasets("digits", "/data/digits", "ab" * 32, profiles)
        run.text("config.yaml", "loss:\n  alpha: 0.5\n")
        run.file(weights)
        run.file(weights, "kept/model.bin")
        run.figure("learning_curves.png", Figure())
    return run.id


def read(store: Store, run_id: str) -> Any:
    """Returns the run as MLflow's own client reads it."""
    from mlflow import MlflowClient

    return MlflowClient(store.uri).get_run(run_id)


def metric_names(run: Run, store: Store) -> set[str]:
    return set(read(store, run.id).data.metrics)


# Writing a run


def test_a_run_is_finished_and_lasts_as_long_as_its_block(store: Store, recorded: str) -> None:
    """Status, name, start and duration are those of the block."""
    info = read(store, recorded).info
    assert (info.run_name, info.status) == ("one", "FINISHED")
    assert info.start_time <= info.end_time <= time.time() * 1000


def test_parameters_are_readable_text(store: Store, recorded: str) -> None:
    """Numbers, null and lists arrive as Python writes them; seed 0 is there."""
    params = read(store, recorded).data.params
    assert params == {"loss.alpha": "0.5", "loss.tau": "4", "seed": "0", "teacher": "None", "model.mean": "[0.1, 0.2]"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((4.0, "4"), (4, "4"), (-1.0, "-1"), (0.5, "0.5"), (1e-5, "1e-05"), (1e20, "1e+20"), (True, "True")),
        *((None, "None"), ([1.0, 0.3, 10], "[1, 0.3, 10]"), (["v1.0", "1.0"], "['v1.0', '1.0']"), ([], "[]")),
        *(("v2.0", "v2.0"), ("2.0.0", "2.0.0"), ("/data/1.0", "/data/1.0"), ("resnet-1.0", "resnet-1.0")),
    ],
)
def test_a_number_is_written_in_one_way(value: object, text: str) -> None:
    """4.0 and 4 are one value of a parameter, in lists too; a name or a path stays what it is."""
    assert parameter_text(value) == text
    assert parameter_text(text) == text


def test_a_description_is_kept_with_whose_it_is(store: Store) -> None:
    """`Store.describe` replaces what kdsweep wrote at the start of the run, and nobody else's words."""
    with store.run("described", tags=DISTILL, params={}) as run:
        run.describe("ours")
    store.describe(run.id, "later")
    assert read(store, run.id).data.tags["mlflow.note.content"] == "later"


def test_parameters_of_older_runs_are_read_by_the_same_rule(store: Store) -> None:
    """A study that is continued has runs from before the rule, and they must not look like other settings."""
    from mlflow import MlflowClient

    with store.run("old", tags=DISTILL, params={}) as run:
        MlflowClient(store.uri).log_param(run.id, "loss.tau", "4.0")
    assert store.find(run.id).params == {"loss.tau": "4"}


def test_the_machines_load_is_logged_where_mlflow_is_asked_for_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By MLflow's own variables; a run that goes on adds to it, and nothing looks any more when the run has ended."""
    load = "system/cpu_utilization_percentage"
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")

    def wait(run: Run, points: int) -> None:
        end = time.monotonic() + 60
        while len(store.history(run.id, load)) < points:
            assert time.monotonic() < end
            time.sleep(0.02)

    with store.run("busy", tags=DISTILL, params={}) as run:
        wait(run, 2)
    before = store.history(run.id, load)
    with store.reopened(run.id) as again:
        wait(again, len(before) + 1)
    steps = [step for step, _ in store.history(run.id, load)]
    assert steps == list(range(len(steps)))
    assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


def test_metrics_keep_their_steps(store: Store, recorded: str) -> None:
    """A metric's history has one value a step, in order."""
    assert store.history(recorded, "val/accuracy") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert store.history(recorded, "test/accuracy") == [(0, 0.25)]
    assert store.history(recorded, "never/logged") == []


def test_tags_name_role_user_and_source(store: Store, recorded: str) -> None:
    """Kdsweep's tags arrive; the UI's columns User and Source are filled."""
    tags = read(store, recorded).data.tags
    assert DISTILL.items() <= tags.items()
    assert tags["kdsweep.trial"] == "7"
    assert tags["mlflow.source.name"] == "kdsweep"
    assert tags["mlflow.user"]


def test_each_split_is_a_data_set_input(store: Store, recorded: str) -> None:
    """Three splits of one data set stay three inputs, though MLflow keeps one input per name and digest."""
    inputs = read(store, recorded).inputs.dataset_inputs
    assert {tag.value for given in inputs for tag in given.tags} == {"training", "validation", "test"}
    assert all(given.dataset.name == "digits" and given.dataset.digest.startswith("abab") for given in inputs)
    assert json.loads(inputs[0].dataset.profile) == {"digest": "ab" * 32, "pictures": 3}
    assert json.loads(inputs[0].dataset.source) == {"uri": "/data/digits"}
    assert store.find(recorded).splits == {"training": 3, "validation": 3, "test": 3}


@pytest.mark.parametrize(
    ("uri", "page"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000/#/experiments/7/runs/abc"),
        ("https://me:secret@host/mlflow/", "https://host/mlflow/#/experiments/7/runs/abc"),
        ("sqlite:////tmp/mlflow.db", None),
    ],
)
def test_a_server_has_a_page_for_each_run(uri: str, page: str | None) -> None:
    """Its address has no secret; other stores have none."""
    opened = object.__new__(Store)
    opened.uri, opened._experiment_id = uri, "7"
    assert opened.page_of("abc") == page


def test_artifacts_lie_beside_the_store(store: Store, recorded: str) -> None:
    """Text, files, renamed files and figures are in mlartifacts, next to mlflow.db, as they were given."""
    database = sqlite_path(store.uri)
    assert database is not None
    folder = artifact_folder(database) / recorded / "artifacts"
    assert (folder / "config.yaml").read_text() == "loss:\n  alpha: 0.5\n"
    assert (folder / "weights.bin").read_bytes() == (folder / "kept" / "model.bin").read_bytes() == b"\x00\x01"
    assert (folder / "learning_curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_whose_name_needs_quoting_gets_no_sibling(tmp_path: Path) -> None:
    """MLflow would make the folder that is named as the quoted one; others have the URI that they had."""
    own = Store(store_uri(None, tmp_path / "50% ?"))
    with own.run("x", tags=DISTILL, params={}) as run:
        run.text("config.yaml", "seed: 0")
    assert own.text(run.id, "config.yaml") == "seed: 0"
    assert [folder.name for folder in tmp_path.iterdir()] == ["50% ?"]
    for uri in ("sqlite:////plain/mlflow.db", "http://host/50%25", "postgresql://me@host/50%25"):
        assert driver_uri(uri) == uri


@pytest.mark.parametrize(
    ("no_proxy", "words"),
    [
        (
            "",
            r"Connection refused \(asked through the proxy http://me:\*\*\*@127.0.0.1:9; with NO_PROXY=127.0.0.1 it is",
        ),
        ("127.0.0.0/8", r"Connection refused\. Start it"),
    ],
)
def test_a_refusal_through_a_proxy_mentions_it(
    no_proxy: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of this machine is often meant to be asked directly; where it is, nothing is said."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("no_proxy", no_proxy)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        uri = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    with pytest.raises(AwayError, match=words):
        Store(uri, unsent=tmp_path, wait=0)


def test_more_parameters_and_metrics_than_one_call_takes(store: Store) -> None:
    """A call to MLflow takes 100 parameters and 1,000 metrics; a run takes any number."""
    params = {f"key.{index}": index for index in range(250)}
    with store.run("many", tags=DISTILL, params=params) as run:
        for step in range(1250):
            run.log({"a": step, "b": -step}, step)
    assert len(read(store, run.id).data.params) == 250
    assert store.history(run.id, "b") == [(step, -step) for step in range(1250)]


def test_a_long_parameter_is_cut(store: Store) -> None:
    """The first 6,000 characters are kept, MLflow's limit."""
    with store.run("long", tags=DISTILL, params={"list": "x" * 7000}) as run:
        pass
    assert read(store, run.id).data.params == {"list": "x" * 6000}


def test_there_may_be_more_parameters_than_a_request_takes(store: Store) -> None:
    """MLflow takes a hundred at a time."""
    params = {f"key{number}": number for number in range(219)}
    with store.run("many", tags=DISTILL, params=params) as run:
        pass
    assert read(store, run.id).data.params == {name: str(value) for name, value in params.items()}


def test_names_that_mlflow_does_not_admit_get_underscores(store: Store) -> None:
    """( ) + = in a name do not end a run."""
    with store.run("names", tags=DISTILL, params={"+a(b)": 1}) as run:
        run.summary({"f(x)=y": 1.0, "val/top5": 0.5})
    found = read(store, run.id).data
    assert found.params == {"_a_b_": "1"}
    assert found.metrics == {"f_x__y": 1.0, "val/top5": 0.5}


def test_non_finite_metrics_pass(store: Store) -> None:
    """MLflow keeps NaN, and turns an infinity into the largest float."""
    with store.run("nan", tags=DISTILL, params={}) as run:
        run.summary({"nan": float("nan"), "inf": float("inf")})
    metrics = read(store, run.id).data.metrics
    assert metrics["nan"] != metrics["nan"]
    assert metrics["inf"] == sys.float_info.max


def test_metrics_are_seen_while_the_run_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics are gathered into batches, but for no longer than a moment."""
    with store.run("going on", tags=DISTILL, params={}) as run:
        run.log({"first": 1.0}, step=1)
        assert metric_names(run, store) == set()
        monkeypatch.setattr("kdsweep.tracking.run_writer.FLUSH_SECONDS", 0.0)
        run.log({"second": 2.0}, step=1)
        assert metric_names(run, store) == {"first", "second"}
        assert read(store, run.id).info.status == "RUNNING"


# Ending a run


def ended_by(error: BaseException, store: Store, metrics: dict[str, float]) -> Run:
    """A run whose block logs metrics, which are still waiting when it raises `error`; the error passes on."""
    runs: list[Run] = []

    def block() -> None:
        with store.run("ends", tags=DISTILL, params={}) as run:
            runs.append(run)
            run.log(metrics, step=1)
            raise error

    with pytest.raises(type(error)) as caught:
        block()
    assert caught.value is error
    return runs[0]


@pytest.mark.parametrize(
    ("error", "status", "tag"),
    [
        (RuntimeError("the loss is\n  not finite"), "FAILED", "RuntimeError: the loss is not finite"),
        (KeyboardInterrupt(), "KILLED", None),
        (SystemExit(143), "KILLED", None),
        (PrunedError(4), "KILLED", None),
    ],
)
def test_an_error_ends_the_run_and_keeps_its_metrics(
    store: Store, error: BaseException, status: str, tag: str | None
) -> None:
    """It is FAILED with the error's line, or KILLED if asked to stop; its metrics are written, the error passes on."""
    run = ended_by(error, store, {"train/loss": 2.0})
    found = read(store, run.id)
    assert found.info.status == status
    assert found.data.metrics == {"train/loss": 2.0}
    assert found.data.tags.get("kdsweep.error") == tag


def test_a_pruned_run_says_after_which_epoch(store: Store) -> None:
    """Its tag distinguishes it from runs that were killed by accident, which have none."""
    pruned = ended_by(PrunedError(4), store, {"val/accuracy": 0.25})
    killed = ended_by(KeyboardInterrupt(), store, {"val/accuracy": 0.25})
    assert [read(store, run.id).data.tags.get("kdsweep.pruned") for run in (pruned, killed)] == ["4", None]


def test_a_run_can_go_on(store: Store) -> None:
    """While its block lasts it is RUNNING again; it keeps what it had, and ends as the new block ends."""
    run = ended_by(KeyboardInterrupt(), store, {"before": 1.0})
    with store.reopened(run.id) as again:
        assert again.id == run.id
        assert read(store, run.id).info.status == "RUNNING"
        again.summary({"after": 2.0})
        again.tag({"kdsweep.note": "seen"})
    found = read(store, run.id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"before": 1.0, "after": 2.0})
    assert found.data.tags["kdsweep.note"] == "seen"


def test_a_run_that_goes_on_can_fail(store: Store) -> None:
    """It is FAILED with the error's line, though it had finished before."""
    with store.run("first", tags=DISTILL, params={}) as run:
        pass
    with pytest.raises(OSError, match="full"), store.reopened(run.id):
        raise OSError("full")
    assert read(store, run.id).info.status == "FAILED"
    assert read(store, run.id).data.tags["kdsweep.error"] == "OSError: full"


def test_a_lost_run_is_closed_by_another_process(store: Store) -> None:
    """It is KILLED, with the cause; what it had logged stays."""
    from mlflow import MlflowClient

    client = MlflowClient(store.uri)
    lost = client.create_run(client.get_experiment_by_name(store.experiment).experiment_id).info.run_id
    client.log_metric(lost, "val/accuracy", 0.5)
    store.close_lost(lost, "its process was killed")
    found = read(store, lost)
    assert (found.info.status, found.data.metrics) == ("KILLED", {"val/accuracy": 0.5})
    assert found.data.tags["kdsweep.error"] == "its process was killed"
    assert found.info.end_time is not None


def test_runs_whose_process_has_died_are_closed(store: Store) -> None:
    """Those of a living process, of another machine and of an earlier boot are left alone."""
    here = this_process()
    boot = here.birth.partition("-")[0]
    dead = ProcessId(here.host, 2**22 + 1, 0.0, f"{boot}-1")
    others = (
        here,
        ProcessId("elsewhere", 2**22 + 1, 0.0, f"{boot}-1"),
        ProcessId(here.host, 2**22 + 1, 0.0, "00000000-1"),
    )
    ids = [store.create("run", {**DISTILL, "kdsweep.process": str(process)}, 0) for process in (dead, *others)]
    untagged = store.create("run", DISTILL, 0)
    store._crashes.mkdir(parents=True)
    (store._crashes / f"{dead.pid}-{dead.birth}").write_text("Fatal Python error: Segmentation fault\n\nFile ...")
    assert [(run.id, cause) for run, cause in store.close_all_dead()] == [(ids[0], "its process was ended by SIGSEGV")]
    assert [read(store, run).info.status for run in (*ids, untagged)] == ["KILLED", *["RUNNING"] * 4]
    assert store.close_all_dead() == []
    with store.reopened(ids[0]):
        tags = read(store, ids[0]).data.tags
    assert tags["kdsweep.process"] == str(here)
    assert "kdsweep.error" not in tags


def test_a_run_that_cannot_be_written_is_not_left_running(store: Store) -> None:
    """MLflow refuses the metric ".."; the run is FAILED, and the error is the one that the block raised."""
    error = ZeroDivisionError("in the block")
    run = ended_by(error, store, {"..": 1.0})
    assert read(store, run.id).info.status == "FAILED"
    assert "could not be closed" in error.__notes__[0]


def test_the_environment_diverts_nothing(store: Store, recorded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLFLOW_RUN_ID, which overrides the run of the fluent interface, has no effect here."""
    monkeypatch.setenv("MLFLOW_RUN_ID", recorded)
    with store.run("own", tags=DISTILL, params={"own": 1}) as run:
        pass
    assert run.id != recorded
    assert "own" not in read(store, recorded).data.params


# Studies


def test_a_study_reads_back_with_its_children(store: Store) -> None:
    """Parent and children come back in order, and can be asked for by arm, stage and status."""
    with store.run("study a", tags={"kdsweep.role": "study"}, params={}) as parent:
        for seed in (0, 1):
            scratch = {"kdsweep.role": "scratch", "kdsweep.stage": "baseline"}
            with store.run(f"scratch {seed}", tags=scratch, params={"seed": seed}, parent=parent.id):
                pass
        with pytest.raises(OSError, match="full"), store.run("trial", tags=DISTILL, params={}, parent=parent.id):
            raise OSError("full")
    study = store.study("study a")
    assert study.parent.id == parent.id
    assert [child.name for child in study.children] == ["scratch 0", "scratch 1", "trial"]
    assert [run.seed for run in study.runs(arm="scratch", stage="baseline")] == [0, 1]
    assert study.runs(arm="distill") == []
    assert [run.status for run in study.runs(stage="search", status=None)] == ["FAILED"]
    assert store.study(parent.id) == study


def test_runs_are_found_by_their_tags(store: Store) -> None:
    """They have all of the tags that are asked for, and come in the order of their start."""
    for name, job, study in (("a", "trial-0000", "x"), ("b", "trial-0001", "x"), ("c", "trial-0000", "y")):
        with store.run(name, tags={**DISTILL, "kdsweep.job": job, "kdsweep.study": study}, params={}):
            pass
        time.sleep(0.002)  # MLflow's clock has milliseconds
    assert [run.name for run in store.tagged(study="x")] == ["a", "b"]
    assert [run.name for run in store.tagged(job="trial-0000", study="y")] == ["c"]
    assert store.tagged(study="nobody") == []


def test_a_text_is_read_back(store: Store, recorded: str, tmp_path: Path) -> None:
    """It may lie at the top or in a folder; None stands for no artifact of that name."""
    (tmp_path / "notes.txt").write_text("ä, ö, ü", encoding="utf-8")
    store.attach(recorded, tmp_path / "notes.txt", "notes")
    assert store.text(recorded, "config.yaml") == "loss:\n  alpha: 0.5\n"
    assert store.text(recorded, "notes/notes.txt") == "ä, ö, ü"
    assert store.text(recorded, "reliability.json") is None
    assert store.text(recorded, "nowhere/notes.txt") is None


def test_a_record_holds_the_run(store: Store) -> None:
    """A record has times, and kdsweep's tags without MLflow's own."""
    before = datetime.now(UTC)
    with store.run("study times", tags={"kdsweep.role": "study"}, params={"a": 1}) as run:
        assert store.study(run.id).parent.duration_s is None
        run.tag({"kdsweep.note": "seen"})
    record = store.study(run.id).parent
    assert abs((record.start - before).total_seconds()) < 60
    assert record.duration_s is not None
    assert record.duration_s >= 0
    assert record.tags == {"kdsweep.role": "study", "kdsweep.note": "seen"}
    assert (record.arm, record.stage, record.seed) == ("study", None, None)


def test_the_latest_study_is_the_default(store: Store) -> None:
    """Without a name it is the study that started last; if two have the same name, it is the later one."""
    with store.run("twice", tags={"kdsweep.role": "study"}, params={}):
        pass
    time.sleep(0.002)  # MLflow's clock has milliseconds
    with store.run("twice", tags={"kdsweep.role": "study"}, params={}) as last:
        pass
    assert store.study().parent.id == store.study("twice").parent.id == store.studies()[0].id == last.id


def test_an_unknown_study_is_refused_with_the_known_ones(store: Store) -> None:
    """The error names what there is."""
    with store.run("known one", tags={"kdsweep.role": "study"}, params={}):
        pass
    with pytest.raises(UserError, match=r"There is no study 'nothing' .* Known: .*known one"):
        store.study("nothing")


def test_a_store_without_studies_says_how_to_make_one(store: Store) -> None:
    """The remedy is the command."""
    with pytest.raises(UserError, match=r"There is no study in the experiment 'empty' .*`kdsweep sweep=alpha_tau`"):
        Store(store.uri, "empty").study()


def test_a_finished_run_takes_attachments(store: Store, recorded: str, tmp_path: Path) -> None:
    """A report can be added to a study that has ended."""
    (tmp_path / "report.json").write_text("{}")
    store.attach(recorded, tmp_path / "report.json", "report")
    from mlflow import MlflowClient

    assert [item.path for item in MlflowClient(store.uri).list_artifacts(recorded, "report")] == ["report/report.json"]


# Several processes


def start_together(target: Any, count: int, *arguments: object) -> list[int | None]:
    """Returns the exit codes of processes that call target(barrier, *arguments) at the same time.

    They are forked from a process that has imported MLflow and what this module imports: nothing keeps them apart.
    """
    context = multiprocessing.get_context("forkserver")
    mlflow = ["mlflow", "mlflow.store.tracking.sqlalchemy_store", "alembic.command"]
    context.set_forkserver_preload(
        [*mlflow, "pytest", "matplotlib.figure", "kdsweep.system.environment", "kdsweep.tracking.store"]
    )
    barrier = context.Barrier(count)
    processes = [context.Process(target=target, args=(barrier, *arguments)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def log_a_run(barrier: Any, uri: str) -> None:
    """Does what a parallel job does: opens the store, and logs the same data set as the others."""
    barrier.wait()
    with Store(uri).run("parallel", tags=DISTILL, params={"process": os.getpid()}) as run:
        for step in range(50):
            run.log({"a": step}, step)
            run.flush()
        barrier.wait()
        run.datasets("digits", "/data", "cd" * 32, {"training": {}})


def ask_for_a_group(barrier: Any, uri: str, answers: str) -> None:
    """Does what a job of a plain multirun does first."""
    opened = Store(uri)
    barrier.wait()
    Path(answers, str(os.getpid())).write_text(opened.group('it\'s/a "folder"', "multirun"))


@pytest.mark.slow
def test_four_processes_start_on_a_fresh_store(tmp_path: Path) -> None:
    """All of them find the store whole, wait for each other's writes, and lose nothing."""
    uri = store_uri(None, tmp_path / "fresh")
    assert start_together(log_a_run, 4, uri) == [0] * 4
    with sqlite3.connect(tmp_path / "fresh" / "mlflow.db") as database:
        assert database.execute("SELECT status, count(*) FROM runs GROUP BY status").fetchall() == [("FINISHED", 4)]
        assert database.execute("SELECT count(*) FROM metrics").fetchone() == (200,)
        assert database.execute("SELECT count(*) FROM datasets").fetchone() == (1,)
        assert database.execute("SELECT name FROM experiments ORDER BY name").fetchall() == [("Default",), ("kdsweep",)]
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


@pytest.mark.slow
def test_a_group_is_made_once(store: Store, tmp_path: Path) -> None:
    """Jobs that ask at once get the same parent run, which is finished, so that nobody need end it."""
    assert start_together(ask_for_a_group, 2, store.uri, str(tmp_path)) == [0, 0]
    answers = {answer.read_text() for answer in tmp_path.iterdir()}
    assert len(answers) == 1
    assert store.group('it\'s/a "folder"', "multirun") in answers
    assert store.study(answers.pop()).parent.status == "FINISHED"
    assert store.group("another", "multirun") not in answers


@pytest.mark.slow
def test_importing_tracking_does_not_import_mlflow() -> None:
    """`kdsweep --help` does not wait four seconds for MLflow."""
    check = "import sys, kdsweep.tracking.store; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


# Which store


def test_the_store_is_named_explicitly_then_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An argument wins over MLFLOW_TRACKING_URI, which wins over mlflow.db in the root."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert store_uri(None, tmp_path) == "http://host:5000"
    assert store_uri("postgresql+psycopg2://u:p@host/db", tmp_path) == "postgresql+psycopg2://u:p@host/db"


def test_a_relative_store_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative path is relative to the working directory, and stays so when that changes."""
    monkeypatch.chdir(tmp_path)
    assert store_uri("sqlite:///runs/m.db?timeout=5", Path("root")) == f"sqlite:///{tmp_path}/runs/m.db?timeout=5"
    assert sqlite_path(store_uri("sqlite:///a%20b.db", Path())) == tmp_path / "a b.db"


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "sqlite:///:memory:", "sqlite:///", ""])
def test_a_uri_without_a_database_or_server_is_refused(uri: str, tmp_path: Path) -> None:
    """MLflow's old file store is refused too, as MLflow itself does."""
    with pytest.raises(UserError, match=r"^uri: uri must name an SQLite file, a database or a server, but got"):
        store_uri(uri, tmp_path)


def test_a_store_that_is_not_there_is_asked_for_in_vain(tmp_path: Path) -> None:
    """Readers say that there is no store, and make none."""
    with pytest.raises(UserError, match=r"There is no MLflow store at .*`kdsweep`"):
        require_store(store_uri(None, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_a_store_is_refused_at_once(tmp_path: Path) -> None:
    """Text, another program's database, a folder below a file: one line names the file, and nothing is written."""
    text, other = tmp_path / "text.db", tmp_path / "other.db"
    text.write_text("not a database, whatever its name says" * 100)
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE addresses (name TEXT)")
    database.close()
    with pytest.raises(UserError, match=r"text.db cannot be read as an SQLite database: file is not a database"):
        Store(f"sqlite:///{text}")
    with pytest.raises(UserError, match=r"other.db is an SQLite database, but not an MLflow store"):
        Store(f"sqlite:///{other}")
    with pytest.raises(UserError, match=r"^uri: The MLflow store .*text.db/mlflow.db cannot be opened"):
        Store(f"sqlite:///{text}/mlflow.db")


def test_an_interrupted_first_start_does_no_harm(tmp_path: Path) -> None:
    """A start that was killed early leaves a file without tables, which isn't a store yet and can become one."""
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(UserError, match="There is no MLflow store"):
        require_store(store_uri(None, tmp_path))


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_reported_in_seconds() -> None:
    """The error hides the password, and names the remedies; later calls wait longer for an answer."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(UserError) as caught:
        Store(f"http://me:secret@127.0.0.1:{port}")
    told = f"uri: The MLflow store http://me:***@127.0.0.1:{port} cannot be opened: Connection refused. Start it; or "
    assert str(caught.value).startswith(told)
    assert "tracking.offline=true" in str(caught.value)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "30"


def test_a_deleted_experiment_is_reported(store: Store) -> None:
    """MLflow keeps the name of a deleted experiment; the error says how to get it back."""
    from mlflow import MlflowClient

    client = MlflowClient(store.uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UserError, match=r"^experiment: .*'gone' was deleted .*mlflow experiments restore"):
        Store(store.uri, "gone")


# Single runs


def test_a_run_is_found_by_its_id(store: Store, recorded: str) -> None:
    """It may be in any experiment; an unknown id is refused, whether it looks like one or not."""
    found = Store(store.uri, "another").find(recorded)
    assert (found.name, found.params["loss.alpha"], found.metrics["test/accuracy"]) == ("one", "0.5", 0.25)
    for wrong in ("0" * 32, "../etc", "nobody's run"):
        with pytest.raises(UserError, match=r"There is no run .* in sqlite:.*kdsweep-ui"):
            store.find(wrong)


def test_a_run_is_found_by_the_first_letters_of_its_id(store: Store) -> None:
    """In any experiment; if they fit several, these are named."""
    other, made = Store(store.uri, "letters"), []
    while len({run_id[0] for run_id in made}) == len(made):
        made.append(other.create(f"run {len(made)}", {"kdsweep.role": "group"}, 0))
    *_, last = made
    assert store.find(last[:16]).id == last
    twins = [run_id for run_id in made if run_id[0] == last[0]]
    with pytest.raises(UserError, match=f"^`one id begins with {last[0]}` must hold, but several do: ") as error:
        store.find(last[0])
    assert error.value.message.endswith(". Give more letters.")
    assert other.study(last[:16]).parent.id == last
    with pytest.raises(UserError) as error:
        other.study(last[0])
    assert all(f"{run_id[:8]} (run {made.index(run_id)})" in error.value.message for run_id in twins)


def test_a_record_names_the_run_above_it(store: Store) -> None:
    """A run that stands alone has None."""
    with store.run("above", tags=DISTILL, params={}) as parent, store.run("b", tags={}, params={}, parent=parent.id):
        pass
    (child,) = store.children(parent.id)
    assert (child.parent, store.find(parent.id).parent) == (parent.id, None)


def test_an_artifact_is_fetched_as_a_file(store: Store, recorded: str, tmp_path: Path) -> None:
    """It has the artifact's bytes and lies below the given folder; None stands for no artifact of that name."""
    found = store.fetch(recorded, "kept/model.bin", tmp_path)
    assert found is not None
    assert found.is_relative_to(tmp_path)
    assert found.read_bytes() == b"\x00\x01"
    assert store.fetch(recorded, "kept/other.bin", tmp_path) is None
    assert store.fetch(recorded, "nowhere/model.bin", tmp_path) is None


@pytest.mark.parametrize("own", [False, True])
def test_a_file_that_nobody_changes_is_not_copied(tmp_path: Path, own: bool) -> None:
    """It gets a second name, which stays when the first goes, with the permissions of a new file. Others are copied."""
    source, folder = tmp_path / "model.safetensors", tmp_path / "artifacts"
    source.write_bytes(b"weights")
    place_file(source, folder, Path("student/model.safetensors"), own=own)
    placed = folder / "student" / "model.safetensors"
    assert placed.samefile(source) is own
    assert placed.stat().st_mode == source.stat().st_mode
    source.unlink()
    assert placed.read_bytes() == b"weights"


def test_a_file_is_copied_where_the_disk_knows_no_second_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source may be on another disk than the artifacts."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (tmp_path / "source").write_bytes(b"weights")
    place_file(tmp_path / "source", tmp_path / "artifacts", Path("copy"), own=True)
    assert (tmp_path / "artifacts" / "copy").read_bytes() == b"weights"
    assert not (tmp_path / "artifacts" / "copy").samefile(tmp_path / "source")


def test_an_artifact_stays_inside_its_run(store: Store) -> None:
    """A name that leads out of the run's folder is refused."""
    with (
        pytest.raises(RunError, match=r"refused artifact .*inside the run, but got '\.\./x'"),
        store.run("x", tags={}, params={}) as run,
    ):
        run.text("../x", "outside")


# Faults of the disk


def copied(store: Store, folder: Path, artifacts: bool = True) -> Store:
    """Copies a store to another folder, with or without its artifacts, which is quicker than making a fresh one."""
    path = sqlite_path(store.uri)
    assert path is not None
    folder.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(folder / "mlflow.db")) as new:
        old.backup(new)
    if artifacts and artifact_folder(path).exists():
        shutil.copytree(artifact_folder(path), artifact_folder(folder / "mlflow.db"))
    return Store(store_uri(None, folder))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mounts a disk of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        lacking("a small disk can't be mounted: run as root, or under `unshare -rm`")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave: int) -> None:
    """Fills a disk but for `leave` bytes."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(max(0, free - leave)))


def test_a_full_disk_at_the_artifacts_is_one_line(store: Store, small_disk: Path, tmp_path: Path) -> None:
    """The run fails and names the disk; nothing is left of the file that didn't fit; the earlier one is whole."""
    weights = tmp_path / "weights.bin"
    weights.write_bytes(bytes(300_000))
    own = Store(copied(store, small_disk).uri, unsent=tmp_path / "unsent")
    fill(small_disk, 200_000)
    runs: list[Run] = []

    def write() -> None:
        with own.run("full", tags=DISTILL, params={}) as run:
            runs.append(run)
            run.text("config.yaml", "seed: 0\n")
            run.file(weights)

    with pytest.raises(RunError, match=f"^no space is left on the disk of {small_disk}/mlartifacts/.*Free some"):
        write()
    (small_disk / "filler").unlink()
    folder = small_disk / "mlartifacts" / runs[0].id
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["config.yaml"]
    assert own.find(runs[0].id).status == "FAILED"
    assert not (tmp_path / "unsent").exists()


def test_a_full_disk_at_the_database_is_one_line(store: Store, small_disk: Path, tmp_path: Path) -> None:
    """What was written before can still be read, and the run goes on when there is room again."""
    own = Store(copied(store, small_disk).uri, unsent=tmp_path / "unsent")
    runs: list[Run] = []

    def write() -> None:
        with own.run("full", tags=DISTILL, params={}) as run:
            runs.append(run)
            run.summary({"before": 1.0})
            fill(small_disk, 0)
            for step in range(5000):
                run.log({f"metric {index}": 0.5 for index in range(200)}, step)

    with pytest.raises(RunError, match=f"^no space is left on the disk of {small_disk}/mlflow.db"):
        write()
    (small_disk / "filler").unlink()
    assert own.find(runs[0].id).metrics["before"] == 1.0
    with own.reopened(runs[0].id) as again:
        again.summary({"after": 2.0})
    assert own.find(runs[0].id).metrics["after"] == 2.0
    assert own.find(runs[0].id).status == "FINISHED"


def test_a_folder_of_artifacts_that_can_only_be_read_is_refused(store: Store, tmp_path: Path) -> None:
    """Before a run is made: a run without its files would be of no use."""
    own = Store(copied(store, tmp_path / "own", artifacts=False).uri, unsent=tmp_path / "unsent")
    before = [run.id for run in own.runs()]
    with (
        read_only(tmp_path / "own" / "mlartifacts") as folder,
        pytest.raises(UserError, match=rf"^tracking\.uri: .*artifacts of 'kdsweep' in {folder} .*: Read-only file"),
        own.run("x", tags=DISTILL, params={}),
    ):
        pass
    assert [run.id for run in own.runs()] == before
    with own.run("x", tags=DISTILL, params={}) as run:
        run.text("config.yaml", "seed: 0")


def test_a_database_that_can_only_be_read_is_refused(store: Store, tmp_path: Path) -> None:
    """The line says so in SQLite's words, and not in SQLAlchemy's."""
    path = tmp_path / "own.db"
    shutil.copyfile(fresh_stores.empty_store(), path)
    with read_only(path), pytest.raises(UserError, match=r"opened: attempt to write a readonly database$"):
        Store(store_uri(f"sqlite:///{path}", tmp_path))


class Reader(BaseHTTPRequestHandler):
    """An MLflow server for a user who may read, and write nothing."""

    def do_GET(self) -> None:
        known = {"experiment_id": "1", "name": "kdsweep", "lifecycle_stage": "active"}
        self._answer(200, {"experiment": {**known, "artifact_location": "mlflow-artifacts:/1"}})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(*((200, {}) if self.path.endswith("search") else (403, "Permission denied")))

    def _answer(self, status: int, content: object) -> None:
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


def test_a_server_on_which_one_may_only_read_is_refused(tmp_path: Path) -> None:
    """It is asked for what will be done: to make the run."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Reader) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own = Store(f"http://127.0.0.1:{server.server_port}", unsent=tmp_path)
        assert own.runs() == []
        words = r"^tracking\.uri: the MLflow store http.* doesn't allow this: .*403.*Permission denied.* 'kdsweep'"
        with pytest.raises(UserError, match=words), own.run("x", tags=DISTILL, params={}):
            pass
        with pytest.raises(UserError, match=words):
            own.close_lost("1", "its process was killed")
        server.shutdown()


def of_mlflow(text: str) -> Exception:
    from mlflow.exceptions import MlflowException

    return MlflowException(text)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/mlflow"), "Permission denied: '/mlflow'"),
        (
            of_mlflow(
                "(raised as a result of Query-invoked autoflush; consider a block)\n(sqlite3.OperationalError) attempt "
                "to write a readonly database\n[SQL: INSERT INTO runs]"
            ),
            "attempt to write a readonly database",
        ),
        (
            of_mlflow("(psycopg2.errors.InsufficientPrivilege) permission denied for table runs\n\n[SQL: INSERT]"),
            "permission denied for table runs",
        ),
    ],
)
def test_what_is_not_allowed_is_known(error: Exception, words: str) -> None:
    """From a disk, from SQLite and from PostgreSQL; it isn't waited for."""
    assert is_forbidden(error)
    assert not is_transient(error)
    assert reason(error).endswith(words)
    assert not is_forbidden(OSError(errno.ENOSPC, "No space left on device"))


def test_a_locked_database_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """During another writer's long transaction the training goes on, and nothing is lost."""
    monkeypatch.setattr("kdsweep.tracking.sender.SLOW_SECONDS", 0.2)
    monkeypatch.setattr("kdsweep.tracking.store.LOCAL", Waiting(call_s=0.1, end_s=60.0, killed_s=1.0))
    # MLflow itself waits twenty seconds before it says that the database is locked.
    own = Store(f"{copied(store, tmp_path / 'root').uri}?timeout=0.3", unsent=tmp_path / "unsent")
    with own.run("locked", tags=DISTILL, params={}) as run:
        writer = sqlite3.connect(tmp_path / "root" / "mlflow.db")
        writer.execute("BEGIN IMMEDIATE")
        start = time.monotonic()
        for step in range(10):
            run.log({"a": step}, step)
            run.flush()
        assert time.monotonic() - start < 5
        deadline = time.monotonic() + 20
        while not (tmp_path / "unsent" / run.id / "journal.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        writer.rollback()
        writer.close()
    assert own.history(run.id, "a") == [(step, step) for step in range(10)]
    assert own.find(run.id).status == "FINISHED"
    assert not (tmp_path / "unsent").exists()


# A folder that is moved or copied


def locations(root: Path) -> set[str]:
    """Returns every folder of artifacts that a store records, without the runs' own part."""
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        found = [uri for (uri,) in database.execute("SELECT artifact_uri FROM runs")]
        found += [
            uri for (uri,) in database.execute("SELECT artifact_location FROM experiments WHERE name <> 'Default'")
        ]
        found += [uri for (uri,) in database.execute("SELECT storage_location FROM model_versions")]
    return {uri.partition("/mlartifacts")[0] for uri in found if "/mlartifacts" in uri}


def test_a_moved_folder_works_where_it_is(store: Store, recorded: str, tmp_path: Path) -> None:
    """Its runs are read, and new ones written, in the new place; nothing names the old one, which isn't made again."""
    copied(store, tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new, 50%")
    moved = Store(store_uri(None, tmp_path / "new, 50%"))
    assert moved.text(recorded, "config.yaml") == "loss:\n  alpha: 0.5\n"
    with moved.run("new", tags=DISTILL, params={}) as run, moved.reopened(recorded) as again:
        run.text("notes.txt", "new")
        again.text("notes.txt", "old")
    assert moved.text(run.id, "notes.txt") == "new"
    assert moved.text(recorded, "notes.txt") == "old"
    assert locations(tmp_path / "new, 50%") == {(tmp_path / "new, 50%").as_uri()}
    assert not (tmp_path / "old").exists()


def test_a_copy_does_not_write_into_the_original(store: Store, recorded: str, tmp_path: Path) -> None:
    """Neither new runs nor additions to old ones go there; the original stays as it was."""
    original = copied(store, tmp_path / "original")
    before = {path for path in (tmp_path / "original").rglob("*") if "mlartifacts" in path.parts}
    own = copied(original, tmp_path / "copy")
    with own.run("new", tags=DISTILL, params={}) as run, own.reopened(recorded) as again:
        run.text("notes.txt", "new")
        again.text("notes.txt", "old")
    assert {path for path in (tmp_path / "original").rglob("*") if "mlartifacts" in path.parts} == before
    assert locations(tmp_path / "original") == {(tmp_path / "original").as_uri()}
    assert locations(tmp_path / "copy") == {(tmp_path / "copy").as_uri()}


def test_a_database_without_its_artifacts_still_finds_them(store: Store, recorded: str, tmp_path: Path) -> None:
    """Where only mlflow.db was copied, old runs are read from the old place; new ones are written to the new one."""
    original = copied(store, tmp_path / "original")
    own = copied(original, tmp_path / "copy", artifacts=False)
    assert own.text(recorded, "config.yaml") == "loss:\n  alpha: 0.5\n"
    with own.run("new", tags=DISTILL, params={}) as run:
        run.text("notes.txt", "new")
    assert list((tmp_path / "copy" / "mlartifacts" / run.id).rglob("notes.txt"))


def test_a_location_that_another_program_chose_stays(store: Store, tmp_path: Path) -> None:
    """It may be a folder of another name, or a bucket."""
    from mlflow import MlflowClient

    own = copied(store, tmp_path / "root")
    client = MlflowClient(own.uri)
    chosen = [f"file://{tmp_path}/elsewhere", "s3://bucket/mlartifacts"]
    ids = [client.create_experiment(f"chosen {index}", artifact_location=uri) for index, uri in enumerate(chosen)]
    Store(own.uri)
    assert [client.get_experiment(known).artifact_location for known in ids] == chosen


def test_the_experiment_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for MLflow itself: for a run, for what reads runs, and for the commands' --experiment."""
    for value, name in (("theirs", "theirs"), (None, "kdsweep")):
        if value is None:
            monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
        else:
            monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", value)
        assert composed().tracking.experiment == name
        assert default_experiment() == name
        assert composed("tracking.experiment=mine").tracking.experiment == "mine"


def test_a_run_that_is_opened_again_for_nothing_keeps_its_end(store: Store) -> None:
    """Otherwise a study that is repeated when it is finished would have taken until today."""
    with store.run("study", tags=DISTILL, params={}) as run:
        pass
    before = store.find(run.id)
    time.sleep(0.01)
    with store.reopened(run.id) as again:
        again.ends_at(before.end)
    assert store.find(run.id) == replace(before, tags=store.find(run.id).tags)
    with store.reopened(run.id):
        pass
    assert store.find(run.id).duration_s > before.duration_s


class Below(BaseHTTPRequestHandler):
    """Hands requests below a path on to a server, as a proxy does; others are not found."""

    server_uri = ""

    def do_GET(self) -> None:
        if not self.path.startswith("/tools/mlflow/"):
            self.send_error(404)
            return
        length = int(self.headers.get("Content-Length") or 0)
        url = self.server_uri + self.path.removeprefix("/tools/mlflow")
        headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
        request = Request(url, self.rfile.read(length) if length else None, headers, method=self.command)
        try:
            answer = urlopen(request)
        except HTTPError as error:
            answer = error
        with answer:
            content = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.mark.all
@pytest.mark.slow
def test_a_server_may_lie_below_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, metrics and artifacts go through a proxy that hands on one path of its address."""
    from mlflow import MlflowClient

    with mlflow_server(tmp_path) as server, ThreadingHTTPServer(("127.0.0.1", 0), Below) as proxy:
        monkeypatch.setattr(Below, "server_uri", server.uri)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        store = Store(f"http://127.0.0.1:{proxy.server_port}/tools/mlflow")
        with store.run("below", tags=DISTILL, params={"loss.alpha": 0.5}) as run:
            run.log({"val/accuracy": 0.9}, 1)
            run.text("note.txt", "a note")
        proxy.shutdown()
        found = MlflowClient(server.uri).get_run(run.id)
        note = MlflowClient(server.uri).download_artifacts(run.id, "note.txt", str(tmp_path))
    assert Path(note).read_text() == "a note"
    assert (found.info.status, found.data.metrics["val/accuracy"]) == ("FINISHED", 0.9)
