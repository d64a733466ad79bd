import asyncio
import copy
import inspect
import json
import pickle
import random
import threading
import warnings

import numpy as np
import pytest
from llama_index.core import MockEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.node_parser import HierarchicalNodeParser, MarkdownNodeParser, SentenceSplitter, get_leaf_nodes
from llama_index.core.rate_limiter import BaseRateLimiter
from llama_index.core.schema import Document, MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.embeddings.pplx_vectorstore import PplxEmbedding
from llama_index.embeddings.pplx_vectorstore.grouping import group_nodes
from pydantic import ValidationError

from pplx_vectorstore import ApiOptions, load_encoder
from pplx_vectorstore.errors import InvalidInputError

BIOGRAPHY = Document(
    id_="curie",
    text="Marie Curie was born in Warsaw in 1867. She moved to Paris to study physics. "
    "There she met Pierre, whom she married. Her notebooks are still radioactive. " * 4,
    metadata={"file": "curie.txt", "shelf": 3},
    excluded_embed_metadata_keys=["shelf"],
)
MANUAL = Document(
    id_="manual",
    text="# Filter\n\nThe filter cleans water. Replace it every three months.\n\n# Seal\n\nIt closes the lid.\n",
    metadata={"file": "manual.md"},
)


def expected_codes(encoder, nodes):
    """The codes of nodes of one document, in its order, by the core alone."""
    texts = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
    return dict(zip((node.node_id for node in nodes), encoder.encode_documents([texts])[0], strict=True))


def require_embedded(nodes, expected):
    assert {node.node_id for node in nodes} == set(expected)
    for node in nodes:
        np.testing.assert_array_equal(node.embedding, expected[node.node_id])


# --- grouping --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True], ids=["call", "acall"])
def test_nodes_are_embedded_with_their_document(minilm, minilm_embedding, asynchronous):
    splitter = SentenceSplitter(chunk_size=64, chunk_overlap=10)
    of_each = [splitter([document]) for document in (BIOGRAPHY, MANUAL)]
    assert len(of_each[0]) > 3
    expected = {}
    for nodes in of_each:
        expected |= expected_codes(minilm, nodes)
    alone = TextNode(text="A node without a source.")
    expected |= expected_codes(minilm, [alone])
    nodes = [*of_each[0], *of_each[1], alone]
    random.Random(5).shuffle(nodes)
    order = [node.node_id for node in nodes]
    done = asyncio.run(minilm_embedding.acall(nodes)) if asynchronous else minilm_embedding(nodes)
    assert [node.node_id for node in done] == order
    require_embedded(done, expected)
    by_itself = minilm.encode_documents([[of_each[0][1].get_content(metadata_mode=MetadataMode.EMBED)]])[0][0]
    assert (expected[of_each[0][1].node_id] != by_itself).any(), "context makes a difference"


def test_metadata_that_are_not_to_be_embedded_are_not(minilm_embedding):
    nodes = SentenceSplitter(chunk_size=64, chunk_overlap=10)([BIOGRAPHY])
    (before, *_) = [node.embedding for node in minilm_embedding(nodes)]
    nodes[0].metadata["shelf"] = 4
    assert minilm_embedding(nodes)[0].embedding == before
    nodes[0].metadata["file"] = "lovelace.txt"
    assert minilm_embedding(nodes)[0].embedding != before


def test_each_level_of_a_hierarchy_is_a_document(minilm, minilm_embedding):
    nodes = HierarchicalNodeParser.from_defaults(chunk_sizes=[256, 64], chunk_overlap=0)([BIOGRAPHY])
    large = [node for node in nodes if NodeRelationship.PARENT not in node.relationships]
    small = [node for node in nodes if NodeRelationship.PARENT in node.relationships]
    assert len(small) > len(large) > 0
    assert {node.ref_doc_id for node in nodes} == {"curie"}
    expected = {**expected_codes(minilm, large), **expected_codes(minilm, small)}
    random.Random(3).shuffle(nodes)
    require_embedded(minilm_embedding(nodes), expected)


def test_leaves_without_their_parents_stand_in_the_order_of_arrival():
    nodes = HierarchicalNodeParser.from_defaults(chunk_sizes=[128, 32], chunk_overlap=0)([BIOGRAPHY])
    leaves = get_leaf_nodes(nodes)
    last = [*{leaf.parent_node.node_id: leaf for leaf in leaves}.values()]
    assert last[0].start_char_idx > last[1].start_char_idx, "each counted from its parent"
    for given in (leaves, last):
        assert [[one.node_id for one in group] for group in group_nodes(given)] == [[one.node_id for one in given]]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["call", "acall"])
def test_nodes_may_be_generated(hash_encoder, asynchronous):
    embedding = PplxEmbedding.from_encoder(hash_encoder(8))
    given = (node(id_) for id_ in "ab")
    done = asyncio.run(embedding.acall(given)) if asynchronous else embedding(given)
    assert [(one.node_id, len(one.embedding)) for one in done] == [("a", 8), ("b", 8)]


def test_sections_of_markdown_stand_in_order(minilm, minilm_embedding):
    nodes = MarkdownNodeParser()([MANUAL])
    assert len(nodes) == 2
    expected = expected_codes(minilm, nodes)
    require_embedded(minilm_embedding(nodes[::-1]), expected)


def node(id_, start=None, *, previous=None, following=None, source="doc"):
    links = {
        NodeRelationship.SOURCE: source,
        NodeRelationship.PREVIOUS: previous,
        NodeRelationship.NEXT: following,
    }
    relationships = {kind: RelatedNodeInfo(node_id=other) for kind, other in links.items() if other}
    return TextNode(id_=id_, text=id_, start_char_idx=start, relationships=relationships)


@pytest.mark.parametrize(
    ("nodes", "groups"),
    [
        ([node("b", 9), node("a", 0), node("c", 20)], [["a", "b", "c"]]),
        ([node("b", previous="a"), node("c"), node("a")], [["c", "a", "b"]]),
        ([node("b", following="c"), node("c"), node("a", following="b")], [["a", "b", "c"]]),
        ([node("b", 5, previous="a"), node("a", 5)], [["a", "b"]]),  # offsets that tell nothing
        ([node("b", 5, previous="a"), node("a")], [["a", "b"]]),
        ([node("b"), node("a")], [["b", "a"]]),
        ([node("a", following="b"), node("b", following="a")], [["a", "b"]]),  # a circle
        ([node("a", 3), node("x", 0, source="other"), node("b", 1)], [["b", "a"], ["x"]]),
        ([node("a", source=None), node("b", source=None)], [["a"], ["b"]]),
        ([node("b", following="a"), node("a"), node("a")], [["b", "a", "a"]]),  # one id twice
        ([], []),
    ],
)
def test_the_order_is_that_of_the_text(nodes, groups):
    assert [[one.node_id for one in group] for group in group_nodes(nodes)] == groups


# --- the interface of embeddings ---------------------------------------------------------------------------


async def test_texts_and_queries_stand_alone(minilm, minilm_embedding):
    texts = ["Berlin is the capital.", "It has 3.9 million inhabitants."]
    alone = [codes[0].tolist() for codes in minilm.encode_documents([[text] for text in texts])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert minilm_embedding.get_text_embedding_batch(texts) == alone
        assert await minilm_embedding.aget_text_embedding_batch(texts) == alone
    assert minilm_embedding.get_text_embedding(texts[1]) == alone[1]
    assert await minilm_embedding.aget_text_embedding(texts[1]) == alone[1]
    (query,) = minilm.encode_queries(["Which city?"])
    assert minilm_embedding.get_query_embedding("Which city?") == query.tolist()
    assert await minilm_embedding.aget_query_embedding("Which city?") == query.tolist()
    assert minilm_embedding.get_agg_embedding_from_queries(["Which city?"]) == query.tolist()
    assert minilm_embedding.similarity(alone[0], alone[0]) == pytest.approx(1)
    with pytest.raises(InvalidInputError, match="a query must be a str that is not blank"):
        minilm_embedding.get_query_embedding(" ")


def test_lost_context_is_told_once(hash_encoder):
    embedding = PplxEmbedding.from_encoder(hash_encoder(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedding.get_text_embedding_batch(["one text has no context to lose"])
        embedding.get_text_embedding_batch([])
    with pytest.warns(UserWarning, match=r"without the context of their documents.*embed_model\(nodes\)"):
        embedding.get_text_embedding_batch(["a", "b"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedding.get_text_embedding_batch(["a", "b"])


class Recorded(BaseEventHandler):
    events: list = []  # noqa: RUF012 - a pydantic field

    @classmethod
    def class_name(cls):
        return "Recorded"

    def handle(self, event, **kwargs):
        self.events.append(event)


class Counting(BaseRateLimiter):
    def __init__(self):
        self.n = 0

    def acquire(self):
        self.n += 1

    async def async_acquire(self):
        self.n += 1


@pytest.mark.parametrize("asynchronous", [False, True], ids=["call", "acall"])
def test_events_callbacks_limits_and_progress_are_those_of_any_embedding(hash_encoder, capsys, asynchronous):
    debug, limiter, recorded = LlamaDebugHandler(print_trace_on_end=False), Counting(), Recorded()
    embedding = PplxEmbedding.from_encoder(
        hash_encoder(8), callback_manager=CallbackManager([debug]), rate_limiter=limiter, embed_batch_size=2
    )
    dispatcher = get_dispatcher("llama_index.embeddings.pplx_vectorstore.base")
    dispatcher.add_event_handler(recorded)
    try:
        nodes = [node(f"{d}-{i}", i, source=d) for d in "abc" for i in range(2)]
        done = (
            asyncio.run(embedding.acall(nodes, show_progress=True))
            if asynchronous
            else embedding(nodes, show_progress=True)
        )
    finally:
        dispatcher.event_handlers.remove(recorded)
    assert limiter.n == 3, "batches hold whole documents"
    kinds = [type(event) for event in recorded.events]
    assert kinds == [EmbeddingStartEvent, EmbeddingEndEvent] * 3
    spans = {str(event.span_id).partition("-")[0] for event in recorded.events}
    assert spans == {"PplxEmbedding.acall" if asynchronous else "PplxEmbedding.__call__"}
    assert recorded.events[0].model_dict["model_name"] == "hash-encoder"
    ended = [event for event in recorded.events if isinstance(event, EmbeddingEndEvent)]
    assert [text for event in ended for text in event.chunks] == [one.text for one in done]
    assert [vector for event in ended for vector in event.embeddings] == [one.embedding for one in done]
    pairs = debug.get_event_pairs(CBEventType.EMBEDDING)
    assert [text for _, end in pairs for text in end.payload[EventPayload.CHUNKS]] == [one.text for one in done]
    assert "Embedding documents" in capsys.readouterr().err


def test_coroutines_leave_the_event_loop_free(hash_encoder):
    encoder = hash_encoder(8)
    loop_ran = threading.Event()
    encode = encoder.encode_documents

    def wait(documents):
        assert loop_ran.wait(30), "the event loop is blocked"
        return encode(documents)

    encoder.encode_documents = wait

    async def use():
        task = asyncio.create_task(PplxEmbedding.from_encoder(encoder).acall([node("a")]))
        await asyncio.sleep(0.01)
        loop_ran.set()
        return await task

    assert asyncio.run(use())[0].embedding


# --- settings --------------------------------------------------------------------------------------------


def test_fields_are_the_options_of_load_encoder():
    options = set(inspect.signature(load_encoder).parameters)
    own = set(PplxEmbedding.model_fields) - set(MockEmbedding.model_fields)
    assert own | {"model_name"} == (options - {"model"}) | {"model_name"}
    for name, parameter in inspect.signature(load_encoder).parameters.items():
        if name not in ("model", "api_key"):
            assert PplxEmbedding.model_fields[name].default == parameter.default


def test_settings_survive_dicts_and_pickles(pplx_checkpoint):
    embedding = PplxEmbedding(model_name=str(pplx_checkpoint), dtype="float32", window_tokens=64)
    vector = embedding.get_query_embedding("curiosity")
    for again in (
        PplxEmbedding.from_dict(embedding.to_dict()),
        PplxEmbedding.from_json(embedding.to_json()),
        pickle.loads(pickle.dumps(embedding)),
        copy.deepcopy(embedding),
    ):
        assert again.encoder.fingerprint == embedding.encoder.fingerprint
        assert again.get_query_embedding("curiosity") == vector
    assert len(pickle.dumps(embedding)) < 2000, "weights are not pickled"
    of_encoder = PplxEmbedding.from_encoder(embedding.encoder)
    assert pickle.loads(pickle.dumps(of_encoder)).get_query_embedding("curiosity") == vector
    rebuilt = PplxEmbedding.from_dict({**of_encoder.to_dict(), "dtype": "float32"})
    assert rebuilt.get_query_embedding("curiosity") == vector


def test_changed_settings_load_the_model_again(wide_pplx_checkpoint):
    embedding = PplxEmbedding(model_name=str(wide_pplx_checkpoint), dtype="float32")
    assert len(embedding.get_query_embedding("curiosity")) == 192
    embedding.dimensions = 128
    assert len(embedding.get_query_embedding("curiosity")) == 128
    given = PplxEmbedding.from_encoder(embedding.encoder)
    given.dimensions = 64
    with pytest.raises(InvalidInputError, match="settings of an embedding made by from_encoder"):
        given.get_query_embedding("curiosity")


@pytest.mark.parametrize(
    "wrong", [{}, {"model_name": 5}, {"model_name": "m", "model": "n"}, {"model_name": "m", "backend": "x"}], ids=str
)
def test_a_key_is_not_quoted_in_errors_of_settings(wrong):
    with pytest.raises(ValidationError) as caught:
        PplxEmbedding(**wrong, api_key="key-as-given")
    assert "key-as-given" not in f"{caught.value!r} {caught.value} {caught.value.errors()} {caught.value.json()}"


def test_a_key_is_never_shown_serialised_or_pickled(monkeypatch, pplx_checkpoint):
    api = ApiOptions(tokenizer=str(pplx_checkpoint))
    embedding = PplxEmbedding(model_name="pplx-embed-context-v1-4b", backend="api", api_key="key-as-given", api=api)
    assert embedding.api_key.get_secret_value() == "key-as-given"
    assert "key-as-given" not in f"{embedding!r} {embedding} {embedding.to_json()} {embedding.to_payload()}"
    assert b"key-as-given" not in pickle.dumps(embedding)
    monkeypatch.setenv("PPLX_API_KEY", "key-of-the-environment")
    for again in (PplxEmbedding.from_dict(embedding.to_dict()), pickle.loads(pickle.dumps(embedding))):
        assert again.api == api
        assert again.encoder.spec.name.endswith("pplx-embed-context-v1-4b")


def test_what_changes_vectors_changes_the_key_of_a_cache(minilm, pplx):
    base = PplxEmbedding(model_name="all-minilm-l6-v2")
    others = [
        PplxEmbedding(model_name="all-minilm-l6-v2", **option)
        for option in (
            {"window_tokens": 128},
            {"min_context": 10},
            {"context_weight": 0.5},
            {"dimensions": 128},
            {"revision": "x"},
            {"backend": "onnx"},
            {"dtype": "float32"},
        )
    ]
    given = [PplxEmbedding.from_encoder(encoder) for encoder in (minilm, pplx)]
    settings = [json.dumps(one.to_dict(), sort_keys=True) for one in (base, *others, *given)]
    assert len(set(settings)) == len(settings)


def test_bad_settings_are_refused():
    with pytest.raises(ValidationError, match="'torch', 'onnx' or 'api'"):
        PplxEmbedding(model_name="m", backend="jax")
    with pytest.raises(ValidationError):
        PplxEmbedding(model_name="m", embed_batch_size=0)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        PplxEmbedding(model_name="m", dimension=3)
    with pytest.raises(ValidationError, match="model_name"):
        PplxEmbedding()
