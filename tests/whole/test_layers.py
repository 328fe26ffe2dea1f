"""Claims about who imports whom, read from the source: imports at the top, inside functions, and for types alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest

import kdsweep
from kdsweep.execution import workers

PACKAGE = Path(kdsweep.__file__).parent


def name_of(path: Path) -> str:
    """A module's name inside kdsweep: "train", "tracking.store"; a package's own `__init__` is "tracking.__init__"."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = sorted(name_of(path) for path in PACKAGE.rglob("*.py"))

# A module imports only modules that stand below it.
ORDER = (
    "study.plugin",
    "study.controller",
    "study.stages",
    "commands.reproduce",
    "analysis.environment_diff",
    "config.overrides",
    "execution.executors",
    "execution.ray",
    "execution.workers",
    "execution.worker",
    "execution.serialization",
    "execution.jobs",
    "study.forecast",
    "study.measure_speed",
    "train",
    "config.help_page",
    "config.folder",
    "commands.export",
    "commands.source_run",
    "analysis.deviation",
    "report.model_card",
    "study.search",
    "recording",
    "execution.trial_link",
    "config.checks",
    "config.build",
    "config.rules",
    "commands.report",
    "report.writing",
    "report.console",
    "report.html",
    "report.mlflow_note",
    "report.tables",
    "report.figures.all_figures",
    "analysis.findings",
    "analysis.verdict",
    "analysis.seed_planning",
    "analysis.cost",
    "analysis.landscape",
    "report.figures.search",
    "report.figures.surface",
    "report.figures.arms",
    "report.figures.curves",
    "analysis.plateau",
    "analysis.gaussian_process",
    "analysis.sorted_runs",
    "analysis.study_goals",
    "analysis.statistics",
    "commands.ui",
    "commands.sync",
    "tracking.sending",
    "tracking.copy_runs",
    "system.exit_status",
    "experiment",
    "system.checkpoint",
    "execution.prefetch",
    "training",
    "numerics.logistic",
    "teachers",
    "numerics.compiling",
    "tables",
    "tracking.store",
    "tracking.mlflow_calls",
    "tracking.run_writer",
    "tracking.sender",
    "tracking.journal",
    "tracking.retry",
    "tracking.run_records",
    "tracking.ui_columns",
    "tracking.location",
    "system.sqlite",
    "evaluation",
    "models",
    "numerics.weight_files",
    "data",
    "numerics.picture_files",
    "views",
    "losses",
    "loss_rules",
    "schedules",
    "numerics.small_convolutions",
    "numerics.hardware",
    "system.environment",
    "config.saved_config",
    "system.files",
    "system.masking",
    "system.processes",
    "system.progress",
    "system.interrupts",
    "system.errors",
    "__init__",
)

# Who may import a framework; a plug-in of Hydra counts as Hydra.
CONFIGURATION = {
    *(
        "study.plugin",
        "study.controller",
        "study.stages",
        "config.overrides",
        "study.search",
        "execution.executors",
        "execution.jobs",
        "execution.serialization",
    ),
    *(
        "study.forecast",
        "study.measure_speed",
        "train",
        "config.help_page",
        "recording",
        "config.checks",
        "config.build",
        "config.rules",
        "system.exit_status",
        "execution.trial_link",
        "commands.reproduce",
        "commands.export",
    ),
}
FRAMEWORKS = {
    "hydra": CONFIGURATION,
    "hydra_plugins": {"study.plugin", "study.controller", "study.search"},
    "omegaconf": CONFIGURATION,
    "mlflow": {"tracking.store", "tracking.mlflow_calls"},
    "optuna": {"study.controller", "study.stages", "study.search", "execution.trial_link"},
}


def imported(node: ast.AST) -> Iterator[str]:
    """The full names of what an import statement imports; nothing for other nodes."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "kdsweep imports by full names"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))


def imports(module: str) -> set[str]:
    return {name for node in ast.walk(tree(module)) for name in imported(node)}


def own_imports(module: str) -> set[str]:
    """The modules of kdsweep that a module imports; a name of the package itself counts as `__init__`."""
    return {owner(name) for name in imports(module) if name.partition(".")[0] == "kdsweep"}


def owner(name: str) -> str:
    """The module that a full name belongs to: kdsweep.tracking.store.store.Store to "tracking.store"."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in MODULES and ".".join([*parts, "__init__"]) not in MODULES:
        parts.pop()
    found = ".".join(parts)
    return found if found in MODULES else ".".join([*parts, "__init__"])


def test_every_module_has_its_place() -> None:
    """The order names each module of each package once, and nothing that isn't there."""
    assert sorted(ORDER) == [name for name in MODULES if not name.endswith(".__init__")]


def test_packages_are_empty() -> None:
    """A package's `__init__` imports nothing, so that importing one module doesn't import its neighbours."""
    inits = [path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    assert [path.parent.name for path in inits if path.read_text(encoding="utf-8").strip()] == []


@pytest.mark.slow
def test_what_workers_preload_can_be_imported() -> None:
    """The fork server swallows the ImportError of a misspelt module, and every worker would then import it itself."""
    code = f"import importlib\nfor name in {[*workers.PRELOADED, *commands.PRELOADED]!r}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_downwards(module: str) -> None:
    """No module imports one that stands above it, and so none imports itself through another."""
    below = set(ORDER[ORDER.index(module) + 1 :])
    assert own_imports(module) <= below


@pytest.mark.parametrize("module", ORDER)
def test_frameworks_stay_where_they_belong(module: str) -> None:
    """Configuration ends at the entry points, MLflow in tracking.py and entries.py, Optuna in study.py."""
    packages = {name.partition(".")[0] for name in imports(module)}
    assert [name for name, allowed in FRAMEWORKS.items() if name in packages and module not in allowed] == []


@pytest.mark.parametrize(
    "module",
    sorted(
        {
            "tracking.store",
            "commands.report",
            "analysis.findings",
            "analysis.sorted_runs",
            "commands.ui",
            "system.exit_status",
            "train",
            "study.plugin",
        }
    ),
)
def test_what_every_command_loads_imports_nothing_slow_at_the_top(module: str) -> None:
    """MLflow (five seconds) and torch (four) are imported inside functions, when they are needed."""
    top = {name.partition(".")[0] for node in tree(module).body for name in imported(node)}
    assert not top & {"mlflow", "torch", "torchvision", "optuna", "timm", "sklearn"}


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["--help", "data=digits"], 0),
        (["loss.alhpa=0.3"], 2),
        (["epochs=0"], 2),
        (["loss.alpha=2"], 2),
        (["objective=test/accuracy"], 2),
        (["seed=a"], 2),
    ],
)
def test_help_and_a_wrong_configuration_are_quick(words: list[str], status: int, tmp_path: Path) -> None:
    """A command that runs nothing loads neither torch nor MLflow nor Optuna, nor what draws a progress bar.

    And help alone not even Hydra.
    """
    command = [sys.executable, "-X", "importtime", "-m", "kdsweep.train", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    loaded = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))
    assert done.returncode == status
    assert ("hydra" in loaded) == (words != ["--help"])
    assert not loaded & {"torch", "torchvision", "mlflow", "optuna", "matplotlib", "sklearn", "timm", "numpy", "rich"}
