"""Losses made of others: sums, and losses whose settings change from epoch to epoch; and what each loss needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import networks
import pytest
import torch
from configurations import composed
from omegaconf import OmegaConf
from test_losses import batch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from kdsweep import losses, training
from kdsweep.config import build
from kdsweep.config.checks import check
from kdsweep.losses import at_share, ce, dist, kd, needs_of, scheduled, tf_kd, unchecked, weighted_sum
from kdsweep.schedules import constant
from kdsweep.system.errors import UserError
from kdsweep.system.tensor_files import hash_tensors
from kdsweep.training import Fit, Metrics
from kdsweep.views import Views

KD = partial(kd, alpha=0.5, tau=4.0)
DIST = partial(dist, ce_weight=0.0, inter_weight=1.0, intra_weight=1.0, tau=1.0)


def plan(start: float, end: float, shape: str = "linear", until: float = 1.0) -> dict[str, Any]:
    return {"start": start, "end": end, "shape": shape, "until": until}


FADING = partial(scheduled, of=partial(kd, alpha=plan(0.9, 0.0), tau=plan(4.0, 1.0, "cosine")))


def half(value: float = 0.5) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def total(**weights: float) -> partial[Tensor]:
    """A sum of cross-entropy and of the terms with weights."""
    of = {"kd": KD, "dist": DIST, "fading": FADING}
    terms = {name: {"weight": weight, "of": of[name]} for name, weight in weights.items()}
    return partial(weighted_sum, terms={"ce": {"weight": 1.0, "of": ce}, **terms})


# --------------------------------------------------------------------------------------------------------------- sums


def test_a_sum_adds_its_terms_times_their_weights() -> None:
    """Each term is the loss that it is by itself."""
    student, teacher, labels = batch()
    found = total(kd=2.0, dist=0.3)(student, teacher, labels, share=half())
    apart = ce(student, None, labels) + 2 * KD(student, teacher, labels) + 0.3 * DIST(student, teacher, labels)
    torch.testing.assert_close(found, apart, rtol=1e-14, atol=0)


def test_a_sum_whose_teacher_has_no_weight_is_cross_entropy() -> None:
    """With weight 0 for all of the teacher's terms, value and gradient are cross-entropy's, bit for bit."""
    for dtype in (torch.float32, torch.float64):
        student, teacher, labels = batch(dtype=dtype)
        (expected,) = torch.autograd.grad(ce(student, None, labels), student)
        loss = total(kd=0.0, dist=0.0)(student, teacher, labels, share=half())
        assert torch.equal(loss, ce(student, None, labels))
        assert torch.equal(torch.autograd.grad(loss, student)[0], expected)


def test_a_sum_hands_on_how_far_the_training_is() -> None:
    """A scheduled term has the value of its epoch."""
    student, teacher, labels = batch()
    for share in (0.0, 1.0):
        found = total(fading=1.0)(student, teacher, labels, share=half(share))
        expected = kd(student, teacher, labels, alpha=0.9 * (1 - share), tau=4 - 3 * share)
        torch.testing.assert_close(found, ce(student, None, labels) + expected)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, r"terms: `a sum has terms` must hold, but got terms={}"),
        ({"kd": {"of": KD}}, r"terms\.kd: `a term has a weight and a loss \(of\), and no more`"),
        ({"kd": {"weight": -1, "of": KD}}, r"terms\.kd\.weight: `0 <= weight < inf` must hold, but got weight=-1"),
        ({"kd": {"weight": 1, "of": partial(KD, tau=0)}}, r"terms\.kd\.of\.tau: `0 < tau < inf`"),
        ({"all": {"weight": 1, "of": total(kd=math.nan)}}, r"terms\.all\.of\.terms\.kd\.weight: `0 <= weight < inf`"),
    ],
)
def test_a_wrong_sum_is_refused(terms: dict[str, Any], message: str) -> None:
    """The key leads to the term and its setting."""
    with pytest.raises(UserError, match=message):
        weighted_sum(*batch(), terms=terms, share=half())


# ---------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_setting_goes_from_start_to_end(dtype: torch.dtype) -> None:
    """It has both ends exactly; in between it goes straight, along half a cosine, or jumps."""

    def values(shape: str, until: float, shares: tuple[float, ...]) -> list[float]:
        return [at_share(torch.tensor(s, dtype=dtype), **plan(8.0, 2.0, shape, until)).item() for s in shares]

    shares = (0.0, 0.2, 0.4, 0.8, 1.0)
    assert values("linear", 0.8, shares) == pytest.approx([8, 6.5, 5, 2, 2], rel=1e-6)
    waves = [8, *(8 - 6 * (1 - math.cos(math.pi * share / 0.8)) / 2 for share in (0.2, 0.4)), 2, 2]
    assert values("cosine", 0.8, shares) == pytest.approx(waves, rel=1e-6)
    assert values("step", 0.8, shares) == [8, 8, 8, 2, 2]
    for shape in ("linear", "cosine", "step"):
        ends = [at_share(torch.tensor(s, dtype=dtype), **plan(0.9, 0.1, shape)) for s in (0.0, 1.0)]
        assert ends == [torch.tensor(0.9, dtype=dtype), torch.tensor(0.1, dtype=dtype)]


def test_a_teacher_that_has_faded_away_leaves_cross_entropy() -> None:
    """Where alpha has come to 0, value and gradient are cross-entropy's, bit for bit."""
    for dtype in (torch.float32, torch.float64):
        student, teacher, labels = batch(dtype=dtype)
        loss = FADING(student, teacher, labels, share=torch.ones((), dtype=dtype))
        assert torch.equal(loss, ce(student, None, labels))
        expected = torch.autograd.grad(ce(student, None, labels), student)[0]
        assert torch.equal(torch.autograd.grad(loss, student)[0], expected)


def test_other_settings_stay_as_they_are() -> None:
    """A setting without a schedule is constant."""
    student, teacher, labels = batch()
    loss = partial(scheduled, of=partial(kd, alpha=0.3, tau=plan(4.0, 2.0)))
    found = loss(student, teacher, labels, share=half())
    torch.testing.assert_close(found, kd(student, teacher, labels, alpha=0.3, tau=3.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.5, "tau": 4.0}, r"of: `a setting has a schedule` must hold"),
        ({"alpha": plan(1.5, 0), "tau": 4.0}, r"of\.alpha\.start: `0 <= alpha <= 1` must hold, but got alpha=1\.5"),
        ({"alpha": 0.5, "tau": plan(4, 0)}, r"of\.tau\.end: `0 < tau < inf` must hold, but got tau=0"),
        ({"alpha": 2, "tau": plan(4, 1)}, r"of\.alpha: `0 <= alpha <= 1` must hold, but got alpha=2"),
        ({"alpha": 0.5, "tau": plan(4, 1, "steep")}, r"of\.tau\.shape: `shape in \('linear', 'cosine', 'step'\)`"),
        ({"alpha": 0.5, "tau": plan(4, 1, until=0)}, r"of\.tau\.until: `0 < until <= 1` must hold, but got until=0"),
        ({"alpha": 0.5, "tau": {"start": 4}}, r"of\.tau\.end: `end is set` must hold, but got end=None"),
        ({"alpha": 0.5, "tau": plan(4, 1) | {"at": 1}}, r"of\.tau\.at: `each key in .* must hold, but got at='at'"),
        ({"alpha": 0.5, "tau": plan("hot", 1)}, r"of\.tau\.start: `start is a number` must hold, but got start='hot'"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_schedule_is_refused(settings: dict[str, Any], message: str) -> None:
    """Both ends keep the rules of the loss, and a schedule is whole."""
    with pytest.raises(UserError, match=message):
        scheduled(*batch(), of=partial(kd, **settings), share=half())


@pytest.mark.parametrize("loss", [FADING, total(kd=0.7, fading=0.2)])
def test_another_epoch_needs_no_new_compiling(loss: partial[Tensor]) -> None:
    """torch.compile takes sums and schedules whole, and the share of the training is a tensor of the step."""
    student, teacher, labels = batch(dtype=torch.float32)
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(unchecked(loss), backend=counter, fullgraph=True)
    for share in (0.0, 0.25, 1.0):
        at = torch.tensor(share)
        torch.testing.assert_close(
            compiled(student, teacher, labels, share=at), loss(student, teacher, labels, share=at)
        )
    assert counter.frame_count == 1


# ----------------------------------------------------------------------------------------------------- in a training


class Interrupted(Exception):
    """Ctrl-C between two steps."""


def fit(loss: Callable[..., Tensor], epochs: int = 3) -> Fit:
    """A training of a small network with dropout on 20 pictures, in batches of 5."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (20, 8, 8, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (20,), generator=generator)
    return Fit(
        networks.two_heads(lambda own, features, logits: logits),
        Views(pictures, 1, True, 0),
        labels,
        loss=loss,
        teacher=None,
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        schedule=constant,
        epochs=epochs,
        batch_size=5,
        n_passes=epochs,
        order_seed=0,
        precision="fp32",
    )


def told(made: Fit) -> tuple[list[float], str]:
    """The training losses of the epochs that are left, and the hash of the weights."""
    found = [epoch["train/loss"] for epoch in made]
    return found, hash_tensors(made._network.net.state_dict())


SELF_TAUGHT = partial(scheduled, of=partial(tf_kd, alpha=plan(0.9, 0.1), tau=plan(1.0, 20.0, "cosine"), correct=0.9))


@pytest.mark.parametrize("steps", [4, 6])
def test_interrupted_and_resumed_is_never_interrupted(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Stopped after an epoch or within one, and loaded into another process's training, it ends in the same bits."""
    whole = told(fit(SELF_TAUGHT))

    @contextmanager
    def interrupting(*_: object, **__: object) -> Iterator[Callable[..., None]]:
        done: list[object] = []

        def advance(pictures: int, text: str = "") -> None:
            done.extend([None] * (pictures > 0))
            if len(done) == steps:
                raise Interrupted

        yield advance

    stopped = fit(SELF_TAUGHT)
    begun: list[Metrics] = []
    with monkeypatch.context() as patch:
        patch.setattr(training, "progress", interrupting)
        with pytest.raises(Interrupted):
            begun.extend(stopped)
    state = stopped.state()
    resumed = fit(SELF_TAUGHT)
    resumed.load(state)
    values, weights = told(resumed)
    assert weights == whole[1]
    assert [*(epoch["train/loss"] for epoch in begun), *values] == whole[0]


def test_a_training_says_how_far_it_is() -> None:
    """The loss gets 0 in the first epoch and 1 in the last, always in the same tensor; a single epoch is the first."""
    seen: list[tuple[float, int]] = []

    @losses.needs(losses.SHARE)
    def loss(logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, *, share: Tensor) -> Tensor:
        seen.append((share.item(), id(share)))
        return ce(logits, teacher_logits, labels)

    for epochs, expected in ((3, [0.0, 0.5, 1.0]), (1, [0.0])):
        seen.clear()
        list(fit(loss, epochs))
        assert [share for share, _ in seen] == [share for share in expected for _ in range(4)]
        assert len({tensor for _, tensor in seen}) == 1


# ------------------------------------------------------------------------------------------------- what a loss needs


def test_each_loss_says_what_it_needs() -> None:
    """A sum needs what its terms need, and a loss that doesn't say hears the teacher, as users' own do."""
    assert needs_of(ce) == needs_of(losses.label_smoothing) == set()
    assert needs_of(partial(tf_kd, alpha=0)) == {"label"}
    for name in ("kd", "mse", "dist", "wttm", "pseudo_labels"):
        assert needs_of(partial(getattr(losses, name), tau=1)) == {"logits"}
    for name in ("dkd", "nkd"):
        assert needs_of(partial(getattr(losses, name), tau=1)) == {"logits", "label"}
    assert needs_of(lambda student, teacher, labels: student.sum()) == {"logits"}
    assert needs_of(FADING) == {"logits", "share"}
    assert needs_of(total(kd=1)) == needs_of(unchecked(total(kd=1))) == {"logits", "share"}
    assert needs_of(total()) == {"share"}
    assert needs_of(SELF_TAUGHT) == {"share", "label"}


@pytest.mark.parametrize("words", [["loss=sum"], ["loss=sum", "~loss.terms.kd", "~loss.terms.dist"], ["loss=tf_kd"]])
def test_what_is_built_of_a_configuration_has_no_checks_left(words: list[str]) -> None:
    """The settings are checked once, where the loss is built; what trains is the plain function, down to the terms."""
    loss = build.component(composed(*words), "loss")
    parts = [loss, *(term["of"] for term in loss.keywords.get("terms", {}).values())]
    assert [hasattr(part.func if isinstance(part, partial) else part, "__wrapped__") for part in parts] == [
        False for _ in parts
    ]
    assert ("logits" in needs_of(loss)) == (words == ["loss=sum"])


@pytest.mark.parametrize(("option", "own"), [("sum", "kd"), ("kd_scheduled", "kd"), ("nkd", "nkd")])
def test_a_loss_that_hears_a_teacher_is_refused_without_one(option: str, own: str) -> None:
    """With a teacher it passes all checks, and without one the loss that needs it is named."""
    config = composed("experiment=debug", f"loss={option}")
    check(config)
    alone = config.copy()
    OmegaConf.set_readonly(alone, False)
    alone.teacher = None
    with pytest.raises(UserError, match=f"loss: {own} needs a teacher, but teacher is null"):
        check(alone)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss=sum", "loss.terms.kd.weight=-1"], r"loss\.terms\.kd\.weight: `0 <= weight < inf`"),
        (["loss=sum", "loss.terms.kd.of.tau=0"], r"loss\.terms\.kd\.of\.tau: `0 < tau < inf`"),
        (["loss=kd_scheduled", "loss.of.alpha.start=2"], r"loss\.of\.alpha\.start: `0 <= alpha <= 1`"),
        (["loss=kd_variants", "loss.direction=up"], r"loss\.direction: `direction in \('forward', 'reverse', 'js'\)`"),
    ],
)
def test_a_wrong_setting_is_named_by_its_key(words: list[str], message: str) -> None:
    """As on the command line, whether it is found before torch is imported or where the loss is built."""
    config = composed("experiment=debug", *words)
    for found in (lambda: check(config), lambda: build.component(config, "loss")):
        with pytest.raises(UserError, match=message):
            found()
