import pytest

from pplx_vectorstore.encoders.precomputed import PrecomputedEncoder
from pplx_vectorstore.errors import InvalidInputError


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
