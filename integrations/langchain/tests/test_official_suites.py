"""The suites of langchain-tests, as they are."""

import os

import pytest
from langchain_core.documents import Document
from langchain_pplx_vectorstore import PplxEmbeddings, PplxRetriever, PplxVectorStore
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests
from qdrant_client import QdrantClient


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self):
        return PplxEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": "all-minilm-l6-v2"}

    @property
    def init_from_env_params(self):
        return (
            {"PERPLEXITY_API_KEY": "from the environment"},
            {"model": "pplx-embed-context-v1-4b", "backend": "api"},
            {"api_key": "from the environment"},
        )


class TestEmbeddingsIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self):
        return PplxEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": "all-minilm-l6-v2"}


class TestEmbedded(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, folder):
        with PplxVectorStore(self.get_embeddings(), folder=folder / "index") as store:
            yield store


class TestMemory(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        with PplxVectorStore(self.get_embeddings(), client=QdrantClient(":memory:")) as store:
            yield store


class TestServer(VectorStoreIntegrationTests):
    @pytest.fixture
    async def vectorstore(self, server):
        async with PplxVectorStore(self.get_embeddings(), url=server.url) as store:
            yield store


@pytest.mark.real_server
@pytest.mark.skipif("QDRANT_URL" not in os.environ, reason="QDRANT_URL names no server")
class TestRealServer(VectorStoreIntegrationTests):
    @pytest.fixture
    async def vectorstore(self, real_server):
        async with PplxVectorStore(self.get_embeddings(), **real_server.place()) as store:
            yield store


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _fill(self, folder, hash_encoder):
        embeddings = PplxEmbeddings.from_encoder(hash_encoder(64))
        with PplxVectorStore(embeddings, folder=folder / "index") as store:
            store.add_documents([Document(page_content=f"text {number}") for number in range(5)])
            self._store = store
            yield

    @property
    def retriever_constructor(self):
        return PplxRetriever

    @property
    def retriever_constructor_params(self):
        return {"vectorstore": self._store}

    @property
    def retriever_query_example(self):
        return "text 1"
