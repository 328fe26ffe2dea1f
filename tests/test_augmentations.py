"""Augmentations are torchvision's operations, and each picture's own."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, autoaugment
from torchvision.transforms import functional as TF

from kdsweep.augmentations import BINS, OPERATIONS, STEP, color, cutout, trivial
from kdsweep.system.errors import UserError
from kdsweep.views import Augmentation, Draw, Views

ALL: dict[str, Augmentation] = {
    "cutout": functools.partial(cutout, size=5, fill=128),
    "color": functools.partial(color, brightness=0.4, contrast=0.4, saturation=0.4),
    "trivial": trivial,
}
SPACE = autoaugment.TrivialAugmentWide()._augmentation_space(BINS)


def pictures(n: int = 40, height: int = 32, width: int = 32) -> Tensor:
    """Noise, but for a picture of one colour, one of little contrast, and a smooth one."""
    drawn = torch.Generator().manual_seed(0)
    found = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=drawn)
    found[1] = 77
    found[2] = found[2] // 4 + 60
    found[3] = torch.arange(height * width * 3).view(height, width, 3) % 256
    return found


def draw(n: int = 40, seed: int = 0, pass_index: int = 0) -> Draw:
    return Draw(1000 * seed + pass_index, torch.arange(n))


def by_torchvision(change: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """What an operation of torchvision makes of each picture by itself."""
    return torch.stack([change(picture.permute(2, 0, 1)).permute(1, 2, 0) for picture in batch])


@pytest.mark.parametrize("shape", [(32, 32), (9, 7), (2, 2)])
@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_trivials_operations_are_torchvisions(number: int, shape: tuple[int, int]) -> None:
    """Each of the 14 operations, at each of its strengths and signs, is bit for bit the same."""
    name, (strengths, has_sign) = list(SPACE.items())[number]
    change, largest, ours_has_sign = OPERATIONS[number]
    assert ours_has_sign is has_sign
    batch = pictures(4, *shape)
    amounts = torch.linspace(0, largest, BINS).double()
    for index in (0, 1, 7, 15, 22, 30):
        for sign in (1, -1) if has_sign else (1,):
            strength = float(strengths[index]) * sign if strengths.ndim else 0.0
            theirs = functools.partial(
                autoaugment._apply_op,
                op_name=name,
                magnitude=strength,
                interpolation=InterpolationMode.NEAREST,
                fill=None,
            )
            found = change(batch, (amounts[index] * sign).expand(4))
            assert torch.equal(found, by_torchvision(theirs, batch)), (name, strength)


def test_trivial_changes_each_picture_by_its_own_operation() -> None:
    """A picture has the operation, the strength and the sign that its random numbers say, and all of them occur."""
    batch, numbers = pictures(400, 8, 8), draw(400)
    found = trivial(batch, numbers)
    which, strength, negative = numbers.below(0, 14), numbers.below(1, BINS), numbers.below(2, 2)
    assert len(which.unique()) == 14
    assert len(strength.unique()) == BINS
    for index in range(0, 400, 13):
        change, largest, has_sign = OPERATIONS[which[index]]
        amount = torch.linspace(0, largest, BINS).double()[strength[index]]
        amount = -amount if has_sign and negative[index] else amount
        assert torch.equal(found[index : index + 1], change(batch[index : index + 1], amount[None]))


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("brightness", TF.adjust_brightness),
        ("contrast", TF.adjust_contrast),
        ("saturation", TF.adjust_saturation),
    ],
)
def test_colours_are_torchvisions(name: str, operation: Callable[..., Tensor]) -> None:
    """Each picture is changed by its own factor within the limits, as torchvision does it."""
    batch, numbers = pictures(200, 8, 8), draw(200)
    changes = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, name: 0.4}
    found = color(batch, numbers, **changes)
    drawn = numbers.below(["brightness", "contrast", "saturation"].index(name), 2 * 102 + 1)
    factors = (1 + (drawn - 102) * STEP).tolist()
    assert 0.6 <= min(factors) < 0.65
    assert 1.35 < max(factors) <= 1.4
    for picture, other, factor in zip(batch, found, factors, strict=True):
        assert torch.equal(operation(picture.permute(2, 0, 1), factor).permute(1, 2, 0), other)


def test_colours_that_may_not_change_stay() -> None:
    """No change in all three is the picture itself."""
    assert torch.equal(color(pictures(), draw(), brightness=0, contrast=0, saturation=0), pictures())


def test_a_cut_is_a_square_somewhere_in_the_picture() -> None:
    """Its middle is in the picture, all else is as it was, and each place is hit."""
    white = torch.full((2000, 9, 7, 3), 255, dtype=torch.uint8)
    cut = (cutout(white, draw(2000), size=3, fill=0) == 0).all(-1)  # (N, H, W)
    assert int(cut.sum((1, 2)).min()) == 4  # in a corner
    assert int(cut.sum((1, 2)).max()) == 9
    assert bool(cut.any(0).all())
    for one in cut[:50]:
        rows, columns = one.any(1), one.any(0)
        assert torch.equal(one, rows[:, None] & columns[None, :])


@pytest.mark.parametrize("name", ALL)
def test_a_view_is_its_pictures_own(name: str) -> None:
    """It doesn't depend on the batch, but on the pass and on the view seed; pictures stay as they are."""
    batch = pictures()
    before = batch.clone()
    views = Views(batch, 2, True, 0, ALL[name], name)
    whole = views.batch(torch.arange(40), 3)
    assert whole.shape == batch.shape
    assert whole.dtype == torch.uint8
    some = torch.tensor([31, 2, 2, 17, 0])
    assert torch.equal(views.batch(some, 3), whole[some])
    assert not torch.equal(whole, views.batch(torch.arange(40), 4))
    assert not torch.equal(whole, Views(batch, 2, True, 1, ALL[name], name).batch(torch.arange(40), 3))
    assert torch.equal(batch, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ALL)
def test_a_gpu_shows_the_same_views(name: str) -> None:
    """Views on CUDA equal the CPU's, so tables that were made on one serve the other."""
    found = [Views(pictures().to(d), 4, True, 0, ALL[name]).batch(torch.arange(40).to(d), 3) for d in ("cpu", "cuda")]
    assert torch.equal(found[0], found[1].cpu())


@pytest.mark.parametrize("name", ALL)
def test_no_shape_depends_on_the_pictures(name: str) -> None:
    """On a GPU nothing waits for a number: the same operations run on tensors that have no values."""
    batch = pictures().to("meta")
    assert ALL[name](batch, Draw(0, torch.arange(40, device="meta"))).shape == batch.shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (functools.partial(cutout, size=0, fill=0), r"size: `size is int >= 1` must hold, but got size=0"),
        (functools.partial(cutout, size=8, fill=256), r"fill: .* got fill=256"),
        (
            functools.partial(color, brightness=1.5, contrast=0, saturation=0),
            r"brightness: `0 <= brightness <= 1` must hold, but got brightness=1\.5",
        ),
    ],
)
def test_settings_out_of_range_are_refused(call: Augmentation, message: str) -> None:
    """One line names the rule and the value."""
    with pytest.raises(UserError, match=message):
        call(pictures(), draw())
