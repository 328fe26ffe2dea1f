"""Hides secrets in what is written and shown: passwords, tokens, and the credentials in URIs.

This catches much, but promises nothing: a secret that looks like any other word, under a harmless key, isn't found.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MASK = "***"

# Searched for in a key in lower case. "pass", "key" and "token" also occur in harmless words ("n_passes", "monkey",
# "tokenizer"), so they count only where they can mean nothing else.
_SECRET_KEY = re.compile(
    r"password|passwd|passphrase|secret|credential|(api|access|account|private|encryption|signing)[_.-]?key"
    r"|token$|(^|[_.-])(pwd|auth|authorization|bearer|cookie|sig)$|amz-signature$"
    r"|(user|db|database|pg|postgres|postgresql|mysql|redis|smtp|proxy|http)_?pass$"
)

# A word of a text, which may hold a URI; a quote ends it, unless it stands between letters.
_WORD = re.compile(r"(?:[^\s'\"]|(?<=\w)['\"](?=\w))++")
# The part of a URI before its password. SQLAlchemy reads a password up to the last "@", slashes included. But in a web
# address, digits up to a slash are a port, and a host may be an address in brackets. A scheme may be followed by one
# slash, since path libraries turn two into one.
_USER = re.compile(r"\b(?:https?(?=://?[^:/@\s\[]*+:(?!\d*+[/?#]))|(?!https?:)[a-zA-Z][\w+.\-]{0,40}+)://?[^:/@\s]*+:")
# A name without a password before the host of a web address is usually a token ("https://ghp_...@github.com").
_BARE_USER = re.compile(r"\b(https?://?)[^:/@\s?#]++@")

_SHAPES = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<![\w-])(?:gh[oprsu]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|hf_[a-zA-Z0-9]{20,}|npm_[a-zA-Z0-9]{30,}"
    r"|sk-[\w-]{20,}|xox[abeoprs]-[\w-]{10,}|dapi[0-9a-f]{32}|pypi-[\w-]{50,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
    r"|(?<=[Bb]earer )[\w.~+/=-]{8,}",
    re.DOTALL,
)

# A key, and what separates it from its value. The groups are atomic, so that a long word is looked at once.
_KEY = re.compile(r"(?<![\w.\-])(?P<key>[\w.\-]++)(?P<part>\\?[\"']?[ \t]*[:=][ \t]*)")
_VALUE = re.compile(
    r"\\\"(?:(?!\\\")[^\n])*+(?:\\\")?|\"(?:\\.|[^\"\\\n])*+\"?|'[^'\n]*+'?|\$\{[^\s}]*\}"
    r"|(?:(?:Bearer|Basic|Token)\s+)?(?:[^\s,;&\"'}\])]|[}\])](?=\w)|,(?=\S)(?![\w.]+=))++"
)
_BRACKETS = {"{": "}", "[": "]"}
# The most characters of a value in brackets.
MAX_NESTED = 4000
# After a key and a colon, more words than this are a message and no pass phrase.
MAX_PHRASE = 3

# Values that hide nothing: no value, a mask, or the name of an environment variable.
_HARMLESS = re.compile(r"(null|none|true|false|~|\*\*\*|\?\?\?|\$\{[^,{}]*\}|)", re.IGNORECASE)


def masked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy with "***" for the value of each key that looks like a secret, and for what `masked_text` finds.

    Booleans and None stay; so does a value that only names an environment variable ("${oc.env:TOKEN}"). Keys may be
    flat ("loss.token") or nested. Below a key that looks like a secret every value is masked.
    """
    return {key: _masked_value(value, is_secret(str(key))) for key, value in config.items()}


def masked_text(text: str) -> str:
    """Returns a text without the credentials in its URIs, the values of secret-like keys, and tokens of known shape.

    Keys and values are found as `key=value`, `key: value` and `"key": "value"`. "postgresql://me:x@host/runs" becomes
    "postgresql://me:***@host/runs".
    """
    if ":/" in text and "@" in text:
        text = _WORD.sub(_without_password, text)
    text = _BARE_USER.sub(rf"\1{MASK}@", text)
    return _SHAPES.sub(MASK, _without_values(text))


def mask_files(folder: Path) -> None:
    """Masks the YAML files that Hydra wrote into the output folder of a run or a multirun, and into its `.hydra`.

    A file that holds nothing to hide stays as it is; another is replaced as a whole. Several processes may do so at
    once.
    """
    from kdsweep.system.files import atomic_path  # late: `kdsweep --help` masks no file

    for path in sorted([*folder.glob("*.yaml"), *folder.glob(".hydra/*.yaml")]):
        text = path.read_text(encoding="utf-8")
        clean = _masked_yaml(text)
        if clean != text:
            with atomic_path(path) as temporary:
                temporary.write_text(clean, encoding="utf-8")


def is_secret(key: str) -> bool:
    """Returns whether a key names a secret ("hf_token", "data.password", "AWS_SECRET_ACCESS_KEY")."""
    # "accessToken" is read as "access_token".
    return _SECRET_KEY.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()) is not None


class MaskedFormatter(logging.Formatter):
    """Formats log records as another formatter does, and masks the lines, stack traces included.

    Args:
        inner: The other formatter; None stands for Python's default.
    """

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        """Returns the masked text of a record."""
        return masked_text(self._inner.format(record))


def mask_logs() -> None:
    """Gives every handler of the root logger a `MaskedFormatter`, unless it has one already."""
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
    # Most files hold nothing to mask, and reading YAML takes longer than a short run's first step.
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
    """Returns a word with "***" in place of the password of a URI in it."""
    text = word[0]
    user, end = _USER.search(text), text.rfind("@")
    return text if user is None or user.end() > end else f"{text[: user.end()]}{MASK}{text[end:]}"


def _without_values(text: str) -> str:
    """Returns a text with "***" for each value whose key looks like a secret."""
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
    """Returns the position at which the value that follows a key ends."""
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
    # After a key at the start of a line: in a YAML document, a value without quotes goes on to the end of the line. But
    # if the text is a single line, it may be a message about the key.
    before = text[text.rfind("\n", 0, found.start()) + 1 : found.start()]
    if found["part"].startswith(":") and text[start : start + 1] not in ("'", '"') and not before.strip(" -"):
        sentence = "\n" not in text.strip("\n") and len(text[start:line].split()) > MAX_PHRASE
        return start if sentence else line
    return _end_of_word(text, start)


def _end_of_word(text: str, start: int) -> int:
    word = _VALUE.match(text, start)
    return start if word is None else word.end()


def _masked_word(word: str) -> str:
    """Returns the mask in the word's own quotes; the word itself if it is harmless."""
    quote = next((mark for mark in ('\\"', '"', "'") if word.startswith(mark)), "")
    inner = word.removeprefix(quote).removesuffix(quote) if quote else word
    return word if _HARMLESS.fullmatch(inner) else f"{quote}{MASK}{quote}"
