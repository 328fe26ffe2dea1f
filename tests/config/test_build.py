"""Claims about what stands between the configuration and the objects built from it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import SHORT
from configurations import composed
from omegaconf import DictConfig, OmegaConf

from kdsweep import losses, training
from kdsweep.config import build, identities, rules
from kdsweep.config.checks import check
from kdsweep.models import FORMATS, Classifier
from kdsweep.system.errors import UserError
from kdsweep.system.tensor_files import hash_tensors


@pytest.fixture(autouse=True)
def rng() -> Iterator[None]:
    """Building a network seeds torch's generator; the next test finds it as it was."""
    with torch.random.fork_rng():
        yield


def config(*words: str) -> DictConfig:
    """The configuration of a short run, and what the words change of it."""
    return composed(*SHORT, *words)


def test_a_configuration_survives_its_key() -> None:
    """The text by which built objects are kept stands for one resolved configuration."""
    data = config().data
    assert build.of_key(build.key_of(data)) == OmegaConf.create(build.container(data))
    assert build.key_of(config("data.seed=1").data) != build.key_of(data)


def test_the_same_inputs_are_made_once() -> None:
    """Jobs of a sweep share the pictures in memory."""
    assert build.inputs(config())[0] is build.inputs(config())[0]


def test_the_same_architecture_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of a sweep share it, as do its check and its networks; one that is refused is refused again.

    A loss is built for each job, and once more to rehearse a step.
    """
    built: list[str] = []
    own = build.component
    monkeypatch.setattr(build, "component", lambda cfg, group: (built.append(group), own(cfg, group))[1])
    build.architecture.cache_clear()
    build._rehearsed.clear()
    for alpha in (0.1, 0.2):
        check(cfg := config(f"loss.alpha={alpha}"))
        build.rehearse(cfg)
    assert [built.count(group) for group in ("model", "teacher.network", "loss")] == [1, 1, 3]
    for _ in range(2):
        with pytest.raises(UserError, match=r"^model\.stem: "):
            check(config("model.stem=round"))


def test_a_component_knows_the_values_of_others() -> None:
    """It is built apart from the rest of the configuration, to which its values may refer."""
    built = build.component(config("loss.tau=2", "optimizer.lr=${loss.tau}"), "optimizer")
    assert built.keywords["lr"] == 2


@pytest.mark.slow
def test_initial_weights_depend_on_their_seed_alone() -> None:
    """What drew random numbers before has no part in a network's initialisation."""
    cfg = config()
    data, _ = build.inputs(cfg)
    first = hash_tensors(build.network(cfg, "model", data, 0).state_dict())
    torch.rand(7)
    assert hash_tensors(build.network(cfg, "model", data, 0).state_dict()) == first
    assert hash_tensors(build.network(cfg, "model", data, 1).state_dict()) != first


def test_a_teacher_is_the_same_for_all_its_students() -> None:
    """alpha, tau, the optimizer, epochs and seeds of a student have no part in what makes its teacher."""
    ours = build.key_of(build.teacher_config(config()))
    words = ["loss.alpha=0.1", "loss.tau=9", "optimizer.lr=1", "epochs=9", "seed=3", "model=resnet50"]
    assert build.key_of(build.teacher_config(config(*words))) == ours
    assert build.key_of(build.teacher_config(config("teacher.head.max_iterations=3"))) != ours


def test_a_teacher_config_leaves_the_original_alone() -> None:
    """The student's configuration keeps its values."""
    cfg = config()
    before = cfg.copy()
    build.teacher_config(cfg)
    assert cfg == before


@pytest.mark.slow
@pytest.mark.parametrize("change", ["teacher.head.max_iterations=3", "data.seed=1", "teacher.network.input_size=24"])
def test_a_teacher_is_known_by_what_made_it(change: str, tmp_path: Path) -> None:
    """Another head, other pictures or another input size make another teacher; where its cache lies does not."""

    def identity(*words: str) -> str:
        cfg = build.teacher_config(config(*words))
        return identities.teacher_id(cfg, build.untrained_teacher(cfg))

    assert identity(f"paths.root={tmp_path}/a") == identity(f"paths.root={tmp_path}/b")
    assert identity(change) != identity()


def test_a_partial_component_waits_for_its_arguments() -> None:
    """A loss is a plain function of logits and labels: Hydra has no part in a training step."""
    loss = build.component(config("loss.alpha=0"), "loss")
    labels = torch.tensor([0, 1])
    assert loss.func.__module__ == "kdsweep.losses"
    assert loss.func is inspect.unwrap(losses.kd)  # its settings have been checked, and aren't at every step
    assert float(loss(torch.zeros(2, 2), torch.zeros(2, 2), labels)) == pytest.approx(0.6931, abs=1e-4)


def test_a_loss_is_checked_once_when_it_is_built() -> None:
    """A wrong alpha is refused by its key, and the function that every training step calls checks nothing."""
    with pytest.raises(UserError, match=r"^loss\.alpha: `0 <= alpha <= 1` must hold, but got alpha=2"):
        build.component(config("loss.alpha=2"), "loss")
    assert build.component(config(), "loss").func is inspect.unwrap(losses.kd) is not losses.kd


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "subprocess.run", "torch.load", "shutil.rmtree"])
def test_a_configuration_runs_no_foreign_code(target: str) -> None:
    """A `_target_` outside of kdsweep and torch.optim is refused before anything of it runs."""
    with pytest.raises(UserError, match=r"^schedule: Target .* execution whitelist"):
        build.component(OmegaConf.create({"schedule": {"_target_": target}}), "schedule")


def test_the_user_can_trust_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """KDSWEEP_TRUST admits the user's own components."""
    cfg = OmegaConf.create({"loss": {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 2}})
    with pytest.raises(UserError, match=r"^loss: .* KDSWEEP_TRUST='package\.\*'"):
        build.component(cfg, "loss")
    monkeypatch.setenv("KDSWEEP_TRUST", "decimal.* fractions.*")
    assert build.component(cfg, "loss") == 0.5


def test_an_error_names_the_key_from_outside() -> None:
    """A component knows its argument's name, the configuration adds the group's."""
    with pytest.raises(UserError, match=r"^teacher\.network\.stem: .*stem='none'"):
        check(config("teacher.network.stem=none"))
    with pytest.raises(UserError, match=r"^optimizer\.lr: `lr >= 0` must hold, but got lr=-1\."):
        check(config("optimizer.lr=-1"))


def test_a_wrong_value_is_found_before_any_data() -> None:
    """`check` needs no pictures: the data set here is not on this machine."""
    with pytest.raises(UserError, match=r"^loss\.tau: "):
        check(composed("loss.tau=0"))


WITHOUT = ("teacher=none", "loss=ce")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ("objective=val/agreement", *WITHOUT),
            r"'val/agreement'.* this run has no teacher\. Choose from val/accuracy, ",
        ),
        (("objective=[val/nll,val/teacher_kl]", *WITHOUT), r"'val/teacher_kl'.* this run has no teacher"),
        (("objective=val/agreement", "arm=teacher"), "this run has no teacher"),
        (("objective=best/val_accuracy", "arm=teacher", "teacher.head=null"), "This teacher isn't trained"),
        (("objective=val/agreement", *WITHOUT, "tracking.stage=search"), "this run has no teacher"),
    ],
)
def test_an_objective_that_the_run_will_not_have_is_refused(words: tuple[str, ...], reason: str) -> None:
    """It is refused before any work, and the message names metrics that the run has."""
    with pytest.raises(UserError, match=f"^objective: `objective is a metric of the run` .*{reason}"):
        rules.check_values(config(*words))


@pytest.mark.parametrize(
    "words",
    [
        ("objective=[val/agreement,val/teacher_kl]",),
        ("objective=best/val_accuracy", "arm=teacher"),
        *[("objective=val/agreement", *WITHOUT, f"tracking.stage={stage}") for stage in ("baseline", "confirmation")],
    ],
)
def test_baselines_needn_t_have_the_objective_of_the_search(words: tuple[str, ...]) -> None:
    """They are compared with the trials in what they have; only runs that somebody ranks need it."""
    rules.check_values(config(*words))


@pytest.mark.parametrize("n_classes", [5, 6])
def test_a_top_five_needs_more_classes(n_classes: int) -> None:
    """The data say it, so it is checked as soon as they are read."""
    cfg = config("objective=[val/nll,val/top5]", f"data.n_classes={n_classes}")
    if n_classes > 5:
        build.rehearse(cfg)
        return
    with pytest.raises(UserError, match=r"^objective: .*'val/top5'.* has 5 classes, so a top 5 says nothing\. Choose"):
        build.rehearse(cfg)


def test_one_objective_or_a_list_of_them() -> None:
    """Both are read as names, in order; each of them has to be a metric that may be selected on."""
    assert rules.objectives(config()) == ["val/accuracy"]
    assert rules.objectives(config("objective=[val/accuracy,val/ece]")) == ["val/accuracy", "val/ece"]
    with pytest.raises(UserError, match=r"^objective: .*objective='test/accuracy'.*not selected on"):
        check(config("objective=[val/accuracy,test/accuracy]"))


def test_what_does_not_fit_is_found_before_a_study() -> None:
    """`rehearse` loads data and weights, and makes the teacher."""
    build.rehearse(config())
    with pytest.raises(UserError, match=r"^data\.val_size: "):
        build.rehearse(config("data.val_size=96"))
    with pytest.raises(UserError, match=r"^teacher\.mode: "):
        build.rehearse(config("teacher.mode=fast"))


def test_settings_of_a_teacher_that_is_not_chosen_are_none() -> None:
    """A baseline without a teacher may stand in a sweep file that sets details of one; a chosen teacher keeps them."""
    words = ("teacher=none", "+teacher.network.input_size=96")
    assert rules.settled(composed("loss=ce", *words)).teacher is None
    chosen = config("teacher.network.input_size=96")
    assert rules.settled(chosen) == chosen


@pytest.mark.parametrize(
    ("words", "arm"),
    [
        (("arm=null",), "distill"),
        (("arm=null", "loss=ce", "teacher=none"), "scratch"),
        (("arm=null", "loss=ce"), "scratch"),
        (("arm=null", "loss=label_smoothing", "teacher=none", "+teacher.network.input_size=96"), "label_smoothing"),
        (("arm=null", "teacher=none", "loss._target_=mine.focal"), "scratch"),
        (("arm=null", "loss._target_=mine.hints"), "distill"),
        # A trial of a search over losses is compared as what was searched.
        (("arm=null", "loss=ce", "tracking.trial=0", "tracking.stage=search"), "distill"),
        (("loss=ce", "teacher=none"), "distill"),
        (("arm=teacher",), "teacher"),
    ],
)
def test_an_arm_that_is_not_given_follows_from_loss_and_teacher(words: tuple[str, ...], arm: str) -> None:
    """A user's experiment file needs none; one that is given holds."""
    assert rules.settled(composed(*SHORT, *words)).arm == arm


def test_a_student_lies_in_memory_as_it_is_told() -> None:
    """Its weights are the same numbers, and it gives the same answers but for rounding."""
    data, _ = build.inputs(config())
    pictures = data.train.images[:2]
    one, other = (build.student(config(f"memory_format={name}"), data)[0].eval() for name in FORMATS)
    assert [m.weight.is_contiguous() for m in (first_convolution(one), first_convolution(other))] == [False, True]
    assert hash_tensors(one.net.state_dict()) == hash_tensors(other.net.state_dict())
    torch.testing.assert_close(one(pictures), other(pictures), rtol=1e-4, atol=1e-4)
    assert [network.preprocess(pictures).is_contiguous() for network in (one, other)] == [False, True]


def test_the_layouts_that_may_be_chosen_are_those_that_there_are() -> None:
    """The rule, which does without torch, says what `Classifier.in_format` takes."""
    assert ("auto", *FORMATS) == rules.MEMORY_FORMATS


def first_convolution(network: Classifier) -> torch.nn.Conv2d:
    return next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))


def test_gradients_that_a_cpu_gets_wrong_are_refused() -> None:
    """bf16 on a CPU, where a strided convolution meets a map of 1 x 1: the message names the ways out."""
    small = ("model.name=resnet18", "data.image_size=16", "device=cpu")
    wrong = config(*small, "precision=bf16")
    data, _ = build.inputs(wrong)
    with pytest.raises(UserError, match=r"precision: pictures of 16 x 16 .* precision=fp32"):
        build.student(wrong, data)
    for right in ("precision=fp32", "model.stem=cifar", "model.input_size=32"):
        build.student(config(*small, "precision=bf16", right), data)


@pytest.mark.parametrize(
    ("key", "whole"),
    [
        *[
            (key, True)
            for key in ("epochs", "batch_size", "n_passes", "seed", "threads", "teacher.batch_size", "data.n_train")
        ],
        *[(key, True) for key in ("model.input_size", "teacher.network.input_size", "teacher.head.max_iterations")],
        *[(key, True) for key in ("data.val_size", "data.padding", "data.n_classes")],
        *[(key, False) for key in ("loss.alpha", "loss.tau", "optimizer.lr", "optimizer.weight_decay", "model.mean")],
        *[(key, False) for key in ("data.train_fraction", "schedule.warmup", "model.name", "optimizer.momentum")],
        *[(key, False) for key in ("device", "mine.depth", "optimizer.fused", "optimizer.nothing")],
    ],
)
def test_which_keys_take_whole_numbers_alone(key: str, whole: bool) -> None:
    """A component's arguments say it, also where their value is null or happens to be whole."""
    cfg = config("optimizer.weight_decay=0", "optimizer.momentum=1", "+mine.depth=3")
    assert build.takes_whole_numbers(cfg, key) is whole


def test_a_step_is_rehearsed_once_for_jobs_that_differ_in_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another alpha or seed needs no other trial; another loss, network or batch of one does."""
    rehearsed: list[int] = []
    monkeypatch.setattr(training, "rehearse", lambda network, views, labels, **_: rehearsed.append(len(labels)))
    build._rehearsed.clear()
    for words in ((), ("loss.alpha=0.9", "optimizer.lr=1", "seed=3", "batch_size=7"), ("batch_size=1",), ("loss=ce",)):
        cfg = config("teacher=none", *words)
        data, _ = build.inputs(cfg)
        build.rehearse_training(cfg, data, build.student(cfg, data)[0], "fp32")
    assert rehearsed == [2, 1, 2]
    build._rehearsed.clear()


def test_a_batch_of_one_is_refused_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of the short run has maps of one pixel, which leave batch norm one value."""
    with pytest.raises(UserError, match=r"^batch_size: .* got batch_size=1"):
        build.rehearse(config("batch_size=1"))
