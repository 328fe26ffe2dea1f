"""Losses: functions of (student logits, teacher logits, labels) that return the mean loss of the batch.

Some compare pooled features as well, the inputs of the networks' heads, which they get as keyword arguments.

alpha is the distillation share, in [0, 1]. tau is the softmax temperature, > 0. Both mean this everywhere in kdsweep.
A loss whose paper weighs the teacher's terms beside a whole cross-entropy has weights instead of alpha. With alpha or
all weights at 0, each loss is cross-entropy bit for bit.

All logits are (batch, classes) and unnormalised, labels are (batch,) int64, and no gradient reaches the teacher. A
picture without a label has the label -1: the teacher's part is a mean over all pictures, and the labels' part is the
mean over those that have one. Mixed pictures have labels (batch, classes) float32, the share of each class. The
settings are keyword arguments: numbers, or tensors with one value, which a compiled training step can change without
compiling again.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, ParamSpec, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsweep import loss_rules
from kdsweep.feature_relations import angle_mismatch, distance_mismatch, mismatch, projected, similarity_mismatch
from kdsweep.system.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Arguments = ParamSpec("Arguments")

# What a loss can need besides the student's logits and the labels.
LOGITS = "logits"  # the teacher's logits, if the run has a teacher
SHARE = "share"  # how far the training is
FEATURES = "features"  # the pooled features of the student and of the teacher, (batch, features) each
PROJECTOR = "projector"  # a linear map of the student's features to the teacher's, which is trained with the student
LABEL = "label"  # one label for each picture that it gets, and so no mixed pictures and none without a label

# The label of a picture that has none.
NO_LABEL = -1

# The keyword arguments that a loss gets in a training because it needs them.
ARGUMENTS = {
    SHARE: ("share",),
    FEATURES: ("student_features", "teacher_features"),
    PROJECTOR: ("projector",),
}
GIVEN = {argument for arguments in ARGUMENTS.values() for argument in arguments}

# Is added to the seed from which projectors are drawn, so that they don't repeat the numbers of the student's weights.
PROJECTOR_STREAM = 0x50524F4A

# Keeps a correlation or a standard deviation of constant values from dividing by zero, as in the authors' code.
CORRELATION_FLOOR = 1e-8
DEVIATION_FLOOR = 1e-7


def needs(*what: str) -> Callable[[Callable[Arguments, Tensor]], Callable[Arguments, Tensor]]:
    """Says what a loss needs, of the names above. A loss that doesn't say needs `LOGITS`."""

    def said(loss: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
        setattr(loss, "needs", what)  # noqa: B010 (a function has no such attribute to mypy)
        return loss

    return said


def needs_of(loss: Callable[..., Tensor]) -> set[str]:
    """Returns what a loss with its settings needs, which for a sum is what its terms need."""
    own = set(_needs(loss))
    parts = _parts(loss)
    return own - {LOGITS} | set().union(*map(needs_of, parts.values())) if parts else own


def given_arguments(loss: Callable[..., Any]) -> set[str]:
    """Returns the names of the keyword arguments that a loss gets in a training, and nobody configures."""
    return {argument for need in needs_of(loss) for argument in ARGUMENTS.get(need, ())}


def hears_teacher(loss: Callable[..., Tensor]) -> bool:
    """Returns whether a loss with its settings needs a teacher's answers to the training pictures."""
    return not needs_of(loss).isdisjoint((LOGITS, FEATURES))


def given_to(
    loss: Callable[..., Tensor], device: torch.device | str = "cpu", sizes: tuple[int, int] = (1, 1), seed: int = 0
) -> dict[str, Any]:
    """Returns the keyword arguments that a loss gets at each step of a training, as it needs them.

    Args:
        loss: The loss with its settings.
        device: Where the training is.
        sizes: The number of the student's features and of the teacher's.
        seed: Decides the projectors.

    Returns:
        "share", a tensor that is 0 yet; "projector", as `projected` takes it, or a mapping from a term's name to its
        projector.
    """
    needed = needs_of(loss)
    given: dict[str, Any] = {SHARE: torch.zeros((), device=device)} if SHARE in needed else {}
    if PROJECTOR in needed:
        generator = torch.Generator().manual_seed((seed + PROJECTOR_STREAM) % 2**63)
        given[PROJECTOR] = _projectors(loss, sizes, torch.device(device), generator)
    return given


def trained_with(given: Mapping[str, Any]) -> dict[str, torch.nn.Parameter]:
    """Returns the projectors in what `given_to` returned, each by a name of its own."""
    found: dict[str, torch.nn.Parameter] = {}
    for name, value in given.items():
        if isinstance(value, torch.nn.Parameter):
            found[name] = value
        elif not isinstance(value, Tensor):
            found |= {f"{name}.{inner}": projector for inner, projector in trained_with(value).items()}
    return found


def example_for(loss: Callable[..., Tensor], n: int, with_teacher: bool = True) -> dict[str, Any]:
    """Returns the keyword arguments that a loss gets in a training, for trying it on `n` examples, of zeros."""
    features: dict[str, Tensor | None] = {}
    if FEATURES in needs_of(loss):
        features["student_features"] = torch.zeros(n, 3, requires_grad=True)
        features["teacher_features"] = torch.zeros(n, 4) if with_teacher else None
    return {**given_to(loss, sizes=(3, 4)), **features}


def _projectors(
    loss: Callable[..., Tensor], sizes: tuple[int, int], device: torch.device, generator: torch.Generator
) -> torch.nn.Parameter | dict[str, Any]:
    """Draws the projector of a loss, or those of its parts, each as torch draws the weights of an `nn.Linear`."""
    parts = {name: part for name, part in _parts(loss).items() if PROJECTOR in needs_of(part)}
    if parts:
        return {name: _projectors(part, sizes, device, generator) for name, part in parts.items()}
    students, teachers = sizes
    drawn = torch.rand(teachers, students + 1, generator=generator)
    return torch.nn.Parameter(((2 * drawn - 1) / math.sqrt(students)).to(device))


def _handed(part: Callable[..., Tensor], name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a part of a loss needs, of what the whole was given."""
    handed = {argument: given[argument] for need in needs_of(part) for argument in ARGUMENTS.get(need, ())}
    if PROJECTOR in handed:
        handed[PROJECTOR] = handed[PROJECTOR][name]
    return handed


def _needs(loss: Callable[..., Tensor]) -> tuple[str, ...]:
    said: tuple[str, ...] = getattr(loss.func if isinstance(loss, functools.partial) else loss, "needs", (LOGITS,))
    return said


def parts_by_key(loss: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
    """Returns the losses that a sum or a schedule is made of, by their keys: "terms.kd.of", "of"."""
    in_sum = isinstance(loss, functools.partial) and "terms" in loss.keywords
    return {f"terms.{name}.of" if in_sum else name: part for name, part in _parts(loss).items()}


def _parts(loss: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
    """Returns the losses that a sum or a schedule is made of, by name."""
    if not isinstance(loss, functools.partial):
        return {}
    function = getattr(loss.func, "__wrapped__", loss.func)
    if function is getattr(weighted_sum, "__wrapped__", None):
        return {name: term["of"] for name, term in loss.keywords["terms"].items()}
    return {"of": loss.keywords["of"]} if function is getattr(scheduled, "__wrapped__", None) else {}


def checked(loss: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """Makes a loss check its settings at each call, by the rule of the same name in `loss_rules`.

    `loss.__wrapped__` is the function without the check. A run trains with that one, and checks once, before it starts.
    """
    rule = loss_rules.RULES[loss.__name__]

    @functools.wraps(loss)
    def checking(*args: Arguments.args, **settings: Arguments.kwargs) -> Tensor:
        rule(**{name: value for name, value in settings.items() if name not in GIVEN})
        return loss(*args, **settings)

    return checking


def unchecked(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns a loss with its settings without the checks at each call: its own, and those of the losses in it."""
    if not isinstance(loss, functools.partial):
        return cast("Callable[..., Tensor]", getattr(loss, "__wrapped__", loss))
    settings = dict(loss.keywords)
    if _parts(loss) and "terms" in settings:
        settings["terms"] = {name: {**term, "of": unchecked(term["of"])} for name, term in settings["terms"].items()}
    elif _parts(loss):
        settings["of"] = unchecked(settings["of"])
    return functools.partial(getattr(loss.func, "__wrapped__", loss.func), **settings)


@checked
@needs(LOGITS)
def kd(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    alpha: float,
    tau: float,
    direction: str = "forward",
    standardize: bool = False,
) -> Tensor:
    """Knowledge distillation: `(1 - alpha) * CE + alpha * tau^2 * KL(teacher_tau || student_tau)`.

    CE is the cross-entropy with the labels; KL compares the two softmaxes at temperature tau, is summed over the
    classes, and averaged over the batch. Both are in nats. The factor tau^2 keeps the size of the gradient independent
    of tau. Hinton, Vinyals and Dean 2015, arXiv 1503.02531.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: (batch, classes), unnormalised; no gradient reaches them.
        labels: (batch,) int64.
        alpha: The weight of the distillation term, in [0, 1]; 0 is exactly cross-entropy.
        tau: The temperature of both softmaxes, > 0.
        direction: "forward" is KL(teacher || student), "reverse" is KL(student || teacher), and "js" is the
            Jensen-Shannon divergence: `divergence` has the formulas.
        standardize: Whether each example's logits are first shifted to mean 0 and scaled to standard deviation 1 (that
            of a sample, over the classes), the student's and the teacher's alike, so that the student needn't match the
            teacher's scale. tau is then the base temperature. Sun et al. 2024 (CVPR), arXiv 2403.01427.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        UserError: A setting is out of range, there is no teacher, or the teacher has other classes.
    """
    teacher = _heard("kd", student_logits, teacher_logits)
    hard = cross_entropy(student_logits, labels)
    student = student_logits
    if standardize:
        student, teacher = _standardized(student), _standardized(teacher)
    soft = divergence(student, teacher, direction, tau).mean()
    return (1 - alpha) * hard + alpha * tau**2 * soft


@needs()
def ce(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
    """Cross-entropy: the mean negative log-probability of the label, in nats.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: Ignored.
        labels: (batch,) int64.

    Returns:
        The mean over the batch, a scalar.
    """
    return cross_entropy(student_logits, labels)


@checked
@needs()
def label_smoothing(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, *, smoothing: float
) -> Tensor:
    """Cross-entropy with the target `(1 - smoothing) * onehot + smoothing / classes`: a control without a teacher.

    Szegedy et al. 2016, arXiv 1512.00567, section 7.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: Ignored.
        labels: (batch,) int64.
        smoothing: The share of the target that is spread evenly over the classes, in [0, 1]; 0 is cross-entropy.

    Returns:
        The mean over the batch in nats, a scalar.

    Raises:
        UserError: smoothing is out of range.
    """
    return cross_entropy(student_logits, labels, smoothing)


@checked
@needs(LABEL)
def tf_kd(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    alpha: float,
    tau: float,
    correct: float,
) -> Tensor:
    """Teacher-free distillation: `(1 - alpha) * CE + alpha * KL(u || student)` with a virtual teacher u.

    The virtual teacher gives the label the probability `correct` and shares the rest evenly among the other classes; u
    is the softmax of these probabilities divided by tau, and the student's temperature is 1. Yuan et al. 2020 (CVPR),
    arXiv 1909.11723 (Tf-KD_reg), with u as in the authors' code. Their KLDivLoss also averages over the
    classes and is multiplied by `multiplier`: their weights a, m are alpha = b / (1 - a + b) with b = a * m / classes,
    at a learning rate that is 1 - a + b times theirs.

    At a high tau, u is almost uniform, and the loss is close to `label_smoothing` with smoothing = alpha.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: Ignored.
        labels: (batch,) int64.
        alpha: The weight of the virtual teacher's term, in [0, 1]; 0 is exactly cross-entropy.
        tau: The temperature of the virtual teacher, > 0; the authors take 20 to 80.
        correct: The probability of the label before the softmax, in [0, 1].

    Returns:
        The mean over the batch in nats, a scalar.

    Raises:
        UserError: A setting is out of range.
    """
    rest = (1 - correct) / (student_logits.shape[1] - 1)
    virtual = rest + (correct - rest) * _is_label(student_logits, labels).to(student_logits.dtype)  # (B, C)
    target = F.log_softmax(virtual / tau, dim=1)
    soft = F.kl_div(F.log_softmax(student_logits, dim=1), target, reduction="none", log_target=True).sum(dim=1).mean()
    return (1 - alpha) * cross_entropy(student_logits, labels) + alpha * soft


@checked
@needs(LOGITS)
def pseudo_labels(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, *, alpha: float) -> Tensor:
    """Pseudo-labels: `(1 - alpha) * CE + alpha * CE with the class that the teacher finds likeliest`.

    It is `kd` with the teacher's answer instead of its probabilities: the control that shows whether a student learns
    from these, or from more labels. Lee 2013 (ICML workshop) takes the network's own answers in the teacher's place,
    and those to pictures without labels alone.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: (batch, classes), unnormalised.
        labels: (batch,) int64.
        alpha: The weight of the teacher's answers, in [0, 1]; 0 is exactly cross-entropy.

    Returns:
        The mean over the batch in nats, a scalar.

    Raises:
        UserError: alpha is out of range, there is no teacher, or the teacher has other classes.
    """
    answers = _heard("pseudo_labels", student_logits, teacher_logits).argmax(dim=1)
    return (1 - alpha) * cross_entropy(student_logits, labels) + alpha * F.cross_entropy(student_logits, answers)


@checked
@needs(LOGITS)
def mse(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, *, alpha: float) -> Tensor:
    """Logit matching: `(1 - alpha) * CE + alpha * mean over the classes of (student - teacher)^2`.

    Ba and Caruana 2014, arXiv 1312.6184, who take alpha = 1 and half of the sum over the classes; Kim et
    al. 2021 (IJCAI), arXiv 2105.08919, whose student hears the labels too. A constant that is added to all logits of an
    example changes this loss, unlike the others.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: (batch, classes), unnormalised; no gradient reaches them.
        labels: (batch,) int64.
        alpha: The weight of the squared differences, in [0, 1]; 0 is exactly cross-entropy.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        UserError: alpha is out of range, there is no teacher, or the teacher has other classes.
    """
    teacher = _heard("mse", student_logits, teacher_logits)
    return (1 - alpha) * cross_entropy(student_logits, labels) + alpha * F.mse_loss(student_logits, teacher)


@checked
@needs(LOGITS, LABEL)
def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    ce_weight: float,
    target_weight: float,
    others_weight: float,
    tau: float,
) -> Tensor:
    """Decoupled distillation: `ce_weight * CE + tau^2 * (target_weight * TCKD + others_weight * NCKD)`.

    TCKD is KL(teacher || student) between the probabilities of "the label" and "another class", and NCKD is the KL
    between the two softmaxes over the other classes alone, all at temperature tau. The KL of `kd` is TCKD + (1 - p) *
    NCKD, where p is the teacher's probability of the label. Zhao et al. 2022 (CVPR), arXiv 2203.08679:
    target_weight is their alpha, others_weight their beta. They raise both from 0 during the first epochs, as
    loss=dkd_warmup does.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: (batch, classes), unnormalised; no gradient reaches them.
        labels: (batch,) int64.
        ce_weight: The weight of CE, >= 0; 1 in the paper, 0 for a term of a sum that has cross-entropy already.
        target_weight: The weight of TCKD, >= 0.
        others_weight: The weight of NCKD, >= 0. With both at 0 and ce_weight at 1 it is exactly
            cross-entropy.
        tau: The temperature of all softmaxes, > 0.

    Returns:
        The mean over the batch in nats, a scalar.

    Raises:
        UserError: A setting is out of range, there is no teacher, or the teacher has other classes.
    """
    teacher = _heard("dkd", student_logits, teacher_logits)
    is_label = _is_label(student_logits, labels)
    (student_sides, student_others), (teacher_sides, teacher_others) = (
        _decoupled(logits / tau, is_label) for logits in (student_logits, teacher)
    )
    target = F.kl_div(student_sides, teacher_sides, reduction="none", log_target=True).sum(dim=1).mean()
    others = (teacher_others.exp() * (teacher_others - student_others)).masked_fill(is_label, 0.0).sum(dim=1).mean()
    hard = ce_weight * cross_entropy(student_logits, labels)
    return hard + tau**2 * (target_weight * target + others_weight * others)


@checked
@needs(LOGITS, LABEL)
def nkd(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    ce_weight: float,
    target_weight: float,
    others_weight: float,
    tau: float,
) -> Tensor:
    """Normalised distillation: `ce_weight * CE + target_weight * target + others_weight * tau^2 * others`.

    target is `-T_t log S_t`, and others is the sum over all classes i but the label of `-T_i log S_i`. T_t and S_t are
    the probabilities of the label at temperature 1, the teacher's and the student's; T_i and S_i are the softmaxes over
    the other classes alone, at temperature tau. Yang et al. 2023 (ICCV), arXiv 2303.13005, and their code
    (yzd-v/cls_KD), where target_weight is 1, others_weight is gamma, and tau is lambda. others is a cross-entropy: for
    a student that equals its teacher it is the teacher's entropy, with gradient 0.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: (batch, classes), unnormalised; no gradient reaches them.
        labels: (batch,) int64.
        ce_weight: The weight of CE, >= 0; 1 in the paper, 0 for a term of a sum that has cross-entropy already.
        target_weight: The weight of the label's term, >= 0.
        others_weight: The weight of the other classes' term, >= 0. With both at 0 and ce_weight at 1 it is exactly
            cross-entropy.
        tau: The temperature of the softmaxes over the other classes, > 0.

    Returns:
        The mean over the batch in nats, a scalar.

    Raises:
        UserError: A setting is out of range, there is no teacher, or the teacher has other classes.
    """
    teacher = _heard("nkd", student_logits, teacher_logits)
    is_label = _is_label(student_logits, labels)
    confidence = F.softmax(teacher, dim=1)
    target = -(confidence * F.log_softmax(student_logits, dim=1) * is_label).sum(dim=1).mean()
    _, student_others = _decoupled(student_logits / tau, is_label)
    _, teacher_others = _decoupled(teacher / tau, is_label)
    others = -(teacher_others.exp() * student_others).masked_fill(is_label, 0.0).sum(dim=1).mean()
    hard = ce_weight * cross_entropy(student_logits, labels)
    return hard + target_weight * target + others_weight * tau**2 * others


@checked
@needs(LOGITS)
def dist(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    ce_weight: float,
    inter_weight: float,
    intra_weight: float,
    tau: float,
) -> Tensor:
    """Relations: `ce_weight * CE + tau^2 * (inter_weight * (1 - r_rows) + intra_weight * (1 - r_columns))`.

    r_rows is the mean over the examples of Pearson's correlation between the two softmaxes at temperature tau over the
    classes; r_columns is the mean over the classes of their correlation over the examples of the batch, so the value
    depends on the batch. Huang et al. 2022 (NeurIPS), arXiv 2205.10536: inter_weight is their beta,
    intra_weight their gamma, and tau^2 is in their code.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: (batch, classes), unnormalised; no gradient reaches them.
        labels: (batch,) int64.
        ce_weight: The weight of CE, >= 0; 1 in the paper, 0 for a term of a sum that has cross-entropy already.
        inter_weight: The weight of the relations between the classes of an example, >= 0.
        intra_weight: The weight of the relations between the examples in a class, >= 0. With both at 0 and ce_weight
            at 1 it is exactly cross-entropy.
        tau: The temperature of both softmaxes, > 0.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        UserError: A setting is out of range, there is no teacher, or the teacher has other classes.
    """
    teacher = F.softmax(_heard("dist", student_logits, teacher_logits) / tau, dim=1)
    student = F.softmax(student_logits / tau, dim=1)
    inter = 1 - _correlation(student, teacher, dim=1).mean()
    intra = 1 - _correlation(student, teacher, dim=0).mean()
    hard = ce_weight * cross_entropy(student_logits, labels)
    return hard + tau**2 * (inter_weight * inter + intra_weight * intra)


@checked
@needs(LOGITS)
def wttm(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    ce_weight: float,
    weight: float,
    tau: float,
) -> Tensor:
    """Weighted transformed-teacher matching: `ce_weight * CE + weight * mean of U * KL(teacher_tau || student_1)`.

    The teacher alone is softened. Each example counts by U, the sum over the classes of the teacher's probability (at
    temperature 1) to the power 1 / tau, which is large where the teacher is unsure. Zheng and Yang 2024 (ICLR), arXiv
    2402.11148: weight is their beta, and 1 / tau their gamma.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: (batch, classes), unnormalised; no gradient reaches them.
        labels: (batch,) int64.
        ce_weight: The weight of CE, >= 0; 1 in the paper, 0 for a term of a sum that has cross-entropy already.
        weight: The weight of the teacher's term, >= 0; 0 is exactly cross-entropy where ce_weight is 1.
        tau: The teacher's temperature, > 0.

    Returns:
        The mean over the batch in nats, a scalar.

    Raises:
        UserError: A setting is out of range, there is no teacher, or the teacher has other classes.
    """
    teacher = _heard("wttm", student_logits, teacher_logits)
    unsure = (F.log_softmax(teacher, dim=1) / tau).exp().sum(dim=1)  # (B,)
    student, target = F.log_softmax(student_logits, dim=1), F.log_softmax(teacher / tau, dim=1)
    apart = F.kl_div(student, target, reduction="none", log_target=True).sum(dim=1)  # (B,)
    return ce_weight * cross_entropy(student_logits, labels) + weight * (unsure * apart).mean()


@checked
@needs(FEATURES, PROJECTOR)
def feature(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    ce_weight: float,
    weight: float,
    distance: str,
    student_features: Tensor,
    teacher_features: Tensor | None,
    projector: Tensor,
) -> Tensor:
    """Feature matching: `ce_weight * CE + weight * D(projector(student_features), teacher_features)`.

    The projector is a linear map with a bias, trained with the student and left out of it afterwards. Romero et al.
    2015 (ICLR), arXiv 1412.6550 (FitNets), whose hint is a layer in the middle and whose D is half the sum of squares.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: Ignored.
        labels: (batch,) int64.
        ce_weight: The weight of CE, >= 0; 0 for a term of a sum that has cross-entropy already.
        weight: The weight of D, >= 0; 0 is exactly cross-entropy where ce_weight is 1.
        distance: "mse" is the mean over the features of the squared differences; "cosine" is 1 - cosine.
        student_features: (batch, features), what the student's head takes.
        teacher_features: (batch, features), what the teacher's head takes; no gradient reaches them.
        projector: (the teacher's features, the student's features + 1), as `feature_relations.projected` takes it.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        UserError: A setting is out of range, or there is no teacher.
    """
    teacher = _felt("feature", teacher_features)
    apart = mismatch(projected(student_features, projector), teacher, distance)
    return ce_weight * cross_entropy(student_logits, labels) + weight * apart


@checked
@needs(FEATURES)
def rkd(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    ce_weight: float,
    distance_weight: float,
    angle_weight: float,
    student_features: Tensor,
    teacher_features: Tensor | None,
) -> Tensor:
    """Relational distillation: `ce_weight * CE + distance_weight * RKD-D + angle_weight * RKD-A`.

    RKD-D compares the distances of all pairs of examples in the batch, each divided by the mean distance, and RKD-A the
    cosines of the angles of all triples, both by Huber's loss. Park et al. 2019 (CVPR), arXiv 1904.05068, and their
    code (lenscape/RelationalKD), which takes the mean over all pairs and triples, those of an example with itself
    included. The memory for the angles grows with the third power of the batch: 8 MiB a tensor at 128, 512 MiB at 512.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: Ignored.
        labels: (batch,) int64.
        ce_weight: The weight of CE, >= 0; 0 for a term of a sum that has cross-entropy already.
        distance_weight: The weight of RKD-D, >= 0.
        angle_weight: The weight of RKD-A, >= 0. With both at 0 and ce_weight at 1 it is exactly cross-entropy.
        student_features: (batch, features), what the student's head takes.
        teacher_features: (batch, features), what the teacher's head takes; no gradient reaches them.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        UserError: A setting is out of range, or there is no teacher.
    """
    teacher = _felt("rkd", teacher_features)
    distances, angles = distance_mismatch(student_features, teacher), angle_mismatch(student_features, teacher)
    return ce_weight * cross_entropy(student_logits, labels) + distance_weight * distances + angle_weight * angles


@checked
@needs(FEATURES)
def sp(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    ce_weight: float,
    weight: float,
    student_features: Tensor,
    teacher_features: Tensor | None,
) -> Tensor:
    """Similarity preservation: `ce_weight * CE + weight * mean of (G_teacher - G_student)^2`.

    G has the inner products of the features of all pairs of examples in the batch, and each of its rows is divided by
    its length. Tung and Mori 2019 (ICCV), arXiv 1907.09682, who take the maps of the last layers and a weight of 3000.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: Ignored.
        labels: (batch,) int64.
        ce_weight: The weight of CE, >= 0; 0 for a term of a sum that has cross-entropy already.
        weight: The weight of the similarities, >= 0; 0 is exactly cross-entropy where ce_weight is 1.
        student_features: (batch, features), what the student's head takes.
        teacher_features: (batch, features), what the teacher's head takes; no gradient reaches them.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        UserError: A setting is out of range, or there is no teacher.
    """
    apart = similarity_mismatch(student_features, _felt("sp", teacher_features))
    return ce_weight * cross_entropy(student_logits, labels) + weight * apart


@checked
@needs(LOGITS, SHARE)
def weighted_sum(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    terms: Mapping[str, Mapping[str, Any]],
    share: Tensor,
    student_features: Tensor | None = None,
    teacher_features: Tensor | None = None,
    projector: Mapping[str, Any] | None = None,
) -> Tensor:
    """The sum of other losses, each times its weight.

    With the terms ce (weight 1) and others whose weights are 0 it is exactly cross-entropy.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: (batch, classes), unnormalised, or None; each term gets them.
        labels: (batch,) int64.
        terms: Name -> {"weight": a number >= 0, "of": a loss with its settings}. The names are the user's.
        share: How far the training is; the terms that need it get it.
        student_features: (batch, features), or None; the terms that need them get them.
        teacher_features: (batch, features), or None; the terms that need them get them.
        projector: The projector of each term that needs one, by the term's name.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        UserError: There is no term, or a weight is out of range; and what the terms raise.
    """
    given = {
        "share": share,
        "student_features": student_features,
        "teacher_features": teacher_features,
        "projector": projector,
    }
    total = None
    for name, term in terms.items():
        handed = _handed(term["of"], name, given)
        value = term["weight"] * term["of"](student_logits, teacher_logits, labels, **handed)
        total = value if total is None else total + value
    assert total is not None
    return cast("Tensor", total)


@checked
@needs(LOGITS, SHARE)
def scheduled(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    of: functools.partial[Tensor],
    share: Tensor,
    student_features: Tensor | None = None,
    teacher_features: Tensor | None = None,
    projector: Mapping[str, Any] | None = None,
) -> Tensor:
    """Another loss, some of whose settings change from epoch to epoch.

    A setting that is a mapping {start, end, shape, until} has the value of `at_share`. It makes the temperature fall,
    the teacher's part fade away (Jafari et al. 2021, arXiv 2104.07163) or stop early (Cho and Hariharan 2019, arXiv
    1910.01348), or its weights warm up.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: (batch, classes), unnormalised, or None; the other loss gets them.
        labels: (batch,) int64.
        of: The other loss with its settings.
        share: How far the training is, a tensor with one value: 0 in the first epoch, 1 in the last.
        student_features: (batch, features), or None; the other loss gets them if it needs them.
        teacher_features: (batch, features), or None; the other loss gets them if it needs them.
        projector: The other loss's projector, under the name "of", if it needs one.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        UserError: A schedule is incomplete, or one of its ends is out of the setting's range.
    """
    now = {name: at_share(share, **plan) for name, plan in of.keywords.items() if loss_rules.is_plan(plan)}
    # The ends of each schedule have been checked, and a check at each step couldn't be compiled.
    loss: Callable[..., Tensor] = getattr(of.func, "__wrapped__", of.func)
    given = {"student_features": student_features, "teacher_features": teacher_features, "projector": projector}
    handed = _handed(of, "of", {**given, "share": share})
    return loss(student_logits, teacher_logits, labels, **{**of.keywords, **now, **handed})


def at_share(share: Tensor, *, start: float | Tensor, end: float | Tensor, shape: str, until: float) -> Tensor:
    """Returns the value of a setting that goes from start to end, both of which it reaches exactly.

    Args:
        share: How far the training is, a tensor with one value: 0 in the first epoch, 1 in the last.
        start: The value in the first epoch.
        end: The value from the share `until` on.
        shape: "linear", "cosine" (half a wave, level at both ends) or "step" (start until `until`, and then end).
        until: The share of the training at which the end is reached, in (0, 1].

    Returns:
        A tensor with one value, on the device of `share`.
    """
    done = (share / until).clamp(max=1.0)
    if shape == "step":
        done = done.floor()
    elif shape == "cosine":
        done = torch.where(done < 1, (1 - (math.pi * done).cos()) / 2, done)
    # In a compiled step they are tensors already.
    first, last = (side if isinstance(side, Tensor) else torch.full_like(share, side) for side in (start, end))
    return torch.lerp(first, last, done)


def cross_entropy(student_logits: Tensor, labels: Tensor, smoothing: float | Tensor = 0.0) -> Tensor:
    """Cross-entropy in nats, the mean over the pictures that have a label; at least one of the batch has.

    Args:
        student_logits: (batch, classes), unnormalised.
        labels: (batch,) int64, -1 for a picture without one; or (batch, classes), the share of each class in it, zeros
            for a picture without a label.
        smoothing: The share of each target that is spread evenly over the classes.
    """
    if labels.dim() == 1 and not isinstance(smoothing, Tensor):
        return F.cross_entropy(student_logits, labels, ignore_index=NO_LABEL, label_smoothing=smoothing)
    labels = label_shares(student_logits, labels)
    labelled = (labels.sum(dim=1, keepdim=True) > 0).to(labels.dtype)  # (B, 1)
    target = (1 - smoothing) * labels + smoothing / labels.shape[1] * labelled
    return -(target * F.log_softmax(student_logits, dim=1)).sum() / labelled.sum()


def label_shares(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the share of each class, (B, C): of labels as `cross_entropy` takes them."""
    if labels.dim() == 2:
        return labels
    return (labels[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)


def divergence(student_logits: Tensor, teacher_logits: Tensor, direction: str, tau: float = 1.0) -> Tensor:
    """The divergence of each example between the student's softmax q and the teacher's p at temperature tau, in nats.

    Args:
        student_logits: (batch, classes), unnormalised.
        teacher_logits: (batch, classes), unnormalised.
        direction: "forward" is KL(p || q), which asks the student to cover all that the teacher thinks possible;
            "reverse" is KL(q || p), which asks it to avoid what the teacher thinks impossible; "js" is
            (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2 (Lin 1991), which is symmetric and at most log 2.
        tau: The temperature, > 0.

    Returns:
        One value for each example, (batch,).
    """
    if direction == "forward":
        return kl_divergence(student_logits, teacher_logits, tau)
    if direction == "reverse":
        return kl_divergence(teacher_logits, student_logits, tau)
    student = F.log_softmax(student_logits / tau, dim=1)  # (B, C)
    teacher = F.log_softmax(teacher_logits / tau, dim=1)  # (B, C)
    middle = torch.logaddexp(student, teacher) - math.log(2)
    apart = [F.kl_div(middle, side, reduction="none", log_target=True).sum(dim=1) for side in (student, teacher)]
    return (apart[0] + apart[1]) / 2


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, tau: float = 1.0) -> Tensor:
    """KL(teacher_tau || student_tau) of each example: sum of p * log(p / q) over the classes, in nats.

    Args:
        student_logits: (batch, classes), unnormalised; q is their softmax at temperature tau.
        teacher_logits: (batch, classes), unnormalised; p is their softmax at temperature tau.
        tau: The temperature, > 0.

    Returns:
        One value for each example, (batch,).
    """
    student = F.log_softmax(student_logits / tau, dim=1)  # (B, C)
    teacher = F.log_softmax(teacher_logits / tau, dim=1)  # (B, C)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)  # (B,)


def _heard(name: str, student_logits: Tensor, teacher_logits: Tensor | None) -> Tensor:
    """Returns the teacher's logits without gradient, or says why the loss `name` can't use them."""
    if teacher_logits is None:
        raise _needs_teacher(name)
    if teacher_logits.shape != student_logits.shape:
        raise UserError(
            f"the student has {student_logits.shape[1]} classes and the teacher {teacher_logits.shape[1]}. "
            "Both need the data set's number of classes: check teacher.network.head and model.head."
        )
    return teacher_logits.detach()


def _felt(name: str, teacher_features: Tensor | None) -> Tensor:
    """Returns the teacher's features without gradient, or says that the loss `name` needs them."""
    if teacher_features is None:
        raise _needs_teacher(name)
    return teacher_features.detach()


def _needs_teacher(name: str) -> UserError:
    return UserError(f"{name} needs a teacher, but teacher is null. Choose one (teacher=...) or train with loss=ce.")


def _standardized(logits: Tensor) -> Tensor:
    """Returns logits (B, C) whose rows have mean 0 and standard deviation 1."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / (logits.std(dim=1, keepdim=True) + DEVIATION_FLOOR)


def _is_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns which class is the label, (B, C) bool; a comparison, because scattering isn't deterministic on CUDA."""
    if labels.dim() != 1:
        raise UserError("the loss needs one label for each picture, but the labels are those of mixed pictures.")
    return labels[:, None] == torch.arange(logits.shape[1], device=logits.device)


def _decoupled(logits: Tensor, is_label: Tensor) -> tuple[Tensor, Tensor]:
    """Splits a softmax in two.

    Returns:
        The log-probabilities of the label and of all other classes together, (B, 2), and the log-softmax over the other
        classes alone, (B, C), which is minus infinity at the label.
    """
    of_label = logits.masked_fill(~is_label, -math.inf).logsumexp(dim=1, keepdim=True)  # (B, 1)
    others = logits.masked_fill(is_label, -math.inf)  # (B, C)
    of_others = others.logsumexp(dim=1, keepdim=True)  # (B, 1)
    return F.log_softmax(torch.cat([of_label, of_others], dim=1), dim=1), others - of_others


def _correlation(one: Tensor, other: Tensor, dim: int) -> Tensor:
    """Pearson's correlation of two matrices along a dimension."""
    one, other = one - one.mean(dim=dim, keepdim=True), other - other.mean(dim=dim, keepdim=True)
    sizes: Tensor = torch.linalg.vector_norm(one, dim=dim) * torch.linalg.vector_norm(other, dim=dim)
    return (one * other).sum(dim=dim) / (sizes + CORRELATION_FLOOR)
