"""Hits and chunks as an agent reads them, and as a program does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pplx_vectorstore.file_ids import ROOT_KEY, SOURCE_KEY
from pplx_vectorstore.readers import HEADING_KEY, LINE_KEY

if TYPE_CHECKING:
    from pplx_vectorstore.agents.places import FilePlace, FilePlaces
    from pplx_vectorstore.documents import Hit, StoredChunk

MOST_CHARACTERS = 60_000
"""Of the texts in one answer: about 15,000 tokens. Beyond, an agent is told how to read on."""

_MOST_OF_METADATA = 2_000
"""Characters of a chunk's metadata as JSON. Fields beyond are named, and left out."""
_MOST_NAMES, _MOST_OF_A_NAME = 20, 50

# Metadata that an answer shows in its own words.
_SHOWN = {SOURCE_KEY, ROOT_KEY, LINE_KEY, HEADING_KEY, "sheet"}
_SHOWN |= {f"{name}{end}" for name in ("page", "slide", "row", "cell") for end in ("", "_end")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a tool found.

    Attributes:
        texts: For the agent to read.
        data: The same for programs, as JSON has it; None where there is no more to it.
    """

    texts: tuple[str, ...]
    data: dict[str, Any] | None = None


def render_hits(hits: Sequence[Hit], places: FilePlaces, *, filtered: bool) -> Answer:
    """Show hits, best first.

    Args:
        hits: What was found.
        places: Finds where they are.
        filtered: Whether a filter may be why there are so few.
    """
    if not hits:
        why = "; index_info names the fields that a filter may ask for" if filtered else ""
        return Answer(texts=(f"nothing found{why}",), data={"hits": []})
    passages = cut_texts([hit.text if hit.context is None else hit.context for hit in hits])
    texts = cut_texts([hit.text for hit in hits])
    shown, data = [], []
    for rank, (hit, passage, text) in enumerate(zip(hits, passages, texts, strict=True), start=1):
        place = places.find(hit)
        shown.append(f"[{rank}] {_where(hit, place)}  score {hit.score:.3f}\n{_details(hit, place)}\n\n{passage}")
        data.append(
            {**_facts(hit, place), "score": hit.score, "text": text}
            | ({} if hit.context is None else {"context": passage})
        )
    return Answer(texts=("\n\n".join(shown),), data={"hits": data})


def render_chunks(chunks: Sequence[StoredChunk], places: FilePlaces) -> Answer:
    """Show chunks of one document, in order."""
    texts = cut_texts([chunk.text for chunk in chunks])
    last = chunks[-1]
    shown, data = [], []
    for chunk, text in zip(chunks, texts, strict=True):
        place = places.find(chunk)
        shown.append(f"[chunk {chunk.chunk_index}] {_where(chunk, place)}\n{_details(chunk, place)}\n\n{text}")
        data.append({**_facts(chunk, place), "text": text})
    following = last.chunk_index + 1
    if following < last.chunk_count:
        shown.append(
            f"more: get_context with document_id={json.dumps(last.document_id, ensure_ascii=False)}, first={following}"
        )
    return Answer(texts=("\n\n".join(shown),), data={"chunks": data})


def _where(chunk: StoredChunk, place: FilePlace) -> str:
    return str(place) if place.file is not None else f"{chunk.document_id}, {place}"


def _details(chunk: StoredChunk, place: FilePlace) -> str:
    """Say what else is known of a chunk, in lines."""
    metadata, left_out = shorten_metadata(chunk.metadata)
    lines = []
    if place.change is not None:
        lines.append(f"note: {place.change}")
    headings = metadata.get(HEADING_KEY)
    if isinstance(headings, list) and headings:
        lines.append(f"under: {' > '.join(map(str, headings))}")
    own = {key: value for key, value in metadata.items() if key not in _SHOWN}
    if own:
        lines.append(f"metadata: {json.dumps(own, ensure_ascii=False)}")
    if left_out:
        lines.append(f"metadata that is too long to be shown: {', '.join(left_out)}")
    lines.append(f"id: {chunk.id}  ({chunk.document_id}, chunk {chunk.chunk_index} of 0 to {chunk.chunk_count - 1})")
    return "\n".join(lines)


def _facts(chunk: StoredChunk, place: FilePlace) -> dict[str, Any]:
    metadata, left_out = shorten_metadata(chunk.metadata)
    return {
        "id": chunk.id,
        "document_id": chunk.document_id,
        "chunk_index": chunk.chunk_index,
        "chunk_count": chunk.chunk_count,
        "file": place.file,
        "lines": None if place.lines is None else list(place.lines),
        "place": place.place,
        "change": place.change,
        "metadata": metadata,
        **({"metadata_left_out": left_out} if left_out else {}),
    }


def shorten_metadata(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return as much of a chunk's metadata as an answer may hold, field by field, and the names of the rest."""
    left = _MOST_OF_METADATA
    short, left_out = {}, []
    for name, value in metadata.items():
        size = len(name) + len(json.dumps(value, ensure_ascii=False))
        if size <= left:
            short[name] = value
            left -= size
        else:
            left_out.append(name)
    return short, [name[:_MOST_OF_A_NAME] for name in left_out[:_MOST_NAMES]]


def cut_texts(texts: Sequence[str]) -> list[str]:
    """Return as much of texts as an answer may hold, and say where one goes on."""
    left = MOST_CHARACTERS
    cut = []
    for text in texts:
        if len(text) > left:
            text = f"{text[:left]}… (cut off: the answer is too long; ask for fewer, or read on with get_context)"
        left = max(0, left - len(text))
        cut.append(text)
    return cut
