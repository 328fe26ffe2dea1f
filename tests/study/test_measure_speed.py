"""Claims about the measurement before a study: what it finds, and that it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SHORT
from hydra import compose, initialize_config_dir

from kdsweep.config import build, identities
from kdsweep.config.checks import check
from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.study import measure_speed
from kdsweep.study.measure_speed import measure, missing_passes, student_speed
from kdsweep.system.environment import cores
from kdsweep.system.errors import UserError
from kdsweep.system.tensor_files import write_tensors
from kdsweep.tables import Tables


def config(root: Path, *words: str) -> Any:
    """Composes the configuration of a short run, as a study hands it over."""
    with initialize_config_dir(str(CONFIG_FOLDER)):
        cfg = compose("config", [*SHORT, f"paths.root={root}", *words])
    check(cfg)
    return cfg


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes measurements short, since here they needn't be right."""
    monkeypatch.setattr(measure_speed, "STEPS_SECONDS", 0.0)
    monkeypatch.setattr(measure_speed, "FORWARD_SECONDS", 0.01)


@pytest.mark.slow
def test_a_measurement_knows_the_study(tmp_path: Path) -> None:
    """Pictures, epochs and passes come from the configuration, and cores from the machine; speeds are positive."""
    found = measure(config(tmp_path, "n_passes=7", "epochs=5"))
    assert (found.n_train, found.n_validation, found.n_test) == (64, 32, 32)
    assert (found.batch_size, found.epochs, found.n_passes, found.train_fraction) == (16, 5, 7, 1.0)
    assert (found.threads, found.cores, found.gpus, found.online) == (1, cores(), 0, False)
    assert min(found.step_seconds, found.evaluation_rate, found.teacher_rate or 0) > 0
    assert (found.passes_missing, found.features_missing) == (tuple(range(7)), 64 + 32 + 32)


@pytest.mark.slow
def test_a_measurement_knows_the_size_of_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss on pooled features is timed with them, and their passes have to fit on the disk."""
    cfg = config(tmp_path, "n_passes=7", "loss=sum_feature")
    found = measure(cfg)
    assert found.step_seconds > 0
    assert (found.passes_missing, found.feature_bytes) == (tuple(range(7)), 7 * 64 * 512 * 2)
    monkeypatch.setattr(Tables, "free_bytes", lambda self: 1000)
    with pytest.raises(
        UserError, match=r"the teacher's features fit on the disk.* take 0\.4 MiB, and 0\.1 MiB are free"
    ):
        measure(cfg)


@pytest.mark.slow
def test_a_measurement_changes_nothing(tmp_path: Path) -> None:
    """Random numbers go on as before, threads are as they were, and no file is written."""
    before = torch.get_num_threads()
    cfg = config(tmp_path, "threads=2")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    torch.set_num_threads(3)
    found = measure(cfg, threads=1)
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert (found.threads, after) == (1, 3)
    assert torch.equal(torch.rand(3), expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_student_without_a_teacher_is_measured_alone(tmp_path: Path) -> None:
    """For a baseline's configuration there are no values about a teacher."""
    found = measure(
        config(tmp_path, "experiment=scratch", "data=synthetic", "data.image_size=32", "model.stem=imagenet")
    )
    assert (found.teacher_rate, found.passes_missing, found.features_missing) == (None, (), 0)


@pytest.mark.slow
def test_tables_that_are_there_are_not_missing(tmp_path: Path) -> None:
    """Once its head is trained, the teacher lacks the passes that no run has asked for; before that it lacks all."""
    cfg = config(tmp_path, "n_passes=3")
    teacher = build.untrained_teacher(cfg)
    teacher.answers(1)  # of another head than the one that will be trained
    teacher.features("test")
    assert missing_passes(cfg, build.untrained_teacher(cfg)) == (0, 1, 2)
    with torch.no_grad():
        teacher.network.head.weight.mul_(2)
    write_tensors(identities.head_path(cfg, teacher), teacher.network.head.state_dict())
    trained = build.untrained_teacher(cfg)
    trained.network.head.load_state_dict(teacher.network.head.state_dict())
    trained.answers(2)
    assert missing_passes(cfg, build.untrained_teacher(cfg)) == (0, 1)
    found = measure(cfg)
    assert (found.passes_missing, found.features_missing) == ((0, 1), 64 + 32)


@pytest.mark.slow
@pytest.mark.parametrize("trained", [True, False])
def test_a_teacher_online_has_no_passes(tmp_path: Path, trained: bool) -> None:
    """It lacks no passes, whether its head is to be trained or not."""
    cfg = config(tmp_path, "teacher.mode=online")
    if not trained:  # as where its weights bring a head
        cfg.teacher.head = None
    found = measure(cfg)
    assert (found.online, found.passes_missing) == (True, ())


@pytest.mark.parametrize(("patience", "believed"), [(100.0, 0.25), (4.0, 0.5), (2.0, 9.0)])
def test_a_slow_step_is_measured_on_part_of_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float, believed: float
) -> None:
    """If a whole step would take too long, a smaller one is scaled: here 8 pictures stand for a batch of 64.

    The median of the steps without the first is believed; the first one alone, only if it took too much time.
    """
    sizes: list[int] = []

    def fit(_: object, views: object, labels: torch.Tensor, **__: object) -> list[dict[str, float]]:
        sizes.append(len(labels))
        return [{"epoch_seconds": seconds} for seconds in (9.0, 0.5, 0.25, 0.25)]

    monkeypatch.setattr(measure_speed, "Fit", fit)
    monkeypatch.setattr(measure_speed, "STEPS_SECONDS", patience)
    monkeypatch.setattr(measure_speed, "STEP_SECONDS", 1e-9)
    step_seconds, _ = student_speed(config(tmp_path, "batch_size=200"))
    assert sizes == [8]
    assert step_seconds == believed * 64 / 8


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kd", "ce", "label_smoothing", "sum"])
def test_every_loss_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    """Losses with and without a teacher are measured, even if they diverge at the second step."""
    monkeypatch.setattr(measure_speed, "STEPS_SECONDS", 100.0)
    cfg = config(tmp_path, f"loss={loss}", "optimizer.lr=1e30", "schedule=constant")
    assert student_speed(cfg)[0] > 0


@pytest.mark.slow
def test_what_is_refused_is_refused_here_too(tmp_path: Path) -> None:
    """For instance a data set that can't be split."""
    with pytest.raises(UserError, match=r"^data\.val_size: "):
        measure(config(tmp_path, "data.val_size=96"))
