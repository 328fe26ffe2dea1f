"""The teacher's logits and pooled features: from cached passes of a frozen network, or from the network itself."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdsweep.losses import FEATURES, LOGITS
from kdsweep.numerics import compiling
from kdsweep.numerics.compiling import CompileError, compiled_features, worth_compiling
from kdsweep.numerics.gpu_memory import Fetcher, stays
from kdsweep.numerics.half_precision import require_finite
from kdsweep.numerics.hardware import arithmetic, is_out_of_memory
from kdsweep.numerics.rounding_noise import rounding_noise
from kdsweep.system.errors import RunError, UserError, one_line, require
from kdsweep.system.files import hash_text
from kdsweep.system.progress import note
from kdsweep.system.tensor_files import hash_tensors
from kdsweep.table_check import Asked
from kdsweep.tables import Compute, Tables

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from kdsweep.data import Dataset
    from kdsweep.models import Classifier
    from kdsweep.views import Views

MODES = ("table", "online")
SPLITS = ("train", "validation", "test")

# The head on a picture's features may differ from the network's logits by this share of the largest. A second head
# makes them differ by far more.
HEAD_TOLERANCE = 1e-2

# The seed of the rounding errors with which a table is compared; any other does as well.
NOISE_SEED = 0

# The features of passes are kept in this type. They have hundreds of times as many numbers as logits.
FEATURE_TYPE = torch.float16

# What a student hears of a teacher, as losses say that they need it.
Heard = tuple[str, ...]


class Teacher:
    """A frozen network, its logits for every view of the training pictures, and its features of plain pictures.

    A pass shows one view of each training picture. Its logits are computed once, and kept on disk for all runs: the
    rows of a table are the logits of the pictures, in the order of the data set.

    Args:
        network: The teacher, on its device. It is put into evaluation mode, and gets no gradients.
        data: The data set that it is asked about.
        views: The views of the training pictures.
        tables: The folder of the cached passes.
        mode: "table" computes each pass once and keeps it; "online" runs the network for every batch.
        batch_size: The number of pictures in a forward pass when a table is filled.
        precision: fp16, bf16, tf32 or fp32.
        compiled: Whether a compiled network computes the passes; None decides by the length of a pass.
        sources: For a network of the user's own the hashes of its source files, by name.

    Attributes:
        features_key: A hash of everything that the features depend on.
        seconds: The time spent so far on filling and reading tables.
        table_device: From where indices of rows come best: from the computer's memory if a table had to stay there.

    Raises:
        UserError: mode, compiled or batch_size has a wrong value, or the network's logits aren't its head's of its
            features.
    """

    def __init__(
        self,
        network: Classifier,
        data: Dataset,
        views: Views,
        tables: Path,
        mode: str,
        batch_size: int,
        precision: str,
        compiled: bool | None = False,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        require(mode in MODES, f"mode in {MODES}", mode, "mode")
        rule = "compiled is true, false or null"
        require(compiled is None or type(compiled) is bool, rule, compiled, "compiled", "null: by a pass's length.")
        require(type(batch_size) is int and batch_size >= 1, "batch_size >= 1", batch_size, "batch_size")
        self.network = network.eval().requires_grad_(False)
        self.mode = mode
        self._data, self._views, self._precision = data, views, precision
        self._device = self.table_device = network.head.weight.device
        self._batch_size = batch_size
        self._root, self._sources = tables, sources
        self._may_compile = compiled is None
        self._compiled = self._compiles(compiled)
        # The features depend on the backbone alone, so they stay valid when the head changes.
        backbone = network.backbone_hash()
        # Pictures without labels have none of these, so that a teacher is the same with them and without.
        features = {"outputs": "features", "backbone": backbone, "data": data.labelled_fingerprint}
        self._features = self._tables(features)
        self._logits: Tables | None = None
        self._pass_features = self._tables(
            {"outputs": "features of passes", "backbone": backbone, "views": views.policy}
        )
        # The logits of the pass whose features have been computed last, by their first row.
        self._known_logits: dict[tuple[int, int], Tensor] = {}
        self.features_key = self._features.key
        if len(self.missing_features()) == len(SPLITS):  # otherwise it was tried by whoever made the first of them
            self._check_features()
        self.seconds = 0.0

    def answers(self, pass_index: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns a function that gives the teacher's logits for the views of one pass; reads or makes their table.

        Returns:
            (picture indices (B,), their views (B, H, W, 3) uint8) -> logits (B, C) float32.

        Raises:
            TableMismatchError: The table on disk holds other logits than the network computes now.
        """
        if self.mode == "online":
            # clone: a loss may keep the logits for its gradient, and autograd refuses inference tensors.
            return lambda _, pictures: self.ask(pictures).clone()
        found = self._rows(
            self._logits_tables(),
            _pass_name(pass_index),
            len(self._views),
            self._pass(pass_index),
            Asked(
                lambda rows: self._asked(self._view(rows, pass_index)),
                lambda rows: self._head(self._shaken(self._view(rows, pass_index))),
            ),
        )
        looked_up = self._looked_up(found, "teacher's answers to a pass")
        return lambda indices, _: looked_up(indices)

    def answers_features(self, pass_index: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns a function that gives the head's inputs for the views of one pass; reads or makes their table.

        They are rounded to fp16, in the mode "online" too.

        Returns:
            (picture indices (B,), their views (B, H, W, 3) uint8) -> pooled features (B, F) float32.

        Raises:
            TableMismatchError: The table on disk holds other features than the network computes now.
        """
        if self.mode == "online":
            return lambda _, pictures: self._forward(self.network.features, pictures).to(FEATURE_TYPE).float()
        found = self._rows(
            self._pass_features,
            _pass_name(pass_index),
            len(self._views),
            self._features_of_pass(pass_index),
            Asked(
                lambda rows: self._plain(self._view(rows, pass_index)),
                lambda rows: self._shaken(self._view(rows, pass_index)),
            ),
        )
        looked_up = self._looked_up(found, "teacher's features of a pass")
        return lambda indices, _: looked_up(indices).float()

    def _looked_up(self, found: Tensor, what: str) -> Callable[[Tensor], Tensor]:
        """Returns a function that gives the rows of a table; which stays where it is if a GPU has no room."""
        if stays(found, self._device, what):
            self.table_device, fetch = found.device, Fetcher(self._device)
            return lambda indices: fetch(found[indices.to(found.device)])
        table = found.to(self._device)
        return lambda indices: table[indices.to(table.device, non_blocking=True)]

    @property
    def n_features(self) -> int:
        """The number of pooled features."""
        return self.network.head.in_features

    def feature_bytes(self, passes: Collection[int]) -> int:
        """Returns what the features of those of the passes that have no table yet will take on the disk."""
        if self.mode == "online":
            return 0
        missing = [pass_index for pass_index in {*passes} if not self._pass_features.has(_pass_name(pass_index))]
        return len(missing) * len(self._views) * self.n_features * FEATURE_TYPE.itemsize

    def require_room(self, passes: Collection[int]) -> None:
        """Refuses passes whose features don't fit on the disk.

        Raises:
            UserError: They don't fit; the message has both sizes.
        """
        needed, there = self.feature_bytes(passes), self._pass_features.free_bytes()
        if needed > there:
            raise UserError(
                f"`the teacher's features fit on the disk` must hold, but those of {len({*passes})} passes take "
                f"{mebibytes(needed)}, and {mebibytes(there)} are free. Free some, set a smaller n_passes, another "
                "paths.cache, or teacher.mode=online.",
                "n_passes",
            )

    def say_size(self, passes: Collection[int]) -> None:
        """Says what the features that these passes will leave take on the disk, if any are missing."""
        needed, n = self.feature_bytes(passes), len({*passes})
        if needed:
            note(
                f"The loss hears the teacher's pooled features: {n} pass{'es' * (n != 1)} with {self.n_features:,} of "
                f"them for each of {len(self._views):,} pictures, of which {mebibytes(needed)} (fp16) are still to be "
                f"written, and {mebibytes(self._pass_features.free_bytes())} are free."
            )

    def ask(self, pictures: Tensor) -> Tensor:
        """Computes the logits (B, C) of pictures (B, H, W, 3) uint8, which are on the network's device."""
        return self._forward(self.network, pictures)

    def compute_part(self, pass_index: int, stop: Callable[[], bool], heard: Heard = (LOGITS,)) -> bool:
        """Computes a part of a pass that no other process is computing.

        Args:
            pass_index: The pass.
            stop: Called after each batch; if it returns True, the part is given up.
            heard: Which outputs are needed: `LOGITS`, `FEATURES`.

        Returns:
            Whether a part was computed.
        """
        if self.mode == "online":
            return False
        name, n = _pass_name(pass_index), len(self._views)
        if FEATURES in heard and not self._pass_features.has(name):
            return self._pass_features.fill_part(name, n, self._features_of_pass(pass_index), stop)
        return LOGITS in heard and self._logits_tables().fill_part(name, n, self._pass(pass_index), stop)

    def features(self, split: str) -> Tensor:
        """Returns the head's inputs (N, F) float32, on the CPU, for the un-augmented pictures of a split."""
        pictures = getattr(self._data, split).images
        return self._rows(
            self._features,
            split,
            len(pictures),
            lambda rows: self._for_table(pictures[rows].to(self._device)),
            Asked(
                lambda rows: self._plain(pictures[rows].to(self._device)),
                lambda rows: self._shaken(pictures[rows].to(self._device)),
            ),
        )

    def logits(self, split: str) -> Tensor:
        """Returns the logits (N, C) float32 of the un-augmented pictures of a split: "train", "validation", "test"."""
        found, what = self.features(split), f"teacher's features of the {split} pictures"
        if stays(found, self._device, what, so="the head gets them in parts"):
            return torch.cat([self._head(rows.to(self._device)) for rows in found.split(self._batch_size)])
        return self._head(found.to(self._device))

    def head_data(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns what a head is trained with: features (N, F) and labels (N,) to learn from, then those to validate.

        They are on the network's device, or all in the computer's memory if a GPU has no room for training with them.
        """
        features = self.features("train")
        what, so = "teacher's features of the train pictures", "the processor trains the head"
        there = "cpu" if stays(features, self._device, what, copies=2, so=so) else self._device  # it scales a copy
        known = (features, self._data.train.labels, self.features("validation"), self._data.validation.labels)
        first, second, third, fourth = (tensor.to(there) for tensor in known)
        return first, second, third, fourth

    def missing_passes(self, n_passes: int, heard: Heard = (LOGITS,)) -> list[int]:
        """Returns those of the passes 0 .. n_passes - 1 that have no table yet; none if the mode is online.

        Args:
            n_passes: The number of passes.
            heard: Which outputs are needed: `LOGITS`, `FEATURES`.
        """
        if self.mode == "online":
            return []
        # These tables are for the head as it is now. They aren't kept, since the caller may still train the head.
        logits = self._new_logits_tables() if self._logits is None else self._logits
        of_kind = {LOGITS: logits, FEATURES: self._pass_features}
        needed = [of_kind[kind] for kind in heard if kind in of_kind]
        names = {pass_index: _pass_name(pass_index) for pass_index in range(n_passes)}
        return [index for index, name in names.items() if not all(tables.has(name) for tables in needed)]

    def missing_features(self) -> list[str]:
        """Returns the splits whose features have no table yet."""
        return [split for split in SPLITS if not self._features.has(split)]

    def _compiles(self, compiled: bool | None) -> bool:
        """Returns whether passes are compiled: as demanded, or if they are long and nothing speaks against it."""
        wanted = worth_compiling(self.network, self._data.train.images) if compiled is None else compiled
        reason = compiling.fault(self._device.type) if wanted else None
        if reason is None:
            return wanted
        if compiled:
            rule = "torch.compile works on this machine"
            raise UserError(f"`{rule}` must hold, but {reason}. Set it to null or false.", "compiled")
        _note_plain(f"{reason}.")
        return False

    def _check_features(self) -> None:
        """Tries the head on the features of one picture: tables are made in this way, and must hold the logits."""
        picture = self._data.train.images[:1].to(self._device)
        fault = ""
        try:
            logits, found = self.ask(picture), self._head(self._forward(self.network.features, picture))
            largest = float(logits.abs().max())
            # NaN passes here: what made it will say so.
            differs = found.shape != logits.shape or float((found - logits).abs().max()) > HEAD_TOLERANCE * largest
        except Exception as error:
            if is_out_of_memory(error):  # the run itself says which settings take less
                return
            differs, fault = True, f" ({one_line(f'{type(error).__name__}: {error}', whole=False)})"
        if differs:
            raise UserError(
                f"`a teacher's logits are made of its features by its head alone` must hold, but these aren't{fault}: "
                "has it a second head? It can be a student. Choose another teacher.",
                "network",
            )

    def _rows(self, tables: Tables, name: str, n: int, compute: Compute, asked: Asked) -> Tensor:
        start = time.perf_counter()
        table = tables.rows(name, n, compute, asked)
        self.seconds += time.perf_counter() - start
        return table

    def _view(self, rows: Tensor, pass_index: int) -> Tensor:
        return self._views.batch(rows.to(self._views.device), pass_index).to(self._device)

    def _forward(self, function: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
        with arithmetic(self._precision, self._device):
            return function(pictures)

    def _asked(self, pictures: Tensor) -> Tensor:
        """Answers as `ask` does, in fp16 with what tables hold for pictures that overflow it."""
        return self._head(self._plain(pictures)) if self._precision == "fp16" else self.ask(pictures)

    def _plain(self, pictures: Tensor) -> Tensor:
        """Computes features for a table without compiled code."""
        return self._finite(pictures, self._forward(self.network.features, pictures))

    def _for_table(self, pictures: Tensor) -> Tensor:
        return self._finite(pictures, self._passing(pictures))

    def _finite(self, pictures: Tensor, features: Tensor) -> Tensor:
        """Returns features; for pictures whose features overflow fp16 they are computed in tf32.

        Which pictures these are depends on the picture alone, so that a pass is the same whoever computes it, and the
        passes before it stay valid.
        """
        if self._precision != "fp16":
            return features
        over = ~features.isfinite().all(dim=1)  # (B,)
        if not bool(over.any()):
            return features
        _note_overflow()
        with arithmetic("tf32", self._device):
            again = self.network.features(pictures[over])
        kept = features.clone()
        kept[over] = require_finite(again)
        return kept

    def _shaken(self, pictures: Tensor) -> Tensor:
        """Computes features as `network.features` does, with random rounding errors in each layer."""
        with rounding_noise(self.network.net, self._precision, NOISE_SEED, but=self.network.head):
            return self._finite(pictures, self._forward(self.network.features, pictures))

    def _pass(self, pass_index: int) -> Compute:
        """Returns the function of picture indices (B,) that computes the logits of a pass for its table."""

        def logits(rows: Tensor) -> Tensor:
            known = self._known_logits.pop((pass_index, int(rows[0])), None)
            if known is not None and len(known) == len(rows):
                return known
            return self._head(self._for_table(self._view(rows, pass_index)))

        return logits

    def _features_of_pass(self, pass_index: int) -> Compute:
        """Returns the function of picture indices (B,) that computes the features of a pass for its table.

        The logits are made on the way, and kept until they are asked for: a sum of losses may need both.
        """

        def features(rows: Tensor) -> Tensor:
            found = self._for_table(self._view(rows, pass_index))
            if any(known != pass_index for known, _ in self._known_logits):
                self._known_logits.clear()
            self._known_logits[pass_index, int(rows[0])] = self._head(found)
            return _rounded(found)

        return features

    @functools.cached_property
    def _passing(self) -> Compute:
        """The function that computes features for tables; a few of their rows are checked by the plain network.

        It is made when it is first needed, because compiling takes long, and most runs find their passes on disk.
        """

        def plain(pictures: Tensor) -> Tensor:
            return self._forward(self.network.features, pictures)

        def tried(pictures: Tensor) -> Tensor:
            try:
                return compiled(pictures)
            except CompileError as error:
                if not self._may_compile:
                    raise
                _note_plain(str(error))
                self._passing = plain
                return plain(pictures)

        if not self._compiled:
            return plain
        compiled = compiled_features(self.network, self._precision, self._batch_size)
        return tried

    def _head(self, features: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = self.network.head(features)
        return logits

    def _logits_tables(self) -> Tables:
        # They are made when they are first needed, because the head may be trained until then.
        if self._logits is None:
            self._logits = self._new_logits_tables()
        return self._logits

    def _new_logits_tables(self) -> Tables:
        weights = hash_tensors(self.network.net.state_dict())
        return self._tables({"outputs": "logits", "weights": weights, "views": self._views.policy})

    def _tables(self, identity: dict[str, Any]) -> Tables:
        common = {
            "data": self._data.fingerprint,
            "architecture": hash_text(str(self.network.net)),
            "preprocessing": _preprocessing(self.network),
            "precision": self._precision,
            "backend": f"torch {torch.__version__} {self._device.type}{' compiled' if self._compiled else ''}",
        }
        # What a network of the user's own computes isn't told by the names of its layers and its weights.
        own = {} if self._sources is None else {"sources": dict(self._sources)}
        return Tables(self._root, {**common, **own, **identity}, self._batch_size)


@functools.cache
def _note_plain(reason: str) -> None:
    """Says, once in a process, why long passes aren't compiled."""
    note(f"The teacher's passes are computed without torch.compile: {reason}")


@functools.cache
def _note_overflow() -> None:
    """Says, once in a process, that fp16 doesn't hold all of a teacher's answers."""
    note("Teacher: some pictures overflow fp16, so their answers are computed in tf32.")


def mebibytes(n: int) -> str:
    """Returns a number of bytes in words: "1,240 MiB"."""
    return f"{max(n / 2**20, 0.1):,.{0 if n >= 10 * 2**20 else 1}f} MiB"


def _rounded(features: Tensor) -> Tensor:
    """Returns features in the type in which they are kept.

    Raises:
        RunError: One of them is too large for it.
    """
    kept = features.to(FEATURE_TYPE)
    if not bool(kept.isfinite().all()):
        raise RunError(
            f"the teacher's pooled features exceed {torch.finfo(FEATURE_TYPE).max:,.0f}, the largest number of fp16, "
            "in which they are kept. Take a loss on logits, such as loss=kd."
        )
    return kept


def _pass_name(pass_index: int) -> str:
    return f"pass-{pass_index:04d}"


def _preprocessing(network: Classifier) -> dict[str, Any]:
    mean, std = network.mean.flatten().tolist(), network.std.flatten().tolist()
    return {"input_size": network.input_size, "mean": mean, "std": std}
