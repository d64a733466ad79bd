"""``pplx-vectorstore copy``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from pplx_vectorstore.cli.options import (
    BulkOption,
    CollectionOption,
    GrpcPortOption,
    QuietOption,
    TenantOption,
    is_url,
)
from pplx_vectorstore.cli.stores import (
    bulk_load,
    connect,
    index_what_is_not,
    open_reader,
    read_tenants,
    require_fingerprint,
)
from pplx_vectorstore.collection import DEFAULT_COLLECTION
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.redaction import without_password
from pplx_vectorstore.terminal import busy, reported_errors, say


def copy(
    source: Annotated[str, typer.Argument(help="Folder or URL to copy from.", metavar="FROM")],
    target: Annotated[str, typer.Argument(help="Folder or URL to copy to.", metavar="TO")],
    collection: CollectionOption = DEFAULT_COLLECTION,
    to_collection: Annotated[
        str | None, typer.Option(help="Collection to copy into; by default of the same name.")
    ] = None,
    tenant: TenantOption = None,
    bulk: BulkOption = False,
    grpc_port: GrpcPortOption = None,
    quiet: QuietOption = False,
) -> None:
    """Copy an index between folders and servers."""
    from pplx_vectorstore.display import number

    of_target = is_url(target)
    with (
        reported_errors(quiet=quiet) as messages,
        connect(source, None if of_target else grpc_port) as origin,
        connect(target, grpc_port if of_target else None) as goal,
    ):
        same_place = source == target if is_url(source) else Path(source).resolve() == Path(target).resolve()
        if same_place and (to_collection or collection) == collection:
            raise InvalidInputError("FROM and TO are the same index; name another folder, URL or --to-collection")
        recorded = require_fingerprint(origin, source, collection)
        tenants = read_tenants(origin, collection)
        chunks = 0
        if tenant is not None and tenant not in (tenants or []):
            raise InvalidInputError(f"{without_password(source)} holds no tenant {tenant!r}")
        with contextlib.ExitStack() as loading:  # one for all tenants, who share an index
            for i, one in enumerate([tenant] if tenants is None or tenant is not None else tenants):
                reader = open_reader(origin, collection, recorded, one)
                writer = open_reader(goal, to_collection or collection, recorded, one, create=True)
                if i == 0:
                    loading.enter_context(bulk_load(messages, writer, bulk))
                with busy(messages, f"copying to {without_password(target)}"):
                    chunks += reader.copy_to(writer)
        index_what_is_not(messages, goal, to_collection or collection)
        if not quiet:
            say(f"copied {number(chunks, 'chunk')} to {without_password(target)}")
