"""What agents may ask an index, by the SDK's client in this process."""

import asyncio
import json
import shutil
import threading

import pytest
from agent_client import ask, lazy_index, refused, said, talking

from pplx_vectorstore import Document, VectorStore
from pplx_vectorstore.engines.edge import EdgeClient
from pplx_vectorstore.errors import InvalidInputError, UnknownModelError

CATS = "Cats purr when they are happy."


@pytest.fixture
def project(folder):
    """A project of two documents, resolved, and the place of its index."""
    root = (folder / "project").resolve()
    (root / "docs").mkdir(parents=True)
    (root / "docs" / "cats.md").write_text(f"# Cats\n\n{CATS}\n")
    (root / "docs" / "stars.txt").write_text("The sun is a star.\n")
    return root


@pytest.fixture
def encoder(hash_encoder):
    return hash_encoder()


@pytest.fixture
def index(project, encoder):
    return lazy_index(project / ".pplx-vectorstore", encoder)


def writing(project):
    return {"allow_write": True, "root": project}


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_life_of_an_index(index, project, mode):
    cats = project / "docs" / "cats.md"
    async with talking(index, mode=mode, **writing(project)) as client:
        assert "there is no index 'documents' in" in await refused(client, "search", query=CATS)
        done = await ask(client, "index_folder", path="docs")
        assert (done["embedded"], done["new"], done["chunks"]) == (2, 2, 2)
        (first, *_) = (await ask(client, "search", query=f"# Cats\n\n{CATS}"))["hits"]
        assert (first["document_id"], first["file"], first["lines"]) == ("docs/cats.md", str(cats), [1, 3])
        assert first["score"] == pytest.approx(1, abs=1e-3)
        assert cats.read_text().splitlines()[first["lines"][0] - 1 : first["lines"][1]] == first["text"].split("\n")

        cats.write_text("# Cats\n\nCats sleep.\n")
        (stale, *_) = (await ask(client, "search", query=f"# Cats\n\n{CATS}"))["hits"]
        assert (stale["text"], "has changed" in stale["change"]) == (f"# Cats\n\n{CATS}", True)
        done = await ask(client, "index_folder")
        assert (done["embedded"], done["new"], done["unchanged"]) == (1, 0, 1)
        (fresh, *_) = (await ask(client, "search", query="# Cats\n\nCats sleep."))["hits"]
        assert (fresh["text"], fresh["change"]) == ("# Cats\n\nCats sleep.", None)
        assert "search again" in await refused(client, "get_context", id="nowhere")

        cats.unlink()
        (gone, *_) = (await ask(client, "search", query="# Cats\n\nCats sleep."))["hits"]
        assert gone["change"] == "the file is not there any more"
        assert (await ask(client, "index_folder"))["gone"] == ["docs/cats.md"]
        assert (await ask(client, "index_folder", prune=True))["deleted"] == 1
        assert [one["id"] for one in (await ask(client, "list_documents"))["documents"]] == ["docs/stars.txt"]

        shutil.rmtree(index.place.folder)
        assert "there is no index" in await refused(client, "list_documents")
        assert (await ask(client, "index_folder"))["chunks"] == 1


async def test_an_index_of_another_model_takes_the_place(index, project, hash_encoder):
    loaded = []

    def load(recorded):
        loaded.append(recorded.dimension)
        return hash_encoder(recorded.dimension)

    index = lazy_index(index.place.folder, load)
    for dimension in (64, 32):
        with VectorStore.open(index.place.folder, encoder=hash_encoder(dimension)) as store:
            store.add([Document(id="one", chunks=["one"], metadata={"n": dimension})])
        if dimension == 64:
            serving = talking(index)
            client = await serving.__aenter__()
        (hit,) = (await ask(client, "search", query="one"))["hits"]
        assert hit["metadata"] == {"n": dimension}
        assert hit["score"] == pytest.approx(1, abs=1e-3)
        shutil.rmtree(index.place.folder)
    assert loaded == [64, 32]
    await serving.__aexit__(None, None, None)


async def test_search_and_what_is_said(index, project, encoder):
    notes = [
        Document(id=f"note-{n}", chunks=[f"Note {n}, part {part}." for part in range(3)], metadata={"lang": lang})
        for n, lang in enumerate(["en", "de", "en"])
    ]
    with VectorStore.open(index.place.folder, encoder=encoder) as store:
        store.add(notes)
        fused = [hit.score for hit in store.search("Note 2, part 1.", k=9, hybrid=True)]
    async with talking(index) as client:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == ["search", "get_context", "list_documents", "index_info"]
        assert all(tool.annotations.read_only_hint for tool in tools)
        assert "title" not in json.dumps([tool.input_schema for tool in tools])
        hits = (await ask(client, "search", query="part", k=50, filter={"lang": "en"}))["hits"]
        assert {hit["document_id"] for hit in hits} == {"note-0", "note-2"}
        assert len(hits) == 6
        assert (await ask(client, "search", query="part", k=50, filter='{"lang": "en"}'))["hits"] == hits
        best = (await ask(client, "search", query="part", k=50, group_by_document=True, context=1))["hits"]
        assert sorted(hit["document_id"] for hit in best) == ["note-0", "note-1", "note-2"]
        assert all(len(hit["context"]) > len(hit["text"]) for hit in best)
        hybrid = (await ask(client, "search", query="Note 2, part 1.", k=9, hybrid=True))["hits"]
        assert [hit["score"] for hit in hybrid] == pytest.approx(fused)
        result = await client.call_tool("search", {"query": "Note", "filter": {"lang": "fr"}})
        assert said(result) == "nothing found; index_info names the fields that a filter may ask for"
        shown = said(await client.call_tool("search", {"query": "Note", "k": 1, "filter": {"lang": "de"}}))
        assert shown.startswith("[1] note-1, chunk ")
        assert 'metadata: {"lang": "de"}' in shown

        around = await ask(client, "get_context", id=hits[0]["id"], before=5, after=5)
        assert [chunk["chunk_index"] for chunk in around["chunks"]] == [0, 1, 2]
        result = await client.call_tool("get_context", {"document_id": "note-1", "first": 1, "count": 1})
        assert [chunk["text"] for chunk in result.structured_content["chunks"]] == ["Note 1, part 1."]
        assert said(result).endswith('more: get_context with document_id="note-1", first=2')
        page = await ask(client, "list_documents", prefix="note-", limit=2)
        assert ([one["id"] for one in page["documents"]], page["total"], page["after"]) == (
            ["note-0", "note-1"], 3, "note-1",
        )  # fmt: skip
        page = await ask(client, "list_documents", prefix="note-", limit=2, after=page["after"])
        assert ([one["id"] for one in page["documents"]], page["after"]) == (["note-2"], None)
        facts = await ask(client, "index_info")
        assert (facts["documents"], facts["chunks"], facts["model"]) == (3, 9, "hash-encoder")
        assert facts["metadata_fields"] == {"lang": ["str"]}


async def test_what_is_refused_says_why_and_what_to_do(index, project, encoder):
    with VectorStore.open(index.place.folder, encoder=encoder) as store:
        store.add([Document(id="one", chunks=["one"])])
    async with talking(index) as client:
        assert "there is no argument 'filters' (there are: query, k," in await refused(
            client, "search", query="x", filters={}
        )
        assert "k: Input should be less than or equal to 50" in await refused(client, "search", query="x", k=51)
        assert "query: Field required" in await refused(client, "search")
        assert "must not be blank" in await refused(client, "search", query=" ")
        assert "$between" in await refused(client, "search", query="x", filter={"n": {"$between": 1}})
        for no_object in ("lang = en", "[1]", "[" * 100_000, 5):
            assert "filter: Input should be a valid dict" in await refused(
                client, "search", query="x", filter=no_object
            )
        assert "both came" in await refused(client, "get_context", id="x", document_id="y")
        assert "none came" in await refused(client, "get_context")
        assert "list_documents names those there are" in await refused(client, "get_context", document_id="two")
        assert "has 1 chunk, numbered from 0; 7 is past its end" in await refused(
            client, "get_context", document_id="one", first=7
        )
        assert "there are: search, get_context" in await refused(client, "index_folder")


async def test_answers_are_bounded_and_say_where_they_go_on(index, project, encoder):
    with VectorStore.open(index.place.folder, encoder=encoder) as store:
        store.add([Document(id="long", chunks=["long " * 10_000, "longer " * 10_000])])
    async with talking(index) as client:
        result = await client.call_tool("get_context", {"document_id": "long"})
        assert len(said(result)) < 61_000
        assert "(cut off: the answer is too long" in said(result)
        assert result.structured_content["chunks"][0]["text"] == "long " * 10_000


async def test_no_part_of_an_answer_is_without_bounds(index, project, encoder):
    metadata = {
        "lang": "en",
        "heading": ["x" * 5000],
        "abstract": "y" * 5000,
        **{f"f{n}": "z" * 40 for n in range(300)},
    }
    with VectorStore.open(index.place.folder, encoder=encoder) as store:
        store.add([Document(id=f"d{n}", chunks=["text " * 2000] * 3, metadata=metadata) for n in range(20)])
    async with talking(index) as client:
        result = await client.call_tool("search", {"query": "text", "k": 50, "context": 5})
        hits = result.structured_content["hits"]
        assert len(hits) == 50
        assert sum(len(hit["text"]) for hit in hits) < 70_000
        assert sum(len(hit["context"]) for hit in hits) < 70_000
        assert len(json.dumps(hits)) < 300_000
        assert max(len(json.dumps(hit["metadata"])) for hit in hits) < 3_000
        assert hits[0]["metadata"]["lang"] == "en"
        assert hits[0]["metadata_left_out"][:2] == ["heading", "abstract"]
        assert "metadata that is too long to be shown: heading, abstract" in said(result)
        assert len(said(result)) < 250_000
        facts = await ask(client, "index_info")
        assert len(facts["metadata_fields"]) == 200


async def test_what_is_null_was_left_out(index, encoder):
    with VectorStore.open(index.place.folder, encoder=encoder) as store:
        store.add([Document(id="one", chunks=["one"])])
    async with talking(index) as client:
        nulls = dict.fromkeys(("k", "filter", "hybrid", "group_by_document", "context"))
        assert len((await ask(client, "search", query="one", **nulls))["hits"]) == 1
        assert "query: Field required" in await refused(client, "search", query=None)
        assert "there is no argument 'limit'" in await refused(client, "search", query="one", limit=None)
        assert "there is no argument 'x' (there are: none)" in await refused(client, "index_info", x=None)


async def test_only_our_errors_are_told(index, project, encoder, monkeypatch, caplog):
    with VectorStore.open(index.place.folder, encoder=encoder) as store:
        store.add([Document(id="one", chunks=["one"])])
    secret = "sk-4711"
    monkeypatch.setattr(encoder, "encode_queries", lambda queries: {}[secret])
    async with talking(index) as client:
        told = await refused(client, "search", query="one")
        assert told == "something unexpected went wrong; what, is in the server's log (its standard error)"
        assert secret in caplog.text
        assert (await ask(client, "index_info"))["chunks"] == 1


async def test_a_model_that_fails_to_load_is_told_and_tried_again(index, project, encoder, caplog):
    with VectorStore.open(index.place.folder, encoder=encoder) as store:
        store.add([Document(id="one", chunks=["one"])])
    tries = []
    missing = True

    def load(recorded):
        tries.append(recorded.model)
        if missing:
            raise UnknownModelError("there is no model here; name its folder with --model")
        return encoder

    async with talking(lazy_index(index.place.folder, load), preload=True) as client:
        await client.list_tools()
        assert (await ask(client, "index_info"))["chunks"] == 1  # needs no model
        for _ in range(2):
            assert "name its folder with --model" in await refused(client, "search", query="one")
        assert len(tries) in (2, 3)  # ahead of the first search, or while that waited
        missing = False
        assert (await ask(client, "search", query="one"))["hits"]
    assert "there is no model here" in caplog.text


async def test_the_model_is_loaded_once_for_all_who_wait(index, project, encoder):
    with VectorStore.open(index.place.folder, encoder=encoder) as store:
        store.add([Document(id=f"d{n}", chunks=[f"text {n}"]) for n in range(20)])
    goes_on, loads = threading.Event(), []

    def load(recorded):
        loads.append(recorded)
        assert goes_on.wait(20)
        return encoder

    async with talking(lazy_index(index.place.folder, load), preload=True) as client:
        assert not loads  # not before it is asked for
        await client.list_tools()
        searches = [asyncio.create_task(ask(client, "search", query=f"text {n}", k=1)) for n in range(20)]
        assert (await ask(client, "list_documents", prefix="d1"))["total"] == 11  # while the model loads
        assert loads
        assert not any(search.done() for search in searches)
        goes_on.set()
        found = [(await search)["hits"][0]["document_id"] for search in searches]
    assert found == [f"d{n}" for n in range(20)]
    assert len(loads) == 1


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_client_that_leaves_ends_what_it_asked_for(index, project, encoder, monkeypatch, mode):
    for n in range(40):
        (project / f"file{n}.txt").write_text(f"File {n}. " * 2000)
    begun, goes_on = threading.Event(), threading.Event()
    encode = encoder.encode_documents

    def slow(documents, *, progress=None):
        begun.set()
        assert goes_on.wait(20)
        return encode(documents, progress=progress)

    monkeypatch.setattr(encoder, "encode_documents", slow)
    async with talking(index, mode=mode, **writing(project)) as client:
        indexing = asyncio.create_task(client.call_tool("index_folder", {}))
        await asyncio.to_thread(begun.wait, 20)
        indexing.cancel()
        await asyncio.sleep(0.1)
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await indexing
        written = (await ask(client, "index_info"))["documents"]
        await asyncio.sleep(0.1)
        assert (await ask(client, "index_info"))["documents"] == written < 42  # nothing goes on
        assert (await ask(client, "index_folder"))["unchanged"] == written
    with VectorStore.open(index.place.folder, encoder=encoder) as store:
        assert sum(1 for _ in store.documents()) == 42


async def test_progress_is_told(index, project, encoder, monkeypatch):
    monkeypatch.setattr("pplx_vectorstore.agents.server._SECONDS_BETWEEN_REPORTS", 0.01)
    encode, told = encoder.encode_documents, threading.Event()
    monkeypatch.setattr(
        encoder, "encode_documents", lambda documents, progress=None: told.wait(20) and encode(documents)
    )
    reports = []

    async def note(done, total, message):
        reports.append((done, total))
        if done == total:
            told.set()

    async with talking(index, **writing(project)) as client:
        await client.call_tool("index_folder", {}, progress_callback=note)
    size = sum(file.stat().st_size for file in project.glob("docs/*"))
    assert reports[-1] == (size, size)


async def test_tools_are_described_as_asked(index):
    async with talking(index, descriptions={"search": "Search our handbook."}) as client:
        tools = (await client.list_tools()).tools
        assert tools[0].description == "Search our handbook."
    with pytest.raises(InvalidInputError, match="names 'find', which is none of the tools: search,"):
        async with talking(index, descriptions={"find": "x"}):
            pass


async def test_tenants_see_their_own(index, encoder):
    for tenant in ("acme", "other"):
        with VectorStore.open(index.place.folder, encoder=encoder, tenant=tenant) as store:
            store.add([Document(id=tenant, chunks=["secret"])])
    async with talking(lazy_index(index.place.folder, encoder, tenant="acme")) as client:
        assert [hit["document_id"] for hit in (await ask(client, "search", query="secret"))["hits"]] == ["acme"]
        assert (await ask(client, "list_documents"))["total"] == 1
        assert "no document 'other'" in await refused(client, "get_context", document_id="other")
    async with talking(lazy_index(index.place.folder, encoder)) as client:
        assert "holds tenants; say which" in await refused(client, "list_documents")


async def test_another_process_may_have_the_folder(index, encoder):
    with VectorStore.open(index.place.folder, encoder=encoder) as store:
        store.add([Document(id="one", chunks=["one"])])
        async with talking(index) as client:
            store.add([Document(id="two", chunks=["two"])])
            assert (await ask(client, "list_documents"))["total"] == 2
    client = EdgeClient(index.place.folder)
    assert not client.is_gone("documents")
    client.close()
