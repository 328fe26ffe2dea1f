"""A network with its preprocessing as one file, pt2 or onnx, which is compared with the network."""

from __future__ import annotations

import importlib.util
import warnings
from typing import TYPE_CHECKING

from kdsweep.system.errors import RunError, one_line, require

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor
    from torch.export import ExportedProgram

    from kdsweep.exporting.trained_student import Inputs
    from kdsweep.models import Classifier
    from kdsweep.report.model_card import Check

FORMATS = ("pt2", "onnx", "none")
ONNX = ("onnx", "onnxscript", "onnxruntime")

# The number of pictures that are compared at a time.
BATCH = 250
# The largest allowed difference of two logits, relative to the largest logit; another order of additions makes less.
TOLERANCE = 1e-3


def require_tools(file_format: str) -> None:
    """Raises `UserError` if a package that the format needs isn't installed."""
    missing = [name for name in ONNX if importlib.util.find_spec(name) is None] if file_format == "onnx" else []
    require(not missing, f"{', '.join(ONNX)} are installed", "onnx", "--format", "pip install 'kdsweep[onnx]'")


def write(network: Classifier, inputs: Inputs, folder: Path, file_format: str) -> dict[str, Check]:
    """Writes the network as one file of the format, loads the file again, and compares it with the network.

    Returns:
        For the file's name how it compares; empty for the format "none".

    Raises:
        RunError: The network can't be written in this format, or the file gives other logits.
    """
    if file_format == "none":
        return {}
    path = folder / f"model.{file_format}"
    save, load = (_write_pt2, _load_pt2) if file_format == "pt2" else (_write_onnx, _load_onnx)
    try:
        # The converters warn of much that doesn't matter; the comparison below shows what does.
        with warnings.catch_warnings(action="ignore"):
            save(network, inputs.pictures[:2], path)
            answer = load(path)
    except Exception as error:  # a network that the converter can't follow can raise anything
        reason = one_line(f"{type(error).__name__}: {error}")[:300]
        raise RunError(f"this network can't be written as {file_format} ({reason}). Try another --format.") from error
    return {path.name: _compared(network, answer, inputs, path.name)}


def program(path: Path) -> ExportedProgram:
    """Reads a network that was written as pt2, for `write_program`."""
    import torch

    return torch.export.load(path)


def write_program(program: ExportedProgram, network: Classifier, inputs: Inputs, folder: Path) -> dict[str, Check]:
    """Writes a program as pt2 with the weights of a network, which differs from the program's in its weights alone.

    This takes a third of the time of `write`, which has to follow the network.

    Returns:
        As `write`.

    Raises:
        RunError: The program gives other logits than the network.
    """
    import torch

    path = folder / "model.pt2"
    own = network.state_dict()
    with torch.no_grad():
        for name, tensor in program.state_dict.items():
            tensor.copy_(own[name])
    check = _compared(network, program.module(), inputs, path.name)
    with warnings.catch_warnings(action="ignore"):
        torch.export.save(program, path)
    return {path.name: check}


# Each format has two functions. One writes the network; the other loads the file, and returns a function of pictures
# (B, H, W, 3) uint8 that computes logits (B, C).


def _write_pt2(network: Classifier, pictures: Tensor, path: Path) -> None:
    import torch

    batch = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(network, (pictures,), dynamic_shapes=(batch,)), path)


def _load_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    import torch

    return torch.export.load(path).module()


def _write_onnx(network: Classifier, pictures: Tensor, path: Path) -> None:
    import torch

    program = torch.onnx.export(
        network,
        (pictures,),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["pictures"],
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    program.save(path)


def _load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pictures: torch.from_numpy(session.run(None, {"pictures": pictures.numpy()})[0])


def _compared(network: Classifier, answer: Callable[[Tensor], Tensor], inputs: Inputs, name: str) -> Check:
    """Returns how `answer` compares with the network.

    Raises:
        RunError: Their logits differ by more than the order of additions explains.
    """
    import torch

    from kdsweep.report.model_card import Check

    with torch.inference_mode():
        batches = inputs.pictures.split(BATCH)
        expected = torch.cat([network(batch) for batch in batches])
        given = torch.cat([answer(batch) for batch in batches])
    difference = (given - expected).abs().max().item()
    same = (given.argmax(1) == expected.argmax(1)).double().mean().item()
    check = Check(f"{len(expected)} {inputs.kind}", difference, same)
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise RunError(f"{name} gives other answers than the network ({check}): nothing was written.")
    return check
