"""The store on each engine: embedded, :memory: and over HTTP."""

import asyncio
import copy
import inspect
import random
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from langchain_pplx_vectorstore import PplxEmbeddings, PplxVectorStore
from langchain_pplx_vectorstore.options import SearchOptions, StoreOptions
from langchain_text_splitters import MarkdownHeaderTextSplitter, RecursiveCharacterTextSplitter
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from pplx_vectorstore import VectorStore, cosine_similarity, quantize_to_norm
from pplx_vectorstore.errors import (
    DuplicateDocumentError,
    EncodingError,
    InvalidDocumentError,
    InvalidInputError,
    PplxVectorStoreError,
    SchemaMismatchError,
    StoreClosedError,
    StoreNotFoundError,
    UnsupportedFilterError,
    UnsupportedServerError,
)

BERLIN = """# Berlin

Berlin is the capital of Germany.

## People

It has 3.9 million inhabitants. They speak German, and many speak Turkish or English too.

## Rivers

The Spree flows through it, and meets the Havel in the west.
"""
PARIS = BERLIN.replace("Berlin", "Paris").replace("Germany", "France").replace("3.9", "2.1")


def chunks(*texts, source="a", **metadata):
    return [
        Document(page_content=text, metadata={"source": source, "start_index": 10 * place, **metadata})
        for place, text in enumerate(texts)
    ]


def codes_of(store, ids):
    return np.stack([chunk.codes for chunk in store.store.get(ids, with_codes=True)])


def grouped_codes(encoder, *documents):
    return np.concatenate(encoder.encode_documents([[chunk.page_content for chunk in one] for one in documents]))


# --- grouping ----------------------------------------------------------------------------------------


def test_chunks_get_the_codes_of_their_document(open_store, hash_encoder):
    store = open_store()
    one, two = chunks("a", "b", "c"), chunks("a", "b", "x", source="other")
    mixed = random.Random(3).sample([*one, *two], 6)
    ids = dict(zip(map(id, mixed), store.add_documents(mixed), strict=True))
    np.testing.assert_array_equal(
        codes_of(store, [ids[id(document)] for document in [*one, *two]]), grouped_codes(hash_encoder(64), one, two)
    )
    assert [hit.document_id for hit in store.store.search("a", k=6, group_by_document=2)].count("other") == 2


@pytest.mark.parametrize("coroutine", [False, True])
async def test_a_splitters_chunks_get_the_codes_of_their_document(open_store, minilm, minilm_embeddings, coroutine):
    splitter = RecursiveCharacterTextSplitter(chunk_size=90, chunk_overlap=20, add_start_index=True)
    berlin, paris = (
        splitter.create_documents([text], metadatas=[{"source": name}])
        for text, name in ((BERLIN, "berlin.md"), (PARIS, "paris.md"))
    )
    mixed = random.Random(5).sample([*berlin, *paris], len(berlin) + len(paris))
    store = open_store(minilm_embeddings)
    added = await store.aadd_documents(mixed) if coroutine else store.add_documents(mixed)
    ids = dict(zip(map(id, mixed), added, strict=True))
    np.testing.assert_array_equal(
        codes_of(store, [ids[id(document)] for document in [*berlin, *paris]]), grouped_codes(minilm, berlin, paris)
    )
    alone = minilm.encode_documents([[document.page_content] for document in berlin])
    assert (codes_of(store, [ids[id(document)] for document in berlin]) != np.concatenate(alone)).any()


def test_a_header_splitters_chunks_get_the_codes_of_their_document(open_store, minilm, minilm_embeddings):
    splitter = MarkdownHeaderTextSplitter([("#", "title"), ("##", "section")])
    documents = splitter.split_text(BERLIN)
    assert len(documents) == 3
    for group_by in (lambda document: document.metadata["title"], "title"):
        store = open_store(minilm_embeddings, group_by=group_by)
        np.testing.assert_array_equal(codes_of(store, store.add_documents(documents)), grouped_codes(minilm, documents))
    for document in documents:
        document.metadata["source"] = "berlin.md"
    store = open_store(minilm_embeddings)
    np.testing.assert_array_equal(codes_of(store, store.add_documents(documents)), grouped_codes(minilm, documents))


def test_a_chunk_that_names_nothing_is_found_by_what_its_document_is_about(open_store, minilm_embeddings):
    splitter = MarkdownHeaderTextSplitter([("#", "title"), ("##", "section")])
    documents = [*splitter.split_text(BERLIN), *splitter.split_text(PARIS)]
    store = open_store(minilm_embeddings, group_by="title")
    store.add_documents(documents)
    (found,) = store.similarity_search("How many people live in Paris?", k=1, filter={"section": "People"})
    assert found.metadata == {"title": "Paris", "section": "People"}


def test_texts_stand_alone_where_nothing_names_their_document(open_store, hash_encoder):
    store = open_store()
    ids = store.add_texts(["a", "b"])
    np.testing.assert_array_equal(
        codes_of(store, ids), np.concatenate(hash_encoder(64).encode_documents([["a"], ["b"]]))
    )
    other = open_store(group_by=None)
    ids = other.add_documents(chunks("a", "b"))
    np.testing.assert_array_equal(
        codes_of(other, ids), np.concatenate(hash_encoder(64).encode_documents([["a"], ["b"]]))
    )


def test_what_comes_in_another_call_adds_to_a_document(open_store):
    store = open_store()
    store.add_documents(chunks("a", "b"))
    store.add_documents([Document(page_content="c", metadata={"source": "a"})])
    assert store.store.count() == 3
    assert sorted((chunk.text, chunk.chunk_index) for chunk in store.store.search("x")) == [
        ("a", 0),
        ("b", 1),
        ("c", 2),
    ]


# --- writing -----------------------------------------------------------------------------------------


async def test_adding_again_changes_nothing(open_store):
    store = open_store()
    documents = [*chunks("a", "b"), Document(page_content="alone"), Document(page_content="alone")]
    ids = store.add_documents(documents)
    assert await store.aadd_documents(documents) == ids
    assert store.add_documents(store.get_by_ids(ids)) == ids
    assert store.store.count() == len(set(ids)) == 4


def test_texts_metadatas_and_ids_must_agree(open_store):
    store = open_store()
    with pytest.raises(InvalidInputError, match="1 metadatas came for 2 texts"):
        store.add_texts(["a", "b"], [{}])
    with pytest.raises(InvalidInputError, match="1 ids came for 2 documents"):
        store.add_texts(["a", "b"], ids=["1"])
    with pytest.raises(InvalidInputError, match="not one str"):
        store.add_texts("ab")
    with pytest.raises(DuplicateDocumentError, match="'1' comes twice"):
        store.add_texts(["a", "b"], ids=["1", "1"])
    with pytest.raises(TypeError, match="unknown options: metadata"):
        store.add_texts(["a"], metadata=[{}])
    assert store.store.count() == 0
    assert len(store.add_texts((text for text in "abc"), ids=["1", "2", "3"])) == 3
    assert store.add_texts([]) == []


# Qdrant reads the JSON of floats of more digits, or far from 1, so that the last bit may differ.
NUMBERS = st.integers(-(10**9), 10**9).map(lambda number: number / 1000)
METADATA = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | NUMBERS | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def test_metadata_and_text_come_back_as_they_went_in(open_store):
    store = open_store()

    @settings(max_examples=60)
    @given(METADATA, st.text(min_size=1).filter(str.strip))
    def check(metadata, text):
        metadata.pop("source", None)
        document = Document(id="own id", page_content=text, metadata=metadata)
        before = copy.deepcopy(document)
        assert store.add_documents([document]) == ["own id"]
        assert document == before
        assert store.get_by_ids(["own id"]) == [before]
        assert store.similarity_search(text, k=1) == [before]

    check()


@pytest.mark.parametrize(
    ("value", "message"),
    [({1, 2}, "is of type set"), (b"x", "is of type bytes"), ((1,), "tuples as lists"), ("\ud800", "lone surrogate")],
)
def test_metadata_that_would_not_come_back_are_refused(open_store, value, message):
    store = open_store()
    with pytest.raises(InvalidDocumentError, match=message):
        store.add_documents([Document(page_content="x", metadata={"key": value})])
    assert store.store.count() == 0


def test_what_comes_back_is_the_callers_own(open_store):
    store = open_store()
    store.add_texts(["x"], [{"tags": ["a"]}], ids=["1"])
    for found in (store.similarity_search("x", k=1), store.get_by_ids(["1"])):
        found[0].metadata["tags"].append("b")
    assert store.get_by_ids(["1"])[0].metadata == {"tags": ["a"]}


async def test_deleting(open_store):
    store = open_store()
    store.add_documents([*chunks("a", "b", lang="en"), *chunks("c", source="other", lang="de")], ids=["1", "2", "3"])
    store.add_texts(["d"], ids=["4"])
    for nothing in ({}, {"ids": ["1"], "document_ids": ["a"]}, {"filter": {}}):
        with pytest.raises(InvalidInputError):
            store.delete(**nothing)
        with pytest.raises(InvalidInputError):
            await store.adelete(**nothing)
    with pytest.raises(TypeError, match="unknown options: where"):
        store.delete(where={"lang": "en"})
    assert store.store.count() == 4
    assert store.delete([]) is True
    assert store.delete(["4", "not there"]) is True
    assert await store.adelete(filter={"lang": "de"}) is True
    assert {document.id for document in store.get_by_ids(["1", "2", "3", "4"])} == {"1", "2"}
    assert store.delete(document_ids=["a"]) is True
    assert store.store.count() == 0


@pytest.mark.parametrize("coroutine", [False, True])
async def test_syncing_embeds_a_changed_document_whole(open_store, hash_encoder, coroutine):
    async def sync(documents, **options):
        return await store.async_sync(documents, **options) if coroutine else store.sync(documents, **options)

    store = open_store()
    await sync([*chunks("a", "b", "c"), *chunks("x", source="other")])
    report = await sync([*chunks("a", "changed", "c"), *chunks("x", source="other")])
    assert (report.documents, report.unchanged_documents) == (1, 1)
    document = chunks("a", "changed", "c")
    ids = store.add_documents(document)  # the same ids are made
    assert store.store.count() == 4
    np.testing.assert_array_equal(codes_of(store, ids), grouped_codes(hash_encoder(64), document))
    report = await sync(chunks("x", source="other"), delete_missing=True)
    assert (report.unchanged_documents, report.deleted_documents) == (1, 1)
    assert store.store.count() == 1


async def test_langchains_indexing_works_and_sync_repairs_its_context(open_store, hash_encoder):
    store = open_store()
    manager = InMemoryRecordManager("test")
    manager.create_schema()
    options = {"cleanup": "incremental", "source_id_key": "source", "key_encoder": "sha256"}
    first, second = chunks("a", "b", "c"), chunks("a", "changed", "c")
    counts = index(first, manager, store, **options)
    assert (counts["num_added"], counts["num_deleted"]) == (3, 0)
    np.testing.assert_array_equal(
        sorted(chunk.codes.tolist() for chunk in store.store.search("x", with_codes=True)),
        sorted(grouped_codes(hash_encoder(64), first).tolist()),
    )
    counts = await aindex(second, manager, store, **options)
    assert (counts["num_added"], counts["num_skipped"], counts["num_deleted"]) == (1, 2, 1)
    stored = {chunk.text: chunk.codes for chunk in store.store.search("x", with_codes=True)}
    assert stored.keys() == {"a", "changed", "c"}
    old_context = grouped_codes(hash_encoder(64), first)
    np.testing.assert_array_equal([stored["a"], stored["c"]], old_context[[0, 2]])
    store.sync(second)
    assert [(one.chunks, one.chunk_count) for one in store.store.documents()] == [(3, 3)]
    stored = {chunk.text: chunk.codes for chunk in store.store.search("x", with_codes=True)}
    np.testing.assert_array_equal(
        [stored["a"], stored["changed"], stored["c"]], grouped_codes(hash_encoder(64), second)
    )


# --- searching ---------------------------------------------------------------------------------------


@pytest.fixture
def filled(open_store):
    store = open_store()
    texts = [f"common word{number}" for number in range(30)]
    store.add_texts(texts, [{"number": number, "even": number % 2 == 0} for number in range(30)], ids=texts)
    return store


async def test_searches_agree_with_brute_force(filled, hash_encoder):
    encoder = hash_encoder(64)
    texts = [f"common word{number}" for number in range(30)]
    codes = np.concatenate(encoder.encode_documents([[text] for text in texts]))
    query = encoder.encode_queries(["common word7"])[0]
    cosines = cosine_similarity(query, codes)
    order = np.argsort(-cosines, kind="stable")[:5]
    expected = [texts[i] for i in order]
    vector = filled.embeddings.embed_query("common word7")
    scored = filled.similarity_search_with_score("common word7", k=5)
    assert [document.id for document, _ in scored] == expected
    np.testing.assert_allclose([score for _, score in scored], cosines[order], atol=1e-6)
    assert await filled.asimilarity_search_with_score("common word7", k=5) == scored
    assert filled.similarity_search_with_score_by_vector(vector, k=5) == scored
    assert await filled.asimilarity_search_with_score_by_vector(vector, k=5) == scored
    for found in (
        filled.similarity_search("common word7", 5),
        await filled.asimilarity_search("common word7", k=5),
        filled.similarity_search_by_vector(vector, k=5),
        await filled.asimilarity_search_by_vector(vector, k=5),
        filled.search("common word7", "similarity", k=5),
        filled.similarity_search_by_vector((3.7 * query).tolist(), k=5),
    ):
        assert [document.id for document in found] == expected


async def test_relevance_is_the_cosine_from_0_to_1(filled, recwarn):
    scored = filled.similarity_search_with_score("common word7", k=30)
    relevant = filled.similarity_search_with_relevance_scores("common word7", k=30)
    np.testing.assert_allclose([s for _, s in relevant], [(1 + s) / 2 for _, s in scored])
    assert await filled.asimilarity_search_with_relevance_scores("common word7", k=30) == relevant
    assert relevant[0][1] == pytest.approx(1.0)
    best = filled.similarity_search_with_relevance_scores("common word7", k=30, score_threshold=0.55)
    assert best == [(document, score) for document, score in relevant if score >= 0.55]
    assert 0 < len(best) < 30
    hybrid = filled.similarity_search_with_relevance_scores("common word7", k=30, hybrid=True)
    scores = [score for _, score in filled.similarity_search_with_score("common word7", k=30, hybrid=True)]
    assert [score for _, score in hybrid] == scores, "documents of one score come in any order"
    assert all(0 <= score <= 1 for _, score in hybrid)
    assert not recwarn.list


@pytest.mark.parametrize("lambda_mult", [0, 0.2, 0.5, 0.9, 1])
async def test_mmr_is_langchains_own(open_store, lambda_mult):
    rng = np.random.default_rng(11)
    vectors = np.repeat(rng.normal(size=(6, 16)), 5, axis=0) + 0.4 * rng.normal(size=(30, 16))

    class Given(DeterministicFakeEmbedding):
        def embed_documents(self, texts):
            return [vectors[int(text)].tolist() for text in texts]

        def embed_query(self, text):
            return vectors[int(text) if text.isdigit() else 0].tolist()

    store = open_store(Given(size=16))
    store.add_texts([str(row) for row in range(30)])
    codes = quantize_to_norm(vectors)
    for query in (0, 7, 22):
        ranked = np.argsort(-cosine_similarity(codes[query], codes), kind="stable")[:20]
        chosen = maximal_marginal_relevance(codes[query].astype(float), codes[ranked].astype(float), lambda_mult, 6)
        expected = [str(ranked[i]) for i in chosen]
        vector = vectors[query].tolist()
        for found in (
            store.max_marginal_relevance_search(str(query), k=6, lambda_mult=lambda_mult),
            await store.amax_marginal_relevance_search(str(query), k=6, lambda_mult=lambda_mult),
            store.max_marginal_relevance_search_by_vector(vector, k=6, lambda_mult=lambda_mult),
            await store.amax_marginal_relevance_search_by_vector(vector, k=6, lambda_mult=lambda_mult),
            store.as_retriever(search_type="mmr", k=6, lambda_mult=lambda_mult).invoke(str(query)),
        ):
            assert [document.page_content for document in found] == expected
        if lambda_mult == 1:
            assert [one.page_content for one in store.similarity_search(str(query), k=6)] == expected


def test_mmr_with_the_other_options(filled):
    found = filled.max_marginal_relevance_search("common word4", k=3, filter={"even": True}, hybrid=True)
    assert len(found) == 3
    assert found[0].page_content == "common word4"
    assert filled.max_marginal_relevance_search("common word4", k=3, filter={"number": 99}) == []
    assert len(filled.max_marginal_relevance_search("common word4", k=25)) == 25
    with pytest.raises(InvalidInputError, match="candidates must be at least fetch_k = 20, not 10"):
        filled.max_marginal_relevance_search("common word4", candidates=10)
    with pytest.raises(TypeError, match="'with_codes'"):
        filled.similarity_search("common word4", with_codes=True)
    with pytest.raises(InvalidInputError, match="lambda_mult must be a number from 0 to 1, not 2"):
        filled.max_marginal_relevance_search("common word4", lambda_mult=2)


def test_search_options_of_the_core(open_store):
    store = open_store()
    store.add_documents(chunks("one", "two needle", "three", lang="en"))
    store.add_documents(chunks("four", "five needle", source="other", lang="de"))
    assert {document.metadata["lang"] for document in store.similarity_search("one", filter={"lang": "de"})} == {"de"}
    qdrant = models.Filter(
        must=[models.FieldCondition(key="metadata.lang", match=models.MatchValue(value="en"))],
        must_not=[models.FieldCondition(key="metadata.start_index", range=models.Range(gt=0))],
    )
    assert [document.page_content for document in store.similarity_search("x", filter=qdrant)] == ["one"]
    grouped = store.similarity_search("x", k=4, group_by_document=True)
    assert {document.metadata["source"] for document in grouped} == {"a", "other"}
    assert len(grouped) == 2
    by_words = {"two needle", "five needle"}
    with_words = store.similarity_search_with_score("needle", k=5, hybrid=True)
    alone = store.similarity_search("needle", k=5)
    assert by_words <= {document.page_content for document, _ in with_words[:3]}
    assert max(score for document, score in with_words if document.page_content in by_words) > max(
        score for document, score in with_words[1:] if document.page_content not in by_words
    )
    assert len(alone) == 5
    (passage,) = store.similarity_search_by_vector(
        codes_of(store, [store.similarity_search("x", filter=qdrant)[0].id])[0].tolist(), k=1, context=1
    )
    assert passage.page_content.split() == ["one", "two", "needle"]
    assert len(store.similarity_search("x", k=5, score_threshold=0.99)) == 0
    assert len(store.similarity_search("x", k=2, candidates=2, diversity=1.0)) == 2
    with pytest.raises(TypeError, match="unexpected keyword argument 'fliter'"):
        store.similarity_search("x", fliter={})
    with pytest.raises(InvalidInputError, match="needs the question's words"):
        store.similarity_search_by_vector([1.0] * 64, hybrid=True)
    for blank in ("", " "):
        with pytest.raises(InvalidInputError, match="must not be blank"):
            store.similarity_search(blank)


async def test_a_filter_answers_for_a_blank_question(filled):
    options = {"filter": {"even": True}}
    expected = sorted(filled.store.chunks({"even": True}), key=lambda chunk: (chunk.document_id, chunk.chunk_index))
    texts = [chunk.text for chunk in expected][:4]
    assert len(texts) == 4
    for query in ("", " "):
        for more in ({}, {"hybrid": True}, {"diversity": 0.5}):
            scored = filled.similarity_search_with_score(query, 4, **options, **more)
            assert [(document.page_content, score) for document, score in scored] == [(text, 0.0) for text in texts]
            assert await filled.asimilarity_search_with_score(query, 4, **options, **more) == scored
            diverse = filled.max_marginal_relevance_search(query, 4, **options, **more)
            assert diverse == await filled.amax_marginal_relevance_search(query, 4, **options, **more)
            assert [document.page_content for document in diverse] == texts
        for search_type in ("similarity", "mmr"):
            retriever = filled.as_retriever(search_type=search_type, k=4, **options)
            for documents in (retriever.invoke(query), await retriever.ainvoke(query)):
                assert [document.page_content for document in documents] == texts
        for search in (filled.similarity_search, filled.max_marginal_relevance_search):
            with pytest.raises(InvalidInputError, match="must not be blank, unless a filter says which"):
                search(query)
        with pytest.raises(InvalidInputError, match="must not be blank"):
            await filled.amax_marginal_relevance_search(query, filter={})


def test_a_vector_has_no_words(filled):
    for search in (
        filled.similarity_search_by_vector,
        filled.similarity_search_with_score_by_vector,
        filled.max_marginal_relevance_search_by_vector,
    ):
        with pytest.raises(InvalidInputError, match="a hybrid search needs the question's words; give the question to"):
            search([1.0] * 64, hybrid=True)
        assert search([1.0] * 64, hybrid=True, lexical_weight=0, k=2)


def test_filters_of_qdrant_know_chunks_by_their_ids(filled):
    (one, another, *_) = [chunk.id for chunk in filled.store.chunks()]
    condition = models.Filter(must=[models.HasIdCondition(has_id=[one, another])])
    assert {document.id for document in filled.similarity_search("common", k=9, filter=condition)} == {one, another}
    before = filled.store.count()
    assert filled.delete(filter=condition)
    assert filled.store.count() == before - 2
    with pytest.raises(UnsupportedFilterError, match=r"HasIdCondition holds 7, .* ids are str"):
        filled.delete(filter=models.Filter(must=[models.HasIdCondition(has_id=[7])]))


async def test_retrievers_take_options_at_every_place(filled):
    retriever = filled.as_retriever(k=2, filter={"even": True}, search_kwargs={"k": 3})
    assert len(retriever.invoke("common word4")) == 3
    assert len(await retriever.ainvoke("common word4", k=1)) == 1
    assert all(document.metadata["even"] for document in retriever.invoke("common word3"))
    strict = filled.as_retriever(search_type="similarity_score_threshold", score_threshold=0.999)
    assert [document.id for document in await strict.ainvoke("common word4")] == ["common word4"]
    assert retriever.tags == ["PplxVectorStore", "PplxEmbeddings"]
    for wrong, message in (
        ({"kk": 3}, "kk"),
        ({"search_type": "nearest"}, "nearest"),
        ({"search_type": "similarity_score_threshold"}, "`score_threshold` is not specified"),
    ):
        with pytest.raises(ValueError, match=message):
            filled.as_retriever(**wrong)
    assert len(filled.as_retriever(k=2, search_kwargs=None).invoke("common word4")) == 2
    with pytest.raises(TypeError, match="kk"):
        filled.as_retriever(search_kwargs={"kk": 3}).invoke("q")


# --- opening and closing -----------------------------------------------------------------------------


async def test_making_a_store_of_texts_and_of_documents(folder, hash_embeddings):
    documents = chunks("a", "b")
    with PplxVectorStore.from_documents(documents, hash_embeddings, folder=folder / "one", collection="c") as store:
        assert [(one.id, one.chunks) for one in store.store.documents()] == [("a", 2)]
        assert store.store.count() == 2
    with PplxVectorStore.from_existing(hash_embeddings, folder=folder / "one", collection="c") as store:
        assert store.add_documents(documents)
        assert store.store.count() == 2
    async with await PplxVectorStore.afrom_documents(
        [Document(id="own", page_content="x", metadata={"n": 1})], hash_embeddings, folder=folder / "two"
    ) as store:
        assert await store.aget_by_ids(["own"]) == [Document(id="own", page_content="x", metadata={"n": 1})]
    store = await PplxVectorStore.afrom_texts(["t"], hash_embeddings, [{"n": 2}], ids=["i"], folder=folder / "three")
    assert store.get_by_ids(["i"])[0].metadata == {"n": 2}
    await store.aclose()
    with pytest.raises(StoreNotFoundError):
        PplxVectorStore.from_existing(hash_embeddings, folder=folder / "nowhere")


async def test_a_store_that_could_not_be_filled_is_let_go_of(folder, hash_embeddings):
    bad = [Document(page_content="x", metadata={"key": {1}})]
    for _ in range(2):  # the folder is not left locked
        with pytest.raises(InvalidDocumentError):
            PplxVectorStore.from_documents(bad, hash_embeddings, folder=folder / "index")
        with pytest.raises(InvalidDocumentError):
            await PplxVectorStore.afrom_documents(bad, hash_embeddings, folder=folder / "index")


async def test_documents_are_grouped_by_their_ids_wherever_they_come_in(folder, hash_embeddings):
    documents = [Document(id=f"doc#{i}", page_content=str(i)) for i in range(2)]
    options = {"group_by": lambda document: document.id.split("#")[0]}
    with PplxVectorStore.from_documents(documents, hash_embeddings, folder=folder / "one", **options) as store:
        assert [(one.id, one.chunks) for one in store.store.documents()] == [("doc", 2)]
    async with await PplxVectorStore.afrom_documents(
        documents, hash_embeddings, folder=folder / "two", **options
    ) as store:
        assert [(one.id, one.chunks) for one in store.store.documents()] == [("doc", 2)]
    async with await PplxVectorStore.afrom_existing(hash_embeddings, folder=folder / "two") as store:
        assert len(await store.asimilarity_search("0")) == 2
    with pytest.raises(StoreNotFoundError):
        await PplxVectorStore.afrom_existing(hash_embeddings, folder=folder / "nowhere")


def test_a_text_that_stands_alone_and_a_document_of_its_name_leave_each_other_alone(open_store):
    store = open_store()
    store.add_documents(chunks("a", "b", "c", source="1"))
    store.add_texts(["a note"], ids=["1"])
    store.sync([Document(id="1", page_content="a note, changed")])
    assert store.store.count() == 4
    store.sync(chunks("a", source="1"))
    assert store.get_by_ids(["1"])[0].page_content == "a note, changed"
    store.delete(document_ids=["1"])
    assert store.store.count() == 1


def test_exactly_one_place_is_needed(folder, hash_embeddings):
    # As another store's constructor would take them.
    with pytest.raises(InvalidInputError, match=r"^embedding must .* not the str 'docs'; .* as collection='docs'"):
        PplxVectorStore("docs")
    with pytest.raises(InvalidInputError, match=r"not QdrantClient; .* a client is given as client=$"):
        PplxVectorStore(QdrantClient(":memory:"))
    with pytest.raises(InvalidInputError, match=r"^client must be a QdrantClient, not AsyncQdrantClient; .* url= is"):
        PplxVectorStore(DeterministicFakeEmbedding(size=8), client=AsyncQdrantClient(":memory:"))
    with pytest.raises(InvalidInputError, match="exactly one of folder, url and client; none came"):
        PplxVectorStore(hash_embeddings)
    with pytest.raises(InvalidInputError, match="folder and client came"):
        PplxVectorStore(hash_embeddings, folder=folder, client=QdrantClient(":memory:"))
    with pytest.raises(InvalidInputError, match="api_key is an option of a store with url=; leave it out with folder="):
        PplxVectorStore(hash_embeddings, folder=folder, api_key="key")
    with pytest.raises(InvalidInputError, match="group_by must be a metadata key, a function or None, not 3"):
        PplxVectorStore(hash_embeddings, folder=folder, group_by=3)
    with pytest.raises(InvalidInputError, match="order_by must be a list of metadata keys, not 'page'"):
        PplxVectorStore(hash_embeddings, folder=folder, order_by="page")
    with pytest.raises(InvalidInputError, match="grpc_port is an option of a store with url="):
        PplxVectorStore(hash_embeddings, folder=folder, grpc_port=6334)


async def test_a_condition_that_the_server_is_too_old_for_is_refused_before_it_is_sent(hash_embeddings, server):
    server.version = "1.18.3"
    begins = models.FieldCondition(key="metadata.lang", match=models.MatchPrefix(prefix="e"))
    async with PplxVectorStore(hash_embeddings, url=server.url) as store:
        store.add_texts(["text"])
        for search in (store.asimilarity_search, store.amax_marginal_relevance_search):
            with pytest.raises(UnsupportedServerError, match=r"MatchPrefix needs Qdrant 1\.19 or newer"):
                await search("text", filter=models.Filter(must=[begins]))
    assert server.unknown == []


def test_grpc_is_on_the_port_that_is_named(hash_embeddings, grpc_server):
    with PplxVectorStore(hash_embeddings, url=grpc_server.url, grpc_port=grpc_server.port) as store:
        store.add_texts(["text"])
        assert [found.page_content for found in store.similarity_search("text")] == ["text"]
    assert "QueryBatch" in grpc_server.calls
    assert grpc_server.rest.requests == []


async def test_a_closed_store_says_so(open_store):
    store = open_store()
    await store.aadd_texts(["x"])
    await store.aclose()
    with pytest.raises(StoreClosedError):
        store.similarity_search("x")
    with pytest.raises(StoreClosedError):
        await store.asimilarity_search("x")
    with pytest.raises(StoreClosedError):
        await store.aadd_texts(["y"])


def test_other_embeddings_are_told_apart(open_store, folder):
    folder = folder / "index"
    with PplxVectorStore(DeterministicFakeEmbedding(size=8), folder=folder) as store:
        store.add_texts(["x"])
    with pytest.raises(SchemaMismatchError, match="dimension 8 in the collection, 9 given"):
        PplxVectorStore(DeterministicFakeEmbedding(size=9), folder=folder)

    class Other(DeterministicFakeEmbedding):
        model: str = "other-model"

    with pytest.raises(SchemaMismatchError, match="'langchain:Other:other-model' given"):
        PplxVectorStore(Other(size=8), folder=folder)


def test_tenants_do_not_see_each_other(folder, hash_embeddings):
    client = QdrantClient(":memory:")
    ann, bob = (PplxVectorStore(hash_embeddings, client=client, tenant=name) for name in ("ann", "bob"))
    assert ann.add_texts(["x"], ids=["1"]) == bob.add_texts(["y"], ids=["1"]) == ["1"]
    assert [document.page_content for document in ann.similarity_search("y", k=5)] == ["x"]
    bob.delete(["1"])
    assert ann.get_by_ids(["1"])[0].page_content == "x"


def test_options_are_those_of_the_core_and_of_the_class():
    of_search = set(inspect.signature(VectorStore.search).parameters) - {"self", "query", "k", "with_codes"}
    assert set(SearchOptions.__annotations__) == of_search
    of_class = set(inspect.signature(PplxVectorStore.__init__).parameters) - {"self", "embedding"}
    assert set(StoreOptions.__annotations__) == of_class


# --- coroutines, threads -----------------------------------------------------------------------------


async def test_coroutines_leave_the_event_loop_free(open_store, hash_encoder):
    encoder = hash_encoder(64)
    loop_ran = threading.Event()
    encode_documents, encode_queries = encoder.encode_documents, encoder.encode_queries

    def wait(encode, *arguments, **options):
        assert loop_ran.wait(30), "the event loop is blocked"
        return encode(*arguments, **options)

    encoder.encode_documents = lambda *arguments, **options: wait(encode_documents, *arguments, **options)
    encoder.encode_queries = lambda *arguments, **options: wait(encode_queries, *arguments, **options)
    store = open_store(PplxEmbeddings.from_encoder(encoder))
    for work in (
        store.aadd_texts(["x"], ids=["1"]),
        store.asimilarity_search("x"),
        store.amax_marginal_relevance_search("x"),
        store.async_sync([Document(id="1", page_content="y")]),
    ):
        loop_ran.clear()
        task = asyncio.create_task(work)
        await asyncio.sleep(0.05)
        assert not task.done()
        loop_ran.set()
        await task


async def test_many_coroutines_share_a_store(filled):
    texts = [f"common word{number}" for number in range(30)]
    found = await asyncio.gather(*(filled.asimilarity_search(text, k=1) for text in texts * 3))
    assert [documents[0].id for documents in found] == texts * 3
    await asyncio.gather(*(filled.aadd_texts([f"new {number}"], ids=[f"new {number}"]) for number in range(20)))
    assert filled.store.count() == 50


def test_each_event_loop_has_connections_of_its_own(server, hash_embeddings):
    async def search(store):
        found = await store.asimilarity_search("x", k=1)
        await store.adisconnect()
        return found[0].id

    with PplxVectorStore(hash_embeddings, url=server.url) as store:
        store.add_texts(["x"], ids=["1"])
        assert [asyncio.run(search(store)) for _ in range(3)] == ["1", "1", "1"]
        ids = []
        threads = [threading.Thread(target=lambda: ids.append(asyncio.run(search(store)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ids == ["1"] * 4


async def test_a_server_that_was_away_is_asked_again(server, hash_embeddings, monkeypatch):
    with PplxVectorStore(hash_embeddings, url=server.url, retries=0) as store:
        store.add_texts(["x"], ids=["1"])
        monkeypatch.setattr(store._shared._reading, "_connect", _fail_once(store._shared._reading._connect))
        with pytest.raises(PplxVectorStoreError, match="away"):
            await store.asimilarity_search("x", k=1)
        assert (await store.asimilarity_search("x", k=1))[0].id == "1"
        await store.aclose()


async def test_a_server_that_is_away_does_not_hide_the_callers_error(server, hash_embeddings, monkeypatch):
    store = PplxVectorStore(hash_embeddings, url=server.url)
    monkeypatch.setattr(store._shared._reading, "_connect", _fail_once(store._shared._reading._connect))

    async def use():
        async with store:
            with pytest.raises(EncodingError, match="away"):
                await store.asimilarity_search("x")
            raise LookupError("the caller's")

    with pytest.raises(LookupError, match="the caller's"):
        await use()
    with pytest.raises(StoreClosedError):
        store.similarity_search("x")


async def test_a_cancelled_write_has_ended_when_it_says_so(folder, hash_encoder):
    encoder = hash_encoder(64)
    begun, go_on = threading.Event(), threading.Event()
    encode = encoder.encode_documents

    def wait(*arguments, **options):
        begun.set()
        assert go_on.wait(30)
        return encode(*arguments, **options)

    encoder.encode_documents = wait
    async with PplxVectorStore(PplxEmbeddings.from_encoder(encoder), folder=folder / "index") as store:
        task = asyncio.create_task(store.aadd_texts(["x"], ids=["1"]))
        await asyncio.to_thread(begun.wait)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.05)
            assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        # It was embedding, and has written nothing; nor does it later.
        await asyncio.sleep(0.05)
        assert store.store.count() == 0
        assert await store.aadd_texts(["x"], ids=["1"]) == ["1"]
        assert store.store.count() == 1


def test_coroutines_of_several_loops_and_threads_add_to_one_document(server, hash_embeddings):
    async def add(own):
        await asyncio.gather(*(store.aadd_documents(chunks(f"{own}.{i}")) for i in range(5)))
        await store.adisconnect()

    with PplxVectorStore(hash_embeddings, url=server.url) as store:
        work = [lambda own=own: asyncio.run(add(own)) for own in "abc"]
        work.append(lambda: [store.add_documents(chunks(f"d.{i}")) for i in range(5)])
        threads = [threading.Thread(target=one) for one in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stored = store.store.search("x", k=50)
        assert sorted(chunk.chunk_index for chunk in stored) == list(range(20))


def _fail_once(connect):
    calls = []

    async def connecting():
        calls.append(1)
        if len(calls) == 1:
            raise EncodingError("away")
        return await connect()

    return connecting
