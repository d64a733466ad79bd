"""``qdrant_client.models`` → ``qdrant_edge`` types: filters, formulas, queries, collection settings.

Only what the store sends is translated; anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import numpy as np
import qdrant_edge as edge
from qdrant_client import models

from pplx_vectorstore.errors import UnsupportedFilterError

_EUCLID_WIDENING = 8

_PAYLOAD_TYPES = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "integer": edge.PayloadSchemaType.Integer,
    "float": edge.PayloadSchemaType.Float,
    "bool": edge.PayloadSchemaType.Bool,
    "datetime": edge.PayloadSchemaType.Datetime,
    "uuid": edge.PayloadSchemaType.Uuid,
    "text": edge.PayloadSchemaType.Text,
}
_DISTANCES = {
    models.Distance.COSINE: edge.Distance.Cosine,
    models.Distance.EUCLID: edge.Distance.Euclid,
    models.Distance.DOT: edge.Distance.Dot,
    models.Distance.MANHATTAN: edge.Distance.Manhattan,
}
_DATATYPES = {
    models.Datatype.FLOAT32: edge.VectorStorageDatatype.Float32,
    models.Datatype.FLOAT16: edge.VectorStorageDatatype.Float16,
    models.Datatype.UINT8: edge.VectorStorageDatatype.Uint8,
}
_MEMORY = {
    models.Memory.COLD: edge.Memory.Cold,
    models.Memory.CACHED: edge.Memory.Cached,
    models.Memory.PINNED: edge.Memory.Pinned,
}


def edge_vector_params(params: models.VectorParams) -> edge.EdgeVectorParams:
    """Translate one vector's settings; the only quantization the store uses is binary."""
    quantization = None
    if params.quantization_config is not None:
        if not isinstance(params.quantization_config, models.BinaryQuantization):
            raise TypeError(f"quantization {type(params.quantization_config).__name__} is not translated")
        binary = params.quantization_config.binary
        quantization = edge.BinaryQuantizationConfig(memory=_memory(binary.memory))
    return edge.EdgeVectorParams(
        size=params.size,
        distance=_DISTANCES[params.distance],
        datatype=None if params.datatype is None else _DATATYPES[params.datatype],
        memory=_memory(params.memory),
        quantization_config=quantization,
    )


def edge_payload_type(name: str) -> edge.PayloadSchemaType:
    """Translate the type of a payload index, such as "keyword"."""
    return _PAYLOAD_TYPES[name]


def edge_query(request: models.QueryRequest, *, ignore_quantization: bool) -> edge.QueryRequest:
    """Translate a search.

    Args:
        request: As built by :func:`pplx_vectorstore.query.build_query`.
        ignore_quantization: Let the first stage rank by the stored vectors instead of their bits, and
            hand on more of them: Euclidean distance knows less of the cosine where norms differ.
    """
    return edge.QueryRequest(
        limit=request.limit or 10,
        query=_scoring_query(request.query, request.using),
        prefetches=[_prefetch(prefetch, ignore_quantization) for prefetch in _as_list(request.prefetch)],
        filter=None if request.filter is None else edge_filter(request.filter),
        score_threshold=request.score_threshold,
        with_payload=bool(request.with_payload),
        with_vector=bool(request.with_vector),
    )


def edge_filter(filter: models.Filter) -> edge.Filter:  # noqa: A002 - Qdrant's own word for it
    """Translate a filter with everything in it.

    Raises:
        UnsupportedFilterError: A condition has no counterpart in the embedded engine.
    """
    min_should = filter.min_should
    return edge.Filter(
        must=_conditions(filter.must),
        should=_conditions(filter.should),
        must_not=_conditions(filter.must_not),
        min_should=None
        if min_should is None
        else edge.MinShould(_conditions(min_should.conditions) or [], min_should.min_count),
    )


def _prefetch(prefetch: models.Prefetch, ignore_quantization: bool) -> edge.Prefetch:
    params = None
    widening = _EUCLID_WIDENING if ignore_quantization else 1
    if prefetch.params is not None:
        quantization = prefetch.params.quantization or models.QuantizationSearchParams()
        params = edge.SearchParams(
            hnsw_ef=None if prefetch.params.hnsw_ef is None else widening * prefetch.params.hnsw_ef,
            exact=bool(prefetch.params.exact),
            quantization=edge.QuantizationSearchParams(
                ignore=ignore_quantization or bool(quantization.ignore),
                rescore=quantization.rescore,
                oversampling=quantization.oversampling,
            ),
        )
    return edge.Prefetch(
        limit=widening * (prefetch.limit or 10),
        query=_scoring_query(prefetch.query, prefetch.using),
        filter=None if prefetch.filter is None else edge_filter(prefetch.filter),
        params=params,
        score_threshold=prefetch.score_threshold,
    )


def _scoring_query(query: Any, using: str | None) -> Any:
    if isinstance(query, models.NearestQuery):
        vector: Any = query.nearest
        return edge.Query.Nearest(vector, using)
    if isinstance(query, models.FormulaQuery):
        return edge.Formula(_expression(query.formula), query.defaults)
    raise TypeError(f"query {type(query).__name__} is not translated")


def _expression(node: Any) -> edge.Expression:
    make = edge.Expression
    if isinstance(node, (int, float)):
        return make.Constant(float(node))
    if isinstance(node, str):
        return make.Variable(node)
    if isinstance(node, models.SumExpression):
        return make.Sum([_expression(inner) for inner in node.sum])
    if isinstance(node, models.MultExpression):
        return make.Mult([_expression(inner) for inner in node.mult])
    if isinstance(node, models.NegExpression):
        return make.Neg(_expression(node.neg))
    if isinstance(node, models.DivExpression):
        return make.Div(_expression(node.div.left), _expression(node.div.right), node.div.by_zero_default)
    raise TypeError(f"expression {type(node).__name__} is not translated")


def _conditions(conditions: Any) -> list[Any] | None:
    return None if conditions is None else [_condition(condition) for condition in _as_list(conditions)]


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
    raise UnsupportedFilterError(f"the embedded engine does not know the match {type(match).__name__}")


def _range(range_: Any) -> Any:
    if range_ is None:
        return None
    if isinstance(range_, models.DatetimeRange):
        bounds = {name: getattr(range_, name) for name in ("gte", "gt", "lte", "lt")}
        texts = {name: None if value is None else value.isoformat() for name, value in bounds.items()}
        return edge.RangeDateTime(**texts)
    return edge.RangeFloat(gte=range_.gte, gt=range_.gt, lte=range_.lte, lt=range_.lt)


def _geo(point: models.GeoPoint) -> edge.GeoPoint:
    return edge.GeoPoint(point.lon, point.lat)


def _line(line: models.GeoLineString) -> list[edge.GeoPoint]:
    return [_geo(point) for point in line.points]


def _point_id(point_id: Any) -> int | UUID:
    return point_id if isinstance(point_id, int) else UUID(str(point_id))


def _memory(memory: models.Memory | None) -> edge.Memory | None:
    return None if memory is None else _MEMORY[memory]


def _as_list(value: Any) -> Sequence[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
