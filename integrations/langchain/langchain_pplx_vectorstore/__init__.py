"""LangChain embeddings and vector store that keep the document's context."""

from langchain_pplx_vectorstore._version import __version__
from langchain_pplx_vectorstore.embeddings import PplxEmbeddings
from langchain_pplx_vectorstore.retriever import PplxRetriever
from langchain_pplx_vectorstore.vectorstore import PplxVectorStore

__all__ = ["PplxEmbeddings", "PplxRetriever", "PplxVectorStore", "__version__"]
