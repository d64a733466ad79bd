"""``pplx-vectorstore search``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from pplx_vectorstore.cli.model import load_model
from pplx_vectorstore.cli.options import (
    NEAREST,
    BackendOption,
    CollectionOption,
    DeviceOption,
    DtypeOption,
    GrpcPortOption,
    JsonOption,
    OnnxFileOption,
    StoreOption,
    TenantOption,
)
from pplx_vectorstore.cli.stores import connect, require_fingerprint
from pplx_vectorstore.collection import DEFAULT_COLLECTION
from pplx_vectorstore.documents import is_blank
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.terminal import reported_errors, say, say_json


def search(
    query: Annotated[str, typer.Argument(help="A question.")],
    store: StoreOption = NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
    k: Annotated[int, typer.Option("-k", help="Most hits to show.")] = 5,
    candidates: Annotated[int | None, typer.Option(help="Points to be compared by their codes.")] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", help='Conditions on the metadata, as JSON: \'{"lang": "en"}\'.')
    ] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Also rank by the words (BM25), and fuse.")] = False,
    by_document: Annotated[
        bool, typer.Option("--by-document", help="Show the best chunk of each document only.")
    ] = False,
    context: Annotated[int, typer.Option(help="Neighbouring chunks to show on each side.")] = 0,
    full: Annotated[bool, typer.Option("--full", help="Show whole chunks, not their beginnings.")] = False,
    model: Annotated[str | None, typer.Option(help="Where the index's model is now, if it moved.")] = None,
    backend: BackendOption = None,
    onnx_file: OnnxFileOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Find the chunks that answer a question best."""
    from pplx_vectorstore.display import hit_as_json, print_hits
    from pplx_vectorstore.operations.finding import SearchOptions
    from pplx_vectorstore.store import VectorStore

    with reported_errors() as console:
        options: dict[str, Any] = {
            "k": k,
            "candidates": candidates,
            "filter": _parse_filter(filter_),
            "hybrid": hybrid,
            "group_by_document": by_document,
            "context": context,
        }
        SearchOptions(**options)  # checked before the model is loaded for nothing
        if is_blank(query):
            raise InvalidInputError("a query must not be blank")
        with connect(store, grpc_port) as client:
            recorded = require_fingerprint(client, store, collection)
            options_of_model = {"backend": backend, "onnx_file": onnx_file, "device": device, "dtype": dtype}
            encoder = load_model(console, model, recorded, options_of_model)
            opened = VectorStore(client, collection, encoder=encoder, tenant=tenant, create=False)
            hits = opened.search(query, **options)
        if as_json:
            say_json([hit_as_json(hit) for hit in hits])
        elif hits:
            print_hits(hits, full=full)
        else:
            say("nothing found")


def _parse_filter(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f'--filter must be JSON, such as \'{{"lang": "en"}}\': {error}') from error
    if not isinstance(parsed, dict):
        raise InvalidInputError(f"--filter must be a JSON object, not {text}")
    return parsed
