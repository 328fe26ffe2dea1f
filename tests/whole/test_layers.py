"""Claims about who imports whom, read from the source: imports at the top, inside functions, and for types alone."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import commands
import pytest
from import_graph import MODULES, ORDER, PACKAGE, PAGE, block, imported, imports, own_imports, tree

from kdsweep.execution import workers

# Who may import a framework; a plug-in of Hydra counts as Hydra.
CONFIGURATION = {"train", "recording", "config", "study", "execution", "exporting", "commands", "system.exit_status"}
FRAMEWORKS = {
    "hydra": CONFIGURATION,
    "hydra_plugins": {"study"},
    "omegaconf": CONFIGURATION,
    "mlflow": {"tracking"},
    "optuna": {"study.search", "study.proposals", "execution.trial_link"},
}
# Imported by every command, so that a second is lost with each slow import at their top.
LOADED_BY_ALL = (
    *("train", "study.plugin", "commands.report", "commands.ui", "tracking.store", "system.exit_status"),
    *("analysis.findings", "analysis.sorted_runs"),
)


def test_every_module_has_its_place() -> None:
    """The order names each module of each package once, and nothing that isn't there."""
    assert sorted(ORDER) == [name for name in MODULES if not name.endswith("__init__")]


def test_packages_are_empty() -> None:
    """A package's `__init__` imports nothing, so that importing one module doesn't import its neighbours."""
    inits = [path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    assert [path.parent.name for path in inits if path.read_text(encoding="utf-8").strip()] == []


def test_the_documentation_shows_the_graph_as_it_is() -> None:
    """After a change of imports: python scripts/import_graph.py --write."""
    assert block() in PAGE.read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore")  # whatever other packages say of themselves when they are imported
@pytest.mark.parametrize("name", sorted({*workers.PRELOADED, *commands.PRELOADED}))
def test_what_workers_preload_can_be_imported(name: str) -> None:
    """The fork server swallows the ImportError of a misspelt module, and every worker would then import it itself."""
    importlib.import_module(name)


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_downwards(module: str) -> None:
    """No module imports one that stands above it, and so none imports itself through another."""
    below = {*ORDER[ORDER.index(module) + 1 :], "__init__"}
    assert own_imports(module) <= below


@pytest.mark.parametrize("module", ORDER)
def test_frameworks_stay_where_they_belong(module: str) -> None:
    """Configuration ends at the entry points, MLflow stays in tracking/, and Optuna in three modules."""
    packages = {name.partition(".")[0] for name in imports(module)}
    places = {module, module.partition(".")[0]}
    assert [name for name, allowed in FRAMEWORKS.items() if name in packages and not places & allowed] == []


@pytest.mark.parametrize("module", LOADED_BY_ALL)
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
