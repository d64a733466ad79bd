"""The server of agents as a program, over standard input and output."""

import asyncio
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agent_client import ask, refused
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp_messages import INITIALIZE
from typer.testing import CliRunner

from pplx_vectorstore.cli import app

COMMAND = str(Path(sys.executable).with_name("pplx-vectorstore"))


@pytest.fixture
def project(folder):
    root = (folder / "project").resolve()
    (root / "docs").mkdir(parents=True)
    (root / "docs" / "cats.md").write_text("# Cats\n\nCats purr when they are happy.\n")
    return root


@pytest.fixture
def program(project, tests_folder):
    """The command line of a server of the project, without a model."""
    return [sys.executable, str(tests_folder / "agent_program.py"), str(project / "index"), str(project)]


def client_of(command, project, mode="auto"):
    parameters = StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ), cwd=project)
    return Client(stdio_client(parameters), mode=mode)


async def test_a_conversation(program, project):
    async with client_of(program, project, mode="legacy") as client:
        assert "there is no index" in await refused(client, "search", query="x")
        assert (await ask(client, "index_folder"))["new"] == 1
        (hit,) = (await ask(client, "search", query="cats"))["hits"]
        assert (hit["file"], hit["lines"]) == (str(project / "docs" / "cats.md"), [1, 3])


def test_nothing_but_protocol_on_standard_output(program):
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "index_folder", "arguments": {}}}
    ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        for message in (INITIALIZE, ready, call):
            running.stdin.write(json.dumps(message).encode() + b"\n")
        running.stdin.write(b"this is no message\n")
        running.stdin.flush()
        answers = []
        while not any(answer.get("id") == 2 for answer in answers):
            answers.append(json.loads(running.stdout.readline()))
        running.stdin.close()  # the client has left
        rest, errors = running.stdout.read(), running.stderr.read()
        assert running.wait(20) == 0
    assert [json.loads(line) for line in rest.splitlines()] == []
    assert all(answer["jsonrpc"] == "2.0" for answer in answers)
    assert b"what a library prints" in errors


def test_http_ends_when_told_to(program, project):
    with subprocess.Popen([*program, "--http"], stderr=subprocess.PIPE, text=True) as running:
        url = json.loads(running.stderr.readline())["url"]

        async def talk():
            async with Client(url) as client:
                assert (await ask(client, "index_folder"))["new"] == 1

        asyncio.run(talk())
        running.send_signal(signal.SIGTERM)
        running.stderr.read()
        assert running.wait(20) == 0


def test_a_client_that_goes_away_in_the_midst(program, project):
    for n in range(40):
        (project / f"file{n}.txt").write_text(f"File {n}. " * 2000)
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "index_folder", "arguments": {}}}
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        for message in (INITIALIZE, {"jsonrpc": "2.0", "method": "notifications/initialized"}, call):
            running.stdin.write(json.dumps(message).encode() + b"\n")
        running.stdin.flush()
        running.stdout.readline()
        while not (project / "index" / "documents").exists():
            time.sleep(0.01)
        running.stdin.close()
        running.stdout.read()
        assert running.wait(20) == 0

    async def again():
        async with client_of(program, project) as client:
            done = await ask(client, "index_folder")
            return done["unchanged"] + done["embedded"], (await ask(client, "list_documents"))["total"]

    assert asyncio.run(again()) == (41, 41)


def run(*arguments, **environment):
    return CliRunner(env=environment).invoke(app, ["mcp", *arguments])


def test_the_command_refuses_what_does_not_go_together(project):
    assert "lets other machines in" in run("--http", "--host", "0.0.0.0", PPLX_VECTORSTORE_API_KEY="").stderr
    assert "--allow-write needs --root FOLDER" in run("--allow-write").stderr
    assert "--root must be a folder" in run("--root", str(project / "none")).stderr
    assert "--describe must be TOOL=TEXT" in run("--describe", "search").stderr
    assert "'find', which is none of the tools" in run("--describe", "find=x").stderr
    assert "both set" in run("--compat", QDRANT_URL="http://x", QDRANT_LOCAL_PATH="y").stderr
    assert run("--port", "70000").exit_code == 2
    assert "--port is of --http" in run("--port", "8000").stderr
    assert "--api-key is of --http" in run("--api-key", "x").stderr


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "pplx_vectorstore.agents.server", raising=False)
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.setitem(sys.modules, "mcp_types", None)
    assert "pip install 'pplx-vectorstore[mcp]'" in run().stderr


@pytest.mark.slow
async def test_the_command_with_a_model(project):
    """By the real command line, with the real model, in the environment of mcp-server-qdrant, too."""
    environment = os.environ | {
        "COLLECTION_NAME": "memories",
        "EMBEDDING_MODEL": "sentence-transformers/all-MiniLM-L6-v2",
    }
    parameters = StdioServerParameters(
        command=COMMAND, args=["mcp", "--compat", "--allow-write", "--root", "."], env=environment, cwd=project
    )
    async with Client(stdio_client(parameters)) as client:
        assert (await ask(client, "index_folder"))["new"] == 1
        await ask(client, "qdrant-store", information="The sun is a star.")
        facts = await ask(client, "index_info")
        assert (facts["collection"], facts["model"], facts["chunks"]) == ("memories", "all-minilm-l6-v2", 2)
        assert facts["store"] == str(project / ".pplx-vectorstore")
        (first, second) = (await ask(client, "search", query="What do happy cats do?"))["hits"]
        assert (first["document_id"], first["file"]) == ("docs/cats.md", str(project / "docs" / "cats.md"))
        assert first["score"] > 0.4 > second["score"]


@pytest.mark.slow
def test_the_conversation_in_the_docs_is_what_is_said():
    docs = Path(__file__).parent.parent / "docs"
    held = runpy.run_path(str(docs / "agent_conversation.py"))["main"]()
    (shown,) = re.findall(r"```text\n(> search .*?)\n```", (docs / "agents.md").read_text("utf-8"), re.DOTALL)
    score = re.compile(r"score (\d\.\d{3})")
    assert score.sub("score", held) == score.sub("score", shown)
    # Hardware with and without bfloat16 differs in the second decimal.
    assert list(map(float, score.findall(held))) == pytest.approx(list(map(float, score.findall(shown))), abs=0.02)
