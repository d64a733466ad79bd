"""Whole documents from Ray Data into a vector store, by as many workers as a cluster has.

Names are loaded on first use: each process of a job imports this package, and not all of them need all of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ray_pplx_vectorstore._version import __version__

if TYPE_CHECKING:
    from ray_pplx_vectorstore.datasets import embed_documents, search_dataset
    from ray_pplx_vectorstore.reports import FailedDocument, IngestionReport
    from ray_pplx_vectorstore.sync import sync_documents

_HOMES = {
    "FailedDocument": "reports",
    "IngestionReport": "reports",
    "embed_documents": "datasets",
    "search_dataset": "datasets",
    "sync_documents": "sync",
}

__all__ = [
    "FailedDocument",
    "IngestionReport",
    "__version__",
    "embed_documents",
    "search_dataset",
    "sync_documents",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
