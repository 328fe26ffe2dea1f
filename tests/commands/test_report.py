"""Claims about `kdsweep-report`: it reports a study in a real MLflow store as it is, and makes plans from it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow import MlflowClient
from read_only import read_only
from records import SPACE

from kdsweep.commands import report
from kdsweep.report import mlflow_note, tables, writing
from kdsweep.report.console import WIDTH
from kdsweep.system.errors import RunError, UserError
from kdsweep.tracking.location import store_uri
from kdsweep.tracking.store import Store

# MLflow 3.17 uses what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

NAME = "first [bold]study[/bold] :smile: [/]"
BASELINE = {"kdsweep.stage": "baseline"}
BINS = [{"count": 0, "confidence": None, "accuracy": None}] * 10 + [
    {"count": 2000, "confidence": 0.7, "accuracy": 0.8}
] * 5
FIGURES = ("differences", "alpha_tau_surface", "learning_curves", "reach", "reliability", "history", "parallel")


def write_run(
    store: Store, parent: str, arm: str, seed: int, accuracy: float, test: float | None, **tags: object
) -> None:
    """A run of four epochs as `kdsweep` writes it; the teacher has one. `params` and `epochs` are not tags."""
    params: Mapping[str, object] = tags.pop("params", {})  # type: ignore[assignment]
    epochs = 1 if arm == "teacher" else int(str(tags.pop("epochs", 4)))
    settings = {"seed": seed, "data._target_": "kdsweep.data.digits", "model.name": "resnet18", "epochs": 4, **params}
    named = {"kdsweep.role": arm, **{f"kdsweep.{key}": str(value) for key, value in tags.items()}}
    with contextlib.suppress(KeyboardInterrupt), store.run(arm, tags=named, params=settings, parent=parent) as run:
        for epoch in range(1, epochs + 1):
            last = 1 if arm == "teacher" else 4
            run.log({"val/accuracy": accuracy * epoch / last, "val/nll": 1 / epoch, "epoch_seconds": 3.0}, epoch)
        if "pruned" in tags:
            raise KeyboardInterrupt
        final = {"seconds": 12.5}
        if test is not None:
            final |= {"test/accuracy": test, "test/nll": 0.5, "test/ece": 0.02}
            final |= {"test/agreement": 0.75} if arm == "distill" else {}
        if tags["stage"] == "confirmation":
            run.text("reliability.json", json.dumps({"bins": BINS}))
        run.summary(final)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a project folder whose store holds a whole study, and an older empty group."""
    root = tmp_path_factory.mktemp("report")
    store = Store(store_uri(f"sqlite:///{root}/mlflow.db", root))
    store.group("multirun/1", "empty group")
    planned = {"n_trials": 7, "baseline_seeds": 2, "confirm_seeds": 3}
    told = {"space": SPACE, "objectives": [["val/accuracy", "maximize"]], "chosen": 5, "planned": planned}
    tags = {"kdsweep.role": "study"} | {f"kdsweep.{key}": json.dumps(value) for key, value in told.items()}
    with store.run(NAME, tags=tags, params={}) as study:
        write_run(store, study.id, "teacher", 0, 0.80, 0.79, stage="baseline")
        for seed, accuracy in enumerate((0.90, 0.92)):
            write_run(store, study.id, "scratch", seed, accuracy, None, stage="baseline")
        for number in range(6):
            params = {"loss.alpha": 0.1 * number, "loss.tau": 1.0 + number}
            write_run(
                store, study.id, "distill", 0, 0.90 + 0.01 * number, None, stage="search", trial=number, params=params
            )
        write_run(
            store, study.id, "distill", 0, 0.5, None, stage="search", trial=6, pruned=2, epochs=2,
            params={"loss.alpha": 0.9, "loss.tau": 9.0},
        )  # fmt: skip
        for seed, noise in zip((1000, 1001, 1002), (0.001, -0.002, 0.001), strict=True):
            write_run(store, study.id, "scratch", seed, 0.91, 0.90 + 0.01 * (seed - 1001), stage="confirmation")
            write_run(store, study.id, "label_smoothing", seed, 0.91, 0.90 + 0.01 * (seed - 1001), stage="confirmation")
            write_run(
                store, study.id, "distill", seed, 0.93, 0.94 + 0.01 * (seed - 1001) + noise, stage="confirmation",
                trial=5, params={"loss.alpha": 0.5, "loss.tau": 6.0},
            )  # fmt: skip
    return root


@pytest.fixture(scope="session")
def printed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text that `kdsweep-report` prints about the latest study, if its output is a file."""
    path = tmp_path_factory.mktemp("out") / "report.txt"
    with path.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        report.main(["--uri", f"sqlite:///{root}/mlflow.db", "--root", str(root)])
    return path.read_text(encoding="utf-8")


@pytest.fixture
def folder(printed: str, root: Path) -> Path:
    """The folder in which the report was written; its name is harmless."""
    return root / "reports" / "first_bold_study_bold_smile"


@pytest.mark.slow
def test_a_study_that_has_ended_is_watched_for_a_moment(root: Path, tmp_path: Path) -> None:
    """--watch shows what it found, and then the whole report."""
    path = tmp_path / "watched.txt"
    with path.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        report.main(["--watch", "--uri", f"sqlite:///{root}/mlflow.db", "--root", str(root), "--out", str(tmp_path)])
    told = path.read_text(encoding="utf-8")
    assert "Best of 6 trials: validation accuracy 95.00%" in told
    assert "distill - scratch: +4.00 points on test" in told
    assert told.count(f"Study {NAME}") == 2
    assert "http-equiv" not in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_table_holds_what_was_logged(printed: str) -> None:
    """Each arm has its row; the students' rows show the fresh seeds, and never the baselines as well."""
    rows = {line[:14].strip(): line[14:].split() for line in printed.splitlines() if line.endswith((" 12.5", " ±0.0"))}
    assert rows["teacher"] == ["1", "80.00", "79.00", "0.500", "2.0", "-", "-", "12.5"]
    assert rows["scratch"][:5] == ["3*", "91.00", "±0.00", "90.00", "±1.00"]
    assert rows["distill"][:5] == ["3*", "93.00", "±0.00", "94.00", "±1.01"]
    assert "target: 86.4% on validation" in printed


@pytest.mark.slow
def test_the_printed_text_says_the_truth(printed: str) -> None:
    """It has the study's name as given, the verdict first, the choice, the pruned trial and the weak teacher."""
    text = " ".join(printed.split())
    assert printed.startswith(f"Study {NAME}\n")
    assert "data digits, student resnet18, teacher -" in text
    assert "18 finished, 1 pruned" in text
    verdict = "Distillation is better than scratch, by 4.00 points on test (95% interval 3.57 to 4.43), and better than"
    assert text.index(verdict) < text.index("arm runs")
    assert "distill is trial 5 (alpha 0.5, tau 6), best of 6 trials by validation accuracy (1 pruned besides)" in text
    assert "The search overstated its choice by 2.00 points" in text
    assert "Pruning stopped 1 of 7 trials and saved 2 of 28 epochs" in text
    assert "79.00%, below scratch and below distill. From a weaker teacher" in text
    assert max(map(len, printed.splitlines()[:30])) <= WIDTH


@pytest.mark.slow
def test_the_files_are_where_the_report_says(printed: str, folder: Path) -> None:
    """All figures, the page and the numbers exist and are named."""
    for name in (*(f"{figure}.png" for figure in FIGURES), "report.html", "report.json"):
        assert (folder / name).stat().st_size > 0
        assert f"  {folder / name}\n" in printed


@pytest.mark.slow
def test_report_json_is_plain_json(folder: Path) -> None:
    """The numbers aren't rounded; the deviation of a single run is null."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((folder / "report.json").read_text(), parse_constant=refuse)
    arms = {arm["arm"]: arm for arm in content["arms"]}
    assert arms["scratch"]["confirmed"]
    assert arms["scratch"]["metrics"]["test/accuracy"]["sd"] == pytest.approx(0.01)
    assert arms["teacher"]["metrics"]["test/accuracy"] == {"mean": 0.79, "sd": None, "n": 1}
    assert [trial["number"] for trial in content["trials"]] == [5, 4, 3, 2, 1, 0]
    comparison = content["verdict"]["comparisons"][0]
    assert comparison["difference"]["mean"] == pytest.approx(0.04)
    assert comparison["seeds"] == [1000, 1001, 1002]
    assert content["pruned"][0]["value"] == pytest.approx(0.25)  # half of what it would have reached


@pytest.mark.slow
def test_the_files_are_attached_to_the_study(printed: str, root: Path) -> None:
    """MLflow shows the page and the figures at the parent run."""
    uri = f"sqlite:///{root}/mlflow.db"
    parent = Store(uri).study(NAME).parent
    artifacts = {item.path for item in MlflowClient(tracking_uri=uri).list_artifacts(parent.id, "report")}
    assert artifacts == {f"report/{name}.png" for name in FIGURES} | {"report/report.html", "report/report.json"}


def test_a_reader_of_a_study_gets_a_report_too(
    printed: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is written on this machine; that it isn't attached is said."""
    with read_only(root / "mlartifacts"):
        report.main([NAME, "--root", str(root), "--out", str(tmp_path)])
    told = capsys.readouterr()
    assert "The report isn't attached to the study's run in MLflow: " in told.err
    assert "Read-only file system" in told.err
    assert "\nWritten:\n" in told.out
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_the_verdict_is_the_description_of_the_study(
    printed: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's UI shows it with the arms and the findings; a description that a user wrote stays."""
    uri = f"sqlite:///{root}/mlflow.db"
    store, client = Store(uri), MlflowClient(tracking_uri=uri)
    parent = store.study(NAME).parent.id

    def description() -> str:
        return str(client.get_run(parent).data.tags["mlflow.note.content"])

    ours = description()
    lines = ours.splitlines()
    assert lines[0].startswith("**")
    assert lines[0].strip("*") in " ".join(printed.split())
    assert "| arm | runs | validation accuracy % | test accuracy %" in ours
    assert "- The search overstated its choice by 2.00 points" in ours
    found = writing.write(store, NAME, tmp_path / "again")
    assert description() == ours
    assert len(store.history(parent, "study/distill-scratch/difference")) == 1  # the same numbers are not added again
    for theirs in ("Mine.", f"Mine.\n\n{ours}"):
        client.set_tag(parent, "mlflow.note.content", theirs)
        writing.write(store, NAME, tmp_path / "again")
        assert description() == theirs
    client.set_tag(parent, "mlflow.note.content", "")
    writing.write(store, NAME, tmp_path / "again")
    assert description() == ours
    # MLflow takes 8,000 characters.
    long = mlflow_note.note(dataclasses.replace(found, findings=("word " * 300,) * 20, missing=("Short.",)))
    assert 6000 < len(long) <= 8000
    assert "\n- Short.\n- 16 more in the report\n" in long
    for rows, there in ((2, True), (900, False)):
        table = tables.Table(("\n\narm",), (("a | <b>",),) * rows, "*: fresh", named=True)
        monkeypatch.setattr(tables, "arms", lambda _, table=table: table)
        text = mlflow_note.note(found)
        assert (r"| a \| \<b> |" in text and r"\*: fresh" in text) is there
        assert len(text) <= 8000


@pytest.mark.slow
def test_the_studys_run_has_the_verdict_as_metrics(printed: str, root: Path) -> None:
    """Studies can be sorted by them in MLflow."""
    store = Store(f"sqlite:///{root}/mlflow.db")
    parent = store.study(NAME).parent
    assert parent.metrics["study/distill-scratch/difference"] == pytest.approx(0.04)
    assert parent.metrics["study/distill-scratch/low"] == pytest.approx(0.0357, abs=1e-4)
    assert (parent.metrics["study/alpha"], parent.metrics["study/tau"]) == (0.5, 6)


@pytest.mark.slow
def test_a_description_that_is_refused_costs_no_report(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If a store has a lower limit, one line says so, and all files are written."""

    def refuse(self: Store, run_id: str, text: str) -> None:
        raise RunError("too long")

    monkeypatch.setattr(Store, "describe", refuse)
    caplog.set_level("INFO")
    found = writing.write(Store(f"sqlite:///{root}/mlflow.db"), NAME, tmp_path)
    assert all(path.exists() for path in found.files)
    assert "keeps the description that it had: too long" in caplog.text


@pytest.mark.slow
def test_a_group_without_runs_is_reported(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report of a plain multirun has no figures and says what is missing; --out decides where it goes."""
    arguments = ["empty group", "--uri", f"sqlite:///{root}/mlflow.db", "--out", str(tmp_path / "out")]
    report.main(arguments)
    assert "no finished distilled run" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.json"}


def test_a_list_names_what_there_is(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Studies and grids with the number of their runs, the latest last."""
    store = Store(f"sqlite:///{root}/mlflow.db")
    report.main(["--list", "--uri", store.uri])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    named = {run.id[:8]: str(len(store.children(run.id))) for run in store.studies()}
    shown = {
        words[1]: words[-1 if words[0] == "grid" else -2] for words in lines if len(words) > 1 and words[1] in named
    }
    assert shown == named


@pytest.mark.slow
def test_an_unknown_study_names_the_known_ones(root: Path, tmp_path: Path) -> None:
    """The error lists the studies that there are."""
    with pytest.raises(UserError, match=r"Known: .*empty group"):
        writing.write(Store(f"sqlite:///{root}/mlflow.db"), "nope", tmp_path)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the one line with which the command ends."""
    with pytest.raises(SystemExit) as left:
        report.main(arguments)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_no_store_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a store, nothing is created, and the error says how to make one."""
    refused(["--uri", f"sqlite:///{tmp_path}/mlflow.db", "--root", str(tmp_path)], capsys)
    assert list(tmp_path.iterdir()) == []


# Plans


@pytest.mark.slow
def test_a_plan_takes_its_numbers_from_a_study(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Noise, trials and seconds come from the study, the difference from the command line."""
    report.main(["--plan", NAME, "--uri", f"sqlite:///{root}/mlflow.db", "--difference", "2"])
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("To see a difference of 2.00 points")
    assert "one run's accuracy has a standard deviation of 1.00 points" in text
    assert "2 each of scratch and label smoothing, 7 trials" in text


def test_a_plan_needs_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If the noise is given, no study is needed, and no store is created."""
    report.main(["--plan", "--noise", "0.2", "--root", str(tmp_path)])
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("To see a difference of 0.30 points")
    assert "0.20 points over seeds" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--noise", "0"], "--noise: `noise > 0` must hold"),
        (["--noise", "nan"], "--noise: `noise > 0` must hold"),
        (["--noise", "1", "--difference", "-1"], "--difference: `difference > 0` must hold"),
        (["--noise", "1", "--jobs", "0"], "--jobs: `jobs >= 1` must hold"),
        ([], "Or give the noise in points: --noise 0.2."),
    ],
)
def test_a_plan_says_what_is_wrong_with_it(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Impossible numbers are refused, and so is a plan without a store to take the noise from."""
    assert told in refused(["--plan", "--root", str(tmp_path), *words], capsys)


@pytest.mark.slow
def test_a_study_without_repeated_runs_makes_no_plan(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The noise has to be given, or a study has to know it."""
    assert "no repeated runs" in refused(["--plan", "empty group", "--uri", f"sqlite:///{root}/mlflow.db"], capsys)


def test_infinities_are_null() -> None:
    """JSON has no numbers for NaN and infinities."""
    assert writing._plain({"a": (math.inf, math.nan, 1.5)}) == {"a": [None, None, 1.5]}
