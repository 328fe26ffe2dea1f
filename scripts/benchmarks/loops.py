"""Training loops of other libraries, each in its own process: `loops.py NAME PICTURES.npz --student ... --teacher ...`.

The process reads from stdin how many steps to make, and writes to stdout the seconds that they took. The loop is its
library's own, and runs epoch after epoch without end. Its data loader stops it between requests.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms as T
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.models import get_model

# The length of CIFAR's training split, so that loading workers are started again rarely, once an epoch.
LENGTH = 50_000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
ALPHA, TAU = 0.5, 4.0


class Pictures(Dataset[tuple[Tensor, int]]):
    """Yields pictures as torchvision's data sets do: each becomes a PIL picture and is then transformed."""

    def __init__(self, path: str) -> None:
        with np.load(path) as stored:
            self._pictures, self._labels = stored["pictures"], stored["labels"].tolist()
        side = self._pictures.shape[1]
        self._transform = T.Compose(
            [T.RandomCrop(side, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)]
        )

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index %= len(self._labels)
        return self._transform(Image.fromarray(self._pictures[index])), self._labels[index]


class Paced:
    """A data loader that yields as many batches as it is asked for, and prints how long the loop took for them.

    Its workers go on between requests, so the first batches of a round are ready. This favours the loop.
    """

    def __init__(self, loader: DataLoader[Any], answers: Any) -> None:
        self._loader, self._answers = loader, answers
        self.dataset = loader.dataset

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        left, start = 0, None
        for batch in self._loader:
            if left == 0:
                if start is not None:
                    self._say(f"{time.perf_counter() - start:.6f}")
                left, start = self._asked(), time.perf_counter()
            left -= 1
            yield batch

    def _asked(self) -> int:
        if not hasattr(self, "_begun"):
            self._begun = True
            self._say("ready")
        line = sys.stdin.readline()
        if not line:  # the benchmark has ended
            sys.stderr.flush()
            os._exit(0)  # the library's loop might catch an exception
        return int(line)

    def _say(self, text: str) -> None:
        print(text, file=self._answers, flush=True)


class Scene:
    """Student, teacher and pictures of a loop, made as its user would: in fp32 and in torch's default layout."""

    def __init__(self, arguments: argparse.Namespace, answers: Any) -> None:
        self._arguments, self._answers = arguments, answers
        self.pictures = Pictures(arguments.pictures)
        self.student = get_model(arguments.student, num_classes=arguments.classes)
        teacher = get_model(arguments.teacher, num_classes=arguments.classes).eval()
        self.teacher: nn.Module = teacher
        if arguments.side is not None:
            self.teacher = nn.Sequential(nn.Upsample(size=arguments.side, mode="bilinear"), teacher).eval()

    @property
    def loading(self) -> dict[str, Any]:
        """The settings of data loaders."""
        return {"batch_size": self._arguments.batch, "num_workers": self._arguments.workers, "drop_last": True}

    def paced(self, loader: DataLoader[Any]) -> Paced:
        """Makes a data loader wait for requests."""
        return Paced(loader, self._answers)

    def loader(self) -> Paced:
        """Makes the plain data loader of a training loop."""
        return self.paced(DataLoader(self.pictures, shuffle=True, **self.loading))


def usual(scene: Scene) -> None:
    """The loop of PyTorch's distillation tutorial, with augmented pictures from workers, and the teacher online."""
    student, teacher = scene.student.train(), scene.teacher
    optimizer = torch.optim.SGD(student.parameters(), **SGD)
    criterion = nn.CrossEntropyLoss()
    loader = scene.loader()
    while True:
        total = 0.0
        for pictures, labels in loader:
            optimizer.zero_grad()
            with torch.no_grad():
                teacher_logits = teacher(pictures)
            logits = student(pictures)
            soft = F.kl_div(
                F.log_softmax(logits / TAU, dim=1), F.softmax(teacher_logits / TAU, dim=1), reduction="batchmean"
            )
            loss = ALPHA * TAU**2 * soft + (1 - ALPHA) * criterion(logits, labels)
            loss.backward()
            optimizer.step()
            total += loss.item()


def torchdistill(scene: Scene) -> None:
    """Torchdistill's distillation box, used as in its example of image classification."""
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    device = torch.device("cpu")
    answers = {f"{who}_module_{what}" for who in ("student", "teacher") for what in ("path", "io")}
    wires = {key: "." if key.endswith("path") else "output" for key in answers}
    kd = {"key": "KDLoss", "kwargs": {**wires, "temperature": TAU, "alpha": 1 - ALPHA, "reduction": "batchmean"}}
    forward = {"forward_proc": "forward_batch_only", "sequential": [], "frozen_modules": []}
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": scene.loading,
        },
        "teacher": {**forward, "requires_grad": False},
        "student": {**forward, "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}},
        },
    }
    box = get_distillation_box(scene.teacher, scene.student, {"train": scene.pictures}, config, device, [], False, 1)
    box.train_data_loader = scene.paced(box.train_data_loader)
    while True:
        box.pre_epoch_process(epoch=0)
        log = MetricLogger(delimiter="  ")
        log.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        log.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
        for pictures, labels, extra in log.log_every(box.train_data_loader, 100, "Epoch: [0]"):
            start = time.time()
            loss = box.forward_process(pictures.to(device), labels.to(device), extra)
            box.post_forward_process(loss=loss)
            log.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            log.meters["img/s"].update(len(pictures) / (time.time() - start))
            if torch.isnan(loss) or torch.isinf(loss):
                raise ValueError(f"the loss is {loss}")


def kd_lib(scene: Scene) -> None:
    """KD_Lib's VanillaKD with its own loop; stubs replace its modules for text and TensorBoard, which aren't needed."""
    for name, members in {
        "KD_Lib.KD.text": ("BERT2LSTM", "get_essentials"),
        "torch.utils.tensorboard": ("SummaryWriter",),
    }.items():
        empty = types.ModuleType(name)
        for member in members:
            setattr(empty, member, None)
        sys.modules[name] = empty
    from KD_Lib.KD import VanillaKD

    optimizer = torch.optim.SGD(scene.student.parameters(), **SGD)
    distiller = VanillaKD(
        scene.teacher, scene.student, scene.loader(), [], None, optimizer, temp=TAU, distil_weight=ALPHA, device="cpu"
    )
    distiller.train_student(epochs=10_000, plot_losses=False, save_model=False)


LOOPS: dict[str, Callable[[Scene], None]] = {"usual": usual, "torchdistill": torchdistill, "KD_Lib": kd_lib}


def main() -> None:
    """Runs the loop that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=LOOPS)
    parser.add_argument("pictures", help="an .npz file with pictures (N, H, W, 3) uint8 and labels (N,)")
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--side", type=int, help="pixels a side that the teacher sees; default: the pictures' own")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    # The libraries' output goes to stderr, because stdout carries the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    LOOPS[arguments.name](Scene(arguments, answers))


if __name__ == "__main__":
    main()
