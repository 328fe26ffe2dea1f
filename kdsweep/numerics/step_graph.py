"""A training step that a GPU replays as one CUDA graph, so that no kernel of it waits to be launched from Python.

A step can be captured if it never asks on the CPU what a tensor on the GPU holds (as `.item()` does), if no shape in it
depends on data, and if it finds its tensors in the same places each time. torch's notes on CUDA graphs call this
whole-network capture.
"""

from __future__ import annotations

import copy
import functools
import gc
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from kdsweep.numerics.gpu_memory import room_for_another
from kdsweep.numerics.taken_apart import taken_apart
from kdsweep.system.errors import one_line
from kdsweep.system.progress import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from torch.optim import Optimizer

    Step = Callable[..., tuple[Any, ...]]  # takes, and returns, tensors and None; takes numbers too
    Loss = Callable[..., Tensor]

# torch asks for a few steps before a capture: compilers, libraries and the optimizer set themselves up in them.
WARM_UPS = 3


@dataclass(frozen=True)
class Captured:
    """A captured step.

    Attributes:
        graph: Its CUDA graph.
        inputs: What it reads the arguments from.
        rates: What it reads the learning rates from.
        outputs: What it writes its results to.
        constants: All else that its kernels have been made of; None if that isn't known.
        places: The tensors that it reads and changes: weights, buffers, the optimizer's state, settings of the loss.
    """

    graph: torch.cuda.CUDAGraph
    inputs: list[Any]
    rates: list[Tensor]
    outputs: tuple[Any, ...]
    constants: object
    places: list[Tensor]


# The last captured step whose training has ended, if any. The next training in this process that makes the same steps
# takes it, and puts its own values into its tensors.
_kept: list[Captured] = []


class StepGraph:
    """Makes training steps: the first ones by calling a function, and the others by replaying a CUDA graph of it.

    Each call makes one step, so all numbers are what the function alone would give. A function that can't be captured
    goes on being called, after a note that says so. The graph of an earlier training that made the same steps is used
    again: the tensors of this one then lie where those of the earlier one did.

    Args:
        step: The function. It changes tensors in place (the network's, the optimizer's), and returns new ones.
        optimizer: What the function makes its step with. Its schedule goes on setting the rates as plain numbers; the
            function finds them as tensors. No other setting may change, or the function is called again.
        reads: Returns all else that the function reads, but for its arguments, as `taken_apart` takes it.
        first: The context of the first call, which compiles.
    """

    def __init__(
        self,
        step: Step,
        optimizer: Optimizer,
        reads: Callable[[], object],
        first: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._step, self._optimizer, self._reads, self._first = step, optimizer, reads, first
        device = optimizer.param_groups[0]["params"][0].device
        self._rates = [torch.empty((), device=device) for _ in optimizer.param_groups]
        self._settings = _settings(optimizer)
        self._stream = _stream(device)
        self._inputs: list[Any] = []
        self._calls = 0
        self._tensors: list[Tensor] = []
        self._captured: Captured | None = None
        self._replays = True

    def __call__(self, *inputs: Tensor | int | None) -> tuple[Any, ...]:
        """Makes a step.

        Args:
            *inputs: The function's arguments, of the same kinds and shapes each time. It gets numbers as tensors.

        Returns:
            What the function returns. The next call may overwrite it.
        """
        if self._replays and self._settings != _settings(self._optimizer):
            self._give_up("the schedule changes more of the optimizer than its rate")
        if not self._replays:
            return self._step(*inputs)
        self._take(inputs)
        if self._calls < WARM_UPS:
            self._calls += 1
            with self._first() if self._calls == 1 else nullcontext():
                return self._warm_up()
        if self._captured is None and not self._capture():
            return self._step(*inputs)
        assert self._captured is not None
        self._captured.graph.replay()
        return self._captured.outputs

    def release(self) -> None:
        """Ends the replaying: the training has tensors of its own again, and the next one may take the graph."""
        captured, self._captured, self._replays = self._captured, None, False
        if captured is None or captured.constants is None:
            return
        for tensor in self._tensors:
            tensor.data = tensor.detach().clone()
        self._drop_gradients()
        if room_for_another(self._rates[0].device):  # the next training's first steps take as much as the graph
            _kept[:] = [captured]

    def _take(self, inputs: tuple[Tensor | int | None, ...]) -> None:
        """Puts a step's arguments and rates where the captured kernels read them; nothing here waits for the GPU."""
        if not self._inputs:
            device = self._rates[0].device
            self._inputs = [
                torch.empty((), dtype=torch.int64, device=device)
                if isinstance(value, int)
                else None
                if value is None
                else torch.empty_like(value)
                for value in inputs
            ]
        for own, value in zip(self._inputs, inputs, strict=True):
            if isinstance(value, int):
                own.fill_(value)
            elif value is not None:
                own.copy_(value)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])

    def _warm_up(self) -> tuple[Any, ...]:
        """Calls the function, on the stream on which it will be captured."""
        now = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream), rates_as_tensors(self._optimizer, self._rates):
            outputs = self._step(*self._inputs)
        now.wait_stream(self._stream)
        return outputs

    def _capture(self) -> bool:
        """Gets a graph: the one that an earlier training has left, or a new one; returns whether that worked."""
        constants, self._tensors = taken_apart(self._parts())
        kept = _kept.pop() if _kept else None
        if kept is not None and constants is not None and kept.constants == constants:
            self._take_over(kept)
            return True
        kept = None
        gc.collect()  # the graphs of earlier trainings hold memory until then
        graph = torch.cuda.CUDAGraph()
        try:
            with rates_as_tensors(self._optimizer, self._rates), torch.cuda.graph(graph, stream=self._stream):
                outputs = self._step(*self._inputs)
        except RuntimeError as error:
            # The end of a capture that has failed raises an error of its own; the one before it says why.
            self._give_up(one_line(error.__context__ or error)[:200])
            return False
        places = [tensor.detach() for tensor in self._tensors]
        self._captured = Captured(graph, self._inputs, self._rates, outputs, constants, places)
        return True

    def _parts(self) -> object:
        """Returns what the function reads, with the kinds of its arguments."""
        optimizer, inputs = self._optimizer, [_kind(value) for value in self._inputs]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = [dict(optimizer.state.get(parameter, {})) for parameter in parameters]
        # An optimizer of the user's own may keep settings elsewhere.
        theirs = type(optimizer).__module__.startswith("torch.optim")
        changing = ("param_groups", "state", "step")  # schedules replace `step` by a function that notes its calls
        own = {} if theirs else {name: value for name, value in vars(optimizer).items() if name not in changing}
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        return [self._reads(), type(optimizer), self._settings, sizes, own, state, parameters, inputs]

    def _take_over(self, captured: Captured) -> None:
        """Puts the training's values where the kernels of a captured step read them, and leaves them there."""
        for tensor, place in zip(self._tensors, captured.places, strict=True):
            place.copy_(tensor.detach())
            tensor.data = place
        for place, value in zip([*captured.inputs, *captured.rates], [*self._inputs, *self._rates], strict=True):
            if place is not None:
                place.copy_(value)
        self._inputs, self._rates, self._captured = captured.inputs, captured.rates, captured
        self._drop_gradients()
        torch.cuda.empty_cache()  # the first steps took memory that replaying doesn't need

    def _drop_gradients(self) -> None:
        """Frees the gradients of steps that were made by calling the function."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _give_up(self, reason: str) -> None:
        self._replays, self._captured = False, None
        note_plain(reason)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Returns the stream of all warm-ups and captures: memory that was freed on one stream serves no other."""
    return torch.cuda.Stream(device)


def _kind(value: Tensor | None) -> object:
    return None if value is None else (value.shape, value.stride(), value.dtype)


def note_plain(reason: str) -> None:
    """Says why the steps of a training aren't replayed."""
    note(f"The training step is not replayed as a CUDA graph, so it takes longer: {reason}.")


@contextmanager
def rates_as_tensors(optimizer: Optimizer, rates: list[Tensor]) -> Iterator[None]:
    """Gives each group of an optimizer a tensor as its learning rate in this block."""
    before = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    try:
        yield
    finally:
        for group, value in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = value


def make_capturable(optimizer: Optimizer) -> None:
    """Lets an optimizer keep on the GPU what it counts; to be called before its first step, and after it is loaded."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True


def obstacle(
    network: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    pictures: Tensor,
    answers: Tensor | None,
    labels: Tensor,
    features: Tensor | None = None,
) -> str | None:
    """Returns why a training step can't be captured, as far as it shows without making one; None if nothing does.

    A copy of the network is run forward and backward on tensors without content. So whatever asks for the content of
    one is found, on any machine.

    Args:
        network: The network, in training mode. It isn't changed.
        loss: A function of (student logits, teacher logits or None, labels).
        optimizer: The optimizer.
        pictures: What the network takes.
        answers: The teacher's logits, or None.
        labels: (B,) int64.
        features: The teacher's pooled features, or None. With them, the network has `with_features`, and the loss gets
            `student_features` and `teacher_features`.
    """
    if not _captures(optimizer):
        remedy = ": set optimizer.fused=true" if isinstance(optimizer, torch.optim.SGD) else ""
        return f"torch can't capture this {type(optimizer).__name__}{remedy}"
    try:
        own = copy.deepcopy(network)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = [None if x is None else mode.from_tensor(x) for x in (pictures, answers, labels, features)]
            if features is None:
                value = loss(own(fake[0]), fake[1], fake[2])
            else:
                logits, ours = own.with_features(fake[0])  # type: ignore[operator]
                value = loss(logits, fake[1], fake[2], student_features=ours, teacher_features=fake[3])
            value.backward()
    except DataDependentOutputException as error:
        return f"the network or the loss waits for the GPU ({error.func}, as in .item(), float() or `if`)"
    except DynamicOutputShapeException as error:
        return f"the network or the loss has shapes that depend on the data ({error.func}, as in x[x > 0])"
    except Exception:  # copying and such tensors have limits of their own; the capture will show
        return None
    return None


def _captures(optimizer: Optimizer) -> bool:
    """Returns whether the optimizer keeps nothing on the CPU that decides its step, but for the settings."""
    if type(optimizer) is torch.optim.SGD:  # otherwise it asks for a rate that is a tensor
        return all(group["fused"] for group in optimizer.param_groups)
    return all("capturable" in group for group in optimizer.param_groups)


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Returns what a captured step takes from the optimizer as constants."""
    changing = ("params", "lr", "initial_lr", "max_lr", "min_lr")  # schedules put all but the first two there
    return [{name: value for name, value in group.items() if name not in changing} for group in optimizer.param_groups]
