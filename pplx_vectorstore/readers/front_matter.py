"""The block before a Markdown text that says what it is about, as metadata.

What may be text is not taken away: values that read as a sentence, and those of keys that have a blank, stay in the
text as well, where it begins. ("Warning: never mix these", between two rules, is YAML too.) So do values that are too
long for metadata.

Of YAML, what front matters hold: scalars, lists of scalars, and maps of these within one another, one key a line or
between braces. A value of any other form is kept as it is written, so that nothing is lost and no parser has to be
trusted with it.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
import tomllib
from typing import Any

_YAML = re.compile(r"\A---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_TOML = re.compile(r"\A\+\+\+[ \t]*\r?\n(.*?)^\+\+\+[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_LINE_END = re.compile(r"\r\n?|\n")
_KEY = re.compile(r"([A-Za-z_][\w .-]{0,60}?)[ \t]{0,8}:(?:[ \t]+(.*)|)$")
_ITEM = re.compile(r"[ \t]*-[ \t]+(.*)$")
# Of a map between braces that holds no other, what stands between commas.
_ENTRY = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^,"'{}\[\]])+""")
_NUMBER = re.compile(r"[-+]?(?:0|[1-9]\d{0,17})(\.\d{1,15})?$")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}
_MOST_CHARACTERS = 1 << 16
_MOST_CHARACTERS_OF_A_VALUE = 500
_MOST_CHARACTERS_OF_ALL = 4_000
_WORDS_OF_A_SENTENCE = 5
_CHARACTERS_OF_A_SENTENCE = 15
_MOST_LEVELS = 8


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
        shown = _shown(value)
        words = shown.split()
        length += len(key) + len(shown)
        is_short = len(shown) <= _MOST_CHARACTERS_OF_A_VALUE and length <= _MOST_CHARACTERS_OF_ALL
        if is_short:
            kept[key] = value
        if not is_short or _may_be_text(value) or (" " in key and words):
            lines.append(f"{key}: {' '.join(words)}")
    return ("\n".join([*lines, "", ""]) if lines else ""), kept


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(one)}" for key, one in value.items())
    return ", ".join(map(_shown, value)) if isinstance(value, list) else str(value)


def _may_be_text(value: Any) -> bool:
    if isinstance(value, dict):
        return any(" " in key or _may_be_text(one) for key, one in value.items())
    return any(map(_may_be_text, value)) if isinstance(value, list) else _is_sentence(value)


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
        return {key: _as_json(value) for key, value in read.items()}
    except (tomllib.TOMLDecodeError, RecursionError):
        return None


def _read_yaml(block: str, level: int = 1) -> dict[str, Any] | None:
    """Read the lines of a block, or return None if they are not those of a front matter, or of a map within one."""
    read: dict[str, Any] = {}
    own: list[str] = []  # lines of the value of the last key

    def settle() -> None:
        if own:
            key = next(reversed(read))
            items = [_ITEM.match(line) for line in own]
            if read[key] is None and all(items):
                read[key] = [_scalar(item[1]) for item in items if item]
            elif read[key] is None and level < _MOST_LEVELS and (within := _read_yaml(_dedent(own), level + 1)):
                read[key] = within
            else:
                read[key] = "\n".join([*([] if read[key] is None else [str(read[key])]), *own])
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


def _dedent(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines))


def _value(written: str) -> Any:
    if written.startswith("{") and written.endswith("}"):
        return _flow_map(written[1:-1].strip()) or _scalar(written)
    if written.startswith("[") and written.endswith("]"):
        items = re.findall(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^,]*),?""", written[1:-1])
        return [_scalar(item.strip()) for item in items if item.strip()]
    return _scalar(written)


def _flow_map(written: str) -> dict[str, Any] | None:
    """Read what stands between braces, or return None if that is no map of scalars."""
    entries = _ENTRY.findall(written)
    keys = [_KEY.match(entry.strip()) for entry in entries]
    read = {key[1]: _scalar(key[2] or "") for key in keys if key}
    return read if len(read) == len(keys) and ",".join(entries) == written else None


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


def _as_json(value: Any, level: int = 1) -> Any:
    """Return what JSON can hold of a value: dates as they are written, and what is nested too deeply as its JSON."""
    if isinstance(value, (dict, list)) and level == _MOST_LEVELS:
        return json.dumps(value, default=str)
    if isinstance(value, dict):
        return {key: _as_json(one, level + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [_as_json(one, level + 1) for one in value]
    return value if _is_plain(value) else str(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (str, bool)) or (isinstance(value, int) and -(2**63) <= value < 2**63)
