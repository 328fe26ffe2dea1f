"""Data sets in others' files: `.npz`, Parquet, and what Hugging Face's `datasets` has saved."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdsweep import own_data
from kdsweep.data import Dataset
from kdsweep.data_files import huggingface, npz
from kdsweep.system.errors import UserError

OPTIONS: dict[str, Any] = {"val_size": None, "train_fraction": 1.0, "split_seed": 0, "padding": 2, "flip": False}
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 5, 5), dtype=np.uint8)
LABELS = np.arange(30) % 3
SIZES = {"train": slice(0, 20), "val": slice(20, 24), "test": slice(24, 30)}


def arrays(pictures: str = "x_{}", labels: str = "y_{}", splits: str = "train val test") -> dict[str, np.ndarray]:
    made = {pictures.format(split): PIXELS[SIZES[split]] for split in splits.split()}
    return made | {labels.format(split): LABELS[SIZES[split]] for split in splits.split()}


def read_npz(path: Path, **made: Any) -> Dataset:
    np.savez_compressed(path, **made)
    return npz(str(path), None, **OPTIONS)


@pytest.mark.parametrize("names", [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_an_npz_file_has_the_names_of_keras_or_of_medmnist(names: tuple[str, str], tmp_path: Path) -> None:
    """Its own validation split is used if it has one, and its classes have names if it says them."""
    found = read_npz(tmp_path / "mine.npz", **arrays(*names))
    assert (found.name, found.classes) == ("mine", ("0", "1", "2"))
    assert (len(found.train), len(found.validation), len(found.test)) == (20, 4, 6)
    assert torch.equal(found.test.images, torch.from_numpy(PIXELS[24:, :, :, None].repeat(3, 3)))
    assert found.test.labels.tolist() == LABELS[24:].tolist()
    cut = read_npz(tmp_path / "cut.npz", **arrays(*names, splits="train test"), classes=np.array(["a", "b", "c"]))
    assert (len(cut.train), len(cut.validation), cut.classes) == (18, 2, ("a", "b", "c"))


def test_files_without_a_test_split_get_one_if_it_is_asked_for(tmp_path: Path) -> None:
    """From the training pictures, in one file and in Parquet; the same pictures in both."""
    np.savez(tmp_path / "mine.npz", **arrays(splits="train val"))
    with pytest.raises(UserError, match=r"`mine has a test split` must hold, but it has none. Set data.test_size=0.2"):
        npz(str(tmp_path / "mine.npz"), None, **OPTIONS)
    found = npz(str(tmp_path / "mine.npz"), None, test_size=0.25, **OPTIONS)
    assert (len(found.train), len(found.validation), len(found.test)) == (15, 4, 5)
    same = read(parquet(tmp_path / "mine", "train validation"), test_size=5)
    assert same.fingerprint == found.fingerprint


def test_what_is_no_npz_file_of_pictures_is_refused(tmp_path: Path) -> None:
    """A pickle could run code, so it isn't read; an array that is missing is named."""
    with pytest.raises(UserError, match=r"there is none: .*nowhere.npz"):
        npz(str(tmp_path / "nowhere.npz"), None, **OPTIONS)
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(UserError, match=r"text.npz is an .npz file of plain arrays.*can't be read"):
        npz(str(tmp_path / "text.npz"), None, **OPTIONS)
    with pytest.raises(UserError, match=r"has the arrays x_train and y_train or .* it has 'x_test', 'y_test'"):
        read_npz(tmp_path / "half.npz", **arrays(splits="test"))
    with pytest.raises(UserError, match=r"plain arrays.*allow_pickle"):
        read_npz(tmp_path / "pickle.npz", x_train=np.array([{}, None], dtype=object))


def encoded(grey: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return file.getvalue()


def parquet(folder: Path, splits: str = "train validation test", names: list[str] | None = None) -> Path:
    """A folder as the Hub has it; the training pictures in two files."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {"label": {"_type": "ClassLabel", "names": names}} if names else {}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (folder / "data").mkdir(parents=True)
    for split in splits.split():
        chosen = SIZES[split[:3] if split == "validation" else split]
        rows = list(range(30))[chosen]
        for number, part in enumerate(np.array_split(rows, 2 if split == "train" else 1)):
            pictures = [{"bytes": encoded(PIXELS[row]), "path": f"{row}.png"} for row in part]
            table = arrow.table({"image": pictures, "label": LABELS[part]}).replace_schema_metadata(metadata)
            parquet.write_table(table, folder / "data" / f"{split}-{number:05}-of-00002.parquet")
    return folder


def read(folder: Path, image: str = "image", label: str = "label", **changes: Any) -> Dataset:
    return huggingface(str(folder), image, label, str(folder.parent / "cache"), None, **OPTIONS | changes)


def test_parquet_files_of_the_hub_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several files make a split in their order, classes have their names, and the decoded pictures are kept."""
    monkeypatch.setattr(own_data, "WORTH_KEEPING", 0.0)
    folder = parquet(tmp_path / "beans", names=["a", "b", "c"])
    found = read(folder)
    assert (found.name, found.classes) == ("beans", ("a", "b", "c"))
    assert (len(found.train), len(found.validation), len(found.test)) == (20, 4, 6)
    expected = read_npz(tmp_path / "same.npz", **arrays())
    assert found.fingerprint == expected.fingerprint
    assert len(list((tmp_path / "cache").glob("beans-*.safetensors"))) == 1
    assert read(folder).fingerprint == found.fingerprint
    assert len(list((tmp_path / "cache").glob("beans-*.safetensors"))) == 1


def test_a_folder_without_a_data_set_is_refused(tmp_path: Path) -> None:
    """A missing split, a missing column, no file at all: by name."""
    folder = parquet(tmp_path / "half", "test")
    with pytest.raises(UserError, match=r"the splits are train, test and at most val.* half returned 'test'"):
        read(folder)
    with pytest.raises(UserError, match=r"image is a column of train.* it has 'image', 'label', not 'img'") as caught:
        read(parquet(tmp_path / "columns"), image="img")
    assert caught.value.key == "image"
    with pytest.raises(UserError, match=r"there is none: .*nowhere"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no data set. Expected are Parquet files"):
        read(tmp_path / "empty")
    (tmp_path / "empty" / "train.parquet").write_text("no Parquet")
    (tmp_path / "empty" / "test.parquet").write_text("no Parquet")
    with pytest.raises(UserError, match=r"a Parquet file of train cannot be read"):
        read(tmp_path / "empty")


def test_a_folder_of_datasets_without_that_package_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"`datasets is installed.*pip install datasets"):
        read(tmp_path / "saved")


def test_what_datasets_has_saved_is_read(tmp_path: Path) -> None:
    """Where that package is installed: the same pictures as in the Parquet files."""
    hugging = pytest.importorskip("datasets")
    features = hugging.Features({"img": hugging.Image(), "kind": hugging.ClassLabel(names=["a", "b", "c"])})

    def rows(chosen: slice) -> Any:
        pictures = [Image.fromarray(picture) for picture in PIXELS[chosen]]
        return hugging.Dataset.from_dict({"img": pictures, "kind": LABELS[chosen].tolist()}, features=features)

    saved = hugging.DatasetDict({split: rows(chosen) for split, chosen in SIZES.items()})
    saved.save_to_disk(str(tmp_path / "saved"))
    found = read(tmp_path / "saved", image="img", label="kind")
    assert found.classes == ("a", "b", "c")
    assert found.fingerprint == read(parquet(tmp_path / "beans")).fingerprint
