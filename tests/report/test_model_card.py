"""Claims about kdsweep.report.model_card: the card tells what was measured, and its code loads the network."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kdsweep.analysis.sorted_runs import Spread
from kdsweep.models import Architecture
from kdsweep.report.model_card import Card, Check, loading, plain, render, shortened
from kdsweep.tracking.run_records import RunRecord

RUN = RunRecord(
    id="0123456789abcdef",
    name="distill alpha=0.5",
    status="FINISHED",
    start=datetime(2026, 1, 2, tzinfo=UTC),
    duration_s=3.0,
    params={"seed": "3", "teacher.network.name": "resnet50", "loss.alpha": "0.5", "loss.tau": "4.0"},
    metrics={"val/accuracy": 0.9125, "val/nll": 0.31},
    tags={"kdsweep.role": "distill", "kdsweep.stage": "single"},
)


def interface(resize: int | None = None, stem: str = "imagenet", library: str = "torchvision") -> dict[str, Any]:
    statistics = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    return {
        "data": "digits",
        "architecture": {"library": library, "name": "resnet18", "stem": stem},
        "classes": ["cat", "dog"],
        "input": {"height": 24, "width": 24, "resize": resize, **statistics},
        "weights": "abc",
    }


def card(run: RunRecord = RUN, **changes: Any) -> str:
    known = Card(run, interface(), "seed: 3\n", "bf16", 11, {"model.pt2": Check("9 test pictures", 2e-6, 1.0)}, None)
    return render(replace(known, **changes))


@pytest.mark.parametrize("resize", [None, 32, 16])
@pytest.mark.parametrize(
    ("library", "stem"), [("torchvision", "imagenet"), ("torchvision", "cifar"), ("timm", "imagenet")]
)
def test_the_cards_code_answers_as_the_network(
    resize: int | None, library: str, stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines in the card load the files beside it, and preprocess as the network does."""
    torch.manual_seed(0)
    told = interface(resize, stem, library)
    architecture = Architecture(library, "resnet18", stem, None, "name", "new", "none", resize, None, None)
    network = architecture.build(2, told["input"]["mean"], told["input"]["std"]).eval()
    save_file(
        {name: tensor.contiguous() for name, tensor in network.net.state_dict().items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(told))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"pictures": torch.randint(0, 256, (3, 24, 24, 3), dtype=torch.uint8)}
    with torch.no_grad():
        exec(loading(told), names)
        torch.testing.assert_close(names["logits"], network(names["pictures"]))


def test_numbers_say_how_they_were_measured() -> None:
    """The card has test numbers if the run has them; else it says that the test split wasn't read."""
    assert "| validation accuracy % | 91.25 |" in card()
    assert "not read by this run" in card()
    tested = card(replace(RUN, metrics={"test/accuracy": 0.88}))
    assert "| test accuracy % | 88.00 |" in tested
    assert "read the test split once" in tested


def test_a_confirmed_arm_has_its_mean_and_deviation() -> None:
    """There are mean and sd over fresh seeds; a single run, or a spread of one run, is called one run."""
    assert "mean" not in card().partition("## How to load")[0]
    assert "numbers of one run" in card(spread=Spread(0.9, float("nan"), 1))
    text = card(spread=Spread(0.9, 0.0021, 5))
    assert "Over the 5 fresh seeds of this arm the test accuracy is 90.00 % with a standard deviation of 0.21" in text


def test_a_trial_says_that_it_was_selected_by_validation() -> None:
    """The winner's curse is named where it may apply."""
    trial = replace(RUN, tags={**RUN.tags, "kdsweep.stage": "search"})
    assert "chose among the trials" in card(trial)
    assert "chose among the trials" not in card()


def test_the_check_of_each_file_is_told() -> None:
    """It has pictures, difference and agreement; without an exported file, its loading isn't described."""
    assert "- model.pt2: 9 test pictures, largest difference 2.0e-06, same class 100.00%" in card()
    assert "torch.export.load" not in card(checks={})


def test_names_cannot_bring_markup() -> None:
    """A data set, class or run whose name looks like HTML, a table cell or a fence stays a name."""
    names = {**interface(), "data": "<script>alert(1)</script>", "classes": ["a|b\n# c", "[x](javascript:y)"]}
    text = card(replace(RUN, name="`x` **y**"), interface=names, config="a: |\n  ```\n  <img src=x>\n")
    assert "<script" not in text
    assert "[x](" not in text
    assert "\n# c" not in text
    assert "\n````yaml\na: |\n  ```\n  <img src=x>\n````\n" in text
    assert plain("a_b `c` _d_ <e>") == r"a_b \`c\` \_d\_ &lt;e&gt;"


def test_every_block_of_code_is_closed() -> None:
    """The card is one Markdown document, without a gap where something is unknown."""
    text = card(replace(RUN, params={}, tags={}))
    assert len(re.findall("^```", text, re.MULTILINE)) % 2 == 0
    assert "None" not in text


def test_many_classes_are_counted() -> None:
    """Only the first names are listed."""
    assert shortened(["a"] * 3) == "a, a, a"
    assert shortened([str(n) for n in range(22)], 2) == "0, 1 and 20 more"
