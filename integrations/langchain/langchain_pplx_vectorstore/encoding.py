"""LangChain embeddings of any kind → what the core store needs of an encoder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings

from langchain_pplx_vectorstore.embeddings import PplxEmbeddings
from pplx_vectorstore import Encoder, PrecomputedEncoder, crest_factor_for, quantize_to_norm
from pplx_vectorstore.documents import is_blank
from pplx_vectorstore.errors import AlignmentError, InvalidInputError
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.tokenization import ChunkTokenizer


def as_encoder(embeddings: Embeddings) -> Encoder:
    """Return the encoder of ours, or wrap others.

    Raises:
        InvalidInputError: It is neither.
    """
    if isinstance(embeddings, PplxEmbeddings):
        return embeddings.encoder
    if isinstance(embeddings, Embeddings):
        return EmbeddingsEncoder(embeddings)
    if isinstance(embeddings, str):
        raise InvalidInputError(
            f"embedding must be LangChain Embeddings, not the str {embeddings!r}; a collection is given as "
            f"collection={embeddings!r}, a model as PplxEmbeddings(model={embeddings!r})"
        )
    raise InvalidInputError(
        f"embedding must be LangChain Embeddings, not {type(embeddings).__name__}; for an encoder of pplx_vectorstore "
        "there is PplxEmbeddings.from_encoder, and a client is given as client="
    )


class EmbeddingsEncoder:
    """Other embeddings as an encoder: every chunk by itself, its floats scaled to int8 of one norm.

    Args:
        embeddings: Asked once, to learn the dimension and how far components stand out.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        self._embeddings = embeddings
        sample: npt.NDArray[np.float64] = np.asarray([embeddings.embed_query("dimension")], dtype=np.float64)
        like = PrecomputedEncoder(_name(embeddings), sample.shape[1], crest_factor=crest_factor_for(sample))
        self.spec = like.spec
        self.fingerprint = replace(like.fingerprint, backend="langchain")

    @property
    def tokenizer(self) -> ChunkTokenizer:
        """There is none, so that text comes in chunks."""
        raise InvalidInputError(
            f"{self.spec.name} has no tokenizer here, so text cannot be cut into chunks; split it with a text splitter"
        )

    def encode_documents(
        self, documents: Sequence[Sequence[str]], *, progress: Callable[[int, int], None] | None = None
    ) -> list[Codes]:
        """Return int8 codes of shape (n_chunks, dimension) for each document."""
        texts = _texts(documents)
        vectors = self._embeddings.embed_documents(texts) if texts else []
        codes = self._spread(documents, self._quantize(vectors, len(texts)))
        if progress is not None:
            progress(1, 1)
        return codes

    def encode_queries(self, queries: Sequence[str]) -> Codes:
        """Return int8 codes of shape (n_queries, dimension)."""
        return self._quantize([self._embeddings.embed_query(query) for query in queries], len(queries))

    async def aencode_documents(
        self, documents: Sequence[Sequence[str]], *, progress: Callable[[int, int], None] | None = None
    ) -> list[Codes]:
        """Await what `encode_documents` returns."""
        texts = _texts(documents)
        vectors = await self._embeddings.aembed_documents(texts) if texts else []
        codes = self._spread(documents, self._quantize(vectors, len(texts)))
        if progress is not None:
            progress(1, 1)
        return codes

    async def aencode_queries(self, queries: Sequence[str]) -> Codes:
        """Await what `encode_queries` returns."""
        vectors = await asyncio.gather(*(self._embeddings.aembed_query(query) for query in queries))
        return self._quantize(vectors, len(queries))

    def _spread(self, documents: Sequence[Sequence[str]], encoded: Codes) -> list[Codes]:
        """Give each chunk its codes; blank ones, which were not sent, get zeros."""
        codes = iter(encoded)
        zeros = np.zeros(self.spec.dimension, np.int8)
        none = np.zeros((0, self.spec.dimension), np.int8)
        return [
            np.array([zeros if is_blank(chunk) else next(codes) for chunk in chunks]) if chunks else none
            for chunks in documents
        ]

    def _quantize(self, vectors: Sequence[Sequence[float]], n: int) -> Codes:
        expected = (n, self.spec.dimension)
        if len(vectors) != n or any(len(vector) != self.spec.dimension for vector in vectors):
            sizes = sorted({len(vector) for vector in vectors})
            raise AlignmentError(f"{self.spec.name} gave {len(vectors)} vectors of {sizes} components for {expected}")
        floats: npt.NDArray[np.float64] = np.asarray(vectors, dtype=np.float64).reshape(expected)
        return quantize_to_norm(floats, self.spec.squared_norm)


def _texts(documents: Sequence[Sequence[str]]) -> list[str]:
    return [chunk for chunks in documents for chunk in chunks if not is_blank(chunk)]


def _name(embeddings: Embeddings) -> str:
    """Name a model as well as can be, so that a collection refuses vectors of another."""
    kind = f"langchain:{type(embeddings).__name__}"
    for attribute in ("model", "model_name", "model_id", "deployment"):
        value = getattr(embeddings, attribute, None)
        if isinstance(value, str) and value:
            return f"{kind}:{value}"
    wrapped = getattr(embeddings, "underlying_embeddings", None)  # of LangChain's cache
    return _name(wrapped) if isinstance(wrapped, Embeddings) else kind
