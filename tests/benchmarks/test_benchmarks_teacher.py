"""Claims about the benchmark of the teacher's passes, and about the table of all benchmarks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import benchmark
import pytest
from benchmarks import report, tables
from benchmarks.measuring import Figure

from kdsweep.numerics.compiling import has_compiler
from kdsweep.system.errors import UserError


@pytest.mark.all
@pytest.mark.slow
def test_a_teacher_is_measured(tmp_path: Path) -> None:
    """Each way of computing a pass has its speed, and its logits agree with the plain network's."""
    words = ["--teacher", "resnet18", "--side", "32", "--batch", "4", "--rounds", "1", "--precision", "fp32"]
    benchmark.main(["teacher", *words, "--json", str(tmp_path / "teacher.json")])
    found = json.loads((tmp_path / "teacher.json").read_text(encoding="utf-8"))
    figures = {figure["name"]: figure for figure in found["figures"]}
    ways = ["product, short pass", *(["product, long pass"] if has_compiler() else [])]
    for way in ways:
        assert figures[way]["value"] > 0
        assert figures[f"distance of logits from eager fp32, of their spread, {way}"]["value"] < 1e-3
    if has_compiler():
        assert figures["distance of a long pass's logits from a short one's, in rounding noise"]["holds"] is True
    assert figures[f"{ways[-1]}, times eager fp32"]["value"] > 0
    assert figures["eager fp32"]["unit"] == "pictures/s"


@pytest.mark.all
@pytest.mark.slow
def test_the_check_of_tables_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No right table is refused and no wrong one is believed, for a ResNet18 in two precisions, three heads."""
    monkeypatch.setattr(tables, "NETWORKS", {"resnet18": ("torchvision", "resnet18", None, 64)})
    monkeypatch.setattr(tables, "PRECISIONS", ("fp32", "bf16"))
    benchmark.main(["tables", "--seeds", "1", "--json", str(tmp_path / "tables.json")])
    figures = json.loads((tmp_path / "tables.json").read_text(encoding="utf-8"))["figures"]
    assert len(figures) == 7
    assert all(figure["holds"] for figure in figures)
    assert all("tables" in figure["note"] for figure in figures)


def test_a_report_is_a_table_of_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Value, range, goal and whether it holds; what couldn't be measured has its reason; no line is broken."""
    figures = [
        Figure("a distilled epoch against a scratch epoch " * 3, 1.04, 1.03, spread=(1.01, 1.2)),
        Figure("pictures", 1056.4, unit="pictures/s"),
        Figure("peers", math.nan, 2.5, at_most=False, note="it can't be installed"),
    ]
    written = {"title": "distill", "notes": ["On a quiet machine."], "machine": {"line": "AMD EPYC, not busy."}}
    path = tmp_path / "distill.json"
    path.write_text(json.dumps({**written, "figures": [figure.values() for figure in figures]}), encoding="utf-8")
    benchmark.main(["report", str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "### distill"
    assert lines[4].endswith("| 1.04 | 1.01 - 1.2 | <= 1.03 | **no** |")
    assert lines[5] == "| pictures | 1,056 pictures/s |  |  |  |"
    assert lines[6] == "| peers (it can't be installed) | - |  | >= 2.5 |  |"
    assert lines[-3:] == ["On a quiet machine.", "", "AMD EPYC, not busy."]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"title": "x"}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    """In one line that names the file."""
    (tmp_path / "other.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"a file written by --json.*other\.json"):
        report.read(tmp_path / "other.json")
