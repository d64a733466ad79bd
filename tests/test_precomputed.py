import pytest
from qdrant_client import AsyncQdrantClient

from pplx_vectorstore import AsyncVectorStore, Document, VectorStore
from pplx_vectorstore.encoders.precomputed import PrecomputedEncoder
from pplx_vectorstore.errors import InvalidInputError, StoreError, StoreNotFoundError


def test_records_the_model_that_the_vectors_are_of():
    encoder = PrecomputedEncoder("somebody/model", 96, quantizer="tanh")
    assert (encoder.spec.name, encoder.spec.dimension, encoder.spec.quantizer) == ("somebody/model", 96, "tanh")
    fingerprint = encoder.fingerprint
    assert (fingerprint.model, fingerprint.dimension, fingerprint.quantizer) == ("somebody/model", 96, "tanh")


@pytest.mark.parametrize("dimension", [0, -1, 1.5, "96", None, True])
def test_dimension_must_be_a_positive_whole_number(dimension):
    with pytest.raises(InvalidInputError, match="dimension must be a whole number of at least 1"):
        PrecomputedEncoder("model", dimension)


def test_fits_the_collection_of_any_model(minilm):
    encoder = PrecomputedEncoder.of_collection(minilm.fingerprint)
    assert encoder.fingerprint == minilm.fingerprint
    assert (encoder.spec.name, encoder.spec.dimension) == ("all-minilm-l6-v2", 384)
    minilm.fingerprint.require_same(encoder.fingerprint, "docs")


def test_of_a_collection_keeps_its_quantizer(pplx):
    """Float vectors added to it must be quantized as the rest of it was."""
    assert PrecomputedEncoder.of_collection(pplx.fingerprint).spec.quantizer == "tanh"


@pytest.mark.parametrize(
    ("use", "what"),
    [
        (lambda encoder: encoder.tokenizer, "a document given as text"),
        (lambda encoder: encoder.encode_documents([["a"]]), "a document without vectors"),
        (lambda encoder: encoder.encode_queries(["a"]), "a query given as text"),
    ],
)
def test_embeds_nothing_and_says_what_to_do(use, what):
    with pytest.raises(InvalidInputError, match=f"{what} cannot be embedded.*load_encoder"):
        use(PrecomputedEncoder("model", 8))


def test_a_collection_is_opened_without_its_model(folder, hash_encoder):
    encoder = hash_encoder(16)
    with VectorStore.open(folder, encoder=encoder) as store:
        store.add([Document(id="a", chunks=["one", "two"])])
    with VectorStore.open(folder) as store:
        assert store.fingerprint == encoder.fingerprint
        (hit,) = store.search(encoder.encode_documents([["one", "two"]])[0][1], k=1)
        assert (hit.text, hit.score) == ("two", pytest.approx(1.0))
        store.add([Document(id="b", chunks=["three"], vectors=encoder.encode_queries(["three"]))])
        with pytest.raises(InvalidInputError, match="a query given as text cannot be embedded"):
            store.search("two")
        with pytest.raises(InvalidInputError, match="a document without vectors cannot be embedded"):
            store.add([Document(id="c", chunks=["four"])])
    with VectorStore.open(folder, encoder=encoder) as store:
        assert store.search("three", k=1)[0].document_id == "b"
    with pytest.raises(StoreNotFoundError, match="no collection 'other'; to create it, give an encoder"):
        VectorStore.open(folder, collection="other")


async def test_an_awaited_store_learns_its_fingerprint_when_it_is_used(hash_encoder):
    client = AsyncQdrantClient(":memory:")
    made = AsyncVectorStore(client, encoder=hash_encoder(16))
    await made.add([Document(id="a", chunks=["one"])])
    store = AsyncVectorStore(client)
    with pytest.raises(StoreError, match="known once the store was used"):
        _ = store.fingerprint
    assert [chunk.text async for chunk in store.chunks()] == ["one"]
    assert store.fingerprint == made.fingerprint
