"""Writes the trained students of runs to folders: weights, network, config.json and model card."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kdsweep.config import build
from kdsweep.exporting import description, network_files, trained_student
from kdsweep.system.errors import RunError

if TYPE_CHECKING:
    from pathlib import Path

    from torch.export import ExportedProgram

    from kdsweep.config.saved_config import SavedConfig
    from kdsweep.exporting.trained_student import Inputs
    from kdsweep.models import Classifier
    from kdsweep.report.model_card import Check
    from kdsweep.tracking.run_records import RunRecord
    from kdsweep.tracking.store import Store


class Exporter:
    """Writes students one after another. Those that differ in their weights alone share their pictures and network.

    Args:
        root: The project folder, which holds the data sets.
        most_pictures: The most test pictures on which a file is compared with its network.
        several: Whether many students will be written, which then share their exported program too.
    """

    def __init__(self, root: Path, most_pictures: int = trained_student.MAX_CHECKED, *, several: bool = False) -> None:
        self._root, self._most, self._several = root, most_pictures, several
        self._key = ""
        self._inputs: Inputs
        self._network: Classifier
        self._program: ExportedProgram | None = None
        self._refused: RunError | None = None

    def write(
        self, store: Store, run: RunRecord, saved: SavedConfig, folder: Path, file_format: str
    ) -> tuple[Inputs, dict[str, Check]]:
        """Writes a run's student to a folder; returns what it takes, and how each file compares with the network.

        Raises:
            UserError: The data set has changed.
            RunError: The stored weights are damaged, or an exported file gives other logits than the network.
        """
        cfg = trained_student.config_below(self._root, saved.config)
        data = saved.record.get("data"), saved.record.get("inputs")
        key = json.dumps([build.key_of(cfg.data), build.key_of(cfg.model), data])
        if key != self._key:
            self._key, self._program, self._refused = "", None, None
            self._inputs = trained_student.inputs(cfg, saved, self._most)
            self._network = trained_student.network(cfg, self._inputs)
            self._key = key
        self._network.net.load_state_dict(trained_student.weights(store, run, folder))
        checks = self._write_network(folder, file_format)
        description.write(folder, store, run, saved, self._network, self._inputs, checks)
        return self._inputs, checks

    def _write_network(self, folder: Path, file_format: str) -> dict[str, Check]:
        if self._refused is not None:  # a converter that can't follow a network can't with other weights either
            raise self._refused
        if self._program is not None and file_format == "pt2":
            return network_files.write_program(self._program, self._network, self._inputs, folder)
        try:
            checks = network_files.write(self._network, self._inputs, folder, file_format)
        except RunError as error:
            self._refused = error
            raise
        if self._several and file_format == "pt2":
            self._program = network_files.program(folder / "model.pt2")
        return checks
