"""Moving a collection: to Parquet, from Parquet, and from one store to another, codes and all."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import models

from pplx_vectorstore.collection import Fingerprint
from pplx_vectorstore.errors import InvalidInputError, MissingExtraError, SchemaMismatchError
from pplx_vectorstore.operations.access import field_any, in_batches
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.operations.write import flush, require_owned, upsert
from pplx_vectorstore.points import copy_points, point_id_of, read_codes
from pplx_vectorstore.quantization import Codes

_ROWS = 1000
_DOCUMENTS_AT_ONCE = 200
_FORMAT_KEY = b"pplx_vectorstore"

Page = tuple[list[dict[str, Any]], Codes]
"""Payloads as stored, and their int8 codes of shape (n, dimension)."""


async def export_parquet(session: Session, path: str | os.PathLike[str]) -> int:
    """Write all points to a Parquet file, through a temporary file beside it."""
    pa, parquet = _pyarrow()
    target = Path(path)
    if not target.parent.is_dir():
        raise InvalidInputError(f"there is no folder {str(target.parent)!r} to write {target.name!r} into")
    if target.is_dir():
        raise InvalidInputError(f"{str(target)!r} is a folder; name a file in it")
    schema = _schema(pa, session.fingerprint)
    total = 0
    temporary = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    try:
        with parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            async for payloads, codes in _stored_pages(session):
                writer.write_table(_table(pa, schema, payloads, codes))
                total += len(payloads)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return total


async def import_parquet(session: Session, path: str | os.PathLike[str]) -> int:
    """Write the points of a Parquet file."""
    with _open_parquet(path) as file:
        _require_ours(file, session, str(path))

        async def pages() -> AsyncIterator[Page]:
            for batch in file.iter_batches(batch_size=_ROWS):
                yield _page(batch, session.fingerprint.dimension)

        return await _write_pages(session, pages())


def read_exported_fingerprint(path: str | os.PathLike[str]) -> Fingerprint:
    """Read how the vectors of a Parquet file were made.

    Raises:
        InvalidInputError: It is no file of ours.
    """
    with _open_parquet(path) as file:
        return _exported_fingerprint(file, str(path))


async def copy(source: Session, target: Session) -> int:
    """Write all points of one store to another of the same model and settings, and index what is indexed."""
    target.fingerprint.require_same(source.fingerprint, target.points.collection)
    indexed = (await source.calls("get_collection", source.points.collection)).payload_schema or {}
    there = (await target.calls("get_collection", target.points.collection)).payload_schema or {}
    for field, index in indexed.items():
        if field.startswith("metadata") and field not in there and target.points.capabilities.kind != "emulation":
            schema = index.params or index.data_type
            await target.calls("create_payload_index", target.points.collection, field_name=field, field_schema=schema)
    return await _write_pages(target, _stored_pages(source))


async def _stored_pages(session: Session) -> AsyncIterator[Page]:
    dimension, squared_norm = session.fingerprint.dimension, session.fingerprint.squared_norm
    async for records in session.points.scroll(None, with_codes=True, page=_ROWS):
        codes = np.stack(
            [read_codes(record.vector, record.payload or {}, dimension, squared_norm) for record in records]
        )
        yield [dict(record.payload or {}) for record in records], codes


async def _write_pages(session: Session, pages: AsyncIterator[Page]) -> int:
    """Upsert pages of points; then delete what the collection held of their documents in other versions."""
    hashes: dict[str, set[str]] = {}
    total = 0
    async with session.write_lock:
        is_empty = await session.points.count() == 0
        async for payloads, codes in pages:
            if not is_empty:
                await _require_own_chunk_ids(session, payloads)
            points = copy_points(payloads, codes, session.fingerprint.squared_norm, session.points.tenant)
            await upsert(session, points)
            total += len(payloads)
            if not is_empty:  # an empty collection has no other versions, however many documents come
                for payload in payloads:
                    hashes.setdefault(payload["document_id"], set()).add(payload["document_hash"])
        at_once = min(_DOCUMENTS_AT_ONCE, session.points.limits.condition_size or _DOCUMENTS_AT_ONCE)
        for some in in_batches(hashes, at_once):
            of_documents = field_any("document_id", some)
            new = set().union(*(hashes[document_id] for document_id in some))
            stale = (await session.points.facet("document_hash", of_documents, 2 * len(some))).keys() - new
            for batch in in_batches(sorted(stale), at_once):
                both = models.Filter(must=[of_documents, field_any("document_hash", batch)])
                await session.points.delete(both)
    await flush(session)
    return total


async def _require_own_chunk_ids(session: Session, payloads: Sequence[Mapping[str, Any]]) -> None:
    """Refuse chunk ids that would overwrite a chunk of another document."""
    by_document: dict[str, dict[str, tuple[str | None, str]]] = {}
    for payload in payloads:
        if payload.get("id") is not None:
            owner = payload["id"], payload["document_id"]
            point_id = point_id_of(payload["id"], session.points.tenant)
            by_document.setdefault(payload["document_id"], {})[point_id] = owner
    for document_id, owners in by_document.items():
        await require_owned(session, owners, [document_id])


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("reading and writing Parquet", "parquet") from error
    return pyarrow, pyarrow.parquet


def _schema(pa: Any, fingerprint: Fingerprint) -> Any:
    recorded = json.dumps(fingerprint.to_metadata(), sort_keys=True)
    return pa.schema(
        [
            pa.field("id", pa.string()),
            pa.field("document_id", pa.string(), nullable=False),
            pa.field("chunk_index", pa.int64(), nullable=False),
            pa.field("chunk_count", pa.int64(), nullable=False),
            pa.field("start", pa.int64()),
            pa.field("end", pa.int64()),
            pa.field("text", pa.string(), nullable=False),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field("document_hash", pa.string(), nullable=False),
            pa.field("codes", pa.list_(pa.int8(), fingerprint.dimension), nullable=False),
        ],
        metadata={_FORMAT_KEY: recorded.encode()},
    )


def _table(pa: Any, schema: Any, payloads: Sequence[Mapping[str, Any]], codes: Codes) -> Any:
    columns: list[Any] = []
    for field in schema:
        if field.name == "codes":
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), codes.shape[1]))
        elif field.name == "metadata":
            columns.append(pa.array([json.dumps(payload["metadata"]) for payload in payloads], field.type))
        else:
            columns.append(pa.array([payload.get(field.name) for payload in payloads], field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _open_parquet(path: str | os.PathLike[str]) -> Any:
    pa, parquet = _pyarrow()
    try:
        return parquet.ParquetFile(os.fspath(path))
    except FileNotFoundError as error:
        raise InvalidInputError(f"there is no file {str(path)!r}") from error
    except pa.ArrowInvalid as error:
        raise InvalidInputError(f"{path} is not a Parquet file: {error}") from error


def _exported_fingerprint(file: Any, path: str) -> Fingerprint:
    recorded = (file.schema_arrow.metadata or {}).get(_FORMAT_KEY)
    if recorded is None:
        raise InvalidInputError(
            f"{path} was not exported by pplx-vectorstore; to add vectors of your own, use Document(vectors=...)"
        )
    return Fingerprint.from_metadata(json.loads(recorded), path)


def _require_ours(file: Any, session: Session, path: str) -> None:
    """Refuse a file of another model, or one whose columns were altered."""
    try:
        session.fingerprint.require_same(_exported_fingerprint(file, path), session.points.collection)
    except SchemaMismatchError as error:
        raise SchemaMismatchError(f"{path} does not fit into the collection: {error}") from error
    missing = set(_schema(_pyarrow()[0], session.fingerprint).names) - set(file.schema_arrow.names)
    if missing:
        raise InvalidInputError(f"{path} lacks the columns {', '.join(sorted(missing))}; export it again")


def _page(batch: Any, dimension: int) -> Page:
    columns = {name: batch.column(name).to_pylist() for name in batch.schema.names if name != "codes"}
    codes = np.asarray(batch.column("codes").flatten()).reshape(-1, dimension)
    return list(_payloads(columns, len(codes))), codes


def _payloads(columns: Mapping[str, list[Any]], n: int) -> Iterator[dict[str, Any]]:
    for row in range(n):
        payload = {name: values[row] for name, values in columns.items()}
        payload["metadata"] = json.loads(payload["metadata"])
        if payload["id"] is None:
            del payload["id"]
        yield payload
