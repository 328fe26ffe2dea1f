"""Training loops that yield metrics: gradient descent for a network, L-BFGS for a head on frozen features."""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsweep import gradients
from kdsweep.losses import FEATURES, LOGITS, SHARE, example_for, given_to, needs_of, trained_with
from kdsweep.numerics.compiling import announced, compiled_evaluation, compiled_forward, compiled_loss, explained
from kdsweep.numerics.gpu_memory import Fetcher
from kdsweep.numerics.hardware import (
    arithmetic,
    autocast,
    is_out_of_memory,
    random_state,
    set_random_state,
    tf32,
)
from kdsweep.numerics.logistic import LogisticRegression
from kdsweep.numerics.small_convolutions import small_maps
from kdsweep.numerics.step_graph import StepGraph, make_capturable, note_plain, obstacle
from kdsweep.numerics.taken_apart import Same
from kdsweep.system import user_code
from kdsweep.system.errors import SEE_TRACEBACK, RunError, UserError, is_number, require
from kdsweep.system.progress import progress
from kdsweep.views import Views, batch_order, labelled_in_batch, mixed_order, pass_of_epoch

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from kdsweep.averaged_teachers import AveragedTeacher
    from kdsweep.models import Classifier
    from kdsweep.shuffled_teachers import ShuffledTeacher
    from kdsweep.teachers import Teacher

# Before a head is trained, each feature is divided by its standard deviation. This share of the features' mean variance
# is added to each variance first: a feature that hardly varies in a small training set may vary widely elsewhere.
SCALING_FLOOR = 0.1

MOST_ITERATIONS = 10**6

# What torch says where batch normalisation has a single value to take the mean of.
ONE_VALUE = "Expected more than 1 value per channel"

# What speaks against capturing the kinds of steps that this process has made.
_obstacles: dict[str, str | None] = {}

Metrics = dict[str, float]
# (student logits, teacher logits or None, labels) -> scalar; and by keyword what the loss says that it needs
Loss = Callable[..., Tensor]
Answers = Callable[[Tensor, Tensor], Tensor]  # (picture indices, their views) -> the teacher's logits, or its features
# What a step leaves: its loss, the number of right answers, the student's logits, and the teacher's or None
Step = tuple[Tensor, Tensor, Tensor, Tensor | None]


class DivergedError(RunError):
    """A loss was NaN or infinite."""


class Fit:
    """Trains a network in place while it is iterated over; yields the metrics of each epoch.

    All batches have the same size, so an epoch leaves out the pictures that don't fill the last one. The order of the
    pictures changes from epoch to epoch. A data set that is smaller than a batch is one batch.

    Pictures without labels come after those with labels. Where there are some, each batch has as many with labels as
    `views.labelled_in_batch` says, and an epoch has as many steps as all pictures fill; see `views.mixed_order`.

    The metrics are train/loss (the mean over the epoch), train/accuracy (a fraction of the pictures with labels; for a
    mixed picture, whether the student sees the class that has the largest share), lr (the rate of the next step),
    images_per_second and epoch_seconds; for losses that `gradients.of_the_teacher` can take apart also
    train/teacher_share and train/gradient_ratio, both of the epoch's last batch. Iterating raises a `DivergedError`
    with epoch and step if a loss is not finite.

    Args:
        network: Takes pictures (B, H, W, 3) uint8, and returns logits (B, C).
        views: The training pictures and their views, on the device or in the computer's memory.
        labels: (N,) int64, on the device; -1 for a picture without a label, all of which come last. It may be shorter
            than `views`, whose other pictures are then left out.
        loss: A function of (student logits, teacher logits or None, labels), as in `losses.py`, with its settings. If
            it needs `share`, it gets how far the training is: 0 in the first epoch, and 1 in the last. If it needs
            features, it gets the inputs of both heads, and if it needs projectors, these are trained too.
        teacher: The teacher whose logits the loss gets for each view, or None.
        optimizer: Takes the list of trained parameters, and returns an optimizer.
        schedule: Takes (optimizer, total steps), and returns a learning-rate scheduler, which is stepped once a batch.
        epochs: The number of epochs.
        batch_size: The number of pictures in a batch.
        n_passes: The number of passes over the views. Each epoch uses another one, until all have been used.
        order_seed: Decides the order of the pictures and of the passes, and dropout (by torch's global generators).
        precision: bf16, tf32 or fp32.
        compiled: Whether to compile the network with torch.compile, which changes the last bits of its numbers. On a
            GPU the loss is compiled too, and the whole step is replayed as one CUDA graph.
        init_seed: Decides the projectors of the loss, if it has any, which are trained with the network.
        n_labelled: How many pictures have a label; None: they are counted.

    Attributes:
        epoch: The number of epochs that have ended.
        between_steps: Whether `state` may be called: a step that is under way has changed a part of it.
        last: The metrics of the last epoch that has ended.
    """

    def __init__(
        self,
        network: Classifier,
        views: Views,
        labels: Tensor,
        *,
        loss: Loss,
        teacher: Teacher | AveragedTeacher | ShuffledTeacher | None,
        optimizer: Callable[[list[Tensor]], Optimizer],
        schedule: Callable[[Optimizer, int], LRScheduler],
        epochs: int,
        batch_size: int,
        n_passes: int,
        order_seed: int,
        precision: str,
        compiled: bool = False,
        init_seed: int = 0,
        n_labelled: int | None = None,
    ) -> None:
        torch.manual_seed(order_seed)
        self._heard = heard_by(loss)
        forward: Callable[[Tensor], Any] = network.with_features if FEATURES in self._heard else network
        self._forward = compiled_forward(forward) if compiled else forward
        self._compiled = compiled
        # It replaces single convolutions, and torch.compile wouldn't see through that.
        self._small_maps = nullcontext() if compiled else small_maps(precision, labels.device)
        self._network, self._views, self._labels = network, views, labels
        self._captures = compiled and labels.device.type == "cuda"
        if self._captures:
            self._labels = labels.clone()  # the next training may put its own there
        self._plain_loss, self._teacher = loss, teacher
        # These are the same tensors for the whole training, so that a compiled or captured step sees their new values.
        width = network.head.in_features
        sizes = width, width if teacher is None or FEATURES not in self._heard else teacher.n_features
        self._given = given_to(loss, labels.device, sizes, init_seed)
        self._projectors = trained_with(self._given)
        self._loss = self._compiled_loss() if self._captures else loss
        self._epochs, self._n_passes, self._order_seed, self._precision = epochs, n_passes, order_seed, precision
        self._batch_size = min(batch_size, len(labels))
        self._steps = len(labels) // self._batch_size
        self._n_labelled = int((labels >= 0).sum()) if n_labelled is None else n_labelled
        own = labelled_in_batch(self._n_labelled, len(labels), self._batch_size)
        self._n_answered = self._steps * (own if self._n_labelled < len(labels) else self._batch_size)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._optimizer = optimizer([*trained, *self._projectors.values()])
        if self._captures:
            make_capturable(self._optimizer)
        self._scheduler = schedule(self._optimizer, epochs * self._steps)
        self._step_graph: StepGraph | None = None
        self._gradient: Tensor | None  # what `gradients.of_the_teacher` found in the epoch's last step
        self._fetch = Fetcher(labels.device) if views.device.type != labels.device.type else None
        self.epoch, self.between_steps = 0, True
        self.last: Metrics = {}
        self._begin_epoch()

    def __iter__(self) -> Iterator[Metrics]:
        left = (self._epochs - self.epoch) * self._steps - self._step
        bar = progress(f"epoch {self.epoch + 1}/{self._epochs}", left * self._batch_size, "pictures")
        with self._releasing(), bar as advance:
            while self.epoch < self._epochs:
                self._train_epoch(advance)
                next_epoch = min(self.epoch + 1, self._epochs)
                advance(0, f"epoch {next_epoch}/{self._epochs}, train accuracy {self.last['train/accuracy']:.1%}")
                yield self.last

    @contextmanager
    def _releasing(self) -> Iterator[None]:
        """Lets the next training take the captured step when this one ends, or isn't iterated over any more."""
        try:
            yield
        except (GeneratorExit, DivergedError):
            self._release()
            raise
        except BaseException:
            self._step_graph = None  # whatever has failed, its memory is free
            raise
        self._release()

    def _release(self) -> None:
        if self._step_graph is not None:
            self._step_graph.release()
            self._step_graph = None

    def after(self, n: int) -> Iterator[Metrics]:
        """Yields the metrics of the epochs after the first n.

        Epoch n + 1 may have ended already: a checkpoint can be made between its end and its evaluation.
        """
        if self.epoch > n:
            yield self.last
        yield from self

    def state(self) -> dict[str, Any]:
        """Returns what has been reached, for `load`: nested dictionaries and lists of tensors and plain values."""
        assert self.between_steps
        return {
            "network": self._network.net.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "random": random_state(),
            "epoch": self.epoch,
            "last": self.last,
            "step": self._step,
            "losses": self._losses,
            "correct": self._correct,
            "gradient": self._gradient,
            "seconds": self._seconds,
            "projectors": {name: projector.detach() for name, projector in self._projectors.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state` returned in a training with the same arguments, to the same numbers."""
        self._release()  # a graph knows the tensors that the optimizer had before
        self._network.net.load_state_dict(state["network"])
        with torch.no_grad():
            for name, projector in self._projectors.items():
                projector.copy_(state["projectors"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        for parameter, kept in self._optimizer.state.items():
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    # The fused optimizers want it in the layout of its parameter.
                    kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if self._captures:
            make_capturable(self._optimizer)
        self._scheduler.load_state_dict(state["scheduler"])
        set_random_state(state["random"])
        self.epoch, self.last = state["epoch"], state["last"]
        self._step, self._seconds = state["step"], state["seconds"]
        self._losses, self._correct = (state[name].to(self._labels.device) for name in ("losses", "correct"))
        self._gradient = state["gradient"]

    def _begin_epoch(self) -> None:
        device = self._labels.device
        self._step, self._seconds = 0, 0.0
        self._losses = torch.zeros(self._steps, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._gradient = None

    def _train_epoch(self, advance: Callable[..., None]) -> None:
        """Trains the rest of an epoch, and puts its metrics into `last`."""
        start, earlier = time.perf_counter(), self._seconds
        pass_index = pass_of_epoch(self._order_seed, self.epoch, self._n_passes)
        answers, features_of = self._asked(pass_index)
        # Pictures and tables that stay in the computer's memory are looked up there.
        drawn = self._order()
        order = drawn.to(self._views.device)
        rows = order if self._teacher is None else drawn.to(self._teacher.table_device)
        if SHARE in self._given:
            self._given[SHARE].fill_(self.epoch / max(self._epochs - 1, 1))
        self._network.train()
        while self._step < self._steps:
            batch = slice(self._step * self._batch_size, (self._step + 1) * self._batch_size)
            self.between_steps = False
            with tf32(self._precision, self._labels.device):  # the backward pass too
                self._train_step(order[batch], rows[batch], pass_index, answers, features_of)
            self._step += 1
            self._seconds = earlier + time.perf_counter() - start
            self.between_steps = True
            advance(self._batch_size)
        _refuse_non_finite(self._losses, self.epoch)
        self.between_steps = False
        seconds, pictures = earlier + time.perf_counter() - start, self._steps * self._batch_size
        self.last = {
            "train/loss": float(self._losses.mean()),
            "train/accuracy": float(self._correct) / self._n_answered,
            "lr": float(self._scheduler.get_last_lr()[0]),
            "images_per_second": pictures / seconds,
            "epoch_seconds": seconds,
        }
        if self._gradient is not None:
            share, ratio = self._gradient.tolist()
            self.last |= {"train/teacher_share": share, "train/gradient_ratio": ratio}
        self.epoch += 1
        self._begin_epoch()
        self.between_steps = True

    def _order(self) -> Tensor:
        """Returns the order in which the epoch visits the pictures."""
        n = len(self._labels)
        if self._n_labelled == n:
            return batch_order(self._order_seed, self.epoch, n)
        return mixed_order(self._order_seed, self.epoch, self._n_labelled, n, self._batch_size)

    def _targets(self, indices: Tensor, key: int | Tensor) -> Tensor:
        return self._views.targets(self._labels, indices, key, self._network.n_classes)

    def _compiling(self) -> AbstractContextManager[object]:
        return explained("compiled") if self._compiled else nullcontext()

    def _train_step(
        self,
        indices: Tensor,
        rows: Tensor,
        pass_index: int,
        answers: Answers | None,
        features_of: Answers | None = None,
    ) -> None:
        """Makes a step, and notes its loss and how many answers were right; `rows` are the indices for the tables."""
        key, fetched = self._views.key(pass_index), None
        if self._fetch is not None:
            fetched = self._fetch(self._views.keyed_batch(indices, key))
            indices = indices.to(self._labels.device, non_blocking=True)
        # Each pass has a table of its own, so it is looked up before the step. That needs no pictures.
        looked_up, features = (
            None if found is None or self._asks_teacher else found(rows, rows[:0]) for found in (answers, features_of)
        )
        step = self._replayed if self._captures else self._captured
        loss, correct, logits, guide = step(indices, key, looked_up, fetched, features)
        self._scheduler.step()
        self._losses[self._step] = loss
        self._correct += correct
        if guide is not None and self._step == self._steps - 1:
            targets = self._targets(indices, key)
            self._gradient = gradients.of_the_teacher(self._plain_loss, logits, guide, targets)

    def _computed(
        self,
        indices: Tensor,
        key: int | Tensor,
        answers: Answers | None,
        fetched: Tensor | None,
        features_of: Answers | None = None,
    ) -> Step:
        """Computes a step, and changes network and optimizer.

        On a GPU this is what a CUDA graph replays. So it mustn't ask for the content of a tensor, and it finds all
        that changes from step to step in tensors: the indices, the key of the pass, and the learning rate. `fetched`
        are the pictures where they come from the computer's memory.
        """
        labels = self._targets(indices, key)
        pictures = self._views.keyed_batch(indices, key) if fetched is None else fetched  # (B, H, W, 3)
        with self._compiling(), autocast(self._precision, labels.device), self._small_maps:
            made = self._forward(pictures)
        logits, features = made if FEATURES in self._heard else (made, None)  # (B, C), (B, F)
        guide = None if answers is None else answers(indices, pictures)
        given = self._given
        if features is not None:
            theirs = None if features_of is None else features_of(indices, pictures)
            given = {**given, "student_features": features, "teacher_features": theirs}
        with self._compiling():
            value = self._loss(logits, guide, labels, **given)
        self._optimizer.zero_grad(set_to_none=True)
        with self._compiling():
            value.backward()
        self._optimizer.step()
        return value.detach(), _n_right(logits.detach(), labels), logits.detach(), guide

    def _replayed(
        self, indices: Tensor, key: int, looked_up: Tensor | None, fetched: Tensor | None, features: Tensor | None
    ) -> Step:
        """Does what `_captured` does, from a CUDA graph if one can be captured."""
        if self._step_graph is None:
            pictures = self._views.keyed_batch(indices, key) if fetched is None else fetched
            reason = self._obstacle(pictures, self._targets(indices, key), looked_up, features)
            if reason is not None:
                note_plain(reason)
                self._captures = False
                return self._captured(indices, key, looked_up, fetched, features)
            first = functools.partial(announced, f"{self._network.net} {indices.shape} {self._precision}")
            self._step_graph = StepGraph(self._captured, self._optimizer, self._reads, first)
        return self._step_graph(indices, key, looked_up, fetched, features)

    def _captured(
        self,
        indices: Tensor,
        key: int | Tensor,
        looked_up: Tensor | None,
        fetched: Tensor | None,
        features: Tensor | None,
    ) -> Step:
        """Makes a step with what was looked up in the teacher's tables, if anything; this is what is captured."""
        if self._asks_teacher:
            # A teacher that is asked answers for the pictures that it gets, whatever their pass is.
            answers, features_of = self._asked(0)
            return self._computed(indices, key, answers, fetched, features_of)
        answers, features_of = (None if found is None else _always(found) for found in (looked_up, features))
        return self._computed(indices, key, answers, fetched, features_of)

    def _asked(self, pass_index: int) -> tuple[Answers | None, Answers | None]:
        """Returns the functions that give the teacher's logits and its features for a pass, where they are heard."""
        if self._teacher is None:
            return None, None
        # The features come first, because the teacher makes its logits of them.
        features_of = self._teacher.answers_features(pass_index) if FEATURES in self._heard else None
        return self._teacher.answers(pass_index) if self._heard != (FEATURES,) else None, features_of

    def _reads(self) -> object:
        """Returns what a step reads besides its arguments and the optimizer's state."""
        loss = self._plain_loss
        if self._loss is not loss:  # its settings have become tensors
            loss = functools.partial(loss.func, **self._loss.keywords)  # type: ignore[attr-defined]
        # A teacher that is asked is another object in each run.
        known = (self._teacher if self._asks_teacher else None), torch.are_deterministic_algorithms_enabled()
        return [*known, self._heard, self._precision, Same(self._views), self._network, self._labels, loss, self._given]

    @property
    def _asks_teacher(self) -> bool:
        return self._teacher is not None and self._teacher.mode == "online"

    def _obstacle(
        self, pictures: Tensor, labels: Tensor, looked_up: Tensor | None, features: Tensor | None = None
    ) -> str | None:
        """Returns why the step can't be captured, if that shows; found out once in a process for each kind of step."""
        loss, settings = getattr(self._plain_loss, "func", self._plain_loss), self._optimizer.defaults
        kind = f"{self._network.net} {loss} {self._heard} {type(self._optimizer)} {settings.get('fused')}"
        if kind not in _obstacles:
            zeros = torch.zeros(len(labels), self._network.n_classes, device=labels.device)
            answers = zeros if self._asks_teacher else looked_up
            if self._teacher is not None and self._asks_teacher and FEATURES in self._heard:
                features = torch.zeros(len(labels), self._teacher.n_features, device=labels.device)
            plain = functools.partial(self._plain_loss, **self._given)
            _obstacles[kind] = obstacle(self._network, plain, self._optimizer, pictures, answers, labels, features)
        return _obstacles[kind]

    def _compiled_loss(self) -> Loss:
        guided = self._teacher is not None
        return compiled_loss(self._plain_loss, guided, self._labels.device, example_for(self._plain_loss, 2, guided))


def rehearse(
    network: Classifier,
    views: Views,
    labels: Tensor,
    *,
    loss: Loss,
    guided: bool,
    optimizer: Callable[[list[Tensor]], Optimizer],
    schedule: Callable[[Optimizer, int], LRScheduler],
    precision: str,
) -> None:
    """Tries a copy of a network as `Fit` and `predict` will use it: a step with all given pictures, and an evaluation.

    The network, and the random numbers that are drawn afterwards, are as if this had not happened.

    Args:
        network: As in `Fit`, as are the following.
        views: The pictures of one batch, and their views.
        labels: (N,) int64, on the device of the pictures.
        loss: A function of (student logits, teacher logits or None, labels).
        guided: Whether the loss gets a teacher's logits or features, which are zeros here.
        optimizer: Takes the list of trained parameters, and returns an optimizer.
        schedule: Takes (optimizer, total steps), and returns a learning-rate scheduler.
        precision: bf16, tf32 or fp32.

    Raises:
        UserError: The step or the evaluation fails, or the network returns something other than its logits.
    """
    device, n = labels.device, len(labels)
    try:
        own = copy.deepcopy(network)
    except Exception:  # torch can't copy weights that are computed from others (weight norm)
        return
    own.register_forward_hook(lambda _, pictures, answer: own.require_logits(answer, len(pictures[0])))
    indices = torch.arange(n, device=device)
    answers, features_of = (
        _always(torch.zeros(n, size, device=device)) if guided else None
        for size in (own.n_classes, own.head.in_features)
    )
    settings: dict[str, Any] = {"loss": loss, "optimizer": optimizer, "schedule": schedule, "precision": precision}
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            fit = Fit(own, views, labels, teacher=None, epochs=1, batch_size=n, n_passes=1, order_seed=0, **settings)
            own.train()
            fit._train_step(indices, indices, 0, answers, features_of)
            predict(own, views.batch(indices[:1], 0), 1, precision)
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):  # the run itself says which settings take less
            return
        fault = user_code.fault(error)
        if ONE_VALUE in fault:
            rule = "batch normalisation sees more than one value a channel"
            remedy = "Set batch_size >= 2, or a larger model.input_size."
            raise UserError(f"`{rule}` must hold, but got batch_size={n}. {remedy}", "batch_size") from error
        rule = "a step of training works"
        raise UserError(f"`{rule}` must hold, but on {n} pictures it ended in {fault}. {SEE_TRACEBACK}") from error


def fit_head(
    network: Classifier,
    features: Tensor,
    labels: Tensor,
    validation_features: Tensor,
    validation_labels: Tensor,
    *,
    weight_decays: Sequence[float],
    max_iterations: int,
) -> Iterator[Metrics]:
    """Trains only the head of a network, by L-BFGS on the features that the head takes.

    This is multinomial logistic regression on standardised features. It minimises
    mean cross-entropy + weight_decay / 2 * |weights|^2. The weight decays are tried from strong to weak, each from the
    solution before it, until the validation NLL has risen twice. Then the head with the lowest validation NLL is put
    back, and its metrics are yielded once more. A class without training pictures gets next to no probability.

    Args:
        network: The network; its head's weight and bias are overwritten.
        features: (N, F) float32, the head's inputs for the training pictures.
        labels: (N,) int64.
        validation_features: (M, F) float32, the head's inputs for the validation pictures.
        validation_labels: (M,) int64.
        weight_decays: The penalties to try, >= 0, in any order.
        max_iterations: The limit on L-BFGS's iterations for each weight decay. It usually ends earlier, where the
            objective is within 1e-5 nats of its minimum.

    Yields:
        train/loss (nats, without the penalty) and head/weight_decay, for each weight decay that is tried.

    Raises:
        UserError: No weight decays are given, a value is out of range, or the head has no bias.
        DivergedError: The head's logits are not finite.
    """
    require_head_settings(weight_decays, max_iterations)
    if network.head.bias is None:
        raise UserError(
            "`the head has a bias` must hold where it is trained on its own, but this network's has none. "
            "Choose another teacher.network.name, or bring a trained head: teacher.network.head=keep teacher.head=null."
        )
    mean = features.mean(dim=0)  # (F,)
    # The features of 50,000 pictures are 400 MB, so `scaled` is changed in place from here on.
    scaled = features - mean
    # torch.var takes ten times as long on so many rows.
    variance = torch.stack([rows.square().sum(dim=0) for rows in scaled.split(256)]).sum(dim=0) / len(scaled)
    std = (variance + SCALING_FLOOR * variance.mean()).sqrt()
    validation_scaled = (validation_features - mean).div_(std)
    regression = LogisticRegression(scaled.div_(std), labels, network.n_classes)
    best: tuple[float, Metrics, Tensor, Tensor] | None = None
    risen = 0
    for weight_decay in sorted(weight_decays, reverse=True):
        regression.solve(weight_decay, max_iterations)
        weight, bias = regression.weight, regression.bias  # (C, F), (C,)
        with torch.no_grad():
            # The head takes the features as they are, so its weights include the scaling.
            network.head.weight.copy_(weight / std)
            network.head.bias.copy_(bias - (weight / std) @ mean)
            nll = float(F.cross_entropy(validation_scaled @ weight.T + bias, validation_labels))
            if not math.isfinite(nll):
                raise DivergedError(f"the head's validation NLL was {nll} with weight decay {weight_decay}.")
            metrics = {"train/loss": regression.cross_entropy, "head/weight_decay": weight_decay}
            if best is None or nll < best[0]:
                best = nll, metrics, network.head.weight.clone(), network.head.bias.clone()
        yield metrics
        risen = risen + 1 if nll > best[0] else 0
        if risen == 2:
            break
    if best is not None:
        with torch.no_grad():
            network.head.weight.copy_(best[2])
            network.head.bias.copy_(best[3])
        yield best[1]


def require_head_settings(weight_decays: object, max_iterations: object) -> None:
    """Refuses settings that `fit_head` can't work with.

    Raises:
        UserError: A value is out of range; names it.
    """
    values = list(weight_decays) if isinstance(weight_decays, Sequence) and not isinstance(weight_decays, str) else []
    require(values != [], "at least one weight decay", weight_decays, "weight_decays", "Give a list.")
    fits = all(is_number(value) and 0 <= value < math.inf for value in values)
    require(fits, "weight decays are finite numbers >= 0", weight_decays, "weight_decays")
    fits = type(max_iterations) is int and 1 <= max_iterations <= MOST_ITERATIONS
    rule = f"max_iterations >= 1 and <= {MOST_ITERATIONS}"
    require(fits, rule, max_iterations, "max_iterations", "It is a whole number.")


def predict(network: Classifier, pictures: Tensor, batch_size: int, precision: str, compiled: bool = False) -> Tensor:
    """Computes a network's logits in evaluation mode, without gradients.

    Args:
        network: It is left in evaluation mode.
        pictures: (N, H, W, 3) uint8, on any device.
        batch_size: The number of pictures in a forward pass.
        precision: bf16, tf32 or fp32.
        compiled: Whether a GPU computes them by compiled code.

    Returns:
        Logits (N, C) float32, on the network's device.
    """
    network.eval()
    device = network.head.weight.device
    forward = compiled_evaluation(network, batch_size) if compiled and device.type == "cuda" else network
    with arithmetic(precision, device), small_maps(precision, device):
        return torch.cat([forward(batch.to(device)).float() for batch in pictures.split(batch_size)])


def heard_by(loss: Loss) -> tuple[str, ...]:
    """Returns what a loss hears of a teacher: `LOGITS`, `FEATURES`, both or nothing."""
    needed = needs_of(loss)
    return tuple(output for output in (LOGITS, FEATURES) if output in needed)


def _always(found: Tensor) -> Answers:
    """Returns what answers with the same tensor whatever it is asked."""
    return lambda _, __: found


def _n_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns how many pictures with labels are seen as what they are, mostly are if they are mixed: () int64."""
    found = logits.argmax(dim=1)
    if labels.dim() == 1:
        return (found == labels).sum()
    return ((found == labels.argmax(dim=1)) & (labels.sum(dim=1) > 0)).sum()


def _refuse_non_finite(losses: Tensor, epoch: int) -> None:
    """Raises `DivergedError` for the first loss (of one epoch's steps) that is not finite."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad) > 0:
        step = int(bad[0])
        raise DivergedError(
            f"the loss was {float(losses[step])} in epoch {epoch + 1}, step {step + 1}. "
            "Lower optimizer.lr, or lengthen schedule.warmup."
        )
