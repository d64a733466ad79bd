"""The points of one collection as one tenant sees them: the only way by which operations reach points."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pplx_vectorstore.collection import (
    BM25_VECTOR,
    GENERATION_FIELD,
    TENANT_FIELD,
    VECTOR_NAME,
    WORDS_FIELD,
    keeps_codes_in_memory,
)
from pplx_vectorstore.engines.calls import Calls
from pplx_vectorstore.engines.capabilities import Capabilities, Feature
from pplx_vectorstore.engines.upserts import Batch, complete_batch, make_batch
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.filter_resolution import resolve_filter
from pplx_vectorstore.filters import build_filter
from pplx_vectorstore.lexical import normalize_words
from pplx_vectorstore.operations.ledger import Ledger
from pplx_vectorstore.operations.server_indexing import (
    GRACE,
    LOOK,
    NEVER,
    Generations,
    IndexingHold,
    later_generations,
    restore_abandoned,
    settle,
    wait_for_usual_index,
)
from pplx_vectorstore.operations.sizes import AnswerSizes
from pplx_vectorstore.operations.word_vectors import WordVectors
from pplx_vectorstore.points import Point
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.query import Ranking, is_lexical, map_stages

if TYPE_CHECKING:
    from pplx_vectorstore.filters import FilterLike

T = TypeVar("T")

_PAGE = 1000
_IDS_AT_ONCE = 1000
_UPDATES = 1000
_UPDATE_BYTES = 4 * 2**20
# Components of the shortest vectors that are searched by their bits, and of the shortest that are so even where the
# codes are in memory (benchmarks/search.py).
_LEAST_BITS = 384
MANY_BITS = 768
# So many points that, by the codes, a beam as wide as the candidates misses some, and how many times as wide it is for
# them (benchmarks/server_recall.py).
_MANY = 100_000
_WIDENING = 2
# Bytes of codes up to which Qdrant compares all of a segment rather than walk its graph (full_scan_threshold).
_FULL_SCAN_BYTES = 10_000 * 1024
# Bytes of codes that the system's page cache is taken to hold.
_CACHED_BYTES = 2**30


class Index(NamedTuple):
    """What is known of how a collection's points are indexed.

    Attributes:
        points: How many there are.
        has_bits: Whether bits can be trusted, but for what is named in the next.
        unindexed: Which points' bits cannot; None where that does no harm.
        is_worn: Whether so much is gone from the graph that it is not to be walked.
    """

    points: int
    has_bits: bool
    unindexed: models.Filter | None = None
    is_worn: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server's strict mode allows at most; None where it sets no bound."""

    query_limit: int | None = None
    hnsw_ef: int | None = None
    exact: bool = True
    oversampling: float | None = None
    searches: int | None = None
    upsert_points: int | None = None
    condition_size: int | None = None
    conditions: int | None = None
    unindexed_filtering: bool = True
    unindexed_deleting: bool = True

    @classmethod
    def of(cls, info: models.CollectionInfo) -> Limits:
        """Read them of a collection."""
        strict = getattr(info.config, "strict_mode_config", None)
        if strict is None or not strict.enabled:
            return cls()
        return cls(
            query_limit=strict.max_query_limit,
            hnsw_ef=strict.search_max_hnsw_ef,
            exact=strict.search_allow_exact is not False,
            oversampling=strict.search_max_oversampling,
            searches=strict.search_max_batchsize,
            upsert_points=strict.upsert_max_batchsize,
            condition_size=strict.condition_max_size,
            conditions=strict.filter_max_conditions,
            unindexed_filtering=strict.unindexed_filtering_retrieve is not False,
            unindexed_deleting=strict.unindexed_filtering_update is not False,
        )


class PointAccess:
    """Reads and writes points; every request carries the tenant, so none can forget it.

    Args:
        calls: The client.
        ledger: Of the collection.
        tenant: Whose points, or None in a collection without tenants.
        capabilities: What the engine can do.
        limits: What the server allows.
        lexical_fields: What BM25 can rank by: fields that have an index for it, or the name of a sparse vector.
        codes: How the engine keeps the codes.
    """

    def __init__(
        self,
        calls: Calls,
        ledger: Ledger,
        tenant: str | None,
        capabilities: Capabilities,
        limits: Limits,
        *,
        lexical_fields: Sequence[str],
        codes: models.VectorParams,
    ) -> None:
        self.collection = ledger.collection
        self.tenant = tenant
        self.capabilities = capabilities
        self.limits = limits
        self.lexical_fields = lexical_fields
        self._calls = calls
        self._ledger = ledger
        self._codes = codes
        self._sizes = AnswerSizes(codes.size, small=calls.awaits or capabilities.kind == "embedded")
        self._word_vectors = WordVectors(calls, ledger, unstemmed=capabilities.has(Feature.UNSTEMMED_INDEXES))
        self._warned: set[str] = set()

    def condition(
        self,
        filter: FilterLike,  # noqa: A002 - Qdrant's own word for it
        *,
        to_delete: bool = False,
    ) -> models.Filter | None:
        """Translate what a caller gave as a filter, for the other methods, whose conditions are ours.

        Raises:
            UnsupportedFilterError: It says something that the engine cannot answer as it is meant.
            UnsupportedServerError: It has a condition that the server is too old for.
        """
        built = build_filter(filter)
        if built is None:
            return None
        unindexed = self.limits.unindexed_filtering and (self.limits.unindexed_deleting or not to_delete)
        return resolve_filter(
            built,
            tenant=self.tenant,
            indexes=self._ledger.indexes,
            by_index_only=not unindexed,
            warned=self._warned,
            capabilities=self.capabilities,
        )

    @property
    def word_fields(self) -> frozenset[str]:
        """Fields in which the server finds whole words alone: their words are indexed, and it is too old for parts."""
        if self.capabilities.has(Feature.SUBSTRING_MATCH):
            return frozenset()
        return frozenset(field for field, kind in self._ledger.indexes.items() if kind == "text")

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Hold the lock of the tenant's documents: between another's upsert and its delete, ours would look stale."""
        async with self._calls.hold(self._ledger.lock_of(self.tenant)):
            if self.capabilities.kind != "embedded":
                yield
                return
            # And keep other processes from the folder.
            pinned: list[Any] = []
            try:
                await self._calls("pin", self.collection, pinned=pinned)
                yield
            finally:
                if pinned:
                    await self._calls("unpin", self.collection, pinned=pinned)

    def make_batch(self, points: Sequence[Point]) -> Batch:
        """Give points the form that the engine takes, for `upsert`; that takes its time."""
        return make_batch(self._calls.client, points)

    async def heed_lengths(self, texts: Iterable[str]) -> None:
        """Before a group of texts is written: find out how long they are, where their words are weighed by that."""
        if BM25_VECTOR in self.lexical_fields:
            await self._word_vectors.settle(texts)

    async def upsert(self, batch: Batch, *, stale: models.Filter | None = None) -> None:
        """Write points, which carry the tenant already: their ids are made of it.

        Args:
            batch: To write.
            stale: Points to delete after that, in the same request: whoever is killed leaves both done or neither,
                unless it is the engine itself.
        """
        for point in batch.points:
            if point.payload.get(TENANT_FIELD) != self.tenant:
                raise AssertionError("a point of another tenant")
        scoped = None if stale is None else self._scoped(stale)
        words = None
        if BM25_VECTOR in self.lexical_fields:
            words = await self._word_vectors.of_points(batch.points)

        def stamp(generation: int) -> None:
            complete_batch(self._calls.client, batch, generation, words)

        await self._write("upsert", {"batch": batch, "stale": scoped}, stamp)

    def lexical_query(self, words: str) -> str | models.Document:
        """Return a question's words as the collection compares them."""
        if BM25_VECTOR in self.lexical_fields:
            return self._word_vectors.query(words)
        # Written before words were normalized, they are compared as they are.
        return normalize_words(words) if WORDS_FIELD in self.lexical_fields else words

    async def _write(self, verb: str, options: Mapping[str, Any], stamp: Callable[[int], None]) -> None:
        """Write points, or fields of them, with the generation in which they are written.

        Args:
            verb: Of the client.
            options: Of the verb.
            stamp: Notes a generation in all that is written.
        """
        if self.capabilities.kind != "server":
            await self._ledger.write(self._calls, verb, **options)
            return
        late: models.CollectionInfo | None = None
        while True:
            started = time.monotonic()
            current = Generations.of(late or await self._state()).current
            stamp(current)
            await self._ledger.write(self._calls, verb, **options)
            if time.monotonic() - started < GRACE / 2:
                return
            # It took so long that whoever has ended the generation may take all of it for indexed.
            late = await self._ledger.info(self._calls, fresh=True)
            if current >= Generations.of(late).current:
                return

    async def delete(self, condition: models.Filter) -> None:
        """Delete the points that match."""
        selector = models.FilterSelector(filter=self._scoped(condition) or condition)
        await self._ledger.write(self._calls, "delete", points_selector=selector)

    async def create_index(self, field: str, schema: Any) -> None:
        """Index a payload field as it is indexed elsewhere, as far as this server can."""
        await self._ledger.create_index(self._calls, field, self.capabilities.fit_index(field, schema))

    async def set_payloads(self, changes: Iterable[tuple[Mapping[str, Any], models.Filter]]) -> None:
        """Set payload fields: pairs of the fields and of what the points to change must match."""
        operations: list[models.SetPayloadOperation] = []
        size = 0
        for fields, condition in changes:
            scoped = self._scoped(condition) or condition
            change = models.SetPayload(payload=dict(fields), filter=scoped)
            operations.append(models.SetPayloadOperation(set_payload=change))
            size += 2 * len(json.dumps(fields)) + 100 * _count_values(scoped)
            if size > _UPDATE_BYTES or len(operations) == _UPDATES:
                await self._set_payloads(operations)
                operations, size = [], 0
        if operations:
            await self._set_payloads(operations)

    async def _set_payloads(self, operations: Sequence[models.SetPayloadOperation]) -> None:
        def stamp(generation: int) -> None:
            for operation in operations:
                operation.set_payload.payload[GENERATION_FIELD] = generation

        await self._write("batch_update_points", {"update_operations": list(operations)}, stamp)

    async def retrieve(
        self, ids: Sequence[str], *, with_payload: bool | Sequence[str] = True, with_codes: bool = False
    ) -> dict[str, models.Record]:
        """Return the tenant's points among these ids, by id."""
        fields = with_payload
        if self.tenant is not None and not isinstance(with_payload, bool):
            fields = [*with_payload, TENANT_FIELD]
        elif self.tenant is not None:
            fields = with_payload or [TENANT_FIELD]
        found: dict[str, models.Record] = {}
        most = min(_IDS_AT_ONCE, self.limits.query_limit or _IDS_AT_ONCE)
        left = list(dict.fromkeys(ids))
        while left:
            size = min(most, self._sizes.at_once(fields, with_codes))
            some, left = left[:size], left[size:]
            records = await self._calls(
                "retrieve", self.collection, ids=some, with_payload=fields, with_vectors=self._vectors(with_codes)
            )
            self._sizes.heed([record.payload for record in records])
            found.update({str(record.id): record for record in records if self._is_own(record)})
        return found

    def page_size(self, *, with_payload: bool | Sequence[str] = True, with_codes: bool = False) -> int:
        """Return how many points are read at once, at most."""
        return min(_PAGE, self.limits.query_limit or _PAGE, self._sizes.at_once(with_payload, with_codes))

    def is_large(self, n: int, *, with_payload: bool | Sequence[str], with_codes: bool) -> bool:
        """Tell whether n points are better not read at once."""
        if not with_payload and not with_codes:
            return False
        return n > self._sizes.at_once(with_payload, with_codes)

    async def scroll(
        self,
        condition: models.Filter | None,
        *,
        with_payload: bool | Sequence[str] = True,
        with_codes: bool = False,
        page: int = _PAGE,
    ) -> AsyncIterator[list[models.Record]]:
        """Yield the points that match, in pages of at most `page` points, fewer where these are large."""
        offset = None
        most = min(page, self.limits.query_limit or page)
        while True:
            records, offset = await self._calls(
                "scroll",
                self.collection,
                scroll_filter=self._scoped(condition),
                limit=min(most, self._sizes.at_once(with_payload, with_codes)),
                offset=offset,
                with_payload=with_payload if isinstance(with_payload, bool) else list(with_payload),
                with_vectors=self._vectors(with_codes),
            )
            self._sizes.heed([record.payload for record in records])
            if records:
                yield records
            if offset is None:
                return

    async def count(self, condition: models.Filter | None = None) -> int:
        """Count the points that match."""
        if not self.limits.exact:  # which forbids exact counts, too
            return sum([len(page) async for page in self.scroll(condition, with_payload=False)])
        found = await self._calls("count", self.collection, count_filter=self._scoped(condition), exact=True)
        return int(found.count)

    async def facet(self, field: str, condition: models.Filter | None, most: int) -> dict[str, int]:
        """Count the points that match by the value of an indexed field.

        Args:
            field: Such as "document_id".
            condition: Which points.
            most: How many values are expected; asked again for more where there are more.
        """
        largest = self.limits.query_limit
        limit = most + 1 if largest is None else min(most + 1, largest)
        # The emulation rewrites values that look like UUIDs, such as the hex digits of an MD5.
        while self.limits.exact and self.capabilities.kind != "emulation":
            found = await self._calls(
                "facet", self.collection, key=field, facet_filter=self._scoped(condition), limit=limit, exact=True
            )
            if len(found.hits) < limit:
                # A value whose points were all deleted may come with a count of 0.
                return {str(hit.value): int(hit.count) for hit in found.hits if hit.count}
            if limit == largest:
                break
            limit = 4 * limit if largest is None else min(4 * limit, largest)
        counts: dict[str, int] = {}
        async for page in self.scroll(condition, with_payload=[field]):
            for record in page:
                value = str((record.payload or {})[field])
                counts[value] = counts.get(value, 0) + 1
        return counts

    async def query(self, requests: Sequence[models.QueryRequest]) -> list[list[Any]]:
        """Run searches, as many together as fit into one request and its answer; the points of each, best first."""
        sent: list[models.QueryRequest] = []
        scoped_filters: dict[int, models.Filter | None] = {}  # searches that share a filter share its scoped one

        def scope(condition: models.Filter | None) -> models.Filter | None:
            if id(condition) not in scoped_filters:
                scoped_filters[id(condition)] = self._scoped(condition)
            return scoped_filters[id(condition)]

        def restrict(stage: Any) -> Any:
            changed: dict[str, Any] = {"filter": scope(stage.filter)}
            if own_rarity is not None and is_lexical(stage):
                changed["params"] = models.SearchParams(idf=own_rarity)
            return stage.model_copy(update=changed)

        own_rarity = self._own_rarity()
        for request in requests:
            scoped = map_stages(request, restrict) if self.tenant is not None else request
            if scoped.with_vector:
                scoped = scoped.model_copy(update={"with_vector": self._vectors(scoped.with_vector)})
            if self.capabilities.kind == "emulation" and scoped.params is not None:
                scoped = scoped.model_copy(update={"params": None})  # it always scans, and warns of settings
            sent.append(scoped)
        results: list[list[Any]] = []
        for some in self._sizes.batches(sent, self.limits.searches):
            responses = await self._calls("query_batch_points", self.collection, requests=some)
            self._sizes.heed([point.payload for response in responses for point in response.points])
            results.extend(list(response.points) for response in responses)
        return results

    async def ranking(self, candidates: int, *, n: int) -> Ranking:
        """Choose the way in: by the bits, or by the codes.

        By the codes where bits cannot be trusted: of points that no index covers, all bits are 1. Where vectors are so
        short that their signs say too little. Where there are so few that Qdrant compares all of them, which by the
        codes is exact. And, of vectors of middle length, where the codes are in memory, or so small that they will be:
        only for long ones is walking by the bits the faster way even then. Else by the bits: of codes on disk, that
        reads no more than the candidates.

        Args:
            candidates: Points that are to be compared by their codes.
            n: Points that the request asks for.
        """
        index = await self._index(candidates)
        by_bits = self._may_search_by_bits(index) and (
            self.limits.oversampling is None or candidates <= self.limits.oversampling * n
        )
        if index.unindexed is not None and self.limits.conditions is not None:
            by_bits = False  # one more condition might be one too many
        return Ranking(
            candidates=candidates,
            by_bits=by_bits,
            # Until an index from which much was deleted is built anew, nothing is walked.
            exact=index.is_worn,
            most_hnsw_ef=self.limits.hnsw_ef,
            unindexed=index.unindexed if by_bits else None,
            acorn=self.capabilities.has(Feature.ACORN),
            widening=_WIDENING if index.points > _MANY else 1,
        )

    def _may_search_by_bits(self, index: Index) -> bool:
        dimension = self._codes.size
        size = dimension * index.points
        in_memory = keeps_codes_in_memory(self._codes) or size <= _CACHED_BYTES
        # Beside what takes a server to answer at all, the few microseconds that long vectors save do not show.
        least = MANY_BITS if in_memory and self.capabilities.kind == "embedded" else _LEAST_BITS
        return (
            index.has_bits
            and not index.is_worn
            and dimension >= least
            and size > _FULL_SCAN_BYTES
            and not (in_memory and self.capabilities.kind == "server")
        )

    async def has_bits(self, candidates: int) -> bool:
        """Tell whether ranking by bits means anything now.

        Args:
            candidates: Points that are to be compared by their codes.
        """
        return (await self._index(candidates)).has_bits

    async def _index(self, candidates: int) -> Index:
        """Ask what is indexed.

        The embedded engine tells how many points are not. They do no harm where they are no more than the candidates:
        then all of them are compared by their codes.
        """
        if self.capabilities.kind == "emulation":
            return Index(points=0, has_bits=False)
        if self.capabilities.kind == "embedded":
            coverage = await self._calls("coverage", self.collection)
            return Index(coverage.points, coverage.unindexed <= candidates, is_worn=coverage.is_worn)
        info = await self._state()
        generations = Generations.of(info)
        has_bits = generations.have_bits(info) and GENERATION_FIELD in self._ledger.indexes
        return Index(info.points_count or 0, has_bits, later_generations(generations.indexed_below))

    async def _state(self) -> models.CollectionInfo:
        """Return a server's word on the collection, as of the last second; end what a killed process has left."""
        info = await self._ledger.info(self._calls)
        await restore_abandoned(self._calls, self._ledger, info)
        return info

    async def optimize(self) -> None:
        """Have everything indexed, and wait for it."""
        if self.capabilities.kind == "embedded":
            await self._calls("optimize", self.collection)
        elif self.capabilities.kind == "server":
            points = (await self._ledger.info(self._calls, fresh=True)).points_count or 0
            if self._may_search_by_bits(Index(points, has_bits=True)):
                await settle(self._calls, self._ledger)
            else:
                await wait_for_usual_index(self._calls, self._ledger)

    @contextlib.asynccontextmanager
    async def indexing_held_back(self) -> AsyncIterator[None]:
        """Have nothing indexed within the block, by a hold of its own or by that of another load that goes on."""
        if self.capabilities.kind == "server":
            hold = IndexingHold(self._calls, self._ledger, NEVER, small_segments=BM25_VECTOR in self.lexical_fields)
            await hold.take()
            while not (hold.is_ours or hold.joins_load):  # somebody has all of it indexed just now
                await self._calls.sleep(LOOK)
                await hold.take()
            try:
                yield
            finally:
                await hold.release()
        elif self.capabilities.kind == "embedded":
            held: list[Any] = []
            try:
                await self._calls("hold_indexing", self.collection, held=held)
                yield
            finally:
                await self._calls("resume_indexing", self.collection, held=held)
        else:
            yield

    async def renew_hold(self) -> None:
        """Tell others that this process lives, if it holds indexing back and it is time to."""
        await self._ledger.renew(self._calls)

    def _vectors(self, with_codes: Any) -> bool | list[str]:
        """Return which vectors to fetch: not those of words."""
        if with_codes and BM25_VECTOR in self.lexical_fields:
            return [VECTOR_NAME]
        return bool(with_codes)

    def check_limit(self, name: str, value: int) -> int:
        """Refuse what the server would refuse.

        Raises:
            InvalidInputError: It is more than the server allows.
        """
        most = self.limits.query_limit
        if most is not None and value > most:
            raise InvalidInputError(f"{name} must be at most {most} on this server (strict mode), not {value}")
        return value

    def _scoped(self, condition: models.Filter | None) -> models.Filter | None:
        if self.tenant is None:
            return condition
        own = models.FieldCondition(key=TENANT_FIELD, match=models.MatchValue(value=self.tenant))
        return models.Filter(must=[own] if condition is None else [own, condition])

    def _own_rarity(self) -> models.IdfCorpusParams | None:
        """Return that words are as rare as they are among the tenant's points, where the engine can count so."""
        own = self._scoped(None)
        if own is None or self.capabilities.kind == "emulation" or not self.capabilities.has(Feature.IDF_SCOPE):
            return None
        return models.IdfCorpusParams(corpus=own)

    def _is_own(self, record: models.Record) -> bool:
        return self.tenant is None or (record.payload or {}).get(TENANT_FIELD) == self.tenant


def _count_values(condition: models.Filter) -> int:
    """Count the ids and values in the lists of a filter of ours, for an estimate of its size."""
    total = 1
    for part in condition.must if isinstance(condition.must, list) else []:
        if isinstance(part, models.Filter):
            total += _count_values(part)
        elif isinstance(part, models.HasIdCondition):
            total += len(part.has_id)
        else:
            total += len(getattr(getattr(part, "match", None), "any", None) or "x")
    return total


def field_any(field: str, values: Sequence[str]) -> models.Filter:
    """Match points whose field has any of these values."""
    return models.Filter(must=[models.FieldCondition(key=field, match=models.MatchAny(any=list(values)))])


def in_batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut values into lists of at most so many."""
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch
