"""How a command opens the index behind ``--store``."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pplx_vectorstore.cli.options import EMPTY, is_url
from pplx_vectorstore.engines.server import DEFAULT_TIMEOUT, make_client
from pplx_vectorstore.errors import InvalidInputError, StoreNotFoundError
from pplx_vectorstore.redaction import without_password
from pplx_vectorstore.terminal import busy

if TYPE_CHECKING:
    from pplx_vectorstore.collection import Fingerprint
    from pplx_vectorstore.store import VectorStore
    from pplx_vectorstore.terminal import Messages


@contextlib.contextmanager
def connect(store: str, grpc_port: int | None = None) -> Iterator[Any]:
    """Open the engine behind --store: a folder's, or a server's client."""
    from pplx_vectorstore.engines.edge import EdgeClient

    if not store:
        raise InvalidInputError(f"the name of an index is missing: {EMPTY}")
    looks_like_one = "://" in store or re.match(r"([^/\\@:]*:[^@]*@)?[\w.-]+:\d+(/|$)", store)
    if looks_like_one and not is_url(store):
        raise InvalidInputError(
            f"{without_password(store)!r} looks like a server's address; URLs begin with http:// or https://"
        )
    if is_url(store):
        client: Any = make_client(
            store, api_key=None, prefer_grpc=False, grpc_port=grpc_port, timeout=DEFAULT_TIMEOUT, asynchronous=False
        )
    elif grpc_port is not None:
        raise InvalidInputError(f"--grpc-port is of a server, and --store is the folder {store!r}; give a URL")
    else:
        client = EdgeClient(store)
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def bulk_load(messages: Messages, store: VectorStore, wanted: bool) -> Iterator[None]:
    """Hold indexing back within the block, where that is wanted."""
    with contextlib.ExitStack() as loading:
        if wanted:
            loading.enter_context(store.bulk_load())
        yield
        with busy(messages, "building the index"):
            loading.close()


def index_what_is_not(messages: Messages, client: Any, collection: str) -> None:
    """Build a folder's index anew where that makes searching faster; a server does so on its own."""
    if hasattr(client, "coverage") and client.coverage(collection).is_due:
        with busy(messages, "building the index"):
            client.optimize(collection)


def recorded_fingerprint(client: Any, collection: str) -> Fingerprint | None:
    """Read how the collection was written, or return None where there is none yet."""
    from pplx_vectorstore.coroutines import run_now
    from pplx_vectorstore.engines.calls import BlockingCalls
    from pplx_vectorstore.operations.prepare import read_fingerprint

    return run_now(read_fingerprint(BlockingCalls.of(client), collection))


def require_fingerprint(client: Any, store: str, collection: str) -> Fingerprint:
    """Read how the collection was written, which there has to be."""
    recorded = recorded_fingerprint(client, collection)
    if recorded is None:
        from pplx_vectorstore.rebuilding import find_left, is_new

        names = [] if is_url(store) else [name for name in client.collection_names() if not is_new(name)]
        if find_left(client, collection) is not None:
            raise StoreNotFoundError(
                f"the index {collection!r} in {without_password(store)} is not in its place: --rebuild was interrupted "
                "while replacing it. Run index again, which completes that"
            )
        hint = f"it holds {', '.join(names)}" if names else "make one with: pplx-vectorstore index PATH"
        raise StoreNotFoundError(f"there is no index {collection!r} in {without_password(store)}; {hint}")
    return recorded


def read_tenants(client: Any, collection: str) -> list[str] | None:
    """List a collection's tenants, or return None where it has none."""
    from pplx_vectorstore.coroutines import run_now
    from pplx_vectorstore.engines.calls import BlockingCalls
    from pplx_vectorstore.operations.prepare import list_tenants

    return run_now(list_tenants(BlockingCalls.of(client), collection))


def open_reader(
    client: Any, collection: str, recorded: Fingerprint, tenant: str | None, *, create: bool = False
) -> VectorStore:
    """Open an index for what needs no model."""
    from pplx_vectorstore.encoders import PrecomputedEncoder
    from pplx_vectorstore.store import VectorStore

    encoder = PrecomputedEncoder.of_collection(recorded)
    return VectorStore(client, collection, encoder=encoder, tenant=tenant, create=create)
