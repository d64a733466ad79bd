"""Whatever comes in: one clear error of ours, or what the docstrings promise; never a damaged index."""

import contextlib
import math
import os
import tempfile
from enum import Enum, IntEnum
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pplx_vectorstore import Chunk, Document, VectorStore
from pplx_vectorstore.equal_norms import quantize
from pplx_vectorstore.errors import (
    EncodingError,
    InvalidDocumentError,
    InvalidInputError,
    UnsupportedFilterError,
)
from pplx_vectorstore.points import derive_point_id


@pytest.fixture
def folder():
    """A new folder, in memory where that is possible: the engine syncs files to disk all the time."""
    in_memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=in_memory if os.access(in_memory, os.W_OK) else None) as path:
        yield Path(path) / "index"


@pytest.fixture
def store(folder, hash_encoder):
    with VectorStore.open(folder, encoder=hash_encoder(8)) as opened:
        opened.add([Document(id="there", chunks=["already there"])])
        yield opened


def add_text(store, text, **kwargs):
    store.add([Document(id="d", chunks=[Chunk(text=text, id="c")], **kwargs)])
    (chunk,) = store.get(["c"])
    return chunk


# --- text ----------------------------------------------------------------------------------------------

TEXTS = {
    "nul": "before\0after",
    "controls": "\x01\x02\x1b[31m\x7f\u0085",
    "right to left": "\u202eמשפט בעברית\u202c و جملة بالعربية",
    "combining": "a\u0308" + "\u0301" * 50,
    "composed and not": "é e\u0301",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈",
    "beyond the BMP": "\U00010000\U0010ffff",
    "separators": "a\u2028b\u2029c\rd\r\ne",
    "zero width": "\ufeffa\u200bb\u00ad",
    "noncharacters": "\ufffe\uffff\ufdd0",
    "special tokens": "<|endoftext|>[SEP][CLS]<s>",
    "json": '{"a": "\\u0000"}',
    "backslashes": "\\\\n\\",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_valid_unicode_comes_back_and_is_found(store, text):
    chunk = add_text(store, text, metadata={text: text, "list": [text]})
    assert chunk.text == text
    assert chunk.metadata == {text: text, "list": [text]}
    (hit,) = store.search(text, k=1)
    assert (hit.id, hit.score) == ("c", pytest.approx(1, abs=1e-6))


@pytest.mark.parametrize(
    ("text", "kept"),
    [("a\ud800b", "a\ufffdb"), ("\udfff", "\ufffd"), ("\ud83d\ude00", "\ufffd\ufffd"), ("\udc80" * 3, "\ufffd" * 3)],
    ids=ascii,
)
def test_lone_surrogates_in_text_become_replacement_characters(store, text, kept):
    assert add_text(store, text).text == kept
    store.add([Document(id="whole", text=f"one {text} two")])
    (chunk,) = store.get([derive_point_id("whole", 0)])
    assert chunk.text == f"one {kept} two"
    assert (chunk.start, chunk.end) == (0, len(f"one {text} two"))
    assert store.search(text, k=1)  # a query with one is no error either


@pytest.mark.parametrize("where", ["id", "chunk id", "value", "key", "deep"])
def test_lone_surrogates_elsewhere_are_refused(where):
    bad = "a\ud800"
    made = {
        "id": lambda: Document(id=bad, chunks=[]),
        "chunk id": lambda: Chunk(text="x", id=bad),
        "value": lambda: Document(id="d", chunks=[], metadata={"k": bad}),
        "key": lambda: Chunk(text="x", metadata={bad: 1}),
        "deep": lambda: Document(id="d", chunks=[], metadata={"k": [{"x": [bad]}]}),
    }
    with pytest.raises(InvalidDocumentError, match=r"surrogate|valid Unicode"):
        made[where]()


def test_a_chunk_of_100_000_characters(store):
    text = "lorem ipsum 🙂 " * 7150
    assert len(text) >= 100_000
    assert add_text(store, text).text == text
    assert store.search(text, k=1)[0].text == text


def test_a_text_of_100_000_characters_is_cut_without_loss(store):
    text = "Lorem ipsum dolor sit amet. " * 3600
    report = store.add([Document(id="d", text=text)])
    chunks = store.get([derive_point_id("d", i) for i in range(report.chunks)])
    assert len(chunks) == report.chunks > 10
    assert " ".join(chunk.text.strip() for chunk in chunks) == text.strip()


def test_metadata_of_a_megabyte(store):
    metadata = {"blob": "x" * 1_000_000}
    store.add([Document(id="d", chunks=["a", "b", "c"], metadata=metadata)])
    assert store.search("a", k=1, filter={"blob": "x" * 1_000_000})[0].metadata == metadata


@pytest.mark.parametrize("blank", ["", " ", "\n\t\r", "\u3000\u2028"], ids=ascii)
def test_blank_queries_are_refused(store, blank):
    with pytest.raises(InvalidInputError, match="must not be blank"):
        store.search(blank)
    with pytest.raises(InvalidInputError, match="must not be blank"):
        store.search_batch(["x", blank])


# --- documents -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 1.5, None, True, b"d", ("d",), ["d"], Path("d"), ...], ids=repr)
def test_ids_that_are_no_str_are_refused(value):
    with pytest.raises(InvalidDocumentError, match=r"a document's id must be a str, not .*str\(\)"):
        Document(id=value, chunks=["x"])
    if value is not None:
        with pytest.raises(InvalidDocumentError, match="a chunk's id must be a str"):
            Chunk(text="x", id=value)


def test_the_empty_id_is_refused():
    with pytest.raises(InvalidDocumentError, match="must not be the empty string"):
        Document(id="", chunks=["x"])
    with pytest.raises(InvalidDocumentError, match="must not be the empty string"):
        Chunk(text="x", id="")


@pytest.mark.parametrize(
    "document_id", [" ", "\0", "a/b", "ü", "x" * 100_000, "0", "null", '"', "\n"], ids=lambda i: ascii(i)[:20]
)
def test_any_other_id_works(store, document_id):
    store.add([Document(id=document_id, chunks=["a", Chunk(text="b", id=document_id)])])
    assert {hit.document_id for hit in store.search("a", k=2, filter=None)} <= {document_id, "there"}
    assert [chunk.text for chunk in store.get([document_id, derive_point_id(document_id, 0)])] == ["b", "a"]
    assert store.delete(document_ids=[document_id]) == 2
    assert store.count() == 1


@pytest.mark.parametrize(
    "documents",
    ["text", Document(id="d", chunks=["x"]), {"id": "d", "text": "x"}, {}, 3, None, True],
    ids=lambda value: type(value).__name__,
)
def test_documents_must_be_an_iterable_of_documents(store, documents):
    with pytest.raises(InvalidDocumentError, match="documents must be a list or another iterable of Document"):
        store.add(documents)
    assert store.count() == 1


@pytest.mark.parametrize(
    "item", ["text", {"id": "d", "text": "x"}, ("d", "x"), None, Chunk(text="x"), Document], ids=repr
)
def test_items_must_be_documents(store, item):
    with pytest.raises(InvalidDocumentError, match="documents must hold Document objects, not"):
        store.add([Document(id="first", chunks=["x"]), item])
    assert store.count() == 1


@pytest.mark.parametrize("kwargs", [{}, {"text": "a", "chunks": ["a"]}, {"text": "", "chunks": []}], ids=repr)
def test_a_document_has_text_or_chunks(kwargs):
    with pytest.raises(InvalidDocumentError, match=r"needs either text or chunks; (neither|both) came"):
        Document(id="d", **kwargs)


@pytest.mark.parametrize("chunks", ["text", {"a"}, {"a": 1}, 3, iter(["a"])], ids=lambda v: type(v).__name__)
def test_chunks_must_be_a_list(chunks):
    with pytest.raises(InvalidDocumentError, match="chunks of document 'd' must be a list"):
        Document(id="d", chunks=chunks)


@pytest.mark.parametrize("chunk", [None, 1, b"x", ["x"], {"text": "x"}, Document(id="e", text="x")], ids=repr)
def test_chunks_must_be_str_or_chunk(chunk):
    with pytest.raises(InvalidDocumentError, match="chunk 1 of document 'd' must be a str or Chunk"):
        Document(id="d", chunks=["fine", chunk])


@pytest.mark.parametrize("text", [b"x", 1, ["x"], Path("x")], ids=repr)
def test_text_must_be_a_str(text):
    with pytest.raises(InvalidDocumentError, match="must be a str, not"):
        Document(id="d", text=text)
    with pytest.raises(InvalidDocumentError, match="must be a str, not"):
        Chunk(text=text)


@pytest.mark.parametrize("offset", [-1, 1.0, "1", True, np.int64(3)], ids=repr)
@pytest.mark.parametrize("name", ["start", "end"])
def test_offsets_must_be_whole_numbers(name, offset):
    with pytest.raises(InvalidDocumentError, match=f"{name} of a chunk must be a character offset"):
        Chunk(text="x", **{name: offset})


# --- vectors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [0, 1, 7, 9, 64])
@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_vectors_of_another_dimension_are_refused(store, dimension, dtype):
    document = Document(id="d", chunks=["x"], vectors=np.ones((1, dimension), dtype))
    with pytest.raises(InvalidDocumentError, match=f"have {dimension} dimensions.*holds 8 .*'hash-encoder'"):
        store.add([Document(id="other", chunks=["y"]), document])
    assert store.count() == 1


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((1, 8), np.int8), "1 came for 2 chunks"),
        (np.ones((3, 8), np.int8), "3 came for 2 chunks"),
        (np.ones(8, np.int8), "shape"),
        (np.ones((2, 8, 1), np.int8), "shape"),
        ([[1] * 8] * 2, "must be an array"),
        (np.ones((2, 8), np.uint8), "not uint8"),
        (np.ones((2, 8), np.int64), "not int64"),
        (np.ones((2, 8), bool), "not bool"),
        (np.ones((2, 8), complex), "not complex128"),
        (np.full((2, 8), "x"), "must be int8 codes or floats"),
        (np.full((2, 8), math.nan), "NaN"),
        (np.full((2, 8), -math.inf, np.float32), "infinite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_vectors_that_do_not_fit_their_chunks_are_refused(vectors, message):
    with pytest.raises(InvalidDocumentError, match=message):
        Document(id="d", chunks=["x", "y"], vectors=vectors)


def test_vectors_need_chunks():
    with pytest.raises(InvalidDocumentError, match="give chunks= instead of text="):
        Document(id="d", text="x", vectors=np.ones((1, 8), np.int8))


def test_vectors_that_are_views_of_larger_arrays(store):
    codes = np.arange(-64, 64, dtype=np.int8).reshape(8, 16)[::2, ::2]
    store.add([Document(id="d", chunks=list("abcd"), vectors=codes)])
    got = store.get([derive_point_id("d", i) for i in range(4)], with_codes=True)
    assert np.array_equal(np.stack([chunk.codes for chunk in got]), codes)


class Unstable:
    """An encoder whose model breaks down on some texts, as a float16 model does."""

    def __init__(self, inner):
        self.inner = inner
        self.spec, self.tokenizer, self.fingerprint = inner.spec, inner.tokenizer, inner.fingerprint

    def encode_documents(self, documents, *, progress=None):
        codes = self.inner.encode_documents(documents, progress=progress)
        broken = [np.where("nan" in "".join(document), math.nan, 1.0) for document in documents]
        return [quantize(factor * one, "norm") for factor, one in zip(broken, codes, strict=True)]

    def encode_queries(self, queries):
        return np.concatenate(self.encode_documents([[query] for query in queries]))


def test_nan_from_a_model_is_an_error_and_nothing_of_the_group_is_stored(folder, hash_encoder):
    with VectorStore.open(folder, encoder=Unstable(hash_encoder(8))) as store:
        store.add([Document(id="d", chunks=["fine"]), Document(id="e", chunks=["old"])])
        with pytest.raises(EncodingError, match="NaN or infinite; nothing was stored"):
            store.add([Document(id="d", chunks=["new"]), Document(id="e", chunks=["nan"])])
        with pytest.raises(EncodingError, match="NaN or infinite"):
            store.search("nan")
        assert {hit.text for hit in store.search("fine")} == {"fine", "old"}


# --- metadata ------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ((1, 2), "tuple"),
        ({1}, "set"),
        (b"x", "bytes"),
        (Path("x"), "Path"),
        (np.float64(1), "float64"),
        (np.int64(1), "int64"),
        (np.ones(3), "ndarray"),
        (Colour.RED, "Colour"),
        (Level.HIGH, "Level"),
        (..., "ellipsis"),
        (MappingProxyType({}), "mappingproxy"),
        (1j, "complex"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (2**63, "64 bits"),
        (-(2**63) - 1, "64 bits"),
        (10**400, "64 bits"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_metadata_that_would_not_come_back_is_refused_with_its_place(value, named):
    for make in (
        lambda metadata: Document(id="d", chunks=["x"], metadata=metadata),
        lambda metadata: Chunk(text="x", metadata=metadata),
    ):
        with pytest.raises(InvalidDocumentError, match=r"metadata\['k'\]") as raised:
            make({"fine": 1, "k": value})
        assert named in str(raised.value)
        with pytest.raises(InvalidDocumentError, match=r"metadata\['k'\]\[1\]\['x'\]"):
            make({"k": [None, {"x": value}]})


@pytest.mark.parametrize("key", [1, None, True, ("a",), b"k", 1.5], ids=repr)
def test_keys_of_metadata_must_be_str(key):
    with pytest.raises(InvalidDocumentError, match="keys must be str"):
        Document(id="d", chunks=[], metadata={key: 1})
    with pytest.raises(InvalidDocumentError, match=r"metadata\['in'\] has the key"):
        Document(id="d", chunks=[], metadata={"in": {key: 1}})


@pytest.mark.parametrize("metadata", [None, "x", 1, [("a", 1)], {"a"}], ids=repr)
def test_metadata_must_be_a_dict(metadata):
    with pytest.raises(InvalidDocumentError, match="metadata must be a dict"):
        Document(id="d", chunks=[], metadata=metadata)


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 2**53 + 1, 0, -0.0, 1e308, 5e-324], ids=repr)
def test_extreme_numbers_come_back(store, value):
    (back,) = add_text(store, "x", metadata={"v": value}).metadata.values()
    assert repr(back) == repr(value)


def nested(depth, kind):
    value = 1
    for _ in range(depth):
        value = {"a": value} if kind is dict else [value]
    return {"m": value}


@pytest.mark.parametrize("kind", [dict, list])
def test_nesting_as_deep_as_any_real_metadata_comes_back(store, kind):
    metadata = nested(20, kind)
    assert add_text(store, "x", metadata=metadata).metadata == metadata


@pytest.mark.parametrize("kind", [dict, list])
@pytest.mark.parametrize("depth", [122, 126, 130, 500, 5000])
def test_nesting_deeper_than_the_engine_reads_back_is_refused(depth, kind):
    """The engine writes it, and reads neither the point (from 126 levels) nor, after a kill, its log (122)."""
    with pytest.raises(InvalidDocumentError, match="nest"):
        Document(id="d", chunks=["x"], metadata=nested(depth, kind))
    with pytest.raises(InvalidDocumentError, match="nest"):
        Chunk(text="x", metadata=nested(depth, kind))


def test_whatever_nesting_is_accepted_is_found_again(store):
    for depth in range(30, 140, 8):
        try:
            document = Document(id="d", chunks=["x"], metadata=nested(depth, dict))
        except InvalidDocumentError:
            continue
        store.add([document])
        assert store.search("x", k=1)[0].metadata == document.metadata


def test_metadata_that_holds_itself_is_refused():
    metadata = {}
    metadata["me"] = metadata
    with pytest.raises(InvalidDocumentError):
        Document(id="d", chunks=["x"], metadata=metadata)


# --- arguments of search, get, delete ------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, -1, True, False, 2.0, "3", None, math.inf, np.int64(3)], ids=repr)
def test_k_must_be_a_positive_whole_number(store, k):
    with pytest.raises(InvalidInputError, match="k must be a whole number"):
        store.search("x", k=k)


@pytest.mark.parametrize("candidates", [0, -5, 4, True, 50.0, "50", math.nan], ids=repr)
def test_candidates_must_be_a_whole_number_of_at_least_k(store, candidates):
    with pytest.raises(InvalidInputError, match=r"candidates must be .*k = 5"):
        store.search("x", k=5, candidates=candidates)


@pytest.mark.parametrize("size", [10**6, 2**31, 2**40])
def test_huge_k_and_candidates_give_all_there_is(store, size):
    assert len(store.search("x", k=size)) == 1
    assert len(store.search("x", k=1, candidates=size)) == 1


@pytest.mark.parametrize("size", [2**62, 2**63, 2**64, 10**30])
def test_k_beyond_any_machine_is_an_argument_error(store, size):
    with pytest.raises(InvalidInputError):
        store.search("x", k=size)
    with pytest.raises(InvalidInputError):
        store.search("x", k=1, candidates=size)


@pytest.mark.parametrize("threshold", ["0.5", [0.5], 1j, math.nan, math.inf, True], ids=repr)
def test_a_threshold_must_be_a_number(store, threshold):
    with pytest.raises(InvalidInputError, match="score_threshold"):
        store.search("x", score_threshold=threshold)


@pytest.mark.parametrize(
    "query",
    [
        None,
        1,
        b"x",
        ["x"],
        [1] * 8,
        np.ones(8),
        np.ones(8, np.uint8),
        np.ones(7, np.int8),
        np.ones((1, 8), np.int8),
        np.int8(1),
        Document(id="d", text="x"),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_a_query_must_be_a_str_or_codes(store, query):
    with pytest.raises(InvalidInputError, match=r"a query must be a str or int8 codes of shape \(8,\)"):
        store.search(query)
    with pytest.raises(InvalidInputError, match="a query must be a str or int8 codes"):
        store.search_batch(["fine", query])


@pytest.mark.parametrize(
    "queries", ["x", np.ones((2, 8), np.int8), 3, None, {"x"}, (q for q in "x")], ids=lambda v: type(v).__name__
)
def test_queries_must_be_a_list(store, queries):
    with pytest.raises(InvalidInputError, match="queries must be a list"):
        store.search_batch(queries)


def test_a_zero_query_is_refused(store):
    with pytest.raises(InvalidInputError, match="all zero"):
        store.search(np.zeros(8, np.int8))


@pytest.mark.parametrize("ids", ["x", b"x", 3, [1], [None], [b"x"], ["x", 1]], ids=repr)
def test_ids_must_be_a_list_of_str(store, ids):
    for call in (
        lambda: store.get(ids),
        lambda: store.delete(ids=ids),
        lambda: store.delete(document_ids=ids),
    ):
        with pytest.raises(InvalidInputError, match="ids must be a"):
            call()
    with pytest.raises(InvalidInputError, match="ids must be a"):
        store.get(None)
    assert store.count() == 1


STRANGE_IDS = ["", "\0", "\ud800", "x" * 100_000, "{3f2504e0-4f89-11d3-9a0c-0305e82c3301}", "urn:uuid:", "0"]


@pytest.mark.parametrize("strange", STRANGE_IDS, ids=lambda value: ascii(value)[:16])
def test_ids_that_nothing_can_have_are_missing_or_refused(store, strange):
    for call in (
        lambda: store.get([strange]),
        lambda: store.delete(ids=[strange]),
        lambda: store.delete(document_ids=[strange]),
    ):
        try:
            assert not call()
        except InvalidInputError:
            assert strange in ("", "\ud800")
    assert store.count() == 1


BAD_FILTERS = [
    {"a": "\ud800"},
    {"\ud800": 1},
    {"a": ["x", "\ud800"]},
    {"a": 2**63},
    {"a": [2**63]},
    {"a": -(2**70)},
    {"a\\b": 1},
    {'a"b': 1},
    {"a": ...},
    {"a": []},
    {"a": math.nan},
    {1: 1},
    "a",
    ["a"],
]


@pytest.mark.parametrize("bad", BAD_FILTERS, ids=ascii)
def test_a_bad_filter_is_refused_by_every_method(store, bad):
    for call in (
        lambda: store.search("x", filter=bad),
        lambda: store.search_batch(["x"], filter=bad),
        lambda: store.count(bad),
        lambda: store.delete(filter=bad),
    ):
        with pytest.raises(UnsupportedFilterError):
            call()
    assert store.count() == 1


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(), max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(st.characters(), max_size=4), ANYTHING, max_size=3))
def test_any_dict_is_a_filter_or_an_error_of_ours(store, any_filter):
    try:
        store.count(any_filter)
        store.search("x", filter=any_filter)
    except UnsupportedFilterError:
        pass


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANYTHING, ANYTHING)
def test_any_metadata_is_stored_or_refused(store, value, chunk_value):
    try:
        document = Document(
            id="d", chunks=[Chunk(text="x", id="c", metadata={"c": chunk_value})], metadata={"v": value}
        )
    except InvalidDocumentError:
        return
    store.add([document])
    (chunk,) = store.get(["c"])
    assert chunk.metadata.keys() == {"c", "v"}
    assert (chunk.metadata["v"] is None) == (value is None)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANYTHING)
def test_any_argument_is_used_or_refused(store, anything):
    for call in (
        lambda: store.search(anything),
        lambda: store.search("x", k=anything),
        lambda: store.search("x", candidates=anything),
        lambda: store.search("x", score_threshold=anything),
        lambda: store.search_batch(anything),
        lambda: store.get(anything),
        lambda: store.add(anything),
        lambda: store.delete(ids=anything),
        lambda: store.delete(document_ids=anything),
    ):
        with contextlib.suppress(InvalidInputError):
            call()
    assert store.count() == 1
