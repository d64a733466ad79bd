"""LlamaIndex's metadata filters → Qdrant's, with the meaning that they have in LlamaIndex's own memory."""

from __future__ import annotations

import contextlib
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from pplx_vectorstore.collection import metadata_path
from pplx_vectorstore.engines.capabilities import Capabilities, Feature
from pplx_vectorstore.errors import UnsupportedFilterError
from pplx_vectorstore.filters import WHY_INEXACT, is_number, stands_for_several
from pplx_vectorstore.qdrant import models

Value = str | int | float
Match = Callable[[str], models.Filter]

_BOUNDS: dict[FilterOperator, tuple[str, Callable[[Any, Any], bool]]] = {
    FilterOperator.GT: ("gt", operator.gt),
    FilterOperator.GTE: ("gte", operator.ge),
    FilterOperator.LT: ("lt", operator.lt),
    FilterOperator.LTE: ("lte", operator.le),
}
_OF_LISTS = (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL)
# LlamaIndex lets these name a node's source document, whatever its metadata say.
_SOURCE_KEYS = ("document_id", "doc_id", "ref_doc_id")
# Of ISO 8601, what Qdrant reads in a payload; 20240501 it takes for any text.
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?(Z|[+-]\d\d(:?\d\d)?)?)?)?")
_EVERYTHING = models.Filter()
_ANY_ENGINE = Capabilities("embedded")
_NOTHING = models.Filter(must=[models.HasIdCondition(has_id=[])])


def build_filter(
    filters: MetadataFilters | None,
    *,
    indexes: Mapping[str, str] | None = None,
    word_fields: Collection[str] = (),
    capabilities: Capabilities = _ANY_ENGINE,
) -> models.Filter | None:
    """Translate filters, nested ones too.

    As in LlamaIndex's memory: a key that is missing or None passes ``!=``, ``nin`` and ``is_empty`` alone; a list is
    no equal of its elements, which ``contains``, ``any`` and ``all`` look at (in Qdrant, at those of a list in it,
    too); these look for parts of a str, too; 1 is 1.0 and True. Where memory raises, since types cannot be compared,
    nothing matches. A str as a bound must be a date in a form in which Qdrant reads stored ones, and is compared as a
    date; a number from 2**53 to 2**63 in magnitude, where comparing is not exact, is no bound.

    Args:
        filters: None, or without a filter, for everything.
        indexes: The type of each field's index, for servers that filter by indexed fields alone (strict mode).
            Lists then match by their elements, as they do in Qdrant, parts of a str are found by ``text_match``
            alone, 1 is True where the index is of truth values, and "" is empty where it is of keywords. None
            where every field can be filtered.
        word_fields: Paths of fields in which a server finds no parts of texts: it is too old for that, and finds
            words by their index. ``text_match`` looks for the words there.
        capabilities: What the engine can do.

    Raises:
        UnsupportedFilterError: Qdrant has no such filter; it names the key and the operator.
        UnsupportedServerError: The server is too old for it.
    """
    if filters is None or not filters.filters:
        return None
    return _Translation(indexes, word_fields, capabilities).group(filters)


class _Translation:
    def __init__(
        self, indexes: Mapping[str, str] | None, word_fields: Collection[str], capabilities: Capabilities
    ) -> None:
        self._by_index_only = indexes is not None
        self._indexes = indexes or {}
        self._word_fields = word_fields
        self._capabilities = capabilities

    def group(self, filters: MetadataFilters) -> models.Filter:
        parts: list[Any] = [
            self.group(one) if isinstance(one, MetadataFilters) else self._condition(one) for one in filters.filters
        ]
        if not parts:
            return _EVERYTHING
        if filters.condition == FilterCondition.OR:
            return models.Filter(should=parts)
        if filters.condition == FilterCondition.NOT:
            return models.Filter(must_not=parts)
        return models.Filter(must=parts)

    def _condition(self, one: MetadataFilter) -> models.Filter:
        path = "document_id" if one.key in _SOURCE_KEYS else metadata_path(one.key)
        if one.operator == FilterOperator.IS_EMPTY:
            empty: list[Any] = [models.IsEmptyCondition(is_empty=models.PayloadField(key=path))]
            if self._indexes.get(path, "keyword") == "keyword":  # no other index compares with ""
                empty.append(self._alone(path, lambda at: self._any_of(one, at, [""])))
            return models.Filter(should=empty)
        if one.operator in (FilterOperator.EQ, FilterOperator.NE):
            if isinstance(one.value, list):
                raise _unsupported(one, "lists are not compared; use IN, ANY or ALL")
            values = [] if one.value is None else [one.value]
            equal = self._alone(path, lambda at: self._any_of(one, at, values))
            return equal if one.operator == FilterOperator.EQ else _none_of(equal)
        if one.operator in _OF_LISTS and not isinstance(one.value, list):
            raise _unsupported(one, "its value must be a list")
        if one.operator in (FilterOperator.IN, FilterOperator.NIN):
            within = self._alone(path, lambda at: self._any_of(one, at, _as_list(one)))
            return within if one.operator == FilterOperator.IN else _none_of(within)
        if one.operator == FilterOperator.ANY:
            return models.Filter(should=[self._contains(path, one, value) for value in _as_list(one)] or [_NOTHING])
        if one.operator == FilterOperator.ALL and one.value:
            return models.Filter(must=[self._contains(path, one, value) for value in _as_list(one)])
        if one.operator == FilterOperator.CONTAINS and isinstance(one.value, Value):
            if self._by_index_only and isinstance(one.value, str):
                raise _unsupported(
                    one,
                    "in strict mode, one index cannot answer for elements and for parts of texts; use ANY for an "
                    "element of a list, TEXT_MATCH for a part of a text",
                )
            return self._contains(path, one, one.value)
        if one.operator == FilterOperator.TEXT_MATCH and isinstance(one.value, str):
            return self._part(path, one, one.value)
        if one.operator in _BOUNDS and isinstance(one.value, Value):
            return self._bound(path, one, one.value)
        raise _unsupported(one, "Qdrant cannot express it")

    def _contains(self, path: str, one: MetadataFilter, value: Value) -> models.Filter:
        if self._by_index_only:
            return self._any_of(one, path, [value])
        element = self._any_of(one, f"{path}[]", [value])
        return models.Filter(should=[element, self._part(path, one, value)]) if isinstance(value, str) else element

    def _part(self, path: str, one: MetadataFilter, value: str) -> models.Filter:
        """Match a str of which the value is a part."""
        if not value:
            raise _unsupported(one, "every text has the empty one as a part")
        if path in self._word_fields or (self._by_index_only and not self._capabilities.has(Feature.SUBSTRING_MATCH)):
            return self._words(path, one, value)

        def of(at: str) -> models.Filter:
            return models.Filter(must=[models.FieldCondition(key=at, match=models.MatchSubstring(substring=value))])

        return self._alone(path, of)

    def _words(self, path: str, one: MetadataFilter, value: str) -> models.Filter:
        """Match a str with all the words of the value, by the index of its words."""
        wanted = f"filter on {one.key!r}: {one.operator.name} with {one.value!r}"
        if path not in self._word_fields:
            way_out = "give the field an index of type 'text' (index_fields), by which TEXT_MATCH finds whole words"
            self._capabilities.require(Feature.SUBSTRING_MATCH, f"{wanted} in strict mode", way_out=way_out)
        if one.operator != FilterOperator.TEXT_MATCH or not any(map(str.isalnum, value)):
            way_out = "look for whole words by TEXT_MATCH, or for whole values by IN"
            wanted += ", on a field whose words are indexed,"
            self._capabilities.require(Feature.SUBSTRING_MATCH, wanted, way_out=way_out)
        words = models.FieldCondition(key=path, match=models.MatchText(text=value))
        if self._by_index_only or path == "document_id":
            return models.Filter(must=[words])
        # By the words again, a list whose elements have them could not be told from a str.
        no_list = models.IsEmptyCondition(is_empty=models.PayloadField(key=f"{path}[]"))
        return models.Filter(must=[words, no_list])

    def _bound(self, path: str, one: MetadataFilter, value: Value) -> models.Filter:
        name, compare = _BOUNDS[one.operator]
        if isinstance(value, str):
            bounds: Any = models.DatetimeRange(**{name: _date(one, value)})
            truths = []
        else:
            bounds = models.Range(**{name: _finite(one, value)})
            truths = [] if self._by_index_only else [truth for truth in (False, True) if compare(truth, value)]

        def within(at: str) -> models.Filter:
            of_number = models.FieldCondition(key=at, range=bounds)
            return models.Filter(should=[of_number, *(_is(at, truth) for truth in truths)])

        return self._alone(path, within)

    def _any_of(self, one: MetadataFilter, path: str, values: Sequence[Value]) -> models.Filter:
        index = self._indexes.get(path, "") if self._by_index_only else None
        texts = [value for value in values if isinstance(value, str)]
        alternatives: list[Any] = []
        if texts:
            alternatives.append(models.FieldCondition(key=path, match=models.MatchAny(any=texts)))
        for value in values:
            if isinstance(value, str):
                continue
            if value in (0, 1) and index == "":
                raise _unsupported(
                    one,
                    "in strict mode, this needs an index of the field; open the store with index_fields, as 'bool' "
                    "for truth values, as 'integer' or 'float' for numbers",
                )
            if value in (0, 1) and index in (None, "bool"):
                alternatives.append(_is(path, bool(value)))
                if index == "bool":  # which a number's condition could not use
                    continue
            if stands_for_several(value):
                if isinstance(value, float):
                    raise _unsupported(one, "in Qdrant, this float equals several whole numbers; give the int")
                alternatives.append(_is(path, value))
            elif math.isfinite(value):  # metadata hold no others
                alternatives.append(models.FieldCondition(key=path, range=models.Range(gte=value, lte=value)))
        return models.Filter(should=alternatives) if alternatives else _NOTHING

    def _alone(self, path: str, match: Match) -> models.Filter:
        """Match a value that is no list: in Qdrant, a condition holds for a list if it does for an element."""
        if self._by_index_only or path == "document_id":
            return match(path)
        return models.Filter(must=[match(path)], must_not=[match(f"{path}[]")])


def _is(path: str, value: int) -> models.FieldCondition:
    return models.FieldCondition(key=path, match=models.MatchValue(value=value))


def _none_of(match: models.Filter) -> models.Filter:
    return models.Filter(must_not=[match])


def _as_list(one: MetadataFilter) -> Sequence[Value]:
    return one.value if isinstance(one.value, list) else []


def _date(one: MetadataFilter, value: str) -> datetime:
    if _DATE.fullmatch(value):
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(value)
    number = f"the number {value}" if is_number(value) else "a number"
    raise _unsupported(
        one,
        f"Qdrant orders numbers and dates, not texts; give {number}, or a date, which it reads, as a bound and as "
        "stored, in the forms 2024-05-01, 2024-05-01T12:00 and 2024-05-01T12:00:00+00:00",
    )


def _finite(one: MetadataFilter, value: int | float) -> int | float:
    if not math.isfinite(value):
        raise _unsupported(one, "bounds must be finite")
    if stands_for_several(value):
        raise _unsupported(one, WHY_INEXACT)
    return value


def _unsupported(one: MetadataFilter, why: str) -> UnsupportedFilterError:
    return UnsupportedFilterError(f"filter on {one.key!r}: {one.operator.name} with {one.value!r}: {why}")
