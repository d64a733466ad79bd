"""Nodes → the documents that they are chunks of, in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo


def group_nodes(nodes: Sequence[BaseNode]) -> list[list[BaseNode]]:
    """Put nodes together that are of one document, each group in the order of the document's text.

    Nodes without a source document stand alone. Where a parser cuts a document at several levels, as
    ``HierarchicalNodeParser`` does, the nodes of each level are a group: the levels repeat the same text. The order
    is that of ``start_char_idx``, counted from the document's beginning; else that of the relationships to the
    previous and the next node; else that of arrival.

    Args:
        nodes: In any order; they are not changed.

    Returns:
        Every node once, in groups in the order of their first node.
    """
    by_id = {node.node_id: node for node in nodes}
    groups: dict[tuple[str, int], list[BaseNode]] = {}
    for node in nodes:
        source = node.ref_doc_id
        key = (node.node_id, -1) if source is None else (source, sum(1 for _ in _ancestors(node, by_id)))
        groups.setdefault(key, []).append(node)
    return [_in_order(group, by_id) for group in groups.values()]


def _ancestors(node: BaseNode, by_id: Mapping[str, BaseNode]) -> Iterable[str]:
    """Yield the ids of a node's parents, as far as these are known."""
    seen = {node.node_id}
    parent = _related(node, NodeRelationship.PARENT)
    while parent is not None and parent not in seen:
        yield parent
        seen.add(parent)
        parent = _related(by_id[parent], NodeRelationship.PARENT) if parent in by_id else None


def _in_order(group: list[BaseNode], by_id: Mapping[str, BaseNode]) -> list[BaseNode]:
    if len(group) == 1:
        return group
    starts = [start_in_document(node, by_id) for node in group]
    if None not in starts and len(set(starts)) == len(starts):
        placed = sorted(zip(starts, range(len(group)), strict=True), key=lambda place: place[0] or 0)
        return [group[i] for _, i in placed]
    return _by_links(group)


def start_in_document(node: BaseNode, by_id: Mapping[str, BaseNode]) -> int | None:
    """Return where a node starts in its document, or None where that cannot be told.

    A parser counts from the beginning of the node's parent, whose own start must be known, too.
    """
    total = 0
    for one in (node, *(by_id.get(parent) for parent in _ancestors(node, by_id) if parent != node.ref_doc_id)):
        start = getattr(one, "start_char_idx", None)
        if not isinstance(start, int):
            return None
        total += start
    return total


def _by_links(group: list[BaseNode]) -> list[BaseNode]:
    """Follow the links from each node without a predecessor here; chains stand in the order of arrival."""
    own = {node.node_id: node for node in group}
    if len(own) < len(group):  # links cannot tell nodes of one id apart
        return group
    following: dict[str, str] = {}
    for node in group:
        after, before = _related(node, NodeRelationship.NEXT), _related(node, NodeRelationship.PREVIOUS)
        if after in own and after is not None:
            following.setdefault(node.node_id, after)
        if before in own and before is not None:
            following.setdefault(before, node.node_id)
    has_previous = set(following.values())
    ordered: dict[str, BaseNode] = {}
    for first in [*(node for node in group if node.node_id not in has_previous), *group]:
        current: str | None = first.node_id
        while current is not None and current not in ordered:
            ordered[current] = own[current]
            current = following.get(current)
    return list(ordered.values())


def _related(node: BaseNode, kind: NodeRelationship) -> str | None:
    related = node.relationships.get(kind)
    return related.node_id if isinstance(related, RelatedNodeInfo) else None
