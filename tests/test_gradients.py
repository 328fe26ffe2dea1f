"""Claims about the teacher's part of the gradient: its share, its size, and what it costs a training."""

from __future__ import annotations

import functools

import pytest
import torch

from kdsweep.gradients import alpha_of, of_the_teacher
from kdsweep.losses import ce, kd, label_smoothing

generator = torch.Generator().manual_seed(0)
STUDENT, TEACHER = (torch.randn(8, 5, generator=generator, dtype=torch.float64) for _ in range(2))
LABELS = torch.arange(8) % 5


def told(alpha: float, tau: float, scale: float = 1.0) -> tuple[float, float]:
    """The share and the ratio for a setting of kd; `scale` multiplies the teacher's logits."""
    found = of_the_teacher(functools.partial(kd, alpha=alpha, tau=tau), STUDENT, scale * TEACHER, LABELS)
    assert found is not None
    share, ratio = found.tolist()
    return share, ratio


def test_the_share_runs_from_none_to_all() -> None:
    """Without the teacher's part the gradient is cross-entropy's; with nothing else its share is 100 %."""
    assert told(0.0, 4.0) == pytest.approx((0, 1), abs=1e-6)
    assert told(1.0, 4.0)[0] == pytest.approx(1)
    assert 0 < told(0.2, 4.0)[0] < told(0.8, 4.0)[0] < 1


@pytest.mark.parametrize(("alpha", "tau"), [(0.3, 1.0), (0.7, 4.0), (1.0, 1000.0), (1.0, 0.01)])
def test_the_gradients_are_those_of_the_paper(alpha: float, tau: float) -> None:
    """Hinton et al. 2015: the teacher's part pulls with tau * (q - p), the labels' part with softmax - onehot."""
    q, p = (logits.div(tau).softmax(1) for logits in (STUDENT, TEACHER))
    teachers = alpha * tau * (q - p) / len(LABELS)
    plain = (STUDENT.softmax(1) - torch.nn.functional.one_hot(LABELS, 5)) / len(LABELS)
    labels = (1 - alpha) * plain
    share, ratio = told(alpha, tau)
    assert share == pytest.approx(float(teachers.norm() / (teachers.norm() + labels.norm())), rel=1e-3)
    assert ratio == pytest.approx(float((teachers + labels).norm() / plain.norm()), rel=1e-3)


def test_a_teacher_that_agrees_leaves_the_labels_alone() -> None:
    """Where student and teacher are equal there is no pull, and alpha shortens the step."""
    found = of_the_teacher(functools.partial(kd, alpha=0.75, tau=2.0), STUDENT, STUDENT, LABELS)
    assert found is not None
    assert found.tolist() == pytest.approx([0, 0.25], abs=1e-6)


def test_other_losses_are_not_taken_apart() -> None:
    """Only a loss of the known form has a part that is the teacher's."""
    assert alpha_of(functools.partial(kd, alpha=0.3, tau=1.0)) == 0.3
    assert alpha_of(functools.partial(kd.__wrapped__, alpha=0.3, tau=1.0)) == 0.3  # type: ignore[attr-defined]
    assert alpha_of(ce) is None
    assert alpha_of(functools.partial(label_smoothing, smoothing=0.1)) is None
    assert of_the_teacher(ce, STUDENT, TEACHER, LABELS) is None


def test_nothing_flows_into_the_network() -> None:
    """The student's own gradient, and its graph, stay as they were."""
    weights = torch.randn(5, 5, requires_grad=True)
    logits = STUDENT.float() @ weights
    of_the_teacher(functools.partial(kd, alpha=0.5, tau=4.0), logits, TEACHER.float(), LABELS)
    assert weights.grad is None
    logits.sum().backward()
