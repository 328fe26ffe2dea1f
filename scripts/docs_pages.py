"""MkDocs hooks: pages that are made from the project's files whenever the site is built, and never by hand.

reference/commands.md is what each command prints for --help, reference/configuration.md the keys of conf/ with their
comments, and changelog.md, contributing.md and security.md are the files at the top of the repository.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
GROUPS = {
    "data": "Pictures, their splits, and how they may be cropped and mirrored.",
    "augment": "What happens to the training pictures after crop and flip.",
    "model": "The student.",
    "teacher": "The network that the student listens to, and how it is trained.",
    "loss": "What training minimises.",
    "optimizer": "How the weights are changed in each step.",
    "schedule": "The learning rate, step by step.",
    "experiment": "What one run is.",
    "sweep": "A study of many runs.",
    "hydra/sweeper/sampler": "How a study proposes its trials, beside the samplers of hydra-optuna-sweeper.",
    "hydra/sweeper/pruner": "Which trials a study stops early.",
    "hydra/job_logging": "What runs log, and where; Hydra's `default`, `stdout` and `disabled` can be chosen too.",
    "hydra/hydra_logging": "What Hydra logs about itself.",
}
# A link to a file that is no page of the site becomes plain code.
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)#]+)(#[^)]*)?\)")
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    made = {"reference/commands.md": commands(), "reference/configuration.md": configuration()}
    made |= {page: at_the_top(ROOT / name) for name, page in PAGES.items()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def at_the_top(path: Path) -> str:
    """A file of the repository's top as a page of the site, whose links lead to other pages."""

    def link(found: re.Match[str]) -> str:
        words, target, anchor = found[1], found[2], found[3] or ""
        if target in PAGES:
            return f"[{words}]({PAGES[target]}{anchor})"
        if target.startswith("docs/"):
            return f"[{words}]({target.removeprefix('docs/')}{anchor})"
        return words if words.startswith("`") else f"`{words}`"

    return LINK.sub(link, path.read_text(encoding="utf-8"))


def commands() -> str:
    """What each command prints for --help."""
    lines = [
        "# Commands\n",
        "Each command prints this for `--help`. [Exit statuses and environment variables](environment.md) are the "
        "same for all of them.\n",
    ]
    points = distribution("kdsweep").entry_points.select(group="console_scripts")
    for name in sorted(point.name for point in points):
        done = subprocess.run(
            [str(Path(sys.executable).parent / name), "--help"],
            env={**os.environ, "COLUMNS": "96"},
            check=True,
            capture_output=True,
            text=True,
        )
        text = done.stdout
        if name == "kdsweep":  # The rest is the page on the configuration.
            text = text.partition("Configuration (key=value):")[0]
        lines.append(f"## {name}\n\n```text\n{text.strip()}\n```\n")
        if name == "kdsweep":
            lines.append("Below that, the command shows the keys: [Configuration](configuration.md).\n")
    return "\n".join(lines)


def configuration() -> str:
    """Every key of every option with its comment, from the YAML files."""
    parts = [
        "# Configuration\n",
        "Every key can be set on the command line (`kdsweep epochs=10 loss.alpha=0.7`), and the option of every group "
        "can be exchanged (`kdsweep data=digits`). `kdsweep --help` prints the same, for the options that stand "
        "beside it; `kdsweep --cfg job` prints what a command would run. This page is made from the files in `conf/`, "
        "whose comments it shows.\n",
        "```\nkdsweep data=digits teacher=efficientnet_lite0 loss.alpha=0.7 loss.tau=4 optimizer.lr=0.05 epochs=10 "
        "model.stem=imagenet\nkdsweep sweep=alpha_tau data=digits --help      # the keys of these options\n```\n",
        "## Top level\n",
        option(CONF / "config.yaml"),
    ]
    for group, meaning in GROUPS.items():
        parts.append(f"## {group}\n\n{meaning}\n")
        paths = sorted((CONF / group).glob("*.yaml"))
        parts += [f"### {group}={path.stem}\n\n{option(path)}" for path in paths]
    missing = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")} - {*GROUPS, "."}
    if missing:
        raise ValueError(f"scripts/docs_pages.py doesn't say what these groups are: {sorted(missing)}")
    return "\n".join(parts)


def option(path: Path) -> str:
    """One file: its comment at the top, and a table of its keys."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    head = [line.removeprefix("#").strip() for line in lines[: next_key(lines)] if not line.startswith("# @package")]
    command, _, rest = head[0].partition(":") if head[0].startswith("kdsweep") else ("", "", head[0])
    said = " ".join(filter(None, (rest.strip(), *head[1:])))
    said = html.escape(said[:1].upper() + said[1:], quote=False)
    table = list(rows(yaml.compose(text), lines))
    body = "\n".join(["| key | value | meaning |", "|---|---|---|", *table]) + "\n" if table else ""
    return "\n".join(filter(None, (f"`{command}`\n" if command else "", f"{said}\n" if said else "", body)))


def next_key(lines: list[str]) -> int:
    """The number of lines before the first key."""
    return next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))


def rows(node: yaml.Node | None, lines: list[str], path: str = "") -> Iterator[str]:
    """A row of the table for each key below a mapping; Hydra's own part of the main file is left out."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        name = f"{path}.{key.value}".strip(".")
        if name == "defaults" or name in ("hydra.run", "hydra.job_logging", "hydra.hydra_logging", "hydra.help"):
            continue
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style
        same_line = value.end_mark.line == key.end_mark.line
        end = value.end_mark if same_line else key.end_mark
        comment = re.search(r"# ?(.*)", lines[end.line][end.column :])
        shown = "" if nested else lines[end.line][value.start_mark.column : end.column] if same_line else "..."
        meaning = comment[1] if comment else ""
        if shown or meaning:
            cells = (f"`{name}`", f"`{shown}`" if shown else "", html.escape(meaning, quote=False))
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        yield from rows(value, lines, name) if nested else ()
