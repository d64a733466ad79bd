import base64
import json

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_vectorstore.quantization import pack_bits
from pplx_vectorstore.serving.wire import (
    DEFAULT_LIMITS,
    ENCODINGS,
    PART_BYTES,
    EmbeddingRequest,
    RefusalError,
    ServedModel,
    accepted_names,
    read_request,
    to_unit_norm,
    write_answer,
    write_model,
)

MODEL = ServedModel(
    name="perplexity-ai/pplx-embed-context-v1-0.6b",
    names=accepted_names(["perplexity-ai/pplx-embed-context-v1-0.6b", "text-embedding-3-small"]),
    contextual=True,
    dimension=1024,
    min_dimension=128,
    fingerprint={"model": "perplexity-ai/pplx-embed-context-v1-0.6b"},
    digest="d1",
    created=1,
)
NAME = "pplx-embed-context-v1-0.6b"


def read(body, **options):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_request(content, MODEL, DEFAULT_LIMITS, nested=options.pop("nested", False), **options)


def refuse(body, **options):
    with pytest.raises(RefusalError) as caught:
        read(body, **options)
    return caught.value


def test_a_request_of_all_fields():
    body = {"model": NAME, "input": [["a", "b"], ["c"]], "dimensions": 128, "encoding_format": "float", "user": "u"}
    asked = read(body, nested=True)
    assert asked == EmbeddingRequest(NAME, [["a", "b"], ["c"]], True, 128, "float")
    assert (asked.n_chunks, asked.characters) == (3, 3)


def test_what_is_not_set_or_null_has_defaults():
    for fields in ({}, {"dimensions": None, "encoding_format": None, "user": None}):
        assert read({"model": NAME, "input": "a", **fields}) == EmbeddingRequest(
            NAME, [["a"]], False, 1024, "base64_int8"
        )
    assert read({"model": NAME, "input": ["a"]}, unset_encoding="float").encoding == "float"


@pytest.mark.parametrize(
    "name", [NAME, NAME.upper(), "perplexity-ai/" + NAME, "text-embedding-3-small", "TEXT-embedding-3-small"]
)
def test_the_model_answers_to_its_names(name):
    assert read({"model": name, "input": "a"}).model == name


@pytest.mark.parametrize("input_", [[1, 2], [[1, 2], [3]], [0]])
@pytest.mark.parametrize("nested", [False, True])
def test_token_ids_are_refused_with_the_way_out(input_, nested):
    if nested and not isinstance(input_[0], list):
        input_ = [input_]
    refusal = refuse({"model": NAME, "input": input_}, nested=nested)
    assert (refusal.status, refusal.param) == (422, "input")
    assert "check_embedding_ctx_length=False" in refusal.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "a", "model": "other"}, "model"),
        ({"input": "a", "dimensions": 7}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "encoding_format": ""}, "encoding_format"),
        ({"input": ""}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": "a", "user": 3}, "user"),
    ],
)
def test_refusals_name_the_field(fields, param):
    refusal = refuse({"model": NAME, **fields})
    assert refusal.param == json.loads(refusal.body())["error"]["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b'{"model": NaN}',
        b'{"input": "\\ud83e", "model": "x"}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"9" * 10_000,
        b'{"input": "a", "model": "x"} x',
    ],
)
def test_what_is_no_json_is_refused_as_that(body):
    assert refuse(body).status == 400


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": [' + b"[]," * 20_000 + b"[]]}",
        b'{"input": [' + b"{}," * 20_000 + b"{}]}",
        b"{" + b",".join(b'"%d":1' % i for i in range(20_000)) + b"}",
        b'{"input": ["\\\\", "\\"", ' + b"[]," * 20_000 + b"[]]}",
    ],
    ids=["arrays", "objects", "fields", "after escapes"],
)
def test_more_of_them_than_any_request_has_are_not_read(body, monkeypatch):
    monkeypatch.setattr(orjson, "loads", None)
    refusal = refuse(body)
    assert (refusal.status, "arrays, objects and fields" in refusal.message) == (400, True)


@pytest.mark.parametrize("quote", ['"', '\\"', "\\\\", '\\\\"', ""])
def test_in_text_they_are_characters_as_others(quote):
    text = f"{quote}[a: {{" * 10_000
    assert read({"model": NAME, "input": [text, text]}).documents == [[text], [text]]


def test_refusals_quote_no_text():
    secret = "the text of a document"
    for body in ({"model": NAME, "input": [secret, ""]}, {"model": NAME, "input": [secret, 1]}, secret):
        assert secret not in refuse(body).message
    assert len(refuse({"model": "x" * 10_000, "input": "a"}).message) < 300


documents = st.lists(st.integers(1, 3), min_size=1, max_size=4)


@given(documents, st.integers(1, 40), st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_format_gives_back_the_codes(encoding, counts, dimensions, seed):
    rng = np.random.default_rng(seed)
    codes = [rng.integers(-127, 128, size=(n, dimensions), dtype=np.int8) for n in counts]
    codes[0][0] = 0
    request = EmbeddingRequest(NAME, [["a"] * n for n in counts], True, dimensions, encoding)
    answer = json.loads(b"".join(write_answer(request, codes, 7)))
    assert answer["usage"]["total_tokens"] == 7
    assert answer["usage"]["cost"]["total_cost"] == 0
    assert [entry["index"] for entry in answer["data"]] == list(range(len(counts)))
    for entry, of in zip(answer["data"], codes, strict=True):
        assert [chunk["index"] for chunk in entry["data"]] == list(range(len(of)))
        for chunk, row in zip(entry["data"], of, strict=True):
            np.testing.assert_array_equal(decode(chunk["embedding"], encoding), expected(row, encoding))


def decode(embedding, encoding):
    if encoding == "float":
        return np.array(embedding, dtype=np.float32)
    return np.frombuffer(base64.b64decode(embedding, validate=True), {"base64": "<f4"}.get(encoding, np.uint8))


def expected(row, encoding):
    if encoding == "base64_int8":
        return row.view(np.uint8)
    if encoding == "base64_binary":
        return pack_bits(row, "little")
    norm = np.sqrt(np.sum(row.astype(np.float64) ** 2)) or 1.0
    return (row / norm).astype(np.float32)


def test_norms_are_one():
    codes = np.array([[127, -127, 3], [0, 0, 0]], np.int8)
    assert np.linalg.norm(to_unit_norm(codes), axis=1) == pytest.approx([1, 0])


def test_texts_are_answered_flat_and_estimates_hold():
    for encoding in ENCODINGS:
        request = EmbeddingRequest(NAME, [["a"]] * 50, False, 1024, encoding)
        codes = np.random.default_rng(0).integers(-127, 128, size=(50, 1, 1024), dtype=np.int8)
        content = b"".join(write_answer(request, list(codes), 50))
        assert [entry["index"] for entry in json.loads(content)["data"]] == list(range(50))
        assert request.answer_bytes == pytest.approx(len(content), rel=0.2)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_large_answers_are_written_in_parts(nested, encoding):
    codes = np.random.default_rng(0).integers(-127, 128, size=(3000, 1, 1024), dtype=np.int8)
    request = EmbeddingRequest(NAME, [["a"]] * 3000, nested, 1024, encoding)
    parts = write_answer(request, list(codes), 3000)
    assert max(map(len, parts)) < 2 * PART_BYTES
    assert min(map(len, parts[:-1])) >= PART_BYTES
    data = json.loads(b"".join(parts))["data"]
    assert [entry["index"] for entry in data] == list(range(3000))
    found = data[-1]["data"][0] if nested else data[-1]
    np.testing.assert_array_equal(decode(found["embedding"], encoding), expected(codes[-1, 0], encoding))


def test_the_models_description():
    described = write_model(MODEL)
    assert (described["id"], described["object"]) == (MODEL.name, "model")
    assert json.loads(json.dumps(described))["fingerprint"] == {"model": MODEL.name}
