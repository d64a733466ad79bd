"""Searching: by bits or codes, hybrid, grouped, diverse, with context, and explained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from qdrant_client import models

from pplx_vectorstore.diversity import order_by_diversity
from pplx_vectorstore.documents import EncodedQuery, Hit, is_blank
from pplx_vectorstore.errors import InvalidInputError, StoreError, UnsupportedServerError
from pplx_vectorstore.filters import is_empty
from pplx_vectorstore.operations.access import Limits, in_batches
from pplx_vectorstore.operations.matching import list_matching
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.points import read_codes, read_hit, read_stored_codes
from pplx_vectorstore.quantization import Codes, cosine_similarity
from pplx_vectorstore.query import (
    CANDIDATES_PER_RESULT,
    QueryVector,
    Ranking,
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
_BLANK = "a query must not be blank, unless a filter says which chunks are wanted"
# Searches of one question among points that others delete meanwhile.
_TRIES = 3


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


@dataclass(slots=True)
class _Pool:
    """What was found for one question.

    Attributes:
        points: Best first, but for rounding.
        rounds: Searches that it took.
        is_cut_off: Whether documents that were found may have more points than were.
        is_exact: Whether the next search compares all codes.
    """

    points: list[_Scored] = field(default_factory=list)
    rounds: int = 0
    is_cut_off: bool = False
    is_exact: bool = False

    @property
    def documents(self) -> dict[str, list[_Scored]]:
        """The points of each document, in their order."""
        groups: dict[str, list[_Scored]] = {}
        for point in self.points:
            groups.setdefault(point.payload["document_id"], []).append(point)
        return groups


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
    """Search for several queries, in as few requests as their size allows; a filter alone answers blank ones."""
    condition = session.points.condition(options.filter)
    if condition is not None and not is_empty(condition) and _are_some_blank(queries):
        return await _search_some_blank(session, queries, options, condition)
    _require_hybrid(session, queries, options)
    questions = await _questions(session, queries, options)
    if not questions:
        return []
    candidates = _candidates(session, options)
    if options.is_plain:
        conditions = [condition] * len(questions)
        found = await _find(
            session, questions, conditions, options, candidates, limit=options.k, with_codes=options.with_codes
        )
        hits = [[_read(session, point, point, options) for point in points] for points in found]
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
    condition = session.points.condition(options.filter)
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
            f"{capabilities.version}. Upgrade it, or search without words"
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
            raise InvalidInputError(_BLANK)


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
    conditions: Sequence[models.Filter | None],
    options: SearchOptions,
    candidates: int,
    *,
    limit: int,
    with_payload: bool | list[str] = True,
    with_codes: bool = False,
    exact: Collection[int] = (),
) -> list[list[_Scored]]:
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

    def requests(ranking: Ranking) -> list[models.QueryRequest]:
        return [
            build_query(
                question.vector,
                replace(ranking, exact=True) if i in exact else ranking,
                k=limit,
                filter=condition,
                score_threshold=options.score_threshold,
                text=question.words,
                lexical_weight=options.lexical_weight,
                with_payload=with_payload,
                with_codes=with_codes,
            )
            for i, (question, condition) in enumerate(zip(questions, conditions, strict=True))
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
    return _above(scored, options.score_threshold)


def _above(points: Sequence[_Scored], threshold: float | None) -> list[_Scored]:
    return [point for point in points if threshold is None or point.score >= threshold]


async def _search_pools(
    session: Session,
    questions: Sequence[_Question],
    options: SearchOptions,
    condition: models.Filter | None,
    candidates: int,
) -> list[list[Hit]]:
    """Choose among all candidates of each question; where grouped, these are of k documents, if so many match.

    Qdrant's own groups would not do: its embedded engine has none, and a server's stop after a few requests, with fewer
    documents than there are. Nor would its MMR, which weighs distances, not cosines, against each other.
    """
    hits: dict[int, list[Hit]] = {}
    left = list(range(len(questions)))
    for _ in range(_TRIES):
        chosen = await _choose_all(session, [questions[i] for i in left], options, condition, candidates)
        ids = [str(point.id) for points in chosen for point in points]
        records = await session.points.retrieve(ids, with_codes=options.with_codes)
        for i, points in zip(left, chosen, strict=True):
            there = [point for point in points if str(point.id) in records]
            hits[i] = [_read(session, point, records[str(point.id)], options) for point in there]
        # What was deleted since it was found may have stood before others.
        left = [
            i for i, points in zip(left, chosen, strict=True) if any(str(point.id) not in records for point in points)
        ]
        if not left:
            break
    return [hits[i] for i in range(len(questions))]


async def _choose_all(
    session: Session,
    questions: Sequence[_Question],
    options: SearchOptions,
    condition: models.Filter | None,
    candidates: int,
) -> list[list[_Scored]]:
    """Choose the points of each question."""

    async def choose(question: _Question, pool: _Pool) -> list[_Scored]:
        return await session.calls.run(_choose, question.codes, pool.points, options, session.fingerprint.dimension)

    pools = [_Pool() for _ in questions]
    await _fill_pools(session, questions, pools, options, condition, candidates)
    chosen = [await choose(question, pool) for question, pool in zip(questions, pools, strict=True)]
    if options.group_by_document:
        for i in await _complete_groups(session, questions, pools, chosen, options, condition, candidates):
            chosen[i] = await choose(questions[i], pools[i])
    return chosen


async def _fill_pools(
    session: Session,
    questions: Sequence[_Question],
    pools: Sequence[_Pool],
    options: SearchOptions,
    condition: models.Filter | None,
    candidates: int,
) -> None:
    """Find candidates; where they are of too few documents, more that are of none of these, until there are enough.

    However many chunks a document has, the next search passes it by, so that each finds a document at least.
    """
    waiting = list(range(len(pools)))
    while waiting:
        found = await _find(
            session,
            [questions[i] for i in waiting],
            [_beyond(pools[i], condition, session.points.limits) for i in waiting],
            # Below the threshold is where a search may end; above it, where it must go on.
            replace(options, score_threshold=None),
            candidates,
            limit=candidates,
            with_payload=["document_id"],
            with_codes=options.diversity is not None,
            exact={row for row, i in enumerate(waiting) if pools[i].is_exact},
        )
        waiting = [
            i
            for i, points in zip(waiting, found, strict=True)
            if _add(pools[i], points, options, candidates, session.points.limits)
        ]


def _add(pool: _Pool, found: Sequence[_Scored], options: SearchOptions, candidates: int, limits: Limits) -> bool:
    """Add what a search found to a pool; tell whether another one is needed."""
    known = {str(point.id) for point in pool.points}
    new = [point for point in found if str(point.id) not in known]
    if options.uses_words and pool.points:
        # Fused scores are of ranks within one search: those of the next go on from the last of the one before.
        new = _scaled(new, pool.points[-1].score)
    n_before = len(pool.documents)
    # Best first also where a search that was not exact left out what the next one found.
    pool.points = _best_first([*pool.points, *new])
    pool.rounds += 1
    if not options.group_by_document:
        return False
    documents = pool.documents
    is_full, ends_below = len(found) == candidates, len(_above(new, options.score_threshold)) < len(new)
    pool.is_cut_off |= is_full and not ends_below
    if ends_below or len(documents) >= options.k:
        return False
    if is_full:
        pool.is_exact = False
        if len(documents) == n_before:
            raise StoreError(
                f"{len(documents)} documents fill all {candidates} candidates, and this server's strict mode "
                f"(condition_max_size, filter_max_conditions) lets no search pass by so many; ask for fewer than "
                f"k={options.k} documents, for more candidates, or for a narrower filter"
            )
        _thin(pool, documents, options, candidates)
        return True
    # A walk through the graph past many points may end too early: the last word is a comparison with all.
    if pool.is_exact or not limits.exact or not options.uses_vectors:
        return False
    pool.is_exact = True
    return True


def _scaled(points: list[_Scored], most: float) -> list[_Scored]:
    """Bring scores down so that the best is `most`, if it is above."""
    best = points[0].score if points else 0.0
    return [point._replace(score=point.score * most / best) for point in points] if best > most else points


def _thin(pool: _Pool, documents: Mapping[str, Sequence[_Scored]], options: SearchOptions, candidates: int) -> None:
    """Keep of each document as many points as its share of the candidates, so that pools stay as small as one search.

    Each choice by diversity costs a pass over the pool.
    """
    share = _share(options, candidates)
    kept = {id(point) for points in documents.values() for point in points[:share]}
    pool.points = [point for point in pool.points if id(point) in kept]


def _share(options: SearchOptions, candidates: int) -> int:
    return max(int(options.group_by_document), candidates // options.k)


def _beyond(pool: _Pool, condition: models.Filter | None, limits: Limits) -> models.Filter | None:
    """Match what a filter matches, but for the documents found already.

    Strict mode bounds the size of a condition and the number of conditions: where there are more documents than it
    allows to be named, those are that fill the pool most.
    """
    if not pool.points:
        return condition
    documents = sorted(pool.documents.items(), key=lambda item: -len(item[1]))
    names = [name for name, _ in documents]
    size = limits.condition_size or len(names)
    most = len(names)
    if limits.conditions is not None:
        most = limits.conditions - (0 if condition is None else _count_conditions(condition)) - 1  # the tenant's
    parts: list[Any] = [
        models.FieldCondition(key="document_id", match=models.MatchAny(any=some))
        for some in islice(in_batches(names, size), max(0, most))
    ]
    return models.Filter(must=None if condition is None else [condition], must_not=parts)


def _count_conditions(condition: Any) -> int:
    if isinstance(condition, models.NestedCondition):
        return _count_conditions(condition.nested.filter)
    if not isinstance(condition, models.Filter):
        return 1
    least = condition.min_should
    clauses = (condition.must, condition.should, condition.must_not, least and least.conditions)
    parts = [part for clause in clauses if clause for part in (clause if isinstance(clause, list) else [clause])]
    return sum(map(_count_conditions, parts))


async def _complete_groups(
    session: Session,
    questions: Sequence[_Question],
    pools: Sequence[_Pool],
    chosen: Sequence[Sequence[_Scored]],
    options: SearchOptions,
    condition: models.Filter | None,
    candidates: int,
) -> set[int]:
    """Search within chosen documents whose good chunks may lie beyond the candidates; tell of which questions.

    Where one search was not enough, a document may have had more good chunks than there were candidates, so that the
    best of them may be missing too. And bits are a poor judge among the many like chunks of one document: they may have
    kept out the best of any.
    """
    most = int(options.group_by_document)
    if not any(pool.is_cut_off for pool in pools):
        return set()
    by_bits = options.uses_vectors and (await session.points.ranking(candidates, n=candidates)).by_bits
    places: list[tuple[int, str]] = []
    for i, pool in enumerate(pools):
        if pool.is_cut_off:
            found = pool.documents
            is_crowded = pool.rounds > 1 or (by_bits and max(map(len, found.values())) > CANDIDATES_PER_RESULT)
            places += [(i, name) for name in _names(chosen[i]) if is_crowded or len(found[name]) < most]
    if not places:
        return set()
    inner = await _find(
        session,
        [questions[i] for i, _ in places],
        [_within(name, condition) for _, name in places],
        replace(options, score_threshold=None),
        _candidates(session, replace(options, k=most, candidates=None, group_by_document=False)),
        limit=most if options.diversity is None else _share(options, candidates),
        with_payload=["document_id"],
        with_codes=options.diversity is not None,
        exact=range(len(places)) if session.points.limits.exact else (),
    )
    groups = {
        i: {name: points for name, points in pools[i].documents.items() if name in set(_names(chosen[i]))}
        for i in {i for i, _ in places}
    }
    for (i, name), points in zip(places, inner, strict=True):
        known = {str(point.id) for point in groups[i][name]}
        new = [point for point in points if str(point.id) not in known]
        if options.uses_words:
            # Ranks within a document say nothing of others: what is new comes after what the whole search had found.
            new = _scaled(new, groups[i][name][-1].score)
        groups[i][name] += new
    for i, of_documents in groups.items():
        pools[i].points = _best_first(point for points in of_documents.values() for point in points)
    return set(groups)


def _names(points: Iterable[_Scored]) -> list[str]:
    return list(dict.fromkeys(point.payload["document_id"] for point in points))


def _best_first(points: Iterable[_Scored]) -> list[_Scored]:
    return sorted(points, key=lambda point: -point.score)


def _within(document_id: str, condition: models.Filter | None) -> models.Filter:
    """Match what a filter matches of a document."""
    must: list[Any] = [models.FieldCondition(key="document_id", match=models.MatchValue(value=document_id))]
    return models.Filter(must=must if condition is None else [*must, condition])


def _choose(query: Codes, pool: Sequence[_Scored], options: SearchOptions, dimension: int) -> list[_Scored]:
    """Order what of a pool scores enough by diversity, group it by document, and cut it."""
    pool = _above(pool, options.score_threshold)
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
