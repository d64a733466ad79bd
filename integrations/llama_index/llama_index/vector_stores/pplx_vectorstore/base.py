"""LlamaIndex's vector store over the core store."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self, TypedDict, Unpack, cast

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.embeddings.pplx_vectorstore import PplxEmbedding
from llama_index.vector_stores.pplx_vectorstore.conversion import to_documents, to_node
from llama_index.vector_stores.pplx_vectorstore.filters import build_filter
from pydantic import PrivateAttr, SecretStr

import pplx_vectorstore as core
from pplx_vectorstore.collection import DEFAULT_COLLECTION, IndexFields, index_types
from pplx_vectorstore.coroutines import run_now
from pplx_vectorstore.documents import has_lone_surrogate, is_blank
from pplx_vectorstore.engines.retrying import DEFAULT_RETRIES
from pplx_vectorstore.engines.server import DEFAULT_TIMEOUT
from pplx_vectorstore.equal_norms import as_codes
from pplx_vectorstore.errors import EncodingError, InvalidInputError, StoreNotFoundError
from pplx_vectorstore.filters import build_filter as build_core_filter
from pplx_vectorstore.operations.access import field_any, in_batches
from pplx_vectorstore.operations.session import DEFAULT_PARALLEL
from pplx_vectorstore.points import possible_point_ids
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.query import check_share, choose_candidates
from pplx_vectorstore.shared_store import SharedStore, open_in_thread

if TYPE_CHECKING:
    from types import TracebackType

    from pplx_vectorstore.filters import FilterLike

_DEFAULT_ALPHA = 0.5
_DEFAULT_MMR_THRESHOLD = 0.5
_IDS_AT_ONCE = 500
_EVERY_CHUNK = models.Filter(must=[models.FieldCondition(key="chunk_index", range=models.Range(gte=0))])


class QueryOptions(TypedDict, total=False):
    """What a query may be told beyond LlamaIndex's own, as a retriever's ``vector_store_kwargs``.

    Attributes:
        candidates: Points to be compared by their codes.
        filter: ``{"lang": "en", "year": {"$gte": 2020}}`` on metadata, or a ``qdrant_client.models.Filter``, whose
            keys begin with ``metadata.``; beside LlamaIndex's own filters.
        group_by_document: True for the best node of each source document, or how many of one at most.
        score_threshold: Least score of a node.
        context: So many nodes before and after each hit are joined to it: its text is the whole passage.
        mmr_threshold: In mode MMR: 1 for relevance alone, 0 for novelty alone.
        with_embeddings: Whether nodes bring their embeddings.
    """

    candidates: int | None
    filter: FilterLike
    group_by_document: bool | int
    score_threshold: float | None
    context: int
    mmr_threshold: float | None
    with_embeddings: bool


class _Search(NamedTuple):
    """A search of the core store."""

    query: str | core.EncodedQuery | Any
    options: dict[str, Any]


class PplxVectorStore(BasePydanticVectorStore):
    """A vector store that keeps nodes as int8 codes and packed bits, and finds them by exact cosines.

    Give one of `folder`, `url` and `client`. Threads and event loops may share a store. Coroutines that read await a
    server's answers where `url` is given; all others run in threads. Close it, or use it as a context manager.

    Args:
        embed_model: What the nodes are embedded with, so that a collection refuses vectors of another model. Needed
            to create a collection; an existing one can be opened without.
        folder: Where the index is, or will be, on the embedded engine.
        url: A Qdrant server, such as ``http://localhost:6333``.
        client: A ``QdrantClient``, which stays open when the store is closed.
        collection: Name of the collection; created if it does not exist.
        tenant: Whose nodes the store reads and writes, and no others.
        create: Whether to create the collection if it does not exist.
        config: How to lay the collection out when it is created.
        index_fields: Metadata fields to index: ``{"lang": "keyword", "year": "integer"}``.
        api_key: Of the server; None for the environment's QDRANT_API_KEY.
        prefer_grpc: Whether points and searches go over gRPC.
        grpc_port: Where gRPC is; given, points and searches go over it. None for the port after the URL's.
        timeout: Seconds for one request to a server.
        retries: How often a request to a server is tried again after a failure that may pass.
        parallel: Upserts under way at once to a server.

    Raises:
        InvalidInputError: Not exactly one place came, or an argument is not usable.
        SchemaMismatchError: The collection was written with another model, dimension or setting.
        StoreNotFoundError: It does not exist, and `create` is false or no `embed_model` came.
        StoreLockedError: Another process has the folder open.
        ServerUnavailableError: The server does not answer.
    """

    stores_text: bool = True
    is_embedding_query: bool = True

    _shared: SharedStore = PrivateAttr()
    _indexes: dict[str, str] | None = PrivateAttr(default=None)

    def __init__(
        self,
        embed_model: BaseEmbedding | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        url: str | None = None,
        client: Any = None,
        collection: str = DEFAULT_COLLECTION,
        tenant: str | None = None,
        create: bool = True,
        config: core.CollectionConfig | None = None,
        index_fields: IndexFields | None = None,
        api_key: str | SecretStr | None = None,
        prefer_grpc: bool = False,
        grpc_port: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        retries: int = DEFAULT_RETRIES,
        parallel: int = DEFAULT_PARALLEL,
    ) -> None:
        super().__init__(stores_text=True)
        try:
            self._shared = SharedStore(
                folder=folder,
                url=url,
                client=client,
                collection=collection,
                encoder=None if embed_model is None else _encoder_of(embed_model),
                tenant=tenant,
                create=create,
                config=config,
                index_fields=index_fields,
                api_key=api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key,
                prefer_grpc=prefer_grpc,
                grpc_port=grpc_port,
                timeout=timeout,
                retries=retries,
                parallel=parallel,
            )
        except StoreNotFoundError as error:
            raise StoreNotFoundError(str(error).replace("give an encoder", "give embed_model")) from None
        if self._shared.filters_by_index_only:
            try:
                self._indexes = _index_types(self.client)
            except BaseException:
                self._shared.close()
                raise

    @classmethod
    async def aopen(cls, embed_model: BaseEmbedding | None = None, **options: Any) -> Self:
        """Open a store beside the event loop; arguments as for the class."""
        return await open_in_thread(lambda: cls(embed_model, **options), cls.close)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex knows the class by."""
        return "PplxVectorStore"

    @property
    def client(self) -> core.VectorStore:
        """The core store: whole documents, explanations, export."""
        return self._shared.store

    # --- writing -------------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Write nodes with their embeddings.

        A node whose id is stored is replaced, whichever document it was of; everything else stays. To replace a
        document, delete it first, as a pipeline with a document store does, and an index's ``update_ref_doc``.

        Args:
            nodes: Embedded. Those without text are kept, and never found.
            **kwargs: None.

        Returns:
            Ids of the nodes, in their order.

        Raises:
            InvalidDocumentError: A node has no embedding, or would not come back whole.
            DuplicateDocumentError: An id comes twice.
        """
        _refuse(kwargs)
        listed = _as_nodes(nodes)
        self.client.add(self._documents(listed), replace=False)
        return [node.node_id for node in listed]

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Await what `add` returns."""
        _refuse(kwargs)
        listed = _as_nodes(nodes)
        await self._shared.writing.add(await asyncio.to_thread(self._documents, listed), replace=False)
        return [node.node_id for node in listed]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete all nodes of a source document, and a node without a source that has its id."""
        _refuse(delete_kwargs)
        self.client.delete(document_ids=[ref_doc_id])

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Await what `delete` does."""
        _refuse(delete_kwargs)
        await self._shared.writing.delete(document_ids=[ref_doc_id])

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete nodes that have one of the ids and match the filters, whichever of these came.

        Raises:
            InvalidInputError: Neither came, which would delete everything; there is `clear`.
        """
        for selection in self._selections(node_ids, filters, delete_kwargs):
            self.client.delete(filter=selection)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Await what `delete_nodes` does."""
        for selection in self._selections(node_ids, filters, delete_kwargs):
            await self._shared.writing.delete(filter=selection)

    def clear(self) -> None:
        """Delete every node of the store, where it has a tenant those of the tenant."""
        self.client.delete(filter=_EVERY_CHUNK)

    async def aclear(self) -> None:
        """Await what `clear` does."""
        await self._shared.writing.delete(filter=_EVERY_CHUNK)

    # --- reading -------------------------------------------------------------------------------------

    def get_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        *,
        with_embeddings: bool = False,
    ) -> list[BaseNode]:
        """Fetch nodes that have one of the ids and match the filters, whichever of these came.

        Args:
            node_ids: Nodes come in the order of these; those that are not stored are left out. None for any.
            filters: Which nodes. Without ids and filters, all there are.
            with_embeddings: Whether nodes bring their embeddings.
        """
        condition = self._filter(filters)
        if node_ids is None:
            return [to_node(chunk) for chunk in self.client.chunks(condition, with_codes=with_embeddings)]
        ids = _as_ids(node_ids, "node_ids")
        if condition is None:
            return [to_node(chunk) for chunk in self.client.get(ids, with_codes=with_embeddings)]
        found = [
            to_node(chunk)
            for having in self._having(ids)
            for chunk in self.client.chunks(_both(having, condition), with_codes=with_embeddings)
        ]
        return _in_order(found, ids)

    async def aget_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        *,
        with_embeddings: bool = False,
    ) -> list[BaseNode]:
        """Await what `get_nodes` returns."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters, with_embeddings=with_embeddings)

    def query(self, query: VectorStoreQuery, **kwargs: Unpack[QueryOptions]) -> VectorStoreQueryResult:
        """Find nodes.

        Modes are DEFAULT (cosine), HYBRID (cosine and BM25 on the text, fused by reciprocal ranks; `alpha` is the
        share of the cosine), TEXT_SEARCH and SPARSE (BM25 alone; nothing is embedded) and MMR.

        Args:
            query: LlamaIndex's. An empty list of `doc_ids` finds nothing; one of `node_ids`, which an index's
                retrievers give for all nodes, restricts nothing. Where the question is blank (``""``, as a
                ``VectorIndexAutoRetriever`` sends it) and has no embedding that is not all zero, filters and ids
                answer alone: the first nodes that match, by source document and place in it, with a score of 0.
            **kwargs: See `QueryOptions`.

        Returns:
            Nodes, best first, with their cosines, from -1 to 1; with fused scores where hybrid; with BM25's
            where it ranks alone.

        Raises:
            InvalidInputError: The mode is another one, or lacks what it needs; or the question is blank, and
                nothing else says which nodes are wanted.
            UnsupportedFilterError: Qdrant cannot express a filter.
            UnsupportedServerError: The server is too old for a filter, or for the mode.
        """
        search = self._search(query, kwargs)
        return _result(self.client.search(search.query, **search.options))

    async def aquery(self, query: VectorStoreQuery, **kwargs: Unpack[QueryOptions]) -> VectorStoreQueryResult:
        """Await what `query` returns."""
        search = self._search(query, kwargs)
        return _result(await (await self._shared.reading()).search(search.query, **search.options))

    # --- closing -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the index; a client that was handed over stays open."""
        self._shared.close()

    async def aclose(self) -> None:
        """Let go of the index, and of the running event loop's connections to a server."""
        await self._shared.aclose()

    async def adisconnect(self) -> None:
        """Let go of the running event loop's connections to a server; the store stays open."""
        await self._shared.adisconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __getstate__(self) -> NoReturn:
        """Refuse to be pickled: an open index belongs to its process."""
        raise TypeError("PplxVectorStore cannot be pickled or copied; open it where it is needed")

    # --- what came, for the core ---------------------------------------------------------------------

    def _documents(self, nodes: Sequence[BaseNode]) -> list[core.Document]:
        return to_documents(nodes, self.client.fingerprint.dimension)

    def _selections(
        self, node_ids: list[str] | None, filters: MetadataFilters | None, kwargs: Mapping[str, Any]
    ) -> list[models.Filter]:
        """Return what to delete, in as many requests as the ids need."""
        _refuse(kwargs)
        condition = self._filter(filters)
        if node_ids is None:
            if condition is None:
                raise InvalidInputError(
                    "delete_nodes needs node_ids or filters; without them it would delete every node, for which "
                    "there is clear()"
                )
            return [condition]
        return [_both(having, condition) for having in self._having(_as_ids(node_ids, "node_ids"))]

    def _filter(self, filters: MetadataFilters | None) -> models.Filter | None:
        points = self.client._session.points
        return build_filter(
            filters, indexes=self._indexes, word_fields=points.word_fields, capabilities=points.capabilities
        )

    def _having(self, node_ids: Sequence[str]) -> list[models.Filter]:
        """Match nodes by id, in as many filters as the ids need: each may stand for two points."""
        return [_has_id(some) for some in in_batches(node_ids, max(1, (self._condition_size or _IDS_AT_ONCE) // 2))]

    @property
    def _condition_size(self) -> int | None:
        """How many values the server takes in one condition of a filter (strict mode); None for any number."""
        return self.client._session.points.limits.condition_size

    def _fitting(self, values: list[str], what: str) -> list[str]:
        most = self._condition_size
        if most is not None and len(values) > most:
            raise InvalidInputError(
                f"{what} of a query make a condition of {len(values)} ids; this server allows {most} (strict mode, "
                "condition_max_size): ask in parts, or by filters"
            )
        return values

    def _search(self, query: VectorStoreQuery, given: QueryOptions) -> _Search:
        unknown = sorted(given.keys() - QueryOptions.__annotations__.keys())
        if unknown:
            raise TypeError(f"unexpected keyword argument {', '.join(map(repr, unknown))} of a query")
        kwargs = cast("dict[str, Any]", {**given})
        mode = _mode(query)
        mmr_threshold = kwargs.pop("mmr_threshold", query.mmr_threshold)
        conditions = [self._filter(query.filters), build_core_filter(kwargs.pop("filter", None))]
        if query.doc_ids is not None:
            doc_ids = self._fitting(_as_ids(query.doc_ids, "doc_ids"), "doc_ids")
            conditions.append(field_any("document_id", doc_ids) if doc_ids else _has_id([]))
        # An index's as_retriever() gives [] for every store that keeps the text, and means all nodes.
        if query.node_ids is not None and (node_ids := _as_ids(query.node_ids, "node_ids")):
            self._fitting([point for id_ in node_ids for point in possible_point_ids(id_)], "node_ids")
            conditions.append(_has_id(node_ids))
        options: dict[str, Any] = {
            "k": _k(query, mode),
            "filter": _both(*conditions),
            "with_codes": _flag("with_embeddings", kwargs.pop("with_embeddings", False)),
            **kwargs,
        }
        if _is_blank(query, mode):
            return _Search("", options)
        if mode == VectorStoreQueryMode.DEFAULT:
            return _Search(_codes(query), options)
        if mode == VectorStoreQueryMode.MMR:
            threshold = _share("mmr_threshold", mmr_threshold, _DEFAULT_MMR_THRESHOLD)
            return _Search(_codes(query), {**options, "diversity": 1 - threshold})
        if mode in (VectorStoreQueryMode.TEXT_SEARCH, VectorStoreQueryMode.SPARSE):
            return _Search(_words(query), {**options, "hybrid": True, "lexical_weight": 1})
        if mode == VectorStoreQueryMode.HYBRID:
            return _hybrid(query, options)
        raise _unknown_mode(mode.name)


def _mode(query: VectorStoreQuery) -> VectorStoreQueryMode:
    try:
        return VectorStoreQueryMode(query.mode)  # LlamaIndex takes "hybrid" for HYBRID
    except ValueError:
        raise _unknown_mode(repr(query.mode)) from None


def _k(query: VectorStoreQuery, mode: VectorStoreQueryMode) -> int:
    """Return how many nodes are wanted."""
    names = {
        VectorStoreQueryMode.HYBRID: "hybrid_top_k",
        VectorStoreQueryMode.TEXT_SEARCH: "sparse_top_k",
        VectorStoreQueryMode.SPARSE: "sparse_top_k",
    }
    name = names.get(mode, "similarity_top_k")
    if getattr(query, name) is None:
        name = "similarity_top_k"
    k: Any = getattr(query, name)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InvalidInputError(f"{name} must be a whole number of at least 1, not {k!r}")
    return k


def _is_blank(query: VectorStoreQuery, mode: VectorStoreQueryMode) -> bool:
    """Tell whether there is nothing to search for: no words, and no vector that could do without them."""
    if query.query_str is None or not is_blank(query.query_str):
        return False
    by_vector = mode in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR) or (
        mode == VectorStoreQueryMode.HYBRID and query.alpha == 1
    )
    return not by_vector or query.query_embedding is None or not any(query.query_embedding)


def _unknown_mode(name: str) -> InvalidInputError:
    return InvalidInputError(f"mode {name} is not one of this store's: DEFAULT, HYBRID, TEXT_SEARCH, SPARSE and MMR")


def _hybrid(query: VectorStoreQuery, options: dict[str, Any]) -> _Search:
    lexical_weight = 1 - _share("alpha", query.alpha, _DEFAULT_ALPHA)
    wanted = max(query.similarity_top_k, query.sparse_top_k or 0)
    if options.get("candidates") is None and wanted > choose_candidates(options["k"], None):
        options = {**options, "candidates": wanted}  # each ranking hands on as many as were asked of it
    options = {**options, "hybrid": True, "lexical_weight": lexical_weight}
    if lexical_weight == 1:
        return _Search(_words(query), options)
    if lexical_weight == 0:
        return _Search(_codes(query), options)
    return _Search(core.EncodedQuery(_words(query), _codes(query)), options)


def _share(name: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    check_share(name, value)
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name} must be True or False, not {value!r}")
    return value


def _codes(query: VectorStoreQuery) -> Any:
    if query.query_embedding is None:
        raise InvalidInputError(f"mode {_mode(query).name} needs a query_embedding")
    try:
        return as_codes([query.query_embedding])[0]
    except EncodingError:
        raise EncodingError(
            "the query_embedding holds NaN or infinity, of which there is no cosine. If the model ran in float16, "
            "load it in bfloat16 or float32"
        ) from None


def _words(query: VectorStoreQuery) -> str:
    if query.query_str is None:
        raise InvalidInputError(f"mode {_mode(query).name} needs a query_str, whose words it looks for")
    return query.query_str


def _result(hits: Sequence[core.Hit]) -> VectorStoreQueryResult:
    nodes = [to_node(hit, text=hit.context) for hit in hits]
    return VectorStoreQueryResult(
        nodes=nodes, similarities=[hit.score for hit in hits], ids=[node.node_id for node in nodes]
    )


def _has_id(node_ids: Sequence[str]) -> models.Filter:
    """Match nodes by their ids, which the core store translates."""
    return models.Filter(must=[models.HasIdCondition(has_id=list(node_ids))])


def _both(*conditions: models.Filter | None) -> Any:
    """Join conditions that must all hold; None where there are none."""
    given: list[Any] = [condition for condition in conditions if condition is not None]
    return models.Filter(must=given) if given else None


def _in_order(nodes: Sequence[BaseNode], node_ids: Sequence[str]) -> list[BaseNode]:
    by_id = {node.node_id: node for node in nodes}
    return [by_id[node_id] for node_id in dict.fromkeys(node_ids) if node_id in by_id]


def _as_nodes(nodes: Iterable[BaseNode]) -> list[BaseNode]:
    if isinstance(nodes, (str, BaseNode)) or not isinstance(nodes, Iterable):
        raise InvalidInputError(f"nodes must be a list of nodes, not {type(nodes).__name__}")
    listed = list(nodes)  # a generator is read once
    for one in listed:
        if not isinstance(one, BaseNode):
            raise InvalidInputError(f"nodes must be a list of nodes; it holds {one!r}")
    return listed


def _as_ids(ids: object, what: str) -> list[str]:
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise InvalidInputError(f"{what} must be a list of str, not {type(ids).__name__}")
    listed = list(ids)
    for one in listed:
        if not isinstance(one, str) or has_lone_surrogate(one):
            raise InvalidInputError(f"{what} must be a list of str of valid Unicode; it holds {one!r}")
    return listed


def _refuse(kwargs: Mapping[str, Any]) -> None:
    if kwargs:
        raise TypeError(f"unknown options: {', '.join(sorted(kwargs))}")


def _index_types(store: core.VectorStore) -> dict[str, str]:
    """Read of which type each indexed field's index is."""
    session = store._session
    info = run_now(session.calls("get_collection", session.points.collection))
    return index_types(info)


def _encoder_of(embed_model: BaseEmbedding) -> core.Encoder:
    """Return what tells a collection of the model that its vectors are of; nothing is embedded by it."""
    if isinstance(embed_model, PplxEmbedding):
        return embed_model.encoder
    if isinstance(embed_model, str):
        raise InvalidInputError(
            f"embed_model must be a LlamaIndex embedding, not the str {embed_model!r}; a collection is given as "
            f"collection={embed_model!r}, a model as PplxEmbedding(model_name={embed_model!r})"
        )
    if not isinstance(embed_model, BaseEmbedding):
        raise InvalidInputError(
            f"embed_model must be a LlamaIndex embedding, not {type(embed_model).__name__}; for an encoder of "
            "pplx_vectorstore there is PplxEmbedding.from_encoder, and a client is given as client="
        )
    name = f"llama_index:{embed_model.class_name()}:{embed_model.model_name}"
    sample = np.asarray([embed_model.get_query_embedding("dimension")], dtype=np.float64)
    encoder = core.PrecomputedEncoder(name, sample.shape[1], crest_factor=core.crest_factor_for(sample))
    encoder.fingerprint = replace(encoder.fingerprint, backend="llama_index")
    return cast("core.Encoder", encoder)
