"""Our words for Qdrant's requests, and its client's → ``qdrant_edge`` types: filters, queries, collection settings.

Only what the store sends is translated; anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import numpy as np
import qdrant_edge as edge

from pplx_vectorstore.errors import UnsupportedFilterError
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.qdrant.conversion import as_ours

_PAYLOAD_TYPES = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "integer": edge.PayloadSchemaType.Integer,
    "float": edge.PayloadSchemaType.Float,
    "bool": edge.PayloadSchemaType.Bool,
    "datetime": edge.PayloadSchemaType.Datetime,
    "uuid": edge.PayloadSchemaType.Uuid,
    "text": edge.PayloadSchemaType.Text,
    "geo": edge.PayloadSchemaType.Geo,
}
_INDEXES: dict[str, Any] = {
    "keyword": edge.KeywordIndexParams,
    "integer": edge.IntegerIndexParams,
    "float": edge.FloatIndexParams,
    "bool": edge.BoolIndexParams,
    "datetime": edge.DatetimeIndexParams,
    "uuid": edge.UuidIndexParams,
    "text": edge.TextIndexParams,
    "geo": edge.GeoIndexParams,
}
_TOKENIZERS = {
    "prefix": edge.TokenizerType.Prefix,
    "whitespace": edge.TokenizerType.Whitespace,
    "word": edge.TokenizerType.Word,
    "multilingual": edge.TokenizerType.Multilingual,
    "code": edge.TokenizerType.Code,
}
_QUERY_ENCODINGS: dict[str, edge.BinaryQuantizationQueryEncoding] = {
    models.BinaryQuantizationQueryEncoding.BINARY: edge.BinaryQuantizationQueryEncoding.Binary,
    models.BinaryQuantizationQueryEncoding.SCALAR8BITS: edge.BinaryQuantizationQueryEncoding.Scalar8Bits,
}
# The engine's own constant: a first rank is worth 1/2, a second 1/3.
_RRF_K = 2
# Qdrant's defaults for HNSW.
_HNSW_M = 16
_EF_CONSTRUCT = 100
_FULL_SCAN_KB = 10_000
_DISTANCES: dict[str, edge.Distance] = {
    models.Distance.COSINE: edge.Distance.Cosine,
    models.Distance.EUCLID: edge.Distance.Euclid,
    models.Distance.DOT: edge.Distance.Dot,
    models.Distance.MANHATTAN: edge.Distance.Manhattan,
}
_DATATYPES: dict[str, edge.VectorStorageDatatype] = {
    models.Datatype.FLOAT32: edge.VectorStorageDatatype.Float32,
    models.Datatype.FLOAT16: edge.VectorStorageDatatype.Float16,
    models.Datatype.UINT8: edge.VectorStorageDatatype.Uint8,
}
_MEMORY: dict[str, edge.Memory] = {
    models.Memory.COLD: edge.Memory.Cold,
    models.Memory.CACHED: edge.Memory.Cached,
    models.Memory.PINNED: edge.Memory.Pinned,
}


def edge_vector_params(params: models.VectorParams) -> edge.EdgeVectorParams:
    """Translate one vector's settings; the only quantization the store uses is binary."""
    params = as_ours(params)
    quantization = None
    if params.quantization_config is not None:
        if not isinstance(params.quantization_config, models.BinaryQuantization):
            raise TypeError(f"quantization {type(params.quantization_config).__name__} is not translated")
        binary = params.quantization_config.binary
        encoding = binary.query_encoding
        quantization = edge.BinaryQuantizationConfig(
            memory=_memory(binary.memory), query_encoding=None if encoding is None else _QUERY_ENCODINGS[encoding]
        )
    return edge.EdgeVectorParams(
        size=params.size,
        distance=_DISTANCES[params.distance],
        datatype=None if params.datatype is None else _DATATYPES[params.datatype],
        memory=_memory(params.memory),
        quantization_config=quantization,
        hnsw_config=None if params.hnsw_config is None else _hnsw(params.hnsw_config),
    )


def _hnsw(config: models.HnswConfigDiff) -> edge.HnswIndexConfig:
    """Translate the index's settings; what is None is the engine's own default, which it does not fill in here."""
    return edge.HnswIndexConfig(
        _HNSW_M if config.m is None else config.m,
        _EF_CONSTRUCT if config.ef_construct is None else config.ef_construct,
        _FULL_SCAN_KB if config.full_scan_threshold is None else config.full_scan_threshold,
    )


def edge_payload_schema(schema: Any) -> Any:
    """Translate the schema of a payload index: a type such as "keyword", or its parameters.

    Where these do not say, it stays on disk and is mapped: reading such indexes into memory took most of the time to
    open a collection (400 ms of 470 at 100,000 chunks), and searches and filters by them were measured no slower.
    """
    schema = as_ours(schema)
    if isinstance(schema, models.KeywordIndexParams):
        return edge.KeywordIndexParams(
            is_tenant=schema.is_tenant, enable_hnsw=schema.enable_hnsw, memory=_index_memory(schema.memory)
        )
    if isinstance(schema, models.IntegerIndexParams):
        return edge.IntegerIndexParams(enable_hnsw=schema.enable_hnsw, memory=_index_memory(schema.memory))
    if isinstance(schema, models.FloatIndexParams):
        return edge.FloatIndexParams(enable_hnsw=schema.enable_hnsw, memory=_index_memory(schema.memory))
    if isinstance(schema, models.TextIndexParams):
        return _text_index(schema)
    if not isinstance(schema, str):
        raise TypeError(f"payload index {type(schema).__name__} is not translated")
    return _INDEXES[schema](memory=edge.Memory.Cold)


def payload_schema_type(type_: edge.PayloadSchemaType) -> str:
    """Translate the type of a payload index back."""
    return next(ours for ours, theirs in _PAYLOAD_TYPES.items() if theirs == type_)


def edge_query(request: models.QueryRequest) -> edge.QueryRequest:
    """Translate a search as built by `pplx_vectorstore.query.build_query`."""
    request = as_ours(request)
    return edge.QueryRequest(
        limit=request.limit or 10,
        query=_scoring_query(request.query, request.using),
        prefetches=[_prefetch(prefetch) for prefetch in _as_list(request.prefetch)],
        filter=None if request.filter is None else edge_filter(request.filter),
        params=_search_params(request.params),
        score_threshold=request.score_threshold,
        with_payload=edge_payload_selector(request.with_payload),
        with_vector=bool(request.with_vector),
    )


def edge_payload_selector(selector: Any) -> Any:
    """Translate which payload fields to return: all, none, or those of a list."""
    if hasattr(selector, "include"):  # the client's
        return list(selector.include)
    return list(selector) if isinstance(selector, (list, tuple)) else bool(selector)


def edge_filter(filter: models.Filter) -> edge.Filter:  # noqa: A002 - Qdrant's own word for it
    """Translate a filter with everything in it.

    Raises:
        UnsupportedFilterError: A condition has no counterpart in the embedded engine.
    """
    filter = as_ours(filter)  # noqa: A001
    min_should = filter.min_should
    return edge.Filter(
        must=_conditions(filter.must),
        should=_conditions(filter.should),
        must_not=_conditions(filter.must_not),
        min_should=None
        if min_should is None
        else edge.MinShould(_conditions(_each_apart(min_should.conditions)) or [], min_should.min_count),
    )


def _prefetch(prefetch: models.Prefetch) -> edge.Prefetch:
    return edge.Prefetch(
        prefetches=[_prefetch(inner) for inner in _as_list(prefetch.prefetch)],
        limit=prefetch.limit or 10,
        query=_scoring_query(prefetch.query, prefetch.using),
        filter=None if prefetch.filter is None else edge_filter(prefetch.filter),
        params=_search_params(prefetch.params),
        score_threshold=prefetch.score_threshold,
    )


def _search_params(params: models.SearchParams | None) -> edge.SearchParams | None:
    if params is None:
        return None
    quantization = params.quantization or models.QuantizationSearchParams()
    acorn = params.acorn
    idf = params.idf if isinstance(params.idf, models.IdfCorpusParams) else None
    return edge.SearchParams(
        idf=None if idf is None else edge.IdfParams(edge_filter(idf.corpus)),
        hnsw_ef=params.hnsw_ef,
        exact=bool(params.exact),
        acorn=None if acorn is None else edge.AcornSearchParams(bool(acorn.enable), acorn.max_selectivity),
        quantization=edge.QuantizationSearchParams(
            ignore=bool(quantization.ignore),
            rescore=quantization.rescore,
            oversampling=quantization.oversampling,
        ),
    )


def _scoring_query(query: Any, using: str | None) -> Any:
    if isinstance(query, models.NearestQuery):
        vector: Any = query.nearest
        return edge.Query.Nearest(vector, using)
    if isinstance(query, models.TextQuery) and isinstance(query.text, str) and using is not None:
        return edge.TextQuery(using, query.text)  # `using` names the field
    if isinstance(query, models.FusionQuery) and query.fusion == models.Fusion.RRF:
        return edge.Fusion.Rrf(_RRF_K)
    if isinstance(query, models.RrfQuery):
        return edge.Fusion.Rrf(query.rrf.k or _RRF_K, None if query.rrf.weights is None else list(query.rrf.weights))
    raise TypeError(f"query {type(query).__name__} is not translated")


def _each_apart(conditions: Sequence[Any]) -> list[Any]:
    """Wrap conditions on ids, of which the engine else counts one for the points of another."""
    return [
        models.Filter(must=[condition]) if isinstance(condition, models.HasIdCondition) else condition
        for condition in conditions
    ]


def _conditions(conditions: Any) -> list[Any] | None:
    # An empty clause says nothing; but within nested objects, nothing would meet an empty `should`.
    return [_condition(condition) for condition in _as_list(conditions)] or None


def _condition(condition: Any) -> Any:
    if isinstance(condition, models.FieldCondition):
        return _field_condition(condition)
    if isinstance(condition, models.Filter):
        return edge_filter(condition)
    if isinstance(condition, models.IsEmptyCondition):
        return edge.IsEmptyCondition(condition.is_empty.key)
    if isinstance(condition, models.IsNullCondition):
        return edge.IsNullCondition(condition.is_null.key)
    if isinstance(condition, models.HasIdCondition):
        return edge.HasIdCondition({_point_id(point_id) for point_id in condition.has_id})
    if isinstance(condition, models.HasVectorCondition):
        return edge.HasVectorCondition(condition.has_vector)
    if isinstance(condition, models.NestedCondition):
        return edge.NestedCondition(condition.nested.key, edge_filter(condition.nested.filter))
    raise UnsupportedFilterError(f"the embedded engine does not know the condition {type(condition).__name__}")


def _field_condition(condition: models.FieldCondition) -> edge.FieldCondition:
    box, radius, polygon = condition.geo_bounding_box, condition.geo_radius, condition.geo_polygon
    count = condition.values_count
    return edge.FieldCondition(
        condition.key,
        match=_match(condition.match),
        range=_range(condition.range),
        geo_bounding_box=None if box is None else edge.GeoBoundingBox(_geo(box.top_left), _geo(box.bottom_right)),
        geo_radius=None if radius is None else edge.GeoRadius(_geo(radius.center), radius.radius),
        geo_polygon=None
        if polygon is None
        else edge.GeoPolygon(_line(polygon.exterior), [_line(line) for line in polygon.interiors or []]),
        values_count=None
        if count is None
        else edge.ValuesCount(lt=count.lt, gt=count.gt, lte=count.lte, gte=count.gte),
        is_empty=condition.is_empty,
        is_null=condition.is_null,
    )


def _match(match: Any) -> Any:
    if match is None:
        return None
    if isinstance(match, models.MatchValue):
        # The engine takes a Python bool for an integer, which matches nothing; a numpy one it knows.
        value: Any = np.bool_(match.value) if isinstance(match.value, bool) else match.value
        return edge.MatchValue(value)
    if isinstance(match, models.MatchAny):
        return edge.MatchAny(cast("list[str]", list(match.any)))
    if isinstance(match, models.MatchExcept):
        return edge.MatchExcept(cast("list[str]", list(match.except_)))
    if isinstance(match, models.MatchText):
        return edge.MatchText(match.text)
    if isinstance(match, models.MatchTextAny):
        return edge.MatchTextAny(match.text_any)
    if isinstance(match, models.MatchPhrase):
        return edge.MatchPhrase(match.phrase)
    if isinstance(match, models.MatchPrefix):
        return edge.MatchPrefix(match.prefix)
    if isinstance(match, models.MatchSubstring):
        return edge.MatchSubstring(match.substring)
    raise UnsupportedFilterError(f"the embedded engine does not know the match {type(match).__name__}")


def _range(range_: Any) -> Any:
    if range_ is None:
        return None
    if isinstance(range_, models.DatetimeRange):
        bounds = {name: getattr(range_, name) for name in ("gte", "gt", "lte", "lt")}
        texts = {name: None if value is None else value.isoformat() for name, value in bounds.items()}
        return edge.RangeDateTime(**texts)
    return edge.RangeFloat(gte=range_.gte, gt=range_.gt, lte=range_.lte, lt=range_.lt)


def _text_index(schema: models.TextIndexParams) -> edge.TextIndexParams:
    if schema.stopwords is not None or schema.stemmer is not None:
        raise TypeError("stop words and stemmers of a text index are not translated")
    return edge.TextIndexParams(
        tokenizer=None if schema.tokenizer is None else _TOKENIZERS[schema.tokenizer],
        min_token_len=schema.min_token_len,
        max_token_len=schema.max_token_len,
        lowercase=schema.lowercase,
        ascii_folding=schema.ascii_folding,
        phrase_matching=schema.phrase_matching,
        scoring=bool(schema.scoring),
        enable_hnsw=schema.enable_hnsw,
        memory=_index_memory(schema.memory),
    )


def _geo(point: Any) -> edge.GeoPoint:
    return edge.GeoPoint(point.lon, point.lat)


def _line(line: Any) -> list[edge.GeoPoint]:
    return [_geo(point) for point in line.points]


def _point_id(point_id: Any) -> int | UUID:
    return point_id if isinstance(point_id, int) else UUID(str(point_id))


def _memory(memory: str | None) -> edge.Memory | None:
    return None if memory is None else _MEMORY[memory]


def _index_memory(memory: str | None) -> edge.Memory:
    return edge.Memory.Cold if memory is None else _MEMORY[memory]


def _as_list(value: Any) -> Sequence[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
