"""The store over a server whose strict mode is enforced, by the double that the core's own tests have."""

import importlib.util

import numpy as np
import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters, VectorStoreQuery, VectorStoreQueryMode
from llama_index.vector_stores.pplx_vectorstore import PplxVectorStore

from pplx_vectorstore.errors import InvalidInputError, UnsupportedFilterError

CODES = np.random.default_rng(3).integers(-100, 100, (30, 64)).astype(float)
LANG = MetadataFilters(filters=[MetadataFilter(key="lang", value="en")])


@pytest.fixture
def enforced(tests_folder):
    spec = importlib.util.spec_from_file_location("strict_mode", tests_folder / "test_strict_mode.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.StrictMode


@pytest.fixture
def open_strict(server, enforced, hash_embedding):
    """A factory of stores on a strict server: ``open_strict({"max_query_limit": 40}, **options)``."""
    opened = []

    def make(limits, **options):
        server.strict_mode = {"enabled": True, **limits}
        opened.append(PplxVectorStore(hash_embedding, url=server.url, retries=0, **options))
        refusals = enforced(server).refusals
        return opened[-1], refusals

    yield make
    for store in opened:
        store.close()


def nodes(n=30):
    return [
        TextNode(id_=f"n{i}", text=f"common word{i}", metadata={"lang": "en"}, embedding=CODES[i].tolist())
        for i in range(n)
    ]


def ask(k=3, **options):
    return VectorStoreQuery(query_embedding=CODES[0].tolist(), query_str="common", similarity_top_k=k, **options)


def test_every_mode_keeps_to_the_limit_of_a_query(open_strict):
    store, refusals = open_strict({"max_query_limit": 40})
    store.add(nodes())
    for mode in (
        VectorStoreQueryMode.DEFAULT,
        VectorStoreQueryMode.HYBRID,
        VectorStoreQueryMode.TEXT_SEARCH,
        VectorStoreQueryMode.MMR,
    ):
        assert len(store.query(ask(mode=mode)).ids) == 3
    assert refusals == []
    with pytest.raises(InvalidInputError, match="candidates must be at most 40 on this server"):
        store.query(ask(mode=VectorStoreQueryMode.HYBRID, sparse_top_k=150))


async def test_ids_keep_to_the_size_of_a_condition(open_strict):
    store, refusals = open_strict({"condition_max_size": 8})
    store.add(nodes())
    ids = [f"n{i}" for i in range(20)]
    assert [node.node_id for node in store.get_nodes(ids, LANG)] == ids
    assert len(store.query(ask(node_ids=ids[:8], doc_ids=ids[:8])).ids) == 3
    for name in ("node_ids", "doc_ids"):
        with pytest.raises(
            InvalidInputError, match=rf"{name} of a query make a condition of 9 ids.* allows 8 .*max_size"
        ):
            store.query(ask(**{name: ids[:9]}))
    store.delete_nodes(ids[:10])
    await store.adelete_nodes(ids[10:], LANG)
    assert len(store.get_nodes()) == 10
    assert refusals == []


def matching(store, key, operator, value):
    filters = MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])
    return {node.node_id for node in store.get_nodes(filters=filters)}


def test_filters_ask_for_the_indexes_that_there_are(open_strict):
    store, refusals = open_strict(
        {"unindexed_filtering_retrieve": False, "unindexed_filtering_update": False},
        index_fields={"lang": "keyword", "year": "integer", "share": "float", "flag": "bool", "tags": "keyword"},
    )
    metadata = [
        {"lang": "en", "year": 0, "share": 0.5, "flag": True, "tags": ["new", "old"]},
        {"lang": "", "year": 1, "share": 1.0, "flag": False, "tags": []},
        {"year": 2, "flag": None},
    ]
    store.add(
        [TextNode(id_=str(i), text="t", metadata=one, embedding=CODES[i].tolist()) for i, one in enumerate(metadata)]
    )
    for key, operator, value, expected in (
        ("year", "==", 0, "0"),
        ("year", "==", 1, "1"),
        ("year", "!=", 1, "02"),
        ("year", "in", [1, 2], "12"),
        ("year", "nin", [0], "12"),
        ("year", "contains", 1, "1"),
        ("year", ">=", 1, "12"),
        ("year", "is_empty", None, ""),
        ("share", "==", 1, "1"),
        ("share", "is_empty", None, "2"),
        ("flag", "==", 1, "0"),
        ("flag", "==", 0, "1"),
        ("flag", "!=", 1, "12"),
        ("flag", "is_empty", None, "2"),
        ("lang", "is_empty", None, "12"),
        ("lang", "==", "en", "0"),
        ("tags", "any", ["new", "red"], "0"),
        ("tags", "all", ["new", "old"], "0"),
        ("tags", "is_empty", None, "12"),
    ):
        assert matching(store, key, operator, value) == set(expected), (key, operator, value)
    assert refusals == []
    store.delete_nodes(filters=MetadataFilters(filters=[MetadataFilter(key="year", value=1)]))
    assert len(store.get_nodes()) == 2
    # Of a text, Qdrant would look at the whole, and find nothing.
    for key in ("lang", "tags", "share"):
        with pytest.raises(UnsupportedFilterError, match=rf"'{key}': CONTAINS with 'e': .*use ANY .* TEXT_MATCH"):
            matching(store, key, "contains", "e")
    assert refusals == []
    for value in (0, 1):
        with pytest.raises(UnsupportedFilterError, match=r"'other': EQ with .*index_fields, as 'bool' .* as 'integer'"):
            matching(store, "other", "==", value)
    for operator, value in (("==", 2), ("is_empty", None)):
        with pytest.raises(UnsupportedFilterError, match="Name the field in index_fields"):
            matching(store, "other", operator, value)


def test_indexes_are_known_to_who_opens_the_collection_later(open_strict, server, hash_embedding):
    store, refusals = open_strict(
        {"unindexed_filtering_retrieve": False}, index_fields={"flag": "bool", "year": "integer"}
    )
    store.add([TextNode(id_="a", text="t", metadata={"flag": True, "year": 1}, embedding=CODES[0].tolist())])
    with PplxVectorStore(url=server.url, retries=0) as later:
        assert matching(later, "flag", "==", 1) == matching(later, "year", "==", 1) == {"a"}
    assert refusals == []
