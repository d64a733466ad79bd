"""The command ``serve`` as a process."""

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading

import httpx
import numpy as np
import openai
import pytest
from typer.testing import CliRunner

from pplx_vectorstore.cli import app
from pplx_vectorstore.serving import command
from pplx_vectorstore.serving.wire import to_unit_norm

KEY = "secret-key-4711"
NAME = "all-minilm-l6-v2"
SERVE = [sys.executable, "-c", "from pplx_vectorstore.cli import main; main()", "serve", "--port", "0"]


@contextlib.contextmanager
def serving(*options, **environment):
    """Run the command on a free port; yields the process, its address, and the lines that it prints."""
    process = subprocess.Popen(
        [*SERVE, *options],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    lines = []
    ready = threading.Event()

    def read():
        for line in process.stderr:
            lines.append(line)
            if line.startswith("serving "):
                ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(120)
        yield process, lines[-1].split(" on ")[1].split(";")[0], lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


@pytest.mark.slow
class TestProcess:
    def test_openais_clients_get_the_models_vectors_and_sigterm_answers_what_was_taken_on(self):
        from pplx_vectorstore import load_encoder

        with serving("--model", NAME, "--dtype", "float32", PPLX_VECTORSTORE_API_KEY=KEY) as (process, url, lines):
            texts = ["Berlin is the capital of Germany.", "It has 3.9 million inhabitants."]
            expected = to_unit_norm(
                np.concatenate(load_encoder(NAME, dtype="float32").encode_documents([[text] for text in texts]))
            )
            with openai.OpenAI(api_key=KEY, base_url=f"{url}/v1", max_retries=0) as client:
                for options in ({}, {"encoding_format": "float"}):
                    found = client.embeddings.create(input=texts, model=NAME, **options)
                    assert [entry.embedding for entry in found.data] == pytest.approx(expected, abs=0.01)
                assert [model.id for model in client.models.list()] == [NAME]
                with pytest.raises(openai.UnprocessableEntityError, match="check_embedding_ctx_length=False"):
                    client.embeddings.create(input=[[1, 2]], model=NAME)
            with (
                openai.OpenAI(api_key="other", base_url=f"{url}/v1", max_retries=0) as stranger,
                pytest.raises(openai.AuthenticationError),
            ):
                stranger.embeddings.create(input="a", model=NAME)
            statuses = asyncio.run(self.ask_until_it_ends(process, url, texts))
            assert process.wait(300) == 0
            assert statuses.count(200) >= 16
            assert set(statuses) <= {200, 429, 503}
        assert lines[-1] == "all requests are answered; ended\n"
        assert KEY not in "".join(lines)

    async def ask_until_it_ends(self, process, url, texts):
        """Have 16 clients ask, and send SIGTERM while they do; return the statuses of all answers."""
        of_clients = [[] for _ in range(16)]  # their answers' statuses, or how they ended
        body = {"model": NAME, "input": [texts * 10]}

        async def ask(client, statuses):
            was_told = False
            while True:
                try:
                    answer = await client.post(f"{url}/v1/contextualizedembeddings", json=body, timeout=300)
                except httpx.ConnectError:
                    return
                except httpx.TransportError as error:
                    # A connection that nobody has taken up yet ends with the socket that listens.
                    if not was_told:
                        statuses.append(repr(error))
                    return
                statuses.append(answer.status_code)
                was_told = answer.headers.get("connection") == "close"
                if answer.status_code != 200:
                    await asyncio.sleep(0.05)

        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}) as client:
            tasks = [asyncio.create_task(ask(client, statuses)) for statuses in of_clients]
            while not all(of_clients):
                await asyncio.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            await asyncio.gather(*tasks)
        return list(itertools.chain(*of_clients))

    def test_a_model_that_cannot_be_loaded_is_one_line_and_1(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        ran = subprocess.run(
            [*SERVE, "--model", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert ran.returncode == 1
        assert ran.stderr.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in ran.stderr

    def test_ctrl_c_while_the_model_is_being_loaded(self):
        process = subprocess.Popen(
            [*SERVE, "--model", NAME],
            stderr=subprocess.PIPE,
            text=True,
        )
        with process.stderr:
            assert process.stderr.readline().startswith("listening on")
            process.send_signal(signal.SIGINT)
            assert process.wait(300) == 0  # what is being loaded is waited for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "PPLX_VECTORSTORE_API_KEY"),
        (["--unset-encoding", "hex"], "--unset-encoding must be one of base64_int8"),
        (["--backend", "api"], "--backend of a server must be torch or onnx, not 'api'"),
        (["--turn-tokens", "0"], "--turn-tokens must be at least 1, not 0"),
        (["--api-key", "two words"], "printable ASCII"),
        (["--host", "192.0.2.7", "--api-key", KEY], "cannot listen on 192.0.2.7"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(options, message, monkeypatch):
    monkeypatch.delenv("PPLX_VECTORSTORE_API_KEY", raising=False)
    ran = CliRunner().invoke(app, ["serve", "--model", NAME, *options])
    assert ran.exit_code == 1
    assert message in " ".join(ran.stderr.split())
    assert KEY not in ran.stderr


def test_the_key_is_not_in_a_representation():
    options = command.ServeOptions(
        model=NAME,
        host="127.0.0.1",
        port=0,
        api_key=KEY,
        allowed_hosts=(),
        served_names=(),
        unset_encoding="float",
        turn_tokens=None,
        log_requests=False,
        load_options={},
    )
    assert KEY not in repr(options)
