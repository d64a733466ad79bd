"""Opening a collection: create it, or verify that it is what the store takes it for."""

from __future__ import annotations

from typing import Any

from pplx_vectorstore.chunking import Chunker
from pplx_vectorstore.collection import (
    BM25_VECTOR,
    GENERATION_FIELD,
    TENANT_FIELD,
    TEXT_FIELD,
    WORDS_FIELD,
    CollectionConfig,
    Fingerprint,
    IndexFields,
    bm25_vector_params,
    codes_params,
    field_indexes,
    generation_index_params,
    has_bm25_vector,
    has_tenants,
    index_type,
    index_types,
    lexical_fields,
    own_indexes,
    schema_differences,
    tenant_index_params,
    text_index_params,
    vector_params,
)
from pplx_vectorstore.documents import has_lone_surrogate
from pplx_vectorstore.encoders import Encoder, PrecomputedEncoder
from pplx_vectorstore.engines.calls import Calls
from pplx_vectorstore.engines.capabilities import Capabilities, Feature, read_capabilities
from pplx_vectorstore.engines.retrying import is_conflict
from pplx_vectorstore.engines.server import describe, is_emulation
from pplx_vectorstore.errors import (
    InvalidInputError,
    SchemaMismatchError,
    ServerError,
    StoreError,
    StoreNotFoundError,
)
from pplx_vectorstore.operations.access import Limits, PointAccess
from pplx_vectorstore.operations.ledger import Ledger, ledger_of
from pplx_vectorstore.operations.server_indexing import restore_abandoned
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.qdrant import models

_LEXICAL = (TEXT_FIELD, WORDS_FIELD)


async def open_session(
    calls: Calls,
    collection: str,
    *,
    where: str | None,
    encoder: Encoder | None,
    chunker: Chunker | None,
    tenant: str | None,
    create: bool,
    config: CollectionConfig | None,
    index_fields: IndexFields | None,
    parallel: int,
) -> Session:
    """Open a store: arguments and errors as `VectorStore` says."""
    if not hasattr(calls.client, "query_batch_points"):
        raise InvalidInputError(
            f"client must be a QdrantClient, an AsyncQdrantClient or an EdgeClient, not {type(calls.client).__name__}"
        )
    if encoder is None:
        recorded = await read_fingerprint(calls, collection)
        if recorded is None:
            raise StoreNotFoundError(f"there is no collection {collection!r}; to create it, give an encoder")
        encoder = PrecomputedEncoder.of_collection(recorded)
    if not hasattr(encoder, "fingerprint"):
        raise InvalidInputError(f"encoder must come from load_encoder or be like it, not {type(encoder).__name__}")
    if config is not None and not isinstance(config, CollectionConfig):
        raise InvalidInputError(f"config must be a CollectionConfig or None, not {type(config).__name__}")
    if not isinstance(parallel, int) or isinstance(parallel, bool) or parallel < 1:
        raise InvalidInputError(f"parallel must be a whole number of at least 1, not {parallel!r}")
    capabilities = await learn_capabilities(calls, where)
    points, recorded = await open_collection(
        calls,
        collection,
        encoder.fingerprint,
        capabilities,
        tenant=tenant,
        create=create,
        config=config,
        index_fields=index_fields,
    )
    return Session(
        calls=calls,
        points=points,
        encoder=encoder,
        fingerprint=recorded,
        chunker=chunker,
        parallel=parallel if capabilities.kind == "server" else 1,
    )


async def learn_capabilities(calls: Calls, where: str | None) -> Capabilities:
    """Find out what the engine behind a client can do.

    Raises:
        UnsupportedServerError: The server is too old.
        ServerUnavailableError: There is none.
    """
    if where is None:
        return Capabilities("emulation" if is_emulation(calls.client) else "embedded")
    return read_capabilities((await calls("info")).version, where)


async def read_fingerprint(calls: Calls, collection: str) -> Fingerprint | None:
    """Read how a collection was written, or None where there is none.

    Raises:
        SchemaMismatchError: The collection is not ours, or of another schema version.
    """
    if not await calls("collection_exists", collection):
        return None
    info = await calls("get_collection", collection)
    return Fingerprint.from_metadata(info.config.metadata, collection)


async def list_tenants(calls: Calls, collection: str) -> list[str] | None:
    """List the tenants of an existing collection, or return None where it has none."""
    info = await calls("get_collection", collection)
    if not has_tenants(info.config.metadata):
        return None
    capabilities = await learn_capabilities(calls, describe(calls.client))
    ledger = ledger_of(calls.client, describe(calls.client), collection)
    everyone = PointAccess(
        calls, ledger, None, capabilities, Limits.of(info), lexical_fields=(), codes=codes_params(info)
    )
    return sorted(await everyone.facet(TENANT_FIELD, None, most=1000))


async def open_collection(
    calls: Calls,
    collection: str,
    fingerprint: Fingerprint,
    capabilities: Capabilities,
    *,
    tenant: str | None,
    create: bool,
    config: CollectionConfig | None,
    index_fields: IndexFields | None,
) -> tuple[PointAccess, Fingerprint]:
    """Create a collection or verify an existing one, and index what is to be indexed.

    Returns:
        Its points, and how it was written: in a few details, an encoder that fits it may differ.

    Raises:
        SchemaMismatchError: It is laid out or was written in another way; every difference is named.
        StoreNotFoundError: It does not exist and `create` is false.
        InvalidInputError: `tenant` or `index_fields` are not usable.
        UnsupportedServerError: The server is too old for one of `index_fields`.
    """
    _check_tenant(tenant)
    wanted = field_indexes(index_fields)
    for field, schema in wanted.items():
        capabilities.require_index(field, schema)
    ledger = ledger_of(calls.client, describe(calls.client), collection)
    if not await calls("collection_exists", collection):
        if not create:
            raise StoreNotFoundError(f"there is no collection {collection!r}; index documents first")
        await _create(
            calls, collection, fingerprint, capabilities, config or CollectionConfig(), tenants=tenant is not None
        )
    info = await calls("get_collection", collection)
    recorded = _verify(info, collection, fingerprint, tenant)
    without_links = capabilities.has(Feature.UNLINKED_INDEXES)
    indexes = own_indexes(without_links=without_links)
    if capabilities.kind == "server":
        await restore_abandoned(calls, ledger, info)
        indexes[GENERATION_FIELD] = generation_index_params(
            without_links=without_links, memory_placement=capabilities.has(Feature.MEMORY_PLACEMENT)
        )
    if tenant is not None:
        indexes[TENANT_FIELD] = tenant_index_params()
    lexical: tuple[str, ...] = ()
    if has_bm25_vector(info.config.metadata):
        lexical = (BM25_VECTOR,)
    elif capabilities.has(Feature.TEXT_SCORING):
        # By what is recorded, so that a creation cut short is completed.
        lexical = lexical_fields(info.config.metadata) if config is None else _LEXICAL if config.text_index else ()
        indexes |= {field: text_index_params() for field in lexical}
        there = {*lexical, *(info.payload_schema or {})}
        lexical = _LEXICAL if capabilities.kind == "emulation" else tuple(field for field in _LEXICAL if field in there)
    await _create_indexes(calls, ledger, {**indexes, **wanted}, info, capabilities)
    points = PointAccess(
        calls,
        ledger,
        tenant,
        capabilities,
        Limits.of(info),
        lexical_fields=lexical,
        codes=codes_params(info),
    )
    return points, recorded


def _check_tenant(tenant: object) -> None:
    if tenant is not None and (not isinstance(tenant, str) or not tenant or has_lone_surrogate(tenant)):
        raise InvalidInputError(f"tenant must be a non-empty str of valid Unicode or None, not {tenant!r}")


async def _create(
    calls: Calls,
    collection: str,
    fingerprint: Fingerprint,
    capabilities: Capabilities,
    config: CollectionConfig,
    *,
    tenants: bool,
) -> None:
    options: dict[str, Any] = {
        "vectors_config": vector_params(
            fingerprint.dimension, config, memory_placement=capabilities.has(Feature.MEMORY_PLACEMENT)
        ),
    }
    bm25_vector = config.text_index and not capabilities.has(Feature.TEXT_SCORING)
    options["metadata"] = fingerprint.to_metadata(
        tenants=tenants, text_index=config.text_index, bm25_vector=bm25_vector
    )
    if bm25_vector:
        options["sparse_vectors_config"] = bm25_vector_params()
    if capabilities.kind == "server":
        options |= {
            "shard_number": config.shard_number,
            "replication_factor": config.replication_factor,
            "write_consistency_factor": config.write_consistency_factor,
            "on_disk_payload": True,
        }
    try:
        await calls("create_collection", collection, **options)
    except StoreError as error:
        # Somebody was faster, or the answer to our own first try was lost: what there is gets verified.
        if not is_conflict(error) and not await calls("collection_exists", collection):
            raise


def _verify(info: models.CollectionInfo, collection: str, fingerprint: Fingerprint, tenant: str | None) -> Fingerprint:
    recorded = Fingerprint.from_metadata(info.config.metadata, collection)
    recorded.require_same(fingerprint, collection)
    different = schema_differences(info, fingerprint.dimension)
    if has_bm25_vector(info.config.metadata) and BM25_VECTOR not in (info.config.params.sparse_vectors or {}):
        different.append(f"it has no sparse vector {BM25_VECTOR!r}, which its points need")
    if different:
        raise SchemaMismatchError(
            f"collection {collection!r} was altered: {'; '.join(different)}. Index into another collection"
        )
    if has_tenants(info.config.metadata) and tenant is None:
        raise SchemaMismatchError(f"collection {collection!r} holds tenants; say which (tenant=, or --tenant)")
    if not has_tenants(info.config.metadata) and tenant is not None:
        raise SchemaMismatchError(
            f"collection {collection!r} was created without tenants, so tenant {tenant!r} cannot be kept apart; "
            "index into another collection"
        )
    return recorded


async def _create_indexes(
    calls: Calls, ledger: Ledger, wanted: dict[str, Any], info: models.CollectionInfo, capabilities: Capabilities
) -> None:
    existing = ledger.indexes = index_types(info)
    different = []
    for field, kind in wanted.items():
        is_ = ledger.indexes.get(field)
        needed = index_type(kind)
        if is_ not in (None, needed):
            different.append(f"the index of field {field!r} is of type {is_}, and {needed} is needed")
    if different:
        raise SchemaMismatchError(
            f"collection {ledger.collection!r} has other indexes: {'; '.join(different)}. Delete them "
            "(delete_payload_index of the Qdrant client), and open the store again"
        )
    for field, kind in wanted.items():
        # Not there: the collection is new, or its maker was killed, or the field was not asked for before.
        # In the emulation, no other index has an effect.
        if field not in existing and (capabilities.kind != "emulation" or field in _LEXICAL):
            try:
                await ledger.create_index(calls, field, kind)
            except ServerError as error:
                # A key that may only read can read collections that were made before there were generations.
                if field != GENERATION_FIELD or error.status != 403:
                    raise
