"""Replacing documents: what is stored of them becomes exactly what they are now.

Everything that writes documents comes through here. What they become does not depend on how they were grouped, in
which order they came, or where an earlier run was cut off: it is decided by the ids of points, those that are stored of
the documents and those that they are made of now.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import NamedTuple

from pplx_vectorstore.engines.retrying import give_up_unless
from pplx_vectorstore.engines.upserts import Batch, component_bytes
from pplx_vectorstore.errors import DuplicateDocumentError
from pplx_vectorstore.operations.access import field_any, in_batches
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.points import Point, estimate_bytes
from pplx_vectorstore.qdrant import models

_UPSERT_POINTS = 256
# A server refuses requests above 32 MB, and is kept waiting by large ones.
_UPSERT_BYTES = 4 * 2**20
# An event loop writes each of them itself, and those that are under way at once one after the other.
_AWAITED_BYTES = 2**19
# The embedded engine lets no other thread run while it takes them in: about 20 ms.
_UPSERT_COMPONENTS = 2**17

Stale = Mapping[str, str]
"""Points to delete: id → the document hash under which they were found, so that none goes that was written since."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A chunk's own id, and the document that is to have it."""

    chunk_id: str
    document_id: str


class Holder(NamedTuple):
    """A claim to a chunk id, and the document that has it."""

    claim: Claim
    document_id: str


@dataclass(frozen=True, slots=True)
class Version:
    """A document as it is to be stored.

    Attributes:
        document_id: Its id.
        point_ids: Of all its chunks.
        claims: Of its chunks that have ids of their own: point id → claim.
        make_points: Makes the points, one by one; called once, in any thread.
    """

    document_id: str
    point_ids: Collection[str]
    claims: Mapping[str, Claim]
    make_points: Callable[[], Iterator[Point]]


@dataclass(frozen=True, slots=True)
class Piece:
    """Points to write, and what becomes stale by that.

    Attributes:
        make_points: As of a `Version`.
        stale: What to delete once all of them are written.
    """

    make_points: Callable[[], Iterator[Point]]
    stale: Stale


@dataclass(slots=True)
class _Request:
    """What is sent together.

    Attributes:
        points: To write.
        stale: To delete after that.
        size: Bytes of the points, estimated.
        waits: Whether everything before must be done first: it ends what took several requests.
        batch: The points as they are sent, once they are complete.
    """

    points: list[Point] = field(default_factory=list)
    stale: dict[str, str] = field(default_factory=dict)
    size: int = 0
    waits: bool = False
    batch: Batch | None = None


async def replace_documents(
    session: Session, versions: Sequence[Version], may_take_from: Container[str] | None
) -> None:
    """Make what is stored of some documents exactly these versions of them.

    A document that fits into a request is replaced by one: it is seen as it was or as it is. For larger ones, nothing
    of the old version goes before all of the new one is there.

    Args:
        session: The open store.
        versions: Of different documents.
        may_take_from: Other documents that lose chunks whose ids these have now, because they are replaced themselves;
            None for any.

    Raises:
        DuplicateDocumentError: A chunk's id belongs to another document; nothing is written.
    """
    ids = {version.document_id for version in versions}
    claims = {point_id: claim for version in versions for point_id, claim in version.claims.items()}
    new = {point_id for version in versions for point_id in version.point_ids}
    async with session.points.writing():
        if may_take_from is not None:
            holders = await find_holders(session, claims)
            refuse_held([holder for holder in holders if holder.document_id not in ids], may_take_from)
        before = await _stored_points(session, ids)
        pieces = [
            Piece(
                version.make_points,
                {id_: hash_ for id_, hash_ in before.get(version.document_id, {}).items() if id_ not in new},
            )
            for version in versions
        ]
        await write_pieces(session, pieces)


async def find_holders(session: Session, claims: Mapping[str, Claim]) -> list[Holder]:
    """Find out which other documents have the chunk ids that are claimed, by point id."""
    holders: list[Holder] = []
    if claims:
        records = await session.points.retrieve(list(claims), with_payload=["document_id"])
        holders = [Holder(claims[id_], (record.payload or {})["document_id"]) for id_, record in records.items()]
    return [holder for holder in holders if holder.document_id != holder.claim.document_id]


def refuse_held(holders: Iterable[Holder], may_take_from: Container[str]) -> None:
    """Raise if a chunk id belongs to a document that is not replaced.

    Raises:
        DuplicateDocumentError: Names the chunk id and both documents.
    """
    for claim, holder in holders:
        if holder not in may_take_from:
            raise DuplicateDocumentError(
                f"chunk id {claim.chunk_id!r} of document {claim.document_id!r} belongs to document {holder!r} "
                "already; use ids that are unique in the collection, delete that document first, or give it in the "
                "same call"
            )


async def write_pieces(session: Session, pieces: Iterable[Piece]) -> None:
    """Write points and delete stale ones, some requests at once; a slow server is waited for."""
    under_way: deque[Awaitable[None]] = deque()
    requests = map(partial(_complete, session), _requests(session, pieces))
    try:
        # Making points takes its time, which is no event loop's to give. Nor is it what threads would do faster
        # together, so those that send are given what is ready to be sent.
        while (request := await session.calls.run(next, requests, None)) is not None:
            while under_way and (request.waits or len(under_way) == session.parallel):
                await under_way.popleft()
            if session.parallel == 1:
                await _send(session, request)
            else:
                under_way.append(session.calls.start(_send(session, request)))
        while under_way:
            await under_way.popleft()
    except BaseException as error:
        give_up_unless(error)
        raise
    finally:
        for rest in under_way:  # one has failed: let the others end, its error is the one that counts
            with contextlib.suppress(Exception):
                await rest


def _requests(session: Session, pieces: Iterable[Piece]) -> Iterator[_Request]:
    """Put pieces together into requests of bounded size; only a piece that is larger than one is cut."""
    most = min(_UPSERT_POINTS, session.points.limits.upsert_points or _UPSERT_POINTS)
    most_stale = session.points.limits.condition_size or _UPSERT_POINTS
    most_bytes = None
    if session.points.capabilities.kind == "server":
        most_bytes = min(_UPSERT_BYTES, _AWAITED_BYTES) if session.calls.awaits else _UPSERT_BYTES
    else:
        most = min(most, max(1, _UPSERT_COMPONENTS // session.fingerprint.dimension))
    per_component = component_bytes(session.calls.client)
    gathered = _Request()
    for piece in pieces:
        parts = _cut(piece.make_points(), most, most_bytes, per_component)
        part, following = next(parts, _Request()), next(parts, None)
        if (
            following is not None
            or len(gathered.points) + len(part.points) > most
            or len(gathered.stale) + len(piece.stale) > most_stale
            or (most_bytes is not None and gathered.size + part.size > most_bytes)
        ):
            if gathered.points or gathered.stale:
                yield gathered
            gathered = _Request()
        while following is not None:
            yield part
            part, following = following, next(parts, None)
            gathered.waits = True
        gathered.points += part.points
        gathered.stale |= piece.stale
        gathered.size += part.size
        if gathered.waits:
            yield gathered
            gathered = _Request()
    if gathered.points or gathered.stale:
        yield gathered


def _cut(points: Iterator[Point], most: int, most_bytes: int | None, per_component: int) -> Iterator[_Request]:
    for some in in_batches(points, most):
        # Together, because to estimate each takes three times as long.
        size = 0 if most_bytes is None else estimate_bytes(some, per_component)
        if most_bytes is None or size <= most_bytes:
            yield _Request(some, size=size)
        else:
            yield from _cut_by_bytes(chain(some, points), most, most_bytes, per_component)


def _cut_by_bytes(points: Iterable[Point], most: int, most_bytes: int, per_component: int) -> Iterator[_Request]:
    part = _Request()
    for point in points:
        size = estimate_bytes([point], per_component)
        if part.points and (len(part.points) == most or part.size + size > most_bytes):
            yield part
            part = _Request()
        part.points.append(point)
        part.size += size
    if part.points:
        yield part


def _complete(session: Session, request: _Request) -> _Request:
    if request.points:
        request.batch = session.points.make_batch(request.points)
    return request


async def _send(session: Session, request: _Request) -> None:
    size = session.points.limits.condition_size or max(1, len(request.stale))
    conditions = [
        models.Filter(
            must=[
                models.HasIdCondition(has_id=list(some)),
                field_any("document_hash", sorted({request.stale[id_] for id_ in some})),
            ]
        )
        for some in in_batches(request.stale, size)
    ]
    if request.batch is not None:
        await session.points.upsert(request.batch, stale=conditions.pop(0) if conditions else None)
    for condition in conditions:
        await session.points.delete(condition)


async def _stored_points(session: Session, document_ids: Collection[str]) -> dict[str, dict[str, str]]:
    """Return what is stored of some documents: document id → point id → document hash."""
    stored: dict[str, dict[str, str]] = {}
    for some in in_batches(document_ids, session.points.limits.condition_size or max(1, len(document_ids))):
        condition = field_any("document_id", some)
        async for page in session.points.scroll(condition, with_payload=["document_id", "document_hash"]):
            for record in page:
                payload = record.payload or {}
                stored.setdefault(payload["document_id"], {})[str(record.id)] = payload["document_hash"]
    return stored
