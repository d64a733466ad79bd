"""What the tests of agents share: an index, a server of its tools, and the SDK's client."""

import contextlib

from mcp.client import Client

from pplx_vectorstore.agents.command import ServeOptions, make_tools
from pplx_vectorstore.agents.index import LazyIndex, Place
from pplx_vectorstore.agents.server import ToolServer
from pplx_vectorstore.engines.edge import EdgeClient


def lazy_index(folder, load, *, collection="documents", tenant=None):
    """Return the index in a folder; `load` is an encoder, or what loads one."""
    place = Place(name=str(folder), collection=collection, tenant=tenant, folder=folder, way_out="make one")
    return LazyIndex(
        place, lambda: contextlib.closing(EdgeClient(folder)), load if callable(load) else lambda recorded: load
    )


@contextlib.asynccontextmanager
async def talking(index, *, mode="auto", preload=False, **options):
    """Serve an index in this process, and yield a client of it."""
    options = ServeOptions(descriptions=options.pop("descriptions", {}), **options)
    server = ToolServer(make_tools(index, options), preload=index.preload if preload else lambda: None)
    try:
        async with Client(server.server, mode=mode) as client:
            yield client
    finally:
        server.close()
        index.close()


async def ask(client, tool, **arguments):
    """Call a tool that answers, and return its data; its text where it has none."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content[0].text
    return result.structured_content if result.structured_content is not None else said(result)


async def refused(client, tool, **arguments):
    """Call a tool that refuses, and return what it says."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.content
    return said(result)


def said(result):
    """Return the texts of an answer."""
    return "\n".join(content.text for content in result.content)
