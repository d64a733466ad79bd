"""The block before a Markdown text that says what it is about, as metadata.

What may be text is not taken away: values that read as a sentence, and those of keys that have a blank, stay in the
text as well, where it begins. ("Warning: never mix these", between two rules, is YAML too.) So do values that are too
long for metadata.

Of YAML, what front matters hold: scalars and lists of scalars, one key a line. A value of any other form is kept as it
is written, so that nothing is lost and no parser has to be trusted with it.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from typing import Any

_YAML = re.compile(r"\A---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_TOML = re.compile(r"\A\+\+\+[ \t]*\r?\n(.*?)^\+\+\+[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_LINE_END = re.compile(r"\r\n?|\n")
_KEY = re.compile(r"([A-Za-z_][\w .-]{0,60}?)[ \t]{0,8}:(?:[ \t]+(.*)|)$")
_ITEM = re.compile(r"[ \t]*-[ \t]+(.*)$")
_NUMBER = re.compile(r"[-+]?(?:0|[1-9]\d{0,17})(\.\d{1,15})?$")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}
_MOST_CHARACTERS = 1 << 16
_MOST_CHARACTERS_OF_A_VALUE = 500
_MOST_CHARACTERS_OF_ALL = 4_000
_WORDS_OF_A_SENTENCE = 5
_CHARACTERS_OF_A_SENTENCE = 15


def split_front_matter(text: str) -> tuple[str, int, dict[str, Any]]:
    """Take the front matter off a text.

    Returns:
        The text after it, with what may be text before it, the number of that text's first line, and what the front
        matter said. A text without one, or with a block that only looks like one, comes back whole.
    """
    start = text[:_MOST_CHARACTERS]
    yaml, toml = _YAML.match(start), _TOML.match(start)
    found = yaml or toml
    if found is None:
        return text, 1, {}
    metadata = _read_yaml(found[1]) if yaml else _read_toml(found[1])
    if metadata is None:
        return text, 1, {}
    remarks = (line.lstrip("# \t") for line in _LINE_END.split(found[1]) if line.lstrip().startswith("#"))
    kept, metadata = _keep_text(metadata, [remark.rstrip() for remark in remarks if _is_sentence(remark)])
    # Its lines are not the file's, but no more than these: what follows has its own numbers.
    first_line = 1 + found[0].count("\n") - kept.count("\n")
    return kept + text[found.end() :], first_line, metadata


def _keep_text(metadata: dict[str, Any], lines: list[str]) -> tuple[str, dict[str, Any]]:
    """Return what may be text, after lines that are, a line for each value; and what is metadata within bounds."""
    kept: dict[str, Any] = {}
    length = 0
    for key, value in metadata.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        words = shown.split()
        length += len(key) + len(shown)
        is_short = len(shown) <= _MOST_CHARACTERS_OF_A_VALUE and length <= _MOST_CHARACTERS_OF_ALL
        if is_short:
            kept[key] = value
        sentences = [item for item in (value if isinstance(value, list) else [value]) if _is_sentence(item)]
        if not is_short or sentences or (" " in key and words):
            lines.append(f"{key}: {' '.join(words)}")
    return ("\n".join([*lines, "", ""]) if lines else ""), kept


def _is_sentence(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    # Some scripts have no blanks between words.
    return len(value.split()) >= _WORDS_OF_A_SENTENCE or (
        not value.isascii() and len(value) >= _CHARACTERS_OF_A_SENTENCE
    )


def _read_toml(block: str) -> dict[str, Any] | None:
    try:
        read = tomllib.loads(block.replace("\r\n", "\n"))
    except (tomllib.TOMLDecodeError, RecursionError):
        return None
    return {key: _as_json(value) for key, value in read.items()}


def _read_yaml(block: str) -> dict[str, Any] | None:
    """Read the lines of a block, or return None if they are not those of a front matter."""
    read: dict[str, Any] = {}
    own: list[str] = []  # lines of the value of the last key

    def settle() -> None:
        if own:
            key = next(reversed(read))
            items = [_ITEM.match(line) for line in own]
            whole = all(items) and read[key] is None
            read[key] = (
                [_scalar(item[1]) for item in items if item]
                if whole
                else "\n".join([*([] if read[key] is None else [str(read[key])]), *own])
            )
            own.clear()

    for line in _LINE_END.split(block):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key = _KEY.match(line)
        if key:
            if key[1] in read:  # which YAML forbids
                return None
            settle()
            read[key[1]] = _value((key[2] or "").strip())
        elif read and (line[0] in " \t" or _ITEM.match(line)):
            own.append(line.rstrip())
        else:
            return None
    settle()
    return read or None


def _value(written: str) -> Any:
    if written.startswith("[") and written.endswith("]"):
        items = re.findall(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^,]*),?""", written[1:-1])
        return [_scalar(item.strip()) for item in items if item.strip()]
    return _scalar(written)


def _scalar(written: str) -> Any:
    written = written.strip()
    if written.startswith('"'):
        try:
            return str(json.loads(written))
        except ValueError:
            return written.strip('"')
    if len(written) > 1 and written[0] == written[-1] == "'":
        return written[1:-1].replace("''", "'")
    remark = re.search(r"\s#(.*)", written)
    if remark and not _is_sentence(remark[1]):
        written = written[: remark.start()].strip()
    if written.lower() in _WORDS:
        return _WORDS[written.lower()]
    number = _NUMBER.match(written)
    if number:
        return float(written) if number[1] else int(written)
    return written


def _as_json(value: Any) -> Any:
    """Return what JSON can hold of a value: dates as they are written, and what is nested as its JSON."""
    if _is_plain(value) or (isinstance(value, list) and all(map(_is_plain, value))):
        return value
    return json.dumps(value, default=str) if isinstance(value, (dict, list)) else str(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (str, bool)) or (isinstance(value, int) and -(2**63) <= value < 2**63)
