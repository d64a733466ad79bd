"""Search arguments → one Qdrant request: Hamming ranking, Euclid rescoring, exact cosine."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pplx_vectorstore.collection import VECTOR_NAME
from pplx_vectorstore.documents import has_lone_surrogate
from pplx_vectorstore.errors import InvalidInputError, UnsupportedFilterError
from pplx_vectorstore.points import SHIFT
from pplx_vectorstore.quantization import Codes

if TYPE_CHECKING:
    from qdrant_client import models

MIN_CANDIDATES = 100
CANDIDATES_PER_RESULT = 10
_EUCLID_WIDENING = 8
_MOST = 2**48  # times the factors that derived limits take, it still fits the engine's 64 bits

_UNQUOTABLE = re.compile(r'["\\]')  # a quoted key of a JSON path has no escapes


def choose_candidates(k: int, candidates: int | None) -> int:
    """Check k and candidates, and choose the default: ten per result, at least 100.

    Args:
        k: Hits wanted, at least 1.
        candidates: Points that the Hamming stage hands to the exact stage, at least k; None for the
            default.

    Raises:
        InvalidInputError: One is not a whole number in range.

    >>> choose_candidates(10, None), choose_candidates(50, None), choose_candidates(10, 40)
    (100, 500, 40)
    """
    if not _is_count(k) or k < 1:
        raise InvalidInputError(f"k must be a whole number of at least 1, not {k!r}")
    if k > _MOST:
        raise InvalidInputError(f"k must be at most {_MOST}, not {k}")
    if candidates is None:
        return max(MIN_CANDIDATES, CANDIDATES_PER_RESULT * k)
    if not _is_count(candidates) or candidates < k:
        raise InvalidInputError(f"candidates must be a whole number of at least k = {k}, not {candidates!r}")
    if candidates > _MOST:
        raise InvalidInputError(f"candidates must be at most {_MOST}, not {candidates}")
    return candidates


def check_threshold(score_threshold: float | None) -> None:
    """Refuse a least score that is no finite number.

    Raises:
        InvalidInputError: It is not None, an int or a finite float.
    """
    if score_threshold is None:
        return
    if isinstance(score_threshold, bool) or not isinstance(score_threshold, (int, float)):
        raise InvalidInputError(f"score_threshold must be a number or None, not {type(score_threshold).__name__}")
    if not math.isfinite(score_threshold):
        raise InvalidInputError(f"score_threshold must be finite, not {score_threshold}")


def is_empty(filter: models.Filter) -> bool:  # noqa: A002
    """Tell whether a filter says nothing, so that it would match every point."""
    from qdrant_client import models

    inner = [
        condition
        for clause in (filter.must, filter.should, filter.must_not, filter.min_should and filter.min_should.conditions)
        for condition in (clause if isinstance(clause, list) else [clause] if clause else [])
    ]
    return all(isinstance(condition, models.Filter) and is_empty(condition) for condition in inner)


def build_query(
    codes: Codes,
    *,
    k: int,
    candidates: int,
    filter: models.Filter | None = None,  # noqa: A002 - Qdrant's own word for it
    score_threshold: float | None = None,
    exact: bool = False,
) -> models.QueryRequest:
    """Build the two-stage search for one query.

    The first stage ranks by Hamming distance on the packed bits and rescores its `candidates` by
    Euclidean distance on the codes. The second turns that distance d into the cosine: from
    ``d² = |q|² + |x|² - 2 q·x`` follows ``q·x / (|q| |x|) = (|q|² + |x|² - d²) / (2 |q| |x|)``.

    Args:
        codes: int8, shape (dimension,), not all zero.
        k: Hits wanted.
        candidates: Points that reach the second stage.
        filter: Only points that match it.
        score_threshold: Least cosine of a hit.
        exact: Scan every code instead of the index and the bits.

    Returns:
        A request for ``query_batch_points``; scores are cosines of the int8 codes.
    """
    from qdrant_client import models

    wide = codes.astype(np.int64)
    squared_norm = float(wide @ wide)
    squared_distance = models.MultExpression(mult=["$score", "$score"])
    numerator = models.SumExpression(
        sum=[
            squared_norm,
            models.MultExpression(mult=["norm", "norm"]),
            models.NegExpression(neg=squared_distance),
        ]
    )
    denominator = models.MultExpression(mult=[2.0 * math.sqrt(squared_norm), "norm"])
    cosine = models.DivExpression(div=models.DivParams(left=numerator, right=denominator, by_zero_default=0.0))
    # Validating thousands of components against every form a query may have takes longer than the
    # search; model_construct skips it, and every value here is ours.
    shifted = (codes.astype(np.int16) + SHIFT).tolist()
    first_stage = models.Prefetch.model_construct(
        query=models.NearestQuery.model_construct(nearest=shifted),
        using=VECTOR_NAME,
        filter=filter,
        limit=candidates,
        params=models.SearchParams(
            # A beam of twice the candidates costs little and finds what a narrow one misses.
            hnsw_ef=2 * candidates,
            exact=exact,
            quantization=models.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=1.0),
        ),
    )
    return models.QueryRequest.model_construct(
        prefetch=[first_stage],
        query=models.FormulaQuery.model_construct(formula=cosine),
        limit=k,
        score_threshold=score_threshold,
        with_payload=True,
    )


def first_stage_limit(request: models.QueryRequest) -> int:
    """Return how many points the search's vector stage hands on, or 0 where it has none."""
    limits = [stage.limit or 0 for stage in _vector_stages(request)]
    return min(limits, default=0)


def widen(request: models.QueryRequest, most: int | None = None) -> models.QueryRequest:
    """Make the vector stage rank by the stored codes instead of their bits.

    For engines whose bits cannot be trusted at the moment. Euclidean distance knows less of the
    cosine than Hamming distance where norms differ, so eight times as many points are handed on.

    Args:
        request: From :func:`build_query`.
        most: Largest limit that the server accepts, or None.

    Returns:
        A copy; the request itself is not changed.
    """
    return cast("models.QueryRequest", _widen(request, most))


def _widen(stage: Any, most: int | None) -> Any:
    from qdrant_client import models

    changes: dict[str, Any] = {}
    if stage.prefetch:
        changes["prefetch"] = [_widen(inner, most) for inner in stage.prefetch]
    if isinstance(stage.query, models.NearestQuery) and stage.params is not None:
        limit = _EUCLID_WIDENING * (stage.limit or 10)
        changes["limit"] = limit if most is None else min(limit, most)
        changes["params"] = stage.params.model_copy(
            update={
                "hnsw_ef": None if stage.params.hnsw_ef is None else _EUCLID_WIDENING * stage.params.hnsw_ef,
                "quantization": models.QuantizationSearchParams(ignore=True),
            }
        )
    return stage.model_copy(update=changes)


def _vector_stages(stage: Any) -> Iterator[Any]:
    from qdrant_client import models

    for inner in stage.prefetch or []:
        yield from _vector_stages(inner)
        if isinstance(inner.query, models.NearestQuery):
            yield inner


def build_filter(filter: models.Filter | Mapping[str, Any] | None) -> models.Filter | None:  # noqa: A002
    """Turn a dict of metadata equalities into a Qdrant filter; a ready filter passes through.

    Args:
        filter: ``{"lang": "en", "year": 2024}`` keeps points whose metadata has all of these; a list
            stands for any of its values, None for a missing or null field, a dict for fields within
            that field. Keys are taken literally, dots and all. A field that no point has matches
            nothing.

    Raises:
        UnsupportedFilterError: A value or a key cannot be matched.
    """
    from qdrant_client import models

    if filter is None or isinstance(filter, models.Filter):
        return filter
    if not isinstance(filter, Mapping):
        raise UnsupportedFilterError(
            f"filter must be a dict of metadata equalities or a qdrant_client.models.Filter, "
            f"not {type(filter).__name__}"
        )
    conditions = [condition for key, value in filter.items() for condition in _conditions("metadata", key, value)]
    return models.Filter(must=conditions) if conditions else None


def _conditions(parent: str, key: object, value: object) -> list[Any]:
    from qdrant_client import models

    if not isinstance(key, str) or not key or _UNQUOTABLE.search(key) or has_lone_surrogate(key):
        raise UnsupportedFilterError(
            f"a filter's key must be a non-empty str without quotes, backslashes and lone surrogates, not {key!r}"
        )
    path = f'{parent}."{key}"'
    if isinstance(value, Mapping) and value:
        return [condition for name, inner in value.items() for condition in _conditions(path, name, inner)]
    if value is None:
        return [models.IsEmptyCondition(is_empty=models.PayloadField(key=path))]
    if isinstance(value, float) and math.isfinite(value):
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


def _is_matchable(value: object) -> bool:
    if isinstance(value, str):
        return not has_lone_surrogate(value)
    return isinstance(value, bool) or (isinstance(value, int) and -(2**63) <= value < 2**63)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
