"""A study that was written to a real MLflow store is reported as what it is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow import MlflowClient
from records import record, summary, trial

from kdsweep import report
from kdsweep.errors import UserError
from kdsweep.stores import store_uri
from kdsweep.tracking import Store

# MLflow 3.17 uses what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

NAME = "first [bold]study[/bold] :smile: [/]"


# What is printed


def test_nothing_at_all_is_still_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    """A study that has just begun prints what is not there yet."""
    report.show(summary())
    printed = capsys.readouterr().out
    assert "runs: no runs" in printed
    assert "no finished distilled run" in printed
    assert "no finished scratch run" in printed


def test_trials_without_baselines(capsys: pytest.CaptureFixture[str]) -> None:
    """There is a table and no target; nothing is said about a difference."""
    found = summary(trial(0, 0.5, 4))
    report.show(found)
    assert found.target is None
    assert "target:" not in capsys.readouterr().out
    assert not any("On test" in finding for finding in found.findings)


def test_a_run_without_test_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    """A missing metric is a dash, not a zero."""
    report.show(summary(record("scratch", test=None)))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("scratch")]
    assert row.split() == ["scratch", "1", "90.00", "-", "-", "-", "-", "never", "10.0"]


def test_runs_that_never_reach_the_target_are_not_averaged_away(capsys: pytest.CaptureFixture[str]) -> None:
    """Of two scratch runs one gets there: the cell says so; a distilled run that doesn't: never."""
    runs = (record("scratch", val=0.9), record("scratch", val=0.7), trial(0, 0.5, 4))
    report.show(summary(*runs, curves={0: [0.5, 0.9], 1: [0.6, 0.7], 2: [0.1, 0.2]}))
    printed = capsys.readouterr().out
    assert "2.0 (1 of 2)" in printed
    assert "never" in printed


def test_lines_fit_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """The widest table, three runs an arm, keeps to 100 characters without breaking a cell."""
    values = (0.91, 0.92, 0.93)
    runs = [record(role, val=v, test=v) for role in ("teacher", "scratch", "label_smoothing") for v in values]
    report.show(summary(*runs, *(trial(number, 0.01234 * number, 2) for number in range(40))))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= report.WIDTH
    assert "label smoothing     3  92.00 ±1.00  92.00 ±1.00" in printed
    assert "the best 10 of 40" in printed


def test_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At 80 columns the deviation stands under the mean, and every number is whole."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal
    monkeypatch.setenv("COLUMNS", "80")
    report.show(summary(record("scratch", val=0.9), record("scratch", val=0.92)))
    printed = capsys.readouterr().out
    assert "91.00 " in printed
    assert "±1.41" in printed
    assert "91.00 ±1.41" not in printed
    assert "…" not in printed


# A real store


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder whose store holds a whole study, and an empty group that is older."""
    root = tmp_path_factory.mktemp("report")
    store = Store(store_uri(f"sqlite:///{root}/mlflow.db", root))
    store.group("multirun/1", "empty group")
    with store.run(NAME, tags={"kdsweep.role": "study"}, params={}) as study:
        write_run(store, study.id, "teacher", 0, 0.80)
        for seed, accuracy in enumerate((0.90, 0.92)):
            write_run(store, study.id, "scratch", seed, accuracy)
            write_run(store, study.id, "label_smoothing", seed, accuracy + 0.01)
        for number in range(6):
            params = {"loss.alpha": 0.1 * number, "loss.tau": 1.0 + number}
            write_run(store, study.id, "distill", 0, 0.90 + 0.01 * number, params, trial=str(number))
        tags = {"kdsweep.role": "distill"}
        with pytest.raises(RuntimeError), store.run("bad", tags=tags, params={}, parent=study.id):
            raise RuntimeError("a trial that failed")
    return root


def write_run(
    store: Store, parent: str, role: str, seed: int, accuracy: float, params: Mapping[str, object] = {}, trial: str = ""
) -> None:
    """A run of four epochs as `kdsweep` writes it; the teacher has one."""
    tags = {"kdsweep.role": role, "kdsweep.trial": trial}
    settings = {"seed": seed, "data._target_": "kdsweep.data.digits", "model.name": "resnet18", **params}
    with store.run(role, tags=tags, params=settings, parent=parent) as run:
        for epoch in range(1, 2 if role == "teacher" else 5):
            last = 1 if role == "teacher" else 4
            run.log({"val/accuracy": accuracy * epoch / last, "val/nll": 1 / epoch}, epoch)
        final = {"test/accuracy": accuracy - 0.01, "test/nll": 0.5, "test/ece": 0.02, "seconds": 12.5}
        run.summary(final | ({"test/agreement": 0.75} if role == "distill" else {}))


@pytest.fixture(scope="session")
def printed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `kdsweep-report` prints into a file about the latest study."""
    import contextlib

    path = tmp_path_factory.mktemp("out") / "report.txt"
    with path.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        report.main(["--uri", f"sqlite:///{root}/mlflow.db", "--root", str(root)])
    return path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_table_holds_what_was_logged(printed: str) -> None:
    """Each arm's row, read back from the store: runs, accuracies, NLL, ECE, agreement, epochs to 86.4 %, seconds."""
    rows = {line[:16].strip(): " ".join(line[16:].split()) for line in printed.splitlines() if " 12.5" in line}
    assert rows == {
        "teacher": "1 80.00 79.00 0.500 2.0 - - 12.5",
        "scratch": "2 91.00 ±1.41 90.00 ±1.41 0.500 ±0.000 2.0 ±0.0 - 4.0 ±0.0 12.5 ±0.0",
        "label smoothing": "2 92.00 ±1.41 91.00 ±1.41 0.500 ±0.000 2.0 ±0.0 - 4.0 ±0.0 12.5 ±0.0",
        "distill": "1 95.00 94.00 0.500 2.0 75.0 4.0 12.5",
    }
    assert "target: 86.4% on validation" in printed


@pytest.mark.slow
def test_the_printed_text_says_the_truth(printed: str) -> None:
    """The study's name as it was given, the failed run, the choice, the difference and the weak teacher."""
    text = " ".join(printed.split())
    assert printed.startswith(f"Study {NAME}\n")
    assert "data digits, student resnet18, teacher -" in text
    assert "11 finished, 1 failed" in text
    assert "distill is trial 5 (alpha 0.5, tau 6), best of 6 trials on validation, one run" in text
    assert "is 4.00 points more accurate than scratch (90.00%, mean of 2 runs)" in text
    assert "79.00%, below scratch and below distill. From a weaker teacher" in text
    assert max(map(len, printed.splitlines()[:30])) <= report.WIDTH


@pytest.mark.slow
def test_the_files_are_where_the_report_says(printed: str, root: Path) -> None:
    """The named files exist under <root>/reports/<study>, and the folder's name is harmless."""
    folder = root / "reports" / "first_bold_study_bold_smile"
    for name in ("alpha_tau_surface.png", "learning_curves.png", "report.json"):
        assert (folder / name).stat().st_size > 0
        assert f"  {folder / name}\n" in printed


@pytest.mark.slow
def test_report_json_is_plain_json(printed: str, root: Path) -> None:
    """The file holds the numbers unrounded, and null where one run has no deviation."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    path = root / "reports" / "first_bold_study_bold_smile" / "report.json"
    content = json.loads(path.read_text(), parse_constant=refuse)
    arms = {arm["arm"]: arm["metrics"]["test/accuracy"] for arm in content["arms"]}
    assert arms["scratch"] == {"mean": pytest.approx(0.90), "sd": pytest.approx(0.01 * math.sqrt(2)), "n": 2}
    assert arms["distill"] == {"mean": pytest.approx(0.94), "sd": None, "n": 1}
    assert [trial["number"] for trial in content["trials"]] == [5, 4, 3, 2, 1, 0]


@pytest.mark.slow
def test_the_files_are_attached_to_the_study(printed: str, root: Path) -> None:
    """MLflow shows the figures at the parent run."""
    uri = f"sqlite:///{root}/mlflow.db"
    parent = Store(uri).study(NAME).parent
    artifacts = {item.path for item in MlflowClient(tracking_uri=uri).list_artifacts(parent.id, "report")}
    assert artifacts == {"report/alpha_tau_surface.png", "report/learning_curves.png", "report/report.json"}


@pytest.mark.slow
def test_a_group_without_runs_is_reported(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plain multirun by name: no figures, and what is missing; the files go where --out says."""
    arguments = ["empty group", "--uri", f"sqlite:///{root}/mlflow.db", "--out", str(tmp_path / "out")]
    report.main(arguments)
    assert "no finished distilled run" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]


@pytest.mark.slow
def test_an_unknown_study_names_the_known_ones(root: Path, tmp_path: Path) -> None:
    """A misspelt name: the error lists what there is."""
    with pytest.raises(UserError, match=r"Known: .*empty group"):
        report.write(Store(f"sqlite:///{root}/mlflow.db"), "nope", tmp_path)


def test_no_store_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a store nothing is created, and the user is told how to make one."""
    with pytest.raises(SystemExit) as left:
        report.main(["--uri", f"sqlite:///{tmp_path}/mlflow.db", "--root", str(tmp_path)])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
