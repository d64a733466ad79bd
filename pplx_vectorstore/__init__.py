"""Contextual retrieval on Qdrant: late-chunked int8 vectors, found by their bits or codes.

Names are loaded on first use, so importing the package loads no torch, transformers or qdrant_client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pplx_vectorstore._version import __version__

if TYPE_CHECKING:
    from pplx_vectorstore.async_store import AsyncVectorStore
    from pplx_vectorstore.chunking import Chunker
    from pplx_vectorstore.collection import CollectionConfig
    from pplx_vectorstore.documents import Chunk, Document, EncodedQuery, Hit, StoredChunk
    from pplx_vectorstore.encoders import ApiOptions, Encoder, PrecomputedEncoder, load_encoder, load_query_encoder
    from pplx_vectorstore.encoders.onnx_export import export_onnx
    from pplx_vectorstore.equal_norms import crest_factor_for, equalize_norms, quantize_to_norm
    from pplx_vectorstore.errors import PplxVectorStoreError
    from pplx_vectorstore.models import ModelSpec
    from pplx_vectorstore.quantization import (
        cosine_similarity,
        hamming_distance,
        pack_bits,
        quantize_absmax,
        quantize_tanh,
        truncate,
        unpack_bits,
    )
    from pplx_vectorstore.reports import AddReport, ExplainedHit, Explanation, StoredDocument, SyncReport, Usage
    from pplx_vectorstore.store import VectorStore

_HOMES = {
    "AddReport": "reports",
    "ApiOptions": "encoders",
    "AsyncVectorStore": "async_store",
    "Chunk": "documents",
    "Chunker": "chunking",
    "CollectionConfig": "collection",
    "Document": "documents",
    "EncodedQuery": "documents",
    "Encoder": "encoders",
    "ExplainedHit": "reports",
    "Explanation": "reports",
    "Hit": "documents",
    "ModelSpec": "models",
    "PplxVectorStoreError": "errors",
    "PrecomputedEncoder": "encoders",
    "StoredChunk": "documents",
    "StoredDocument": "reports",
    "SyncReport": "reports",
    "Usage": "reports",
    "VectorStore": "store",
    "cosine_similarity": "quantization",
    "crest_factor_for": "equal_norms",
    "equalize_norms": "equal_norms",
    "export_onnx": "encoders.onnx_export",
    "hamming_distance": "quantization",
    "load_encoder": "encoders",
    "load_query_encoder": "encoders",
    "pack_bits": "quantization",
    "quantize_absmax": "quantization",
    "quantize_tanh": "quantization",
    "quantize_to_norm": "equal_norms",
    "truncate": "quantization",
    "unpack_bits": "quantization",
}

__all__ = [
    "AddReport",
    "ApiOptions",
    "AsyncVectorStore",
    "Chunk",
    "Chunker",
    "CollectionConfig",
    "Document",
    "EncodedQuery",
    "Encoder",
    "ExplainedHit",
    "Explanation",
    "Hit",
    "ModelSpec",
    "PplxVectorStoreError",
    "PrecomputedEncoder",
    "StoredChunk",
    "StoredDocument",
    "SyncReport",
    "Usage",
    "VectorStore",
    "__version__",
    "cosine_similarity",
    "crest_factor_for",
    "equalize_norms",
    "export_onnx",
    "hamming_distance",
    "load_encoder",
    "load_query_encoder",
    "pack_bits",
    "quantize_absmax",
    "quantize_tanh",
    "quantize_to_norm",
    "truncate",
    "unpack_bits",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
