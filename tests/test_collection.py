import json
from dataclasses import replace

import pytest
from qdrant_client import models as of_client

from pplx_vectorstore import __version__
from pplx_vectorstore.collection import (
    METADATA_KEY,
    VECTOR_NAME,
    Fingerprint,
    field_indexes,
    keeps_codes_in_memory,
    vector_params,
)
from pplx_vectorstore.errors import SchemaMismatchError
from pplx_vectorstore.qdrant import models

FINGERPRINT = Fingerprint(
    model="perplexity-ai/pplx-embed-context-v1-0.6b",
    revision="b42df969",
    dimension=1024,
    quantizer="tanh",
    window_tokens=4096,
    min_context=512,
    context_weight=1.0,
    source="perplexity-ai/pplx-embed-context-v1-0.6b",
    squared_norm=802_816,
)
OTHERS = {
    "model": "all-minilm-l6-v2",
    "revision": "0123abcd",
    "dimension": 128,
    "quantizer": "norm",
    "window_tokens": 512,
    "min_context": 64,
    "context_weight": 0.3,
}


def test_comes_back_from_metadata():
    metadata = json.loads(json.dumps(FINGERPRINT.to_metadata()))
    assert Fingerprint.from_metadata(metadata, "docs") == FINGERPRINT
    assert metadata[METADATA_KEY]["library"] == __version__


@pytest.mark.parametrize("metadata", [None, {}, {"other": 1}, {METADATA_KEY: "text"}])
def test_a_foreign_collection_is_refused(metadata):
    with pytest.raises(SchemaMismatchError, match="'docs' was not written by pplx-vectorstore"):
        Fingerprint.from_metadata(metadata, "docs")


@pytest.mark.parametrize("schema", [0, 1, 3, None, "2"])
def test_another_schema_version_is_refused(schema):
    metadata = FINGERPRINT.to_metadata()
    metadata[METADATA_KEY] |= {"schema": schema, "library": "9.9"}
    with pytest.raises(SchemaMismatchError, match=r"schema version .* \(written by pplx-vectorstore 9\.9\)") as caught:
        Fingerprint.from_metadata(metadata, "docs")
    assert "Index the documents again, into a new collection or folder" in str(caught.value)


@pytest.mark.parametrize("field", sorted([*OTHERS, "squared_norm", "backend"]))
def test_altered_metadata_is_refused(field):
    metadata = FINGERPRINT.to_metadata()
    del metadata[METADATA_KEY][field]
    with pytest.raises(SchemaMismatchError, match=f"does not record its {field}"):
        Fingerprint.from_metadata(metadata, "docs")


@pytest.mark.parametrize("field", sorted(OTHERS))
def test_every_difference_is_refused_and_both_values_named(field):
    with pytest.raises(SchemaMismatchError) as caught:
        FINGERPRINT.require_same(replace(FINGERPRINT, **{field: OTHERS[field]}), "docs")
    message = str(caught.value)
    assert "'docs'" in message
    assert f"{field} {getattr(FINGERPRINT, field)!r} in the collection, {OTHERS[field]!r} given" in message


def test_several_differences_are_all_named():
    with pytest.raises(SchemaMismatchError, match=r"model .* dimension .* quantizer "):
        FINGERPRINT.require_same(replace(FINGERPRINT, **OTHERS), "docs")


@pytest.mark.parametrize("backend", ["torch", "onnx:model_quantized", "api"])
def test_backends_may_differ_and_the_service_does_not_tell_its_revision(backend):
    other = replace(FINGERPRINT, backend=backend, revision=None if backend == "api" else FINGERPRINT.revision)
    FINGERPRINT.require_same(other, "docs")
    other.require_same(FINGERPRINT, "docs")


def test_encoders_may_be_laid_out_for_another_norm():
    """The collection's norm is what counts; vectors of any are brought to it."""
    FINGERPRINT.require_same(replace(FINGERPRINT, squared_norm=401_408), "docs")


def test_same_is_accepted_wherever_the_checkpoint_lies():
    FINGERPRINT.require_same(replace(FINGERPRINT, source="/models/moved"), "docs")


def test_same_weights_are_accepted_under_another_name():
    """A checkpoint's name is its folder's, which may be renamed; the weights' checksum tells what it is."""
    recorded = replace(FINGERPRINT, revision="sha256:0123456789abcdef", model="a")
    recorded.require_same(replace(recorded, model="b"), "docs")
    with pytest.raises(SchemaMismatchError, match="revision 'sha256:0123456789abcdef' in the collection"):
        recorded.require_same(replace(recorded, model="b", revision="sha256:fedcba9876543210"), "docs")
    with pytest.raises(SchemaMismatchError, match="window_tokens 4096 in the collection, 512 given"):
        recorded.require_same(replace(recorded, model="b", window_tokens=512), "docs")


def test_vectors_are_bytes_compared_by_euclid_with_binary_quantization():
    """Shifted codes keep Euclid but not the cosine."""

    (name,) = params = vector_params(384)
    assert name == VECTOR_NAME
    assert params[name].size == 384
    assert params[name].distance == models.Distance.EUCLID
    assert params[name].datatype == models.Datatype.UINT8
    assert isinstance(params[name].quantization_config, models.BinaryQuantization)
    assert params[name].quantization_config.binary.query_encoding == models.BinaryQuantizationQueryEncoding.SCALAR8BITS
    assert params[name].hnsw_config == models.HnswConfigDiff(ef_construct=200)


@pytest.mark.parametrize(
    ("memory", "on_disk", "expected"),
    [
        (None, None, False),
        (None, True, False),
        (None, False, True),
        ("cold", None, False),
        ("cached", None, True),
        ("pinned", True, True),
        ("cold", False, False),
    ],
)
def test_codes_are_in_memory_where_the_collection_keeps_them_there(memory, on_disk, expected):

    params = models.VectorParams(size=8, distance="Euclid", on_disk=on_disk, memory=memory)
    assert keeps_codes_in_memory(params) is expected


def test_whole_numbers_are_indexed_as_floats():
    params = of_client.IntegerIndexParams(
        type=of_client.IntegerIndexType.INTEGER, lookup=True, range=False, is_principal=True, enable_hnsw=False
    )
    assert field_indexes({"year": "integer", "of": {"born": params}, "lang": "keyword"}) == {
        "metadata.year": "float",
        "metadata.of.born": of_client.FloatIndexParams(
            type=of_client.FloatIndexType.FLOAT, is_principal=True, enable_hnsw=False
        ),
        "metadata.lang": "keyword",
    }
