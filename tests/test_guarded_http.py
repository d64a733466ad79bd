"""What stands before every HTTP server, tested on that of agents; `test_serving_http` tests the same on ``serve``."""

import contextlib
import http.client
import json
import socket
import threading
import time

import pytest
from mcp.server.lowlevel import Server
from mcp_messages import INITIALIZE

from pplx_vectorstore.agents.http import bind, make_app, make_http_server
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.guarded_http.access import Access, NotAdmittedError, choose_access, host_name, require_form
from pplx_vectorstore.guarded_http.connections import GuardedProtocol

BODY = json.dumps(INITIALIZE).encode()


@pytest.fixture(scope="module")
def address():
    """A server of agents that offers nothing."""
    with bind("127.0.0.1", 0) as listening:
        host, port = listening.getsockname()
        server = make_http_server(make_app(Server("nothing"), host=host, port=port, key=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield host, port
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def connect(address):
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection(address, timeout=10))


def head(address, *lines):
    fields = [f"Host: {address[0]}:{address[1]}", "Content-Type: application/json", *lines]
    return "\r\n".join(["POST /mcp HTTP/1.1", *fields, "", ""]).encode()


def whole(address):
    return (
        head(
            address,
            "Accept: application/json, text/event-stream",
            f"Content-Length: {len(BODY)}",
        )
        + BODY
    )


def read_answer(sock):
    response = http.client.HTTPResponse(sock)
    response.begin()
    return response.status, response.read()


def is_closed(sock):
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("rest", ["", "half a head", "half a body"])
def test_whoever_stops_sending_is_let_go(address, connect, rest, monkeypatch):
    monkeypatch.setattr(GuardedProtocol, "receive_seconds", 0.5)
    sock = connect()
    sent = {"": b"", "half a head": whole(address)[:40], "half a body": whole(address)[:-5]}[rest]
    sock.sendall(sent)
    assert is_closed(sock)
    monkeypatch.undo()
    again = connect()
    again.sendall(whole(address))
    assert read_answer(again)[0] == 200


def test_two_lengths_are_refused_and_nothing_behind_them_is_read(address, connect):
    sock = connect()
    sock.sendall(head(address, "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n" + whole(address))
    status, content = read_answer(sock)
    assert (status, json.loads(content)) == (
        400,
        {"error": "a request has Content-Length or Transfer-Encoding, not both"},
    )
    assert is_closed(sock)


def test_many_fields_are_refused(address, connect):
    sock = connect()
    sock.sendall(head(address, *(f"X-{i}: 1" for i in range(100)), "Content-Length: 0"))
    assert read_answer(sock)[0] == 431


def test_what_is_no_http_is_refused_as_json(connect):
    sock = connect()
    sock.sendall(b"\x16\x03\x01\x02\x00\x01\r\n\r\n")
    status, content = read_answer(sock)
    assert (status, list(json.loads(content))) == (400, ["error"])
    assert is_closed(sock)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("Localhost:80", "localhost"),
        ("localhost.", "localhost"),
        ("[::1]:8", "[::1]"),
        ("[::1]", "[::1]"),
        ("::1", "::1"),
        ("a:b", "a:b"),
        ("evil.example:80:80", "evil.example:80:80"),
        ("", ""),
    ],
)
def test_names_of_hosts(host, name):
    assert host_name(host) == name


def test_the_way_out_is_an_option_that_there_is():
    scope = {"headers": [(b"host", b"evil.example")]}
    for option in (None, "--allowed-host"):
        access = choose_access("127.0.0.1", None, host_option=option)
        with pytest.raises(NotAdmittedError) as refused:
            require_form(scope, access)
        assert (refused.value.status, "--allowed-host" in refused.value.message) == (421, option is not None)
    require_form(scope, Access())


def test_the_variable_of_the_key_is_named_and_the_key_is_not_shown():
    with pytest.raises(InvalidInputError, match="set PPLX_VECTORSTORE_API_KEY to one"):
        choose_access("0.0.0.0", None)
    assert "secret" not in repr(choose_access("0.0.0.0", "secret"))
