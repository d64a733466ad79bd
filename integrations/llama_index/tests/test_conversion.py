import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.vector_stores.pplx_vectorstore.conversion import NODE_KEY, to_documents

from pplx_vectorstore import Chunk
from pplx_vectorstore import Document as CoreDocument
from pplx_vectorstore.errors import DuplicateDocumentError, InvalidDocumentError

SOURCE = RelatedNodeInfo(node_id="doc", node_type="4", metadata={"file": "a.md"}, hash="abc")
CODES = [float(i - 32) for i in range(64)]

text = st.text(max_size=30)
# The embedded engine may change the last bit of others, as the docs say: those of many digits, very large or small.
floats = st.just(-0.0) | st.integers(-(10**12), 10**12).map(lambda thousandths: thousandths / 1000)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | floats | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
metadata = st.dictionaries(text.filter(lambda key: key != NODE_KEY), json_values, max_size=4)
related = st.builds(RelatedNodeInfo, node_id=text.filter(bool), metadata=metadata, hash=st.none() | text)
relationships = st.fixed_dictionaries(
    {},
    optional={
        NodeRelationship.SOURCE: related,
        NodeRelationship.PREVIOUS: related,
        NodeRelationship.PARENT: related,
        NodeRelationship.CHILD: st.lists(related, max_size=3),
    },
)
common = {
    "metadata": metadata,
    "relationships": relationships,
    "excluded_embed_metadata_keys": st.lists(text, max_size=2),
    "excluded_llm_metadata_keys": st.lists(text, max_size=2),
    "metadata_separator": st.sampled_from(["\n", " | "]),
    "embedding": st.just(CODES),
}
offsets = st.none() | st.integers(0, 1000)
of_text = {**common, "text": text, "start_char_idx": offsets, "end_char_idx": offsets}
any_node = st.one_of(
    st.builds(TextNode, **of_text, text_template=st.sampled_from(["{content}", "{metadata_str}\n\n{content}"])),
    st.builds(IndexNode, **of_text, index_id=text, obj=st.none()),
    st.builds(ImageNode, **{**of_text, "text": text.filter(str.strip)}, image_path=st.none() | st.just("a.png")),
    st.builds(Document, **common, text_resource=st.none() | st.builds(MediaResource, text=text)),
    st.builds(
        Node,
        **common,
        text_resource=st.builds(MediaResource, text=text.filter(str.strip), url=st.none() | st.just("http://e.org/a")),
        image_resource=st.none() | st.builds(MediaResource, data=st.binary(min_size=1, max_size=20)),
    ),
)


@pytest.fixture
def shared_store(open_store):
    return open_store()


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(nodes=st.lists(any_node, min_size=1, max_size=3, unique_by=lambda node: node.node_id))
def test_nodes_of_every_kind_come_back_whole(shared_store, nodes):
    before = [node.model_copy(deep=True) for node in nodes]
    shared_store.clear()
    ids = shared_store.add(nodes)
    assert nodes == before, "they are not changed"
    assert ids == [node.node_id for node in nodes]
    found = shared_store.get_nodes(ids, with_embeddings=True)
    for node, stored in zip(nodes, found, strict=True):
        assert type(stored) is type(node)
        blank = not node.get_content(metadata_mode=MetadataMode.NONE).strip()
        expected = node.model_copy(update={"embedding": None if blank else CODES})
        assert _comparable(stored) == _comparable(expected)
        assert stored == expected


def _comparable(node):
    """Compare floats by their bits: -0.0 == 0.0."""
    return json.dumps(node.to_dict(), default=str, sort_keys=True)


def test_large_metadata_and_text_come_back(open_store):
    store = open_store()
    large = {f"key {i}": {"text": "ä€😀" * 500, "numbers": list(range(100))} for i in range(50)}
    node = TextNode(id_="1", text="words " * 20_000, metadata=large, embedding=CODES)
    store.add([node])
    assert store.get_nodes(["1"], with_embeddings=True) == [node]


def test_an_index_nodes_object_comes_back(open_store):
    store = open_store()
    inner = TextNode(id_="inner", text="a table", metadata={"rows": 3})
    node = IndexNode(id_="1", text="summary", index_id="inner", obj=inner, embedding=CODES)
    store.add([node])
    (found,) = store.get_nodes(["1"])
    assert found.obj == inner
    assert found.index_id == "inner"
    with pytest.raises(InvalidDocumentError, match=r"node '2' cannot be written as JSON"):
        store.add([IndexNode(id_="2", text="t", index_id="x", obj=object(), embedding=CODES)])


def test_what_others_wrote_is_a_text_node_of_its_document(open_store):
    store = open_store()
    chunk = Chunk(text="plain", start=4, end=9, metadata={"b": 2})
    store.client.add([CoreDocument(id="handbook", chunks=[chunk], metadata={"a": 1})])
    (node,) = store.get_nodes()
    assert type(node) is TextNode
    assert (node.text, node.metadata, node.ref_doc_id) == ("plain", {"a": 1, "b": 2}, "handbook")
    assert (node.start_char_idx, node.end_char_idx) == (4, 9)
    assert store.get_nodes([node.node_id]) == [node]


@pytest.mark.parametrize(
    "foreign",
    ["compute-17", "17", "null", '"TextNode"', "[1]", '{"class_name": "Rack"}', '{"class_name": []}', {"id": 3}, 3],
)
def test_others_may_use_the_key_for_something_of_their_own(open_store, foreign):
    store = open_store()
    store.add([TextNode(id_="ours", text="words", embedding=CODES)])
    store.client.add([CoreDocument(id="rack", chunks=[Chunk(text="plain")], metadata={NODE_KEY: foreign, "a": 1})])
    (node,) = [node for node in store.get_nodes() if node.node_id != "ours"]
    assert type(node) is TextNode
    assert (node.text, node.metadata, node.ref_doc_id) == ("plain", {NODE_KEY: foreign, "a": 1}, "rack")


def test_metadata_of_relations_keep_their_types(open_store):
    store = open_store()
    for own, related in ((1, True), (0.0, -0.0), (1, 1.0), (0, False)):
        source = RelatedNodeInfo(node_id="doc", metadata={"page": related})
        relationships = {NodeRelationship.SOURCE: source}
        store.add([TextNode(id_="n", text="t", metadata={"page": own}, relationships=relationships, embedding=CODES)])
        (node,) = store.get_nodes(["n"])
        assert repr(node.source_node.metadata) == repr({"page": related})
        assert repr(node.metadata) == repr({"page": own})


def test_little_is_stored_beyond_text_and_metadata():
    shared = {"file_path": "/data/a.md", "file_type": "text/markdown", "note": "x" * 500}
    source = RelatedNodeInfo(node_id="doc", node_type="4", metadata=shared, hash="0" * 64)
    node = TextNode(text="words", metadata=shared, relationships={NodeRelationship.SOURCE: source}, embedding=CODES)
    (document,) = to_documents([node], 64)
    assert len(document.chunks[0].metadata[NODE_KEY]) < 250
    assert "x" * 500 not in document.chunks[0].metadata[NODE_KEY]


def test_nodes_of_a_source_are_one_document_in_its_order():
    def node(id_, start, source="doc"):
        info = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=source)} if source else {}
        return TextNode(id_=id_, text=id_, start_char_idx=start, relationships=info, embedding=CODES)

    documents = to_documents([node("b", 10), node("x", 0, None), node("a", 0), node("c", 5, "other")], 64)
    assert {document.id: [chunk.id for chunk in document.chunks] for document in documents} == {
        "doc": ["a", "b"],
        "x": ["x"],
        "other": ["c"],
    }
    assert [(chunk.start, chunk.end) for chunk in documents[0].chunks] == [(0, 1), (10, 11)]


def test_a_start_is_not_told_without_the_parents():
    def node(id_, start, parent):
        info = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc")}
        info[NodeRelationship.PARENT] = RelatedNodeInfo(node_id=parent)
        return TextNode(id_=id_, text=id_, start_char_idx=start, relationships=info, embedding=CODES)

    (document,) = to_documents([node("a", 5, "first"), node("b", 0, "second")], 64)
    assert [(chunk.id, chunk.start, chunk.end) for chunk in document.chunks] == [("a", None, None), ("b", None, None)]
    (document,) = to_documents([node("a", 5, "doc"), node("b", 0, "doc")], 64)
    assert [(chunk.id, chunk.start, chunk.end) for chunk in document.chunks] == [("b", 0, 1), ("a", 5, 6)]


def test_embeddings_of_other_models_keep_their_direction():
    floats = np.random.default_rng(1).normal(size=64)
    (document,) = to_documents([TextNode(text="t", embedding=floats.tolist())], 64)
    (codes,) = document.vectors
    assert codes.dtype == np.int8
    assert codes @ floats / np.linalg.norm(codes.astype(float)) / np.linalg.norm(floats) > 0.999
    (document,) = to_documents([TextNode(text="t", embedding=CODES)], 64)
    np.testing.assert_array_equal(document.vectors[0], CODES)


class Extended(TextNode):
    extra: int = 1


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (TextNode(id_="n", text="t"), r"node 'n' has no embedding; .*store\.add\(embed_model\(nodes\)\)"),
        (TextNode(id_="n", text="t", embedding=[1.0]), "has 1 components; the collection holds vectors of 64"),
        (TextNode(id_="n", text="t", embedding=[math.nan] * 64), "NaN"),
        (TextNode(id_="n", text="t", embedding=CODES, metadata={"when": {1, 2}}), "of type set"),
        (TextNode(id_="n", text="t", embedding=CODES, metadata={NODE_KEY: 1}), "is the store's own"),
        (Extended(id_="n", text="t", embedding=CODES), "is a Extended, which would not come back whole"),
        (ImageNode(id_="n", image_path="a.png", embedding=CODES), "image without text"),
    ],
    ids=["no embedding", "dimension", "nan", "metadata", "key", "kind", "image"],
)
def test_what_would_not_come_back_is_refused_before_anything_is_written(open_store, node, said):
    store = open_store()
    with pytest.raises(Exception, match=said):
        store.add([TextNode(text="fine", embedding=CODES), node])
    assert store.get_nodes() == []


def test_an_id_may_come_once(open_store):
    store = open_store()
    with pytest.raises(DuplicateDocumentError, match="comes twice"):
        store.add([TextNode(id_="n", text="t", embedding=CODES)] * 2)
