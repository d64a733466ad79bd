import asyncio
import dataclasses
import math
import pickle
import random

import numpy as np
import pytest
from llama_index.core import MockEmbedding
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.vector_stores.pplx_vectorstore import PplxVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from pplx_vectorstore import cosine_similarity, quantize_to_norm
from pplx_vectorstore.errors import (
    EncodingError,
    InvalidInputError,
    SchemaMismatchError,
    StoreClosedError,
    StoreNotFoundError,
)

Mode = VectorStoreQueryMode
CODES = quantize_to_norm(np.random.default_rng(7).uniform(-1, 1, (30, 64)))


@pytest.fixture
def nodes():
    """30 nodes of 10 documents; node i has the words "common" and "word<i>"."""
    return [
        TextNode(
            id_=f"n{i}",
            text=f"common word{i}",
            metadata={"i": i, "even": "yes" if i % 2 == 0 else "no"},
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"d{i // 3}")},
            embedding=CODES[i].astype(float).tolist(),
        )
        for i in range(30)
    ]


@pytest.fixture
def filled(open_store, nodes):
    store = open_store()
    store.add(nodes)
    return store


def only(key, value, operator="=="):
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


def ask(vector=None, k=5, **options):
    embedding = None if vector is None else vector.astype(float).tolist()
    return VectorStoreQuery(query_embedding=embedding, similarity_top_k=k, **options)


QUERY = np.rint(0.6 * CODES[3] + 0.4 * CODES[20]).astype(np.int8)


# --- searching -----------------------------------------------------------------------------------------------


async def test_a_query_finds_by_cosine(filled, nodes):
    own = SimpleVectorStore()
    own.add(nodes)
    for query in (
        ask(QUERY, 7),
        ask(QUERY, 7, filters=only("even", "yes")),
        ask(QUERY, 100),
        ask(QUERY, 4, node_ids=["n1", "n2", "n9"]),
    ):
        found, expected = filled.query(query), own.query(query)
        assert found.ids == expected.ids
        np.testing.assert_allclose(found.similarities, expected.similarities, atol=1e-6)
        assert [node.node_id for node in found.nodes] == found.ids
        awaited = await filled.aquery(query)
        assert (awaited.ids, awaited.nodes) == (found.ids, found.nodes)
    await filled.adisconnect()


def test_a_query_keeps_to_documents_nodes_and_filters(filled):
    assert set(filled.query(ask(QUERY, 30, doc_ids=["d1", "d2"])).ids) == {f"n{i}" for i in range(3, 9)}
    both = ask(QUERY, 30, doc_ids=["d1"], filters=only("i", 4, ">="), node_ids=["n3", "n4", "n9"])
    assert filled.query(both).ids == ["n4"]
    assert filled.query(ask(QUERY, 30, doc_ids=[])).ids == []
    assert len(filled.query(ask(QUERY, 30, node_ids=[])).ids) == 30, "as_retriever() gives it for all nodes"
    assert filled.query(ask(QUERY, 30), filter={"i": {"$lt": 2}}).ids in (["n0", "n1"], ["n1", "n0"])
    raw = models.Filter(must=[models.FieldCondition(key="metadata.i", match=models.MatchValue(value=5))])
    assert filled.query(ask(QUERY, 30, filters=only("even", "no")), filter=raw).ids == ["n5"]
    for key in ("ref_doc_id", "doc_id", "document_id"):
        assert set(filled.query(ask(QUERY, 30, filters=only(key, "d9"))).ids) == {"n27", "n28", "n29"}


async def test_words_alone(filled):
    for mode in (Mode.TEXT_SEARCH, Mode.SPARSE):
        query = ask(None, 5, query_str="word17", mode=mode)
        for found in (filled.query(query), await filled.aquery(query)):
            assert found.ids == ["n17"]
            assert found.similarities[0] > 0
    assert len(filled.query(ask(None, 5, query_str="common", mode=Mode.SPARSE, sparse_top_k=9)).ids) == 9
    assert filled.query(ask(None, 5, query_str="word17", mode=Mode.SPARSE, filters=only("even", "yes"))).ids == []
    await filled.adisconnect()


async def test_hybrid(filled):
    best = [f"n{i}" for i in np.argsort(-cosine_similarity(QUERY, CODES))]
    words = best[-1]
    query = ask(QUERY, 30, query_str=f"word{words[1:]}", mode=Mode.HYBRID)
    found = filled.query(query)
    assert set(found.ids[:2]) == {words, best[0]}
    assert (await filled.aquery(query)).ids[:2] in (found.ids[:2], found.ids[:2][::-1])
    assert len(filled.query(ask(QUERY, 30, query_str="common", mode=Mode.HYBRID, hybrid_top_k=4)).ids) == 4
    only_vectors = ask(QUERY, 30, query_str=f"word{words[1:]}", mode=Mode.HYBRID, alpha=1.0)
    assert filled.query(only_vectors).ids == best
    only_words = ask(None, 30, query_str=f"word{words[1:]}", mode=Mode.HYBRID, alpha=0.0)
    assert filled.query(only_words).ids == [words]
    assert filled.query(ask(QUERY, 30, query_str=f"word{words[1:]}", mode=Mode.HYBRID, alpha=0.1)).ids[0] == words
    assert filled.query(ask(QUERY, 30, query_str=f"word{words[1:]}", mode=Mode.HYBRID, alpha=0.9)).ids[0] == best[0]
    named = ask(QUERY, 30, query_str=f"word{words[1:]}", mode="hybrid")
    assert set(filled.query(named).ids[:2]) == {words, best[0]}
    await filled.adisconnect()


def marginal(query, codes, threshold, k):
    """Carbonell and Goldstein's choice, written out."""
    relevance, likeness = cosine_similarity(query, codes), cosine_similarity(codes, codes)
    chosen = []
    while len(chosen) < k:
        left = [i for i in range(len(codes)) if i not in chosen]
        novelty = {i: max((likeness[i, j] for j in chosen), default=0.0) for i in left}
        chosen.append(max(left, key=lambda i: threshold * relevance[i] - (1 - threshold) * novelty[i]))
    return chosen


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9, 1.0])
def test_mmr(filled, threshold):
    expected = [f"n{i}" for i in marginal(QUERY, CODES, threshold, 6)]
    assert filled.query(ask(QUERY, 6, mode=Mode.MMR, mmr_threshold=threshold)).ids == expected
    assert filled.query(ask(QUERY, 6, mode=Mode.MMR), mmr_threshold=threshold).ids == expected
    if threshold == 0.5:
        assert filled.query(ask(QUERY, 6, mode=Mode.MMR)).ids == expected, "the default"


def test_options_of_the_core(filled):
    grouped = filled.query(ask(QUERY, 4), group_by_document=True)
    assert len({node.ref_doc_id for node in grouped.nodes}) == 4
    assert all(score >= 0.1 for score in filled.query(ask(QUERY, 30), score_threshold=0.1).similarities)
    (node,) = filled.query(ask(CODES[4], 1), context=1, candidates=50).nodes
    assert (node.node_id, node.text) == ("n4", "common word3\n\ncommon word4\n\ncommon word5")
    (node,) = filled.query(ask(CODES[4], 1), with_embeddings=True).nodes
    assert node.embedding == CODES[4].tolist()
    with pytest.raises(TypeError, match="unexpected keyword argument 'top_k'"):
        filled.query(ask(QUERY), top_k=3)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (ask(QUERY, mode=Mode.SVM), "mode SVM is not one of this store's: DEFAULT, HYBRID, TEXT_SEARCH, SPARSE"),
        (ask(QUERY, mode=Mode.SEMANTIC_HYBRID), "mode SEMANTIC_HYBRID"),
        (ask(QUERY, mode="svm"), "mode SVM is not one of this store's"),
        (ask(QUERY, mode="bm25"), "mode 'bm25' is not one of this store's: DEFAULT"),
        (ask(None, mode="hybrid", query_str="w"), "mode HYBRID needs a query_embedding"),
        (ask(QUERY, mode="hybrid"), "mode HYBRID needs a query_str"),
        (ask(None), "mode DEFAULT needs a query_embedding"),
        (ask(QUERY, mode=Mode.HYBRID), "mode HYBRID needs a query_str"),
        (ask(None, query_str="w", mode=Mode.HYBRID), "mode HYBRID needs a query_embedding"),
        (ask(QUERY, mode=Mode.SPARSE), "mode SPARSE needs a query_str"),
        (ask(QUERY[:5]), r"int8 codes of shape \(64,\)"),
        (ask(QUERY, 0), "k must be a whole number of at least 1"),
        (ask(QUERY, mode=Mode.MMR, mmr_threshold=2.0), "mmr_threshold must be a number from 0 to 1"),
        (ask(QUERY, query_str="w", mode=Mode.HYBRID, alpha=-1.0), "alpha must be a number from 0 to 1"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(filled, query, said):
    with pytest.raises(InvalidInputError, match=said):
        filled.query(query)


def test_a_query_of_nan_is_refused_in_its_own_words(filled):
    for value in (math.nan, math.inf):
        with pytest.raises(EncodingError, match=r"^the query_embedding holds NaN or infinity.*bfloat16"):
            filled.query(VectorStoreQuery(query_embedding=[value] * 64))


# --- writing and deleting --------------------------------------------------------------------------------------


def test_nodes_of_a_document_may_come_in_pieces(open_store, nodes):
    store = open_store()
    for node in nodes[:3]:
        assert store.add([node]) == [node.node_id]
    changed = nodes[1].model_copy(update={"text": "changed"})
    store.add([changed])
    assert {node.text for node in store.get_nodes()} == {"common word0", "changed", "common word2"}
    assert store.add([]) == []
    with pytest.raises(InvalidInputError, match="nodes must be a list of nodes"):
        store.add(["text"])
    with pytest.raises(TypeError, match="unknown options: batch"):
        store.add(nodes, batch=3)


async def test_deleting(filled, nodes):
    def left():
        return {int(node.node_id[1:]) for node in filled.get_nodes()}

    filled.delete("d0")
    assert left() == set(range(3, 30))
    await filled.adelete("d1")
    filled.delete("no-such-document")
    assert left() == set(range(6, 30))
    filled.delete_nodes(["n6", "no-such-node"])
    await filled.adelete_nodes(["n7"])
    assert left() == set(range(8, 30))
    filled.delete_nodes(filters=only("i", 10, "<"))
    await filled.adelete_nodes(["n10", "n11", "n12"], only("even", "yes"))
    assert left() == {11, *range(13, 30)}
    filled.delete_nodes([])
    for nothing in ({}, {"filters": MetadataFilters(filters=[])}):
        with pytest.raises(InvalidInputError, match=r"needs node_ids or filters; .*clear\(\)"):
            filled.delete_nodes(**nothing)
        with pytest.raises(InvalidInputError, match="needs node_ids or filters"):
            await filled.adelete_nodes(**nothing)
    everything = MetadataFilters(filters=[MetadataFilters(filters=[])], condition=FilterCondition.OR)
    with pytest.raises(InvalidInputError, match="every chunk"):
        filled.delete_nodes(filters=everything)
    assert left() == {11, *range(13, 30)}
    filled.clear()
    assert left() == set()
    await filled.async_add(nodes)
    assert len(left()) == 30
    await filled.aclear()
    assert left() == set()
    await filled.adisconnect()


async def test_reading(filled, nodes):
    ids = [node.node_id for node in nodes]
    random.Random(2).shuffle(ids)
    assert [node.node_id for node in filled.get_nodes(ids)] == ids
    assert [node.node_id for node in await filled.aget_nodes(ids[:3])] == ids[:3]
    some = filled.get_nodes([*ids[:10], "missing"], only("even", "yes"))
    assert [node.node_id for node in some] == [id_ for id_ in ids[:10] if int(id_[1:]) % 2 == 0]
    assert filled.get_nodes([]) == []
    assert {node.node_id for node in filled.get_nodes(filters=only("i", [3, 4], "in"))} == {"n3", "n4"}


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ("ab", "must be a list of str, not str"),
        (7, "must be a list of str, not int"),
        ([7], "must be a list of str of valid Unicode; it holds 7"),
        (["a\ud800"], "must be a list of str of valid Unicode"),
    ],
)
async def test_ids_must_be_a_list_of_str(open_store, ids, said):
    store = open_store()
    store.add([TextNode(id_=id_, text=id_, metadata={"even": "yes"}, embedding=CODES[0].tolist()) for id_ in "abc"])
    for call in (
        lambda: store.delete_nodes(ids),
        lambda: store.delete_nodes(ids, only("even", "yes")),
        lambda: store.get_nodes(ids),
        lambda: store.get_nodes(ids, only("even", "yes")),
        lambda: store.query(ask(QUERY, node_ids=ids)),
    ):
        with pytest.raises(InvalidInputError, match=f"^node_ids {said}"):
            call()
    with pytest.raises(InvalidInputError, match=f"^node_ids {said}"):
        await store.adelete_nodes(ids)
    with pytest.raises(InvalidInputError, match=f"^doc_ids {said}"):
        store.query(ask(QUERY, doc_ids=ids))
    assert len(store.get_nodes()) == 3


async def test_ids_and_nodes_may_be_generated(open_store, nodes):
    store = open_store()
    assert store.add(node for node in nodes[:2]) == ["n0", "n1"]
    assert await store.async_add(node for node in nodes[2:4]) == ["n2", "n3"]
    assert [node.node_id for node in store.get_nodes((id_ for id_ in ("n3", "n1")), only("even", "no"))] == ["n3", "n1"]
    store.delete_nodes(id_ for id_ in ("n0", "n3"))
    assert {node.node_id for node in store.get_nodes()} == {"n1", "n2"}


def test_a_tenant_sees_and_clears_its_own(place, hash_embedding, nodes):
    where = place()
    if "folder" in where:
        where = {"client": QdrantClient(":memory:")}
    with (
        PplxVectorStore(hash_embedding, tenant="a", **where) as one,
        PplxVectorStore(hash_embedding, tenant="b", **where) as other,
    ):
        one.add(nodes[:4])
        other.add(nodes[2:9])
        assert {node.node_id for node in one.get_nodes()} == {"n0", "n1", "n2", "n3"}
        one.delete_nodes(["n2", "n8"])
        one.clear()
        assert one.get_nodes() == []
        assert len(other.get_nodes()) == 7


# --- opening and closing ---------------------------------------------------------------------------------------


def test_a_collection_tells_models_apart(folder, hash_embedding, nodes):
    with PplxVectorStore(hash_embedding, folder=folder) as store:
        store.add(nodes)
    with pytest.raises(SchemaMismatchError, match="MockEmbedding"):
        PplxVectorStore(MockEmbedding(embed_dim=64), folder=folder)
    with PplxVectorStore(folder=folder) as store:  # without a model
        assert store.query(ask(QUERY, 3)).ids
        store.add([nodes[0].model_copy(update={"id_": "new"})])
    with pytest.raises(StoreNotFoundError, match=r"^there is no collection 'other'; to create it, give embed_model$"):
        PplxVectorStore(folder=folder, collection="other")
    with pytest.raises(StoreNotFoundError):
        PplxVectorStore(hash_embedding, folder=folder, collection="other", create=False)


def test_a_store_needs_one_place(folder, hash_embedding, hash_encoder):
    with pytest.raises(InvalidInputError, match="exactly one of folder, url and client; none came"):
        PplxVectorStore(hash_embedding)
    with pytest.raises(InvalidInputError, match="folder and url came"):
        PplxVectorStore(hash_embedding, folder=folder, url="http://localhost:1")
    with pytest.raises(InvalidInputError, match="api_key is an option of a store with url="):
        PplxVectorStore(hash_embedding, folder=folder, api_key="key")
    with pytest.raises(InvalidInputError, match=r"not HashEncoder; .*PplxEmbedding\.from_encoder"):
        PplxVectorStore(hash_encoder(8), folder=folder)
    # As another store's constructor would take them.
    with pytest.raises(
        InvalidInputError, match=r"^embed_model must .* not the str 'docs'; .* as collection='docs', a "
    ):
        PplxVectorStore("docs", folder=folder)
    with pytest.raises(InvalidInputError, match=r"not QdrantClient; .* a client is given as client=$"):
        PplxVectorStore(QdrantClient(":memory:"))
    with pytest.raises(InvalidInputError, match="grpc_port is an option of a store with url="):
        PplxVectorStore(hash_embedding, folder=folder, grpc_port=6334)


def test_grpc_is_on_the_port_that_is_named(hash_embedding, grpc_server):
    with PplxVectorStore(hash_embedding, url=grpc_server.url, grpc_port=grpc_server.port) as store:
        store.add([TextNode(id_="n", text="text", embedding=[1.0] * 64)])
        assert store.query(VectorStoreQuery([1.0] * 64, 1)).ids == ["n"]
    assert "QueryBatch" in grpc_server.calls
    assert grpc_server.rest.requests == []


def test_a_client_must_block(hash_embedding):
    for client in (AsyncQdrantClient(":memory:"), "http://localhost:6333"):
        said = rf"^client must be a QdrantClient, not {type(client).__name__}; coroutines await .* where url= is given$"
        with pytest.raises(InvalidInputError, match=said):
            PplxVectorStore(hash_embedding, client=client)


# --- what is asked for blankly ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Mode.DEFAULT, Mode.MMR, Mode.HYBRID, Mode.TEXT_SEARCH, Mode.SPARSE])
@pytest.mark.parametrize("vector", [None, [0.0] * 64])
async def test_a_blank_question_is_answered_by_what_else_was_given(filled, mode, vector):
    def blank(**options):
        return VectorStoreQuery(query_str=" ", query_embedding=vector, mode=mode, similarity_top_k=4, **options)

    for options, kwargs, expected in (
        ({"filters": only("i", 7, ">=")}, {}, [7, 8, 9, 10]),
        ({}, {"filter": {"i": {"$gte": 7}}}, [7, 8, 9, 10]),
        ({"node_ids": ["n20", "n3"]}, {}, [3, 20]),
        ({"doc_ids": ["d9", "d2"], "filters": only("even", "yes")}, {}, [6, 8, 28]),
        ({"doc_ids": []}, {}, []),
        ({"filters": only("i", 7, ">=")}, {"group_by_document": True}, [7, 9, 12, 15]),
    ):
        found = filled.query(blank(**options), **kwargs)
        assert found == await filled.aquery(blank(**options), **kwargs)
        assert found.ids == [f"n{i}" for i in expected]
        assert found.similarities == [0.0] * len(expected)
    for nothing in (blank(), blank(filters=MetadataFilters(filters=[]))):
        with pytest.raises(InvalidInputError, match="must not be blank"):
            filled.query(nothing)
    k = {"hybrid_top_k": 2, "sparse_top_k": 2} if mode not in (Mode.DEFAULT, Mode.MMR) else {}
    assert len(filled.query(blank(filters=only("even", "yes"), **k)).ids) == (2 if k else 4)


def test_a_vector_without_words_is_searched_for(filled):
    query = ask(QUERY, 3, filters=only("even", "yes"))
    expected = filled.query(query).ids
    for mode, options in ((Mode.DEFAULT, {}), (Mode.HYBRID, {"alpha": 1})):
        assert filled.query(dataclasses.replace(query, query_str="", mode=mode, **options)).ids == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"similarity_top_k": 0}, "similarity_top_k must be a whole number of at least 1, not 0"),
        ({"hybrid_top_k": -1, "mode": Mode.HYBRID, "query_str": "common"}, "hybrid_top_k must be"),
        ({"sparse_top_k": 1.5, "mode": Mode.SPARSE, "query_str": "common"}, "sparse_top_k must be"),
    ],
)
def test_numbers_are_named_as_they_were_given(filled, options, said):
    with pytest.raises(InvalidInputError, match=f"^{said}"):
        filled.query(VectorStoreQuery(query_embedding=[1.0] * 64, **options))
    with pytest.raises(InvalidInputError, match=r"^with_embeddings must be True or False, not 'yes'$"):
        filled.query(ask(QUERY), with_embeddings="yes")


def test_filters_of_qdrant_know_nodes_by_their_ids(filled):
    own = models.Filter(must_not=[models.HasIdCondition(has_id=["n3", "n20"])])
    found = filled.query(ask(QUERY, 40), filter=own).ids
    assert set(found) == {f"n{i}" for i in range(30)} - {"n3", "n20"}
    bare = models.Filter(must=[models.FieldCondition(key="even", match=models.MatchValue(value="yes"))])
    with pytest.warns(UserWarning, match=r"no chunk has the field 'even' .*use 'metadata\.even'"):
        filled.query(ask(QUERY), filter=bare)


async def test_a_closed_store_says_so(open_store, nodes):
    store = open_store()
    await store.aclose()
    for call in (lambda: store.add(nodes), lambda: store.query(ask(QUERY)), lambda: store.delete("d")):
        with pytest.raises(StoreClosedError):
            call()
    for work in (store.async_add(nodes), store.aquery(ask(QUERY)), store.adelete("d"), store.aclear()):
        with pytest.raises(StoreClosedError):
            await work


async def test_a_store_is_opened_beside_the_event_loop(folder, hash_embedding, nodes):
    async with await PplxVectorStore.aopen(hash_embedding, folder=folder) as store:
        await store.async_add(nodes)
        results = await asyncio.gather(*(store.aquery(ask(CODES[i], 1)) for i in range(30)))
        assert [result.ids for result in results] == [[f"n{i}"] for i in range(30)]
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(store)
