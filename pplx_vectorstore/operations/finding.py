"""Finding points: what a search asks for, and the points that one round of requests gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pplx_vectorstore.collection import BM25_VECTOR, TEXT_FIELD, WORDS_FIELD
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.query import (
    QueryVector,
    Ranking,
    build_query,
    check_share,
    check_threshold,
    choose_candidates,
    fuse_ranks,
)

if TYPE_CHECKING:
    from pplx_vectorstore.filters import FilterLike

_MOST_CONTEXT = 100
# Searches of one question among points that others delete meanwhile.
TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """What a search was asked for; checked when it is made.

    Attributes:
        k: Hits, or documents where grouped.
        candidates: Points to be compared by their codes, or the width of the beam; None to choose.
        filter: Only points that match.
        score_threshold: Least score of a hit.
        hybrid: Fuse with BM25.
        lexical_weight: Share of BM25 in the fusion, 0 to 1.
        group_by_document: False, or most chunks of one document (True for 1).
        diversity: None, or how much hits shall differ, 0 to 1.
        context: Neighbours of a hit to return with it, on each side.
        with_codes: Whether hits bring their codes.
    """

    k: int = 10
    candidates: int | None = None
    filter: FilterLike = None
    score_threshold: float | None = None
    hybrid: bool = False
    lexical_weight: float = 0.5
    group_by_document: bool | int = False
    diversity: float | None = None
    context: int = 0
    with_codes: bool = False

    def __post_init__(self) -> None:
        choose_candidates(self.k, self.candidates)
        check_threshold(self.score_threshold)
        for name in ("hybrid", "with_codes"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if not isinstance(self.group_by_document, int) or self.group_by_document < 0:
            raise InvalidInputError(
                f"group_by_document must be True, False or most chunks of one document, not {self.group_by_document!r}"
            )
        check_share("lexical_weight", self.lexical_weight)
        if self.diversity is not None:
            check_share("diversity", self.diversity)
        if (
            isinstance(self.context, bool)
            or not isinstance(self.context, int)
            or not 0 <= self.context <= _MOST_CONTEXT
        ):
            raise InvalidInputError(f"context must be a whole number from 0 to {_MOST_CONTEXT}, not {self.context!r}")

    @property
    def uses_words(self) -> bool:
        """Whether BM25 has a share in the ranking, so that scores are no cosines."""
        return self.hybrid and self.lexical_weight > 0

    @property
    def uses_vectors(self) -> bool:
        """Whether vectors have one."""
        return not self.hybrid or self.lexical_weight < 1

    @property
    def is_plain(self) -> bool:
        """Whether hits come as the engine ranks them."""
        return not self.group_by_document and self.diversity is None


class Scored(NamedTuple):
    """A point that was found."""

    id: Any
    score: float
    payload: dict[str, Any]
    vector: Any


class Question(NamedTuple):
    """One query, ready to be searched for.

    Attributes:
        codes: int8, shape (dimension,).
        vector: What is compared; None where vectors have no part.
        words: For BM25; None where it has no part.
    """

    codes: Codes
    vector: QueryVector | None
    words: str | models.Document | None


def candidates_of(session: Session, options: SearchOptions) -> int:
    """Check what the server bounds, and return how many points are to be compared by their codes.

    Raises:
        InvalidInputError: The server allows less.
    """
    points = session.points
    points.check_limit("k", options.k)
    points.check_limit("group_by_document", int(options.group_by_document))
    if options.candidates is not None:
        return points.check_limit("candidates", options.candidates)
    chosen = choose_candidates(options.k, None)
    return chosen if points.limits.query_limit is None else min(chosen, points.limits.query_limit)


async def find(
    session: Session,
    questions: Sequence[Question],
    conditions: Sequence[models.Filter | None],
    options: SearchOptions,
    candidates: int,
    *,
    limit: int,
    with_payload: bool | list[str] = True,
    with_codes: bool = False,
    exact: Collection[int] = (),
) -> list[list[Scored]]:
    """Find points for each question, best first; their scores are cosines, unless words have a share in them.

    Args:
        session: The open store.
        questions: What is searched for.
        conditions: The filter of each question.
        options: Their threshold and shares are heeded.
        candidates: Points to be compared by their codes.
        limit: Points of each question.
        with_payload: As in a request.
        with_codes: Whether to fetch the vectors.
        exact: Places of the questions for which all codes are compared.
    """
    if session.points.is_large(limit, with_payload=with_payload, with_codes=with_codes):
        read: list[list[Scored]] = []
        for _ in range(TRIES):
            found = await find(
                session, questions, conditions, options, candidates, limit=limit, with_payload=False, exact=exact
            )
            read = await _read(session, found, with_payload, with_codes)
            if list(map(len, read)) == list(map(len, found)):  # else what was deleted stood before others
                break
        return read
    asked = list(zip(questions, conditions, strict=True))
    with_words = options.uses_words and WORDS_FIELD in session.points.lexical_fields
    most = candidates if options.uses_vectors else max(candidates, limit)

    def requests(ranking: Ranking) -> list[models.QueryRequest]:
        of_questions = [
            build_query(
                question.vector,
                replace(ranking, exact=True) if i in exact else ranking,
                k=limit,
                filter=condition,
                score_threshold=options.score_threshold,
                text=question.words,
                lexical_weight=options.lexical_weight,
                lexical_field=BM25_VECTOR if BM25_VECTOR in session.points.lexical_fields else TEXT_FIELD,
                with_payload=with_payload,
                with_codes=with_codes,
            )
            for i, (question, condition) in enumerate(asked)
        ]
        return of_questions + [_by_words(WORDS_FIELD, *one, ranking, most) for one in asked if with_words]

    # Fused with words, as many as the candidates are asked for.
    answers = await _query(session, requests, candidates, n=candidates if options.uses_words else limit)
    of_questions, of_words = answers[: len(asked)], answers[len(asked) :]
    n = sum(map(len, of_questions))
    scored = await session.compute(n, _score_all, questions, of_questions, options)
    # Of most texts, their index sees all words. Where the other index has no part, the engine has fused all there is.
    unseen = {i: points for i, points in enumerate(of_words) if points}
    if unseen:
        of_unseen = [asked[i] for i in unseen]
        are_exact = [i in exact for i in unseen]
        fused = await _fuse_unseen(session, of_unseen, list(unseen.values()), options, candidates, most, are_exact)
        best = [points[:limit] for points in fused]
        if with_payload or with_codes:
            best = await _read(session, best, with_payload, with_codes)
        for i, points in zip(unseen, best, strict=True):
            scored[i] = points
    return scored


def _by_words(
    field: str, question: Question, condition: models.Filter | None, ranking: Ranking, most: int
) -> models.QueryRequest:
    text = question.words
    return build_query(None, ranking, k=most, filter=condition, text=text, lexical_field=field, with_payload=False)


async def _fuse_unseen(
    session: Session,
    asked: Sequence[tuple[Question, models.Filter | None]],
    unseen: Sequence[Sequence[Any]],
    options: SearchOptions,
    candidates: int,
    most: int,
    exact: Sequence[bool],
) -> list[list[Scored]]:
    """Rank by all words: scores of BM25 are sums over words. Then fuse with vectors, as the engine does.

    The engine itself, by a formula, gives points of equal scores in another order each time.
    """

    def requests(ranking: Ranking) -> list[models.QueryRequest]:
        nearest = [
            build_query(question.vector, replace(ranking, exact=is_exact), k=most, filter=condition, with_payload=False)
            for (question, condition), is_exact in zip(asked, exact, strict=True)
            if options.uses_vectors
        ]
        return [_by_words(TEXT_FIELD, *one, ranking, most) for one in asked] + nearest

    found = await _query(session, requests, candidates, n=candidates)
    n = sum(map(len, found))
    return await session.compute(n, _fuse_all, found, unseen, options, most)


def _fuse_all(
    found: Sequence[Sequence[Any]], unseen: Sequence[Sequence[Any]], options: SearchOptions, most: int
) -> list[list[Scored]]:
    """Fuse what was found by each text, then by each vector, with what the other index of words has."""
    fused = []
    for i, of_question in enumerate(unseen):
        scores: dict[Any, float] = {}
        for point in (*found[i], *of_question):
            scores[point.id] = scores.get(point.id, 0.0) + point.score
        if options.uses_vectors:
            lexical = sorted(scores, key=lambda id_: -scores[id_])[:most]
            scores = fuse_ranks([point.id for point in found[len(unseen) + i]], lexical, options.lexical_weight)
        points = [Scored(id_, score, {}, None) for id_, score in scores.items()]
        fused.append(above(sorted(points, key=lambda point: -point.score), options.score_threshold))
    return fused


async def _read(
    session: Session, found: Sequence[Sequence[Scored]], with_payload: bool | list[str], with_codes: bool
) -> list[list[Scored]]:
    """Fill in what is asked for of points; those that were deleted meanwhile are left out."""
    ids = [str(point.id) for points in found for point in points]
    records = await session.points.retrieve(ids, with_payload=with_payload, with_codes=with_codes)

    return await session.compute(len(ids), _fill_all, found, records)


def _fill_all(found: Sequence[Sequence[Scored]], records: Mapping[str, Any]) -> list[list[Scored]]:
    def fill(point: Scored) -> Scored:
        record = records[str(point.id)]
        return point._replace(payload=record.payload or {}, vector=record.vector)

    return [[fill(point) for point in points if str(point.id) in records] for points in found]


async def _query(
    session: Session, requests: Callable[[Ranking], list[models.QueryRequest]], candidates: int, *, n: int
) -> list[list[Any]]:
    """Search in the way that is the better one now; again by the codes if a write made bits useless meanwhile."""
    ranking = await session.points.ranking(candidates, n=n)
    found = await session.points.query(requests(ranking))
    if ranking.by_bits and not await session.points.has_bits(candidates):
        found = await session.points.query(requests(replace(ranking, by_bits=False)))
    return found


def _score_all(
    questions: Sequence[Question], found: Sequence[Sequence[Any]], options: SearchOptions
) -> list[list[Scored]]:
    return [_scored(question, points, options) for question, points in zip(questions, found, strict=True)]


def _scored(question: Question, points: Sequence[Any], options: SearchOptions) -> list[Scored]:
    if question.words is not None or question.vector is None:
        return [Scored(point.id, point.score, point.payload, point.vector) for point in points]
    cosine = question.vector.cosine
    scored = [Scored(point.id, cosine(point.score), point.payload, point.vector) for point in points]
    return above(scored, options.score_threshold)


def above(points: Sequence[Scored], threshold: float | None) -> list[Scored]:
    """Return the points that score enough."""
    return [point for point in points if threshold is None or point.score >= threshold]
