"""What goes to workers, without a cluster."""

import pickle

import numpy as np
import pytest
from ray_pplx_vectorstore.place import MeteredEncoder, ModelChoice, Place

from pplx_vectorstore import Document, VectorStore
from pplx_vectorstore.errors import InvalidInputError, StoreNotFoundError

CHOICE = ModelChoice(model="all-minilm-l6-v2", chunk_tokens=256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": 5}, "must be a name, or a function that makes an encoder in each worker, not int"),
        ({"model": "m", "options": {"api_key": "pplx-4711"}}, "set PERPLEXITY_API_KEY or PPLX_API_KEY in their env"),
        ({"model": "m", "options": {"dtpye": "float32"}}, "no option dtpye; model_options takes api, backend"),
        ({"model": print, "options": {"dtype": "float32"}}, "a function that makes an encoder has its own"),
        ({"model": "m", "chunk_tokens": 0}, "chunk_tokens must be a whole number of at least 1"),
    ],
)
def test_a_model_that_no_worker_can_load_is_refused(options, message):
    with pytest.raises(InvalidInputError, match=message) as caught:
        ModelChoice(**({"chunk_tokens": 256} | options))
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("my-index", "must be of a server, such as http://qdrant:6333, not 'my-index'"),
        ("user:4711@host", "not 'host'"),
        (None, "not NoneType"),
        ("http://user:4711@host:6333", "set QDRANT_API_KEY"),
    ],
)
def test_a_place_that_not_all_workers_can_see_is_refused(url, message):
    with pytest.raises(InvalidInputError, match=message) as caught:
        Place(url=url, model=CHOICE, options={})
    assert "4711" not in str(caught.value)


def test_keys_do_not_travel(monkeypatch):
    monkeypatch.setenv("QDRANT_API_KEY", "key-4711")
    place = Place(url="http://host:6333", model=CHOICE, options={"collection": "c"})
    travelled = pickle.dumps(place)
    assert b"4711" not in travelled
    assert pickle.loads(travelled) == place


def test_a_store_is_opened_with_its_model_and_without(server, chaos, tmp_path):
    choice = ModelChoice(model=chaos.make_chaos(tmp_path), chunk_tokens=3)
    place = Place(url=server.url, model=choice, options={"collection": "c"})
    for opening in (place.open_without_model, lambda: place.open(choice.load())):
        with pytest.raises(StoreNotFoundError):
            opening()
    with place.open(choice.load(), create=True) as store, place.open_without_model() as another:
        store.add([Document(id="d", text="one two three four five")])
        assert sorted(chunk.text for chunk in another.chunks()) == ["four five", "one two three"]


def test_an_encoder_is_metered(hash_encoder, chaos, tmp_path):
    plain, metered = hash_encoder(64), MeteredEncoder(chaos.make_chaos(tmp_path)())
    told = []
    codes = metered.encode_documents([["one two", "three"], ["four"]], progress=lambda *tokens: told.append(tokens))
    np.testing.assert_array_equal(codes[0], plain.encode_documents([["one two", "three"]])[0])
    assert metered.encode_documents([["five"]])[0].shape == (1, 64)
    assert (metered.tokens, told) == (5, [(4, 4)])
    assert metered.seconds > 0
    np.testing.assert_array_equal(metered.encode_queries(["one"]), plain.encode_queries(["one"]))
    assert (metered.spec, metered.fingerprint) == (plain.spec, plain.fingerprint)
    assert not hasattr(metered, "usage")
    assert metered.calls == []


def test_a_metered_encoder_opens_what_the_plain_one_wrote(server, hash_encoder):
    with VectorStore.connect(server.url, encoder=hash_encoder(64)) as store:
        store.add([Document(id="d", chunks=["x"])])
    with VectorStore.connect(server.url, encoder=MeteredEncoder(hash_encoder(64)), create=False) as store:
        assert store.sync([Document(id="d", chunks=["x"])]).unchanged_documents == 1
