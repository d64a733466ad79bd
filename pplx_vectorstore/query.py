"""Search arguments → one Qdrant request: by the bits, then by the codes, or by the codes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np

from pplx_vectorstore.collection import TEXT_FIELD, VECTOR_NAME
from pplx_vectorstore.equal_norms import LARGEST
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.points import SHIFT
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.quantization import Codes

MIN_CANDIDATES = 100
CANDIDATES_PER_RESULT = 10
_MOST = 2**48  # times the factors that derived limits take, it still fits the engine's 64 bits
_DISTANCE_ROOM = 1e-6
# Share of the points that match a filter, up to which ACORN is used: with Qdrant's own 0.4, a filter that one in two
# matches missed one in ten (benchmarks/server_features.py).
_ACORN_SELECTIVITY = 1.0
T = TypeVar("T")
StageChange = Callable[[Any], Any]


def choose_candidates(k: int, candidates: int | None) -> int:
    """Check k and candidates, and choose the default: ten per result, at least 100.

    Args:
        k: Hits wanted, at least 1.
        candidates: Points to be compared by their codes, or the width of the beam that walks by these, at least k;
            None for the default.

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


def check_share(name: str, value: object) -> None:
    """Refuse what is no number from 0 to 1.

    Raises:
        InvalidInputError: Names it.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InvalidInputError(f"{name} must be a number from 0 to 1, not {value!r}")


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


@dataclass(frozen=True, slots=True)
class QueryVector:
    """A query as the engine compares it, and how the distances that it finds become cosines.

    Qdrant casts what it compares with uint8 vectors to uint8, so a query has to be whole numbers. Codes are taken times
    a whole number, which rounds nothing; a query need not have the norm C of what is stored: from
    ``d² = |q|² + C² - 2 |q| C cos`` follows the cosine, and for one query the order is the same.

    Attributes:
        values: Multiplied codes, plus 128, each in 0 to 255.
        norm: |q|, of the multiplied codes.
        stored_norm: C.
    """

    values: list[int]
    norm: float
    stored_norm: float

    @classmethod
    def of(cls, codes: Codes, squared_norm: int) -> QueryVector:
        """Make one of int8 codes of shape (dimension,), not all zero.

        >>> QueryVector.of(np.array([40, -30, 0], np.int8), 127**2)
        QueryVector(values=[248, 38, 128], norm=150.0, stored_norm=127.0)
        """
        wide = codes.astype(np.int16)
        wide *= max(1, LARGEST // int(np.abs(wide).max()))
        floats = wide.astype(np.float64)
        return cls((wide + SHIFT).tolist(), math.sqrt(floats @ floats), math.sqrt(squared_norm))

    def cosine(self, distance: float) -> float:
        """Return the cosine with a stored vector at that Euclidean distance."""
        # Both sides are whole numbers, so the square is one too: rounding undoes the engine's 32-bit root. Where a norm
        # could not be met exactly, the result may pass the bounds.
        return min(1.0, max(-1.0, (self._squares - round(distance * distance)) / self._product))

    def largest_distance(self, cosine: float) -> float:
        """Return a Euclidean distance that everything of at least that cosine is below, with a little room."""
        # The engine leaves out what is at the distance itself, and computes with 32 bits.
        return math.sqrt(max(0.0, self._squares - self._product * cosine) + 0.5) * (1 + _DISTANCE_ROOM)

    @property
    def _squares(self) -> float:
        return self.norm**2 + self.stored_norm**2

    @property
    def _product(self) -> float:
        return 2 * self.norm * self.stored_norm


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How points are compared with a query.

    Attributes:
        candidates: Points that are compared by their codes: the best by the bits, or the width of the beam that walks
            the graph by the codes.
        by_bits: Which of the two; the bits of points that are not indexed yet mean nothing.
        exact: Compare all codes, without bits and graph.
        most_hnsw_ef: Widest beam that the server accepts, or None.
        unindexed: By the bits, matches points that may have none that mean anything: the best of them by the codes are
            considered, too.
        acorn: Whether to walk past points that do not match a filter, to those that they are linked to (ACORN): what
            matches may hang together by those alone. By the bits, it was measured to find little more, at several
            times the price; without a filter, it means nothing.
        widening: By the codes, how many times as wide as the candidates the beam is.
    """

    candidates: int
    by_bits: bool
    exact: bool = False
    most_hnsw_ef: int | None = None
    unindexed: models.Filter | None = None
    acorn: bool = False
    widening: int = 1


def build_query(
    query: QueryVector | None,
    ranking: Ranking,
    *,
    k: int,
    filter: models.Filter | None = None,  # noqa: A002 - Qdrant's own word for it
    score_threshold: float | None = None,
    text: str | models.Document | None = None,
    lexical_weight: float = 0.5,
    lexical_field: str = TEXT_FIELD,
    with_payload: bool | list[str] = True,
    with_codes: bool = False,
) -> models.QueryRequest:
    """Build the search for one query: nearest vectors, the same fused with BM25, or BM25 alone.

    By the bits, the engine ranks by Hamming distance, each bit weighted by the query's component unless the collection
    says ``query_encoding="binary"``, and compares the `candidates` best by the Euclidean distance of their codes.

    Args:
        query: What is searched for; None where BM25 alone ranks.
        ranking: How.
        k: Hits wanted.
        filter: Only points that match it.
        score_threshold: Least score of a hit. Of cosines it is applied with a little room, for arithmetic of 32 bits.
        text: The question's words: the candidates of both rankings, by cosine and by BM25, are fused by
            their reciprocal ranks. None for cosine alone. A Document is compared with sparse vectors.
        lexical_weight: Share of BM25 in the fusion, above 0 and below 1.
        lexical_field: What BM25 ranks by: an indexed field, or the name of the sparse vectors.
        with_payload: Whether hits bring their payload, or which fields of it.
        with_codes: Whether hits bring their stored vectors.

    Returns:
        A request for ``query_batch_points``; scores are distances (`QueryVector.cosine`), fused ranks, or BM25's.
    """
    rest: dict[str, Any] = {"limit": k, "with_payload": with_payload, "with_vector": with_codes}
    if text is None and query is not None:
        if score_threshold is not None:
            rest["score_threshold"] = query.largest_distance(score_threshold)
        return models.QueryRequest(**_nearest(query, ranking, filter, n=k), **rest)
    rest["score_threshold"] = score_threshold
    words = (
        models.NearestQuery(nearest=text) if isinstance(text, models.Document) else models.TextQuery(text=text or "")
    )
    lexical: dict[str, Any] = {"query": words, "using": lexical_field, "filter": filter}
    if query is None:
        return models.QueryRequest(**lexical, **rest)
    n = ranking.candidates
    stages = [_nearest(query, ranking, filter, n=n), lexical]
    return models.QueryRequest(
        prefetch=[models.Prefetch(**stage, limit=n) for stage in stages],
        query=_fusion(lexical_weight),
        **rest,
    )


def _fusion(lexical_weight: float) -> Any:
    """Fuse two rankings by their reciprocal ranks."""
    if lexical_weight == 0.5:
        return models.FusionQuery(fusion=models.Fusion.RRF)
    return models.RrfQuery(rrf=models.Rrf(weights=[2 * (1 - lexical_weight), 2 * lexical_weight]))


def fuse_ranks(nearest: Sequence[T], lexical: Sequence[T], lexical_weight: float) -> dict[T, float]:
    """Fuse two rankings as the engine does.

    Returns:
        The sum of ``1 / (rank / weight + 1)`` over the rankings that an element is in, ranks counted from 1.

    >>> fuse_ranks(["a", "b"], ["b"], 0.5)
    {'a': 0.5, 'b': 0.8333333333333333}
    """
    scores: dict[T, float] = {}
    for ranking, weight in ((nearest, 2 * (1 - lexical_weight)), (lexical, 2 * lexical_weight)):
        for rank, element in enumerate(ranking, start=1):
            scores[element] = scores.get(element, 0.0) + 1 / (rank / weight + 1)
    return scores


def build_hamming(
    query: QueryVector,
    candidates: int,
    *,
    filter: models.Filter | None = None,  # noqa: A002
    most_hnsw_ef: int | None = None,
) -> models.QueryRequest:
    """Build a request that ranks by the bits alone, to explain a search."""
    ranking = Ranking(candidates=candidates, by_bits=True, most_hnsw_ef=most_hnsw_ef)
    stage = _nearest(query, ranking, filter, n=candidates, rescore=False)
    return models.QueryRequest(**stage, limit=candidates, with_payload=False)


def _nearest(
    query: QueryVector,
    ranking: Ranking,
    filter: models.Filter | None,  # noqa: A002
    *,
    n: int,
    rescore: bool = True,
) -> dict[str, Any]:
    """Build what is common to a request for the n nearest, and to a stage that hands them on."""
    if ranking.by_bits and not ranking.exact and ranking.unindexed is not None and rescore:
        by_codes = replace(ranking, by_bits=False, unindexed=None)
        unindexed = ranking.unindexed if filter is None else models.Filter(must=[filter, ranking.unindexed])
        stages = [
            _nearest(query, replace(ranking, unindexed=None), filter, n=n),
            _nearest(query, by_codes, unindexed, n=n),
        ]
        prefetch = [models.Prefetch(**stage, limit=n) for stage in stages]
        # The best of both, compared once more, by the codes.
        return {**_nearest(query, by_codes, None, n=n), "prefetch": prefetch}
    candidates = max(ranking.candidates, n)
    # By the bits, a beam of twice the candidates costs little and finds what a narrow one misses.
    beam = candidates * (2 if ranking.by_bits else ranking.widening)
    return {
        "query": models.NearestQuery(nearest=query.values),
        "using": VECTOR_NAME,
        "filter": filter,
        "params": models.SearchParams(
            hnsw_ef=beam if ranking.most_hnsw_ef is None else min(beam, ranking.most_hnsw_ef),
            exact=ranking.exact,
            quantization=models.QuantizationSearchParams(
                ignore=ranking.exact or not ranking.by_bits,
                rescore=rescore,
                oversampling=candidates / n if ranking.by_bits else None,
            ),
            acorn=_acorn() if ranking.acorn and not ranking.exact and not ranking.by_bits else None,
        ),
    }


def _acorn() -> models.AcornSearchParams:
    return models.AcornSearchParams(enable=True, max_selectivity=_ACORN_SELECTIVITY)


def map_stages(request: models.QueryRequest, change: StageChange) -> models.QueryRequest:
    """Return a copy of a search in which every stage that reads points is changed."""
    return cast("models.QueryRequest", _map_stages(request, change))


def _map_stages(stage: Any, change: StageChange) -> Any:
    if stage.prefetch:
        return stage.model_copy(update={"prefetch": [_map_stages(inner, change) for inner in stage.prefetch]})
    return change(stage)


def is_lexical(stage: models.QueryRequest | models.Prefetch) -> bool:
    """Tell whether a stage ranks by words."""
    query: Any = stage.query
    return isinstance(query, models.TextQuery) or isinstance(getattr(query, "nearest", None), models.Document)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
