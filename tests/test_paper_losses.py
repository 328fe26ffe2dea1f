"""The losses of later papers: against their formulas written out in float64, and the identities that they obey."""

from __future__ import annotations

import inspect
import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_losses import batch, softmax
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from kdsweep import loss_rules
from kdsweep.losses import ce, dist, divergence, dkd, kd, label_smoothing, mse, nkd, tf_kd, wttm
from kdsweep.system.errors import UserError

TAUS = (0.5, 1.0, 4.0)
DIRECTIONS = ("forward", "reverse", "js")

# Each loss with settings in which all of its terms count.
LOSSES: dict[str, Callable[..., Tensor]] = {
    "kd": partial(kd, alpha=0.4, tau=3.0),
    "kd_reverse": partial(kd, alpha=0.4, tau=3.0, direction="reverse"),
    "kd_js": partial(kd, alpha=0.4, tau=3.0, direction="js"),
    "kd_standardized": partial(kd, alpha=0.4, tau=3.0, standardize=True),
    "dkd": partial(dkd, ce_weight=1.0, target_weight=0.7, others_weight=8.0, tau=4.0),
    "nkd": partial(nkd, ce_weight=1.0, target_weight=0.7, others_weight=1.5, tau=2.0),
    "dist": partial(dist, ce_weight=1.0, inter_weight=0.7, intra_weight=2.0, tau=2.0),
    "wttm": partial(wttm, ce_weight=1.0, weight=0.7, tau=5.0),
    "mse": partial(mse, alpha=0.4),
    "tf_kd": partial(tf_kd, alpha=0.4, tau=20.0, correct=0.99),
}
TAUGHT = [name for name in LOSSES if name != "tf_kd"]

# The settings at which the teacher isn't heard.
OFF: dict[str, dict[str, float]] = {
    **{name: {"alpha": 0.0} for name in ("kd", "kd_reverse", "kd_js", "kd_standardized", "mse", "tf_kd")},
    **{name: {"target_weight": 0.0, "others_weight": 0.0} for name in ("dkd", "nkd")},
    "dist": {"inter_weight": 0.0, "intra_weight": 0.0},
    "wttm": {"weight": 0.0},
}


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def rows(student: Tensor, teacher: Tensor, labels: Tensor) -> list[tuple[list[float], list[float], int]]:
    return list(zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True))


def without(values: list[float], index: int) -> list[float]:
    return values[:index] + values[index + 1 :]


def hard(z: list[float], label: int) -> float:
    return -math.log(softmax(z)[label])


def standardized(z: list[float]) -> list[float]:
    """Sun et al. 2024: (z - mean) / (1e-7 + sd), the sd that of a sample, as in their code."""
    mean, sd = statistics.fmean(z), statistics.stdev(z)
    return [(value - mean) / (1e-7 + sd) for value in z]


def slow_kd(
    z: list[float], v: list[float], y: int, alpha: float, tau: float, direction: str, standardize: bool
) -> float:
    """(1 - alpha) * CE + alpha * tau^2 * D, where D compares p (teacher) and q (student) at temperature tau."""
    zs, vs = (standardized(z), standardized(v)) if standardize else (z, v)
    p, q = softmax(vs, tau), softmax(zs, tau)
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    apart = {"forward": kl(p, q), "reverse": kl(q, p), "js": (kl(p, m) + kl(q, m)) / 2}[direction]
    return (1 - alpha) * hard(z, y) + alpha * tau**2 * apart


def slow_dkd(z: list[float], v: list[float], y: int, target: float, others: float, tau: float) -> float:
    """CE + tau^2 * (alpha * TCKD + beta * NCKD), Zhao et al. 2022: b = (p_t, 1 - p_t), p-hat without the label."""
    p, q = softmax(v, tau), softmax(z, tau)
    binary = kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
    apart = kl(softmax(without(v, y), tau), softmax(without(z, y), tau))
    return hard(z, y) + tau**2 * (target * binary + others * apart)


def slow_nkd(z: list[float], v: list[float], y: int, target: float, others: float, tau: float) -> float:
    """CE - T_t log S_t - gamma * lambda^2 * sum of N(T_i) log N(S_i), Yang et al. 2023."""
    p, q = softmax(without(v, y), tau), softmax(without(z, y), tau)
    spread = sum(a * math.log(b) for a, b in zip(p, q, strict=True))
    return hard(z, y) + target * softmax(v)[y] * hard(z, y) - others * tau**2 * spread


def slow_wttm(z: list[float], v: list[float], y: int, weight: float, tau: float) -> float:
    """CE + beta * U * KL(p^gamma / U || q), Zheng and Yang 2024: U is the sum of p^gamma, and gamma is 1 / tau."""
    powers = [value ** (1 / tau) for value in softmax(v)]
    return hard(z, y) + weight * sum(powers) * kl([power / sum(powers) for power in powers], softmax(z))


def slow_mse(z: list[float], v: list[float], y: int, alpha: float) -> float:
    """(1 - alpha) * CE + alpha * mean of (z - v)^2, Kim et al. 2021."""
    return (1 - alpha) * hard(z, y) + alpha * statistics.fmean((a - b) ** 2 for a, b in zip(z, v, strict=True))


def slow_tf_kd(z: list[float], v: list[float], y: int, alpha: float, tau: float, correct: float) -> float:
    """(1 - alpha) * CE + alpha * KL(softmax(p^d / tau) || q), p^d: `correct` at the label, the rest even; Yuan 2020."""
    virtual = [correct if k == y else (1 - correct) / (len(z) - 1) for k in range(len(z))]
    return (1 - alpha) * hard(z, y) + alpha * kl(softmax(virtual, tau), softmax(z))


def correlation(a: list[float], b: list[float]) -> float:
    a, b = ([value - statistics.fmean(one) for value in one] for one in (a, b))
    sizes = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (sizes + 1e-8)


def slow_dist(student: Tensor, teacher: Tensor, labels: Tensor, inter: float, intra: float, tau: float) -> float:
    """CE + tau^2 * (beta * (1 - mean r over rows) + gamma * (1 - mean r over columns)), Huang et al. 2022."""
    p, q = ([softmax(row, tau) for row in logits.tolist()] for logits in (teacher, student))
    first = statistics.fmean(hard(z, y) for z, y in zip(student.tolist(), labels.tolist(), strict=True))
    by_row = statistics.fmean(map(correlation, q, p))
    by_column = statistics.fmean(map(correlation, map(list, zip(*q, strict=True)), map(list, zip(*p, strict=True))))
    return first + tau**2 * (inter * (1 - by_row) + intra * (1 - by_column))


@pytest.mark.parametrize("tau", TAUS)
def test_each_loss_is_its_papers_formula(tau: float) -> None:
    """Written out from the paper in float64, example by example."""
    student, teacher, labels = batch()
    slow: dict[str, tuple[Callable[..., Tensor], Callable[..., float]]] = {
        **{
            f"{direction}, standardize={standardize}": (
                partial(kd, alpha=0.3, tau=tau, direction=direction, standardize=standardize),
                partial(slow_kd, alpha=0.3, tau=tau, direction=direction, standardize=standardize),
            )
            for direction in DIRECTIONS
            for standardize in (False, True)
        },
        "dkd": (
            partial(dkd, ce_weight=1, target_weight=0.7, others_weight=8, tau=tau),
            partial(slow_dkd, target=0.7, others=8, tau=tau),
        ),
        "nkd": (
            partial(nkd, ce_weight=1, target_weight=0.7, others_weight=1.5, tau=tau),
            partial(slow_nkd, target=0.7, others=1.5, tau=tau),
        ),
        "wttm": (partial(wttm, ce_weight=1, weight=4, tau=tau), partial(slow_wttm, weight=4, tau=tau)),
        "mse": (partial(mse, alpha=0.3), partial(slow_mse, alpha=0.3)),
        "tf_kd": (
            partial(tf_kd, alpha=0.3, tau=tau, correct=0.9),
            partial(slow_tf_kd, alpha=0.3, tau=tau, correct=0.9),
        ),
    }
    for name, (fast, formula) in slow.items():
        expected = statistics.fmean(formula(*row) for row in rows(student, teacher, labels))
        assert fast(student, teacher, labels).item() == pytest.approx(expected, rel=1e-11), name
    found = dist(student, teacher, labels, ce_weight=1, inter_weight=0.7, intra_weight=2, tau=tau).item()
    assert found == pytest.approx(slow_dist(student, teacher, labels, 0.7, 2, tau), rel=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_without_the_teachers_part_it_is_cross_entropy(name: str) -> None:
    """With alpha or all weights at 0, value and gradient are cross-entropy's, bit for bit."""
    for dtype in (torch.float32, torch.float64):
        student, teacher, labels = batch(dtype=dtype)
        (expected,) = torch.autograd.grad(ce(student, None, labels), student)
        loss = LOSSES[name](student, teacher, labels, **OFF[name])
        assert torch.equal(loss, ce(student, None, labels))
        assert torch.equal(torch.autograd.grad(loss, student)[0], expected)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_divergence_is_zero_between_equals_and_positive_otherwise(direction: str) -> None:
    """It is so for each example, and the divergence of Jensen and Shannon is symmetric and at most log 2."""
    student, teacher, _ = batch()
    assert divergence(student, student.detach(), direction, 2.0).abs().max() < 1e-15
    apart = divergence(student, teacher, direction, 2.0)
    assert (apart > 0).all()
    if direction == "js":
        torch.testing.assert_close(apart, divergence(teacher, student, "js", 2.0))
        far = torch.tensor([[100.0, 0.0]], dtype=torch.float64)
        assert divergence(far, far.flip(1), "js").item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", TAUGHT)
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(name: str) -> None:
    """The teacher's part alone is 0 with gradient 0; of nkd the gradient of the other classes' part is.

    dist divides by a size plus 1e-8, so it is nearly 0.
    """
    student, _, labels = batch()
    alone = {"alpha": 1.0} if "alpha" in OFF[name] else {"ce_weight": 0.0}
    if name == "nkd":
        alone["target_weight"] = 0.0
    elif name == "wttm":
        alone["tau"] = 1.0  # at another temperature the softened teacher isn't the student
    loss = LOSSES[name](student, student.detach().clone(), labels, **alone)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.abs().max() < 1e-7
    assert name == "nkd" or abs(loss.item()) < 1e-6


def test_a_student_that_is_the_virtual_teacher_has_nothing_to_learn_from_it() -> None:
    """The student's logits are the virtual teacher's probabilities divided by tau."""
    _, _, labels = batch()
    virtual = torch.full((len(labels), 5), 0.01 / 4, dtype=torch.float64)
    virtual[torch.arange(len(labels)), labels] = 0.99
    student = (virtual / 20).requires_grad_()
    loss = tf_kd(student, None, labels, alpha=1, tau=20, correct=0.99)
    assert abs(loss.item()) < 1e-15
    assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-15


def test_a_virtual_teacher_at_a_high_temperature_is_label_smoothing() -> None:
    """Its softmax is uniform then, so the gradient is that of label smoothing with smoothing = alpha."""
    student, _, labels = batch()
    losses = (
        tf_kd(student, None, labels, alpha=0.1, tau=1e9, correct=0.99),
        label_smoothing(student, None, labels, smoothing=0.1),
    )
    one, other = (torch.autograd.grad(loss, student)[0] for loss in losses)
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "mse"])
def test_a_constant_added_to_logits_changes_nothing(name: str) -> None:
    """Each example's logits may be shifted, the student's and the teacher's alike; mse's may not."""
    student, teacher, labels = batch()
    shift = torch.linspace(-50, 50, len(labels), dtype=torch.float64)[:, None]
    loss = LOSSES[name]
    torch.testing.assert_close(loss(student + shift, teacher - shift, labels), loss(student, teacher, labels))


def test_standardized_logits_have_no_scale() -> None:
    """Any positive factor of an example's logits, the student's or the teacher's, changes nothing."""
    student, teacher, labels = batch()
    loss = partial(kd, alpha=1, tau=2, standardize=True)
    torch.testing.assert_close(
        loss(7 * student, teacher / 9, labels), loss(student, teacher, labels), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("tau", TAUS)
def test_dkd_is_kd_with_the_teachers_own_weight(tau: float) -> None:
    """KL = TCKD + (1 - p) * NCKD for each example, where p is the teacher's probability of its label."""
    student, teacher, labels = batch()
    for i in range(len(labels)):
        own = student[i : i + 1], teacher[i : i + 1], labels[i : i + 1]
        p = softmax(teacher[i].tolist(), tau)[int(labels[i])]
        found = dkd(*own, ce_weight=0, target_weight=1, others_weight=1 - p, tau=tau)
        torch.testing.assert_close(found, kd(*own, alpha=1, tau=tau))


@pytest.mark.parametrize("name", TAUGHT)
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    """The teacher's logits stay as they are, even if they could be trained."""
    student, teacher, labels = batch()
    LOSSES[name](student, teacher.requires_grad_(), labels).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("name", TAUGHT)
def test_a_missing_or_other_teacher_is_refused(name: str) -> None:
    """The loss that needs it is named, and both numbers of classes are."""
    student, teacher, labels = batch()
    own = name.partition("_")[0]
    with pytest.raises(UserError, match=rf"{own} needs a teacher, but teacher is null\. .*loss=ce"):
        LOSSES[name](student, None, labels)
    with pytest.raises(UserError, match=r"the student has 5 classes and the teacher 4\."):
        LOSSES[name](student, teacher[:, :4], labels)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_give_finite_numbers(name: str) -> None:
    """In float32, for blank logits, sure and wrong ones, and a batch of one, value and gradient are finite."""
    for scale, n in ((0.0, 8), (30.0, 8), (3.0, 1)):
        student, teacher, labels = batch(n=n, dtype=torch.float32)
        student = (scale * student.detach()).requires_grad_()
        loss = LOSSES[name](student, scale * teacher, labels)
        loss.backward()
        assert student.grad is not None
        assert loss.isfinite()
        assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name: str) -> None:
    """Logits are float32, and no loss multiplies matrices, so a training in bf16 has the same loss."""
    student, teacher, labels = batch(dtype=torch.float32)
    plain = LOSSES[name](student, teacher, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LOSSES[name](student, teacher, labels), plain)


@pytest.mark.parametrize("name", LOSSES)
def test_other_settings_need_no_new_compiling(name: str) -> None:
    """torch.compile takes the loss whole, and another alpha, weight or tau, as a tensor, takes the same code."""
    student, teacher, labels = batch(dtype=torch.float32)
    loss = LOSSES[name]
    assert isinstance(loss, partial)
    plain = inspect.unwrap(loss.func)
    settings = {key: value for key, value in loss.keywords.items() if isinstance(value, float)}
    fixed = {key: value for key, value in loss.keywords.items() if key not in settings}

    def step(logits: Tensor, numbers: dict[str, Tensor]) -> Tensor:
        value: Tensor = plain(logits, teacher, labels, **numbers, **fixed)
        return value

    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for factor in (1.0, 0.5):
        numbers = {key: torch.tensor(factor * value) for key, value in settings.items()}
        expected = loss(student, teacher, labels, **{key: factor * value for key, value in settings.items()})
        torch.testing.assert_close(compiled(student, numbers), expected, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", LOSSES)
def test_wrong_settings_are_refused(name: str) -> None:
    """Each number out of its range, and each word that is none: one line names the key, the rule and the value."""
    loss = LOSSES[name]
    assert isinstance(loss, partial)
    wrong: dict[str, Any] = {**dict.fromkeys(loss.keywords, -1.0), "direction": "sideways", "standardize": "yes"}
    for key in set(inspect.signature(loss.func).parameters) & wrong.keys():
        for value in (wrong[key], None, "much", *([math.nan, True] if key not in ("direction", "standardize") else [])):
            with pytest.raises(UserError) as raised:
                loss(*batch(), **{key: value})
            assert str(raised.value).startswith(f"{key}: `")
            assert f" must hold, but got {key}={value!r}." in str(raised.value)
    loss_rules.check(loss)
