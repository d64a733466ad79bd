"""The names of mcp-server-qdrant."""

import json

import pytest
from agent_client import ask, lazy_index, refused, said, talking

from pplx_vectorstore.agents.compat import QdrantSettings
from pplx_vectorstore.errors import InvalidInputError


@pytest.fixture
def index(folder, hash_encoder):
    return lazy_index(folder / "index", hash_encoder(), collection="memories")


def settings(**environment):
    return QdrantSettings.from_environment(environment)


async def test_what_was_stored_is_found(index):
    async with talking(index, compat=settings(), allow_write=True) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools)[-2:] == ["qdrant-find", "qdrant-store"]
        assert tools["qdrant-store"].input_schema["required"] == ["information"]
        assert "query_filter" not in tools["qdrant-find"].input_schema["properties"]
        stored = {"information": "Cats purr.", "metadata": {"lang": "en", "tags": ["a"]}}
        for metadata in (stored["metadata"], json.dumps(stored["metadata"])):
            assert await ask(client, "qdrant-store", **stored | {"metadata": metadata}) == "Remembered: Cats purr."
        await ask(client, "qdrant-store", information="Cats purr.", metadata=None, collection_name="memories")
        assert (await ask(client, "index_info"))["chunks"] == 2
        result = await client.call_tool("qdrant-find", {"query": "Cats purr."})
        first, *entries = (content.text for content in result.content)
        assert first == "Results for the query 'Cats purr.'"
        assert sorted(entries) == [
            "<entry><content>Cats purr.</content><metadata></metadata></entry>",
            '<entry><content>Cats purr.</content><metadata>{"lang": "en", "tags": ["a"]}</metadata></entry>',
        ]
        assert "serves the collection 'memories' alone" in await refused(
            client, "qdrant-find", query="x", collection_name="others"
        )
        assert "must not be blank" in await refused(client, "qdrant-store", information=" ")


async def test_nothing_is_stored_where_that_is_not_allowed(index):
    for compat, allow_write in ((settings(), False), (settings(QDRANT_READ_ONLY="true"), True)):
        async with talking(index, compat=compat, allow_write=allow_write) as client:
            assert [tool.name for tool in (await client.list_tools()).tools][-1] == "qdrant-find"
            assert "there is no tool" in await refused(client, "qdrant-store", information="x")
            assert "there is no index 'memories'" in await refused(client, "qdrant-find", query="x")


async def test_read_only_is_of_all_tools(index, folder):
    compat = settings(QDRANT_READ_ONLY="1")
    async with talking(index, compat=compat, allow_write=True, root=folder) as client:
        tools = (await client.list_tools()).tools
        assert all(tool.annotations.read_only_hint for tool in tools)
        assert "there is no tool" in await refused(client, "index_folder")


async def test_what_is_stored_and_found_is_bounded(index):
    async with talking(index, compat=settings(), allow_write=True) as client:
        assert "at most 60000 characters" in await refused(client, "qdrant-store", information="x" * 60_001)
        for n in range(3):
            await ask(client, "qdrant-store", information=f"{n} " * 20_000, metadata={"long": "x" * 5000, "n": n})
        result = await client.call_tool("qdrant-find", {"query": "0"})
        assert len(result.content) == 4
        assert 60_000 < len(said(result)) < 70_000
        assert '"metadata_left_out": ["long"]' in said(result)


async def test_filters_limits_and_descriptions(index):
    compat = settings(
        QDRANT_ALLOW_ARBITRARY_FILTER="1",
        QDRANT_SEARCH_LIMIT="2",
        TOOL_FIND_DESCRIPTION="Find snippets.",
        TOOL_STORE_DESCRIPTION="Keep a snippet.",
    )
    async with talking(index, compat=compat, allow_write=True) as client:
        tools = {tool.name: tool.description for tool in (await client.list_tools()).tools}
        assert (tools["qdrant-find"], tools["qdrant-store"]) == ("Find snippets.", "Keep a snippet.")
        for n in range(4):
            await ask(client, "qdrant-store", information=f"note {n}", metadata={"n": n})
        assert len((await client.call_tool("qdrant-find", {"query": "note"})).content) == 3
        only = {"must": [{"key": "metadata.n", "match": {"value": 3}}]}
        found = await ask(client, "qdrant-find", query="note", query_filter=only)
        assert found.endswith('<entry><content>note 3</content><metadata>{"n": 3}</metadata></entry>')
        assert len((await client.call_tool("qdrant-find", {"query": "note", "query_filter": None})).content) == 3
        none = {"must": [{"key": "metadata.n", "match": {"value": 7}}]}
        result = await client.call_tool("qdrant-find", {"query": "note", "query_filter": none})
        assert said(result) == "No information found for the query 'note'"
        for wrong in ({"must": 5}, {"mustard": []}):
            assert "must be a filter of Qdrant's" in await refused(client, "qdrant-find", query="x", query_filter=wrong)


def test_the_environment():
    assert settings() == settings(QDRANT_URL="", COLLECTION_NAME="", QDRANT_READ_ONLY="")
    read = settings(
        QDRANT_URL="http://localhost:6333",
        COLLECTION_NAME="notes",
        EMBEDDING_MODEL="sentence-transformers/all-MiniLM-L6-v2",
        QDRANT_READ_ONLY="True",
    )
    assert (read.store, read.collection, read.read_only) == ("http://localhost:6333", "notes", True)
    assert read.model == "sentence-transformers/all-MiniLM-L6-v2"
    assert settings(QDRANT_LOCAL_PATH="/data").store == "/data"
    for url in (":memory:", "localhost:6333", "index"):
        with pytest.raises(InvalidInputError, match="QDRANT_URL must begin with http"):
            settings(QDRANT_URL=url)
    with pytest.raises(InvalidInputError, match="both set"):
        settings(QDRANT_URL="http://x", QDRANT_LOCAL_PATH="/y")
    with pytest.raises(InvalidInputError, match="QDRANT_READ_ONLY must be true or false, not 'maybe'"):
        settings(QDRANT_READ_ONLY="maybe")
    for limit in ("0", "51", "ten", "1.5", "²"):
        with pytest.raises(InvalidInputError, match="QDRANT_SEARCH_LIMIT must be a number from 1 to 50"):
            settings(QDRANT_SEARCH_LIMIT=limit)
