"""Moving a collection: to Parquet, from Parquet, and from one store to another, codes and all."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection, Container, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from pplx_vectorstore.collection import TEXT_FIELD, Fingerprint
from pplx_vectorstore.engines.retrying import operation
from pplx_vectorstore.operations.access import in_batches
from pplx_vectorstore.operations.documents import read_documents
from pplx_vectorstore.operations.manage import flush
from pplx_vectorstore.operations.replace import Claim, Version, find_holders, refuse_held, replace_documents
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.parquet import ExportedFile, ExportWriter, StoredRows
from pplx_vectorstore.points import copy_points, equalize_codes, point_id_of, read_codes, stored_point_id
from pplx_vectorstore.qdrant import models

_CLAIMS = 1000


async def export_parquet(session: Session, path: str | os.PathLike[str]) -> int:
    """Write all points to a Parquet file, document by document, through a temporary file beside it."""
    run = session.calls.run
    writer = await run(ExportWriter, path, session.fingerprint)
    try:
        async for documents in _stored_documents(session):
            await run(writer.write, documents)
        await run(writer.finish)
    finally:
        await run(writer.close)
    return writer.rows


async def import_parquet(session: Session, path: str | os.PathLike[str]) -> int:
    """Write the points of a Parquet file; nothing where the file is wrong."""
    run = session.calls.run
    file = await run(ExportedFile.open, path, session.fingerprint, session.points.collection)
    try:
        await run(file.check)
        if await session.points.count():
            for some in in_batches(file.own_ids(), _CLAIMS):
                await _require_free(session, some, file.document_ids)
        async with _Moved(session) as moved:
            lots = file.documents()
            while (documents := await run(next, lots, None)) is not None:
                await moved.write(documents, file.document_ids)
    finally:
        await run(file.close)
    return moved.chunks


def read_exported_fingerprint(path: str | os.PathLike[str]) -> Fingerprint:
    """Read how the vectors of a Parquet file were made.

    Raises:
        InvalidInputError: It is no file of ours.
    """
    return ExportedFile.fingerprint_of(path)


async def copy(source: Session, target: Session) -> int:
    """Write all points of one store to another of the same model and settings, and index what is indexed."""
    target.fingerprint.require_same(source.fingerprint, target.points.collection)
    indexed = (await source.calls("get_collection", source.points.collection)).payload_schema or {}
    there = (await target.calls("get_collection", target.points.collection)).payload_schema or {}
    for field, index in indexed.items():
        if field.startswith("metadata") and field not in there and target.points.capabilities.kind != "emulation":
            await target.points.create_index(field, index.params or index.data_type)
    document_ids: set[str] = set()
    if await target.points.count():
        own_ids: list[tuple[str, str]] = []
        async for page in source.points.scroll(None, with_payload=["document_id", "id"]):
            for record in page:
                payload = record.payload or {}
                document_ids.add(payload["document_id"])
                if payload.get("id") is not None:
                    own_ids.append((payload["id"], payload["document_id"]))
        for some in in_batches(own_ids, _CLAIMS):
            await _require_free(target, some, document_ids)
    async with _Moved(target) as moved:
        async for documents in _stored_documents(source):
            await moved.write(documents, document_ids)
    return moved.chunks


async def _stored_documents(session: Session) -> AsyncIterator[list[StoredRows]]:
    """Yield what is stored, document by document."""
    async for documents in read_documents(session, with_codes=True):
        yield await session.calls.run(_read, session.fingerprint, documents)


def _read(fingerprint: Fingerprint, documents: Iterable[list[models.Record]]) -> list[StoredRows]:
    dimension, squared_norm = fingerprint.dimension, fingerprint.squared_norm
    rows = []
    for records in documents:
        codes = np.stack(
            [read_codes(record.vector, record.payload or {}, dimension, squared_norm) for record in records]
        )
        rows.append(StoredRows([dict(record.payload or {}) for record in records], codes))
    return rows


async def _require_free(session: Session, own_ids: Iterable[tuple[str, str]], document_ids: Collection[str]) -> None:
    """Refuse chunk ids, given with their documents' ids, that belong to documents that are not replaced."""
    claims = {point_id_of(id_, session.points.tenant): Claim(id_, document_id) for id_, document_id in own_ids}
    refuse_held(await find_holders(session, claims), document_ids)


class _Moved:
    """What was written to a store, which is flushed at the end; an error is told what was written before it.

    Args:
        session: Of the store.

    Attributes:
        documents: Written so far.
        chunks: Theirs.
    """

    def __init__(self, session: Session) -> None:
        self.documents = self.chunks = 0
        self._session = session
        self._operation = operation()

    async def write(self, documents: list[StoredRows], may_take_from: Container[str]) -> None:
        """Put documents in the place of what is stored of them."""
        versions = await self._session.calls.run(_versions, self._session, documents)
        await self._session.points.heed_lengths(payload[TEXT_FIELD] for one in documents for payload in one.payloads)
        await replace_documents(self._session, versions, may_take_from)
        self.documents += len(documents)
        self.chunks += sum(len(one.payloads) for one in documents)

    async def __aenter__(self) -> _Moved:
        self._operation.__enter__()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                await flush(self._session)
            else:
                error.add_note(
                    f"Written before this: documents: {self.documents}, chunks: {self.chunks}. They are kept; the same "
                    "call again writes all."
                )
        finally:
            self._operation.__exit__(None, None, None)


def _versions(session: Session, documents: list[StoredRows]) -> list[Version]:
    """Make of stored documents what they are to be in this store.

    Raises:
        EncodingError: A vector cannot be brought to the collection's norm without bending its direction.
    """
    tenant = session.points.tenant
    all_vectors = equalize_codes([one.codes for one in documents], session.fingerprint.squared_norm)
    versions = []
    for one, vectors in zip(documents, all_vectors, strict=True):
        document_id = one.payloads[0]["document_id"]
        vectors.require_directions(document_id, [payload["chunk_index"] for payload in one.payloads])
        point_ids = [stored_point_id(payload, tenant) for payload in one.payloads]
        claims = _claims(point_ids, one.payloads)
        make_points = partial(copy_points, one.payloads, vectors, point_ids, tenant)
        versions.append(Version(document_id, point_ids, claims, make_points))
    return versions


def _claims(point_ids: Iterable[str], payloads: Iterable[Mapping[str, Any]]) -> dict[str, Claim]:
    return {
        point_id: Claim(payload["id"], payload["document_id"])
        for point_id, payload in zip(point_ids, payloads, strict=True)
        if payload.get("id") is not None
    }
