"""A caller's filter → what the engine is asked: points for chunks, and no change of meaning by an index."""

from __future__ import annotations

import re
import sys
import uuid
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pplx_vectorstore.collection import GENERATION_FIELD, LOSS_FIELD, TENANT_FIELD, TEXT_FIELD, WORDS_FIELD
from pplx_vectorstore.documents import has_lone_surrogate
from pplx_vectorstore.engines.capabilities import Capabilities, Feature
from pplx_vectorstore.errors import UnsupportedFilterError
from pplx_vectorstore.filters import WHY_INEXACT, stands_for_several
from pplx_vectorstore.points import possible_point_ids
from pplx_vectorstore.qdrant import models

FIELDS = frozenset(
    {
        *("id", TEXT_FIELD, "document_id", "chunk_index", "chunk_count", "start", "end", "document_hash", "metadata"),
        *("norm", "own_codes", LOSS_FIELD, TENANT_FIELD, WORDS_FIELD, GENERATION_FIELD),
    }
)
"""What a point's payload may have."""

# What others call the fields that ours have.
_OTHER_NAMES = {
    "page_content": TEXT_FIELD,
    "content": TEXT_FIELD,
    "doc_id": "document_id",
    "ref_doc_id": "document_id",
    "chunk_id": "id",
}
_PACKAGE = __name__.partition(".")[0]
_QUOTED = re.compile(r'"([A-Za-z0-9_-]+)"')
_FIRST_KEY = re.compile(r'("[^"]*"|[^.\[]*)')
# An index of UUIDs is asked where all texts are UUIDs, and takes every spelling of one for the same.
_NO_UUID = "no UUID, so that texts are compared"
# Beyond, comparing with each value takes longer than reading the payload of a point.
_MOST_RANGES = 64

_IN_PROCESS = Capabilities("embedded")
_WHY_NOT = {
    "integer": "keeps whole numbers alone: it would leave out 2.5, and take 2.0 for 2",
    "float": "keeps numbers alone, so that it would find no dates",
    "datetime": "keeps dates alone, so that it would find no numbers",
}


def resolve_filter(
    condition: models.Filter,
    *,
    tenant: str | None,
    indexes: Mapping[str, str],
    by_index_only: bool,
    warned: set[str],
    capabilities: Capabilities = _IN_PROCESS,
) -> models.Filter:
    """Translate a filter that a caller gave, with everything in it.

    Chunk ids become ids of points. An index keeps one kind of values, and some indexes answer a condition of another
    kind, or compare in their own way; conditions are put so that they match what they would match without an index.
    Where a server filters by index alone, 2 matches a stored 2.0 too, and a UUID any spelling of it. Phrases are left
    as they are: of an indexed text, only an index made for them (`phrase_matching`) finds any. What a server is too old
    for is put in another way that means the same, or refused.

    Args:
        condition: From `pplx_vectorstore.filters.build_filter`, or the caller's own.
        tenant: Whose chunks it is about.
        indexes: The type of each indexed field's index, by its path.
        by_index_only: Whether the server refuses what an index cannot answer (strict mode).
        warned: Keys of which it was said that no chunk has them; more are added.
        capabilities: What the engine can do.

    Raises:
        UnsupportedFilterError: An id is no chunk's, a bound is too large to be compared exactly, or the field's index
            would change what the condition matches.
        UnsupportedServerError: The server is too old for a condition.

    Warns:
        UserWarning: No chunk has a field of that name; it says which one may be meant.
    """
    return _Resolution(tenant, indexes, by_index_only, warned, capabilities).filter(condition, "")


class _Resolution:
    def __init__(
        self,
        tenant: str | None,
        indexes: Mapping[str, str],
        by_index_only: bool,
        warned: set[str],
        capabilities: Capabilities,
    ) -> None:
        self._tenant = tenant
        self._indexes = indexes
        self._by_index_only = by_index_only
        self._warned = warned
        self._capabilities = capabilities

    def filter(self, given: models.Filter, within: str) -> models.Filter:
        """Translate a filter; `within` is the path of the objects that it is about, empty for the whole payload."""
        changed = {name: self._clause(getattr(given, name), within) for name in ("must", "should", "must_not")}
        least = given.min_should
        if least is not None:
            least = models.MinShould(conditions=self._clause(least.conditions, within), min_count=least.min_count)
        return given.model_copy(update={**changed, "min_should": least})

    def _clause(self, clause: Any, within: str) -> Any:
        if isinstance(clause, list):
            return [self._condition(one, within) for one in clause]
        return None if clause is None else self._condition(clause, within)

    def _condition(self, one: Any, within: str) -> Any:
        if isinstance(one, models.Filter):
            return self.filter(one, within)
        if isinstance(one, models.HasIdCondition):
            return models.HasIdCondition(has_id=[point for id_ in one.has_id for point in self._points(id_)])
        if isinstance(one, models.NestedCondition):
            self._check_key(one.nested.key, within)
            inner = self.filter(one.nested.filter, f"{within}{one.nested.key}[].")
            return models.NestedCondition(nested=one.nested.model_copy(update={"filter": inner}))
        if isinstance(one, models.IsEmptyCondition):
            self._check_key(one.is_empty.key, within)
        elif isinstance(one, models.IsNullCondition):
            self._check_key(one.is_null.key, within)
        elif isinstance(one, models.FieldCondition):
            self._check_key(one.key, within)
            if self._capabilities.kind == "server":
                one = self._as_known(one, within)
            if _first_key(f"{within}{one.key}") == "metadata":  # other fields hold one kind of values
                return self._on_metadata(one, within)
        elif isinstance(one, models.SliceCondition) and self._capabilities.kind == "server":
            self._capabilities.require(Feature.SLICES, "a filter with a SliceCondition")
        return one

    def _as_known(self, one: models.FieldCondition, within: str) -> models.FieldCondition:
        """Put a condition as a server of this version knows it: it would refuse a request with any other."""
        wanted = f"filter on {one.key}: {type(one.match).__name__}"
        if isinstance(one.match, models.MatchPrefix):
            self._capabilities.require(Feature.PREFIX_MATCH, wanted)
        if not isinstance(one.match, models.MatchSubstring) or self._capabilities.has(Feature.SUBSTRING_MATCH):
            return one
        # Of a field without an index of its words, a server looks for the text of MatchText as it stands.
        if self._indexes.get(_canonical(f"{within}{one.key}")) == "text":
            wanted += " on a field whose words are indexed, by which an older server finds whole words alone,"
            way_out = "look for whole words, by MatchText"
        elif self._by_index_only:
            wanted += ", on a server in strict mode,"
            way_out = "give the field an index of type 'text', and look for whole words by MatchText"
        else:
            return one.model_copy(update={"match": models.MatchText(text=one.match.substring)})
        self._capabilities.require(Feature.SUBSTRING_MATCH, wanted, way_out=way_out)
        return one

    def _points(self, id_: object) -> list[str]:
        if isinstance(id_, uuid.UUID):
            id_ = str(id_)
        if not isinstance(id_, str) or has_lone_surrogate(id_):
            raise UnsupportedFilterError(
                f"HasIdCondition holds {id_!r}, which is no chunk's id; ids are str, as hits have them"
            )
        return possible_point_ids(id_, self._tenant)

    def _check_key(self, key: str, within: str) -> None:
        name = _first_key(key)
        if within or name in FIELDS or key in self._warned:
            return
        meant = repr(_OTHER_NAMES.get(name, f"metadata.{key}"))
        if "." in key and '"' not in key:
            meant += f""", or 'metadata."{key}"' where the dot is the key's own"""
        warnings.warn(
            f"no chunk has the field {key!r} that a filter names; metadata are below 'metadata': use {meant}",
            stacklevel=_callers_level(),
        )
        self._warned.add(key)

    def _on_metadata(self, one: models.FieldCondition, within: str) -> Any:
        kind = self._indexes.get(_canonical(f"{within}{one.key}"))
        if isinstance(one.range, models.Range):
            return self._in_range(one, one.range, kind)
        if isinstance(one.range, models.DatetimeRange) and kind in ("integer", "float"):
            raise _changed_by(one, kind, "datetime")
        if isinstance(one.match, models.MatchExcept) and kind in ("keyword", "integer", "uuid"):
            if self._by_index_only:
                return one
            raise UnsupportedFilterError(
                f"filter on {one.key}: by the field's index, of type {kind!r}, MatchExcept would leave out values of "
                "other types; put MatchAny into must_not instead"
            )
        values = _values(one.match)
        if not values or isinstance(values[0], bool):
            return one
        if isinstance(values[0], str):
            return self._of_texts(one, values, kind)
        return self._of_integers(one, values, kind)

    def _in_range(self, one: models.FieldCondition, range_: models.Range, kind: str | None) -> Any:
        bounds = [float(bound) for bound in (range_.gt, range_.gte, range_.lt, range_.lte) if bound is not None]
        if any(map(stands_for_several, bounds)):
            raise UnsupportedFilterError(
                f"filter on {one.key} compares with {', '.join(f'{bound:.17g}' for bound in bounds)}: {WHY_INEXACT}"
            )
        is_whole = range_.gte is not None and range_.gte == range_.lte and len(bounds) == 2 and bounds[0].is_integer()
        if kind == "datetime" or (kind == "integer" and not is_whole):
            raise _changed_by(one, kind, "float")
        return one

    def _of_texts(self, one: models.FieldCondition, values: Sequence[Any], kind: str | None) -> Any:
        if kind in ("integer", "float", "datetime"):  # which a UUID alone, not one in a list, is looked up in
            return _matching(one, models.MatchAny(any=list(values)))
        if kind == "uuid" and not self._by_index_only:
            return models.Filter(must=[one, _matching(one, models.MatchAny(any=[*values, _NO_UUID]))])
        return one

    def _of_integers(self, one: models.FieldCondition, values: Sequence[int], kind: str | None) -> Any:
        if kind == "integer" and not self._by_index_only:
            raise _changed_by(one, kind, "float")
        if kind != "float":
            return one
        if self._by_index_only:
            if any(map(stands_for_several, values)):
                raise UnsupportedFilterError(
                    f"filter on {one.key} looks for whole numbers of 2**53 or more, which its index of floats cannot "
                    "tell apart, and in strict mode the server looks nowhere else; store them as str, with an index "
                    "of type 'keyword'"
                )
            return models.Filter(should=_equal_to(one, values))
        # The index narrows down, and what is left is compared as it is stored.
        if len(values) > _MOST_RANGES:
            return models.Filter(must=[_between(one, min(values), max(values)), one])
        return models.Filter(must=[models.Filter(should=_equal_to(one, values)), one])


def _callers_level() -> int:
    """Return the level of the frame that called into this package, for a warning that the function's caller gives."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    return level


def _values(match: Any) -> list[Any]:
    if isinstance(match, models.MatchValue):
        return [match.value]
    return list(match.any) if isinstance(match, models.MatchAny) else []


def _matching(one: models.FieldCondition, match: models.MatchAny) -> models.FieldCondition:
    return one.model_copy(update={"match": match})


def _equal_to(one: models.FieldCondition, values: Sequence[int]) -> list[Any]:
    return [_between(one, value, value) for value in values]


def _between(one: models.FieldCondition, least: float, most: float) -> models.FieldCondition:
    return models.FieldCondition(key=one.key, range=models.Range(gte=float(least), lte=float(most)))


def _changed_by(one: models.FieldCondition, kind: str, other: str) -> UnsupportedFilterError:
    return UnsupportedFilterError(
        f"filter on {one.key} cannot be answered: the field's index, of type {kind!r}, {_WHY_NOT[kind]}. Delete the "
        f"index (delete_payload_index of the Qdrant client), and open the store with index_fields that make it of "
        f"type {other!r}"
    )


def _first_key(path: str) -> str:
    first = _FIRST_KEY.match(_canonical(path))
    return first[0] if first else ""


def _canonical(path: str) -> str:
    """Write a path as Qdrant names it in the schema: keys are quoted where they must be."""
    return _QUOTED.sub(r"\1", path)
