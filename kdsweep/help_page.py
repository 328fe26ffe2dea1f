"""The page that `kdsweep --help` prints: commands, the options of each group, and every key with what it means.

All of it is read from the configuration's YAML files, comments included. Without other words than --help the page is
there before Hydra would have been imported; options and values on the command line are composed by Hydra.
"""

from __future__ import annotations

import re
import shutil
import string
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml

HELP = {"--help", "-h"}

# Of a comment that stands behind a value, and the least that is left for it on a narrow terminal.
COLUMN, NARROWEST = 34, 40

# Keys and their values as a file has them ("5e-4"); below a key that has keys of its own, those.
Keys: TypeAlias = "dict[str, Keys | str]"
Comments: TypeAlias = dict[tuple[str, ...], str]
Pair: TypeAlias = tuple[yaml.ScalarNode, yaml.Node]

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def answers(words: Sequence[str]) -> bool:
    """Whether these words ask for the page; with Hydra's own flags beside it (--config-dir) they ask for Hydra's."""
    return not HELP.isdisjoint(words) and all(word in HELP or not word.startswith("-") for word in words)


def page(folder: Path, words: Sequence[str]) -> str:
    """The page, for a terminal as wide as this process's.

    Args:
        folder: The configuration: config.yaml, and a folder for each group.
        words: Of the command line.

    Raises:
        HydraException, OmegaConfBaseException: Words beside --help can't be composed.
    """
    main = _File.read(folder, "", "config")
    chosen = main.choices
    given = [word for word in words if word not in HELP]
    keys = None if given else _merged(folder, main)
    if keys is None:
        keys, chosen = _composed(folder, given)
    files = [main, *(file for group, option in chosen.items() for file in _files(folder, group, option))]
    comments = {path: text for file in files for path, text in file.comments.items()}
    parts = {"APP_CONFIG_GROUPS": _groups(folder, chosen), "CONFIG": "\n".join([*_lines(keys, comments), ""])}
    return string.Template(main.template).substitute(parts)


@dataclass(frozen=True)
class _File:
    """A file of the configuration.

    Attributes:
        keys: What it holds, without `defaults` and Hydra's own part; below the keys of its package.
        comments: Those that stand behind a key or a value, by the key's path.
        choices: Of its list of defaults: group -> option, without what is null.
        bases: Of the same list: options of its own group.
        template: Of a page, `hydra.help.template`; empty where it has none.
    """

    keys: Keys
    comments: Comments
    choices: dict[str, str]
    bases: list[str]
    template: str

    @classmethod
    def read(cls, folder: Path, group: str, option: str) -> _File:
        text = (folder / group / f"{option}.yaml").read_text(encoding="utf-8")
        package = () if not group or re.match(r"# @package _global_\n", text) else tuple(group.split("/"))
        whole = yaml.compose(text, Loader=_Loader)
        comments: Comments = {}
        own = [(key, value) for key, value in whole.value if key.value not in ("defaults", "hydra")]
        keys = _keys(own, text.splitlines(), package, comments)
        for name in reversed(package):
            keys = {name: keys}
        defaults = getattr(_at(whole, "defaults"), "value", [])
        choices = [pair for default in defaults if isinstance(default, yaml.MappingNode) for pair in default.value]
        words = [default.value for default in defaults if isinstance(default, yaml.ScalarNode)]
        return cls(
            keys,
            comments,
            {group.value: option.value for group, option in choices if option.value != "null"},
            [word for word in words if word != "_self_"],
            getattr(_at(whole, "hydra", "help", "template"), "value", ""),
        )


def _at(node: yaml.Node | None, *names: str) -> yaml.Node | None:
    """What stands at a key of a mapping, and so on; None where there is nothing."""
    for name in names:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for key, value in pairs if key.value == name), None)
    return node


def _keys(pairs: list[Pair], lines: list[str], path: tuple[str, ...], comments: Comments) -> Keys:
    """The keys and values of a mapping at `path`, as `lines` have them; adds to `comments`."""
    found: Keys = {}
    for key, value in pairs:
        name = key.value
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style
        found[name] = _keys(value.value, lines, (*path, name), comments) if nested else _written(value, lines)
        end = value.end_mark if value.start_mark.line == key.end_mark.line else key.end_mark
        if comment := re.search(r"# ?(.*)", lines[end.line][end.column :]):
            comments[*path, name] = comment[1]
    return found


def _written(node: yaml.Node, lines: list[str]) -> str:
    """A value as it is written, in one line."""
    if isinstance(node, yaml.SequenceNode) and not node.flow_style:
        return f"[{', '.join(_written(item, lines) for item in node.value)}]"
    start, end = node.start_mark, node.end_mark
    return lines[start.line][start.column : end.column].rstrip()


def _files(folder: Path, group: str, option: str) -> list[_File]:
    """An option's file, after those of its group that it builds on; none for an option that has no file of ours."""
    if not (folder / group / f"{option}.yaml").exists():
        return []
    file = _File.read(folder, group, option)
    return [*(below for name in file.bases for below in _files(folder, group, name)), file]


def _merged(folder: Path, main: _File) -> Keys | None:
    """The keys of the main file and of the options that it chooses; None where one of them chooses others."""
    keys = main.keys
    for group, option in main.choices.items():
        files = _files(folder, group, option)
        if len(files) != 1 or files[0].choices:
            return None
        keys = _merge(keys, files[0].keys)
    return keys


def _merge(below: Keys, above: Keys) -> Keys:
    merged = dict(below)
    for name, value in above.items():
        before = merged.get(name)
        merged[name] = _merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _composed(folder: Path, words: Sequence[str]) -> tuple[Keys, dict[str, str]]:
    """The keys as Hydra composes them, and the option of each group."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(folder)):
        config = compose("config", [*words], return_hydra_config=True)
    chosen = {group: option for group, option in config.hydra.runtime.choices.items() if option is not None}
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    text = OmegaConf.to_yaml(own)
    return _keys(yaml.compose(text, Loader=_Loader).value, text.splitlines(), (), {}), chosen


def _groups(folder: Path, chosen: dict[str, str]) -> str:
    """A line for each group with its options."""
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
    """The keys as YAML, each with its comment."""
    for name, value in keys.items():
        key = f"{'  ' * len(path)}{name}:"
        line = key if isinstance(value, dict) else f"{key} {value}"
        yield from _commented(line, comments.get((*path, name), ""))
        if isinstance(value, dict):
            yield from _lines(value, comments, (*path, name))


def _commented(line: str, comment: str) -> Iterator[str]:
    """A line with a comment behind it, and below itself what of the comment there is no room for."""
    width = max(NARROWEST, shutil.get_terminal_size((120, 24)).columns - COLUMN - len("  # "))
    rest = textwrap.wrap(comment, width, break_long_words=False, break_on_hyphens=False)
    yield f"{line.ljust(COLUMN)}  # {rest.pop(0)}" if rest and len(line) <= COLUMN else line
    yield from (f"{' ' * COLUMN}  # {more}" for more in rest)
