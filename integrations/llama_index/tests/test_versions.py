"""Filters on servers that do not know parts of texts yet (before 1.20)."""

import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters, VectorStoreQuery
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from llama_index.vector_stores.pplx_vectorstore import PplxVectorStore
from qdrant_client import models

from pplx_vectorstore.errors import PplxVectorStoreError, UnsupportedServerError

OP = FilterOperator
TITLES = ["red fox", "Fox, red", "fred foxes", "foxed", ["red fox", "x"], ["Fox red"], [], None, 3, ""]


@pytest.fixture
def open_old(server, hash_embedding):
    """A factory of stores with a node of each title: ``open_old("1.18.3", **options)``."""
    opened = []

    def make(version, **options):
        server.version = version
        store = PplxVectorStore(hash_embedding, url=server.url, retries=0, **options)
        opened.append(store)
        store.add(
            TextNode(id_=str(i), text="t", metadata={"title": title}, embedding=[float(i + 1)] * 64)
            for i, title in enumerate(TITLES)
        )
        return store

    yield make
    for store in opened:
        store.close()
    assert server.unknown == []


def one(operator, value):
    return MetadataFilters(filters=[MetadataFilter(key="title", value=value, operator=operator)])


def found(store, operator, value):
    return {int(node.node_id) for node in store.get_nodes(filters=one(operator, value))}


PARTS = [
    *((OP.TEXT_MATCH, value) for value in ("red fox", "fox", "Fox", "ed f", "x")),
    *((OP.CONTAINS, value) for value in ("red fox", "ed f", "x")),
    (OP.ANY, ["red fox", "zebra", "oxe"]),
    (OP.ALL, ["red", "fox"]),
]


@pytest.mark.parametrize("version", ["1.16.3", "1.19.0", "1.20.0"])
def test_parts_of_texts_are_found_as_in_memory(open_old, version):
    store = open_old(version, index_fields={"other": "text"})
    for operator, value in PARTS:
        matches = build_metadata_filter_fn(lambda i: {"title": TITLES[int(i)]}, one(operator, value))
        expected = set()
        for i in range(len(TITLES)):
            try:
                if matches(str(i)):
                    expected.add(i)
            except TypeError:  # in memory, these cannot be compared
                continue
        assert found(store, operator, value) == expected, (operator, value)
        assert len(store.query(VectorStoreQuery([1.0] * 64, 20, filters=one(operator, value))).ids) == len(expected)


def test_where_words_are_indexed_text_match_finds_words_and_all_else_is_refused(open_old):
    store = open_old("1.19.0", index_fields={"title": "text"})
    for value, expected in (("red fox", {0, 1}), ("fox", {0, 1}), ("FOX RED", {0, 1}), ("ed f", set())):
        assert found(store, OP.TEXT_MATCH, value) == expected
    for operator, value in ((OP.CONTAINS, "fox"), (OP.ANY, ["fox"]), (OP.ALL, ["fox"]), (OP.TEXT_MATCH, ", ")):
        with pytest.raises(
            UnsupportedServerError,
            match=rf"filter on 'title': {operator.name} with .*, on a field whose words are indexed, needs Qdrant "
            r"1\.20 or newer, .*is 1\.19\.0\. Upgrade it, or look for whole words by TEXT_MATCH, or .* by IN",
        ):
            store.get_nodes(filters=one(operator, value))
    assert found(store, OP.CONTAINS, 3) == found(store, OP.ANY, [3]) == set()


@pytest.mark.parametrize("operator", [OP.TEXT_MATCH, OP.CONTAINS])
def test_in_strict_mode_too(open_old, server, operator):
    server.strict_mode = {"enabled": True, "unindexed_filtering_retrieve": False}
    words = open_old("1.19.0", index_fields={"title": "text"}, collection="words")
    if operator == OP.TEXT_MATCH:
        assert found(words, operator, "fox red") == {0, 1, 4, 5}, "as every condition there, of elements too"
    else:
        with pytest.raises(PplxVectorStoreError, match="use ANY for an element"):
            found(words, operator, "fox red")
    other = open_old("1.19.0", index_fields={"title": "keyword"}, collection="other")
    if operator == OP.TEXT_MATCH:
        with pytest.raises(
            UnsupportedServerError,
            match=r"TEXT_MATCH with 'fox' in strict mode needs Qdrant 1\.20 .*give the field an index of type 'text'",
        ):
            found(other, operator, "fox")


def test_a_filter_of_qdrants_that_the_server_is_too_old_for_is_refused_before_it_is_sent(open_old):
    store = open_old("1.18.3")
    begins = models.FieldCondition(key="metadata.title", match=models.MatchPrefix(prefix="r"))
    with pytest.raises(UnsupportedServerError, match=r"MatchPrefix needs Qdrant 1\.19 or newer"):
        store.query(VectorStoreQuery([1.0] * 64, 1), filter=models.Filter(must_not=[begins]))
