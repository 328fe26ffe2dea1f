"""Errors: what the user reads."""

from __future__ import annotations

import math
import pickle

import pytest

from kdsweep.system.errors import RunError, UserError, one_line, require, require_kinds, require_number


def test_a_user_error_starts_with_its_key() -> None:
    """The key at fault comes first; an error without one is its message."""
    assert str(UserError("too large.", "tau")) == "tau: too large."
    assert str(UserError("too large.")) == "too large."


def test_within_completes_the_key() -> None:
    """A group goes in front of the key, or is the key if there was none; the message stays."""
    assert str(UserError("too large.", "tau").within("loss").within("study")) == "study.loss.tau: too large."
    assert str(UserError("too large.").within("loss")) == "loss: too large."


def test_require_names_rule_value_and_remedy() -> None:
    """The message is one line: the rule, the last part of the key, the value as Python writes it, the remedy."""
    with pytest.raises(UserError) as raised:
        require(False, "tau > 0", "x\ny", "loss.tau", "Choose 4.")
    assert str(raised.value) == r"loss.tau: `tau > 0` must hold, but got tau='x\ny'. Choose 4."
    assert raised.value.key == "loss.tau"
    require(True, "tau > 0", 1, "tau")


@pytest.mark.parametrize("value", ["4", None, True, [4]])
def test_what_is_no_number_is_refused(value: object) -> None:
    """Words, nothing, truth values and lists are no numbers."""
    with pytest.raises(UserError, match=r"tau: `tau > 0` must hold, but got tau=.* It is a number\."):
        require_number(value, "tau > 0", "tau")


@pytest.mark.parametrize("value", [0, -1.5, math.nan, math.inf])
def test_numbers_pass_whatever_their_range(value: float) -> None:
    """Whether a number lies in its range is for the rule's own check."""
    require_number(value, "tau > 0", "tau")


@pytest.mark.parametrize(
    ("error", "line", "first"),
    [
        ("  one\n  two\r\nthree\n", "one two three", "one"),
        (OSError("\n\nno disk\nat all"), "no disk at all", "no disk"),
        (ValueError(), "ValueError", "ValueError"),
        ("", "", ""),
    ],
)
def test_what_an_error_says_fits_in_one_line(error: Exception | str, line: str, first: str) -> None:
    """The lines of a text or an error are joined, or only the first is taken; a silent error is named by its type."""
    assert one_line(error) == line
    assert one_line(error, whole=False) == first


def test_errors_cross_process_borders() -> None:
    """A worker process can hand a user error to its parent, key and all."""
    copy = pickle.loads(pickle.dumps(UserError("too large.", "tau")))
    assert (type(copy), str(copy), copy.key) == (UserError, "tau: too large.", "tau")


def test_a_failed_run_is_no_wrong_value() -> None:
    """A failed run and a wrong value are different types of error."""
    assert not issubclass(RunError, ValueError)
    assert issubclass(UserError, ValueError)


KINDS = [
    ("lr", "abc", "`lr is a finite number` must hold, but got lr='abc'. Its default is 0.001."),
    ("lr", True, "`lr is a finite number` must hold, but got lr=True."),
    ("lr", float("nan"), "`lr is a finite number` must hold, but got lr=nan."),
    ("lr", 10**40, "`lr is a finite number` must hold"),
    ("momentum", -1, "`momentum >= 0` must hold, but got momentum=-1. Its default is 0."),
    ("nesterov", 1, "`nesterov is true or false` must hold, but got nesterov=1."),
    ("betas", [0.9], r"`betas is 2 finite numbers` must hold, but got betas=\[0.9\]. Its default is \[0.9, 0.999\]."),
    ("betas", [0.9, None], "`betas is 2 finite numbers` must hold"),
    ("betas", "ab", "`betas is 2 finite numbers` must hold, but got betas='ab'."),
]


def _optimizer(
    params: object, lr: float = 0.001, momentum: float = 0, betas: object = (0.9, 0.999), nesterov: bool = False
) -> None: ...


@pytest.mark.parametrize(("name", "value", "message"), KINDS)
def test_an_argument_of_another_kind_than_its_default_is_refused(name: str, value: object, message: str) -> None:
    """Torch's optimizers would take it, and fail later."""
    with pytest.raises(UserError, match=message) as refused:
        require_kinds(_optimizer, {name: value})
    assert refused.value.key == name


def test_arguments_of_the_right_kind_are_left_alone() -> None:
    """Whole numbers pass for fractions, lists for tuples, anything without a default, and unknown names."""
    require_kinds(_optimizer, {"params": "abc", "lr": 1, "betas": [0, 0.5], "nesterov": True, "other": "abc"})
