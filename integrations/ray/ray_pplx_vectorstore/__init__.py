"""Whole documents from Ray Data into a vector store, by as many workers as a cluster has."""

from ray_pplx_vectorstore._version import __version__
from ray_pplx_vectorstore.datasets import embed_documents, search_dataset
from ray_pplx_vectorstore.reports import FailedDocument, IngestionReport
from ray_pplx_vectorstore.sync import sync_documents

__all__ = [
    "FailedDocument",
    "IngestionReport",
    "__version__",
    "embed_documents",
    "search_dataset",
    "sync_documents",
]
