"""What is given after ``--filter`` → a filter as a dict."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pplx_vectorstore.errors import InvalidInputError

_COMPARISON = re.compile(r'((?:"[^"]*"|[^"=<>!])+)(>=|<=|!=|=|>|<)(.*)', re.DOTALL)
_KEY = re.compile(r'"([^"]*)"|([^."]+)')
_BOUNDS = {">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
_FORMS = (
    "key=value, key!=value, 'key>value', 'key>=value', 'key<value', 'key<=value' (in quotes: a shell takes < and > for "
    'files), or JSON such as \'{"lang": "en"}\''
)


def parse_filters(given: Sequence[str]) -> dict[str, Any] | None:
    """Read conditions, all of which must hold; None without any.

    Raises:
        InvalidInputError: One is neither a comparison nor a JSON object.
    """
    parsed = [_parse(one) for one in given]
    if not parsed:
        return None
    return parsed[0] if len(parsed) == 1 else {"$and": parsed}


def fields_of(parsed: Mapping[str, Any] | None) -> list[str]:
    """List the fields of metadata that a filter names.

    >>> fields_of({"$and": [{"lang": "en"}, {"$not": {"author": {"name": "Ada"}}}, {"$or": [{"lang": "de"}]}]})
    ['lang', 'author']
    """
    fields: dict[str, None] = {}
    for key, value in (parsed or {}).items():
        if not key.startswith("$"):
            fields[key] = None
        for one in value if isinstance(value, list) else [value]:
            if key.startswith("$") and isinstance(one, Mapping):
                fields |= dict.fromkeys(fields_of(one))
    return list(fields)


def _parse(given: str) -> dict[str, Any]:
    if given.lstrip().startswith(("{", "[")):
        return _parse_json(given)
    found = _COMPARISON.fullmatch(given)
    keys = [] if found is None else _parse_keys(found[1].strip())
    if found is None or not keys:
        raise InvalidInputError(f"--filter {given!r} is no condition; give {_FORMS}")
    operator, written = found[2], found[3].strip()
    if written.startswith(("=", "<", ">")):
        raise InvalidInputError(
            f"--filter {given!r}: there is no comparison {operator + written[0]!r}; give {_FORMS}. A value that begins "
            f"with {written[0]} goes in double quotes within these: '{found[1].strip()}{operator}\"{written}\"'"
        )
    if operator in _BOUNDS:
        return _within(keys, {_BOUNDS[operator]: _parse_value(written)})
    equal = _equal(keys, written)
    return equal if operator == "=" else {"$not": equal}


def _parse_json(given: str) -> dict[str, Any]:
    try:
        parsed = json.loads(given)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"--filter begins as JSON, and is none: {error}; give {_FORMS}") from error
    if not isinstance(parsed, dict):
        raise InvalidInputError(f"--filter must be a JSON object, not {given}; or give {_FORMS}")
    return parsed


def _parse_keys(written: str) -> list[str]:
    """Read the names of a field within a field, with dots between them; of none, if it is no such thing.

    >>> _parse_keys("author.name"), _parse_keys('"a.b".c'), _parse_keys("a..b")
    (['author', 'name'], ['a.b', 'c'], [])
    """
    keys = []
    at = 0
    while key := _KEY.match(written, at):
        keys.append(key[1] if key[1] is not None else key[2].strip())
        at = key.end() + 1
        if key.end() == len(written):
            return keys if all(keys) else []
        if written[key.end()] != ".":
            break
    return []


def _parse_value(written: str) -> Any:
    """Read a value: JSON where it is some, and else the text as it stands.

    >>> [_parse_value(written) for written in ("2024", "1.5", "true", "null", "en", '"2024"', '["a"]', "2024-05-01")]
    [2024, 1.5, True, None, 'en', '2024', ['a'], '2024-05-01']
    """
    try:
        value = json.loads(written)
    except (ValueError, RecursionError):
        return written
    if isinstance(value, dict) or (isinstance(value, float) and not math.isfinite(value)):
        return written
    return value


def _equal(keys: Sequence[str], written: str) -> dict[str, Any]:
    """Return what finds a value; of a number, nobody knows from outside whether it was stored as one or as text."""
    value = _parse_value(written)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _within(keys, value)
    return {"$or": [_within(keys, value), _within(keys, written)]}


def _within(keys: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return dict(value)
