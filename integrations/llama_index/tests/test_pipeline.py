"""Reader → node parser → embedding → store, with LlamaIndex's caches, document stores and worker processes."""

import asyncio
import random
from pathlib import Path

import llama_index.core
import numpy as np
import pytest
from llama_index.core import SimpleDirectoryReader
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, MetadataMode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.embeddings.pplx_vectorstore import PplxEmbedding

SHARED = "She was born in Warsaw. "
DOCUMENTS = [
    Document(id_="curie", text=SHARED + "Curie discovered radium. Her laboratory was cold. " * 5),
    Document(id_="szymborska", text=SHARED + "The poet wrote about ordinary things. She lived in Kraków. " * 5),
]


def splitter():
    return SentenceSplitter(chunk_size=40, chunk_overlap=0)


def expected_of(encoder, nodes):
    """The core's codes of each node, by document; nodes of a splitter come in order."""
    by_document = {}
    for node in nodes:
        by_document.setdefault(node.ref_doc_id, []).append(node)
    return {
        node.node_id: codes
        for group in by_document.values()
        for node, codes in zip(
            group,
            encoder.encode_documents([[one.get_content(metadata_mode=MetadataMode.EMBED) for one in group]])[0],
            strict=True,
        )
    }


def copies():
    return [document.model_copy(deep=True) for document in DOCUMENTS]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["run", "arun"])
def test_a_pipeline_gives_the_codes_of_the_core(minilm, minilm_embedding, open_store, asynchronous):
    store = open_store(minilm_embedding)
    pipeline = IngestionPipeline(transformations=[splitter(), minilm_embedding], vector_store=store)
    documents = copies()
    nodes = asyncio.run(pipeline.arun(documents=documents)) if asynchronous else pipeline.run(documents=documents)
    expected = expected_of(minilm, nodes)
    assert len(expected) > 4
    for node in store.get_nodes(with_embeddings=True):
        np.testing.assert_array_equal(node.embedding, expected.pop(node.node_id))
    assert not expected
    # The same text in two documents has its own context in each.
    first = [next(node for node in nodes if node.ref_doc_id == document.id_) for document in DOCUMENTS]
    assert first[0].embedding != first[1].embedding


def test_the_core_knows_the_order_of_the_chunks(minilm_embedding, open_store):
    store = open_store(minilm_embedding)
    nodes = minilm_embedding(splitter()(copies()))
    random.Random(1).shuffle(nodes)
    store.add(nodes)
    for node in nodes:
        following = node.next_node
        if following is not None:
            places = [chunk.chunk_index for chunk in store.client.get([node.node_id, following.node_id])]
            assert places[1] == places[0] + 1


@pytest.mark.slow
def test_worker_processes_give_the_same(monkeypatch):
    # Where the splitter's tokenizer is, which LlamaIndex brings; a worker would fetch it otherwise.
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache"))
    embedding = PplxEmbedding(model_name="all-minilm-l6-v2", dtype="float32")
    pipeline = IngestionPipeline(transformations=[splitter(), embedding], disable_cache=True)
    nodes = pipeline.run(documents=copies(), num_workers=2)
    expected = expected_of(embedding.encoder, nodes)
    assert len(nodes) > 4
    for node in nodes:
        np.testing.assert_array_equal(node.embedding, expected[node.node_id])


def test_a_cache_saves_what_is_as_it_was(hash_encoder):
    encoder = hash_encoder(16)
    cache = IngestionCache()

    def run(documents, transformations):
        encoder.calls.clear()
        nodes = IngestionPipeline(transformations=transformations, cache=cache).run(documents=documents)
        return {node.node_id: node.embedding for node in nodes}, len(encoder.calls)

    embedding = PplxEmbedding.from_encoder(encoder)
    first, n_calls = run(copies(), [splitter(), embedding])
    assert n_calls == 1
    assert run(copies(), [splitter(), embedding]) == (first, 0)
    edited = copies()
    edited[1].set_content(edited[1].text + "She smoked.")
    assert run(edited, [splitter(), embedding])[1] == 1
    other = PplxEmbedding.from_encoder(encoder, embed_batch_size=511)
    assert run(copies(), [splitter(), other])[1] == 1, "another setting"
    assert run(copies(), [SentenceSplitter(chunk_size=60, chunk_overlap=0), embedding])[1] == 1


@pytest.mark.parametrize("asynchronous", [False, True], ids=["run", "arun"])
def test_an_edited_document_is_embedded_whole_and_its_stale_nodes_are_gone(hash_encoder, open_store, asynchronous):
    encoder = hash_encoder(64)
    embedding = PplxEmbedding.from_encoder(encoder)
    store = open_store(embedding)
    pipeline = IngestionPipeline(
        transformations=[splitter(), embedding], vector_store=store, docstore=SimpleDocumentStore()
    )

    def run(documents):
        encoder.calls.clear()
        asyncio.run(pipeline.arun(documents=documents)) if asynchronous else pipeline.run(documents=documents)
        return [chunks for call in encoder.calls for chunks in call]

    assert len(run(copies())) == 2
    before = {node.node_id: node for node in store.get_nodes()}
    assert run(copies()) == []
    edited = copies()
    edited[0].set_content(edited[0].text.replace("cold", "warm"))
    (chunks,) = run(edited)
    assert " ".join(chunks).split() == edited[0].text.split(), "the whole document"
    after = {node.node_id: node for node in store.get_nodes()}
    assert " ".join(node.text for node in after.values() if node.ref_doc_id == "curie").count("warm") == 5
    stale = [node for node in before.values() if node.ref_doc_id == "curie"]
    assert not {node.node_id for node in stale} & after.keys()
    assert {id_ for id_, node in before.items() if node.ref_doc_id == "szymborska"} <= after.keys()


def test_a_folder_of_files_becomes_an_index(folder, minilm_embedding, open_store):
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("The bridge was built in 1894.", "utf-8")
    (folder / "texts" / "b.txt").write_text("The ferry needs twenty minutes.", "utf-8")
    store = open_store(minilm_embedding)
    documents = SimpleDirectoryReader(str(folder / "texts")).load_data()
    IngestionPipeline(transformations=[splitter(), minilm_embedding], vector_store=store).run(documents=documents)
    assert {node.metadata["file_name"] for node in store.get_nodes()} == {"a.txt", "b.txt"}
    assert {node.ref_doc_id for node in store.get_nodes()} == {document.id_ for document in documents}
