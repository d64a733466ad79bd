"""Choosing hits among all candidates: by document, k of them whenever k match, and by diversity.

Qdrant's own groups would not do: its embedded engine has none, and a server's stop after a few requests, with fewer
documents than there are. Nor would its MMR, which weighs distances, not cosines, against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from pplx_vectorstore.diversity import order_by_diversity
from pplx_vectorstore.errors import StoreError
from pplx_vectorstore.operations.access import Limits, in_batches
from pplx_vectorstore.operations.finding import Question, Scored, SearchOptions, above, candidates_of, find
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.points import read_stored_codes
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.quantization import Codes, cosine_similarity
from pplx_vectorstore.query import CANDIDATES_PER_RESULT


@dataclass(slots=True)
class Pool:
    """What was found for one question.

    Attributes:
        points: Best first, but for rounding.
        rounds: Searches that it took.
        is_cut_off: Whether documents that were found may have more points than were.
        is_exact: Whether the next search compares all codes.
    """

    points: list[Scored] = field(default_factory=list)
    rounds: int = 0
    is_cut_off: bool = False
    is_exact: bool = False

    @property
    def documents(self) -> dict[str, list[Scored]]:
        """The points of each document, in their order."""
        groups: dict[str, list[Scored]] = {}
        for point in self.points:
            groups.setdefault(point.payload["document_id"], []).append(point)
        return groups


async def choose_all(
    session: Session,
    questions: Sequence[Question],
    options: SearchOptions,
    condition: models.Filter | None,
    candidates: int,
) -> list[list[Scored]]:
    """Choose the points of each question."""

    def choose(places: Iterable[int]) -> list[list[Scored]]:
        dimension = session.fingerprint.dimension
        return [_choose(questions[i].codes, pools[i].points, options, dimension) for i in places]

    pools = [Pool() for _ in questions]
    await _fill_pools(session, questions, pools, options, condition, candidates)
    # The order of diversity takes a pass over the codes for each hit.
    n = candidates * len(pools) * (1 if options.diversity is None else options.k)
    chosen = await session.compute(n, choose, range(len(pools)))
    if options.group_by_document:
        anew = sorted(await _complete_groups(session, questions, pools, chosen, options, condition, candidates))
        for i, points in zip(anew, await session.compute(n, choose, anew), strict=True):
            chosen[i] = points
    return chosen


async def _fill_pools(
    session: Session,
    questions: Sequence[Question],
    pools: Sequence[Pool],
    options: SearchOptions,
    condition: models.Filter | None,
    candidates: int,
) -> None:
    """Find candidates; where they are of too few documents, more that are of none of these, until there are enough.

    However many chunks a document has, the next search passes it by, so that each finds a document at least.
    """
    limits = session.points.limits

    def build_filters() -> list[models.Filter | None]:
        return [_beyond(pools[i], condition, limits) for i in waiting]

    def add_all(found: Sequence[Sequence[Scored]]) -> list[int]:
        pairs = zip(waiting, found, strict=True)
        return [i for i, points in pairs if add_to(pools[i], points, options, candidates, limits)]

    waiting = list(range(len(pools)))
    while waiting:
        found = await find(
            session,
            [questions[i] for i in waiting],
            await session.compute(sum(len(pools[i].points) for i in waiting), build_filters),
            # Below the threshold is where a search may end; above it, where it must go on.
            replace(options, score_threshold=None),
            candidates,
            limit=candidates,
            with_payload=["document_id"],
            with_codes=options.diversity is not None,
            exact={row for row, i in enumerate(waiting) if pools[i].is_exact},
        )
        waiting = await session.compute(candidates * len(waiting), add_all, found)


def add_to(pool: Pool, found: Sequence[Scored], options: SearchOptions, candidates: int, limits: Limits) -> bool:
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
    is_full, ends_below = len(found) == candidates, len(above(new, options.score_threshold)) < len(new)
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


def _scaled(points: list[Scored], most: float) -> list[Scored]:
    """Bring scores down so that the best is `most`, if it is above."""
    best = points[0].score if points else 0.0
    return [point._replace(score=point.score * most / best) for point in points] if best > most else points


def _thin(pool: Pool, documents: Mapping[str, Sequence[Scored]], options: SearchOptions, candidates: int) -> None:
    """Keep of each document as many points as its share of the candidates, so that pools stay as small as one search.

    Each choice by diversity costs a pass over the pool.
    """
    share = _share(options, candidates)
    kept = {id(point) for points in documents.values() for point in points[:share]}
    pool.points = [point for point in pool.points if id(point) in kept]


def _share(options: SearchOptions, candidates: int) -> int:
    return max(int(options.group_by_document), candidates // options.k)


def _beyond(pool: Pool, condition: models.Filter | None, limits: Limits) -> models.Filter | None:
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
    questions: Sequence[Question],
    pools: Sequence[Pool],
    chosen: Sequence[Sequence[Scored]],
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

    def choose_places() -> list[tuple[int, str]]:
        places: list[tuple[int, str]] = []
        for i, pool in enumerate(pools):
            if pool.is_cut_off:
                found = pool.documents
                is_crowded = pool.rounds > 1 or (by_bits and max(map(len, found.values())) > CANDIDATES_PER_RESULT)
                places += [(i, name) for name in _names(chosen[i]) if is_crowded or len(found[name]) < most]
        return places

    n = candidates * len(pools)
    places = await session.compute(n, choose_places)
    if not places:
        return set()
    inner = await find(
        session,
        [questions[i] for i, _ in places],
        await session.compute(10 * len(places), lambda: [_within(name, condition) for _, name in places]),
        replace(options, score_threshold=None),
        candidates_of(session, replace(options, k=most, candidates=None, group_by_document=False)),
        limit=most if options.diversity is None else _share(options, candidates),
        with_payload=["document_id"],
        with_codes=options.diversity is not None,
        exact=range(len(places)) if session.points.limits.exact else (),
    )
    return await session.compute(n, _join_groups, pools, chosen, places, inner, options)


def _join_groups(
    pools: Sequence[Pool],
    chosen: Sequence[Sequence[Scored]],
    places: Sequence[tuple[int, str]],
    inner: Sequence[Sequence[Scored]],
    options: SearchOptions,
) -> set[int]:
    """Leave in the pools what is of the chosen documents, with what was found within them; tell in which."""
    groups: dict[int, dict[str, list[Scored]]] = {}
    for i in {i for i, _ in places}:
        names = set(_names(chosen[i]))
        groups[i] = {name: points for name, points in pools[i].documents.items() if name in names}
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


def _names(points: Iterable[Scored]) -> list[str]:
    return list(dict.fromkeys(point.payload["document_id"] for point in points))


def _best_first(points: Iterable[Scored]) -> list[Scored]:
    return sorted(points, key=lambda point: -point.score)


def _within(document_id: str, condition: models.Filter | None) -> models.Filter:
    """Match what a filter matches of a document."""
    must: list[Any] = [models.FieldCondition(key="document_id", match=models.MatchValue(value=document_id))]
    return models.Filter(must=must if condition is None else [*must, condition])


def _choose(query: Codes, pool: Sequence[Scored], options: SearchOptions, dimension: int) -> list[Scored]:
    """Order what of a pool scores enough by diversity, group it by document, and cut it."""
    pool = above(pool, options.score_threshold)
    ordered: Iterable[Scored] = pool
    if options.diversity is not None and pool:
        codes = np.stack([read_stored_codes(point.vector, dimension) for point in pool])
        # The engine computes with 32 bits, and what a choice is made by should not depend on the engine.
        scores = [point.score for point in pool] if options.uses_words else cosine_similarity(query, codes)
        order = order_by_diversity(scores, codes, float(options.diversity), fused=options.uses_words)
        ordered = (pool[i] for i in order)
    if not options.group_by_document:
        return list(islice(ordered, options.k))
    most = int(options.group_by_document)
    groups: dict[str, list[Scored]] = {}
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
