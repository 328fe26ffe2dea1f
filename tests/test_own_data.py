"""Data sets of the user's own: what a function may return, what becomes of it, and what is refused in which words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from kdsweep import own_data
from kdsweep.config import build
from kdsweep.data import Dataset, synthetic
from kdsweep.own_arguments import separated
from kdsweep.own_data import SETTINGS, OwnData
from kdsweep.system.errors import UserError

CONF = Path(__file__).parents[1] / "conf" / "data" / "own.yaml"


def pixels(n: int, height: int = 6, width: int = 6) -> np.ndarray:
    """Pictures (N, H, W, 3), no two alike."""
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@dataclass
class Listed:
    """A torchvision-style data set of pictures in memory."""

    pictures: Sequence[Any]
    labels: Sequence[Any]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.pictures[index], self.labels[index]


class Named(Listed):
    classes = ("cat", "dog", "owl")


def labels(n: int, n_classes: int = 3) -> list[int]:
    return [i % n_classes for i in range(n)]


def loaded(made: Any, **keys: Any) -> Dataset:
    """What becomes of what a function returns."""

    def mine() -> Any:
        return made

    return described(mine, **keys).load()


def described(function: Callable[..., Any], **keys: Any) -> OwnData:
    arguments, settings = separated(function, keys, SETTINGS)
    return OwnData(function, lambda: function(**arguments), arguments, **settings)


ARRAYS = pixels(20), np.array(labels(20))
TEST = pixels(6), np.array(labels(6))


@pytest.mark.parametrize(
    "train",
    [
        ARRAYS,
        list(ARRAYS),
        (ARRAYS[0], ARRAYS[1][:, None]),  # medmnist's labels
        (ARRAYS[0], torch.tensor(labels(20))),
        (torch.from_numpy(ARRAYS[0]).permute(0, 3, 1, 2), torch.tensor(labels(20))),
        Listed(ARRAYS[0], labels(20)),
        Listed([Image.fromarray(picture) for picture in ARRAYS[0]], ARRAYS[1]),
        Listed([torch.from_numpy(picture).permute(2, 0, 1) for picture in ARRAYS[0]], torch.tensor(labels(20))),
        [(picture, label) for picture, label in zip(ARRAYS[0], labels(20), strict=True)],
        [{"image": Image.fromarray(picture), "label": i % 3} for i, picture in enumerate(ARRAYS[0])],
    ],
)
def test_a_split_is_arrays_or_pairs_of_picture_and_label(train: Any) -> None:
    """Each kind gives the same bytes, in the same order."""
    expected = loaded((ARRAYS, TEST))
    found = loaded((train, TEST))
    assert found.fingerprint == expected.fingerprint
    assert (len(found.train), len(found.validation), len(found.test)) == (18, 2, 6)
    whole = {picture.numpy().tobytes() for split in (found.train, found.validation) for picture in split.images}
    assert whole == {picture.tobytes() for picture in ARRAYS[0]}


class Splits:
    train, test, val = ARRAYS, TEST, TEST


@pytest.mark.parametrize(
    ("made", "n_validation"),
    [
        ((ARRAYS, TEST), 2),
        ({"train": ARRAYS, "test": TEST}, 2),
        ({"training": ARRAYS, "validation": TEST, "testing": TEST}, 6),
        (Splits(), 6),
    ],
)
def test_splits_are_a_pair_a_mapping_or_attributes(made: Any, n_validation: int) -> None:
    """A validation split of the data set's own is the one that is used; otherwise a tenth is cut from train."""
    found = loaded(made, train_fraction=0.5)
    assert len(found.validation) == n_validation
    assert len(found.train) == (20 - (2 if n_validation == 2 else 0)) // 2
    assert torch.equal(found.test.images, torch.from_numpy(TEST[0]))


@pytest.mark.parametrize("made", [ARRAYS, Listed(*ARRAYS), {"train": ARRAYS}, {"train": Listed(*ARRAYS), "val": TEST}])
def test_one_split_alone_is_cut_in_two(made: Any) -> None:
    """Stratified, with the classes' names, and beside a validation split of its own too."""
    found = loaded(made, test_size=0.3)
    assert found.test.labels.bincount().tolist() == [2, 2, 2]
    whole = {picture.numpy().tobytes() for split in (found.train, found.test) for picture in split.images}
    own = isinstance(made, dict) and "val" in made
    assert len(whole) == len(found.train) + len(found.test) == (20 if own else 19)
    assert torch.equal(loaded(made, test_size=6, split_seed=3).test.images, found.test.images)
    with pytest.raises(UserError, match=r"`test_size is null` must hold, but got test_size=0.3. mine has a test split"):
        loaded((ARRAYS, TEST), test_size=0.3)


def test_classes_are_named_by_the_data_set_or_numbered() -> None:
    """Torchvision's `classes`, and the names of Hugging Face's feature; a named class may lack pictures."""
    assert loaded((ARRAYS, TEST)).classes == ("0", "1", "2")
    assert loaded((Named(*ARRAYS), TEST)).classes == ("cat", "dog", "owl")
    few = Named(ARRAYS[0], labels(20, 2))
    assert loaded((few, Listed(TEST[0], labels(6, 2)))).n_classes == 3

    class Hugging(Listed):
        features = {"image": None, "label": type("ClassLabel", (), {"names": ["a", "b", "c"]})}  # noqa: RUF012

    assert loaded((Hugging(*ARRAYS), TEST)).classes == ("a", "b", "c")


def test_grey_palette_and_transparent_pictures_become_rgb() -> None:
    """Arrays with one channel, and Pillow's modes, as for picture files."""
    grey = ARRAYS[0][..., 0]
    expected = torch.from_numpy(np.repeat(grey[..., None], 3, 3))
    for made in (grey, grey[..., None], Listed(grey, labels(20)), Listed([*map(Image.fromarray, grey)], labels(20))):
        train = made if isinstance(made, Listed) else (made, ARRAYS[1])
        assert torch.equal(loaded({"train": train, "val": train, "test": TEST}).validation.images, expected)
    mode = [Image.fromarray(picture).convert("RGBA").convert("P") for picture in ARRAYS[0]]
    assert loaded((Listed(mode, labels(20)), TEST)).train.images.shape == (18, 6, 6, 3)


def test_pictures_are_resized_to_a_square_if_a_size_is_given() -> None:
    """Bilinear and antialiased, as a folder's are; without a size, pictures of one size stay as they are."""
    wide = pixels(20, 4, 8)
    assert loaded(((wide, ARRAYS[1]), (wide[:6], TEST[1]))).train.images.shape == (18, 4, 8, 3)
    found = loaded(((wide, ARRAYS[1]), (wide[:6], TEST[1])), image_size=3).test.images
    expected = [np.asarray(Image.fromarray(p).resize((3, 3), Image.Resampling.BILINEAR)) for p in wide[:6]]
    assert torch.equal(found, torch.from_numpy(np.stack(expected)))
    mixed = Listed([Image.fromarray(p) for p in [*wide[:10], *ARRAYS[0][10:]]], labels(20))
    assert loaded((mixed, TEST), image_size=6).train.images.shape == (18, 6, 6, 3)


def random_crop(picture: np.ndarray) -> np.ndarray:
    return np.roll(picture, np.random.default_rng().integers(1, 6), 0)


class Random(Listed):
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return random_crop(self.pictures[index]), self.labels[index]


def changed(picture: Any, label: Any = 0, index: int = 7) -> tuple[Any, Any]:
    """A data set in which one picture and its label are others."""
    pictures, its = [*ARRAYS[0]], [*labels(20)]
    pictures[index], its[index] = picture, label
    return Listed(pictures, its), TEST


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, r"`mine returns splits` must hold, but it returned a NoneType. Return a pair \(train, test\)"),
        (Listed(*ARRAYS), "`mine has a test split` must hold, but it has none. Set data.test_size=0.2"),
        ([*zip(*ARRAYS, strict=True)], "it returned a list"),
        (ARRAYS, "`mine has a test split` must hold, but it has none. Set data.test_size=0.2"),
        ((ARRAYS, TEST, TEST), "it returned a tuple"),
        ({"train": ARRAYS}, "`mine has a test split` must hold, but it has none. Set data.test_size=0.2"),
        ({"test": ARRAYS}, "the splits are train, test and at most val` must hold, but mine returned 'test'"),
        ({"train": ARRAYS, "test": TEST, "extra": TEST}, "mine returned 'train', 'test', 'extra'"),
        ({"train": ARRAYS, "test": TEST, "val": TEST, "dev": TEST}, "mine returned 'train', 'test', 'val', 'dev'"),
        ((3, TEST), "`train has pictures with labels, by len.* but in mine it is a int"),
        ((Listed([], []), TEST), "`each split has pictures` must hold, but train has none"),
        ((ARRAYS, (TEST[0][:0], TEST[1][:0])), "`each split has pictures` must hold, but test has none"),
        (((ARRAYS[0], TEST[1]), TEST), r"arrays have the shapes \(20, 6, 6, 3\) and \(6,\)"),
        (((ARRAYS[0], np.eye(20)), TEST), "`each picture has one label`"),
        (([1, 2, 3], TEST), r"`an item is a pair \(picture, label\)` must hold, but train\[0\] is a int"),
        (([(1, 2, 3)], TEST), r"train\[0\] is a tuple of 3"),
        (([{"img": ARRAYS[0][0], "class": 1}], TEST), "train.0. has 'img', 'class'. Rename the columns"),
        (changed("a.png"), r"a picture is a PIL picture, .* but train\[7\] is a str"),
        (changed(torch.rand(3, 6, 6)), r"torch.float32 \(3, 6, 6\). Leave out ToTensor and Normalize"),
        (changed(ARRAYS[0][0] / 255.0), r"an array float64 \(6, 6, 3\). Leave out ToTensor"),
        (changed(ARRAYS[0][0].transpose(2, 0, 1)), r"an array uint8 \(3, 6, 6\)"),
        (changed(torch.from_numpy(ARRAYS[0][0])), r"a tensor torch.uint8 \(6, 6, 3\)"),
        (changed(np.zeros((6, 6, 4), np.uint8)), r"an array uint8 \(6, 6, 4\)"),
        (changed(Image.new("F", (6, 6))), r"train\[7\] cannot be read \(mode F.* Convert it to RGB"),
        (changed(ARRAYS[0][0], 1.0), "a label is the index of a class.* the label of train.7. is 1.0"),
        (changed(ARRAYS[0][0], "cat"), "is 'cat'"),
        (changed(ARRAYS[0][0], -1), "is -1"),
        (changed(ARRAYS[0][0], True), "is True"),
        (changed(ARRAYS[0][0], np.zeros(3, int)), r"is 'an array \(3,\)'"),
        (((ARRAYS[0], ARRAYS[1] - 1), TEST), "the label of train.0. is -1"),
        (((ARRAYS[0], ARRAYS[1] + 1), TEST), "the largest is 3, and none is 0. Let the labels begin at 0."),
        ((Listed(ARRAYS[0], [0, 4] * 10), TEST), r"the largest is 4, and none is 1, 2, 3. If the data set has other"),
        ((ARRAYS, Listed(TEST[0], [0, 1, 2, 3, 0, 1])), "`labels are 0 to 2` must hold .* test of mine has 3"),
        ((Random(*ARRAYS), TEST), r"`a picture is the same each time` .* Leave out random transforms"),
    ],
)  # fmt: skip
def test_what_is_no_data_set_is_refused(made: Any, message: str) -> None:
    """The picture or the split is named, and what to do."""
    with pytest.raises(UserError, match=message):
        loaded(made)


def test_mixed_sizes_are_refused_with_the_setting_that_helps() -> None:
    """The first picture that differs is named."""
    with pytest.raises(UserError, match=r"train\[7\] has 4 x 8 pixels, and train\[0\] 6 x 6. Set image_size"):
        loaded(changed(pixels(1, 4, 8)[0]))
    with pytest.raises(UserError, match=r"test\[0\] has 4 x 8 pixels") as caught:
        loaded((ARRAYS, (pixels(6, 4, 8), TEST[1])))
    assert caught.value.key == "image_size"


def flowers(root: str, padding: int = 3) -> Any:
    return ARRAYS, TEST


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ({"image_size": 0}, "image_size", "image_size is int"),
        ({"val_size": 1.5}, "val_size", "val_size is int >= 1"),
        ({"val_size": 18}, "val_size", "1 <= validation pictures <= 17"),
        ({"train_fraction": 0}, "train_fraction", "0 < train_fraction <= 1"),
        ({"flip": "no"}, "flip", "flip is true or false"),
        ({"rot": "x"}, "rot", "`flowers has this argument` must hold, but got rot='x'. Did you mean root?"),
        ({"root": None}, "root", "this argument is missing"),
    ],
)
def test_wrong_keys_are_refused_by_their_names(keys: dict[str, Any], key: str, message: str) -> None:
    """The settings by the rules of all data sets, the others by the function's signature."""
    given = {name: value for name, value in {"root": "x", **keys}.items() if value is not None}
    with pytest.raises(UserError, match=message) as caught:
        described(flowers, **given).load()
    assert caught.value.key == key


def test_a_setting_is_the_functions_if_it_has_such_an_argument() -> None:
    """Then kdsweep's own keeps its default."""
    own = described(flowers, root="x", padding=1)
    assert (own.arguments, own.padding) == ({"root": "x", "padding": 1}, 4)


def test_a_validation_split_of_its_own_leaves_no_other_size() -> None:
    with pytest.raises(UserError, match=r"val_size is null.*mine has a validation split of its own"):
        loaded({"train": ARRAYS, "val": TEST, "test": TEST}, val_size=5)


def test_a_whole_data_set_is_taken_as_it_is() -> None:
    """Nothing of kdsweep's settings can change it, so they are refused."""
    options: Any = {"val_size": 4, "train_fraction": 1.0, "split_seed": 0, "padding": 0, "flip": False}
    whole = synthetic(20, 6, 3, 6, 0, **options)
    assert loaded(whole, cache="cache") is whole
    with pytest.raises(UserError, match=r"`flip is left alone`.*mine returns a whole kdsweep.Dataset"):
        loaded(whole, flip=False)


def test_the_options_file_has_the_defaults() -> None:
    """So a file of the user's own that leaves settings out means the same."""
    keys = yaml.safe_load(CONF.read_text())
    defaults = {setting.name: setting.default for setting in fields(OwnData) if setting.name in SETTINGS}
    assert {name: keys[name] for name in SETTINGS if name != "cache"} | {"cache": None} == defaults


# --------------------------------------------------------------------------------------------------------- cache


class Counted(Listed):
    """Pictures whose reading is counted."""

    read = 0

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        Counted.read += 1
        return super().__getitem__(index)


def counted(root: str, n: int = 200) -> Any:
    first = int(Path(root, "a.txt").read_text())
    return Counted(np.roll(pixels(n), first, 0), labels(n)), TEST


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the function reads."""
    monkeypatch.setattr(own_data, "WORTH_KEEPING", 0.0)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.txt").write_text("0")
    return tmp_path


def reads(folder: Path, **keys: Any) -> tuple[int, Tensor]:
    """How many pictures of train are read, and which there are."""
    Counted.read = 0
    found = described(counted, root=str(folder / "pictures"), cache=str(folder / "cache"), **keys).load()
    return Counted.read, found.train.images


def test_decoded_pictures_are_kept(folder: Path) -> None:
    """The second time only a few are read, to compare them; another size and another file are decoded anew."""
    many, first = reads(folder)
    few, second = reads(folder)
    assert many > 200
    assert few == own_data.N_COMPARED
    assert torch.equal(first, second)
    assert reads(folder, image_size=3)[0] > 200
    (folder / "pictures" / "a.txt").write_text("17")
    assert reads(folder)[0] > 200


def test_kept_pictures_that_have_changed_unseen_are_decoded_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that the arguments don't name may hold the pictures: what is kept is compared with what is read."""
    reads(folder)
    monkeypatch.setattr(own_data, "files_below", lambda path: [])
    reads(folder)
    (folder / "pictures" / "a.txt").write_text("17")
    n, pictures = reads(folder)
    assert n > 200
    assert not torch.equal(pictures, torch.from_numpy(pixels(200)[:180]))
    assert "its pictures have changed, so they are decoded again" in capsys.readouterr().err


def test_quick_decoding_and_pictures_from_nowhere_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file among the arguments nothing tells that the pictures are the same."""
    described(lambda root: (ARRAYS, TEST), root="nowhere", cache=str(folder / "cache")).load()
    assert not list(folder.glob("cache/*"))
    monkeypatch.setattr(own_data, "WORTH_KEEPING", 100.0)
    reads(folder)
    assert not list(folder.glob("cache/*.safetensors"))


# ------------------------------------------------------------------------------------------------- configuration


def test_the_configuration_names_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package has to be trusted; its error names file and line."""
    (tmp_path / "mydata.py").write_text("import numpy as np\n\n\ndef mine(n):\n    x = np.zeros((n, 2, 2), np.uint8)\n"
                                        "    return (x, np.arange(n) % 2), (x, np.arange(n) % 2)\n")  # fmt: skip
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    keys = {"_target_": "mydata.mine", "n": 20, "val_size": 4}
    monkeypatch.setenv("KDSWEEP_TRUST", "mydata.*")
    found = build._own_data(keys)
    assert (found.name, len(found.train), len(found.test)) == ("mine", 16, 20)
    with pytest.raises(UserError, match=rf"your code failed: TypeError.*\({tmp_path}/mydata.py, line 5, in mine\)"):
        build._own_data({**keys, "n": "many"})
    monkeypatch.delenv("KDSWEEP_TRUST")
    with pytest.raises(UserError, match="KDSWEEP_TRUST"):
        build._own_data(keys)
