"""Documents → requests to the hosted API, and its answers → codes: all that needs no network.

What the service is given as one document is an *item*: a window of a document, as texts in order, of which
some are only there as context.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from pplx_vectorstore.documents import clean_text, is_blank
from pplx_vectorstore.errors import AlignmentError, EncodingError
from pplx_vectorstore.pooling import Span
from pplx_vectorstore.quantization import Codes, unpack_bits
from pplx_vectorstore.tokenization import ChunkTokenizer
from pplx_vectorstore.windows import Window, lay_out, plan_windows

Encoding = Literal["int8", "binary"]
ENCODING_FORMATS = {"int8": "base64_int8", "binary": "base64_binary"}

MOST_DOCUMENTS = 512
MOST_CHUNKS = 16_000
MOST_REQUEST_TOKENS = 120_000
MOST_DOCUMENT_TOKENS = 32_000
"""The service says 32K and not which; the smaller reading fits both."""
_MOST_OPEN = 256  # as many as that are seldom open: then it is first-fit without a bound


@dataclass(frozen=True, slots=True)
class Item:
    """What the service embeds in one context.

    Attributes:
        texts: Not blank, in document order.
        slots: For each text where its vector goes, or None where it is context only.
        sizes: For each text its tokens: its weight, where several texts go to one slot.
        tokens: Of the whole item, separators included.
    """

    texts: tuple[str, ...]
    slots: tuple[int | None, ...]
    sizes: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A vector that came back: all of a slot's text, or a part of it."""

    slot: int
    tokens: int
    codes: Codes


class ItemPlanner:
    """Cuts documents into items that the service takes.

    Args:
        tokenizer: The model's.
        separator_id: The token that the model puts between chunks.
        capacity: Most tokens of an item.
        min_context: Tokens of context on each side of a chunk.
        contextual: Whether the service embeds the texts of a document in each other's context; if not, every
            text is an item of its own.
    """

    def __init__(
        self, tokenizer: ChunkTokenizer, separator_id: int | None, *, capacity: int, min_context: int, contextual: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._separator_id = separator_id
        self._capacity = capacity
        self._min_context = min_context
        self._contextual = contextual
        plan_windows([], 0, capacity=capacity, min_context=min_context)

    def plan(self, chunks: Sequence[str], first_slot: int) -> list[Item]:
        """Cut one document.

        Args:
            chunks: In order; blank ones are left out.
            first_slot: Slot of the first chunk; the others follow.
        """
        slots = range(first_slot, first_slot + len(chunks))
        if self._contextual:
            return self._plan(chunks, slots, self._capacity, self._min_context)
        alone = (self._plan([chunk], [slot], self._capacity, 0) for chunk, slot in zip(chunks, slots, strict=True))
        return [item for items in alone for item in items]

    def halve(self, items: Sequence[Item]) -> list[list[Item]]:
        """Make two or more smaller requests of one that was too large; none if it cannot be made smaller."""
        if len(items) > 1:
            middle = len(items) // 2
            return [list(items[:middle]), list(items[middle:])]
        (item,) = items
        capacity = item.tokens // 2
        if capacity < 1:
            return []
        context = min(self._min_context, capacity // 8) if self._contextual else 0
        return [[smaller] for smaller in self._plan(item.texts, item.slots, capacity, context)]

    def _plan(self, texts: Sequence[str], slots: Sequence[int | None], capacity: int, min_context: int) -> list[Item]:
        cleaned = [clean_text(text, "a chunk") for text in texts]
        layout = lay_out(self._tokenizer.encode(cleaned), self._separator_id)
        cutter = _Cutter(self._tokenizer, cleaned, layout.chunk_spans)
        items = []
        for window in plan_windows(layout.chunk_spans, len(layout.ids), capacity=capacity, min_context=min_context):
            wanted = {
                (piece.chunk, piece.start, piece.stop): slots[piece.chunk]
                for piece in window.pieces
                if slots[piece.chunk] is not None
            }
            if not wanted:
                continue
            kept = [
                (text, wanted.get((chunk, start, stop)), stop - start)
                for chunk, start, stop in cutter.parts(window)
                if not is_blank(text := cutter.text(chunk, start, stop))
            ]
            if any(slot is not None for _, slot, _ in kept):
                kept_texts, kept_slots, sizes = zip(*kept, strict=True)
                items.append(Item(kept_texts, kept_slots, sizes, window.stop - window.start))
        return items


class _Cutter:
    """Cuts the texts of a layout at tokens.

    Args:
        tokenizer: The model's.
        texts: Of the layout.
        spans: Their tokens in the layout.
    """

    def __init__(self, tokenizer: ChunkTokenizer, texts: Sequence[str], spans: Sequence[Span]) -> None:
        self._tokenizer = tokenizer
        self._texts = texts
        self._spans = spans
        self._bounds = np.array(spans, dtype=np.int64).reshape(-1, 2)
        self._starts: dict[int, list[int]] = {}

    def parts(self, window: Window) -> Iterator[tuple[int, int, int]]:
        """Yield (chunk, start, stop) of what lies in a window, cut at its ends and at those of its pieces."""
        first = int(np.searchsorted(self._bounds[:, 1], window.start, side="right"))
        last = int(np.searchsorted(self._bounds[:, 0], window.stop, side="left"))
        inner: dict[int, set[int]] = {}
        for piece in window.pieces:
            inner.setdefault(piece.chunk, set()).update((piece.start, piece.stop))
        for chunk in range(first, last):
            start, stop = self._spans[chunk]
            edges = {max(start, window.start), min(stop, window.stop)} | inner.get(chunk, set())
            for left, right in pairwise(sorted(edges)):
                yield chunk, left, right

    def text(self, chunk: int, start: int, stop: int) -> str:
        """Return the characters of a chunk's tokens; each character is on one side of every cut."""
        text, (first, last) = self._texts[chunk], self._spans[chunk]
        if (start, stop) == (first, last):
            return text
        if chunk not in self._starts:
            offsets = self._tokenizer.tokenizer.encode(text, add_special_tokens=False).offsets
            self._starts[chunk] = [0, *(begin for begin, _ in offsets[1:]), len(text)]
        starts = self._starts[chunk]
        return text[starts[start - first] : starts[stop - first]]


def pack_requests(items: Sequence[Item], most_tokens: int | None = None) -> list[list[Item]]:
    """Put items into as few requests as first-fit makes of them, the largest first, within the service's limits.

    Each item goes into the first request that has room for it, of the latest 256 that have room for any: so the
    time grows as the number of items does.

    Args:
        items: In any order.
        most_tokens: Of a request, unless one item alone has more; None for the service's limit.

    >>> one = Item(("a",), (0,), (70_000,), 70_000)
    >>> other = Item(("b",), (1,), (40_000,), 40_000)
    >>> [[item.tokens for item in request] for request in pack_requests([other, one, one])]
    [[70000, 40000], [70000]]
    """
    requests: list[list[Item]] = []
    open_: list[tuple[list[Item], int, int]] = []  # with the tokens and texts left in each
    smallest = min((item.tokens for item in items), default=0)
    for item in sorted(items, key=lambda item: -item.tokens):
        for i, (_, tokens, texts) in enumerate(open_):
            if item.tokens <= tokens and len(item.texts) <= texts:
                request, _, _ = open_.pop(i)
                break
        else:
            i, request, tokens, texts = len(open_), [], most_tokens or MOST_REQUEST_TOKENS, MOST_CHUNKS
            requests.append(request)
        request.append(item)
        tokens, texts = tokens - item.tokens, texts - len(item.texts)
        if tokens >= smallest and texts and len(request) < MOST_DOCUMENTS:
            open_.insert(i, (request, tokens, texts))
            del open_[:-_MOST_OPEN]
    return requests


def read_answer(
    data: Any, items: Sequence[Item], *, contextual: bool, dimension: int, encoding: Encoding
) -> list[Piece]:
    """Check an answer for count, order and length, and decode the vectors that were asked for.

    Args:
        data: The answer's ``data``.
        items: What was sent, in order.
        contextual: Whether it nests document → chunk.
        dimension: Components of a vector.
        encoding: How vectors are encoded.

    Raises:
        EncodingError: It is not what the protocol says; AlignmentError where vectors and texts do not correspond.
    """
    documents = _in_order(data, len(items), "documents" if contextual else "texts")
    pieces = []
    for item, document in zip(items, documents, strict=True):
        vectors = _in_order(document.data, len(item.texts), "chunks") if contextual else [document]
        for slot, tokens, vector in zip(item.slots, item.sizes, vectors, strict=True):
            codes = decode(vector.embedding, dimension, encoding)  # context too: a bad vector is a bad answer
            if slot is not None:
                pieces.append(Piece(slot, tokens, codes))
    return pieces


def decode(embedding: Any, dimension: int, encoding: Encoding) -> Codes:
    """Decode one vector.

    Args:
        embedding: base64 of signed bytes, or of bits with the least significant first.
        dimension: Components.
        encoding: Which of the two.

    Returns:
        int8, shape (dimension,); +1 and -1 for bits.

    Raises:
        EncodingError: It is not base64 of that length.
    """
    size = dimension if encoding == "int8" else -(-dimension // 8)
    try:
        raw = base64.b64decode(embedding, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise EncodingError(f"the service gave a vector that is not base64: {embedding!r:.60}") from error
    if len(raw) != size:
        raise EncodingError(f"the service gave a vector of {len(raw)} bytes; {dimension} dimensions take {size}")
    if encoding == "int8":
        return np.frombuffer(raw, dtype=np.int8)
    return unpack_bits(np.frombuffer(raw, dtype=np.uint8), dimension, "little")


def merge_codes(pieces: Sequence[Piece], n_slots: int, dimension: int, encoding: Encoding) -> Codes:
    """Put every slot's vector in its place; a slot of several pieces gets their token-weighted mean.

    The mean is taken of what the model pooled, as far as int8 tells: the inverse of its quantizer.

    Returns:
        int8, shape (n_slots, dimension); zeros for a slot without pieces.
    """
    codes = np.zeros((n_slots, dimension), dtype=np.int8)
    by_slot: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_slot.setdefault(piece.slot, []).append(piece)
    for slot, of_slot in by_slot.items():
        if len(of_slot) == 1:
            codes[slot] = of_slot[0].codes
            continue
        weights = np.array([piece.tokens for piece in of_slot], dtype=np.float64)
        values = np.stack([piece.codes for piece in of_slot]).astype(np.float64)
        if encoding == "int8":
            # ±127 stands for all that is beyond; half a step less keeps it finite.
            mean = weights @ np.arctanh(np.clip(values, -126.5, 126.5) / 127) / weights.sum()
            codes[slot] = np.rint(np.tanh(mean) * 127)
        else:
            codes[slot] = np.where(weights @ values >= 0, 1, -1)
    return codes


def _in_order(entries: Any, n: int, what: str) -> list[Any]:
    """Sort entries by their index, which must be 0 to n - 1, each once."""
    if not isinstance(entries, list):
        raise EncodingError(f"the service gave no list of {what}: {entries!r:.60}")
    if len(entries) != n:
        raise AlignmentError(f"the service gave {len(entries)} {what} for {n}")
    ordered: list[Any] = [None] * n
    for entry in entries:
        index = getattr(entry, "index", None)
        if not isinstance(index, int) or not 0 <= index < n or ordered[index] is not None:
            indices = [getattr(one, "index", None) for one in entries]
            raise AlignmentError(f"the service gave {what} of the indices {indices!r:.60}; 0 to {n - 1} are needed")
        ordered[index] = entry
    return ordered
