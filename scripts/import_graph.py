#!/usr/bin/env python3
"""Who imports whom in kdsweep/: prints the floors of the house and the arrows between them, or writes them down.

    python scripts/import_graph.py            print the graph
    python scripts/import_graph.py --write    put it into docs/architecture.md

tests/whole/test_layers.py holds the order of the floors, and that docs/architecture.md shows the graph as it is.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "kdsweep"
PAGE = ROOT / "docs" / "architecture.md"
START, END = "<!-- import-graph:start -->", "<!-- import-graph:end -->"

# The floors from top to bottom, and the modules of each from top to bottom: a module imports only what stands below it.
FLOORS: Mapping[str, tuple[str, ...]] = {
    "commands": (*("reproduce", "export", "source_run", "report", "ui", "sync", "translate"),),
    "study": (
        *("plugin", "contest_controller", "controller", "contest", "stages"),
        *("asking", "starting", "choosing", "confirming", "two_records"),
        *("fidelity", "forecast", "measure_speed", "search", "proposals"),
    ),
    "train": ("train",),
    "execution": (
        *("grid_sweeper", "grid", "executors", "ray", "workers", "worker", "serialization", "jobs"),
        *("trial_link", "heartbeat", "prefetch"),
    ),
    "recording": ("recording",),
    "exporting": ("student_models", "exporter", "description", "network_files", "trained_student"),
    "report": (
        *(
            "next_commands",
            "watching",
            "writing",
            "console",
            "html",
            "conditions",
            "mlflow_note",
            "tables",
            "model_card",
        ),
        *("figures.all_figures", "charts.across", "charts.search", "charts.arms", "charts.panels"),
        *("figures.across", "figures.search", "figures.surface", "figures.arms", "figures.curves"),
    ),
    "analysis": (
        *(
            "study_numbers",
            "progress_now",
            "findings",
            "transfer",
            "contest_words",
            "contest_stopping",
            "contest_findings",
            "equivalent",
            "seed_planning",
            "teacher_pull",
            "per_class",
            "verdict_words",
            "stopping",
        ),
        "verdict",
        *("chance", "cost", "landscape", "plateau", "choice", "gaussian_process"),
        *(
            "deviation",
            "environment_diff",
            "sorted_runs",
            "study_goals",
            "contest_plan",
            "always_valid",
            "racing",
            "statistics",
        ),
    ),
    "config": (
        "help_page",
        "checks",
        "recorded_teachers",
        "identities",
        "trained_teachers",
        "build",
        "unread",
        "overrides",
        "rules",
        "saved_config",
        "folder",
    ),
    "tracking": (
        *("sending", "copy_runs", "logged_model", "store", "opening", "mlflow_calls", "run_writer", "sender"),
        *("journal", "retry", "run_records", "system_metrics", "ui_columns", "location"),
    ),
    "the experiment": (
        *(
            "experiment",
            "training",
            "shuffled_teachers",
            "averaged_teachers",
            "teachers",
            "tables",
            "table_check",
            "evaluation",
        ),
        *("own_networks", "models", "unlabelled", "data_files", "own_data", "data", "own_training", "own_arguments"),
        *("augmentations", "mixing", "views", "gradients", "losses", "loss_rules", "feature_relations", "schedules"),
    ),
    "numerics": (
        *("logistic", "compiling", "step_graph", "half_precision", "gpu_memory"),
        *("rounding_noise", "small_convolutions", "strided_convolutions", "taken_apart"),
        *("weight_files", "saved_networks", "picture_files", "hardware"),
    ),
    "system": (
        *("exit_status", "checkpoint", "environment", "tensor_files", "masking", "files", "sqlite", "progress"),
        *("interrupts", "fatal_signals", "processes", "user_code", "errors"),
    ),
    "words": ("config.keys", "analysis.metrics"),
}

# Floors that are no package: their modules stand here by their full names. The words are what everybody may know.
AT_THE_TOP = ("train", "recording", "the experiment", "words")

ORDER = tuple(
    module if floor in AT_THE_TOP else f"{floor}.{module}" for floor, modules in FLOORS.items() for module in modules
)
FLOOR_OF = dict(zip(ORDER, (floor for floor, modules in FLOORS.items() for _ in modules), strict=True))


def name_of(path: Path) -> str:
    """A module's name inside kdsweep: "train", "tracking.store"; a package itself is "tracking.__init__"."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = tuple(sorted(name_of(path) for path in PACKAGE.rglob("*.py")))


def tree(module: str) -> ast.Module:
    """The source of a module, parsed."""
    return ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))


def imported(node: ast.AST) -> Iterator[str]:
    """The full names of what an import statement imports; nothing for other nodes."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "kdsweep imports by full names"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(module: str) -> set[str]:
    """Everything that a module imports: at its top, inside functions, and for types alone."""
    return {name for node in ast.walk(tree(module)) for name in imported(node)}


def own_imports(module: str) -> set[str]:
    """The modules of kdsweep that a module imports."""
    return {owner(name) for name in imports(module) if name.partition(".")[0] == "kdsweep"}


def owner(name: str) -> str:
    """The module that a full name belongs to: kdsweep.tracking.store.Store to "tracking.store"."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in MODULES and ".".join([*parts, "__init__"]) not in MODULES:
        parts.pop()
    found = ".".join(parts)
    return found if found in MODULES else ".".join([*parts, "__init__"])


def graph() -> str:
    """The floors as text, from top to bottom, each with its modules and the floors that it imports."""
    lines = []
    for floor, modules in FLOORS.items():
        names = [name for name in ORDER if FLOOR_OF[name] == floor]
        below = {FLOOR_OF[other] for name in names for other in own_imports(name) if other in FLOOR_OF} - {floor}
        arrows = ", ".join(other for other in FLOORS if other in below)
        lines.append(f"{floor.ljust(14)}  {' '.join(sorted(modules))}")
        lines.append(f"{''.ljust(14)}  -> {arrows}" if arrows else f"{''.ljust(14)}  imports nothing of kdsweep")
    return "\n".join(lines)


def block() -> str:
    """What stands in docs/architecture.md, from marker to marker."""
    return f"{START}\n\n```text\n{graph()}\n```\n\n{END}"


def main() -> None:
    """The command."""
    if sys.argv[1:] != ["--write"]:
        print(graph())
        return
    text = PAGE.read_text(encoding="utf-8")
    before, after = text[: text.index(START)], text[text.index(END) + len(END) :]
    PAGE.write_text(before + block() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
