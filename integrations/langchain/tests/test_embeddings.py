import asyncio
import copy
import inspect
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_pplx_vectorstore import PplxEmbeddings
from langchain_pplx_vectorstore.encoding import EmbeddingsEncoder, as_encoder
from pydantic import ValidationError

from pplx_vectorstore import cosine_similarity, load_encoder, quantize_to_norm
from pplx_vectorstore.errors import (
    AlignmentError,
    EncodingError,
    InvalidInputError,
    UnknownModelError,
)

CHUNKS = ["Berlin is the capital of Germany.", "It has 3.9 million inhabitants.", " "]


def test_vectors_are_the_codes_as_floats(minilm, minilm_embeddings):
    vectors = minilm_embeddings.embed_documents(CHUNKS)
    alone = [codes[0] for codes in minilm.encode_documents([[text] for text in CHUNKS])]
    np.testing.assert_array_equal(vectors, alone)
    assert {type(value) for vector in vectors for value in vector} == {float}
    query = minilm_embeddings.embed_query(CHUNKS[0])
    np.testing.assert_array_equal(query, minilm.encode_queries(CHUNKS[:1])[0])
    assert not any(vectors[2]), "a blank text has nothing to embed"


def test_chunks_of_a_document_are_each_others_context(minilm, minilm_embeddings):
    (vectors,) = minilm_embeddings.embed_document_chunks([CHUNKS])
    np.testing.assert_array_equal(vectors, minilm.encode_documents([CHUNKS])[0])
    assert vectors[:2] != minilm_embeddings.embed_documents(CHUNKS[:2])
    assert minilm_embeddings.embed_document_chunks([]) == []


async def test_coroutines_give_the_same(minilm_embeddings):
    assert await minilm_embeddings.aembed_query("a question") == minilm_embeddings.embed_query("a question")
    assert await minilm_embeddings.aembed_documents(CHUNKS) == minilm_embeddings.embed_documents(CHUNKS)
    grouped = await minilm_embeddings.aembed_document_chunks([CHUNKS, []])
    assert grouped == minilm_embeddings.embed_document_chunks([CHUNKS, []])


async def test_coroutines_leave_the_event_loop_free(hash_encoder):
    encoder = hash_encoder(64)
    loop_ran = threading.Event()
    encode_documents, encode_queries = encoder.encode_documents, encoder.encode_queries

    def wait(encode, *arguments):
        assert loop_ran.wait(30), "the event loop is blocked"
        return encode(*arguments)

    encoder.encode_documents = lambda *arguments: wait(encode_documents, *arguments)
    encoder.encode_queries = lambda *arguments: wait(encode_queries, *arguments)
    embeddings = PplxEmbeddings.from_encoder(encoder)
    for work in (embeddings.aembed_query("q"), embeddings.aembed_documents(["d"])):
        loop_ran.clear()
        task = asyncio.create_task(work)
        await asyncio.sleep(0.01)
        loop_ran.set()
        await task


def test_another_vector_store_ranks_as_cosine_does(minilm, minilm_embeddings):
    texts = ["Cats sleep all day.", "The train to Berlin is late.", "A bridge over the river."]
    store = InMemoryVectorStore(minilm_embeddings)
    store.add_texts(texts)
    found = store.similarity_search_with_score("Which train is late?", k=3)
    codes = np.concatenate(minilm.encode_documents([[text] for text in texts]))
    cosines = cosine_similarity(minilm.encode_queries(["Which train is late?"])[0], codes)
    assert [document.page_content for document, _ in found] == [texts[i] for i in np.argsort(-cosines)]
    np.testing.assert_allclose([score for _, score in found], np.sort(cosines)[::-1], atol=1e-9)


def test_fields_are_the_options_of_load_encoder():
    assert set(PplxEmbeddings.model_fields) == set(inspect.signature(load_encoder).parameters)
    for name, parameter in inspect.signature(load_encoder).parameters.items():
        if name not in ("model", "api_key"):
            assert PplxEmbeddings.model_fields[name].default == parameter.default


def test_the_key_of_the_hosted_service_is_for_it_alone(monkeypatch):
    monkeypatch.setenv("PERPLEXITY_API_KEY", "hosted")
    settings = {"model": "pplx-embed-context-v1-0.6b", "backend": "api"}
    assert PplxEmbeddings(**settings)._options()["api_key"] == "hosted"
    own = {**settings, "base_url": "http://127.0.0.1:8090"}
    assert "api_key" not in PplxEmbeddings(**own)._options()
    assert PplxEmbeddings(**own, api_key="mine")._options()["api_key"] == "mine"


def test_options_reach_the_model(pplx_checkpoint):
    embeddings = PplxEmbeddings(model=str(pplx_checkpoint), dtype="float32", window_tokens=64, query_cache=3)
    assert embeddings.encoder.fingerprint.window_tokens == 64
    assert embeddings.encoder is embeddings.encoder
    assert len(embeddings.embed_query("curiosity")) == 64


def test_threads_load_a_model_once(pplx_checkpoint):
    embeddings = PplxEmbeddings(model=str(pplx_checkpoint), dtype="float32")
    start, encoders = threading.Barrier(4, timeout=60), []

    def load():
        start.wait()
        encoders.append(embeddings.encoder)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(encoder) for encoder in encoders}) == 1


def test_a_key_is_of_the_environment_and_is_never_shown_or_pickled(monkeypatch):
    monkeypatch.setenv("PPLX_API_KEY", "key-of-the-environment")
    assert PplxEmbeddings(model="m").api_key.get_secret_value() == "key-of-the-environment"
    embeddings = PplxEmbeddings(model="pplx-embed-context-v1-4b", backend="api", api_key="key-as-given")
    assert embeddings.api_key.get_secret_value() == "key-as-given"
    assert "key-as-given" not in f"{embeddings!r} {embeddings} {embeddings.model_dump_json()}"
    pickled = pickle.dumps(embeddings)
    assert b"key-as-given" not in pickled
    again = pickle.loads(pickled)
    assert (again.model, again.backend) == ("pplx-embed-context-v1-4b", "api")
    assert again.api_key.get_secret_value() == "key-of-the-environment"


@pytest.mark.parametrize(
    "wrong", [{}, {"model": 5}, {"model": "m", "modell": "n"}, {"model": "m", "backend": "x"}], ids=str
)
def test_a_key_is_not_quoted_in_errors_of_settings(wrong):
    with pytest.raises(ValidationError) as caught:
        PplxEmbeddings(**wrong, api_key="key-as-given")
    assert "key-as-given" not in f"{caught.value!r} {caught.value} {caught.value.errors()} {caught.value.json()}"


def test_a_local_model_does_not_mind_a_key_in_the_environment(pplx_checkpoint, monkeypatch):
    monkeypatch.setenv("PPLX_API_KEY", "key")
    assert PplxEmbeddings(model=str(pplx_checkpoint)).embed_query("curiosity")
    with pytest.raises(InvalidInputError, match="api_key is not an option of backend='torch'"):
        PplxEmbeddings(model=str(pplx_checkpoint), api_key="key").embed_query("curiosity")


def test_a_pickle_loads_the_model_again(pplx_checkpoint):
    embeddings = PplxEmbeddings(model=str(pplx_checkpoint), dtype="float32")
    vector = embeddings.embed_query("curiosity")
    assert pickle.loads(pickle.dumps(embeddings)).embed_query("curiosity") == vector
    of_encoder = PplxEmbeddings.from_encoder(embeddings.encoder)
    assert pickle.loads(pickle.dumps(of_encoder)).embed_query("curiosity") == vector


def test_settings_are_checked():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        PplxEmbeddings(model="all-minilm-l6-v2", dimension=384)
    with pytest.raises(ValidationError, match="'torch', 'onnx' or 'api'"):
        PplxEmbeddings(model="all-minilm-l6-v2", backend="jax")
    with pytest.raises(ValidationError, match="frozen"):
        PplxEmbeddings(model="all-minilm-l6-v2").model = "another"
    with pytest.raises(UnknownModelError, match="no-such-model"):
        PplxEmbeddings(model="no-such-model").embed_query("q")


@pytest.mark.parametrize("query", ["", " \n", None, 3])
async def test_a_query_that_is_blank_or_no_text_is_refused(hash_embeddings, query):
    with pytest.raises(InvalidInputError, match="a query must be a str that is not blank"):
        hash_embeddings.embed_query(query)
    with pytest.raises(InvalidInputError, match="a query must be a str that is not blank"):
        await hash_embeddings.aembed_query(query)


async def test_one_string_is_not_a_list_of_texts(minilm_embeddings):
    with pytest.raises(InvalidInputError, match="must be a list"):
        minilm_embeddings.embed_document_chunks(["a document that is no list"])
    with pytest.raises(InvalidInputError, match="texts must be a list of str, not str"):
        minilm_embeddings.embed_documents("ab")
    with pytest.raises(InvalidInputError, match="texts must be a list of str, not str"):
        await minilm_embeddings.aembed_documents("ab")


def test_copies_share_a_model_and_other_settings_load_another(pplx_checkpoint, wide_pplx_checkpoint):
    embeddings = PplxEmbeddings(model=str(wide_pplx_checkpoint), dtype="float32")
    same = PplxEmbeddings(model=str(wide_pplx_checkpoint), dtype="float32")
    assert len(embeddings.embed_query("curiosity")) == 192
    assert embeddings == same, "a loaded model makes no difference"
    assert hash(embeddings) == hash(same)
    assert copy.deepcopy(embeddings).encoder is copy.copy(embeddings).encoder is embeddings.encoder
    shorter = embeddings.model_copy(update={"dimensions": 128})
    assert len(shorter.embed_query("curiosity")) == shorter.dimensions == 128
    assert embeddings.dimensions is None
    assert shorter != embeddings
    given = PplxEmbeddings.from_encoder(embeddings.encoder)
    assert given.model_copy() == given
    assert given != PplxEmbeddings.from_encoder(shorter.encoder)
    with pytest.raises(InvalidInputError, match="are those of the encoder"):
        given.model_copy(update={"dimensions": 128})


def test_cached_embeddings_are_named_by_what_they_cache():
    class Cached(DeterministicFakeEmbedding):
        underlying_embeddings: Any

    encoder = as_encoder(Cached(size=8, underlying_embeddings=Recording()))
    assert encoder.fingerprint.model == "langchain:Recording:some-model"


class Recording(Embeddings):
    """Embeddings of a given dimension that tell what they were asked, and may answer wrongly."""

    model = "some-model"

    def __init__(self, answer=None):
        self.asked = []
        self._answer = answer
        self._fake = DeterministicFakeEmbedding(size=8)

    def embed_documents(self, texts):
        self.asked.append(list(texts))
        return self._fake.embed_documents(texts) if self._answer is None else self._answer

    def embed_query(self, text):
        return self._fake.embed_query(text)


async def test_other_embeddings_are_scaled_to_int8_and_never_asked_for_blanks():
    embeddings = Recording()
    encoder = as_encoder(embeddings)
    assert isinstance(encoder, EmbeddingsEncoder)
    assert encoder.fingerprint.model == "langchain:Recording:some-model"
    documents = [["a", " ", "b"], [], ["c"]]
    codes = encoder.encode_documents(documents)
    assert embeddings.asked == [["a", "b", "c"]]
    floats = np.array(embeddings.embed_documents(["a", "b", "c"]))
    np.testing.assert_array_equal(np.concatenate(codes)[[0, 2, 3]], quantize_to_norm(floats))
    assert [one.shape for one in codes] == [(3, 8), (0, 8), (1, 8)]
    assert not codes[0][1].any()
    again = await encoder.aencode_documents(documents)
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate(codes))
    queries = encoder.encode_queries(["a", "b"])
    np.testing.assert_array_equal(await encoder.aencode_queries(["a", "b"]), queries)
    np.testing.assert_array_equal(queries, codes[0][[0, 2]])
    assert encoder.encode_documents([]) == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ([[1.0] * 8], AlignmentError),
        ([[1.0] * 8, [1.0] * 7], AlignmentError),
        ([], AlignmentError),
        ([[1.0] * 8, [float("nan")] * 8], EncodingError),
    ],
)
def test_wrong_answers_of_other_embeddings_are_refused(answer, error):
    with pytest.raises(error):
        as_encoder(Recording(answer)).encode_documents([["a", "b"]])


def test_what_is_no_embeddings_is_refused(hash_encoder):
    with pytest.raises(InvalidInputError, match=r"must be LangChain Embeddings, not HashEncoder; .*from_encoder"):
        as_encoder(hash_encoder(8))
    with pytest.raises(InvalidInputError, match="split it with a text splitter"):
        _ = as_encoder(Recording()).tokenizer


def test_documents_are_not_texts(minilm_embeddings):
    with pytest.raises(InvalidInputError, match="must be a list"):
        minilm_embeddings.embed_documents([Document(page_content="x")])
