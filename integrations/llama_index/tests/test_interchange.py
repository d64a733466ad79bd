"""What one of LlamaIndex, LangChain, the core and the command line writes, the others read."""

import json

import numpy as np
import pytest
from langchain_core.documents import Document as LangChainDocument
from langchain_pplx_vectorstore import PplxEmbeddings
from langchain_pplx_vectorstore import PplxVectorStore as LangChainStore
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, MetadataMode, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.vector_stores.pplx_vectorstore import PplxVectorStore
from typer.testing import CliRunner

import pplx_vectorstore as core
from pplx_vectorstore.cli import app

TEXT = "The bridge was built in 1894. It is made of steel. Trains cross it every hour."
QUESTION = "When was the bridge built?"


@pytest.fixture
def nodes(minilm_embedding):
    splitter = SentenceSplitter(chunk_size=14, chunk_overlap=0)
    return minilm_embedding(splitter([Document(id_="bridge", text=TEXT, metadata={"lang": "en"})]))


def query(store, minilm, **options):
    embedding = minilm.encode_queries([QUESTION])[0].tolist()
    return store.query(VectorStoreQuery(query_embedding=embedding, similarity_top_k=3, **options)).nodes


def test_others_read_what_llamaindex_writes(folder, minilm, minilm_embedding, nodes):
    with PplxVectorStore(minilm_embedding, folder=folder) as store:
        store.add(nodes)
        best = query(store, minilm)[0]
    texts = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
    with core.VectorStore.open(folder, encoder=minilm, create=False) as store:
        hit = store.search(QUESTION, k=1, filter={"lang": "en"}, context=1)[0]
        assert (hit.id, hit.text, hit.document_id) == (best.node_id, best.text, "bridge")
        assert TEXT.startswith(hit.context)
        chunks = store.get([node.node_id for node in nodes], with_codes=True)
        np.testing.assert_array_equal([chunk.codes for chunk in chunks], minilm.encode_documents([texts])[0])
        assert [chunk.chunk_index for chunk in chunks] == list(range(len(nodes)))
    with LangChainStore.from_existing(PplxEmbeddings.from_encoder(minilm), folder=folder) as store:
        found = store.similarity_search(QUESTION, k=1, filter={"lang": "en"})[0]
        assert (found.id, found.page_content, found.metadata["lang"]) == (best.node_id, best.text, "en")
    ran = CliRunner().invoke(app, ["search", QUESTION, "--store", str(folder), "-k", "1", "--json"])
    assert ran.exit_code == 0, ran.output
    (shown,) = json.loads(ran.stdout) if ran.stdout.lstrip().startswith("[") else [json.loads(ran.stdout)]
    assert shown["text"] == best.text
    assert CliRunner().invoke(app, ["documents", "--store", str(folder)]).output.count("bridge") == 1
    with PplxVectorStore(minilm_embedding, folder=folder) as store:
        stripped = [node.model_copy(update={"embedding": None}) for node in nodes]
        assert store.get_nodes([node.node_id for node in nodes]) == stripped


def test_llamaindex_reads_what_the_core_writes(folder, minilm, minilm_embedding):
    with core.VectorStore.open(folder, encoder=minilm) as store:
        store.add([core.Document(id="bridge", text=TEXT, metadata={"lang": "en"})])
    with PplxVectorStore(minilm_embedding, folder=folder) as store:
        (best,) = query(store, minilm, doc_ids=["bridge"])
        assert (best.text, best.ref_doc_id, best.metadata) == (TEXT, "bridge", {"lang": "en"})
        assert query(store, minilm, node_ids=[best.node_id]) == [best]
        store.delete("bridge")
        assert query(store, minilm) == []


def test_llamaindex_reads_what_langchain_writes(folder, minilm, minilm_embedding):
    with LangChainStore(PplxEmbeddings.from_encoder(minilm), folder=folder) as store:
        metadata = {"source": "bridge.txt", "start_index": 0, "pages": [1, 2]}
        (id_,) = store.add_documents([LangChainDocument(TEXT, metadata=metadata)])
    with PplxVectorStore(minilm_embedding, folder=folder) as store:
        (best,) = query(store, minilm)
        assert (best.node_id, best.text, best.metadata, best.ref_doc_id) == (id_, TEXT, metadata, "bridge.txt")


def test_llamaindex_reads_what_the_command_line_writes(folder, minilm_embedding, minilm):
    (folder / "bridge.txt").write_text(TEXT, "utf-8")
    index = folder / "index"
    command = ["index", str(folder / "bridge.txt"), "--model", "all-minilm-l6-v2", "--store", str(index)]
    assert CliRunner().invoke(app, command).exit_code == 0
    with PplxVectorStore(folder=index) as store:  # without a model
        (best,) = query(store, minilm)
        assert best.text == TEXT
        assert best.ref_doc_id.endswith("bridge.txt")


def test_langchain_and_llamaindex_write_beside_each_other(folder, minilm, minilm_embedding):
    with LangChainStore(PplxEmbeddings.from_encoder(minilm), folder=folder) as store:
        store.add_texts(["The ferry needs twenty minutes."])
    with PplxVectorStore(minilm_embedding, folder=folder) as store:
        store.add(minilm_embedding([TextNode(text=TEXT)]))
        assert len(store.get_nodes()) == 2
    with LangChainStore(PplxEmbeddings.from_encoder(minilm), folder=folder) as store:
        assert store.similarity_search("ferry", k=1)[0].page_content.startswith("The ferry")
        assert store.similarity_search(QUESTION, k=1)[0].page_content == TEXT
