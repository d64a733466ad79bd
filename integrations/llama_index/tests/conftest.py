import os

import pytest
from llama_index.embeddings.pplx_vectorstore import PplxEmbedding
from llama_index.vector_stores.pplx_vectorstore import PplxVectorStore
from qdrant_client import QdrantClient


@pytest.fixture(scope="session")
def minilm_embedding(minilm):
    """The offline model, float32, loaded once."""
    return PplxEmbedding.from_encoder(minilm)


@pytest.fixture
def hash_embedding(hash_encoder):
    """Vectors that are hashes of the whole document and the chunk; 64 dimensions."""
    return PplxEmbedding.from_encoder(hash_encoder(64))


# A server of one's own, at QDRANT_URL, over REST and, at QDRANT_GRPC_PORT, over gRPC.
REAL = [
    name
    for name, needed in {"real": {"QDRANT_URL"}, "real-grpc": {"QDRANT_URL", "QDRANT_GRPC_PORT"}}.items()
    if needed <= os.environ.keys()
]
ON_REAL = [pytest.param(name, marks=pytest.mark.real_server) for name in REAL]


@pytest.fixture(params=["embedded", "memory", "server", *ON_REAL])
def place(request, folder):
    """A factory of places for a store, on each engine: ``place(collection=None)`` → ``{"folder": …}``, and others."""
    n_places = 0
    if request.param in REAL:
        request.getfixturevalue("real_server")  # before the stores, so that it outlives them

    def make(collection=None):
        nonlocal n_places
        n_places += 1
        named = {} if collection is None else {"collection": collection}
        if request.param == "embedded":
            return {"folder": folder / f"index-{n_places}", **named}
        if request.param == "memory":
            return {"client": QdrantClient(":memory:"), **named}
        if request.param in REAL:
            return request.getfixturevalue("real_server").place(collection, over_grpc=request.param == "real-grpc")
        return {"url": request.getfixturevalue("server").url, "collection": f"collection-{n_places}", **named}

    return make


@pytest.fixture
def open_store(place, hash_embedding):
    """A factory of empty stores, on each engine: ``open_store(embed_model=None, **options)``."""
    opened = []

    def make(embed_model=None, **options):
        store = PplxVectorStore(embed_model or hash_embedding, **place(options.pop("collection", None)), **options)
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()
