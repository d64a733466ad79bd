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


@pytest.fixture(params=["embedded", "memory", "server"])
def place(request, folder):
    """A factory of places for a store, on each engine: ``place()`` → ``{"folder": …}``, and others."""
    n_places = 0

    def make():
        nonlocal n_places
        n_places += 1
        if request.param == "embedded":
            return {"folder": folder / f"index-{n_places}"}
        if request.param == "memory":
            return {"client": QdrantClient(":memory:")}
        return {"url": request.getfixturevalue("server").url, "collection": f"collection-{n_places}"}

    return make


@pytest.fixture
def open_store(place, hash_embedding):
    """A factory of empty stores, on each engine: ``open_store(embed_model=None, **options)``."""
    opened = []

    def make(embed_model=None, **options):
        store = PplxVectorStore(embed_model or hash_embedding, **{**place(), **options})
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()
