"""What a store holds: fetch, delete, count, list."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from pplx_vectorstore.collection import LOSS_FIELD
from pplx_vectorstore.documents import StoredChunk, has_lone_surrogate
from pplx_vectorstore.errors import InvalidInputError, PplxVectorStoreError
from pplx_vectorstore.filters import is_empty
from pplx_vectorstore.operations.access import field_any, in_batches
from pplx_vectorstore.operations.documents import document_pages, read_documents
from pplx_vectorstore.operations.server_indexing import LoadGoesOnError
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.points import possible_point_ids, read_chunk, read_codes
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.reports import StoredDocument

if TYPE_CHECKING:
    from pplx_vectorstore.filters import FilterLike


CLOSED_IN_BULK_LOAD = (
    "the store was closed within bulk_load(), so that the server's indexing is still held back; whatever opens or uses "
    "the collection next restores it"
)
_CONDITION_SIZE = 500
BENT = models.Filter(must=[models.FieldCondition(key=LOSS_FIELD, range=models.Range(gt=0))])
"""Matches chunks whose stored direction lost more than 0.001 of cosine."""


async def get(session: Session, ids: Sequence[str], *, with_codes: bool) -> list[StoredChunk]:
    """Fetch chunks by id, in the order of the ids."""
    wanted = [possible_point_ids(chunk_id, session.points.tenant) for chunk_id in _as_ids(ids, "ids")]
    by_id = await session.points.retrieve(
        [point_id for options in wanted for point_id in options], with_codes=with_codes
    )
    found = [next((by_id[option] for option in options if option in by_id), None) for options in wanted]
    return await session.calls.run(
        _read_all, session, [record for record in found if record is not None], with_codes=with_codes
    )


async def delete(
    session: Session,
    *,
    ids: Sequence[str] | None,
    document_ids: Sequence[str] | None,
    filter: FilterLike,  # noqa: A002 - Qdrant's own word for it
) -> int:
    """Delete chunks by exactly one of the three."""
    values = (("ids", ids), ("document_ids", document_ids), ("filter", filter))
    given = [name for name, value in values if value is not None]
    if len(given) != 1:
        raise InvalidInputError(
            f"delete needs exactly one of ids, document_ids and filter; {' and '.join(given) or 'none'} came"
        )
    if document_ids is not None:
        return await delete_documents(session, _as_ids(document_ids, "document_ids"))
    if filter is not None:
        condition = session.points.condition(filter, to_delete=True)
        if condition is None or is_empty(condition):
            raise InvalidInputError("an empty filter would delete every chunk; say what to delete")
        return await _delete(session, [condition])
    points = [point for one in _as_ids(ids, "ids") for point in possible_point_ids(one, session.points.tenant)]
    return await _delete(
        session,
        [
            models.Filter(must=[models.HasIdCondition(has_id=list(some))])
            for some in in_batches(points, _condition_size(session))
        ],
    )


async def delete_documents(session: Session, document_ids: Sequence[str]) -> int:
    """Delete documents whole; return the number of chunks deleted."""
    unique = list(dict.fromkeys(document_ids))
    return await _delete(
        session, [field_any("document_id", some) for some in in_batches(unique, _condition_size(session))]
    )


async def count(session: Session, filter: FilterLike) -> int:  # noqa: A002
    """Count chunks."""
    return await session.points.count(session.points.condition(filter))


def read_chunks(session: Session, filter: FilterLike, *, with_codes: bool) -> AsyncIterator[StoredChunk]:  # noqa: A002
    """Yield the chunks that match, in no order."""
    return _read_chunks(session, session.points.condition(filter), with_codes=with_codes)


async def _read_chunks(
    session: Session, condition: models.Filter | None, *, with_codes: bool
) -> AsyncIterator[StoredChunk]:
    if condition is None:
        async for documents in read_documents(session, with_codes=with_codes):
            for chunk in await session.calls.run(_read_all, session, chain(*documents), with_codes=with_codes):
                yield chunk
        return
    async for page in session.points.scroll(condition, with_codes=with_codes):
        for chunk in await session.calls.run(_read_all, session, page, with_codes=with_codes):
            yield chunk


async def list_documents(session: Session) -> AsyncIterator[StoredDocument]:
    """Yield every document once, in no order."""
    async for page in document_pages(session):
        for document in page:
            yield document


async def flush(session: Session) -> None:
    """Write to disk what an embedded engine has only logged."""
    if session.points.capabilities.kind == "embedded":
        await session.calls("flush", session.points.collection)


async def optimize(session: Session) -> None:
    """Have everything indexed that is written, and wait for it; the emulation has no index."""
    await session.points.optimize()


@contextlib.asynccontextmanager
async def bulk_load(session: Session) -> AsyncIterator[Callable[[], Coroutine[Any, Any, None]]]:
    """Have nothing indexed within the block, and everything after it; who interrupts it waits for nothing.

    What is yielded tells others that the load goes on, as each write of this process does.
    """
    failure: BaseException | None = None
    begun_by = os.getpid()
    try:
        async with session.points.indexing_held_back():
            try:
                yield session.points.renew_hold
            except BaseException as error:  # noqa: BLE001 - raised below, whatever the end of the hold brings
                failure = error
        is_ours = begun_by == os.getpid()  # else a forked process leaves the block, while the other loads on
        if is_ours and (failure is None or isinstance(failure, Exception)):
            with contextlib.suppress(LoadGoesOnError):  # which waits for the index of all
                await optimize(session)
    except PplxVectorStoreError as another:
        if failure is None:
            raise
        failure.add_note(f"What was loaded is not indexed yet: {another}")
    if failure is not None:
        raise failure


async def _delete(session: Session, conditions: Iterable[models.Filter]) -> int:
    total = 0
    async with session.points.writing():
        for condition in conditions:
            n = await session.points.count(condition)
            if n:
                await session.points.delete(condition)
                total += n
        if total:
            await flush(session)
    return total


def _read_all(session: Session, records: Iterable[models.Record], *, with_codes: bool) -> list[StoredChunk]:
    return [_read(session, record, with_codes=with_codes) for record in records]


def _read(session: Session, record: models.Record, *, with_codes: bool) -> StoredChunk:
    payload = record.payload or {}
    codes = None
    if with_codes:
        codes = read_codes(record.vector, payload, session.fingerprint.dimension, session.fingerprint.squared_norm)
    return read_chunk(record.id, payload, codes)


def _condition_size(session: Session) -> int:
    return min(_CONDITION_SIZE, session.points.limits.condition_size or _CONDITION_SIZE)


def _as_ids(ids: object, what: str) -> list[str]:
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise InvalidInputError(f"{what} must be a list of str, not {type(ids).__name__}")
    listed = list(ids)
    for one in listed:
        if not isinstance(one, str) or has_lone_surrogate(one):
            raise InvalidInputError(f"{what} must be a list of str of valid Unicode; it holds {one!r}")
    return listed
