"""Stored documents ↔ Parquet files: a strict schema, checked as a whole before anything of a file is used."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pplx_vectorstore.collection import Fingerprint
from pplx_vectorstore.documents import copy_metadata
from pplx_vectorstore.equal_norms import MOST_LOSS
from pplx_vectorstore.errors import InvalidDocumentError, InvalidInputError, MissingExtraError, SchemaMismatchError
from pplx_vectorstore.points import equalize_codes, stored_point_id
from pplx_vectorstore.quantization import Codes

_ROWS = 1000
# Bytes of a file that are sorted at once, where its documents' rows are strewn over it.
_SORTED_BYTES = 64 * 2**20
# Each is an open file while they are written.
_MOST_PARTS = 256
_FORMAT_KEY = b"pplx_vectorstore"
_NULLABLE = ("id", "start", "end")


class StoredRows(NamedTuple):
    """A document as it is stored.

    Attributes:
        payloads: Of its chunks, in their order.
        codes: int8, shape (n_chunks, dimension).
    """

    payloads: Sequence[dict[str, Any]]
    codes: Codes


class ExportWriter:
    """Writes documents to a file, which appears when it is finished.

    Args:
        path: Of the file; one that is there is replaced.
        fingerprint: How the vectors were made.

    Attributes:
        rows: Chunks written.

    Raises:
        InvalidInputError: There is no such folder.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], fingerprint: Fingerprint) -> None:
        self._pa, parquet = _pyarrow()
        self._path = Path(path).absolute()
        if not self._path.parent.is_dir():
            raise InvalidInputError(f"there is no folder {str(self._path.parent)!r} to write {self._path.name!r} into")
        if self._path.is_dir():
            raise InvalidInputError(f"{str(self._path)!r} is a folder; name a file in it")
        self._schema = _schema(self._pa, fingerprint)
        self._temporary = self._path.with_name(f".{self._path.name}-{uuid.uuid4().hex}")
        self._writer = parquet.ParquetWriter(self._temporary, self._schema, compression="zstd")
        self.rows = 0

    def write(self, documents: Sequence[StoredRows]) -> None:
        """Write documents, each as a whole."""
        payloads = [payload for one in documents for payload in one.payloads]
        codes = np.concatenate([one.codes for one in documents])
        columns: list[Any] = []
        for field in self._schema:
            if field.name == "codes":
                values = self._pa.array(codes.reshape(-1))
                columns.append(self._pa.FixedSizeListArray.from_arrays(values, codes.shape[1]))
            elif field.name == "metadata":
                texts = [json.dumps(payload["metadata"]) for payload in payloads]
                columns.append(self._pa.array(texts, field.type))
            else:
                columns.append(self._pa.array([payload.get(field.name) for payload in payloads], field.type))
        self._writer.write_table(self._pa.Table.from_arrays(columns, schema=self._schema))
        self.rows += len(payloads)

    def finish(self) -> None:
        """Put the file into its place, safe from a loss of power."""
        self._writer.close()
        with self._temporary.open("rb") as file:
            os.fsync(file.fileno())
        self._temporary.replace(self._path)

    def close(self) -> None:
        """Let go; of a file that is not finished, nothing stays."""
        self._writer.close()
        self._temporary.unlink(missing_ok=True)


class ExportedFile:
    """A file that `ExportWriter` wrote, or that others made of such a one.

    Attributes:
        document_ids: Known once the file is checked.
    """

    def __init__(self, path: str, file: Any, fingerprint: Fingerprint) -> None:
        self.document_ids: dict[str, None] = {}
        self._path = path
        self._bytes = os.path.getsize(path)
        self._file = file
        self._dimension = fingerprint.dimension
        self._squared_norm = fingerprint.squared_norm
        self._columns = _schema(_pyarrow()[0], fingerprint).names  # others may be there, and are of no concern
        self._is_strewn = False
        self._sorted = contextlib.ExitStack()

    @classmethod
    def open(cls, path: str | os.PathLike[str], fingerprint: Fingerprint, collection: str) -> ExportedFile:
        """Open a file whose vectors fit into a collection.

        Raises:
            InvalidInputError: It is not there, no Parquet file, none of ours, or lacks columns or has others' types.
            SchemaMismatchError: Its vectors were made in another way.
        """
        pa, _ = _pyarrow()
        file = _open(path)
        try:
            try:
                fingerprint.require_same(_recorded(file, str(path)), collection)
            except SchemaMismatchError as error:
                raise SchemaMismatchError(f"{path} does not fit into the collection: {error}") from error
            _require_columns(pa, file.schema_arrow, _schema(pa, fingerprint), str(path))
        except BaseException:
            file.close()
            raise
        return cls(str(path), file, fingerprint)

    @staticmethod
    def fingerprint_of(path: str | os.PathLike[str]) -> Fingerprint:
        """Read how the vectors of a file were made.

        Raises:
            InvalidInputError: It is no file of ours.
        """
        with _open(path) as file:
            return _recorded(file, str(path))

    def check(self) -> None:
        """Read the whole file once, so that nothing is written where something of it is wrong.

        Raises:
            InvalidInputError: Names the column and the row, counted from 0, and what it holds.
        """
        hashes: list[np.ndarray[Any, np.dtype[np.uint64]]] = []
        last = None
        first_row = 0
        for batch in self._batches():
            payloads, _ = self._read(batch, first_row)
            ids = [uuid.UUID(stored_point_id(payload, None)).int & (2**64 - 1) for payload in payloads]
            hashes.append(np.array(ids, np.uint64))
            for payload in payloads:
                document_id = payload["document_id"]
                if document_id != last:
                    self._is_strewn |= document_id in self.document_ids
                    self.document_ids[document_id] = None
                    last = document_id
            first_row += len(payloads)
        if hashes:
            self._require_unique(np.concatenate(hashes))

    def own_ids(self) -> Iterator[tuple[str, str]]:
        """Yield the chunks' own ids, each with its document's id."""
        for batch in self._file.iter_batches(batch_size=_ROWS, columns=["id", "document_id"]):
            for id_, document_id in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                if id_ is not None:
                    yield id_, document_id

    def documents(self) -> Iterator[list[StoredRows]]:
        """Yield the documents, about a thousand chunks at a time."""
        lot: list[StoredRows] = []
        n = 0
        for document in self._each_document():
            if lot and n + len(document.payloads) > _ROWS:
                yield lot
                lot, n = [], 0
            lot.append(document)
            n += len(document.payloads)
        if lot:
            yield lot

    def close(self) -> None:
        """Let go of the file."""
        self._sorted.close()
        self._file.close()

    def _each_document(self) -> Iterator[StoredRows]:
        payloads: list[dict[str, Any]] = []
        codes: list[Codes] = []
        batches = self._sorted_batches() if self._is_strewn else self._batches()
        for some, of_some in map(self._rows, batches):
            for payload, row in zip(some, of_some, strict=True):
                if payloads and payload["document_id"] != payloads[0]["document_id"]:
                    yield _in_order(payloads, codes)
                    payloads, codes = [], []
                payloads.append(payload)
                codes.append(row)
        if payloads:
            yield _in_order(payloads, codes)

    def _sorted_batches(self) -> Iterator[Any]:
        """Yield the rows with those of a document together, by way of files of a part of the documents each."""
        pa, parquet = _pyarrow()
        size = self._file.metadata.num_rows * self._dimension + self._bytes
        n_parts = min(_MOST_PARTS, 1 + size // _SORTED_BYTES)
        folder = Path(self._sorted.enter_context(tempfile.TemporaryDirectory(prefix="pplx-vectorstore-")))
        paths = [folder / f"{part}.parquet" for part in range(n_parts)]
        with contextlib.ExitStack() as stack:
            schema = pa.schema([self._file.schema_arrow.field(name) for name in self._columns])
            writers = [stack.enter_context(parquet.ParquetWriter(path, schema, compression="lz4")) for path in paths]
            for batch in self._batches(_ROWS * min(n_parts, 64)):
                ids = batch.column("document_id").to_pylist()
                parts = np.array([zlib.crc32(id_.encode()) % n_parts for id_ in ids])
                for part in np.unique(parts):
                    rows = pa.array(np.flatnonzero(parts == part))
                    writers[part].write_table(pa.Table.from_batches([batch]).take(rows))
        for path in paths:
            table = parquet.read_table(path).sort_by([("document_id", "ascending"), ("chunk_index", "ascending")])
            yield from table.to_batches(max_chunksize=_ROWS)
            path.unlink()

    def _batches(self, rows: int = _ROWS) -> Iterator[Any]:
        try:
            yield from self._file.iter_batches(batch_size=rows, columns=self._columns)
        except OSError as error:
            raise InvalidInputError(f"{self._path} is damaged: {error}; export it again") from error

    def _read(self, batch: Any, first_row: int) -> tuple[list[dict[str, Any]], Codes]:
        """Read rows, and check each of their values."""
        for name in batch.schema.names:
            column = batch.column(name)
            if name not in _NULLABLE and column.null_count:
                row = column.is_null().to_pylist().index(True)
                raise self._wrong(name, first_row + row, "null")
        lengths = batch.column("codes").value_lengths().to_numpy(zero_copy_only=False)
        if (lengths != self._dimension).any():
            row = int(np.flatnonzero(lengths != self._dimension)[0])
            raise self._wrong("codes", first_row + row, f"{lengths[row]} values, not {self._dimension}")
        values = batch.column("codes").flatten()
        if values.null_count:
            row = values.is_null().to_pylist().index(True) // self._dimension
            raise self._wrong("codes", first_row + row, "null among its values")
        payloads, codes = self._rows(batch, first_row)
        for row, payload in enumerate(payloads, start=first_row):
            self._check(payload, row)
        (vectors,) = equalize_codes([codes], self._squared_norm)
        for row in np.flatnonzero(vectors.losses > MOST_LOSS).tolist():
            what = "a vector that this collection cannot hold (components too far above the others)"
            raise self._wrong("codes", first_row + row, what)
        return payloads, codes

    def _rows(self, batch: Any, first_row: int = 0) -> tuple[list[dict[str, Any]], Codes]:
        names = [name for name in batch.schema.names if name != "codes"]
        columns = [batch.column(name).to_pylist() for name in names]
        payloads = []
        for row, values in enumerate(zip(*columns, strict=True), start=first_row):
            payload = dict(zip(names, values, strict=True))
            if payload["id"] is None:
                del payload["id"]
            try:
                payload["metadata"] = copy_metadata(json.loads(payload["metadata"]))
            except (ValueError, InvalidDocumentError) as error:
                raise self._wrong("metadata", row, f"no JSON object that can be stored ({error})") from error
            payloads.append(payload)
        codes = np.asarray(batch.column("codes").flatten(), dtype=np.int8).reshape(-1, self._dimension)
        return payloads, codes

    def _check(self, payload: Mapping[str, Any], row: int) -> None:
        for name in ("id", "document_id", "document_hash"):
            if payload.get(name) == "":
                raise self._wrong(name, row, "an empty text")
        for name, least in (("chunk_index", 0), ("chunk_count", 1), ("start", 0), ("end", 0)):
            value = payload[name]
            if value is not None and not least <= value < 2**63:
                raise self._wrong(name, row, f"{value}, which is not from {least} to 2**63 - 1")

    def _require_unique(self, hashes: np.ndarray[Any, np.dtype[np.uint64]]) -> None:
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        if len(same):
            first, second = int(order[same[0]]), int(order[same[0] + 1])
            raise InvalidInputError(
                f"{self._path}: rows {first} and {second} (from 0) are the same chunk: the same id, or, of chunks "
                "without one, the same document_id and chunk_index"
            )

    def _wrong(self, column: str, row: int, what: str) -> InvalidInputError:
        return InvalidInputError(
            f"{self._path}: column {column!r} holds {what}, in row {row} (from 0); nothing was written"
        )


def _in_order(payloads: list[dict[str, Any]], codes: list[Codes]) -> StoredRows:
    order = sorted(range(len(payloads)), key=lambda row: int(payloads[row]["chunk_index"]))
    return StoredRows([payloads[row] for row in order], np.stack([codes[row] for row in order]))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("reading and writing Parquet", "parquet") from error
    return pyarrow, pyarrow.parquet


def _schema(pa: Any, fingerprint: Fingerprint) -> Any:
    recorded = json.dumps(fingerprint.to_metadata(), sort_keys=True)
    kinds = {
        "id": pa.string(),
        "document_id": pa.string(),
        "chunk_index": pa.int64(),
        "chunk_count": pa.int64(),
        "start": pa.int64(),
        "end": pa.int64(),
        "text": pa.string(),
        "metadata": pa.string(),
        "document_hash": pa.string(),
        "codes": pa.list_(pa.int8(), fingerprint.dimension),
    }
    fields = [pa.field(name, kind, nullable=name in _NULLABLE) for name, kind in kinds.items()]
    return pa.schema(fields, metadata={_FORMAT_KEY: recorded.encode()})


def _require_columns(pa: Any, found: Any, expected: Any, path: str) -> None:
    """Refuse a file whose columns were altered; other spellings of the same types will do."""
    missing = set(expected.names) - set(found.names)
    if missing:
        raise InvalidInputError(f"{path} lacks the columns {', '.join(sorted(missing))}; export it again")
    twice = sorted(name for name in set(found.names) if found.names.count(name) > 1)
    if twice:
        raise InvalidInputError(f"{path} has two columns {twice[0]!r}; export it again")
    same = {
        "string": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
        "int64": pa.types.is_integer,
    }
    for field in expected:
        kind = found.field(field.name).type
        if field.name == "codes":
            lists = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
            fits = any(is_ for is_ in (of(kind) for of in lists)) and kind.value_type == pa.int8()
        else:
            fits = same[str(field.type)](kind)
        if not fits:
            raise InvalidInputError(
                f"{path}: column {field.name!r} is of type {kind}, not {field.type}; nothing was written"
            )


def _open(path: str | os.PathLike[str]) -> Any:
    pa, parquet = _pyarrow()
    try:
        return parquet.ParquetFile(os.fspath(path))
    except FileNotFoundError as error:
        raise InvalidInputError(f"there is no file {str(path)!r}") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidInputError(f"{path} is not a Parquet file: {error}") from error


def _recorded(file: Any, path: str) -> Fingerprint:
    recorded = (file.schema_arrow.metadata or {}).get(_FORMAT_KEY)
    if recorded is None:
        raise InvalidInputError(
            f"{path} was not exported by pplx-vectorstore; to add vectors of your own, use Document(vectors=...)"
        )
    return Fingerprint.from_metadata(json.loads(recorded), path)
