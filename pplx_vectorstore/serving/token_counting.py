"""Texts → token ids, a slice at a time, and no more of a request than shows that it has too many tokens.

A tokenizer's results take some hundred bytes a token: of a body of 32 MB that would be gigabytes, and minutes during
which other requests wait.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pplx_vectorstore.serving.wire import Limits, refuse_more_tokens

if TYPE_CHECKING:
    from pplx_vectorstore.windows import TokenIds

SLICE_CHARACTERS = 65_536
"""What a tokenizer thread does at once: some milliseconds, so that requests take turns there too."""

# How much longer each beginning of a text is that is looked at.
_GROWTH = 4
# A beginning can have some tokens more than the whole has there, at the place of the cut; never as many as that.
_SURE = 2


async def tokenize(
    texts: Sequence[str], encode: Callable[[list[str]], Awaitable[list[TokenIds]]], limits: Limits
) -> list[TokenIds]:
    """Tokenize a request's texts.

    Args:
        texts: Of all its documents.
        encode: Tokenizes some texts, elsewhere.
        limits: What it may ask for.

    Returns:
        The int64 ids of each text.

    Raises:
        RefusalError: It has far too many tokens to be worth counting them all. What it has may still be too many.
    """
    ids: list[TokenIds] = []
    tokens = 0
    for part in _slices(texts):
        if len(part[0]) > SLICE_CHARACTERS:
            await _refuse_if_endless(part[0], encode, limits)
        of_part = await encode(part)
        ids += of_part
        tokens += sum(map(len, of_part))
        if tokens > limits.request_tokens and len(ids) < len(texts):
            refuse_more_tokens("The input", tokens, limits.request_tokens)
    return ids


async def _refuse_if_endless(
    text: str, encode: Callable[[list[str]], Awaitable[list[TokenIds]]], limits: Limits
) -> None:
    length = SLICE_CHARACTERS
    while length < len(text):
        (ids,) = await encode([text[:length]])
        if len(ids) > _SURE * limits.document_tokens:
            refuse_more_tokens("A text of the input", len(ids), limits.document_tokens)
        length *= _GROWTH


def _slices(texts: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and characters + len(text) > SLICE_CHARACTERS:
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text)
    if part:
        yield part
