"""kdsweep: knowledge-distillation experiments whose answer can be trusted.

What `__all__` names can be imported from here, for use as a library. Each name is looked up in its module when it is
first asked for, so that `import kdsweep` takes no time: torch takes seconds, and `kdsweep --help` doesn't need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdsweep.data import Dataset, Split
    from kdsweep.evaluation import evaluate
    from kdsweep.experiment import Result, run
    from kdsweep.losses import ce, kd, kl_divergence, label_smoothing
    from kdsweep.models import Architecture, Classifier
    from kdsweep.own_data import DataFunction, Pictures
    from kdsweep.own_networks import Network, NetworkFunction
    from kdsweep.own_training import LossFunction, OptimizerFunction, ScheduleFunction
    from kdsweep.system.errors import RunError, UserError
    from kdsweep.teachers import Teacher
    from kdsweep.training import Fit, fit_head, predict
    from kdsweep.views import Views

__version__ = "0.1.0"

__all__ = [
    "Architecture",
    "Classifier",
    "DataFunction",
    "Dataset",
    "Fit",
    "LossFunction",
    "Network",
    "NetworkFunction",
    "OptimizerFunction",
    "Pictures",
    "Result",
    "RunError",
    "ScheduleFunction",
    "Split",
    "Teacher",
    "UserError",
    "Views",
    "__version__",
    "ce",
    "evaluate",
    "fit_head",
    "kd",
    "kl_divergence",
    "label_smoothing",
    "predict",
    "run",
]

_NAMES_OF = {
    "data": ("Dataset", "Split"),
    "evaluation": ("evaluate",),
    "experiment": ("Result", "run"),
    "losses": ("ce", "kd", "kl_divergence", "label_smoothing"),
    "models": ("Architecture", "Classifier"),
    "own_data": ("DataFunction", "Pictures"),
    "own_networks": ("Network", "NetworkFunction"),
    "own_training": ("LossFunction", "OptimizerFunction", "ScheduleFunction"),
    "system.errors": ("RunError", "UserError"),
    "teachers": ("Teacher",),
    "training": ("Fit", "fit_head", "predict"),
    "views": ("Views",),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> object:
    """Imports a public name from its module when it is asked for (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
