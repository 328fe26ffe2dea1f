"""Data sets: what the readers return, how they are split, and what a user with bad data is told."""

from __future__ import annotations

import hashlib
import io
import pickle
import socket
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import get_object
from PIL import Image
from torchvision import datasets

from kdsweep import data, data_files
from kdsweep.system.errors import UserError

OPTIONS: dict[str, Any] = {"val_size": 0.25, "train_fraction": 1.0, "split_seed": 0, "padding": 4, "flip": True}
SYNTHETIC: dict[str, Any] = {"n_train": 120, "n_test": 20, "n_classes": 5, "image_size": 8, "seed": 0, **OPTIONS}
CONF = Path(__file__).parents[1] / "conf" / "data"


def synthetic(**changes: Any) -> data.Dataset:
    return data.synthetic(**SYNTHETIC | changes)


def rows(split: data.Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


# ------------------------------------------------------------------------------------------------------- splits


def test_splits_share_no_picture_and_lose_none() -> None:
    """Training and validation pictures are the official training split, each picture once; test is apart."""
    parts = synthetic()
    whole = synthetic(val_size=1)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (90, 30, 20)
    assert rows(parts.train) | rows(parts.validation) == rows(whole.train) | rows(whole.validation)
    assert rows(parts.train).isdisjoint(rows(parts.validation))
    assert rows(parts.test).isdisjoint(rows(whole.train) | rows(whole.validation))


def test_splits_are_stratified() -> None:
    """Validation and training hold the classes in the proportions of the whole."""
    parts = synthetic(train_fraction=0.5)
    assert parts.validation.labels.bincount().tolist() == [6] * 5
    assert parts.train.labels.bincount().tolist() == [9] * 5


def test_order_keeps_unequal_proportions_in_every_prefix() -> None:
    """No class is ever more than one picture off its share, once each has its first picture."""
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([600, 300, 90, 10]))
    ordered = labels[data.stratified_order(labels, seed=3)]
    counts = torch.nn.functional.one_hot(ordered).cumsum(0)  # (N, C), of the prefix that ends here
    shares = torch.arange(1, 1001)[:, None] * labels.bincount() / 1000
    assert counts[3].tolist() == [1, 1, 1, 1]
    assert ((counts - shares).abs()[100:] <= 1).all()


def test_fractions_are_nested() -> None:
    """The pictures of 10 % are the first rows of 20 %, and validation stays as it is."""
    tenth, fifth = synthetic(train_fraction=0.1), synthetic(train_fraction=0.2)
    assert (len(tenth.train), len(fifth.train)) == (9, 18)
    assert torch.equal(tenth.train.images, fifth.train.images[:9])
    assert torch.equal(tenth.validation.images, fifth.validation.images)


def test_smallest_fraction_keeps_one_picture_of_each_class() -> None:
    """Every class is kept, however small the fraction."""
    assert sorted(synthetic(train_fraction=1e-9).train.labels.tolist()) == [0, 1, 2, 3, 4]


def test_split_seed_decides_the_split() -> None:
    """The same split seed gives the same bytes, another seed other splits of the same pictures."""
    assert synthetic().fingerprint == synthetic().fingerprint
    other = synthetic(split_seed=1)
    assert rows(other.validation) != rows(synthetic().validation)
    assert torch.equal(other.test.images, synthetic().test.images)


def test_moments_are_those_of_the_training_pictures() -> None:
    """Mean and standard deviation agree with float64 arithmetic over the training pictures."""
    dataset = synthetic()
    pictures = dataset.train.images.double() / 255
    torch.testing.assert_close(torch.tensor(dataset.mean).double(), pictures.mean((0, 1, 2)))
    torch.testing.assert_close(torch.tensor(dataset.std).double(), pictures.std((0, 1, 2), correction=0))


def test_fingerprint_knows_every_byte() -> None:
    """One changed label in the test split changes the fingerprint."""
    dataset, changed = synthetic(), synthetic()
    changed.test.labels[0] += 1
    assert dataset.fingerprint != changed.fingerprint


def test_a_constant_colour_has_a_scale_of_one() -> None:
    """A channel without contrast can still be divided by its standard deviation."""
    split = data.Split(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.tensor([0, 1]))
    assert data.Dataset("black", ("a", "b"), split, split, split, 0, False).std == (1.0, 1.0, 1.0)


def labelled(train: list[int], test: list[int], classes: str) -> data.Dataset:
    """A data set of black pictures, as a reader of the user's own may return it."""
    splits = [
        data.Split(torch.zeros(len(labels), 4, 4, 3, dtype=torch.uint8), torch.tensor(labels))
        for labels in (train, test)
    ]
    return data.Dataset("mine", tuple(classes), splits[0], splits[1], splits[1], 0, False)


def test_a_class_with_one_picture_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """It is trained on and never validated; a lone test picture makes a coarse score."""
    options: Any = {"val_size": 1, "train_fraction": 1.0, "split_seed": 0, "padding": 0, "flip": False}

    def split(labels: list[int]) -> data.Split:
        return data.Split(torch.zeros(len(labels), 4, 4, 3, dtype=torch.uint8), torch.tensor(labels))

    data.divided("pets", ["cat", "dog"], split([0, 0, 1, 1]), split([0, 0, 1, 1]), **options)
    assert capsys.readouterr().err == ""
    data.divided("pets", ["cat", "dog"], split([0, 0, 1]), split([1, 1, 0]), **options)
    said = capsys.readouterr().err
    assert "pets: 'dog' has one training picture, and so none for validation." in said
    assert "pets: 'cat' has one test picture." in said


@pytest.mark.parametrize(("train", "classes"), [([0, 0, 0], "a"), ([1, 1, 1], "ab")])
def test_a_data_set_of_one_class_is_refused(train: list[int], classes: str) -> None:
    """Whoever reads it, and also if it has names for more."""
    with pytest.raises(UserError, match="`at least two classes` must hold, but the pictures of 'mine' have one"):
        labelled(train, train, classes)


@pytest.mark.parametrize(
    ("train", "test", "split"), [([0, 2], [0], "train"), ([0, 1], [-1], "validation"), ([0, 1], [], "validation")]
)
def test_labels_are_indices_of_classes(train: list[int], test: list[int], split: str) -> None:
    """A label beyond the classes would end in the middle of a run, and an empty split in a division by zero."""
    with pytest.raises(UserError, match=f"but in {split} of 'mine' it doesn't"):
        labelled(train, test, "ab")


@pytest.mark.parametrize(
    "bad",
    [{"val_size": value} for value in (0, -1, 0.0, 1.0, -0.5, float("nan"), float("inf"), True, None, "many", 5000.0)]
    + [{"train_fraction": value} for value in (0, 0.0, -0.1, 1.01, float("nan"), True, None)]
    + [{"split_seed": -1}, {"padding": -1}, {"padding": 1.5}, {"flip": 1}, {"image_size": 0}, {"n_classes": 1}],
    ids=str,
)
def test_options_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    """Each message is one line with the rule and the value, and the error knows the key."""
    (key, value), *_ = bad.items()
    with pytest.raises(UserError, match=rf"must hold, but got {key}=") as caught:
        synthetic(**bad)
    assert caught.value.key == key
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("val_size", [116, 10_000, 0.97, 0.001])
def test_validation_that_leaves_nothing_is_refused(val_size: float) -> None:
    """Training keeps a picture of each class, and validation is not empty."""
    with pytest.raises(UserError, match=r"1 <= validation pictures <= 115.*got val_size=.*120 pictures.*5 classes"):
        synthetic(val_size=val_size)
    assert len(synthetic(val_size=115).train) == 5


@pytest.mark.parametrize("path", sorted({*CONF.glob("*.yaml")} - {CONF / "own.yaml"}), ids=lambda path: path.stem)
def test_each_option_calls_its_reader_and_opens_with_its_command(path: Path) -> None:
    """The YAML file names a function of this module and gives every argument that it takes."""
    text = path.read_text()
    arguments = yaml.safe_load(text)
    function = get_object(arguments.pop("_target_"))
    own = [name for name in function.__annotations__ if name not in ("options", "return")]
    assert text.startswith(f"# kdsweep data={path.stem}")
    options = data.SplitOptions if function.__module__ == data.__name__ else data_files.Options
    assert sorted(arguments) == sorted([*own, *options.__annotations__])


# ----------------------------------------------------------------------------------------- digits and synthetic


@pytest.mark.slow
def test_digits_are_the_real_scans() -> None:
    """At 8x8 pixels the pictures are scikit-learn's scans, and the test split ignores the split seed."""
    digits = data.digits(8, 500, **OPTIONS | {"val_size": 297})
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1000, 297, 500)
    scans = scikit_learn_scans()
    for image, label in zip(digits.test.images[:20], digits.test.labels[:20].tolist(), strict=True):
        assert (image.numpy().tobytes(), label) in scans
    assert torch.equal(digits.test.images, data.digits(8, 500, **OPTIONS | {"split_seed": 9}).test.images)


def scikit_learn_scans() -> set[tuple[bytes, int]]:
    """scikit-learn's scans in 8-bit RGB, with their labels."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    rgb = np.repeat(np.round(scans.images * 255 / 16).astype(np.uint8)[..., None], 3, axis=3)
    return {(image.tobytes(), int(label)) for image, label in zip(rgb, scans.target, strict=True)}


def test_digits_are_up_sampled_to_any_size() -> None:
    """Pictures are square RGB of the size asked for, grey, over the whole range."""
    images = data.digits(32, 500, **OPTIONS).train.images
    assert images.shape == (len(images), 32, 32, 3)
    assert images.dtype == torch.uint8
    assert torch.equal(images[..., 0], images[..., 2])
    assert (images.min(), images.max()) == (0, 255)


@pytest.mark.parametrize("n_test", [0, 1788, True])
def test_digits_without_training_pictures_are_refused(n_test: int) -> None:
    """The test split leaves a picture of each digit."""
    with pytest.raises(UserError, match=r"n_test.*must hold, but got n_test="):
        data.digits(8, n_test, **OPTIONS)


def test_synthetic_pictures_are_told_apart_by_their_nearest_class_mean() -> None:
    """The task is easy, so that the simplest classifier solves the test split."""
    dataset = synthetic()
    train, test = dataset.train.images.float(), dataset.test.images.float()
    means = torch.stack([train[dataset.train.labels == c].mean(0) for c in range(5)])
    nearest = torch.cdist(test.flatten(1), means.flatten(1)).argmin(1)
    assert torch.equal(nearest, dataset.test.labels)


# -------------------------------------------------------------------------------------------------- torchvision


class Served:
    """Archives in a folder, served from loopback; counts the requests for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests = 0
        served = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                served.requests += 1
                super().do_GET()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "server"
    folder.mkdir()
    served = Served(folder)
    thread = threading.Thread(target=served.server.serve_forever, args=(0.01,))
    thread.start()
    yield served
    served.server.shutdown()
    thread.join()
    served.server.server_close()


def make_archive(reader: Any, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A miniature archive in the format of CIFAR's Python version, with 20 pictures a batch.

    Of `reader`, torchvision's class, only the MD5 sums are changed: they are those of the full archive's files, and a
    miniature has others. The reader still checks every one.
    """
    generator = np.random.default_rng(0)
    names = [f"name {c}" for c in range(10)]
    contents: dict[str, dict[str, Any]] = {reader.meta["filename"]: {reader.meta["key"]: names}}
    label_key = "labels" if reader is datasets.CIFAR10 else "fine_labels"
    for name, _ in reader.train_list + reader.test_list:
        pixels = generator.integers(0, 256, (20, 3 * 32 * 32), dtype=np.uint8)  # channel, row, column
        contents[name] = {"data": pixels, label_key: [i % 10 for i in range(20)]}
    files = {name: pickle.dumps(content, protocol=2) for name, content in contents.items()}
    archive = folder / reader.filename
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{reader.base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

    def md5(content: bytes) -> str:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    patch.setattr(reader, "tgz_md5", md5(archive.read_bytes()))
    patch.setattr(reader, "train_list", [[name, md5(files[name])] for name, _ in reader.train_list])
    patch.setattr(reader, "test_list", [[name, md5(files[name])] for name, _ in reader.test_list])
    patch.setattr(reader, "meta", reader.meta | {"md5": md5(files[reader.meta["filename"]])})
    return archive


READERS = [("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)]


@pytest.mark.parametrize(("name", "reader"), READERS)
def test_cifar_is_downloaded_once_with_progress(
    name: str,
    reader: Any,
    tmp_path: Path,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The first use fetches the archive and shows how far it is; the second needs no server."""
    make_archive(reader, served.folder, monkeypatch)
    monkeypatch.setattr(reader, "url", f"{served.url}/{reader.filename}")
    function = getattr(data, name)
    first = function(str(tmp_path / "data"), **OPTIONS)
    shown = capfd.readouterr().err
    assert "100%" in shown
    assert reader.url in shown
    requests = served.requests
    assert function(str(tmp_path / "data"), **OPTIONS).fingerprint == first.fingerprint
    assert served.requests == requests > 0


def test_cifar_is_downloaded_once_by_two_that_start_at_once(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process waits for the first, and then finds everything there."""
    make_archive(datasets.CIFAR10, served.folder, monkeypatch)
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{served.url}/cifar-10-python.tar.gz")
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: data.cifar10(str(tmp_path / "data"), **OPTIONS), range(2)))
    assert both[0].fingerprint == both[1].fingerprint
    assert served.requests == 2  # torchvision asks once for redirects and once for the content


@pytest.mark.parametrize(("name", "reader"), READERS)
def test_cifar_pictures_are_torchvisions(
    name: str, reader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive put in place by hand is unpacked, and the test split is what torchvision's items are, bit for bit."""
    make_archive(reader, tmp_path, monkeypatch)
    dataset = getattr(data, name)(str(tmp_path), **OPTIONS)
    expected = reader(tmp_path, train=False)
    assert dataset.classes == tuple(expected.classes)
    assert len(dataset.train) + len(dataset.validation) == len(reader(tmp_path, train=True))
    for i, (picture, label) in enumerate(expected):
        assert torch.equal(dataset.test.images[i], torch.from_numpy(np.array(picture)))
        assert dataset.test.labels[i] == label


def test_cifar_without_network_says_where_the_archive_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line names the archive, its MD5 and the folder."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{port}/cifar-10-python.tar.gz")
    match = rf"cifar10.*refused.*Put cifar-10-python.tar.gz \(MD5 c58f3010.*\) into {tmp_path}"
    with pytest.raises(UserError, match=match) as caught:
        data.cifar10(str(tmp_path), **OPTIONS)
    assert caught.value.key == "root"
    assert "\n" not in str(caught.value)


def test_cifar_download_of_something_else_is_refused(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers with another file, as a captive portal does, is found out by the MD5."""
    (served.folder / "cifar-10-python.tar.gz").write_bytes(b"<html>log in first</html>")
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{served.url}/cifar-10-python.tar.gz")
    with pytest.raises(UserError, match=r"cifar10.*corrupted.*Put cifar-10-python.tar.gz"):
        data.cifar10(str(tmp_path / "data"), **OPTIONS)


def test_damaged_cifar_batch_is_unpacked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped bit in an unpacked batch is noticed, and mended from the archive beside it."""
    make_archive(datasets.CIFAR10, tmp_path, monkeypatch)
    whole = data.cifar10(str(tmp_path), **OPTIONS)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    content = bytearray(batch.read_bytes())
    content[1000] ^= 1
    batch.write_bytes(content)
    assert data.cifar10(str(tmp_path), **OPTIONS).fingerprint == whole.fingerprint


# ------------------------------------------------------------------------------------------------- own pictures


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Red cats and blue dogs, of 8 training and 2 test pictures each."""
    for split, n in (("train", 8), ("test", 2)):
        for name, colour in (("cat", (200, 0, 0)), ("dog", (0, 0, 200))):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (6, 6), colour).save(folder / f"{i}.png")
    return tmp_path / "pets"


def image_folder(root: Path, **changes: Any) -> data.Dataset:
    return data.image_folder(str(root), str(root.parent / "cache"), 4, **OPTIONS | changes)


def test_folder_gives_each_picture_its_class(pets: Path) -> None:
    """Class names are folder names in order, and labels go with pixels in every split."""
    dataset = image_folder(pets)
    assert (dataset.name, dataset.classes) == ("pets", ("cat", "dog"))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (12, 4, 4)
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.images.shape == (len(split), 4, 4, 3)
        assert split.labels.tolist() == (split.images[:, 0, 0, 2] == 200).long().tolist()


def test_another_split_needs_no_decoding(pets: Path) -> None:
    """All splits of the same pictures read the same file of the cache."""
    image_folder(pets)
    image_folder(pets, val_size=1, train_fraction=0.5)
    assert len(list((pets.parent / "cache").glob("*.safetensors"))) == 1


@pytest.fixture
def heap(tmp_path: Path) -> Path:
    """Class folders without splits: 20 cats and 10 dogs, no two alike."""
    rng = np.random.default_rng(0)
    for name, n in (("cat", 20), ("dog", 10)):
        (tmp_path / "heap" / name).mkdir(parents=True)
        for i in range(n):
            picture = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            picture[..., 2] = 255 if name == "dog" else 0
            Image.fromarray(picture).save(tmp_path / "heap" / name / f"{i}.png")
    return tmp_path / "heap"


def test_class_folders_without_splits_get_a_stratified_test_split(heap: Path) -> None:
    """Every picture is in one split, with its label, and no other option moves a test picture."""
    dataset = image_folder(heap, test_size=0.2)
    assert (dataset.classes, len(dataset.train), len(dataset.validation)) == (("cat", "dog"), 18, 6)
    assert dataset.test.labels.bincount().tolist() == [4, 2]
    parts = [dataset.train, dataset.validation, dataset.test]
    assert sorted(map(len, map(rows, parts))) == [6, 6, 18]
    assert len(set.union(*map(rows, parts))) == 30
    for split in parts:
        assert split.labels.tolist() == (split.images[:, 0, 0, 2] == 255).long().tolist()
    for changes in ({"split_seed": 7}, {"val_size": 3}, {"train_fraction": 0.5, "padding": 1}, {"test_size": 6}):
        assert torch.equal(image_folder(heap, **{"test_size": 0.2} | changes).test.images, dataset.test.images)
    assert not torch.equal(image_folder(heap, test_size=0.2, split_seed=7).validation.images, dataset.validation.images)


def test_training_folders_alone_get_a_test_split_too(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a folder for validation, which isn't read, is named."""
    (pets / "test").rename(pets / "val")
    dataset = image_folder(pets, test_size=4)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (9, 3, 4)
    assert "pets: val/ isn't read, for validation is cut from train/ (data.val_size)" in capsys.readouterr().err


def test_a_class_too_small_for_the_test_split_is_named(heap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its only picture is for training."""
    (heap / "owl").mkdir()
    Image.new("RGB", (4, 4)).save(heap / "owl" / "0.png")
    assert image_folder(heap, test_size=0.2).test.labels.bincount(minlength=3).tolist() == [4, 2, 0]
    assert "heap: 'owl' has no test picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "test_size", "message", "key"),
    [
        ("heap", None, r"heap has no folder train/, but the folders 'cat', 'dog'.*, set data.test_size=0.2", "root"),
        ("heap", 0.99, r"1 <= test pictures <= 28` must hold, but got test_size=0.99", "test_size"),
        ("heap", 1.5, r"test_size is int >= 1 \(a count\) or 0 < float < 1", "test_size"),
        ("heap", True, r"test_size is int >= 1", "test_size"),
        ("pets", 0.2, r"`test_size is null` must hold, but got test_size=0.2. .*pets has a test split", "test_size"),
    ],
)
def test_a_test_split_is_cut_only_where_there_is_none(
    folder: str, test_size: Any, message: str, key: str, heap: Path, pets: Path
) -> None:
    """And only if it is asked for; the message has the setting that helps."""
    with pytest.raises(UserError, match=message) as caught:
        image_folder(heap.with_name(folder), test_size=test_size)
    assert caught.value.key == key


@pytest.mark.parametrize(("key", "value"), [("image_size", 0), ("image_size", 32.0), ("root", ""), ("cache", None)])
def test_folder_arguments_out_of_range_are_refused(pets: Path, key: str, value: Any) -> None:
    """Sizes must be whole and positive, and folders must have names."""
    arguments: dict[str, Any] = {"root": str(pets), "cache": str(pets.parent), "image_size": 4, key: value}
    with pytest.raises(UserError, match=f"must hold, but got {key}={value!r}") as caught:
        data.image_folder(**arguments, **OPTIONS)
    assert caught.value.key == key
