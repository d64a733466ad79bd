import os

import pytest
from langchain_pplx_vectorstore import PplxEmbeddings, PplxVectorStore
from qdrant_client import QdrantClient


@pytest.fixture(scope="session")
def minilm_embeddings(minilm):
    """The offline model, float32, loaded once."""
    return PplxEmbeddings.from_encoder(minilm)


@pytest.fixture
def hash_embeddings(hash_encoder):
    """Vectors that are hashes of the whole document and the chunk; 64 dimensions."""
    return PplxEmbeddings.from_encoder(hash_encoder(64))


# A server of one's own, at QDRANT_URL, over REST and, at QDRANT_GRPC_PORT, over gRPC.
REAL = [
    name
    for name, needed in {"real": {"QDRANT_URL"}, "real-grpc": {"QDRANT_URL", "QDRANT_GRPC_PORT"}}.items()
    if needed <= os.environ.keys()
]
ON_REAL = [pytest.param(name, marks=pytest.mark.real_server) for name in REAL]


@pytest.fixture(params=["embedded", "memory", "server", *ON_REAL])
def open_store(request, folder, hash_embeddings):
    """A factory of empty stores, on each engine: ``open_store(embedding=None, **options)``."""
    opened = []
    if request.param in REAL:
        request.getfixturevalue("real_server")  # before the stores, so that it outlives them

    def make(embedding=None, **options):
        if request.param == "embedded":
            place = {"folder": folder / f"index-{len(opened)}"}
        elif request.param == "memory":
            place = {"client": QdrantClient(":memory:")}
        elif request.param in REAL:
            place = request.getfixturevalue("real_server").place(
                options.pop("collection", None), over_grpc=request.param == "real-grpc"
            )
        else:
            place = {"url": request.getfixturevalue("server").url}
            options.setdefault("collection", f"collection-{len(opened)}")
        store = PplxVectorStore(embedding or hash_embeddings, **place, **options)
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()
