import dataclasses
import datetime
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_vectorstore.documents import Chunk, Document, Hit, clean_text, is_blank
from pplx_vectorstore.errors import InvalidDocumentError

# Among all characters, lone surrogates would hardly ever be drawn.
ANY_TEXT = st.lists(st.one_of(st.characters(), st.sampled_from("\ud800\udbff\udc00\udfff"))).map("".join)
JSON_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)


class TestDocument:
    def test_of_text(self):
        document = Document(id="handbook", text="All of it.")
        assert (document.id, document.text, document.chunks) == ("handbook", "All of it.", None)
        assert (dict(document.metadata), document.format, document.vectors) == ({}, "text", None)

    def test_of_chunks_turns_strings_into_chunks(self):
        known = Chunk(text="two", start=4, end=7, id="b", metadata={"page": 2})
        document = Document(id="d", chunks=["one", known, ""])
        assert document.chunks == (Chunk(text="one"), known, Chunk(text=""))

    @pytest.mark.parametrize("given", [{}, {"text": "a", "chunks": ["a"]}, {"text": None, "chunks": None}])
    def test_needs_either_text_or_chunks(self, given):
        with pytest.raises(InvalidDocumentError, match=r"'d' needs either text or chunks; (both|neither) came"):
            Document(id="d", **given)

    @pytest.mark.parametrize("given", [{"text": ""}, {"text": " \n"}, {"chunks": []}, {"chunks": ()}])
    def test_may_be_empty(self, given):
        Document(id="d", **given)

    @pytest.mark.parametrize("text", [b"bytes", 3, ["a"], float("nan")])
    def test_text_must_be_str(self, text):
        with pytest.raises(InvalidDocumentError, match="text of document 'd' must be a str"):
            Document(id="d", text=text)

    @pytest.mark.parametrize("text_format", [None, 3, ["text"]])
    def test_format_must_be_str(self, text_format):
        with pytest.raises(InvalidDocumentError, match="format of document 'd' must be a str"):
            Document(id="d", text="a", format=text_format)

    @pytest.mark.parametrize("chunks", ["one text", 3, {"a": 1}, {"a"}, iter(["a"])])
    def test_chunks_must_be_a_list(self, chunks):
        with pytest.raises(InvalidDocumentError, match="must be a list of str or Chunk"):
            Document(id="d", chunks=chunks)

    @pytest.mark.parametrize("chunk", [None, 3, b"bytes", ["nested"], {"text": "a"}])
    def test_each_chunk_must_be_a_str_or_chunk(self, chunk):
        with pytest.raises(InvalidDocumentError, match="chunk 1 of document 'd' must be a str or Chunk"):
            Document(id="d", chunks=["fine", chunk])

    @pytest.mark.parametrize("chunks", [b"bytes", bytearray(b"bytes"), range(3), [["nested"]]])
    def test_other_sequences_are_refused(self, chunks):
        with pytest.raises(InvalidDocumentError, match="document 'd' must be a"):
            Document(id="d", chunks=chunks)

    def test_is_frozen(self):
        document = Document(id="d", text="a")
        with pytest.raises(dataclasses.FrozenInstanceError):
            document.text = "b"

    @given(ANY_TEXT)
    def test_text_becomes_valid_unicode_of_the_same_length(self, text):
        document = Document(id="d", text=text)
        assert len(document.text) == len(text)
        document.text.encode("utf-8")
        (chunk,) = Document(id="d", chunks=[text]).chunks
        assert chunk.text == document.text


class TestVectors:
    @pytest.mark.parametrize("dtype", [np.int8, np.float16, np.float32, np.float64])
    def test_of_the_chunks_are_kept(self, dtype):
        vectors = np.arange(16).astype(dtype).reshape(2, 8)[:, ::-1]
        document = Document(id="d", chunks=["a", "b"], vectors=vectors)
        kept = vectors.copy()
        vectors[:] = 0
        np.testing.assert_array_equal(document.vectors, kept)
        assert document.vectors.dtype == dtype
        with pytest.raises(ValueError, match="read-only"):
            document.vectors[0, 0] = 1

    @pytest.mark.parametrize("shape", [(1, 8), (3, 8), (0, 8)])
    def test_number_must_match(self, shape):
        with pytest.raises(InvalidDocumentError, match=f"{shape[0]} came for 2 chunks"):
            Document(id="d", chunks=["a", "b"], vectors=np.ones(shape, np.float32))

    @pytest.mark.parametrize("vectors", [[[1.0], [2.0]], np.ones(2), np.ones((2, 3, 4)), np.float32(3), "ab"])
    def test_must_be_a_matrix(self, vectors):
        with pytest.raises(InvalidDocumentError, match=r"must be an array of shape \(2, dimension\)"):
            Document(id="d", chunks=["a", "b"], vectors=vectors)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, bool, np.complex64, object, "<U1"])
    def test_must_be_int8_or_floats(self, dtype):
        with pytest.raises(InvalidDocumentError, match="must be int8 codes or floats"):
            Document(id="d", chunks=["a", "b"], vectors=np.ones((2, 4)).astype(dtype))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_must_be_finite(self, bad):
        with pytest.raises(InvalidDocumentError, match="NaN or infinite"):
            Document(id="d", chunks=["a"], vectors=np.array([[1.0, bad]], np.float32))

    def test_need_chunks(self):
        with pytest.raises(InvalidDocumentError, match="give chunks= instead of text="):
            Document(id="d", text="a", vectors=np.ones((1, 8), np.float32))


class TestIds:
    @pytest.mark.parametrize("make", [lambda one: Document(id=one, text="a"), lambda one: Chunk(id=one, text="a")])
    class TestOfBoth:
        @pytest.mark.parametrize("given_id", ["a", "0", " ", "\x00", "naïve/ä b\n", "日本", "👩‍👩‍👧", "x" * 10_000])
        def test_any_valid_string_will_do(self, make, given_id):
            assert make(given_id).id == given_id

        @pytest.mark.parametrize("given_id", [0, 7, 1.5, True, b"a", ("a",), ["a"], {"a": 1}, object()])
        def test_other_types_are_refused(self, make, given_id):
            with pytest.raises(InvalidDocumentError, match=f"must be a str, not {type(given_id).__name__}.*str\\(\\)"):
                make(given_id)

        @pytest.mark.parametrize("given_id", ["\ud800", "a\udfffb"])
        def test_lone_surrogates_are_refused(self, make, given_id):
            with pytest.raises(InvalidDocumentError, match="lone surrogate"):
                make(given_id)

        def test_empty_string_is_refused(self, make):
            with pytest.raises(InvalidDocumentError, match="must not be the empty string"):
                make("")

    def test_a_document_needs_one(self):
        with pytest.raises(InvalidDocumentError, match="a document's id must be a str, not NoneType"):
            Document(id=None, text="a")

    def test_a_chunk_does_not(self):
        assert Chunk(text="a").id is None


class TestChunk:
    @pytest.mark.parametrize("offset", [0, 1, 2**40])
    def test_offsets(self, offset):
        chunk = Chunk(text="a", start=offset, end=offset + 1)
        assert (chunk.start, chunk.end) == (offset, offset + 1)

    @pytest.mark.parametrize("name", ["start", "end"])
    @pytest.mark.parametrize("offset", [-1, 1.0, "1", True, np.int64(1)])
    def test_offsets_must_be_whole_numbers(self, name, offset):
        with pytest.raises(InvalidDocumentError, match=f"{name} of a chunk must be a character offset"):
            Chunk(text="a", **{name: offset})

    def test_may_be_empty_but_not_end_before_it_starts(self):
        assert Chunk(text="", start=3, end=3).end == 3
        with pytest.raises(InvalidDocumentError, match="cannot start at 3 and end before, at 2"):
            Chunk(text="a", start=3, end=2)

    @pytest.mark.parametrize("text", [None, b"a", 3])
    def test_text_must_be_str(self, text):
        with pytest.raises(InvalidDocumentError, match="a chunk's text must be a str"):
            Chunk(text=text)

    def test_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Chunk(text="a").text = "b"


@pytest.mark.parametrize(
    "make", [lambda value: Document(id="d", text="a", metadata=value), lambda value: Chunk(text="a", metadata=value)]
)
class TestMetadata:
    @given(st.dictionaries(st.text(), JSON_VALUES, max_size=3))
    def test_any_json_is_accepted(self, make, metadata):
        made = make(metadata).metadata
        assert json.loads(json.dumps(made)) == metadata

    @pytest.mark.parametrize(
        ("value", "complaint"),
        [
            (float("nan"), "nan, which JSON cannot hold"),
            (float("inf"), "inf, which JSON cannot hold"),
            (2**63, "does not fit 64 bits"),
            (-(2**63) - 1, "does not fit 64 bits"),
            ((1, 2), "of type tuple.*tuples as lists"),
            ({1, 2}, "of type set"),
            (b"a", "of type bytes"),
            (datetime.date(2024, 2, 29), r"of type date.*isoformat\(\)"),
            (np.float32(1), "of type float32"),
            (np.float64(1), "of type float64"),
            (np.int64(1), "of type int64"),
            (np.ones(2), "of type ndarray"),
            (object(), "of type object"),
            ("\ud800", "lone surrogate"),
        ],
    )
    @pytest.mark.parametrize("nest", [lambda x: x, lambda x: [0, x], lambda x: {"inner": [x]}])
    def test_what_would_not_come_back_is_refused_and_its_path_named(self, make, value, complaint, nest):
        with pytest.raises(InvalidDocumentError, match=rf"metadata\['key'\].* {complaint}"):
            make({"key": nest(value)})

    @pytest.mark.parametrize("key", [1, None, True, ("a",), "\ud800"])
    @pytest.mark.parametrize("nest", [lambda x: x, lambda x: {"outer": [x]}])
    def test_keys_must_be_valid_strings(self, make, key, nest):
        with pytest.raises(InvalidDocumentError, match="keys must be str"):
            make(nest({key: 1}))

    @pytest.mark.parametrize("metadata", [None, [], "a", 3, [("a", 1)]])
    def test_must_be_a_dict(self, make, metadata):
        with pytest.raises(InvalidDocumentError, match="metadata must be a dict"):
            make(metadata)


@given(ANY_TEXT)
def test_clean_text_changes_nothing_but_lone_surrogates(text):
    cleaned = clean_text(text, "it")
    for before, after in zip(text, cleaned, strict=True):
        assert after == ("\ufffd" if "\ud800" <= before <= "\udfff" else before)


@pytest.mark.parametrize(("text", "blank"), [("", True), (" \t\n\u2003", True), ("\x00", False), (" . ", False)])
def test_is_blank(text, blank):
    assert is_blank(text) is blank


def test_hits_with_the_same_content_are_equal_whatever_their_codes():
    fields = dict.fromkeys(["start", "end"]) | {
        "id": "i", "text": "t", "document_id": "d", "chunk_index": 0, "chunk_count": 1, "metadata": {}, "score": 0.5
    }  # fmt: skip
    assert Hit(**fields, codes=np.ones(3, np.int8)) == Hit(**fields, codes=None)
    assert "codes" not in repr(Hit(**fields, codes=np.ones(3, np.int8)))
