"""A retriever that takes the search options of the store."""

from __future__ import annotations

from typing import Any

from langchain_core.vectorstores import VectorStoreRetriever
from pydantic import ConfigDict, model_validator

from langchain_pplx_vectorstore.options import SearchOptions

_OPTIONS = {"k", "fetch_k", "lambda_mult", *SearchOptions.__annotations__}


class PplxRetriever(VectorStoreRetriever):
    """LangChain's retriever of a vector store, whose search options may be given directly.

    ``PplxRetriever(vectorstore=store, k=6, hybrid=True)`` is
    ``PplxRetriever(vectorstore=store, search_kwargs={"k": 6, "hybrid": True})``; both take what ``invoke`` is given
    over what they were made with. Options are those of ``PplxVectorStore.similarity_search``, and `fetch_k` and
    `lambda_mult` for ``search_type="mmr"``. An unknown one is an error.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, values: dict[str, Any]) -> dict[str, Any]:
        options = {name: value for name, value in values.items() if name in _OPTIONS}
        rest = {name: value for name, value in values.items() if name not in _OPTIONS}
        return {**rest, "search_kwargs": {**options, **(rest.get("search_kwargs") or {})}}
