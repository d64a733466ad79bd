"""An encoder that asks ``pplx-vectorstore serve`` gives the vectors of the local one."""

import asyncio
import importlib.util
import json
import os
import pickle
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pplx_vectorstore import ApiOptions, Document, VectorStore, load_encoder
from pplx_vectorstore.cli import app
from pplx_vectorstore.encoders.served import ServedModel
from pplx_vectorstore.errors import ApiError, InvalidInputError, SchemaMismatchError


def load_helper(name):
    """Import a helper module that lies beside this file, under its own name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


served_model, perplexity_server = load_helper("served_model"), load_helper("perplexity_server")

KEY = "secret-key-4711"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("PERPLEXITY_API_KEY", "PPLX_API_KEY", "PPLX_VECTORSTORE_API_KEY", "PPLX_VECTORSTORE_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def local(wide_pplx_checkpoint):
    """A model in the published layout, of 192 dimensions; windows of 64 tokens, so that documents have several."""
    return load_encoder(str(wide_pplx_checkpoint), window_tokens=64, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def server(local):
    with served_model.serve(local) as running:
        yield running


@pytest.fixture
def load(server, wide_pplx_checkpoint):
    """Load the encoder that asks the server: ``load(dimensions=128, …)``."""
    loaded = []

    def load(model=str(wide_pplx_checkpoint), **options):
        options.setdefault("base_url", server.url)
        options.setdefault("api", ApiOptions(max_retries=0))
        loaded.append(load_encoder(model, backend="api", **options))
        return loaded[-1]

    yield load
    for encoder in loaded:
        encoder.close()


@pytest.fixture(scope="module")
def documents(sentences):
    rng = random.Random(1)
    return [[rng.choice(sentences) for _ in range(rng.randint(1, 12))] for _ in range(30)]


def differences(found, expected):
    return max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(found, expected, strict=True))


class TestVectors:
    def test_are_those_of_the_local_encoder(self, local, load, documents, sentences):
        served = load()
        assert differences(served.encode_documents(documents), local.encode_documents(documents)) <= 1
        assert differences(served.encode_queries(sentences), local.encode_queries(sentences)) <= 1
        assert served.usage.cost == 0
        assert served.usage.tokens > 0

    def test_async(self, local, load, documents, run_async):
        served = load()
        found = run_async(served.aencode_documents(documents))
        run_async(served.aclose())
        assert differences(found, local.encode_documents(documents)) <= 1

    def test_cut_to_fewer_dimensions(self, load, documents, wide_pplx_checkpoint):
        local = load_encoder(str(wide_pplx_checkpoint), window_tokens=64, dimensions=128, dtype="float32", device="cpu")
        served = load(dimensions=128)
        assert differences(served.encode_documents(documents), local.encode_documents(documents)) <= 1
        assert served.fingerprint.identity() == local.fingerprint.identity()
        assert served.fingerprint.squared_norm == local.fingerprint.squared_norm

    def test_bits(self, local, load, documents):
        served = load(api=ApiOptions(encoding="binary"))
        for found, codes in zip(served.encode_documents(documents), local.encode_documents(documents), strict=True):
            sure = np.abs(codes) > 1
            np.testing.assert_array_equal(found[sure], np.where(codes >= 0, 1, -1)[sure])
        assert served.fingerprint.quantizer == "sign"

    def test_of_a_blend(self):
        """all-MiniLM-L6-v2: windows with start and end tokens, and 70 % of each chunk alone."""
        local = load_encoder("all-minilm-l6-v2", dtype="float32", device="cpu")
        texts = [["Berlin is the capital of Germany.", "It has 3.9 million inhabitants. " * 80], ["Alone."]]
        with served_model.serve(local) as server:
            served = load_encoder("all-minilm-l6-v2", backend="api", base_url=server.url)
            assert differences(served.encode_documents(texts), local.encode_documents(texts)) <= 1
            assert differences(served.encode_queries(["How many?"]), local.encode_queries(["How many?"])) <= 1
            assert served.fingerprint.identity() == local.fingerprint.identity()
            assert served.fingerprint.squared_norm == local.fingerprint.squared_norm
            served.close()


class TestStores:
    def test_what_one_wrote_the_other_searches(self, local, load, folder, sentences):
        with VectorStore.open(folder / "index", encoder=local) as store:
            store.add([Document(id=str(i), chunks=[text]) for i, text in enumerate(sentences)])
            expected = [hit.id for hit in store.search(sentences[3], k=8)]
        served = load()
        with VectorStore.open(folder / "index", encoder=served) as store:
            assert [hit.id for hit in store.search(sentences[3], k=8)] == expected
            store.sync([Document(id="9", chunks=["A ninth."])])
        with VectorStore.open(folder / "index", encoder=local) as store:
            assert store.count() == 9

    def test_another_model_is_refused(self, local, load, folder, hash_encoder):
        with VectorStore.open(folder / "index", encoder=hash_encoder(192)) as store:
            store.add([Document(id="a", chunks=["a"])])
        with pytest.raises(SchemaMismatchError):
            VectorStore.open(folder / "index", encoder=load())


class TestTheServedModel:
    def test_its_settings_are_taken_over(self, local, load):
        assert load().fingerprint == replace(local.fingerprint, backend="api", dtype=None)
        assert load(window_tokens=64, min_context=8, revision=local.fingerprint.revision).spec.window_tokens == 64

    def test_its_address_may_end_as_openais_clients_want_it(self, load, server):
        assert load(base_url=f"{server.url}/v1/").encode_queries(["A question."]).any()

    def test_requests_are_small_enough_for_a_cpu(self, load, server, monkeypatch):
        monkeypatch.setattr("pplx_vectorstore.encoders.api._SERVED_REQUEST_TOKENS", 100)
        served = load()
        served.encode_documents([["As we grow, curiosity drives us to explore new ideas."]] * 20)
        assert served.usage.requests >= 2

    @pytest.mark.parametrize(
        ("option", "value", "own"),
        [("window_tokens", 128, "64"), ("min_context", 5, "8"), ("revision", "abc", "sha256:")],
    )
    def test_other_settings_are_refused_with_both(self, load, option, value, own):
        with pytest.raises(InvalidInputError, match=f"{option}='?{own}.*not '?{value}"):
            load(**{option: value})

    def test_another_model_is_refused_with_both(self, load):
        with pytest.raises(InvalidInputError, match="serves wide-pplx-embed-context, not 'all-minilm-l6-v2'"):
            load("all-minilm-l6-v2")

    def test_a_server_that_goes_on_with_another_model_is_noticed(self, local, load, server, monkeypatch):
        served = load()
        monkeypatch.setattr(server.service, "_model", replace(server.service._model, digest="other"))
        with pytest.raises(ApiError, match="not the model that the client began with"):
            served.encode_queries(["A question."])
        monkeypatch.undo()
        assert served.encode_queries(["A question."]).any()

    def test_another_service_is_refused_with_the_way_out(self, load):
        with perplexity_server.PerplexityServer() as hosted, pytest.raises(ApiError, match="404"):
            load(base_url=hosted.url)

    @pytest.mark.parametrize(
        "listed", [None, [], {}, {"data": None}, {"data": [{"id": "gpt", "object": "model"}]}, {"data": ["gpt"]}]
    )
    def test_lists_of_other_servers(self, listed):
        with pytest.raises(ApiError, match=r"ApiOptions\(base_url"):
            ServedModel.read(listed, "gpt", "http://here")

    def test_a_description_of_a_later_version(self, server):
        import httpx

        listed = httpx.get(server.url + "/v1/models").json()
        listed["data"][0]["fingerprint"]["moon"] = 1
        with pytest.raises(ApiError, match="unknown moon"):
            ServedModel.read(listed, "x", "http://here")

    def test_a_server_that_is_not_there(self, load):
        with pytest.raises(ApiError, match="gave no answer"):
            load(base_url="http://127.0.0.1:9")

    def test_options_that_do_not_go_together(self, load, server):
        with pytest.raises(InvalidInputError, match="give one of them"):
            load(api=ApiOptions(base_url=server.url))
        with pytest.raises(InvalidInputError, match="base_url is not an option of backend='torch'"):
            load_encoder("all-minilm-l6-v2", base_url=server.url)


class TestKey:
    @pytest.fixture
    def server(self, local):
        with served_model.serve(local, api_key=KEY) as running:
            yield running

    def test_is_given_or_of_the_environment(self, load, monkeypatch):
        with pytest.raises(ApiError, match="refused the key"):
            load()
        encoder = load(api_key=KEY)
        assert encoder.encode_queries(["A question."]).any()
        pickled = pickle.dumps(encoder)
        assert KEY.encode() not in pickled
        monkeypatch.setenv("PPLX_VECTORSTORE_API_KEY", KEY)
        assert load().encode_queries(["A question."]).any()
        restored = pickle.loads(pickled)
        assert restored.encode_queries(["A question."]).any()
        restored.close()

    def test_that_of_the_hosted_service_is_not_sent_elsewhere(self, load, monkeypatch):
        monkeypatch.setenv("PERPLEXITY_API_KEY", KEY)
        with pytest.raises(ApiError, match="refused the key"):
            load()


class TestCommands:
    """``--base-url`` of `index`, `search` and `mcp`."""

    @pytest.fixture
    def run(self, server, wide_pplx_checkpoint, tmp_path, monkeypatch):
        (tmp_path / "docs").mkdir()
        for name in ("cats", "stars"):
            (tmp_path / "docs" / f"{name}.txt").write_text(f"All about {name}.")
        monkeypatch.chdir(tmp_path)

        def run(*arguments, code=0):
            done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
            assert done.exit_code == code, done.output
            return done

        run("index", "docs", "--model", str(wide_pplx_checkpoint), "--backend", "api", "--base-url", server.url)
        return run

    def test_index_and_search_ask_it(self, run, server, local, wide_pplx_checkpoint, monkeypatch):
        assert find_best(run, "--base-url", server.url) == "docs/cats.txt"  # the tokenizer's folder is remembered
        # The index says nothing of the place; the environment may.
        monkeypatch.setenv("PPLX_VECTORSTORE_BASE_URL", server.url)
        assert find_best(run) == "docs/cats.txt"
        Path("docs/stars.txt").write_text("Of stars alone.")
        assert "indexed 1 document" in run("index", "docs").stdout
        with VectorStore.open(".pplx-vectorstore", encoder=local) as store:  # the same vectors as made here
            assert store.search("Of stars alone.", k=1)[0].score == pytest.approx(1, abs=0.01)

    def test_what_was_asked_at_home_is_not_asked_of_the_hosted_service(self, run, monkeypatch):
        monkeypatch.setenv("PERPLEXITY_API_KEY", KEY)
        monkeypatch.setenv("PERPLEXITY_BASE_URL", "http://127.0.0.1:1")
        for options in ([], ["--backend", "api"]):
            refused = run("search", "All about cats.", *options, code=2).stderr
            assert "say where that is, with --base-url http://HOST:PORT" in " ".join(refused.split())
        Path("docs/stars.txt").write_text("Of stars alone.")
        assert "PPLX_VECTORSTORE_BASE_URL" in run("index", "docs", code=1).stderr

    def test_an_index_made_here_is_searched_through_it(self, run, server, local, wide_pplx_checkpoint):
        with VectorStore.open("local", encoder=local) as store:
            store.add([Document(id="cats", chunks=["All about cats."])])
        model = ["--model", str(wide_pplx_checkpoint)]
        assert find_best(run, "--store", "local", *model, "--base-url", server.url) == "cats"

    def test_what_does_not_go_together_is_refused(self, run, server):
        refused = run("search", "x", "--base-url", server.url, "--backend", "torch", code=2).stderr
        assert "base_url is not an option of backend='torch'" in refused
        assert "--base-url is empty" in run("search", "x", "--base-url", "", code=2).stderr

    def test_agents_search_through_it(self, run, server):
        from agent_client import ask
        from mcp.client import Client
        from mcp.client.stdio import StdioServerParameters, stdio_client

        async def converse():
            parameters = StdioServerParameters(
                command=sys.executable,
                args=["-c", "from pplx_vectorstore.cli import main; main()", "mcp", "--base-url", server.url],
                env=dict(os.environ),
                cwd=Path.cwd(),
            )
            async with Client(stdio_client(parameters)) as client:
                return (await ask(client, "search", query="All about cats.", k=1))["hits"]

        (hit,) = asyncio.run(converse())
        assert hit["document_id"] == "docs/cats.txt"


def find_best(run, *options):
    (hit,) = json.loads(run("search", "All about cats.", "-k", "1", "--json", *options).stdout)
    return hit["document_id"]
