"""Claims about plain grids: which jobs they launch, and below which MLflow run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import SHORT
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext

from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.execution import grid
from kdsweep.system.processes import this_process
from kdsweep.tracking.run_records import ARM_TAG, RunRecord
from kdsweep.tracking.store import Store

pytestmark = pytest.mark.slow

JOBS = [[f"loss.alpha={alpha}"] for alpha in (0.1, 0.2, 0.3)]


class Launcher:
    """Makes a run for each job, but ends as it is told to when it comes to a certain one."""

    def __init__(self, store: Store, end: BaseException | None = None, at: str = "") -> None:
        self._store, self._end, self._at = store, end, at
        self.launched: list[tuple[int, str]] = []

    def launch(self, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        for number, (*_, alpha, parent, name) in enumerate(jobs, start=initial_job_idx):
            tags = {ARM_TAG: "distill", "kdsweep.job": name.partition("=")[2]}
            with self._store.run(alpha, tags=tags, params={}, parent=parent.partition("=")[2]):
                if self._end is not None and alpha == self._at:
                    raise self._end
            self.launched.append((number, alpha))
        return [SimpleNamespace(return_value=0.5) for _ in jobs]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a grid."""
    monkeypatch.setenv("KDSWEEP_HOME", str(tmp_path))
    monkeypatch.setattr(grid.build, "rehearse", lambda cfg: None)
    with initialize_config_dir(str(CONFIG_FOLDER)):
        yield tmp_path


@pytest.fixture
def store(root: Path) -> Store:
    return Store(f"sqlite:///{root}/mlflow.db")


def run(launcher: Launcher, *words: str, jobs: Sequence[Sequence[str]] = JOBS) -> None:
    fixed = [*SHORT, *words]
    config = compose("config", fixed, return_hydra_config=True)
    loader = GlobalHydra.instance().config_loader()
    context = HydraContext(config_loader=loader, callbacks=None)  # type: ignore[arg-type]
    grid.run_grid(context, config, launcher, [[*fixed, *job] for job in jobs], None)  # type: ignore[arg-type]


def groups(store: Store) -> list[RunRecord]:
    return store.tagged(arm="group")


def test_an_interrupted_grid_goes_on_below_the_same_run(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """What is finished isn't made again, jobs keep their numbers, and the run's time isn't 0 s."""
    with pytest.raises(KeyboardInterrupt):
        run(Launcher(store, KeyboardInterrupt(), "loss.alpha=0.2"))
    (group,) = groups(store)
    assert group.status == "KILLED"
    later = Launcher(store)
    run(later)
    (group,) = groups(store)
    assert group.status == "FINISHED"
    assert later.launched == [(1, "loss.alpha=0.2"), (2, "loss.alpha=0.3")]
    assert "1 of 3 runs of this grid are finished" in capsys.readouterr().err
    names = [child.name for child in store.children(group.id) if child.status == "FINISHED"]
    assert names == [job[0] for job in JOBS]


def test_another_grid_or_a_finished_one_gets_a_run_of_its_own(store: Store) -> None:
    """Also with other fixed values, and with resume=false."""
    with pytest.raises(KeyboardInterrupt):
        run(Launcher(store, KeyboardInterrupt(), "loss.alpha=0.1"))
    for words, jobs in (((), JOBS[:1]), ((), JOBS[:1]), (("epochs=3",), JOBS), (("resume=false",), JOBS)):
        run(launcher := Launcher(store), *words, jobs=jobs)
        assert len(launcher.launched) == len(jobs)
    assert [group.status for group in groups(store)] == ["KILLED", *["FINISHED"] * 4]


def test_a_grid_whose_job_fails_has_failed(store: Store) -> None:
    """The job has told the reason; the repeated command makes that job again."""
    with pytest.raises(SystemExit) as end:
        run(Launcher(store, SystemExit(1), "loss.alpha=0.2"))
    assert end.value.code == 1
    (group,) = groups(store)
    assert (group.status, "a job failed" in group.tags["kdsweep.error"]) == ("FAILED", True)
    run(later := Launcher(store))
    assert [number for number, _ in later.launched] == [1, 2]
    assert [group.status for group in groups(store)] == ["FINISHED"]


def test_a_grid_that_another_process_makes_is_left_alone(store: Store) -> None:
    """Two terminals may run the same one."""

    class Both(Launcher):
        def launch(self, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
            run(Launcher(store))
            return super().launch(jobs, initial_job_idx)

    run(Both(store))
    assert [len(store.children(group.id)) for group in groups(store)] == [3, 3]


def test_batches_count_on_without_gaps() -> None:
    """A launcher numbers the jobs of a batch from its first."""
    assert list(grid._batches([0, 1, 3, 4, 5, 7], None)) == [[0, 1], [3, 4, 5], [7]]
    assert list(grid._batches([0, 1, 3, 4, 5, 7], 2)) == [[0, 1], [3, 4], [5], [7]]


def test_a_job_that_is_wrong_is_named_before_any_is_launched(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A later job's value, a component, or a key that nothing reads."""
    for job, fault in (
        (["loss.alpha=2"], "loss.alpha: `0 <= alpha <= 1`"),
        (["optimizer.lr=-1"], "optimizer"),
        (["+alpha=1"], "alpha: nothing reads"),
    ):
        launcher = Launcher(store)
        with pytest.raises(SystemExit) as end:
            run(launcher, jobs=[*JOBS, job])
        shown = capsys.readouterr().err
        assert end.value.code == 2
        assert shown.startswith(f"kdsweep: {fault}")
        assert "(job 3: " in shown
        assert job[0] in shown
        assert (launcher.launched, groups(store)) == ([], [])


def test_the_grid_of_a_dead_process_goes_on() -> None:
    """And one that this process, or another, makes now doesn't."""
    record: Any = SimpleNamespace(status="RUNNING", tags={})
    here = this_process()
    for process, interrupted in ((here, False), (replace(here, birth=f"{here.birth}0"), True)):
        record.tags["kdsweep.process"] = str(process)
        assert grid._interrupted(record) is interrupted
