"""Losses on pooled features: against their formulas written out in float64, their identities, and in a training."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from commands import SHORT, artifacts, runs
from configurations import composed
from in_process import train_here
from omegaconf import OmegaConf
from safetensors.torch import load_file
from test_losses import batch, softmax
from test_teachers import DATA, teacher, views
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from kdsweep import loss_rules
from kdsweep.config import build
from kdsweep.config.checks import check
from kdsweep.losses import (
    ce,
    example_for,
    feature,
    given_to,
    kd,
    needs_of,
    rkd,
    scheduled,
    sp,
    trained_with,
    unchecked,
    weighted_sum,
)
from kdsweep.numerics.compiling import tensor_settings
from kdsweep.numerics.step_graph import obstacle
from kdsweep.schedules import constant
from kdsweep.system.checkpoint import packed, unpacked
from kdsweep.system.errors import UserError
from kdsweep.system.tensor_files import hash_tensors, write_tensors
from kdsweep.tables import TableMismatchError
from kdsweep.teachers import Teacher
from kdsweep.training import Fit, rehearse

Vectors = list[list[float]]

N, STUDENTS, TEACHERS = 6, 4, 7

# Each loss with settings in which all of its terms count.
LOSSES: dict[str, partial[Tensor]] = {
    "cosine": partial(feature, ce_weight=1.0, weight=0.7, distance="cosine"),
    "mse": partial(feature, ce_weight=1.0, weight=0.7, distance="mse"),
    "rkd": partial(rkd, ce_weight=1.0, distance_weight=0.7, angle_weight=2.0),
    "sp": partial(sp, ce_weight=1.0, weight=30.0),
}

# The settings at which the teacher isn't heard.
OFF: dict[str, dict[str, float]] = {
    **{name: {"weight": 0.0} for name in ("cosine", "mse", "sp")},
    "rkd": {"distance_weight": 0.0, "angle_weight": 0.0},
}


def features(name: str, n: int = N, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The features of student and teacher, and a projector if the loss needs one."""
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    found = {"student_features": drawn(n, STUDENTS).requires_grad_(), "teacher_features": drawn(n, TEACHERS)}
    if "projector" in needs_of(LOSSES[name]):
        found["projector"] = drawn(TEACHERS, STUDENTS + 1).requires_grad_()
    return found


def logits_alone(own: networks.TwoHeads, pooled: Tensor, logits: Tensor) -> Tensor:
    return logits


GUIDE = networks.two_heads(logits_alone, frozen=True)


def other_network() -> networks.Classifier:
    """Another network of that kind."""
    made = networks.two_heads(logits_alone, frozen=True)
    with torch.no_grad():
        made.net.get_parameter("conv.weight").neg_()
    return made


def total(weight: float) -> partial[Tensor]:
    """CE + KD + a loss on features."""
    terms = {
        "ce": {"weight": 1.0, "of": ce},
        "kd": {"weight": 0.0 if weight == 0 else 0.5, "of": partial(kd, alpha=1.0, tau=4.0)},
        "feature": {"weight": weight, "of": partial(LOSSES["cosine"], ce_weight=0.0)},
    }
    return partial(weighted_sum, terms=terms)


# -------------------------------------------------------------------------------------------- the papers' formulas


def length(v: list[float]) -> float:
    return math.sqrt(sum(x * x for x in v))


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def minus(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def huber(x: float, y: float) -> float:
    """Park et al. 2019, equation 5."""
    return (x - y) ** 2 / 2 if abs(x - y) <= 1 else abs(x - y) - 0.5


def slow_feature(student: Vectors, theirs: Vectors, projector: Vectors, distance: str) -> float:
    """FitNets' hint with a linear regressor W s + b: the mean squared difference to t, or 1 - cosine."""
    ours = [[dot(row[:-1], s) + row[-1] for row in projector] for s in student]
    if distance == "mse":
        return statistics.fmean(statistics.fmean(x * x for x in minus(r, t)) for r, t in zip(ours, theirs, strict=True))
    return statistics.fmean(1 - dot(r, t) / (length(r) * length(t)) for r, t in zip(ours, theirs, strict=True))


def slow_rkd(student: Vectors, theirs: Vectors) -> tuple[float, float]:
    """RKD-D and RKD-A, Park et al. 2019, equations 6 to 10, as means over all pairs and triples, as in their code."""

    def distances(f: Vectors) -> list[float]:
        apart = [length(minus(a, b)) for a, b in itertools.product(f, f)]
        mean = statistics.fmean(d for d in apart if d > 0)
        return [d / mean for d in apart]

    def unit(a: list[float], b: list[float]) -> list[float]:
        size = max(length(minus(a, b)), 1e-12)  # as F.normalize
        return [x / size for x in minus(a, b)]

    def angles(f: Vectors) -> list[float]:
        return [dot(unit(f[j], f[i]), unit(f[k], f[i])) for i, j, k in itertools.product(range(len(f)), repeat=3)]

    means = [statistics.fmean(map(huber, of(student), of(theirs))) for of in (distances, angles)]
    return means[0], means[1]


def slow_sp(student: Vectors, theirs: Vectors) -> float:
    """|G_T - G_S|_F^2 / b^2 with G = Q Q^T and rows of length 1, Tung and Mori 2019, equations 1 to 4."""

    def similarities(f: Vectors) -> Vectors:
        rows = [[dot(a, b) for b in f] for a in f]
        return [[x / length(row) for x in row] for row in rows]

    ours, others = similarities(student), similarities(theirs)
    return sum((x - y) ** 2 for a, b in zip(ours, others, strict=True) for x, y in zip(a, b, strict=True)) / N**2


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_its_papers_formula(name: str) -> None:
    """Written out in float64 from the paper, or from its authors' code where the paper leaves a mean open."""
    logits, _, labels = batch(n=N)
    given = features(name)
    plain = {key: value.tolist() for key, value in given.items()}
    ours, theirs = plain["student_features"], plain["teacher_features"]
    hard = statistics.fmean(-math.log(softmax(z)[y]) for z, y in zip(logits.tolist(), labels.tolist(), strict=True))
    if name == "rkd":
        distances, angles = slow_rkd(ours, theirs)
        expected = hard + 0.7 * distances + 2 * angles
    elif name == "sp":
        expected = hard + 30 * slow_sp(ours, theirs)
    else:
        expected = hard + 0.7 * slow_feature(ours, theirs, plain["projector"], name)
    assert LOSSES[name](logits, None, labels, **given).item() == pytest.approx(expected, rel=1e-11)


# ------------------------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize("name", [*LOSSES, "sum"])
def test_without_the_teachers_part_it_is_cross_entropy(name: str) -> None:
    """With all weights at 0, value and gradients are cross-entropy's bit for bit, and the features get none."""
    for dtype in (torch.float32, torch.float64):
        logits, theirs, labels = batch(n=N, dtype=dtype)
        given = features("cosine" if name == "sum" else name, dtype=dtype)
        (expected,) = torch.autograd.grad(ce(logits, None, labels), logits)
        loss = total(0.0) if name == "sum" else partial(LOSSES[name], **OFF[name])
        more = {"share": torch.zeros(()), "projector": {"feature": given.pop("projector")}} if name == "sum" else {}
        value = loss(logits, theirs, labels, **given, **more)
        assert torch.equal(value, ce(logits, None, labels))
        own, of_features = torch.autograd.grad(value, (logits, given["student_features"]))
        assert torch.equal(own, expected)
        assert not of_features.any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_with_its_teachers_features_has_nothing_to_learn_from_them(name: str) -> None:
    """The teacher's part is 0 with gradient 0. For rkd and sp it is so for any scale and rotation of the features."""
    logits, _, labels = batch(n=N)
    given = features(name)
    theirs = given["teacher_features"]
    if name in ("cosine", "mse"):
        given["projector"] = torch.eye(TEACHERS, TEACHERS + 1, dtype=torch.float64)
        ours = theirs.clone().requires_grad_()
    else:
        rotation, _ = torch.linalg.qr(torch.randn(9, TEACHERS, generator=torch.Generator().manual_seed(1)).double())
        ours = (3 * theirs @ rotation.T).requires_grad_()  # nine features instead of seven
    value = LOSSES[name](logits, None, labels, **{**given, "student_features": ours}, ce_weight=0.0)
    assert abs(value.item()) < 1e-12
    assert torch.autograd.grad(value, ours)[0].abs().max() < 1e-6


def test_relations_know_no_shift() -> None:
    """Differences of features are compared, so a constant that is added to all of them changes nothing."""
    logits, _, labels = batch(n=N)
    given = features("rkd")
    shifted = {**given, "student_features": given["student_features"] + 100}
    torch.testing.assert_close(
        LOSSES["rkd"](logits, None, labels, **shifted), LOSSES["rkd"](logits, None, labels, **given)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    """As differences of the value say, for features and projector; none reaches the teacher."""
    logits, _, labels = batch(n=N)
    given = features(name)
    trained = [key for key, value in given.items() if value.requires_grad]
    given["teacher_features"].requires_grad_()

    def value(*tensors: Tensor) -> Tensor:
        return LOSSES[name](logits, None, labels, **{**given, **dict(zip(trained, tensors, strict=True))})

    assert torch.autograd.gradcheck(value, [given[key] for key in trained])
    value(*(given[key] for key in trained)).backward()
    assert given["teacher_features"].grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_features_give_finite_numbers(name: str) -> None:
    """In float32 value and gradient are finite for equal, large and nearly equal features, and for one picture."""
    for scale, n in ((0.0, N), (1e3, N), (1e-6, N), (1.0, 1)):
        logits, _, labels = batch(n=n, dtype=torch.float32)
        given = features(name, n, torch.float32)
        ours = (1 + scale * given["student_features"].detach()).requires_grad_()
        value = LOSSES[name](logits, None, labels, **{**given, "student_features": ours})
        value.backward()
        assert value.isfinite()
        assert ours.grad is not None
        assert ours.grad.isfinite().all()


def test_relations_keep_their_digits() -> None:
    """In float32, features that are far from 0 and near each other have the relations that they have in float64."""
    logits, _, labels = batch(n=N)
    given = {key: (value.detach() + 30).float() for key, value in features("rkd").items()}
    exact = {key: value.double() for key, value in given.items()}
    for name in ("rkd", "sp"):
        found = partial(LOSSES[name], ce_weight=0.0)(logits.float(), None, labels, **given).item()
        assert found == pytest.approx(
            partial(LOSSES[name], ce_weight=0.0)(logits, None, labels, **exact).item(), rel=1e-3
        )


@pytest.mark.parametrize("name", ["rkd", "sp"])
def test_autocast_changes_nothing(name: str) -> None:
    """The products of features are taken in float64, which autocast leaves alone."""
    logits, _, labels = batch(n=N, dtype=torch.float32)
    given = features(name, dtype=torch.float32)
    plain = LOSSES[name](logits, None, labels, **given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LOSSES[name](logits, None, labels, **given), plain)


@pytest.mark.parametrize("name", LOSSES)
def test_other_settings_need_no_new_compiling(name: str) -> None:
    """torch.compile takes the loss whole, and another weight, as a tensor, takes the same code."""
    logits, _, labels = batch(n=N, dtype=torch.float32)
    given, loss = features(name, dtype=torch.float32), LOSSES[name]
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(inspect.unwrap(loss.func), backend=counter, fullgraph=True)
    for factor in (1.0, 0.5):
        numbers = {key: factor * value for key, value in loss.keywords.items() if isinstance(value, float)}
        settings = tensor_settings(unchecked(partial(loss, **numbers)), True, example_for(loss, 2))
        assert settings is not None
        assert {key for key, value in settings.items() if isinstance(value, Tensor)} == numbers.keys()
        expected = loss(logits, None, labels, **given, **numbers)
        torch.testing.assert_close(compiled(logits, None, labels, **settings, **given), expected)
    assert counter.frame_count == 1


def test_a_sum_and_a_network_with_features_compile_whole() -> None:
    """The whole step but the optimizer is one graph for torch.compile, and another network needs no new one."""
    torch._dynamo.reset()
    counter = CompileCounter()
    loss = unchecked(total(1.0))
    given = given_to(loss, sizes=(8, TEACHERS))
    theirs = torch.randn(4, 10), torch.randn(4, TEACHERS)

    def learned(network: Any, pictures: Tensor, labels: Tensor) -> Tensor:
        logits, ours = network.with_features(pictures)
        value: Tensor = loss(logits, theirs[0], labels, student_features=ours, teacher_features=theirs[1], **given)
        return value

    compiled = torch.compile(learned, fullgraph=True, dynamic=False, backend=counter)
    for _ in range(2):
        one, other = (networks.two_heads(logits_alone).eval() for _ in range(2))
        batch_of = DATA.train.images[:4], DATA.train.labels[:4]
        torch.testing.assert_close(compiled(one, *batch_of), learned(other, *batch_of))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", LOSSES)
def test_wrong_settings_are_refused(name: str) -> None:
    """Each number out of its range, and each word that is none: one line names the key, the rule and the value."""
    loss = LOSSES[name]
    for key in loss.keywords:
        for value in (-1.0, None, "much", math.nan):
            with pytest.raises(UserError) as raised:
                loss(*batch(n=N), **features(name), **{key: value})
            assert str(raised.value).startswith(f"{key}: `")
            assert f" must hold, but got {key}={value!r}." in str(raised.value)
    loss_rules.check(loss)


def test_losses_say_what_they_need() -> None:
    """None needs the teacher's logits; a sum needs what its terms do, with a projector for each that has one."""
    assert needs_of(LOSSES["mse"]) == {"features", "projector"}
    assert needs_of(LOSSES["rkd"]) == needs_of(LOSSES["sp"]) == {"features"}
    assert needs_of(total(1.0)) == needs_of(unchecked(total(1.0))) == {"logits", "features", "projector", "share"}
    fading = partial(scheduled, of=partial(LOSSES["mse"], weight={"start": 1, "end": 0, "shape": "linear", "until": 1}))
    nested = partial(
        weighted_sum, terms={"own": {"weight": 1.0, "of": LOSSES["mse"]}, "fading": {"weight": 1.0, "of": fading}}
    )
    made = given_to(nested, sizes=(3, 4), seed=5)
    assert {name: projector.shape for name, projector in trained_with(made).items()} == {
        "projector.own": (4, 4),
        "projector.fading.of": (4, 4),
    }
    assert not torch.equal(made["projector"]["own"], made["projector"]["fading"]["of"])
    logits, _, labels = batch(n=2, dtype=torch.float32)
    value = nested(logits, None, labels, **example_for(nested, 2))
    assert value.isfinite()


def test_projectors_are_drawn_from_the_seed_alone() -> None:
    """As torch draws linear layers: evenly, within 1 over the root of the inputs; torch's own numbers stay."""
    torch.manual_seed(0)
    made = [given_to(LOSSES["mse"], sizes=(64, 32), seed=seed)["projector"] for seed in (0, 0, 1, 2**63 - 1)]
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(made[0], made[1])
    assert len({hash_tensors({"": one.detach()}) for one in made}) == 3
    assert made[0].shape == (32, 65)
    assert 0.12 < made[0].abs().max() <= 0.125
    assert made[0].std().item() == pytest.approx(0.125 / math.sqrt(3), rel=0.05)


# ----------------------------------------------------------------------------------------- the teacher's features


def test_features_of_a_pass_are_what_the_head_takes(tmp_path: Path) -> None:
    """From a table and online alike, bit for bit in fp32 by the same batches, rounded to fp16."""
    rows, pictures = torch.arange(12), views().batch(torch.arange(12), 3)
    from_table = teacher(tmp_path, GUIDE).answers_features(3)(rows, pictures)
    online = teacher(tmp_path, GUIDE, mode="online").answers_features(3)(rows, pictures)
    assert from_table.dtype == online.dtype == torch.float32
    assert torch.equal(from_table, online)
    with torch.inference_mode():
        expected = GUIDE.eval().features(pictures)
    torch.testing.assert_close(from_table, expected, rtol=2**-11, atol=1e-6)
    (path,) = tmp_path.glob("*/pass-0003.safetensors")
    assert load_file(path)["outputs"].dtype == torch.float16
    other = teacher(tmp_path, GUIDE).answers_features(4)(rows, pictures)
    assert (other - online).abs().max() > 0.01


def test_features_and_logits_of_a_pass_are_computed_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is asked once for both, and the table of logits has the bits that it has by itself."""
    alone = teacher(tmp_path / "alone", GUIDE)
    expected = alone.answers(2)(torch.arange(32), DATA.train.images)
    ours = teacher(tmp_path / "both", GUIDE)
    ours.answers_features(2)
    monkeypatch.setattr(ours, "_passing", None)  # so it can't be asked again
    assert torch.equal(ours.answers(2)(torch.arange(32), DATA.train.images), expected)
    assert ours._known_logits == {}
    assert {path.parent.name for path in (tmp_path / "alone").glob("*/*")} < {
        path.parent.name for path in (tmp_path / "both").glob("*/*")
    }


def test_features_belong_to_the_backbone_and_the_views(tmp_path: Path) -> None:
    """Another head finds them; another backbone or another view policy doesn't."""
    teacher(tmp_path, networks.two_heads(logits_alone)).answers_features(0)
    (found,) = (path.parent for path in tmp_path.glob("*/pass-0000.safetensors"))
    head = networks.two_heads(logits_alone)
    torch.nn.init.zeros_(head.head.weight)
    assert teacher(tmp_path, head).missing_passes(1, ("features",)) == []
    assert teacher(tmp_path, head).missing_passes(1, ("logits", "features")) == [0]
    for other in (teacher(tmp_path, other_network()), teacher(tmp_path, GUIDE, shown=views(seed=1))):
        assert other.missing_passes(1, ("features",)) == [0]
    assert found.name != teacher(tmp_path, head).features_key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_features_of_another_network_are_refused(tmp_path: Path, precision: str) -> None:
    """A table in fp16 is believed again and again, and one of another network ends the run."""
    for _ in range(2):
        teacher(tmp_path, GUIDE, precision=precision).answers_features(0)
    (path,) = tmp_path.glob("*/*.safetensors")
    kept = load_file(path)
    write_tensors(path, {"outputs": kept["outputs"]})  # without the control rows, as by another machine
    teacher(tmp_path, GUIDE, precision=precision).answers_features(0)
    with torch.inference_mode():
        wrong = other_network().eval().features(views().batch(torch.arange(32), 0))
    write_tensors(path, {"outputs": wrong.half()})
    with pytest.raises(TableMismatchError, match=r"pass-0000\.safetensors by .* another network or library"):
        teacher(tmp_path, GUIDE, precision=precision).answers_features(0)


def test_the_size_is_said_and_has_to_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written; tables that are there, and the mode online, take nothing more."""
    ours = teacher(tmp_path, GUIDE)
    ours.answers_features(1)
    assert ours.feature_bytes([0, 1, 2, 2]) == 2 * 32 * 8 * 2
    ours.require_room([0, 1, 2])
    ours.say_size([0, 1, 2])
    said = " ".join(capsys.readouterr().err.split())
    assert "3 passes with 8 of them for each of 32 pictures, of which 0.1 MiB (fp16) are still to be written" in said
    ours.say_size([1])
    assert teacher(tmp_path, GUIDE, mode="online").feature_bytes([0, 5]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(ours._pass_features, "free_bytes", lambda: 100)
    ours.require_room([1])
    with pytest.raises(
        UserError, match=r"n_passes: `the teacher's features fit on the disk` must hold, .* 2 passes take"
    ):
        ours.require_room([1, 3])


def test_passes_are_computed_ahead_with_their_features(tmp_path: Path) -> None:
    """Features come first, then the logits that were made on the way; with both there, nothing is left."""
    ours = teacher(tmp_path, GUIDE)
    done = [ours.compute_part(0, lambda: False, ("logits", "features")) for _ in range(3)]
    ours.answers_features(0)
    ours.answers(0)
    assert done[0]
    assert not ours.compute_part(0, lambda: False, ("logits", "features"))


# -------------------------------------------------------------------------------------------------- in a training


def guide_of(root: Path, mode: str = "table") -> Teacher:
    """A small teacher of 10 classes with 8 features."""
    return teacher(root, other_network(), mode=mode, batch_size=16)


def fitting(loss: Callable[..., Tensor], guide: Teacher | None, **changes: Any) -> Fit:
    """A training of a small network with dropout: two epochs of two steps."""
    plain: dict[str, Any] = {"epochs": 2, "batch_size": 16, "n_passes": 2, "order_seed": 2, "precision": "fp32"}
    return Fit(
        networks.two_heads(logits_alone),
        views(),
        DATA.train.labels,
        loss=loss,
        teacher=guide,
        optimizer=functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        schedule=constant,
        **plain | changes,
    )


def outcome(fit: Fit) -> tuple[list[float], str, dict[str, str]]:
    """What a training found, and the hashes of its weights and projectors."""
    found = [metrics["train/loss"] for metrics in fit]
    projectors = {name: hash_tensors({"": one.detach()}) for name, one in fit._projectors.items()}
    return found, hash_tensors(fit._network.net.state_dict()), projectors


@pytest.mark.parametrize("name", [*LOSSES, "sum"])
def test_without_weight_it_trains_the_weights_of_cross_entropy(tmp_path: Path, name: str) -> None:
    """Bit for bit, with a projector in the optimizer too; with weight it doesn't."""
    plain = outcome(fitting(ce, None))
    off = total(0.0) if name == "sum" else unchecked(partial(LOSSES[name], **OFF[name]))
    on = total(1.0) if name == "sum" else LOSSES[name]
    guide = guide_of(tmp_path)
    assert outcome(fitting(off, guide))[:2] == plain[:2]
    assert outcome(fitting(on, guide))[1] != plain[1]


@pytest.mark.parametrize("name", [*LOSSES, "sum"])
def test_table_and_online_train_the_same_student(tmp_path: Path, name: str) -> None:
    """The student's losses are the same whether its teacher's features come from a table or from the network.

    Both ask the teacher about 16 pictures at a time, as for logits.
    """
    loss = total(1.0) if name == "sum" else LOSSES[name]
    found = [outcome(fitting(loss, guide_of(tmp_path, mode)))[0] for mode in ("table", "online")]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_projectors_are_trained_and_go_on(tmp_path: Path) -> None:
    """They change, the same seeds repeat all bits, and so does a training that is loaded in between; others don't."""
    guide = guide_of(tmp_path)
    whole = outcome(fitting(total(1.0), guide, init_seed=4))
    assert outcome(fitting(total(1.0), guide, init_seed=4)) == whole
    assert outcome(fitting(total(1.0), guide, init_seed=5))[1] != whole[1]
    fit = fitting(total(1.0), guide, init_seed=4)
    untrained = fit._projectors["projector.feature"].detach().clone()
    first = next(iter(fit))
    assert not torch.equal(fit._projectors["projector.feature"], untrained)
    state = fit.state()
    assert not any("projector" in name for name in state["network"])
    again = fitting(total(1.0), guide, init_seed=9)
    again.load(unpacked(packed(state)))  # as a checkpoint's file has it
    found, *rest = outcome(again)
    assert ([first["train/loss"], *found], *rest) == whole


def test_a_step_with_features_asks_no_tensor_for_its_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A GPU captures it: an obstacle would be found on tensors without content, and none is."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, fused=True)
    pictures, labels = DATA.train.images[:4], DATA.train.labels[:4]
    network = networks.two_heads(logits_alone)
    for loss in (*LOSSES.values(), total(1.0)):
        given = given_to(loss, sizes=(8, 512))
        answers, theirs = torch.zeros(4, 10), torch.zeros(4, 512)
        assert (
            obstacle(network, partial(unchecked(loss), **given), optimizer, pictures, answers, labels, theirs) is None
        )

    def waiting(logits: Tensor, *_: Any, student_features: Tensor, **__: Any) -> Tensor:
        return student_features.sum() * student_features.max().item()

    found = obstacle(network, waiting, optimizer, pictures, answers, labels, theirs)
    assert "waits for the GPU" in str(found)


def test_a_network_without_pooled_features_is_refused() -> None:
    """Its head takes a map for each picture; one line says what is needed, before the training."""

    class Mapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, stride=2)
            self.head = networks.Head(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.conv(x).flatten(2).transpose(1, 2)).mean(1)
            return logits

    network = networks.Classifier(
        Mapped(), "head", frozen=False, input_size=None, mean=networks.HALF, std=networks.HALF
    )
    settings: dict[str, Any] = {"guided": True, "optimizer": partial(torch.optim.SGD, lr=0.1), "schedule": constant}
    for loss in (kd_alone := partial(kd, alpha=0.5, tau=1.0), LOSSES["rkd"]):
        tried = functools.partial(
            rehearse, network, views(), DATA.train.labels, loss=loss, precision="fp32", **settings
        )
        if loss is kd_alone:
            tried()
            continue
        with pytest.raises(UserError, match=r"`the head takes pooled features.* it takes a tensor \(32, 225, 8\)"):
            tried()


# --------------------------------------------------------------------------------------------------- in a command


ADDED = "loss=sum +loss@loss.terms.near.of=sp loss.terms.near.of.ce_weight=0 +loss.terms.near.weight=1"


@pytest.mark.parametrize("words", ["loss=feature", "loss=rkd", "loss=sp", "loss=sum_feature", ADDED])
def test_a_loss_on_features_is_refused_without_a_teacher(words: str) -> None:
    """With a teacher it passes all checks, and without one the loss that needs it is named."""
    config = composed("experiment=debug", *words.split())
    check(config)
    alone = config.copy()
    OmegaConf.set_readonly(alone, False)
    alone.teacher = None
    with pytest.raises(UserError, match=r"loss: \w+ needs a teacher, but teacher is null"):
        check(alone)
    assert "features" in needs_of(build.component(config, "loss"))


@pytest.mark.parametrize(
    ("words", "key", "loss"),
    [
        (("loss=feature", "+loss.projector=1"), "loss.projector", "feature"),
        (("loss=sum", "+loss.student_features=1"), "loss.student_features", "weighted_sum"),
        (("loss=sum_feature", "+loss.terms.feature.of.projector=1"), "loss.terms.feature.of.projector", "feature"),
        (("loss=dkd_warmup", "+loss.teacher_features=1"), "loss.teacher_features", "scheduled"),
    ],
)
def test_what_the_training_gives_is_no_setting(words: tuple[str, ...], key: str, loss: str) -> None:
    """Features and projector can't be configured, in a sum or a schedule and in their parts either."""
    with pytest.raises(UserError, match=f"^{key}: `nobody but the training gives {loss} this argument`"):
        build.component(composed(*words), "loss")


def test_a_terms_unknown_setting_is_named() -> None:
    """By its whole key, as that of any loss."""
    with pytest.raises(UserError, match=r"^loss\.terms\.kd\.of\.temperature: "):
        build.component(composed("loss=sum", "+loss.terms.kd.of.temperature=2"), "loss")


@pytest.mark.slow
def test_a_run_says_the_size_and_leaves_a_student_without_its_projector(tmp_path: Path) -> None:
    """A sum with features trains by one command, and its weights are those of the network alone."""
    done = train_here([*SHORT, "loss=sum_feature", "loss.terms.feature.weight=2"], tmp_path)
    assert done.status == 0, done.err
    said = " ".join(done.err.split())
    assert "The loss hears the teacher's pooled features: 2 passes with 512 of them for each of 64 pictures" in said
    (student,) = runs(tmp_path, "distill")
    weights = load_file(artifacts(student) / "model.safetensors")
    assert {*weights} == {*networks.build(10, name="shufflenet_v2_x0_5").net.state_dict()}
