"""A VectorStoreIndex over the store, beside one over LlamaIndex's own."""

import asyncio
import json
import warnings

import numpy as np
import pytest
from llama_index.core import MockEmbedding, Settings, StorageContext, VectorStoreIndex
from llama_index.core.indices.vector_store.retrievers import VectorIndexAutoRetriever
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata, MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, IndexNode, MetadataMode, TextNode
from llama_index.core.vector_stores.types import MetadataInfo, VectorStoreInfo
from llama_index.embeddings.pplx_vectorstore import PplxEmbedding

from pplx_vectorstore.errors import InvalidInputError

DOCUMENTS = [
    Document(id_="bridge", text="The bridge was built in 1894. It is made of steel. Trains cross it every hour."),
    Document(id_="ferry", text="The ferry needs twenty minutes. It rests in winter. Tickets are sold on board."),
    Document(id_="castle", text="The castle stands on a rock. Nobody lives in it since 1702. It is open on Sundays."),
]


def splitter():
    return SentenceSplitter(chunk_size=12, chunk_overlap=0)


@pytest.fixture
def build(open_store, minilm_embedding):
    """An index over our store, or over LlamaIndex's own, made as its users do: ``build(own=False)``."""

    def make(documents=DOCUMENTS, *, own=False, **options):
        storage = None if own else StorageContext.from_defaults(vector_store=open_store(minilm_embedding))
        return VectorStoreIndex.from_documents(
            [document.model_copy(deep=True) for document in documents],
            storage_context=storage,
            embed_model=minilm_embedding,
            transformations=[splitter(), minilm_embedding],
            **options,
        )

    return make


def found(index, question, k=4, **options):
    results = index.as_retriever(similarity_top_k=k, **options).retrieve(question)
    return [(result.node.text, round(result.score, 4)) for result in results]


@pytest.mark.parametrize("use_async", [False, True])
def test_an_index_of_documents_has_their_context(build, minilm, use_async):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nothing lost its context
        index = build(use_async=use_async)
    nodes = index.vector_store.get_nodes(with_embeddings=True)
    assert len(nodes) > 5
    for document in DOCUMENTS:
        own = sorted((node for node in nodes if node.ref_doc_id == document.id_), key=lambda node: node.start_char_idx)
        texts = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in own]
        np.testing.assert_array_equal([node.embedding for node in own], minilm.encode_documents([texts])[0])


def test_it_answers_and_changes_as_with_llamaindexs_own_store(build):
    ours, own = build(), build(own=True)

    def same():
        for question in ("When was the bridge built?", "Where are tickets sold?", "What stands on a rock?"):
            assert found(ours, question) == found(own, question)
            best = [index.as_query_engine(llm=MockLLM()).query(question) for index in (ours, own)]
            assert best[0].response == best[1].response
            assert [node.text for node in best[0].source_nodes] == [node.text for node in best[1].source_nodes]

    same()
    new = Document(id_="mill", text="The mill burned down in 1911. It was never built again.")
    changed = Document(id_="ferry", text="The ferry needs ten minutes now. It sails in winter, too.")
    for index in (ours, own):
        index.insert(new.model_copy(deep=True))
    same()
    assert found(ours, "What burned down?", 1)[0][0].startswith("The mill")
    for index in (ours, own):
        index.delete_ref_doc("castle", delete_from_docstore=True)
    same()
    assert not any("castle" in text for text, _ in found(ours, "The castle", 20))
    for index in (ours, own):
        index.update_ref_doc(changed.model_copy(deep=True))
    same()
    texts = [text for text, _ in found(ours, "How long does the ferry need?", 20)]
    assert any("ten minutes" in text for text in texts)
    assert not any("twenty" in text for text in texts)


def test_refreshing_changes_what_differs(build):
    ours = build()
    changed = [document.model_copy(deep=True) for document in DOCUMENTS]
    changed[2].set_content("The castle is a hotel now.")
    ours.refresh_ref_docs(changed)
    texts = [text for text, _ in found(ours, "castle", 20)]
    assert "The castle is a hotel now." in texts
    assert not any("rock" in text for text in texts)
    assert len([text for text in texts if "1894" in text]) == 1


def test_refreshing_brings_a_deleted_document_back_once_its_hash_is_forgotten(build):
    """LlamaIndex keeps the hash where the vector store holds the text; the guide tells what to do."""
    ours = build()
    ours.delete_ref_doc("castle", delete_from_docstore=True)
    ours.docstore.delete_document("castle", raise_error=False)
    documents = [document.model_copy(deep=True) for document in DOCUMENTS]
    assert ours.refresh_ref_docs(documents) == [False, False, True]
    assert any("castle" in text for text, _ in found(ours, "castle", 20))
    assert ours.refresh_ref_docs(documents) == [False, False, False]


def test_doc_ids_restrict_a_retriever(build):
    index = build()
    assert {one.node.ref_doc_id for one in index.as_retriever(doc_ids=["ferry"]).retrieve("castle")} == {"ferry"}
    assert index.as_retriever(doc_ids=[]).retrieve("castle") == []
    assert index.as_retriever(doc_ids=None).retrieve("castle")


async def test_coroutines_retrieve_insert_and_delete(build):
    index = await asyncio.to_thread(build)
    retriever = index.as_retriever(similarity_top_k=3)
    found_ = await retriever.aretrieve("When was the bridge built?")
    assert "1894" in found_[0].node.text
    answer = await index.as_query_engine(llm=MockLLM()).aquery("When was the bridge built?")
    assert "1894" in answer.source_nodes[0].text
    await index.ainsert(Document(id_="mill", text="The mill burned down in 1911."))
    assert "mill" in (await retriever.aretrieve("What burned down?"))[0].node.text
    await index.adelete_ref_doc("mill")
    assert not any("mill" in one.node.text for one in await retriever.aretrieve("What burned down?"))
    await index.vector_store.adisconnect()


def test_nodes_that_were_not_embedded_lose_their_context_with_one_warning(open_store, hash_encoder):
    embedding = PplxEmbedding.from_encoder(hash_encoder(64))
    nodes = splitter()([document.model_copy(deep=True) for document in DOCUMENTS])
    storage = StorageContext.from_defaults(vector_store=open_store(embedding))
    with pytest.warns(UserWarning, match=r"embed_model\(nodes\)") as told:
        VectorStoreIndex(nodes, embed_model=embedding, storage_context=storage).insert_nodes(splitter()(DOCUMENTS[:1]))
    assert len([one for one in told if "without the context" in str(one.message)]) == 1
    # As the warning says:
    encoder = hash_encoder(64)
    embedding = PplxEmbedding.from_encoder(encoder)
    storage = StorageContext.from_defaults(vector_store=open_store(embedding))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        index = VectorStoreIndex(embedding(nodes), embed_model=embedding, storage_context=storage)
    (document,) = encoder.encode_documents([[node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes[:3]]])
    stored = index.vector_store.get_nodes([node.node_id for node in nodes if node.ref_doc_id == "bridge"])
    assert len(stored) == 3
    bridge = index.vector_store.get_nodes([node.node_id for node in nodes[:3]], with_embeddings=True)
    np.testing.assert_array_equal([node.embedding for node in bridge], document)


def test_settings_make_every_index_contextual(open_store, hash_encoder, monkeypatch):
    encoder = hash_encoder(64)
    embedding = PplxEmbedding.from_encoder(encoder)
    monkeypatch.setattr(Settings, "_embed_model", embedding)
    monkeypatch.setattr(Settings, "_transformations", [splitter(), embedding])
    storage = StorageContext.from_defaults(vector_store=open_store(embedding))
    VectorStoreIndex.from_documents([DOCUMENTS[0].model_copy(deep=True)], storage_context=storage)
    assert [len(chunks) for call in encoder.calls for chunks in call] == [3]


def test_an_index_is_opened_again(open_store, minilm_embedding):
    store = open_store(minilm_embedding)
    store.add(minilm_embedding([TextNode(text="The bridge was built in 1894.")]))
    index = VectorStoreIndex.from_vector_store(store, embed_model=minilm_embedding)
    assert found(index, "When was the bridge built?", 1)[0][0] == "The bridge was built in 1894."


def test_an_index_node_leads_to_its_object(open_store, minilm_embedding):
    table = TextNode(id_="table", text="1894, 1702, 1911")
    nodes = minilm_embedding(
        [IndexNode(text="A table of years in which things were built", index_id="table", obj=table)]
    )
    storage = StorageContext.from_defaults(vector_store=open_store(minilm_embedding))
    index = VectorStoreIndex(nodes, embed_model=minilm_embedding, storage_context=storage)
    assert found(index, "Which years?", 1)[0][0] == "1894, 1702, 1911"


def test_other_embeddings_are_kept_apart(open_store, hash_embedding):
    embed_model = MockEmbedding(embed_dim=64)
    store = open_store(embed_model)
    assert store.client.fingerprint.model.startswith("llama_index:MockEmbedding:")
    index = VectorStoreIndex.from_documents(
        [Document(text="some words")],
        embed_model=embed_model,
        storage_context=StorageContext.from_defaults(vector_store=store),
    )
    assert found(index, "anything", 1) == [("some words", 1.0)]


# --- a language model that writes the query --------------------------------------------------------------------


class Says(CustomLLM):
    """A language model that always gives the same answer."""

    answer: str

    @property
    def metadata(self):
        return LLMMetadata()

    def complete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text=self.answer)

    def stream_complete(self, prompt, formatted=False, **kwargs):
        yield self.complete(prompt)


def auto_retriever(index, filters, **options):
    info = VectorStoreInfo(
        content_info="sights", metadata_info=[MetadataInfo(name="kind", type="str", description="what it is")]
    )
    spec = json.dumps({"query": "", "filters": filters, "top_k": None})
    return VectorIndexAutoRetriever(index, info, llm=Says(answer=f"```json\n{spec}\n```"), **options)


@pytest.mark.parametrize("mode", ["default", "hybrid", "text_search", "sparse", "mmr"])
@pytest.mark.parametrize("vector", [None, [0.0] * 384])
async def test_a_query_of_filters_alone_is_answered_in_the_order_of_documents(build, mode, vector):
    kinds = {"bridge": "way", "ferry": "way", "castle": "house"}
    documents = [
        Document(id_=document.id_, text=document.text, metadata={"kind": kinds[document.id_]})
        for document in reversed(DOCUMENTS)
    ]
    index = build(documents)
    options = {"similarity_top_k": 20, "vector_store_query_mode": mode, "default_empty_query_vector": vector}
    retriever = auto_retriever(index, [{"key": "kind", "value": "way", "operator": "=="}], **options)
    nodes = sorted(index.vector_store.get_nodes(), key=lambda node: (node.ref_doc_id, node.start_char_idx))
    expected = [node.text for node in nodes if node.metadata["kind"] == "way"]
    assert len(expected) > 4
    for results in (retriever.retrieve("What is a way?"), await retriever.aretrieve("What is a way?")):
        assert [result.node.text for result in results] == expected
        assert {result.score for result in results} == {0.0}
    few = auto_retriever(
        index, [{"key": "kind", "value": "way", "operator": "=="}], **{**options, "empty_query_top_k": 2}
    )
    assert [result.node.text for result in few.retrieve("What is a way?")] == expected[:2]
    with pytest.raises(InvalidInputError, match="must not be blank, unless a filter says which chunks"):
        auto_retriever(index, [], **options).retrieve("What?")
