"""Making the index in a folder anew with another model: beside the old one, which it replaces once it is complete.

An interrupted run leaves the old index as it was, and the new one as far as it came, from where the next run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from pplx_vectorstore.coroutines import run_now
from pplx_vectorstore.encoders import PrecomputedEncoder
from pplx_vectorstore.engines.calls import BlockingCalls
from pplx_vectorstore.engines.edge import EdgeClient
from pplx_vectorstore.errors import InvalidInputError, SchemaMismatchError
from pplx_vectorstore.operations.prepare import list_tenants, read_fingerprint
from pplx_vectorstore.store import VectorStore

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from pplx_vectorstore.collection import Fingerprint


_NEW = ".rebuilding"


def name_of_new(collection: str) -> str:
    """Return the name of the collection that is to replace one."""
    return f"{collection}{_NEW}"


def is_new(collection: str) -> bool:
    """Tell whether a collection is to replace another, and nothing that users know of."""
    return collection.endswith(_NEW)


def find_left(client: EdgeClient | QdrantClient, collection: str) -> str | None:
    """Return the name of the collection that an interrupted run has left, which was to replace this one."""
    new = name_of_new(collection)
    return new if isinstance(client, EdgeClient) and client.collection_exists(new) else None


def choose_collection(client: EdgeClient | QdrantClient, collection: str, wanted: Fingerprint, *, rebuild: bool) -> str:
    """Return the collection to write to: this one, or the new one that is to replace it.

    Args:
        client: The engine.
        collection: Which there may be or not.
        wanted: Of the encoder.
        rebuild: Whether an index of other vectors is to be made anew.

    Raises:
        InvalidInputError: It cannot be made anew in its place; the message says what to do instead.
        SchemaMismatchError: It is of other vectors, and `rebuild` is false.
    """
    recorded = _recorded(client, collection)
    if recorded is None:
        return collection
    try:
        recorded.require_same(wanted, collection)
    except SchemaMismatchError as error:
        if not rebuild:
            error.add_note("Or give --rebuild to have all its files embedded again with these.")
            raise
    else:
        return collection
    if not isinstance(client, EdgeClient):
        raise InvalidInputError(
            f"collection {collection!r} on a server has settings of its own, such as replicas, and is not made anew "
            "with another model. Index into another one (--collection), and delete this one when that is done"
        )
    if run_now(list_tenants(BlockingCalls.of(client), collection)) is not None:
        raise InvalidInputError(
            f"collection {collection!r} is of several tenants, and one of them cannot change its model. Index all into "
            "another one (--collection)"
        )
    return name_of_new(collection)


def delete_unusable(client: EdgeClient, new: str, wanted: Fingerprint) -> None:
    """Delete what an interrupted run with yet another model left of a new collection."""
    left = _recorded(client, new)
    if left is not None and left.identity() != wanted.identity():
        client.delete_collection(new)


def complete_replacing(client: EdgeClient | QdrantClient, collection: str) -> None:
    """Put a new index into its place, where a killed process had removed the old one and done no more."""
    if isinstance(client, EdgeClient) and not client.collection_exists(collection):
        new = name_of_new(collection)
        if client.collection_exists(new):
            client.replace_collection(collection, by=new)


def replace_collection(
    client: EdgeClient, collection: str, *, made_of: Collection[str], may_go: Collection[str]
) -> None:
    """Put the new index, which is complete, in the place of the old one.

    Args:
        client: The engine.
        collection: The old one.
        made_of: Ids of all documents that the new one is to have; others, which an interrupted run left, go.
        may_go: Ids of documents that the new one need not have.

    Raises:
        InvalidInputError: The new one lacks documents of the old one; both stay.
    """
    new = name_of_new(collection)
    stale = _ids(client, new) - set(made_of)
    if stale:
        _open(client, new).delete(document_ids=sorted(stale))
    pinned: list[Callable[[], None]] = []
    client.pin(collection, pinned=pinned)  # nobody adds anything from here on
    try:
        lost = sorted(_ids(client, collection) - _ids(client, new) - set(may_go))
        if lost:
            raise InvalidInputError(
                f"the new index lacks {len(lost)} documents of the old one, such as {lost[0]}: their files could not "
                "be read, or they came meanwhile. Nothing is replaced; give their paths again, with the same options, "
                "or delete them"
            )
        fields = client.get_collection(new).payload_schema
        for field, index in client.get_collection(collection).payload_schema.items():
            if field not in fields:
                client.create_payload_index(new, field, index.data_type)
        client.flush(new)
        client.replace_collection(collection, by=new)
    finally:
        client.unpin(collection, pinned=pinned)


def _ids(client: EdgeClient, collection: str) -> set[str]:
    return {document.id for document in _open(client, collection).documents()}


def _open(client: EdgeClient, collection: str) -> VectorStore:
    recorded = _recorded(client, collection)
    assert recorded is not None
    encoder = PrecomputedEncoder.of_collection(recorded)
    return VectorStore(client, collection, encoder=encoder, create=False)


def _recorded(client: EdgeClient | QdrantClient, collection: str) -> Fingerprint | None:
    return run_now(read_fingerprint(BlockingCalls.of(client), collection))
