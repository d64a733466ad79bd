"""``pplx-vectorstore delete``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pplx_vectorstore.cli.options import NEAREST, CollectionOption, GrpcPortOption, StoreOption, TenantOption
from pplx_vectorstore.cli.stores import connect, open_reader, require_fingerprint
from pplx_vectorstore.collection import DEFAULT_COLLECTION
from pplx_vectorstore.display import number
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.terminal import reported_errors, say


def delete(
    ids: Annotated[
        list[str], typer.Argument(help="Ids of documents, or paths of files or folders, there or not.", metavar="ID")
    ],
    store: StoreOption = NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
) -> None:
    """Delete documents with all their chunks."""
    from pplx_vectorstore.files import find_below

    with reported_errors():
        missing = []
        with connect(store, grpc_port) as client:
            opened = open_reader(client, collection, require_fingerprint(client, store, collection), tenant)
            for given in ids:
                if given and opened.delete(document_ids=[given]):
                    say(f"deleted {given}")
                    continue
                below = find_below(opened, Path(given)) if given else []
                if below:
                    opened.delete(document_ids=below)
                    say(f"deleted {given} ({number(len(below), 'document')})")
                else:
                    missing.append(given)
        if missing:
            raise InvalidInputError(f"not in the index: {', '.join(missing)}")
