"""Shuffled teachers: every answer is used once, by another picture, and the same one whatever the batches are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdsweep.shuffled_teachers import ShuffledTeacher, partners
from kdsweep.views import Views, batch_order

PICTURES = torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
VIEWS = Views(PICTURES, 2, True, 0)


class Named:
    """A teacher whose answer to a view is the view's own mean colour, and the pass."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def answers(self, pass_index: int) -> Callable[[Tensor, Tensor], Tensor]:
        table = self.ask(VIEWS.batch(torch.arange(20), pass_index))
        return (lambda _, shown: self.ask(shown)) if self.mode == "online" else (lambda indices, _: table[indices])

    def ask(self, shown: Tensor) -> Tensor:
        return shown.double().mean((1, 2))


@pytest.mark.parametrize("n", [2, 3, 20, 1001])
def test_every_answer_is_used_once_and_by_another_picture(n: int) -> None:
    """A permutation without a fixed point, for any number of pictures."""
    for seed in range(3):
        wrong = partners(seed, 5, n)
        assert wrong.sort().values.equal(torch.arange(n))
        assert (wrong != torch.arange(n)).all()


def test_partners_are_a_function_of_seed_and_pass() -> None:
    """The same again for the same two; others for another seed or pass, and no batch's order."""
    known = [partners(*pair, 20).tolist() for pair in ((0, 0), (0, 1), (1, 0))]
    assert partners(0, 0, 20).tolist() == known[0]
    assert len({tuple(found) for found in known}) == 3
    assert batch_order(0, 0, 20).tolist() not in known


def test_a_picture_tells_nothing_of_its_answer() -> None:
    """Over many passes, the partner of a picture is each other picture about equally often."""
    found = torch.stack([partners(0, pass_index, 5) for pass_index in range(2000)])
    counts = found[:, 2].bincount(minlength=5)
    assert counts[2] == 0
    assert (counts[[0, 1, 3, 4]] - 500).abs().max() < 100  # 5 standard deviations


@pytest.mark.parametrize("mode", ["table", "online"])
def test_the_answer_is_the_right_one_to_the_partners_view(mode: str) -> None:
    """Of the same pass, from the table or asked, for any batch."""
    shuffled = ShuffledTeacher(Named(mode), VIEWS, 3)  # type: ignore[arg-type]
    indices = torch.tensor([4, 0, 17])
    expected = Named(mode).ask(VIEWS.batch(partners(3, 6, 20)[indices], 6))
    assert shuffled.answers(6)(indices, VIEWS.batch(indices, 6)).equal(expected)
    assert shuffled.answers(6)(indices, indices[:0]).equal(expected)  # as before a captured step
