"""`kdsweep-translate`: each code base's published formula, written out here, against the overrides that it prints."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import configurations
import pytest
import torch
import torch.nn.functional as F
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from kdsweep.commands import translate
from kdsweep.commands.translate import SOURCES, translation
from kdsweep.config import build
from kdsweep.config.folder import CONFIG_FOLDER
from kdsweep.losses import SHARE, needs_of
from kdsweep.system.errors import UserError

CLASSES, BATCH = 5, 8

# A published loss: (student's logits, teacher's logits, labels) -> scalar.
Published = Callable[[Tensor, Tensor, Tensor], Tensor]


def torchdistill(
    s: Tensor,
    t: Tensor,
    y: Tensor,
    alpha: float | None,
    temperature: float,
    beta: float | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """KDLoss.forward: KLDivLoss with its reduction, `targets` given."""
    soft = nn.KLDivLoss(reduction=reduction)(F.log_softmax(s / temperature, 1), F.softmax(t / temperature, 1))
    if alpha is None or alpha == 0:
        return soft
    beta = 1 - alpha if beta is None else beta
    hard = nn.CrossEntropyLoss(reduction="mean" if reduction == "batchmean" else reduction)(s, y)
    return alpha * hard + beta * temperature**2 * soft


def mdistiller(
    s: Tensor, t: Tensor, y: Tensor, ce_weight: float = 0.1, kd_weight: float = 0.9, temperature: float = 4
) -> Tensor:
    """KD.forward_train with kd_loss: reduction "none", summed over classes, averaged over the batch."""
    soft = F.kl_div(F.log_softmax(s / temperature, 1), F.softmax(t / temperature, 1), reduction="none").sum(1).mean()
    return ce_weight * F.cross_entropy(s, y) + kd_weight * soft * temperature**2


def logit_standardization(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The same with `normalize` and the values that --logit-stand sets: --kd-weight 9, --base-temp 2."""
    s_, t_ = ((z - z.mean(-1, keepdim=True)) / (1e-7 + z.std(-1, keepdim=True)) for z in (s, t))
    soft = F.kl_div(F.log_softmax(s_ / 2, 1), F.softmax(t_ / 2, 1), reduction="none").sum(1).mean()
    return 0.1 * F.cross_entropy(s, y) + 9 * soft * 4


def mdistiller_dkd(s: Tensor, t: Tensor, y: Tensor, epoch: int, warmup: int = 20, T: float = 4) -> Tensor:
    """DKD.forward_train at an epoch (from 1) with dkd_loss: alpha 1, beta 8, the label's logit lowered by 1000."""
    label = F.one_hot(y, CLASSES).double()
    p, q = F.softmax(t / T, 1), F.softmax(s / T, 1)
    p, q = (torch.stack([(x * label).sum(1), (x * (1 - label)).sum(1)], 1) for x in (p, q))
    target = F.kl_div(q.log(), p, reduction="sum") * T**2 / len(y)
    others = (
        F.kl_div(F.log_softmax(s / T - 1000 * label, 1), F.softmax(t / T - 1000 * label, 1), reduction="sum")
        * T**2
        / len(y)
    )
    return F.cross_entropy(s, y) + min(epoch / warmup, 1.0) * (target + 8 * others)


def repdistiller(s: Tensor, t: Tensor, y: Tensor, alpha: float, gamma: float = 1, kd_T: float = 4) -> Tensor:
    """opt.gamma * loss_cls + opt.alpha * loss_div, DistillKL: summed (size_average=False), divided by the batch."""
    soft = F.kl_div(F.log_softmax(s / kd_T, 1), F.softmax(t / kd_T, 1), reduction="sum") * kd_T**2 / s.shape[0]
    return gamma * F.cross_entropy(s, y) + alpha * soft


def pytorch_tutorial(s: Tensor, t: Tensor, y: Tensor, T: float = 2) -> Tensor:
    """train_knowledge_distillation with the weights of its call: KL, summed, divided by the batch, times T^2."""
    targets, logq = F.softmax(t / T, -1), F.log_softmax(s / T, -1)
    soft = torch.sum(targets * (targets.log() - logq)) / logq.size()[0] * T**2
    return 0.25 * soft + 0.75 * F.cross_entropy(s, y)


def timm(
    s: Tensor, t: Tensor, y: Tensor, task: float | None = None, distill: float | None = None, temperature: float = 4
) -> Tensor:
    """LogitDistillationTask, whose weights follow three modes."""
    if distill is not None:
        task = 1.0 if task is None else task
    elif task is not None:
        distill = 1.0 - task
    else:
        task = distill = 1.0
    logs = (F.log_softmax(z / temperature, -1) for z in (s, t))
    soft = F.kl_div(*logs, reduction="batchmean", log_target=True) * temperature**2
    return task * F.cross_entropy(s, y) + distill * soft


def teacher_free(s: Tensor, t: Tensor, y: Tensor, alpha: float, temperature: float, multiplier: float = 1) -> Tensor:
    """loss_kd_self: KLDivLoss() with its default reduction, which averages over the classes as well."""
    soft = (
        nn.KLDivLoss()(F.log_softmax(s / temperature, 1), F.softmax(t / temperature, 1)) * temperature**2 * multiplier
    )
    return (1 - alpha) * F.cross_entropy(s, y) + alpha * soft


def teacher_free_reg(s: Tensor, t: Tensor, y: Tensor, alpha: float, temperature: float, multiplier: float) -> Tensor:
    """loss_kd_regularization: the virtual teacher's probabilities, softened by a softmax; the student isn't."""
    virtual = torch.full_like(s, 0.01 / (CLASSES - 1)).scatter(1, y[:, None], 0.99)
    soft = nn.KLDivLoss()(F.log_softmax(s, 1), F.softmax(virtual / temperature, 1)) * multiplier
    return (1 - alpha) * F.cross_entropy(s, y) + alpha * soft


def own(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """What many write: KLDivLoss with its default reduction, and no tau^2."""
    return F.cross_entropy(s, y) + 0.7 * nn.KLDivLoss()(F.log_softmax(s / 4, 1), F.softmax(t / 4, 1))


# Source, the parameters on the command line, the published formula, and the epoch and number of epochs if they matter.
CASES: list[tuple[str, str, Published, tuple[int, int] | None]] = [
    ("torchdistill", "alpha=0.3 temperature=4", partial(torchdistill, alpha=0.3, temperature=4), None),
    (
        "torchdistill",
        "alpha=0.3 beta=2 temperature=4 reduction=mean classes=5",
        partial(torchdistill, alpha=0.3, beta=2, temperature=4, reduction="mean"),
        None,
    ),
    (
        "torchdistill",
        "alpha=0.3 temperature=4 reduction=sum batch_size=8",
        partial(torchdistill, alpha=0.3, temperature=4, reduction="sum"),
        None,
    ),
    ("torchdistill", "temperature=4", partial(torchdistill, alpha=None, temperature=4), None),
    ("torchdistill", "alpha=0 temperature=4", partial(torchdistill, alpha=0, temperature=4), None),
    ("mdistiller", "", mdistiller, None),
    (
        "mdistiller",
        "ce_weight=1 kd_weight=3 temperature=2",
        partial(mdistiller, ce_weight=1, kd_weight=3, temperature=2),
        None,
    ),
    ("logit_standardization", "", logit_standardization, None),
    ("mdistiller_dkd", "", partial(mdistiller_dkd, epoch=1), (0, 240)),
    ("mdistiller_dkd", "", partial(mdistiller_dkd, epoch=7), (6, 240)),
    ("mdistiller_dkd", "", partial(mdistiller_dkd, epoch=20), (19, 240)),
    ("mdistiller_dkd", "", partial(mdistiller_dkd, epoch=240), (239, 240)),
    ("mdistiller_dkd", "warmup=1 T=2", partial(mdistiller_dkd, epoch=1, warmup=1, T=2), None),
    ("repdistiller", "alpha=0.9", partial(repdistiller, alpha=0.9), None),
    ("repdistiller", "gamma=0.1 alpha=0.9 kd_T=3", partial(repdistiller, gamma=0.1, alpha=0.9, kd_T=3), None),
    ("pytorch_tutorial", "", pytorch_tutorial, None),
    ("timm", "", timm, None),
    ("timm", "task_loss_weight=0.3", partial(timm, task=0.3), None),
    ("timm", "distill_loss_weight=3 kd_temperature=1", partial(timm, distill=3, temperature=1), None),
    ("teacher_free", "alpha=0.9 temperature=20 classes=5", partial(teacher_free, alpha=0.9, temperature=20), None),
    (
        "teacher_free",
        "alpha=0.9 temperature=6 classes=5 multiplier=10",
        partial(teacher_free, alpha=0.9, temperature=6, multiplier=10),
        None,
    ),
    (
        "teacher_free_reg",
        "alpha=0.1 temperature=20 classes=5 multiplier=50",
        partial(teacher_free_reg, alpha=0.1, temperature=20, multiplier=50),
        None,
    ),
    ("formula", "ce_weight=1 kd_weight=0.7 temperature=4 tau_squared=false reduction=mean classes=5", own, None),
]

pytestmark = pytest.mark.filterwarnings("ignore:reduction")  # torch warns that "mean" isn't the divergence


def parameters(text: str) -> dict[str, str | float]:
    return dict(word.split("=") for word in text.split())  # type: ignore[arg-type]


def configuration(overrides: Sequence[str]) -> DictConfig:
    """The configuration of the overrides as a shell hands them to kdsweep; each choice of options is composed once."""
    parsed = OverridesParser.create().parse_overrides(shlex.split(" ".join(overrides)))
    chosen = [one for one in parsed if (CONFIG_FOLDER / one.key_or_group).is_dir()]
    config = configurations.composed(*(str(one.input_line) for one in chosen)).copy()
    OmegaConf.set_readonly(config, False)
    ConfigLoaderImpl._apply_overrides_to_config([one for one in parsed if one not in chosen], config)
    return config


def built(overrides: Sequence[str], at: tuple[int, int] | None) -> Callable[..., Tensor]:
    """The loss of the overrides, at an epoch (from 0) of so many."""
    loss: Callable[..., Tensor] = build.component(configuration(overrides), "loss")
    epoch, epochs = at or (0, 1)
    share = torch.tensor(epoch / max(epochs - 1, 1), dtype=torch.float64)
    return functools.partial(loss, share=share) if SHARE in needs_of(loss) else loss


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, BATCH, CLASSES, generator=generator, dtype=torch.float64)
    return logits[0].requires_grad_(), logits[1], torch.randint(CLASSES, (BATCH,), generator=generator)


@pytest.mark.parametrize(("source", "given", "published", "at"), CASES)
def test_the_overrides_are_the_published_loss(
    source: str, given: str, published: Published, at: tuple[int, int] | None
) -> None:
    """Their value and gradient are ours times the factor, and those of the sum without any."""
    student, teacher, labels = batch()
    same = translation(source, parameters(given))
    theirs = published(student, teacher, labels)
    (gradient,) = torch.autograd.grad(theirs, student)
    for overrides, factor in ((same.overrides, same.factor), *([(same.exact, 1.0)] if same.exact else [])):
        ours = factor * built(overrides, at)(student, teacher, labels)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(ours, student)[0], gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_factor_is_made_up_for_by_the_optimizer(optimizer: str) -> None:
    """Five steps lead to the same weights: SGD's with another rate and decay, AdamW's as they are."""
    _, teacher, labels = batch()
    same = translation("repdistiller", {"gamma": 1, "alpha": 0.9})
    assert same.factor == pytest.approx(1.9)
    words = dict(word.split("=") for word in same.optimizer(0.05, 5e-4)) if optimizer == "SGD" else {}
    sides: list[tuple[Callable[..., Tensor], float, float]] = [
        (partial(repdistiller, alpha=0.9), 0.05, 5e-4),
        (
            built(same.overrides, None),
            float(words.get("optimizer.lr", 0.05)),
            float(words.get("optimizer.weight_decay", 5e-4)),
        ),
    ]
    trained = []
    for loss, lr, decay in sides:
        torch.manual_seed(0)
        net = nn.Linear(7, CLASSES).double()
        inputs = torch.randn(BATCH, 7, dtype=torch.float64)
        more: dict[str, Any] = {"momentum": 0.9, "nesterov": True} if optimizer == "SGD" else {"eps": 1e-20}
        steps = getattr(torch.optim, optimizer)(net.parameters(), lr=lr, weight_decay=decay, **more)
        for _ in range(5):
            steps.zero_grad()
            loss(net(inputs), teacher, labels).backward()
            steps.step()
        trained.append(net.weight.detach())
    torch.testing.assert_close(*trained, rtol=1e-9, atol=1e-12)


def test_equal_losses_leave_the_optimizer_alone() -> None:
    """Where the factor is 1, lr and weight decay are theirs."""
    same = translation("mdistiller", {})
    assert not same.scaled
    assert same.optimizer(0.05, 5e-4) == ("optimizer.lr=0.05", "optimizer.weight_decay=0.0005")


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        ("repdistiller", {}, r"alpha: alpha has to be given \(-a, the weight of KL\)"),
        ("repdistiller", {"alpha": "1", "T": "4"}, r"T: `each parameter in .* must hold, but got T='T'\. repdistiller"),
        ("repdistiller", {"alpha": "much"}, r"alpha: `alpha >= 0` must hold, but got alpha='much'"),
        ("repdistiller", {"alpha": "0", "gamma": "0"}, r"weights: `a weight is > 0` must hold"),
        ("repdistiller", {"alpha": "1", "kd_T": "0"}, r"kd_T: `kd_T > 0` must hold, but got kd_T='0'"),
        (
            "torchdistill",
            {"alpha": "0.1", "temperature": "4", "reduction": "none"},
            r"reduction: `reduction in \('batch",
        ),
        (
            "torchdistill",
            {"alpha": "0.1", "temperature": "4", "reduction": "mean"},
            r"classes: reduction=mean depends on",
        ),
        ("timm", {"task_loss_weight": "1.5"}, r"weights: `each weight is >= 0` must hold, but got weights='-0.5'"),
        ("mdistiller", {"ce_weight": "None"}, r"ce_weight: `ce_weight >= 0` must hold, but got ce_weight='None'"),
        ("mdistiller_dkd", {"epochs": "10"}, r"epochs: `epochs >= warmup` must hold, but got epochs='10'"),
    ],
)
def test_a_wrong_parameter_is_refused(source: str, given: dict[str, str | float], message: str) -> None:
    """One line names the parameter, what it may be, and what it is."""
    with pytest.raises(UserError, match=message) as raised:
        translation(source, given)
    assert "\n" not in str(raised.value)


def test_none_is_what_is_not_given() -> None:
    """The alpha of torchdistill may be None, which is its default."""
    alike = [translation("torchdistill", {"temperature": "4", **given}) for given in ({}, {"alpha": "None"})]
    assert alike[0] == alike[1]


def test_every_code_base_is_held_by_its_formula() -> None:
    """Each source has a case above, and its defaults are tried where it needs nothing more."""
    assert {source for source, *_ in CASES} == {*SOURCES}


def test_the_guide_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/how-to/translate.md has the output of its commands."""
    text = (Path(__file__).parents[2] / "docs/how-to/translate.md").read_text(encoding="utf-8")
    shown = re.findall(r"```text\n\$ kdsweep-translate ([^\n]*)\n(.*?)```", text, re.DOTALL)
    assert len(shown) >= 2
    for words, printed in shown:
        translate._main(words.split())
        assert capsys.readouterr().out == printed
