"""``pplx-vectorstore documents``."""

from __future__ import annotations

from dataclasses import asdict

from pplx_vectorstore.cli.options import (
    NEAREST,
    CollectionOption,
    GrpcPortOption,
    JsonOption,
    StoreOption,
    TenantOption,
)
from pplx_vectorstore.cli.stores import connect, open_reader, require_fingerprint
from pplx_vectorstore.collection import DEFAULT_COLLECTION
from pplx_vectorstore.terminal import reported_errors, say, say_json


def documents(
    store: StoreOption = NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the documents of an index, with their numbers of chunks."""
    with reported_errors(), connect(store, grpc_port) as client:
        opened = open_reader(client, collection, require_fingerprint(client, store, collection), tenant)
        listed = sorted(opened.documents(), key=lambda document: document.id)
        if as_json:
            say_json([asdict(document) for document in listed])
        else:
            for document in listed:
                incomplete = "" if document.chunks == document.chunk_count else "  (incomplete: index it again)"
                say(f"{document.chunks:>7,}  {document.id}{incomplete}")
