"""Sparse vectors of words, by which a server ranks that has no BM25 over text.

The server makes them: it is sent the text, and what words and weights to make of it. Those are the words that an index
of the text would have. A weight depends on how long texts are on average, which an index knows at any time; but a
vector is made once. So once there are enough chunks, their average is recorded in the collection's metadata, and later
vectors are made with that.
"""

from __future__ import annotations

from collections.abc import Sequence

from pplx_vectorstore.collection import TEXT_FIELD, bm25_document
from pplx_vectorstore.engines.calls import Calls
from pplx_vectorstore.lexical import count_words, normalize_words
from pplx_vectorstore.operations.ledger import Ledger
from pplx_vectorstore.points import Point
from pplx_vectorstore.qdrant import models

AVERAGE_KEY = "pplx_vectorstore_words"
"""Of the collection's metadata."""

# Words of a chunk of 256 tokens, the default, until there are so many chunks that their average tells more.
_USUAL_WORDS = 160.0
_ENOUGH_CHUNKS = 64


class WordVectors:
    """Tells a server of what to make the vectors of words of points, and of questions.

    Args:
        calls: The client.
        ledger: Of the collection.
        unstemmed: Whether the server can be told not to stem.
    """

    def __init__(self, calls: Calls, ledger: Ledger, *, unstemmed: bool) -> None:
        self._calls = calls
        self._ledger = ledger
        self._unstemmed = unstemmed

    def query(self, words: str) -> models.Document:
        """Return what a question's words are compared by."""
        return bm25_document(normalize_words(words), average_words=_USUAL_WORDS, unstemmed=self._unstemmed)

    async def of_points(self, points: Sequence[Point]) -> list[models.Document]:
        """Return what the server is to make the points' vectors of."""
        texts = await self._calls.run(lambda: [normalize_words(point.payload[TEXT_FIELD]) for point in points])
        average = await self._average(texts)
        return [bm25_document(text, average_words=average, unstemmed=self._unstemmed) for text in texts]

    async def _average(self, texts: Sequence[str]) -> float:
        info = await self._ledger.info(self._calls)
        recorded = info.config.metadata or {}
        if AVERAGE_KEY in recorded:
            return float(recorded[AVERAGE_KEY]["average"])
        sample = list(texts)
        if len(sample) < _ENOUGH_CHUNKS <= len(sample) + (info.points_count or 0):
            stored, _ = await self._calls(
                "scroll", self._ledger.collection, limit=_ENOUGH_CHUNKS, with_payload=[TEXT_FIELD]
            )
            sample += [normalize_words((record.payload or {})[TEXT_FIELD]) for record in stored]
        if len(sample) < _ENOUGH_CHUNKS:
            return _USUAL_WORDS
        average = max(1.0, round(sum(map(count_words, sample)) / len(sample), 1))
        await self._ledger.change(self._calls, metadata={AVERAGE_KEY: {"average": average}})
        return average
