"""``pplx-vectorstore info``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pplx_vectorstore.cli.options import (
    NEAREST,
    CollectionOption,
    GrpcPortOption,
    JsonOption,
    StoreOption,
    TenantOption,
    is_url,
)
from pplx_vectorstore.cli.stores import connect, open_reader, read_tenants, require_fingerprint
from pplx_vectorstore.collection import DEFAULT_COLLECTION
from pplx_vectorstore.redaction import without_password
from pplx_vectorstore.terminal import reported_errors, say, say_json


def info(
    store: StoreOption = NEAREST,
    grpc_port: GrpcPortOption = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what an index holds and how it was made."""
    from pplx_vectorstore.display import bytes_on_disk
    from pplx_vectorstore.engines.calls import BlockingCalls
    from pplx_vectorstore.file_settings import read_settings
    from pplx_vectorstore.operations.manage import BENT

    with reported_errors(), connect(store, grpc_port) as client:
        recorded = require_fingerprint(client, store, collection)
        facts: dict[str, Any] = {"store": without_password(store), "collection": collection}
        tenants = read_tenants(client, collection)
        if tenants is not None and tenant is None:
            facts["tenants"] = len(tenants)
        else:
            opened = open_reader(client, collection, recorded, tenant)
            facts |= {
                "documents": sum(1 for _ in opened.documents()),
                "chunks": opened.count(),
                "bent chunks": opened.count(BENT),
            }
        facts |= asdict(recorded)
        settings = read_settings(BlockingCalls.of(client), collection)
        if settings is not None:
            facts |= asdict(settings)
        if not is_url(store):
            facts["bytes on disk"] = sum(bytes_on_disk(file) for file in Path(store).rglob("*"))
        if as_json:
            say_json({key.replace(" ", "_"): value for key, value in facts.items()})
        else:
            width = max(map(len, facts))
            for key, value in facts.items():
                shown = f"{value:,}" if isinstance(value, int) else ", ".join(value) if type(value) is tuple else value
                say(f"{key.replace('_', ' '):<{width}}  {'-' if shown in (None, '') else shown}")
