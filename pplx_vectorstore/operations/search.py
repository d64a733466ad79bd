"""Searching: by bits or codes, hybrid, grouped, diverse, with context, and explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.documents import EncodedQuery, Hit, is_blank
from pplx_vectorstore.engines.capabilities import Feature
from pplx_vectorstore.errors import InvalidInputError, StoreError
from pplx_vectorstore.filters import is_empty
from pplx_vectorstore.operations.access import in_batches
from pplx_vectorstore.operations.finding import TRIES, Question, Scored, SearchOptions, candidates_of, find
from pplx_vectorstore.operations.matching import list_matching
from pplx_vectorstore.operations.pools import choose_all
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.points import read_codes, read_hit
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.query import (
    QueryVector,
    build_hamming,
    build_query,
)
from pplx_vectorstore.reports import ExplainedHit, Explanation

Query = str | npt.NDArray[np.int8] | EncodedQuery
"""A question, int8 codes of shape (dimension,), or both."""

_PASSAGES_AT_ONCE = 50
_BLANK = "a query must not be blank, unless a filter says which chunks are wanted"
# Of so many questions, each step takes a few milliseconds: no more than others should wait for the event loop, or for
# the embedded engine, which lets no other thread run.
_QUESTIONS_AT_ONCE = 32


async def search_batch(session: Session, queries: Sequence[Query], options: SearchOptions) -> list[list[Hit]]:
    """Search for several queries, in as few requests as their size allows; a filter alone answers blank ones."""
    condition = session.points.condition(options.filter)
    if condition is not None and not is_empty(condition) and _are_some_blank(queries):
        return await _search_some_blank(session, queries, options, condition)
    _require_hybrid(session, queries, options)
    candidates = candidates_of(session, options)
    all_codes = await _query_codes(session, queries, uses_vectors=options.uses_vectors)
    in_slices = session.calls.awaits or session.points.capabilities.kind == "embedded"
    hits: list[list[Hit]] = []
    for rows in in_batches(range(len(queries)), _QUESTIONS_AT_ONCE if in_slices else max(1, len(queries))):
        questions = [_question(session, queries[row], all_codes[row], options) for row in rows]
        hits += await _search_slice(session, questions, options, condition, candidates)
    return hits


async def _search_slice(
    session: Session,
    questions: Sequence[Question],
    options: SearchOptions,
    condition: models.Filter | None,
    candidates: int,
) -> list[list[Hit]]:
    """Search for questions together."""
    if options.is_plain:
        conditions = [condition] * len(questions)
        found = await find(
            session, questions, conditions, options, candidates, limit=options.k, with_codes=options.with_codes
        )
        hits = await session.compute(sum(map(len, found)), _read_all, session, found, None, options)
    else:
        hits = await _search_pools(session, questions, options, condition, candidates)
    if options.context:
        return await _with_context(session, hits, options.context)
    return hits


async def _search_some_blank(
    session: Session, queries: Sequence[Query], options: SearchOptions, condition: models.Filter
) -> list[list[Hit]]:
    """Search for what is not blank; for the others, return the chunks that match, which all have a score of 0."""
    others = [query for query in queries if not _is_blank(query)]
    found = iter(await search_batch(session, others, options) if others else [])
    matching: list[Hit] = []
    if options.score_threshold is None or options.score_threshold <= 0:
        matching = await list_matching(
            session,
            condition,
            k=session.points.check_limit("k", options.k),
            per_document=int(options.group_by_document),
            with_codes=options.with_codes,
        )
    if options.context:
        (matching,) = await _with_context(session, [matching], options.context)
    return [list(matching) if _is_blank(query) else next(found) for query in queries]


def _are_some_blank(queries: object) -> bool:
    return isinstance(queries, Sequence) and not isinstance(queries, str) and any(map(_is_blank, queries))


def _is_blank(query: object) -> bool:
    return isinstance(query, str) and is_blank(query)


def _read_all(
    session: Session,
    found: Sequence[Sequence[Scored]],
    records: Mapping[str, models.Record] | None,
    options: SearchOptions,
) -> list[list[Hit]]:
    """Make hits of what was found, with payload and vectors, or with records that have them."""
    return [
        [_read(session, point, point if records is None else records[str(point.id)], options) for point in points]
        for points in found
    ]


def _read(session: Session, point: Scored, record: Any, options: SearchOptions) -> Hit:
    payload = record.payload or {}
    codes = None
    if options.with_codes:
        codes = read_codes(record.vector, payload, session.fingerprint.dimension, session.fingerprint.squared_norm)
    return read_hit(point.id, payload, point.score, codes)


async def explain(session: Session, query: Query, options: SearchOptions) -> Explanation:
    """Search, rank by the bits alone and scan exactly, in one request; compare."""
    if not session.points.limits.exact:
        raise StoreError("explain needs an exact scan, which this server's strict mode forbids (search_allow_exact)")
    condition = session.points.condition(options.filter)
    (codes,) = await _query_codes(session, [query], uses_vectors=True)
    vector = QueryVector.of(codes, session.fingerprint.squared_norm)
    candidates = candidates_of(session, options)
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
    points = session.points
    if options.uses_vectors and options.lexical_weight != 0.5:
        points.capabilities.require(
            Feature.RRF_WEIGHTS, f"lexical_weight={options.lexical_weight}", way_out="give 0.5, 0 or 1"
        )
    if not points.lexical_fields and points.capabilities.has(Feature.TEXT_SCORING):
        raise StoreError(
            f"collection {points.collection!r} has no index of its text; open it once with "
            "config=CollectionConfig(text_index=True), which builds it"
        )
    if not points.lexical_fields:
        raise StoreError(
            f"collection {points.collection!r} has no vectors of its words, by which Qdrant "
            f"{points.capabilities.version} ranks, and which are made from the beginning or never; copy it into a new "
            "collection, which has them unless its config says text_index=False"
        )
    for query in queries:
        words = _words(query)
        if words is None:
            raise InvalidInputError(
                "hybrid search needs the question's words; give a str or an EncodedQuery, not codes"
            )
        if is_blank(words):
            raise InvalidInputError(_BLANK)


def _words(query: Query) -> str | None:
    if isinstance(query, EncodedQuery):
        return query.text
    return query if isinstance(query, str) else None


async def _search_pools(
    session: Session,
    questions: Sequence[Question],
    options: SearchOptions,
    condition: models.Filter | None,
    candidates: int,
) -> list[list[Hit]]:
    """Choose among all candidates of each question; where grouped, these are of k documents, if so many match."""
    hits: dict[int, list[Hit]] = {}
    left = list(range(len(questions)))
    for _ in range(TRIES):
        chosen = await choose_all(session, [questions[i] for i in left], options, condition, candidates)
        ids = [str(point.id) for points in chosen for point in points]
        records = await session.points.retrieve(ids, with_codes=options.with_codes)
        there = [[point for point in points if str(point.id) in records] for points in chosen]
        read = await session.compute(len(ids), _read_all, session, there, records, options)
        hits.update(zip(left, read, strict=True))
        # What was deleted since it was found may have stood before others.
        left = [
            i for i, points in zip(left, chosen, strict=True) if any(str(point.id) not in records for point in points)
        ]
        if not left:
            break
    return [hits[i] for i in range(len(questions))]


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
    n = sum(map(len, all_hits)) * (1 + 2 * context)
    return await session.compute(n, _join_passages, all_hits, texts, context)


def _join_passages(
    all_hits: Sequence[Sequence[Hit]], texts: Mapping[tuple[str, int], tuple[str, int | None, int | None]], context: int
) -> list[list[Hit]]:
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


def _question(session: Session, query: Query, codes: Codes, options: SearchOptions) -> Question:
    return Question(
        codes,
        QueryVector.of(codes, session.fingerprint.squared_norm) if options.uses_vectors else None,
        session.points.lexical_query(_words(query) or "") if options.uses_words else None,
    )


async def _query_codes(session: Session, queries: Sequence[Query], *, uses_vectors: bool) -> Codes:
    """Check queries, and embed those that are not embedded yet.

    Returns the codes of each query; zeros where vectors have no part in the search.
    """
    if isinstance(queries, (str, np.ndarray)) or not isinstance(queries, Sequence):
        raise InvalidInputError(f"queries must be a list of str or int8 codes, not {type(queries).__name__}")
    dimension = session.fingerprint.dimension
    codes = np.zeros((len(queries), dimension), dtype=np.int8)
    texts: dict[int, str] = {}
    for row, query in enumerate(queries):
        given = query.codes if isinstance(query, EncodedQuery) else query
        if isinstance(given, str):
            if is_blank(given):
                raise InvalidInputError(_BLANK)
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
