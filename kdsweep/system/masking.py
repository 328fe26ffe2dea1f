"""Hides secrets in what is written and shown: passwords, tokens, and the credentials in URIs.

A net, and no promise: a secret that looks like any other word, under a key that doesn't tell, passes through it.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MASK = "***"

# Of a key in lower case. "pass", "key" and "token" within a word mean harmless things ("n_passes", "monkey",
# "tokenizer"), and so count only where they can mean nothing else.
_SECRET_KEY = re.compile(
    r"password|passwd|passphrase|secret|credential|(api|access|account|private|encryption|signing)[_.-]?key"
    r"|token$|(^|[_.-])(pwd|auth|authorization|bearer|cookie|sig)$|amz-signature$"
    r"|(user|db|database|pg|postgres|postgresql|mysql|redis|smtp|proxy|http)_?pass$"
)

# A word of a text, as far as a URI can reach: a quote is its end, unless it stands between letters.
_WORD = re.compile(r"(?:[^\s'\"]|(?<=\w)['\"](?=\w))++")
# What stands before a password. As SQLAlchemy reads it, that goes up to the last "@" and may hold slashes which others
# would quote; but digits up to a slash are a port where the scheme is a web server's, and so is an address in brackets.
# One slash is what a path library leaves of two.
_USER = re.compile(r"\b(?:https?(?=://?[^:/@\s\[]*+:(?!\d*+[/?#]))|(?!https?:)[a-zA-Z][\w+.\-]{0,40}+)://?[^:/@\s]*+:")
# A name alone before the host of a web address is a token as a rule ("https://ghp_...@github.com").
_BARE_USER = re.compile(r"\b(https?://?)[^:/@\s?#]++@")

_SHAPES = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<![\w-])(?:gh[oprsu]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|hf_[a-zA-Z0-9]{20,}|npm_[a-zA-Z0-9]{30,}"
    r"|sk-[\w-]{20,}|xox[abeoprs]-[\w-]{10,}|dapi[0-9a-f]{32}|pypi-[\w-]{50,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
    r"|(?<=[Bb]earer )[\w.~+/=-]{8,}",
    re.DOTALL,
)

# A key, and what parts it from its value; atomic, so that a long word costs one look at it.
_KEY = re.compile(r"(?<![\w.\-])(?P<key>[\w.\-]++)(?P<part>\\?[\"']?[ \t]*[:=][ \t]*)")
_VALUE = re.compile(
    r"\\\"(?:(?!\\\")[^\n])*+(?:\\\")?|\"(?:\\.|[^\"\\\n])*+\"?|'[^'\n]*+'?|\$\{[^\s}]*\}"
    r"|(?:(?:Bearer|Basic|Token)\s+)?(?:[^\s,;&\"'}\])]|[}\])](?=\w)|,(?=\S)(?![\w.]+=))++"
)
_BRACKETS = {"{": "}", "[": "]"}
# How far a value in brackets is followed, in characters.
MAX_NESTED = 4000
# More words than this after a key and a colon are a message, no pass phrase.
MAX_PHRASE = 3

# What stands for no value, or names the place of one.
_HARMLESS = re.compile(r"(null|none|true|false|~|\*\*\*|\?\?\?|\$\{[^,{}]*\}|)", re.IGNORECASE)


def masked(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested copy in which the value of each key that looks like a secret is "***", as is what `masked_text` finds.

    Booleans and None stay; so does a value that only names an environment variable ("${oc.env:TOKEN}"). Keys may be
    flat ("loss.token") or nested; below a key that looks like a secret every value is one.
    """
    return {key: _masked_value(value, is_secret(str(key))) for key, value in config.items()}


def masked_text(text: str) -> str:
    """The text without the credentials in its URIs, the values of secret-like keys, and tokens of well-known shape.

    Keys with their values are found as `key=value`, `key: value` and `"key": "value"`. "postgresql://me:x@host/runs"
    becomes "postgresql://me:***@host/runs".
    """
    if ":/" in text and "@" in text:
        text = _WORD.sub(_without_password, text)
    text = _BARE_USER.sub(rf"\1{MASK}@", text)
    return _SHAPES.sub(MASK, _without_values(text))


def mask_files(folder: Path) -> None:
    """Masks the YAML files that Hydra wrote into a run's output folder or a multirun's (and into its `.hydra`).

    A file that holds nothing to hide is left as it is; the others are replaced as a whole. Several processes may do so
    at once.
    """
    for path in sorted([*folder.glob("*.yaml"), *folder.glob(".hydra/*.yaml")]):
        text = path.read_text(encoding="utf-8")
        shown = _masked_yaml(text)
        if shown != text:
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            temporary.write_text(shown, encoding="utf-8")
            temporary.replace(path)


def is_secret(key: str) -> bool:
    """Whether a key's name says that its value is a secret ("hf_token", "data.password", "AWS_SECRET_ACCESS_KEY")."""
    # "accessToken" is written like "access_token".
    return _SECRET_KEY.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()) is not None


class MaskedFormatter(logging.Formatter):
    """Writes log lines, their stack traces included, as another formatter does, by `masked_text`."""

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return masked_text(self._inner.format(record))


def mask_logs() -> None:
    """Lets every handler of the root logger write through a `MaskedFormatter`; once, however often it is called."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler.formatter, MaskedFormatter):
            handler.setFormatter(MaskedFormatter(handler.formatter))


def _masked_value(value: Any, secret: bool) -> Any:
    if isinstance(value, Mapping):
        return {key: _masked_value(inner, secret or is_secret(str(key))) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked_value(inner, secret) for inner in value]
    if secret:
        return value if _HARMLESS.fullmatch(str(value)) else MASK
    return masked_text(value) if isinstance(value, str) else value


def _masked_yaml(text: str) -> str:
    # Reading YAML takes longer than a short run's first step; most files have no such key and no such text.
    if masked_text(text) == text and not any(is_secret(found["key"]) for found in _KEY.finditer(text)):
        return text
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return masked_text(text)
    clean = _masked_value(content, secret=False)
    return text if clean == content else str(yaml.safe_dump(clean, sort_keys=False, allow_unicode=True))


def _without_password(word: re.Match[str]) -> str:
    """A word with "***" in the place of the password, if it holds a URI with one."""
    text = word[0]
    user, end = _USER.search(text), text.rfind("@")
    return text if user is None or user.end() > end else f"{text[: user.end()]}{MASK}{text[end:]}"


def _without_values(text: str) -> str:
    """The text with "***" for each value whose key looks like a secret."""
    pieces, end = [], 0
    while found := _KEY.search(text, end):
        start = found.end()
        pieces.append(text[end:start])
        end = start
        if is_secret(found["key"]):
            end = _end_of_value(text, found)
            pieces.append(_masked_word(text[start:end]))
    return "".join([*pieces, text[end:]])


def _end_of_value(text: str, found: re.Match[str]) -> int:
    """Where the value that follows a key ends."""
    start = found.end()
    line = text.find("\n", start)
    line = len(text) if line < 0 else line
    if closing := _BRACKETS.get(text[start : start + 1]):
        depth = 0
        for place in range(start, min(len(text), start + MAX_NESTED)):
            depth += (text[place] == text[start]) - (text[place] == closing)
            if depth == 0:
                return place + 1
        return line
    # At the start of a line: in a YAML document a value without quotes goes on to the end of the line; where the text
    # is that line alone, it may as well be a message about the key.
    before = text[text.rfind("\n", 0, found.start()) + 1 : found.start()]
    if found["part"].startswith(":") and text[start : start + 1] not in ("'", '"') and not before.strip(" -"):
        sentence = "\n" not in text.strip("\n") and len(text[start:line].split()) > MAX_PHRASE
        return start if sentence else line
    return _end_of_word(text, start)


def _end_of_word(text: str, start: int) -> int:
    word = _VALUE.match(text, start)
    return start if word is None else word.end()


def _masked_word(word: str) -> str:
    """The mask, in the quotes that the word has."""
    quote = next((mark for mark in ('\\"', '"', "'") if word.startswith(mark)), "")
    inner = word.removeprefix(quote).removesuffix(quote) if quote else word
    return word if _HARMLESS.fullmatch(inner) else f"{quote}{MASK}{quote}"
