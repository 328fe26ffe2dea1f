"""Losses: against the papers' formulas written out in float64, and the identities that they obey."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from kdsweep import loss_rules, losses
from kdsweep.config import build
from kdsweep.losses import ce, kd, kl_divergence, label_smoothing
from kdsweep.system.errors import UserError

ALPHAS = (0.0, 0.3, 1.0)
TAUS = (0.5, 1.0, 4.0, 20.0)


def batch(n: int = 8, classes: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher (n, classes), and labels (n,)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, n, classes, generator=generator, dtype=torch.float64).to(dtype)
    return student.requires_grad_(), teacher, torch.randint(classes, (n,), generator=generator)


def softmax(logits: list[float], tau: float = 1.0) -> list[float]:
    """Hinton et al. 2015, equation 1."""
    powers = [math.exp(value / tau) for value in logits]
    return [power / sum(powers) for power in powers]


def slow_kd(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, tau: float) -> float:
    """(1 - alpha) * CE + alpha * tau^2 * KL(teacher_tau || student_tau), Hinton et al. 2015, arXiv 1503.02531.

    Summed over classes, averaged over the batch, in natural logarithm.
    """
    total = 0.0
    for z, v, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        hard = -math.log(softmax(z)[label])
        soft = sum(p * math.log(p / q) for p, q in zip(softmax(v, tau), softmax(z, tau), strict=True))
        total += (1 - alpha) * hard + alpha * tau**2 * soft
    return total / len(labels)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_kd_is_the_papers_formula(alpha: float, tau: float, dtype: torch.dtype, precision: float) -> None:
    """The loss equals the sum written out, to the precision of its dtype."""
    student, teacher, labels = batch(dtype=dtype)
    expected = slow_kd(student.double(), teacher.double(), labels, alpha, tau)
    assert kd(student, teacher, labels, alpha=alpha, tau=tau).item() == pytest.approx(expected, rel=precision)


@pytest.mark.parametrize("tau", TAUS)
def test_the_gradient_is_the_papers(tau: float) -> None:
    """At alpha = 1 it is tau * (softmax(z / tau) - softmax(v / tau)) for each example: equation 2 times tau^2."""
    student, teacher, labels = batch()
    kd(student, teacher, labels, alpha=1, tau=tau).backward()
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = [
        [tau * (q - p) / len(labels) for q, p in zip(softmax(z, tau), softmax(v, tau), strict=True)] for z, v in rows
    ]
    torch.testing.assert_close(student.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tau", [0.001, 0.1, 1000.0])
def test_extreme_temperatures_give_finite_numbers(tau: float) -> None:
    """In float32 the loss and its gradient are finite, and at a high temperature the gradient is that of the limit."""
    student, teacher, labels = batch(dtype=torch.float32)
    kd(student, teacher, labels, alpha=1.0, tau=tau).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    if tau == 1000.0:  # Hinton et al. 2015, equation 4, with the factor tau^2: differences of centred logits
        apart = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
        torch.testing.assert_close(student.grad, apart.detach() / apart.numel(), rtol=0.02, atol=1e-3)


def test_the_gradient_keeps_its_size_when_tau_grows() -> None:
    """Without tau^2 it would shrink to nothing; with it, it tends to (z - v) / classes for centred logits (eq. 4)."""
    student, teacher, labels = batch()
    kd(student, teacher, labels, alpha=1, tau=1e4).backward()
    difference = (student - teacher).detach()
    limit = (difference - difference.mean(dim=1, keepdim=True)) / student.shape[1] / len(labels)
    torch.testing.assert_close(student.grad, limit, rtol=1e-2, atol=1e-5)


def test_alpha_zero_is_cross_entropy() -> None:
    """Value and gradient are cross-entropy's, bit for bit, whatever tau is."""
    for dtype in (torch.float32, torch.float64):
        student, teacher, labels = batch(dtype=dtype)
        (expected,) = torch.autograd.grad(ce(student, None, labels), student)
        for tau in TAUS:
            loss = kd(student, teacher, labels, alpha=0, tau=tau)
            assert torch.equal(loss, ce(student, None, labels))
            assert torch.equal(torch.autograd.grad(loss, student)[0], expected)


def test_a_configuration_that_knows_alpha_and_tau_alone_has_the_same_bits() -> None:
    """Saved configurations of before have no direction: kd's value is the plain formula's, to the last bit."""
    saved = OmegaConf.create(
        {"loss": {"_target_": "kdsweep.losses.kd", "_partial_": True, "alpha": 0.3, "tau": 4.0}},
    )
    for dtype in (torch.float32, torch.float64):
        student, teacher, labels = batch(dtype=dtype)
        soft = kl_divergence(student, teacher, 4.0).mean()
        expected = (1 - 0.3) * F.cross_entropy(student, labels) + 0.3 * 4.0**2 * soft
        assert torch.equal(build.component(saved, "loss")(student, teacher, labels), expected)


def test_alpha_one_ignores_the_labels() -> None:
    """All of the loss is then the teacher's."""
    student, teacher, labels = batch()
    others = (labels + 1) % student.shape[1]
    assert torch.equal(kd(student, teacher, labels, alpha=1, tau=2), kd(student, teacher, others, alpha=1, tau=2))


@pytest.mark.parametrize("tau", TAUS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(tau: float) -> None:
    """The divergence of equal logits is 0 for every example, and so is its gradient."""
    student, _, labels = batch()
    assert kl_divergence(student, student.detach(), tau).tolist() == [0] * len(labels)
    loss = kd(student, student.detach().clone(), labels, alpha=1, tau=tau)
    loss.backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-15


def test_a_constant_added_to_logits_changes_nothing() -> None:
    """Each example's logits may be shifted, the student's and the teacher's alike."""
    student, teacher, labels = batch()
    shift = torch.linspace(-50, 50, len(labels), dtype=torch.float64)[:, None]
    for loss in (
        lambda s, t: kd(s, t, labels, alpha=0.6, tau=3),
        lambda s, t: label_smoothing(s, t, labels, smoothing=0.1),
    ):
        torch.testing.assert_close(loss(student + shift, teacher - shift), loss(student, teacher))


def test_no_gradient_reaches_the_teacher() -> None:
    """The teacher's logits stay as they are, even if they could be trained."""
    student, teacher, labels = batch()
    teacher.requires_grad_()
    kd(student, teacher, labels, alpha=0.5, tau=2).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_divergence_is_taken_from_the_teacher() -> None:
    """It is KL(teacher || student), one number for each example, not the reverse."""
    sure, unsure = torch.tensor([[2.0, 0.0]]).log_softmax(1), torch.tensor([[0.0, 0.0]]).log_softmax(1)
    p = softmax([2.0, 0.0])
    assert kl_divergence(unsure, sure).tolist() == pytest.approx([sum(x * math.log(2 * x) for x in p)])
    assert kl_divergence(sure, unsure).tolist() == pytest.approx([sum(0.5 * math.log(0.5 / x) for x in p)])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_is_the_papers_formula(smoothing: float) -> None:
    """Cross-entropy with (1 - s) * onehot + s / K, Szegedy et al. 2016, arXiv 1512.00567, section 7."""
    student, _, labels = batch()
    total = 0.0
    for z, label in zip(student.tolist(), labels.tolist(), strict=True):
        target = [(1 - smoothing) * (k == label) + smoothing / len(z) for k in range(len(z))]
        total -= sum(t * math.log(q) for t, q in zip(target, softmax(z), strict=True))
    found = label_smoothing(student, None, labels, smoothing=smoothing).item()
    assert found == pytest.approx(total / len(labels), rel=1e-12)


def test_cross_entropy_does_not_ask_the_teacher() -> None:
    """With or without a teacher, it is the mean negative log-probability of the label."""
    student, teacher, labels = batch()
    rows = zip(student.tolist(), labels.tolist(), strict=True)
    expected = -sum(math.log(softmax(z)[label]) for z, label in rows) / len(labels)
    assert ce(student, teacher, labels).item() == ce(student, None, labels).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        *(("alpha", value, "0 <= alpha <= 1") for value in (-0.1, 1.1, math.nan, math.inf, "half", None, True)),
        *(("tau", value, "0 < tau < inf") for value in (0, 0.0, -1, math.nan, math.inf, "hot", None, False)),
        *(("smoothing", value, "0 <= smoothing <= 1") for value in (-0.1, 1.1, math.nan, "much", None, True)),
    ],
)
def test_wrong_numbers_are_refused(key: str, value: object, rule: str) -> None:
    """Out of range, NaN or no number: one line names the key, the rule and the value."""
    others: dict[str, Any] = {} if key == "smoothing" else {"alpha": 0.5, "tau": 2.0}
    loss = label_smoothing if key == "smoothing" else kd
    with pytest.raises(UserError) as raised:
        loss(*batch(), **others | {key: value})
    assert str(raised.value).startswith(f"{key}: `{rule}` must hold, but got {key}={value!r}.")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("loss", [kd, label_smoothing])
def test_the_check_can_be_left_out(loss: Any) -> None:
    """`__wrapped__` is the same loss without the check: a run that has checked its settings trains with it."""
    settings: dict[str, Any] = {"smoothing": 0.1} if loss is label_smoothing else {"alpha": 0.5, "tau": 2.0}
    assert torch.equal(loss.__wrapped__(*batch(), **settings), loss(*batch(), **settings))
    wrong = dict.fromkeys(settings, True)  # a number to torch, and none to the rules
    with pytest.raises(UserError):
        loss(*batch(), **wrong)
    loss.__wrapped__(*batch(), **wrong)


def test_a_rule_takes_the_settings_of_its_loss() -> None:
    """Each rule belongs to a loss, by its full name; other functions have none."""
    for name, rule in loss_rules.RULES.items():
        loss = getattr(losses, name)
        assert loss_rules.rule_of(f"{loss.__module__}.{loss.__name__}") is rule
        settings = {key for key, kind in inspect.signature(loss).parameters.items() if kind.kind is kind.KEYWORD_ONLY}
        assert inspect.signature(rule).parameters.keys() == settings - losses.GIVEN
    assert loss_rules.rule_of("kdsweep.losses.ce") is None
    assert loss_rules.rule_of("others.losses.kd") is None


def test_the_ends_of_the_ranges_are_taken() -> None:
    """Alpha and smoothing may be 0 and 1, as whole numbers too."""
    student, teacher, labels = batch()
    for share in (0, 1, 0.0, 1.0):
        kd(student, teacher, labels, alpha=share, tau=1)
        label_smoothing(student, teacher, labels, smoothing=share)


def test_kd_without_a_teacher_is_refused() -> None:
    """The message says what to choose instead."""
    student, _, labels = batch()
    with pytest.raises(UserError, match=r"kd needs a teacher, but teacher is null\. .*loss=ce"):
        kd(student, None, labels, alpha=0, tau=1)


def test_a_teacher_with_other_classes_is_refused() -> None:
    """Both numbers of classes are named."""
    student, teacher, labels = batch()
    with pytest.raises(UserError, match=r"the student has 5 classes and the teacher 4\. .*teacher\.network\.head"):
        kd(student, teacher[:, :4], labels, alpha=0.5, tau=1)
