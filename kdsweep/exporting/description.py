"""What an export says of itself: config.json for programs, README.md (a model card) for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import kdsweep
from kdsweep.system.masking import masked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kdsweep.analysis.sorted_runs import Spread
    from kdsweep.config.saved_config import SavedConfig
    from kdsweep.exporting.trained_student import Inputs
    from kdsweep.models import Classifier
    from kdsweep.report.model_card import Check
    from kdsweep.tracking.run_records import RunRecord
    from kdsweep.tracking.store import Store

# The name of the format of config.json.
KIND = "kdsweep-export 1"

# The tags that tell which setting a confirmation run repeats, beside its arm and stage.
SETTING = ("kdsweep.trial", "kdsweep.contender", "kdsweep.condition")


def write(
    folder: Path,
    store: Store,
    run: RunRecord,
    saved: SavedConfig,
    network: Classifier,
    inputs: Inputs,
    checks: Mapping[str, Check],
) -> None:
    """Writes config.json and the model card."""
    import yaml

    from kdsweep.report import model_card

    architecture = _architecture(masked(saved.config["model"]))
    height, width = inputs.pictures.shape[1:3]
    interface = {
        "kind": KIND,
        "data": inputs.name,
        "architecture": architecture,
        "classes": list(inputs.classes),
        "input": {
            **{"dtype": "uint8", "layout": "NHWC", "channels": "RGB", "range": [0, 255]},
            **{"height": height, "width": width, "resize": network.input_size},
            **{"mean": network.mean.tolist(), "std": network.std.tolist()},
        },
        "output": "logits",
        "weights": run.tags["kdsweep.weights"],
        "run": run.id,
        "kdsweep": kdsweep.__version__,
    }
    card = model_card.Card(
        run=run,
        interface=interface,
        config=yaml.safe_dump(masked(saved.config), sort_keys=False, allow_unicode=True),
        precision=run.params.get("runtime.precision", "unknown precision"),
        parameters=sum(parameter.numel() for parameter in network.net.parameters()),
        checks=checks,
        spread=_spread(store, run),
    )
    (folder / "config.json").write_text(json.dumps(interface, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card.render(card), encoding="utf-8")


def _architecture(model: dict[str, Any]) -> dict[str, Any]:
    """Returns what makes the network: the library's name and stem, or the user's own function with its arguments."""
    from kdsweep.config.build import architecture
    from kdsweep.own_networks import OwnNetwork, classes_argument

    described = architecture("model", json.dumps(model), weights=False)
    if not isinstance(described, OwnNetwork):
        return {key: model[key] for key in ("library", "name", "stem") if key in model}
    return {
        "library": "your own code",
        "name": described.name,
        "function": model["_target_"],
        "arguments": dict(described.arguments),
        "classes_argument": classes_argument(described.function),
    }


def _spread(store: Store, run: RunRecord) -> Spread | None:
    """Returns the test accuracy over the fresh seeds of a confirmation's setting; None for other runs."""
    from kdsweep.analysis.sorted_runs import spread

    if run.stage != "confirmation" or run.parent is None:
        return None

    def repeats(other: RunRecord) -> bool:
        # A study that was extended may have confirmed another trial before, and a contest has several settings.
        own, its = ([r.arm, r.stage, *map(r.tags.get, SETTING)] for r in (run, other))
        return own == its and other.status == "FINISHED"

    return spread(other.metrics.get("test/accuracy") for other in store.children(run.parent) if repeats(other))
