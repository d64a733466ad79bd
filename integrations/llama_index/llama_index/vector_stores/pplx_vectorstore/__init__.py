"""A vector store for LlamaIndex: int8 codes on Qdrant, found by bits or codes."""

from llama_index.vector_stores.pplx_vectorstore.base import PplxVectorStore

__all__ = ["PplxVectorStore"]
