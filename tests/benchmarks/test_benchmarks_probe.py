"""Claims about the benchmark of the teacher's head: it runs, and its features are like a real network's."""

from __future__ import annotations

import json
from pathlib import Path

import benchmark
import pytest
from benchmarks import probe


@pytest.mark.slow
def test_the_head_is_measured(tmp_path: Path) -> None:
    """At a tiny size: seconds with their goal, and what each weight decay came to, from strong to weak."""
    file = tmp_path / "probe.json"
    words = ["--pictures", "300", "--validation", "50", "--features", "24", "--rounds", "2", "--threads", "1"]
    benchmark.main(["probe", "--json", str(file), *words])
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [figure["goal"] for figure in found["figures"]] == ["<= 10 s", "", ""]
    assert all(figure["value"] > 0 for figure in found["figures"])
    decays = [row["weight_decay"] for row in found["path"]]
    assert decays[0] == 1.0
    assert len(decays) > 2
    assert decays == sorted(decays, reverse=True)
    assert all(row["train_loss"] > 0 for row in found["path"])


def test_its_features_are_like_a_networks() -> None:
    """Not negative, about half zero, correlated; the same each time, and the labels are all there."""
    features, labels = probe.made(2000, 64)
    assert features.min() == 0
    assert 0.4 < (features == 0).double().mean() < 0.8
    assert features.T.corrcoef().abs().fill_diagonal_(0).max() > 0.3
    assert features.equal(probe.made(2000, 64)[0])
    assert labels.unique().tolist() == list(range(probe.CLASSES))
