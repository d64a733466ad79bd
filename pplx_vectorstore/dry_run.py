"""What indexing would do: which files, how many tokens, how long, and for what money."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pplx_vectorstore.models import KNOWN_MODELS

if TYPE_CHECKING:
    from pplx_vectorstore.documents import Document
    from pplx_vectorstore.encoders import ApiEncoder, LateChunkingEncoder

_SAMPLE_TOKENS = 4_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """What embedding some documents takes.

    Attributes:
        documents: Ids of the documents.
        chunks: Of all of them.
        tokens: Of all chunks; windows overlap, so that a long document takes some more.
        seconds: On this machine, from a sample; None where another one computes.
        costs: Name of a hosted model → US dollars.
    """

    documents: Sequence[str]
    chunks: int
    tokens: int
    seconds: float | None
    costs: dict[str, float]


def estimate(documents: Iterable[Document], encoder: LateChunkingEncoder | ApiEncoder) -> Estimate:
    """Count tokens, and measure how fast the encoder is on some of them.

    Args:
        documents: With their chunks.
        encoder: Whose tokens are counted; a hosted one is not asked.
    """
    from pplx_vectorstore.encoders import ApiEncoder

    ids, sample = [], []
    chunks = tokens = sample_tokens = 0
    for document in documents:
        texts = [chunk if isinstance(chunk, str) else chunk.text for chunk in document.chunks or ()]
        counts = [len(one) for one in encoder.tokenizer.encode(texts)]
        ids.append(document.id)
        chunks += len(texts)
        tokens += sum(counts)
        for text, count in zip(texts, counts, strict=True):
            if sample_tokens < _SAMPLE_TOKENS:
                sample.append(text)
                sample_tokens += count
    seconds = None
    if sample and not isinstance(encoder, ApiEncoder):
        encoder.encode_documents([sample[:1]])  # the first call prepares what others find
        started = time.monotonic()
        encoder.encode_documents([sample])
        seconds = (time.monotonic() - started) * tokens / max(1, sample_tokens)
    return Estimate(ids, chunks, tokens, seconds, dict(_costs(tokens)))


def _costs(tokens: int) -> Iterator[tuple[str, float]]:
    for spec in KNOWN_MODELS.values():
        if spec.price is not None and spec.context_weight:
            yield spec.name.rpartition("/")[2], tokens * spec.price / 1e6
