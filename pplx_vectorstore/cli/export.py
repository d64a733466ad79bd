"""``pplx-vectorstore export``."""

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
from pplx_vectorstore.terminal import busy, reported_errors, say


def export(
    file: Annotated[Path, typer.Argument(parser=read_path, help="The Parquet file to write.", metavar="FILE")],
    store: StoreOption = NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write all chunks with their codes to a Parquet file."""
    from pplx_vectorstore.display import number

    with reported_errors(quiet=quiet) as messages, connect(store, grpc_port) as client:
        opened = open_reader(client, collection, require_fingerprint(client, store, collection), tenant)
        with busy(messages, f"exporting to {file}"):
            chunks = opened.export_parquet(file)
        if not quiet:
            say(f"exported {number(chunks, 'chunk')} to {file}")
