"""The page that `kdsweep --help` prints: commands, the options of each group, and every key with its meaning.

All of it is read from the configuration's YAML files, comments included. Without other words than --help the page is
there before Hydra would have been imported; options and values on the command line are composed by Hydra.
"""

from __future__ import annotations

import re
import shutil
import string
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

HELP, MULTIRUN = {"--help", "-h"}, {"--multirun", "-m"}
# Words that add folders to the configuration.
SEARCH_PATH = ("hydra.searchpath=", "+hydra.searchpath=", "++hydra.searchpath=")

# The column of the comments behind values, and the least width of a comment on a narrow terminal.
COLUMN, NARROWEST = 34, 40
# YAML breaks longer lines.
LONGEST_LINE = 2**31 - 1

# Keys with their values as YAML writes them ("5e-4"), or with the keys below them.
Keys: TypeAlias = "dict[str, Keys | str]"
Comments: TypeAlias = dict[tuple[str, ...], str]
Pair: TypeAlias = tuple[yaml.ScalarNode, yaml.Node]
# Group -> option.
Choices: TypeAlias = dict[str, str]

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def answers(words: Sequence[str]) -> bool:
    """Returns whether these words ask for the page. With --config-dir and the like, Hydra prints its own."""
    flags = {word for word in words if word.startswith("-")}
    moved = any(word.startswith(SEARCH_PATH) for word in words)
    return not HELP.isdisjoint(flags) and flags <= HELP | MULTIRUN and not moved


def page(folder: Path, words: Sequence[str]) -> str:
    """Returns the page, for a terminal as wide as this process's.

    Args:
        folder: The configuration: config.yaml, and a folder for each group.
        words: The command line.

    Raises:
        HydraException, OmegaConfBaseException: Words beside --help can't be composed.
    """
    main = _File.read(folder, "", "config")
    given = not HELP.issuperset(words)
    keys, chosen = _composed(folder, words) if given else (_merged(folder, main), main.choices)
    parts = {
        "APP_CONFIG_GROUPS": _groups(folder, chosen),
        "CONFIG": "\n".join([*_lines(keys, _comments(folder, main, chosen)), ""]),
    }
    return string.Template(main.template).substitute(parts)


@dataclass(frozen=True)
class _File:
    """A file of the configuration.

    Attributes:
        overall: Whether its keys stand at the top, and not below the name of its group.
        keys: Its keys below those of its package, without `defaults` and Hydra's own part.
        comments: The comments behind keys and values, by the key's path.
        choices: The options that its list of defaults chooses, by group.
        bases: The options of its own group that it builds on, from the same list.
        template: The page's template (`hydra.help.template`); empty if it has none.
    """

    overall: bool
    keys: Keys
    comments: Comments
    choices: Choices
    bases: list[str]
    template: str

    @classmethod
    def read(cls, folder: Path, group: str, option: str) -> _File:
        text = (folder / group / f"{option}.yaml").read_text(encoding="utf-8")
        overall = not group or text.startswith("# @package _global_\n")
        package = () if overall else tuple(group.split("/"))
        whole = yaml.compose(text, Loader=_Loader)
        comments: Comments = {}
        keys = _keys(whole.value, text.splitlines(), package, comments)
        keys = {name: value for name, value in keys.items() if name not in ("defaults", "hydra")}
        for name in reversed(package):
            keys = {name: keys}
        defaults = getattr(_at(whole, "defaults"), "value", [])
        choices = [pair for default in defaults if isinstance(default, yaml.MappingNode) for pair in default.value]
        for choice, chosen in choices:
            comments = _moved(folder, choice.value, chosen.value, package) | comments
        words = [default.value for default in defaults if isinstance(default, yaml.ScalarNode)]
        return cls(
            overall,
            keys,
            comments,
            {group.value: option.value for group, option in choices if option.value != "null"},
            [word for word in words if word != "_self_"],
            getattr(_at(whole, "hydra", "help", "template"), "value", ""),
        )


def _moved(folder: Path, choice: str, option: str, package: tuple[str, ...]) -> Comments:
    """Returns the comments of an option that stands elsewhere, as by `/optimizer@training.optimizer: sgd`."""
    group, _, place = choice.removeprefix("/").partition("@")
    if not place:
        return {}
    own = _File.read(folder, group, option).comments
    return {(*package, *place.split("."), *path[len(group.split("/")) :]): text for path, text in own.items()}


def _at(node: yaml.Node | None, *names: str) -> yaml.Node | None:
    """Returns what stands at a path of keys; None where there is nothing."""
    for name in names:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for key, value in pairs if key.value == name), None)
    return node


def _keys(pairs: list[Pair], lines: list[str], path: tuple[str, ...], comments: Comments) -> Keys:
    """Returns the keys and values of the mapping at `path`, and adds their comments to `comments`."""
    found: Keys = {}
    for key, value in pairs:
        name = key.value
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style
        found[name] = _keys(value.value, lines, (*path, name), comments) if nested else _written(value, lines)
        end = value.end_mark if value.end_mark.line == key.end_mark.line else key.end_mark
        if comment := re.search(r"# ?(.*)", lines[end.line][end.column :]):
            comments[*path, name] = comment[1]
    return found


def _written(node: yaml.Node, lines: list[str]) -> str:
    """Returns a value as the file writes it, in one line; a list becomes one line too."""
    if isinstance(node, yaml.SequenceNode) and not node.flow_style:
        return f"[{', '.join(_written(item, lines) for item in node.value)}]"
    start, end = node.start_mark, node.end_mark
    line: str = lines[start.line]
    return line[start.column : end.column].rstrip()


def _files(folder: Path, group: str, option: str) -> list[_File]:
    """Reads an option's file, after the files that it builds on; returns none for an option that isn't ours."""
    if not (folder / group / f"{option}.yaml").exists():
        return []
    file = _File.read(folder, group, option)
    return [*(below for name in file.bases for below in _files(folder, group, name)), file]


def _all_files(folder: Path, chosen: Choices) -> list[_File]:
    return [file for group, option in chosen.items() for file in _files(folder, group, option)]


def _comments(folder: Path, main: _File, chosen: Choices) -> Comments:
    """Returns the meaning of each key, from the file that introduces it, not from one that only changes its value."""
    comments: Comments = {}
    for file in sorted([main, *_all_files(folder, chosen)], key=lambda file: file.overall and file is not main):
        comments = file.comments | comments
    return comments


def _merged(folder: Path, main: _File) -> Keys:
    """Merges the main file with the options that it chooses; these choose no further options."""
    keys = main.keys
    for file in _all_files(folder, main.choices):
        keys = _merge(keys, file.keys)
    return keys


def _merge(below: Keys, above: Keys) -> Keys:
    merged = dict(below)
    for name, value in above.items():
        before = merged.get(name)
        merged[name] = _merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _composed(folder: Path, words: Sequence[str]) -> tuple[Keys, Choices]:
    """Returns the keys as Hydra composes them, with the sweeper's for a sweep, and the chosen option of each group."""
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    given = [word for word in words if not word.startswith("-")]
    if not MULTIRUN.isdisjoint(words) or any(word.startswith("sweep=") for word in given):
        overrides = OverridesParser.create().parse_overrides(given)
        given = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    with initialize_config_dir(str(folder)):
        config = compose("config", given, return_hydra_config=True)
    content: Any = OmegaConf.to_container(config)
    hydra = content.pop("hydra")
    chosen = {group: option for group, option in hydra["runtime"]["choices"].items() if option is not None}
    keys: Keys = {key: _plain(value) for key, value in content.items()}
    if "sweep" in chosen:
        keys["hydra"] = {"sweeper": _plain(hydra["sweeper"])}
    return keys, chosen


def _plain(value: Any) -> Keys | str:
    """Returns a value as YAML in one line, or a mapping of such values."""
    if isinstance(value, dict) and value:
        return {str(key): _plain(inner) for key, inner in value.items()}
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=LONGEST_LINE, allow_unicode=True)
    return str(text).removesuffix("...\n").strip()


def _groups(folder: Path, chosen: Choices) -> str:
    """Lists each group with its options, a line each."""
    options = {
        group.name: sorted(path.stem for path in group.glob("*.yaml"))
        for group in sorted(folder.iterdir())
        if group.is_dir() and group.name != "hydra"
    }
    width = max(map(len, options))
    lines = []
    for group, names in options.items():
        marked = (f"{name}*" if chosen.get(group) == name else name for name in names)
        lines.append(f"  {group.ljust(width)}  {', '.join(marked)}")
    return "\n".join([*lines, "", "  *: chosen, and so among the keys below", ""])


def _lines(keys: Keys, comments: Comments, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yields the keys as YAML, each with its comment."""
    for name, value in keys.items():
        key = f"{'  ' * len(path)}{name}:"
        line = key if isinstance(value, dict) else f"{key} {value}"
        yield from _commented(line, comments.get((*path, name), ""))
        if isinstance(value, dict):
            yield from _lines(value, comments, (*path, name))


def _commented(line: str, comment: str) -> Iterator[str]:
    """Yields a line with its comment; the rest of a long comment follows below."""
    width = max(NARROWEST, shutil.get_terminal_size((120, 24)).columns - COLUMN - len("  # "))
    rest = textwrap.wrap(comment, width, break_long_words=False, break_on_hyphens=False)
    yield f"{line.ljust(COLUMN)}  # {rest.pop(0)}" if rest and len(line) <= COLUMN else line
    yield from (f"{' ' * COLUMN}  # {more}" for more in rest)
