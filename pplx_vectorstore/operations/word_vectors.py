"""Sparse vectors of words, by which a server ranks that has no BM25 over text.

The server makes them: it is sent the text, and what words and weights to make of it. Those are the words that an index
of the text would have. A weight depends on how long texts are on average, which an index knows at any time; but a
vector is made once. So as soon as there are enough chunks, before any of them is written, their average is recorded in
the collection's metadata, and vectors are made with that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pplx_vectorstore.collection import TEXT_FIELD, bm25_document
from pplx_vectorstore.engines.calls import Calls
from pplx_vectorstore.errors import ServerError
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
        self._average: float | None = None  # where it cannot be recorded

    def query(self, words: str) -> models.Document:
        """Return what a question's words are compared by."""
        return bm25_document(normalize_words(words), average_words=_USUAL_WORDS, unstemmed=self._unstemmed)

    async def settle(self, texts: Iterable[str]) -> None:
        """Find out how long texts are on average, unless it is known or there are too few.

        Args:
            texts: That are written next.
        """
        if await self._recorded() is not None:
            return
        async with self._calls.hold(self._ledger.words_lock):
            if await self._recorded(fresh=True) is not None:
                return
            sample = await self._calls.run(lambda: [normalize_words(text) for text in texts])
            if len(sample) < _ENOUGH_CHUNKS:
                stored, _ = await self._calls(
                    "scroll", self._ledger.collection, limit=_ENOUGH_CHUNKS, with_payload=[TEXT_FIELD]
                )
                sample += [normalize_words((record.payload or {})[TEXT_FIELD]) for record in stored]
            if len(sample) < _ENOUGH_CHUNKS:
                return
            average = max(1.0, round(sum(map(count_words, sample)) / len(sample), 1))
            try:
                await self._ledger.change(self._calls, metadata={AVERAGE_KEY: {"average": average}})
            except ServerError as error:
                if error.status != 403:
                    raise
                self._average = average  # a key for points alone

    async def of_points(self, points: Sequence[Point]) -> list[models.Document]:
        """Return what the server is to make the points' vectors of."""
        texts = await self._calls.run(lambda: [normalize_words(point.payload[TEXT_FIELD]) for point in points])
        average = await self._recorded() or self._average or _USUAL_WORDS
        return [bm25_document(text, average_words=average, unstemmed=self._unstemmed) for text in texts]

    async def _recorded(self, *, fresh: bool = False) -> float | None:
        info = await self._ledger.info(self._calls, fresh=fresh)
        recorded = (info.config.metadata or {}).get(AVERAGE_KEY)
        return None if recorded is None else float(recorded["average"])
