"""What callers give as a filter, a dict of conditions on the metadata → Qdrant's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, cast

from pplx_vectorstore.qdrant import models
from pplx_vectorstore.qdrant.conversion import as_ours

if TYPE_CHECKING:
    from qdrant_client import models as of_client

    FilterLike = Mapping[str, Any] | of_client.Filter | models.Filter | None
from pplx_vectorstore.collection import metadata_path
from pplx_vectorstore.documents import has_lone_surrogate
from pplx_vectorstore.errors import UnsupportedFilterError

WHY_INEXACT = (
    "Qdrant compares numbers as 64-bit floats, of which one stands for several whole numbers from 2**53 to 2**63; "
    "store smaller ones (milliseconds, not nanoseconds), or dates as ISO 8601 text"
)

_BOUNDS = {"$gt", "$gte", "$lt", "$lte"}


def build_filter(filter: FilterLike) -> models.Filter | None:  # noqa: A002
    """Turn a dict of metadata conditions into a Qdrant filter; a ready filter passes through.

    Args:
        filter: ``{"lang": "en", "year": 2024}`` keeps points whose metadata has all of these; a list
            stands for any of its values, None for a missing or null field, a dict for fields within
            that field. A dict of operators compares: ``{"year": {"$gte": 2020, "$lt": 2024}}`` with
            ``$gt``, ``$gte``, ``$lt``, ``$lte`` (numbers, or dates as datetime or ISO 8601 text),
            ``$ne`` and ``$nin`` (also true where the field is missing), ``$in`` and ``$exists``. Keys are
            taken literally, dots and all. A field that no point has matches nothing. A whole number
            matches whole numbers, a float both: 10 does not match a stored 10.0, but 10.0 matches 10.
            A float or a bound from 2**53 to 2**63 in magnitude, where comparing is not exact, is refused.

    Raises:
        UnsupportedFilterError: A value, an operator or a key cannot be matched.
    """
    filter = as_ours(filter)  # noqa: A001
    if filter is None or isinstance(filter, models.Filter):
        return filter
    if not isinstance(filter, Mapping):
        raise UnsupportedFilterError(
            f"filter must be a dict of metadata conditions or a qdrant_client.models.Filter, "
            f"not {type(filter).__name__}"
        )
    operators = [key for key in filter if isinstance(key, str) and key.startswith("$")]
    if operators:
        raise UnsupportedFilterError(
            f"filter begins with the operator {operators[0]!r}; operators stand within a field, as in "
            "{'year': {'$gte': 2020}}"
        )
    conditions = [condition for key, value in filter.items() for condition in _conditions((key,), value)]
    return models.Filter(must=conditions) if conditions else None


def is_empty(filter: models.Filter) -> bool:  # noqa: A002
    """Tell whether a filter says nothing, so that it would match every point."""
    least = filter.min_should
    at_least = None if least is None or least.min_count <= 0 else least.conditions  # of none, all points match
    inner = [
        condition
        for clause in (filter.must, filter.should, filter.must_not, at_least)
        for condition in (clause if isinstance(clause, list) else [clause] if clause else [])
        # None of no ids: that is true of all.
        if clause is not filter.must_not or not isinstance(condition, models.HasIdCondition) or condition.has_id
    ]
    return all(isinstance(condition, models.Filter) and is_empty(condition) for condition in inner)


def stands_for_several(value: float) -> bool:
    """Tell whether Qdrant takes several whole numbers of 64 bits for equal to this number.

    >>> [stands_for_several(value) for value in (2.0**53 - 1, 2.0**53, -(2.0**63), 1e300)]
    [False, True, True, False]
    """
    return 2**53 <= abs(value) <= 2**63


def is_number(text: str) -> bool:
    """Tell whether a text looks like a finite number.

    >>> [is_number(text) for text in ("1990", "2.5", "2024-05-01", "nan")]
    [True, True, False, False]
    """
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _conditions(keys: tuple[object, ...], value: object) -> list[Any]:
    path = metadata_path(*keys)
    if isinstance(value, Mapping) and value:
        operators = [name for name in value if isinstance(name, str) and name.startswith("$")]
        if len(operators) == len(value):
            return _comparisons(keys, path, value)
        if operators:
            raise UnsupportedFilterError(f"filter on {path} mixes operators and fields: {', '.join(map(str, value))}")
        return [condition for name, inner in value.items() for condition in _conditions((*keys, name), inner)]
    if value is None:
        return [models.IsEmptyCondition(is_empty=models.PayloadField(key=path))]
    if isinstance(value, float) and math.isfinite(value):
        if stands_for_several(value):
            raise UnsupportedFilterError(
                f"filter on {path} cannot match {value!r}: in Qdrant, this float equals several whole numbers; "
                "give the int that is meant"
            )
        return [models.FieldCondition(key=path, range=models.Range(gte=value, lte=value))]
    if _is_matchable(value):
        return [models.FieldCondition(key=path, match=models.MatchValue(value=cast(Any, value)))]
    if isinstance(value, list) and value and all(map(_is_matchable, value)) and len(set(map(type, value))) == 1:
        if isinstance(value[0], bool):  # engines match any of texts or of whole numbers only
            matches = [models.FieldCondition(key=path, match=models.MatchValue(value=one)) for one in value]
            return [models.Filter(should=cast(Any, matches))]
        return [models.FieldCondition(key=path, match=models.MatchAny(any=value))]
    raise UnsupportedFilterError(
        f"filter on {path} cannot match {value!r}; use a str, bool, int, finite float, None, "
        "a list of one of str, int or bool, or a dict of inner fields (whole numbers of 64 bits, valid Unicode)"
    )


def _comparisons(keys: tuple[object, ...], path: str, operators: Mapping[Any, Any]) -> list[Any]:
    bounds = {name[1:]: value for name, value in operators.items() if name in _BOUNDS}
    conditions: list[Any] = [_range(path, bounds)] if bounds else []
    for name, value in operators.items():
        if name == "$in":
            _require_list(path, name, value)
            conditions += _conditions(keys, value)
        elif name in ("$ne", "$nin"):
            if name == "$nin":
                _require_list(path, name, value)
            conditions.append(models.Filter(must_not=[models.Filter(must=_conditions(keys, value))]))
        elif name == "$exists" and isinstance(value, bool):
            empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=path))
            conditions.append(models.Filter(must_not=[empty]) if value else empty)
        elif name not in _BOUNDS:
            raise UnsupportedFilterError(
                f"filter on {path} has {name!r}: {value!r}; operators are {', '.join(sorted(_BOUNDS))}, "
                "$ne, $in, $nin, and $exists with True or False"
            )
    return conditions


def _range(path: str, bounds: Mapping[str, Any]) -> models.FieldCondition:
    if {"gt", "gte"} <= bounds.keys() or {"lt", "lte"} <= bounds.keys():  # an index heeds one of them only
        raise UnsupportedFilterError(f"filter on {path} has two bounds on one side: {', '.join(bounds)}; give one")
    values = list(bounds.values())
    shown = ", ".join(map(repr, values))
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        if any(map(stands_for_several, values)):
            raise UnsupportedFilterError(f"filter on {path} compares with {shown}: {WHY_INEXACT}")
        if all(math.isfinite(value) for value in values):
            floats = {name: float(value) for name, value in bounds.items()}
            return models.FieldCondition(key=path, range=models.Range(**floats))
    elif all(isinstance(value, (str, date)) for value in values):
        dates = {name: _as_datetime(path, value) for name, value in bounds.items()}
        return models.FieldCondition(key=path, range=models.DatetimeRange(**dates))
    raise UnsupportedFilterError(f"filter on {path} compares with {shown}; bounds must be finite numbers, or all dates")


def _as_datetime(path: str, value: str | date) -> datetime:
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        number = f"the number {value}" if is_number(value) else "a number"
        raise UnsupportedFilterError(
            f"filter on {path} compares with the text {value!r}, which is no date; give {number}, or a date such as "
            "'2024-05-01'"
        ) from None


def _require_list(path: str, name: str, value: object) -> None:
    if not isinstance(value, list):
        raise UnsupportedFilterError(f"filter on {path}: {name} needs a list, not {value!r}")


def _is_matchable(value: object) -> bool:
    if isinstance(value, str):
        return not has_lone_surrogate(value)
    return isinstance(value, bool) or (isinstance(value, int) and -(2**63) <= value < 2**63)
