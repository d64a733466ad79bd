"""The points of one collection as one tenant sees them: the only way by which operations reach points."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from qdrant_client import models

from pplx_vectorstore.collection import TENANT_FIELD, keeps_codes_in_memory, unindexed_points
from pplx_vectorstore.engines.calls import Calls
from pplx_vectorstore.engines.server import Capabilities
from pplx_vectorstore.engines.upserts import Batch, make_batch
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.filter_resolution import resolve_filter
from pplx_vectorstore.filters import build_filter
from pplx_vectorstore.operations.ledger import Ledger
from pplx_vectorstore.operations.sizes import AnswerSizes
from pplx_vectorstore.points import Point
from pplx_vectorstore.query import Ranking, map_filters

T = TypeVar("T")

_PAGE = 1000
_IDS_AT_ONCE = 1000
_UPDATES = 1000
_UPDATE_BYTES = 4 * 2**20
# Components of the shortest vectors that are searched by their bits, and of the shortest that are so even where the
# codes are in memory (benchmarks/search.py).
_LEAST_BITS = 384
MANY_BITS = 768
# Bytes of codes up to which Qdrant compares all of a segment rather than walk its graph (full_scan_threshold).
_FULL_SCAN_BYTES = 10_000 * 1024
# Bytes of codes up to which the embedded engine searches by them: the system's page cache holds them.
_CACHED_BYTES = 2**30


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
        lexical_fields: Fields that have an index for BM25 to rank by.
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
        self._warned: set[str] = set()

    def condition(
        self,
        filter: models.Filter | Mapping[str, Any] | None,  # noqa: A002 - Qdrant's own word for it
        *,
        to_delete: bool = False,
    ) -> models.Filter | None:
        """Translate what a caller gave as a filter, for the other methods, whose conditions are ours.

        Raises:
            UnsupportedFilterError: It says something that the engine cannot answer as it is meant.
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
        )

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
        await self._ledger.write(self._calls, "upsert", batch=batch, stale=scoped)

    async def delete(self, condition: models.Filter) -> None:
        """Delete the points that match."""
        selector = models.FilterSelector(filter=self._scoped(condition) or condition)
        await self._ledger.write(self._calls, "delete", points_selector=selector)

    async def create_index(self, field: str, schema: Any) -> None:
        """Index a payload field."""
        await self._ledger.create_index(self._calls, field, schema)

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
                await self._ledger.write(self._calls, "batch_update_points", update_operations=operations)
                operations, size = [], 0
        if operations:
            await self._ledger.write(self._calls, "batch_update_points", update_operations=operations)

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
                "retrieve", self.collection, ids=some, with_payload=fields, with_vectors=with_codes
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
                with_vectors=with_codes,
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

        for request in requests:
            scoped = map_filters(request, scope) if self.tenant is not None else request
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
        codes is exact. And, of vectors of middle length, where the codes are in memory: only for long ones is walking
        by the bits the faster way even then. Else by the bits: of codes on disk, that reads no more than the
        candidates.

        Args:
            candidates: Points that are to be compared by their codes.
            n: Points that the request asks for.
        """
        coverage = await self._coverage()
        by_bits = (
            self._codes.size >= _LEAST_BITS
            and (self.limits.oversampling is None or candidates <= self.limits.oversampling * n)
            and await self.has_bits(candidates, coverage)
            and not await self._prefers_codes(coverage)
        )
        # Until an index from which much was deleted is built anew, nothing is walked.
        exact = coverage is not None and coverage.is_worn
        return Ranking(
            candidates=candidates, by_bits=by_bits and not exact, exact=exact, most_hnsw_ef=self.limits.hnsw_ef
        )

    async def _coverage(self) -> Any:
        """Ask the embedded engine what its index covers; return None of others."""
        if self.capabilities.kind != "embedded":
            return None
        return await self._calls("coverage", self.collection)

    async def _prefers_codes(self, coverage: Any) -> bool:
        """Tell whether the codes are the better way although the bits are right."""
        in_memory = keeps_codes_in_memory(self._codes)
        if coverage is not None:
            size = self._codes.size * coverage.points
            in_memory = in_memory or size <= _CACHED_BYTES
        else:
            size = self._codes.size * ((await self._ledger.info(self._calls)).points_count or 0)
        return size <= _FULL_SCAN_BYTES or (in_memory and self._codes.size < MANY_BITS)

    async def has_bits(self, candidates: int, coverage: Any = None) -> bool:
        """Tell whether ranking by bits means anything now.

        Points without usable bits do no harm where they are no more than the candidates: then all of them are compared
        by their codes.

        Args:
            candidates: Points that are to be compared by their codes.
            coverage: What the embedded engine has just said; asked for where it is None.
        """
        if self.capabilities.kind == "emulation":
            return False
        coverage = coverage or await self._coverage()
        if coverage is not None:
            return bool(coverage.unindexed <= candidates)
        info = await self._ledger.info(self._calls)
        # What is not indexed cannot be had from the counts: they include points that were deleted or moved since. But
        # once a server has optimized, no segment without an index is larger than the threshold.
        threshold = getattr(info.config.optimizer_config, "indexing_threshold", None)
        if info.status != models.CollectionStatus.GREEN or not threshold:
            return False
        return unindexed_points(threshold, self._codes.size) <= candidates

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
