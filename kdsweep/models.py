"""Teacher and student networks: architectures by name, stems, heads, freezing.

A configuration describes an `Architecture`, and `Architecture.build` makes a `Classifier` of it. A classifier takes
uint8 pictures, and holds the library's own network with the library's own parameter names.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdsweep.numerics.picture_files import MAX_SIDE
from kdsweep.numerics.weight_files import extra_of, head_tensors, load_weights, locate
from kdsweep.system import user_code
from kdsweep.system.errors import SEE_TRACEBACK, UserError, is_number, require
from kdsweep.system.tensor_files import hash_tensors

# In training these return a tuple, and their published weights expect another normalisation inside the network.
AUXILIARY_OUTPUTS = ("googlenet", "inception_v3")

# Memory layouts of weights and pictures.
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}

# What torch says where `view` meets channels_last.
VIEW_FAULT = "view size is not compatible"

# A sum of probabilities in float32 may differ from 1 by this much.
PROBABILITY_TOLERANCE = 1e-5

# The smallest standard deviation that pictures in [0, 1] may be divided by: float32 has to hold the result.
MIN_STD = 1e-6

# The largest absolute mean or standard deviation for pictures in [0, 1].
MAX_MOMENT = 1e6


class Head(nn.Linear):
    """The final layer. It computes in float32 even under autocast.

    With `bypass` set it returns its input, and with `keeps` set it puts its input into `kept`.
    """

    bypass = False
    keeps = False
    kept: Tensor | None = None

    @classmethod
    def of(cls, linear: nn.Linear) -> Head:
        """Returns a head with the parameters of `linear`. No random numbers are drawn."""
        head = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        return head

    def forward(self, features: Tensor) -> Tensor:
        """Returns logits (B, classes) float32 for features (B, F); under `bypass` the features."""
        if self.bypass:
            return features
        if self.keeps:
            self.kept = features
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.weight, self.bias)


class Classifier(nn.Module):
    """A network that takes uint8 pictures (B, H, W, 3), preprocesses them, and returns logits (B, classes) float32.

    Its memory layout is channels_last until `in_format` changes it.

    Args:
        net: The library's module, whose final layer is a `Head`.
        head_name: The name of the head in `net`.
        frozen: Whether all but the head is constant: it then gets no gradients and stays in evaluation mode.
        input_size: The side in pixels to which pictures are resized; None leaves them as they are.
        mean: The normalisation's mean of each colour, for pictures in [0, 1].
        std: The normalisation's standard deviation of each colour, for pictures in [0, 1].
        single_head: Whether no linear layer may come after the head; some libraries' networks have a second one.

    Attributes:
        net: The library's module with its parameter names; `net.state_dict()` fits the library's own class.
        mean: (3,) float32; not in the state dict.
        std: (3,) float32; not in the state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        head_name: str,
        *,
        frozen: bool,
        input_size: int | None,
        mean: Sequence[float],
        std: Sequence[float],
        single_head: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self._single_head = single_head
        self.head_name = head_name
        self.frozen = frozen
        self.input_size = input_size
        self.in_format("channels_last")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)
        if frozen:
            net.requires_grad_(False)
            self.head.requires_grad_(True)
        self.train()

    @property
    def head(self) -> Head:
        """The final layer, which makes logits (B, n_classes) of features (B, F)."""
        return cast("Head", self.net.get_submodule(self.head_name))

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return self.head.out_features

    @property
    def format(self) -> str:
        """The memory layout of weights and pictures: "channels_last" or "contiguous"."""
        return next(name for name, layout in FORMATS.items() if layout is self._format)

    def in_format(self, name: str) -> Classifier:
        """Sets the memory layout of weights and pictures, "channels_last" or "contiguous", and returns itself."""
        self._format = FORMATS[name]
        # By itself `Module.to` fails on weights with five dimensions (Conv3d), which have no such layout.
        self.net._apply(lambda tensor: tensor.to(memory_format=self._format) if tensor.dim() == 4 else tensor)
        return self

    def preprocess(self, pictures: Tensor) -> Tensor:
        """Turns uint8 (B, H, W, 3) into normalised float32 (B, 3, S, S), in the network's memory layout.

        Without a resize the result is bit-equal to that of torchvision's ToTensor and Normalize. The resize is bilinear
        on values in [0, 1], and antialiased if it shrinks the pictures.
        """
        if pictures.dtype != torch.uint8:
            raise TypeError(f"pictures must be uint8, but got {pictures.dtype}")
        x = pictures.to(torch.float32, memory_format=torch.contiguous_format).div_(255)  # (B, H, W, 3)
        size = self.input_size
        if size is not None and x.shape[1:3] != (size, size):
            shrinks = size < max(x.shape[1:3])
            x = F.interpolate(x.permute(0, 3, 1, 2), (size, size), mode="bilinear", antialias=shrinks)
            x = x.permute(0, 2, 3, 1).contiguous()
        # On a CPU, whole rows of W * 3 values are four times as fast as a broadcast over the last dimension.
        width = x.shape[2]
        x.flatten(2).sub_(self.mean.repeat(width)).div_(self.std.repeat(width))
        x = x.permute(0, 3, 1, 2)
        return x if self._format is torch.channels_last else x.contiguous()

    def features(self, pictures: Tensor) -> Tensor:
        """Returns the head's input, float32 (B, F), for uint8 pictures (B, H, W, 3)."""
        head = self.head
        head.bypass = True
        try:
            return cast("Tensor", self.net(self.preprocess(pictures))).float()
        finally:
            head.bypass = False

    def forward(self, pictures: Tensor) -> Tensor:
        """Returns logits, float32 (B, n_classes), for uint8 pictures (B, H, W, 3)."""
        return cast("Tensor", self.net(self.preprocess(pictures)))

    def with_features(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what `forward` returns, and the head's input, float32 (B, F), of which it was made.

        Raises:
            UserError: The head isn't used, or takes something else than one vector for each picture.
        """
        head = self.head
        head.keeps = True
        try:
            logits = self(pictures)
            kept = head.kept
        finally:
            head.keeps, head.kept = False, None
        if kept is None or kept.dim() != 2 or kept.shape[0] != pictures.shape[0]:
            found = "it takes nothing" if kept is None else f"it takes a tensor {tuple(kept.shape)}"
            raise UserError(
                f"`the head takes pooled features, (pictures, features)` must hold, but {found}. Losses on features "
                "need that; take one on logits, such as loss=kd."
            )
        return logits, kept.float()

    def train(self, mode: bool = True) -> Classifier:
        """Sets training mode; a frozen backbone stays in evaluation mode, so its batch-norm statistics are constant."""
        super().train(mode)
        if self.frozen:
            self.net.eval()
            self.head.train(mode)
        return self

    def backbone_hash(self) -> str:
        """Returns the SHA-256 (hex) of all parameters and buffers but the head's."""
        own = head_tensors(self.head_name)
        return hash_tensors({name: tensor for name, tensor in self.net.state_dict().items() if name not in own})

    def check_size(self, height: int, width: int) -> None:
        """Tries one blank picture of this size, in pixels.

        A network that can't take channels_last, such as one that flattens its maps by `view`, gets the layout
        "contiguous".

        Raises:
            UserError: The network can't take it, or returns something other than its logits.
        """
        training = self.training
        used: list[nn.Module] = []
        linear = [module for module in self.net.modules() if isinstance(module, nn.Linear)]
        hooks = [module.register_forward_pre_hook(lambda own, _: used.append(own)) for module in linear]
        self.eval()
        try:
            answer = self._tried(torch.zeros(1, height, width, 3, dtype=torch.uint8, device=self.mean.device))
            self.require_logits(answer, 1)
            _require_no_probabilities(answer)
            rule = "the head is the last linear layer that is used"
            remedy = "Name the one that makes the logits: head=<name of the module>."
            right = used[-1:] == [self.head] if self._single_head else self.head in used
            require(right, rule, self.head_name, "head", remedy)
        except UserError:
            raise
        except (AssertionError, RuntimeError, ValueError) as error:
            message = (
                f"the network must take its input, but got input_size={self.input_size} with pictures of {height} x "
                f"{width} pixels ({user_code.fault(error)}). Set the size that it was made for, such as input_size=224."
            )
            raise UserError(message, "input_size") from error
        except (AttributeError, LookupError, TypeError) as error:
            rule = "the network takes pictures (B, 3, H, W) and nothing else"
            fault = user_code.fault(error)
            raise UserError(f"`{rule}` must hold, but it ended in {fault}. {SEE_TRACEBACK}") from error
        finally:
            for hook in hooks:
                hook.remove()
            self.train(training)

    def _tried(self, pictures: Tensor) -> Tensor:
        """Returns the network's answer, in its layout, or else in "contiguous"."""
        try:
            with torch.inference_mode():
                return cast("Tensor", self(pictures))
        except RuntimeError as error:
            if VIEW_FAULT not in str(error) or self._format is torch.contiguous_format:
                raise
        self.in_format("contiguous")
        return self._tried(pictures)

    def require_logits(self, answer: object, n: int) -> None:
        """Refuses what the network has returned for `n` pictures unless it is their logits (n, n_classes).

        Raises:
            UserError: It is something else, such as a tuple with the outputs of several heads.
        """
        if isinstance(answer, Tensor) and answer.shape == (n, self.n_classes):
            return
        found = f"a tensor {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        mode = "training" if self.training else "evaluation"
        raise UserError(
            f"`the network returns logits, ({n}, {self.n_classes}) for {n} pictures` must hold, but in {mode} it "
            f"returned {found}. Let it return those of one head alone, or choose another."
        )

    def strides_over_one_pixel(self, height: int, width: int) -> bool:
        """Returns whether, for pictures of this size, a map of 1 x 1 enters a strided convolution wider than 1 x 1."""
        sizes: list[torch.Size] = []
        wide = [
            m for m in self.net.modules() if isinstance(m, nn.Conv2d) and m.stride > (1, 1) and m.kernel_size > (1, 1)
        ]
        hooks = [m.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[2:])) for m in wide]
        try:
            self.check_size(height, width)
        finally:
            for hook in hooks:
                hook.remove()
        return (1, 1) in sizes


@dataclass(frozen=True)
class Architecture:
    """A network as the configuration describes it. Wrong values raise `UserError` here, before any data is loaded.

    Attributes:
        library: torchvision | timm.
        name: The library's name for the architecture.
        stem: imagenet (as published) | cifar (a 3x3 convolution of stride 1, no max-pool; for ResNets only).
        weights: None (random, from torch's global generator) | a member of torchvision's weights enum | the path of a
            file (`weight_files.WEIGHT_FILES`) with a state dict, alone or among other things | pkg://<package>/<path
            in the installed package>. `:<name>` after a file chooses one of several networks in it.
        weights_by: name | order (tensors are matched by position if the file's names differ from the network's).
        head: new (a fresh final layer; the file's is dropped) | keep (the file's final layer).
        freeze: none | backbone (all but the head).
        input_size: The side in pixels to which pictures are resized; None leaves them as they are.
        mean: Three numbers for pictures in [0, 1]; None takes the data's.
        std: Three numbers for pictures in [0, 1]; None takes the data's.
    """

    library: str
    name: str
    stem: str
    weights: str | None
    weights_by: str
    head: str
    freeze: str
    input_size: int | None
    mean: Sequence[float] | None
    std: Sequence[float] | None

    def __post_init__(self) -> None:
        _require_choice(self.library, ("torchvision", "timm"), "library")
        _require_choice(self.stem, ("imagenet", "cifar"), "stem")
        _require_choice(self.weights_by, ("name", "order"), "weights_by")
        _require_choice(self.head, ("new", "keep"), "head")
        _require_choice(self.freeze, ("none", "backbone"), "freeze")
        mean, std = checked_preprocessing(self.input_size, self.mean, self.std)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        _require_name(self.name, self.library, extra_of(self.weights))
        if self.weights is None:
            require(self.head == "new", "head = new without weights", self.head, "head")
        else:
            locate(self.weights, self.library, self.name)
        # On the device "meta" a network costs neither memory nor random numbers. RegNets compute with tensors while
        # they are made, and so can't be made there: their mistakes show in `build`.
        with suppress(NotImplementedError), torch.device("meta"):
            self._network(n_classes=2)

    def build(self, n_classes: int, data_mean: Sequence[float], data_std: Sequence[float]) -> Classifier:
        """Builds the network, and loads its weights.

        Args:
            n_classes: The number of outputs.
            data_mean: Three numbers, used if `mean` is None.
            data_std: Three numbers, used if `std` is None.

        Raises:
            UserError: The weights can't be read or don't fit, or the head to keep has another number of classes.
        """
        net, head_name = self._network(n_classes)
        if self.weights is not None:
            load_weights(net, head_name, self.weights, self.library, self.name, by=self.weights_by, head=self.head)
        return Classifier(
            net,
            head_name,
            frozen=self.freeze == "backbone",
            input_size=self.input_size,
            mean=data_mean if self.mean is None else self.mean,
            std=data_std if self.std is None else self.std,
        )

    @property
    def brings_head(self) -> bool:
        """Whether the network's final layer comes trained."""
        return self.head == "keep"

    def _network(self, n_classes: int) -> tuple[nn.Module, str]:
        """Returns the randomly initialised network with its stem and `Head`, and the name of the head in it."""
        if self.library == "timm":
            import timm

            net = timm.create_model(self.name, num_classes=n_classes)
            last = net.get_classifier()
        else:
            from torchvision.models import get_model_builder

            net = get_model_builder(self.name)(num_classes=n_classes)
            last = next((module for module in reversed(list(net.modules())) if isinstance(module, nn.Linear)), None)
        if isinstance(last, tuple | list):
            rule = f"`one head` must hold, but name={self.name!r} has {len(last)}"
            raise UserError(f"{rule}, of which one may be a distillation token's. Choose another.", "name")
        if not isinstance(last, nn.Linear) or last.out_features != n_classes:
            raise UserError(
                f"`the last layer is linear` must hold, but got name={self.name!r}. Choose another.", "name"
            )
        head_name = next(name for name, module in net.named_modules() if module is last)
        replace_head(net, head_name)
        if self.stem == "cifar":
            self._set_cifar_stem(net)
        return net, head_name

    def _set_cifar_stem(self, net: nn.Module) -> None:
        first, pool = getattr(net, "conv1", None), getattr(net, "maxpool", None)
        if not (isinstance(first, nn.Conv2d) and isinstance(pool, nn.MaxPool2d)):
            message = f"`stem = cifar for ResNets only` must hold, but got stem='cifar' with name={self.name!r}."
            raise UserError(message, "stem")
        net.conv1 = nn.Conv2d(3, first.out_channels, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as the ResNets themselves
        net.maxpool = nn.Identity()


def _require_no_probabilities(answer: Tensor) -> None:
    """Refuses what a softmax has made: the losses, and a temperature, expect logits."""
    total = float(answer.float().sum())
    if answer.shape[1] > 1 and float(answer.min()) >= 0 and abs(total - 1) < PROBABILITY_TOLERANCE:
        raise UserError(
            "`the network returns logits` must hold, but for a blank picture it returned numbers >= 0 that sum to 1. "
            "Leave out its softmax: the loss has one."
        )


def checked_preprocessing(
    size: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Refuses wrong settings of how pictures are prepared; returns mean and std as tuples.

    Args:
        size: `input_size`, in pixels.
        mean: Three numbers, or None.
        std: Three numbers > 0, or None.
    """
    whole = isinstance(size, int) and not isinstance(size, bool)
    require(size is None or (whole and size > 0), "input_size is null or a whole number > 0", size, "input_size")
    require(size is None or size <= MAX_SIDE, f"input_size <= {MAX_SIDE}", size, "input_size", "It is in pixels.")
    means, stds = _three_numbers(mean, "mean"), _three_numbers(std, "std")
    require(stds is None or min(stds) >= MIN_STD, "std > 0", stds, "std", f"The least is {MIN_STD}.")
    return means, stds


def replace_head(net: nn.Module, name: str) -> None:
    """Puts a `Head` in the place of a network's linear layer; it has the layer's parameters."""
    parent, _, leaf = name.rpartition(".")
    linear = net.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    setattr(net.get_submodule(parent), leaf, Head.of(linear))


def _require_name(name: str, library: str, extra: str | None) -> None:
    if library == "timm":
        try:
            import timm
        except ImportError as error:
            rule = "`timm is installed` must hold, but got library='timm'"
            raise UserError(f"{rule}. pip install 'kdsweep[{extra or 'timm'}]'", "library") from error
        known = timm.list_models()
    else:
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        rule = "no auxiliary outputs (they are not supported)"
        require(name not in AUXILIARY_OUTPUTS, rule, name, "name", "Choose another network.")
    matches = difflib.get_close_matches(str(name), known, n=3)
    remedy = f"Did you mean {', '.join(matches)}?" if matches else f"See {library}'s list_models()."
    require(name in known, f"name is a classifier of {library}", name, "name", remedy)


def _require_choice(value: str, choices: tuple[str, ...], key: str) -> None:
    require(value in choices, f"{key} in {{{', '.join(choices)}}}", value, key)


def _three_numbers(values: Sequence[float] | None, key: str) -> tuple[float, ...] | None:
    """Returns any sequence of three numbers, such as a configuration's list, as a tuple of floats."""
    if values is None:
        return None
    plain = list(values) if isinstance(values, Sequence) else []
    finite = all(is_number(value) and abs(value) <= MAX_MOMENT for value in plain)
    remedy = f"Finite ones, such as {key}=[0.5,0.5,0.5]."
    require(len(plain) == 3 and finite, f"{key} is null or three numbers", values, key, remedy)
    return tuple(map(float, plain))
