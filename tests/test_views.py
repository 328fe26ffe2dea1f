"""Views depend on (view seed, pass, picture) alone, are used evenly, and are torchvision's pictures."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from torchvision.transforms import functional as TF

from kdsweep.views import Views, batch_order, n_views, pass_of_epoch, passes_of_run, view_ids

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def random_pictures(n: int = 40, height: int = 9, width: int = 7) -> Tensor:
    return torch.randint(1, 256, (n, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def ids(n: int = 1000, pass_index: int = 0, seed: int = 0) -> Tensor:
    """The views of the reference policy (padding 4, flip: 162 views) in a pass of n pictures."""
    return view_ids(seed, pass_index, torch.arange(n), 4, True)


def surprise(counts: Tensor) -> float:
    """The p-value of a chi-square test that all cells are equally likely."""
    expected = counts.sum().item() / counts.numel()
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return float(chi2.sf(statistic, counts.numel() - 1))


# ------------------------------------------------------------------------------------------------- view numbers


def test_a_policy_has_as_many_views_as_offsets_and_flips() -> None:
    """Padding 4 and flip give 81 x 2 views; no padding and no flip the picture itself."""
    assert (n_views(4, True), n_views(4, False), n_views(0, True), n_views(0, False)) == (162, 81, 2, 1)


def test_a_view_does_not_depend_on_its_batch() -> None:
    """Any pictures in any order, together or one by one, have the views that they have in the whole."""
    whole = ids(1000)
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(view_ids(0, 0, shuffled, 4, True), whole[shuffled])
    single = torch.cat([view_ids(0, 0, index[None], 4, True) for index in shuffled[:50]])
    assert torch.equal(single, whole[shuffled[:50]])


def test_a_view_does_not_depend_on_how_many_pictures_there_are() -> None:
    """Picture 7 of ten has the view of picture 7 of a thousand: fractions of a data set share their tables' views."""
    assert torch.equal(ids(10), ids(1000)[:10])
    pictures = random_pictures()
    few, many = (Views(part, 2, True, seed=0).batch(torch.arange(10), 3) for part in (pictures[:10], pictures))
    assert torch.equal(few, many)


@pytest.mark.parametrize("seed", [0, 1, 2**62])
@pytest.mark.parametrize("pass_index", [0, 1, 161])
def test_every_pass_uses_each_view_about_equally(seed: int, pass_index: int) -> None:
    """Over 50,000 pictures the 162 views are as even as chance makes them (chi-square): no less, and no more."""
    counts = ids(50_000, pass_index, seed).bincount(minlength=162)
    assert len(counts) == 162
    assert 1e-4 < surprise(counts) < 1 - 1e-4


def test_every_picture_meets_each_view_about_equally() -> None:
    """Over many passes one picture's views are even as well."""
    for picture in (0, 1, 49_999):
        seen = torch.cat([view_ids(0, index, torch.tensor([picture]), 4, True) for index in range(5000)])
        assert 1e-4 < surprise(seen.bincount(minlength=162)) < 1 - 1e-4


def test_views_of_neighbours_and_of_passes_are_independent() -> None:
    """Pairs (picture i, picture i+1) in a pass, and pairs (pass, next pass) of a picture, are even too."""
    first, second = ids(200_000, 0), ids(200_000, 1)
    for a, b in ((first[:-1], first[1:]), (first, second)):
        pairs = (a // 9 * 18 + b // 9).bincount(minlength=18 * 18)
        assert 1e-4 < surprise(pairs) < 1 - 1e-4


def test_passes_and_seeds_have_views_of_their_own() -> None:
    """Two passes, or two seeds, show the same view of one picture in 162; seed 1 isn't seed 0 shifted by a pass."""
    reference = ids(50_000)
    for other in (ids(50_000, 1), ids(50_000, 2), ids(50_000, 0, seed=1), ids(50_000, 1, seed=1), ids(50_000, 1, -1)):
        assert (reference == other).double().mean().item() == pytest.approx(1 / 162, abs=0.002)


def test_views_are_those_of_the_tables_on_disk() -> None:
    """The ids are pinned: with others, every existing table would have the logits of other views."""
    assert ids(8).tolist() == [105, 6, 108, 140, 100, 123, 57, 10]
    assert view_ids(3, 7, torch.arange(8), 2, False).tolist() == [21, 0, 14, 8, 9, 0, 16, 6]


def test_random_bits_are_splitmix64s() -> None:
    """The tensor arithmetic, with signs and wrap-around, equals splitmix64 in Python's unbounded integers."""
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1

    def mix(z: int) -> int:
        z &= mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    for seed, pass_index in ((0, 0), (5, 9), (2**40, 161)):
        key = mix(mix(mix(seed + golden)) + pass_index * golden)
        expected = [((mix(key + i * golden) >> 16 & 0xFFFFFFFF) * 162) >> 32 for i in range(500)]
        assert ids(500, pass_index, seed).tolist() == expected


# ----------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (2, False), (0, True), (0, False)])
def test_views_are_torchvisions_pad_crop_and_flip(padding: int, flip: bool) -> None:
    """On the same offsets the pictures are torchvision's, bit for bit, also where they are not square."""
    pictures = random_pictures()
    found = Views(pictures, padding, flip, seed=5).batch(torch.arange(len(pictures)), 2)
    for index, view in enumerate(view_ids(5, 2, torch.arange(len(pictures)), padding, flip).tolist()):
        crop, flipped = divmod(view, 2) if flip else (view, 0)
        top, left = divmod(crop, 2 * padding + 1)
        expected = TF.crop(TF.pad(pictures[index].permute(2, 0, 1), padding), top, left, 9, 7)
        expected = TF.hflip(expected) if flipped else expected
        assert torch.equal(found[index], expected.permute(1, 2, 0))


def test_every_view_number_is_a_different_picture() -> None:
    """A picture without symmetries has 162 different views, and no more."""
    views = Views(random_pictures(1), 4, True, seed=0)
    seen = {views.batch(torch.tensor([0]), index).numpy().tobytes() for index in range(1500)}
    assert len(seen) == 162


def test_a_batch_is_put_together_from_its_pictures() -> None:
    """Order, size and repeats of the indices change nothing about each picture's view."""
    views = Views(random_pictures(), 4, True, seed=0)
    whole = views.batch(torch.arange(40), 6)
    chosen = torch.tensor([31, 2, 2, 17, 0])
    assert torch.equal(views.batch(chosen, 6), whole[chosen])
    assert torch.equal(torch.cat([views.batch(part, 6) for part in torch.arange(40).split(7)]), whole)
    assert not torch.equal(views.batch(torch.arange(40), 7), whole)


def test_views_leave_the_pictures_alone() -> None:
    """Writing into a batch changes neither the pictures nor the next batch."""
    pictures = random_pictures()
    before = pictures.clone()
    for padding, flip in ((4, True), (0, False)):
        views = Views(pictures, padding, flip, seed=0)
        first = views.batch(torch.arange(5), 0).clone()
        views.batch(torch.arange(5), 0).zero_()
        assert torch.equal(views.batch(torch.arange(5), 0), first)
    assert torch.equal(pictures, before)


@needs_gpu
def test_a_gpu_shows_the_same_views() -> None:
    """Views on CUDA equal the CPU's, so tables that were made on one serve the other."""
    pictures, order = random_pictures(), torch.randperm(40)
    on_gpu = Views(pictures.cuda(), 4, True, seed=0).batch(order.cuda(), 3)
    assert torch.equal(on_gpu.cpu(), Views(pictures, 4, True, seed=0).batch(order, 3))


# -------------------------------------------------------------------------------------------- orders of an epoch


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_an_epoch_visits_every_picture_once(n: int) -> None:
    """The order is a permutation."""
    for epoch in range(3):
        assert batch_order(0, epoch, n).sort().values.tolist() == list(range(n))


def test_orders_differ_between_epochs_and_seeds() -> None:
    """Every (seed, epoch) has an order of its own, and always the same."""
    orders = {(seed, epoch): batch_order(seed, epoch, 100) for seed in range(4) for epoch in range(4)}
    assert len({tuple(order.tolist()) for order in orders.values()}) == 16
    assert torch.equal(orders[2, 3], batch_order(2, 3, 100))


def test_no_picture_has_a_favourite_place() -> None:
    """Over many epochs a picture is in each tenth of the epoch about equally often."""
    places = torch.stack([batch_order(0, epoch, 100).argsort() for epoch in range(2000)])  # (epochs, pictures)
    for picture in (0, 50, 99):
        assert 1e-4 < surprise((places[:, picture] // 10).bincount(minlength=10)) < 1 - 1e-4


def test_the_order_of_pictures_says_nothing_about_their_views() -> None:
    """With one seed for both, the order says nothing about the views, because it has its own stream of numbers."""
    early = batch_order(0, 0, 50_000)[:10_000]
    assert 1e-4 < surprise(ids(50_000)[early].bincount(minlength=162)) < 1 - 1e-4


@pytest.mark.parametrize("n_passes", [1, 2, 7])
def test_each_cycle_of_epochs_uses_every_pass_once(n_passes: int) -> None:
    """Whatever the seed, n_passes epochs train on n_passes different passes, cycle after cycle."""
    for seed in range(3):
        for cycle in range(4):
            epochs = range(cycle * n_passes, (cycle + 1) * n_passes)
            assert sorted(pass_of_epoch(seed, epoch, n_passes) for epoch in epochs) == list(range(n_passes))


def test_a_run_comes_to_its_passes_in_this_order() -> None:
    """Each pass is listed once. A short run lists only the passes that it reaches, and a long run lists all."""
    assert passes_of_run(5, 3, 10) == [pass_of_epoch(5, epoch, 10) for epoch in range(3)]
    assert passes_of_run(5, 25, 10) == [pass_of_epoch(5, epoch, 10) for epoch in range(10)]


def test_cycles_and_seeds_order_the_passes_differently() -> None:
    """Each cycle of each seed has its own order of passes."""
    cycles = {
        tuple(pass_of_epoch(seed, 10 * cycle + k, 10) for k in range(10)) for seed in range(4) for cycle in range(4)
    }
    assert len(cycles) == 16
