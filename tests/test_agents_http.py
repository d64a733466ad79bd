"""The server of agents by HTTP, on loopback."""

import asyncio
import contextlib
import hmac
import threading

import httpx
import httpx2
import pytest
from agent_client import ask, lazy_index
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_messages import INITIALIZE

from pplx_vectorstore import Document, VectorStore
from pplx_vectorstore.agents.command import ServeOptions, make_tools, serve_index
from pplx_vectorstore.agents.http import bind, make_app, make_http_server
from pplx_vectorstore.agents.server import ToolServer
from pplx_vectorstore.errors import InvalidInputError, StoreError
from pplx_vectorstore.guarded_http.access import choose_access

KEY = "a-key-of-ours"
ACCEPT = {"Accept": "application/json, text/event-stream"}


@pytest.fixture
def index(folder, hash_encoder):
    encoder = hash_encoder()
    with VectorStore.open(folder / "index", encoder=encoder) as store:
        store.add([Document(id=f"d{n}", chunks=[f"text {n}"]) for n in range(20)])
    return lazy_index(folder / "index", encoder)


@contextlib.asynccontextmanager
async def serving(index, *, key=None, host="127.0.0.1", **options):
    """Serve an index by HTTP on a port of its own, and yield the URL."""
    tools = ToolServer(make_tools(index, ServeOptions(descriptions={}, **options)))
    with bind(host, 0) as listening:
        port = listening.getsockname()[1]
        server = make_http_server(make_app(tools.server, host=host, port=port, key=key))
        running = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            assert not running.done()
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            server.should_exit = True
            await running
            tools.close()
            index.close()


@contextlib.asynccontextmanager
async def talking_with(url, key):
    """Yield the SDK's client, which sends a key."""
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as sending,
        Client(streamable_http_client(url, http_client=sending)) as client,
    ):
        yield client


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_many_clients_at_once(index, mode):
    async def one(url, n):
        async with Client(url, mode=mode) as client:
            assert len((await client.list_tools()).tools) == 4
            (hit,) = (await ask(client, "search", query=f"text {n}", k=1))["hits"]
            return hit["document_id"]

    async with serving(index) as url:
        found = await asyncio.gather(*(one(url, n) for n in range(10)))
    assert found == [f"d{n}" for n in range(10)]


async def test_a_key(index):
    async with serving(index, key=KEY, host="0.0.0.0") as url:
        async with talking_with(url, KEY) as client:
            assert (await ask(client, "index_info"))["documents"] == 20
        async with httpx.AsyncClient(headers=ACCEPT) as plain:
            keys = [None, "", "Bearer", f"Bearer {KEY}x", KEY, f"Basic {KEY}", "Bearer a-k\u00e9y"]
            for sent in keys:
                headers = {} if sent is None else {"Authorization": sent.encode("latin-1")}
                for path in ("/mcp", "/", "/health"):
                    for method in ("POST", "GET", "DELETE", "OPTIONS"):
                        where = url.removesuffix("/mcp") + path
                        answer = await plain.request(method, where, headers=headers, json=INITIALIZE)
                        assert answer.status_code == 401, (sent, path, method)
            twice = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer x")]
            assert (await plain.post(url, headers=twice, json=INITIALIZE)).status_code == 401
            right = {"Authorization": f"bearer {KEY}"}
            assert (await plain.post(url, headers=right, json=INITIALIZE)).status_code == 200


async def test_keys_are_compared_in_constant_time(index, monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append(one) or real(one, other))
    async with serving(index, key=KEY) as url, httpx.AsyncClient(headers=ACCEPT) as plain:
        await plain.post(url, headers={"Authorization": "Bearer wrong"}, json=INITIALIZE)
    assert compared == [b"wrong"]


async def test_pages_of_browsers_are_kept_out(index):
    async with serving(index) as url, httpx.AsyncClient(headers=ACCEPT) as plain:
        port = httpx.URL(url).port
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", f"[::1]x:{port}"):
            answer = await plain.post(url, headers={"Host": host}, json=INITIALIZE)
            assert answer.status_code == 421, host
        for origin in ("http://evil.example", "null", f"http://localhost:{port}"):
            answer = await plain.post(url, headers={"Origin": origin}, json=INITIALIZE)
            assert answer.status_code == 403, origin
            assert "access-control-allow-origin" not in answer.headers
        for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
            answer = await plain.post(url, headers={"Host": host}, json=INITIALIZE)
            assert answer.status_code == 200, host
        for method in ("GET", "DELETE", "PUT"):
            assert (await plain.request(method, url)).status_code == 405
        assert (await plain.post(url.removesuffix("mcp"), json=INITIALIZE)).status_code == 404
        large = await plain.post(url, content=b" " * 5_000_000, headers={"Content-Type": "application/json"})
        assert large.status_code == 413


async def test_a_client_that_hangs_up_ends_what_it_asked_for(folder, hash_encoder, monkeypatch):
    for n in range(40):
        (folder / f"file{n}.txt").write_text(f"File {n}. " * 2000)
    encoder = hash_encoder()
    begun, goes_on = threading.Event(), threading.Event()
    encode = encoder.encode_documents

    def slow(documents, *, progress=None):
        begun.set()
        assert goes_on.wait(20)
        return encode(documents, progress=progress)

    monkeypatch.setattr(encoder, "encode_documents", slow)
    index = lazy_index(folder / "index", encoder)
    async with serving(index, allow_write=True, root=folder) as url:
        async with httpx.AsyncClient(headers=ACCEPT, timeout=20) as plain:
            call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "index_folder"}}
            asking = asyncio.create_task(plain.post(url, json=call))
            assert await asyncio.to_thread(begun.wait, 20)
            asking.cancel()
            await asyncio.wait([asking])
        await asyncio.sleep(0.2)
        goes_on.set()
        async with Client(url) as client:
            done = await ask(client, "index_folder")  # waits for its turn
            assert done["unchanged"] < 40
            assert done["unchanged"] + done["embedded"] == 40


def test_other_machines_need_a_key(index):
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(InvalidInputError, match="set PPLX_VECTORSTORE_API_KEY"):
            choose_access(host, None)
        choose_access(host, KEY)
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        choose_access(host, None)
    for key in ("", " x", "kéy", "a\nb"):
        with pytest.raises(InvalidInputError):
            choose_access("0.0.0.0", key)
    with pytest.raises(InvalidInputError, match="lets other machines in"):
        serve_index(index, ServeOptions(descriptions={}, http=True, host="0.0.0.0", port=0), print)


def test_a_port_that_is_taken(index):
    with bind("127.0.0.1", 0) as taken, pytest.raises(StoreError, match="give another --host or --port"):
        bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(StoreError, match="give another --host or --port"):
        bind("192.0.2.1", 0)
