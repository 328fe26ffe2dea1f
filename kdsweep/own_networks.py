"""Networks of the user's own: any function or class that returns an `nn.Module` becomes a `Classifier`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from kdsweep.models import Architecture, Classifier, Head, checked_preprocessing, replace_head
from kdsweep.numerics.weight_files import load_weights, locate
from kdsweep.own_arguments import name_of, parameters, require_arguments
from kdsweep.system.errors import UserError, require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# The names by which a function may ask for the number of classes.
CLASSES = ("num_classes", "n_classes")

# The settings that kdsweep adds to those of the user's function.
SETTINGS = ("head", "weights", "keep_head", "freeze", "input_size", "mean", "std")

# The keys of kdsweep's own networks that no other network has.
OF_ARCHITECTURES = {*Architecture.__dataclass_fields__} - {*SETTINGS}


class Network(Protocol):
    """What a network of the user's own does.

    It is an `nn.Module` whose logits are made by a plain `nn.Linear`, the last one that is used.
    """

    def __call__(self, pictures: Tensor) -> Tensor:
        """Computes the logits of pictures.

        Args:
            pictures: (B, 3, H, W) float32, RGB, normalised by `mean` and `std`; H, W: the data's, or `input_size`.

        Returns:
            Logits (B, C), without softmax. In training mode and in evaluation mode it is this one tensor.
        """


class NetworkFunction(Protocol):
    """What `model._target_` and `teacher.network._target_` name: a function that returns a `Network`, or its class.

    The number of classes is given under the name that the function has for it, `num_classes` or `n_classes`. All other
    arguments come from the configuration. Initial weights are drawn from torch's generator, which is seeded before.
    """

    def __call__(self, **arguments: Any) -> nn.Module:
        """Makes the network, whose last layer is an `nn.Linear` with C outputs."""


@dataclass(frozen=True)
class OwnNetwork:
    """A network of the user's own as the configuration describes it.

    Attributes:
        function: The user's function or class.
        make: Calls it with the configured arguments and those that it is given.
        arguments: The configured arguments.
        head: The name of the module that makes the logits; None takes the last linear layer that has one output for
            each class.
        weights: The path of a state dict, or pkg://<package>/<path>; None leaves those that the function makes.
        keep_head: Whether the file's final layer is taken too.
        freeze: None or "none" | "backbone" (all but the head is constant).
        input_size: The side in pixels to which pictures are resized; None leaves them as they are.
        mean: Three numbers for pictures in [0, 1]; None takes the data's.
        std: Three numbers for pictures in [0, 1]; None takes the data's.
    """

    function: Callable[..., object]
    make: Callable[..., object]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    head: str | None = None
    weights: str | None = None
    keep_head: bool | None = None
    freeze: str | None = None
    input_size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        require(self.head is None or isinstance(self.head, str), "head is null or a module's name", self.head, "head")
        rule = "keep_head is null, true or false"
        require(self.keep_head is None or type(self.keep_head) is bool, rule, self.keep_head, "keep_head")
        rule = "freeze in {null, none, backbone}"
        require(self.freeze in (None, "none", "backbone"), rule, self.freeze, "freeze")
        mean, std = checked_preprocessing(self.input_size, self.mean, self.std)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        if self.weights is None:
            require(not self.keep_head, "keep_head = false without weights", self.keep_head, "keep_head")
        else:
            locate(self.weights, "", self.name)
        asked = classes_argument(self.function)
        given = [] if asked is None else [asked]
        require_arguments(self.function, self.arguments, SETTINGS, given, OF_ARCHITECTURES)

    @property
    def name(self) -> str:
        """The function's name."""
        return name_of(self.function)

    @property
    def brings_head(self) -> bool:
        """Whether the network's final layer may come trained: from the file, or from the function if there is none."""
        return self.weights is None or bool(self.keep_head)

    def build(self, n_classes: int, data_mean: Sequence[float], data_std: Sequence[float]) -> Classifier:
        """Makes the network, and loads its weights.

        Args:
            n_classes: The number of outputs.
            data_mean: Three numbers, used if `mean` is None.
            data_std: Three numbers, used if `std` is None.

        Raises:
            UserError: The function returns no module, there is no such head, or it has another number of outputs.
        """
        asked = classes_argument(self.function)
        given = {asked: n_classes} if asked is not None and asked not in self.arguments else {}
        net = self.make(**given)
        if not isinstance(net, nn.Module):
            raise UserError(f"`{self.name} returns an nn.Module` must hold, but it returned a {type(net).__name__}.")
        head = self._head_of(net, n_classes)
        replace_head(net, head)
        if self.weights is not None:
            load_weights(net, head, self.weights, "", self.name, by="name", head="keep" if self.keep_head else "new")
        return Classifier(
            net,
            head,
            frozen=self.freeze == "backbone",
            input_size=self.input_size,
            mean=data_mean if self.mean is None else self.mean,
            std=data_std if self.std is None else self.std,
            single_head=True,
        )

    def _head_of(self, net: nn.Module, n_classes: int) -> str:
        """Returns the name of the layer that makes the logits, a plain linear layer with `n_classes` outputs."""
        linear = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear) and name}
        outputs = ", ".join(f"{name} has {module.out_features}" for name, module in list(linear.items())[-3:])
        there = f"Of its linear layers {outputs}." if linear else "It has no linear layer inside."
        if self.head is not None:
            require(self.head in linear, f"head is a linear layer of {self.name}", self.head, "head", there)
            name = self.head
            fits = linear[name].out_features == n_classes
        else:
            fitting = [name for name, module in linear.items() if module.out_features == n_classes]
            name, fits = (fitting[-1], True) if fitting else ("", False)
        if not fits:
            argument = next((one for one in CLASSES if one in self.arguments), None)
            remedy = (
                f"Set {argument}={n_classes}."
                if argument is not None
                else f"Let {self.name} take the number of classes ({' or '.join(CLASSES)}), or give it yourself."
            )
            rule = f"the last linear layer has one output for each of the data's {n_classes} classes"
            raise UserError(f"`{rule}` must hold, but in {self.name} it hasn't. {there} {remedy}", argument or "head")
        layer = linear[name]
        # A layer of another class, or one with hooks (weight norm), may compute something else.
        plain = type(layer) in (nn.Linear, Head) and not layer._forward_hooks and not layer._forward_pre_hooks
        if not plain:
            raise UserError(
                f"`the head is a plain nn.Linear` must hold, but {name} of {self.name} is a {type(layer).__name__} or "
                "has hooks. Name another (head), or end the network in a plain one.",
                "head",
            )
        return name


def is_own(function: object) -> bool:
    """Returns whether a `_target_` makes a network itself, in contrast to a description of one with a `build`."""
    return not (isinstance(function, type) and hasattr(function, "build") and not issubclass(function, nn.Module))


def classes_argument(function: Callable[..., object]) -> str | None:
    """Returns the name under which a function takes the number of classes; None if it has none of `CLASSES`."""
    known = parameters(function) or {}
    return next((name for name in CLASSES if name in known), None)
