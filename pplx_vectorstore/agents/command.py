"""What ``pplx-vectorstore mcp`` does."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pplx_vectorstore.agents import DEFAULT_HOST, DEFAULT_PORT
from pplx_vectorstore.agents.compat import QdrantSettings, QdrantTools
from pplx_vectorstore.agents.folders import FolderTool
from pplx_vectorstore.agents.index import LazyIndex
from pplx_vectorstore.agents.reading import ReadingTools
from pplx_vectorstore.agents.tools import Tool
from pplx_vectorstore.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    from pplx_vectorstore.agents.server import ToolServer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How an index is served to agents.

    Attributes:
        root: Below this folder files may be read: to see whether hits are still there, and to be indexed.
        allow_write: Whether tools that write are offered.
        descriptions: Of tools, by name, in the place of ours.
        compat: Settings for the tools of mcp-server-qdrant; None without these.
        http: Whether to serve by HTTP, not by standard input and output.
        host: Where to listen.
        port: Where to listen; 0 for any that is free.
        key: What clients by HTTP must send.
    """

    root: Path | None = None
    allow_write: bool = False
    descriptions: Mapping[str, str]
    compat: QdrantSettings | None = None
    http: bool = False
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.root is not None and not self.root.is_dir():
            raise InvalidInputError(f"--root must be a folder that exists, not {str(self.root)!r}")
        if self.allow_write and self.root is None and self.compat is None:
            raise InvalidInputError(
                "--allow-write needs --root FOLDER, below which files may be indexed (or --compat, to store texts)"
            )

    @property
    def may_write(self) -> bool:
        """Whether tools that write are offered, which the environment of mcp-server-qdrant may forbid."""
        return self.allow_write and not (self.compat is not None and self.compat.read_only)


def parse_descriptions(given: Sequence[str]) -> dict[str, str]:
    """Read descriptions that are given as TOOL=TEXT.

    Raises:
        InvalidInputError: One is not.
    """
    descriptions = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals or not text.strip():
            raise InvalidInputError(f"--describe must be TOOL=TEXT, such as search='Search our handbook', not {one!r}")
        descriptions[name] = text
    return descriptions


def make_tools(index: LazyIndex, options: ServeOptions) -> list[Tool]:
    """Make the tools that are offered.

    Raises:
        InvalidInputError: A description is of none of them.
    """
    root = None if options.root is None else options.root.resolve()
    folders = [root] if root is not None else []
    if index.place.folder is not None:
        folders.append(index.place.folder.resolve().parent)
    tools = ReadingTools(index=index, folders=folders).tools()
    if options.may_write and root is not None:
        tools += FolderTool(index=index, root=root).tools()
    if options.compat is not None:
        tools += QdrantTools(index=index, settings=options.compat, may_write=options.may_write).tools()
    unknown = set(options.descriptions) - {tool.name for tool in tools}
    if unknown:
        raise InvalidInputError(
            f"--describe names {min(unknown)!r}, which is none of the tools: {', '.join(tool.name for tool in tools)}"
        )
    return [replace(tool, description=options.descriptions.get(tool.name, tool.description)) for tool in tools]


def serve_index(index: LazyIndex, options: ServeOptions, announce: Callable[[str], None]) -> None:
    """Serve an index until the client, or whoever started this, ends it.

    Args:
        index: The index; closed at the end.
        options: How.
        announce: Says where it is served, to a person.

    Raises:
        MissingExtraError: The extra ``mcp`` is not installed.
        InvalidInputError: The options do not go together.
    """
    try:
        from pplx_vectorstore.agents.server import ToolServer
    except ImportError as error:
        raise MissingExtraError("serving agents", "mcp") from error

    server = ToolServer(make_tools(index, options), preload=index.preload)
    try:
        if options.http:
            _serve_http(server, options, announce)
        else:
            if sys.stdin.isatty():
                announce(
                    "over standard input and output; it is a client of the Model Context Protocol that starts this"
                )
            _serve_stdio(server)
    finally:
        server.close()
        index.close()


def _serve_stdio(server: ToolServer) -> None:
    from mcp.server.stdio import stdio_server

    async def run() -> None:
        async with stdio_server() as (read, write):
            await server.server.run(read, write, server.server.create_initialization_options())

    # The thread that waits for standard input cannot be interrupted, and what was acknowledged is safe.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asyncio.run(run())


def _serve_http(server: ToolServer, options: ServeOptions, announce: Callable[[str], None]) -> None:
    from pplx_vectorstore.agents.http import PATH, bind, make_app, make_http_server
    from pplx_vectorstore.guarded_http.access import choose_access

    choose_access(options.host, options.key)  # refused before the port is taken
    with bind(options.host, options.port) as listening:
        host, port = listening.getsockname()[:2]
        # What uvicorn has caught, it raises again at its end; then the index is to be closed.
        signal.signal(signal.SIGTERM, lambda *_: _end())
        announce(f"at http://{f'[{host}]' if ':' in host else host}:{port}{PATH}")
        app = make_app(server.server, host=options.host, port=port, key=options.key)
        asyncio.run(make_http_server(app).serve(sockets=[listening]))


def _end() -> None:
    raise SystemExit(0)
