"""Pictures in class folders: how they are decoded and kept, and what a user with bad files is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdsweep.numerics import picture_files
from kdsweep.numerics.picture_files import class_files, load
from kdsweep.system.errors import UserError


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Red cats and blue dogs: 8 training and 2 test pictures of each, in several sizes."""
    root = tmp_path / "pets"
    for split, n in (("train", 8), ("test", 2)):
        for i in range(n):
            paint(root / split / "cat" / f"{i}.png", (200, 10 * i, 0), (4 + i, 9))
            paint(root / split / "dog" / f"{i}.png", (0, 10 * i, 200), (9, 4 + i))
    return root


def names_in(root: Path) -> list[str]:
    train, test = class_files(root)
    return [name for files in (*train.values(), *test.values()) for name in files]


def read(root: Path, image_size: int = 4) -> torch.Tensor:
    """All pictures in `root`."""
    return load(root, names_in(root), image_size, root.parent / "cache")


def read_one(root: Path, name: str = "test/cat/0.png", image_size: int = 4) -> torch.Tensor:
    """The picture called `name` in `root`."""
    return read(root, image_size)[names_in(root).index(name)]


def refused(root: Path, match: str) -> None:
    """Reading `root` ends in one line that matches, and the key at fault is the folder."""
    with pytest.raises(UserError, match=match) as caught:
        read(root)
    assert caught.value.key == "root"
    assert "\n" not in str(caught.value)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures in each call of the decoder from here on."""
    calls: list[int] = []
    decode = picture_files._decode

    def counting(root: Path, names: list[str], image_size: int) -> torch.Tensor:
        calls.append(len(names))
        return decode(root, names, image_size)

    monkeypatch.setattr(picture_files, "_decode", counting)
    return calls


def test_pictures_are_resized_as_pillow_does_with_antialiasing(folder: Path) -> None:
    """A large JPEG is decoded, shrunk to a square and kept as RGB, as in the plain transcription."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "test" / "cat" / "0.jpg")
    expected = Image.open(folder / "test" / "cat" / "0.jpg").resize((4, 4), Image.Resampling.BILINEAR)
    assert torch.equal(read_one(folder, "test/cat/0.jpg"), torch.from_numpy(np.array(expected)))


MODES = [("1", "png"), ("L", "png"), ("LA", "png"), ("P", "gif"), ("RGBA", "webp"), ("CMYK", "jpg"), ("YCbCr", "jpg")]


@pytest.mark.parametrize(("mode", "suffix"), MODES)
def test_pictures_of_any_kind_become_rgb(folder: Path, mode: str, suffix: str) -> None:
    """Bilevel, grey, palette, transparent and print pictures keep their lightness."""
    (folder / "test" / "cat" / "0.png").unlink()
    Image.new("RGB", (6, 6), (255, 255, 255)).convert(mode).save(folder / "test" / "cat" / f"0.{suffix}")
    assert read_one(folder, f"test/cat/0.{suffix}").min() >= 250


def test_grey_of_16_bits_keeps_its_range(folder: Path) -> None:
    """65,535 is white and 25,700 is 100; Pillow's own conversion to RGB makes both white."""
    grey = np.repeat(np.array([[65535, 25700]], dtype=np.uint16), 2, axis=0)
    Image.fromarray(grey).save(folder / "test" / "cat" / "0.png")
    assert read_one(folder, image_size=2).tolist() == [[[255] * 3, [100] * 3]] * 2


def test_palette_picture_with_transparency_is_read_without_a_warning(folder: Path) -> None:
    """Pillow warns about these when they are turned to RGB directly; warnings are errors here."""
    picture = Image.new("P", (6, 6))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.save(folder / "test" / "cat" / "0.png", transparency=b"\x80\xff")
    assert read_one(folder)[0, 0].tolist() == [255, 0, 0]


def test_pictures_stand_as_their_camera_says(folder: Path) -> None:
    """EXIF orientation is applied: a picture turned by 180 degrees has its dark half below."""
    picture = Image.new("RGB", (8, 8), (255, 255, 255))
    picture.paste((0, 0, 0), (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    picture.save(folder / "test" / "cat" / "0.png", exif=exif)
    image = read_one(folder)
    assert image[0].min() == 255
    assert image[3].max() == 0


def test_folders_that_look_like_splits_are_no_classes(folder: Path) -> None:
    """`Train` and `Validation` beside each other are splits; one class may be called train, as among vehicles."""
    shutil.rmtree(folder / "test")
    (folder / "train").rename(folder / "Train")
    shutil.copytree(folder / "Train", folder / "Validation")
    with pytest.raises(UserError, match=r"'Train', 'Validation' in .*pets look like splits.*Call them train and test"):
        class_files(folder, 0.2)
    shutil.rmtree(folder)
    for name in ("bus", "train"):
        paint(folder / name / "0.png", (0, 0, 0))
    assert class_files(folder, 0.2) == ({"bus": ["bus/0.png"], "train": ["train/0.png"]}, {})


def test_hidden_files_are_no_pictures_and_sub_folders_count(folder: Path) -> None:
    """Files that desktops leave behind are ignored. Pictures in sub-folders, and linked ones, belong to the class."""
    paint(folder / "train" / "cat" / ".thumbnails" / "0.png", (200, 0, 0))
    (folder / "train" / "cat" / "linked").symlink_to(folder / "test" / "cat")
    for name in (".DS_Store", "Thumbs.db", "._0.png"):
        (folder / "train" / "cat" / name).write_bytes(b"no picture")
    (folder / "train" / ".hidden").mkdir()
    paint(folder / "train" / "dog" / "small" / "puppy.png", (0, 0, 200))
    train, _ = class_files(folder)
    assert {name: len(files) for name, files in train.items()} == {"cat": 10, "dog": 9}
    assert train["cat"][-1] == "train/cat/linked/1.png"
    assert len(read(folder)) == 23


def test_files_that_hold_no_pictures_are_skipped_with_a_word(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the ends of their names. A file without one is tried, and a class of such files alone has no pictures."""
    pictures = names_in(folder)
    assert capsys.readouterr().err == ""
    for name in ("cat/labels.csv", "dog/notes.TXT", "dog/deep/boxes.json", "cat/clip.mp4", "dog/annotation.xml"):
        (folder / "train" / name).parent.mkdir(exist_ok=True)
        (folder / "train" / name).write_text("no picture")
    assert names_in(folder) == pictures
    assert "5 files are skipped" in (said := capsys.readouterr().err)
    assert "'train/cat/clip.mp4', 'train/cat/labels.csv', 'train/dog/annotation.xml'" in said
    shutil.copy(folder / "train" / "cat" / "0.png", folder / "train" / "cat" / "plain")
    assert "train/cat/plain" in names_in(folder)
    for picture in (folder / "test" / "dog").iterdir():
        picture.rename(picture.with_suffix(".csv"))
    refused(folder, "class folders have no pictures: 'dog'")


def test_pictures_are_decoded_once(folder: Path, decoded: list[int]) -> None:
    """A second use reads the cache and gives the same pictures."""
    first = read(folder)
    assert torch.equal(read(folder), first)
    assert decoded == [20]


def test_changed_pictures_are_decoded_again(folder: Path, decoded: list[int]) -> None:
    """Another image size, modification time, file size or name makes the pictures be decoded again."""
    read(folder)
    read(folder, image_size=5)
    first = folder / "train" / "cat" / "0.png"
    os.utime(first, ns=(0, 0))
    read(folder)
    first.rename(first.with_name("first.png"))
    read(folder)
    paint(folder / "train" / "cat" / "8.png", (200, 0, 0))
    read(folder)
    assert decoded == [20, 20, 20, 20, 21]


def cache_file(folder: Path) -> Path:
    (path,) = (folder.parent / "cache").glob("*.safetensors")
    return path


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_truncated_cache_is_rebuilt(
    folder: Path, decoded: list[int], length: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache that is cut off anywhere is noticed, reported, and made again."""
    whole = read(folder)
    content = cache_file(folder).read_bytes()
    cache_file(folder).write_bytes(content[:length])
    assert torch.equal(read(folder), whole)
    assert decoded == [20, 20]
    assert cache_file(folder).read_bytes() == content
    assert "is made again" in caplog.text


def test_cache_with_a_flipped_bit_is_rebuilt(folder: Path, decoded: list[int]) -> None:
    """The pictures are right whichever byte is flipped, in header, checksum or pixels."""
    whole = read(folder, image_size=1)
    content = cache_file(folder).read_bytes()
    positions = range(0, len(content), 7)
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 1
        cache_file(folder).write_bytes(damaged)
        assert torch.equal(read(folder, image_size=1), whole)
    assert len(decoded) > 0.9 * len(positions)  # a flip in the header's padding does no harm


CHILD = """
import sys, time
from pathlib import Path
from kdsweep.numerics import picture_files as pictures
decode = pictures._decode
def slow(*arguments):
    print("decoding", flush=True)
    time.sleep(0.5)  # so that the other process asks while this one decodes
    return decode(*arguments)
pictures._decode = slow
root, cache, *names = sys.argv[1:]
print(pictures.load(Path(root), names, 4, Path(cache)).tolist())
"""


@pytest.mark.slow
def test_processes_that_start_at_once_decode_once(folder: Path, decoded: list[int]) -> None:
    """Of two processes that ask for the same pictures one decodes, and both get them."""
    command = [sys.executable, "-c", CHILD, str(folder), str(folder.parent / "cache"), *names_in(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "decoding\n"
        ours = read(folder)
        theirs = other.stdout.read()
    assert json.loads(theirs) == ours.tolist()
    assert decoded == []


def test_missing_folder_is_named(folder: Path) -> None:
    """The message names the folder and what is expected."""
    refused(folder / "nowhere", r"pets/nowhere does not exist.*Expected are <root>/train/<class>")


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_split_is_named(folder: Path, split: str) -> None:
    """A folder without train/ or test/ is refused."""
    shutil.rmtree(folder / split)
    refused(folder, f"has no folder {split}/")


@pytest.mark.parametrize("split", ["train", "test"])
def test_split_without_classes_is_refused(folder: Path, split: str) -> None:
    """Pictures beside the class folders don't count."""
    shutil.rmtree(folder / split)
    paint(folder / split / "0.png", (0, 0, 0))
    refused(folder, f"pets/{split} has no class folders")


@pytest.mark.parametrize("deeper", ["images", "data/images", "train"])
def test_a_folder_too_many_is_named(folder: Path, deeper: str) -> None:
    """Class folders below a single folder would all be one class; the message says where they are and belong."""
    for split in ("train", "test"):
        (folder / split).rename(folder / "classes")
        (folder / split / deeper).parent.mkdir(parents=True)
        (folder / "classes").rename(folder / split / deeper)
    first = deeper.partition("/")[0]
    found = f"a data set has at least two classes, but .*pets/train has one class folder, '{first}'"
    refused(
        folder, f"{found}. If 'cat', 'dog' in .*/train/{deeper} are the classes, move them to .*pets/train. Expected"
    )


def test_a_single_class_is_refused(folder: Path) -> None:
    """It has no folders below, so the message doesn't say where others might be."""
    for split in ("train", "test"):
        shutil.rmtree(folder / split / "cat")
    refused(folder, "has one class folder, 'dog'. Expected are")


def test_a_folder_above_the_splits_names_the_one_below(folder: Path) -> None:
    """If `root` holds the folder that was meant, the message names it."""
    refused(folder.parent, f"has no folder train/. {folder} has one: name it. Expected are")


@pytest.mark.parametrize("split", ["train", "test"])
def test_class_without_pictures_is_named(folder: Path, split: str) -> None:
    """An empty class folder is an error, not a class without data."""
    (folder / split / "axolotl").mkdir()
    refused(folder, f"pets/{split} these class folders have no pictures: 'axolotl'")


def test_classes_that_differ_are_named(folder: Path) -> None:
    """The message says which split lacks which classes, the first few by name."""
    paint(folder / "test" / "horse" / "0.png", (0, 0, 0))
    refused(folder, "only train/ has nothing; only test/ has 'horse'")
    for c in range(7):
        paint(folder / "train" / f"race {c}" / "0.png", (0, 0, 0))
    refused(folder, "only train/ has 'race 0', .*'race 4' and 2 more; only test/ has 'horse'")


def test_unreadable_pictures_are_named_and_counted(folder: Path) -> None:
    """Text, an empty file, a picture cut off and a dangling link: the message names them, and nothing is cached."""
    cats = folder / "train" / "cat"
    (cats / "0.png").write_text("no picture")
    (cats / "1.png").write_bytes(b"")
    (cats / "2.png").write_bytes((cats / "2.png").read_bytes()[:-30])
    (cats / "3.png").unlink()
    (cats / "3.png").symlink_to("nowhere")
    listed = ", ".join(f"'train/cat/{i}.png'" for i in range(4))
    refused(folder, rf"4 of 20 pictures in .* cannot be read: {listed} \(the first: not a picture\)")
    assert not list((folder.parent / "cache").glob("*.safetensors"))


def test_many_unreadable_pictures_are_counted(folder: Path) -> None:
    """The first five are named, and the others counted. A picture whose range is unknown can't be read either."""
    for i in range(8):
        (folder / "train" / "dog" / f"{i}.png").unlink()
        Image.fromarray(np.zeros((6, 6), dtype=np.float32)).save(folder / "train" / "dog" / f"{i}.tif")
    refused(folder, r"8 of 20 pictures.*4.tif' and 3 more \(the first: mode F, 32 bits")


def test_cache_that_cannot_be_written_is_refused(folder: Path) -> None:
    """If a file stands where the cache folder should be, the error's key is the cache."""
    (folder.parent / "cache").write_text("in the way")
    with pytest.raises(UserError, match="cannot keep decoded pictures") as caught:
        read(folder)
    assert caught.value.key == "cache"
