"""Searching: by bits or codes, hybrid, grouped, diverse, with context, and explained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from qdrant_client import models

from pplx_vectorstore.diversity import order_by_diversity
from pplx_vectorstore.documents import EncodedQuery, Hit, is_blank
from pplx_vectorstore.errors import InvalidInputError, StoreError, UnsupportedServerError
from pplx_vectorstore.operations.access import in_batches
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.points import read_codes, read_hit, read_stored_codes
from pplx_vectorstore.quantization import Codes, cosine_similarity
from pplx_vectorstore.query import (
    QueryVector,
    Ranking,
    build_filter,
    build_hamming,
    build_query,
    check_share,
    check_threshold,
    choose_candidates,
)
from pplx_vectorstore.reports import ExplainedHit, Explanation

Query = str | npt.NDArray[np.int8] | EncodedQuery
"""A question, int8 codes of shape (dimension,), or both."""

_MOST_CONTEXT = 100
_PASSAGES_AT_ONCE = 50
_LARGEST_POOL = 20_000


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
    filter: models.Filter | Mapping[str, Any] | None = None
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


class _Scored(NamedTuple):
    """A point that was found."""

    id: Any
    score: float
    payload: dict[str, Any]
    vector: Any


class _Question(NamedTuple):
    """One query, ready to be searched for.

    Attributes:
        codes: int8, shape (dimension,).
        vector: What is compared; None where vectors have no part.
        words: For BM25; None where it has no part.
    """

    codes: Codes
    vector: QueryVector | None
    words: str | None


async def search_batch(session: Session, queries: Sequence[Query], options: SearchOptions) -> list[list[Hit]]:
    """Search for several queries in one request."""
    _require_hybrid(session, queries, options)
    condition = build_filter(options.filter)
    questions = await _questions(session, queries, options)
    if not questions:
        return []
    candidates = _candidates(session, options)
    if options.is_plain:
        found = await _find(
            session, questions, options, condition, candidates, limit=options.k, with_codes=options.with_codes
        )
        hits = [[_read(session, point, point, options) for point in points] for points in found]
    else:
        hits = await _search_pools(session, questions, options, condition, candidates)
    if options.context:
        return await _with_context(session, hits, options.context)
    return hits


def _read(session: Session, point: _Scored, record: Any, options: SearchOptions) -> Hit:
    """Make a hit of what was found and of what was fetched of it."""
    payload = record.payload or {}
    codes = None
    if options.with_codes:
        codes = read_codes(record.vector, payload, session.fingerprint.dimension, session.fingerprint.squared_norm)
    return read_hit(point.id, payload, point.score, codes)


async def explain(session: Session, query: Query, options: SearchOptions) -> Explanation:
    """Search, rank by the bits alone and scan exactly, in one request; compare."""
    if not session.points.limits.exact:
        raise StoreError("explain needs an exact scan, which this server's strict mode forbids (search_allow_exact)")
    condition = build_filter(options.filter)
    ((_, vector, _),) = await _questions(session, [query], replace(options, hybrid=False))
    assert vector is not None  # not hybrid
    candidates = _candidates(session, options)
    k = options.k
    ranking = await session.points.ranking(candidates, n=k)
    has_bits = await session.points.has_bits(candidates)
    requests = [
        build_query(vector, ranking, k=k, filter=condition),
        build_query(vector, replace(ranking, exact=True), k=max(k, candidates), filter=condition, with_payload=False),
    ]
    if has_bits:
        requests.append(build_hamming(vector, candidates, filter=condition, most_hnsw_ef=ranking.most_hnsw_ef))
    found, exact, *hamming = await session.points.query(requests)
    of_exact, of_hamming = _ranks(exact), _ranks(hamming[0] if hamming else [])
    hits = tuple(
        ExplainedHit(
            hit=read_hit(point.id, point.payload, vector.cosine(point.score)),
            hamming_rank=of_hamming.get(str(point.id)),
            exact_rank=of_exact.get(str(point.id)),
        )
        for point in found
    )
    best = exact[:k]
    returned = {str(point.id) for point in found}
    lost = {str(point.id): vector.cosine(point.score) for point in best if str(point.id) not in returned}
    records = await session.points.retrieve(list(lost))
    missed = tuple(read_hit(id_, records[id_].payload or {}, score) for id_, score in lost.items() if id_ in records)
    return Explanation(
        hits=hits,
        missed=missed,
        way="bits" if ranking.by_bits else "codes",
        candidates=candidates,
        recall=1.0 - len(lost) / len(best) if best else 1.0,
    )


def _ranks(points: Sequence[Any]) -> dict[str, int]:
    return {str(point.id): rank for rank, point in enumerate(points, start=1)}


def _require_hybrid(session: Session, queries: Sequence[Query], options: SearchOptions) -> None:
    if not options.uses_words:
        return
    capabilities = session.points.capabilities
    if not capabilities.text_scoring:
        raise UnsupportedServerError(
            f"hybrid search needs Qdrant 1.20 or newer, which ranks text by BM25; this server is "
            f"{capabilities.version}. Upgrade it, or search with hybrid=False"
        )
    if not session.points.has_text_index:
        raise StoreError(
            f"collection {session.points.collection!r} has no index of its text; open it once with "
            "config=CollectionConfig(text_index=True), which builds it"
        )
    for query in queries:
        words = _words(query)
        if words is None:
            raise InvalidInputError(
                "hybrid search needs the question's words; give a str or an EncodedQuery, not codes"
            )
        if is_blank(words):
            raise InvalidInputError("a query must not be blank")


def _words(query: Query) -> str | None:
    if isinstance(query, EncodedQuery):
        return query.text
    return query if isinstance(query, str) else None


def _candidates(session: Session, options: SearchOptions) -> int:
    points = session.points
    points.check_limit("k", options.k)
    points.check_limit("group_by_document", int(options.group_by_document))
    if options.candidates is not None:
        return points.check_limit("candidates", options.candidates)
    chosen = choose_candidates(options.k, None)
    return chosen if points.limits.query_limit is None else min(chosen, points.limits.query_limit)


async def _find(
    session: Session,
    questions: Sequence[_Question],
    options: SearchOptions,
    condition: models.Filter | None,
    candidates: int,
    *,
    limit: int,
    with_payload: bool | list[str] = True,
    with_codes: bool = False,
) -> list[list[_Scored]]:
    """Find points for each question, best first; their scores are cosines, unless words have a share in them."""

    def requests(ranking: Ranking) -> list[models.QueryRequest]:
        return [
            build_query(
                question.vector,
                ranking,
                k=limit,
                filter=condition,
                score_threshold=options.score_threshold,
                text=question.words,
                lexical_weight=options.lexical_weight,
                with_payload=with_payload,
                with_codes=with_codes,
            )
            for question in questions
        ]

    # Fused with words, as many as the candidates are asked for.
    found = await _query(session, requests, candidates, n=candidates if options.uses_words else limit)
    return [_scored(question, points, options) for question, points in zip(questions, found, strict=True)]


async def _query(
    session: Session, requests: Callable[[Ranking], list[models.QueryRequest]], candidates: int, *, n: int
) -> list[list[Any]]:
    """Search in the way that is the better one now; again by the codes if a write made bits useless meanwhile."""
    ranking = await session.points.ranking(candidates, n=n)
    found = await session.points.query(requests(ranking))
    if ranking.by_bits and not await session.points.has_bits(candidates):
        found = await session.points.query(requests(replace(ranking, by_bits=False)))
    return found


def _scored(question: _Question, points: Sequence[Any], options: SearchOptions) -> list[_Scored]:
    if question.words is not None or question.vector is None:
        return [_Scored(point.id, point.score, point.payload, point.vector) for point in points]
    cosine = question.vector.cosine
    scored = [_Scored(point.id, cosine(point.score), point.payload, point.vector) for point in points]
    if options.score_threshold is None:
        return scored
    return [point for point in scored if point.score >= options.score_threshold]


async def _search_pools(
    session: Session,
    questions: Sequence[_Question],
    options: SearchOptions,
    condition: models.Filter | None,
    candidates: int,
) -> list[list[Hit]]:
    """Choose among all candidates of each query; ask for more where they are of too few documents.

    Qdrant's own groups would not do: its embedded engine has none, and a server's stop after a few requests, with fewer
    documents than there are. Nor would its MMR, which weighs distances, not cosines, against each other.
    """
    chosen: dict[int, list[_Scored]] = {}
    waiting = list(range(len(questions)))
    cut_off: list[int] = []
    while waiting:
        found = await _find(
            session,
            [questions[i] for i in waiting],
            options,
            condition,
            candidates,
            limit=candidates,
            with_payload=["document_id"],
            with_codes=options.diversity is not None,
        )
        again = []
        larger = 4 * candidates
        if session.points.limits.query_limit is not None:
            larger = min(larger, session.points.limits.query_limit)
        for i, pool in zip(waiting, found, strict=True):
            chosen[i] = await session.calls.run(
                _choose, questions[i].codes, pool, options, session.fingerprint.dimension
            )
            if len(pool) < candidates:
                continue
            n_documents = len({point.payload["document_id"] for point in chosen[i]})
            too_few = bool(options.group_by_document) and n_documents < options.k
            if too_few and options.diversity is None and candidates < larger <= _LARGEST_POOL:
                again.append(i)
            else:
                cut_off.append(i)
        waiting, candidates = again, larger
    if int(options.group_by_document) > 1 and options.diversity is None and not options.uses_words:
        await _fill_groups(session, questions, options, condition, cut_off, chosen)
    ids = [str(point.id) for points in chosen.values() for point in points]
    records = await session.points.retrieve(ids, with_codes=options.with_codes)
    return [
        [
            _read(session, point, records[str(point.id)], options)
            for point in chosen[i]
            if str(point.id) in records  # deleted since it was found
        ]
        for i in range(len(questions))
    ]


async def _fill_groups(
    session: Session,
    questions: Sequence[_Question],
    options: SearchOptions,
    condition: models.Filter | None,
    incomplete: Sequence[int],
    chosen: dict[int, list[_Scored]],
) -> None:
    """Search within each chosen document: its other good chunks may lie beyond the candidates."""
    most = int(options.group_by_document)
    places = [
        (i, document_id)
        for i in incomplete
        for document_id in dict.fromkeys(point.payload["document_id"] for point in chosen[i])
    ]
    if not places:
        return

    def requests(ranking: Ranking) -> list[models.QueryRequest]:
        return [
            build_query(
                questions[i].vector,
                ranking,
                k=most,
                filter=_within(document_id, condition),
                score_threshold=options.score_threshold,
                with_payload=["document_id"],
            )
            for i, document_id in places
        ]

    candidates = _candidates(session, replace(options, k=most, candidates=None, group_by_document=False))
    found = await _query(session, requests, candidates, n=most)
    groups: dict[int, list[list[_Scored]]] = {i: [] for i in incomplete}
    for (i, _), points in zip(places, found, strict=True):
        scored = _scored(questions[i], points, options)
        if scored:
            groups[i].append(scored)
    for i in incomplete:
        # Within a document, more may have been found than its best among the candidates.
        groups[i].sort(key=lambda points: -points[0].score)
        chosen[i] = [point for points in groups[i] for point in points]


def _within(document_id: str, condition: models.Filter | None) -> models.Filter:
    """Match what a filter matches of a document."""
    must: list[Any] = [models.FieldCondition(key="document_id", match=models.MatchValue(value=document_id))]
    return models.Filter(must=must if condition is None else [*must, condition])


def _choose(query: Codes, pool: Sequence[_Scored], options: SearchOptions, dimension: int) -> list[_Scored]:
    """Order a pool by diversity, group it by document, and cut it."""
    ordered: Iterable[_Scored] = pool
    if options.diversity is not None and pool:
        codes = np.stack([read_stored_codes(point.vector, dimension) for point in pool])
        # The engine computes with 32 bits, and what a choice is made by should not depend on the engine.
        scores = [point.score for point in pool] if options.uses_words else cosine_similarity(query, codes)
        order = order_by_diversity(scores, codes, float(options.diversity), fused=options.uses_words)
        ordered = (pool[i] for i in order)
    if not options.group_by_document:
        return list(islice(ordered, options.k))
    most = int(options.group_by_document)
    groups: dict[str, list[_Scored]] = {}
    for point in ordered:
        document_id = point.payload["document_id"]
        if document_id not in groups and len(groups) == options.k:
            continue
        group = groups.setdefault(document_id, [])
        if len(group) < most:
            group.append(point)
            if len(groups) == options.k and all(len(one) == most for one in groups.values()):
                break
    return [point for group in groups.values() for point in group]


async def _with_context(session: Session, all_hits: list[list[Hit]], context: int) -> list[list[Hit]]:
    """Fetch each hit's neighbours and join them to a passage."""
    wanted = {(hit.document_id, hit.chunk_index) for hits in all_hits for hit in hits}
    texts: dict[tuple[str, int], tuple[str, int | None, int | None]] = {}
    most = session.points.limits.conditions
    at_once = _PASSAGES_AT_ONCE if most is None else max(1, min(_PASSAGES_AT_ONCE, most // 4))
    for some in in_batches(sorted(wanted), at_once):
        passages: list[Any] = [
            models.Filter(
                must=[
                    models.FieldCondition(key="document_id", match=models.MatchValue(value=document_id)),
                    models.FieldCondition(
                        key="chunk_index", range=models.Range(gte=index - context, lte=index + context)
                    ),
                ]
            )
            for document_id, index in some
        ]
        fields = ["text", "document_id", "chunk_index", "start", "end"]
        async for page in session.points.scroll(models.Filter(should=passages), with_payload=fields):
            for record in page:
                payload = record.payload or {}
                place = payload["document_id"], payload["chunk_index"]
                texts[place] = payload["text"], payload["start"], payload["end"]
    return [[replace(hit, context=_passage(hit, texts, context)) for hit in hits] for hits in all_hits]


def _passage(hit: Hit, texts: Mapping[tuple[str, int], tuple[str, int | None, int | None]], context: int) -> str:
    """Join a hit's neighbours: overlaps once, a space where one was cut off, else an empty line.

    Offsets are believed only where they go on as those of one text do; a caller's may begin anew on every page.
    """
    passage = ""
    passage_end: int | None = None  # where its last character lies in the document's text
    for index in range(hit.chunk_index - context, hit.chunk_index + context + 1):
        here = (hit.text, hit.start, hit.end) if index == hit.chunk_index else texts.get((hit.document_id, index))
        if here is None:
            continue
        text, start, end = here
        if start is None or end is None or end - start != len(text):
            passage, passage_end = (passage + "\n\n" if passage else "") + text, None
            continue
        overlap = -1 if passage_end is None else passage_end - start
        shared = passage[-overlap:] if overlap > 0 else ""
        if passage_end is not None and overlap in (0, -1):
            passage += " " * -overlap + text
        elif overlap > 0 and len(shared) == overlap and shared[: len(text)] == text[:overlap]:
            passage += text[overlap:]
        else:
            passage += ("\n\n" if passage else "") + text
            passage_end = end
        passage_end = end if passage_end is None else max(passage_end, end)
    return passage


async def _questions(session: Session, queries: Sequence[Query], options: SearchOptions) -> list[_Question]:
    """Check queries, and embed those that are not embedded yet."""
    all_codes = await _query_codes(session, queries, uses_vectors=options.uses_vectors)
    squared_norm = session.fingerprint.squared_norm
    return [
        _Question(
            codes,
            QueryVector.of(codes, squared_norm) if options.uses_vectors else None,
            _words(query) if options.uses_words else None,
        )
        for query, codes in zip(queries, all_codes, strict=True)
    ]


async def _query_codes(session: Session, queries: Sequence[Query], *, uses_vectors: bool) -> Codes:
    """Return the codes of each query; zeros where vectors have no part in the search."""
    if isinstance(queries, (str, np.ndarray)) or not isinstance(queries, Sequence):
        raise InvalidInputError(f"queries must be a list of str or int8 codes, not {type(queries).__name__}")
    dimension = session.fingerprint.dimension
    codes = np.zeros((len(queries), dimension), dtype=np.int8)
    texts: dict[int, str] = {}
    for row, query in enumerate(queries):
        given = query.codes if isinstance(query, EncodedQuery) else query
        if isinstance(given, str):
            if is_blank(given):
                raise InvalidInputError("a query must not be blank")
            texts[row] = given
        elif isinstance(given, np.ndarray) and given.dtype == np.int8 and given.shape == (dimension,):
            codes[row] = given
        else:
            shape = f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
            raise InvalidInputError(f"a query must be a str or int8 codes of shape ({dimension},), not {shape}")
    if not uses_vectors:
        return codes
    if texts:
        encoded = await session.encode_queries(list(texts.values()))
        session.require_codes(encoded, len(texts))
        codes[list(texts)] = encoded
    if not codes.any(axis=1).all():
        raise InvalidInputError("a query's vector is all zero, so its cosine with anything is undefined")
    return codes
