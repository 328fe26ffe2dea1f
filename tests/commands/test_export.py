"""Claims about kdsweep-export: the student of a real run is written whole, checked, and gives the same logits."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import needs
import numpy as np
import pytest
import torch
from commands import SHORT, artifacts, client, kdsweep, runs
from omegaconf import OmegaConf
from records import fresh
from safetensors.torch import load_file

from kdsweep.commands import export
from kdsweep.config import build
from kdsweep.config.saved_config import SavedConfig, parse
from kdsweep.exporting import description, network_files, student_models, trained_student
from kdsweep.report.model_card import Check
from kdsweep.system.errors import RunError, UserError
from kdsweep.system.sqlite import sqlite_uri
from kdsweep.system.tensor_files import hash_tensors, write_tensors
from kdsweep.tracking import logged_model
from kdsweep.tracking.run_records import RunRecord
from kdsweep.tracking.store import Store


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with a teacher and a distilled student, which the run has logged as a model."""
    root = tmp_path_factory.mktemp("export")
    done = kdsweep(*SHORT, "epochs=1", "tracking.models=true", root=root)
    assert done.status == 0, done.err
    assert re.search(r"^The network is in MLflow: models:/m-\w+\nNext: ", done.err, re.MULTILINE), done.err
    return root


@pytest.fixture(scope="module")
def store(root: Path) -> Store:
    return Store(sqlite_uri(root / "mlflow.db"))


@pytest.fixture(scope="module")
def student(root: Path) -> Any:
    (run,) = runs(root, "distill")
    return run


@pytest.fixture(scope="module")
def exported(root: Path, store: Store, student: Any) -> Path:
    """The student as pt2, in the default folder."""
    return export.export(store, student.info.run_id, root)[0]


def pictures(root: Path, run_id: str) -> torch.Tensor:
    (run,) = [run for run in runs(root) if run.info.run_id == run_id]
    config = parse((artifacts(run) / "config.yaml").read_text()).config
    return build.component(OmegaConf.create(config), "data").test.images


def blocks(folder: Path) -> Iterator[str]:
    """The Python in the card."""
    yield from re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def command(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[object, str, str]:
    """Exit status, output and errors of the command."""
    status: object = 0
    try:
        export.main([str(word) for word in words])
    except SystemExit as end:
        status = end.code
    return status, *capfd.readouterr()


@pytest.mark.slow
def test_the_card_loads_the_network_twice_the_same(
    root: Path, exported: Path, student: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card's code runs beside the files: the pt2 file and the weights in torchvision's class agree."""
    monkeypatch.chdir(exported)
    answers = []
    for code in blocks(exported):
        names = {"pictures": pictures(root, student.info.run_id)}
        with torch.no_grad():
            exec(code, names)
        answers.append(names["logits"])
    assert len(answers) == 2
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_export_is_whole(exported: Path, root: Path, student: Any) -> None:
    """The folder has the weights that the run stored, a description for programs, a card, and nothing else."""
    assert exported.parent == root / "exports"
    assert sorted(path.name for path in exported.iterdir()) == [
        "README.md",
        "config.json",
        "model.pt2",
        "model.safetensors",
    ]
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]
    told = json.loads((exported / "config.json").read_text())
    assert (
        hash_tensors(load_file(exported / "model.safetensors"))
        == told["weights"]
        == student.data.tags["kdsweep.weights"]
    )
    assert told["classes"] == [f"class {n}" for n in range(10)]
    assert (told["input"]["height"], told["input"]["resize"]) == (32, None)


@pytest.mark.all
@pytest.mark.slow
def test_onnx_answers_the_same(root: Path, store: Store, student: Any, tmp_path: Path) -> None:
    """The ONNX file takes any number of uint8 pictures, and needs onnxruntime alone."""
    onnxruntime = needs.package("onnxruntime")
    folder, checks = export.export(store, student.info.run_id, root, tmp_path / "x", "onnx")
    assert checks["model.onnx"].agreement == 1
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    images = pictures(root, student.info.run_id)[:3]
    assert session.run(None, {"pictures": images.numpy()})[0].shape == (3, 10)


@pytest.fixture(scope="module")
def model(root: Path, student: Any) -> Any:
    """The student as MLflow's model, which its run has logged, and the command has registered twice."""
    said = io.StringIO()
    words = [student.info.run_id[:12], "--root", str(root), "--register", "my students", "--alias", "champion"]
    with contextlib.redirect_stdout(said):
        export.main(words)
        export.main(words)
    first, second = said.getvalue().split("Serve it: ")[:2]
    assert re.search(r"^logged to MLflow before: models:/m-\w+\nregistered as my students, version 1, alias ", first)
    assert re.search(r"\nlogged to MLflow before: models:/m-\w+\nregistered as my students, version 2, alias ", second)
    assert f"MLFLOW_TRACKING_URI=sqlite:///{root}/mlflow.db mlflow models serve" in second
    found = client(root).get_run(student.info.run_id).outputs.model_outputs
    assert len(found) == 1
    return client(root).get_logged_model(found[0].model_id)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")  # of MLflow's own, where this imports its flavours
def test_mlflow_loads_what_was_registered(
    root: Path, exported: Path, student: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its alias, where no pickle is allowed, and on the CPU even where there is a GPU, for which it wasn't made."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loaded = mlflow.pyfunc.load_model("models:/my students@champion")
    images = pictures(root, student.info.run_id)[:3]
    logits = torch.export.load(exported / "model.pt2").module()(images)
    assert torch.equal(torch.from_numpy(loaded.predict(images.numpy())), logits)
    assert loaded.predict(loaded.input_example).shape == (1, 10)
    assert loaded.metadata.metadata["classes"] == [f"class {n}" for n in range(10)]
    spec = loaded.metadata.get_input_schema().inputs[0]
    assert (spec.type.name, spec.shape) == ("uint8", (-1, 32, 32, 3))
    with pytest.raises(mlflow.MlflowException, match="Failed to enforce schema"):
        loaded.predict(images.numpy() / np.float32(255))


@pytest.mark.slow
def test_the_page_of_the_model_tells_what_it_is(root: Path, student: Any, model: Any) -> None:
    """It has the run's parameters and last scores, each with its part of the data set, and names its versions."""
    assert (str(model.status), model.name) == ("READY", f"distill-{student.info.run_id[:8]}")
    assert model.params["loss.tau"] == "4"
    scores = {metric.key: (metric.value, metric.dataset_digest) for metric in model.metrics}
    parts = {given.tags[0].value: given.dataset.digest for given in student.inputs.dataset_inputs}
    for name, part in (("val/accuracy", "validation"), ("test/nll", "test"), ("best/val_accuracy", "validation")):
        assert scores[name] == (student.data.metrics[name], parts[part])
    assert "images_per_second" not in scores
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "my students", "version": n} for n in "12"]
    assert str(client(root).get_model_version_by_alias("my students", "champion").version) == "2"
    # The scores of the run itself are what they were.
    assert len(client(root).get_metric_history(student.info.run_id, "val/accuracy")) == 1


def test_a_model_is_logged_on_demand(
    root: Path, student: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command says how the logged program compares with the network, and how to serve it."""
    check = Check("32 test pictures", 0.0, 1.0)
    monkeypatch.setattr(student_models, "log", lambda *_: ("m-1", {"model.pt2": check}))
    status, printed, _ = command(capfd, student.info.run_id, "--root", root, "--mlflow")
    assert status == 0
    assert printed.startswith(f"model.pt2: {check}\nlogged to MLflow: models:/m-1\nServe it: ")


@pytest.fixture
def confirmations(store: Store, student: Any) -> list[RunRecord]:
    """Two confirmations of the student's setting with other weights."""
    made = []
    for factor in (2.0, 3.0):
        own = load_file(artifacts(student) / "model.safetensors")
        weights = {name: tensor * factor for name, tensor in own.items()}
        tags = {"kdsweep.role": "distill", "kdsweep.stage": "confirmation", "kdsweep.weights": hash_tensors(weights)}
        with store.run(f"seed {factor}", tags=tags, params={}) as run:
            run.text("config.yaml", (artifacts(student) / "config.yaml").read_text())
            run.made_file("model.safetensors", lambda path, own=weights: write_tensors(path, own))  # type: ignore[misc]
        made.append(store.find(run.id))
    return made


@pytest.mark.slow
def test_the_networks_of_a_study_are_logged_each_with_its_weights(
    root: Path,
    store: Store,
    student: Any,
    confirmations: list[RunRecord],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They share one exported program. Runs of other stages aren't logged, and a repetition has nothing left to do."""
    followed: list[object] = []
    follow = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *own, **more: followed.append(own) or follow(*own, **more))
    search = store.find(student.info.run_id)
    student_models.log_of_study(store, [search, *confirmations], root)
    assert "Logged to MLflow as models: the networks of 2 confirmation runs.\n" in capfd.readouterr().err
    assert len(followed) == 1
    images = pictures(root, student.info.run_id)[:2]
    for run in confirmations:
        folder = store.ask("get_logged_model", logged_model.find(store, run)).artifact_location.removeprefix("file://")
        saved = trained_student.saved_config(store, run)
        cfg = trained_student.config_below(root, saved.config)
        network = trained_student.network(cfg, trained_student.inputs(cfg, saved))
        network.net.load_state_dict(trained_student.weights(store, run, tmp_path))
        logits = torch.export.load(f"{folder}/data/model.pt2").module()(images)
        torch.testing.assert_close(logits, network(images))
    student_models.log_of_study(store, confirmations, root)
    assert capfd.readouterr().err == ""


def test_a_network_that_cannot_be_logged_costs_a_line(
    root: Path,
    store: Store,
    confirmations: list[RunRecord],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A study's are tried once for all seeds; a store that is away or too old, and Ctrl-C, cost a line as well."""
    tried: list[object] = []
    monkeypatch.setattr(torch.export, "export", lambda *own, **_: tried.append(own) or 1 / 0)
    student_models.log_of_study(store, confirmations, root)
    said = capfd.readouterr().err
    remedy = f"To log one: kdsweep-export {confirmations[0].short_id} --mlflow"
    assert re.fullmatch(rf"The networks of 2 runs aren't in MLflow as a model \(.*as pt2.*\)\. {remedy}\n", said), said
    assert len(tried) == 1

    student_models.log_of_run(f"sqlite:///{root}/none/mlflow.db/x", "kdsweep", "0123456789", root)
    assert "The network isn't in MLflow as a model (" in capfd.readouterr().err

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(student_models, "log", interrupted)
    with pytest.raises(KeyboardInterrupt) as ended:
        student_models.log_of_run(store.uri, "kdsweep", "0123456789", root)
    (how,) = ended.value.args
    assert how == "The network isn't in MLflow as a model. To log one: kdsweep-export 01234567 --mlflow"


def test_a_model_that_cannot_be_logged_is_marked(
    root: Path, store: Store, student: Any, exported: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a model is FAILED, and is not taken for the run's."""
    run = store.find(student.info.run_id)
    program = logged_model.Program(exported / "model.pt2", [], np.zeros((1, 32, 32, 3), np.uint8), ["a", "b"])
    monkeypatch.setattr(logged_model, "_write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logged_model.log(store, run, program)
    (experiment,) = client(root).search_experiments(filter_string="name = 'kdsweep'")
    found = client(root).search_logged_models([experiment.experiment_id])
    assert {str(one.status) for one in found} == {"READY", "FAILED"}
    assert logged_model.find(store, run) == model.model_id


@pytest.mark.all
@pytest.mark.slow
def test_mlflow_serves_the_student(root: Path, exported: Path, student: Any, model: Any, tmp_path: Path) -> None:
    """`mlflow models serve`, as the command says it, answers a request with the student's logits."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = ["mlflow", "models", "serve", "--env-manager", "local", "--model-uri", "models:/my students@champion"]
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db", "PATH": programs}
    images = pictures(root, student.info.run_id)[:2]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        answer = asked(server, port, json.dumps({"inputs": images.tolist()}))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    logits = torch.export.load(exported / "model.pt2").module()(images)
    torch.testing.assert_close(torch.tensor(json.loads(answer)["predictions"]), logits)


def asked(server: subprocess.Popen[bytes], port: int, body: str) -> bytes:
    """The answer of a server to a request, as soon as it listens."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    address = f"http://127.0.0.1:{port}/invocations"
    request = urllib.request.Request(address, body.encode(), {"Content-Type": "application/json"})
    while server.poll() is None:
        try:
            return bytes(opener.open(request, timeout=60).read())
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            time.sleep(0.2)
    raise AssertionError("the server has ended")


def test_what_is_there_is_kept(root: Path, store: Store, student: Any, tmp_path: Path) -> None:
    """A folder in use is refused; --force replaces an earlier export, and nothing else."""
    words = student.info.run_id, root, tmp_path / "x", "none"
    export.export(store, *words)
    (tmp_path / "x" / "mine.txt").touch()
    with pytest.raises(UserError, match=r"^--out: there is already something at .*--force"):
        export.export(store, *words)
    export.export(store, *words, force=True)
    assert not (tmp_path / "x" / "mine.txt").exists()
    with pytest.raises(UserError, match=r"^--out: --force replaces earlier exports alone"):
        export.export(store, student.info.run_id, root, root, "none", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [0.5, float("nan")])
def test_a_file_that_gives_other_answers_leaves_nothing(
    root: Path, store: Store, student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: float
) -> None:
    """If the comparison fails, there is an error and no folder."""
    monkeypatch.setattr(network_files, "_write_pt2", lambda network, pictures, path: path.touch())
    monkeypatch.setattr(network_files, "_load_pt2", lambda path: lambda batch: torch.full((len(batch), 10), fault))
    with pytest.raises(RunError, match=r"model.pt2 gives other answers than the network"):
        export.export(store, student.info.run_id, root, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_converted_is_one_line(
    root: Path, store: Store, student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converter's error becomes a RunError that says what else can be done."""
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: 1 / 0)
    with pytest.raises(RunError, match=r"can't be written as pt2 \(ZeroDivisionError.*Try another --format"):
        export.export(store, student.info.run_id, root, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_damaged_weights_are_refused(root: Path, store: Store, student: Any, tmp_path: Path) -> None:
    """Whole files with other numbers, torn files and missing ones: the hash that the run recorded decides."""
    path = artifacts(student) / "model.safetensors"
    kept = shutil.copyfile(path, tmp_path / "kept")
    other = {name: tensor * 0 for name, tensor in load_file(path).items()}
    try:
        for damage in (
            lambda: write_tensors(path, other),
            lambda: path.write_bytes(kept.read_bytes()[:-9]),
            path.unlink,
        ):
            damage()
            with pytest.raises(RunError, match=r"the weights of the run .* are (damaged|missing)"):
                export.export(store, student.info.run_id, root, tmp_path / "x", "none")
    finally:
        kept.rename(path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_or_a_folder_names_its_run(
    root: Path, student: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run is named by its output folder, by its artifacts, or by its config.yaml, wherever that was copied to."""
    (output,) = (root / "outputs").glob("*/*")
    copy = shutil.copy(output / "config.yaml", tmp_path / "mine.yaml")
    for place in (output, artifacts(student), copy):
        out = tmp_path / "out"
        status, printed, _ = command(capfd, place, "--root", root, "--out", out, "--format", "none", "--force")
        assert (status, printed) == (0, f"written to {out}\n")
        assert json.loads((out / "config.json").read_text())["run"] == student.info.run_id


def test_wrong_arguments_are_one_line_and_status_2(
    root: Path,
    student: Any,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No such run, no student, a name that no model can have, a store that isn't there, an extra that is missing."""
    (teacher,) = runs(root, "teacher")
    run_id, here = student.info.run_id, ("--root", root, "--out", tmp_path / "x")
    bare = tmp_path_factory.mktemp("bare") / "bare.yaml"
    bare.write_text(OmegaConf.to_yaml(OmegaConf.load(artifacts(student) / "config.yaml")))
    monkeypatch.setattr(network_files, "ONNX", ("onnx", "no_such_package"))
    cases = [
        (("no-such-run", *here), "There is no run 'no-such-run'"),
        (
            (teacher.info.run_id, *here),
            r"RUN: the run .* is a teacher.*head.safetensors; .* resnet18, random\)",
        ),
        ((root, *here), "there is no config.yaml in the folder"),
        ((bare, *here), ".*bare.yaml is a bare configuration.*Give the run's id."),
        ((run_id, *here, "--register", "a/b"), "--register: `NAME is a word or more, without / and :` must hold"),
        ((run_id, *here, "--register", ""), "--register: "),
        ((run_id, *here, "--alias", "champion"), "--alias: `--alias comes with --register` must hold"),
        ((run_id, *here, "--register", "a", "--alias", "v1"), "--alias: .*neither latest nor a version"),
        ((run_id, "--mlflow", "--format", "onnx"), "--format: `MLflow gets the network as pt2` .*Give --out"),
        ((run_id, *here, "--format", "onnx"), r"--format: .*pip install 'kdsweep\[onnx\]'"),
        ((run_id, "--root", tmp_path), "uri: There is no MLflow store"),
        ((run_id, "--root", root, "--out", root / "mlflow.db" / "x"), "(Not a directory|File exists)"),
        ((run_id, "--root", root, "--out", root / "mlflow.db", "--force"), "--out: --force replaces"),
    ]
    for words, message in cases:
        status, out, err = command(capfd, *words)
        assert (status, out) == (2, ""), (words, err)
        assert re.fullmatch(f"kdsweep-export: {message}.*\n", err), err
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_network_is_refused(root: Path, store: Store) -> None:
    """A study's own run and an interrupted student have none."""
    with store.run("s", tags={"kdsweep.role": "study"}, params={}) as study:
        pass
    with pytest.raises(KeyboardInterrupt), store.run("x", tags={"kdsweep.role": "scratch"}, params={}) as torn:
        raise KeyboardInterrupt
    with pytest.raises(UserError, match=r"is no single run \(study\)"):
        export.export(store, study.id, root)
    with pytest.raises(UserError, match=r"left no trained network \(killed\)"):
        export.export(store, torn.id, root)


def test_paths_move_with_the_project_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths below the old folder move, others stay, and so does what exists in the old place alone."""
    monkeypatch.chdir(tmp_path)
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "kept").mkdir(parents=True)
    paths = {"root": str(old), "data": f"{old}/data"}
    values = [f"{old}/data/x", f"{old}/w.pth", f"{old}er/data", "plain", 3, f"{old}/kept"]
    cfg = trained_student.config_below(new, {"data": {"root": values}, "model": {}, "paths": paths})
    assert cfg.data.root == [f"{new}/data/x", f"{new}/w.pth", *values[2:]]
    relative = {"data": {"root": "./data"}, "model": {}, "paths": {"root": ".", "data": "./data"}}
    assert trained_student.config_below(new, relative).data.root == f"{new}/data"


DATA = {"_target_": "kdsweep.data.digits", "image_size": 8, "n_test": 9, "val_size": 9, "train_fraction": 1.0}
DATA |= {"split_seed": 0, "padding": 0, "flip": False}
RECORDED = {"name": "x", "classes": ["a", "b"], "mean": [0.1] * 3, "std": [0.2] * 3, "picture": [8, 8]}


def test_other_pictures_are_refused(tmp_path: Path) -> None:
    """Another data set would mean another normalisation, so it is refused unless the run recorded its own."""
    cfg = OmegaConf.create({"data": DATA})
    assert trained_student.inputs(cfg, SavedConfig({})).name == "digits"
    with pytest.raises(UserError, match=r"^data: these aren't the pictures"):
        trained_student.inputs(cfg, SavedConfig({}, {"data": "another hash"}))
    inputs = trained_student.inputs(cfg, SavedConfig({}, {"data": "another hash", "inputs": RECORDED}))
    assert (inputs.classes, inputs.pictures.shape[1:], inputs.kind) == (("a", "b"), (8, 8, 3), "random pictures")


def test_missing_pictures_are_done_without_where_the_run_recorded_what_they_told() -> None:
    """This serves a machine that has nothing but the store."""
    cfg = OmegaConf.create({"data": {**DATA, "n_test": 0}})
    with pytest.raises(UserError, match=r"^data.n_test"):
        trained_student.inputs(cfg, SavedConfig({}))
    assert trained_student.inputs(cfg, SavedConfig({}, {"inputs": RECORDED})).name == "x"


def test_a_masked_secret_is_no_value(tmp_path: Path) -> None:
    """*** is never given to a data set as its password."""
    config = {"data": {**DATA, "token": "***"}, "model": {}, "paths": {"root": "."}}
    with pytest.raises(UserError, match=r"^data: a secret of this group wasn't recorded"):
        trained_student.config_below(tmp_path, config)


def test_the_spread_of_a_confirmation_is_its_own_settings() -> None:
    """A study that was extended has fresh seeds of two trials: a student's card counts those of its trial alone."""
    first = [replace(run, parent="study") for run in fresh("distill", [0.5, 0.6], trial=0)]
    second = [replace(run, parent="study") for run in fresh("distill", [0.8, 0.9], trial=5)]
    controls = [replace(run, parent="study") for run in fresh("scratch", [0.1, 0.2])]

    class Children:
        def children(self, parent: str) -> list[RunRecord]:
            return [*first, *controls, *second]

    found = [description._spread(Children(), run) for run in (first[0], second[0], controls[0])]  # type: ignore[arg-type]
    assert [spread.mean if spread else None for spread in found] == pytest.approx([0.55, 0.85, 0.15])


def test_the_spread_of_a_contender_is_its_own() -> None:
    """In a contest, contenders with a trial of the same number, and other conditions, are other settings."""
    runs = {
        (name, place): [
            replace(run, parent="study", tags={**run.tags, "kdsweep.contender": name, "kdsweep.condition": place})
            for run in fresh("distill", tests, trial=0)
        ]
        for name, place, tests in (("kd", "0.1", [0.5, 0.6]), ("kd", "1", [0.8, 0.9]), ("dkd", "1", [0.1, 0.2]))
    }

    class Children:
        def children(self, parent: str) -> list[RunRecord]:
            return [run for own in runs.values() for run in own]

    found = description._spread(Children(), runs["kd", "1"][0])  # type: ignore[arg-type]
    assert found is not None
    assert found.mean == pytest.approx(0.85)
