"""Options that several methods share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from qdrant_client import models

from langchain_pplx_vectorstore.conversion import GroupBy
from pplx_vectorstore import CollectionConfig


class SearchOptions(TypedDict, total=False):
    """How a search is done; see ``pplx_vectorstore.VectorStore.search``.

    Attributes:
        filter: ``{"lang": "en", "year": {"$gte": 2020}}`` on metadata, or a ``qdrant_client.models.Filter``, whose
            keys begin with ``metadata.``.
        candidates: Points to be compared by their codes.
        hybrid: Fuse the rankings by cosine and by BM25 on the words.
        lexical_weight: Share of BM25 in a hybrid search, 0 to 1; with 1, it ranks alone and nothing is embedded.
        group_by_document: True for the best chunk of each document, or how many of one at most; `k` then counts
            documents.
        diversity: Choose among the candidates by maximal marginal relevance: 0 for relevance alone, 1 for novelty.
        score_threshold: Least score of a hit.
        context: So many chunks before and after each hit are joined to it: ``page_content`` is the whole passage.
    """

    filter: models.Filter | Mapping[str, Any] | None
    candidates: int | None
    hybrid: bool
    lexical_weight: float
    group_by_document: bool | int
    diversity: float | None
    score_threshold: float | None
    context: int


class StoreOptions(TypedDict, total=False):
    """Where a store is and how it is opened; see ``PplxVectorStore``."""

    folder: Any
    url: str | None
    client: Any
    collection: str
    tenant: str | None
    group_by: GroupBy
    order_by: Sequence[str]
    create: bool
    config: CollectionConfig | None
    index_fields: Mapping[str, Any] | None
    api_key: Any
    prefer_grpc: bool
    grpc_port: int | None
    timeout: float | None
    retries: int
    parallel: int
