"""Rows of a dataset → documents; what a dataset's columns must be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pplx_vectorstore import Document
from pplx_vectorstore.errors import DuplicateDocumentError, InvalidDocumentError, InvalidInputError

if TYPE_CHECKING:
    from ray.data import Schema

DOCUMENT_COLUMNS = ("id", "text", "chunks", "metadata", "format")

_WAYS_OUT = {
    "id": "a document's id; convert it, as by str()",
    "text": "a whole text, which is cut into chunks",
    "chunks": "ready-made chunks, in the order of the document",
    "metadata": (
        "JSON, as json.dumps writes it: Arrow fills structs with nulls for the keys that other rows have, and takes no "
        "values of different types"
    ),
    "format": "how text is cut, such as 'markdown'",
    "query": "a question",
}


def document_columns(schema: Schema | None) -> list[str] | None:
    """Return the columns of documents that a dataset has, or None where it has no rows and so no columns.

    Raises:
        InvalidInputError: One is missing, or is of another type; it is named.
    """
    types = _types(schema)
    if types is None:
        return None
    _require(types, "id", _is_text)
    if not {"text", "chunks"} & types.keys():
        raise InvalidInputError(
            f"documents need a column text (string) or chunks (list<string>); the dataset has {_listed(types)}"
        )
    for name in set(DOCUMENT_COLUMNS) & types.keys() - {"id"}:
        _require(types, name, _is_list_of_text if name == "chunks" else _is_text)
    return [name for name in DOCUMENT_COLUMNS if name in types]


def require_query_column(schema: Schema | None, column: str, result: str) -> None:
    """Refuse a dataset without a column of questions, or with one of the name that the result gets.

    Raises:
        InvalidInputError: The column is missing, or no text; or there is one that is called like the result.
    """
    types = _types(schema)
    if types is None:
        return
    _require(types, column, _is_text, "query")
    if result in types:
        raise InvalidInputError(f"the dataset has a column {result!r}, which would be that of the result; rename it")


def read_documents(table: pa.Table) -> Iterator[tuple[str | None, Document | InvalidDocumentError]]:
    """Yield for each row its id, as far as there is one, and its document, or what is wrong with it.

    Of several rows with one id, the first is taken, and the others are wrong.
    """
    seen: set[str] = set()
    for row in table.to_pylist():
        document_id = row["id"]
        try:
            document = _read_document(row)
            if document_id in seen:
                raise DuplicateDocumentError(
                    f"document id {document_id!r} comes twice in one batch, of which the first is taken; ids are unique"
                )
        except InvalidDocumentError as error:
            yield document_id, error
        else:
            seen.add(document_id)
            yield document_id, document


def _read_document(row: Mapping[str, Any]) -> Document:
    document_id = row["id"]
    if document_id is None:
        raise InvalidDocumentError("a row's id is null; every document needs one")
    chunks = row.get("chunks")
    if chunks is not None and None in chunks:
        raise InvalidDocumentError(f"chunk {chunks.index(None)} of document {document_id!r} is null")
    return Document(
        id=document_id,
        text=row.get("text"),
        chunks=chunks,
        metadata=_read_metadata(document_id, row.get("metadata")),
        format=row.get("format") or "text",
    )


def _read_metadata(document_id: str, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise InvalidDocumentError(f"metadata of document {document_id!r} is no JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise InvalidDocumentError(
            f"metadata of document {document_id!r} must be a JSON object, not {type(metadata).__name__}"
        )
    return metadata


def _types(schema: Schema | None) -> dict[str, Any] | None:
    return None if schema is None or not schema.names else dict(zip(schema.names, schema.types, strict=True))


def _require(types: Mapping[str, Any], column: str, fits: Any, meaning: str | None = None) -> None:
    expected = "list<string>" if fits is _is_list_of_text else "string"
    meaning = _WAYS_OUT[meaning or column]
    if column not in types:
        raise InvalidInputError(
            f"the dataset has no column {column!r} ({expected}: {meaning}); it has {_listed(types)}"
        )
    if not isinstance(types[column], pa.DataType):
        raise InvalidInputError(
            f"column {column!r} must be of type {expected}, not of Python objects ({meaning}); "
            "ray.data.from_arrow(pyarrow.Table.from_pandas(frame)) keeps the types of a frame of pandas"
        )
    if not fits(types[column]):
        raise InvalidInputError(f"column {column!r} must be of type {expected}, not {types[column]}: {meaning}")


def _is_text(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_null(type_) or _is_coded(type_)
    )


def _is_coded(type_: pa.DataType) -> bool:
    return bool(pa.types.is_dictionary(type_) and _is_text(type_.value_type))


def _is_list_of_text(type_: pa.DataType) -> bool:
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    return bool(pa.types.is_null(type_) or (is_list and _is_text(type_.value_type)))


def _listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
