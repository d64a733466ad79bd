"""LlamaIndex nodes ↔ documents of the core with their chunks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.embeddings.pplx_vectorstore.grouping import group_nodes, start_in_document

import pplx_vectorstore as core
from pplx_vectorstore.documents import is_blank
from pplx_vectorstore.equal_norms import as_codes
from pplx_vectorstore.errors import InvalidDocumentError

NODE_KEY = "_node"
"""Metadata key under which a chunk keeps what is LlamaIndex's alone, as JSON."""

_KINDS: dict[str, type[BaseNode]] = {
    kind.class_name(): kind for kind in (TextNode, IndexNode, ImageNode, Node, Document, ImageDocument)
}
_RESOURCES = ("text_resource", "image_resource", "audio_resource", "video_resource")


def to_documents(nodes: Sequence[BaseNode], dimension: int) -> list[core.Document]:
    """Put nodes together that are of one source document, in its order.

    A node without a source is a document of its own, of its own id.

    Args:
        nodes: With embeddings; they are not changed.
        dimension: Components that an embedding must have.

    Raises:
        InvalidDocumentError: A node has no embedding, or one of another dimension; its metadata would not come
            back as they are; or it cannot be stored whole.
    """
    sources: dict[str, list[BaseNode]] = {}
    for group in group_nodes(nodes):
        for node in group:
            sources.setdefault(node.ref_doc_id or node.node_id, []).append(node)
    by_id = {node.node_id: node for node in nodes}
    return [
        core.Document(
            id=source,
            chunks=[_to_chunk(node, start_in_document(node, by_id)) for node in group],
            vectors=as_codes([_embedding(node, dimension) for node in group]),
        )
        for source, group in sources.items()
    ]


def to_node(chunk: core.StoredChunk, *, text: str | None = None) -> BaseNode:
    """Turn a chunk back into its node; one that LlamaIndex did not write becomes a ``TextNode``.

    Args:
        chunk: As stored; its codes, if it has any, become the node's embedding.
        text: Instead of the chunk's own.
    """
    text = chunk.text if text is None else text
    metadata = dict(chunk.metadata)  # made for this chunk alone
    fields = _unpack(metadata.get(NODE_KEY))
    if fields is None:
        fields = _foreign_fields(chunk)
    else:
        del metadata[NODE_KEY]
        _share_metadata(fields, metadata)
    kind = _KINDS[fields.pop("class_name")]
    if issubclass(kind, Node):
        if not is_blank(text) or "text_resource" in fields:
            fields["text_resource"] = {**fields.get("text_resource", {}), "text": text}
    else:
        fields["text"] = text
    node = kind.from_dict({"metadata": metadata, **fields, "id_": chunk.id})
    if chunk.codes is not None and chunk.codes.any():
        node.embedding = chunk.codes.astype(float).tolist()
    return node


def _to_chunk(node: BaseNode, start: int | None) -> core.Chunk:
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    if is_blank(text) and (isinstance(node, ImageNode) or getattr(node, "image_resource", None) is not None):
        raise InvalidDocumentError(
            f"node {node.node_id!r} is an image without text, which this store would never find; give it a caption "
            "as its text, or keep images in a store of their own"
        )
    end = None if start is None else start + len(text)
    metadata = {**deepcopy(node.metadata), NODE_KEY: _pack(node)}
    return core.Chunk(id=node.node_id, text=text, start=start, end=end, metadata=metadata)


def _embedding(node: BaseNode, dimension: int) -> list[float]:
    if node.embedding is None:
        raise InvalidDocumentError(
            f"node {node.node_id!r} has no embedding; call the embedding model with the nodes first: "
            "store.add(embed_model(nodes))"
        )
    if len(node.embedding) != dimension:
        raise InvalidDocumentError(
            f"the embedding of node {node.node_id!r} has {len(node.embedding)} components; the collection holds "
            f"vectors of {dimension}"
        )
    return node.embedding


# --- what a node has beyond id, text and metadata ---------------------------------------------------------


def _pack(node: BaseNode) -> str:
    """Write what a node has beyond id, text and metadata as JSON; what is as by default is left out."""
    if NODE_KEY in node.metadata:
        raise InvalidDocumentError(
            f"node {node.node_id!r} has the metadata key {NODE_KEY!r}, which is the store's own; rename it"
        )
    kind = next((kind for kind in type(node).__mro__ if kind in _KINDS.values()), None)
    if kind is None or set(type(node).model_fields) - set(kind.model_fields):  # type: ignore[attr-defined]
        raise InvalidDocumentError(
            f"node {node.node_id!r} is a {type(node).__name__}, which would not come back whole; nodes must be of "
            f"{', '.join(sorted(_KINDS))}"
        )
    try:
        fields: dict[str, Any] = node.model_dump(
            mode="json", exclude_defaults=True, exclude={"id_", "text", "metadata", "embedding"}
        )
    except ValueError as error:  # an IndexNode's object, say
        raise InvalidDocumentError(f"node {node.node_id!r} cannot be written as JSON: {error}") from error
    fields["class_name"] = kind.class_name()  # type: ignore[attr-defined]
    for name in _RESOURCES:
        resource = getattr(node, name, None)
        if resource is not None:
            of_resource = fields[name]
            if name == "text_resource":
                of_resource.pop("text", None)
            if resource.data is not None:  # which no dump holds
                of_resource["data"] = resource.data.decode("ascii")
    own = _literally(node.metadata)
    for related in _relations(fields):
        if "metadata" in related and _literally(related["metadata"]) == own:
            related["metadata"] = None  # nodes of a document share most of them
    if _may_lose_digits(node.metadata):
        fields["metadata"] = node.metadata
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def _unpack(packed: object) -> dict[str, Any] | None:
    """Read what `_pack` wrote; None where others use the key for something of their own."""
    if not isinstance(packed, str):
        return None
    try:
        fields = json.loads(packed)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and str(fields.get("class_name")) in _KINDS else None


def _share_metadata(fields: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    for related in _relations(fields):
        if "metadata" in related and related["metadata"] is None:
            related["metadata"] = deepcopy(fields.get("metadata", metadata))


def _foreign_fields(chunk: core.StoredChunk) -> dict[str, Any]:
    source = RelatedNodeInfo(node_id=chunk.document_id, node_type=ObjectType.DOCUMENT)
    return {
        "class_name": TextNode.class_name(),
        "start_char_idx": chunk.start,
        "end_char_idx": chunk.end,
        "relationships": {NodeRelationship.SOURCE: source},
    }


def _relations(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the nodes to which the fields of one relate, as dicts."""
    relations = fields.get("relationships", {}).values()
    return [one for relation in relations for one in (relation if isinstance(relation, list) else [relation])]


def _literally(metadata: object) -> str:
    """Write metadata so that 1, 1.0 and True differ, which are equal in Python."""
    return json.dumps(metadata, default=repr)


def _may_lose_digits(value: object) -> bool:
    """Tell whether JSON numbers, as the embedded engine reads them, might come back with another last bit."""
    if isinstance(value, float) and math.isfinite(value):
        return value != 0 and (float(f"{value:.15g}") != value or not 1e-7 <= abs(value) < 1e22)
    if isinstance(value, Mapping):
        return any(map(_may_lose_digits, value.values()))
    return isinstance(value, list) and any(map(_may_lose_digits, value))
