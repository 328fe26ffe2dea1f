"""Claims about the benchmarks of training: at a tiny size each measures the product and says what it should."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmark
import pytest
import torch
from benchmarks import distill, evaluate, limit, losses, online, parts, peers, views
from benchmarks.measuring import Figure, Turns

from kdsweep.table_check import CONTROL_ROWS, Asked
from kdsweep.tables import Tables

QUICK = "shufflenet_v2_x0_5"
TINY = ("--pictures", "16", "--rounds", "1", "--student", QUICK, "--teacher", QUICK, "--precision", "fp32")
SMALL = ("--batch", "8")
LARGE = ("--large", "16", "--large-side", "48")


def measured(name: str, folder: Path, *words: str) -> dict[str, Any]:
    """What the subcommand wrote; its figures by name."""
    benchmark.main([name, *TINY, *words, "--json", str(folder / "found.json")])
    found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return {**found, "figures": {figure["name"]: figure for figure in found["figures"]}}


def goals(found: dict[str, Any]) -> list[str]:
    """The goals of the figures that have one, in order."""
    return [figure["goal"] for figure in found["figures"].values() if figure["goal"]]


def assert_positive(found: dict[str, Any]) -> None:
    """All figures have a value, rates as well as ratios."""
    values = [figure["value"] for figure in found["figures"].values()]
    assert all(value is not None and 0 < value < math.inf for value in values)


def turns(**seconds: Sequence[float]) -> Turns:
    return Turns(seconds, disturbed=0)


# --------------------------------------------------------------------------------------------------- the product's


@pytest.mark.all
@pytest.mark.slow
def test_training_is_measured_against_a_bare_loop(tmp_path: Path) -> None:
    """Both losses at each batch size; the two sides take as many steps of as many pictures."""
    found = measured("limit", tmp_path, "--batch", "8", "16")
    names = [f"training against a bare loop, {loss}, batch {batch}" for batch in (8, 16) for loss in ("ce", "kd")]
    assert [name for name in found["figures"] if "against" in name] == names
    assert_positive(found)
    assert [found[key]["steps"] for key in ("ce 8", "kd 8", "ce 16", "kd 16")] == [2, 2, 1, 1]
    for loss in ("ce", "kd"):
        (fit,), (bare,) = (found[f"{loss} 8"]["seconds"][side] for side in ("kdsweep", "bare"))
        assert found["figures"][f"training against a bare loop, {loss}, batch 8"]["value"] == pytest.approx(bare / fit)
        assert found["figures"][f"kdsweep, {loss}, batch 8"]["value"] == pytest.approx(16 / fit)


def test_the_goals_of_the_limit_are_those_of_two_batch_sizes() -> None:
    """0.95 at 128, 0.99 at 512, and at no other size."""
    assert limit.GOALS == {128: 0.95, 512: 0.99}
    arguments = benchmark.parser().parse_args(["limit"])
    assert arguments.batch == [128, 512]
    assert arguments.loss == ["ce", "kd"]


@pytest.mark.slow
def test_a_bare_loop_trains_the_students_own_way(tmp_path: Path) -> None:
    """It moves the weights by the configured optimizer, as many steps as an epoch has: the fixed batch is learnt."""
    arguments = benchmark.parser().parse_args(["limit", *TINY, "--student", "resnet18"])
    with parts.workplace(arguments) as folder:
        training = parts.Training(
            parts.configuration(arguments, folder, "scratch", "batch_size=8", "optimizer.lr=0.02")
        )
        pictures, labels = training.data.train.images[:8], training.labels[:8]
        side = limit.bare_epochs(training, guided=False)
        before = torch.nn.functional.cross_entropy(training.network(pictures), labels).item()
        for _ in range(4):
            side()
        after = torch.nn.functional.cross_entropy(training.network(pictures), labels).item()
    assert training.steps == 2
    assert after < before / 2


@pytest.mark.all
@pytest.mark.slow
def test_a_distilled_epoch_is_measured_with_all_tables(tmp_path: Path) -> None:
    """Warm against scratch, as it is and for CIFAR's size; cold ones shared by 1, 10 and 50 trials at both sizes."""
    found = measured("distill", tmp_path, *SMALL, *LARGE)
    assert_positive(found)
    assert goals(found) == ["<= 1.03", "<= 1.03"]
    (scratch,), (warm,) = (found["seconds"][side] for side in ("scratch", "distilled"))
    for size in (32, 48):
        (a_pass,) = found["seconds"][f"pass at {size} px"]
        for n, words in ((1, "one trial"), (10, "10 trials share each pass"), (50, "50 trials share each pass")):
            name = f"a distilled epoch against a scratch epoch, cold table, teacher at {size} px, {words}"
            assert found["figures"][name]["value"] == pytest.approx((warm + a_pass / n) / scratch)


@pytest.mark.slow
def test_a_warm_epoch_reads_and_verifies_its_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch that is measured finds its pass in the table, unverified: the teacher answers a few rows, not all."""
    arguments = benchmark.parser().parse_args(["distill", *TINY])
    asked: dict[str, int] = {}
    rows = Tables.rows

    def counted(self: Tables, name: str, n: int, compute: Any, network: Asked) -> torch.Tensor:
        def counting(way: Any) -> Any:
            def count(indices: torch.Tensor) -> torch.Tensor:
                asked[name] = asked.get(name, 0) + len(indices)
                return way(indices)

            return count

        return rows(self, name, n, counting(compute), Asked(counting(network.plain), network.shaken))

    monkeypatch.setattr(Tables, "rows", counted)
    with parts.workplace(arguments) as folder:
        overrides = "batch_size=8", "teacher.network.input_size=null"
        side = parts.warm_epochs(parts.Training(parts.configuration(arguments, folder, "distill", *overrides)))
        assert all(16 < n <= 16 + CONTROL_ROWS + 16 for n in asked.values())
        for _ in range(2):
            asked.clear()
            side()
            assert asked == {"pass-0000": CONTROL_ROWS, "pass-0001": CONTROL_ROWS}


@pytest.mark.all
@pytest.mark.slow
def test_views_are_measured_as_share_of_an_epoch(tmp_path: Path) -> None:
    """Many epochs' views against one epoch, and the ratio is that of one to one."""
    found = measured("views", tmp_path, *SMALL)
    assert_positive(found)
    assert goals(found) == ["<= 0.015"]
    (made,), (epoch,) = (found["seconds"][side] for side in ("views", "epoch"))
    assert found["figures"]["views, of an epoch's time"]["value"] == pytest.approx(made / views.TIMES / epoch)


@pytest.mark.all
@pytest.mark.slow
def test_losses_are_measured_beside_cross_entropy(tmp_path: Path) -> None:
    """Each loss has its share of a step, which is the difference of many values to as many of cross-entropy."""
    found = measured("losses", tmp_path, *SMALL, "--loss", "kd", "kd_scheduled")
    (kd,), (ce,), (epoch,) = (found["seconds"][side] for side in ("kd", "ce", "step"))
    share = (kd - ce) / losses.TIMES / (epoch / 2)
    assert found["figures"]["kd more than ce, of a step"]["value"] == pytest.approx(share)
    assert found["figures"]["kd_scheduled, value and gradient"]["value"] > 0


@pytest.mark.slow
def test_evaluation_is_measured_as_share_of_an_epoch(tmp_path: Path) -> None:
    """Rates of a few pictures, and from them the share for 45,000 and 5,000."""
    found = measured("evaluate", tmp_path, *SMALL, "--evaluated", "8")
    assert_positive(found)
    assert goals(found) == ["<= 0.03", "<= 0.03"]
    (epoch,), (own,) = (found["seconds"][side] for side in ("epoch", "scratch"))
    training, validation = 45_000 * epoch / 16, 5_000 * own / 8
    share = found["figures"]["evaluation of a scratch epoch's student, of the epoch's time"]["value"]
    assert share == pytest.approx(validation / (training + validation))
    assert evaluate.GOAL == 0.03


# ------------------------------------------------------------------------------------------------ others' loops


@pytest.mark.all
@pytest.mark.slow
def test_a_live_teacher_is_measured_in_both_loops(tmp_path: Path) -> None:
    """At both sizes, in seconds a picture, whatever the sides' steps are."""
    found = measured("online", tmp_path, *SMALL, *LARGE)
    assert_positive(found)
    for size in (32, 48):
        own = found[f"{size} px"]
        (table,), (live,), (usual,) = (own["seconds"][side] for side in ("table", "online", "usual"))
        assert own["pictures"] == {"table": 16, "live": 16}
        name = f"teacher at {size} px, against a warm table"
        assert found["figures"][f"teacher.mode=online, {name}"]["value"] == pytest.approx(live / table)
        assert found["figures"][f"the usual loop, {name}"]["value"] == pytest.approx(usual / table)
    assert online.measure.__doc__


@pytest.mark.all
@pytest.mark.slow
def test_peers_that_cannot_be_installed_are_skipped_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tutorial's loop, which needs nothing, is measured all the same."""
    # One that pip can't find, and one that is said to need nothing and isn't there.
    packages = {"usual": None, "torchdistill": None, "KD_Lib": "no-such-package @ file:///nowhere"}
    monkeypatch.setattr(peers, "PACKAGES", packages)
    found = measured("peers", tmp_path, *SMALL, *LARGE, "--venv", str(tmp_path / "venv"))
    assert goals(found) == [">= 2.5", ">= 2.5", ">= 2.5", ">= 80", ">= 60"]
    assert found["figures"]["usual, teacher at 32 px, against a warm table"]["value"] > 0
    skipped = {name: figure["note"] for name, figure in found["figures"].items() if figure["value"] is None}
    assert len(skipped) == 4
    assert all(note.startswith("skipped: ") for note in skipped.values())
    for size, words in ((32, "a warm table"), (48, "a warm table"), (48, "a table made for 20 trials")):
        note = skipped[f"torchdistill, teacher at {size} px, against {words}"]
        assert "the loop torchdistill has ended: ModuleNotFoundError: No module named 'torchdistill" in note


def test_a_table_is_shared_by_trials(tmp_path: Path) -> None:
    """A peer's step, against a share of kdsweep's epoch and a twentieth of a pass, all of as many pictures."""
    arguments = SimpleNamespace(large=4, large_side=224, rounds=1, threads=1)
    found = peers.Peers(arguments, tmp_path, Path(sys.executable), SimpleNamespace(pictures=8), lambda: 1.0)  # type: ignore[arg-type]
    figures = found.large_figures(turns(kdsweep=[2.0], torchdistill=[100.0], **{"pass": [20.0]}), {})
    assert [(figure.value, figure.goal) for figure in figures[:2]] == [(100.0, 80.0), (50.0, 60.0)]


# ------------------------------------------------------------------------------------------------------ figures


def test_a_computed_figure_is_the_median_over_rounds() -> None:
    """Of what each round's seconds give, with their range."""
    figure = parts.computed("sum", turns(a=[1.0, 2.0, 9.0], b=[1.0, 1.0, 1.0]), lambda s: s["a"] + s["b"], goal=3.0)
    assert figure == Figure("sum", 3.0, 3.0, spread=(2.0, 10.0))


def test_the_threads_are_put_back() -> None:
    """A benchmark leaves torch as it found it."""
    before = torch.get_num_threads()
    with parts.workplace(SimpleNamespace(threads=before + 1)):  # type: ignore[arg-type]
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_goals_are_the_issues() -> None:
    """What stands beside the figures."""
    assert (distill.GOAL, views.GOAL, evaluate.GOAL) == (1.03, 0.015, 0.03)
    assert (peers.GOAL_SMALL, peers.GOAL_LARGE, peers.GOAL_SHARED) == (2.5, 80.0, 60.0)
