"""``pplx-vectorstore delete``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pplx_vectorstore.cli.options import (
    NEAREST,
    CollectionOption,
    GrpcPortOption,
    QuietOption,
    StoreOption,
    TenantOption,
    read_path,
)
from pplx_vectorstore.cli.stores import connect, open_reader, require_fingerprint
from pplx_vectorstore.collection import DEFAULT_COLLECTION
from pplx_vectorstore.documents import has_lone_surrogate
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.terminal import reported_errors, say


def delete(
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="Ids of documents, or paths of files or folders, there or not.", metavar="ID"),
    ] = None,
    under: Annotated[
        list[Path] | None,
        typer.Option(
            parser=read_path, help="Delete all that was indexed from below this folder, there or not.", metavar="FOLDER"
        ),
    ] = None,
    store: StoreOption = NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
    quiet: QuietOption = False,
) -> None:
    """Delete documents with all their chunks."""
    from pplx_vectorstore.display import number
    from pplx_vectorstore.files import find_below

    with reported_errors(quiet=quiet):
        if not (ids or under):
            raise InvalidInputError("nothing to delete was named; give ids, paths or --under")
        missing = []
        with connect(store, grpc_port) as client:
            opened = open_reader(client, collection, require_fingerprint(client, store, collection), tenant)
            # What is no Unicode is no id, but may be the path of a file that has one.
            named = [(given, not has_lone_surrogate(given)) for given in ids or []]
            named += [(str(path), False) for path in under or []]
            for given, may_be_id in named:
                if given and may_be_id and opened.delete(document_ids=[given]):
                    deleted = f"deleted {given}"
                elif given and (below := find_below(opened, Path(given))):
                    opened.delete(document_ids=below)
                    deleted = f"deleted {given} ({number(len(below), 'document')})"
                else:
                    missing.append(given)
                    continue
                if not quiet:
                    say(deleted)
        if missing:
            raise InvalidInputError(f"not in the index: {', '.join(missing)}")
