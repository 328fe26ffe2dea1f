"""Claims about a job's configuration: it is Hydra's own to the letter, and what jobs share is composed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from benchmarks import running
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from kdsweep.composition import MOST_KEPT, Composer, composed
from kdsweep.jobs import Task


@pytest.fixture
def task(tmp_path: Path) -> Iterator[Task]:
    """What the jobs of a command share that was given one value, and one of Hydra's own."""
    with running.task(["sweep=demo", "epochs=7", "hydra.job.chdir=false"], tmp_path) as shared:
        yield shared


def by_hydra(task: Task, lines: Sequence[str]) -> DictConfig:
    return task.hydra_context.config_loader.load_sweep_config(task.config, ["sweep=demo", *lines])


def by_us(task: Task, lines: Sequence[str]) -> DictConfig:
    return composed(task.hydra_context.config_loader, task.config, ["sweep=demo", *lines])


# A study's jobs name it too.
TRIAL = ("sweep=demo", "experiment=debug", "loss.alpha=0.3", "hydra.sweep.subdir=trial-0001", "loss.tau=2.5")


@pytest.mark.parametrize(
    "lines",
    [
        (),
        TRIAL,
        ("loss.alpha=0.3", "experiment=debug", "loss.alpha=0.7"),
        ("experiment=scratch", "seed=3", "n_passes=5", "tracking.job=scratch-3"),
        ("loss=ce", "teacher=none", "optimizer=adamw", "optimizer.betas=[0.8,0.9]"),
        ("optimizer={lr: 0.5}",),
        ("data=digits", "data.val_size=0.1", "paths.root='a folder, {50%}'", "tracking.uri=null"),
        ("model=resnet50", "teacher.network.input_size=${data.image_size}", "objective=[val/nll,val/ece]"),
        ("+loss.extra=1", "loss.alpha=0.2", "++loss.extra=2"),
        ("loss.alpha=0.1", "~loss.tau"),
        ("hydra.job.num=3", "seed=1"),
        ("hydra.sweep.subdir=a", "hydra.sweep.subdir=b"),
    ],
)
def test_a_configuration_is_hydras_own(task: Task, lines: tuple[str, ...]) -> None:
    """With all of Hydra's part: overrides in their order, choices, folders; also the second time, from what is kept."""
    expected = OmegaConf.to_yaml(by_hydra(task, lines))
    for _ in range(2):
        found = by_us(task, lines)
        assert OmegaConf.to_yaml(found) == expected
    assert found.hydra.sweep.dir == task.config.hydra.sweep.dir
    assert OmegaConf.is_struct(found)
    assert OmegaConf.is_readonly(found.hydra) == OmegaConf.is_readonly(by_hydra(task, lines).hydra)


@pytest.mark.parametrize(
    "lines",
    [
        ("loss.alhpa=1",),
        ("loss=nothing",),
        ("seed=1", "loss.alpha.deeper=2"),
        ("hydra.sweep.dri=x",),
        ("loss.alpha=[",),
        ("loss.alpha=1,2",),
        ("hydra/sweeper=basic",),
    ],
)
def test_what_hydra_refuses_is_refused_in_its_words(task: Task, lines: tuple[str, ...]) -> None:
    """A key or an option that isn't there, and what can't be read."""
    with pytest.raises(HydraException) as theirs:
        by_hydra(task, lines)
    with pytest.raises(type(theirs.value)) as ours:
        by_us(task, lines)
    assert str(ours.value) == str(theirs.value)


def test_jobs_that_differ_in_values_are_composed_once(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra composes once for each choice of options; what a job does to its configuration stays its own."""
    loader = task.hydra_context.config_loader
    asked: list[Sequence[str]] = []
    own = loader.load_sweep_config
    monkeypatch.setattr(loader, "load_sweep_config", lambda config, lines: (asked.append(lines), own(config, lines))[1])
    composer = Composer(loader, task.config)
    first = composer.composed(TRIAL)
    first.loss.alpha = 0.9
    second = composer.composed([*TRIAL, "loss.tau=5.0"])
    assert (second.loss.alpha, second.loss.tau) == (0.3, 5.0)
    composer.composed(["sweep=demo", "experiment=scratch", "seed=1"])
    assert asked == [["sweep=demo", "experiment=debug"], ["sweep=demo", "experiment=scratch"]]


def test_only_so_many_are_kept(task: Task) -> None:
    """A sweep over options of many groups doesn't fill the memory."""
    composer = Composer(task.hydra_context.config_loader, task.config)
    for number in range(MOST_KEPT):
        composer._kept[str(number),] = task.config
    composer.composed(["sweep=demo", "loss=ce"])
    assert len(composer._kept) == 1
