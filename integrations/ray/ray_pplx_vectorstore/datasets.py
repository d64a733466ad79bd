"""Datasets → datasets: codes without a store, and the hits of many questions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from qdrant_client import models
from ray.data import Dataset

from pplx_vectorstore import Chunker, Hit, VectorStore
from pplx_vectorstore.chunking import DEFAULT_CHUNK_TOKENS
from pplx_vectorstore.collection import DEFAULT_COLLECTION
from pplx_vectorstore.documents import Chunk, Document
from pplx_vectorstore.engines.retrying import DEFAULT_RETRIES
from pplx_vectorstore.engines.server import DEFAULT_TIMEOUT
from pplx_vectorstore.errors import InvalidInputError
from ray_pplx_vectorstore.patience import DEFAULT_PATIENCE, check_patience, insist
from ray_pplx_vectorstore.place import MeteredEncoder, Model, ModelChoice, Place
from ray_pplx_vectorstore.pool import DEFAULT_BATCH_SIZE, Pool
from ray_pplx_vectorstore.rows import document_columns, read_documents, require_query_column

HITS = "hits"
"""The column of what was found, a list of `HIT` in each row."""

HIT = pa.struct(
    [
        ("id", pa.string()),
        ("document_id", pa.string()),
        ("score", pa.float64()),
        ("text", pa.string()),
        ("chunk_index", pa.int64()),
        ("chunk_count", pa.int64()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("metadata", pa.string()),
        ("context", pa.string()),
    ]
)


def embed_documents(
    ds: Dataset,
    *,
    model: Model,
    model_options: Mapping[str, Any] | None = None,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    workers: int = 1,
    num_gpus: float = 0,
    num_cpus: float | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> Dataset:
    """Embed documents, without a store: rows with `id`, `chunks` and `codes`.

    Args:
        ds: Documents, as for `sync_documents`.
        model: As for `sync_documents`.
        model_options: As for `sync_documents`.
        chunk_tokens: As for `sync_documents`.
        workers: As for `sync_documents`.
        num_gpus: As for `sync_documents`.
        num_cpus: As for `sync_documents`.
        batch_size: As for `sync_documents`.

    Returns:
        A dataset, computed as it is read: `id` (string), `chunks` (list<string>) and `codes`, int8 of
        (n_chunks, dimension) as a list<fixed_size_list<int8>>; ``Document(vectors=...)`` takes them as
        ``np.array(list(row["codes"]), np.int8).reshape(-1, dimension)``.

    Raises:
        InvalidInputError: An argument or the dataset's columns are not usable. What is raised while the dataset is read
            is an error of Ray's, which quotes the one that it was caused by.
    """
    choice = ModelChoice(model=model, options=dict(model_options or {}), chunk_tokens=chunk_tokens)
    pool = Pool(workers=workers, num_gpus=num_gpus, num_cpus=num_cpus, batch_size=batch_size)
    pool.require_room_for_reading(ds)
    columns = document_columns(ds.schema())
    if columns is None:
        raise InvalidInputError("the dataset has no rows, and so no columns of documents")
    return pool.map(pool.repartition(ds.select_columns(columns)), EmbeddingWorker, (choice,))


def search_dataset(
    ds: Dataset,
    url: str,
    *,
    model: Model,
    collection: str = DEFAULT_COLLECTION,
    column: str = "query",
    k: int = 10,
    candidates: int | None = None,
    filter: models.Filter | Mapping[str, Any] | None = None,  # noqa: A002 - Qdrant's own word for it
    hybrid: bool = False,
    lexical_weight: float = 0.5,
    group_by_document: bool | int = False,
    diversity: float | None = None,
    score_threshold: float | None = None,
    context: int = 0,
    model_options: Mapping[str, Any] | None = None,
    workers: int = 1,
    num_gpus: float = 0,
    num_cpus: float | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    patience: float = DEFAULT_PATIENCE,
    tenant: str | None = None,
    prefer_grpc: bool = False,
    grpc_port: int | None = None,
    timeout: float | None = DEFAULT_TIMEOUT,
    retries: int = DEFAULT_RETRIES,
) -> Dataset:
    """Search for each row's question: the rows, and their `hits`.

    Args:
        ds: Questions, and whatever else belongs to them.
        url: As for `sync_documents`.
        model: As for `sync_documents`.
        collection: Which.
        column: Of the questions, string.
        k: As for ``VectorStore.search``, like all down to `context`.
        candidates: See there.
        filter: See there; one for all questions.
        hybrid: See there.
        lexical_weight: See there.
        group_by_document: See there.
        diversity: See there.
        score_threshold: See there.
        context: See there.
        model_options: As for `sync_documents`, like all that follow.
        workers: See there.
        num_gpus: See there.
        num_cpus: See there.
        batch_size: Questions that a worker searches for at once.
        patience: See there.
        tenant: See there.
        prefer_grpc: See there.
        grpc_port: See there.
        timeout: See there.
        retries: See there.

    Returns:
        A dataset, computed as it is read: the same rows with `hits`, best first, a list of structs with the fields of
        ``Hit``, of which `metadata` is JSON.

    Raises:
        InvalidInputError: As for `embed_documents`.
        StoreNotFoundError: There is no such collection.
        PplxVectorStoreError: As for ``VectorStore``.
    """
    patience = check_patience(patience)
    place = Place(
        url=url,
        model=ModelChoice(model=model, options=dict(model_options or {}), chunk_tokens=DEFAULT_CHUNK_TOKENS),
        options={
            "collection": collection,
            "tenant": tenant,
            "prefer_grpc": prefer_grpc,
            "grpc_port": grpc_port,
            "timeout": timeout,
            "retries": retries,
        },
    )
    pool = Pool(workers=workers, num_gpus=num_gpus, num_cpus=num_cpus, batch_size=batch_size)
    pool.require_room_for_reading(ds)
    require_query_column(ds.schema(), column, HITS)
    place.open_without_model().close()  # what is wrong is told now
    search = {
        "k": k,
        "candidates": candidates,
        "filter": filter,
        "hybrid": hybrid,
        "lexical_weight": lexical_weight,
        "group_by_document": group_by_document,
        "diversity": diversity,
        "score_threshold": score_threshold,
        "context": context,
    }
    return pool.map(pool.repartition(ds), SearchWorker, (place, column, search, patience))


class EmbeddingWorker:
    """Embeds batches of documents.

    Args:
        choice: The model.
    """

    def __init__(self, choice: ModelChoice) -> None:
        self._choice = choice
        self._loaded: tuple[MeteredEncoder, Chunker] | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Embed a batch."""
        documents = []
        for _, read in read_documents(batch):
            if not isinstance(read, Document):
                raise read
            documents.append(read)
        encoder, chunker = self._load()
        texts = [[chunk.text for chunk in _chunks_of(document, chunker)] for document in documents]
        all_codes = encoder.encode_documents(texts)
        dimension = encoder.spec.dimension
        flat = np.concatenate([np.zeros((0, dimension), np.int8), *all_codes])
        rows = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), dimension)
        offsets = np.cumsum([0, *map(len, all_codes)])
        return pa.table(
            {
                "id": pa.array([document.id for document in documents], pa.string()),
                "chunks": pa.array(texts, pa.list_(pa.string())),
                "codes": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), rows),
            }
        )

    def _load(self) -> tuple[MeteredEncoder, Chunker]:
        if self._loaded is None:
            encoder = self._choice.load()
            self._loaded = encoder, self._choice.chunker_of(encoder)
        return self._loaded


class SearchWorker:
    """Searches for batches of questions.

    Args:
        place: The store.
        column: Of the questions.
        search: Options of ``VectorStore.search_batch``.
        patience: Seconds for which a server that is away is waited for.
    """

    def __init__(self, place: Place, column: str, search: Mapping[str, Any], patience: float) -> None:
        self._place = place
        self._column = column
        self._search = dict(search)
        self._patience = patience
        self._encoder: MeteredEncoder | None = None
        self._store: VectorStore | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Search for the questions of a batch."""
        questions = batch.column(self._column).to_pylist() if batch.num_rows else []
        found = insist(partial(self._search_batch, questions), self._patience) if questions else []
        hits = pa.array([[_row(hit) for hit in hits] for hits in found], pa.list_(HIT))
        return batch.append_column(HITS, hits)

    def _search_batch(self, questions: list[str]) -> list[list[Hit]]:
        if self._encoder is None:
            self._encoder = self._place.model.load()
        if self._store is None:
            self._store = self._place.open(self._encoder)
        return self._store.search_batch(questions, **self._search)


def _chunks_of(document: Document, chunker: Chunker) -> list[Chunk]:
    if document.chunks is None:
        return chunker.split(document.text or "", document.format)
    return [chunk if isinstance(chunk, Chunk) else Chunk(text=chunk) for chunk in document.chunks]


def _row(hit: Hit) -> dict[str, Any]:
    fields = {field.name: getattr(hit, field.name) for field in HIT}
    return {**fields, "metadata": json.dumps(hit.metadata, ensure_ascii=False)}
