"""Embeddings for LlamaIndex that keep the document's context."""

from llama_index.embeddings.pplx_vectorstore.base import PplxEmbedding

__all__ = ["PplxEmbedding"]
