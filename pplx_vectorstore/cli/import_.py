"""``pplx-vectorstore import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pplx_vectorstore.cli.options import (
    NEAREST,
    BulkOption,
    CollectionOption,
    GrpcPortOption,
    QuietOption,
    StoreOption,
    TenantOption,
    read_path,
)
from pplx_vectorstore.cli.stores import bulk_load, connect, index_what_is_not, open_reader
from pplx_vectorstore.collection import DEFAULT_COLLECTION
from pplx_vectorstore.redaction import without_password
from pplx_vectorstore.terminal import busy, reported_errors, say


def import_(
    file: Annotated[Path, typer.Argument(parser=read_path, help="A Parquet file that `export` wrote.", metavar="FILE")],
    store: StoreOption = NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
    bulk: BulkOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write an exported file's chunks into an index."""
    from pplx_vectorstore.display import number
    from pplx_vectorstore.operations.transfer import read_exported_fingerprint

    with reported_errors(quiet=quiet) as messages, connect(store, grpc_port) as client:
        opened = open_reader(client, collection, read_exported_fingerprint(file), tenant, create=True)
        with bulk_load(messages, opened, bulk), busy(messages, f"importing {file}"):
            chunks = opened.import_parquet(file)
        index_what_is_not(messages, client, collection)
        if not quiet:
            say(f"imported {number(chunks, 'chunk')} into {without_password(store)}")
