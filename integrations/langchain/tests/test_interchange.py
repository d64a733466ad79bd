"""What one of LangChain's store, the core store and the command line writes, the others read."""

import json

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_pplx_vectorstore import PplxEmbeddings, PplxVectorStore
from typer.testing import CliRunner

from pplx_vectorstore import Chunk, PrecomputedEncoder, VectorStore, load_encoder
from pplx_vectorstore import Document as WholeDocument
from pplx_vectorstore.cli import app

CHUNKS = ["Berlin is the capital of Germany.", "It has 3.9 million inhabitants."]


@pytest.fixture
def run(monkeypatch):
    """Run the command line: ``run("search", …)`` → what it printed."""

    def invoke(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    return invoke


@pytest.fixture(scope="module")
def embeddings():
    """As the command line loads it."""
    return PplxEmbeddings.from_encoder(load_encoder("all-minilm-l6-v2"))


def test_what_langchain_writes_the_core_reads(open_store, hash_encoder):
    store = open_store()
    documents = [
        Document(page_content=text, metadata={"source": "berlin", "start_index": 40 * place, "lang": "en"})
        for place, text in enumerate(CHUNKS)
    ]
    ids = store.add_documents(documents)
    hits = store.store.search("x", k=5, filter={"lang": "en"})
    assert sorted(
        (hit.chunk_index, hit.chunk_count, hit.start, hit.end, hit.text, hit.document_id) for hit in hits
    ) == [
        (0, 2, 0, 33, CHUNKS[0], "berlin"),
        (1, 2, 40, 71, CHUNKS[1], "berlin"),
    ]
    assert [hit.metadata["start_index"] for hit in store.store.get(ids)] == [0, 40]
    assert [(one.id, one.chunks, one.chunk_count) for one in store.store.documents()] == [("berlin", 2, 2)]
    # The core tells that nothing has changed, and replaces the document when it does.
    whole = [
        Chunk(text=hit.text, start=hit.start, end=hit.end, id=hit.id, metadata=hit.metadata)
        for hit in store.store.get(ids)
    ]
    assert store.store.sync([WholeDocument(id="berlin", chunks=whole)]).unchanged_documents == 1
    store.store.add([WholeDocument(id="berlin", chunks=["new"])])
    assert [document.page_content for document in store.similarity_search("x", k=5)] == ["new"]


def test_what_the_core_writes_langchain_reads(open_store):
    store = open_store()
    store.store.add([WholeDocument(id="berlin", chunks=CHUNKS, metadata={"lang": "en", "inner": {"list": [1, None]}})])
    (found,) = store.similarity_search("x", k=1, group_by_document=True)
    assert found.metadata == {"lang": "en", "inner": {"list": [1, None]}}
    assert store.get_by_ids([found.id]) == [found]
    store.add_documents([found])  # by its id, it is the same chunk
    assert store.store.count() == 2
    assert store.delete([found.id])
    assert store.store.count() == 1


def test_what_langchain_writes_the_command_line_reads(folder, run, embeddings):
    documents = [Document(page_content=text, metadata={"source": "berlin.txt"}) for text in CHUNKS]
    with PplxVectorStore.from_documents(documents, embeddings, folder=folder / "index"):
        pass
    (hit,) = json.loads(run("search", "How many inhabitants?", "--json", "-k", 1, "--store", folder / "index"))
    assert (hit["text"], hit["document_id"]) == (CHUNKS[1], "berlin.txt")
    assert "berlin.txt" in run("documents", "--store", folder / "index")
    run("delete", "berlin.txt", "--store", folder / "index")
    with PplxVectorStore.from_existing(embeddings, folder=folder / "index") as store:
        assert store.similarity_search("How many inhabitants?") == []


def test_what_the_command_line_writes_langchain_reads(folder, run, embeddings):
    (folder / "texts").mkdir()
    (folder / "texts" / "berlin.txt").write_text("\n\n".join(CHUNKS), "utf-8")
    run("index", folder / "texts", "--model", "all-minilm-l6-v2", "--store", folder / "index")
    with PplxVectorStore.from_existing(embeddings, folder=folder / "index") as store:
        (found,) = store.similarity_search("How many inhabitants?")
        assert CHUNKS[1] in found.page_content
        assert store.get_by_ids([found.id]) == [found]


def test_other_embeddings_are_read_without_their_model(folder, run):
    with PplxVectorStore(DeterministicFakeEmbedding(size=8), folder=folder / "index") as store:
        store.add_texts(["x"], ids=["1"])
        query = store.store.get(["1"], with_codes=True)[0].codes
    assert "DeterministicFakeEmbedding" in run("info", "--store", folder / "index")
    encoder = PrecomputedEncoder("langchain:DeterministicFakeEmbedding", 8)
    with VectorStore.open(folder / "index", encoder=encoder) as store:
        assert [hit.id for hit in store.search(query)] == ["1"]
    result = CliRunner().invoke(app, ["search", "x", "--store", str(folder / "index")])
    assert result.exit_code == 2
    assert "written with vectors of 'langchain:DeterministicFakeEmbedding', which" in " ".join(result.stderr.split())
